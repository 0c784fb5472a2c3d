"""Commands that look at a whole archive: `fingerprint`, `plan-training` and `qc`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import archive_views
from cluster.answers import Answer
from cluster.flags import ArchiveUrl, Debug, Json, make_config_from_flags, run_job
from tomoray.config import FingerprintConfig, PlanTrainingConfig, QcConfig
from tomoray.errors import Fatal

app = typer.Typer()


@app.command()
def fingerprint(
    archive: ArchiveUrl,
    save: Annotated[bool, typer.Option("--save", help="Keep it as ARCHIVE/fingerprint.json.")] = False,
    body_level: Annotated[int | None, typer.Option(help="Where the body is found. [dim]Default: 2[/dim]")] = None,
    in_flight: Annotated[int | None, typer.Option(help="Scans at work at once.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure an archive: shapes, spacings, exact HU percentiles in the body and in every label, volumes.

    The same archive gives the same JSON, byte by byte.

    [bold]Examples[/bold]

    tomoray fingerprint archive
    tomoray fingerprint s3://research/archive --save --json
    """
    flags = {"archive": archive, "save": save, "body_level": body_level, "in_flight": in_flight}
    result = run_job("fingerprint", make_config_from_flags(FingerprintConfig, None, **flags), debug=debug)
    return Answer(document=result, view=archive_views.fingerprint(result, archive))


@app.command()
def plan_training(
    source: Annotated[
        str, typer.Argument(metavar="FINGERPRINT|ARCHIVE", help="An archive, or what `fingerprint --json` printed.")
    ],
    memory_gb: Annotated[
        float | None, typer.Option(help="For a training step of one worker. [dim]Default: 8.0[/dim]")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="What to segment; repeatable. Otherwise every label.")] = None,
    write: Annotated[str | None, typer.Option(metavar="FILE", help="Write the TrainConfig as YAML.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Derive spacing, patch, network, batch, HU window and chunks from the data, by nnU-Net's rules, with reasons.

    An archive without a saved fingerprint is measured first.

    [bold]Examples[/bold]

    tomoray plan-training archive --memory-gb 8 --write train.yaml
    tomoray plan-training fingerprint.json --memory-gb 24 --label lungs --json
    """
    flags = {"source": source, "memory_gb": memory_gb, "labels": label, "write": write}
    config = make_config_from_flags(PlanTrainingConfig, None, **flags)
    found, archive = _fingerprint_of(config, debug=debug)
    planning = importlib.import_module("tomoray.statistics.planning")
    plan = planning.plan_training(found, memory_gb=config.memory_gb, labels=config.labels, archive=archive)
    if config.write:
        Path(config.write).write_text(planning.to_yaml(plan), encoding="utf-8")
    document = {**plan.model_dump(mode="json"), "written": config.write}
    return Answer(document=document, view=archive_views.plan_training(document))


@app.command()
def qc(
    archive: ArchiveUrl,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="The report. [dim]Default: qc.html[/dim]")] = None,
    montage: Annotated[int | None, typer.Option(help="Scans to picture at most. [dim]Default: 60[/dim]")] = None,
    seed: Annotated[int | None, typer.Option(help="Which, of more. [dim]Default: 0[/dim]")] = None,
    in_flight: Annotated[int | None, typer.Option(help="Scans at work at once.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write one HTML report of an archive: refusals, distributions, a montage, outliers, who is in it and who is not.

    [bold]Examples[/bold]

    tomoray qc archive --out qc.html
    tomoray qc s3://research/archive --out qc.html --montage 200 --json
    """
    flags = {"archive": archive, "out": out, "montage": montage, "seed": seed, "in_flight": in_flight}
    result = run_job("qc", make_config_from_flags(QcConfig, None, **flags), debug=debug)
    return Answer(document=result, view=archive_views.qc(result))


def _fingerprint_of(config: PlanTrainingConfig, *, debug: bool) -> tuple[Any, str | None]:
    """The fingerprint that a config names, or of the archive that it names; and that archive's URL."""
    fingerprints = importlib.import_module("tomoray.statistics.fingerprint")
    if config.source.endswith(".json"):
        store = importlib.import_module("tomoray.storage").open_store(config.source.rpartition("/")[0] or ".")
        try:
            return fingerprints.read_fingerprint(store, config.source.rpartition("/")[2]), None
        except FileNotFoundError as error:
            raise Fatal(
                f"no fingerprint at {config.source}; make one: tomoray fingerprint ARCHIVE --json > fingerprint.json"
            ) from error
    archive = importlib.import_module("tomoray.archive").Archive.open(config.source)
    rows = importlib.import_module("tomoray.catalog").Catalog(archive.store).rows()
    saved = fingerprints.current_fingerprint(archive, [row["scan_id"] for row in rows if row["status"] == "stored"])
    if saved is not None:
        return saved, archive.url
    taken = run_job("fingerprint", FingerprintConfig(archive=archive.url), debug=debug)
    return fingerprints.Fingerprint.model_validate(taken), archive.url
