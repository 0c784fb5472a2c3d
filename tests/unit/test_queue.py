from __future__ import annotations

import threading
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from serving.queue.job import JobError, NewJob
from serving.queue.place import open_queue
from tomoray.errors import Busy

NUMBERS = count()
LEASE = {"lease_s": 30, "most_attempts": 3, "keep_s": 60}


@pytest.fixture
def queue_url(tmp_path):
    return str(tmp_path / "queue.sqlite")


@pytest.fixture
def queue(queue_url):
    with closing(open_queue(queue_url)) as queue:
        yield queue


def add(queue, *, key=None, most_waiting=1000, digest=""):
    new = NewJob(id=f"job-{next(NUMBERS)}", owner="somebody", ask="{}", idempotency=key, digest=digest)
    return queue.add(new, most_waiting=most_waiting)


def test_jobs_are_taken_in_the_order_they_came(queue):
    added = [add(queue).id for _ in range(5)]
    assert [queue.take("a", **LEASE).id for _ in range(5)] == added
    assert queue.take("a", **LEASE) is None


def test_same_key_is_the_same_job_from_many_threads(queue):
    found = []
    threads = [threading.Thread(target=lambda: found.append(add(queue, key="k").id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert queue.counts() == {"queued": 1}


def test_full_queue_takes_no_more_and_still_knows_its_keys(queue):
    first = add(queue, key="k", most_waiting=1)
    with pytest.raises(Busy, match="1 jobs wait already"):
        add(queue, most_waiting=1)
    assert add(queue, key="k", most_waiting=1).id == first.id


def test_each_job_is_taken_once_by_many_threads(queue):
    added = {add(queue).id for _ in range(40)}
    taken = []

    def take(holder):
        while job := queue.take(holder, **LEASE):
            taken.append(job.id)

    threads = [threading.Thread(target=take, args=(f"holder-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 40
    assert set(taken) == added


def test_lost_lease_lets_another_take_the_job_and_only_that_one_ends_it(queue):
    job = add(queue)
    assert queue.take("first", **{**LEASE, "lease_s": 1}).attempts == 1
    assert queue.take("second", **LEASE) is None
    time.sleep(1.2)
    assert queue.take("second", **LEASE).attempts == 2
    assert not queue.renew(job.id, "first", lease_s=30, done=1, total=2)
    assert not queue.finish(job.id, "first", result="1", error=None, keep_s=60)
    assert queue.finish(job.id, "second", result="2", error=None, keep_s=60)
    assert not queue.finish(job.id, "second", result="3", error=None, keep_s=60)
    assert (queue.get(job.id).state, queue.get(job.id).result) == ("done", "2")


def test_job_that_kills_whoever_takes_it_fails_in_the_end(queue):
    job = add(queue)
    for _ in range(LEASE["most_attempts"]):
        assert queue.take("victim", **{**LEASE, "lease_s": 0.01}).id == job.id
        time.sleep(0.05)
    assert queue.take("victim", **LEASE) is None
    assert (queue.get(job.id).state, queue.get(job.id).error.code) == ("failed", "gave_up")


def test_released_job_waits_for_its_delay_and_may_keep_its_attempt(queue):
    job = add(queue)
    queue.take("a", **LEASE)
    assert queue.release(job.id, "a", delay_s=1, counts=False)
    assert queue.take("a", **LEASE) is None
    time.sleep(1.2)
    assert queue.take("a", **LEASE).attempts == 1


def test_progress_is_told_while_the_lease_is_renewed(queue):
    job = add(queue)
    queue.take("a", **LEASE)
    assert queue.renew(job.id, "a", lease_s=30, done=3, total=8)
    assert (queue.get(job.id).done, queue.get(job.id).total) == (3, 8)


@pytest.mark.parametrize("running", [False, True])
def test_cancelled_job_is_held_by_nobody(queue, running):
    job = add(queue)
    if running:
        queue.take("a", **LEASE)
    assert queue.cancel(job.id, keep_s=60).state == "cancelled"
    assert not queue.renew(job.id, "a", lease_s=30, done=0, total=0)
    assert not queue.finish(job.id, "a", result="1", error=None, keep_s=60)
    assert queue.take("a", **LEASE) is None


def test_cancelling_what_has_ended_changes_nothing(queue):
    job = add(queue)
    queue.take("a", **LEASE)
    queue.finish(job.id, "a", result=None, error=JobError(status=422, code="localizer", message="no"), keep_s=60)
    assert queue.cancel(job.id, keep_s=60).state == "failed"
    assert queue.cancel("nothing", keep_s=60) is None


def test_expired_jobs_are_purged_with_their_keys(queue):
    kept, gone = add(queue, key="kept"), add(queue, key="gone")
    for job, keep_s in ((kept, 60), (gone, 0)):
        queue.take("a", **LEASE)
        queue.finish(job.id, "a", result="1", error=None, keep_s=keep_s)
    assert queue.purge() == [gone.id]
    assert queue.known([kept.id, gone.id]) == {kept.id}
    assert add(queue, key="gone").id != gone.id


def test_forgotten_job_is_gone_with_its_key_and_one_that_has_not_ended_stays(queue):
    ended, waiting = add(queue, key="k"), add(queue)
    queue.take("a", **LEASE)
    queue.finish(ended.id, "a", result="1", error=None, keep_s=60)
    for job in (ended, waiting):
        queue.forget(job.id)
    assert queue.known([ended.id, waiting.id]) == {waiting.id}
    assert add(queue, key="k").id != ended.id


def test_job_survives_its_process(queue, queue_url):
    job = add(queue, digest="d")
    with closing(open_queue(queue_url)) as other:
        assert other.get(job.id) == job


def test_file_is_for_its_owner_only(queue_url):
    open_queue(queue_url)
    assert Path(queue_url).stat().st_mode & 0o077 == 0
