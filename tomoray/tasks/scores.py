"""What predictions are worth: scores that more than one task, or a report, may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from skimage.metrics import structural_similarity

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


def psnr(image: Floats, truth: Floats) -> float:
    """Peak signal-to-noise ratio of an image on the scale 0..1, dB; at most 100."""
    error = float(np.mean((image.astype(np.float64) - truth) ** 2))
    return float(-10 * np.log10(max(error, 1e-10)))


def ssim(image: Floats, truth: Floats) -> float:
    """Structural similarity (Wang et al., IEEE TIP 2004) of `[z, y, x]` on the scale 0..1, in windows of 7 voxels."""
    similarity: Any = structural_similarity  # without types
    return float(similarity(image, truth, data_range=1.0))


def frechet_distance(one: Floats, other: Floats) -> float:
    """Between the normal distributions of two samples (cases, numbers): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2).

    Dowson and Landau, J. Multivariate Anal. 12:450, 1982.
    """
    shift = float(((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum())
    spread_one, spread_other = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    eigenvalues = np.linalg.eigvals(spread_one @ spread_other).real.clip(min=0)
    return shift + float(np.trace(spread_one) + np.trace(spread_other) - 2 * np.sqrt(eigenvalues).sum())


def temperature(probabilities: Floats, truth: Sequence[int]) -> float:
    """What logarithms of probabilities are to be divided by to be true most often (Guo et al., ICML 2017).

    Above 1 where a network is surer than it should be. From 0.05 to 20.

    Args:
        probabilities: (cases, classes), of scans that the network did not learn from.
        truth: the class of each case.
    """
    cases = np.arange(len(truth))

    def unlikeliness(log_temperature: float) -> float:
        likely = with_temperature(probabilities, float(np.exp(log_temperature)))[cases, np.asarray(truth)]
        return float(-np.log(likely.clip(1e-12)).mean())

    return float(np.exp(minimize_scalar(unlikeliness, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def with_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities `(cases, classes)` made softer, or sharper below 1; each row sums to 1."""
    logits = np.log(np.asarray(probabilities).clip(1e-12)) / temperature
    softened = np.exp(logits - logits.max(axis=1, keepdims=True))
    calibrated: Floats = softened / softened.sum(axis=1, keepdims=True)
    return calibrated
