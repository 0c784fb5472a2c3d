"""What a terminal shows of a training, and what a pipe."""

from io import StringIO

import pytest
from rich.console import Console

from tomoray.training.search import Standing
from tomoray.training.terminal import Metrics, trials_table, value_text


def line(step, dice=None, **scores):
    scores = {} if dice is None else {"dice": dice, "dice/lungs": dice, "hd95": 3.0, **scores}
    found = {"step": step, "loss": 0.4, "learning_rate": 0.00098, "samples_per_s": 61.2, "waited_share": 0.003}
    return {**found, **({"scores": scores} if scores else {})}


def text(drawn):
    out = StringIO()
    Console(file=out, width=140).print(drawn)
    return out.getvalue()


def rows(metrics):
    """The cells of the table, without heading and bar."""
    return [each.split() for each in text(metrics.draw()).splitlines()[1:-1]]


def test_before_the_first_line_there_is_a_bar():
    assert "0/100" in text(Metrics(100, monitor="dice").draw())


def test_the_table_shows_validations_the_best_and_where_training_is():
    metrics = Metrics(100, monitor="dice")
    metrics.take([line(10, 0.5), line(20, 0.7), line(30, 0.6), line(35)])
    assert text(metrics.draw()).splitlines()[0].split()[-2:] == ["dice", "dice/lungs"]
    assert rows(metrics) == [
        ["10", "0.4", "0.00098", "61.2", "0.3%", "0.500", "0.500"],
        ["20", "0.4", "0.00098", "61.2", "0.3%", "0.700", "0.700", "best"],
        ["30", "0.4", "0.00098", "61.2", "0.3%", "0.600", "0.600"],
        ["35", "0.4", "0.00098", "61.2", "0.3%"],
    ]
    assert "35/100" in text(metrics.draw())


def test_the_best_stays_in_sight_however_long_ago():
    metrics = Metrics(100, monitor="dice")
    metrics.take([line(step, 0.9 if step == 1 else 0.5) for step in range(1, 41)])
    found = rows(metrics)
    assert len(found) == 9
    assert (found[0][0], found[0][-1], found[1][0], found[-1][0]) == ("1", "best", "33", "40")


def test_where_less_is_better_the_lowest_is_best():
    metrics = Metrics(100, monitor="rmse", higher_is_better=False)
    metrics.take([{**line(10), "scores": {"rmse": 3.0}}, {**line(20), "scores": {"rmse": 4.0}}])
    assert rows(metrics)[0][-1] == "best"


def test_each_validation_is_one_line_for_a_pipe_and_only_once():
    metrics = Metrics(100, monitor="dice")
    (first,) = metrics.take([line(5), line(10, 0.5)])
    assert first.startswith(
        "step 10/100: dice 0.500, dice/lungs 0.500, loss 0.4, learning rate 0.00098, 61.2 patches/s"
    )
    assert metrics.take([line(12), line(15)]) == []
    (second,) = metrics.take([line(20, 0.4)])
    assert "best 0.500 at step 10" in second
    assert metrics.take([line(20, 0.4)]) == []


def test_steps_that_are_done_again_take_the_place_of_those_that_were_lost():
    metrics = Metrics(100, monitor="dice")
    metrics.take([line(10, 0.5), line(20, 0.9), line(25)])
    metrics.take([line(10, 0.5), line(12)])
    assert [row[0] for row in rows(metrics)] == ["10", "12"]
    assert "12/100" in text(metrics.draw())


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.000123456, "0.0001235"), (3, "3"), ("dice_ce", "dice_ce"), ([1, 2], "[1, 2]"), (True, "true")],
)
def test_values_read_as_a_person_writes_them(value, told):
    assert value_text(value) == told
    assert value_text({"name": "unet", "x": value}) == f"unet, x {told}"


def test_trials_are_a_row_each_and_those_left_out_are_counted():
    found = [Standing(name=f"trial-00{n}", values={"seed": n}, state="done", steps=9, score=0.5) for n in range(3)]
    shown = text(trials_table(found, "dice", 10, most=2)).splitlines()
    assert shown[0].split() == ["trial", "state", "steps", "dice", "best", "at", "seed"]
    assert shown[1].split() == ["trial-000", "done", "9/10", "0.500", "-", "0"]
    assert shown[-1].strip() == "and 1 more"
