"""The queue in Redis. Each call is one script, which Redis runs alone and whole.

    {tomoray}:job:<id>                     a hash: everything of a job
    {tomoray}:waiting                      ids by the order in which they came
    {tomoray}:delayed, :running            ids by when they may be taken, and by when their leases end
    {tomoray}:done, :failed, :cancelled    ids by when they expire
    {tomoray}:keys                         idempotency keys to ids

The braces keep all of it on one node of a Redis Cluster.
"""

from __future__ import annotations

from typing import Any

from serving.queue.job import FINAL, Job, JobError, NewJob, State
from tomoray import settings
from tomoray.errors import Busy, Fatal, Transient

_SHARED = """
local function key(name) return '{tomoray}:' .. name end
local function job_key(id) return '{tomoray}:job:' .. id end
local function now()
    local time = redis.call('TIME')
    return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function number(value) return string.format('%.6f', value) end
local function wait_again(id)
    redis.call('HSET', job_key(id), 'state', 'queued', 'holder', '')
    redis.call('ZADD', key('waiting'), redis.call('HGET', job_key(id), 'seq'), id)
end
local function finish(id, state, keep_s)
    local at = now()
    local expires = number(at + keep_s)
    redis.call('HSET', job_key(id), 'state', state, 'holder', '', 'finished', number(at), 'expires', expires)
    redis.call('ZADD', key(state), expires, id)
end
local function remove(id)
    local found = redis.call('HMGET', job_key(id), 'state', 'idempotency')
    if found[2] and found[2] ~= '' then redis.call('HDEL', key('keys'), found[2]) end
    redis.call('ZREM', key(found[1]), id)
    redis.call('DEL', job_key(id))
end
local function held(id, holder)
    local found = redis.call('HMGET', job_key(id), 'state', 'holder')
    return found[1] == 'running' and found[2] == holder
end
"""
_SCRIPTS = {
    "add": """
        local id, owner, ask, idempotency, digest, most = unpack(ARGV)
        if idempotency ~= '' then
            local there = redis.call('HGET', key('keys'), idempotency)
            if there then return redis.call('HGETALL', job_key(there)) end
        end
        local waiting = redis.call('ZCARD', key('waiting')) + redis.call('ZCARD', key('delayed'))
        if waiting >= tonumber(most) then return waiting end
        local seq = redis.call('INCR', key('seq'))
        redis.call('HSET', job_key(id), 'id', id, 'owner', owner, 'ask', ask, 'idempotency', idempotency,
            'digest', digest, 'state', 'queued', 'holder', '', 'attempts', 0, 'done', 0, 'total', 0,
            'created', number(now()), 'seq', seq)
        redis.call('ZADD', key('waiting'), seq, id)
        if idempotency ~= '' then redis.call('HSET', key('keys'), idempotency, id) end
        return redis.call('HGETALL', job_key(id))
    """,
    "take": """
        local holder, lease_s, most_attempts, keep_s = unpack(ARGV)
        local at = number(now())
        for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('delayed'), '-inf', at)) do
            redis.call('ZREM', key('delayed'), id)
            wait_again(id)
        end
        for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('running'), '-inf', at)) do
            redis.call('ZREM', key('running'), id)
            if tonumber(redis.call('HGET', job_key(id), 'attempts')) >= tonumber(most_attempts) then
                redis.call('HSET', job_key(id), 'error_status', 500, 'error_code', 'gave_up', 'error_message',
                    'the job ended the process that worked on it each time')
                finish(id, 'failed', tonumber(keep_s))
            else
                wait_again(id)
            end
        end
        local first = redis.call('ZPOPMIN', key('waiting'))
        if #first == 0 then return false end
        local id = first[1]
        redis.call('HSET', job_key(id), 'state', 'running', 'holder', holder, 'done', 0, 'total', 0)
        redis.call('HINCRBY', job_key(id), 'attempts', 1)
        redis.call('HSETNX', job_key(id), 'started', at)
        redis.call('ZADD', key('running'), number(now() + tonumber(lease_s)), id)
        return redis.call('HGETALL', job_key(id))
    """,
    "renew": """
        local id, holder, lease_s, done, total = unpack(ARGV)
        if not held(id, holder) then return 0 end
        redis.call('ZADD', key('running'), number(now() + tonumber(lease_s)), id)
        redis.call('HSET', job_key(id), 'done', done, 'total', total)
        return 1
    """,
    "release": """
        local id, holder, delay_s, refund = unpack(ARGV)
        if not held(id, holder) then return 0 end
        redis.call('ZREM', key('running'), id)
        redis.call('HINCRBY', job_key(id), 'attempts', -tonumber(refund))
        redis.call('HSET', job_key(id), 'state', 'queued', 'holder', '')
        redis.call('ZADD', key('delayed'), number(now() + tonumber(delay_s)), id)
        return 1
    """,
    "finish": """
        local id, holder, state, keep_s, result, status, code, message = unpack(ARGV)
        if not held(id, holder) then return 0 end
        redis.call('ZREM', key('running'), id)
        if code ~= '' then
            redis.call('HSET', job_key(id), 'error_status', status, 'error_code', code, 'error_message', message)
        end
        if result ~= '' then redis.call('HSET', job_key(id), 'result', result) end
        finish(id, state, tonumber(keep_s))
        return 1
    """,
    "cancel": """
        local id, keep_s = unpack(ARGV)
        local state = redis.call('HGET', job_key(id), 'state')
        if state ~= 'queued' and state ~= 'running' then return 0 end
        for _, name in ipairs({'waiting', 'delayed', 'running'}) do redis.call('ZREM', key(name), id) end
        finish(id, 'cancelled', tonumber(keep_s))
        return 1
    """,
    "forget": """
        local id = ARGV[1]
        if redis.call('HEXISTS', job_key(id), 'expires') == 1 then remove(id) end
        return 1
    """,
    "purge": """
        local gone = {}
        for _, state in ipairs({'done', 'failed', 'cancelled'}) do
            for _, id in ipairs(redis.call('ZRANGEBYSCORE', key(state), '-inf', number(now()), 'LIMIT', 0, 1000)) do
                remove(id)
                table.insert(gone, id)
            end
        end
        return gone
    """,
}


class RedisQueue:
    """`Queue` in Redis, which must write every change down (`appendonly yes`).

    Args:
        url: `redis://host:6379/0`, or `rediss://…` for TLS; the password comes from `TOMORAY_REDIS_PASSWORD`.

    Raises:
        Fatal: the server keeps nothing on disk.
        Transient: it does not answer.
    """

    def __init__(self, url: str) -> None:
        import redis

        self._errors = redis.exceptions
        self._client = redis.Redis.from_url(
            url, password=settings.redis_password(), decode_responses=True, socket_timeout=30, health_check_interval=10
        )
        self._scripts = {name: self._client.register_script(_SHARED + body) for name, body in _SCRIPTS.items()}
        if not self._ask(lambda: self._client.info("persistence")).get("aof_enabled"):
            raise Fatal("the queue's Redis keeps nothing on disk; set appendonly yes, and appendfsync always")

    def add(self, job: NewJob, *, most_waiting: int) -> Job:
        """`Queue.add`."""
        found = self._run("add", job.id, job.owner, job.ask, job.idempotency or "", job.digest, most_waiting)
        if isinstance(found, int):
            raise Busy(f"{found} jobs wait already; try again later")
        return _job(_pairs(found))

    def get(self, job_id: str) -> Job | None:
        """`Queue.get`."""
        found = self._ask(lambda: self._client.hgetall(f"{{tomoray}}:job:{job_id}"))
        return _job(found) if found else None

    def take(self, holder: str, *, lease_s: float, most_attempts: int, keep_s: float) -> Job | None:
        """`Queue.take`."""
        found = self._run("take", holder, lease_s, most_attempts, keep_s)
        return _job(_pairs(found)) if found else None

    def renew(self, job_id: str, holder: str, *, lease_s: float, done: int, total: int) -> bool:
        """`Queue.renew`."""
        return bool(self._run("renew", job_id, holder, lease_s, done, total))

    def release(self, job_id: str, holder: str, *, delay_s: float, counts: bool) -> bool:
        """`Queue.release`."""
        return bool(self._run("release", job_id, holder, delay_s, 0 if counts else 1))

    def finish(self, job_id: str, holder: str, *, result: str | None, error: JobError | None, keep_s: float) -> bool:
        """`Queue.finish`."""
        told = (error.status, error.code, error.message) if error else ("", "", "")
        return bool(self._run("finish", job_id, holder, "failed" if error else "done", keep_s, result or "", *told))

    def cancel(self, job_id: str, *, keep_s: float) -> Job | None:
        """`Queue.cancel`."""
        self._run("cancel", job_id, keep_s)
        return self.get(job_id)

    def forget(self, job_id: str) -> None:
        """`Queue.forget`."""
        self._run("forget", job_id)

    def purge(self) -> list[str]:
        """`Queue.purge`."""
        return list(self._run("purge"))

    def known(self, job_ids: list[str]) -> set[str]:
        """`Queue.known`."""

        def ask() -> list[int]:
            pipeline = self._client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.exists(f"{{tomoray}}:job:{job_id}")
            return pipeline.execute()

        return {job_id for job_id, there in zip(job_ids, self._ask(ask), strict=True) if there}

    def counts(self) -> dict[State, int]:
        """`Queue.counts`."""

        def ask() -> list[int]:
            pipeline = self._client.pipeline()
            for name in ("waiting", "delayed", "running", *FINAL):
                pipeline.zcard(f"{{tomoray}}:{name}")
            return pipeline.execute()

        waiting, delayed, running, *ended = self._ask(ask)
        counts: dict[State, int] = {"queued": waiting + delayed, "running": running}
        counts |= dict(zip(FINAL, ended, strict=True))
        return {state: count for state, count in counts.items() if count}

    def close(self) -> None:
        """`Queue.close`."""
        self._client.close()

    def _run(self, script: str, *arguments: str | float) -> Any:
        return self._ask(lambda: self._scripts[script](keys=["{tomoray}:waiting"], args=list(arguments)))

    def _ask(self, call: Any) -> Any:
        try:
            return call()
        except (self._errors.ConnectionError, self._errors.TimeoutError, self._errors.BusyLoadingError) as error:
            raise Transient("the queue's Redis does not answer; try again") from error
        except self._errors.RedisError as error:
            raise Fatal(f"the queue's Redis refuses ({type(error).__name__}); look at its log") from error


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _job(found: dict[str, str]) -> Job:
    def time(name: str) -> float | None:
        return float(found[name]) if found.get(name) else None

    error = None
    if found.get("error_code"):
        status, code, message = (found[f"error_{name}"] for name in ("status", "code", "message"))
        error = JobError(status=int(status), code=code, message=message)
    return Job(
        id=found["id"],
        owner=found["owner"],
        ask=found["ask"],
        digest=found["digest"],
        state=found["state"],  # type: ignore[arg-type]
        attempts=int(found["attempts"]),
        done=int(found["done"]),
        total=int(found["total"]),
        created=float(found["created"]),
        started=time("started"),
        finished=time("finished"),
        expires=time("expires"),
        result=found.get("result"),
        error=error,
    )
