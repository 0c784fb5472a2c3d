"""The command `tomoray`.

A command turns its flags into a config of `tomoray.config` and runs `jobs.<name>.run(config)`, the entry point that
`python -m jobs.<name> CONFIG.yaml` runs too. Modules that load torch or Ray are imported by name when their command
runs, so that help and completion stay quick and `cluster` depends on no other application.

Every command takes `--json` and `--debug`. They are handled once, in `main`.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cluster import (
    archive_commands,
    catalog_commands,
    catalog_views,
    cost_commands,
    endpoint_commands,
    hospital_commands,
    job_commands,
    run_commands,
    serving_commands,
    target_commands,
    views,
)
from cluster.answers import DONE, FAILED, INTERRUPTED, Answer, explain, show, show_failure
from cluster.flags import ArchiveUrl, Debug, Json, TrainingSource
from cluster.flags import make_config_from_flags as _config
from cluster.flags import run_job as _run
from tomoray import __version__
from tomoray.config import (
    EvaluateConfig,
    PhantomConfig,
    PredictConfig,
    PreprocessConfig,
    read_recipe,
    recipe_names,
)
from tomoray.errors import Usage

app = typer.Typer(
    name="tomoray",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From raw CT DICOM to a trained model that answers DICOM SEG, on this machine or on a Ray cluster.",
    epilog="The whole way once: [bold]tomoray demo[/bold]. Shell completion: tomoray --install-completion",
)

Part = Literal["test", "validation", "train", "all"]
Ensemble = Annotated[
    list[str] | None, typer.Option(metavar="RUN", help="One more run to average probabilities with; repeatable.")
]
RunUrl = Annotated[str, typer.Argument(metavar="RUN", help="What `tomoray train --out` wrote.")]
ModelUrl = Annotated[
    str, typer.Argument(metavar="RUN", help="A run, a MONAI bundle, or an .onnx file of `tomoray export`.")
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in args, "--debug" in args
    try:
        answer = typer.main.get_command(app).main(args=args, prog_name="tomoray", standalone_mode=False)
        if isinstance(answer, Answer):
            show(answer, as_json=as_json)
            return answer.exit_code
        return answer if isinstance(answer, int) else DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as left:  # Ray Train's own answer to Ctrl-C
        return INTERRUPTED if left.code else DONE
    except BrokenPipeError:  # the reader of our stdout, `head` say, has gone
        sys.stdout = None
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        failure = explain(error)
        show_failure(failure, as_json=as_json)
        return failure.exit_code


@app.callback(invoke_without_command=True)
def tomoray(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> Answer | None:
    """From raw CT DICOM to a trained model that answers DICOM SEG, on this machine or on a Ray cluster."""
    if version:
        typer.echo(f"tomoray {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    return None


@app.command()
def phantom(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the DICOM files.")],
    patients: Annotated[int | None, typer.Option(help="How many. [dim]Default: 10[/dim]")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same bytes. [dim]Default: 0[/dim]")] = None,
    matrix: Annotated[int | None, typer.Option(help="Rows and columns of a slice. [dim]Default: 256[/dim]")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Make a cohort of thorax CTs as DICOM, with lungs and nodules as DICOM SEG. Nobody's data.

    [bold]Examples[/bold]

    tomoray phantom cohort --patients 20 --seed 7
    tomoray phantom tiny --patients 3 --matrix 96
    """
    config = _config(PhantomConfig, None, out=out, patients=patients, seed=seed, matrix=matrix)
    result = _run("phantom", config, debug=debug)
    return Answer(document=result, view=views.phantom(result, out))


@app.command()
def preprocess(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Folders, zip or tar files, s3://, idc://, dicomweb+https://.")
    ],
    archive: ArchiveUrl,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="PreprocessConfig as YAML.")] = None,
    in_flight: Annotated[int | None, typer.Option(help="Series at work at once.")] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(help="Repair instead of refusing: variable_spacing, tilt, missing_uid; repeatable."),
    ] = None,
    keep_identifiers: Annotated[
        bool, typer.Option("--keep-identifiers", help="De-identify nothing. Only for data that names nobody.")
    ] = False,
    metrics_port: Annotated[int | None, typer.Option(help="Serve counters to Prometheus here.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Start nothing: follow the run that writes ARCHIVE now.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where any series is refused.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Read DICOM and NIfTI into an archive of OME-Zarr and a Parquet catalog.

    A series that is not understood is refused with a reason, and the run goes on. A second run decodes nothing. Only
    pseudonyms are stored.

    [bold]Examples[/bold]

    tomoray preprocess cohort archive
    tomoray preprocess s3://hospital/ct extra-nifti s3://research/archive --json
    tomoray preprocess idc://nlst s3://research/nlst --repair tilt
    """
    if watch:
        followed = importlib.import_module("cluster.watch").follow(archive)
        return Answer(document=followed, view=catalog_views.watched(followed))
    flags: dict[str, Any] = {"sources": sources, "archive": archive, "in_flight": in_flight, "repair": repair or None}
    if keep_identifiers:
        flags["deidentify"] = {"keep_identifiers": True}
    made = _config(PreprocessConfig, config, **flags, metrics_port=metrics_port)
    result = _run("preprocess", made, debug=debug)
    views.list_refusals(result)
    failed = bool(result["failed"]) or (strict and result["refused"] + result["refused_before"] > 0)
    return Answer(document=result, view=views.preprocess(result, archive), exit_code=FAILED if failed else DONE)


@app.command()
def train(
    config: TrainingSource,
    archive: Annotated[str | None, typer.Option(metavar="ARCHIVE", help="What to train on.")] = None,
    out: Annotated[str | None, typer.Option(metavar="RUN", help="Where checkpoints and metrics go.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that train together.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches per step, over all workers.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, patches and order.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train a network on an archive. Run again after an interruption, it goes on from its last checkpoint.

    [bold]Examples[/bold]

    tomoray train phantom --archive archive --out run
    tomoray train my.yaml --archive s3://research/archive --out s3://research/runs/1 --workers 4
    """
    flags = {"archive": archive, "out": out, "workers": workers, "steps": steps, "batch_size": batch_size}
    from tomoray.training.config import TrainConfig  # a tenth of the time that help takes

    made = _config(TrainConfig, config, **flags, seed=seed)
    if made.archive is None or made.out is None:
        missing = "--archive ARCHIVE" if made.archive is None else "--out RUN"
        raise Usage(f"{config} does not say it, so the command line must: {missing}")
    result = _run("train", made, debug=debug)
    return Answer(document=result, view=views.train(result, made))


@app.command()
def predict(
    run: ModelUrl,
    archive: ArchiveUrl,
    out: Annotated[str | None, typer.Option(help="Where masks go. [dim]Default: RUN/predictions[/dim]")] = None,
    part: Annotated[Part | None, typer.Option(help="Which patients. [dim]Default: test[/dim]")] = None,
    format: Annotated[  # noqa: A002  the flag's name
        Literal["zarr", "nifti", "dicom-seg"] | None, typer.Option(help="Of the masks. [dim]Default: zarr[/dim]")
    ] = None,
    ensemble: Ensemble = None,
    backend: Annotated[
        Literal["auto", "torch", "openvino", "onnxruntime"] | None,
        typer.Option(help="What runs the network. [dim]Default: auto, the fastest that is installed[/dim]"),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Segment the held-out patients of a run's archive, or all of another archive; by a bundle, all of any.

    [bold]Examples[/bold]

    tomoray predict run archive
    tomoray predict run s3://other/archive --out masks --format dicom-seg
    tomoray predict spleen_ct_segmentation archive --out masks
    tomoray predict cv/fold-0 other-archive --ensemble cv/fold-1 --ensemble cv/fold-2 --out masks
    """
    flags = {"run": run, "archive": archive, "out": out, "part": part, "format": format, "backend": backend}
    config = _config(PredictConfig, None, **flags, ensemble=ensemble or None)
    result = _run("predict", config, debug=debug)
    return Answer(document=result, view=views.predict(result))


@app.command()
def evaluate(
    run: ModelUrl,
    archive: ArchiveUrl,
    predictions: Annotated[str | None, typer.Option(help="Masks of `tomoray predict --out`.")] = None,
    part: Annotated[Part | None, typer.Option(help="Which patients. [dim]Default: test[/dim]")] = None,
    tolerance_mm: Annotated[float | None, typer.Option(help="Of the surface Dice. [dim]Default: 2.0[/dim]")] = None,
    ensemble: Ensemble = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Dice, surface distance and volume per patient and label, on a run's held-out patients or another archive.

    [bold]Examples[/bold]

    tomoray evaluate run archive
    tomoray evaluate run other-archive --tolerance-mm 1 --json
    """
    flags = {"run": run, "archive": archive, "predictions": predictions, "part": part, "tolerance_mm": tolerance_mm}
    config = _config(EvaluateConfig, None, **flags, ensemble=ensemble or None)
    result = _run("evaluate", config, debug=debug)
    return Answer(document=result, view=views.evaluate(result))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything.")] = Path("out/demo"),
    patients: Annotated[int | None, typer.Option(help="[dim]Default: 30[/dim]")] = None,
    seed: Annotated[int | None, typer.Option(help="[dim]Default: 0[/dim]")] = None,
    matrix: Annotated[int | None, typer.Option(help="Rows and columns of a slice. [dim]Default: 256[/dim]")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; the recipe's own otherwise.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier demo left in DIR.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """The whole way once: made-up DICOM, archive, training, evaluation, serving, and a report.

    A second run in the same DIR takes over the stages that are done.

    [bold]Examples[/bold]

    tomoray demo
    tomoray demo --out /tmp/demo --patients 12 --json
    """
    module = importlib.import_module("cluster.demo")
    config = _config(module.DemoConfig, None, out=str(out), patients=patients, seed=seed, matrix=matrix, steps=steps)
    with redirect_stdout(sys.stderr):
        result = module.run(config, fresh=fresh, verbose=debug)
    return Answer(document=result, view=views.demo(result))


@app.command()
def info(archive: ArchiveUrl, json: Json = False, debug: Debug = False) -> Answer:
    """What an archive holds: series stored and refused, by reason; patients, labels, spacing.

    [bold]Examples[/bold]

    tomoray info archive
    tomoray info s3://research/archive --json
    """
    result = importlib.import_module("cluster.summary").summarize(archive)
    return Answer(document=result, view=views.info(result))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Show this one as YAML.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List the recipes for `tomoray train`, or show one, to start a config of one's own.

    [bold]Examples[/bold]

    tomoray recipes
    tomoray recipes phantom > my.yaml
    """
    if name is not None:
        text = read_recipe(name)
        return Answer(document={"name": name, "yaml": text}, view=views.plain(text))
    found = [{"name": each, "about": read_recipe(each).partition("\n")[0].lstrip("# ")} for each in recipe_names()]
    return Answer(document={"recipes": found}, view=views.recipes(found))


@app.command()
def schema(
    name: Annotated[str | None, typer.Argument(metavar="[CONFIG]", help="One config; otherwise all.")] = None,
    write: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a file for each config.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """JSON Schemas of the configs, for editors.

    [bold]Examples[/bold]

    tomoray schema train
    tomoray schema --write docs/schemas
    """
    schemas = importlib.import_module("cluster.schemas")
    if write is not None:
        written = schemas.write(write)
        return Answer(document={"written": written}, view=views.plain("\n".join(written)))
    document = schemas.schema(name) if name else schemas.schemas()
    return Answer(document=document, view=views.json_text(document))


app.add_typer(archive_commands.app)
app.add_typer(catalog_commands.app)
app.add_typer(run_commands.app)
app.add_typer(job_commands.app)
app.add_typer(serving_commands.app)
app.add_typer(endpoint_commands.app)
app.add_typer(cost_commands.app)
app.add_typer(hospital_commands.app)
app.add_typer(target_commands.app)


if __name__ == "__main__":
    sys.exit(main())
