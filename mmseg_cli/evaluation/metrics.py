"""Segmentation metrics from confusion matrices, as the Cityscapes benchmark defines them. numpy only.

A confusion matrix is int64, K x K, rows = truth, columns = prediction, pixels with truth 255 left out. A class that is
predicted but absent from the truth counts 0; one that is absent from both is NaN and left out of means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import IGNORE
from mmseg_cli.errors import MmsegError

Confusion = NDArray[np.int64]


def confusion(truth_HW: NDArray[np.uint8], predicted_HW: NDArray[np.uint8], *, classes: int) -> Confusion:
    """Count the pixels of every (truth, prediction) pair.

    Args:
        truth_HW: train ids, 255 = ignore.
        predicted_HW: train ids below `classes`, same shape.

    Raises:
        ValueError: the shapes differ, or an id is not below `classes`.
    """
    if truth_HW.shape != predicted_HW.shape:
        raise ValueError(f"truth is {truth_HW.shape}, prediction is {predicted_HW.shape}")
    counted = truth_HW != IGNORE
    truth = truth_HW[counted].astype(np.int64)
    predicted = predicted_HW[counted].astype(np.int64)
    if truth.size and max(truth.max(), predicted.max()) >= classes:
        raise ValueError(f"an id is not below {classes}")
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _ratio(hits: NDArray[np.int64], union: NDArray[np.int64]) -> NDArray[np.float64]:
    """hits / union, NaN where the union is empty."""
    ratio: NDArray[np.float64] = np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)
    return ratio


def class_iou(matrix: Confusion) -> NDArray[np.float64]:
    """Intersection over union of every class, in [0, 1]; NaN for a class absent from truth and prediction."""
    hits = np.diag(matrix)
    return _ratio(hits, matrix.sum(0) + matrix.sum(1) - hits)


def mean(values: NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN when nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def mean_iou(matrix: Confusion) -> float:
    """mIoU over the classes that are present in truth or prediction, in [0, 1]."""
    return mean(class_iou(matrix))


def merge(matrix: Confusion, groups: list[int], *, count: int) -> Confusion:
    """The confusion matrix between groups of classes; `groups[k]` is the group of class k."""
    member = np.zeros((len(groups), count), dtype=np.int64)
    member[np.arange(len(groups)), groups] = 1
    merged: Confusion = member.T @ matrix @ member
    return merged


def category_iou(matrix: Confusion, categories: tuple[str, ...]) -> dict[str, float]:
    """IoU of every category (in order of first appearance), in [0, 1]; confusions inside one do not count.

    Args:
        categories: the category of each class.
    """
    names = list(dict.fromkeys(categories))
    merged = merge(matrix, [names.index(name) for name in categories], count=len(names))
    return dict(zip(names, class_iou(merged).tolist(), strict=True))


def pixel_accuracy(matrix: Confusion) -> float:
    """Share of right pixels among those that are not ignored, in [0, 1]; NaN without any."""
    total = int(matrix.sum())
    return float(np.trace(matrix)) / total if total else float("nan")


def require_pixels(matrix: Confusion, where: str) -> None:
    """Raise MmsegError when every pixel was ignored: no metric is defined then."""
    if not matrix.any():
        raise MmsegError(where, "every pixel of every label is ignored", "check the dataset's labels")
