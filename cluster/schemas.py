"""The configs as JSON Schema, for editors: `docs/schemas/<job>.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cluster.targets import Targets
from tomoray.config import (
    EvaluateConfig,
    ExportConfig,
    FingerprintConfig,
    PhantomConfig,
    PlanConfig,
    PlanTrainingConfig,
    PredictConfig,
    PreprocessConfig,
    QcConfig,
    ReportConfig,
)
from tomoray.costs.simulation import SimulateConfig
from tomoray.costs.workload import Workload
from tomoray.errors import Usage
from tomoray.hospital_config import HospitalConfig
from tomoray.serving_config import ServeConfig
from tomoray.training.config import CrossValidateConfig, TrainConfig
from tomoray.training.search import TuneConfig

CONFIGS: dict[str, type[BaseModel]] = {
    "phantom": PhantomConfig,
    "preprocess": PreprocessConfig,
    "plan": PlanConfig,
    "fingerprint": FingerprintConfig,
    "plan-training": PlanTrainingConfig,
    "qc": QcConfig,
    "train": TrainConfig,
    "cross-validate": CrossValidateConfig,
    "tune": TuneConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "serve": ServeConfig,
    "hospital": HospitalConfig,
    "targets": Targets,
    "workload": Workload,
    "simulate": SimulateConfig,
}


def schemas() -> dict[str, Any]:
    """All schemas by the name of their job."""
    return {name: schema(name) for name in CONFIGS}


def schema(name: str) -> dict[str, Any]:
    """The schema of one config. Raises `Usage` for an unknown name."""
    if name not in CONFIGS:
        raise Usage(f"no config {name!r}; known: {', '.join(CONFIGS)}")
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | CONFIGS[name].model_json_schema()


def write(folder: Path) -> list[str]:
    """Write `<job>.json` for every config and return the paths. Safe to repeat: same configs, same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, document in schemas().items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        written.append(str(path))
    return written
