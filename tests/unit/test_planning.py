from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml

from tomoray.config import make_config
from tomoray.errors import Fatal, Usage
from tomoray.statistics.fingerprint import Fingerprint, HuStatistics, ScanFingerprint, Spread
from tomoray.statistics.planning import plan_training, to_yaml
from tomoray.statistics.step_memory import step_bytes
from tomoray.training.config import TrainConfig
from tomoray.training.network_config import NetworkConfig

HU = HuStatistics(
    n_voxels=4, min=-900, max=300, mean=-100.0, std=1.0, percentile_0_5=-900.0, median=0.0, percentile_99_5=300.0
)


def spread(values: list[float]) -> Spread:
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    return Spread(
        n=len(values), min=ordered[0], percentile_10=ordered[0], median=middle, percentile_90=middle, max=middle
    )


def fingerprint(
    shapes: list[tuple[int, int, int]], spacings: list[tuple[float, float, float]], **fields: Any
) -> Fingerprint:
    scans = [
        ScanFingerprint(
            scan_id=f"{n:020x}", patient_id=f"p{n}", shape_zyx=shape, spacing_zyx_mm=spacing, hu={"scan": HU},
            label_hu={"lungs": HU}, volume_ml={"lungs": 4000.0, "nodules": 3.0}, body_ml=1.0,
            body_share=0.5, size_bytes=1,
        )
        for n, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True))
    ]  # fmt: skip
    counts = {"first_hu": -900, "counts": [1, *[0] * 899, 2, *[0] * 299, 1]}
    return Fingerprint.model_validate(
        {
            "body_level": 2, "n_scans": len(scans), "n_patients": len(scans),
            "label_scans": {"lungs": len(scans), "nodules": len(scans)},
            "label_filled": {"lungs": len(scans), "nodules": len(scans)},
            "shape": {axis: spread([s[i] for s in shapes]) for i, axis in enumerate("zyx")},
            "spacing_mm": {axis: spread([s[i] for s in spacings]) for i, axis in enumerate("zyx")},
            "body_ml": spread([1.0]), "volume_ml": {"lungs": spread([4000.0]), "nodules": spread([3.0])},
            "hu": {"foreground": HU}, "label_hu": {"lungs": HU},
            "histogram": {"foreground": counts}, "label_histogram": {"lungs": counts, "nodules": counts},
            "inside": {"lungs": {"nodules": 0.995}}, "size_bytes": 1, "scans": scans, **fields,
        }
    )  # fmt: skip


ISOTROPIC = fingerprint([(300, 400, 400)] * 40, [(1.0, 0.8, 0.8)] * 20 + [(1.2, 0.7, 0.7)] * 20)


def test_spacing_is_the_median_of_each_axis() -> None:
    found = plan_training(ISOTROPIC, memory_gb=8).train.spacing_zyx_mm
    assert found == pytest.approx((1.1, 0.75, 0.75))


def test_a_far_coarser_axis_takes_its_tenth_percentile() -> None:
    thick = fingerprint([(40, 512, 512)] * 10, [(2.5, 0.7, 0.7)] + [(5.0, 0.7, 0.7)] * 9)
    plan = plan_training(thick, memory_gb=8)
    assert plan.train.spacing_zyx_mm == pytest.approx((4.75, 0.7, 0.7))
    assert "7.1 times coarser" in plan.choices["spacing_zyx_mm"].reason


def test_the_tenth_percentile_is_never_finer_than_the_other_axes() -> None:
    mixed = fingerprint([(40, 512, 512)] * 10, [(0.5, 0.7, 0.7)] * 3 + [(5.0, 0.7, 0.7)] * 7)
    assert plan_training(mixed, memory_gb=8).train.spacing_zyx_mm == pytest.approx((0.7, 0.7, 0.7))


@pytest.mark.parametrize("memory_gb", [0.1, 1, 8, 24])
def test_patch_fits_the_budget_and_the_network(memory_gb: float) -> None:
    plan = plan_training(ISOTROPIC, memory_gb=memory_gb)
    assert plan.step_bytes <= memory_gb * 1e9
    assert plan.train.batch_size >= 2
    assert min(plan.train.patch_zyx) >> (len(plan.train.network.channels) - 1) >= 4
    assert max(plan.train.network.channels) <= 320


def test_more_memory_never_shrinks_the_patch() -> None:
    voxels = []
    for memory_gb in (0.2, 1, 4, 16):
        z, y, x = plan_training(ISOTROPIC, memory_gb=memory_gb).train.patch_zyx
        voxels.append(z * y * x)
    assert voxels == sorted(voxels)
    assert voxels[0] < voxels[-1]


def test_patch_has_the_shape_of_the_median_scan() -> None:
    flat = fingerprint([(60, 512, 512)] * 9, [(2.0, 0.8, 0.8)] * 9)
    z, y, x = plan_training(flat, memory_gb=4).train.patch_zyx
    assert abs(y - x) <= 8
    assert z / 60 == pytest.approx(y / 512, abs=0.15)


def test_batch_holds_at_most_a_twentieth_of_the_voxels() -> None:
    small = fingerprint([(32, 32, 32)] * 60, [(1.0, 1.0, 1.0)] * 60)
    plan = plan_training(small, memory_gb=100)
    assert plan.train.patch_zyx == (32, 32, 32)
    assert plan.train.batch_size == 3
    assert "5%" in plan.choices["batch_size"].reason


def test_window_and_labels_come_from_the_foreground() -> None:
    plan = plan_training(ISOTROPIC, memory_gb=1)
    assert plan.train.hu_window == (-887.0, 296.0)
    assert plan.train.labels == ["lungs", "nodules"]
    assert plan.train.contains == {"lungs": ["nodules"]}
    assert plan_training(ISOTROPIC, memory_gb=1, labels=["nodules"]).train.contains == {}


def test_every_choice_has_its_reason_and_stands_in_the_yaml() -> None:
    plan = plan_training(ISOTROPIC, memory_gb=1, archive="s3://ct/archive")
    text = to_yaml(plan)
    assert make_config(TrainConfig, yaml.safe_load(text)) == plan.train
    assert all(choice.reason for choice in plan.choices.values())
    for name in ("spacing_zyx_mm", "patch_zyx", "batch_size", "hu_window"):
        assert f"# {plan.choices[name].reason}\n{name}: " in text


def test_chunks_divide_shards_and_are_about_half_a_patch() -> None:
    plan = plan_training(ISOTROPIC, memory_gb=8)
    assert plan.layout.chunk_zyx == (64, 64, 64)
    assert plan.layout.shard_zyx == (256, 256, 256)


def test_two_patients_are_not_split() -> None:
    two = fingerprint([(64, 64, 64)] * 2, [(1.0, 1.0, 1.0)] * 2)
    assert plan_training(two, memory_gb=1).train.split.test == 0


def test_names_what_is_wrong() -> None:
    with pytest.raises(Usage, match="raise memory_gb"):
        plan_training(ISOTROPIC, memory_gb=1e-4)
    with pytest.raises(Usage, match="'liver'"):
        plan_training(ISOTROPIC, memory_gb=1, labels=["liver"])
    with pytest.raises(Fatal, match="no label"):
        plan_training(fingerprint([(9, 9, 9)], [(1.0, 1.0, 1.0)], label_scans={}, label_filled={}), memory_gb=1)


def test_estimate_is_above_what_a_step_takes_and_within_twice() -> None:
    code = """
import pathlib, re, torch
from monai.losses.dice import DiceCELoss
from tomoray.training.network_config import NetworkConfig
from tomoray.networks import build_network
torch.set_num_threads(1)
network = build_network(NetworkConfig(channels=[32, 64, 128]), 3)
optimizer = torch.optim.AdamW(network.parameters())
loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
def step(side):
    optimizer.zero_grad()
    loss(network(torch.rand(2, 1, side, side, side)), torch.zeros(2, 1, side, side, side, dtype=torch.uint8)).backward()
    optimizer.step()
def status(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
step(8)
before = status("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
step(64)
print(status("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    patch_bytes, _ = step_bytes((64, 64, 64), NetworkConfig(channels=[32, 64, 128]), 3)
    assert 1 <= 2 * patch_bytes / int(done.stdout) < 2
