"""Rules of the hospital loop, and its memory."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import pytest

from serving.hospital.ledger import Ledger, read_counts
from serving.hospital.rules import Series, matches
from tomoray.config import make_config
from tomoray.errors import Fatal, Usage
from tomoray.hospital_config import HospitalConfig, RuleConfig

SERIES = Series(
    study_uid="1.2",
    series_uid="1.2.3",
    origin="pacs",
    modality="CT",
    body_part="CHEST",
    series_description="Thorax 1.0 B60f",
    study_description="CT Thorax native",
    instances=120,
)


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path / "ledger.sqlite")) as opened:
        yield opened


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, True),
        ({"modality": ["MR"]}, False),
        ({"body_part": ["chest", "LUNG"]}, True),
        ({"body_part": ["ABDOMEN"]}, False),
        ({"description": "thorax.*b[67]0"}, True),
        ({"description": "NATIVE"}, True),  # the study's counts too
        ({"description": "abdomen"}, False),
        ({"not_description": "scout|native"}, False),
        ({"min_instances": 121}, False),
        ({"min_instances": 120, "body_part": ["CHEST"], "not_description": "scout"}, True),
    ],
)
def test_rule_matches_where_all_of_it_holds(rule, expected):
    assert matches(RuleConfig(**rule), SERIES) is expected


def test_series_is_routed_once_it_is_seen_to_have_stopped_growing(ledger):
    for instances, now in ((60, 0), (120, 10), (120, 15)):
        ledger.notice(dataclasses.replace(SERIES, instances=instances), now)
        assert ledger.route([RuleConfig()], now, settle_s=10) == 0
    assert ledger.route([RuleConfig()], 1000, settle_s=10) == 0  # nobody has looked since
    ledger.notice(SERIES, 20)
    assert ledger.route([RuleConfig()], 20, settle_s=10) == 1
    (order,) = ledger.open_orders()
    assert (order.series.instances, order.state) == (120, "new")


def test_series_is_ordered_once_of_each_model_whatever_comes_later(ledger, tmp_path):
    rules = [RuleConfig(model="lungs"), RuleConfig(model="nodules", operation="detect"), RuleConfig(modality=["MR"])]
    for instances in (120, 130):  # ten more came late
        ledger.notice(dataclasses.replace(SERIES, instances=instances), 0)
        ledger.route(rules, 0, settle_s=0)
    assert sorted(order.rule.model for order in ledger.open_orders()) == ["lungs", "nodules"]
    ledger.close()
    with closing(Ledger(tmp_path / "ledger.sqlite")) as again:
        assert len({order.id for order in again.open_orders()}) == 2


def test_series_is_needed_until_the_server_has_it_and_its_results_are_here(ledger):
    ledger.notice(SERIES, 0)
    assert ledger.is_wanted(SERIES.series_uid)
    ledger.route([RuleConfig()], 0, settle_s=0)
    for state, wanted in (("sent", True), ("found", False), ("returned", False)):
        ledger.set(next(iter(ledger.open_orders())), state, 100)
        assert ledger.is_wanted(SERIES.series_uid) is wanted


def test_one_process_works_with_a_ledger_and_others_may_look(ledger, tmp_path):
    ledger.notice(SERIES, 0)
    with pytest.raises(Fatal, match="another process works with"):
        Ledger(tmp_path / "ledger.sqlite")
    assert read_counts(tmp_path / "ledger.sqlite")["arriving"] == 1
    with pytest.raises(Usage, match="start tomoray pacs first"):
        read_counts(tmp_path / "nothing" / "ledger.sqlite")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"back_to": {"host": "h", "port": 104, "ae_title": "PACS"}}, "nowhere to take series from"),
        ({"receiver": {}}, "nowhere to send results to"),
        ({"pacs": {"dicomweb": "http://u:p@h/dicom-web"}}, "pacs.dicomweb"),
        ({"pacs": {"dicomweb": "http://h"}, "rules": [{"description": "("}]}, "no regular expression"),
    ],
)
def test_config_that_cannot_work_is_refused_in_one_line(values, message):
    with pytest.raises(Usage, match=message):
        make_config(HospitalConfig, {"state": "s", **values})
