import hashlib
import json

import pytest

from tomoray.catalog import Split
from tomoray.errors import Fatal, Usage
from tomoray.runs import begin_run, finish_run, open_run, select_scans
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

SPLIT = Split(train=("p1", "p2"), validation=(), test=("p3",))


def config(tmp_path, **changes):
    values = {"labels": ["lungs"], "archive": str(tmp_path / "archive"), "out": str(tmp_path / "run"), "steps": 2}
    return TrainConfig.model_validate({**values, **changes})


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


@pytest.fixture
def finished(store, tmp_path):
    begin_run(store, config(tmp_path), SPLIT)
    store.write("checkpoints/step-00000002/model.pt", b"weights")
    return finish_run(store, config(tmp_path), SPLIT, {"loss": 0.5})


def test_finished_run_opens_with_what_it_was_trained_with(finished, tmp_path):
    run = open_run(str(tmp_path / "run"))
    assert (run.store.url, run.config, run.split, run.steps) == (finished.store.url, config(tmp_path), SPLIT, 2)
    assert run.metrics == {"loss": 0.5}
    assert run.model_sha256 == hashlib.sha256(run.read_model()).hexdigest()


def test_same_config_resumes_with_the_first_split(store, tmp_path):
    begin_run(store, config(tmp_path), SPLIT)
    other = Split(train=("p1",), validation=("p2",), test=("p3",))
    assert begin_run(store, config(tmp_path), other) == (SPLIT, False)


def test_finished_run_is_not_begun_again(finished, store, tmp_path):
    assert begin_run(store, config(tmp_path), SPLIT) == (SPLIT, True)


def test_more_steps_continue_a_finished_run(finished, store, tmp_path):
    assert begin_run(store, config(tmp_path, steps=4), SPLIT) == (SPLIT, False)
    with pytest.raises(Fatal, match="not a finished run"):
        open_run(store.url)


def test_another_config_is_refused_and_the_fields_named(store, tmp_path):
    begin_run(store, config(tmp_path), SPLIT)
    with pytest.raises(Usage, match=r"learning_rate \(there 0.001, wanted 0.5\), seed \(there 0, wanted 3\)"):
        begin_run(store, config(tmp_path, learning_rate=0.5, seed=3, gpu=True, checkpoint_every=7), SPLIT)


def test_unfinished_run_says_how_to_resume(store, tmp_path):
    begin_run(store, config(tmp_path), SPLIT)
    with pytest.raises(Fatal, match=r"not a finished run: run `tomoray train … --out .*run` again"):
        open_run(store.url)


def test_folder_without_a_run_says_how_to_make_one(tmp_path):
    with pytest.raises(Fatal, match="is not a run; make one with: tomoray train"):
        open_run(str(tmp_path))


def test_changed_model_is_not_loaded(finished, store):
    store.write(finished.model_key, b"other weights")
    with pytest.raises(Fatal, match="was changed after training"):
        open_run(store.url).read_model()


def test_run_json_names_versions(finished, store):
    facts = json.loads(store.read("run.json"))
    assert {"python", "torch", "monai", "ray"} <= set(facts["environment"])


def rows(*patients, status="stored"):
    return [{"scan_id": f"scan-{p}", "patient_id": p, "status": status} for p in patients]


def test_own_archive_gives_the_held_out_patients_alone(finished, tmp_path):
    own = str(tmp_path / "archive")
    found = select_scans(finished, own, [*rows("p1", "p2", "p3"), *rows("p3", status="refused")], "test")
    assert found == {"scan-p3": "p3"}
    assert len(select_scans(finished, own, rows("p1", "p2", "p3"), "all")) == 3


def test_a_copy_of_the_archive_elsewhere_holds_out_the_same_patients(finished):
    assert select_scans(finished, "s3://copy/archive", rows("p1", "p2", "p3"), "test") == {"scan-p3": "p3"}


def test_another_archive_is_taken_whole(finished):
    assert len(select_scans(finished, "s3://other/archive", rows("q1", "q2"), "test")) == 2


def test_a_part_without_scans_is_an_error_that_names_it(finished, tmp_path):
    with pytest.raises(Fatal, match="no scan of part 'validation'"):
        select_scans(finished, str(tmp_path / "archive"), rows("p1", "p2", "p3"), "validation")
