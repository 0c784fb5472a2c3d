"""The scanner of the phantom: noise and kernel of the images, and how each vendor writes them as DICOM."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import JPEG2000LosslessEncoder, JPEGLSLosslessEncoder
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless
from scipy import ndimage

from tomoray.dicom.derived import hashed_uid
from tomoray.phantom.canvas import Field

SYNTAXES = (ExplicitVRLittleEndian, JPEGLSLossless, JPEG2000Lossless)
HIGHEST_HU = 3071


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanner:
    """A vendor's habits.

    Attributes:
        kernels: names of a soft and of a sharp kernel.
        signed: 16 bits signed; otherwise 12 bits unsigned.
        padding: stored value outside the circle of reconstruction, or None where the whole square is reconstructed.
    """

    manufacturer: str
    model: str
    software: str
    kernels: tuple[str, str]
    signed: bool
    intercept: int
    padding: int | None = None


SCANNERS = (
    Scanner(
        manufacturer="SIEMENS",
        model="SOMATOM Definition AS+",
        software="syngo CT 2012B",
        kernels=("B30f", "B70f"),
        signed=False,
        intercept=-1024,
    ),
    Scanner(
        manufacturer="GE MEDICAL SYSTEMS",
        model="LightSpeed VCT",
        software="gmp_vct.42",
        kernels=("STANDARD", "LUNG"),
        signed=True,
        intercept=-1024,
        padding=-2000,
    ),
    Scanner(
        manufacturer="Philips",
        model="Brilliance 64",
        software="4.1.6",
        kernels=("B", "L"),
        signed=False,
        intercept=-1024,
    ),
    Scanner(
        manufacturer="CANON_MEC",
        model="Aquilion ONE",
        software="V8.30",
        kernels=("FC08", "FC52"),
        signed=True,
        intercept=0,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """One acquisition: who, on what, and where its voxels are.

    Attributes:
        position_lps_mm: centre of the first voxel of the lowest plane.
        head_first: HFS, else FFS; both on the back.
        date, time: as DICOM writes them.
        uid_seed: from which every UID is derived.
    """

    scanner: Scanner
    sharp: bool
    syntax: UID
    rows: int
    planes: int
    pixel_mm: float
    slice_mm: float
    position_lps_mm: tuple[float, float, float]
    head_first: bool
    patient_id: str
    patient_name: str
    sex: str
    age_years: int
    height_m: float
    weight_kg: int
    contrast: bool
    date: str
    time: str
    table_height_mm: float
    tube_ma: int
    uid_seed: str

    @property
    def kernel(self) -> str:
        """The kernel's name, as the vendor has it."""
        return self.scanner.kernels[self.sharp]


def acquire(hu: Field, scan: Scan, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Blur and noise of the scan's kernel and slice thickness, then whole HU [z, y, x]. Changes `hu`.

    A soft kernel blurs, and its noise is coarse and weak; a sharp one overshoots at edges, and its noise is fine and
    strong. Noise grows with the thickness of what the rays cross, and as 1 / sqrt(slice thickness).
    """
    sigma = (0.42 if scan.sharp else 0.75) / scan.pixel_mm
    _blur(hu, (0.30, sigma, sigma))
    if scan.sharp:
        wide = hu.copy()
        _blur(wide, (0, 1.0, 1.0))
        hu += np.float32(0.45) * (hu - wide)
        del wide
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    if scan.sharp:
        coarse = noise.copy()
        _blur(coarse, (0, 1.6, 1.6))
        _blur(noise, (0.35, 0.45, 0.45))
        noise -= coarse
        del coarse
    else:
        _blur(noise, (0.45, 0.95, 0.95))
    strength = (34.0 if scan.sharp else 11.0) * np.sqrt(2.0 / scan.slice_mm * 220 / scan.tube_ma)
    across = np.linspace(-1, 1, scan.rows, dtype=np.float32) ** 2
    centre = np.exp(-(across[:, None] * np.float32(2.2) + across[None, :] * np.float32(1.1)))
    noise *= np.float32(strength / noise[:: max(1, len(noise) // 8)].std()) * (
        np.float32(0.55) + np.float32(0.45) * centre
    )
    hu += noise
    np.rint(hu, out=hu)
    np.clip(hu, -1024, HIGHEST_HU, out=hu)
    return hu.astype(np.int16)


def slice_headers(scan: Scan) -> list[Dataset]:
    """Headers of all slices, without pixels, from the lowest plane up."""
    common = _common(scan)
    x, y, z0 = scan.position_lps_mm
    result = []
    for plane in range(scan.planes):
        number = scan.planes - plane if scan.head_first else plane + 1
        z = z0 + plane * scan.slice_mm
        header = Dataset()
        header.update(common)
        header.SOPInstanceUID = hashed_uid(scan.uid_seed, "instance", str(number))
        header.InstanceNumber = number
        header.ImagePositionPatient = [f"{x:.6g}", f"{y:.6g}", f"{z:.6g}"]
        header.SliceLocation = f"{z:.6g}"
        result.append(header)
    return result


def encode_slices(scan: Scan, hu: npt.NDArray[np.int16], slices: list[Dataset]) -> Iterator[tuple[int, bytes]]:
    """Each plane as a DICOM file: its instance number and bytes."""
    stored = hu - np.int16(scan.scanner.intercept)
    if scan.scanner.padding is not None:
        axis = np.arange(scan.rows, dtype=np.float32) - (scan.rows - 1) / 2
        outside = axis[:, None] ** 2 + axis[None, :] ** 2 > (scan.rows / 2) ** 2
        stored[:, outside] = scan.scanner.padding
    for header, plane in zip(slices, stored, strict=True):
        dataset = Dataset()
        dataset.update(header)
        raw = plane.tobytes() if scan.scanner.signed else plane.astype(np.uint16).tobytes()
        _add_pixels(dataset, scan, raw)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        meta.TransferSyntaxUID = scan.syntax
        dataset.file_meta = meta
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        yield int(header.InstanceNumber), file.getvalue()


def _add_pixels(dataset: Dataset, scan: Scan, raw: bytes) -> None:
    if scan.syntax == ExplicitVRLittleEndian:
        dataset.PixelData = raw
    else:
        encoder = JPEGLSLosslessEncoder if scan.syntax == JPEGLSLossless else JPEG2000LosslessEncoder
        frame = encoder.encode(
            raw,
            rows=scan.rows,
            columns=scan.rows,
            bits_allocated=16,
            bits_stored=dataset.BitsStored,
            pixel_representation=dataset.PixelRepresentation,
            samples_per_pixel=1,
            number_of_frames=1,
            photometric_interpretation="MONOCHROME2",
        )
        dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OW" if scan.syntax == ExplicitVRLittleEndian else "OB"


def _common(scan: Scan) -> Dataset:
    """What all slices say alike."""
    scanner = scan.scanner
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "StudyDate": scan.date,
        "SeriesDate": scan.date,
        "AcquisitionDate": scan.date,
        "ContentDate": scan.date,
        "StudyTime": scan.time,
        "SeriesTime": scan.time,
        "AcquisitionTime": scan.time,
        "ContentTime": scan.time,
        "AccessionNumber": "",
        "Modality": "CT",
        "Manufacturer": scanner.manufacturer,
        "InstitutionName": "TomoRay phantom",
        "ReferringPhysicianName": "",
        "StudyDescription": "CT THORAX",
        "SeriesDescription": f"THORAX {scan.slice_mm:g} {scan.kernel}",
        "ManufacturerModelName": scanner.model,
        "PatientName": scan.patient_name,
        "PatientID": scan.patient_id,
        "PatientBirthDate": "",
        "PatientSex": scan.sex,
        "PatientAge": f"{scan.age_years:03d}Y",
        "PatientSize": f"{scan.height_m:.2f}",
        "PatientWeight": str(scan.weight_kg),
        "BodyPartExamined": "CHEST",
        "ScanOptions": "HELIX",
        "SliceThickness": f"{scan.slice_mm:g}",
        "KVP": "120",
        "SpacingBetweenSlices": f"{scan.slice_mm:g}",
        "DataCollectionDiameter": "500",
        "SoftwareVersions": scanner.software,
        "ProtocolName": "Thorax",
        "ReconstructionDiameter": f"{scan.rows * scan.pixel_mm:.6g}",
        "GantryDetectorTilt": "0",
        "TableHeight": f"{scan.table_height_mm:g}",
        "RotationDirection": "CW",
        "ExposureTime": "500",
        "XRayTubeCurrent": str(scan.tube_ma),
        "Exposure": str(scan.tube_ma // 2),
        "FilterType": "BODY",
        "ConvolutionKernel": scan.kernel,
        "PatientPosition": "HFS" if scan.head_first else "FFS",
        "StudyInstanceUID": hashed_uid(scan.uid_seed, "study"),
        "SeriesInstanceUID": hashed_uid(scan.uid_seed, "series"),
        "StudyID": "1",
        "SeriesNumber": "2",
        "AcquisitionNumber": "1",
        "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "FrameOfReferenceUID": hashed_uid(scan.uid_seed, "frame of reference"),
        "PositionReferenceIndicator": "",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": scan.rows,
        "Columns": scan.rows,
        "PixelSpacing": [f"{scan.pixel_mm:.10g}"] * 2,
        "BitsAllocated": 16,
        "BitsStored": 16 if scanner.signed else 12,
        "HighBit": 15 if scanner.signed else 11,
        "PixelRepresentation": int(scanner.signed),
        "WindowCenter": "-600" if scan.sharp else "40",
        "WindowWidth": "1600" if scan.sharp else "400",
        "RescaleIntercept": str(scanner.intercept),
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }
    if scan.contrast:
        values |= {"ContrastBolusAgent": "IODINE", "ContrastBolusRoute": "IV"}
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    if scanner.padding is not None:
        dataset.add_new("PixelPaddingValue", "SS", scanner.padding)
    return dataset


def _blur(field: Field, sigmas: tuple[float, float, float]) -> None:
    """Gaussian blur in place, sigmas in voxels along z, y, x."""
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            ndimage.gaussian_filter1d(field, sigma, axis=axis, output=field, mode="nearest", truncate=3.0)
