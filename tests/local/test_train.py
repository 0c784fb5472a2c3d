import io
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import ray
import torch

from jobs import evaluate, predict, train
from tomoray import nifti
from tomoray.archive import Archive
from tomoray.catalog import Catalog, stored_row
from tomoray.config import EvaluateConfig, Layout, PredictConfig
from tomoray.dicom.seg import read_segmentation
from tomoray.errors import Fatal, Usage
from tomoray.export import export_run
from tomoray.geometry import Geometry
from tomoray.lease import RUN_MARK, Lease, Progress
from tomoray.metrics import dice
from tomoray.predict import load_segmenter
from tomoray.runs import open_run
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig
from tomoray.volume import ScanInfo, ScanUids, Volume

pytestmark = pytest.mark.usefixtures("ray_local")

SHAPE = (24, 30, 26)


def tiny_volume(number, labels=("lungs", "nodules")):
    """Dark lungs and a bright nodule in grey noise; patient p0 has the two scans 0 and 1."""
    rng = np.random.default_rng(number)
    image = rng.normal(0, 30, SHAPE)
    lungs, nodules = np.zeros((2, *SHAPE), np.uint8)
    lungs[4:20, 6:24, 4:22] = 1
    nodules[8:14, 10:16, 8:14] = 1
    image[lungs > 0] -= 800
    image[nodules > 0] += 900
    masks = {name: mask for name, mask in {"lungs": lungs, "nodules": nodules}.items() if name in labels}
    uids = ScanUids(
        study=f"2.25.1{number}",
        series=f"2.25.2{number}",
        frame_of_reference=f"2.25.3{number}",
        instances=tuple(f"2.25.4{number}{z:03d}" for z in range(SHAPE[0])),
    )
    info = ScanInfo(
        scan_id=f"{number:016x}",
        series_id=f"{number:016x}",
        patient_id=f"p{max(number - 1, 0)}",
        source_uri="memory",
        n_instances=SHAPE[0],
        instances_sha256="1" * 64,
        input_sha256="2" * 64,
        uids=uids,
    )
    geometry = Geometry.from_matrix(SHAPE, np.diag([2.0, 2.0, 3.0, 1.0]))
    return Volume(image_zyx=image.astype(np.int16), geometry=geometry, info=info, labels=masks)


def write_archive(url, volumes):
    archive = Archive.create(url, Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32), levels=1))
    for volume in volumes:
        archive.write_scan(volume)
    Catalog(archive.store).upsert([stored_row(volume, "0" * 64) for volume in volumes])
    return archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(str(tmp_path_factory.mktemp("tiny") / "archive"), [tiny_volume(n) for n in range(6)])


def config(archive, out, **changes):
    values = {
        "archive": archive.url,
        "out": str(out),
        "labels": ["lungs", "nodules"],
        "contains": {"lungs": ["nodules"]},
        "patch_zyx": (16, 16, 16),
        "network": {"channels": [4, 8], "norm": "batch"},
        "split": {"validation": 0.2, "test": 0.4},
        "steps": 2,
        "workers": 2,
    }
    return TrainConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def trained(archive, ray_local, tmp_path_factory):
    wanted = config(archive, tmp_path_factory.mktemp("tiny") / "run")
    return wanted, train.run(wanted)


def weights(run_url):
    return torch.load(io.BytesIO(open_run(run_url).read_model()), weights_only=True)


def test_two_workers_train_and_leave_a_run(trained):
    wanted, result = trained
    assert (result["steps"], result["first_step"], result["already_done"]) == (2, 0, False)
    assert result["patients"] == {"train": 2, "validation": 1, "test": 2}
    assert set(result["metrics"]["validation"]) == {"dice", "dice/threshold", "dice/lungs", "dice/nodules"}
    assert [step for step, _ in result["metrics"]["loss_curve"]] == [1, 2]
    run = open_run(wanted.out)
    assert (run.steps, run.model_sha256) == (2, result["model_sha256"])


def test_finished_run_is_not_trained_again(trained):
    wanted, result = trained
    again = train.run(wanted)
    assert again["already_done"]
    assert again["model_sha256"] == result["model_sha256"]


def test_another_config_on_the_same_run_is_refused(trained):
    wanted, _ = trained
    with pytest.raises(Usage, match=r"another config: patch_zyx .* batch_size"):
        train.run(wanted.model_copy(update={"patch_zyx": (8, 8, 8), "batch_size": 5}))


def test_a_second_training_in_the_same_folder_is_refused(trained):
    wanted, _ = trained
    told = r"is being written by process \d+ on .*; wait for it, or stop it"
    with Lease(open_store(wanted.out), Progress(), mark=RUN_MARK), pytest.raises(Fatal, match=told):
        train.run(wanted)
    assert train.run(wanted)["already_done"]
    assert not open_store(wanted.out).exists(RUN_MARK)


def test_predict_and_evaluate_do_nothing_twice(archive, trained, tmp_path):
    wanted, _ = trained
    out = str(tmp_path / "predictions")
    found = [predict.run(PredictConfig(run=wanted.out, archive=archive.url, out=out)) for _ in range(2)]
    held_out = open_run(wanted.out).split.test
    assert found[0]["scans"] == found[0]["predicted"] == found[1]["skipped"] > 0
    scores = evaluate.run(EvaluateConfig(run=wanted.out, archive=archive.url, predictions=out))
    assert scores["predicted"] == 0
    assert set(scores["dice"]["lungs"]) == set(scores["dice"]["nodules"]) == set(held_out)


def test_evaluation_is_the_dice_of_the_served_code_path(archive, trained):
    wanted, _ = trained
    scores = evaluate.run(EvaluateConfig(run=wanted.out, archive=archive.url, part="all"))
    segmenter, by_hand = load_segmenter(wanted.out), []
    for number in (0, 1):  # both scans of patient p0
        volume = archive.scan(f"{number:016x}").read()
        by_hand.append(dice(segmenter.segment(volume.image_zyx, volume.geometry)["lungs"], volume.labels["lungs"]))
    assert scores["scans"] == 6
    assert scores["dice"]["lungs"]["p0"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert scores["mean_dice"]["lungs"] == pytest.approx(np.mean(list(scores["dice"]["lungs"].values())))


def test_nifti_and_dicom_seg_hold_the_masks_of_zarr(archive, trained):
    wanted, _ = trained
    results = {
        form: predict.run(PredictConfig(run=wanted.out, archive=archive.url, format=form, part="validation"))
        for form in ("zarr", "nifti", "dicom-seg")
    }
    store = open_store(results["nifti"]["out"])
    scan_id = store.list()[0].key.split("/")[0]
    scan = Archive.open(results["zarr"]["out"]).scan(scan_id)
    segmentation = pydicom.dcmread(Path(results["dicom-seg"]["out"], scan_id, "segmentation.dcm"))
    from_dicom = read_segmentation(segmentation, scan.geometry)
    for label in ("lungs", "nodules"):
        mask = scan.label(label).read().result()
        np.testing.assert_array_equal(nifti.read_mask(store.read(f"{scan_id}/{label}.nii.gz"), scan.geometry), mask)
        np.testing.assert_array_equal(from_dicom.get(label, np.zeros_like(mask)), mask)


def test_an_exported_network_draws_the_masks_of_its_run(archive, trained, tmp_path):
    wanted, _ = trained
    export_run(open_run(wanted.out), open_store(str(tmp_path / "edge")), "onnx")
    drawn = []
    for model, out in ((wanted.out, "run"), (str(tmp_path / "edge" / "model.onnx"), "file")):
        config = PredictConfig(run=model, archive=archive.url, out=str(tmp_path / out), part="all")
        assert predict.run(config)["predicted"] == 6
        scan = Archive.open(str(tmp_path / out)).scan(f"{0:016x}")
        drawn.append({label: scan.label(label).read().result() for label in scan.label_names})
    for label, mask in drawn[0].items():
        assert (mask == drawn[1][label]).mean() > 0.999


def test_run_that_lost_a_worker_ends_with_the_same_weights(archive, tmp_path):
    wanted = config(archive, tmp_path / "whole", steps=20, checkpoint_every=5)
    train.run(wanted)
    killer = threading.Thread(target=kill_one_worker_after_a_checkpoint, args=(tmp_path / "lost",))
    killer.start()
    result = train.run(wanted.model_copy(update={"out": str(tmp_path / "lost")}))
    killer.join()
    assert result["first_step"] >= 5
    whole, lost = weights(str(tmp_path / "whole")), weights(str(tmp_path / "lost"))
    assert all(torch.equal(whole[name], lost[name]) for name in whole)


def kill_one_worker_after_a_checkpoint(run):
    deadline = time.monotonic() + 300
    while not list(run.glob("checkpoints/*/checkpoint.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    actors = ray._private.state.actors().values()
    pid = next(a["Pid"] for a in actors if a["State"] == "ALIVE" and "TrainWorker" in a["ActorClassName"])
    os.kill(pid, signal.SIGKILL)


def test_more_steps_go_on_from_the_last_checkpoint(archive, trained, tmp_path):
    wanted = config(archive, tmp_path / "run", workers=1)
    train.run(wanted)
    result = train.run(wanted.model_copy(update={"steps": 4}))
    assert (result["first_step"], result["steps"], result["already_done"]) == (2, 4, False)
    assert len(result["metrics"]["loss_curve"]) == 4


def test_diverging_loss_ends_in_one_line(archive, tmp_path):
    with pytest.raises(Fatal, match=r"no number at step \d \(samples .* of scans 0.*lower learning_rate \(1e\+30\)"):
        train.run(config(archive, tmp_path / "run", workers=1, learning_rate=1e30, steps=5))


def test_scan_without_its_label_is_named_before_anything_is_written(tmp_path, ray_local):
    volumes = [tiny_volume(n, labels=("lungs",)) for n in range(4)]
    bare = write_archive(str(tmp_path / "bare"), volumes)
    with pytest.raises(Fatal, match=r"scan 0{15}\d has no label 'nodules'"):
        train.run(config(bare, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_more_workers_than_this_machine_has_is_a_usage_error(archive, tmp_path):
    with pytest.raises(Usage, match="64 workers want a CPU each"):
        train.run(config(archive, tmp_path / "run", workers=64, batch_size=64))
    assert not (tmp_path / "run").exists()


def test_what_one_of_two_workers_finds_fatal_ends_the_run_at_once(tmp_path):
    broken = write_archive(str(tmp_path / "broken"), [tiny_volume(n) for n in range(6)])
    wanted = config(broken, tmp_path / "run", steps=20)
    lost = train.prepare(wanted).scans["train"][0]
    broken.store.delete([info.key for info in broken.store.list(f"scans/{lost}/0") if "/c/" in info.key])
    with pytest.raises(Fatal, match=f"scans/{lost}/.* preprocess it again"):
        train.run(wanted)
    assert len(list((tmp_path / "run" / "attempts").iterdir())) == 1


def test_lost_shard_ends_in_one_line(tmp_path):
    broken = write_archive(str(tmp_path / "broken"), [tiny_volume(n) for n in range(4)])
    for scan_id in broken.scan_ids():
        broken.store.delete([info.key for info in broken.store.list(f"scans/{scan_id}/0") if "/c/" in info.key])
    with pytest.raises(Fatal) as caught:
        train.run(config(broken, tmp_path / "run", workers=1))
    assert "\n" not in str(caught.value)
