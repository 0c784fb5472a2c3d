"""A served model on a local Ray cluster of several nodes: how it scales, and what is lost when things change or go.

    python benchmarks/serving_nodes.py scale --plot docs/serving-scaling.svg     from no replica to three and back
    python benchmarks/serving_nodes.py update                                    other weights while many ask
    python benchmarks/serving_nodes.py faults --jobs 200                         kill -9 under load
    python benchmarks/serving_nodes.py memory --jobs 200                         what stays of many jobs

Three nodes have a CPU each, a fourth says that it has a GPU too. The network is small and was never trained. What is
found is printed as JSON.
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
from collections.abc import Callable
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

from cluster import PROXY
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
MODEL = "model-model"


def main() -> None:
    """Start the cluster, and do what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--plot", type=Path, help="draw what `scale` saw")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--requests", type=int, default=60)
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tomoray-", dir="/tmp"))
    os.environ["RAY_TMPDIR"] = str(folder)  # another Ray on this machine may have the usual folder
    os.environ |= PROXY
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, **ports()})
    try:
        with redirect_stdout(sys.stderr):
            nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES)]
            nodes += [cluster.add_node(num_cpus=1, num_gpus=1, labels={"ray.io/accelerator-type": "H100"})]
            ray.init(cluster.address, log_to_driver=False)
            prepare(folder)
            result = COMMANDS[flags.what](folder, flags, cluster, nodes)
        print(json.dumps(result))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def prepare(folder: Path) -> None:
    """A scan in an archive, and two runs."""
    phantom.write_cohort(PhantomConfig(out=str(folder / "cohort"), patients=1, seed=3, matrix=64))
    preprocess.run(PreprocessConfig(sources=[str(folder / "cohort")], archive=str(folder / "archive")))
    for seed, name in enumerate(("run", "newer")):
        store, split = open_store(str(folder / name)), Split(train=(), validation=(), test=())
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
        torch.manual_seed(seed)
        weights = io.BytesIO()
        torch.save(build_network(config.network, out_channels=2).state_dict(), weights)
        store.write("checkpoints/step-00000001/model.pt", weights.getvalue())
        finish_run(store, config, split, {})


def deploy(folder: Path, run: str = "run", port: int | None = None, **model: Any) -> str:
    """Serve a run, or replace it by another; the URL."""
    from serving.app import app

    if port is None:
        port = free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    config = ServeConfig(
        models=[ModelConfig(source=str(folder / run), name="model", cpus=1, gpu=False, backend="torch", **model)],
        queue=QueueConfig(url=str(folder / "queue.sqlite")),
    )
    serve.run(app(config), name="tomoray")
    return f"http://127.0.0.1:{port}"


def replicas() -> int:
    """Of the model, that answer."""
    status = serve.status().applications["tomoray"].deployments[MODEL]
    return sum(count for state, count in status.replica_states.items() if str(state).endswith("RUNNING"))


def scale(folder: Path, flags: argparse.Namespace, *_: Any) -> dict[str, Any]:
    """Nobody asks; many ask; nobody asks."""
    url = deploy(
        folder,
        min_replicas=0,
        max_replicas=NODES,
        target_ongoing_requests=2,
        requests_at_once=4,
        upscale_delay_s=1,
        downscale_delay_s=5,
        queue=flags.requests,
    )
    ask, ongoing, timeline, ends = asker(folder, url), [0], [], threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while not ends.wait(0.25):
            timeline.append((round(time.monotonic() - start, 2), ongoing[0], replicas()))

    def timed(_: int) -> float:
        ongoing[0] += 1
        asked = time.monotonic()
        ask()
        ongoing[0] -= 1
        return time.monotonic() - asked

    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(2)
    cold_s, warm_s = timed(0), timed(0)
    with ThreadPoolExecutor(20) as pool:
        seconds = sorted(pool.map(timed, range(flags.requests)))
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
        "off_gpu_nodes": all(not on_gpu_node(name) for name in ("Gateway", "Runner")),
        "timeline": timeline,
    }


def update(folder: Path, flags: argparse.Namespace, *_: Any) -> dict[str, Any]:
    """Some ask all the time while the application is deployed anew with other weights."""
    url = deploy(folder, min_replicas=2, max_replicas=2)
    ask, ends, weights = asker(folder, url), threading.Event(), []
    ask()

    def keep_asking(_: int) -> None:
        while not ends.is_set():
            weights.append(ask()["model"]["sha256"])

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, n) for n in range(4)]
        time.sleep(3)
        start = time.monotonic()
        deploy(folder, "newer", int(url.rpartition(":")[2]), min_replicas=2, max_replicas=2)
        seconds = time.monotonic() - start
        time.sleep(3)
        ends.set()
        for each in asking:
            each.result()
    older, newer = weights[0], weights[-1]
    return {
        "answered": len(weights),
        "by_the_older": weights.count(older),
        "by_the_newer": weights.count(newer),
        "differ": older != newer,
        "seconds": round(seconds, 1),
    }


def faults(folder: Path, flags: argparse.Namespace, cluster: Cluster, nodes: list[Any]) -> dict[str, Any]:
    """Jobs are accepted; a model's replica, the gateway's and a node are killed; every job ends, once."""
    client = Jobs(folder, deploy(folder, min_replicas=NODES - 1, max_replicas=NODES - 1, queue=flags.jobs))
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(client.submit, range(flags.jobs)))
        before = client.states(ids)
        asked_again = pool.map(client.submit, range(flags.jobs))  # the same keys: the same jobs
        killed = [kill("Gateway"), kill(MODEL)]
        lost = actor_of(MODEL).node_id
        cluster.remove_node(next(node for node in nodes if node.node_id == lost), allow_graceful=False)
        again = list(asked_again)
    now = client.wait(ids)
    found = {json.dumps(client.call("GET", f"/v1/jobs/{job}/result").json()["labels"]) for job in ids[:20]}
    return {
        "jobs": len(set(ids)),
        "same_jobs_for_the_same_keys": ids == again,
        "when_killed": before,
        "killed": [*killed, "a node with a replica of the model"],
        "at_the_end": now,
        "results_alike": len(found) == 1,
        "statuses": {str(status): count for status, count in sorted(client.statuses.items())},
    }


def memory(folder: Path, flags: argparse.Namespace, *_: Any) -> dict[str, Any]:
    """What all replicas hold after some jobs, and after many more."""
    client = Jobs(folder, deploy(folder, min_replicas=1, max_replicas=1, queue=flags.jobs))
    held = []
    for n, jobs in enumerate((flags.jobs // 4, flags.jobs, flags.jobs)):
        with ThreadPoolExecutor(16) as pool:
            ids = list(pool.map(lambda number, n=n: client.submit(f"{n}-{number}"), range(jobs)))
        client.wait(ids)
        time.sleep(2)
        held.append(held_mb())
    return {"jobs": flags.jobs, "held_mb": held, "grown": round(held[-1] / held[0] - 1, 3)}


class Jobs:
    """A client that asks again for what is gone for the moment, and counts what it is told.

    Attributes:
        statuses: how often each HTTP status came; 0: none, the connection ended.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._url = url
        self.statuses: Counter[int] = Counter()
        self._scan_id = scan_id(folder)

    def call(self, method: str, path: str, **what: Any) -> requests.Response:
        """The answer, however long it takes to get one."""
        while True:
            try:
                reply = requests.request(method, f"{self._url}{path}", timeout=60, **what)
            except requests.RequestException:
                self.statuses[0] += 1
            else:
                self.statuses[reply.status_code] += 1
                if reply.status_code < 429:
                    return reply
            time.sleep(0.5)

    def submit(self, key: object) -> str:
        """The id of the job of that key."""
        body = {"operation": "segment", "input": {"scan_id": self._scan_id}}
        return str(self.call("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": f"job-{key}"}).json()["id"])

    def states(self, ids: list[str]) -> Counter[str]:
        """How many jobs are in which state."""
        return Counter(str(self.call("GET", f"/v1/jobs/{job}").json()["state"]) for job in ids)

    def wait(self, ids: list[str]) -> Counter[str]:
        """The same, once all have ended, or after five minutes."""
        deadline = time.monotonic() + 300
        while (now := self.states(ids)).keys() - {"done", "failed", "cancelled"} and time.monotonic() < deadline:
            time.sleep(1)
        return now


def scan_id(folder: Path) -> str:
    """Of the only scan there is."""
    (found,) = Archive.open(str(folder / "archive")).scan_ids()
    return found


def asker(folder: Path, url: str) -> Callable[[], dict[str, Any]]:
    """A function that has the scan segmented; raises for every status but 200."""
    what = {"scan_id": scan_id(folder)}

    def ask() -> dict[str, Any]:
        reply = requests.post(f"{url}/v1/segment", json=what, timeout=600)
        reply.raise_for_status()
        found: dict[str, Any] = reply.json()
        return found

    return ask


def actors() -> list[Any]:
    """Of the application, that are alive."""
    alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    return [each for each in alive if each.class_name.startswith("ServeReplica:tomoray:")]


def actor_of(deployment: str) -> Any:
    """A replica of a deployment."""
    return next(each for each in actors() if each.class_name.endswith(f":{deployment}"))


def kill(deployment: str) -> str:
    """`kill -9` the process of one of its replicas."""
    os.kill(actor_of(deployment).pid, signal.SIGKILL)
    return f"a replica of {deployment}"


def on_gpu_node(deployment: str) -> bool:
    """True where one of its replicas is on a node with a GPU."""
    gpu = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")}
    return any(each.node_id in gpu for each in actors() if each.class_name.endswith(f":{deployment}"))


def held_mb() -> float:
    """Memory of all replicas that is theirs alone."""
    maps = [Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines() for each in actors()]
    return round(sum(int(line.split()[1]) for lines in maps for line in lines if line.startswith("Private_")) / 1e3, 1)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ports() -> dict[str, int]:
    """Of the dashboard and its agent, apart from those of another Ray on this machine."""
    return {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}


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


COMMANDS = {"scale": scale, "update": update, "faults": faults, "memory": memory}

if __name__ == "__main__":
    main()
