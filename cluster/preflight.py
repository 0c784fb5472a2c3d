"""What can be told before Ray starts, which takes seconds: that what a config names is there."""

from __future__ import annotations

from pathlib import Path

from tomoray.archive import Archive
from tomoray.config import Config, EvaluateConfig, FingerprintConfig, PredictConfig, PreprocessConfig, QcConfig
from tomoray.errors import Fatal
from tomoray.storage import open_store
from tomoray.training.config import CrossValidateConfig, TrainConfig
from tomoray.training.search import TuneConfig


def check(config: Config) -> None:
    """Look at every source, archive and model that a job would read; jobs look again themselves.

    Raises:
        Fatal: one is not there or cannot be reached, in the job's own words.
    """
    if isinstance(config, PreprocessConfig):
        for source in config.sources:
            if "://" not in source and not Path(source).expanduser().exists():
                raise Fatal(f"no folder or file at {source}; check the path")
        open_store(config.archive).check()
    if isinstance(config, PredictConfig | EvaluateConfig):
        from tomoray.inference.models import open_model  # slow to load, and no other job asks a model

        open_model(config.run, ensemble=config.ensemble)
    if isinstance(config, CrossValidateConfig):
        check(config.train)
    if isinstance(config, TuneConfig):
        check(config.base)
    if (
        isinstance(config, TrainConfig | PredictConfig | EvaluateConfig | FingerprintConfig | QcConfig)
        and config.archive
    ):
        Archive.open(config.archive)
