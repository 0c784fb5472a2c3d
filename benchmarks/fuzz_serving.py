"""Broken studies against a server that runs: none may bring a 5xx, a reply that is not one line of JSON, or a hang.

    tomoray serve run --port 8000
    .venv/bin/python benchmarks/fuzz_serving.py http://127.0.0.1:8000 [--uploads 5000] [--seed 0] [--json]

Studies are those of benchmarks/fuzz.py, as a zip (one in eight of them broken itself), a multipart message or, where
they hold one, a NIfTI file; one in four is queued as a job. No reply may hold an identifier of the seeds, and each job
must end. The exit code is 1 where one of these fails; a case is named by its number, and `--case N` sends it alone.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import requests
from fuzz import IDENTIFIERS, _broken, make_case, make_seeds

HANG_S = 60.0
JSON, NIFTI, ZIP = "application/json", "application/gzip", "application/zip"
ACCEPTS = (JSON, JSON, "application/dicom", "application/dicom; kind=sr", "application/gzip")


def main() -> int:
    """Send, and print what came back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--uploads", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (place := Path(folder) / "seeds").mkdir()
        seeds = make_seeds(place)
        numbers = range(arguments.uploads) if arguments.case is None else [arguments.case]
        with ThreadPoolExecutor(arguments.at_once) as pool:
            ends = list(
                pool.map(lambda n: send(arguments.url, seeds, Path(folder) / f"{n}", arguments.seed, n), numbers)
            )
    found = {
        "uploads": len(ends),
        "ends": dict(sorted(Counter(end["end"] for end in ends).items())),
        "slowest_s": round(max(end["seconds"] for end in ends), 2),
        "failures": [failure for end in ends for failure in end["failures"]],
        "seconds": round(time.monotonic() - start, 1),
    }
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"{found['uploads']} uploads in {found['seconds']} s, the slowest {found['slowest_s']} s")
        for end, count in found["ends"].items():
            print(f"{count:7d}  {end}")
        print("\n".join(found["failures"]) or "no failures")
    return 1 if found["failures"] else 0


def send(url: str, seeds: Sequence[Any], place: Path, seed: int, n: int) -> dict[str, Any]:
    """Make case `n`, send it, and say how it ended."""
    rng = random.Random(f"{seed} {n}")
    make_case(seeds, place, rng)
    files = {path.name: path.read_bytes() for path in sorted(place.iterdir())}
    for path in place.iterdir():
        path.unlink()
    request = _request(files, rng)
    queued = rng.random() < 0.25
    start = time.monotonic()
    try:
        if queued:
            reply = _wait(url, requests.post(f"{url}/v1/jobs?operation=segment", timeout=HANG_S, **request))
        else:
            request["headers"] = {**request.get("headers", {}), "Accept": rng.choice(ACCEPTS)}
            reply = requests.post(f"{url}/v1/segment", timeout=HANG_S, **request)
    except (requests.RequestException, TimeoutError) as error:
        failures = [f"case {n}: no reply ({type(error).__name__})"]
        return {"end": "no reply", "seconds": time.monotonic() - start, "failures": failures}
    failures, end = [], "found"
    if reply.status_code >= 500:
        failures.append(f"case {n}: {reply.status_code} {reply.text[:200]}")
    if reply.status_code >= 400:
        try:
            end = f"{reply.status_code} {reply.json()['error']['code']}"
        except (ValueError, KeyError, TypeError):
            failures.append(f"case {n}: {reply.status_code} is not told as JSON")
        failures += [f"case {n}: the reply names {name!r}" for name in IDENTIFIERS if name in reply.text]
    return {"end": end, "seconds": time.monotonic() - start, "failures": failures}


def _request(files: dict[str, bytes], rng: random.Random) -> dict[str, Any]:
    volumes = [data for name, data in files.items() if name.endswith((".nii", ".nii.gz"))]
    if volumes:
        return {"data": volumes[0], "headers": {"Content-Type": NIFTI}}
    if rng.random() < 0.25:
        return {"files": [("file", (name, data)) for name, data in files.items()]}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    body = packed.getvalue()
    return {"data": _broken(body, rng) if rng.random() < 0.125 else body, "headers": {"Content-Type": ZIP}}


def _wait(url: str, reply: requests.Response) -> requests.Response:
    """The result of a job that was accepted, as soon as it has ended; else why it was not."""
    if reply.status_code != 202:
        return reply
    job, until = f"{url}/v1/jobs/{reply.json()['id']}", time.monotonic() + HANG_S
    while requests.get(job, timeout=HANG_S).json()["state"] in ("queued", "running"):
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.05)
    result = requests.get(f"{job}/result", timeout=HANG_S)
    requests.delete(job, timeout=HANG_S)
    return result


if __name__ == "__main__":
    sys.exit(main())
