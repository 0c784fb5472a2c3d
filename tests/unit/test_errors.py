from __future__ import annotations

import pickle

import pytest

from tomoray.errors import Busy, Fatal, Forbidden, Reason, Refused, Shortage, TomoRayError, TooLarge, Transient, Usage

ERRORS = [
    Refused(Reason.MISSING_SLICES, "gap of 7.5 mm after plane 12; wanted 2.5 mm"),
    Transient("s3://bucket did not answer in 30 s"),
    Busy("100 jobs wait already; try again later"),
    Fatal("no such bucket: s3://bucket"),
    TooLarge("the zip holds more than 1000 bytes; send less, or raise the limit"),
    Shortage("a step wants more than 9.1 GB of memory and 8.0 GB are free for it; lower batch_size"),
    Forbidden("rayjobs.ray.io is forbidden: you cannot list it; ask the cluster's owner for a Role that may"),
    Usage("unknown key 'stpes'; did you mean 'steps'?"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_crosses_a_process_border(error: TomoRayError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_every_error_is_in_the_list_above() -> None:
    def kinds(kind: type[TomoRayError]) -> set[type[TomoRayError]]:
        return {kind}.union(*(kinds(below) for below in kind.__subclasses__()))

    ours = {kind for kind in kinds(TomoRayError) if kind.__module__ == TomoRayError.__module__}
    assert ours - {TomoRayError} <= {type(error) for error in ERRORS}


def test_refusal_says_its_reason_first() -> None:
    assert str(ERRORS[0]) == "missing_slices: gap of 7.5 mm after plane 12; wanted 2.5 mm"


def test_reason_codes_are_lower_case_words() -> None:
    assert all(reason.value == reason.name.lower() for reason in Reason)
