"""The jobs API: accept, look, follow, cancel, fetch. Any gateway answers for every job, as nothing is kept here."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.serve.handle import DeploymentHandle

from serving.asks import Accepted, Sent
from serving.bodies import Body
from serving.failures import HttpError
from serving.queue.job import FINAL, Job, NewJob
from serving.queue.place import open_queue
from serving.replies import choose_kind, encode, image_file
from serving.results import Result, read_result
from serving.runner import Desk
from serving.schemas import NIFTI, Failure, JobProgress, JobReply
from serving.vault import BODY, Vault

_LOOK_S = 0.5  # between looks at a job that somebody follows
_HEARTBEAT_S = 15.0


class Jobs:
    """What can be done with jobs over HTTP. Blocking calls run in threads."""

    def __init__(self, desk: Desk, runner: DeploymentHandle[Any]) -> None:
        self._settings = desk.settings
        self._queue = open_queue(desk.queue)
        self._vault = Vault(desk.store)
        self._runner = runner

    async def accept(self, owner: str, accepted: Accepted, body: Body, idempotency_key: str | None) -> Response:
        """202 with the job's place, once it is on disk; for a key that was used the job that is there."""
        digest = hashlib.sha256(f"{accepted.model_dump_json()} {body.sha256}".encode()).hexdigest()
        key = idempotency_key and hashlib.sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()
        new = NewJob(
            id=secrets.token_hex(16),
            owner=owner,
            ask=accepted.model_dump_json(),
            idempotency=key,
            digest=digest,
        )
        job = await asyncio.to_thread(self._add, new, body if isinstance(accepted.input, Sent) else None)
        if job.digest != digest:
            raise HttpError(422, "idempotency_key_reused", "this Idempotency-Key was sent with another request")
        self._runner.wake.remote()
        headers = {"Location": f"/v1/jobs/{job.id}", **_retry(job)}
        return JSONResponse(told(job).model_dump(mode="json"), status_code=202, headers=headers)

    async def counts(self) -> Mapping[str, int]:
        """How many jobs are in each state. Raises `Transient` where the queue does not answer."""
        return await asyncio.to_thread(self._queue.counts)

    async def show(self, owner: str, job_id: str) -> Response:
        """How far a job is."""
        job = await self._job(owner, job_id)
        return JSONResponse(told(job).model_dump(mode="json"), headers=_retry(job))

    async def cancel(self, owner: str, job_id: str) -> Response:
        """End a job, or remove the result of one that has ended."""
        job = await self._job(owner, job_id)
        if job.final:
            await asyncio.to_thread(self._queue.forget, job_id)
            await asyncio.to_thread(self._vault.remove, job_id)
            return Response(status_code=204)
        ended = await asyncio.to_thread(self._queue.cancel, job_id, keep_s=self._settings.keep_hours * 3600)
        await asyncio.to_thread(self._vault.remove, job_id, BODY)
        return JSONResponse(told(ended or job).model_dump(mode="json"))

    async def follow(self, owner: str, job_id: str, request: Request) -> Response:
        """Server-sent events: `progress` as it changes, then one named after the final state."""
        job = await self._job(owner, job_id)
        return StreamingResponse(
            self._events(owner, job, request), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def result(self, owner: str, job_id: str, accept: str | None) -> Response:
        """What was found, as `Accept` asks."""
        kind = choose_kind(accept)
        encoded = await self._of_result(owner, job_id, lambda result: encode(result, kind))
        return Response(encoded.body, media_type=encoded.media_type, headers=dict(encoded.headers))

    async def image(self, owner: str, job_id: str) -> Response:
        """The scan that was looked at, as NIfTI."""
        body = await self._of_result(owner, job_id, image_file)
        headers = {"Content-Disposition": 'attachment; filename="scan.nii.gz"'}
        return Response(body, media_type=NIFTI, headers=headers)

    def _add(self, new: NewJob, body: Body | None) -> Job:
        if body is not None:
            self._vault.write(new.id, BODY, body.file)
        job: Job | None = None
        try:
            job = self._queue.add(new, most_waiting=self._settings.depth)
        finally:
            if body is not None and (job is None or job.id != new.id):
                self._vault.remove(new.id)
        return job

    async def _job(self, owner: str, job_id: str) -> Job:
        job = await asyncio.to_thread(self._queue.get, job_id)
        if job is None or job.owner != owner:  # another's job is as good as none
            raise HttpError(404, "unknown_job", "no such job; it may have expired")
        return job

    async def _of_result(self, owner: str, job_id: str, make: Callable[[Result], Any]) -> Any:
        job = await self._job(owner, job_id)
        if job.error is not None:
            raise HttpError(job.error.status, job.error.code, job.error.message)
        if job.state != "done" or job.result is None:
            raise HttpError(409, "not_done", f"the job is {job.state}; look again later", _retry(job))
        name = job.result

        def read() -> Any:
            with self._vault.open(job_id, name) as file:
                return make(read_result(file))

        try:
            return await asyncio.to_thread(read)
        except FileNotFoundError as error:
            raise HttpError(404, "unknown_job", "the result has expired") from error

    async def _events(self, owner: str, job: Job, request: Request) -> AsyncIterator[str]:
        last, silent_s = "", 0.0
        while True:
            data = told(job).model_dump_json()
            if data != last or job.final:
                yield f"event: {job.state if job.final else 'progress'}\ndata: {data}\n\n"
                last, silent_s = data, 0.0
            elif silent_s >= _HEARTBEAT_S:
                yield ": still there\n\n"
                silent_s = 0.0
            if job.final or await request.is_disconnected():
                return
            await asyncio.sleep(_LOOK_S)
            silent_s += _LOOK_S
            with suppress(HttpError):
                job = await self._job(owner, job.id)


def told(job: Job) -> JobReply:
    """A job as it is told over HTTP."""
    accepted = Accepted.model_validate_json(job.ask)
    here = f"/v1/jobs/{job.id}"
    links = {"self": here, "events": f"{here}/events"}
    if job.state == "done":
        links |= {"result": f"{here}/result", "image": f"{here}/image"}
    return JobReply(
        id=job.id,
        state=job.state,
        operation=accepted.operation,
        model=accepted.model,
        progress=JobProgress(done=job.done, of=job.total),
        attempts=job.attempts,
        created=_time(job.created),
        started=job.started and _time(job.started),
        finished=job.finished and _time(job.finished),
        expires=job.expires and _time(job.expires),
        error=Failure(code=job.error.code, message=job.error.message) if job.error else None,
        links=links,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), UTC)


def _retry(job: Job) -> dict[str, str]:
    return {} if job.state in FINAL else {"Retry-After": "1"}
