"""A newer model in trial: it answers a share of the requests, until it errs too often. CPU only."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from serving.answers import ask
from serving.messages import Finding, Progress, Request
from tomoray.errors import Refused, Usage
from tomoray.serving_config import CanaryConfig

logger = logging.getLogger("ray.serve")


class Canary:
    """Stands before two deployments of one model. A plain class: `serving.app` makes it a deployment, of one replica.

    A request that the newer one fails is answered by the older one: nobody loses by the trial. What is the scan's own
    fault, or the request's, counts as an answer; what nobody had room for does not count.

    Args:
        name: of the model.
        config: share, and when the trial ends.
        older: the deployment that is trusted.
        newer: the one in trial.
    """

    def __init__(
        self, name: str, config: CanaryConfig, older: DeploymentHandle[Any], newer: DeploymentHandle[Any]
    ) -> None:
        self._name, self._config, self._older, self._newer = name, config, older, newer
        self._chance = random.Random(0)  # noqa: S311  it hides nothing
        self.answers, self.errors, self.ended = 0, 0, False
        self._told = metrics.Gauge(
            "tomoray_serving_canary", "1: a newer model is in trial; 0: it erred too often.", ("model",)
        )
        self._told.set_default_tags({"model": name})
        self._told.set(1)

    async def find(self, request: Request) -> AsyncIterator[Progress | Finding]:
        """As `ModelServer.find` of one of both."""
        if not self.ended and self._chance.random() < self._config.weight:
            try:
                async for answer in ask(self._newer, request):
                    yield answer
            except Exception as error:
                cause = getattr(error, "cause", error)
                if isinstance(cause, Refused | Usage):
                    self._count(error=False)
                    raise
                if not isinstance(error, BackPressureError):
                    self._count(error=True)
            else:
                self._count(error=False)
                return
        async for answer in ask(self._older, request):
            yield answer

    def _count(self, *, error: bool) -> None:
        self.answers, self.errors = self.answers + 1, self.errors + error
        rate = self.errors / self.answers
        if not self.ended and self.answers >= self._config.at_least and rate > self._config.max_error_rate:
            self.ended = True
            self._told.set(0)
            failed = f"{self.errors} of {self.answers}"
            logger.error("%s: the newer model failed %s requests and is out of the trial", self._name, failed)
