"""Masks to DICOM Segmentation (PS3.3 A.51) and back.

Legend: masks are uint8 arrays [z, y, x] holding 0 or 1; a label's name is the slug of its Segment Label
("Left Lung" -> "left-lung").
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, SegmentationStorage

from tomoray.dicom.concepts import concept_of, slug, title
from tomoray.dicom.derived import as_sources, date_of, decimal_string, finished, hashed_uid
from tomoray.dicom.frames import FrameGroups, Pixels, decode_frames, frame_places
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.volume import Mask, ScanInfo

Kind = Literal["BINARY", "LABELMAP"]

_LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"  # pydicom has no name for it yet


def write_segmentation(
    masks: Mapping[str, Mask],
    headers: Sequence[Dataset],
    *,
    algorithm: str,
    algorithm_version: str,
    uid_seed: str | None,
    series_description: str,
    kind: Kind = "BINARY",
    made: datetime.datetime | None = None,
) -> bytes:
    """The masks as one DICOM file: a Segmentation of the series that `headers` describe.

    Segments are numbered 1, 2, … in the order of `masks`. A BINARY one has a frame for each plane of each segment, a
    LABELMAP one frame a plane, in which the last of the masks wins where they overlap. Planes without a voxel are left
    out; where every mask is empty, the first plane alone is kept, as a file must have a frame.

    Args:
        masks: one or more, uint8 [z, y, x], overlapping or not; plane z lies where `headers[z]` says.
        headers: the source's headers, without pixels, in plane order; not changed.
        algorithm: name of what drew the masks.
        algorithm_version: its version.
        uid_seed: the same seed, masks, headers and `made` give the same bytes. None: new UIDs.
        series_description: up to 64 characters.
        kind: how voxels are stored; few readers know LABELMAP yet.
        made: the moment that it carries as its own. None: that of the source where there is a seed, else now.

    Raises:
        ValueError: no mask, or a mask whose shape is not that of the series.
    """
    shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns)) if headers else (0, 0, 0)
    for name, mask in masks.items():
        if mask.shape != shape:
            raise ValueError(f"mask {name!r} is {mask.shape}; its series is {shape}")
    if not masks or not headers:
        raise ValueError("a segmentation needs a mask and a header")
    pixels, planes = _stack(list(masks.values()), kind)
    sources = as_sources(headers)
    kept = set(planes)
    seed = uuid.uuid4().hex if uid_seed is None else uid_seed
    date, time = date_of(headers[0] if uid_seed is not None else None, made)
    series, instance = _uids(seed, kind)
    segmentation = hd.seg.Segmentation(
        source_images=[sources[z] for z in planes],
        further_source_images=[source for z, source in enumerate(sources) if z not in kept] or None,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[
            _describe(number, name, algorithm, algorithm_version, seed) for number, name in enumerate(masks, start=1)
        ],
        series_instance_uid=series,
        series_number=1000,
        series_description=series_description,
        sop_instance_uid=instance,
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
    dimensions = hashed_uid(seed, "dimensions")
    for item in [*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence]:
        item.DimensionOrganizationUID = dimensions
    return finished(segmentation, headers[0], (date, time))


def segmentation_reference(uid_seed: str, headers: Sequence[Dataset], kind: Kind = "BINARY") -> Dataset:
    """What names the file that `write_segmentation` makes with this seed: its study, series, instance and class."""
    named = Dataset()
    named.StudyInstanceUID = headers[0].StudyInstanceUID
    named.SeriesInstanceUID, named.SOPInstanceUID = _uids(uid_seed, kind)
    named.SOPClassUID = _LABELMAP_STORAGE if kind == "LABELMAP" else SegmentationStorage
    return named


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
        header.PixelSpacing = [decimal_string(y_mm), decimal_string(x_mm)]
        header.SliceThickness = decimal_string(info.slice_thickness_mm or z_mm)
        header.SpacingBetweenSlices = decimal_string(z_mm)
        header.ImageOrientationPatient = [decimal_string(v) for v in orientation]
        header.ImagePositionPatient = [decimal_string(v) for v in matrix[:3, 2] * z + matrix[:3, 3]]
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


def tracking_uid(uid_seed: str, label: str) -> str:
    """What names a region across files: its segment, and what is measured of it."""
    return hashed_uid(uid_seed, "segment", label)


def _uids(seed: str, kind: Kind) -> tuple[str, str]:
    """Of the series and of the instance: each kind is a file of its own."""
    parts = (seed,) if kind == "BINARY" else (seed, kind)
    return hashed_uid(*parts, "series"), hashed_uid(*parts, "instance")


def _stack(masks: list[Mask], kind: Kind) -> tuple[npt.NDArray[np.uint8 | np.uint16], list[int]]:
    """Pixels as highdicom wants them, on the planes where a mask has a voxel (else on the first), and those planes.

    Masks that do not overlap become one label map [z, y, x], as do all that are to be stored so; others stay apart,
    [z, y, x, segment], which costs highdicom far more memory.
    """
    used = np.zeros(masks[0].shape[0], bool)
    for mask in masks:
        used |= mask.any(axis=(1, 2))
    planes: list[int] = np.flatnonzero(used).tolist() or [0]
    pixels = np.zeros((len(planes), *masks[0].shape[1:]), np.uint8 if len(masks) <= 255 else np.uint16)
    for number, mask in enumerate(masks, start=1):
        inside = mask[planes] > 0
        if kind == "BINARY" and pixels[inside].any():
            return np.moveaxis(np.stack([(m[planes] > 0).view(np.uint8) for m in masks]), 0, -1), planes
        pixels[inside] = number
    return pixels, planes


def _describe(number: int, name: str, algorithm: str, version: str, seed: str) -> hd.seg.SegmentDescription:
    """Segment `number`, whose label reads `name` with a capital."""
    concept = concept_of(name)
    family = codes.DCM.ArtificialIntelligence
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=title(name),
        segmented_property_category=concept.category,
        segmented_property_type=concept.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(algorithm, family, version),
        tracking_uid=tracking_uid(seed, name),
        tracking_id=name,
        anatomic_regions=[concept.region] if concept.region else None,
    )


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
