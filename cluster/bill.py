"""What a job or an endpoint of a target cost, by the cluster's own records and a price table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cluster.deployment import endpoints_of
from cluster.jobs_api import Jobs, JobState, jobs_of
from cluster.targets import KubernetesTarget, RayTarget
from cluster.usage import cost_of, units_of
from tomoray.errors import Fatal
from tomoray.ingest.estimate import read_prices


def bill(
    target: KubernetesTarget | RayTarget, name: str, *, studies: int | None = None, prices: str | None = None
) -> dict[str, Any]:
    """The cost of a job, or of an endpoint.

    Returns:
        `name`, `kind` (`job` or `endpoint`), what `cluster.usage.cost_of` returns, and `dollars_per`: of a job that has
        succeeded `series`, `epochs` or `scans`; of an endpoint `hour`, and `studies` where their number is given.

    Raises:
        Fatal: neither a job nor an endpoint has this name.
    """
    table = read_prices(prices or target.prices)
    jobs = jobs_of(target)
    state = next((each for each in jobs.all() if each.name == name), None)
    if state is not None:
        cost = cost_of(jobs.usage(name), table)
        units = units_of(state.job, _result(jobs, state), jobs.state(name).config)
        return {"name": name, "kind": "job", **cost, "dollars_per": _each(cost["dollars"], units)}
    try:
        uses = endpoints_of(target).usage(name)
    except Fatal as error:
        raise Fatal(f"neither a job nor an endpoint is called {name}; see: tomoray list") from error
    cost = cost_of(uses, table)
    an_hour = cost_of([replace(use, seconds=3600.0) for use in uses], table)["dollars"]
    per = {"hour": an_hour} | _each(cost["dollars"], {"studies": studies} if studies else {})
    return {"name": name, "kind": "endpoint", **cost, "dollars_per": per}


def _result(jobs: Jobs, state: JobState) -> dict[str, Any]:
    """What a job printed last: its result, as JSON; nothing where that is gone or it has not ended well."""
    if state.state != "succeeded":
        return {}
    try:
        lines = [line for line in jobs.logs(state.name, follow=False) if line.startswith("{")]
        found = json.loads(lines[-1]) if lines else {}
    except (Fatal, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _each(dollars: float, units: dict[str, Any]) -> dict[str, float]:
    return {unit: round(dollars / count, 6) for unit, count in units.items() if count}
