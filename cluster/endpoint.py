"""A run as an HTTP endpoint on this machine: `serving.app:app` on Ray Serve."""

from __future__ import annotations

import importlib
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve

from cluster.local import local_ray
from tomoray.errors import Fatal
from tomoray.progress import console
from tomoray.runs import open_run
from tomoray.serving_config import ServeConfig


@contextmanager
def serving(config: ServeConfig, *, verbose: bool = False) -> Iterator[str]:
    """The URL of the endpoint, which answers from now on and is gone at the end. Port 0 takes a free one.

    Raises:
        Fatal: the run cannot be opened, the port is taken, Ray Serve runs already, or the application does not
            start.
    """
    for model in config.served:
        open_run(model.source)  # before Ray starts, so that a wrong name is told at once
    port = _free_port(config.host, config.port)
    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray.serve").setLevel(level)
    with local_ray(verbose=verbose):
        if serve.status().proxies:  # its port is not ours to choose, and its applications are not ours to stop
            raise Fatal("Ray Serve runs on this cluster already; there: serve run serving.app:app …")
        try:
            with console.status("starting the endpoint"):
                serve.start(
                    proxy_location="HeadOnly",
                    http_options={"host": config.host, "port": port},
                    logging_config={"log_level": level, "enable_access_log": verbose},
                )
                _deploy(config)
            yield f"http://{config.host}:{port}"
        finally:
            serve.shutdown()


def wait() -> None:
    """Return never; Ctrl-C raises `KeyboardInterrupt`."""
    threading.Event().wait()


def _deploy(config: ServeConfig) -> None:
    application = importlib.import_module("serving.app").app(config)
    try:
        serve.run(application, name="tomoray")
    except RuntimeError as error:  # a replica that could not be made
        raise Fatal(
            f"the endpoint for {', '.join(model.source for model in config.served)} did not start; --debug shows why"
        ) from error


def _free_port(host: str, port: int) -> int:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise Fatal(f"cannot listen at {host}:{port} ({error.strerror}); choose another --port or --host") from error
