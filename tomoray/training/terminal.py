"""How a training or a tuning goes, on stderr: a live table in a terminal, a line for each validation elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tomoray.progress import console
from tomoray.training.search import Standing

_ROWS = 8  # validations in the table: the newest, and the best one before them
_DRAWS_PER_S = 2
_STYLES = {"training": "bold", "waiting": "dim", "stopped": "dim", "failed": "red"}

Line = Mapping[str, Any]


class Metrics:
    """What is known of a training so far. Steps that are done again after a loss take the place of those before.

    Args:
        steps: of the whole run.
        monitor: the score by which validations are compared.
        higher_is_better: whether more of it is.
    """

    def __init__(self, steps: int, *, monitor: str, higher_is_better: bool = True) -> None:
        self._steps, self._monitor, self._sign = steps, monitor, 1 if higher_is_better else -1
        self._now: Line | None = None
        self._validations: list[Line] = []
        self._told = 0
        self._bar = Progress(
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
        )
        self._task = self._bar.add_task("", total=steps)

    def take(self, lines: Sequence[Line]) -> list[str]:
        """Add lines of the history; one line of text for each validation among them that is new."""
        told = []
        for line in lines:
            self._validations = [each for each in self._validations if each["step"] < line["step"]]
            first = self._now is None
            self._now = line
            if line.get("scores"):
                self._validations.append(line)
            if first:  # those before were done by others, in another time
                self._bar.reset(self._task, total=self._steps, completed=line["step"])
            else:
                self._bar.update(self._task, completed=line["step"])
            if line.get("scores") and line["step"] > self._told:
                self._told = line["step"]
                told.append(self._line(line))
        return told

    def draw(self) -> RenderableType:
        """The table, with the bar below it."""
        if self._now is None:
            return Group(self._bar)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        names = list(self._shown(self._validations[-1] if self._validations else {}))
        for name in ("step", "loss", "learning rate", "patches/s", "waited", *names):
            table.add_column(name, justify="right")
        table.add_column()
        best, last = self._best(), self._validations[-_ROWS:]
        for line in [best, *last] if best is not None and best not in last else last:
            table.add_row(*self._cells(line, names), "best" if line is best else "")
        if self._now not in last:
            table.add_row(*self._cells(self._now, names), style="dim")
        return Group(table, self._bar)

    def _cells(self, line: Line, names: Sequence[str]) -> list[str]:
        scores = self._shown(line)
        return [
            str(line["step"]),
            f"{line['loss']:.4g}",
            f"{line['learning_rate']:.3g}",
            f"{line['samples_per_s']:.1f}",
            f"{line['waited_share']:.1%}",
            *(f"{scores[name]:.3f}" if name in scores else "" for name in names),
        ]

    def _line(self, line: Line) -> str:
        step, loss, rate, speed, waited, *_ = self._cells(line, ())
        scores = ", ".join(f"{name} {score:.3f}" for name, score in self._shown(line).items())
        text = f"step {step}/{self._steps}: {scores}, loss {loss}, learning rate {rate}, {speed} patches/s, "
        best = self._best()
        text += f"waited {waited}"
        if best is not None and best is not line:
            text += f", best {best['scores'][self._monitor]:.3f} at step {best['step']}"
        left = self._bar.tasks[0].time_remaining
        return text + (f", {_clock(left)} left" if left else "")

    def _shown(self, line: Line) -> dict[str, float]:
        """The score that counts, and those of its parts."""
        scores = line.get("scores", {})
        return {name: value for name, value in scores.items() if name.split("/")[0] == self._monitor}

    def _best(self) -> Line | None:
        scored = [line for line in self._validations if self._monitor in line["scores"]]
        return max(scored, key=lambda line: self._sign * line["scores"][self._monitor], default=None)


def trials_table(standings: Sequence[Standing], monitor: str, steps: int, most: int | None = None) -> Table:
    """How trials stand, in the order given, one a row.

    Args:
        standings: of the trials.
        monitor: the score that counts.
        steps: of a whole trial.
        most: rows; None: all of them.
    """
    paths = sorted({path for each in standings for path in each.values})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("trial")
    table.add_column("state")
    for name in ("steps", monitor, "best at", *paths):
        table.add_column(escape(name), justify="right")
    for each in standings[:most]:
        table.add_row(
            each.name,
            each.state,
            f"{each.steps}/{steps}",
            "-" if each.score is None else f"{each.score:.3f}",
            "-" if each.best_step is None else str(each.best_step),
            *(escape(value_text(each.values[path])) for path in paths),
            style=_STYLES.get(each.state),
        )
    if most is not None and len(standings) > most:
        table.add_row(f"and {len(standings) - most} more", style="dim")
    return table


def value_text(value: Any) -> str:
    """A value of a search space as a person would write it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(
            value_text(each) if key == "name" else f"{key} {value_text(each)}" for key, each in value.items()
        )
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def show(draw: Callable[[], RenderableType]) -> Iterator[None]:
    """Keep what `draw` gives at the bottom of the terminal while the body runs; elsewhere show nothing."""
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=draw, console=console, refresh_per_second=_DRAWS_PER_S):
        yield


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
