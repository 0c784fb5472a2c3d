import dataclasses

import numpy as np
import pytest

from cluster.local import local_ray
from jobs import evaluate, train
from tomoray.archive import Archive
from tomoray.catalog import Catalog, stored_row
from tomoray.config import EvaluateConfig, Layout
from tomoray.runs import open_run
from tomoray.training.config import TrainConfig


@pytest.fixture(scope="module")
def ray_that_knows_s3(s3):
    with local_ray(num_cpus=4):
        yield


def test_two_steps_straight_from_s3_to_s3(s3, ray_that_knows_s3, make_volume):
    bucket = s3.bucket()
    archive = Archive.create(f"{bucket}/archive", Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32), levels=1))
    for number in range(4):
        volume = make_volume((20, 24, 28), scan_id=f"{number:016x}", seed=number)
        info = dataclasses.replace(volume.info, series_id=f"{number:016x}", patient_id=f"p{number}")
        volume = dataclasses.replace(volume, info=info)
        archive.write_scan(volume)
        Catalog(archive.store).upsert([stored_row(volume, "0" * 64)])
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
