"""From an image to the class of every pixel: whole or in windows, at one scale or several, mirrored or not.

The one place where a prediction is put together, for `mmseg evaluate`, `predict` and `submit`, by torch as well as by
onnxruntime: what the two do differently is in :class:`Arrays`, and this module imports neither.

A prediction of one view (one scale, not mirrored, the whole image) is the network's own: the class of the largest
logit. Of several views the *probabilities* (softmax) are averaged with equal weight, and those of overlapping windows
with the windows' weights; the largest mean decides. Logits of another size than the prediction are resized, classes
never are.

Shapes: B = batch, C = 3 colours, K = classes, H, W = height, width of the image, h, w = of a scaled image or a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.errors import MmsegError, ResourceError
from mmseg_cli.evaluation.windows import Taps, Weights, Window, taps, windows

Array = Any  # of numpy or of torch
Forward = Callable[[Array], Array]  # normalised x_BCHW float32 to logits_BKHW of the same size
# The share of a limit that what is counted may take. The rest is what convolutions take while they run and what
# allocators hold back, which is more for arrays of many sizes than for the one large pass of a whole image.
COUNTED, COUNTED_WHOLE = 0.6, 0.85
SMALLEST = 32  # pixels of a window's side below which nothing is left to save


@dataclass(frozen=True)
class Protocol:
    """How an image becomes a prediction.

    Attributes:
        scales: the sizes at which the network sees the image, 1.0 being its own; bilinear, without smoothing.
        flip: whether it sees it mirrored left and right as well.
        window: (height, width) in pixels of the scaled image; None is the whole.
        overlap: the least share of a window's side that the next window covers as well.
        weights: how much the pixels of a window count where windows overlap.

    Raises:
        MmsegError: a value is out of range.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    overlap: float = 0.25
    weights: Weights = "gaussian"

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise MmsegError(
                "scales",
                f"{', '.join(f'{scale:g}' for scale in self.scales) or 'none'}: not above 0 and at most 16",
                "give numbers such as 0.5,1,2",
            )
        if self.window is not None and min(self.window) < 1:
            raise MmsegError("window", f"{list(self.window)} is not a size", "give a height and a width in pixels")
        if not 0 <= self.overlap < 1:
            raise MmsegError("overlap", f"{self.overlap} is not a share", "give a number from 0 to below 1")

    @property
    def averages(self) -> bool:
        """Whether several views are averaged."""
        return len(self.scales) > 1 or self.flip or self.window is not None

    def text(self) -> str:
        """One line for people."""
        words = "single scale" if self.scales == (1.0,) else f"scales {', '.join(f'{s:g}' for s in self.scales)}"
        if self.flip:
            words += ", mirrored too"
        if self.window is None:
            return f"{words}, whole images"
        height, width = self.window
        return f"{words}, {self.weights} windows of {height}x{width}, overlap {self.overlap:g}"


PLAIN = Protocol()


@dataclass(frozen=True)
class Predicted:
    """The prediction of one image.

    Attributes:
        classes_HW: train ids.
        confidence_HW: the probability of that class, in [0, 1]; where it was asked for.
        probabilities_KHW: of every class, in [0, 1]; where they were asked for.
        window: (height, width) of windows that the protocol has not, but that the limit asked for; else None.
    """

    classes_HW: NDArray[np.uint8]
    confidence_HW: NDArray[np.float32] | None = None
    probabilities_KHW: NDArray[np.float32] | None = None
    window: tuple[int, int] | None = None


class Arrays:
    """What numpy and torch do differently. This is numpy's way; `mmseg_cli.evaluation.on_torch` has torch's."""

    def put(self, x: NDArray[Any]) -> Array:
        """An array where the network is."""
        return x

    def get(self, x: Array) -> NDArray[Any]:
        """Back from there."""
        return np.asarray(x)

    def float32(self, x: Array) -> Array:
        """As float32; always a copy."""
        return x.astype(np.float32)

    def zeros(self, *shape: int) -> Array:
        """float32 zeros."""
        return np.zeros(shape, dtype=np.float32)

    def batch(self, images: list[Array]) -> Array:
        """x_BCHW of several x_HWC."""
        return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))

    def flip(self, x: Array) -> Array:
        """Mirrored along the last axis."""
        return np.ascontiguousarray(x[..., ::-1])

    def softmax(self, x: Array, *, axis: int) -> Array:
        """Along one axis, in float32."""
        raised = np.exp(x - x.max(axis, keepdims=True))
        return raised / raised.sum(axis, keepdims=True)

    def best(self, scores_KHW: Array) -> tuple[NDArray[np.uint8], Array]:
        """The class of the largest score of every pixel, the first of equal ones, and that score."""
        return scores_KHW.argmax(0).astype(np.uint8), scores_KHW.max(0)

    def finite(self, x: Array) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(np.isfinite(x).all())


@dataclass(frozen=True)
class Plan:
    """How one image is predicted within the limit.

    Attributes:
        window: (height, width) in pixels of the scaled image; None is the whole.
        rows: of the prediction, put together at once.
        at_once: windows that go through the network together.
        forced: whether the limit asked for windows that the protocol has not.
    """

    window: tuple[int, int] | None
    rows: int
    at_once: int
    forced: bool


@dataclass(frozen=True)
class Segmenter:
    """A network and a protocol.

    Attributes:
        forward: the network.
        arrays: of numpy or of torch, as `forward` takes and gives them.
        classes: K.
        mean, std: of the images on the 0..255 scale, by colour.
        protocol: what is asked for.
        bytes_per_pixel: working memory of `forward`, of one image; looked at where there is a limit.
        limit: bytes of working memory; the weights, the image and the prediction come on top. Where the whole image
            does not fit, it is predicted in windows as large as fit. None is no limit.
        at_once: windows that go through the network together, memory permitting.
    """

    forward: Forward
    arrays: Arrays
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    protocol: Protocol
    bytes_per_pixel: float
    limit: int | None = None
    at_once: int = 1

    def predict(
        self,
        image_HWC: NDArray[np.uint8],
        *,
        size: tuple[int, int] | None = None,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Predicted:
        """Predict one image.

        Args:
            image_HWC: RGB.
            size: (height, width) of the prediction; None is the image's.
            confidence: give the probability of each pixel's class.
            probabilities: give the probabilities of all classes, which take 4 K bytes a pixel.

        Raises:
            ResourceError: the limit is too small for any window, or for the protocol's.
            MmsegError: the network gives NaN.
        """
        image_size = (image_HWC.shape[0], image_HWC.shape[1])
        size = size or image_size
        softmax = confidence or probabilities
        plan = self.plan(image_size, size, softmax=softmax)
        classes_HW = np.empty(size, dtype=np.uint8)
        confidence_HW = np.empty(size, dtype=np.float32) if confidence else None
        probabilities_KHW = np.empty((self.classes, *size), dtype=np.float32) if probabilities else None
        plain = not self.protocol.averages and plan.window is None
        bands = self._plain(image_HWC, size) if plain else self._averaged(image_HWC, size, plan)
        for rows, scores_KHW in bands:
            if plain and softmax:
                scores_KHW = self.arrays.softmax(scores_KHW, axis=0)
            classes_HW[rows], best_HW = self.arrays.best(scores_KHW)
            if not self.arrays.finite(best_HW):
                raise MmsegError("the network", "gives values that are not finite", "use another run, or float32")
            if confidence_HW is not None:
                confidence_HW[rows] = self.arrays.get(best_HW)
            if probabilities_KHW is not None:
                probabilities_KHW[:, rows] = self.arrays.get(scores_KHW)
        return Predicted(classes_HW, confidence_HW, probabilities_KHW, plan.window if plan.forced else None)

    # ------------------------------------------------------------------------------------------------------ memory

    def plan(self, image: tuple[int, int], size: tuple[int, int], *, softmax: bool = False) -> Plan:
        """How an image of a size is predicted at another: both are (height, width).

        Args:
            softmax: whether probabilities are asked for.

        Raises:
            ResourceError: the limit is too small for any window, or for the protocol's.
        """
        wanted, scales = self.protocol.window, self.protocol.scales
        if self.limit is None:
            return Plan(wanted, size[0], self.at_once, forced=False)
        largest = _scaled(image, max(scales))
        window = largest if wanted is None else (min(wanted[0], largest[0]), min(wanted[1], largest[1]))
        if not self.protocol.averages:
            if self._of_whole(largest, size, softmax=softmax) <= COUNTED_WHOLE * self.limit:
                return Plan(None, size[0], 1, forced=False)
            window = _halved(window)
        grown = max(1.0, math.prod(size) / math.prod(_scaled(image, min(scales))))
        a_row = (4 * self.classes + 24) * size[1]  # the sum, and what is found out of it
        budget = COUNTED * self.limit
        rows = max(1, min(size[0], int(budget / 2 / a_row)))
        while wanted is None and self._of_window(window, grown) > budget - rows * a_row and max(window) > SMALLEST:
            window = _halved(window)
        of_window = self._of_window(window, grown)
        if of_window > budget - rows * a_row:
            what = f"{self.limit / 2**20:.1f} MiB do not suffice for a window of {window[0]}x{window[1]}"
            least = math.ceil((of_window + rows * a_row) / COUNTED / 2**20)
            todo = f"allow at least {least} MiB" + (", or choose a smaller window" if wanted else "")
            raise ResourceError("memory", what, todo)
        rows = min(size[0], int((budget - of_window) / a_row))
        at_once = max(1, min(self.at_once, int((budget - rows * a_row) / of_window)))
        forced = wanted is None and window != largest
        return Plan(window if forced else wanted, rows, at_once, forced)

    def _of_whole(self, image: tuple[int, int], size: tuple[int, int], *, softmax: bool) -> float:
        """Bytes that one view of the whole image takes: its pixels and what the network makes of them; probabilities;
        two arrays of what it becomes at another size; and what is found out of it."""
        of_image = (3 * 4 * 3 + self.bytes_per_pixel) * math.prod(image)
        copies = (1 if softmax else 0) + (2 if size != image else 0)
        return of_image + (copies * 4 * self.classes + 24) * math.prod(size)

    def _of_window(self, window: tuple[int, int], grown: float) -> float:
        """Bytes that a window takes: its pixels, what the network makes of them, three arrays of probabilities, and
        two of what they become in the prediction, which has `grown` times as many pixels at the smallest scale."""
        a_pixel = 4 * 4 * 3 + self.bytes_per_pixel + (3 + 2 * grown) * 4 * self.classes
        return a_pixel * math.prod(window)

    # ------------------------------------------------------------------------------------------------------- views

    def _input(self, image_HWC: Array, size: tuple[int, int], top: int, left: int, tall: int, wide: int) -> Array:
        """x_hwC: a window of the image at another size, normalised."""
        down, across = taps(image_HWC.shape[0], size[0]), taps(image_HWC.shape[1], size[1])
        rows, columns = slice(top, top + tall), slice(left, left + wide)
        # Of the image only what the window is made of.
        x_hwC = self.arrays.float32(
            image_HWC[down.low[top] : down.high[rows][-1] + 1, across.low[left] : across.high[columns][-1] + 1]
        )
        x_hwC = self._resampled(x_hwC, down, rows, axis=0)
        x_hwC = self._resampled(x_hwC, across, columns, axis=1)
        x_hwC -= self.arrays.put(np.array(self.mean, dtype=np.float32))
        x_hwC /= self.arrays.put(np.array(self.std, dtype=np.float32))
        return x_hwC

    def _resampled(self, x_hwC: Array, along: Taps, part: slice, *, axis: Literal[0, 1]) -> Array:
        """Some pixels of one axis at another size, from the pixels of the source that they are made of."""
        low, high, share = along.low[part], along.high[part], along.share[part]
        if not share.any():
            return x_hwC[: len(low)] if axis == 0 else x_hwC[:, : len(low)]
        low_here, high_here = self.arrays.put(low - low[0]), self.arrays.put(high - low[0])
        lower, upper = (x_hwC[low_here], x_hwC[high_here]) if axis == 0 else (x_hwC[:, low_here], x_hwC[:, high_here])
        upper -= lower
        upper *= self.arrays.put(share.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)))
        lower += upper
        return lower

    def _plain(self, image_HWC: NDArray[np.uint8], size: tuple[int, int]) -> Iterator[tuple[slice, Array]]:
        """The logits of the whole image at its own size, resized to the size that is wanted."""
        height, width = scaled = _scaled((image_HWC.shape[0], image_HWC.shape[1]), self.protocol.scales[0])
        x_hwC = self._input(self.arrays.put(image_HWC), scaled, 0, 0, height, width)
        logits_Khw = self.forward(self.arrays.batch([x_hwC]))[0]
        if scaled == size:
            yield slice(0, size[0]), logits_Khw
            return
        rows, columns = (
            windows(source, target, window=source, overlap=0, weights="flat")[0]
            for source, target in zip(scaled, size, strict=True)
        )
        yield slice(0, size[0]), self._placed(logits_Khw, rows, columns)

    def _averaged(
        self, image_HWC: NDArray[np.uint8], size: tuple[int, int], plan: Plan
    ) -> Iterator[tuple[slice, Array]]:
        """The mean probabilities of all views, some rows of the prediction after others."""
        image = self.arrays.put(image_HWC)
        views = len(self.protocol.scales) * (2 if self.protocol.flip else 1)
        for first in range(0, size[0], plan.rows):
            last = min(first + plan.rows, size[0])
            mean_KHW = self.arrays.zeros(self.classes, last - first, size[1])
            for scale in self.protocol.scales:
                for part_Khw, rows, columns in self._windows(image, size, plan, scale, first, last):
                    part_KHW = self._placed(part_Khw, rows, columns)
                    mean_KHW[:, rows.first - first : rows.last - first, columns.first : columns.last] += part_KHW
            mean_KHW /= views
            yield slice(first, last), mean_KHW

    def _windows(
        self, image_HWC: Array, size: tuple[int, int], plan: Plan, scale: float, first: int, last: int
    ) -> Iterator[tuple[Array, Window, Window]]:
        """At one scale, the probabilities of every window that adds to some rows of the prediction, mirrored ones
        added."""
        scaled = _scaled((image_HWC.shape[0], image_HWC.shape[1]), scale)
        cover = partial(windows, overlap=self.protocol.overlap, weights=self.protocol.weights)
        tall, wide = plan.window or scaled
        all_rows = cover(scaled[0], size[0], window=tall)
        all_columns = cover(scaled[1], size[1], window=wide)
        rows = [part for window in all_rows if (part := window.between(first, last)) is not None]
        places = iter(product(rows, all_columns))
        while group := list(islice(places, plan.at_once)):
            x_BChw = self.arrays.batch(
                [self._input(image_HWC, scaled, r.start, c.start, r.length, c.length) for r, c in group]
            )
            part_BKhw = self.arrays.softmax(self.forward(x_BChw), axis=1)
            if self.protocol.flip:
                part_BKhw += self.arrays.flip(self.arrays.softmax(self.forward(self.arrays.flip(x_BChw)), axis=1))
            for part_Khw, (r, c) in zip(part_BKhw, group, strict=True):
                yield part_Khw, r, c

    def _placed(self, part_Khw: Array, rows: Window, columns: Window) -> Array:
        """What a window adds to the prediction, at the prediction's size."""
        part_KHw = self._along(part_Khw, rows, axis=1)
        return self._along(part_KHw, columns, axis=2)

    def _along(self, x: Array, window: Window, *, axis: Literal[1, 2]) -> Array:
        """One axis of it."""
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)

        def pick(places: NDArray[np.int64], weights: NDArray[np.float32]) -> Array:
            where = self.arrays.put(places)
            picked = x[:, where] if axis == 1 else x[:, :, where]
            picked *= self.arrays.put(weights.reshape(shape))
            return picked

        placed = pick(window.low, window.low_weight)
        if window.high_weight.any():  # else of equal size
            placed += pick(window.high, window.high_weight)
        return placed


def _halved(window: tuple[int, int]) -> tuple[int, int]:
    """With half of the longer side."""
    height, width = window
    return (-(-height // 2), width) if height >= width else (height, -(-width // 2))


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) at a scale, at least one pixel."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def normalisation(mean: Any, std: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and the deviation of three colours, as a :class:`Segmenter` takes them."""
    (a, b, c), (d, e, f) = mean, std
    return (float(a), float(b), float(c)), (float(d), float(e), float(f))
