"""The configs of every job: strict pydantic models, read from YAML or a named recipe.

Each flag of the command line is a field here, and each job is a module and one of these
(`python -m jobs.train train.yaml`). JSON Schemas for editors are in docs/schemas (`make schemas`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tomoray.errors import Usage

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Url = Annotated[str, Field(min_length=1, description="a path or s3://bucket/prefix")]


class Config(BaseModel):
    """Strict and frozen: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # built when one is made: help stays quick


class Layout(Config):
    """How arrays are stored; fixed for an archive when it is made.

    Attributes:
        chunk_zyx: voxels that are compressed together: the least that is read.
        shard_zyx: voxels of one object; a multiple of `chunk_zyx`.
        levels: resolutions; each halves the one before.
        codec: `zstd`, or `lz4` where voxels are read far more often than bytes are paid for: decoded 2.6 times as fast,
            written 2.7 times as fast, 29 % more bytes (docs/adr/0007).
        zstd_level: of zstd; lz4 has no levels worth choosing.
    """

    chunk_zyx: tuple[Positive, Positive, Positive] = (64, 64, 64)
    shard_zyx: tuple[Positive, Positive, Positive] = (256, 256, 256)
    levels: Annotated[int, Field(ge=1, le=6, description="resolutions; each halves the one before")] = 3
    codec: Literal["zstd", "lz4"] = "zstd"
    zstd_level: Annotated[int, Field(ge=1, le=22)] = 1

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> Layout:
        if any(shard % chunk for shard, chunk in zip(self.shard_zyx, self.chunk_zyx, strict=True)):
            raise ValueError(f"shard_zyx {self.shard_zyx} is not a multiple of chunk_zyx {self.chunk_zyx}")
        return self


class NiftiPattern(Config):
    """File names of NIfTI pairs. `{case}` and `{label}` stand for any characters but a slash."""

    image: str = "{case}_ct.nii.gz"
    label: str = "{case}_{label}.nii.gz"

    @model_validator(mode="after")
    def _names_case_and_label(self) -> NiftiPattern:
        if "{case}" not in self.image or "{case}" not in self.label or "{label}" not in self.label:
            raise ValueError("image needs {case}; label needs {case} and {label}")
        return self


class DeidentifyConfig(Config):
    """What may leave with a scan: options of PS3.15 E.3 (docs/deidentification.md).

    Attributes:
        retain_device: serial number and names of the scanner.
        retain_patient_characteristics: sex, age (90 for all above 89), height and weight.
        dates: `shifted` moves each patient's dates back by the same number of days, which only the key tells.
        retain_safe_private: private elements known to name nobody, as "0019,xx23 GEMS_ACQU_01".
        clean_descriptors: keep kernel, body part, series description and protocol, where they hold known words only.
        safe_words: words of your own that name nobody, such as a scanner's model, to be kept in cleaned text.
        keep_identifiers: de-identify nothing. For data that never leaves, or that names nobody.
    """

    retain_device: bool = False
    retain_patient_characteristics: bool = True
    dates: Literal["removed", "shifted", "kept"] = "removed"
    retain_safe_private: tuple[
        Annotated[str, Field(pattern=r"^[0-9a-f]{3}[13579bdf],xx[0-9a-f]{2} \S.{0,63}$")], ...
    ] = ()
    clean_descriptors: bool = True
    safe_words: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9]{2,32}$")], ...] = ()
    keep_identifiers: bool = False


class PreprocessConfig(Config):
    """`jobs.preprocess`: sources -> archive.

    Attributes:
        repair: what is resampled or accepted though it would be refused; every repair is noted in the catalog
            (docs/reasons.md).
    """

    sources: Annotated[list[Url], Field(min_length=1)]
    archive: Url
    nifti: NiftiPattern = NiftiPattern()
    layout: Layout = Layout()
    min_slices: Positive = 3
    repair: list[Literal["variable_spacing", "tilt", "missing_uid"]] = []
    deidentify: DeidentifyConfig = DeidentifyConfig()
    in_flight: Annotated[int, Field(ge=0, description="series at work at once; 0: twice the cluster's CPUs")] = 0
    metrics_port: Annotated[int | None, Field(ge=1, le=65535, description="for Prometheus, on the driver")] = None


class PlanConfig(Config):
    """`jobs.plan`: what preprocessing would take.

    Attributes:
        node: a kind of machine of the price table.
        nodes: how many of them.
        prices: a YAML file with a price table; None: TomoRay's own.
    """

    sources: Annotated[list[Url], Field(min_length=1)]
    archive: Url
    nifti: NiftiPattern = NiftiPattern()
    node: str = "m7i.4xlarge"
    nodes: Positive = 10
    prices: str | None = None


class PredictConfig(Config):
    """`jobs.predict`: model + archive -> masks, one folder a scan.

    Attributes:
        run: a run, a MONAI bundle or an `.onnx` file that TomoRay wrote.
        ensemble: more runs, whose class probabilities are averaged with those of `run`.
        out: where masks go; None: `RUN/predictions`.
        part: which patients of the run's own archive; another archive is always taken whole, and so is any by a bundle
            or file.
        backend: what runs the network; `auto` takes the fastest that is installed (docs/inference.md).
    """

    run: Url
    ensemble: list[Url] = []
    archive: Url
    out: Url | None = None
    part: Literal["test", "validation", "train", "all"] = "test"
    format: Literal["zarr", "nifti", "dicom-seg"] = "zarr"
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] = "auto"


class EvaluateConfig(Config):
    """`jobs.evaluate`: model + archive -> how well masks agree with the truth, per patient and label.

    Attributes:
        run: a run, a MONAI bundle or an `.onnx` file that TomoRay wrote.
        ensemble: more runs, whose class probabilities are averaged with those of `run`.
        predictions: where masks are, or go; None: `RUN/predictions`.
        tolerance_mm: how far apart surfaces may be to count as one, for the surface Dice.
        seed: of the bootstrap.
    """

    run: Url
    ensemble: list[Url] = []
    archive: Url
    predictions: Url | None = None
    part: Literal["test", "validation", "train", "all"] = "test"
    tolerance_mm: Annotated[float, Field(gt=0)] = 2.0
    seed: int = 0


class ExportConfig(Config):
    """`jobs.export`: run -> its network for use elsewhere.

    Attributes:
        to: a folder, or an S3 prefix.
    """

    run: Url
    to: Url
    format: Literal["torch-export", "onnx", "monai-bundle"] = "onnx"


class ReportConfig(Config):
    """`jobs.report`: run -> how its training went, as one HTML file.

    Attributes:
        out: a file on this machine; None: `RUN/report.html`.
        pictures: held-out scans to picture with truth and prediction.
    """

    run: Url
    out: str | None = None
    pictures: Annotated[int, Field(ge=0, le=50)] = 3


class FingerprintConfig(Config):
    """`jobs.fingerprint`: archive -> statistics of its scans.

    Attributes:
        save: write them to `ARCHIVE/fingerprint.json`.
        body_level: the level on which the body is found; archives with fewer levels use their coarsest.
    """

    archive: Url
    save: bool = False
    body_level: Annotated[int, Field(ge=0, le=5)] = 2
    in_flight: Annotated[int, Field(ge=0, description="scans at work at once; 0: twice the cluster's CPUs")] = 0


class PlanTrainingConfig(Config):
    """`tomoray plan-training`: fingerprint -> TrainConfig, by nnU-Net's rules.

    Attributes:
        source: an archive, or a fingerprint that `tomoray fingerprint --json` printed or `--save` wrote.
        memory_gb: what one worker may use for a training step: of its GPU, or of the machine.
        labels: what to segment; None takes every label that all scans have.
        write: a file on this machine for the TrainConfig, as YAML.
    """

    source: Url
    memory_gb: Annotated[float, Field(gt=0)] = 8.0
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    write: str | None = None


class QcConfig(Config):
    """`jobs.qc`: archive -> one HTML report.

    Attributes:
        out: the report, a file on this machine.
        montage: scans to picture; of larger archives that many, drawn with `seed`.
    """

    archive: Url
    out: str = "qc.html"
    montage: Annotated[int, Field(ge=0, le=1000)] = 60
    seed: int = 0
    in_flight: Annotated[int, Field(ge=0, description="scans at work at once; 0: twice the cluster's CPUs")] = 0


class PhantomConfig(Config):
    """`tomoray phantom`: a cohort of procedural thorax CTs as DICOM.

    Attributes:
        matrix: rows and columns of every slice; the field of view stays the same.
    """

    out: Url
    patients: Positive = 10
    seed: int = 0
    matrix: Annotated[int, Field(ge=64, le=512)] = 256


ConfigT = TypeVar("ConfigT", bound=Config)


def recipe_names() -> list[str]:
    """Names of the recipes that come with TomoRay."""
    folder = resources.files("tomoray") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str) -> str:
    """The YAML of a recipe; its first line is a comment that says what it is for. Raises `Usage` for an unknown one."""
    if name not in recipe_names():
        raise Usage(f"no recipe {name!r}{_nearest(name, recipe_names())}")
    return (resources.files("tomoray") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(source: str, model: type[ConfigT], overrides: Mapping[str, Any] | None = None) -> ConfigT:
    """Read a config from a YAML file, or from a recipe where `source` is a recipe's name.

    Args:
        source: path of a YAML file, or a name from `recipe_names()`.
        model: the config's class.
        overrides: fields from the command line, which win over the file's.

    Raises:
        Usage: no such file or recipe, not a YAML mapping, an unknown key (the nearest known one is named), or a
            value out of bounds.
    """
    return make_config(model, {**read_mapping(source, model), **(overrides or {})}, source)


def read_mapping(source: str, model: type[Config]) -> dict[str, Any]:
    """The fields in a YAML file or a recipe, for `model`, not yet validated. Raises `Usage`."""
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise Usage(f"no config file {source}; recipes that need none: {', '.join(recipe_names())}")
        text = path.read_text(encoding="utf-8")
    elif source in recipe_names():
        text = read_recipe(source)
    else:
        raise Usage(f"no config file or recipe {source!r}{_nearest(source, recipe_names())}")
    try:
        values = yaml.load(text, Loader=yaml.CSafeLoader)  # ten times as fast, where sources are many
    except yaml.YAMLError as error:
        raise Usage(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise Usage(f"{source} holds {type(values).__name__}; wanted a mapping of {', '.join(model.model_fields)}")
    return values


def make_config(model: type[ConfigT], values: Mapping[str, Any], source: str = "config") -> ConfigT:
    """Validate `values`; the error names each wrong field in one line. Raises `Usage`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Usage(f"{source}: " + "; ".join(_explain(model, dict(e)) for e in error.errors())) from error


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    where = [str(part) for part in problem["loc"]]
    name = ".".join(where) or model.__name__
    if problem["type"] != "extra_forbidden":
        found = f", found {problem['input']!r}" if where else ""
        return f"{name}: {problem['msg'].removeprefix('Value error, ')}{found}"
    owner: type[BaseModel] = model
    for part in where[:-1]:
        owner = section_of(owner, part) or owner
    return f"unknown key {name!r}{_nearest(where[-1], list(owner.model_fields))}"


def section_of(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The model that a field of another one holds, itself, or None, or by name; None where it holds no model."""
    annotation = model.model_fields[field].annotation if field in model.model_fields else None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
