from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from cluster import cli
from tomoray.costs.simulation import SimulateConfig, preprocess, series_seconds, simulate, train
from tomoray.costs.workload import Rates
from tomoray.ingest.estimate import read_prices

NODES = read_prices().nodes
CPU, GPU = NODES["m7i.4xlarge"], NODES["g6e.12xlarge"]
INSTANT = Rates(driver_series_per_s=1e9)


def ingest(durations_s, *, slots=4, **config):
    return preprocess(np.asarray(durations_s, dtype=float), SimulateConfig(**{"rates": INSTANT} | config), slots=slots)


@pytest.mark.parametrize(("n", "machines", "slots"), [(1, 1, 1), (100, 3, 4), (1000, 7, 16), (13, 20, 8)])
def test_without_interruptions_it_takes_as_long_as_its_rounds(n, machines, slots):
    stage = ingest(np.full(n, 30.0), machines=machines, slots=slots, interruptions_per_hour=0)
    assert stage.seconds == pytest.approx(30.0 * ceil(n / (machines * slots)), abs=1e-3)
    assert stage.machine_s == pytest.approx(machines * stage.seconds)
    assert (stage.done, stage.repeated, stage.repeated_s) == (n, 0, 0)


def test_the_driver_hands_out_one_series_after_the_other():
    stage = ingest(np.full(1000, 0.01), machines=50, interruptions_per_hour=0, rates=Rates(driver_series_per_s=10))
    assert stage.seconds == pytest.approx(999 / 10 + 0.01, abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_no_work_is_lost_and_none_is_made_up(seed):
    durations = np.random.default_rng(seed).lognormal(5, 1, 400)
    stage = ingest(durations, machines=5, interruptions_per_hour=2, notice_s=60, seed=seed)
    assert stage.done == 400
    assert stage.useful_s == pytest.approx(durations.sum())
    assert stage.interruptions > 0
    assert stage.useful_s + stage.repeated_s <= 4 * stage.machine_s + 1e-6, "no more work than there were slots"
    shares = [share for _, _, share in stage.timeline]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_series_shorter_than_the_notice_are_never_done_twice():
    stage = ingest(np.full(5000, 20.0), machines=5, interruptions_per_hour=3, notice_s=120)
    assert stage.interruptions > 10
    assert stage.repeated == 0
    assert ingest(np.full(5000, 20.0), machines=5, interruptions_per_hour=3, notice_s=0).repeated > 0


def test_series_take_together_what_the_rates_say():
    config = SimulateConfig(series=1000, source_tb=0.05, spread=1.0)
    assert series_seconds(config).sum() == pytest.approx(0.05e6 / (130 * 0.73))
    assert len(series_seconds(SimulateConfig())) == 0


def test_training_without_interruptions_is_steps_by_speed():
    stage = train(SimulateConfig(steps=10_000, batch_size=8, machines=4, interruptions_per_hour=0), GPU)
    assert stage.seconds == pytest.approx(10_000 * 8 / (4 * 40 * 4))
    assert stage.repeated == 0


@pytest.mark.parametrize("seed", range(5))
def test_training_with_notice_repeats_no_step(seed):
    stage = train(SimulateConfig(steps=200_000, machines=4, interruptions_per_hour=2, seed=seed), GPU)
    assert stage.interruptions > 0
    assert (stage.done, stage.repeated) == (200_000, 0)
    assert stage.useful_s == pytest.approx(200_000 * 8 / 160)


def test_training_without_notice_repeats_less_than_a_checkpoint_each_time():
    config = SimulateConfig(steps=200_000, machines=4, interruptions_per_hour=2, notice_s=0, checkpoint_every=1000)
    stage = train(config, GPU)
    assert 0 < stage.repeated < 1000 * stage.interruptions
    assert stage.useful_s == pytest.approx(200_000 * 8 / 160)


def test_the_same_seed_is_the_same_run_and_another_is_not():
    runs = [
        simulate(SimulateConfig(series=500, source_tb=5, steps=50_000, interruptions_per_hour=2, seed=seed), CPU, GPU)
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1]
    assert runs[0]["stages"] != runs[2]["stages"]


def test_more_interruptions_cost_more():
    runs = [
        simulate(SimulateConfig(series=500, source_tb=20, machines=4, interruptions_per_hour=rate), CPU, GPU)
        for rate in (0, 1, 5)
    ]
    hours = [run["hours"] for run in runs]
    assert hours == sorted(hours)
    assert runs[0]["stages"]["preprocessing"]["repeated_hours"] == 0


def test_the_command_draws_what_it_tells(tmp_path, capsys):
    plot = tmp_path / "run.html"
    flags = ["--series", "300", "--tb", "5", "--steps", "9000", "--interruptions", "2"]
    assert cli.main(["cost", "simulate", *flags, "--plot", str(plot)]) == 0
    assert "done twice" in capsys.readouterr().out
    page = plot.read_text()
    assert page.count("<svg") == 4
    assert "preprocessing" in page
