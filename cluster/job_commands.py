"""Jobs on a cluster: `submit`, `status`, `logs`, `cancel`, `list`, `describe`."""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from cluster import job_views, views
from cluster.answers import DONE, FAILED, Answer
from cluster.flags import Debug, Json, On, chosen_target, remote_target, run_job
from cluster.jobs_api import jobs_of
from tomoray.errors import Usage

app = typer.Typer()

JobName = Annotated[str, typer.Argument(metavar="JOB", help="Its name, as `tomoray submit` and `tomoray list` say it.")]


@app.command()
def submit(
    config: Annotated[str, typer.Argument(metavar="CONFIG|RECIPE", help="Of any job, as YAML; or a recipe's name.")],
    on: On = None,
    job: Annotated[str | None, typer.Option(help="Which job; where the config does not tell.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the config; repeatable.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|MIN:MAX", help="Ray workers, a pod each; MIN:MAX autoscales.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="Of each worker.")] = 0,
    queue: Annotated[str | None, typer.Option(help="A LocalQueue of Kueue; the target's otherwise.")] = None,
    spot: Annotated[
        bool, typer.Option("--spot", help="Workers, not the head, on nodes that may be reclaimed.")
    ] = False,
    priority: Annotated[str | None, typer.Option(metavar="CLASS", help="PriorityClass of its pods.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="New clusters after a lost head or a failure.")] = 3,
    keep_failed: Annotated[
        int | None, typer.Option(metavar="SECONDS", min=0, help="Leave the cluster of a failed job for a look at it.")
    ] = None,
    deadline: Annotated[int | None, typer.Option(metavar="SECONDS", min=1, help="That it may take in all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be applied; submit nothing.")] = False,
    output: Annotated[
        Literal["yaml", "json"] | None, typer.Option("--output", "-o", help="The manifests, as they are applied.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Run anew what has succeeded already.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Take over fields that others have set.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Run a job on a cluster. The same submitted again is the same job; one that failed goes on where it was.

    [bold]Examples[/bold]

    tomoray submit preprocess.yaml --on eks --workers 2:16 --spot
    tomoray submit phantom --on eks --set archive=s3://ct/archive --set out=s3://ct/runs/1 --workers 8 --gpus 8
    tomoray submit train.yaml --on eks --queue tomoray --dry-run -o yaml
    """
    submission = importlib.import_module("cluster.submission")
    name, target = chosen_target(on)
    shape = submission.Shape(
        workers=None if workers is None else submission.parse_workers(workers),
        gpus=gpus,
        spot=spot,
        queue=None if queue == "none" else queue or getattr(target, "queue", None),
        priority_class=priority,
        retries=retries,
        keep_failed_s=keep_failed,
        deadline_s=deadline,
    )
    wanted = submission.prepare(config, submission.parse_changes(set_ or []), target, shape, job=job)
    if dry_run or output:
        manifests = _manifests(wanted, target)
        if dry_run:
            return Answer(document={"manifests": manifests}, view=job_views.documents(manifests, output or "yaml"))
    if target.kind == "here":
        result = run_job(wanted.job.replace("-", "_"), wanted.config, debug=debug)
        return Answer(document=result, view=views.json_text(result))
    state, started = jobs_of(target).submit(wanted, again=again, force=force)
    document = {"target": name, "created": started, **asdict(state)}
    if output:
        return Answer(document=document | {"manifests": manifests}, view=job_views.documents(manifests, output))
    return Answer(document=document, view=job_views.submitted(state, name, started=started))


@app.command()
def status(
    name: JobName,
    on: On = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """How a job stands: state, workers, progress, MB/s, GPU use, cost so far. Exit code 1 where it failed.

    [bold]Examples[/bold]

    tomoray status train-3f9c2a1b7d --on eks
    tomoray status train-3f9c2a1b7d --on eks --follow
    """
    _, target = remote_target(on)
    row = importlib.import_module("cluster.job_rows")
    jobs = jobs_of(target)
    found = row.watch(jobs, target, name) if follow else row.row_of(jobs, target, jobs.state(name))
    failed = found["state"] == "failed"
    return Answer(document=found, view=job_views.table([found]), exit_code=FAILED if failed else DONE)


@app.command()
def logs(
    name: JobName,
    on: On = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends, through every retry.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer | None:
    """What a job printed.

    [bold]Examples[/bold]

    tomoray logs train-3f9c2a1b7d --on eks
    tomoray logs train-3f9c2a1b7d --on eks -f
    """
    lines = jobs_of(remote_target(on)[1]).logs(name, follow=follow)
    if json:
        return Answer(document={"name": name, "lines": list(lines)}, view="")
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return None


@app.command()
def cancel(name: JobName, on: On = None, json: Json = False, debug: Debug = False) -> Answer:
    """End a job and take its cluster down. What it has stored stays; submitted again, it goes on.

    [bold]Examples[/bold]

    tomoray cancel train-3f9c2a1b7d --on eks
    """
    where, target = remote_target(on)
    ended = jobs_of(target).cancel(name)
    text = f"{name} is cancelled" if ended else f"{name} had ended already"
    return Answer(document={"name": name, "target": where, "cancelled": ended}, view=views.plain(text))


@app.command("list")
def list_jobs(on: On = None, json: Json = False, debug: Debug = False) -> Answer:
    """The jobs of a target, the newest first.

    [bold]Examples[/bold]

    tomoray list --on eks
    """
    where, target = remote_target(on)
    found = [asdict(state) for state in jobs_of(target).all()]
    return Answer(document={"target": where, "jobs": found}, view=job_views.table(found, brief=True))


@app.command()
def describe(name: JobName, on: On = None, json: Json = False, debug: Debug = False) -> Answer:
    """Why a job stands as it does: its pods, its events, and what is wrong in plain words.

    [bold]Examples[/bold]

    tomoray describe train-3f9c2a1b7d --on eks
    """
    found = jobs_of(remote_target(on)[1]).describe(name)
    return Answer(document=found, view=job_views.description(found))


def _manifests(submission: Any, target: Any) -> list[dict[str, Any]]:
    if target.kind != "kubernetes":
        raise Usage("only Kubernetes takes manifests; elsewhere the config is handed to Ray as it is")
    found: list[dict[str, Any]] = importlib.import_module("cluster.manifests").job_manifests(submission, target)
    return found
