"""The results of commands as people read them. What a machine reads is the result itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tomoray import progress

if TYPE_CHECKING:
    from tomoray.training.config import TrainConfig

Result = Mapping[str, Any]


def phantom(result: Result, out: str) -> RenderableType:
    """What was made, and what to do with it."""
    counts = f"{_many(result['patients'], 'patient')}, {result['files']} files, {result['file_mb']:.0f} MB in {out}"
    return _with_next(counts, f"tomoray preprocess {out} ARCHIVE")


def preprocess(result: Result, archive: str) -> RenderableType:
    """Counts of a run of preprocessing."""
    counts = f"{result['stored']} stored, {result['refused']} refused, {result['skipped']} done before"
    if result["voxel_mb"]:
        counts += f"; {result['voxel_mb']:.0f} MB of voxels in {result['seconds']:.1f} s"
    if result["failed"]:
        counts += f"; {len(result['failed'])} failed"
    return _with_next(counts, f"tomoray info {archive}")


def list_refusals(result: Result) -> None:
    """One line on stderr for every refused series, and for every one that failed."""
    lines = [
        f"refused {' '.join(filter(None, (each['series_id'], each['part'])))} {each['reason']}: {each['evidence']}"
        for each in result["refusals"]
    ]
    if len(lines) < result["refused"]:
        lines.append(f"and {result['refused'] - len(lines)} more: tomoray catalog ARCHIVE --where \"status='refused'\"")
    lines += [f"failed {each['series_id']} {each['error']}: run the command again" for each in result["failed"]]
    for line in lines:
        progress.console.print(Text(line), soft_wrap=True)


def train(result: Result, config: TrainConfig) -> RenderableType:
    """What was trained, and what to do with it."""
    return _with_next(
        f"trained {result['steps'] - result['first_step']} of {result['steps']} steps, run in {config.out}",
        f"tomoray evaluate {config.out} {config.archive}",
    )


def predict(result: Result) -> RenderableType:
    """Where the masks are."""
    return f"{_many(result['scans'], 'scan')} segmented in {result['seconds']:.1f} s, masks in {escape(result['out'])}"


def evaluate(result: Result) -> RenderableType:
    """Dice per patient and label, and every measure's mean over patients with its interval."""
    return Group(dice_table(result["dice"]), summary_table(result["summary"]))


def cross_validate(result: Result) -> RenderableType:
    """The same over the patients of all folds, and where the folds are."""
    done = f"folds {', '.join(map(str, result['done']))} of {result['folds']} in {result['out']}"
    return Group(dice_table(result["dice"]), summary_table(result["summary"]), Text(done))


def tune(result: Result) -> RenderableType:
    """Trials, best first, and what to do with the best one."""
    from tomoray.training.search import Standing  # with the configs of trainings, which help can do without
    from tomoray.training.terminal import trials_table

    standings = [Standing(**each) for each in result["trials"]]
    table = trials_table(standings, result["monitor"], result["steps"])
    failed = [f"{each.name}: {each.message}" for each in standings if each.message]
    said = Text("\n".join([*failed, f"the best config is {result['config']}, its report {result['report']}"]))
    return Group(table, said, _next(f"tomoray evaluate {result['out']}/{result['best']} {result['archive']}"))


def export(result: Result) -> RenderableType:
    """What was written, and how close it is."""
    names = ", ".join(result["files"])
    same = f"scores within {result['largest_difference']:.1g} of the checkpoint's"
    return Text(f"{names} in {result['out']}; {same}")


def summary_table(summary: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Table:
    """A table of `{label: {measure: {mean, low, high, values}}}`."""
    table = Table("label", "measure", "mean", "95 % interval", "patients", title="Over patients", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for label, measures in summary.items():
        for measure, found in measures.items():
            bounds = [found["low"], found["high"]]
            between = "-" if None in bounds else " to ".join(_score(bound) for bound in bounds)
            name = _MEASURES.get(measure, measure)
            table.add_row(escape(label), name, _score(found["mean"]), between, str(found["values"]))
    return table


def dice_table(dice: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of `{label: {patient: Dice}}`."""
    table = Table("patient", *(escape(label) for label in dice), title="Dice", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for patient in sorted({patient for by_patient in dice.values() for patient in by_patient}):
        table.add_row(patient, *(_score(by_patient.get(patient)) for by_patient in dice.values()))
    table.add_section()
    means = (fmean(by_patient.values()) if by_patient else None for by_patient in dice.values())
    table.add_row("mean", *(_score(mean) for mean in means), style="bold")
    return table


def serve(url: str) -> RenderableType:
    """Where the endpoint answers."""
    return f"Serving at {url}  (API: {url}/openapi.json; Ctrl-C stops it)"


def hospital(result: Result) -> RenderableType:
    """Orders by state, and why the last of those that failed did."""
    words = {
        "arriving": "series still arriving",
        "new": "to be sent",
        "sent": "at the server",
        "found": "to be given back",
        "returned": "given back",
        "failed": "failed",
    }
    counts = Table("orders", "", box=None, show_header=False)
    counts.columns[0].justify = "right"
    for state, word in words.items():
        counts.add_row(str(result[state]), word)
    failures = [f"{failure['order'][:12]}  {escape(failure['error'])}" for failure in result["failures"]]
    return Group(counts, *failures)


def demo(result: Result) -> RenderableType:
    """Dice and seconds by stage, and the report's path."""
    stages = Table("stage", "seconds", "MB/s", title="Stages", title_justify="left")
    for column in stages.columns[1:]:
        column.justify = "right"
    for name, stage in result["stages"].items():
        rate = stage["mb_per_s"]
        stages.add_row(name, f"{stage['seconds']:.1f}", "" if rate is None else f"{rate:.1f}")
    stages.add_section()
    stages.add_row("all", f"{sum(stage['seconds'] for stage in result['stages'].values()):.1f}", "", style="bold")
    scores = ", ".join(
        f"{label} {fmean(values):.3f}" if values else f"{label} none" for label, values in result["dice"].items()
    )
    return Group(stages, Text(f"Mean Dice of held-out patients: {scores}"), Text(f"Report: {result['report']}"))


def info(result: Result) -> RenderableType:
    """The content of an archive, one fact a line."""
    table = Table.grid(padding=(0, 2))
    table.add_row("archive", Text(result["archive"]))
    table.add_row("stored", f"{result['stored']} series of {_many(result['patients'], 'patient')}")
    table.add_row("refused", str(result["refused"]))
    for reason, count in result["reasons"].items():
        table.add_row("", f"{count} {reason}")
    for name, count in result["labels"].items():
        table.add_row(Text(f"label {name}"), _many(count, "scan"))
    for axis, (low, high) in result["spacing_mm"].items():
        table.add_row(f"spacing {axis}", f"{low:.3f} to {high:.3f} mm")
    return table


def recipes(found: Sequence[Mapping[str, str]]) -> RenderableType:
    """Names and purposes."""
    table = Table.grid(padding=(0, 2))
    for recipe in found:
        table.add_row(Text(recipe["name"], style="bold"), Text(recipe["about"]))
    return table


def plain(text: str) -> RenderableType:
    """Text as it is."""
    return Text(text.rstrip("\n"))


def json_text(document: Any) -> RenderableType:
    """Indented JSON."""
    return Text(json.dumps(document, indent=2))


_MEASURES = {
    "dice": "Dice",
    "hd95_mm": "surface distance, 95th percentile, mm",
    "surface_dice": "surface Dice",
    "volume_difference_ml": "volume difference, ml",
}


def _with_next(what: str, command: str) -> RenderableType:
    return Group(Text(what), _next(command))


def _next(command: str) -> Text:
    return Text(f"Next: {command}", style="dim")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
