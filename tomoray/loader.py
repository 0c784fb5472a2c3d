"""One work item -> volumes with the masks that were drawn on them, or the reasons why not.

The only way into an archive: what `load_dicom` and `load_volume_files` give as a scan is right, and every instance
ends in exactly one of: part of a scan, or refused. Files are read once, and decoded as they come: never are more
than one file's bytes and the voxels in memory.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from types import ModuleType

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from tomoray import nifti
from tomoray.assembly import assemble
from tomoray.deidentify import Deidentified, Deidentifier
from tomoray.dicom import STRUCTURE_SET_STORAGE, Instance, NotDicomError, read_dataset, read_instance
from tomoray.dicom_seg import read_segmentation
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.identifiers import identifiers, scrub_uri
from tomoray.inventory import CT_STORAGE
from tomoray.pixels import decode_hu
from tomoray.rtstruct import read_rtstruct
from tomoray.series import DicomFile, DicomSeries, Item, VolumeCase
from tomoray.slices import PlaneRef
from tomoray.stack import Rules, Stack, apply_repair
from tomoray.volume import AIR_HU, LABEL_NAME, Image, Mask, ScanInfo, ScanUids, Volume

Read = Callable[[str, str], bytes]  # (root, key) -> the file's bytes

_READ_AHEAD = 8  # files; hides the latency of a remote source


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedScan:
    """A scan, and for DICOM the real headers in plane order, without pixels (results refer to them)."""

    volume: Volume
    header: Deidentified | None = None
    headers: tuple[Dataset, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedPart:
    """Instances that end in no scan, and why.

    Attributes:
        item: what they are an item of; a segmentation that does not fit is an item of its own.
        part: which of them, where the item has other parts; empty for the whole.
    """

    item: Item
    refusal: Refused
    part: str = ""
    n_instances: int = 1
    source_uri: str = ""
    header: Deidentified | None = None


@dataclass(slots=True)
class _Decoded:
    """What was read of a series: headers, digests, and where the voxels of each plane are."""

    instances: list[Instance] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    planes: dict[PlaneRef, Image] = field(default_factory=dict)
    errors: dict[PlaneRef, Refused] = field(default_factory=dict)
    padded: dict[PlaneRef, int] = field(default_factory=dict)
    headers: list[Dataset] = field(default_factory=list)


def load_dicom(
    series: DicomSeries,
    read: Read,
    deidentifier: Deidentifier,
    rules: Rules,
    *,
    source_uri: str = "",
    keep_headers: bool = False,
) -> Iterator[LoadedScan | RefusedPart]:
    """Read one DICOM series: every scan in it, one after the other, and every part that is none.

    Args:
        series: its files.
        read: gives the bytes of a file.
        deidentifier: turns identifiers into pseudonyms.
        rules: what makes a scan, and which repairs were asked for.
        source_uri: what to write down as the source.
        keep_headers: give the scans' `headers`.
    """
    try:
        decoded = _decode(series, read, keep_headers=keep_headers)
    except Refused as refusal:
        yield RefusedPart(item=series, refusal=refusal, n_instances=len(series.files), source_uri=source_uri)
        return

    def same_pixels(a: PlaneRef, b: PlaneRef) -> bool:
        pixels = decoded.planes.get(a), decoded.planes.get(b)
        return pixels[0] is not None and pixels[1] is not None and np.array_equal(pixels[0], pixels[1])

    stacks, rejected = assemble(decoded.instances, rules, same_pixels)
    for part in rejected:
        header, place = _describe(decoded.instances[part.instances[0]], read, deidentifier, source_uri)
        yield RefusedPart(
            item=series,
            refusal=part.refusal,
            part=part.part,
            n_instances=len(part.instances),
            source_uri=place,
            header=header,
        )
    drawings = _read_drawings(series, read) if stacks else []
    n_scans = 0
    for n, stack in enumerate(stacks):
        header, place = _describe(decoded.instances[stack.planes[0].instance], read, deidentifier, source_uri)
        broken = [decoded.errors[ref] for ref in stack.planes if ref in decoded.errors]
        if broken:
            of = f"{len(broken)} of {len(stack.planes)} slices"
            unreadable = Refused(broken[0].reason, f"{of}: {broken[0].evidence}")
            yield RefusedPart(
                item=series,
                refusal=unreadable,
                part=stack.part,
                n_instances=len(stack.planes),
                source_uri=place,
                header=header,
            )
            continue
        image = _stacked(stack, decoded, last=n == len(stacks) - 1)
        n_scans += 1
        labels, drawn = _draw(drawings, stack.geometry)
        digests = [*_digests(stack, decoded), *drawn]
        info = _info(series, stack, decoded, deidentifier, header, digests, place)
        yield LoadedScan(
            volume=Volume(image_zyx=image, geometry=stack.geometry, info=info, labels=labels),
            header=header,
            headers=tuple(decoded.headers[ref.instance] for ref in stack.planes) if keep_headers else (),
        )
    if n_scans:  # else drawings share the refusal of their series
        yield from (_unfit(drawing, source_uri) for drawing in drawings if not drawing.fits)


def load_volume_files(
    case: VolumeCase, read: Read, deidentifier: Deidentifier, rules: Rules, *, source_uri: str = ""
) -> Iterator[LoadedScan | RefusedPart]:
    """Read one NIfTI or NRRD image and the masks that lie on its grid."""
    try:
        data = read(case.root, case.image)
        image, geometry = _format(case.image).read_image(data)
        if min(geometry.shape_zyx) < rules.min_slices:
            found = f"shape {geometry.shape_zyx}; wanted {rules.min_slices} or more along each axis"
            raise Refused(Reason.TOO_FEW_SLICES, found)
    except Refused as refusal:
        yield RefusedPart(item=case, refusal=refusal, source_uri=source_uri)
        return
    digests = [hashlib.sha256(data).hexdigest()]
    labels: dict[str, Mask] = {}
    unfit: list[RefusedPart] = []
    for name, key, size_bytes in case.labels:
        data = read(case.root, key)
        try:
            if not LABEL_NAME.fullmatch(name):
                raise Refused(Reason.LABEL_UNSUPPORTED, "the label's name holds other than letters, digits, . _ and -")
            labels[name] = _format(key).read_mask(data, geometry)
        except Refused as refusal:
            alone = VolumeCase(root=case.root, case=f"{case.case} {name}", image=key, size_bytes=size_bytes, labels=())
            unfit.append(RefusedPart(item=alone, refusal=refusal, source_uri=source_uri))
            continue
        digests.append(hashlib.sha256(data).hexdigest())
    pseudonyms = deidentifier.pseudonyms
    identity, name = case.identify(pseudonyms), f"nifti {case.case}"
    info = ScanInfo(
        scan_id=pseudonyms.token("scan", name, identity.digest),
        series_id=identity.series_id,
        patient_id=identity.patient_id,
        source_uri=source_uri,
        n_instances=1,
        instances_sha256=identity.digest,
        input_sha256=_digest_of(digests),
        uids=ScanUids(
            study=pseudonyms.uid("study", name),
            series=pseudonyms.uid("series", name),
            frame_of_reference=pseudonyms.uid("frame", name),
            instances=tuple(pseudonyms.uid("instance", f"{name} {z}") for z in range(geometry.shape_zyx[0])),
        ),
    )
    yield LoadedScan(volume=Volume(image_zyx=image, geometry=geometry, info=info, labels=labels))
    yield from unfit


def _decode(series: DicomSeries, read: Read, *, keep_headers: bool) -> _Decoded:
    """Read every file once, and decode what may be a slice, in the order of the files."""
    decoded = _Decoded()
    buffers: dict[tuple[int, int], list[Image]] = {}
    for file, data in _read_ahead(series.files, read):
        instance = _header(file, data, series)
        n = len(decoded.instances)
        decoded.instances.append(instance)
        decoded.digests.append(hashlib.sha256(data).hexdigest())
        if keep_headers:
            dataset = read_dataset(data)
            dataset.pop("PixelData", None)
            decoded.headers.append(dataset)
        if not (instance.sop_class in CT_STORAGE and instance.rows and instance.columns):
            continue
        free = buffers.setdefault((instance.rows, instance.columns), [])
        for plane in range(len(instance.planes)):
            ref = PlaneRef(instance=n, plane=plane)
            try:
                if not free:  # pages that are never written take no memory
                    n_planes = max(len(series.files) - n, len(instance.planes) - plane)
                    free.extend(reversed(np.empty((n_planes, instance.rows, instance.columns), dtype=np.int16)))
                decoded.padded[ref] = decode_hu(data, instance, instance.planes[plane].frame, free[-1])
            except Refused as refusal:
                decoded.errors[ref] = refusal
            except MemoryError:
                decoded.errors[ref] = Refused(Reason.TOO_LARGE, f"no memory for slices of {free and free[-1].shape}")
            else:
                decoded.planes[ref] = free.pop()
    return decoded


def _read_ahead(files: Sequence[DicomFile], read: Read) -> Iterator[tuple[DicomFile, bytes]]:
    """Files and their bytes, in order; of a remote source, a few are under way."""
    if "://" not in files[0].root:
        yield from ((file, read(file.root, file.key)) for file in files)
        return
    waiting = iter(files)
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        under_way: deque[tuple[DicomFile, Future[bytes]]] = deque()
        for file in islice(waiting, _READ_AHEAD):
            under_way.append((file, pool.submit(read, file.root, file.key)))
        while under_way:
            file, data = under_way.popleft()
            yield file, data.result()
            under_way.extend((more, pool.submit(read, more.root, more.key)) for more in islice(waiting, 1))


def _header(file: DicomFile, data: bytes, series: DicomSeries) -> Instance:
    try:
        instance = read_instance(data, root=file.root, key=file.key, size_bytes=len(data))
    except NotDicomError as error:
        raise Refused(Reason.UNREADABLE, f"an instance cannot be read: {error}") from error
    if instance is None or (instance.series_uid, instance.sop_uid) != (series.series_uid, file.sop_uid):
        raise Refused(Reason.UNREADABLE, "an instance changed while it was read; run the command again")
    return instance


def _stacked(stack: Stack, decoded: _Decoded, *, last: bool) -> Image:
    """The stack's planes in their order, as one array; without a copy where all that was read is this one stack."""
    planes = [decoded.planes.pop(ref) if last else decoded.planes[ref] for ref in stack.planes]
    base = planes[0].base
    if last and base is not None and all(plane.base is base for plane in planes):
        start = base.__array_interface__["data"][0]
        order = [(plane.__array_interface__["data"][0] - start) // planes[0].nbytes for plane in planes]
        planes.clear()
        _reorder(base, order)
        return apply_repair(base[: len(order)], stack)
    return apply_repair(np.stack(planes), stack)


def _reorder(planes: npt.NDArray[np.int16], order: list[int]) -> None:
    """`planes[: len(order)] = planes[order]` in place, along cycles, with one plane's memory. The rest is lost."""
    unused = set(range(len(planes))) - set(order)
    stay = [n for n in range(len(order), len(planes)) if n in unused]
    others = iter(sorted(unused.difference(stay)))
    order = order + [n if n in unused else next(others) for n in range(len(order), len(planes))]
    done = [False] * len(order)
    for start in range(len(order)):
        if done[start] or order[start] == start:
            continue
        held, here = planes[start].copy(), start
        while order[here] != start:
            planes[here] = planes[order[here]]
            done[here] = True
            here = order[here]
        planes[here] = held
        done[here] = True


@dataclass(slots=True)
class _Drawing:
    """A segmentation or structure set of the series, and whether it fits any of its scans."""

    file: DicomFile
    digest: str
    dataset: Dataset | None
    refusal: Refused | None = None
    fits: bool = False


def _read_drawings(series: DicomSeries, read: Read) -> list[_Drawing]:
    drawings = []
    for file in series.drawings:
        data = read(file.root, file.key)
        drawing = _Drawing(file, hashlib.sha256(data).hexdigest(), None)
        try:
            drawing.dataset = read_dataset(data)
        except NotDicomError as error:
            drawing.refusal = Refused(Reason.UNREADABLE, f"an instance cannot be read: {error}")
        drawings.append(drawing)
    return drawings


def _draw(drawings: Iterable[_Drawing], geometry: Geometry) -> tuple[dict[str, Mask], list[str]]:
    """Masks of all drawings that lie on this grid, and the digests of those."""
    labels: dict[str, Mask] = {}
    digests: list[str] = []
    for drawing in drawings:
        if drawing.dataset is None:
            continue
        contours = drawing.dataset.get("SOPClassUID") == STRUCTURE_SET_STORAGE
        try:
            masks = (read_rtstruct if contours else read_segmentation)(drawing.dataset, geometry)
            twice = sorted(masks.keys() & labels.keys())
            if twice:
                raise Refused(Reason.LABEL_UNSUPPORTED, f"label {twice[0]} is given by two segmentations of one series")
        except Refused as refusal:
            drawing.refusal = refusal
        else:
            labels.update(masks)
            drawing.fits = True
            digests.append(drawing.digest)
    return labels, digests


def _unfit(drawing: _Drawing, source_uri: str) -> RefusedPart:
    alone = DicomSeries(series_uid="", study_uid="", patient_id="", files=(drawing.file,))
    refusal = drawing.refusal or Refused(Reason.LABEL_WITHOUT_IMAGE, "the series it was drawn on holds no scan")
    return RefusedPart(item=alone, refusal=refusal, source_uri=source_uri)


def _describe(instance: Instance, read: Read, deidentifier: Deidentifier, source_uri: str) -> tuple[Deidentified, str]:
    """What may be known of a series by one of its headers, and of its source."""
    try:
        dataset = read_dataset(read(instance.root, instance.key))
    except NotDicomError:  # the header could be read, and something behind it cannot
        dataset = Dataset()
    place = source_uri if deidentifier.config.keep_identifiers else scrub_uri(source_uri, identifiers(dataset))
    return deidentifier.describe(dataset), place


def _digests(stack: Stack, decoded: _Decoded) -> list[str]:
    """Of the files, each once, in plane order."""
    return [decoded.digests[n] for n in dict.fromkeys(ref.instance for ref in stack.planes)]


def _info(
    series: DicomSeries,
    stack: Stack,
    decoded: _Decoded,
    deidentifier: Deidentifier,
    header: Deidentified,
    digests: Iterable[str],
    source_uri: str,
) -> ScanInfo:
    pseudonyms = deidentifier.pseudonyms
    first = decoded.instances[stack.planes[0].instance]
    identity = series.identify(pseudonyms)
    padded = sum(decoded.padded[ref] for ref in stack.planes)
    notes = [*stack.notes, f"{padded} padding voxels were set to {AIR_HU} HU"] if padded else list(stack.notes)
    n_instances = len({ref.instance for ref in stack.planes})
    return ScanInfo(
        scan_id=pseudonyms.token("scan", first.series_uid, identity.digest, *([stack.part] if stack.part else [])),
        series_id=identity.series_id,
        patient_id=identity.patient_id,
        source_uri=source_uri,
        part=stack.part,
        n_instances=n_instances,
        instances_sha256=identity.digest,
        input_sha256=_digest_of(digests),
        uids=ScanUids(
            study=pseudonyms.uid("study", first.study_uid),
            series=pseudonyms.uid("series", first.series_uid),
            frame_of_reference=pseudonyms.uid("frame", first.frame_of_reference_uid or first.series_uid),
            instances=tuple(
                pseudonyms.uid("instance", decoded.instances[ref.instance].sop_uid) for ref in stack.nearest_planes()
            ),
        ),
        manufacturer=header.manufacturer,
        model=header.model,
        kernel=header.kernel,
        kvp=first.kvp,
        body_part=header.body_part,
        slice_thickness_mm=first.planes[stack.planes[0].plane].slice_thickness_mm,
        sex=header.sex,
        age_years=header.age_years,
        notes=tuple(notes),
    )


def _format(key: str) -> ModuleType:
    return nifti


def _digest_of(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
