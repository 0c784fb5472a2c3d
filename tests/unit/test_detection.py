from __future__ import annotations

import numpy as np
import pytest
import torch

from tomoray.config import load_config, make_config
from tomoray.errors import Usage
from tomoray.tasks.boxes import component_boxes, froc, match, sensitivity_at
from tomoray.tasks.choice import make_task
from tomoray.training.config import TrainConfig

SHAPE = (40, 40, 40)


@pytest.fixture
def spheres(tiny_archive):
    """Six scans of dark noise with two bright spheres each."""
    volumes = {}
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    for number in range(6):
        rng = np.random.default_rng(number)
        mask = np.zeros(SHAPE, np.uint8)
        for low in (6, 26):
            centre = np.array([rng.integers(low, low + 8), *rng.integers(8, 32, 2)])
            mask |= (((grid - centre[:, None, None, None]) ** 2).sum(axis=0) <= 4**2).astype(np.uint8)
        volumes[f"{number:016x}"] = (rng.normal(-850, 40, SHAPE) + 800.0 * mask, {"nodules": mask})
    return tiny_archive(volumes)


def test_recipe_finds_what_chance_does_not(spheres, train_task):
    settings = {"anchors_zyx": [[8, 8, 8]], "levels": 1, "channels": 16, "crop_zyx": [24, 24, 24]}
    small = {"patch_zyx": [32, 32, 32], "spacing_zyx_mm": None, "detection": settings, "learning_rate": 0.005}
    config = load_config("phantom-nodules", TrainConfig, small)
    task = make_task(config, [])
    scan_ids = spheres.scan_ids()
    networks, losses = train_task(task, config, spheres, scan_ids[:4], steps=80)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    scores = task.score([task.examine(networks, spheres, scan_id) for scan_id in scan_ids[4:]])
    assert scores["lesions"] == 2
    assert scores["sensitivity"] >= scores["sensitivity/random"] + 0.5


def test_every_connected_part_of_a_label_has_a_box():
    classes = np.zeros((8, 8, 8), np.uint8)
    classes[1:3, 1:4, 1:5] = 1
    classes[6:8, 6:8, 6:8] = 1
    classes[5, 0, 0] = 2
    boxes, kinds = component_boxes(classes, 2)
    assert boxes.tolist() == [[1, 1, 1, 3, 4, 5], [6, 6, 6, 8, 8, 8], [5, 0, 0, 6, 1, 1]]
    assert kinds.tolist() == [0, 0, 1]
    assert component_boxes(np.zeros((4, 4, 4), np.uint8), 2)[0].shape == (0, 6)


def test_a_lesion_is_hit_once_and_by_the_surest_box():
    truth = torch.tensor([[0.0, 0, 0, 4, 4, 4]])
    found = torch.tensor([[0.0, 0, 0, 4, 4, 2], [0, 0, 0, 4, 4, 4], [20, 20, 20, 24, 24, 24]])
    assert match(found, truth, 0.1) == [0, -1, -1]
    assert match(found, truth, 0.6) == [-1, 0, -1]
    assert match(found, truth[:0], 0.1) == [-1, -1, -1]


def test_sensitivity_counts_false_positives_over_all_scans():
    scans = [
        {"scores": [0.9, 0.8, 0.3], "hits": [0, -1, 1], "lesions": 2},
        {"scores": [0.7, 0.7, 0.1], "hits": [-1, 0, -1], "lesions": 1},
    ]
    assert sensitivity_at(scans, 0.5) == (pytest.approx(1 / 3), 0.8)
    assert sensitivity_at(scans, 1.0) == (1.0, 0.3)  # the two of one score come together
    assert sensitivity_at([{"scores": [], "hits": [], "lesions": 3}], 1.0) == (0.0, 1.0)
    assert froc(scans)[1].tolist() == [0.0, 0.5, 1.0, 1.0, 1.5]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"labels": []}, "labels names none"),
        ({"labels": ["nodules"], "patch_zyx": [40, 40, 40]}, "multiples of 16"),
        ({"labels": ["nodules"], "detection": {"crop_zyx": [24, 32, 32]}}, r"detection\.crop_zyx .* multiples of 16"),
        ({"labels": ["nodules"], "detection": {"channels": 12}}, r"detection\.channels"),
        ({"labels": ["nodules"], "detection": {"anchors_zyx": []}}, r"detection\.anchors_zyx"),
    ],
)
def test_settings_that_could_not_work_are_usage_errors(values, complaint):
    with pytest.raises(Usage, match=complaint):
        make_config(TrainConfig, {"task": "detection", **values})
