from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def test_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "cluster.cli", "phantom", str(tmp_path / "out"), "--patients", "1"]
    done = subprocess.run(  # its own process: inside a running `local_ray` nothing would be joined
        command, env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert f"no Ray cluster at RAY_ADDRESS={address}; start one there" in done.stderr
    assert not (tmp_path / "out").exists()
