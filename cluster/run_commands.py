"""Commands around training runs: `cross-validate`, `tune`, `export` and `report`."""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from typing import Annotated, Literal

import typer

from cluster import views
from cluster.answers import Answer
from cluster.flags import Debug, Json, TrainingSource, make_config_from_flags, run_job
from tomoray.config import ExportConfig, ReportConfig

app = typer.Typer()


@app.command()
def cross_validate(
    config: TrainingSource,
    archive: Annotated[str | None, typer.Option(metavar="ARCHIVE", help="What to train on.")] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Where RUN/fold-0, fold-1, … go.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Parts of the patients. [dim]Otherwise the config's, or 5[/dim]")
    ] = None,
    only: Annotated[list[int] | None, typer.Option(metavar="FOLD", help="Only this fold; repeatable.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train on all folds of the patients but one, test on that one, in turn. Run again, it goes on where it was.

    [bold]Examples[/bold]

    tomoray cross-validate sts --archive archive --out cv --folds 5
    tomoray cross-validate sts --archive archive --out cv --folds 5 --only 0 --json
    """
    from tomoray.training.config import CrossValidateConfig, TrainConfig  # a tenth of the time that help takes

    made = make_config_from_flags(TrainConfig, config, archive=archive, out=out)
    wanted = make_config_from_flags(CrossValidateConfig, None, train=made, folds=folds, only=only or None)
    result = run_job("cross_validate", wanted, debug=debug)
    return Answer(document=result, view=views.cross_validate(result))


@app.command()
def tune(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="TuneConfig as YAML: what to train, what to try.")],
    archive: Annotated[str | None, typer.Option(metavar="ARCHIVE", help="What to train on.")] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Where trials and the best config go.")] = None,
    trials: Annotated[int | None, typer.Option(help="How many. [dim]Otherwise the config's, or 16[/dim]")] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Trials at once. [dim]Otherwise what there is room for[/dim]")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train the same config with other values of some fields, end early what falls behind, and keep the best config.

    Run again, it goes on: trials that are done are not trained again, more of them may be asked for.

    [bold]Examples[/bold]

    tomoray tune tuning.yaml --archive archive --out tuning
    tomoray tune tuning.yaml --archive s3://ct/archive --out s3://ct/tunings/1 --trials 64 --concurrent 8
    """
    from tomoray.training.search import TuneConfig

    wanted = make_config_from_flags(TuneConfig, config, archive=archive, out=out, trials=trials, concurrent=concurrent)
    result = run_job("tune", wanted, debug=debug)
    return Answer(document=result, view=views.tune(result))


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="What `tomoray train --out` wrote.")],
    to: Annotated[str, typer.Option(metavar="DIR", help="Folder or S3 prefix for the files.")],
    format: Annotated[  # noqa: A002  the flag's name
        Literal["torch-export", "onnx", "monai-bundle"] | None, typer.Option(help="[dim]Default: onnx[/dim]")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write a run's network for use without TomoRay, compared with its checkpoint before anything is written.

    [bold]Examples[/bold]

    tomoray export run --to edge
    tomoray export s3://research/runs/1 --to bundle --format monai-bundle
    """
    config = make_config_from_flags(ExportConfig, None, run=run, to=to, format=format)
    with redirect_stdout(sys.stderr):
        result = importlib.import_module("jobs.export").run(config)
    return Answer(document=result, view=views.export(result))


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="What `tomoray train --out` wrote, finished or not.")],
    out: Annotated[str | None, typer.Option(metavar="FILE", help="[dim]Otherwise RUN/report.html[/dim]")] = None,
    pictures: Annotated[int | None, typer.Option(help="Held-out scans to picture. [dim]Default: 3[/dim]")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """How a training went, as one HTML file: curves, pictures, config, environment, cost.

    [bold]Examples[/bold]

    tomoray report run
    tomoray report s3://research/runs/1 --out report.html --pictures 6
    """
    config = make_config_from_flags(ReportConfig, None, run=run, out=out, pictures=pictures)
    with redirect_stdout(sys.stderr):
        result = importlib.import_module("jobs.report").run(config)
    return Answer(document=result, view=views.plain(f"Report: {result['report']}"))
