from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingConfig

from serving import scaling
from serving.app import _scaling
from serving.scaling import PACE, Pace, QueueAndLatency
from tomoray.serving_config import ModelConfig, ServeConfig


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(scaling.time, "monotonic", lambda: now.s)
    return now


def wanted(requests, *, paces=(), target_s=30.0, each=2.0):
    ctx = SimpleNamespace(
        total_num_requests=requests,
        aggregated_metrics={PACE: dict(enumerate(paces))} if paces else {},
        config=AutoscalingConfig(target_ongoing_requests=each),
    )
    return QueueAndLatency(target_s)(ctx)[0]


def test_pace_leaves_out_what_is_idle_and_counts_what_is_done_together_once(clock):
    pace = Pace()
    assert pace.seconds_a_scan() == 0
    with pace.scan():
        clock.s += 6
    clock.s += 1000
    with pace.scan(), pace.scan():
        clock.s += 8
    assert pace.seconds_a_scan() == pytest.approx((6 + 8 + 0) / 3)


def test_scan_that_failed_says_nothing_of_the_pace(clock):
    pace = Pace()

    def fail():
        with pace.scan():
            clock.s += 0.1
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert pace.seconds_a_scan() == 0


def test_requests_alone_decide_until_a_pace_is_known():
    assert wanted(10) == 5
    assert wanted(10, paces=[0.0]) == 5


def test_slow_scans_call_for_more_replicas_and_fast_ones_for_no_fewer():
    assert wanted(10, paces=[60.0, 20.0]) == pytest.approx(20), "10 requests of 60 s each in 30 s"
    assert wanted(10, paces=[1.0]) == 5


def test_model_says_how_long_a_request_may_take():
    plain = _scaling(ModelConfig(source="run", max_replicas=4))["autoscaling_config"]
    in_time = _scaling(ModelConfig(source="run", max_replicas=4, target_latency_s=30))["autoscaling_config"]
    assert plain.policy.policy_kwargs == {}
    assert in_time.policy.policy_function == "serving.scaling:QueueAndLatency"
    assert in_time.policy.policy_kwargs == {"target_s": 30.0}


def test_runners_take_as_many_jobs_as_all_replicas_can_work_on():
    models = [{"source": "a", "max_replicas": 8}, {"source": "b", "max_replicas": 2, "target_ongoing_requests": 1.5}]
    assert ServeConfig(run="run").jobs_at_once == 4
    assert ServeConfig(models=models).jobs_at_once == 19
    assert ServeConfig(models=models, queue={"runners": 2}).jobs_at_once == 10
    assert ServeConfig(models=models, queue={"at_once": 3}).jobs_at_once == 3
