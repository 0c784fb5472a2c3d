"""The config of `serving.app:app`: which models answer, where they listen, and who may ask."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tomoray.config import Config, Fraction, Positive, Url

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="as it stands in a query")]
_JOBS_AT_ONCE = 4
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
        source: a run, a MONAI bundle, or an `.onnx` file that TomoRay wrote, on a path or S3.
        name: None: the last part of `source`.
        sha256: of the model's file; another one is refused. None takes the file that the source itself names; a bundle
            made elsewhere names none.
        ensemble: more runs, whose class probabilities are averaged with those of `source`.
        backend: what runs the network; `auto` takes the fastest that is there on this machine.
        cpus: of each replica; 0: its share of a single machine, 1 on a cluster of several.
        gpu: a GPU for each replica; None: where the cluster has enough of them.
        min_replicas: 0 lets the model go while nobody asks; the next request then waits for it.
        target_ongoing_requests: of each replica, on average; more of them call for another replica.
        target_latency_s: how long a request should take, waiting included; more replicas are called for where those
            that are there would take longer for all that is asked, at the pace they have shown. None: only requests
            are counted.
        windows_at_once: the most windows, of whatever requests, that go through the network together.
        requests_at_once: the most requests of one replica whose windows are mixed.
        memory_mb: what these may take together while they are worked on, besides the network and voxels that were sent;
            a scan that takes more is worked on alone.
        queue: requests that may wait for a replica; more are told to come back.
        upscale_delay_s: how long there are too many requests before a replica is added; the first comes at once.
        downscale_delay_s: how long there are too few before a replica goes.
        multiplexed: share one deployment with all other models that say so, loaded when they are asked for.
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
    target_latency_s: Annotated[float, Field(gt=0)] | None = None
    windows_at_once: Positive = 4
    requests_at_once: Positive = 4
    memory_mb: Positive = 1500
    queue: Annotated[int, Field(ge=0)] = 32
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5.0
    downscale_delay_s: Annotated[float, Field(gt=0)] = 600.0
    multiplexed: bool = False
    canary: CanaryConfig | None = None

    @model_validator(mode="after")
    def _may_have_replicas(self) -> ModelConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self


class OidcConfig(Config):
    """Tokens (JWT) that an identity provider signs.

    Attributes:
        issuer: what `iss` must say.
        audience: what `aud` must hold.
        jwks: URL of the provider's keys; None: where the issuer's `/.well-known/openid-configuration` says.
        scopes: the claim that holds scopes, as a list or with spaces between them.
    """

    issuer: Annotated[str, Field(pattern=r"^https?://")]
    audience: str
    jwks: Annotated[str, Field(pattern=r"^https?://")] | None = None
    scopes: str = "scope"


class AuthConfig(Config):
    """Who may ask. With neither tokens nor OIDC the server answers on loopback addresses only.

    Attributes:
        tokens: a file of hashed tokens, on this machine, as `tomoray token` writes it; read again when it changes.
        oidc: an identity provider, besides or instead.
        proxied: a proxy in front checks who asks; answer everybody who gets through, under one name.
    """

    tokens: str | None = None
    oidc: OidcConfig | None = None
    proxied: bool = False

    @property
    def configured(self) -> bool:
        """True where somebody is told from nobody."""
        return bool(self.tokens or self.oidc or self.proxied)


class TlsConfig(Config):
    """What the connection is encrypted with: PEM files on this machine.

    Attributes:
        client_ca: who signs the certificates that clients must show (mutual TLS); None: they need none.
    """

    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None

    @model_validator(mode="after")
    def _has_both(self) -> TlsConfig:
        if (self.certificate is None) != (self.key is None) or (self.client_ca and not self.certificate):
            raise ValueError("TLS wants certificate and key, and client_ca only with them")
        return self


class LimitsConfig(Config):
    """What is too much of one request, and of one caller.

    Attributes:
        body_mb: of one request.
        expansion: a study may unpack, and decode, to this many times `body_mb`.
        bodies_mb: of all requests that a gateway works on at once; more are told to come back.
        in_memory_mb: of one body; the rest of it waits on disk.
        requests_per_minute: of one caller, on each gateway; 0: any number.
    """

    body_mb: Positive = 2048
    expansion: Positive = 4
    bodies_mb: Positive = 4096
    in_memory_mb: Positive = 16
    requests_per_minute: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _lets_something_in(self) -> LimitsConfig:
        if self.bodies_mb < self.body_mb:
            raise ValueError(f"bodies_mb {self.bodies_mb} is less than body_mb {self.body_mb}; no body would ever fit")
        return self


class QueueConfig(Config):
    """Where accepted jobs are kept until they are done, and their results.

    Attributes:
        url: a file for SQLite, `postgresql://user@host/database` or `redis://host:6379/0`; None: a file of this user's
            for these models. SQLite is for one machine.
        store: folder or S3 prefix for bodies and results; None: beside the SQLite file.
        depth: jobs that may wait; more are told to come back.
        at_once: jobs that a runner works on at a time; each holds its scan in memory, where it was sent. None: as many
            as keep all replicas busy that there may be, and 4 at least.
        runners: processes that take jobs.
        keep_hours: how long results are kept.
        lease_s: when a job of a runner that was killed is taken by another.
        attempts: how often a job is begun before it has failed.
    """

    url: Annotated[str, Field(min_length=1)] | None = None
    store: Url | None = None
    depth: Positive = 1000
    at_once: Positive | None = None
    runners: Positive = 1
    keep_hours: Annotated[float, Field(gt=0)] = 24.0
    lease_s: Annotated[float, Field(ge=1)] = 15.0
    attempts: Positive = 5

    @model_validator(mode="after")
    def _knows_where_bytes_go(self) -> QueueConfig:
        if self.url is not None and "://" in self.url and self.store is None:
            raise ValueError("a queue on a server wants store, a folder or S3 prefix that all machines reach")
        return self


class ReferencesConfig(Config):
    """Places, besides archives, that a request may name as input.

    Attributes:
        s3: prefixes; whatever lies below one may be named.
        dicomweb: roots of DICOMweb servers, by the name that a request uses.
    """

    s3: list[Annotated[str, Field(pattern=r"^s3://[^/]+")]] = []
    dicomweb: dict[Name, Annotated[str, Field(pattern=r"^https?://")]] = {}


class DestinationConfig(Config):
    """One place for results: a DICOMweb server, a folder or S3 prefix, or an archive of masks. Exactly one of them.

    Attributes:
        stow: root of a DICOMweb server; SEG and SR are stored there.
        files: SEG, SR, NIfTI and JSON are written below.
        archive: masks are written as labels of an archive without images, as `tomoray predict` does.
    """

    stow: Annotated[str, Field(pattern=r"^https?://")] | None = None
    files: Url | None = None
    archive: Url | None = None

    @model_validator(mode="after")
    def _is_one_place(self) -> DestinationConfig:
        if sum(place is not None for place in (self.stow, self.files, self.archive)) != 1:
            raise ValueError("a destination is one of stow, files and archive")
        return self


class AuditConfig(Config):
    """What is written down of who asked for what.

    Attributes:
        file: JSON lines, appended; `-`: the log of the gateway; None: `audit.jsonl` in this user's state folder.
    """

    file: str | None = None


class ServeConfig(Config):
    """`serving.app:app`: models as endpoints.

    Attributes:
        run: one model by its source, with `replicas` and `cpus`: short for an entry of `models`.
        models: what is served; the first, `run` before all, is the default.
        archives: archives that a reference may name; empty: only those the models were trained on.
        destinations: where results may be sent, by the name that a request uses.
    """

    run: Url | None = None
    replicas: Positive = 1
    cpus: Annotated[int, Field(ge=0)] = 0
    models: list[ModelConfig] = []
    archives: list[Url] = []
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    auth: AuthConfig = AuthConfig()
    tls: TlsConfig = TlsConfig()
    limits: LimitsConfig = LimitsConfig()
    queue: QueueConfig = QueueConfig()
    references: ReferencesConfig = ReferencesConfig()
    destinations: dict[Name, DestinationConfig] = {}
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

    @property
    def jobs_at_once(self) -> int:
        """Jobs that each runner works on at a time."""
        busy = sum(ceil(model.max_replicas * model.target_ongoing_requests) for model in self.served)
        return self.queue.at_once or max(_JOBS_AT_ONCE, ceil(busy / self.queue.runners))
