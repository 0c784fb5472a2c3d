import json

import pytest
from mlflow.tracking import MlflowClient
from tensorboardX.proto.event_pb2 import Event

from tomoray.errors import Fatal, Usage
from tomoray.runs import HISTORY, read_history
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig
from tomoray.training.tracking import EVENTS, event_file, track_run


def line(step, **more):
    values = {"loss": 1 / step, "learning_rate": 0.01, "samples_per_s": 4.0, "waited_share": 0.1, "workers": 1}
    return {"step": step, "samples": 2 * step, **values, **more}


LINES = [line(10), line(20, scores={"dice": 0.5, "dice/lungs": 0.5}), line(30)]


def write_history(store, lines):
    store.write(HISTORY, "".join(json.dumps(each) + "\n" for each in lines).encode())


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


def config(store, **tracking):
    values = {"labels": ["lungs"], "archive": "a", "out": store.url, "steps": 30, "tracking": tracking}
    return TrainConfig.model_validate(values)


def read_events(data):
    """Records are: length (8), its CRC (4), the event, its CRC (4)."""
    while data:
        size = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_event_file_holds_every_value_at_its_step(store):
    write_history(store, LINES)
    assert track_run(store, config(store)) == {"tensorboard": EVENTS, "mlflow": None}
    version, *events = read_events(store.read(EVENTS))
    assert version.file_version == "brain.Event:2"
    found = {(event.summary.value[0].tag, event.step): event.summary.value[0].simple_value for event in events}
    assert len(found) == len(events)
    assert found["loss", 20] == pytest.approx(1 / 20)
    assert found["validation/dice.lungs", 20] == 0.5
    assert [event.wall_time for event in events if event.summary.value[0].tag == "loss"] == [5, 10, 15]


def test_more_history_only_adds_to_the_event_file():
    assert event_file(LINES).startswith(event_file(LINES[:2]))


def test_a_run_that_goes_on_shows_each_step_once_in_mlflow(store, tmp_path):
    wanted = config(store, mlflow=(tmp_path / "mlruns").as_uri(), experiment="lungs")
    for lines in (LINES[:2], LINES[1:2], LINES, LINES):  # steps up to 20, interrupted after 20, to the end, asked again
        write_history(store, lines)
        run_id = track_run(store, wanted)["mlflow"]
    client = MlflowClient(tracking_uri=wanted.tracking.mlflow)
    assert [(p.step, p.value) for p in client.get_metric_history(run_id, "loss")] == [(n, 1 / n) for n in (10, 20, 30)]
    assert [p.step for p in client.get_metric_history(run_id, "validation/dice")] == [20]
    run = client.get_run(run_id)
    assert run.data.params["optimizer.name"] == "adamw"
    assert (run.info.status, run.data.tags["tomoray.run"]) == ("FINISHED", store.url)
    experiment = client.get_experiment_by_name("lungs")
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_mlflow_that_does_not_answer_is_one_line(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_history(store, LINES)
    with pytest.raises(Fatal, match=r"^MLflow at http://127.0.0.1:9 did not take the run: ") as caught:
        track_run(store, config(store, mlflow="http://127.0.0.1:9"))
    assert "\n" not in str(caught.value)
    assert read_history(store) == LINES


def test_mlflow_without_its_extra_says_what_to_install(store, monkeypatch):
    write_history(store, LINES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Usage, match=r"pip install 'tomoray\[tracking\]'"):
        track_run(store, config(store, mlflow="file:///tmp/x"))
