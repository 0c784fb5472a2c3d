"""`serving.app:app`, the application: `serve run serving.app:app run=RUN`, or `tomoray serve RUN`.

Annotations here are evaluated, not postponed: Ray Serve reads `app`'s to turn its arguments into a `ServeConfig`.
"""

from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serving.canary import Canary
from serving.entrance import entrance, off_gpu_nodes
from serving.model import ModelServer, served_model
from serving.schemas import ServedModel
from serving.shared import DEPLOYMENT, SharedModels
from tomoray import settings
from tomoray.errors import Fatal, Usage
from tomoray.inference.models import Model
from tomoray.serving_config import CanaryConfig, ModelConfig, ServeConfig
from tomoray.storage import open_store

DRAIN_S = 600.0  # a replica that goes ends the scans it has begun
_drains = serve.deployment(graceful_shutdown_timeout_s=DRAIN_S, health_check_timeout_s=60)
model_deployment, shared_deployment = _drains(ModelServer), _drains(SharedModels)
canary_deployment = serve.deployment(max_ongoing_requests=1000)(Canary)


def app(config: ServeConfig) -> serve.Application:
    """The gateway, and a deployment for each model. Raises `Fatal` where one cannot be opened.

    `host` and `port` belong to whoever starts Ray Serve; they are not read here.
    """
    models, handles, opened, shared = {}, {}, [], {}
    for wanted in config.served:
        served, model = served_model(wanted)
        if served.name in models:
            raise Usage(f"two models are called {served.name}; give one of them another name")
        models[served.name], opened = served, [*opened, model]
        if wanted.multiplexed:
            shared[served.name] = (wanted, served)
        elif wanted.canary is not None:
            handles[served.name] = _in_trial(wanted, served, wanted.canary)
        else:
            handles[served.name] = _deployed(f"model-{served.name}", wanted, served)
    handles |= dict.fromkeys(shared, _shared(shared)) if shared else {}
    return entrance(config, models, handles, _archives(config, opened))


def _deployed(name: str, model: ModelConfig, served: ServedModel) -> serve.Application:
    options = _options(model)
    device = "cuda" if options["ray_actor_options"]["num_gpus"] else "cpu"
    return model_deployment.options(name=name, **options).bind(model, served, device)


def _in_trial(model: ModelConfig, served: ServedModel, canary: CanaryConfig) -> serve.Application:
    """Both deployments, and what stands before them. Raises `Usage` where the newer one finds something else."""
    newer = model.model_copy(update={"source": canary.source, "sha256": canary.sha256, "ensemble": []})
    told = served_model(newer)[0]
    for field in ("operation", "labels"):
        if getattr(told, field) != getattr(served, field):
            raise Usage(f"canary {canary.source} has {field} {getattr(told, field)}, {model.source} has others")
    name = f"model-{served.name}"
    older = _deployed(name, model, served)
    options = {"num_cpus": 0, **off_gpu_nodes()}
    return canary_deployment.options(name=f"{name}-trial", ray_actor_options=options).bind(
        served.name, canary, older, _deployed(f"{name}-newer", newer, told.model_copy(update={"name": served.name}))
    )


def _shared(models: dict[str, tuple[ModelConfig, ServedModel]]) -> serve.Application:
    """One deployment for all; the first of them says how it scales."""
    first = next(iter(models.values()))[0]
    options = _options(first)
    device = "cuda" if options["ray_actor_options"]["num_gpus"] else "cpu"
    return shared_deployment.options(name=DEPLOYMENT, **options).bind(models, device)


def _options(model: ModelConfig) -> dict[str, Any]:
    """What Ray Serve is told of a deployment of a model."""
    env = {"runtime_env": {"env_vars": settings.serving_environment()}}
    return {
        "max_ongoing_requests": model.requests_at_once,
        "max_queued_requests": model.queue,
        "ray_actor_options": {**_replica_resources(model), **env},
        **_scaling(model),
    }


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
            **_latency_policy(model),
        )
    }


def _latency_policy(model: ModelConfig) -> dict[str, Any]:
    if model.target_latency_s is None:
        return {}
    how = {"policy_function": "serving.scaling:QueueAndLatency", "policy_kwargs": {"target_s": model.target_latency_s}}
    return {"policy": AutoscalingPolicy(**how)}


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
