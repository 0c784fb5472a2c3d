"""The deployment that works on jobs: takes one from the queue, has it examined, keeps what was found.

Nothing here needs to survive: a job is held for as long as its lease is renewed, and taken by another runner after
that. What an attempt found is kept under a name of its own before the queue is told, and the queue believes one holder
only, so that each job ends once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from serving.asks import Accepted, Sent
from serving.examiner import Examiner
from serving.failures import as_http_error
from serving.messages import Progress
from serving.queue.job import Job, JobError
from serving.queue.place import open_queue
from serving.results import Result, write_result
from serving.vault import BODY, Vault
from tomoray.errors import TomoRayError
from tomoray.serving_config import QueueConfig

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

_IDLE_S = 1.0  # between looks at an empty queue; a new job wakes the runner before
_TELL_S = 0.5  # between reports of progress, and looks whether the job was cancelled
_PURGE_S = 60.0
_ORPHAN_S = 3600.0  # a body without a job: its gateway was killed between the two


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """Where jobs and their files are.

    Attributes:
        queue: URL of the queue.
        store: URL of the vault.
        at_once: jobs of a runner at a time.
        settings: of both.
    """

    queue: str
    store: str
    at_once: int
    settings: QueueConfig


class Runner:
    """Works on `at_once` jobs at a time, until its replica ends. A plain class: `serving.app` makes it a deployment."""

    def __init__(self, desk: Desk, examiner: Examiner) -> None:
        self._held: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._settings = desk.settings
        self._queue = open_queue(desk.queue)
        self._vault = Vault(desk.store)
        self._examiner = examiner
        self._holder = secrets.token_hex(8)
        self._news = asyncio.Event()
        works = [self._work() for _ in range(desk.at_once)]
        self._tasks = [asyncio.create_task(task) for task in (*works, self._tidy())]  # Serve calls this in its loop

    def wake(self) -> None:
        """There is a job."""
        self._news.set()

    def check_health(self) -> None:
        """Raise what ended a task, so that Serve begins anew; nothing should."""
        for task in self._tasks:
            if task.done():
                task.result()

    def __del__(self) -> None:
        """The replica ends in order: its jobs wait again at once, and no attempt is counted."""
        for task in self._tasks:
            task.cancel()
        for job_id in list(self._held):
            with suppress(TomoRayError):
                self._queue.release(job_id, self._holder, delay_s=0, counts=False)

    async def _work(self) -> None:
        while True:
            self._news.clear()
            job = await self._patiently(self._take)
            if job is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _IDLE_S)
                continue
            self._held.add(job.id)
            await self._do(job)
            self._held.discard(job.id)

    def _take(self) -> Job | None:
        settings = self._settings
        return self._queue.take(
            self._holder,
            lease_s=settings.lease_s,
            most_attempts=settings.attempts,
            keep_s=settings.keep_hours * 3600,
        )

    async def _do(self, job: Job) -> None:
        """Examine, while the lease is renewed; whichever ends first decides."""
        done = [Progress(done=0, of=0)]
        finding = asyncio.create_task(self._find(job, done))
        holding = asyncio.create_task(self._hold(job, done))
        try:
            await asyncio.wait({finding, holding}, return_when=asyncio.FIRST_COMPLETED)
            if finding.done():  # else its owner cancelled it, or another runner has it: nothing is ours to tell
                await self._end(job, finding)
        finally:
            for task in (finding, holding):
                task.cancel()
            await asyncio.gather(finding, holding, return_exceptions=True)

    async def _find(self, job: Job, done: list[Progress]) -> str:
        """Have the job examined, and keep the result. The name under which it is kept."""
        accepted = Accepted.model_validate_json(job.ask)
        sent = isinstance(accepted.input, Sent)
        body = await asyncio.to_thread(self._vault.open, job.id, BODY) if sent else None
        with body or nullcontext():
            result = await self._examiner.examine(accepted, body, uid_seed=job.id, on_progress=done.append)
        name = f"{job.attempts}-{self._holder}"
        await asyncio.to_thread(self._keep, job.id, name, result)
        return name

    def _keep(self, job_id: str, name: str, result: Result) -> None:
        with tempfile.TemporaryFile() as file:
            write_result(result, file)
            self._vault.write(job_id, name, file)

    async def _hold(self, job: Job, done: list[Progress]) -> None:
        """Renew the lease and tell of progress. Return once the job is not ours any more."""
        ours = True
        while ours:
            await asyncio.sleep(_TELL_S)
            del done[:-1]
            renew = partial(self._queue.renew, done=done[0].done, total=done[0].of, lease_s=self._settings.lease_s)
            try:
                ours = await asyncio.to_thread(renew, job.id, self._holder)
            except TomoRayError as error:  # the queue is away; it knows by itself when the lease ends
                logger.warning("a lease was not renewed: %s", error)

    async def _end(self, job: Job, finding: asyncio.Task[str]) -> None:
        """Tell the queue, until it hears, how the job ended. Trouble that may pass gives it back."""
        error = finding.exception()
        keep_s = self._settings.keep_hours * 3600
        if error is None:
            end = partial(self._queue.finish, result=finding.result(), error=None, keep_s=keep_s)
        else:
            assert isinstance(error, Exception), "a task that was not cancelled"
            problem = as_http_error(error)
            if problem.status in (429, 503) and job.attempts < self._settings.attempts:
                logger.info("job %s waits again: %s", job.id, problem.code)
                end = partial(self._queue.release, delay_s=2.0**job.attempts, counts=problem.status == 503)
            else:
                failed = JobError(status=problem.status, code=problem.code, message=problem.message)
                end = partial(self._queue.finish, result=None, error=failed, keep_s=keep_s)
        if not await self._patiently(lambda: end(job.id, self._holder)):
            return
        with suppress(TomoRayError):  # what stays is tidied up later
            job_now = await asyncio.to_thread(self._queue.get, job.id)
            if job_now is None or job_now.final:
                await asyncio.to_thread(self._vault.remove, job.id, BODY)

    async def _tidy(self) -> None:
        """Remove what expired, and files of jobs that never came to be, now and then."""
        while True:
            try:
                await asyncio.to_thread(self._purge)
            except TomoRayError as error:
                logger.warning("old jobs were not removed: %s", error)
            await asyncio.sleep(_PURGE_S)

    def _purge(self) -> None:
        for job_id in self._queue.purge():
            self._vault.remove(job_id)
        there = self._vault.job_ids()
        known = self._queue.known(there)
        now = time.monotonic()
        self._orphans = {job_id: self._orphans.get(job_id, now) for job_id in there if job_id not in known}
        for job_id, since in self._orphans.items():
            if now - since > _ORPHAN_S:
                self._vault.remove(job_id)

    async def _patiently(self, ask: Callable[[], T]) -> T:
        """What the queue answers, however long it is away."""
        while True:
            try:
                return await asyncio.to_thread(ask)
            except TomoRayError as error:
                logger.error("the queue does not answer: %s", error)
                await asyncio.sleep(_IDLE_S)
