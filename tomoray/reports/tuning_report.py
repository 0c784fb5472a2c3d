"""What a tuning found, as one HTML file: how trials rank, what matters, how each one learned."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import yaml

from tomoray.reports.pages import render_page, section
from tomoray.reports.tuning_charts import Dot, learning_curves, parallel, parameter_axis, scatter, score_axis
from tomoray.runs import read_history
from tomoray.training.search import Standing
from tomoray.training.terminal import value_text
from tomoray.tunings import Tuning

_STYLES = ("report.css", "tuning.css")


def render(tuning: Tuning, ranking: Sequence[Standing]) -> str:
    """The report as HTML text.

    Args:
        tuning: where its runs are.
        ranking: its trials, best first.
    """
    dots, space = _dots(ranking, tuning), tuning.config.space
    scores = score_axis(tuning.monitor, [each.score for each in ranking])
    axes = [
        parameter_axis(path, parameter, [each.values[path] for each in ranking])
        for path, parameter in sorted(space.items())
    ]
    steps = tuning.config.base.steps
    curves = [tuning.scores(read_history(tuning.store.child(each.name))) for each in ranking]
    title = f"Tuning {tuning.store.url.rstrip('/').rpartition('/')[2]}"
    best = tuning.config.fields_of(ranking[0].values)
    by_parameter = "".join(f'<div class="card">{scatter(axis, scores, dots)}</div>' for axis in axes)
    body = [
        f'<h1>{escape(title)}</h1><p class="lead">{escape(_lead(tuning, ranking))}</p>',
        _cards(tuning, ranking),
        section("Trials", f'<div class="card scroll">{_table(tuning, ranking)}</div>'),
        section(
            f"{tuning.monitor} by parameter",
            f'<div class="grid-of">{by_parameter}</div>',
            "The best of each trial's validations; the best trial is orange. Point at a dot for its trial.",
        ),
        section("All parameters", f'<div class="card">{parallel([*axes, scores], dots)}</div>'),
        section(
            f"{tuning.monitor} over steps",
            f'<div class="card">{learning_curves(tuning.monitor, curves, dots, steps)}</div>',
            "A line that ends early was stopped, or failed.",
        ),
        section(
            "The best config",
            f'<div class="card"><pre class="mono">{escape(yaml.safe_dump(best, sort_keys=False))}</pre></div>',
        ),
    ]
    return render_page(title, body, styles=_STYLES)


def _dots(ranking: Sequence[Standing], tuning: Tuning) -> list[Dot]:
    """By rank rather than score: one trial that diverged shall not make all others look alike."""
    last = max(sum(each.score is not None for each in ranking) - 1, 1)
    return [
        Dot(
            title=f"{each.name} ({each.state}), {tuning.monitor} {_score(each.score)}: "
            + ", ".join(f"{path} {value_text(value)}" for path, value in each.values.items()),
            share=0.0 if each.score is None else max(0.0, 1 - number / last),
            best=number == 0 and each.ended,
            ended=each.ended,
        )
        for number, each in enumerate(ranking)
    ]


def _lead(tuning: Tuning, ranking: Sequence[Standing]) -> str:
    what = ", ".join(tuning.config.base.labels) or tuning.config.base.task
    return (
        f"{what}: {len(ranking)} trials of {len(tuning.config.space)} parameters, compared by {tuning.monitor} on "
        f"validation patients. The best of many is too good on these: evaluate it on test patients."
    )


def _cards(tuning: Tuning, ranking: Sequence[Standing]) -> str:
    best = ranking[0]
    whole = len(ranking) * tuning.config.base.steps
    count = {state: sum(each.state == state for each in ranking) for state in ("done", "stopped", "failed")}
    cards = [
        f"<b>{_score(best.score)}</b><span>{escape(tuning.monitor)} of {escape(best.name)}</span>",
        *(f"<b>{number}</b><span>{state}</span>" for state, number in count.items()),
        f"<b>{sum(each.steps for each in ranking) / whole:.0%}</b><span>of the steps of all trials were trained</span>",
    ]
    return '<div class="cards">' + "".join(f'<div class="card">{card}</div>' for card in cards) + "</div>"


def _table(tuning: Tuning, ranking: Sequence[Standing]) -> str:
    paths = sorted(tuning.config.space)
    names = ("steps", tuning.monitor, "best at", *paths)
    head = "<th>trial</th><th>state</th>" + "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = ""
    for number, each in enumerate(ranking):
        cells = [
            str(each.steps),
            _score(each.score),
            "-" if each.best_step is None else str(each.best_step),
            *(value_text(each.values[path]) for path in paths),
        ]
        kind = "best" if number == 0 and each.ended else each.state
        rows += f'<tr class="{kind}"><td class="mono">{escape(each.name)}</td><td>{each.state}</td>'
        rows += "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells) + "</tr>"
        if each.message:
            rows += f'<tr class="failed"><td></td><td colspan="{len(names) + 1}">{escape(each.message)}</td></tr>'
    return f"<table><tr>{head}</tr>{rows}</table>"


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
