"""How well a mask agrees with the truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def dice(found: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> float:
    """Dice's coefficient, 2 |A ∩ B| / (|A| + |B|), of two masks of one shape (Dice, Ecology 1945).

    Two empty masks agree: 1.0. One empty mask: 0.0. Any non-zero voxel counts as inside.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != truth.shape:
        raise ValueError(f"masks of shapes {found.shape} and {truth.shape} cannot be compared")
    sizes = int(np.count_nonzero(found)) + int(np.count_nonzero(truth))
    both = int(np.count_nonzero(np.logical_and(found, truth)))
    return 2.0 * both / sizes if sizes else 1.0
