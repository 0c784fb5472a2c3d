"""A run's history for those who watch: TensorBoard event files and MLflow.

Both are made from the lines of `RUN/history.jsonl`, not from the training itself: so a run that was interrupted, and
does some steps again, shows each step once, and a run may be tracked after it ended.

The wall time of a TensorBoard point is the time spent in steps, so that pauses between two attempts do not show.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from tomoray.errors import Fatal, Usage
from tomoray.runs import read_history
from tomoray.storage import Store
from tomoray.training.config import TrackingConfig, TrainConfig

EVENTS = "tensorboard/events.out.tfevents.0000000000.tomoray"  # TensorBoard wants digits there

_PLAIN = ("loss", "learning_rate", "samples_per_s", "waited_share", "workers")
_RUN_TAG = "tomoray.run"
_POINTS_AT_ONCE = 1000  # MLflow's own bound for a batch

Line = Mapping[str, Any]


def check_tracking(config: TrackingConfig) -> None:
    """Raise `Usage` where a package that tracking wants is not installed."""
    if config.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise Usage("tracking.mlflow wants the package mlflow-skinny: pip install 'tomoray[tracking]'")


def track_run(store: Store, config: TrainConfig) -> dict[str, Any]:
    """Bring what tracks a run up to its history. Safe to repeat, at any time while it trains or after.

    Returns:
        `tensorboard`: key of the event file in the run's folder, or None; `mlflow`: id of the run there, or None.

    Raises:
        Usage: MLflow is wanted and not installed.
        Fatal: MLflow does not answer.
    """
    lines, wanted = read_history(store), config.tracking
    if wanted.tensorboard:
        store.write(EVENTS, event_file(lines))
    mlflow_run = send_to_mlflow(wanted, store.url, config, lines) if wanted.mlflow else None
    return {"tensorboard": EVENTS if wanted.tensorboard else None, "mlflow": mlflow_run}


def points(line: Line) -> Iterator[tuple[str, float]]:
    """What one line of a history says, by name: `loss`, `losses/NETWORK`, `validation/dice.LABEL` and so on.

    No name is the folder of another: MLflow's file store could not hold both.
    """
    for name in _PLAIN:
        if name in line:
            yield name, float(line[name])
    for prefix, values in (("losses", line.get("losses", {})), ("validation", line.get("scores", {}))):
        for name, value in values.items():
            yield f"{prefix}/{name.replace('/', '.')}", float(value)


def event_file(lines: Sequence[Line]) -> bytes:
    """A TensorBoard event file. The same lines give the same bytes, and more lines only add to them."""
    seconds, before = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="tomoray-") as folder:
        path = Path(folder, "events")
        writer = RecordWriter(str(path))
        writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
        for line in lines:
            seconds += (line["samples"] - before) / line["samples_per_s"] if line["samples_per_s"] else 0.0
            before = line["samples"]
            for name, value in points(line):
                event = Event(wall_time=seconds, step=line["step"], summary=scalar(name, value))
                writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()


def send_to_mlflow(wanted: TrackingConfig, run_url: str, config: TrainConfig, lines: Sequence[Line]) -> str:
    """Log those points that MLflow does not have yet, in the run that is tagged with this one's URL; its id.

    Raises:
        Usage: MLflow is not installed.
        Fatal: it does not answer, or refuses.
    """
    check_tracking(wanted)
    from mlflow.entities import Metric, Param, RunTag  # an extra, and slow to load
    from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = str(wanted.mlflow)
    if uri.startswith("file:") or "://" not in uri:
        allowed: Any = MLFLOW_ALLOW_FILE_STORE  # its methods have no types
        allowed.set(True)  # MLflow asks to be asked for its plain files
    try:
        client = MlflowClient(tracking_uri=uri)
        run_id = _mlflow_run(client, wanted.experiment, run_url)
        if not client.get_run(run_id).data.params:
            params = [Param(name, value) for name, value in sorted(_flat(config.model_dump(mode="json")))]
            for at in range(0, len(params), 100):  # again MLflow's bound
                client.log_batch(run_id, params=params[at : at + 100])
        last = max((point.step for point in client.get_metric_history(run_id, "loss")), default=0)
        now_ms = int(time.time() * 1000)
        fresh = [
            Metric(name, value, now_ms, line["step"])
            for line in lines
            if line["step"] > last
            for name, value in points(line)
        ]
        for at in range(0, len(fresh), _POINTS_AT_ONCE):
            client.log_batch(run_id, metrics=fresh[at : at + _POINTS_AT_ONCE])
        if lines:
            client.log_batch(run_id, tags=[RunTag("tomoray.steps", str(lines[-1]["step"]))])
            if lines[-1]["step"] >= config.steps:
                client.set_terminated(run_id, "FINISHED")
    except (MlflowException, OSError) as error:
        raise Fatal(f"MLflow at {uri} did not take the run: {' '.join(str(error).split())[:300]}") from error
    return run_id


def _mlflow_run(client: Any, experiment: str, run_url: str) -> str:
    """The run of this URL, made where there is none."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = client.create_experiment(experiment) if found is None else found.experiment_id
    quoted = run_url.replace("'", "\\'")
    there = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{quoted}'", max_results=1)
    if there:
        return str(there[0].info.run_id)
    made = client.create_run(experiment_id, run_name=run_url.rstrip("/").rpartition("/")[2], tags={_RUN_TAG: run_url})
    return str(made.info.run_id)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
