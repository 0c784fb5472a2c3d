"""Commands that serve: `serve` and `token`."""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from cluster import views
from cluster.answers import Answer, show
from cluster.flags import Debug, Json, make_config_from_flags
from tomoray.tokens import add_token, revoke_token

app = typer.Typer()


@app.command()
def serve(
    run: Annotated[str, typer.Argument(metavar="RUN|CONFIG", help="A run, or a ServeConfig as YAML.")],
    host: Annotated[str | None, typer.Option(help="Address to listen at. [dim]Default: 127.0.0.1[/dim]")] = None,
    port: Annotated[int | None, typer.Option(help="[dim]Default: 8000[/dim]")] = None,
    archive: Annotated[list[str] | None, typer.Option(help="An archive that requests may name; repeatable.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of the model. [dim]Default: 1[/dim]")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="FILE", help="Who may ask, from `tomoray token`.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer over HTTP with DICOM SEG and SR, NIfTI or JSON, until Ctrl-C. Its API is at /openapi.json.

    [bold]Examples[/bold]

    tomoray serve run --port 8000
    tomoray serve serve.yaml
    curl --data-binary @study.zip -H 'Content-Type: application/zip' http://127.0.0.1:8000/v1/segment
    """
    auth = {"tokens": tokens} if tokens else None
    flags = {"host": host, "port": port, "archives": archive, "replicas": replicas, "auth": auth}
    source = run if run.endswith((".yaml", ".yml")) else None
    from tomoray.serving_config import ServeConfig  # a twentieth of the time that help takes

    config = make_config_from_flags(ServeConfig, source, **flags, run=None if source else run)
    endpoint = importlib.import_module("cluster.endpoint")
    stdout = sys.stdout
    with redirect_stdout(sys.stderr), endpoint.serving(config, verbose=debug) as url:
        with redirect_stdout(stdout):
            show(Answer(document={"url": url, "run": run}, view=views.serve(url)), as_json=json)
        endpoint.wait()


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="What the audit log calls whoever uses it.")],
    file: Annotated[Path, typer.Option(metavar="FILE", help="Where digests of tokens are kept.")],
    scope: Annotated[list[str] | None, typer.Option(help="infer, infer:MODEL or metrics; repeatable.")] = None,
    days: Annotated[float, typer.Option(min=0, help="How long it is good for.")] = 90,
    revoke: Annotated[bool, typer.Option("--revoke", help="Forget the token of this name instead.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Make a bearer token for `tomoray serve --tokens FILE`. It is shown once; only its digest is kept.

    [bold]Examples[/bold]

    tomoray token pacs --file tokens.json --days 365
    tomoray token prometheus --file tokens.json --scope metrics
    tomoray token pacs --file tokens.json --revoke
    """
    if revoke:
        revoke_token(file, name)
        return Answer(document={"name": name, "revoked": True}, view=views.plain(f"{name} is revoked"))
    text = add_token(file, name, scope or ["infer"], days)
    return Answer(document={"name": name, "token": text}, view=views.plain(text))
