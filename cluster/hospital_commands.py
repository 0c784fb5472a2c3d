"""The command that ties a model to a hospital: `pacs`."""

from __future__ import annotations

import importlib
import logging
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import views
from cluster.answers import Answer
from cluster.flags import Debug, Json
from tomoray import settings
from tomoray.config import load_config

app = typer.Typer()


@app.command()
def pacs(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="HospitalConfig as YAML (docs/hospital.md).")],
    once: Annotated[bool, typer.Option("--once", help="End when all that is there now is answered.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how far a running one is, and end.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Watch a PACS: each series that a rule matches goes to a model, and SEG and SR go back, once, until Ctrl-C.

    Killed and started again, it goes on where it was.

    [bold]Examples[/bold]

    tomoray pacs hospital.yaml
    tomoray pacs hospital.yaml --once --json
    tomoray pacs hospital.yaml --status
    """
    wanted = load_config(config, importlib.import_module("tomoray.hospital_config").HospitalConfig)
    hospital = importlib.import_module("serving.hospital.loop")
    if not status:
        _log(debug=debug)
        _run(hospital.Hospital(wanted, settings.server_token()), once=once)
    found = hospital.status(Path(wanted.state).expanduser())
    return Answer(document=found, view=views.hospital(found))


def _run(hospital: Any, *, once: bool) -> None:
    """Until it is done, or somebody says stop."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        hospital.run(stop, until_done=once)
    finally:
        hospital.close()


def _log(*, debug: bool) -> None:
    """What happens to orders, on stderr, and of others nothing: what HTTP and DICOM say of themselves holds UIDs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    own = logging.getLogger("tomoray.hospital")
    own.handlers, own.propagate = [handler], False
    own.setLevel(logging.DEBUG if debug else logging.INFO)
