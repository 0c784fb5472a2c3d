"""A Ray cluster of several nodes with a dashboard, whose workers are lost and replaced when stdin says so.

    python tests/local/nodes_to_lose.py

Prints the address of its dashboard, then reads commands: `lose` kills a worker with all that runs on it, `add` starts
another. It ends when stdin closes.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from ray.cluster_utils import Cluster


def main() -> None:
    """Obey until there is nothing more to read."""
    folder = tempfile.mkdtemp(prefix="tomoray-", dir="/tmp")
    # Another Ray on this machine may have the usual ports, and jobs find their cluster by a file in Ray's usual folder.
    os.environ["RAY_TMPDIR"] = folder
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, **ports})
    Path(folder, "ray", "ray_current_cluster").write_text(cluster.address, encoding="utf-8")
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        print(f"http://{cluster.head_node.webui_url}", flush=True)
        for command in sys.stdin:
            if command.strip() == "lose":
                cluster.remove_node(nodes.pop(0), allow_graceful=False)
            else:
                nodes.append(cluster.add_node(num_cpus=2))
            print(len(nodes), flush=True)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
