"""Charts of many trials as SVG: a score over each parameter, all parameters side by side, scores over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tomoray.training.search import ParameterConfig
from tomoray.training.terminal import value_text

_TOP, _BOTTOM, _LEFT, _RIGHT = 14, 34, 46, 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Where values lie between 0 and 1, and what is written where.

    Attributes:
        name: above or below it.
        at: of each trial; None: it has no value.
        ticks: (place, text).
    """

    name: str
    at: Sequence[float | None]
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One trial in a chart.

    Attributes:
        title: shown when pointed at.
        share: 0 for the worst score, 1 for the best.
        best: whether it is the best of all.
        ended: False where it failed.
    """

    title: str
    share: float
    best: bool
    ended: bool = True

    @property
    def marks(self) -> str:
        """Its classes and colour, as attributes."""
        kind = "best" if self.best else "ended" if self.ended else "failed"
        return f'class="{kind}" style="--share:{20 + 80 * self.share:.0f}%"'


def parameter_axis(path: str, parameter: ParameterConfig, values: Sequence[Any]) -> Axis:
    """The axis of a parameter: choices in their order, numbers from bound to bound."""
    if parameter.choice is not None:
        names = [value_text(value) for value in parameter.choice]
        places = {name: (n + 0.5) / len(names) for n, name in enumerate(names)}
        at = [places.get(value_text(value)) for value in values]
        return Axis(name=path, at=at, ticks=[(place, _short(name)) for name, place in places.items()])
    bounds = parameter.uniform or parameter.log_uniform or parameter.integers
    assert bounds is not None
    low, high = bounds
    middle = math.sqrt(low * high) if parameter.log_uniform else (low + high) / 2

    def place(value: float) -> float:
        if parameter.log_uniform:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    ticks = [(place(value), f"{value:.3g}") for value in (low, middle, high)]
    return Axis(name=path, at=[place(float(value)) for value in values], ticks=ticks)


def score_axis(name: str, scores: Sequence[float | None]) -> Axis:
    """From the lowest score to the highest."""
    known = [score for score in scores if score is not None] or [0.0]
    low, high = min(known), max(known)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    at = [None if score is None else (score - low) / (high - low) for score in scores]
    return Axis(name=name, at=at, ticks=[(part, f"{low + part * (high - low):.3g}") for part in (0.0, 0.5, 1.0)])


def scatter(x: Axis, y: Axis, dots: Sequence[Dot]) -> str:
    """A dot for each trial that has both values."""
    width, height = 360, 220
    inner_x, inner_y = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    drawn = "".join(
        f'<circle {dot.marks} cx="{_LEFT + at_x * inner_x:.1f}" cy="{_TOP + (1 - at_y) * inner_y:.1f}" '
        f'r="{5.5 if dot.best else 4}"><title>{escape(dot.title)}</title></circle>'
        for at_x, at_y, dot in sorted(zip(x.at, y.at, dots, strict=True), key=lambda each: each[2].share)
        if at_x is not None and at_y is not None
    )
    floor = height - _BOTTOM
    below = "".join(
        f'<text x="{_LEFT + place * inner_x:.1f}" y="{floor + 18}" text-anchor="{_anchor(place)}">{escape(text)}</text>'
        for place, text in x.ticks
    )
    return (
        f'<figure class="trials"><figcaption class="mono">{escape(x.name)}</figcaption>'
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(y.name)} by {escape(x.name)}">{_levels(y, width, inner_y)}{below}{drawn}</svg></figure>'
    )


def parallel(axes: Sequence[Axis], dots: Sequence[Dot]) -> str:
    """A line for each trial through the values it has on every axis, the best on top."""
    width, height, top, left = 1060, 320, 40, 80
    step, inner = (width - 2 * left) / max(len(axes) - 1, 1), height - top - 20
    lines = ""
    for number, dot in sorted(enumerate(dots), key=lambda each: each[1].share):
        at = [(left + n * step, axis.at[number]) for n, axis in enumerate(axes)]
        points = " ".join(f"{x:.1f},{top + (1 - y) * inner:.1f}" for x, y in at if y is not None)
        lines += f'<polyline {dot.marks} points="{points}"><title>{escape(dot.title)}</title></polyline>'
    drawn = ""
    for n, axis in enumerate(axes):
        x, last = left + n * step, n == len(axes) - 1
        drawn += f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + inner}"/>'
        drawn += f'<text class="name" x="{x:.1f}" y="{top - 18}" text-anchor="middle">{escape(axis.name)}</text>'
        drawn += "".join(
            f'<text x="{x + (8 if last else -8):.1f}" y="{top + (1 - place) * inner + 4:.1f}" '
            f'text-anchor="{"start" if last else "end"}">{escape(text)}</text>'
            for place, text in axis.ticks
        )
    return (
        f'<figure class="trials"><svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="all trials by all parameters">{lines}{drawn}</svg></figure>'
    )


def learning_curves(
    monitor: str, curves: Sequence[Sequence[tuple[int, float]]], dots: Sequence[Dot], steps: int
) -> str:
    """The score over steps of every trial, the best on top; where a line ends, training ended."""
    width, bottom = 1060, 320
    y = score_axis(monitor, [score for curve in curves for _, score in curve])
    inner_x, inner_y = width - _LEFT - _RIGHT, bottom - _TOP - _BOTTOM
    levels = iter(y.at)
    heights = [[next(levels) or 0.0 for _ in curve] for curve in curves]
    lines = ""
    for number, dot in sorted(enumerate(dots), key=lambda each: each[1].share):
        at = [
            (_LEFT + step / steps * inner_x, _TOP + (1 - height) * inner_y)
            for (step, _), height in zip(curves[number], heights[number], strict=True)
        ]
        if not at:
            continue
        points = " ".join(f"{x:.1f},{level:.1f}" for x, level in at)
        lines += f'<polyline {dot.marks} points="{points}"><title>{escape(dot.title)}</title></polyline>'
        lines += f'<circle {dot.marks} cx="{at[-1][0]:.1f}" cy="{at[-1][1]:.1f}" r="3.5"/>'
    below = "".join(
        f'<text x="{_LEFT + part * inner_x:.1f}" y="{bottom - 12}" text-anchor="{_anchor(part)}">{part * steps:.0f}'
        "</text>"
        for part in (0.0, 0.5, 1.0)
    )
    return (
        f'<figure class="trials"><svg class="chart" viewBox="0 0 {width} {bottom}" role="img" '
        f'aria-label="{escape(monitor)} over steps">{_levels(y, width, inner_y)}{below}{lines}</svg></figure>'
    )


def _levels(y: Axis, width: int, inner: float) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        for place, text in y.ticks
        for level in (_TOP + (1 - place) * inner,)
    )


def _anchor(place: float) -> str:
    return "start" if place < 0.01 else "end" if place > 0.99 else "middle"


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
