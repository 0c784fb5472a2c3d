"""Small charts as SVG and HTML, without script: histograms, bars, and tables shaded by count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

import numpy as np
import numpy.typing as npt

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 320, 150, 8, 26, 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Bins:
    """Counts between edges: `counts[i]` lie from `edges[i]` to `edges[i + 1]`."""

    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


def bin_values(values: Sequence[float], most: int = 24) -> Bins:
    """Bins of a round width (1, 2 or 5 times a power of ten), at most `most`; one bin where all values are alike."""
    array = np.asarray(values, dtype=np.float64)
    low, high = float(array.min()), float(array.max())
    if high - low < 1e-9:
        width = 10.0 ** floor(log10(abs(low) or 1.0)) / 10
        return Bins(edges=np.array([low - width / 2, low + width / 2]), counts=np.array([len(array)], dtype=np.int64))
    rough = (high - low) / (most - 2)
    power = 10.0 ** floor(log10(rough))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    first, last = floor(low / width + 1e-9), ceil(high / width - 1e-9)
    edges = np.asarray(np.arange(first, max(last, first + 1) + 1) * width, dtype=np.float64)
    inside = array.clip(edges[0], edges[-1])
    return Bins(edges=edges, counts=np.histogram(inside, edges)[0].astype(np.int64))


def histogram(title: str, bins: Bins, unit: str, *, of: str = "scans", note: str = "") -> str:
    """A histogram as a figure: bars with counts when pointed at, the axis in `unit`, the tallest bar's count."""
    tallest = max(int(bins.counts.max()), 1)
    span = float(bins.edges[-1] - bins.edges[0])
    inner = _WIDTH - 2 * _LEFT
    at = [_LEFT + inner * float(edge - bins.edges[0]) / span for edge in bins.edges]
    floor_y = _HEIGHT - _BOTTOM
    gap = 1.5 if len(bins.counts) < 60 else 0.0
    bars = "".join(
        f'<rect x="{at[i] + gap / 2:.1f}" y="{floor_y - height:.1f}" width="{max(at[i + 1] - at[i] - gap, 0.5):.1f}" '
        f'height="{height:.1f}"><title>{_edge(bins.edges[i])} to {_edge(bins.edges[i + 1])} {escape(unit)}: '
        f"{count} {escape(of)}</title></rect>"
        for i, count in enumerate(bins.counts.tolist())
        if count
        for height in (max(1.5, (floor_y - _TOP) * count / tallest),)
    )
    middle = len(bins.edges) // 2
    ticks = "".join(
        f'<text x="{at[i]:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{_edge(bins.edges[i])}</text>'
        for i, anchor in {0: "start", middle: "middle", len(at) - 1: "end"}.items()
    )
    return (
        f'<figure class="plot"><figcaption><b>{escape(title)}</b> <span>{escape(unit)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<line x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{floor_y}" y2="{floor_y}"/>{bars}{ticks}'
        f'<text x="{_WIDTH - _LEFT}" y="11" text-anchor="end">{escape(note or f"up to {tallest} {of}")}</text>'
        "</svg></figure>"
    )


def bars(counts: Mapping[str, int], *, mono: bool = False, of: int | None = None) -> str:
    """A bar for each name in the order given, with its count and its share of `of` (else of all)."""
    longest, total = max([*counts.values(), 1]), of or sum(counts.values()) or 1
    rows = "".join(
        f'<tr><td class="{"mono" if mono else "name"}">{escape(name)}</td>'
        f'<td class="wide"><span class="meter"><i style="width:{100 * count / longest:.1f}%"></i></span></td>'
        f'<td class="number">{count}</td><td class="number share">{count / total:.0%}</td></tr>'
        for name, count in counts.items()
    )
    return f'<table class="bars">{rows}</table>'


def pairs(counts: Mapping[str, tuple[int, int]], names: tuple[str, str]) -> str:
    """A bar in two parts for each name: first and second count, to one scale."""
    longest = max([sum(both) for both in counts.values()] + [1])
    rows = "".join(
        f'<tr><td class="name">{escape(name)}</td><td class="wide"><span class="meter two">'
        f'<i style="width:{100 * first / longest:.1f}%" title="{first} {names[0]}"></i>'
        f'<i class="second" style="width:{100 * second / longest:.1f}%" title="{second} {names[1]}"></i></span></td>'
        f'<td class="number">{first}</td><td class="number second">{second or ""}</td></tr>'
        for name, (first, second) in counts.items()
    )
    head = f'<tr><th></th><th></th><th class="number">{names[0]}</th><th class="number">{names[1]}</th></tr>'
    return f'<table class="bars">{head}{rows}</table>'


def heat(
    rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], tuple[int, str]], corner: str
) -> str:
    """A table of counts whose cells are shaded by them; each cell has a small second line."""
    most = max([count for count, _ in cells.values()] + [1])
    head = "".join(f'<th class="number">{escape(column)}</th>' for column in columns)
    body = ""
    for row in rows:
        line = ""
        for column in columns:
            count, small = cells.get((row, column), (0, ""))
            shade = f' style="--heat:{5 + 45 * count / most:.0f}%"' if count else ""
            text = f"{count}" if count else ("0" if small else "")
            line += f'<td class="number{" hot" if count else ""}"{shade}>{text}<small>{escape(small)}</small></td>'
        body += f'<tr><td class="name">{escape(row)}</td>{line}</tr>'
    return f'<table class="heat"><tr><th>{escape(corner)}</th>{head}</tr>{body}</table>'


def curves(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    top: float | None = None,
    marked: bool = False,
) -> str:
    """Lines over training steps in one chart, from 0 up.

    Args:
        title: for those who cannot see it.
        series: (step, value) by name; one that is longer than the chart is wide also gets its running mean.
        top: the largest value shown; None: that of the values.
        marked: with a dot at each value.
    """
    width, height, left, bottom = 560, 250, 62, 34
    steps = [step for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    highest = top or max(max(values), 0.0) or 1.0
    lowest = min(0.0, *values) if len(values) > 1 else min(0.0, values[0])
    first, span = min(steps), max(max(steps) - min(steps), 1.0)

    def place(step: float, value: float) -> tuple[float, float]:
        x = left + (step - first) / span * (width - left - 8)
        share = (min(value, highest) - lowest) / (highest - lowest)
        return x, 8 + (1 - share) * (height - bottom - 8)

    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{lowest + part * (highest - lowest):.2g}</text>'
        for part in (0.0, 0.25, 0.5, 0.75, 1.0)
        for y in (8 + (1 - part) * (height - bottom - 8),)
    )
    ticks = "".join(
        f'<text x="{left + part * (width - left - 8):.1f}" y="{height - 12}" text-anchor="{anchor}">'
        f"{first + part * span:.0f}</text>"
        for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    drawn = "".join(_curve(n, name, points, place, marked) for n, (name, points) in enumerate(series.items()))
    names = "".join(
        f'<span><i class="series-{n % _COLOURS}"></i>{escape(name)}</span>' for n, name in enumerate(series)
    )
    legend = f'<figcaption class="legend">{names}</figcaption>' if len(series) > 1 else ""
    return (
        f'<figure class="curves">{legend}<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)} over steps">{grid}{ticks}{drawn}</svg></figure>'
    )


_COLOURS = 6


def _curve(
    number: int,
    name: str,
    points: Sequence[tuple[float, float]],
    place: Callable[[float, float], tuple[float, float]],
    marked: bool,
) -> str:
    kind = f"series-{number % _COLOURS}"
    smooths = len(points) > 60 and not marked
    at = [place(*point) for point in points]
    lines = f'<polyline class="{kind}{" raw" if smooths else ""}" points="{_joined(at)}"/>'
    if smooths:
        reach = len(points) // 40
        values = np.pad([value for _, value in points], reach, mode="edge")
        means = np.convolve(values, np.ones(2 * reach + 1) / (2 * reach + 1), mode="valid").tolist()
        smooth = [place(step, mean) for (step, _), mean in zip(points, means, strict=True)]
        lines += f'<polyline class="{kind}" points="{_joined(smooth)}"/>'
    if marked:
        lines += "".join(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(name)} {value:.3f} at step '
            f"{step:.0f}</title></circle>"
            for (x, y), (step, value) in zip(at, points, strict=True)
        )
    return lines


def _joined(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _edge(value: float) -> str:
    return f"{value:.6g}"
