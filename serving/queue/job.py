"""A job, and what every queue does with jobs.

A job waits (`queued`), is worked on (`running`), and ends exactly once: `done`, `failed` or `cancelled`. Whoever takes
one holds it for as long as the lease is renewed. When the lease has run out the job may be taken by another; the first
can then neither renew nor end it. All times are the store's own clock, in seconds since 1970, so that the clocks of
machines need not agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINAL: tuple[State, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """Why a job failed: a status as in HTTP, a code for machines, one line for people."""

    status: int
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """What is asked, before it is queued.

    Attributes:
        id: unguessable; body and result lie under it.
        owner: pseudonym of who asked; nobody else sees the job.
        ask: JSON of what is wanted.
        idempotency: digest of the owner and the key that was sent; None: every request is a job of its own.
        digest: of what is wanted, with the body; tells a repeated request from another one under the same key.
    """

    id: str
    owner: str
    ask: str
    idempotency: str | None = None
    digest: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job in the queue.

    Attributes:
        attempts: how often it was taken.
        done: windows that went through the network, of `total`; 0 of 0 before it began.
        result: name of the result that counts; another attempt may have left one that does not.
        expires: when the job and its result are forgotten; None before it ended.
    """

    id: str
    owner: str
    ask: str
    digest: str
    state: State
    attempts: int
    done: int
    total: int
    created: float
    started: float | None
    finished: float | None
    expires: float | None
    result: str | None
    error: JobError | None = field(default=None)

    @property
    def final(self) -> bool:
        """True once nothing changes any more."""
        return self.state in FINAL


class Queue(Protocol):
    """Jobs in a durable store. Every call may come from any thread of any process.

    Each raises `Transient` in one line where the store does not answer.
    """

    def add(self, job: NewJob, *, most_waiting: int) -> Job:
        """Queue a job, durably. The job that is there already under the same idempotency key, else the new one.

        Raises:
            Busy: so many wait already.
        """

    def get(self, job_id: str) -> Job | None:
        """One job; None where there is none, or none any more."""

    def take(self, holder: str, *, lease_s: float, most_attempts: int, keep_s: float) -> Job | None:
        """The job that has waited longest, now held by `holder`; None where none waits.

        A job whose lease ran out waits again. One that was taken `most_attempts` times has failed.
        """

    def renew(self, job_id: str, holder: str, *, lease_s: float, done: int, total: int) -> bool:
        """Hold a job for longer, and say how far it is. False where it is held no more: it was cancelled, or lost."""

    def release(self, job_id: str, holder: str, *, delay_s: float, counts: bool) -> bool:
        """Give a job back, to be taken after `delay_s`. False as for `renew`. Where it `counts` an attempt is spent."""

    def finish(self, job_id: str, holder: str, *, result: str | None, error: JobError | None, keep_s: float) -> bool:
        """End a job: done with a result, failed with an error. True for one caller only, who holds it."""

    def cancel(self, job_id: str, *, keep_s: float) -> Job | None:
        """End a job that has not ended; what there is now. None where there is no such job."""

    def forget(self, job_id: str) -> None:
        """Remove a job that has ended."""

    def purge(self) -> list[str]:
        """Remove jobs that have expired; their ids."""

    def known(self, job_ids: list[str]) -> set[str]:
        """Those of `job_ids` that are in the queue."""

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""

    def close(self) -> None:
        """Let go of the store."""
