"""What a model's deployment answers, or that it cannot be started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serving.messages import Finding, Progress, Request

LOOK_EVERY_S = 10.0


async def ask(handle: DeploymentHandle[Any], request: Request, **options: str) -> AsyncIterator[Progress | Finding]:
    """As `ModelServer.find` of one of the deployment's replicas; ending it early ends the work.

    Ray Serve lets those wait on who asked for the first replica, when none can be made, and turns away only who comes
    later. So the deployment is looked at now and then, until there is a first answer.

    Raises:
        DeploymentUnavailableError: no replica can be made.
    """
    answers = handle.options(stream=True, **options).find.remote(request)
    stream = aiter(answers)
    first = asyncio.ensure_future(anext(stream, None))
    answer: Progress | Finding | None = None
    try:
        while not (await asyncio.wait({first}, timeout=LOOK_EVERY_S))[0]:
            await asyncio.to_thread(_require_deployed, handle)
        answer = await first
        while answer is not None:
            yield answer
            answer = await anext(stream, None)
    finally:
        first.cancel()
        if not isinstance(answer, Finding):
            answers.cancel()


def _require_deployed(handle: DeploymentHandle[Any]) -> None:
    application = serve.status().applications.get(handle.app_name)
    found = application and application.deployments.get(handle.deployment_name)
    if found and found.status_trigger == "REPLICA_STARTUP_FAILED" and not found.replica_states.get("RUNNING"):
        raise DeploymentUnavailableError(handle.deployment_id)
