"""An Orthanc with its DICOMweb plugin for tests: a DICOM server as hospitals run it.

    python tests/services/orthanc.py DIR [PORT]

Prints one line of JSON (url, user, password, and dicom_port of its node ORTHANC) once it answers, and serves until its
stdin closes or it is told to stop.
DIR must be empty or absent. Wants Debian's packages `orthanc` and `orthanc-dicomweb`.
"""

from __future__ import annotations

import argparse
import base64
import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

_s3_server = runpy.run_path(str(Path(__file__).parent / "s3_server.py"))
USER, PASSWORD = "reader", "of-tests-only"
PLUGINS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"))
INSTALL = "apt-get install --no-install-recommends orthanc orthanc-dicomweb"


def main() -> int:
    """Serve until stdin closes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int, nargs="?", default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port, folder = arguments.port or _s3_server["free_port"](), arguments.folder.resolve()
    dicom_port = _s3_server["free_port"]()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings(folder, port, dicom_port)))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program(), str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/system", process, folder / "log")
        said = {"url": f"http://127.0.0.1:{port}", "user": USER, "password": PASSWORD, "dicom_port": dicom_port}
        print(json.dumps(said), flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return 0


def program() -> str | None:
    """Orthanc's program, where it and its plugin are there."""
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    return found if found and plugin() else None


def plugin() -> Path | None:
    """The DICOMweb plugin."""
    found = [path for folder in PLUGINS for path in sorted(folder.glob("libOrthancDicomWeb.so*"))]
    return found[0] if found else None


def settings(folder: Path, port: int, dicom_port: int) -> dict[str, object]:
    """What differs from Orthanc's defaults. A page of answers is short, so that a test has several."""
    return {
        "Name": "tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugin())],
        "HttpPort": port,
        "HttpServerEnabled": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomServerEnabled": True,
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "DicomAlwaysAllowStore": True,
        "LimitFindResults": 3,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Ssl": False},
    }


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, within_s: float = 60) -> None:
    """Return when the server answers; leave with a message when it has ended or time is up."""
    key = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    until = time.monotonic() + within_s
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Basic {key}"}), timeout=2)
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"Orthanc does not answer at {url}; its log is {log}")


if __name__ == "__main__":
    sys.exit(main())
