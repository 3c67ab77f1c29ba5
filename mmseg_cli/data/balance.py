"""How unevenly pixels lie over the classes of a dataset. Numpy only, so that every command shows the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def inverse_log_weights(class_pixels: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Class weights 1 / ln(1.02 + share of the pixels), as in ENet (Paszke et al. 2016): a rare class counts more.

    Args:
        class_pixels: labelled pixels of each class in the training split.

    Returns:
        weight_K, between 1.4 (a class that is everywhere) and 50.5 (one that never occurs).
    """
    pixels_K = np.asarray(class_pixels, dtype=np.float64)
    return np.asarray(1 / np.log(1.02 + pixels_K / max(pixels_K.sum(), 1.0)))
