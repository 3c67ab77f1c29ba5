"""Where the windows of an image lie, how much each of their pixels counts, and bilinear resizing, one axis at a time.

Resizing is linear, so a window's share in the resized whole can be computed from the window alone: a pixel of the
result is the weighted mean of two pixels of the source, each of which may lie in this window or in another. A
prediction at another scale is thus put together at the size that is wanted, and its own size is never held in memory.

numpy only. Both axes are alike, so lengths and positions here are those of rows or of columns, in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Weights = Literal["flat", "gaussian"]
SIGMA = 1 / 8  # of the Gaussian, as a share of the window: nnU-Net's (Isensee et al. 2021)
LEAST = 1e-3  # weight of a pixel far from the middle: where it is alone it counts all the same


@dataclass(frozen=True)
class Taps:
    """Bilinear resizing of one axis: ``out[i] = (1 - share[i]) * x[low[i]] + share[i] * x[high[i]]``."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    share: NDArray[np.float32]


@lru_cache(maxsize=32)
def taps(source: int, target: int) -> Taps:
    """The taps from ``source`` to ``target`` pixels, corners not aligned, no smoothing: torch's ``interpolate``."""
    place = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(np.floor(place).astype(np.int64), source - 1)
    return Taps(low, np.minimum(low + 1, source - 1), (place - low).astype(np.float32))


@dataclass(frozen=True)
class Window:
    """One axis of a window, and what it adds to the result.

    Attributes:
        start, length: of the window, in pixels of the source.
        first, last: the pixels of the result to which the window adds, from ``first`` to before ``last``.
        low, high: for each of them the two pixels of the window that it is made of.
        low_weight, high_weight: how much they count; all windows' weights of a pixel of the result sum to 1.
    """

    start: int
    length: int
    first: int
    last: int
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    low_weight: NDArray[np.float32]
    high_weight: NDArray[np.float32]

    def between(self, first: int, last: int) -> Window | None:
        """What of it adds to pixels ``first`` to before ``last`` of the result; None where nothing does."""
        begin, end = max(first, self.first), min(last, self.last)
        if begin >= end:
            return None
        part = slice(begin - self.first, end - self.first)
        numbers = (self.low[part], self.high[part], self.low_weight[part], self.high_weight[part])
        return Window(self.start, self.length, begin, end, *numbers)


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """As many windows as the overlap asks for, spread evenly from the first pixel to the last."""
    if window >= length:
        return [0]
    count = math.ceil((length - window) / max(1, math.floor(window * (1 - overlap)))) + 1
    return [round(position * (length - window) / (count - 1)) for position in range(count)]


def _profile(window: int, weights: Weights) -> NDArray[np.float64]:
    if weights == "flat":
        return np.ones(window)
    distance = (np.arange(window) + 0.5) / window - 0.5
    return np.maximum(np.exp(-0.5 * (distance / SIGMA) ** 2), LEAST)


@lru_cache(maxsize=32)
def windows(source: int, target: int, *, window: int, overlap: float, weights: Weights) -> tuple[Window, ...]:
    """The windows that cover one axis of ``source`` pixels, for a result of ``target`` pixels.

    Args:
        window: pixels of a window; all are equally long, and no longer than the axis.
        overlap: the least share of a window that the next one covers as well, in [0, 1).
        weights: ``flat``, or ``gaussian``: pixels in the middle of a window have seen more around them and count more.
    """
    window = min(window, source)
    starts, profile = _starts(source, window, overlap), _profile(window, weights)
    total = np.zeros(source)
    for start in starts:
        total[start : start + window] += profile
    across = taps(source, target)
    found = []
    for start in starts:
        share = profile / total[start : start + window]
        inside_low = (across.low >= start) & (across.low < start + window)
        inside_high = (across.high >= start) & (across.high < start + window)
        touched = np.flatnonzero(inside_low | inside_high)
        if not len(touched):  # so much smaller that no pixel of the result falls on it
            continue
        part = slice(int(touched[0]), int(touched[-1]) + 1)
        low = np.clip(across.low[part] - start, 0, window - 1)
        high = np.clip(across.high[part] - start, 0, window - 1)
        low_weight = np.where(inside_low[part], (1 - across.share[part]) * share[low], 0)
        high_weight = np.where(inside_high[part], across.share[part] * share[high], 0)
        found.append(
            Window(
                start=start,
                length=window,
                first=part.start,
                last=part.stop,
                low=low,
                high=high,
                low_weight=low_weight.astype(np.float32),
                high_weight=high_weight.astype(np.float32),
            )
        )
    return tuple(found)
