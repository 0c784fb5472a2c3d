from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from tomoray.config import make_config
from tomoray.geometry import Geometry, from_canonical
from tomoray.inference.batcher import at_once
from tomoray.inference.classifier import ScanClassifier
from tomoray.inference.detector import ScanDetector, _on_scan
from tomoray.inference.scan_input import ArchivedVoxels
from tomoray.tasks.choice import make_task
from tomoray.tasks.scores import temperature, with_temperature
from tomoray.training.config import TrainConfig
from tomoray.transforms import target_grid

SCAN = "0" * 16
TILTED_ORDER = np.array([[0, 0, -1.0, 5], [1.5, 0, 0, 7], [0, -2.0, 0, 9], [0, 0, 0, 1]])  # x -> P, y -> I, z -> R


def config(**values):
    return make_config(TrainConfig, values)


SEX = {"task": "classification", "classification": {"column": "sex", "classes": ["F", "M"], "norm": "group"}}
NODULES = {"task": "detection", "labels": ["nodules"], "detection": {"channels": 8, "levels": 1, "min_score": 0}}


@pytest.fixture
def archive(tiny_archive):
    image = np.random.default_rng(0).normal(-300, 300, (20, 40, 36))
    mask = np.zeros(image.shape, np.uint8)
    mask[4:8, 10:14, 10:14] = 1
    return tiny_archive({SCAN: (image, {"nodules": mask})})


def rows():
    known = {"age_years": None, "kvp": None, "slice_thickness_mm": None, "spacing_z": None}
    return [
        {"scan_id": f"{n:016x}", "patient_id": f"p{n}", "status": "stored", "sex": s, **known}
        for n, s in enumerate("FMFM")
    ]


def weights_of(wanted):
    torch.manual_seed(0)
    networks = make_task(wanted, rows()).build_networks()
    return {name: network.eval() for name, network in networks.items()}, networks["network"].state_dict()


@pytest.mark.parametrize("patch", [[1, 24, 24], [16, 24, 24]])
def test_a_scan_gets_the_class_that_validation_gives_it(archive, patch):
    wanted = config(**SEX, patch_zyx=patch, spacing_zyx_mm=(1.5, 1.5, 1.5))
    networks, weights = weights_of(wanted)
    examined = make_task(wanted, rows()).examine(networks, archive, SCAN)
    classifier, scan = ScanClassifier(wanted, weights), archive.scan(SCAN)
    told = []
    found = classifier.find(
        ArchivedVoxels(scan), scan.geometry, at_once(classifier.forward), scan.info, lambda *of: told.append(of)
    )
    assert list(found) == ["F", "M"]
    np.testing.assert_allclose(list(found.values()), examined["probabilities"][0], atol=1e-6)
    assert told[-1][0] == told[-1][1]


def test_a_scan_gets_the_boxes_that_validation_gives_it(archive):
    wanted = config(**NODULES, patch_zyx=[16, 32, 32])
    networks, weights = weights_of(wanted)
    examined = make_task(wanted, rows()).examine(networks, archive, SCAN)["nodules"]
    detector, scan = ScanDetector(wanted, weights), archive.scan(SCAN)
    found = detector.find(ArchivedVoxels(scan), scan.geometry, at_once(detector.forward))
    np.testing.assert_allclose([box.score for box in found], examined["scores"], atol=1e-5)
    z0, y0, x0, z1, y1, x1 = examined["boxes"][0]
    centre = scan.geometry.matrix @ [(x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2, (z0 + z1 - 1) / 2, 1]
    np.testing.assert_allclose(found[0].center_lps_mm, centre[:3], atol=0.02)


def test_boxes_lie_where_the_lesion_is_in_any_orientation():
    geometry = Geometry.from_matrix((12, 14, 16), TILTED_ORDER)
    grid = target_grid(geometry, None)
    lesion = np.zeros(grid.stored_shape_zyx)
    lesion[2:5, 3:9, 4:6] = 1
    voxels = np.argwhere(from_canonical(lesion, geometry))
    box = _on_scan([2, 3, 4, 5, 9, 6], 0.9, "nodules", grid, geometry)
    centre = geometry.matrix @ [*voxels.mean(axis=0)[::-1], 1]
    np.testing.assert_allclose(box.center_lps_mm, centre[:3])
    edges = np.ptp(voxels, axis=0) + 1
    np.testing.assert_allclose(box.size_mm, (edges * geometry.spacing_zyx_mm)[::-1])


def test_gradcam_is_drawn_on_the_scans_own_grid(archive):
    wanted = config(**SEX, patch_zyx=[16, 24, 24], spacing_zyx_mm=(1.5, 1.5, 1.5))
    classifier, scan = ScanClassifier(wanted, weights_of(wanted)[1]), archive.scan(SCAN)
    heat = [classifier.gradcam(ArchivedVoxels(scan), scan.geometry, scan.info, name) for name in ("F", "M")]
    for each in heat:
        assert each.shape == scan.geometry.shape_zyx
        assert each.dtype == np.float16
        assert 0 <= each.min() < each.max() <= 1
    assert not np.array_equal(*heat), "each class has its own"


def test_occlusion_is_hot_where_hiding_takes_the_class_away():
    wanted = config(**SEX, patch_zyx=[16, 16, 16], hu_window=(-1000, 0))
    image, geometry = np.full((16, 16, 32), -1000, np.int16), Geometry.from_matrix((16, 16, 32), np.eye(4))
    image[4:8, 8:12, 20:24] = 0  # a block in the second window

    def infer(inputs):
        men = inputs[0].amax(dim=(1, 2, 3, 4))
        answer = Future()
        answer.set_result((torch.stack([1 - men, men], dim=1),))
        return answer

    heat = ScanClassifier(wanted, weights_of(wanted)[1]).occlusion(image, geometry, infer, None, "M")
    assert heat[4:8, 8:12, 20:24].min() == 1
    assert heat[4:8, 8:12, :16].max() == 0


def test_a_temperature_makes_sure_networks_as_unsure_as_they_should_be():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 2))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = [int(rng.random() < p) for p in true[:, 1]]
    sure = with_temperature(true, 1 / 3)
    found = temperature(sure, truth)
    assert 2.6 < found < 3.4
    np.testing.assert_allclose(with_temperature(sure, found), true, atol=0.05)


def test_a_classifier_is_calibrated_by_the_temperature_of_its_validation(archive):
    wanted = config(**SEX, patch_zyx=[1, 24, 24])
    weights, scan = weights_of(wanted)[1], archive.scan(SCAN)
    found = []
    for by in (None, 5.0):
        classifier = ScanClassifier(wanted, weights, temperature=by)
        infer = at_once(classifier.forward)
        found.append(classifier.find(ArchivedVoxels(scan), scan.geometry, infer, scan.info))
    plain, calibrated = ([each[name] for name in ("F", "M")] for each in found)
    np.testing.assert_allclose(calibrated, with_temperature([plain], 5.0)[0])
    assert abs(calibrated[0] - 0.5) < abs(plain[0] - 0.5)
