"""Findings as a DICOM Structured Report: a TID 1500 Measurement Report (PS3.16), as Comprehensive 3D SR.

Volumes are TID 1411 groups that refer to their segments. Boxes are TID 1411 groups too, each drawn as the ellipsoid
that fits into it: its six points give centre and edges back exactly. How many there are of each kind, none too, and
probabilities of classes are TID 1501 groups.
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import highdicom as hd
import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM

from tomoray.dicom.concepts import Concept, concept_of, title
from tomoray.dicom.derived import as_sources, date_of, finished, hashed_uid
from tomoray.dicom.seg import segmentation_reference, tracking_uid

_Group = sr.MeasurementsAndQualitativeEvaluations | sr.VolumetricROIMeasurementsAndQualitativeEvaluations

_MILLILITER = hd.sr.CodedConcept("ml", "UCUM", "milliliter")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesion:
    """A box around something that was found.

    Attributes:
        center_lps_mm: patient coordinates (x, y, z).
        axes_lps: unit vectors of the box's edges, one a row.
        size_mm: length of each of these edges.
        probability: 0 to 1.
    """

    label: str
    center_lps_mm: Sequence[float]
    size_mm: Sequence[float]
    axes_lps: Sequence[Sequence[float]]
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """What a report says.

    Attributes:
        volumes_ml: by label, in the order of the masks.
        lesions: boxes.
        counts: lesions, by what was looked for: 0 says that none was found.
        probabilities: of classes, 0 to 1.
    """

    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    lesions: Sequence[Lesion] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    probabilities: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.volumes_ml or self.lesions or self.counts or self.probabilities)


def write_report(
    measurements: Measurements,
    headers: Sequence[Dataset],
    *,
    algorithm: str,
    algorithm_version: str,
    uid_seed: str | None,
    series_description: str,
    segmented: bool,
    made: datetime.datetime | None = None,
) -> bytes:
    """The measurements as one DICOM file, a report on the series that `headers` describe.

    Args:
        measurements: at least one.
        headers: the source's headers, without pixels, in plane order; not changed.
        algorithm: name of what measured.
        algorithm_version: its version.
        uid_seed: the same seed, measurements, headers and `made` give the same bytes. None: new UIDs.
        series_description: up to 64 characters.
        segmented: volumes refer to the BINARY Segmentation that `write_segmentation` makes with the same seed; where
            there is none, they refer to the images.
        made: the moment that it carries as its own. None: that of the source where there is a seed, else now.

    Raises:
        ValueError: nothing was measured, or there is no header, or a segmentation without a seed.
    """
    if not headers or not measurements:
        raise ValueError("a report needs a measurement and a header")
    if segmented and uid_seed is None:
        raise ValueError("a report that refers to a segmentation needs its seed")
    sources = as_sources(headers)
    seed = uuid.uuid4().hex if uid_seed is None else uid_seed
    date, time = date_of(headers[0] if uid_seed is not None else None, made)
    segmentation = segmentation_reference(seed, headers) if segmented else None
    groups = _Groups(seed, sources, segmentation, sr.AlgorithmIdentification(algorithm, algorithm_version))
    device = sr.DeviceObserverIdentifyingAttributes(
        hashed_uid("TomoRay", algorithm, algorithm_version), "TomoRay", "TomoRay", algorithm
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, device),
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[
            *(
                groups.volume(number, label, volume_ml)
                for number, (label, volume_ml) in enumerate(measurements.volumes_ml.items(), start=1)
            ),
            *(groups.lesion(number, lesion) for number, lesion in enumerate(measurements.lesions, start=1)),
            *(groups.count(label, count) for label, count in measurements.counts.items()),
            *(groups.probability(label, value) for label, value in measurements.probabilities.items()),
        ],
    )
    report = sr.Comprehensive3DSR(
        evidence=[*sources, *([segmentation] if segmentation else [])],
        content=content,
        series_instance_uid=hashed_uid(seed, "report series"),
        series_number=1001,
        series_description=series_description,
        sop_instance_uid=hashed_uid(seed, "report"),
        instance_number=1,
        manufacturer="TomoRay",
        manufacturer_model_name=algorithm,
        software_versions=algorithm_version,
        device_serial_number="0",
        is_complete=True,
    )
    report.ContentDate, report.SeriesDate = DA(date), DA(date)
    report.ContentTime, report.SeriesTime = TM(time), TM(time)
    return finished(report, headers[0], (date, time))


class _Groups:
    """Measurement groups that share their source and their algorithm."""

    def __init__(
        self, seed: str, sources: Sequence[Dataset], segmentation: Dataset | None, algorithm: sr.AlgorithmIdentification
    ) -> None:
        self._seed = seed
        self._sources = sources
        self._segmentation = segmentation
        self._algorithm = algorithm
        self._series = sr.SourceSeriesForSegmentation(sources[0].SeriesInstanceUID)

    def volume(self, number: int, label: str, volume_ml: float) -> _Group:
        """The volume of segment `number`."""
        measured = sr.Measurement(codes.SCT.Volume, volume_ml, _MILLILITER)
        tracked = sr.TrackingIdentifier(tracking_uid(self._seed, label), label)
        if self._segmentation is None:
            return sr.MeasurementsAndQualitativeEvaluations(
                tracked, measurements=[measured], **self._found(concept_of(label))
            )
        segment = sr.ReferencedSegment(
            self._segmentation.SOPClassUID, self._segmentation.SOPInstanceUID, number, source_series=self._series
        )
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracked, referenced_segment=segment, measurements=[measured], **self._found(concept_of(label))
        )

    def lesion(self, number: int, lesion: Lesion) -> _Group:
        """A box, its edges and its probability."""
        half = np.asarray(lesion.axes_lps, float) * np.asarray(lesion.size_mm, float)[:, None] / 2
        ends = np.stack([-half, half], axis=1).reshape(6, 3) + np.asarray(lesion.center_lps_mm, float)
        name = f"{lesion.label} {number}"
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            sr.TrackingIdentifier(hashed_uid(self._seed, "lesion", name), name),
            referenced_volume_surface=sr.VolumeSurface(
                sr.GraphicTypeValues3D.ELLIPSOID,
                ends,
                self._sources[0].FrameOfReferenceUID,
                source_series=self._series,
            ),
            measurements=[
                sr.Measurement(codes.SCT.Diameter, float(max(lesion.size_mm)), codes.UCUM.Millimeter),
                _probability(lesion.probability),
            ],
            **self._found(concept_of(lesion.label)),
        )

    def count(self, label: str, count: int) -> _Group:
        """How many lesions there are of a kind."""
        return sr.MeasurementsAndQualitativeEvaluations(
            sr.TrackingIdentifier(hashed_uid(self._seed, "count", label), label),
            measurements=[sr.Measurement(codes.SCT.NumberOfLesions, count, codes.UCUM.NoUnits)],
            **self._found(concept_of(label)),
        )

    def probability(self, label: str, value: float) -> _Group:
        """How probable a class is."""
        code = hashlib.sha256(label.encode()).hexdigest()[:12].upper()
        kind = sr.CodedConcept(code, "99TOMORAY", title(label)[:64])
        return sr.MeasurementsAndQualitativeEvaluations(
            sr.TrackingIdentifier(hashed_uid(self._seed, "class", label), label),
            finding_type=kind,
            algorithm_id=self._algorithm,
            measurements=[_probability(value)],
        )

    def _found(self, concept: Concept) -> dict[str, Any]:
        sites = [sr.FindingSite(concept.region)] if concept.region else None
        return {
            "finding_category": concept.category,
            "finding_type": concept.kind,
            "finding_sites": sites,
            "algorithm_id": self._algorithm,
        }


def _probability(value: float) -> sr.Measurement:
    return sr.Measurement(codes.DCM.Probability, value, codes.UCUM.NoUnits)
