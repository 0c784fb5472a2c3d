from __future__ import annotations

import numpy as np
import pytest
import torch

from tomoray.config import load_config, make_config
from tomoray.errors import Fatal, Usage
from tomoray.patches import Batch
from tomoray.tasks.choice import make_task
from tomoray.tasks.scores import auroc, balanced_accuracy
from tomoray.training.config import TrainConfig

SHAPE = (16, 24, 24)


def config(**changes):
    """Sex of a scan from slices of 24 x 24."""
    values = {"patch_zyx": [1, 24, 24], "classification": {"column": "sex", "classes": ["F", "M"]}, **changes}
    return make_config(TrainConfig, {"task": "classification", **values})


def row(number, sex, **known):
    """A catalog row of a patient of their own."""
    empty = {"age_years": None, "kvp": None, "slice_thickness_mm": None, "spacing_z": None}
    return {"scan_id": f"{number:016x}", "patient_id": f"p{number}", "status": "stored", **empty, "sex": sex, **known}


def batch(rows, images, classes=None):
    return Batch(
        image=images,
        classes=torch.zeros(images.shape, dtype=torch.uint8) if classes is None else classes,
        samples=tuple(range(len(rows))),
        scan_ids=tuple(row["scan_id"] for row in rows),
        waited_s=0.0,
    )


@pytest.fixture
def cohort(tiny_archive):
    """Twelve scans; in those of men a box is denser than in those of women, in twelve of sixteen slices."""
    sexes = ["F", "M"] * 6
    volumes = {}
    for number, sex in enumerate(sexes):
        rng = np.random.default_rng(number)
        image = rng.normal(-600, 60, SHAPE)
        corner = rng.integers(2, 10, 2)
        box = np.zeros(SHAPE, np.uint8)
        box[2:14, corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] = 1
        image[box > 0] = 200 if sex == "M" else -300
        volumes[f"{number:016x}"] = (image, {"box": box})
    return tiny_archive(volumes), [row(number, sex) for number, sex in enumerate(sexes)]


def test_recipe_learns_a_column_of_the_catalog_from_slices(cohort, train_task):
    archive, rows = cohort
    settings = {"column": "sex", "classes": ["F", "M"], "network": "small", "norm": "group", "windows": 16}
    small = {"patch_zyx": [1, 24, 24], "spacing_zyx_mm": None, "labels": [], "classification": settings}
    recipe = load_config("classification", TrainConfig, {**small, "batch_size": 8})
    task = make_task(recipe, rows)
    networks, losses = train_task(task, recipe, archive, [row["scan_id"] for row in rows[:8]], steps=60)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    scores = task.score([task.examine(networks, archive, row["scan_id"]) for row in rows[8:]])
    assert scores["balanced_accuracy"] > scores["balanced_accuracy/majority"] + 0.3
    assert scores["auroc"] > 0.9


def test_presence_of_a_label_is_learned_per_patch(cohort, train_task):
    archive, rows = cohort
    wanted = config(
        labels=["box"],
        patch_zyx=[1, 24, 24],
        batch_size=8,
        foreground_fraction=0,
        learning_rate=0.01,
        classification={"label": "box", "per": "patch", "norm": "group"},
    )
    task = make_task(wanted, rows)
    networks, _ = train_task(task, wanted, archive, [row["scan_id"] for row in rows[:8]], steps=80)
    found = [task.examine(networks, archive, row["scan_id"]) for row in rows[8:]]
    assert [sum(scan["truth"]) for scan in found] == [12] * 4
    scores = task.score(found)
    assert scores["balanced_accuracy"] > scores["balanced_accuracy/majority"] + 0.3
    assert scores["auroc"] > 0.9


def test_clinical_numbers_alone_can_decide():
    rows = [row(n, "FM"[n % 2], age_years=40.0 + 30 * (n % 2), kvp=None if n % 3 else 120.0) for n in range(12)]
    wanted = config(
        patch_zyx=[1, 16, 16],
        classification={"column": "sex", "classes": ["F", "M"], "clinical": ["age_years", "kvp"], "norm": "group"},
    )
    torch.manual_seed(0)
    task = make_task(wanted, rows)
    networks = task.build_networks()
    optimizer = torch.optim.Adam(networks["network"].parameters(), 0.01)
    images = torch.full((12, 1, 1, 16, 16), 0.5)
    for _ in range(30):
        optimizer.zero_grad()
        loss = task.loss(networks, batch(rows, images), "network")
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_clinical_numbers_are_standardised_with_those_that_train_and_may_be_missing():
    rows = [row(n, "FM"[n % 2], age_years=None if n == 3 else 50.0 + n) for n in range(10)]
    settings = {"column": "sex", "classes": ["F", "M"], "clinical": ["age_years"]}
    wanted = config(classification=settings, split={"validation": 0, "test": 0})
    network = make_task(wanted, rows).build_networks()["network"].eval()
    ages = np.array([50.0 + n for n in range(10) if n != 3])
    assert network.state_dict()["clinical_mean"].tolist() == pytest.approx([ages.mean()])
    assert network.state_dict()["clinical_std"].tolist() == pytest.approx([ages.std()], rel=1e-5)
    image = torch.zeros(1, 1, 1, 24, 24)
    missing, mean = (network(image, torch.tensor([[age]], dtype=torch.float32)) for age in (float("nan"), ages.mean()))
    assert torch.isfinite(missing).all()
    assert not torch.allclose(missing, mean)  # the indicator tells them apart


def test_statistics_leave_out_patients_that_are_held_out():
    rows = [row(n, "FM"[n % 2], age_years=50.0 + n) for n in range(10)]
    settings = {"column": "sex", "classes": ["F", "M"], "clinical": ["age_years"]}
    mean = {
        float(make_task(config(classification=settings, split=split), rows).build_networks()["network"].clinical_mean)
        for split in ({"validation": 0, "test": 0}, {"validation": 0.2, "test": 0.2})
    }
    assert len(mean) == 2


def test_scans_of_unknown_class_teach_nothing():
    rows = [row(0, "F"), row(1, "M"), row(2, None), row(3, "O")]
    task = make_task(config(split={"validation": 0, "test": 0}), rows)
    networks = task.build_networks()
    images = torch.rand(4, 1, 1, 24, 24)
    assert task.loss(networks, batch(rows[2:], images[2:]), "network").item() == 0
    assert task.loss(networks, batch(rows[:2], images[:2]), "network").item() > 0


def test_archive_with_one_class_only_is_refused_with_what_it_has():
    with pytest.raises(Fatal, match=r"classes \['F', 'M'\] of column 'sex' the archive has F in 3 scans"):
        make_task(config(), [row(0, "F"), row(1, "F"), row(2, None)])


@pytest.mark.parametrize("patch_zyx", [[1, 32, 32], [32, 32, 32]])
def test_densenet121_looks_at_slices_or_volumes(patch_zyx):
    settings = {"column": "sex", "classes": ["F", "M", "O"], "network": "densenet121"}
    rows = [row(0, "F"), row(1, "M"), row(2, "O")]
    task = make_task(config(patch_zyx=patch_zyx, classification=settings), rows)
    network = task.build_networks()["network"].eval()
    assert network(torch.zeros(2, 1, *patch_zyx), torch.zeros(2, 0)).shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"classification": None}, "wants a section of that name"),
        ({"classification": {}}, "either a column of the catalog or a label"),
        ({"classification": {"column": "sex", "classes": ["F"]}}, "two values of column 'sex'"),
        ({"classification": {"column": "sex", "classes": ["F", "M"], "clinical": ["sex"]}}, "must not tell it"),
        ({"classification": {"label": "box"}}, "not among labels"),
        ({"labels": ["box"], "classification": {"label": "box", "classes": ["F", "M"]}}, "classes belong to a column"),
        ({"classification": {"column": "sex", "classes": ["F", "M"], "per": "patch"}}, "per: patch wants a label"),
        ({"patch_zyx": [1, 8, 24]}, "small wants 16 or more"),
        ({"detection": {}}, "settings of detection, but the task is classification"),
    ],
)
def test_settings_that_could_not_work_are_usage_errors(changes, complaint):
    with pytest.raises(Usage, match=complaint):
        config(**changes)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    probabilities = np.array([0.1, 0.4, 0.35, 0.8, 0.4])
    truth = [0, 0, 1, 1, 1]
    pairs = [(0.35, 0.1), (0.35, 0.4), (0.8, 0.1), (0.8, 0.4), (0.4, 0.1), (0.4, 0.4)]
    wanted = np.mean([1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs])
    assert auroc(np.stack([1 - probabilities, probabilities], axis=1), truth) == pytest.approx(wanted)
    assert auroc(np.ones((3, 2)), [1, 1, 1]) is None


def test_balanced_accuracy_gives_each_class_the_same_weight():
    assert balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 1]) == 0.5
    assert balanced_accuracy([2, 1, 1, 0], [2, 2, 1, 0]) == pytest.approx((0.5 + 1 + 1) / 3)
