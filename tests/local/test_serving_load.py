"""Broken studies, strange requests, many callers: some of each; the scripts in benchmarks/ take more."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]
FUZZ, LOAD, LOCUST = (
    ROOT / name for name in ("benchmarks/fuzz_serving.py", "benchmarks/load_serving.py", ".tools/bin/locust")
)
BODIES = """
import schemathesis
from hypothesis import strategies

schemathesis.openapi.media_type("application/zip", strategies.binary(), aliases=["application/gzip"])
"""


def test_no_broken_study_brings_a_5xx_a_hang_or_a_name(served):
    command = [sys.executable, str(FUZZ), served.url, "--uploads", "200", "--seed", "5", "--json"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout)
    assert found["failures"] == []
    assert found["uploads"] == 200
    assert found["ends"]["found"] > 0
    assert len(found["ends"]) > 8
    assert requests.get(f"{served.url}/readyz", timeout=60).json() == {"status": "ok"}


def test_server_keeps_what_its_openapi_document_says(served, tmp_path):
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = [
        "--checks",
        checks,
        "--max-examples",
        "15",
        "--seed",
        "1",
        "--no-color",
        "--phases",
        "coverage,fuzzing",
    ]
    (tmp_path / "bodies.py").write_text(BODIES)
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "bodies", "PYTHONPATH": str(tmp_path)}
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{served.url}/openapi.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]


def test_many_callers_all_get_an_answer(served, tmp_path):
    if not LOCUST.exists():
        pytest.skip(f"no locust at {LOCUST}: make tools")
    options = ["--host", served.url, "--scan-id", served.scan_id, "--users", "12", "--spawn-rate", "6"]
    command = [LOCUST, "-f", LOAD, "--headless", *options, "--run-time", "2m"]
    command += ["--stop-timeout", "60", "--csv", tmp_path / "load", "--only-summary"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with (tmp_path / "load_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"segment", "accept", "job", "result", "remove"} < set(rows)
    for name, row in rows.items():
        assert row["Failure Count"] == "0", (name, row)
    assert int(rows["job"]["Request Count"]) > 5
