"""`serving.app:app`, the application: `serve run serving.app:app run=RUN`, or `tomoray serve RUN`.

Annotations here are evaluated, not postponed: Ray Serve reads `app`'s to turn its arguments into a `ServeConfig`.
"""

from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig

from serving.entrance import entrance
from serving.model import ModelServer, served_model
from tomoray import settings
from tomoray.errors import Fatal, Usage
from tomoray.inference.models import Model
from tomoray.serving_config import ModelConfig, ServeConfig
from tomoray.storage import open_store

DRAIN_S = 600.0  # a replica that goes ends the scans it has begun
model_deployment = serve.deployment(graceful_shutdown_timeout_s=DRAIN_S, health_check_timeout_s=60)(ModelServer)


def app(config: ServeConfig) -> serve.Application:
    """The gateway, and a deployment for each model. Raises `Fatal` where one cannot be opened.

    `host` and `port` belong to whoever starts Ray Serve; they are not read here.
    """
    models, handles, opened = {}, {}, []
    for wanted in config.served:
        served, model = served_model(wanted)
        if served.name in models:
            raise Usage(f"two models are called {served.name}; give one of them another name")
        resources = _replica_resources(wanted)
        deployment = model_deployment.options(
            name=f"model-{served.name}",
            max_ongoing_requests=wanted.requests_at_once,
            max_queued_requests=wanted.queue,
            ray_actor_options={**resources, "runtime_env": {"env_vars": settings.serving_environment()}},
            **_scaling(wanted),
        )
        models[served.name], opened = served, [*opened, model]
        handles[served.name] = deployment.bind(wanted, served, "cuda" if resources["num_gpus"] else "cpu")
    return entrance(config, models, handles, _archives(config, opened))


def _scaling(model: ModelConfig) -> dict[str, Any]:
    """How many replicas: a number, or as many as the requests call for."""
    if model.min_replicas == model.max_replicas:
        return {"num_replicas": model.min_replicas}
    return {
        "autoscaling_config": AutoscalingConfig(  # without initial_replicas: with it, none ever start from zero
            min_replicas=model.min_replicas,
            max_replicas=model.max_replicas,
            target_ongoing_requests=model.target_ongoing_requests,
            upscale_delay_s=model.upscale_delay_s,
            downscale_delay_s=model.downscale_delay_s,
            metrics_interval_s=1,
            look_back_period_s=min(10.0, model.downscale_delay_s),
        )
    }


def _replica_resources(model: ModelConfig) -> dict[str, int]:
    """CPUs and GPUs of a replica. Raises `Fatal` where a single machine has not enough for the fewest."""
    if not ray.is_initialized():
        return {"num_cpus": model.cpus or 1, "num_gpus": int(model.gpu or False)}
    total = ray.cluster_resources()
    there = int(total.get("CPU", 0))
    machines = sum(node["Alive"] for node in ray.nodes())
    share = there // model.max_replicas if machines == 1 else 1
    cpus = model.cpus or max(1, share)
    if machines == 1 and cpus * model.min_replicas > there:
        raise Fatal(f"{model.min_replicas} replicas take {cpus * model.min_replicas} CPUs and Ray has {there}")
    gpu = model.gpu if model.gpu is not None else total.get("GPU", 0) >= model.max_replicas
    return {"num_cpus": cpus, "num_gpus": int(gpu)}


def _archives(config: ServeConfig, models: list[Model]) -> dict[str, str]:
    """Full URLs by every name that a request may use for them."""
    allowed: dict[str, str] = {}
    for url in config.archives or filter(None, [model.config.archive for model in models]):
        full = open_store(url).url
        allowed |= {url.rstrip("/"): full, full.rstrip("/"): full}
    return allowed
