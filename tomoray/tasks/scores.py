"""What predictions are worth: scores that more than one task, or a report, may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Floats = npt.NDArray[np.floating[Any]]


def auroc(probabilities: Floats, truth: Sequence[int]) -> float | None:
    """Area under the ROC curve: how often a case of a class is ranked above one of another.

    By ranks (Hanley and McNeil, Radiology 1982), ties count half. Of more than two classes, the mean over classes of
    one against the rest (Fawcett 2006).

    Args:
        probabilities: (cases, classes).
        truth: the class of each case.

    Returns:
        0..1; None where the cases are all of one class.
    """
    classes = np.asarray(truth)
    present = np.unique(classes)
    if len(present) < 2:
        return None
    areas = []
    for number in present if probabilities.shape[1] > 2 else [1]:
        positive = classes == number
        ranks = rankdata(probabilities[:, number])
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        areas.append((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
    return float(np.mean(areas))


def balanced_accuracy(found: Sequence[int], truth: Sequence[int]) -> float:
    """Mean over the classes among `truth` of the share that was found (Brodersen et al., ICPR 2010)."""
    guessed, classes = np.asarray(found), np.asarray(truth)
    return float(np.mean([np.mean(guessed[classes == number] == number) for number in np.unique(classes)]))
