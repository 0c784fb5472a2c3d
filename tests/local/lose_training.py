"""Train on a Ray cluster of two nodes, of which one is drained and the other killed.

    python tests/local/lose_training.py CONFIG

The node where rank 0 is gets notice of its end; where training has gone on elsewhere, that node is killed, and another
is there by then. Prints the result of the job as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from jobs import train
from tomoray.config import load_config
from tomoray.training.config import TrainConfig


def main() -> None:
    """Run the job in the driver, and lose nodes in a thread."""
    config = load_config(sys.argv[1], TrainConfig)
    folder = tempfile.mkdtemp(prefix="tomoray-", dir="/tmp")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(cluster.address, log_to_driver=False)
        loser = threading.Thread(target=lose, args=(cluster, nodes, Path(str(config.out))), daemon=True)
        loser.start()
        with redirect_stdout(sys.stderr):
            result = train.run(config)
        print(json.dumps(result))
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def lose(cluster: Cluster, nodes: list, run: Path) -> None:
    """Drain the first node that trains, then kill the second."""
    wait_for_checkpoints(run, 1)
    drained = node_of_worker()
    GcsClient(address=cluster.address).drain_node(
        drained, autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, "reclaimed", int((time.time() + 60) * 1000)
    )
    cluster.add_node(num_cpus=1)
    while (second := node_of_worker()) in {drained, ""}:
        time.sleep(0.1)
    wait_for_checkpoints(run, len(checkpoints(run)) and max(checkpoints(run)) + 1)
    cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == second), allow_graceful=False)


def wait_for_checkpoints(run: Path, step: int) -> None:
    """Until one is there of at least this step."""
    while not any(found >= step for found in checkpoints(run)):
        time.sleep(0.02)


def checkpoints(run: Path) -> list[int]:
    """Steps of those that are whole."""
    return [int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/*/checkpoint.json")]


def node_of_worker() -> str:
    """Where a training worker lives now."""
    actors = ray._private.state.actors().values()
    alive = [a for a in actors if a["State"] == "ALIVE" and "TrainWorker" in a["ActorClassName"]]
    return alive[0]["Address"]["NodeID"] if alive else ""


if __name__ == "__main__":
    main()
