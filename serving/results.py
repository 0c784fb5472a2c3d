"""What was found in a scan, with all that it takes to answer in any type: in memory, and as a file beside the queue.

meta.json        model, kind of finding, numbers, geometry; for an archived scan also where it lies
mask/0 …         `np.packbits` of a label's mask, zlib
map/0 …          the explanation, float16, slab by slab, Blosc
image/0 …        a scan that was not archived, int16 HU, slab by slab, Blosc
header/0 …       the DICOM header of each plane as it was sent, without pixels
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from serving.messages import ArchivedScan, Box, Classification, Detections, Finding, Segmentation
from serving.schemas import ServedModel, StoredResult
from tomoray.archive import Archive
from tomoray.dicom.datasets import quiet_pydicom
from tomoray.dicom.seg import archived_headers
from tomoray.geometry import Geometry
from tomoray.volume import Image, ScanInfo, ScanUids

_SLAB = 32  # slices
_CODEC = Blosc(cname="zstd", clevel=1, shuffle=Blosc.BITSHUFFLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A finding and what it was found in.

    Attributes:
        model: who found it.
        archived: where the scan lies; None for one that is in no archive.
        sent_headers: of each plane, in plane order, as they were sent; empty for an archived scan or NIfTI.
        read_image: int16 HU [z, y, x] on the finding's geometry.
        uid_seed: the same seed and finding give the same UIDs; None: new ones each time.
        made: when; None: DICOM made of it is dated as the scan is.
        seconds: by step.
        notes: what was decided when the scan was read, in plain words.
        stored: where the server put it too.
    """

    model: ServedModel
    finding: Finding
    archived: ArchivedScan | None = None
    sent_headers: Sequence[Dataset] = ()
    read_image: Callable[[], Image]
    uid_seed: str | None = None
    made: datetime | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    stored: StoredResult | None = None

    def headers(self) -> Sequence[Dataset]:
        """DICOM headers in plane order, for results that refer to them. Raises `ValueError` where there are none."""
        if self.archived is not None:
            assert self.finding.info is not None, "an archived scan has one"
            return archived_headers(self.finding.geometry, self.finding.info, self.finding.header)
        if not self.sent_headers:
            raise ValueError("the scan has no DICOM headers")
        return self.sent_headers


def read_archived(scan: ArchivedScan) -> Image:
    """The voxels of an archived scan, int16 HU [z, y, x]."""
    image: Image = Archive.open(scan.archive).scan(scan.scan_id).image().read().result()
    return image


def write_result(result: Result, file: IO[bytes]) -> None:
    """Write a result so that `read_result` gives it again."""
    finding = result.finding
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for name, part in _parts(result):
            packed.writestr(name, part)
        meta: dict[str, Any] = {
            "kind": type(finding).__name__,
            "model": result.model.model_dump(mode="json"),
            "geometry": dataclasses.asdict(finding.geometry),
            "info": finding.info and dataclasses.asdict(finding.info),
            "header": dict(finding.header),
            "archived": result.archived and dataclasses.asdict(result.archived),
            "map": finding.map_zyx is not None,
            "headers": len(result.sent_headers),
            "uid_seed": result.uid_seed,
            "made": result.made and result.made.isoformat(),
            "seconds": dict(result.seconds),
            "notes": list(result.notes),
            "stored": result.stored and result.stored.model_dump(),
        }
        if isinstance(finding, Segmentation):
            meta["labels"] = list(finding.packed)
        elif isinstance(finding, Classification):
            meta["probabilities"] = dict(finding.probabilities)
        elif isinstance(finding, Detections):
            meta["boxes"] = [dataclasses.asdict(box) for box in finding.boxes]
        packed.writestr("meta.json", json.dumps(meta))


def read_result(file: IO[bytes]) -> Result:
    """The result in a file, which must stay open while its image is not read."""
    packed = zipfile.ZipFile(file)
    meta = json.loads(packed.read("meta.json"))
    geometry = Geometry(**{name: tuple(value) for name, value in meta["geometry"].items()})
    archived = ArchivedScan(**meta["archived"]) if meta["archived"] else None
    return Result(
        model=ServedModel.model_validate(meta["model"]),
        finding=_finding(meta, packed, geometry),
        archived=archived,
        sent_headers=[_header(packed.read(f"header/{n}")) for n in range(meta["headers"])],
        read_image=lambda: read_archived(archived) if archived else _joined(packed, "image", geometry, np.int16),
        uid_seed=meta["uid_seed"],
        made=datetime.fromisoformat(meta["made"]) if meta["made"] else None,
        seconds=meta["seconds"],
        notes=meta["notes"],
        stored=StoredResult.model_validate(meta["stored"]) if meta["stored"] else None,
    )


def _parts(result: Result) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the arrays and headers; one slab at a time."""
    finding = result.finding
    if isinstance(finding, Segmentation):
        for n, bits in enumerate(finding.packed.values()):
            yield f"mask/{n}", _CODEC.encode(np.ascontiguousarray(bits))
    if finding.map_zyx is not None:
        yield from _slabs("map", finding.map_zyx)
    if result.archived is None:
        yield from _slabs("image", result.read_image())
    for n, header in enumerate(result.sent_headers):
        yield f"header/{n}", _header_bytes(header)


def _finding(meta: dict[str, Any], packed: zipfile.ZipFile, geometry: Geometry) -> Finding:
    common = {
        "geometry": geometry,
        "info": _info(meta["info"]) if meta["info"] else None,
        "header": meta["header"],
        "seconds": meta["seconds"],
        "map_zyx": _joined(packed, "map", geometry, np.float16) if meta["map"] else None,
    }
    if meta["kind"] == Segmentation.__name__:
        bits = [np.frombuffer(_CODEC.decode(packed.read(f"mask/{n}")), np.uint8) for n in range(len(meta["labels"]))]
        return Segmentation(**common, packed=dict(zip(meta["labels"], bits, strict=True)))
    if meta["kind"] == Classification.__name__:
        return Classification(**common, probabilities=meta["probabilities"])
    boxes = [
        Box(**{name: tuple(value) if isinstance(value, list) else value for name, value in box.items()})
        for box in meta["boxes"]
    ]
    return Detections(**common, boxes=boxes)


def _info(stored: dict[str, Any]) -> ScanInfo:
    uids = ScanUids(**{**stored["uids"], "instances": tuple(stored["uids"]["instances"])})
    return ScanInfo(**{**stored, "uids": uids, "notes": tuple(stored["notes"])})


def _slabs(name: str, array_zyx: npt.NDArray[Any]) -> Iterator[tuple[str, bytes]]:
    for n, start in enumerate(range(0, len(array_zyx), _SLAB)):
        yield f"{name}/{n}", _CODEC.encode(np.ascontiguousarray(array_zyx[start : start + _SLAB]))


def _joined(packed: zipfile.ZipFile, name: str, geometry: Geometry, kind: type[np.generic]) -> npt.NDArray[Any]:
    array_zyx = np.empty(geometry.shape_zyx, dtype=kind)
    for n, start in enumerate(range(0, len(array_zyx), _SLAB)):
        part = array_zyx[start : start + _SLAB]
        part[...] = np.frombuffer(_CODEC.decode(packed.read(f"{name}/{n}")), kind).reshape(part.shape)
    return array_zyx


def _header_bytes(header: Dataset) -> bytes:
    """Explicit VR little endian. An element that cannot be written, as it was broken when it came, is left out."""
    with quiet_pydicom():
        try:
            return _written(header)
        except Exception:  # a writer of broken values can raise anything
            kept = Dataset()
            for tag in header.keys():  # noqa: SIM118 - iterating decodes values, and the broken ones raise
                with suppress(Exception):
                    element = header[tag]
                    alone = Dataset()
                    alone.add(element)
                    _written(alone)
                    kept.add(element)
            return _written(kept)


def _written(header: Dataset) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_dataset(file, header)
    return file.getvalue()


def _header(data: bytes) -> Dataset:
    return read_dataset(BytesIO(data), is_implicit_VR=False, is_little_endian=True)
