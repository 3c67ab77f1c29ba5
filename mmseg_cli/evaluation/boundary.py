"""How well the outlines of a prediction fit: Boundary IoU and boundary F1, as counts that add up over images.

Both look at one class at a time as a mask. Ignored pixels (truth 255) belong to no mask, neither of the truth nor of
the prediction: the mask of class k in the prediction is ``(predicted == k) & (truth != 255)``. Beside ignored pixels
Boundary IoU sees a border of both masks, the same one, and boundary F1 sees none.

Boundary IoU (Cheng et al. 2021, arXiv 2103.16562): of a mask count only the pixels within d of its border, that is the
mask without its erosion by a square of 2d + 1 pixels; what lies outside the image is outside the mask, as in the
authors' code. DEVIATION: d is given in pixels, not as a share of the image's diagonal, and the counts of all images are
added before the ratio is taken, as for mIoU.

Boundary F1 (Csurka et al. 2013; over a disk, as Perazzi et al. 2016 have it for DAVIS): a contour pixel of a class is
one beside (8 neighbours) another class that is known. Neither the border of the image nor that of ignored pixels makes
a contour: truth and prediction would share it whatever was predicted. Precision is the share of predicted contour
pixels with a true one of the same class within a Euclidean distance of d, recall the share of true ones with a
predicted one. DEVIATION: both are of the pixels of all images, where Csurka et al. average over images.

numpy only. Shapes: H = rows, W = columns, K = classes, D = distances; P = pixels of a contour, in row order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import IGNORE

BOUNDARY = ("intersection", "union", "found", "predicted", "hit", "true")  # the six counts, in pixels

Ids_HW = NDArray[np.uint8]
Counts = NDArray[np.int64]


def boundary_counts(truth_HW: Ids_HW, predicted_HW: Ids_HW, *, classes: int, distances: Sequence[int]) -> Counts:
    """Count what Boundary IoU and boundary F1 are made of.

    Args:
        truth_HW: train ids, 255 = ignore.
        predicted_HW: train ids below `classes`, same shape.
        distances: in pixels, at least 1, rising.

    Returns:
        (D, 6, K), in the order of `BOUNDARY`: intersection and union of the border regions; predicted contour pixels
        that were `found` in the truth, and all; true ones that were `hit` by the prediction, and all.

    Raises:
        ValueError: the shapes differ, an id is not below `classes`, or the distances do not rise.
    """
    if truth_HW.shape != predicted_HW.shape:
        raise ValueError(f"truth is {truth_HW.shape}, prediction is {predicted_HW.shape}")
    if not distances or distances[0] < 1 or any(a >= b for a, b in pairwise(distances)):
        raise ValueError(f"distances {list(distances)} do not rise from 1")
    known_HW = truth_HW != IGNORE
    predicted_HW = np.where(known_HW, predicted_HW, np.uint8(IGNORE))
    if max(ids_HW.max(where=known_HW, initial=0) for ids_HW in (truth_HW, predicted_HW)) >= classes:
        raise ValueError(f"an id is not below {classes}")

    depth, predicted_depth = (_depth(ids_HW, distances) for ids_HW in (truth_HW, predicted_HW))
    of_truth = _within(truth_HW, depth, classes=classes, distances=len(distances))
    of_predicted = _within(predicted_HW, predicted_depth, classes=classes, distances=len(distances))
    agreed_HW = np.where(truth_HW == predicted_HW, truth_HW, np.uint8(IGNORE))
    both = _within(agreed_HW, np.maximum(depth, predicted_depth), classes=classes, distances=len(distances))

    contour, predicted_contour = _contour(truth_HW), _contour(predicted_HW)
    found, predicted = _near(predicted_contour, contour, classes=classes, distances=distances)
    hit, true = _near(contour, predicted_contour, classes=classes, distances=distances)
    counts = (both, of_truth + of_predicted - both, found, predicted, hit, true)
    return np.stack(np.broadcast_arrays(*counts), axis=1).astype(np.int64, copy=False)


def boundary_iou(counts_D6K: Counts) -> NDArray[np.float64]:
    """(D, K): Boundary IoU, in [0, 1]; NaN for a class in neither truth nor prediction."""
    intersection, union, *_ = np.moveaxis(counts_D6K, 1, 0)
    return _ratio(intersection, union, otherwise=np.nan)


def boundary_f1(counts_D6K: Counts) -> NDArray[np.float64]:
    """(D, K): the harmonic mean of a contour's precision and recall, in [0, 1].

    NaN for a class that has a contour in neither truth nor prediction, 0 for one that has it in one of them.
    """
    _, _, found, predicted, hit, true = np.moveaxis(counts_D6K, 1, 0)
    precision, recall = _ratio(found, predicted, otherwise=0), _ratio(hit, true, otherwise=0)
    f1 = _ratio(2 * precision * recall, precision + recall, otherwise=0)
    f1[(predicted == 0) & (true == 0)] = np.nan
    return f1


def _ratio(part: NDArray[np.number], whole: NDArray[np.number], *, otherwise: float) -> NDArray[np.float64]:
    """part / whole, another value where the whole is 0."""
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, float(otherwise)), where=whole > 0)
    return ratio


# ----------------------------------------------------------------------------------------------------- Boundary IoU


def _depth(ids_HW: Ids_HW, distances: Sequence[int]) -> NDArray[np.uint8]:
    """(H, W): at how many of the distances a pixel is inside its mask, not within the distance of its border.

    Done for all classes at once: a square of 2d + 1 pixels is of one class just when the squares of 3 around all
    pixels of the square of 2d - 1 are, for these overlap.
    """
    beside = ids_HW[:, 1:] == ids_HW[:, :-1]
    below = ids_HW[1:] == ids_HW[:-1]
    inside = np.zeros(ids_HW.shape, dtype=np.bool_)
    threes = beside[:, 1:] & beside[:, :-1]  # of one class, left to right
    columns = below[1:] & below[:-1]
    inside[1:-1, 1:-1] = threes[:-2] & threes[1:-1] & threes[2:] & columns[:, 1:-1]
    depth = np.zeros(ids_HW.shape, dtype=np.uint8)
    for distance in range(1, distances[-1] + 1):
        if distance > 1:
            inside = _eroded(inside)
        if distance in distances:
            depth += inside
    return depth


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Erode by a square of 3; nothing is outside the image."""
    rows = np.zeros_like(inside)
    np.logical_and(inside[:-2], inside[1:-1], out=rows[1:-1])
    rows[1:-1] &= inside[2:]
    both = np.zeros_like(inside)
    np.logical_and(rows[:, :-2], rows[:, 1:-1], out=both[:, 1:-1])
    both[:, 1:-1] &= rows[:, 2:]
    return both


def _within(ids_HW: Ids_HW, depth: NDArray[np.uint8], *, classes: int, distances: int) -> Counts:
    """(D, K): the pixels of every class within each distance of a border."""
    counted = (depth < distances) & (ids_HW != IGNORE)
    place = ids_HW[counted].astype(np.int64) * distances + depth[counted]
    by_depth = np.bincount(place, minlength=classes * distances).reshape(classes, distances)
    return np.cumsum(by_depth, axis=1).T


# ------------------------------------------------------------------------------------------------------ boundary F1


def _contour(ids_HW: Ids_HW) -> Ids_HW:
    """The classes of the contour pixels; IGNORE everywhere else.

    A known pixel is beside another class just when the lowest or the highest known id around it is not its own.
    """
    lowest = _around(np.minimum, ids_HW)  # IGNORE is above all ids
    highest = _around(np.maximum, np.where(ids_HW != IGNORE, ids_HW, np.uint8(0)))
    return np.where((lowest != ids_HW) | (highest != ids_HW), ids_HW, np.uint8(IGNORE))


def _around(pick: np.ufunc, ids_HW: Ids_HW) -> Ids_HW:
    """The picked value among each pixel and its neighbours in the image."""
    rows = ids_HW.copy()
    pick(rows[1:], ids_HW[:-1], out=rows[1:])
    pick(rows[:-1], ids_HW[1:], out=rows[:-1])
    both = rows.copy()
    pick(both[:, 1:], rows[:, :-1], out=both[:, 1:])
    pick(both[:, :-1], rows[:, 1:], out=both[:, :-1])
    return both


def _near(from_HW: Ids_HW, to_HW: Ids_HW, *, classes: int, distances: Sequence[int]) -> tuple[Counts, NDArray[np.intp]]:
    """(D, K) how many contour pixels have one of the other contour and of their class within each distance; (K) all.

    Contours are thin, so only their pixels are looked at: all at once, one step away from where they are after the
    other, the nearest steps first, and each pixel until it has found one.
    """
    margin = distances[-1]
    to = np.pad(to_HW, margin, constant_values=IGNORE)
    rows, columns = np.nonzero(from_HW != IGNORE)
    ids_P = from_HW[rows, columns]
    places_P = rows * to.shape[1] + columns
    total = np.bincount(ids_P, minlength=classes)
    near = np.zeros((len(distances), classes), dtype=np.int64)
    for position, ring in enumerate(_steps(distances)):
        for down, right in ring:
            shifted = to.reshape(-1)[(margin + down) * to.shape[1] + margin + right :]
            missed_P = shifted.take(places_P) != ids_P
            ids_P, places_P = ids_P[missed_P], places_P[missed_P]
        near[position] = total - np.bincount(ids_P, minlength=classes)
    return near, total


def _steps(distances: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """For every distance the steps that are farther than the distance before, the nearest first."""
    reach = range(-distances[-1], distances[-1] + 1)
    ordered = sorted((down**2 + right**2, down, right) for down in reach for right in reach)
    before = -1
    for distance in distances:
        yield [(down, right) for square, down, right in ordered if before < square <= distance**2]
        before = distance**2
