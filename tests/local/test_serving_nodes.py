"""Models on several nodes that scale, change and go; the script in benchmarks/ does more of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def measured(*arguments):
    command = [sys.executable, "benchmarks/serving_nodes.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_model_scales_from_nothing_and_back_and_its_gateway_keeps_off_gpu_nodes(tmp_path):
    found = measured("scale", "--requests", 30, "--plot", tmp_path / "scale.svg")
    assert found["answered"] == 32
    assert (found["replicas_at_first"], found["replicas_at_last"]) == (0, 0)
    assert found["replicas_at_most"] > 1
    assert found["off_gpu_nodes"]
    assert "polyline" in (tmp_path / "scale.svg").read_text()


def test_other_weights_take_over_without_a_lost_request():
    found = measured("update")
    assert found["differ"]
    assert found["by_the_older"] + found["by_the_newer"] == found["answered"]


def test_every_job_ends_once_though_replicas_the_gateway_and_a_node_are_killed():
    found = measured("faults", "--jobs", 60)
    assert found["jobs"] == 60
    assert found["at_the_end"] == {"done": 60}
    assert found["same_jobs_for_the_same_keys"]
    assert found["results_alike"]
    assert not [status for status in found["statuses"] if int(status) >= 500], found["statuses"]
