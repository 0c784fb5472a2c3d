"""Round after round: look what is new, make orders of what is whole, and take every order a step further.

Whatever moment the process is killed at, the next one goes on, and every result is stored once: a job is named by its
order, a study that is sent is kept until the server has it, results are kept until they are stored, and their UIDs
follow from the job.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from serving.client import DICOM, REPORT, Client
from serving.hospital.ledger import OPEN, Ledger, Order, State, read_counts, read_failures
from serving.hospital.pacs import Node, Pacs
from serving.hospital.receiver import Receiver, write_durably
from tomoray.errors import Fatal, Refused, TomoRayError, Usage
from tomoray.hospital_config import HospitalConfig

logger = logging.getLogger("tomoray.hospital")

_RESULTS = {"seg": ("segmentation.dcm", DICOM), "sr": ("report.dcm", REPORT)}
_TICK_S = 1.0  # between rounds, while orders are open
_PATIENCE_S = 5.0  # of one call to the server; the next round comes anyway
_LONGEST_S = 300.0
_LEDGER = "ledger.sqlite"
_STUDY = "study.zip"
_GIVEN_UP = ("too_large", "bad_zip", "idempotency_key_reused")  # what the server will say again of the same study


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wait:
    """How long an order waits after an error, and until when on the monotonic clock."""

    seconds: float = 0.5
    until: float = float("-inf")

    def longer(self) -> _Wait:
        """Twice as long, from now on."""
        seconds = min(2 * self.seconds, _LONGEST_S)
        return _Wait(seconds=seconds, until=time.monotonic() + seconds)


class Hospital:
    """All that a round needs.

    Raises:
        Fatal: another process works with this state, or the receiver's port is taken.
    """

    def __init__(self, config: HospitalConfig, token: str | None) -> None:
        self._config = config
        folder = Path(config.state).expanduser()
        self._orders = folder / "orders"
        for made in (folder, self._orders):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ledger = Ledger(folder / _LEDGER)
        self._client = Client(config.server, token, patience_s=_PATIENCE_S)
        self._pacs = Pacs(config.pacs) if config.pacs else None
        self._receiver = Receiver(config.receiver, folder / "spool") if config.receiver else None
        self._looked, self._next_look_s = self._pacs is None, 0.0
        self._waits: dict[str, _Wait] = {}
        self._registry = CollectorRegistry()
        self._gauge = Gauge("tomoray_hospital_orders", "orders by state", ["state"], registry=self._registry)
        if config.metrics_port:
            start_http_server(config.metrics_port, addr="127.0.0.1", registry=self._registry)

    def close(self) -> None:
        """Stop listening, and let another process work with the state."""
        if self._receiver:
            self._receiver.close()
        self._ledger.close()

    def run(self, stop: threading.Event, *, until_done: bool = False) -> None:
        """Rounds until `stop` is set; or until all that is there is whole and answered."""
        while not stop.is_set():
            counts = self.round()
            if until_done and self._looked and not any(counts[state] for state in OPEN):
                return
            stop.wait(_TICK_S)

    def round(self) -> Mapping[str, int]:
        """Do what can be done now; orders by state. What fails is told in the log, and tried again or given up."""
        self._look()
        self._ledger.route(self._config.rules, time.time(), self._config.settle_s)
        for order in self._ledger.open_orders():
            if self._waits.get(order.id, _Wait()).until <= time.monotonic():
                self._try(order)
        self._tidy()
        counts = self._ledger.counts()
        for state, count in counts.items():
            self._gauge.labels(state).set(count)
        return counts

    def _look(self) -> None:
        """Notice series, the receiver's each time, the PACS's when it is time."""
        now = time.time()
        if self._receiver:
            for series in self._receiver.series():
                self._ledger.notice(series, now)
        if self._pacs and self._config.pacs and time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + self._config.pacs.every_s
            modalities = sorted({modality for rule in self._config.rules for modality in rule.modality})
            try:
                for series in self._pacs.series(modalities):
                    self._ledger.notice(series, now)
                self._looked = True
            except TomoRayError as error:
                logger.warning("the PACS was not looked at: %s", error)

    def _try(self, order: Order) -> None:
        """Take an order a step further, or let it wait, each time longer: whatever is wrong may be mended."""
        try:
            self._advance(order)
            self._waits.pop(order.id, None)
        except TomoRayError as error:
            if isinstance(error, Refused) or str(error).startswith(_GIVEN_UP):
                self._fail(order, str(error))
                return
            wait = self._waits.get(order.id, _Wait()).longer()
            self._waits[order.id] = wait
            logger.warning("order %s waits %.0f s: %s", order.id, wait.seconds, error)

    def _advance(self, order: Order) -> None:
        """One step, written down when it is done."""
        if order.state == "new":
            job = self._send(order)
            self._set(order, "sent", job=job)
            (self._place(order) / _STUDY).unlink(missing_ok=True)
        elif order.state == "sent":
            self._fetch(order)
        elif order.state == "found":
            self._give_back(order)
            self._set(order, "returned")

    def _send(self, order: Order) -> str:
        """Queue the series at the server; the job's name. Sent again, it is the same job."""
        series, rule = order.series, order.rule
        known_as = self._config.pacs.known_as if self._config.pacs and series.origin == "pacs" else None
        if known_as:
            reference = {"dicomweb": known_as, "study": series.study_uid, "series": series.series_uid}
            job = self._client.submit(rule.operation, reference, idempotency_key=order.id, model=rule.model)
        else:
            study = self._place(order) / _STUDY  # kept until the server has it: with another body it were another job
            if not study.exists():
                _pack(self._files(order), study)
            job = self._client.submit(rule.operation, study, idempotency_key=order.id, model=rule.model)
        return job.id

    def _files(self, order: Order) -> Iterator[bytes]:
        origin = self._pacs if order.series.origin == "pacs" else self._receiver
        if origin is None:
            raise Fatal(f"the {order.series.origin} that the series came from is no longer in the config")
        return origin.files(order.series)

    def _fetch(self, order: Order) -> None:
        """Keep the results on disk, once they are there."""
        assert order.job is not None, "it was sent"
        try:
            job = self._client.job(order.job)
        except Usage as error:
            if not str(error).startswith("unknown_job"):
                raise
            shutil.rmtree(self._place(order), ignore_errors=True)  # results of two jobs would not refer to each other
            self._set(order, "new")  # it waited so long that the server forgot it
            return
        if job.state in ("failed", "cancelled"):
            self._fail(order, (job.document.get("error") or {}).get("message") or f"the job was {job.state}")
        elif job.state == "done":
            for kind in order.rule.wanted:
                name, accept = _RESULTS[kind]
                if not (self._place(order) / name).exists():
                    write_durably(self._place(order) / name, job.result(accept).content)
            self._set(order, "found")

    def _give_back(self, order: Order) -> None:
        names = [_RESULTS[kind][0] for kind in order.rule.wanted]
        place = Node(self._config.back_to) if self._config.back_to else self._pacs
        assert place is not None, "the config knows a way back"
        place.store([(self._place(order) / name).read_bytes() for name in names])

    def _tidy(self) -> None:
        """Remove what nobody needs any more: files of orders that have ended, series that the receiver got."""
        needed = {order.id for order in self._ledger.open_orders()}
        for folder in self._orders.iterdir():
            if folder.name not in needed:
                shutil.rmtree(folder, ignore_errors=True)
        if self._receiver:
            for series in self._receiver.series():
                if not self._ledger.is_wanted(series.series_uid):
                    self._receiver.forget(series.series_uid)

    def _fail(self, order: Order, why: str) -> None:
        logger.error("order %s failed: %s", order.id, why)
        self._ledger.set(order, "failed", time.time(), error=why)

    def _set(self, order: Order, state: State, job: str | None = None) -> None:
        logger.info("order %s: %s", order.id, state)
        self._ledger.set(order, state, time.time(), job=job)

    def _place(self, order: Order) -> Path:
        return self._orders / order.id


def status(folder: Path) -> dict[str, Any]:
    """How far whoever works with this state is. Raises `Usage` where nobody ever did."""
    ledger = folder / _LEDGER
    return {**read_counts(ledger), "failures": read_failures(ledger)}


def _pack(files: Iterator[bytes], path: Path) -> None:
    """The same zip for the same files, under its name when all of it is on disk."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
            for number, data in enumerate(files):
                packed.writestr(zipfile.ZipInfo(f"{number:06}.dcm"), data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
