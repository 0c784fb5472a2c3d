"""Masks to DICOM Segmentation (PS3.3 A.51) and back.

Legend: masks are uint8 arrays [z, y, x] holding 0 or 1; a label's name is the slug of its Segment Label
("Left Lung" -> "left-lung").
"""

from __future__ import annotations

import datetime
import hashlib
import io
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DA, DT, TM

from tomoray.dicom.frames import FrameGroups, Pixels, decode_frames, frame_places
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.volume import Mask, ScanInfo

# Patient and study are passed on as the source writes them; highdicom would judge names, dates and character sets.
_AS_IN_SOURCE = (
    "SpecificCharacterSet",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# What the source says of its own de-identification (PS3.3 C.7.1.1, C.12.1)
_CONFORMANCE = (
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
)


class Concept(NamedTuple):
    """Coded meaning of a segment (PS3.16 CID 7150 and 7159), and where in the body it lies if that is known."""

    category: Code
    kind: Code
    region: Code | None = None


_ORGAN, _ABNORMAL = codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure
_LUNG = Concept(_ORGAN, codes.SCT.Lung)
_NODULE = Concept(_ABNORMAL, codes.SCT.Nodule, codes.SCT.Lung)
_TUMOUR = Concept(_ABNORMAL, codes.SCT.Neoplasm)
_LESION = Concept(_ABNORMAL, codes.SCT.Lesion)
_TISSUE = Concept(codes.SCT.Tissue, codes.SCT.Tissue)
CONCEPTS: Mapping[str, Concept] = {
    "lung": _LUNG,
    "lungs": _LUNG,
    "nodule": _NODULE,
    "nodules": _NODULE,
    "gtv": _TUMOUR,
    "tumor": _TUMOUR,
    "tumour": _TUMOUR,
    "neoplasm": _TUMOUR,
    "mass": Concept(_ABNORMAL, codes.SCT.Mass),
    "lesion": _LESION,
    "lesions": _LESION,
    "cyst": Concept(_ABNORMAL, codes.SCT.Cyst),
    "liver": Concept(_ORGAN, codes.SCT.Liver),
    "heart": Concept(_ORGAN, codes.SCT.Heart),
    "aorta": Concept(_ORGAN, codes.SCT.Aorta),
    "trachea": Concept(_ORGAN, codes.SCT.Trachea),
    "spleen": Concept(_ORGAN, codes.SCT.Spleen),
}


def write_segmentation(
    masks: Mapping[str, Mask],
    headers: Sequence[Dataset],
    *,
    algorithm: str,
    algorithm_version: str,
    uid_seed: str | None,
    series_description: str,
) -> bytes:
    """The masks as one DICOM file: a BINARY Segmentation of the series that `headers` describe.

    Segments are numbered 1, 2, … in the order of `masks`. Planes without a voxel of a segment are left out; where
    every mask is empty, the first plane alone is kept, as a file must have a frame.

    Args:
        masks: one or more, uint8 [z, y, x], overlapping or not; plane z lies where `headers[z]` says.
        headers: the source's headers, without pixels, in plane order; not changed.
        algorithm: name of what drew the masks.
        algorithm_version: its version.
        uid_seed: the same seed, masks and headers give the same bytes, dated as the source is. None: new UIDs, now.
        series_description: up to 64 characters.

    Raises:
        ValueError: no mask, or a mask whose shape is not that of the series.
    """
    shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns)) if headers else (0, 0, 0)
    for name, mask in masks.items():
        if mask.shape != shape:
            raise ValueError(f"mask {name!r} is {mask.shape}; its series is {shape}")
    if not masks or not headers:
        raise ValueError("a segmentation needs a mask and a header")
    pixels, planes = _stack(list(masks.values()))
    spacing_mm = _plane_spacing(headers)
    sources = [_source(header, spacing_mm) for header in headers]
    kept = set(planes)
    seed = uuid.uuid4().hex if uid_seed is None else uid_seed
    date, time = _now() if uid_seed is None else _source_date(headers[0])
    segmentation = hd.seg.Segmentation(
        source_images=[sources[z] for z in planes],
        further_source_images=[source for z, source in enumerate(sources) if z not in kept] or None,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe(number, name, algorithm, algorithm_version, seed) for number, name in enumerate(masks, start=1)
        ],
        series_instance_uid=hashed_uid(seed, "series"),
        series_number=1000,
        series_description=series_description,
        sop_instance_uid=hashed_uid(seed, "instance"),
        instance_number=1,
        manufacturer="TomoRay",
        manufacturer_model_name=algorithm,
        software_versions=algorithm_version,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=series_description,
        content_date=date,
        content_time=time,
        series_date=date,
        series_time=time,
        omit_empty_frames=bool(pixels.any()),
    )
    for keyword in (*_AS_IN_SOURCE, *_CONFORMANCE):
        if keyword in headers[0]:
            segmentation[keyword] = headers[0][keyword]
    segmentation.InstanceCreationDate, segmentation.InstanceCreationTime = DA(date), TM(time)
    for equipment in segmentation.ContributingEquipmentSequence:
        equipment.ContributionDateTime = DT(date + time)
    dimensions = hashed_uid(seed, "dimensions")
    for item in [*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence]:
        item.DimensionOrganizationUID = dimensions
    file = io.BytesIO()
    segmentation.save_as(file)
    return file.getvalue()


def read_segmentation(dataset: Dataset, geometry: Geometry) -> dict[str, Mask]:
    """Masks of a Segmentation on a scan's grid, by label name in the order of segment numbers.

    Each frame is placed by its own position and orientation, whatever the order of frames; it may be a part of a
    plane and its rows may run along any axis of the grid. Planes without a frame are empty. Segments of the same
    name become one mask.

    Args:
        dataset: BINARY or LABELMAP Segmentation with pixels, in any transfer syntax that pydicom decodes.
        geometry: the grid of the scan.

    Raises:
        Refused: LABEL_UNSUPPORTED (FRACTIONAL, tiled, or parts missing), LABEL_GEOMETRY_MISMATCH (a frame off the
            grid), UNDECODABLE_PIXELS.
    """
    kind = str(dataset.get("SegmentationType", "none"))
    if kind not in {"BINARY", "LABELMAP"}:
        raise Refused(Reason.LABEL_UNSUPPORTED, f"SegmentationType is {kind}; wanted BINARY or LABELMAP")
    try:
        names = {int(item.SegmentNumber): _label_name(item) for item in dataset.SegmentSequence}
    except (AttributeError, TypeError) as error:
        raise Refused(Reason.LABEL_UNSUPPORTED, "a segment has no number") from error
    names.pop(0, None)  # the background of a LABELMAP
    masks: dict[str, Mask] = {names[n]: np.zeros(geometry.shape_zyx, np.uint8) for n in sorted(names)}
    places = frame_places(dataset, geometry)
    for (groups, place), frame in zip(places, decode_frames(dataset, len(places)), strict=True):
        for number, inside in _segments(groups, frame) if kind == "BINARY" else _values(frame):
            if number not in names:
                raise Refused(Reason.LABEL_UNSUPPORTED, f"segment {number} has pixels but no description")
            view = place.of(masks[names[number]])
            view |= inside
    return masks


def archived_headers(geometry: Geometry, info: ScanInfo, described: Mapping[str, Any]) -> list[Dataset]:
    """CT headers in plane order for a scan of an archive, enough to write a Segmentation of it.

    All identifiers are the archive's pseudonyms; dates are unknown and empty.

    Args:
        geometry: of the scan.
        info: its provenance.
        described: its header as it was archived (`Scan.header`), which says how it was de-identified. A scan of volume
            files has none: its only identifiers are the pseudonyms, so identity is removed.

    Raises:
        ValueError: `info` does not have one instance UID a plane.
    """
    planes, rows, columns = geometry.shape_zyx
    if len(info.uids.instances) != planes:
        raise ValueError(f"{len(info.uids.instances)} instance UIDs for {planes} planes")
    matrix, (z_mm, y_mm, x_mm) = geometry.matrix, geometry.spacing_zyx_mm
    orientation = [*(matrix[:3, 0] / x_mm), *(matrix[:3, 1] / y_mm)]
    headers = []
    for z, instance in enumerate(info.uids.instances):
        header = Dataset()
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, instance
        header.StudyInstanceUID, header.SeriesInstanceUID = info.uids.study, info.uids.series
        header.FrameOfReferenceUID = info.uids.frame_of_reference
        header.Modality, header.InstanceNumber = "CT", z + 1
        header.PatientID, header.PatientSex = info.patient_id, info.sex or ""
        header.Manufacturer, header.ManufacturerModelName = info.manufacturer or "", info.model or ""
        header.Rows, header.Columns = rows, columns
        header.PixelSpacing = [_decimal(y_mm), _decimal(x_mm)]
        header.SliceThickness = _decimal(info.slice_thickness_mm or z_mm)
        header.SpacingBetweenSlices = _decimal(z_mm)
        header.ImageOrientationPatient = [_decimal(v) for v in orientation]
        header.ImagePositionPatient = [_decimal(v) for v in matrix[:3, 2] * z + matrix[:3, 3]]
        header.update(_conformance(described))
        headers.append(header)
    return headers


def _conformance(described: Mapping[str, Any]) -> Dataset:
    said = Dataset()
    said.PatientIdentityRemoved = described.get("PatientIdentityRemoved", "YES")
    if said.PatientIdentityRemoved != "YES":
        return said
    said.DeidentificationMethod = described.get("DeidentificationMethod", "TomoRay, keyed pseudonyms")
    said.LongitudinalTemporalInformationModified = "REMOVED"  # whatever was archived: no date is in these headers
    for code in described.get("DeidentificationMethodCodeSequence", ()):
        item = Dataset()
        for keyword, value in code.items():
            setattr(item, keyword, value)
        said.DeidentificationMethodCodeSequence = [*said.get("DeidentificationMethodCodeSequence", ()), item]
    return said


def hashed_uid(*parts: str) -> str:
    """A DICOM UID (PS3.5 B.2, `2.25.` + 128-bit number) from the SHA-256 of `parts`."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def slug(name: str) -> str:
    """`name` in lower case, with a hyphen for whatever is neither letter nor digit: "Left Lung" -> "left-lung"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _stack(masks: list[Mask]) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Pixels as highdicom wants them, on the planes where a mask has a voxel (else on the first), and those planes.

    Masks that do not overlap become one label map [z, y, x]; others stay apart, [z, y, x, segment], which costs
    highdicom far more memory.
    """
    used = np.zeros(masks[0].shape[0], bool)
    for mask in masks:
        used |= mask.any(axis=(1, 2))
    planes: list[int] = np.flatnonzero(used).tolist() or [0]
    pixels = np.zeros((len(planes), *masks[0].shape[1:]), np.uint8)
    for number, mask in enumerate(masks, start=1):
        inside = mask[planes] > 0
        if len(masks) > 255 or pixels[inside].any():
            return np.moveaxis(np.stack([(m[planes] > 0).view(np.uint8) for m in masks]), 0, -1), planes
        pixels[inside] = number
    return pixels, planes


def _describe(number: int, name: str, algorithm: str, version: str, seed: str) -> hd.seg.SegmentDescription:
    """Segment `number`, whose label reads `name` with a capital."""
    label = slug(name)
    concept = CONCEPTS.get(label) or (_LESION if re.search("lesion|tumou?r|nodul|metasta", label) else _TISSUE)
    family = codes.DCM.ArtificialIntelligence
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:1].upper() + name[1:],
        segmented_property_category=concept.category,
        segmented_property_type=concept.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(algorithm, family, version),
        tracking_uid=hashed_uid(seed, "segment", name),
        tracking_id=name,
        anatomic_regions=[concept.region] if concept.region else None,
    )


def _source(header: Dataset, spacing_mm: float) -> Dataset:
    """A copy of `header` that highdicom takes.

    `_AS_IN_SOURCE` is empty in it; the frame of reference and the slice thickness, which real series may leave out,
    are there in any case.
    """
    source = Dataset()
    source.update({element.tag: element for element in header if element.keyword not in _AS_IN_SOURCE})
    for keyword in _AS_IN_SOURCE[1:]:
        setattr(source, keyword, "")
    for keyword, value in (
        ("FrameOfReferenceUID", hashed_uid(str(source.SeriesInstanceUID), "frame of reference")),
        ("SliceThickness", _decimal(spacing_mm)),
    ):
        if not source.get(keyword):
            source.pop(keyword, None)  # shared with `header`, which keeps it
            setattr(source, keyword, value)
    return source


def _plane_spacing(headers: Sequence[Dataset]) -> float:
    """Distance between the first two planes in mm; 1 where there is one plane."""
    positions = [np.array(header.ImagePositionPatient, float) for header in headers[:2]]
    return float(np.linalg.norm(positions[-1] - positions[0])) or 1.0


def _now() -> tuple[str, str]:
    now = datetime.datetime.now()
    return now.strftime("%Y%m%d"), now.strftime("%H%M%S")


def _source_date(header: Dataset) -> tuple[str, str]:
    """Day and time of the source's content, else of its study, else the first day of 1900."""
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date, time = str(header.get(f"{kind}Date") or ""), str(header.get(f"{kind}Time") or "")
        if re.fullmatch(r"\d{8}", date):
            return date, time if re.fullmatch(r"\d{6}(\.\d{1,6})?", time) else "000000"
    return "19000101", "000000"


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    text = f"{value:.10g}"
    return text if len(text) <= 16 else f"{value:.8e}"


def _segments(groups: FrameGroups, frame: Pixels) -> Iterator[tuple[int, Mask]]:
    """The one segment that a frame of a BINARY segmentation is about."""
    yield int(groups.item("SegmentIdentificationSequence").ReferencedSegmentNumber), (frame > 0).view(np.uint8)


def _values(frame: Pixels) -> Iterator[tuple[int, Mask]]:
    """The segments that a frame of a LABELMAP holds."""
    for number in np.unique(frame[frame > 0]).tolist():
        yield number, (frame == number).view(np.uint8)


def _label_name(segment: Dataset) -> str:
    """The slug of a segment's label, else of its coded type, else its number."""
    kinds = segment.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
    texts = (segment.get("SegmentLabel"), kinds[0].get("CodeMeaning"), f"segment {segment.SegmentNumber}")
    return next(name for text in texts if (name := slug(str(text or ""))))
