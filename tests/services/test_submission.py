"""The submission client against an API server of our own: real HTTP, faults included."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster import cli
from cluster.jobs_api import JobState
from cluster.kube import connect
from cluster.kube_jobs import KubeJobs
from cluster.submission import Shape, Submission, prepare
from cluster.targets import KubernetesTarget, Pool, Pools, save_target
from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.errors import Fatal, Forbidden, Transient

_api: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("kube_api.py")))


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """Fields of a training on a volume that pods and this machine see."""
    return {"archive": f"{tmp_path}/archive", "out": f"{tmp_path}/run", "steps": 100}


@pytest.fixture
def api() -> Iterator[Any]:
    with _api["serving"]() as api:
        yield api


@pytest.fixture
def target(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubernetesTarget:
    monkeypatch.setenv("TOMORAY_TARGETS", str(tmp_path / "targets.yaml"))
    monkeypatch.setenv("TOMORAY_S3_PATIENCE", "1")
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
    target = KubernetesTarget(
        kind="kubernetes",
        image="r/tomoray:1",
        kubeconfig=str(kubeconfig),
        pseudonym_key="k/key",
        volumes={str(tmp_path): "shared"},
        pools=Pools(head=Pool(node_type="m7i.2xlarge"), cpu=Pool(node_type="m7i.4xlarge")),
    )
    save_target("test", target)
    return target


@pytest.fixture
def jobs(target: KubernetesTarget) -> KubeJobs:
    return KubeJobs(target, connect(target, patience_s=5))


@pytest.fixture
def submission(target: KubernetesTarget, run: dict[str, Any]) -> Submission:
    return prepare("phantom", run, target, Shape())


def run_submitter(api: Any, name: str, *, uid: str = "1") -> str:
    """What the operator makes: a pod that prints."""
    pod = f"{name}-{uid}"
    labels = {"job-name": name, "app.kubernetes.io/instance": name}
    api.put("pods", {"metadata": {"name": pod, "labels": labels}, "spec": {}, "status": {"phase": "Running"}})
    return pod


def states_of(jobs: KubeJobs, name: str) -> tuple[list[JobState], threading.Thread]:
    """States as `follow` tells them, in a thread."""
    found: list[JobState] = []
    thread = threading.Thread(target=lambda: found.extend(jobs.follow(name)))
    thread.start()
    return found, thread


def wait_for(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_submitted_job_is_there_with_its_config(api: Any, jobs: KubeJobs, submission: Submission) -> None:
    state, started = jobs.submit(submission)
    assert (started, state.state, state.job) == (True, "starting", "train")
    ray_job, config_map = api.get("rayjobs", submission.name), api.get("configmaps", submission.name)
    assert ray_job["spec"]["entrypoint"] == "python -m jobs.train /etc/tomoray/config/train.yaml"
    assert config_map["metadata"]["ownerReferences"][0]["uid"] == ray_job["metadata"]["uid"]
    assert state.config["steps"] == 100


def test_the_same_submission_is_the_same_job(api: Any, jobs: KubeJobs, submission: Submission) -> None:
    jobs.submit(submission)
    before = api.get("rayjobs", submission.name)
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Running"})
    state, started = jobs.submit(submission)
    assert (started, state.state) == (False, "running")
    assert api.get("rayjobs", submission.name)["metadata"]["uid"] == before["metadata"]["uid"]


def test_other_content_is_another_job(target: KubernetesTarget, submission: Submission, run: dict[str, Any]) -> None:
    others = [
        prepare("phantom", run | {"steps": 101}, target, Shape()),
        prepare("phantom", run, target, Shape(retries=1)),
        prepare("phantom", run, target.model_copy(update={"image": "r/tomoray:2"}), Shape()),
    ]
    assert len({submission.name, *(each.name for each in others)}) == 4
    assert prepare("phantom", run, target, Shape()).name == submission.name


def test_a_failed_job_starts_anew_and_a_done_one_only_when_told(
    api: Any, jobs: KubeJobs, submission: Submission
) -> None:
    jobs.submit(submission)
    first = api.get("rayjobs", submission.name)["metadata"]["uid"]
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Failed", "failed": 4})
    assert jobs.submit(submission)[1]
    second = api.get("rayjobs", submission.name)["metadata"]["uid"]
    assert second != first
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    assert not jobs.submit(submission)[1]
    assert jobs.submit(submission, again=True)[1]


def test_a_submitter_that_was_killed_in_the_middle_finds_its_job(
    api: Any, submission: Submission, run: dict[str, Any], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "cluster.cli", "submit", "phantom", "--on", "test", "--json"]
    command += [part for name, value in run.items() for part in ("--set", f"{name}={value}")]
    original, killed = api.apply, threading.Event()

    def stall(plural: str, *args: Any, **options: Any) -> Any:
        answer = original(plural, *args, **options)
        if plural == "rayjobs":
            killed.wait(30)  # it is stored, and the answer never comes
        return answer

    api.apply = stall
    environment = os.environ | {"TOMORAY_TARGETS": str(tmp_path / "targets.yaml")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: api.get("rayjobs", submission.name))
        process.kill()
    killed.set()
    api.apply = original
    uid = api.get("rayjobs", submission.name)["metadata"]["uid"]
    assert "ownerReferences" not in api.get("configmaps", submission.name)["metadata"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert (said["created"], said["name"]) == (False, submission.name)
    assert api.get("rayjobs", submission.name)["metadata"]["uid"] == uid
    assert api.get("configmaps", submission.name)["metadata"]["ownerReferences"][0]["uid"] == uid


def test_conflicts_and_a_busy_server_are_tried_again(api: Any, jobs: KubeJobs, submission: Submission) -> None:
    api.fail("PATCH", "configmaps", 409)
    api.fail("PATCH", "rayjobs", 503)
    api.fail("PATCH", "rayjobs", 429)
    api.fail("PATCH", "rayjobs")  # the connection breaks
    assert jobs.submit(submission)[1]
    assert api.asked("PATCH", "rayjobs") == 4


def test_a_field_that_another_has_set_is_told_of_and_can_be_taken_over(
    api: Any, jobs: KubeJobs, submission: Submission
) -> None:
    other = {"metadata": {"name": submission.name}, "spec": {"backoffLimit": 7}}
    api.apply("rayjobs", submission.name, other, "kubectl", force=False)
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Failed"})
    kube = jobs._kube
    with pytest.raises(Fatal, match=r'\.spec\.backoffLimit \(conflict with "kubectl"\); take it over with --force'):
        kube.apply(_ray_job(submission, jobs))
    assert kube.apply(_ray_job(submission, jobs), force=True)["spec"]["backoffLimit"] == 3


def _ray_job(submission: Submission, jobs: KubeJobs) -> dict[str, Any]:
    from cluster.manifests import job_manifests

    return job_manifests(submission, jobs._target)[1]


def test_a_server_that_never_answers_is_transient(target: KubernetesTarget, api: Any) -> None:
    api.fail("GET", "rayjobs", 500, times=100)
    with pytest.raises(Transient, match="did not answer GET"):
        connect(target, patience_s=0.5).get("RayJob", "x")


def test_what_the_server_refuses_is_one_line(target: KubernetesTarget, api: Any) -> None:
    api.denied.add(("get", "rayjobs"))
    with pytest.raises(Forbidden, match='User "test" cannot get it; ask'):
        connect(target).get("RayJob", "x")
    api.kubeconfig(Path(str(target.kubeconfig))).write_text(
        Path(str(target.kubeconfig)).read_text("utf-8").replace(_api["TOKEN"], "wrong"), "utf-8"
    )
    with pytest.raises(Forbidden, match="does not know who asks"):
        connect(target).get("RayJob", "x")


def test_a_job_is_followed_until_it_ends(api: Any, jobs: KubeJobs, submission: Submission) -> None:
    jobs.submit(submission)
    found, thread = states_of(jobs, submission.name)
    for status, state in (("Initializing", "starting"), ("Running", "running"), ("Retrying", "retrying")):
        api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": status})
        wait_for(lambda state=state: found and found[-1].state == state)
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    thread.join(60)
    assert [state.state for state in found] == ["starting", "running", "retrying", "succeeded"]


def test_a_watch_survives_breaks_bookmarks_and_forgotten_versions(target: KubernetesTarget, api: Any) -> None:
    kube = connect(target)
    for number in range(3):
        api.put("pods", {"metadata": {"name": f"pod-{number}"}, "status": {}})
    seen: list[tuple[str, str]] = []
    done = threading.Event()

    def watch() -> None:
        for event in kube.watch("Pod"):
            seen.append((event.type, event.object["metadata"]["name"]))
            if event.object["metadata"]["name"] == "last":
                done.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    wait_for(lambda: len(seen) == 3)
    api.faults.append(_api["Fault"]("GET", "pods", 0, 1))  # the next watch breaks after one event
    api.set_status("pods", "pod-0", {"phase": "Running"})
    wait_for(lambda: ("MODIFIED", "pod-0") in seen)
    api.forget()
    api.delete("pods", "pod-1")  # nobody will tell: its version is forgotten too
    api.forget()
    wait_for(lambda: ("DELETED", "pod-1") in seen)
    api.put("pods", {"metadata": {"name": "last"}, "status": {}})
    assert done.wait(60)
    assert seen.count(("ADDED", "pod-0")) == 1, "nothing comes twice"


def test_a_watch_whose_connection_breaks_loses_no_event(target: KubernetesTarget, api: Any) -> None:
    for _ in range(5):
        api.faults.append(_api["Fault"]("GET", "pods", 0, 1))
    api.faults.insert(0, _api["Fault"]("GET", "pods", 0, 999))  # the list
    kube = connect(target)
    names: list[str] = []
    thread = threading.Thread(
        target=lambda: names.extend(
            event.object["metadata"]["name"] for event in kube.watch("Pod", until_s=time.monotonic() + 3)
        )
    )
    thread.start()
    for number in range(10):
        api.put("pods", {"metadata": {"name": f"pod-{number}"}, "status": {}})
        time.sleep(0.05)
    thread.join()
    assert names == [f"pod-{number}" for number in range(10)]


def test_lists_come_in_pages(target: KubernetesTarget, api: Any) -> None:
    api.page = 2
    for number in range(5):
        api.put("pods", {"metadata": {"name": f"pod-{number}", "labels": {"odd": str(number % 2)}}, "status": {}})
    assert len(connect(target).list("Pod")) == 5
    assert [pod["metadata"]["name"] for pod in connect(target).list("Pod", labels="odd=1")] == ["pod-1", "pod-3"]


def test_logs_follow_through_breaks_and_retries_and_every_line_comes_once(
    api: Any, jobs: KubeJobs, submission: Submission
) -> None:
    jobs.submit(submission)
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Running"})
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.extend(jobs.logs(submission.name, follow=True)))
    api.fail("GET", "log", cut_after=2)
    thread.start()
    first = run_submitter(api, submission.name, uid="1")
    for number in range(4):
        api.say(first, f"first {number}")
        time.sleep(0.01)
    wait_for(lambda: len(lines) >= 0 and api.asked("GET", "pods") > 3)
    api.set_status("pods", first, {"phase": "Failed"})
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Retrying"})
    second = run_submitter(api, submission.name, uid="2")
    api.say(second, "second 0")
    api.set_status("pods", second, {"phase": "Succeeded"})
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    thread.join(60)
    assert not thread.is_alive()
    assert lines == ["first 0", "first 1", "first 2", "first 3", "second 0"]


def test_a_job_that_has_printed_nothing_says_so(api: Any, jobs: KubeJobs, submission: Submission) -> None:
    jobs.submit(submission)
    with pytest.raises(Fatal, match=f"has printed nothing yet; why: tomoray describe {submission.name}"):
        list(jobs.logs(submission.name, follow=False))


def test_a_cancelled_job_takes_all_it_owns_along(api: Any, jobs: KubeJobs, submission: Submission) -> None:
    jobs.submit(submission)
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Running"})
    found, thread = states_of(jobs, submission.name)
    wait_for(lambda: api.asked("GET", "rayjobs?") >= 2)
    assert jobs.cancel(submission.name)
    thread.join(60)
    assert found[-1].state == "stopped"
    assert api.get("configmaps", submission.name) is None
    with pytest.raises(Fatal, match="no job"):
        jobs.cancel(submission.name)


def test_status_tells_progress_and_what_it_cost_so_far(
    api: Any, jobs: KubeJobs, submission: Submission, run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.submit(submission)
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Running", "rayClusterName": "c"})
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    for role, node_type, capacity in (("head", "m7i.2xlarge", "ON_DEMAND"), ("worker", "m7i.4xlarge", "SPOT")):
        labels = {"node.kubernetes.io/instance-type": node_type, "eks.amazonaws.com/capacityType": capacity}
        api.put("nodes", {"metadata": {"name": role, "labels": labels}})
        pod = {"metadata": {"name": f"c-{role}", "labels": {"ray.io/cluster": "c", "ray.io/node-type": role}}}
        asked = {"requests": {"cpu": "8", "memory": "32G"}}
        pod["spec"] = {"nodeName": role, "containers": [{"resources": asked}]}
        api.put("pods", pod | {"status": {"phase": "Running", "startTime": hour_ago}})
    line = {"step": 40, "loss": 0.5, "samples": 80, "samples_per_s": 10.0, "workers": 1}
    Path(run["out"]).mkdir()
    Path(run["out"], "history.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    Archive.create(run["archive"], Layout())
    assert cli.main(["status", submission.name, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["progress"]["done"], said["progress"]["total"], said["progress"]["mb_per_s"]) == (40, 100, 0.7)
    assert said["cost"]["dollars_by"]["on_demand"] == pytest.approx(0.4032, rel=0.01)
    assert said["cost"]["dollars_by"]["spot"] == pytest.approx(0.3226 / 2, rel=0.01), "half of the machine"


def test_describe_says_why_a_job_is_stuck(
    api: Any, jobs: KubeJobs, submission: Submission, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.submit(submission)
    api.set_status("rayjobs", submission.name, {"jobDeploymentStatus": "Initializing", "rayClusterName": "c"})
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image r/tomoray:1"}
    pod = {"metadata": {"name": "c-head", "labels": {"ray.io/cluster": "c", "ray.io/node-type": "head"}}, "spec": {}}
    container = {"name": "ray-head", "image": "r/tomoray:1", "state": {"waiting": waiting}}
    api.put("pods", pod | {"status": {"phase": "Pending", "containerStatuses": [container]}})
    event = {"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "c-head"}, "type": "Warning"}
    api.put("events", event | {"reason": "Failed", "message": "Error: ImagePullBackOff"})
    assert cli.main(["describe", submission.name]) == 0
    said = capsys.readouterr().out
    assert "c-head  head  Pending        0         ImagePullBackOff" in said
    assert "-> check r/tomoray:1, and image_pull_secrets for a registry that asks who pulls" in said
    assert "Pod/c-head Failed: Error: ImagePullBackOff" in said


def test_the_command_line_from_submission_to_the_end(
    api: Any, target: KubernetesTarget, run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [part for name, value in run.items() for part in ("--set", f"{name}={value}")]
    assert cli.main(["submit", "phantom", *flags, "--workers", "2", "--json"]) == 0
    name = json.loads(capsys.readouterr().out)["name"]
    pod = run_submitter(api, name)
    api.say(pod, "step 1", '{"steps": 100}')
    api.set_status("pods", pod, {"phase": "Succeeded"})
    ready = {"readyWorkerReplicas": 2, "desiredWorkerReplicas": 2}
    api.set_status("rayjobs", name, {"jobDeploymentStatus": "Running", "rayClusterStatus": ready})
    assert cli.main(["list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (listed["name"], listed["state"], listed["workers"]) == (name, "running", [2, 2])
    api.set_status("rayjobs", name, {"jobDeploymentStatus": "Failed", "message": "it broke", "failed": 4})
    assert cli.main(["logs", name, "-f"]) == 0
    assert capsys.readouterr().out == 'step 1\n{"steps": 100}\n'
    assert cli.main(["status", name, "--follow", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["message"], said["retries"]) == ("failed", "it broke", 3)
    assert cli.main(["cancel", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cancelled"] is False


def test_cost_of_a_job_that_is_gone_follows_from_its_own_times(
    api: Any, jobs: KubeJobs, submission: Submission, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.submit(submission)
    pod = run_submitter(api, submission.name)
    api.say(pod, json.dumps({"steps": 100, "first_step": 0, "scans": {"train": 25}}))
    api.set_status("pods", pod, {"phase": "Succeeded"})
    times = {"startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-01T02:00:00Z"}
    done = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "rayClusterName": "gone"}
    api.set_status("rayjobs", submission.name, times | done)
    assert cli.main(["cost", submission.name, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["estimated"] is True
    workers = submission.shape.workers[0]
    assert said["node_seconds"] == {"on_demand": 7200.0 * (1 + workers), "spot": 0}
    assert said["dollars"] == pytest.approx(2 * (0.4032 / 4 + workers * 0.8064 / 8), abs=1e-4)
    assert said["dollars_per"]["epochs"] > 0
    assert cli.main(["cost", "show", "nothing"]) == 1
    assert "neither a job nor an endpoint is called nothing" in capsys.readouterr().err
