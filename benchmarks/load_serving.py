"""Load on a server that runs, by locust (`make tools`): half of the callers wait, half queue jobs and come back.

    tomoray serve run --port 8000
    .tools/bin/locust -f benchmarks/load_serving.py --headless --host http://127.0.0.1:8000 \
        --scan-id SCAN --users 8 --spawn-rate 4 --run-time 30m --csv soak

429 with `Retry-After` is an answer, as the callers come back; whatever else is no success is a failure. `job` is the
time from the 202 until the job has ended.
"""

from __future__ import annotations

import time
from typing import Any

from locust import FastHttpUser, constant, events, task

ENDED = ("done", "failed", "cancelled")


@events.init_command_line_parser.add_listener
def _(parser: Any) -> None:
    parser.add_argument("--scan-id", default="", help="a scan of the server's archive")
    parser.add_argument("--token", default="", help="of `tomoray token`")


class _Caller(FastHttpUser):
    abstract = True
    wait_time = constant(0)

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.asked = {"scan_id": options.scan_id}
        self.headers = {"Authorization": f"Bearer {options.token}"} if options.token else {}

    def ask(self, method: str, path: str, name: str, **request: Any) -> Any:
        """The reply, once the server is not busy."""
        while True:
            with self.client.request(
                method, path, name=name, headers=self.headers, catch_response=True, **request
            ) as reply:
                if reply.status_code != 429:
                    return reply
                reply.success()
            time.sleep(float(reply.headers.get("Retry-After", "1")))


class Waiting(_Caller):
    """Asks, and waits for the answer."""

    @task
    def segment(self) -> None:
        """By reference."""
        self.ask("POST", "/v1/segment", "segment", json=self.asked)


class Queueing(_Caller):
    """Queues a job, follows it, fetches its result and removes it."""

    @task
    def job(self) -> None:
        """A job's whole life."""
        ask = {"operation": "segment", "input": self.asked}
        reply = self.ask("POST", "/v1/jobs", "accept", json=ask)
        if reply.status_code != 202:
            return
        start, place = time.perf_counter(), reply.headers["Location"]
        while (state := self.ask("GET", place, "look").json()["state"]) not in ENDED:
            time.sleep(0.25)
        self.environment.events.request.fire(
            request_type="JOB",
            name="job",
            response_time=1000 * (time.perf_counter() - start),
            response_length=0,
            exception=None if state == "done" else RuntimeError(state),
        )
        self.ask("GET", f"{place}/result", "result")
        self.ask("DELETE", place, "remove")
