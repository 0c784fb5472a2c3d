"""Sources -> a sealed inventory: files are listed lazily, and their headers read in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tomoray.config import NiftiPattern
from tomoray.errors import Fatal
from tomoray.ingest.inventory import Heads, Inventory, read_heads
from tomoray.ingest.series import ListedSeries
from tomoray.ingest.volume_files import group_volumes, is_volume
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.progress import track
from tomoray.sources import SeriesListing, SourceFile, list_series, list_source

Batch = list[SourceFile]
ReadBatches = Callable[[Iterable[Batch]], Iterator[tuple[Batch, Heads]]]

_FILES_PER_BATCH = 256
_THREADS = 4


def take_stock(
    sources: Sequence[str],
    pattern: NiftiPattern,
    inventory: Inventory,
    pseudonyms: Pseudonyms,
    read_batches: ReadBatches,
) -> int:
    """Fill and seal the inventory.

    Args:
        sources: their URLs.
        pattern: names of volume files.
        inventory: where everything goes.
        pseudonyms: turns identifiers into pseudonyms.
        read_batches: reads the headers of batches of files, in any order (`read_in_threads`, or tasks).

    Returns:
        The number of files that are neither DICOM nor volumes.

    Raises:
        Fatal: a source cannot be reached, or none holds anything.
    """
    volumes: list[SourceFile] = []
    n_files = n_ignored = 0

    def counted(listed: Iterable[SeriesListing]) -> Iterator[ListedSeries]:
        for n, listing in enumerate(listed, start=1):
            yield ListedSeries(listing=listing)
            if n % _FILES_PER_BATCH == 0:
                advance(_FILES_PER_BATCH)
        advance(n % _FILES_PER_BATCH)

    def batches() -> Iterator[Batch]:
        for source in sources:
            listed = list_series(source)
            if listed is not None:
                inventory.add_items(counted(listed), pseudonyms)
                continue
            files = iter(list_source(source))
            while batch := list(islice(files, _FILES_PER_BATCH)):
                volumes.extend(file for file in batch if is_volume(file))
                yield [file for file in batch if not is_volume(file)]

    with track("take stock", None) as advance:
        for batch, heads in read_batches(batches()):
            inventory.add_heads(heads.heads)
            inventory.add_items(heads.bad, pseudonyms)
            n_files += len(batch)
            n_ignored += heads.n_ignored
            advance(len(batch))
    cases, unpaired = group_volumes(volumes, pattern)
    inventory.add_items([*cases, *unpaired], pseudonyms)
    inventory.seal(pseudonyms)
    if not len(inventory):
        if not n_files:
            raise Fatal(f"no file in {', '.join(sources)}; name a folder that holds DICOM or NIfTI")
        raise Fatal(
            f"found no DICOM or NIfTI in {', '.join(sources)} (other files: {n_files}); "
            "DICOM starts with DICM after 128 bytes, NIfTI ends in .nii or .nii.gz"
        )
    return n_ignored


def read_in_threads(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Heads]]:
    """Headers of batches of files, in this process; a bounded number under way."""
    waiting = iter(batches)
    with ThreadPoolExecutor(_THREADS) as pool:
        under_way = deque((batch, pool.submit(read_heads, batch)) for batch in islice(waiting, _THREADS))
        while under_way:
            batch, heads = under_way.popleft()
            yield batch, heads.result()
            under_way.extend((more, pool.submit(read_heads, more)) for more in islice(waiting, 1))
