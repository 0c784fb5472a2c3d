"""From a checked request to a result: the input is read, the model asked. Gateway and runner do it alike.

What blocks runs in threads. A scan that was decoded goes to the model through Ray's object store, an archived one by
its name; DICOM headers stay in this process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import IO, Any

import ray
from pydicom import Dataset
from ray.serve.handle import DeploymentHandle

from serving.answers import ask
from serving.asks import Accepted, DicomWebStudy, Reference, S3Prefix, Sent
from serving.destinations import Destinations
from serving.failures import HttpError
from serving.messages import ArchivedScan, Finding, Progress, Request
from serving.references import Places
from serving.results import Result, read_archived
from serving.schemas import ServedModel
from serving.shared import DEPLOYMENT
from tomoray.errors import Fatal, TooLarge
from tomoray.ingest.loader import LoadedScan
from tomoray.ingest.uploads import read_nifti, read_study, read_zip
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import list_source, read_file
from tomoray.volume import Image

logger = logging.getLogger("ray.serve")

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scan:
    """A scan, ready to be asked about."""

    scan: ArchivedScan | ray.ObjectRef[Any]
    read_image: Callable[[], Image]
    headers: Sequence[Dataset] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Examiner:
    """Everything that examining takes. Pickles.

    Attributes:
        models: by name.
        handles: their deployments, by name.
        places: what may be named as input.
        destinations: what may be named for results.
        max_bytes: a study may unpack, and decode, to this much.
        pseudonyms: of scans that were sent; they leave with nobody.
    """

    models: Mapping[str, ServedModel]
    handles: Mapping[str, DeploymentHandle[Any]]
    places: Places
    destinations: Destinations
    max_bytes: int
    pseudonyms: Pseudonyms

    def check(self, accepted: Accepted) -> None:
        """Raise `HttpError` where the input or the destination may not be named, or an archived scan is not there."""
        self.destinations.check(accepted.destination)
        asked = accepted.input
        if isinstance(asked, Reference):
            self.places.archived(asked)
        elif isinstance(asked, S3Prefix):
            self.places.prefix(asked)
        elif isinstance(asked, DicomWebStudy):
            self.places.source(asked)

    async def examine(
        self,
        accepted: Accepted,
        body: IO[bytes] | None = None,
        *,
        uid_seed: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """What the model finds. Cancelling this cancels the model's work.

        Args:
            accepted: what is asked.
            body: the study, where it was sent.
            uid_seed: of the UIDs of what is made of the result; an archived scan has its own.
            on_progress: called as windows go through the network; None: nobody wants to know.

        Raises:
            HttpError, TomoRayError: as `failures.explain` tells them.
        """
        start = time.perf_counter()
        scan = await asyncio.to_thread(self._read, accepted, body)
        read_s = time.perf_counter() - start
        archived = scan.scan if isinstance(scan.scan, ArchivedScan) else None
        request = Request(scan=scan.scan, explain=accepted.explain, progress=on_progress is not None)
        model = self.models[accepted.model]
        finding = await _ask(self.handles[model.name], request, on_progress, model.name)
        result = Result(
            model=model.model_copy(update={"sha256": finding.sha256 or model.sha256}),
            finding=finding,
            archived=archived,
            sent_headers=scan.headers,
            read_image=scan.read_image,
            uid_seed=archived.scan_id if archived else uid_seed,
            made=None if archived else datetime.now(),
            seconds={**({} if archived else {"read": read_s}), **finding.seconds},
            notes=finding.info.notes if finding.info else scan.notes,
        )
        if accepted.destination is None:
            return result
        stored = await asyncio.to_thread(self.destinations.deliver, result, accepted.destination)
        return replace(result, stored=stored)

    def _read(self, accepted: Accepted, body: IO[bytes] | None) -> _Scan:
        asked = accepted.input
        if isinstance(asked, Reference):
            archived = self.places.archived(asked)
            return _Scan(scan=archived, read_image=lambda: read_archived(archived))
        try:
            loaded = self._load(asked, body)
        except TooLarge:
            raise
        except Fatal as error:
            if isinstance(asked, Sent):
                raise HttpError(400, f"bad_{asked.sent}", str(error)) from error
            logger.warning("a reference led nowhere: %s", error)
            raise HttpError(404, "unknown_study", "no CT series can be read there; see the server's log") from error
        volume = loaded.volume
        reference = ray.put((volume.image_zyx, volume.geometry))
        return _Scan(
            scan=reference,
            read_image=lambda: ray.get(reference)[0],  # type: ignore[index]
            headers=loaded.headers,
            notes=volume.info.notes,
        )

    def _load(self, asked: S3Prefix | DicomWebStudy | Sent, body: IO[bytes] | None) -> LoadedScan:
        if isinstance(asked, Sent):
            assert body is not None, "what was sent is there"
            read = read_zip if asked.sent == "zip" else read_nifti
            return read(body, self.max_bytes, self.pseudonyms)
        source = self.places.prefix(asked) if isinstance(asked, S3Prefix) else self.places.source(asked)
        files: dict[str, bytes] = {}
        left = self.max_bytes
        for file in list_source(source):
            files[f"{len(files)}"] = read_file(file.root, file.key)
            left -= len(files[f"{len(files) - 1}"])
            if left < 0:
                raise TooLarge(f"the study holds more than {self.max_bytes} bytes; name less, or raise the limit")
        return read_study(files, self.max_bytes, self.pseudonyms)


async def _ask(handle: DeploymentHandle[Any], request: Request, on_progress: OnProgress | None, name: str) -> Finding:
    shared = {"multiplexed_model_id": name} if handle.deployment_name == DEPLOYMENT else {}
    async with aclosing(ask(handle, request, **shared)) as answers:
        async for answer in answers:
            if isinstance(answer, Finding):
                return answer
            if on_progress is not None:
                on_progress(answer)
    raise Fatal("the model ended without an answer")
