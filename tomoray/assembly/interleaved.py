"""Two acquisitions merged under one series UID whose slices alternate, so that together they look like one fine scan.

Overlapping reconstructions at half the slice thickness look alike too, are common, and are one scan. What tells the two
apart is never geometry: it is a header that changes with every second slice, or pixels that are more alike to the next
slice but one than to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tomoray.assembly.slices import Slice
from tomoray.errors import Reason, Refused

_FEWEST = 4  # slices; two of each
_NUMBERED_FEWEST = 8  # with fewer, numbers in no order look like two runs by chance
_RANGES_FEWEST = 16  # likewise for values that vary from slice to slice

MAX_RATIO = 1.25  # 0.59 to 0.79 in five real series of 1 to 5 mm; 1 in noise alone
_LEAST_HU = 1.0  # mean difference of neighbours below which there is nothing to compare
_TRIPLES, _EVERY = 24, 4  # looked at of a stack; of its rows and columns, one in four

_ATTRIBUTES: tuple[tuple[str, Callable[[Slice], object], str], ...] = (  # what it is, its value, the name of a part
    ("acquisition number", lambda s: s.plane.acquisition_number, "acquisition {}"),
    ("temporal position", lambda s: s.plane.temporal_position, "phase {}"),
    ("trigger time", lambda s: s.plane.trigger_time_ms, "trigger {:.15g} ms"),
    ("image type", lambda s: s.plane.image_type, ""),
    ("kernel", lambda s: s.instance.kernel, ""),
    ("slice thickness", lambda s: s.plane.slice_thickness_mm, ""),
    ("tube voltage", lambda s: s.instance.kvp, ""),
    ("exposure", lambda s: s.plane.exposure_mas, ""),
)


def tell_apart(ordered: Sequence[Slice]) -> tuple[str, tuple[str, str]] | None:
    """By which attribute the slices at even and at odd places are two acquisitions; None where none says so.

    An attribute does where it has one value at all even places and another at all odd ones, or where its values there
    lie in ranges that do not meet. InstanceNumber does where either half is numbered in order, in a run of its own:
    the runs follow one another, or say the same numbers twice.

    Args:
        ordered: the slices of a regular stack, by position.

    Returns:
        The attribute, and a name for each half, even places first.
    """
    if len(ordered) < _FEWEST:
        return None
    numbered = ("interleaved 1", "interleaved 2")
    for what, value, name in _ATTRIBUTES:
        even, odd = ([value(item) for item in ordered[start::2]] for start in (0, 1))
        if None in even or None in odd:
            continue
        if len(set(even)) == len(set(odd)) == 1 and even[0] != odd[0]:
            return what, (name.format(even[0]), name.format(odd[0])) if name else numbered
        if len(ordered) >= _RANGES_FEWEST and _apart(even, odd):
            return what, numbered
    return ("instance number", numbered) if _two_runs(ordered) else None


def check_alternation(planes: Sequence[npt.NDArray[np.int16]]) -> Refused | None:
    """Why these planes are no one scan, by their pixels; None where nothing speaks against it.

    In one scan a slice is most like its neighbour, and less like the next but one; where two acquisitions alternate,
    between which the patient moved or the noise changed its grain, it is the other way round.

    Args:
        planes: int16 HU [y, x], in the order of their positions.
    """
    if len(planes) < _NUMBERED_FEWEST:
        return None
    starts = np.unique(np.linspace(0, len(planes) - 3, _TRIPLES).astype(int))
    near, far = np.array([_differences(planes[start : start + 3]) for start in starts.tolist()]).T
    if near.mean() < _LEAST_HU or near.mean() < MAX_RATIO * far.mean() or (near > far).mean() < 0.9:
        return None
    return Refused(
        Reason.MIXED_ACQUISITION,
        f"slices differ from their neighbours by {near.mean():.3g} HU on average, from the next but one by "
        f"{far.mean():.3g}: two acquisitions alternate, which no attribute tells apart; wanted one",
    )


def _differences(three: Sequence[npt.NDArray[np.int16]]) -> tuple[float, float]:
    """Mean absolute difference of neighbours, and of the outer two, HU."""
    a, b, c = (plane[::_EVERY, ::_EVERY].astype(np.int32) for plane in three)
    return float(np.abs(a - b).mean() + np.abs(b - c).mean()) / 2, float(np.abs(a - c).mean())


def _apart(one: Sequence[object], other: Sequence[object]) -> bool:
    """True for numbers whose ranges do not meet."""
    if not all(isinstance(value, int | float) for value in (*one, *other)):
        return False
    a, b = np.array(one, dtype=np.float64), np.array(other, dtype=np.float64)
    return bool(a.max() < b.min() or b.max() < a.min())


def _two_runs(ordered: Sequence[Slice]) -> bool:
    numbers = [item.plane.instance_number for item in ordered]
    known = [number for number in numbers if number is not None]
    if len(known) < max(len(numbers), _NUMBERED_FEWEST):
        return False
    even, odd = known[::2], known[1::2]
    if not (_in_order(even) and _in_order(odd)):
        return False
    return _apart(even, odd) or 2 * len(set(even) & set(odd)) >= len(odd)


def _in_order(numbers: Sequence[int]) -> bool:
    steps = [after - before for before, after in pairwise(numbers)]
    return all(step > 0 for step in steps) or all(step < 0 for step in steps)
