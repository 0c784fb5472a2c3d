"""One good CT series and some eighty ways in which real ones go wrong, each with the only right answer.

`tests/unit/test_pathologies.py` asks TomoRay, `benchmarks/pathologies.py` its peers; both read the very same files.

What was scanned is known apart from what the headers say: a `Plane` holds the HU and the place of every voxel. An
answer is right where every voxel that it gives has the HU that was scanned at that place, and none is left out.
Voxels are random, so a voxel in another's place cannot go unnoticed.

Legend: positions and directions in LPS, mm; images int16 HU [y, x].
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

ROWS, COLUMNS, STEP_MM = 24, 20, 2.5
SPACING_MM = (0.8, 0.7)  # between rows, between columns
AXIAL = (1, 0, 0, 0, 1, 0)
ORIGIN = (-20.0, -30.0, -100.0)
AIR_HU = -1024

Vector = npt.NDArray[np.float64]


@dataclass
class Plane:
    """A slice as it was scanned, and the data set that tells of it. A plane without HU is no part of a right answer."""

    dataset: Dataset
    hu: npt.NDArray[np.int16] | None
    position: Vector
    orientation: Vector
    spacing_mm: tuple[float, float] = SPACING_MM

    def points(self) -> Vector:
        """Where the centre of each voxel lies, mm: (n, 3), row by row."""
        assert self.hu is not None
        y, x = np.mgrid[: self.hu.shape[0], : self.hu.shape[1]].reshape(2, -1, 1)
        return (
            self.position
            + x * self.spacing_mm[1] * self.orientation[:3]
            + y * self.spacing_mm[0] * self.orientation[3:]
        )


@dataclass
class Series:
    """Planes, the file that each lies in, and what is done to the bytes of every file at last."""

    planes: list[Plane]
    enhanced: Dataset | None = None  # the one file, where it is an enhanced multi-frame object
    bytes_changed: Callable[[bytes], bytes] | None = None
    names: list[str] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        """File name -> bytes."""
        datasets = [plane.dataset for plane in self.planes] if self.enhanced is None else [self.enhanced]
        names = self.names or [f"{n:03}.dcm" for n in range(len(datasets))]
        change = self.bytes_changed or (lambda data: data)
        return {name: change(_as_file(dataset)) for name, dataset in zip(names, datasets, strict=True)}


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of values that are wrong on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


Change = Callable[[Series], None]


@dataclass(frozen=True)
class Case:
    """A way to go wrong, and the right answer.

    Attributes:
        name: what is the matter, in words.
        make: the series.
        refused: reasons of what is refused; where nothing is left, nothing is stored.
        notes: what stored scans must say of it, as parts of their notes; empty where there is nothing to say.
        n_scans: what is stored.
    """

    name: str
    make: Callable[[], Series]
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    n_scans: int = 1


def _refuse(name: str, reason: str, *changes: Change, of: Callable[[], Series] | None = None) -> Case:
    return Case(name, lambda: _changed(of or good, changes), (reason,), n_scans=0)


def _store(
    name: str,
    *changes: Change,
    of: Callable[[], Series] | None = None,
    note: str | tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    n_scans: int = 1,
) -> Case:
    notes = (note,) if isinstance(note, str) else note
    return Case(name, lambda: _changed(of or good, changes), also, notes, n_scans)


def _changed(of: Callable[[], Series], changes: Sequence[Change]) -> Series:
    series = of()
    for change in changes:
        change(series)
    return series


# --- the good series ----------------------------------------------------------------------------------------------


def good(
    n: int = 12,
    *,
    orientation: Sequence[float] = AXIAL,
    along: Sequence[float] | None = None,
    heights: Sequence[float] | None = None,
    seed: int = 0,
) -> Series:
    """`n` slices, 2.5 mm apart along their normal or along `along`."""
    rng = np.random.default_rng(seed)
    directions = np.array(orientation, float)
    normal = np.cross(directions[:3], directions[3:]) if along is None else np.array(along, float)
    planes = []
    for z in range(n):
        height = z * STEP_MM if heights is None else heights[z]
        position = np.round(np.array(ORIGIN) + height * normal, 6)
        hu = rng.integers(-1000, 1500, (ROWS, COLUMNS)).astype(np.int16)
        planes.append(Plane(_header(z, position, directions, hu), hu, position, directions))
    return Series(planes)


def _header(z: int, position: Vector, orientation: Vector, hu: npt.NDArray[np.int16]) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.4.{z + 1}"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.2"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.3"
    dataset.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.5"
    dataset.PatientID, dataset.PatientName = "PATHOLOGY-1", "Pathology^One"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200102", "101112", "1"
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer, dataset.PatientPosition = "SIEMENS", "HFS"
    dataset.SeriesNumber, dataset.AcquisitionNumber, dataset.InstanceNumber = 1, 1, z + 1
    dataset.Rows, dataset.Columns = hu.shape
    dataset.PixelSpacing, dataset.SliceThickness = list(SPACING_MM), 2.5
    dataset.ImageOrientationPatient = [f"{v:.12g}"[:16] for v in orientation]
    dataset.ImagePositionPatient = [f"{v:.6f}" for v in position]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    dataset.PixelData = (hu.astype(np.int32) + 1024).astype("<u2").tobytes()
    return dataset


def _as_file(dataset: Dataset) -> bytes:
    dataset = copy.deepcopy(dataset)
    meta, syntax = dataset.file_meta, dataset.file_meta.TransferSyntaxUID
    if "MediaStorageSOPClassUID" not in meta:
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.FileMetaInformationVersion = b"\0\1"
    if syntax in (RLELossless, JPEGLSLossless):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    if "PixelData" in dataset and not syntax.is_encapsulated:
        dataset["PixelData"].VR = "OW"
    dataset.preamble = bytes(128)
    buffer = io.BytesIO()
    dataset.file_meta.FileMetaInformationGroupLength = 0
    with quiet():
        dataset.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


# --- what goes wrong ----------------------------------------------------------------------------------------------


def _set(at: int | slice | None = None, /, **values: Any) -> Change:
    """Set elements of one plane, of some, or of all; None deletes."""

    def change(series: Series) -> None:
        chosen = series.planes if at is None else series.planes[at] if isinstance(at, slice) else [series.planes[at]]
        for plane in chosen:
            for keyword, value in values.items():
                if value is None:
                    delattr(plane.dataset, keyword)
                else:
                    with quiet():
                        setattr(plane.dataset, keyword, copy.deepcopy(value))

    return change


def _meta(**values: Any) -> Change:
    def change(series: Series) -> None:
        for plane in series.planes:
            for keyword, value in values.items():
                setattr(plane.dataset.file_meta, keyword, value)

    return change


def _drop(*at: int) -> Change:
    def change(series: Series) -> None:
        series.planes = [plane for n, plane in enumerate(series.planes) if n not in at]

    return change


def _move(at: int, **mm: float) -> Change:
    """Another position in the header of one plane: it lies."""

    def change(series: Series) -> None:
        position = np.array(series.planes[at].dataset.ImagePositionPatient, float)
        position += [mm.get(axis, 0.0) for axis in "xyz"]
        series.planes[at].dataset.ImagePositionPatient = [f"{v:.6f}" for v in position]

    return change


def _stored_as(slope: float, intercept: float, *, signed: bool = False, bits: int = 12) -> Change:
    """Stored values under another rescale; what was scanned is what they mean."""

    def change(series: Series) -> None:
        for plane in series.planes:
            stored = np.rint((plane.hu - intercept) / slope).clip(-(2**15) if signed else 0, 2**15 - 1)
            plane.hu = np.rint(stored * slope + intercept).astype(np.int16)
            plane.dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
            plane.dataset.RescaleSlope, plane.dataset.RescaleIntercept = slope, intercept
            plane.dataset.PixelRepresentation = int(signed)
            plane.dataset.BitsStored, plane.dataset.HighBit = bits, bits - 1

    return change


def _one_stored_as(at: int, slope: float, intercept: float) -> Change:
    def change(series: Series) -> None:
        _stored_as(slope, intercept, bits=16)(Series([series.planes[at]]))

    return change


def _again(
    *, seed: int | None = None, n: int = 12, step_mm: float = STEP_MM, offset_mm: float = 0.0, **values: Any
) -> Change:
    """The planes a second time in the same series: identical, or scanned anew."""

    def change(series: Series) -> None:
        heights = [offset_mm + z * step_mm for z in range(n)]
        others = good(n, heights=heights, seed=seed or 0).planes
        for z, plane in enumerate(others):
            plane.dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.9.{z + 1}"
            plane.dataset.InstanceNumber = len(series.planes) + z + 1
        _set(**values)(Series(others))
        if seed is None:
            for plane in others:
                plane.hu = None  # the same voxels; counted once
        series.planes += others

    return change


def _merge(*, n: int = 12, number_from: int | None = None, ordered: bool = False, **values: Any) -> Change:
    """A second acquisition, each of its slices midway between two of the first.

    Args:
        n: its slices.
        number_from: its first InstanceNumber; None goes on after the first acquisition.
        ordered: number all slices by position afterwards.
        values: elements of its slices; None deletes.
    """

    def change(series: Series) -> None:
        start = len(series.planes)
        _again(seed=7, n=n, offset_mm=STEP_MM / 2)(series)
        others = series.planes[start:]
        for z, plane in enumerate(others):
            plane.dataset.InstanceNumber = (start + 1 if number_from is None else number_from) + z
        _set(**values)(Series(others))
        if ordered:
            for z, plane in enumerate(sorted(series.planes, key=lambda plane: float(plane.position[2]))):
                plane.dataset.InstanceNumber = z + 1

    return change


def _few() -> Series:
    return good(2)


def _overlapping(n: int = 24) -> Series:
    """One reconstruction at half the slice thickness: a slice has half of its tissue, and noise, from the last one."""
    series = good(n, heights=[z * STEP_MM / 2 for z in range(n)])
    slabs = np.random.default_rng(1).integers(-1000, 1500, (n + 1, ROWS, COLUMNS))
    for z, plane in enumerate(series.planes):
        _show(plane, (slabs[z] + slabs[z + 1]) // 2)
    return series


def _moved_between() -> Series:
    """Two acquisitions of one patient, who moved by two voxels between them; slices alternate, all headers agree."""
    series = good(24, heights=[z * STEP_MM / 2 for z in range(24)])
    y, x = np.mgrid[:ROWS, :COLUMNS]
    noise = np.random.default_rng(2).integers(-15, 16, (24, ROWS, COLUMNS))
    for z, plane in enumerate(series.planes):
        seen_x = x + 2 * (z % 2)
        _show(plane, 400 * np.sin(seen_x / 1.5 + z / 20) * np.cos(y / 4) + noise[z])
    return series


def _show(plane: Plane, hu: npt.NDArray[Any]) -> None:
    plane.hu = np.asarray(hu).astype(np.int16)
    plane.dataset.PixelData = (plane.hu.astype(np.int32) + 1024).astype("<u2").tobytes()


def _copy(at: int, *, same_pixels: bool, same_uid: bool) -> Change:
    def change(series: Series) -> None:
        plane = copy.deepcopy(series.planes[at])
        if not same_pixels:
            plane.dataset.PixelData = series.planes[at + 1].dataset.PixelData
        if not same_uid:
            plane.dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.4.99"
        plane.hu = None
        series.planes.append(plane)

    return change


def _intruder(**values: Any) -> Change:
    """One more image under the series UID, of another kind."""

    def change(series: Series) -> None:
        (plane,) = good(1, heights=[90.0], seed=5).planes
        plane.dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.4.99"
        plane.hu = None
        _set(**values)(Series([plane]))
        series.planes.append(plane)

    return change


def _other_matrix(series: Series) -> None:
    plane = series.planes[5]
    plane.dataset.Rows, plane.dataset.Columns = ROWS // 2, COLUMNS * 2


def _scramble(series: Series) -> None:
    order = np.random.default_rng(3).permutation(len(series.planes))
    for plane, number in zip(series.planes, order, strict=True):
        plane.dataset.InstanceNumber = int(number) + 1


def _scramble_names(series: Series) -> None:
    order = np.random.default_rng(4).permutation(len(series.planes))
    series.names = [f"{n:03}.dcm" for n in order]


def _reverse(series: Series) -> None:
    for plane in series.planes:
        plane.dataset.InstanceNumber = 100 - plane.dataset.InstanceNumber


def _phases(keyword: str) -> Change:
    def change(series: Series) -> None:
        _again(seed=7)(series)
        for n, plane in enumerate(series.planes):
            setattr(plane.dataset, keyword, 1 + n // 12)

    return change


def _pad(value: int) -> Change:
    """A corner without data, as some scanners mark it; it is no HU, and is stored as air."""

    def change(series: Series) -> None:
        for plane in series.planes:
            stored = plane.hu.copy()
            stored[:4, :4] = value
            plane.hu = np.where(stored == value, AIR_HU, stored).astype(np.int16)
            plane.dataset.PixelData = stored.astype("<i2").tobytes()
            plane.dataset.PixelRepresentation, plane.dataset.BitsStored, plane.dataset.HighBit = 1, 16, 15
            plane.dataset.RescaleIntercept = 0
            plane.dataset.add_new("PixelPaddingValue", "SS", value)

    return change


def _high_bits(series: Series) -> None:
    """Garbage, or an old overlay, above the twelve bits stored."""
    rng = np.random.default_rng(8)
    for plane in series.planes:
        words = np.frombuffer(plane.dataset.PixelData, "<u2")
        plane.dataset.PixelData = (words | rng.integers(0, 16, words.shape, dtype="<u2") << 12).astype("<u2").tobytes()


def _old_overlay(series: Series) -> None:
    _high_bits(series)
    for plane in series.planes:
        plane.dataset.add_new(0x60000010, "US", ROWS)
        plane.dataset.add_new(0x60000011, "US", COLUMNS)
        plane.dataset.add_new(0x60000040, "CS", "G")
        plane.dataset.add_new(0x60000100, "US", 16)
        plane.dataset.add_new(0x60000102, "US", 12)


def _cut_pixels(series: Series) -> None:
    plane = series.planes[6].dataset
    plane.PixelData = plane.PixelData[: ROWS * COLUMNS]


def _cut_file(data: bytes) -> bytes:
    return data[:-200]


def _cut_files(series: Series) -> None:
    series.bytes_changed = _cut_file


def _colour(series: Series) -> None:
    for plane in series.planes:
        plane.dataset.SamplesPerPixel, plane.dataset.PlanarConfiguration = 3, 0
        plane.dataset.PhotometricInterpretation = "RGB"
        plane.dataset.BitsAllocated, plane.dataset.BitsStored, plane.dataset.HighBit = 8, 8, 7
        grey = ((plane.hu + 1024) // 16).astype(np.uint8)
        plane.dataset.PixelData = np.repeat(grey.ravel(), 3).tobytes()


def _syntax(uid: str) -> Change:
    return _meta(TransferSyntaxUID=uid)


def _false_syntax(series: Series) -> None:
    """Raw pixels under the name of a compressed syntax."""
    series.bytes_changed = lambda data: data.replace(
        b"UI\x14\x00" + ExplicitVRLittleEndian.encode() + b"\0", b"UI\x16\x00" + JPEGLSLossless.encode(), 1
    )


def _without_meta_uids(series: Series) -> None:
    _meta(MediaStorageSOPClassUID=CTImageStorage, MediaStorageSOPInstanceUID="")(series)


def _with_meta_uids(series: Series) -> None:
    for plane in series.planes:
        meta = plane.dataset.file_meta
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, plane.dataset.SOPInstanceUID


def _tilted(degrees: float) -> Callable[[], Series]:
    """Slices lean by the gantry's tilt and follow one another along the table."""
    tilt = np.radians(degrees)
    leaning = (1, 0, 0, 0, float(np.cos(tilt)), float(-np.sin(tilt)))
    return lambda: good(orientation=leaning, along=(0, 0, 1))


def _orientation(*cosines: float) -> Callable[[], Series]:
    return lambda: good(orientation=cosines)


def _heights(*heights: float) -> Callable[[], Series]:
    return lambda: good(len(heights), heights=heights)


def _rotate_header(at: int, degrees: float) -> Change:
    turn = np.radians(degrees)
    cosines = [f"{v:.6f}" for v in (np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0)]
    return _set(at, ImageOrientationPatient=cosines)


# --- enhanced multi-frame -----------------------------------------------------------------------------------------


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _enhance(series: Series) -> None:
    """The same planes as frames of one Enhanced CT object (PS3.3 A.38)."""
    first = copy.deepcopy(series.planes[0].dataset)
    first.SOPClassUID, first.SOPInstanceUID = EnhancedCTImageStorage, "1.2.826.0.1.3680043.8.498.6.1"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(first, keyword)
    del first.RescaleSlope, first.RescaleIntercept, first.RescaleType, first.AcquisitionNumber
    first.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    first.NumberOfFrames = len(series.planes)
    first.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[_item(PixelSpacing=list(SPACING_MM), SliceThickness=2.5)],
            CTImageFrameTypeSequence=[_item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
        )
    ]
    first.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=plane.dataset.ImagePositionPatient)],
            PlaneOrientationSequence=[_item(ImageOrientationPatient=plane.dataset.ImageOrientationPatient)],
            FrameContentSequence=[_item(FrameAcquisitionNumber=1, DimensionIndexValues=[n + 1])],
            PixelValueTransformationSequence=[
                _item(
                    RescaleSlope=plane.dataset.RescaleSlope,
                    RescaleIntercept=plane.dataset.RescaleIntercept,
                    RescaleType="HU",
                )
            ],
        )
        for n, plane in enumerate(series.planes)
    ]
    first.PixelData = b"".join(plane.dataset.PixelData for plane in series.planes)
    series.enhanced = first


def _of_enhanced(change: Callable[[Dataset], None]) -> Change:
    return lambda series: change(series.enhanced)


def _shuffle(series: Series) -> None:
    order = np.random.default_rng(6).permutation(len(series.planes))
    series.planes = [series.planes[n] for n in order]


def _drop_groups(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[-1]


def _drop_position(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[5].PlanePositionSequence


def _drop_rescale(dataset: Dataset) -> None:
    for item in dataset.PerFrameFunctionalGroupsSequence:
        del item.PixelValueTransformationSequence


def _derived_frames(dataset: Dataset) -> None:
    frame_type = ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]
    dataset.ImageType = frame_type
    dataset.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType = frame_type


def _cut_frames(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[: -4 * ROWS * COLUMNS]


# --- every case ---------------------------------------------------------------------------------------------------

LOCALIZER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
CAPTURE = {"SOPClassUID": SecondaryCaptureImageStorage, "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}
REFORMAT = {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}
TOLD_APART, COPIES = "told apart by", "identical copies of slices were left out"

CASES: tuple[Case, ...] = (
    _store("nothing wrong"),
    # which slices there are
    _refuse("one slice missing", "missing_slices", _drop(5)),
    _refuse("three slices missing", "missing_slices", _drop(3, 4, 8)),
    _store("first slice missing: a shorter scan, as right", _drop(0)),
    _refuse("two slices left", "too_few_slices", _drop(*range(2, 12))),
    _store("a file twice", _copy(4, same_pixels=True, same_uid=True), note=COPIES),
    _store("a slice twice under two instance UIDs", _copy(4, same_pixels=True, same_uid=False), note=COPIES),
    _refuse("one UID, two files that differ", "duplicate_instance", _copy(4, same_pixels=False, same_uid=True)),
    _refuse("one place, two slices that differ", "duplicate_position", _copy(4, same_pixels=False, same_uid=False)),
    _store("the whole series twice", _again(), note=COPIES),
    _refuse("two phases that nothing tells apart", "duplicate_position", _again(seed=7)),
    _store("two phases by temporal position", _phases("TemporalPositionIdentifier"), note=TOLD_APART, n_scans=2),
    _store("two phases by trigger time", _phases("TriggerTime"), note=TOLD_APART, n_scans=2),
    _store("two acquisitions at the same places", _again(seed=7, AcquisitionNumber=2), note=TOLD_APART, n_scans=2),
    _refuse("two series merged, other offset", "variable_spacing", _again(seed=7, offset_mm=0.8)),
    _store("two series merged, half a step apart", _merge(), note=TOLD_APART, n_scans=2),
    _store("merged so, numbered alike", _merge(number_from=1), note=TOLD_APART, n_scans=2),
    _store("merged so, by acquisition number", _merge(AcquisitionNumber=2), note=TOLD_APART, n_scans=2),
    _store("merged so, by kernel", _merge(ordered=True, ConvolutionKernel="B70f"), note=TOLD_APART, n_scans=2),
    _store("merged so, by exposure", _set(Exposure=120), _merge(ordered=True, Exposure=40), note=TOLD_APART, n_scans=2),
    _refuse("merged so, only the pixels tell", "mixed_acquisition", of=_moved_between),
    _refuse("merged so, too few for two scans", "mixed_acquisition", _merge(n=2, AcquisitionNumber=2), of=_few),
    _store("merged so, nothing tells", _merge(InstanceNumber=None), note="InstanceNumber does not follow position"),
    _store("overlapping slices at half the thickness", _set(SliceThickness=2.5), of=_overlapping),
    _store(
        "two acquisitions of other steps merged",
        _again(seed=7, n=9, step_mm=3.0, offset_mm=0.8, AcquisitionNumber=2),
        note=TOLD_APART,
        n_scans=2,
    ),
    _refuse("another body region merged, far away", "missing_slices", _again(seed=7, offset_mm=200.0)),
    # order
    _store("InstanceNumber scrambled", _scramble, note="InstanceNumber does not follow position"),
    _store("InstanceNumber missing", _set(InstanceNumber=None), note="InstanceNumber does not follow position"),
    _store("InstanceNumber reversed", _reverse),
    _store("file names scrambled", _scramble_names),
    _store("SliceLocation lies", _set(SliceLocation=17)),
    _store("feet first", _set(PatientPosition="FFS"), of=_orientation(-1, 0, 0, 0, 1, 0)),
    _store("prone", _set(PatientPosition="HFP"), of=_orientation(-1, 0, 0, 0, -1, 0)),
    _store("coronal slices", of=_orientation(1, 0, 0, 0, 0, -1)),
    _store("oblique slices", of=_orientation(0.8, 0.6, 0, -0.48, 0.64, 0.6)),
    # positions
    _refuse("steps that vary", "variable_spacing", of=_heights(0, 2.5, 5, 8, 11, 14, 15, 16, 17.3)),
    _refuse("steps of 2.5 mm, then of 5", "variable_spacing", of=_heights(0, 2.5, 5, 7.5, 12.5, 17.5, 22.5)),
    _refuse("one position 1 mm off along the axis", "variable_spacing", _move(6, z=1.0)),
    _refuse("one position 3 mm off sideways", "irregular_positions", _move(6, x=3.0)),
    _refuse("all slices at one position", "duplicate_position", _set(ImagePositionPatient=list(ORIGIN))),
    _refuse("no position in one slice", "missing_geometry", _set(6, ImagePositionPatient=None)),
    _refuse("no position anywhere, SliceLocation instead", "missing_geometry", _set(ImagePositionPatient=None)),
    _refuse("a position that is no number", "missing_geometry", _set(6, ImagePositionPatient=["nan", "nan", "nan"])),
    _refuse("no orientation", "missing_geometry", _set(ImageOrientationPatient=None)),
    _refuse("one slice turned by 5 degrees", "mixed_orientation", _rotate_header(6, 5)),
    _refuse("directions at no right angle", "not_orthogonal", _set(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0])),
    _refuse("directions of no unit length", "not_orthogonal", _set(ImageOrientationPatient=[2, 0, 0, 0, 2, 0])),
    _refuse("pixel spacing 0", "missing_geometry", _set(PixelSpacing=[0, 0])),
    _refuse("no pixel spacing", "missing_geometry", _set(PixelSpacing=None)),
    _store("slice thickness 0", _set(SliceThickness=0)),
    _store("slice thickness 5, step 2.5: overlapping slices", _set(SliceThickness=5)),
    # tilt
    _store("tilt of 5 degrees, tag agrees", _set(GantryDetectorTilt=5), of=_tilted(5), note="agrees"),
    _store("tilt of 15 degrees, tag agrees", _set(GantryDetectorTilt=-15), of=_tilted(15), note="agrees"),
    _store("tilt of 15 degrees, no tag", of=_tilted(15), note="GantryDetectorTilt is missing"),
    _store("tilt of 15 degrees, tag says 5", _set(GantryDetectorTilt=5), of=_tilted(15), note="positions were used"),
    _refuse("tag says 15 degrees, nothing leans", "tilt_mismatch", _set(GantryDetectorTilt=15)),
    # what does not belong together
    _refuse("one slice of another pixel spacing", "mixed_spacing", _set(6, PixelSpacing=[0.9, 0.9])),
    _refuse("one slice of another matrix", "mixed_matrix", _other_matrix),
    _refuse("one slice of another frame of reference", "mixed_frame_of_reference", _set(6, FrameOfReferenceUID="1.9")),
    _refuse("one slice of another patient", "mixed_patient", _set(6, PatientID="PATHOLOGY-2")),
    _refuse("one slice of another study", "mixed_study", _set(6, StudyInstanceUID="1.2.9.78")),
    _refuse("one slice of another rescale", "mixed_rescale", _one_stored_as(6, 2, -1024)),
    _refuse("one slice of another intercept", "mixed_rescale", _one_stored_as(6, 1, -1000)),
    # kinds
    _store("a localizer mixed in", _intruder(**LOCALIZER), also=("localizer",)),
    _store("a screen capture mixed in", _intruder(**CAPTURE), also=("derived",)),
    _refuse("reformats", "derived", _set(**REFORMAT)),
    _refuse("MR under a CT's geometry", "not_ct", _set(Modality="MR", SOPClassUID=MRImageStorage)),
    _refuse("text burned into the pixels, as the header says", "burned_in_annotation", _set(BurnedInAnnotation="YES")),
    _store("image type missing", _set(ImageType=None), _set(BurnedInAnnotation="NO"), note="image type is missing"),
    # HU
    _store("slope 2", _stored_as(2, -1024)),
    _store("slope 0.25", _stored_as(0.25, -1024, bits=16)),
    _store("intercept -8192, 16 bits", _stored_as(1, -8192, bits=16)),
    _store("signed 16 bits, intercept 0", _stored_as(1, 0, signed=True, bits=16)),
    _refuse("no rescale", "missing_rescale", _set(RescaleSlope=None, RescaleIntercept=None)),
    _refuse("rescale slope 0", "missing_rescale", _set(RescaleSlope=0)),
    _refuse("rescale to other units than HU", "missing_rescale", _set(RescaleType="US")),
    _refuse("slope 100: HU that no CT has", "hu_out_of_range", _set(RescaleSlope=100)),
    _store("padding of -2000", _pad(-2000), note="padding voxels were set to -1024 HU"),
    # pixels
    _store("garbage above the bits stored", _high_bits),
    _store("an old overlay above the bits stored", _old_overlay),
    _refuse("pixels of one slice cut off", "undecodable_pixels", _cut_pixels),
    _refuse("every file cut off", "undecodable_pixels", _cut_files),
    _refuse("raw pixels that claim to be JPEG-LS", "undecodable_pixels", _false_syntax),
    _refuse("more rows than there are", "undecodable_pixels", _set(Rows=2 * ROWS)),
    _refuse("fewer rows than there are", "undecodable_pixels", _set(Rows=ROWS // 2)),
    _refuse("rows and columns missing", "not_an_image", _set(Rows=None, Columns=None)),
    _refuse("no pixel data", "not_an_image", _set(PixelData=None)),
    _refuse("colour", "unsupported_pixels", _colour),
    _refuse("inverted grey, MONOCHROME1", "unsupported_pixels", _set(PhotometricInterpretation="MONOCHROME1")),
    _refuse("two frames in a classic instance", "unsupported_pixels", _set(NumberOfFrames=2)),
    _refuse("high bit in the wrong place", "unsupported_pixels", _set(HighBit=15)),
    # encodings
    _store("implicit VR", _syntax(ImplicitVRLittleEndian)),
    _store("big endian", _syntax(ExplicitVRBigEndian)),
    _store("deflated", _syntax(DeflatedExplicitVRLittleEndian)),
    _store("RLE", _syntax(RLELossless)),
    _store("JPEG-LS lossless", _syntax(JPEGLSLossless)),
    # UIDs
    _refuse("series UID empty", "missing_uid", _set(SeriesInstanceUID="")),
    _refuse("study UID empty", "missing_uid", _set(StudyInstanceUID="")),
    _refuse("instance UIDs empty", "missing_uid", _set(SOPInstanceUID=""), _without_meta_uids),
    _store("instance UIDs in the file meta only", _with_meta_uids, _set(SOPInstanceUID="", SOPClassUID="")),
    # enhanced multi-frame
    _store("enhanced, nothing wrong", _enhance),
    _store("enhanced, frames in any order", _shuffle, _enhance),
    _store("enhanced, tilted by 15 degrees", _enhance, of=_tilted(15), note="GantryDetectorTilt is missing"),
    _store("enhanced, a rescale for each frame", _one_stored_as(6, 2, -1024), _set(BitsStored=16, HighBit=15), _enhance,
           note="frames have a rescale each"),
    _refuse("enhanced, one frame missing", "missing_slices", _drop(5), _enhance),
    _refuse("enhanced, steps that vary", "variable_spacing", _enhance, of=_heights(0, 2.5, 5, 8, 11, 14, 15, 16, 17.3)),
    _refuse("enhanced, one frame turned by 5 degrees", "mixed_orientation", _rotate_header(6, 5), _enhance),
    _refuse("enhanced, two phases that nothing tells apart", "duplicate_position", _again(seed=7), _enhance),
    _refuse("enhanced, a frame without position", "missing_geometry", _enhance, _of_enhanced(_drop_position)),
    _refuse("enhanced, fewer groups than frames", "missing_geometry", _enhance, _of_enhanced(_drop_groups)),
    _refuse("enhanced, no rescale", "missing_rescale", _enhance, _of_enhanced(_drop_rescale)),
    _refuse("enhanced, a perfusion map", "derived", _enhance, _of_enhanced(_derived_frames)),
    _refuse("enhanced, pixels cut off", "undecodable_pixels", _enhance, _of_enhanced(_cut_frames)),
)  # fmt: skip
