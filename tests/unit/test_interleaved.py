"""Slices that alternate: two acquisitions under one UID, or one reconstruction whose slices overlap."""

from __future__ import annotations

import numpy as np
import pytest

from tomoray.assembly.interleaved import check_alternation
from tomoray.assembly.stack import Rules
from tomoray.errors import Reason
from tomoray.ingest.loader import LoadedScan, RefusedPart

NUMBERS = "InstanceNumber"


def alternate(series, **values) -> None:
    """Give every second slice other values; a callable takes the slice's place among them."""
    for z, dataset in enumerate(series.datasets[1::2]):
        for keyword, value in values.items():
            setattr(dataset, keyword, value(z) if callable(value) else value)


def outcome(parts: list[LoadedScan | RefusedPart]) -> list[tuple[str, object]]:
    return [
        (part.volume.info.part, part.volume.image_zyx.shape[0])
        if isinstance(part, LoadedScan)
        else (part.part, part.refusal.reason)
        for part in parts
    ]


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ({"AcquisitionNumber": 3}, {"AcquisitionNumber": 5}, ("acquisition 3", "acquisition 5")),
        ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, ("phase 1", "phase 2")),
        ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}, ("interleaved 1", "interleaved 2")),
        ({"KVP": 80}, {"KVP": 140}, ("interleaved 1", "interleaved 2")),
        ({"SliceThickness": 2.5}, {"SliceThickness": 5}, ("interleaved 1", "interleaved 2")),
        ({}, {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "LUNG"]}, ("interleaved 1", "interleaved 2")),
    ],
)
def test_an_attribute_that_alternates_makes_two_scans(make_series, one, other, names):
    series = make_series(10)
    for dataset in series.datasets:
        for keyword, value in one.items():
            setattr(dataset, keyword, value)
    alternate(series, **other)
    parts = series.parts()
    assert outcome(parts) == [(names[0], 5), (names[1], 5)]
    assert [part.volume.geometry.spacing_zyx_mm[0] for part in parts] == pytest.approx([5, 5])
    assert all("whose slices alternate, told apart by" in part.volume.info.notes[0] for part in parts)
    assert (parts[1].volume.geometry.matrix[2, 3] - parts[0].volume.geometry.matrix[2, 3]) == pytest.approx(2.5)


@pytest.mark.parametrize("number", [lambda z: z + 1, lambda z: z + 9, lambda z: 40 - z], ids=["alike", "on", "back"])
def test_halves_that_are_numbered_each_by_themselves_are_two_scans(make_series, number):
    series = make_series(16)
    for z, dataset in enumerate(series.datasets[::2]):
        dataset.InstanceNumber = z + 1
    alternate(series, InstanceNumber=number)
    assert outcome(series.parts()) == [("interleaved 1", 8), ("interleaved 2", 8)]


def test_exposures_of_another_range_are_two_scans(make_series):
    series = make_series(16)
    for z, dataset in enumerate(series.datasets):
        dataset.Exposure = 100 + z
    alternate(series, Exposure=lambda z: 40 - z)
    assert outcome(series.parts()) == [("interleaved 1", 8), ("interleaved 2", 8)]


def test_copies_stay_with_the_slice_that_they_are_of(make_series):
    series, again = make_series(10), make_series(10)
    for each in (series, again):
        alternate(each, AcquisitionNumber=2)
        for dataset in each.datasets[::2]:
            dataset.AcquisitionNumber = 1
    again.datasets[3].SOPInstanceUID += ".9"
    again.datasets[3].file_meta.MediaStorageSOPInstanceUID = again.datasets[3].SOPInstanceUID
    series.datasets.append(again.datasets[3])
    parts = series.parts()
    assert outcome(parts) == [("acquisition 1", 5), ("acquisition 2", 5)]
    assert any("copies" in note for note in parts[1].volume.info.notes)


@pytest.mark.parametrize(
    "value",
    [
        lambda z: {"AcquisitionNumber": z + 1, "Exposure": 100 + 7 * z, "TriggerTime": 10.0 * z},  # a rotation a slice
        lambda z: {"AcquisitionNumber": z // 2, "Exposure": 90 + z // 2},  # two slices a rotation
        lambda z: {"InstanceNumber": z + 2 - 2 * (z % 2)},  # numbered backwards within a rotation of two
        lambda z: {"Exposure": 100 + (37 * z) % 11, "InstanceNumber": (5 * z) % 16},
        lambda z: {"SliceThickness": 5},  # overlapping by half
    ],
)
def test_what_alternates_in_one_acquisition_leaves_it_one_scan(make_series, value):
    series = make_series(16)
    for z, dataset in enumerate(series.datasets):
        for keyword, found in value(z).items():
            setattr(dataset, keyword, found)
    assert outcome(series.parts()) == [("", 16)]


def test_halves_that_are_no_scans_by_themselves_are_refused(make_series):
    series = make_series(5)
    for dataset in series.datasets:
        dataset.AcquisitionNumber = 1
    alternate(series, AcquisitionNumber=2)
    (part,) = series.parts()
    assert part.refusal.reason == Reason.MIXED_ACQUISITION
    assert "acquisition number" in part.refusal.evidence
    assert len(series.parts(rules=Rules(min_slices=2))) == 2


def planes(n: int = 40, *, moved: int = 0, blend: bool = False, noise: float = 20.0) -> list[np.ndarray]:
    """Tissue that changes slowly along z; every second slice moved by some voxels; noise, shared by neighbours."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:128, :128]
    slabs = rng.normal(0, noise, (n + 1, 128, 128))
    grain = [(slabs[z] + slabs[z + 1]) / 2 if blend else slabs[z] for z in range(n)]
    return [
        (300 * np.sin((x + moved * (z % 2)) / 9 + z / 30) * np.cos(y / 11) + grain[z]).astype(np.int16)
        for z in range(n)
    ]


@pytest.mark.parametrize("settings", [{}, {"blend": True}, {"noise": 400.0}, {"noise": 0.0}, {"moved": 0, "n": 8}])
def test_pixels_of_one_acquisition_pass(settings):
    assert check_alternation(planes(**settings)) is None


def test_pixels_of_two_acquisitions_are_refused():
    refusal = check_alternation(planes(moved=4))
    assert refusal is not None
    assert refusal.reason == Reason.MIXED_ACQUISITION
    assert check_alternation(planes(moved=4)[::2]) is None


def test_empty_planes_pass():
    assert check_alternation([np.full((64, 64), -1024, np.int16)] * 20) is None
