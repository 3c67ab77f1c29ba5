"""The figures of a run from what was counted in its images: the same counts, the same figures, anywhere. numpy only.

Ratios are in [0, 1]; what is not defined, such as the IoU of a class that is nowhere, is None (JSON has no NaN).

Shapes: K = classes, D = distances, R = row bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.evaluation import boundary, metrics, regions
from mmseg_cli.evaluation.evidence import Counts


def or_none(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or math.isnan(value) else value


def _by_class(values_K: NDArray[np.float64], space: LabelSpace) -> dict[str, float | None]:
    return {name: or_none(value) for name, value in zip(space.classes, values_K.tolist(), strict=True)}


def of_confusion(matrix: metrics.Confusion, space: LabelSpace) -> dict[str, Any]:
    """IoU by class and by category, and pixel accuracy, of one confusion matrix."""
    per_class = metrics.class_iou(matrix)
    figures: dict[str, Any] = {
        "mean_iou": or_none(metrics.mean(per_class)),
        "pixel_accuracy": or_none(metrics.pixel_accuracy(matrix)),
        "class_iou": _by_class(per_class, space),
    }
    if space.categories is not None:
        per_category = metrics.category_iou(matrix, space.categories)
        figures["mean_category_iou"] = or_none(metrics.mean(np.array(list(per_category.values()))))
        figures["category_iou"] = {name: or_none(value) for name, value in per_category.items()}
    return figures


def of_boundaries(counts_D6K: NDArray[np.int64], space: LabelSpace, *, distances: list[int]) -> list[dict[str, Any]]:
    """Boundary IoU and F1 at every distance, in pixels: means over the classes, and by class."""
    iou_DK, f1_DK = boundary.boundary_iou(counts_D6K), boundary.boundary_f1(counts_D6K)
    return [
        {
            "pixels": distance,
            "mean_iou": or_none(metrics.mean(iou_K)),
            "mean_f1": or_none(metrics.mean(f1_K)),
            "class_iou": _by_class(iou_K, space),
            "class_f1": _by_class(f1_K, space),
        }
        for distance, iou_K, f1_K in zip(distances, iou_DK, f1_DK, strict=True)
    ]


def of_sizes(counts_34K: NDArray[np.int64], space: LabelSpace, *, limits: tuple[int, int]) -> list[dict[str, Any]]:
    """What of the small, medium and large regions of the truth was found: means over the classes, and by class."""
    recall_3K, found_3K = regions.size_recall(counts_34K), regions.size_found(counts_34K)
    bounds = [(0, limits[0]), limits, (limits[1], None)]
    return [
        {
            "size": size,
            "from_pixels": low,
            "to_pixels": high,
            "regions": int(counts_4K[regions.REGION.index("regions")].sum()),
            "mean_recall": or_none(metrics.mean(recall_K)),
            "mean_found": or_none(metrics.mean(found_K)),
            "class_recall": _by_class(recall_K, space),
            "class_found": _by_class(found_K, space),
        }
        for size, (low, high), counts_4K, recall_K, found_K in zip(
            regions.SIZES, bounds, counts_34K, recall_3K, found_3K, strict=True
        )
    ]


def of_rows(matrices_RKK: NDArray[np.int64], space: LabelSpace) -> list[dict[str, Any]]:
    """IoU in equal bands of rows, from the top of the image (far away) to its bottom (near)."""
    bands = len(matrices_RKK)
    return [
        {
            "from": band / bands,
            "to": (band + 1) / bands,
            "mean_iou": or_none(metrics.mean_iou(matrix)),
            "class_iou": _by_class(metrics.class_iou(matrix), space),
        }
        for band, matrix in enumerate(matrices_RKK)
    ]


def of_branches(
    counts: Mapping[str, Counts], space: LabelSpace, *, strides: Sequence[int], missing: Sequence[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """IoU of the network without each of its resolutions, and of each resolution's own head, finest first.

    Args:
        counts: by kind; `knocked_out_0` and `head_1` are of levels.
        strides: of every level: pixels of the network's input, across, behind one of the level's.
        missing: of every level, why it has no figure: the reason by `knocked_out` or `head`.
    """
    found = []
    for level, (stride, reasons) in enumerate(zip(strides, missing, strict=True)):
        row: dict[str, Any] = {"level": level, "stride": stride}
        for what in ("knocked_out", "head"):
            counted = counts.get(f"{what}_{level}")
            row[what] = None if counted is None else _iou(counted.total(), space)
        found.append({**row, "missing": dict(reasons)})
    return found


def _iou(matrix: metrics.Confusion, space: LabelSpace) -> dict[str, Any]:
    per_class = metrics.class_iou(matrix)
    return {"mean_iou": or_none(metrics.mean(per_class)), "class_iou": _by_class(per_class, space)}


def of_counts(
    counts: dict[str, Counts], space: LabelSpace, *, distances: list[int], limits: tuple[int, int]
) -> dict[str, Any]:
    """All figures of one prediction of a split."""
    return {
        **of_confusion(counts["confusion"].total(), space),
        "boundaries": of_boundaries(counts["boundaries"].total(), space, distances=distances),
        "sizes": of_sizes(counts["sizes"].total(), space, limits=limits),
        "rows": of_rows(counts["rows"].total(), space),
    }


def image_iou(confusion: Counts) -> list[float]:
    """mIoU of every image alone; NaN where all of it is ignored."""
    return [metrics.mean_iou(confusion.image(position)) for position in range(len(confusion))]
