"""How a training went, as one HTML file: curves, what the network sees, how it was set up, what it took.

Everything but the pictures is in the run's folder, so a report may be made while a run is still training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.errors import Fatal
from tomoray.metrics import dice
from tomoray.predict import load_segmenter
from tomoray.reports.charts import curves
from tomoray.reports.pages import render_page, section
from tomoray.reports.pictures import Case, draw, views
from tomoray.runs import FINISHED, STARTED, Run, cost_so_far, open_run, read_history
from tomoray.storage import Store
from tomoray.training.config import TrainConfig

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingReport:
    """The content of a report. Identifiers in it are pseudonyms; nothing else may come near it.

    Attributes:
        history: lines of `history.jsonl`.
        config: of the run, as JSON.
        environment: versions and such, by name.
        patients: how many, by part.
        cost: `tomoray.runs.cost_so_far`.
        cases: scans to picture, read one at a time.
        focus: the label through whose largest piece the slices go.
        monitor: the score by which checkpoints are chosen; empty where none was measured.
    """

    title: str
    history: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, int] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    cases: Iterable[Case] = ()
    focus: str = ""
    monitor: str = "dice"


def report_of(store: Store, *, pictures: int) -> TrainingReport:
    """The report of a run, finished or not.

    Args:
        store: the run's folder.
        pictures: scans to picture at most, of validation patients, or of test patients where there are none; only of
            a finished run for segmentation.

    Raises:
        Fatal: there is no run.
    """
    key = next((key for key in (FINISHED, STARTED) if store.exists(key)), None)
    if key is None:
        raise Fatal(
            f"{store.url} is not a run; make one with: tomoray train CONFIG --archive ARCHIVE --out {store.url}"
        )
    found = json.loads(store.read(key))
    config = TrainConfig.model_validate(found["config"])
    drawn = key == FINISHED and config.task == "segmentation" and pictures > 0
    return TrainingReport(
        title=f"Training {store.url.rstrip('/').rpartition('/')[2]}",
        history=read_history(store),
        config=found["config"],
        environment={"TomoRay": found.get("code_version", ""), **found.get("environment", {})},
        patients={part: len(found["split"][part]) for part in ("train", "validation", "test")},
        cost=cost_so_far(store, config),
        cases=_cases(open_run(store.url), pictures) if drawn else (),
        focus=config.labels[-1] if config.labels else "",
    )


def render(report: TrainingReport) -> str:
    """The report as HTML text."""
    history = report.history
    window_hu = (float(report.config["hu_window"][0]), float(report.config["hu_window"][1]))
    cases = "".join(_case(case, report.focus, window_hu) for case in report.cases)
    scores = sorted({name for line in history for name in line.get("scores", {})})
    families = list(dict.fromkeys(name.split("/")[0] for name in scores))
    losses = sorted({name for line in history for name in line.get("losses", {})})
    body = [
        f'<h1>{escape(report.title)}</h1><p class="lead">{escape(_lead(report))}</p>',
        _cards(report),
        '<div class="columns">',
        _chart("Loss", {"loss": _points(history, "loss"), **{n: _points(history, "losses", n) for n in losses}}),
        *(_scores(history, name, [each for each in scores if each.split("/")[0] == name]) for name in families),
        _chart("Learning rate", {"learning rate": _points(history, "learning_rate")}),
        _chart(
            "Waiting for data",
            {"share of a step": _points(history, "waited_share")},
            note="More than 0.05 means that the archive is slower than the network.",
        ),
        _chart("Patches per second", {"all workers": _points(history, "samples_per_s")}),
        section("Took", f'<div class="card">{_facts(_flat(report.cost))}</div>') if report.cost else "",
        "</div>",
        section("Held-out scans: truth and prediction", _legend(report.focus, window_hu) + cases) if cases else "",
        '<div class="columns">',
        section("Config", f'<div class="card">{_facts(_flat(report.config))}</div>'),
        section("Environment", f'<div class="card">{_facts(report.environment)}</div>') if report.environment else "",
        "</div>",
    ]
    return render_page(report.title, body)


def _lead(report: TrainingReport) -> str:
    config, done = report.config, report.history[-1]["step"] if report.history else 0
    held = ", ".join(f"{number} {part}" for part, number in report.patients.items())
    what = ", ".join(config["labels"]) or config["task"]
    if config["task"] == "segmentation":
        what += f" by {config['network']['name']}"
    return f"{what}: {done} of {config['steps']} steps. Patients: {held}."


def _cards(report: TrainingReport) -> str:
    history = report.history
    if not history:
        return '<p class="empty">No step is done yet.</p>'
    last = history[-1]
    cards = [f"<b>{last['step']}</b><span>steps of {report.config['steps']}</span>"]
    cards.append(f"<b>{last['loss']:.3f}</b><span>last loss</span>")
    scored = [line for line in history if report.monitor in line.get("scores", {})]
    if scored:
        best = max(scored, key=lambda line: line["scores"][report.monitor])
        cards.append(
            f"<b>{best['scores'][report.monitor]:.3f}</b>"
            f"<span>best {escape(report.monitor)}, at step {best['step']}</span>"
        )
    seconds = [line["samples_per_s"] for line in history if line["samples_per_s"]]
    cards.append(f"<b>{_median(seconds):.1f}</b><span>patches a second, median</span>")
    cards.append(
        f"<b>{_median([line['waited_share'] for line in history]):.1%}</b><span>waiting for data, median</span>"
    )
    return '<div class="cards">' + "".join(f'<div class="card">{card}</div>' for card in cards) + "</div>"


def _points(history: Sequence[Mapping[str, Any]], *path: str) -> list[tuple[float, float]]:
    found = []
    for line in history:
        value: Any = line
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None and math.isfinite(value):
            found.append((float(line["step"]), float(value)))
    return found


def _scores(history: Sequence[Mapping[str, Any]], family: str, names: Sequence[str]) -> str:
    """One score of validation with what stands beside it: its labels, its baseline."""
    series = {name: _points(history, "scores", name) for name in names}
    share = all(0 <= value <= 1 for points in series.values() for _, value in points)
    return _chart(f"Validation: {family}", series, top=1.0 if share else None, marked=True)


def _chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    top: float | None = None,
    marked: bool = False,
    note: str = "",
) -> str:
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    return section(title, f'<div class="card">{curves(title, series, top=top, marked=marked)}</div>', note)


def _cases(run: Run, most: int) -> Iterator[Case]:
    """Scans with their predicted masks, one of each patient."""
    archive, segmenter = Archive.open(str(run.config.archive)), load_segmenter(run)
    parts = asdict(run.split)
    wanted = list(parts["validation"] or parts["test"])[:most]
    rows = Catalog(archive.store).stored()
    for patient in wanted:
        scan = archive.scan(min(row["scan_id"] for row in rows if row["patient_id"] == patient))
        image = scan.image().read().result()
        yield Case(
            patient_id=patient,
            image_zyx=image,
            geometry=scan.geometry,
            truth={name: scan.label(name).read().result() for name in run.config.labels if name in scan.label_names},
            prediction=segmenter.segment(image, scan.geometry),
        )


def _case(case: Case, focus: str, window_hu: tuple[float, float]) -> str:
    scores = "".join(
        f"<span>{escape(name)} <b>{dice(case.prediction[name], truth):.3f}</b></span>"
        for name, truth in case.truth.items()
    )
    figures = "".join(
        f'<figure style="flex:{view.size_mm[1] / view.size_mm[0]:.4f} 1 0">{draw(view, window_hu)}'
        f"<figcaption>{view.name}</figcaption></figure>"
        for view in views(case, focus)
    )
    return (
        f'<article class="card case"><header><h3 class="mono">{escape(case.patient_id)}</h3>{scores}</header>'
        f'<div class="views">{figures}</div></article>'
    )


def _legend(focus: str, window_hu: tuple[float, float]) -> str:
    low, high = window_hu
    return (
        '<p class="legend"><span><i class="of-truth"></i> truth</span><span><i class="of-prediction"></i> prediction'
        f"</span><span>{low:.0f} to {high:.0f} HU; through the largest of the {escape(focus)}; Dice beside the "
        "names</span></p>"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            text = json.dumps(value) if isinstance(value, list | dict) else str(value)
            found[f"{prefix}{name}"] = text
    return found


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(f'<dt>{escape(name)}</dt><dd class="mono">{escape(value)}</dd>' for name, value in facts.items())
    return f'<dl class="facts">{lines}</dl>'


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan
