"""The voxels of a series: every file is read once, and decoded as it comes.

Never are more than one file's bytes and the voxels in memory; the planes of a scan are brought into their order in
place.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from tomoray.assembly.slices import PlaneRef
from tomoray.assembly.stack import Stack, apply_repair
from tomoray.dicom.headers import CT_STORAGE, Instance, NotDicomError, read_dataset, read_instance
from tomoray.dicom.pixels import Frames
from tomoray.errors import Reason, Refused
from tomoray.ingest.series import DicomFile, DicomSeries
from tomoray.volume import Image

Read = Callable[[str, str], bytes]  # (root, key) -> the file's bytes

_KEPT_HEAD_BYTES = 2**25  # of a series; its headers are a few KB each
_READ_AHEAD = 8  # files; hides the latency of a remote source


@dataclass(slots=True)
class DecodedSeries:
    """What was read of a series: headers, digests, and where the voxels of each plane are."""

    instances: list[Instance] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    planes: dict[PlaneRef, Image] = field(default_factory=dict)
    errors: dict[PlaneRef, Refused] = field(default_factory=dict)
    padded: dict[PlaneRef, int] = field(default_factory=dict)
    headers: list[Dataset] = field(default_factory=list)
    heads: list[bytes | None] = field(default_factory=list)  # of each file what comes before its pixels, while few
    head_bytes: int = 0

    def keep_head(self, data: bytes, pixels_offset: int | None) -> None:
        """Keep what comes before the pixels, so that a part's first header need not be read again."""
        kept = pixels_offset is not None and self.head_bytes + pixels_offset <= _KEPT_HEAD_BYTES
        self.heads.append(data[:pixels_offset] if kept else None)
        self.head_bytes += len(self.heads[-1] or b"")

    def same_pixels(self, a: PlaneRef, b: PlaneRef) -> bool:
        """True where both planes were decoded, to the same HU."""
        one, other = self.planes.get(a), self.planes.get(b)
        return one is not None and other is not None and np.array_equal(one, other)

    def refusal_of(self, stack: Stack) -> Refused | None:
        """Why planes of the stack have no voxels."""
        broken = [self.errors[ref] for ref in stack.planes if ref in self.errors]
        if not broken:
            return None
        return Refused(broken[0].reason, f"{len(broken)} of {len(stack.planes)} slices: {broken[0].evidence}")

    def digests_of(self, stack: Stack) -> list[str]:
        """SHA-256 of the stack's files, each once, in plane order."""
        return [self.digests[n] for n in dict.fromkeys(ref.instance for ref in stack.planes)]


def decode_series(series: DicomSeries, read: Read, *, keep_headers: bool) -> DecodedSeries:
    """Read every file, and decode what may be a slice, in the order of the files.

    Args:
        series: its files.
        read: gives the bytes of a file.
        keep_headers: keep the headers as data sets, without pixels.

    Raises:
        Refused: a file is not what it was when it was listed.
    """
    decoded = DecodedSeries()
    buffers: dict[tuple[int, int], list[Image]] = {}
    files = series.files if series.is_ct else series.files[:1]
    for file, data in _read_ahead(files, read):
        instance = _header(file, data, series)
        n = len(decoded.instances)
        decoded.instances.append(instance)
        decoded.digests.append(hashlib.sha256(data).hexdigest())
        decoded.keep_head(data, instance.pixels.offset)
        if keep_headers:
            decoded.headers.append(read_dataset(data, pixels=False))
        if not (instance.sop_class in CT_STORAGE and instance.rows and instance.columns):
            continue
        free = buffers.setdefault((instance.rows, instance.columns), [])
        frames = Frames(data, instance)
        for plane in range(len(instance.planes)):
            ref = PlaneRef(instance=n, plane=plane)
            try:
                if not free:  # pages that are never written take no memory
                    n_planes = max(len(series.files) - n, len(instance.planes) - plane)
                    free.extend(reversed(np.empty((n_planes, instance.rows, instance.columns), dtype=np.int16)))
                decoded.padded[ref] = frames.decode_hu(instance.planes[plane].frame, free[-1])
            except Refused as refusal:
                decoded.errors[ref] = refusal
            except MemoryError:
                decoded.errors[ref] = Refused(
                    Reason.TOO_LARGE, f"no memory for slices of {instance.rows} x {instance.columns}"
                )
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
    if (
        instance is None
        or instance.series_uid != series.series_uid
        or file.sop_uid not in (None, instance.sop_uid)  # None: not read before
    ):
        raise Refused(Reason.UNREADABLE, "an instance changed while it was read; run the command again")
    return instance


def take_stack(stack: Stack, decoded: DecodedSeries, *, last: bool) -> Image:
    """The stack's voxels, repaired where the stack says so.

    Args:
        stack: whose planes were all decoded.
        decoded: where they are.
        last: nothing else is wanted of `decoded`: then its memory is the result's, where it can be.
    """
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
