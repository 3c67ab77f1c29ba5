"""`mmseg evaluate`: one trained run on a validation split, as evidence that tables are computed from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data import loader
from mmseg_cli.data.labels import IGNORE, LabelSpace
from mmseg_cli.data.store import Store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import inference, metrics
from mmseg_cli.files import atomic, new_folder, require_writable, sha256, write_json
from mmseg_cli.models import weights

GAP = 4  # pixels between the pictures of an overlay


@dataclass(frozen=True)
class Evaluation:
    """What was measured and where it lies. Ratios are in [0, 1]."""

    metrics_file: Path
    overlays: Path
    images: int
    mean_iou: float
    pixel_accuracy: float
    class_iou: dict[str, float]


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def summary(matrices_NKK: NDArray[np.int64], space: LabelSpace) -> dict[str, Any]:
    """The figures of metrics.json from per-image confusion matrices; undefined ones (absent classes) are None."""
    matrix = matrices_NKK.sum(0)
    per_class = metrics.class_iou(matrix)
    figures: dict[str, Any] = {
        "mean_iou": metrics.mean(per_class),
        "pixel_accuracy": metrics.pixel_accuracy(matrix),
        "class_iou": {name: _or_none(value) for name, value in zip(space.classes, per_class.tolist(), strict=True)},
    }
    if space.categories is not None:
        per_category = metrics.category_iou(matrix, space.categories)
        figures["mean_category_iou"] = metrics.mean(np.array(list(per_category.values())))
        figures["category_iou"] = {name: _or_none(value) for name, value in per_category.items()}
    return figures


def overlay(
    image_HWC: NDArray[np.uint8],
    predicted_HW: NDArray[np.uint8],
    label_HW: NDArray[np.uint8],
    colours: tuple[tuple[int, int, int], ...],
) -> Image.Image:
    """Image, truth, prediction and errors (red on grey; ignored pixels black) side by side, at the label's size."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colours)] = colours
    size = (label_HW.shape[1], label_HW.shape[0])
    picture = Image.fromarray(image_HWC).resize(size, Image.Resampling.BILINEAR)
    errors_HWC = np.repeat(np.asarray(picture.convert("L"))[..., None], 3, axis=2)
    errors_HWC[(predicted_HW != label_HW)] = (220, 40, 40)
    errors_HWC[label_HW == IGNORE] = 0
    parts = [picture, *(Image.fromarray(part) for part in (table[label_HW], table[predicted_HW], errors_HWC))]
    sheet = Image.new("RGB", (4 * size[0] + 3 * GAP, size[1]), "white")
    for position, part in enumerate(parts):
        sheet.paste(part, (position * (size[0] + GAP), 0))
    return sheet


def evaluate(
    run: Path,
    store: Store,
    *,
    network: dict[str, Any],
    metrics_file: Path,
    confusion_file: Path,
    overlays_folder: Path,
    overlays: int,
    device: torch.device,
    workers: int,
    advance: Callable[[], None],
) -> Evaluation:
    """Evaluate a run's last weights on the store's val split, single scale, whole images, labels at native size.

    Writes metrics.json, the per-image confusion matrices (compressed) and overlays of images spread over the split.

    Args:
        run: the folder of the trained run.
        network: the body's arguments by the preset; the run's must be the same.
        overlays: how many images are drawn.
        advance: called after each image.

    Raises:
        MmsegError: the run is of another architecture or label space, or a place cannot be written.
    """
    for folder in {metrics_file.parent, overlays_folder.parent}:
        require_writable(folder)
    trained, record = weights.load_network(run, expected=network)
    if record["task"] != "segmentation":
        raise MmsegError(run, "is not a segmentation network", "evaluate a run of the train stage")
    if record["label_space"] != store.manifest["label_space"]:
        raise MmsegError(run, "was trained on other classes than the store's", "evaluate it on its own dataset")
    split = store.split("val")
    names = store.names("val")
    drawn = {int(position) for position in np.linspace(0, len(split) - 1, min(overlays, len(split))).round()}
    batches = loader.items_loader(loader.WholeImages(split), workers=workers)
    matrices = []
    with new_folder(overlays_folder) as folder:
        predictions = inference.segment(trained.to(device), batches, device=device)
        for position, (image_HWC, predicted_HW, label_HW) in enumerate(predictions):
            matrices.append(metrics.confusion(label_HW, predicted_HW, classes=len(store.space.classes)))
            if position in drawn:
                stem = names[position].replace("/", "_")
                overlay(image_HWC, predicted_HW, label_HW, store.space.colours).save(folder / f"{stem}.png")
            advance()
    matrices_NKK = np.stack(matrices)
    metrics.require_pixels(matrices_NKK.sum(0), str(store.folder))
    figures = summary(matrices_NKK, store.space)
    with atomic(confusion_file) as file:
        np.savez_compressed(file, confusion=matrices_NKK, classes=np.array(store.space.classes), names=np.array(names))
    write_json(
        metrics_file,
        {
            **figures,
            "images": len(matrices),
            "split": "val",
            "label_space": store.space.name,
            "weights_sha256": sha256(run / weights.WEIGHTS),
            "confusion_sha256": sha256(confusion_file),
            "run": {key: record[key] for key in ("variant", "seed", "network", "ladder", "recipe", "fingerprint")},
        },
    )
    return Evaluation(
        metrics_file=metrics_file,
        overlays=overlays_folder,
        images=len(matrices),
        mean_iou=figures["mean_iou"],
        pixel_accuracy=figures["pixel_accuracy"],
        class_iou={name: math.nan if value is None else value for name, value in figures["class_iou"].items()},
    )
