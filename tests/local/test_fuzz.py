"""Some six hundred broken files from source to catalog (benchmarks/fuzz.py runs as many as one likes)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def test_no_broken_file_kills_hangs_swells_or_is_lost():
    command = [sys.executable, str(FUZZ), "--files", "600", "--seed", "7", "--json"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout)
    assert found["failures"] == []
    ends = ("stored", "copies", "refused", "drawn", "ignored")
    assert sum(found[end] for end in ends) == found["files"] >= 600
    assert found["stored"] > 0
    assert len(found["reasons"]) > 10
