"""Flags that commands share, and configs from flags."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tomoray.config import ConfigT, load_config, make_config

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; logs and bars stay on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what the workers print.")]
ArchiveUrl = Annotated[str, typer.Argument(metavar="ARCHIVE", help="A path, or s3://bucket/prefix.")]


def config_of(model: type[ConfigT], source: str | None, **flags: Any) -> ConfigT:
    """A config from the flags that were given, over a file or recipe where one is named."""
    given = {name: value for name, value in flags.items() if value is not None}
    return load_config(source, model, given) if source else make_config(model, given, "command line")
