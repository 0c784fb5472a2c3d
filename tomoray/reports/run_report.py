"""What a run was worth, as one HTML file that needs nothing else: no script, no host, no patient data.

Light and dark follow the reader's system; the outlines' colours (sky blue and orange) differ to every common
kind of colour vision, and in width besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from tomoray.reports.charts import curves
from tomoray.reports.pages import render_page, section, write_page
from tomoray.reports.pictures import LUNG_WINDOW_HU, Case, draw, views


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step on the way. `mb_per_s` is None where bytes are not what it works on; `what` says it in a few words."""

    name: str
    seconds: float
    mb_per_s: float | None = None
    what: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The content of a report. Identifiers in it are pseudonyms; nothing else may come near it.

    Attributes:
        dice: Dice by label, then by held-out patient, in [0, 1]; NaN where it is not defined.
        goals: mean Dice wanted, by label; a label without one is shown without.
        cases: scans to picture, read one at a time, so a generator keeps a single scan in memory.
        focus: the label through whose largest piece the slices go.
        history: training loss as (step, loss).
        stored: number of series in the archive; `refused`: number of series by reason code.
        facts: what else is worth a line about the cohort and the model.
        versions: software by name.
    """

    title: str
    lead: str
    dice: Mapping[str, Mapping[str, float]]
    goals: Mapping[str, float] = field(default_factory=dict)
    cases: Iterable[Case] = ()
    focus: str = "nodules"
    history: Sequence[tuple[int, float]] = ()
    stages: Sequence[Stage] = ()
    stored: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def write_report(path: str | Path, report: Report) -> Path:
    """Write the report as `path` (made whole, then renamed; its folder is made) and return it. Safe to repeat."""
    return write_page(path, render(report))


def render(report: Report) -> str:
    """The report as HTML text."""
    cases = [_case(case, report) for case in report.cases]
    body = [
        f'<h1>{escape(report.title)}</h1><p class="lead">{escape(report.lead)}</p>',
        _cards(report),
        section("Held-out patients: Dice", f'<div class="card">{_dice_table(report)}</div>'),
        section("Slices: truth and prediction", _legend(report.focus) + "".join(cases)) if cases else "",
        '<div class="columns">',
        section("Training loss", f'<div class="card">{curves("loss", {"loss": report.history})}</div>')
        if report.history
        else "",
        section("Stages", f'<div class="card">{_stage_table(report.stages)}</div>') if report.stages else "",
        section("Cohort", f'<div class="card">{_cohort(report)}</div>'),
        section("Versions", f'<div class="card">{_facts(report.versions)}</div>') if report.versions else "",
        "</div>",
    ]
    return render_page(report.title, body)


def mean(values: Iterable[float]) -> float:
    """The mean of those that are defined; NaN where none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _legend(focus: str) -> str:
    low, high = LUNG_WINDOW_HU
    return (
        '<p class="legend"><label><input type="checkbox" id="show-truth" checked><i class="of-truth"></i>truth</label>'
        '<label><input type="checkbox" id="show-prediction" checked><i class="of-prediction"></i>prediction</label>'
        f"<span>{low:.0f} to {high:.0f} HU; through the largest of the {escape(focus)}; the patient's right is on the "
        "left</span></p>"
    )


def _cards(report: Report) -> str:
    cards = []
    for label, by_patient in report.dice.items():
        value, goal = mean(by_patient.values()), report.goals.get(label)
        note = ""
        if goal is not None:
            kind, mark = ("reached", "✓") if value >= goal else ("short", "below")
            note = f'<small class="{kind}">{mark} {goal:.2f} wanted</small>'
        cards.append(f"<b>{_number(value)}</b><span>mean Dice, {escape(label)}</span>{note}")
    patients = {patient for by_patient in report.dice.values() for patient in by_patient}
    cards.append(f"<b>{len(patients)}</b><span>held-out patient{'s' * (len(patients) != 1)}</span>")
    cards.append(f"<b>{report.stored}</b><span>series stored, {sum(report.refused.values())} refused</span>")
    if report.stages:
        cards.append(f"<b>{_duration(sum(s.seconds for s in report.stages))}</b><span>from start to end</span>")
    return '<div class="cards">' + "".join(f'<div class="card">{card}</div>' for card in cards) + "</div>"


def _dice_table(report: Report) -> str:
    patients = sorted({patient for by_patient in report.dice.values() for patient in by_patient})
    if not patients:
        return '<p class="empty">No patient was held out.</p>'
    head = "<th>patient</th>" + "".join(f'<th class="number">{escape(label)}</th>' for label in report.dice)
    rows = [
        f'<tr><td class="mono">{escape(patient)}</td>'
        + "".join(
            f'<td class="number">{_meter(by_patient.get(patient, math.nan), report.goals.get(label))}</td>'
            for label, by_patient in report.dice.items()
        )
        + "</tr>"
        for patient in patients
    ]
    means = "".join(
        f'<td class="number">{_meter(mean(by_patient.values()), report.goals.get(label))}</td>'
        for label, by_patient in report.dice.items()
    )
    return f'<table><tr>{head}</tr>{"".join(rows)}<tr class="mean"><th>mean</th>{means}</tr></table>'


def _meter(value: float, goal: float | None) -> str:
    if math.isnan(value):
        return _number(value)
    mark = "" if goal is None else f'<u style="left:{100 * goal:.1f}%" title="{goal:.2f} wanted"></u>'
    bar = f'<span class="meter"><i style="width:{100 * value:.1f}%"></i>{mark}</span>'
    return f'{bar}<span class="value">{_number(value)}</span>'


def _case(case: Case, report: Report) -> str:
    scores = "".join(
        f"<span>{escape(label)} <b>{_number(by_patient[case.patient_id])}</b></span>"
        for label, by_patient in report.dice.items()
        if case.patient_id in by_patient
    )
    z, y, x = case.geometry.spacing_zyx_mm
    figures = "".join(
        f'<figure style="flex:{view.size_mm[1] / view.size_mm[0]:.4f} 1 0">{draw(view)}'
        f"<figcaption>{view.name}</figcaption></figure>"
        for view in views(case, report.focus)
    )
    return (
        f'<article class="card case"><header><h3 class="mono">{escape(case.patient_id)}</h3>{scores}'
        f"<span>{z:.2f} x {y:.2f} x {x:.2f} mm</span></header>"
        f'<div class="views">{figures}</div></article>'
    )


def _stage_table(stages: Sequence[Stage]) -> str:
    longest = max(stage.seconds for stage in stages) or 1.0
    rows = "".join(
        f'<tr><td>{escape(stage.name)}<br><small class="lead">{escape(stage.what)}</small></td>'
        f'<td class="number"><span class="meter"><i style="width:{100 * stage.seconds / longest:.1f}%"></i></span>'
        f'<span class="value">{stage.seconds:.1f}</span></td>'
        f'<td class="number">{"-" if stage.mb_per_s is None else f"{stage.mb_per_s:.1f}"}</td></tr>'
        for stage in stages
    )
    return f'<table><tr><th>stage</th><th class="number">seconds</th><th class="number">MB/s</th></tr>{rows}</table>'


def _cohort(report: Report) -> str:
    rows = f'<tr><td>stored</td><td class="number">{report.stored}</td></tr>' + "".join(
        f'<tr><td>refused: <span class="mono">{escape(reason)}</span></td><td class="number">{count}</td></tr>'
        for reason, count in sorted(report.refused.items(), key=lambda item: (-item[1], item[0]))
    )
    return f'<table><tr><th>series</th><th class="number">number</th></tr>{rows}</table>' + _facts(report.facts)


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{lines}</dl>' if lines else ""


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
