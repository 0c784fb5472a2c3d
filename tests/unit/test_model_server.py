"""The deployments of models as plain objects: no Ray Serve."""

from __future__ import annotations

import asyncio
import io
import threading

import numpy as np
import pytest
import torch

from serving.app import _scaling, app
from serving.canary import Canary
from serving.messages import ArchivedScan, Progress, Request, Segmentation
from serving.model import ModelServer, served_model
from serving.room import Room
from tomoray.archive import Archive
from tomoray.catalog import Split
from tomoray.errors import Fatal, Reason, Refused, Usage
from tomoray.inference.models import compile_segmenter, open_model
from tomoray.networks import build_network
from tomoray.runs import begin_run, finish_run
from tomoray.serving_config import CanaryConfig, ModelConfig, ServeConfig
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

SCAN = "0" * 16


@pytest.fixture
def archive(tiny_archive):
    return tiny_archive({SCAN: (np.random.default_rng(0).normal(-300, 300, (40, 40, 36)), {})})


@pytest.fixture
def run(tmp_path):
    store, split = open_store(str(tmp_path / "run")), Split(train=("p1",), validation=(), test=())
    config = TrainConfig(
        archive="a", out=store.url, labels=["lungs"], patch_zyx=(16, 16, 16), network={"channels": [4, 8]}, steps=1
    )
    begin_run(store, config, split)
    weights = io.BytesIO()
    torch.save(build_network(config.network, 2).state_dict(), weights)
    store.write("checkpoints/step-00000001/model.pt", weights.getvalue())
    return finish_run(store, config, split, {})


@pytest.fixture
def server(run):
    config = ModelConfig(source=run.store.url, backend="torch")
    return ModelServer(config, served_model(config)[0], "cpu")


def asked(archive, **what):
    return Request(scan=ArchivedScan(archive=archive.url, scan_id=SCAN), **what)


async def answers_of(server, request):
    return [answer async for answer in server.find(request)]


def test_a_scan_is_answered_by_progress_and_then_by_the_masks_of_predict(server, run, archive):
    *progress, finding = asyncio.run(answers_of(server, asked(archive, progress=True)))
    assert isinstance(finding, Segmentation)
    assert all(isinstance(each, Progress) and each.done <= each.of for each in progress)
    assert (progress[-1].done, finding.sha256) == (progress[-1].of, run.model_sha256)
    segmenter, scan = compile_segmenter(open_model(run.store.url), "torch")[0], Archive.open(archive.url).scan(SCAN)
    wanted = segmenter.segment(scan.image().read().result(), scan.geometry)
    np.testing.assert_array_equal(finding.masks()["lungs"], wanted["lungs"])


def test_progress_is_told_only_where_it_is_asked_for(server, archive):
    (finding,) = asyncio.run(answers_of(server, asked(archive)))
    assert isinstance(finding, Segmentation)


def test_scans_that_come_together_share_batches_and_get_the_same_as_alone(server, archive):
    async def together():
        return await asyncio.gather(*(answers_of(server, asked(archive)) for _ in range(4)))

    alone = asyncio.run(answers_of(server, asked(archive)))[-1]
    windows, batches = server._batcher.windows, server._batcher.batches
    for each in asyncio.run(together()):
        np.testing.assert_array_equal(each[-1].packed["lungs"], alone.packed["lungs"])
    assert server._batcher.windows - windows == 4 * windows
    assert server._batcher.batches - batches <= 4 * batches


def test_closing_the_answers_drops_the_windows_of_a_scan(server, archive):
    may_go, forward = threading.Event(), server._batcher._forward

    def slow(inputs):
        may_go.wait(10)
        return forward(inputs)

    server._batcher._forward = slow

    async def ask_and_leave():
        task = asyncio.create_task(answers_of(server, asked(archive)))
        while not server._batcher.waiting():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask_and_leave())
    assert server._batcher.waiting() == 0
    may_go.set()
    server._batcher._forward = forward
    assert isinstance(asyncio.run(answers_of(server, asked(archive)))[-1], Segmentation), "and the next is answered"


def test_uncertainty_comes_with_the_masks_and_other_explanations_do_not(server, archive):
    finding = asyncio.run(answers_of(server, asked(archive, explain="uncertainty")))[-1]
    assert finding.map_zyx.shape == finding.geometry.shape_zyx
    assert 0 <= finding.map_zyx.min() < finding.map_zyx.max() <= 1
    with pytest.raises(Usage, match="explained by uncertainty, not by gradcam"):
        asyncio.run(answers_of(server, asked(archive, explain="gradcam")))


def test_a_run_that_was_trained_further_is_not_served(run):
    config = ModelConfig(source=run.store.url, backend="torch")
    expected = served_model(config)[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(Fatal, match="it is another model"):
        ModelServer(config, expected, "cpu")


def test_room_is_given_in_turn_and_what_is_larger_has_it_alone():
    async def work():
        room, inside, seen = Room(10), set(), []

        async def take(name, size):
            async with room.of(size):
                inside.add(name)
                seen.append(frozenset(inside))
                await asyncio.sleep(0.01)
                inside.remove(name)

        gone = None
        tasks = [asyncio.create_task(take(name, size)) for name, size in (("a", 6), ("b", 4), ("c", 50), ("d", 1))]
        await asyncio.sleep(0)
        gone = asyncio.create_task(take("gone", 9))
        await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.gather(*tasks)
        async with room.of(10):
            return seen

    assert asyncio.run(work()) == [{"a"}, {"a", "b"}, {"c"}, {"d"}]


class Handle:
    """Called as a deployment's handle is; every answer is its name, or its error."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0
        self.find = self

    def options(self, **_):
        return self

    def remote(self, request):
        self.asked += 1
        return self

    async def __aiter__(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        yield self.answer

    def cancel(self):
        pass


def trial(newer, **config):
    handles = Handle("older"), Handle(newer)
    return Canary("m", CanaryConfig(source="newer", **config), *handles), *handles


def test_a_canary_answers_its_share(archive):
    canary, older, newer = trial("newer", weight=0.25)
    found = [asyncio.run(answers_of(canary, asked(archive)))[-1] for _ in range(400)]
    assert 70 < found.count("newer") == newer.asked < 130
    assert older.asked == 400 - newer.asked


def test_a_canary_that_errs_is_out_and_no_request_is_lost(archive):
    canary, older, newer = trial(RuntimeError("broken"), weight=0.5, at_least=10)
    found = [asyncio.run(answers_of(canary, asked(archive))) for _ in range(100)]
    assert found == [["older"]] * 100
    assert (newer.asked, older.asked, canary.ended) == (10, 100, True)


def test_a_refused_scan_is_not_the_canarys_fault(archive):
    canary, older, newer = trial(Refused(Reason.MISSING_SLICES, "3 are missing"), weight=1, at_least=2)
    for _ in range(10):
        with pytest.raises(Refused):
            asyncio.run(answers_of(canary, asked(archive)))
    assert (newer.asked, older.asked, canary.ended) == (10, 0, False)


def test_replicas_follow_requests_from_zero_on_and_a_fixed_number_stays():
    follows = _scaling(ModelConfig(source="run", min_replicas=0, max_replicas=4, downscale_delay_s=30))
    scaling = follows["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas, scaling.downscale_delay_s) == (0, 4, 30)
    assert scaling.initial_replicas is None, "with it none ever start from zero"
    assert _scaling(ModelConfig(source="run", min_replicas=2, max_replicas=2)) == {"num_replicas": 2}


def test_two_models_of_one_name_are_refused(run, tmp_path):
    model = {"source": run.store.url}
    queue = {"url": str(tmp_path / "queue.sqlite")}
    with pytest.raises(Usage, match="two models are called run; give one of them another name"):
        app(ServeConfig(models=[model, model], queue=queue))
    assert app(ServeConfig(models=[model, {**model, "name": "other", "multiplexed": True}], queue=queue))


def test_a_canary_for_other_labels_is_refused(run, tmp_path):
    config = {**run.config.model_dump(mode="json"), "labels": ["liver"], "out": str(tmp_path / "liver")}
    other = open_store(str(tmp_path / "liver"))
    split = Split(train=("p1",), validation=(), test=())
    begin_run(other, TrainConfig.model_validate(config), split)
    other.write("checkpoints/step-00000001/model.pt", run.read_model())
    finish_run(other, TrainConfig.model_validate(config), split, {})
    model = {"source": run.store.url, "canary": {"source": other.url}}
    with pytest.raises(Usage, match="has labels"):
        app(ServeConfig(models=[model], queue={"url": str(tmp_path / "queue.sqlite")}))
