"""The config of `jobs.tune`, and the trials that follow from it: which configs are tried, in which order.

    space -> point k of a Halton sequence -> a value for each path -> TrainConfig of trial k

A trial depends on (seed, space, k) alone, so that more trials may be added to those that are done.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tomoray.config import Config, Positive, Url, make_config, read_mapping, section_of
from tomoray.errors import Usage
from tomoray.training.config import HOW_IT_RUNS, TrainConfig

_FIXED = {  # by the first part of a path
    "archive": "trials are of one archive",
    "out": "each trial has a folder of its own",
    "task": "trials are compared by one score",
    "labels": "trials are compared by one score",
    "contains": "trials are compared by one score",
    "split": "trials are compared on the same patients",
    "steps": "trials are compared after the same steps",
    "validate_every": "trials are compared after the same steps",
    "patience": "asha ends what falls behind",
    **dict.fromkeys(HOW_IT_RUNS, "it changes no score"),
}
_VALIDATIONS = 10
_ENDED = ("done", "stopped")

State = Literal["waiting", "training", "done", "stopped", "failed"]
_DIGITS = 4  # significant ones, of numbers that are drawn
_IDLE_DRAWS = 200  # for each trial, before a space counts as exhausted


class ParameterConfig(Config):
    """The values that a field may take: one of these.

    Attributes:
        choice: these, all as likely; any YAML, sections too.
        uniform: from the first to the second, evenly.
        log_uniform: the same for their logarithm.
        integers: whole numbers from the first to the second, both included.
    """

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    integers: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> ParameterConfig:
        if sum(each is not None for each in (self.choice, self.uniform, self.log_uniform, self.integers)) != 1:
            raise ValueError(f"wanted one of {', '.join(type(self).model_fields)}")
        bounds = self.uniform or self.log_uniform or self.integers
        if bounds is not None and bounds[0] >= bounds[1]:
            raise ValueError(f"{bounds[0]} is not below {bounds[1]}; the lower bound comes first")
        return self

    @property
    def extremes(self) -> list[Any]:
        """Values that tell whether a config takes all of them: every choice, or both bounds."""
        return list(self.choice or self.uniform or self.log_uniform or self.integers or ())

    def at(self, share: float) -> Any:
        """The value below which a share of all lies.

        Args:
            share: from 0 to below 1.
        """
        if self.choice is not None:
            return self.choice[int(share * len(self.choice))]
        if self.integers is not None:
            low, high = self.integers
            return low + int(share * (high - low + 1))
        low_high = self.uniform or self.log_uniform
        assert low_high is not None
        start, end = map(math.log, low_high) if self.log_uniform else low_high
        value = start + share * (end - start)
        rounded = float(f"{math.exp(value) if self.log_uniform else value:.{_DIGITS}g}")
        return min(max(rounded, low_high[0]), low_high[1])


class AshaConfig(Config):
    """Which trials end early (Li et al., MLSys 2020).

    Attributes:
        grace_steps: no trial ends before; None: `train.validate_every`.
        reduction_factor: of the trials that came as far, one in so many goes on; the next look is after so many times
            the steps.
    """

    grace_steps: Positive | None = None
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0


class _SchemaOfTrainConfig:
    """Editors complete `train` as the `TrainConfig` that it becomes."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        fields = handler(TrainConfig.__pydantic_core_schema__)
        return {"anyOf": [{"type": "string", "description": "a YAML file, or a recipe"}, fields]}


class TuneConfig(Config):
    """`jobs.tune`: archive -> a run for each of many configs, and which of them is best.

    Attributes:
        train: what all trials have in common: the fields of a `TrainConfig`, a YAML file of them, or a recipe's name.
        space: what is tried, by the path of a field, such as `optimizer.weight_decay`.
        archive: None: that of `train`.
        out: where trials go; None: that of `train`.
        trials: how many; may be raised later.
        concurrent: trials at once; None: as many as there is room for.
        asha: None: every trial is trained to its end.
        seed: of the points that are tried.
    """

    train: Annotated[dict[str, Any], _SchemaOfTrainConfig]
    space: Annotated[dict[str, ParameterConfig], Field(min_length=1)]
    archive: Url | None = None
    out: Url | None = None
    trials: Positive = 16
    concurrent: Positive | None = None
    asha: AshaConfig | None = AshaConfig()
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _reads_what_train_names(cls, fields: Any) -> Any:
        if not (isinstance(fields, dict) and isinstance(fields.get("train"), str)):
            return fields
        try:
            return {**fields, "train": read_mapping(fields["train"], TrainConfig)}
        except Usage as error:
            raise ValueError(f"train: {error}") from error

    @model_validator(mode="after")
    def _paths_are_fields(self) -> TuneConfig:
        for path in self.space:
            _check_path(path)
        for one, other in combinations(sorted(self.space), 2):
            if other.startswith(f"{one}."):
                raise ValueError(f"space: {other} lies within {one}; keep one of them")
        return self

    @model_validator(mode="after")
    def _trials_can_be_compared(self) -> TuneConfig:
        base = self.base
        if not base.split.validation:
            raise ValueError("trials are compared on validation patients; set train.split.validation above 0")
        if self.asha is not None and self.grace_steps > base.steps:
            raise ValueError(f"asha.grace_steps {self.grace_steps} are more than train.steps {base.steps}")
        return self

    @model_validator(mode="after")
    def _train_takes_every_value(self) -> TuneConfig:
        for path, parameter in self.space.items():
            for value in parameter.extremes:
                self._check_alone(path, value)
        for trial in self.all_trials():
            self.config_of(trial)
        return self

    @property
    def base(self) -> TrainConfig:
        """What all trials have in common; ten validations where `train` says nothing of them.

        Raises `ValueError` where it is no config.
        """
        found = self._train_config({}, "train")
        if found.validate_every is not None:
            return found
        return self._train_config({"validate_every": max(1, found.steps // _VALIDATIONS)}, "train")

    @property
    def grace_steps(self) -> int:
        """No trial ends before."""
        given = self.asha.grace_steps if self.asha is not None else None
        return given or self.base.validate_every or 1

    def all_trials(self) -> list[Trial]:
        """Every trial, in the order in which they begin. Raises `ValueError` where the space has fewer points."""
        from scipy.stats import qmc  # takes half a second, which `tomoray --help` does not have

        paths = sorted(self.space)
        sequence = qmc.Halton(d=len(paths), scramble=True, rng=self.seed)
        found: dict[str, Trial] = {}
        for _ in range(self.trials + _IDLE_DRAWS * self.trials):
            shares = sequence.random(1)[0].tolist()
            values = {path: self.space[path].at(share) for path, share in zip(paths, shares, strict=True)}
            found.setdefault(json.dumps(values, sort_keys=True), Trial(number=len(found), values=values))
            if len(found) == self.trials:
                return list(found.values())
        raise ValueError(f"space has {len(found)} different points, and trials is {self.trials}; lower trials")

    def fields_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a trial as a user would write them, without `out`: what was not given has its default."""
        fields = self._fields_with({**values, "validate_every": self.base.validate_every})
        fields.pop("out", None)
        return fields

    def config_of(self, trial: Trial) -> TrainConfig:
        """The config of one trial, as a run of its own. Raises `ValueError` where it is no config."""
        base = self.base
        told = ", ".join(f"{path} {value!r}" for path, value in trial.values.items())
        out = None if base.out is None else f"{base.out.rstrip('/')}/{trial.name}"
        values = {**trial.values, "validate_every": base.validate_every, "out": out}
        return self._train_config(values, f"{trial.name} with {told}")

    def _train_config(self, values: Mapping[str, Any], name: str) -> TrainConfig:
        try:
            return make_config(TrainConfig, self._fields_with(values), name)
        except Usage as error:
            raise ValueError(str(error)) from error

    def _fields_with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `train`, with others at some paths."""
        fields = deepcopy(self.train)
        given = {"archive": self.archive, "out": self.out}
        for path, value in {**{name: url for name, url in given.items() if url}, **values}.items():
            *sections, last = path.split(".")
            at = fields
            for section in sections:
                if not isinstance(at.get(section), dict):
                    at[section] = {}
                at = at[section]
            at[last] = value
        return fields

    def _check_alone(self, path: str, value: Any) -> None:
        """Raise `ValueError` where the field itself takes no such value; what fits together, trials will tell."""
        parts = tuple(path.split("."))
        try:
            TrainConfig.model_validate(self._fields_with({path: value}))
        except ValidationError as error:
            for problem in error.errors():
                if problem["loc"][: len(parts)] == parts:
                    inner = ".".join(map(str, problem["loc"]))
                    why = problem["msg"].removeprefix("Value error, ")
                    raise ValueError(f"space: {path} of {value!r}: {inner}: {why}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One config that is tried.

    Attributes:
        number: from 0 on.
        values: by the path of a field.
    """

    number: int
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"trial-{self.number:03d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a trial stands.

    Attributes:
        name: of its folder.
        values: by the path of a field.
        state: `done`: all steps; `stopped`: ended early, and a finished run all the same.
        steps: how many are done.
        score: the best one of its validations; None: there was none.
        best_step: after which it was measured.
        message: why it failed.
    """

    name: str
    values: Mapping[str, Any]
    state: State = "waiting"
    steps: int = 0
    score: float | None = None
    best_step: int | None = None
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is a finished run."""
        return self.state in _ENDED


def _check_path(path: str) -> None:
    """Raise `ValueError` where `TrainConfig` has no such field, or where it may not vary."""
    parts = path.split(".")
    if parts[0] in _FIXED:
        raise ValueError(f"space: {path} cannot vary: {_FIXED[parts[0]]}; remove it")
    model: type[BaseModel] | None = TrainConfig
    for part in parts:
        if model is None or part not in model.model_fields:
            known = [] if model is None else list(model.model_fields)
            close = difflib.get_close_matches(part, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"space: train has no field {path!r}{hint}")
        model = section_of(model, part)
