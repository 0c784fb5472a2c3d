"""The config of `serving.app:app`: which models answer, where they listen, and who may ask."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tomoray.config import Config, Fraction, Positive, Url

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="as it stands in a query")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CanaryConfig(Config):
    """Another source that answers a share of a model's requests, until it errs too often.

    Attributes:
        source: as of a model.
        weight: share of the requests that it answers.
        max_error_rate: of its answers, more errors than that take it out.
        at_least: answers before it is judged.
    """

    source: Url
    sha256: Sha256 | None = None
    weight: Fraction = 0.1
    max_error_rate: Fraction = 0.05
    at_least: Positive = 20


class ModelConfig(Config):
    """One model: what it is, what runs it, and how many replicas of it there may be.

    Attributes:
        source: a run, a MONAI bundle or an `.onnx` file that TomoRay wrote, on a path or S3.
        name: None: the last part of `source`.
        sha256: of the model's file; another one is refused. None takes the file that the source itself names.
        ensemble: more runs, whose class probabilities are averaged with those of `source`.
        backend: what runs the network; `auto` takes the fastest that is there on this machine.
        cpus: of each replica; 0: its share of a single machine, 1 on a cluster of several.
        gpu: a GPU for each replica; None: where the cluster has enough of them.
        min_replicas: 0 lets the model go while nobody asks; the next request then waits for it.
        target_ongoing_requests: of each replica, on average; more of them call for another replica.
        windows_at_once: the most windows, of whatever requests, that go through the network together.
        requests_at_once: the most requests of one replica whose windows are mixed; each holds its scan in memory.
        queue: requests that may wait for a replica; more are told to come back.
        downscale_delay_s: how long a replica may idle before it goes.
        multiplexed: share one deployment with all other models that say so, loaded when they are asked for.
        skip_air: leave out windows that hold nothing but air.
    """

    source: Url
    name: Name | None = None
    sha256: Sha256 | None = None
    ensemble: list[Url] = []
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] = "auto"
    cpus: Annotated[int, Field(ge=0)] = 0
    gpu: bool | None = None
    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Positive = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 2.0
    windows_at_once: Positive = 4
    requests_at_once: Positive = 4
    queue: Annotated[int, Field(ge=0)] = 32
    downscale_delay_s: Annotated[float, Field(gt=0)] = 600.0
    multiplexed: bool = False
    skip_air: bool = True
    canary: CanaryConfig | None = None

    @model_validator(mode="after")
    def _may_have_replicas(self) -> ModelConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self


class AuthConfig(Config):
    """Who may ask."""


class TlsConfig(Config):
    """What the connection is encrypted with."""


class LimitsConfig(Config):
    """What is too much of one request, and of one caller."""


class QueueConfig(Config):
    """Where accepted jobs are kept until they are done, and their results."""


class ReferencesConfig(Config):
    """Places, besides archives, that a request may name as input."""


class DestinationsConfig(Config):
    """Places that a request may name for its result."""


class AuditConfig(Config):
    """What is written down of who asked for what."""


class ServeConfig(Config):
    """`serving.app:app`: models as endpoints.

    Attributes:
        run: one model by its source, with `replicas` and `cpus`: short for an entry of `models`.
        models: what is served; the first, `run` before all, is the default.
        archives: archives that a reference may name; empty: only those the models were trained on.
    """

    run: Url | None = None
    replicas: Positive = 1
    cpus: Annotated[int, Field(ge=0)] = 0
    models: list[ModelConfig] = []
    archives: list[Url] = []
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_body_mb: Positive = 2048
    auth: AuthConfig = AuthConfig()
    tls: TlsConfig = TlsConfig()
    limits: LimitsConfig = LimitsConfig()
    queue: QueueConfig = QueueConfig()
    references: ReferencesConfig = ReferencesConfig()
    destinations: DestinationsConfig = DestinationsConfig()
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _serves_something(self) -> ServeConfig:
        if not self.served:
            raise ValueError("nothing to serve; wanted run or models")
        return self

    @property
    def served(self) -> list[ModelConfig]:
        """All models, `run` as one of them."""
        if self.run is None:
            return self.models
        alone = ModelConfig(source=self.run, cpus=self.cpus, min_replicas=self.replicas, max_replicas=self.replicas)
        return [alone, *self.models]
