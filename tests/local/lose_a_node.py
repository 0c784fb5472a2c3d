"""Preprocess on a Ray cluster of three nodes, one of which is lost on the way.

    python tests/local/lose_a_node.py SOURCE ARCHIVE CONFIG

Prints the result of the job as JSON, with `lost_after`: how many scans there were when the node went.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout

import ray
from ray.cluster_utils import Cluster

from jobs import preprocess
from tomoray.archive import Archive
from tomoray.config import PreprocessConfig, load_config
from tomoray.errors import Fatal


def main() -> None:
    """Run the job in the driver, and lose the node in a thread."""
    source, archive, config_file = sys.argv[1:]
    config = load_config(config_file, PreprocessConfig, {"sources": [source], "archive": archive})
    folder = tempfile.mkdtemp(prefix="tomoray-", dir="/tmp")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(cluster.address, log_to_driver=False)
        lost_after: list[int] = []
        loser = threading.Thread(target=lambda: lost_after.append(lose(cluster, nodes[0], archive)))
        loser.start()
        with redirect_stdout(sys.stderr):
            result = preprocess.run(config)
        loser.join()
        print(json.dumps({**result, "lost_after": lost_after[0]}))
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def lose(cluster: Cluster, node: object, archive: str) -> int:
    """Kill a node and all that runs on it as soon as five scans are there."""
    while True:
        try:
            there = len(Archive.open(archive).scan_ids())
        except Fatal:  # not begun yet
            there = 0
        if there >= 5:
            cluster.remove_node(node, allow_graceful=False)
            return there
        time.sleep(0.02)


if __name__ == "__main__":
    main()
