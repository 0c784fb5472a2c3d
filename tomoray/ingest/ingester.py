"""One work item into the archive: the plain function behind each Ray task of `jobs.preprocess`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tomoray.archive import Archive
from tomoray.assembly.stack import Rules
from tomoray.catalog import refused_row, stored_row
from tomoray.errors import Reason, Refused
from tomoray.ingest.inventory import Inventory, read_heads
from tomoray.ingest.listed import read_listed
from tomoray.ingest.loader import LoadedScan, RefusedPart, load_decoded, load_dicom, load_volume_files
from tomoray.ingest.series import BadFile, DicomSeries, Item, ListedSeries, VolumeCase
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.identifiers import names_in, scrub_uri
from tomoray.privacy.pseudonyms import public_root
from tomoray.sources import list_source, read_file

Row = Mapping[str, Any]

WORKER_BYTES = 400_000_000  # a process with its libraries, before it reads anything
_STEP_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingested:
    """The catalog rows that one item ends in, and how many bytes of voxels were stored."""

    rows: tuple[Row, ...]
    voxel_bytes: int = 0


def task_bytes(working_bytes: int) -> int:
    """Memory to ask for: a worker, and what the item says that it holds at once.

    In steps of 100 MB: Ray keeps a queue, and workers, for every amount that was ever asked for.
    """
    wanted = WORKER_BYTES + working_bytes
    return -(-wanted // _STEP_BYTES) * _STEP_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingester:
    """What every task of one run has in common. Pickles.

    Attributes:
        config_sha256: of what decides which series are stored, and how.
    """

    archive: Archive
    deidentifier: Deidentifier
    rules: Rules
    config_sha256: str

    def ingest(self, item: Item) -> Ingested:
        """Store every scan of one item, and say why the rest is none. Safe to repeat: same input, same bytes."""
        rows: list[Row] = []
        voxel_bytes = 0
        for outcome in self.load(item):
            if isinstance(outcome, RefusedPart):
                rows.append(self._refused(outcome))
                continue
            self.archive.write_scan(outcome.volume, outcome.header.attributes if outcome.header else {})
            rows.append(stored_row(outcome.volume, self.config_sha256, outcome.header))
            voxel_bytes += outcome.volume.image_zyx.nbytes
        return Ingested(rows=tuple(self._under_one_digest(item, rows)), voxel_bytes=voxel_bytes)

    def load(self, item: Item) -> Iterator[LoadedScan | RefusedPart]:
        """Every scan of one item and every part that is none, one after the other. Writes nothing."""
        if isinstance(item, BadFile):
            yield RefusedPart(item=item, refusal=item.refusal, source_uri=self._place(item.root, item.file.key))
        elif isinstance(item, VolumeCase):
            place = self._place(item.root, item.image)
            yield from load_volume_files(item, read_file, self.deidentifier, self.rules, source_uri=place)
        elif isinstance(item, DicomSeries):
            place = public_root(item.root)
            yield from load_dicom(item, read_file, self.deidentifier, self.rules, source_uri=place)
        else:
            yield from self._load_listed(item)

    def _place(self, root: str, key: str) -> str:
        """What is stored of where a file without a header came from: its own path is the evidence against it."""
        place = public_root(root)
        return place if self.deidentifier.config.keep_identifiers else scrub_uri(place, names_in(key))

    def _load_listed(self, item: ListedSeries) -> Iterator[LoadedScan | RefusedPart]:
        place = public_root(item.root)
        files = list(list_source(item.root))
        at_once = read_listed(item.listing, files, read_file, self.deidentifier.pseudonyms)
        if at_once is not None:
            yield from load_decoded(*at_once, read_file, self.deidentifier, self.rules, source_uri=place)
            return
        heads = read_heads(files)
        with Inventory() as inventory:
            inventory.add_heads(heads.heads)
            inventory.add_items(heads.bad, self.deidentifier.pseudonyms)
            inventory.seal(self.deidentifier.pseudonyms)
            found = [entry.item for entry in inventory.entries()]
        if not found:
            yield RefusedPart(item=item, refusal=Refused(Reason.NOT_AN_IMAGE, "its source holds no DICOM file"))
        for each in found:
            yield from self.load(each)

    def _under_one_digest(self, item: Item, rows: list[Row]) -> list[Row]:
        """Rows of a listed series carry the listing's digest, by which the next run knows that it is done."""
        if not isinstance(item, ListedSeries):
            return rows
        identity = item.identify(self.deidentifier.pseudonyms)
        return [{**row, "series_id": identity.series_id, "instances_sha256": identity.digest} for row in rows]

    def _refused(self, part: RefusedPart) -> Row:
        return refused_row(
            part.item.identify(self.deidentifier.pseudonyms),
            part.refusal,
            part=part.part,
            n_instances=part.n_instances,
            source_uri=part.source_uri or public_root(part.item.root),
            config_sha256=self.config_sha256,
            header=part.header,
        )
