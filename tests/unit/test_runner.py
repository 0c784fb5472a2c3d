from __future__ import annotations

import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "in_process.py"
_in_process = runpy.run_path(str(SCRIPT))
gateway_app, Caller, code = (_in_process[name] for name in ("gateway_app", "Caller", "code"))


@pytest.fixture
def caller(tmp_path, archive):
    return Caller(gateway_app(tmp_path, [archive]))


@pytest.fixture
def run(tmp_path, archive):
    """`run()`: a runner in a process of its own."""
    processes = []

    def start():
        processes.append(subprocess.Popen([sys.executable, str(SCRIPT), str(tmp_path), archive]))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def submit(caller):
    ask = {"operation": "segment", "input": {"scan_id": "scan-1"}}
    return caller.ask("POST", "/v1/jobs", json=ask).json()["id"]


def look(caller, job_ids):
    return [caller.get(f"/v1/jobs/{job_id}").json() for job_id in job_ids]


def wait(caller, job_ids, enough, within_s=180):
    until = time.monotonic() + within_s
    while not enough([job["state"] for job in look(caller, job_ids)]):
        assert time.monotonic() < until, look(caller, job_ids)
        time.sleep(0.1)
    return look(caller, job_ids)


def test_jobs_of_a_runner_that_is_killed_are_done_by_another(caller, run):
    job_ids = [submit(caller) for _ in range(8)]
    first = run()
    wait(caller, job_ids, lambda states: "running" in states and "done" in states)
    first.kill()
    first.wait()
    told = {job["id"]: job["finished"] for job in look(caller, job_ids) if job["state"] == "done"}
    run()
    jobs = wait(caller, job_ids, lambda states: set(states) == {"done"})
    assert {job["attempts"] for job in jobs} == {1, 2}
    assert {job["id"]: job["finished"] for job in jobs if job["id"] in told} == told, "what had ended stays ended"
    results = [caller.get(f"/v1/jobs/{job_id}/result").json()["labels"] for job_id in job_ids]
    assert all(result == results[0] for result in results)


def test_running_job_is_cancelled_and_the_next_one_begins(caller, run):
    job_ids = [submit(caller) for _ in range(6)]
    run()
    wait(caller, job_ids, lambda states: "running" in states)
    running = next(job["id"] for job in look(caller, job_ids) if job["state"] in ("running", "queued"))
    assert caller.ask("DELETE", f"/v1/jobs/{running}").json()["state"] == "cancelled"
    jobs = wait(caller, job_ids, lambda states: not {"queued", "running"} & set(states))
    assert [job["state"] for job in jobs if job["id"] == running] == ["cancelled"]
    assert {job["state"] for job in jobs if job["id"] != running} == {"done"}
    assert code(caller.get(f"/v1/jobs/{running}/result")) == (409, "not_done")


def test_followed_job_tells_its_progress(caller, run):
    job_id = submit(caller)
    run()
    events = caller.get(f"/v1/jobs/{job_id}/events").text
    assert "event: progress" in events
    assert '"progress":{"done":1,"of":2}' in events
    assert events.rstrip().rpartition("event: ")[2].startswith("done")
