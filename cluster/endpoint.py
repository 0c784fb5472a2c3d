"""A run as an HTTP endpoint on this machine: `serving.app:app` on Ray Serve."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve

from cluster.local import local_ray
from cluster.tls import decrypting
from tomoray.errors import Fatal, Usage
from tomoray.inference.models import open_model
from tomoray.progress import console
from tomoray.serving_config import ServeConfig


@contextmanager
def serving(config: ServeConfig, *, verbose: bool = False) -> Iterator[str]:
    """The URL of the endpoint, which answers from now on and is gone at the end. Port 0 takes a free one.

    With TLS, Ray Serve listens on loopback behind it.

    Raises:
        Usage: it would answer other machines without knowing who asks.
        Fatal: the run cannot be opened, the port is taken, Ray Serve runs already, or the application does not
            start.
    """
    if not (config.auth.configured or _is_loopback(config.host)):
        raise Usage(
            f"--host {config.host} lets other machines ask, and nobody is asked who it is; give --tokens FILE "
            "(tomoray token NAME --file FILE makes it), or auth in the config"
        )
    for model in config.served:
        open_model(model.source, ensemble=model.ensemble)  # before Ray starts, so that a wrong name is told at once
    outer = inner = (config.host, _free_port(config.host, config.port))
    if config.tls.certificate:
        inner = ("127.0.0.1", _free_port("127.0.0.1", 0))
    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray.serve").setLevel(level)
    with local_ray(verbose=verbose):
        if serve.status().proxies:  # its port is not ours to choose, and its applications are not ours to stop
            raise Fatal("Ray Serve runs on this cluster already; there: serve run serving.app:app …")
        try:
            with console.status("starting the endpoint"):
                serve.start(
                    proxy_location="HeadOnly",
                    http_options={"host": inner[0], "port": inner[1]},
                    logging_config={"log_level": level, "enable_access_log": verbose},
                )
                _deploy(config)
            if config.tls.certificate:
                with decrypting(config.tls, *outer, to_port=inner[1]):
                    yield f"https://{outer[0]}:{outer[1]}"
            else:
                yield f"http://{outer[0]}:{outer[1]}"
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_port(host: str, port: int) -> int:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise Fatal(f"cannot listen at {host}:{port} ({error.strerror}); choose another --port or --host") from error
