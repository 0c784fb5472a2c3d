"""Models side by side on Ray Serve: a newer one in trial, and many that share one deployment."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from cluster.endpoint import serving
from jobs import preprocess
from serving.shared import AT_ONCE, DEPLOYMENT
from tomoray import phantom
from tomoray.archive import Archive
from tomoray.config import PhantomConfig, PreprocessConfig
from tomoray.inference.models import compile_segmenter, open_model
from tomoray.serving_config import ServeConfig

never_trained = runpy.run_path(str(Path(__file__).parent / "conftest.py"))["never_trained"]
SHARED = [f"shared-{n}" for n in range(AT_ONCE + 1)]


@pytest.fixture(scope="module")
def archive(ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    phantom.write_cohort(PhantomConfig(out=str(folder / "cohort"), patients=1, seed=3, matrix=64))
    preprocess.run(PreprocessConfig(sources=[str(folder / "cohort")], archive=str(folder / "archive")))
    return Archive.open(str(folder / "archive"))


@pytest.fixture(scope="module")
def runs(archive, tmp_path_factory):
    """Runs with weights of their own, by name."""
    folder = tmp_path_factory.mktemp("runs")
    names = ["older", "newer", "lost", *SHARED]
    for seed, name in enumerate(names):
        never_trained(str(folder / name), archive.url, seed)
    return {name: str(folder / name) for name in names}


@pytest.fixture(scope="module")
def served(archive, runs, tmp_path_factory):
    trial = {"source": runs["newer"], "weight": 0.5, "max_error_rate": 0.0, "at_least": 1}
    models = [{"name": "trial", "source": runs["older"], "cpus": 1, "canary": trial}]
    models += [{"name": name, "source": runs[name], "cpus": 1, "multiplexed": True} for name in SHARED]
    models += [{"source": runs["lost"], "cpus": 1, "min_replicas": 0}]
    queue = {"url": str(tmp_path_factory.mktemp("queue") / "queue")}
    with serving(ServeConfig(models=models, port=0, queue=queue)) as url:
        shutil.rmtree(Path(runs["lost"]) / "checkpoints")  # before any replica has read them
        yield Served(url, archive, runs)


class Served:
    def __init__(self, url, archive, runs):
        self.url, self.archive, self.runs = url, archive, runs
        self.scan = archive.scan(archive.scan_ids()[0])
        self.sha256 = {name: open_model(run).sha256 for name, run in runs.items()}

    def ask(self, model, **parameters):
        asked = {"scan_id": self.scan.scan_id}
        return requests.post(f"{self.url}/v1/segment", json=asked, params={"model": model} | parameters, timeout=300)

    def segment(self, model, **parameters):
        """The reply of a model that must not fail."""
        reply = self.ask(model, **parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def voxels(self, name):
        """Of each label, as the same run finds them in this process."""
        segmenter, _ = compile_segmenter(open_model(self.runs[name]))
        masks = segmenter.segment(self.scan.read().image_zyx, self.scan.geometry)
        return {label: int(mask.sum()) for label, mask in masks.items()}


def found(reply):
    return {label: told["voxels"] for label, told in reply["labels"].items()}


def replicas(deployment):
    """Their processes: of this process' Ray, as another on this machine may serve a model of that name."""
    named = f"ray::ServeReplica:tomoray:{deployment}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if (process / "cmdline").read_bytes().startswith(named) and parent(parent(process.name)) == os.getpid():
                found.append(int(process.name))
    return found


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_more_models_than_a_replica_holds_each_answer_for_themselves(served):
    for name in [*SHARED, SHARED[0]]:  # the last was dropped for others, and is loaded again
        reply = served.segment(name)
        assert (reply["model"]["name"], reply["model"]["sha256"]) == (name, served.sha256[name])
        assert found(reply) == served.voxels(name)
    assert len(replicas(DEPLOYMENT)) == 1


def test_shared_models_answer_together(served):
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(served.segment, SHARED * 4))
    assert [reply["model"]["sha256"] for reply in replies] == [served.sha256[name] for name in SHARED * 4]


def test_a_newer_model_answers_its_share_until_it_dies_and_nobody_loses(served):
    names = {sha256: name for name, sha256 in served.sha256.items()}
    voxels = {name: served.voxels(name) for name in ("older", "newer")}
    replies = [served.segment("trial") for _ in range(24)]
    answered = [names[reply["model"]["sha256"]] for reply in replies]
    assert 4 <= answered.count("newer") <= 20
    assert [found(reply) for reply in replies] == [voxels[name] for name in answered]
    (newer,) = replicas("model-trial-newer")
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(served.segment, "trial", explain="uncertainty") for _ in range(24)]
        wait(asked, return_when=FIRST_COMPLETED)  # seven others are on their way
        os.kill(newer, signal.SIGKILL)
        told = [names[future.result()["model"]["sha256"]] for future in asked]
    assert set(told) <= {"older", "newer"}
    after = [names[served.segment("trial")["model"]["sha256"]] for _ in range(12)]
    assert after == ["older"] * 12


def test_a_model_that_cannot_be_loaded_is_told_of_and_nobody_waits_on(served):
    with ThreadPoolExecutor(2) as pool:  # both before Ray Serve has given up
        replies = list(pool.map(served.ask, ["lost"] * 2))
    for reply in [*replies, served.ask("lost")]:
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_unavailable")
