import numpy as np
import pytest

from tomoray.metrics import dice

ONE = np.zeros((4, 4, 4), np.uint8)
ONE[:2] = 1
TWO = np.zeros((4, 4, 4), np.uint8)
TWO[1:3] = 1
NONE = np.zeros((4, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("found", "truth", "wanted"),
    [(ONE, ONE, 1.0), (ONE, TWO, 0.5), (ONE, 1 - ONE, 0.0), (NONE, NONE, 1.0), (ONE, NONE, 0.0), (NONE, ONE, 0.0)],
)
def test_dice_of_known_masks(found, truth, wanted):
    assert dice(found, truth) == wanted


def test_masks_of_different_shapes_are_not_compared():
    with pytest.raises(ValueError, match="shapes"):
        dice(ONE, ONE[:2])
