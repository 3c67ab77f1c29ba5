"""Where in an image a prediction is right: by the size of the objects, and by bands of rows. Counts that add up.

A false positive belongs to no region of the truth, so by size there is recall and no IoU; it does lie in a row, so by
band of rows there is IoU. A region is all pixels of one class of the truth that hang together (8 neighbours): two cars
that touch are one region, a car behind a pole is two. Ignored pixels belong to none.

Shapes: H = rows, W = columns, K = classes, R = bands of rows.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import IGNORE
from mmseg_cli.evaluation import metrics

SIZES = ("small", "medium", "large")
REGION = ("pixels", "hits", "regions", "found")  # the four counts; the first two in pixels
NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)

Ids_HW = NDArray[np.uint8]
Counts = NDArray[np.int64]


def size_counts(truth_HW: Ids_HW, predicted_HW: Ids_HW, *, classes: int, limits: tuple[int, int]) -> Counts:
    """Count what was found of the small, medium and large regions of the truth.

    Args:
        truth_HW: train ids, 255 = ignore.
        predicted_HW: train ids below `classes`, same shape.
        limits: areas in pixels where medium and large begin; COCO's are 32**2 and 96**2.

    Returns:
        (3, 4, K), in the order of `SIZES` and `REGION`: pixels of the truth, those of them that were predicted right,
        regions, and those of them at least half of whose pixels are right.

    Raises:
        ValueError: the shapes differ, or an id of the truth is not below `classes`.
    """
    if truth_HW.shape != predicted_HW.shape:
        raise ValueError(f"truth is {truth_HW.shape}, prediction is {predicted_HW.shape}")
    if truth_HW.max(where=truth_HW != IGNORE, initial=0) >= classes:
        raise ValueError(f"an id is not below {classes}")
    counts = np.zeros((len(SIZES), len(REGION), classes), dtype=np.int64)
    from scipy import ndimage  # a quarter of a second, which tables need not pay

    boxes = ndimage.find_objects(truth_HW + np.uint8(1), max_label=classes)  # 0 is nothing there, and 255 becomes 0
    for class_, box in enumerate(boxes):
        if box is None:
            continue
        mask = truth_HW[box] == class_
        regions, _ = ndimage.label(mask, structure=NEIGHBOURS)
        pixels = np.bincount(regions[mask])[1:]
        hits = np.bincount(regions[predicted_HW[box] == class_], minlength=len(pixels) + 1)[1:]
        size = np.digitize(pixels, limits)
        for row, values in enumerate((pixels, hits, np.ones_like(pixels), 2 * hits >= pixels)):
            np.add.at(counts[:, row, class_], size, values)
    return counts


def size_recall(counts_34K: Counts) -> NDArray[np.float64]:
    """(3, K): the share of the pixels of small, medium and large regions that is right, in [0, 1]; NaN where none."""
    return _share(counts_34K[:, REGION.index("hits")], counts_34K[:, REGION.index("pixels")])


def size_found(counts_34K: Counts) -> NDArray[np.float64]:
    """(3, K): the share of the small, medium and large regions that was found, in [0, 1]; NaN where none."""
    return _share(counts_34K[:, REGION.index("found")], counts_34K[:, REGION.index("regions")])


def _share(part: Counts, whole: Counts) -> NDArray[np.float64]:
    share: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return share


def band_confusions(truth_HW: Ids_HW, predicted_HW: Ids_HW, *, classes: int, bands: int) -> Counts:
    """(R, K, K): the confusion matrices of equal bands of rows, from top to bottom.

    Every row is in one band, so they add up to the matrix of the whole image; an image with fewer rows than bands
    leaves some empty.

    Args:
        truth_HW: train ids, 255 = ignore.
        predicted_HW: train ids below `classes`, same shape.
        bands: how many, at least 1.

    Raises:
        ValueError: as `metrics.confusion`.
    """
    if truth_HW.shape != predicted_HW.shape:  # some rows may be equal all the same
        raise ValueError(f"truth is {truth_HW.shape}, prediction is {predicted_HW.shape}")
    edges = [band * len(truth_HW) // bands for band in range(bands + 1)]
    parts = [slice(first, last) for first, last in pairwise(edges)]
    return np.stack([metrics.confusion(truth_HW[part], predicted_HW[part], classes=classes) for part in parts])
