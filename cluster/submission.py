"""What is submitted: a job, its config as it will run, and how much of a cluster it gets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from cluster.pods import CACHE_FOLDER, Component
from cluster.schemas import CONFIGS
from cluster.targets import KubernetesTarget, RayTarget
from tomoray.config import Config, make_config, read_mapping, recipe_names
from tomoray.errors import Usage
from tomoray.training.config import TrainConfig

COMPONENTS: dict[str, Component] = {  # jobs that run on a cluster, each with who it is there
    "phantom": "preprocess",
    "preprocess": "preprocess",
    "fingerprint": "train",
    "train": "train",
    "cross-validate": "train",
    "tune": "train",
    "predict": "train",
    "evaluate": "train",
    "export": "train",
}
_SCHEMA_LINE = re.compile(r"^# yaml-language-server: \$schema=\S*?([a-z-]+)\.json", re.MULTILINE)
_URL_FIELDS = {
    "archive", "archives", "ensemble", "out", "predictions", "run", "source", "sources", "start_from", "to",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How much of a cluster a job gets, and for how long.

    Attributes:
        workers: the fewest and the most Ray workers, a pod each; the same number twice: no autoscaling. None: as many
            as a training's own `workers` fill, else one.
        gpus: of each worker.
        spot: workers on nodes that may be reclaimed at any time. The head never is.
        queue: a LocalQueue of Kueue; None: no Kueue.
        priority_class: of every pod.
        retries: how often the whole cluster is made anew after the job or its head failed; the job itself goes on from
            what is stored.
        keep_s: how long the cluster stays after the job has ended.
        keep_failed_s: how long after it failed, for a look at it; None: as `keep_s`.
        forget_s: how long until its record goes too, where `keep_failed_s` is given.
        deadline_s: how long it may take in all.
    """

    workers: tuple[int, int] | None = None
    gpus: int = 0
    spot: bool = False
    queue: str | None = None
    priority_class: str | None = None
    retries: int = 3
    keep_s: int = 60
    keep_failed_s: int | None = None
    forget_s: int = 7 * 86400
    deadline_s: int | None = None

    @property
    def autoscales(self) -> bool:
        """Whether workers come and go."""
        return self.workers is not None and self.workers[0] != self.workers[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job that is to be run somewhere.

    Attributes:
        job: its name, `train`.
        config: validated, with all that was changed for the place where it runs.
        shape: with `workers` decided.
        name: of the job on the cluster, the same for the same content: `train-3f9c2a1b7d`.
    """

    job: str
    config: Config
    shape: Shape
    name: str

    @property
    def component(self) -> Component:
        """Who it is on the cluster."""
        return COMPONENTS[self.job]

    @property
    def module(self) -> str:
        """Its entry point."""
        return f"jobs.{self.job.replace('-', '_')}"

    @property
    def document(self) -> str:
        """The config as the job reads it."""
        values = self.config.model_dump(mode="json", exclude_unset=True)
        return yaml.dump(values, Dumper=yaml.CSafeDumper, sort_keys=False)


def prepare(
    source: str,
    changes: Mapping[str, Any],
    target: KubernetesTarget | RayTarget,
    shape: Shape,
    *,
    job: str | None = None,
) -> Submission:
    """The submission of a config file or recipe.

    Args:
        source: a YAML file, or a recipe's name.
        changes: fields by their dotted names, over those of the file: `{"optimizer.learning_rate": 0.01}`.
        target: where it runs; paths are checked against it, and a training learns how many workers there will be.
        shape: how much it gets.
        job: None: told from the file, which says it in its `$schema` line, or is the config of one job only.

    Raises:
        Usage: no such file; a config of no job, or of several; a path that the cluster cannot see.
    """
    values = read_mapping(source, Config) if Path(source).is_file() or source in recipe_names() else _missing(source)
    for name, value in changes.items():
        _put(values, name, value)
    job = job or _said_job(source) or _only_job(source, values)
    if job not in COMPONENTS:
        raise Usage(f"no job {job!r} that runs on a cluster; those are: {', '.join(COMPONENTS)}")
    shape = _fit(job, values, target, shape)
    config: Config = make_config(CONFIGS[job], values, source)
    check_paths(config, target)
    return Submission(job=job, config=config, shape=shape, name=_name(job, config, target, shape))


def _missing(source: str) -> dict[str, Any]:
    raise Usage(f"no config file or recipe {source!r}; recipes: {', '.join(recipe_names())}")


def _said_job(source: str) -> str | None:
    if source in recipe_names() and not Path(source).is_file():
        return "train"
    said = _SCHEMA_LINE.search(Path(source).read_text("utf-8"))
    return said[1] if said else None


def _only_job(source: str, values: Mapping[str, Any]) -> str:
    """The one job that such a config is for."""
    fitting = [job for job in COMPONENTS if _fits(CONFIGS[job], values)]
    if len(fitting) == 1:
        return fitting[0]
    what = f"may be the config of {', '.join(fitting)}" if fitting else "is the config of no job as it stands"
    say = f"--job {fitting[0] if fitting else 'train'}, or a first line # yaml-language-server: $schema=…/train.json"
    raise Usage(f"{source} {what}; say which: {say}")


def _fits(model: type[BaseModel], values: Mapping[str, Any]) -> bool:
    """Whether every field is one of the model's, and every one that it wants is there."""
    wanted = {name for name, field in model.model_fields.items() if field.is_required()}
    if model is TrainConfig:
        wanted |= {"archive", "out"}
    return wanted <= set(values) <= set(model.model_fields)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, field = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise Usage(f"--set {name}: {section} is no section")
    values[field] = value


def _fit(job: str, values: dict[str, Any], target: KubernetesTarget | RayTarget, shape: Shape) -> Shape:
    """Let a training use the workers that it gets, or give it those that it wants; and the cache and price it has.

    A process trains on one GPU, or on a pod without any. Trials of a tuning share out what there is.
    """
    training = values if job == "train" else values.get("train") if job in {"cross-validate", "tune"} else None
    if not isinstance(training, dict) or not isinstance(target, KubernetesTarget):
        return replace(shape, workers=shape.workers or (1, 1))
    each = max(1, shape.gpus)
    if shape.workers is None:
        wanted = training.get("workers", 1)
        fewest, most = wanted if isinstance(wanted, list | tuple) else (wanted, wanted)
        shape = replace(shape, workers=(-(-int(fewest) // each), -(-int(most) // each)))
    elif job != "tune":
        fewest, most = (count * each for count in shape.workers)
        training["workers"] = most if fewest == most else [fewest, most]
    if shape.gpus:
        training.setdefault("gpu", True)
    pool = target.pools.gpu if shape.gpus else target.pools.cpu
    if pool.node_type:
        training.setdefault("node", pool.node_type)
    if target.cache and isinstance(stream := training.setdefault("stream", {}), dict):
        stream.setdefault("cache_folder", CACHE_FOLDER)
    return shape


def check_paths(config: Config, target: KubernetesTarget | RayTarget) -> None:
    """Raises `Usage` where a config names a path that the target's machines do not see."""
    for field, path in _paths(config.model_dump(mode="json")):
        if "://" in path:
            continue
        if isinstance(target, RayTarget) and not path.startswith("/"):
            raise Usage(f"{field}: {path} depends on the folder; name a full path that every node sees, or a bucket")
        if isinstance(target, KubernetesTarget) and not any(f"{path}/".startswith(f"{v}/") for v in target.volumes):
            seen = f"below {', '.join(target.volumes)}" if target.volumes else "s3://bucket/prefix"
            raise Usage(f"{field}: no pod sees {path}; name {seen}, or add the volume to the target")


def _paths(values: Any, field: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(values, dict):
        for name, value in values.items():
            where = f"{field}.{name}" if field else name
            for each in value if isinstance(value, list) else [value]:
                if name in _URL_FIELDS and isinstance(each, str):
                    yield where, each
                elif isinstance(each, dict):
                    yield from _paths(each, where)


def _name(job: str, config: Config, target: KubernetesTarget | RayTarget, shape: Shape) -> str:
    """The same for the same work in the same shape on the same target: submitted twice, it is one job."""
    content = [job, config.model_dump(mode="json"), target.model_dump(mode="json"), asdict(shape)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{job}-{digest[:10]}"


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """`FIELD=VALUE` as the command line says it, values as YAML. Raises `Usage`."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Usage(f"--set {text}: wanted FIELD=VALUE, as in --set optimizer.learning_rate=0.01")
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Usage(f"--set {text}: the value is not valid YAML") from error
    return changes


def parse_workers(text: str) -> tuple[int, int]:
    """`8`, or `2:16` for an autoscaler between them. Raises `Usage`."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    fewest = int(match[1]) if match else 0
    most = int(match[2] or match[1]) if match else 0
    if match is None or most < max(1, fewest):
        raise Usage(f"--workers {text}: wanted a number, or the fewest and the most of them as 2:16")
    return fewest, most
