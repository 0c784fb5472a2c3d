"""A served model on a local Ray cluster of three nodes: how it scales, and what it loses when processes and nodes go.

    python benchmarks/serving_nodes.py scale --plot docs/serving-scaling.svg     from no replica to three and back
    python benchmarks/serving_nodes.py faults --jobs 200                         kill -9 under load

The network is small and was never trained. Each prints JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import ray
import requests
import torch
from ray import serve
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from jobs import preprocess
from tomoray import phantom
from tomoray.archive import Archive
from tomoray.catalog import Split
from tomoray.config import PhantomConfig, PreprocessConfig
from tomoray.networks import build_network
from tomoray.runs import begin_run, finish_run
from tomoray.serving_config import ModelConfig, QueueConfig, ServeConfig
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

NODES = 3
MODEL = "model-run"


def main() -> None:
    """Start the cluster, and do what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scale", "faults"])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--requests", type=int, default=60)
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tomoray-", dir="/tmp"))
    Path("/tmp/ray").mkdir(exist_ok=True)  # where Cluster notes its address
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": str(folder / "ray"), "include_dashboard": True}
    )
    try:
        with redirect_stdout(sys.stderr):
            nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES)]
            ray.init(cluster.address, log_to_driver=False)
            prepare(folder)
            result = scale(folder, flags) if flags.what == "scale" else faults(folder, flags, cluster, nodes)
        print(json.dumps(result))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def prepare(folder: Path) -> None:
    """A scan in an archive, and a run."""
    phantom.write_cohort(PhantomConfig(out=str(folder / "cohort"), patients=1, seed=3, matrix=64))
    preprocess.run(PreprocessConfig(sources=[str(folder / "cohort")], archive=str(folder / "archive")))
    store, split = open_store(str(folder / "run")), Split(train=(), validation=(), test=())
    config = TrainConfig(
        archive=str(folder / "archive"),
        out=store.url,
        labels=["lungs"],
        spacing_zyx_mm=(6.0, 6.0, 6.0),
        patch_zyx=(32, 32, 32),
        network={"channels": [4, 8]},
        steps=1,
    )
    begin_run(store, config, split)
    torch.manual_seed(0)
    weights = io.BytesIO()
    torch.save(build_network(config.network, out_channels=2).state_dict(), weights)
    store.write("checkpoints/step-00000001/model.pt", weights.getvalue())
    finish_run(store, config, split, {})


def deploy(folder: Path, **model: Any) -> str:
    """Serve the run; the URL."""
    from serving.app import app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    config = ServeConfig(
        models=[ModelConfig(source=str(folder / "run"), cpus=1, **model)],
        queue=QueueConfig(url=str(folder / "queue.sqlite")),
    )
    serve.run(app(config), name="tomoray")
    return f"http://127.0.0.1:{port}"


def replicas() -> int:
    """Of the model, that answer."""
    status = serve.status().applications["tomoray"].deployments[MODEL]
    return sum(count for state, count in status.replica_states.items() if str(state).endswith("RUNNING"))


def scale(folder: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Nobody asks; many ask; nobody asks."""
    url = deploy(
        folder,
        backend="torch",
        min_replicas=0,
        max_replicas=NODES,
        target_ongoing_requests=2,
        requests_at_once=4,
        upscale_delay_s=1,
        downscale_delay_s=5,
        queue=flags.requests,
    )
    (scan_id,) = Archive.open(str(folder / "archive")).scan_ids()
    start, ongoing, timeline, ends = time.monotonic(), [0], [], threading.Event()

    def watch() -> None:
        while not ends.wait(0.25):
            timeline.append((round(time.monotonic() - start, 2), ongoing[0], replicas()))

    def ask(_: int) -> float:
        ongoing[0] += 1
        asked = time.monotonic()
        reply = requests.post(f"{url}/v1/segment", json={"scan_id": scan_id}, timeout=600)
        reply.raise_for_status()
        ongoing[0] -= 1
        return time.monotonic() - asked

    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(2)
    cold_s = ask(0)
    warm_s = ask(0)
    with ThreadPoolExecutor(20) as pool:
        seconds = sorted(pool.map(ask, range(flags.requests)))
    busy_until = time.monotonic()
    while replicas() > 0 and time.monotonic() - busy_until < 120:
        time.sleep(0.25)
    gone_s = time.monotonic() - busy_until
    time.sleep(1)
    ends.set()
    watcher.join()
    if flags.plot:
        flags.plot.write_text(draw(timeline), encoding="utf-8")
    return {
        "answered": len(seconds) + 2,
        "cold_start_s": round(cold_s, 2),
        "warm_s": round(warm_s, 2),
        "median_s": round(seconds[len(seconds) // 2], 2),
        "replicas_at_first": timeline[0][2],
        "replicas_at_most": max(there for _, _, there in timeline),
        "replicas_at_last": timeline[-1][2],
        "gone_after_s": round(gone_s, 1),
        "timeline": timeline,
    }


def faults(folder: Path, flags: argparse.Namespace, cluster: Cluster, nodes: list[Any]) -> dict[str, Any]:
    """Jobs are accepted; a model's replica, the gateway's and a node are killed; every job ends, once."""
    url = deploy(folder, backend="torch", min_replicas=NODES - 1, max_replicas=NODES - 1, queue=flags.jobs)
    (scan_id,) = Archive.open(str(folder / "archive")).scan_ids()
    statuses: Counter[int] = Counter()

    def call(method: str, path: str, **what: Any) -> requests.Response:
        """As a client does: what is gone for the moment is asked for again."""
        while True:
            try:
                reply = requests.request(method, f"{url}{path}", timeout=60, **what)
            except requests.RequestException:
                statuses[0] += 1
                time.sleep(0.5)
                continue
            statuses[reply.status_code] += 1
            if reply.status_code < 429:
                return reply
            time.sleep(0.5)

    def submit(number: int) -> str:
        body = {"operation": "segment", "input": {"scan_id": scan_id}}
        reply = call("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": f"job-{number}"})
        return str(reply.json()["id"])

    call("POST", "/v1/segment", json={"scan_id": scan_id})
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(submit, range(flags.jobs)))
        before = states(call, ids)
        killed = [kill("ServeReplica:tomoray:model-run"), kill("ServeReplica:tomoray:Gateway")]
        cluster.remove_node(nodes[0], allow_graceful=False)
        again = list(pool.map(submit, range(flags.jobs)))  # the same keys: the same jobs
    deadline = time.monotonic() + 300
    while (now := states(call, ids)).keys() - {"done", "failed", "cancelled"} and time.monotonic() < deadline:
        time.sleep(1)
    found = {json.dumps(call("GET", f"/v1/jobs/{job}/result").json()["labels"]) for job in ids[:20]}
    return {
        "jobs": len(set(ids)),
        "same_jobs_for_the_same_keys": ids == again,
        "when_killed": before,
        "killed": killed,
        "at_the_end": now,
        "results_alike": len(found) == 1,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


def states(call: Any, ids: list[str]) -> Counter[str]:
    """How many jobs are in which state."""
    return Counter(str(call("GET", f"/v1/jobs/{job}").json()["state"]) for job in ids)


def kill(name: str) -> str:
    """`kill -9` the process of an actor of that class."""
    alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    actor = next(each for each in alive if name in each.class_name)
    os.kill(actor.pid, signal.SIGKILL)
    return actor.class_name


def draw(timeline: list[tuple[float, int, int]]) -> str:
    """Requests and replicas over time, as SVG that reads on light and dark."""
    width, height, left, base = 640, 220, 44, 186
    end, most = max(t for t, _, _ in timeline), max(max(asked, there) for _, asked, there in timeline)

    def steps(column: int, scale: int) -> str:
        places, last = [], base
        for moment in timeline:
            x = left + moment[0] / end * (width - left - 16)
            y = base - moment[column] / scale * (base - 34)
            places += [f"{x:.1f},{last:.1f}", f"{x:.1f},{y:.1f}"]
            last = y
        return " ".join(places)

    ticks = "".join(
        f'<text x="{left + part * (width - left - 16):.0f}" y="{base + 20}" text-anchor="middle">'
        f"{part * end:.0f} s</text>"
        for part in (0, 0.25, 0.5, 0.75, 1)
    )
    lines = "".join(
        f'<line x1="{left}" x2="{width - 16}" y1="{base - n / NODES * (base - 34):.0f}" '
        f'y2="{base - n / NODES * (base - 34):.0f}" stroke="#8884"/><text x="{left - 8}" '
        f'y="{base - n / NODES * (base - 34) + 4:.0f}" text-anchor="end">{n}</text>'
        for n in range(NODES + 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Replicas follow requests from none to {NODES} and back" font-family="system-ui, sans-serif" '
        f'font-size="12" fill="#888">{lines}{ticks}'
        f'<polyline points="{steps(1, most)}" fill="none" stroke="#d97706" stroke-width="1.5"/>'
        f'<polyline points="{steps(2, NODES)}" fill="none" stroke="#2563eb" stroke-width="2.5"/>'
        f'<text x="{left}" y="18" fill="#2563eb">replicas</text>'
        f'<text x="{left + 70}" y="18" fill="#d97706">requests under way (at most {most})</text></svg>\n'
    )


if __name__ == "__main__":
    main()
