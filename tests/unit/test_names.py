"""A set of many names: it answers as a set does."""

from __future__ import annotations

import random

from tomoray.ingest.names import Names


def test_it_holds_what_a_set_holds_of_names_of_any_length_and_script(monkeypatch):
    monkeypatch.setattr("tomoray.ingest.names._AT_ONCE", 7)
    rng = random.Random(1)
    names = {f"{rng.getrandbits(80):020x}" for _ in range(100)} | {"a", "ä" * 40, "not\udcffutf8", "b" * 130}
    some = set(rng.sample(sorted(names), 60))
    held = Names(some)
    assert len(held) == 60
    assert set(held) == some
    assert {name for name in names if name in held} == some
    assert "a" * 20 not in held


def test_without_takes_away_what_is_there_and_leaves_the_rest():
    names = Names(["c", "a", "bb", "c"])
    assert list(names) == ["a", "bb", "c"]
    assert list(names.without(["bb", "elsewhere " * 9, "c"])) == ["a"]
    assert list(names.without([])) == ["a", "bb", "c"]


def test_the_empty_set_holds_nothing():
    assert len(Names()) == 0
    assert "" not in Names()
    assert "a" not in Names()
    assert list(Names().without(["a"])) == []
