import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest

from cluster.local import local_ray
from jobs import evaluate, predict, train
from tomoray.archive import Archive
from tomoray.catalog import Catalog, stored_row
from tomoray.config import EvaluateConfig, Layout, PredictConfig
from tomoray.errors import Usage
from tomoray.inference.models import compile_segmenter, open_model
from tomoray.runs import open_run
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

make_bundle = runpy.run_path(str(Path(__file__).parents[1] / "zoo.py"))["make_bundle"]


@pytest.fixture(scope="module")
def ray_that_knows_s3(s3):
    with local_ray(num_cpus=4):
        yield


@pytest.fixture
def make_archive(make_volume):
    """`make_archive(url, n)`: an archive of n patients, a scan each."""

    def make(url, patients):
        archive = Archive.create(url, Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32), levels=1))
        for number in range(patients):
            volume = make_volume((20, 24, 28), scan_id=f"{number:016x}", seed=number)
            info = dataclasses.replace(volume.info, series_id=f"{number:016x}", patient_id=f"p{number}")
            volume = dataclasses.replace(volume, info=info)
            archive.write_scan(volume)
            Catalog(archive.store).upsert([stored_row(volume, "0" * 64)])
        return archive

    return make


def test_two_steps_straight_from_s3_to_s3(s3, ray_that_knows_s3, make_archive):
    bucket = s3.bucket()
    archive = make_archive(f"{bucket}/archive", 4)
    config = TrainConfig.model_validate(
        {
            "archive": archive.url,
            "out": f"{bucket}/runs/one",
            "labels": ["lungs", "nodules"],
            "patch_zyx": (16, 16, 16),
            "network": {"channels": [4, 8], "norm": "batch"},
            "split": {"validation": 0.25, "test": 0.25},
            "steps": 2,
            "checkpoint_every": 1,
            "workers": 2,
        }
    )
    result = train.run(config)
    run = open_run(f"{bucket}/runs/one")
    assert (run.steps, run.model_sha256) == (2, result["model_sha256"])
    assert train.run(config)["already_done"]
    scores = evaluate.run(EvaluateConfig(run=run.store.url, archive=archive.url))
    assert set(scores["dice"]["lungs"]) == set(run.split.test)
    assert np.isfinite(list(scores["mean_dice"].values())).all()


def test_a_bundle_made_elsewhere_segments_an_archive_where_both_are_on_s3(
    s3, ray_that_knows_s3, make_archive, tmp_path
):
    bucket = s3.bucket()
    archive, store = make_archive(f"{bucket}/archive", 2), open_store(f"{bucket}/bundle")
    channels = {"0": "background", "1": "lungs", "2": "nodules"}
    bundle = make_bundle(
        tmp_path / "bundle", channels=channels, inferer={"_target_": "SlidingWindowInferer", "roi_size": 16}
    )
    for path in bundle.rglob("*.*"):
        store.write(str(path.relative_to(bundle)), path.read_bytes())
    config = PredictConfig(run=store.url, archive=archive.url)
    found = [predict.run(config) for _ in range(2)]
    assert (found[0]["predicted"], found[1]["skipped"], found[0]["out"]) == (2, 2, f"{store.url}/predictions")
    segmenter, _ = compile_segmenter(open_model(store.url), "torch")
    volume, drawn = archive.scan(f"{0:016x}").read(), Archive.open(found[0]["out"]).scan(f"{0:016x}")
    for label, mask in segmenter.segment(volume.image_zyx, volume.geometry).items():
        assert (drawn.label(label).read().result() == mask).mean() > 0.999
    with pytest.raises(Usage, match="does not say whom it was trained on; to test it on every patient: --part all"):
        evaluate.run(EvaluateConfig(run=store.url, archive=archive.url))
    scores = evaluate.run(EvaluateConfig(run=store.url, archive=archive.url, part="all"))
    assert set(scores["dice"]["lungs"]) == {"p0", "p1"}
