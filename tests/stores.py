"""Small stores made item by item, for tests of what reads a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import trees

from mmseg_cli.data import store

COLOURS = ((128, 64, 128), (70, 70, 70), (70, 130, 180), (0, 0, 142), (220, 20, 60))


def space(names: list[str], colours: list[tuple[int, int, int]] | None = None) -> dict[str, Any]:
    """A label space as the manifest holds it."""
    return {
        "name": f"toy-{len(names)}",
        "classes": names,
        "colours": colours or [COLOURS[index % len(COLOURS)] for index in range(len(names))],
        "ids": [index + 10 for index in range(len(names))],
        "categories": None,
    }


def make_segmentation(
    folder: Path,
    labels: dict[str, list[np.ndarray]],
    *,
    names: list[str],
    image_size: tuple[int, int] | None = None,
    **manifest: Any,
) -> store.Store:
    """A store of the given label_HW by split, each under a smooth photo of its size, or of `image_size`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    splits = {}
    for split, labels_HW in labels.items():
        writer = store.SplitWriter(folder, split)
        total = np.zeros(256, dtype=np.int64)
        for number, label_HW in enumerate(labels_HW):
            pixels, centroids = store.label_summary(label_HW)
            total += pixels
            size = image_size or label_HW.shape
            writer.append(
                name=f"{split}{number}",
                sha256=bytes(32),
                image=store.pack(trees.photo(rng, *size)),
                image_size=size,
                label=store.pack(label_HW),
                label_size=label_HW.shape,
                class_pixels=pixels,
                centroids=centroids,
                identity="",
                extra={},
            )
        writer.close(classes=len(names))
        splits[split] = _part(len(labels_HW), total[: len(names)], int(total[255]))
    return _finish(folder, splits, "segmentation", space(names), manifest)


def make_classification(
    folder: Path, targets: dict[str, list[int]], *, names: list[str], **manifest: Any
) -> store.Store:
    """A store of one 12x16 photo for each target."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    splits = {}
    for split, numbers in targets.items():
        writer = store.SplitWriter(folder, split)
        for number, target in enumerate(numbers):
            pixels = np.bincount([target], minlength=len(names)).astype(np.int64)
            writer.append(
                name=f"{split}{number}",
                sha256=bytes(32),
                image=store.pack(trees.photo(rng, 12, 16)),
                image_size=(12, 16),
                label=b"",
                label_size=(target, 0),
                class_pixels=pixels,
                centroids=np.zeros((0, 3), dtype=np.int32),
                identity="",
                extra={},
            )
        writer.close(classes=len(names))
        splits[split] = _part(len(numbers), np.bincount(numbers, minlength=len(names)), 0)
    return _finish(folder, splits, "classification", space(names), manifest)


def _part(count: int, class_pixels: np.ndarray, ignored: int) -> dict[str, Any]:
    return {
        "count": count,
        "records_sha256": "0" * 64,
        "index_sha256": "0" * 64,
        "class_pixels": class_pixels.tolist(),
        "ignored_pixels": ignored,
    }


def _finish(
    folder: Path, splits: dict[str, Any], task: str, label_space: dict[str, Any], manifest: dict[str, Any]
) -> store.Store:
    content = {
        "format": store.FORMAT,
        "code": "mmseg 0.1.0",
        "dataset": "toy",
        "task": task,
        "parameters": {},
        "label_space": label_space,
        "splits": splits,
    }
    for journal in folder.glob("*.journal"):
        journal.unlink()
    (folder / "manifest.json").write_text(json.dumps(content | manifest))
    return store.open_store(folder)


def label(height: int, width: int, **pixels: int) -> np.ndarray:
    """A label_HW of ignored pixels but for the first ones: `label(4, 4, c0=3, c2=5)` has 3 of class 0 and 5 of 2."""
    flat = np.full(height * width, 255, dtype=np.uint8)
    position = 0
    for name, count in pixels.items():
        flat[position : position + count] = int(name[1:])
        position += count
    return flat.reshape(height, width)
