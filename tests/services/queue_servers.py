"""PostgreSQL and Redis for tests, as Debian has them: each in a folder of its own, on a free port of this machine.

Wants Debian's packages `postgresql` and `redis-server`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

INSTALL = "apt-get install --no-install-recommends postgresql redis-server"


class Server:
    """A server that can be killed, and started again on what it kept."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.folder = Path(tempfile.mkdtemp(prefix=f"tomoray-{type(self).__name__.lower()}-"))
        self.prepare()
        self.start()

    def start(self) -> None:
        """Return when it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, **self.user())
        until = time.monotonic() + 30
        while time.monotonic() < until and self.process.poll() is None:
            try:
                return self.ask()
            except Exception:
                time.sleep(0.1)
        raise RuntimeError(f"no answer; the log is {self.folder / 'log'}")

    def kill(self) -> None:
        """As a machine that lost its power."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it, and remove what it kept."""
        self.process.terminate()
        self.process.wait(timeout=30)
        shutil.rmtree(self.folder)

    def user(self) -> dict[str, Any]:
        """Whom it runs as."""
        return {}


class Redis(Server):
    """Every change on disk before it is answered."""

    url = property(lambda self: f"redis://127.0.0.1:{self.port}/0")
    durable = ("--appendonly", "yes", "--appendfsync", "always")

    @staticmethod
    def program() -> str | None:
        return shutil.which("redis-server")

    def prepare(self) -> None:
        pass

    def command(self) -> list[str]:
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return [self.program(), *where, "--save", "", *self.durable]

    def ask(self) -> None:
        import redis

        redis.Redis(port=self.port).ping()

    def clear(self) -> None:
        import redis

        redis.Redis(port=self.port).flushall()


class Forgetful(Redis):
    """A Redis that keeps everything in memory."""

    durable = ("--appendonly", "no")


class Postgres(Server):
    """A new cluster; the user `postgres` runs it, as it will not be run by root."""

    url = property(lambda self: f"postgresql://postgres@127.0.0.1:{self.port}/postgres")

    @staticmethod
    def program(name: str = "postgres") -> str | None:
        found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        return str(found[-1]) if found else None

    def prepare(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        initdb = [self.program("initdb"), "-D", str(self.folder / "data"), "--auth", "trust", "--username", "postgres"]
        subprocess.run([*initdb, "--no-sync"], check=True, capture_output=True, cwd=self.folder, **self.user())

    def command(self) -> list[str]:
        where = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        return [self.program(), *where, "-c", "listen_addresses=127.0.0.1"]

    def ask(self) -> None:
        import psycopg

        with psycopg.connect(self.url) as connection:
            connection.execute("SELECT 1")

    def clear(self) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS tomoray_jobs")

    def user(self) -> dict[str, Any]:
        return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
