"""Ray on this machine, for the length of one command."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from tomoray import settings
from tomoray.errors import Fatal
from tomoray.progress import console

OBJECT_STORE_BYTES = 512 * 1024**2  # jobs pass volumes by their place in the archive, so objects stay small


@contextmanager
def local_ray(*, num_cpus: int | None = None, verbose: bool = False) -> Iterator[None]:
    """A Ray cluster to run jobs on: the one at `RAY_ADDRESS`, else a private one on this machine.

    Inside another `local_ray` it does nothing, so that a command of many stages starts Ray once. The private one
    holds at most 512 MB of shared memory, has no dashboard, reports nothing to anybody, and takes its files away.

    Args:
        num_cpus: tasks at once; None: one for each CPU.
        verbose: show what Ray and the workers print. Errors reach the caller as exceptions either way.

    Raises:
        Fatal: no cluster answers at `RAY_ADDRESS`.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    address = settings.ray_address()
    folder = None if address else tempfile.mkdtemp(prefix="tomoray-", dir="/tmp")  # short: socket names end at 107
    try:
        with console.status("starting Ray"):
            if address:
                _join(address, quiet)
            else:
                _start(folder, num_cpus, quiet)
        with _interrupted_by_sigterm():
            yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str | None, num_cpus: int | None, options: dict[str, Any]) -> None:
    ray.init(
        "local",
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        **options,
    )


def _join(address: str, options: dict[str, Any]) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise Fatal(f"no Ray cluster at RAY_ADDRESS={address}; start one there, or unset RAY_ADDRESS") from error
    try:
        ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        advice = "set RAY_AUTH_MODE=token if it asks for one, or unset RAY_ADDRESS"
        raise Fatal(f"cannot join a Ray cluster at RAY_ADDRESS={address}; {advice}") from error


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does; Ray's own handler would abort and leave its files behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
