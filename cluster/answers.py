"""What a command says: one answer on stdout, for people or as JSON; one line on stderr when it fails."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text
from typer.exceptions import TyperException

from tomoray import progress
from tomoray.errors import TomoRayError, Transient, Usage

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a command found.

    Attributes:
        document: what `--json` prints.
        view: what people see; rich markup or a table.
        exit_code: not 0 where the answer itself is bad news (`preprocess --strict` with refusals).
    """

    document: dict[str, Any]
    view: RenderableType
    exit_code: int = DONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a command gave no answer, in one line."""

    kind: str
    message: str
    exit_code: int


def show(answer: Answer, *, as_json: bool) -> None:
    """Print an answer to stdout."""
    if as_json:
        _print_json(answer.document)
    else:
        Console().print(answer.view, soft_wrap=True, highlight=False)


def show_failure(failure: Failure, *, as_json: bool) -> None:
    """Print one line to stderr; with `--json` also `{"error": {"type", "message"}}` to stdout."""
    line = Text.assemble(("Error: ", "bold red"), failure.message)
    progress.console.print(line, soft_wrap=True, highlight=False)
    if as_json:
        _print_json({"error": {"type": failure.kind, "message": failure.message}})


def explain(error: BaseException) -> Failure:
    """One line for any exception, and the exit code that goes with it."""
    cause = _root(error)
    if isinstance(cause, TyperException):
        context = getattr(cause, "ctx", None)
        hint = f"; see: {context.command_path} --help" if context else ""
        return Failure(kind="usage", message=_line(cause.format_message()).rstrip(".") + hint, exit_code=WRONG_USAGE)
    if isinstance(cause, Usage):
        return Failure(kind="usage", message=_line(str(cause)), exit_code=WRONG_USAGE)
    if isinstance(cause, Transient):
        return Failure(kind="transient", message=_line(str(cause)), exit_code=FAILED)
    if isinstance(cause, TomoRayError):
        return Failure(kind="fatal", message=_line(str(cause)), exit_code=FAILED)
    if isinstance(cause, OSError) and cause.filename:
        return Failure(kind="fatal", message=_line(f"{cause.strerror}: {cause.filename}"), exit_code=FAILED)
    what = f"{type(cause).__name__}: {_line(str(cause))}"[:300]
    return Failure(
        kind="unexpected",
        message=f"{what}; this was not expected: run again with --debug for the traceback",
        exit_code=FAILED,
    )


def _root(error: BaseException) -> BaseException:
    """The exception that a Ray task raised, out of the ones that Ray wraps around it."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def _line(text: str) -> str:
    return " ".join(text.split())


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    sys.stdout.flush()
