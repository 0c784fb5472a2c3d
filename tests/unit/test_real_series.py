"""Real series (shared/ct): what is stored of each, and what is refused and why."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from tomoray.assembly.scans import Rejected, assemble
from tomoray.assembly.slices import PlaneRef
from tomoray.assembly.stack import REPAIRS, Rules, Stack, apply_repair
from tomoray.dicom.headers import CT_IMAGE_STORAGE, ENHANCED_CT_STORAGE, Instance, NotDicomError, read_instance
from tomoray.dicom.pixels import Frames


def instances_in(found: Path, tmp_path: Path) -> dict[str, list[Instance]]:
    """Headers of the images in a file, a folder or an archive, by series."""
    if found.name.endswith(".tar.xz"):
        with tarfile.open(found) as archive:
            archive.extractall(tmp_path, filter="data")
        found = tmp_path
    series: dict[str, list[Instance]] = {}
    for path in sorted(found.rglob("*")) if found.is_dir() else [found]:
        if path.is_file():
            data = path.read_bytes()
            try:
                instance = read_instance(data, root="", key=str(path), size_bytes=len(data))
            except NotDicomError:
                continue
            series.setdefault(instance.series_uid, []).append(instance)
    return series


def hu(instance: Instance, ref: PlaneRef) -> np.ndarray:
    image = np.empty((instance.rows, instance.columns), dtype=np.int16)
    Frames(Path(instance.key).read_bytes(), instance).decode_hu(ref.plane, image)
    return image


def assembled(instances: list[Instance], repairs: frozenset[str]) -> tuple[list[Stack], list[Rejected]]:
    def same(a: PlaneRef, b: PlaneRef) -> bool:
        return np.array_equal(hu(instances[a.instance], a), hu(instances[b.instance], b))

    return assemble(instances, Rules(repairs=repairs), same)


def outcomes(found: Path, tmp_path: Path, repairs: frozenset[str] = frozenset()) -> list[str]:
    lines = []
    for instances in instances_in(found, tmp_path).values():
        stacks, rejected = assembled(instances, repairs)
        lines += [f"stored {'x'.join(map(str, stack.geometry.shape_zyx))}" for stack in stacks]
        lines += [f"{item.refusal.reason} {len(item.instances)}" for item in rejected]
    return sorted(lines)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("dcm-qa-ct/GE_tilt18.5_variable_spacing.tar.xz", ["variable_spacing 28"]),
        ("dcm-qa-ct/Philips_mixed_study.tar.xz", ["derived 6", "localizer 1", "stored 12x512x512"]),
        ("dicom2nifti-failing/gantrytilting_001.tar.xz", ["stored 4x512x512"]),
        ("dicom2nifti-failing/sliceincrement_001.tar.xz", ["missing_slices 4"]),
        ("dcmqi/ct-3slice", ["stored 3x512x512"]),
        ("dcmqi/mf24.dcm", ["missing_rescale 1"]),  # Rescale Type US
        ("pydicom/eCT_Supplemental.dcm", ["derived 1"]),  # a perfusion map
        ("syntaxes-cornerstone", ["derived 1", "mixed_rescale 9"]),  # one slice in nine ways
        ("covid19-ny-sbu", ["derived 1"] * 8 + ["too_few_slices 1"] * 4),
    ],
)
def test_outcome_without_repairs(real_ct: Path, tmp_path: Path, name: str, wanted: list[str]) -> None:
    assert outcomes(real_ct / name, tmp_path) == wanted


@pytest.mark.parametrize("pair", ["tilt", "variable_spacing"])
def test_head_with_tilt_and_variable_spacing_wants_both_repairs(real_ct: Path, tmp_path: Path, pair: str) -> None:
    found = real_ct / "dcm-qa-ct/GE_tilt18.5_variable_spacing.tar.xz"
    assert outcomes(found, tmp_path, frozenset({pair})) == ["variable_spacing 28"]


def test_repaired_head_holds_every_slice(real_ct: Path, tmp_path: Path) -> None:
    (instances,) = instances_in(real_ct / "dcm-qa-ct/GE_tilt18.5_variable_spacing.tar.xz", tmp_path).values()
    (stack,), rejected = assembled(instances, REPAIRS)
    assert rejected == []
    assert stack.geometry.shape_zyx == (135, 611, 512)
    assert "planes slide sideways at 18.5 degrees, a tilted gantry; GantryDetectorTilt agrees" in stack.notes
    columns = stack.geometry.matrix[:3, :3] / np.linalg.norm(stack.geometry.matrix[:3, :3], axis=0)
    np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-6)

    source = np.stack([hu(instances[ref.instance], ref) for ref in stack.planes])
    image = apply_repair(source, stack)
    assert image.shape == stack.geometry.shape_zyx
    assert np.array_equal(image[0, 99:], source[0])  # the first slice lies on the grid, at its far end
    mass = np.trapezoid((image + 1024.0).sum(axis=(1, 2)), dx=stack.geometry.spacing_zyx_mm[0])
    heights_mm = np.array(stack.repair.source_positions) @ columns[:, 2]
    assert mass == pytest.approx(np.trapezoid((source + 1024.0).sum(axis=(1, 2)), heights_mm), rel=0.005)


def test_tilt_without_its_tag_is_stored_sheared(real_ct: Path, tmp_path: Path) -> None:
    (instances,) = instances_in(real_ct / "dicom2nifti-failing/gantrytilting_001.tar.xz", tmp_path).values()
    (stack,), _ = assembled(instances, frozenset())
    assert stack.notes == ("planes slide sideways at 14 degrees, a tilted gantry; GantryDetectorTilt is missing",)
    for z, ref in enumerate(stack.planes):
        position = instances[ref.instance].planes[ref.plane].position
        np.testing.assert_allclose((stack.geometry.matrix @ [0, 0, z, 1])[:3], position, atol=1e-6)


def test_whole_chest_is_one_scan_without_a_note(real_ct: Path, tmp_path: Path) -> None:
    images = [
        found
        for series in instances_in(real_ct / "lidc-idri-0314", tmp_path).values()
        for found in series
        if found.sop_class in (CT_IMAGE_STORAGE, *ENHANCED_CT_STORAGE)
    ]
    stacks, rejected = assembled(images, frozenset())
    assert rejected == []
    assert [(stack.geometry.shape_zyx, stack.notes) for stack in stacks] == [((275, 512, 512), ())]
