"""What stands before the models: the gateway that speaks HTTP, and the runners that work on jobs. CPU only."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.util.accelerators import accelerators

from serving.bodies import MB
from serving.destinations import Destinations
from serving.examiner import Examiner
from serving.gateway import Gateway
from serving.queue.place import is_on_this_machine, open_queue
from serving.references import Places
from serving.runner import Desk, Runner
from serving.schemas import ServedModel
from tomoray import settings
from tomoray.errors import Fatal
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.serving_config import ServeConfig
from tomoray.tokens import read_tokens

ACCELERATOR = "ray.io/accelerator-type"  # Ray's own label of a node; absent where there is none

# Both work in threads and mostly wait, so they claim no CPU of their own.
gateway_deployment = serve.deployment(max_ongoing_requests=256)(serve.ingress()(Gateway))
runner_deployment = serve.deployment(max_ongoing_requests=1000, graceful_shutdown_timeout_s=10)(Runner)


def entrance(
    config: ServeConfig,
    models: Mapping[str, ServedModel],
    handles: Mapping[str, DeploymentHandle[Any]],
    archives: Mapping[str, str],
) -> serve.Application:
    """The application: gateway, runners, and the models behind them.

    Args:
        config: of all.
        models: what is served, by name; the first is the default.
        handles: their deployments, by name.
        archives: full URLs by every name that a request may use for them.

    Raises:
        Fatal: the queue, or the file of tokens, cannot be used.
    """
    desk = _desk(config)
    with closing(open_queue(desk.queue)):  # trouble is told here in one line; a replica could only fail to start
        pass
    if config.auth.tokens:
        read_tokens(Path(config.auth.tokens))
    examiner = Examiner(
        models=models,
        handles=handles,
        places=Places(archives=archives, s3=config.references.s3, dicomweb=config.references.dicomweb),
        destinations=Destinations(places=config.destinations),
        max_bytes=config.limits.expansion * config.limits.body_mb * MB,
        pseudonyms=Pseudonyms(secrets.token_bytes(32)),
    )
    options = {"num_cpus": 0, "runtime_env": {"env_vars": settings.serving_environment()}, **off_gpu_nodes()}
    runner = runner_deployment.options(num_replicas=config.queue.runners, ray_actor_options=options).bind(
        desk, examiner
    )
    return gateway_deployment.options(ray_actor_options=options).bind(examiner, desk, runner, config)


def off_gpu_nodes() -> dict[str, Any]:
    """Options of an actor that is never to start on a node with an accelerator, where the cluster has other nodes.

    A node's label names its accelerator, also that of a node which the autoscaler adds later.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    if all(ACCELERATOR in node["Labels"] for node in nodes):
        return {}
    known = {value for name, value in vars(accelerators).items() if name.isupper() and isinstance(value, str)}
    there = {node["Labels"][ACCELERATOR] for node in nodes if ACCELERATOR in node["Labels"]}
    names = ",".join(sorted(known | there))  # Ray takes a space after the comma for part of the name
    return {"label_selector": {ACCELERATOR: f"!in({names})"}}


def _desk(config: ServeConfig) -> Desk:
    """Where jobs and their files are, in full. Raises `Fatal` for SQLite on several machines."""
    url = config.queue.url
    if url is None:
        served = "\n".join(model.source for model in config.served)
        url = str(settings.state_folder() / "jobs" / hashlib.sha256(served.encode()).hexdigest()[:16] / "queue.sqlite")
    if not is_on_this_machine(url):
        assert config.queue.store is not None, "the config was checked"
        return Desk(queue=url, store=config.queue.store, at_once=config.jobs_at_once, settings=config.queue)
    if ray.is_initialized() and len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1:
        raise Fatal("the cluster has several machines and the queue is a file on one; set queue.url to a server")
    path = Path(url).expanduser().absolute()
    store = config.queue.store or f"{path}.files"
    return Desk(queue=str(path), store=store, at_once=config.jobs_at_once, settings=config.queue)
