"""The patch stream: windows of many scans read ahead, in an order that depends on the seed alone.

Sample i of a run is a pure function of (seed, i): `sampling` says which. Step s wants samples s * batch to
(s + 1) * batch, of which rank r of n takes every n-th from the r-th on. So the order does not depend on how fast anyone
reads or on how many do, and a run resumes anywhere by starting at that step.

For a visit, one box of each array is read, which holds all of its patches that this worker takes; it is let go of with
the last of them. Threads read boxes and cut patches: obstore, blosc and NumPy all work without the GIL, so one
process feeds a machine. What is held is counted in bytes before it is read, and bounded by `stream.read_ahead_mb`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tomoray.archive import Archive
from tomoray.block_cache import BlockCache
from tomoray.errors import Fatal
from tomoray.read_ahead import ReadAhead, Share
from tomoray.regions import Sample
from tomoray.samples import Samples
from tomoray.shards import Reads
from tomoray.training.config import TrainConfig

__all__ = ["Batch", "PatchStream", "Sample", "StreamStats", "require_labels"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Patches for one step of one worker.

    Attributes:
        image: float32 (batch, 1, z, y, x), HU scaled to 0..1.
        classes: uint8 (batch, 1, z, y, x): 0 background, n for `config.labels[n - 1]`.
        samples: number of each sample within the run, which whatever is drawn for it depends on.
        scan_ids: where each was cut from.
        waited_s: how long the training loop stood still for it.
    """

    image: Tensor
    classes: Tensor
    samples: tuple[int, ...]
    scan_ids: tuple[str, ...]
    waited_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamStats:
    """What a stream has done since it began.

    Attributes:
        patches: handed out.
        requests: to the archive's store: GETs and HEADs on S3.
        fetched_bytes: that came from the store.
        cached_bytes: that came from the cache on local disk.
        peak_bytes: most that was held for patches to come, decoded.
        waited_s: seconds the training loop stood still.
        elapsed_s: seconds from the first batch asked for to the last one handed out.
    """

    patches: int
    requests: int
    fetched_bytes: int
    cached_bytes: int
    peak_bytes: int
    waited_s: float
    elapsed_s: float

    @property
    def starvation(self) -> float:
        """Share of the time that training waited for patches, 0..1."""
        return self.waited_s / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def requests_per_patch(self) -> float:
        """Requests to the store for each patch handed out."""
        return self.requests / self.patches if self.patches else 0.0

    @property
    def fetched_mb_per_patch(self) -> float:
        """Megabytes from the store for each patch handed out."""
        return self.fetched_bytes / 1e6 / self.patches if self.patches else 0.0


class PatchStream:
    """Batches of one worker, from `start_step` on, without end.

    Args:
        archive: where scans are.
        scan_ids: scans to draw from; each holds every label of the config (see `require_labels`).
        config: labels, patch, spacing, seed, stream.
        rank: this worker.
        world_size: workers.
        start_step: the first step's number.

    Example:
        >>> for batch in PatchStream(archive, archive.scan_ids(), config):
        ...     train(batch.image, batch.classes)
    """

    def __init__(
        self,
        archive: Archive,
        scan_ids: Sequence[str],
        config: TrainConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        folder = config.stream.cache_folder
        cache = None if folder is None else BlockCache(Path(folder).expanduser(), int(config.stream.cache_gb * 1e9))
        self._config, self._start_step = config, start_step
        self._share = Share(batch_size=config.batch_size, rank=rank, world_size=world_size)
        self._reads = Reads()
        self._samples = Samples(archive, scan_ids, config, self._reads, cache)
        self._patches, self._peak_bytes, self._waited_s, self._elapsed_s = 0, 0, 0.0, 0.0

    @property
    def stats(self) -> StreamStats:
        """What it has done so far."""
        return StreamStats(
            patches=self._patches,
            requests=self._reads.requests,
            fetched_bytes=self._reads.fetched_bytes,
            cached_bytes=self._reads.cached_bytes,
            peak_bytes=self._peak_bytes,
            waited_s=self._waited_s,
            elapsed_s=self._elapsed_s,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Read ahead in threads that end with the iterator."""
        began = time.perf_counter()
        ahead = ReadAhead(self._samples, self._share, self._config, self._start_step)
        try:
            while True:
                since = time.perf_counter()
                step = ahead.take()
                now = time.perf_counter()
                self._patches += len(step.samples)
                self._peak_bytes = ahead.peak_bytes
                self._waited_s += now - since
                self._elapsed_s = now - began
                yield Batch(
                    image=step.image[:, None],
                    classes=step.classes[:, None],
                    samples=step.samples,
                    scan_ids=step.scan_ids,
                    waited_s=now - since,
                )
        finally:
            ahead.close()

    def sample(self, i: int) -> Sample:
        """What sample i of the run is, whoever cuts it."""
        return self._samples.sample(i)

    def cut(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The patch, read by itself: image float32 (z, y, x), 0..1, and classes uint8 (z, y, x)."""
        scan, patch = self._samples.scan(sample.scan_id), self._config.patch_zyx
        image, classes = torch.empty(patch), torch.empty(patch, dtype=torch.uint8)
        scan.cut(scan.read(scan.box([sample.corner_zyx])), sample, image, classes)
        return image, classes


def require_labels(labels_by_scan: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> None:
    """Raise `Fatal` for the first scan that lacks a wanted label."""
    for scan_id, found in sorted(labels_by_scan.items()):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise Fatal(
                f"scan {scan_id} has no label {missing[0]!r} (it has: {', '.join(found) or 'none'}); preprocess its "
                f"masks too, or name other labels in the config"
            )
