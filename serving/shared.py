"""Models that are rarely asked, many in one deployment: loaded when they are, gone when others need the room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from ray import serve

from serving.messages import Finding, Progress, Request
from serving.model import ModelServer
from serving.scaling import PACE, Pace
from serving.schemas import ServedModel
from tomoray.serving_config import ModelConfig

DEPLOYMENT = "models-shared"
AT_ONCE = 3  # models that a replica holds


class SharedModels:
    """Asked with `multiplexed_model_id`, so that Ray Serve goes to a replica that holds the model, where there is one.

    A plain class: `serving.app` makes it a deployment.

    Args:
        models: by name: how each runs, and what `/v1/models` says of it.
        device: where networks run.
    """

    def __init__(self, models: Mapping[str, tuple[ModelConfig, ServedModel]], device: str) -> None:
        self._models, self._device = models, device
        self._pace = Pace()

    async def find(self, request: Request) -> AsyncIterator[Progress | Finding]:
        """As `ModelServer.find` of the model that is asked for."""
        with self._pace.scan():
            (model,) = await self.load(serve.get_multiplexed_model_id())
            async for answer in model.find(request):
                yield answer

    def record_autoscaling_stats(self) -> dict[str, float]:
        """As that of `ModelServer`, over all models."""
        return {PACE: self._pace.seconds_a_scan()}

    @serve.multiplexed(max_num_models_per_replica=AT_ONCE)
    async def load(self, name: str) -> tuple[ModelServer]:
        """The model, at hand or loaded now; the one used longest ago makes room, once it has answered all it was asked.

        In a tuple, as Ray Serve calls `__del__` of what makes room at once, whoever still works with it.
        """
        config, expected = self._models[name]
        return (ModelServer(config, expected, self._device),)
