"""`serving.app:app`, the application: `serve run serving.app:app run=RUN`, or `tomoray serve RUN`.

Annotations here are evaluated, not postponed: Ray Serve reads `app`'s to turn its arguments into a `ServeConfig`.
"""

import re

import ray
from ray import serve

from serving.entrance import entrance
from serving.model import SegmentModel, served_model
from tomoray import settings
from tomoray.errors import Fatal
from tomoray.runs import Run, open_run
from tomoray.serving_config import ServeConfig
from tomoray.storage import open_store

model_deployment = serve.deployment(max_ongoing_requests=1, max_queued_requests=32)(SegmentModel)


def app(config: ServeConfig) -> serve.Application:
    """The gateway and one deployment of `config.replicas` for the run. Raises `Fatal` where the run cannot be opened.

    `host` and `port` belong to whoever starts Ray Serve; they are not read here.
    """
    run = open_run(config.served[0].source)
    run.read_model()  # damage is told here in one line; a replica could only fail to start
    model = served_model(_model_name(run), run)
    resources = _replica_resources(config)
    own = {"runtime_env": {"env_vars": settings.serving_environment()}}
    segment_model = model_deployment.options(num_replicas=config.replicas, ray_actor_options={**resources, **own}).bind(
        run.store.url, model, "cuda" if resources["num_gpus"] else "cpu"
    )
    return entrance(config, {model.name: model}, {model.name: segment_model}, _archives(config, run))


def _replica_resources(config: ServeConfig) -> dict[str, int]:
    """CPUs and GPUs of a replica. Raises `Fatal` where a single machine has not enough for all of them."""
    if not ray.is_initialized():
        return {"num_cpus": config.cpus or 1, "num_gpus": 0}
    total = ray.cluster_resources()
    machines = sum(node["Alive"] for node in ray.nodes())
    share = int(total.get("CPU", 0)) // config.replicas if machines == 1 else 1
    cpus = config.cpus or max(1, share)
    if machines == 1 and cpus * config.replicas > total.get("CPU", 0):
        raise Fatal(
            f"{config.replicas} replicas take {cpus * config.replicas} CPUs and Ray has {total.get('CPU', 0):g}"
        )
    return {"num_cpus": cpus, "num_gpus": int(total.get("GPU", 0) >= config.replicas)}


def _model_name(run: Run) -> str:
    """The run's folder name, as it can stand in a query."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", run.store.url.rstrip("/").rpartition("/")[2]) or "model"


def _archives(config: ServeConfig, run: Run) -> dict[str, str]:
    """Full URLs by every name that a request may use for them."""
    allowed: dict[str, str] = {}
    for url in config.archives or filter(None, [run.config.archive]):
        full = open_store(url).url
        allowed |= {url.rstrip("/"): full, full.rstrip("/"): full}
    return allowed
