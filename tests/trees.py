"""Small raw datasets in every official layout, and hand-made evidence; all made by hand, none by the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Ids of the raw files. Cityscapes: road, building, sky, car, person; 3 is "out of roi", which is ignored.
CITYSCAPES_IDS = (7, 11, 23, 26, 24, 3)
VISTAS_LABELS = (  # (name, readable, colour, evaluate); two share a colour, as in v2.0
    ("construction--flat--road", "Road", (128, 64, 128), True),
    ("construction--structure--building", "Building", (70, 70, 70), True),
    ("nature--sky", "Sky", (70, 130, 180), True),
    ("object--vehicle--car", "Car", (0, 0, 142), True),
    ("object--vehicle--truck", "Truck", (0, 0, 142), True),
    ("void--unlabeled", "Unlabeled", (0, 0, 0), False),
)


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth image_HWC with a little noise, so that JPEG keeps it about as it is."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    phases = rng.uniform(0, 6, (3, 2))
    waves = [np.sin(3 * rows + a) + np.cos(5 * columns + b) for a, b in phases]
    image_HWC = 127 + 55 * np.stack(waves, axis=2) + rng.normal(0, 3, (height, width, 3))
    return image_HWC.clip(0, 255).astype(np.uint8)


def regions(rng: np.random.Generator, height: int, width: int, ids: tuple[int, ...]) -> np.ndarray:
    """A label_HW of a few rectangles, every id of `ids` somewhere."""
    label_HW = np.full((height, width), ids[0], dtype=np.uint8)
    for _ in range(4):
        top, left = int(rng.integers(0, height - 4)), int(rng.integers(0, width - 4))
        label_HW[top : top + height // 3, left : left + width // 3] = rng.choice(ids)
    label_HW[0, : len(ids)] = ids
    return label_HW


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def make_cityscapes(
    root: Path, *, train: int = 3, val: int = 2, height: int = 32, width: int | None = None, seed: int = 0
) -> Path:
    """leftImg8bit and gtFine; the last city's name has a hyphen."""
    rng = np.random.default_rng(seed)
    width = width or 2 * height
    for split, count, cities in (("train", train, ("aachen", "bad-honnef")), ("val", val, ("lindau",))):
        for number in range(count):
            city = cities[number % len(cities)]
            name = f"{city}_{number:06d}_000019"
            image = _folder(root / "leftImg8bit" / split / city) / f"{name}_leftImg8bit.png"
            label = _folder(root / "gtFine" / split / city)
            Image.fromarray(photo(rng, height, width)).save(image)
            label_HW = regions(rng, height, width, CITYSCAPES_IDS)
            Image.fromarray(label_HW).save(label / f"{name}_gtFine_labelIds.png")
            Image.fromarray(label_HW.astype(np.uint16)).save(label / f"{name}_gtFine_instanceIds.png")
    return root


def make_camvid(root: Path, *, train: int = 3, val: int = 2, test: int = 0, height: int = 36, seed: int = 0) -> Path:
    """train, trainannot, ...; ids 0 to 11."""
    rng = np.random.default_rng(seed)
    width = height * 4 // 3
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            Image.fromarray(photo(rng, height, width)).save(_folder(root / split) / f"{number:04d}.png")
            label_HW = regions(rng, height, width, (0, 1, 3, 8, 11))
            Image.fromarray(label_HW).save(_folder(root / f"{split}annot") / f"{number:04d}.png")
    return root


def make_mapillary(root: Path, *, train: int = 3, val: int = 2, height: int = 40, seed: int = 0) -> Path:
    """config.json, JPEG images and palette labels; the second image of a split is upright."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    labels = [
        {"name": name, "readable": readable, "color": list(colour), "instances": False, "evaluate": evaluate}
        for name, readable, colour, evaluate in VISTAS_LABELS
    ]
    (root / "config.json").write_text(json.dumps({"labels": labels, "version": "1.1"}))
    palette = [channel for _, _, colour, _ in VISTAS_LABELS for channel in colour]
    for split, count in (("training", train), ("validation", val)):
        for number in range(count):
            size = (height, height * 3 // 2) if number != 1 else (height * 3 // 2, height)
            stem = f"{split}-{number}"
            Image.fromarray(photo(rng, *size)).save(_folder(root / split / "images") / f"{stem}.jpg", quality=95)
            label = Image.fromarray(regions(rng, *size, tuple(range(len(VISTAS_LABELS)))))
            label.putpalette(palette)
            label.save(_folder(root / split / "labels") / f"{stem}.png")
    return root


def make_imagenet(root: Path, *, classes: int = 3, train: int = 4, val: int = 2, size: int = 40, seed: int = 0) -> Path:
    """train/<wnid> and val/<wnid> with JPEGs."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for index in range(classes):
            wnid = f"n{1000 + index:08d}"
            for number in range(count):
                picture = Image.fromarray(photo(rng, size, size + 8))
                picture.save(_folder(root / split / wnid) / f"{wnid}_{number}.JPEG", quality=95)
    return root


def snapshot(root: Path) -> dict[str, tuple[int, int, str]]:
    """Of every file and folder below `root`: time of change, mode and content."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
        )
        for path in [root, *sorted(root.rglob("*"))]
    }


def contents(root: Path) -> dict[str, bytes]:
    """The bytes of every file below `root`."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------------- hand-made evidence

CLASSES = ("road", "building", "sky")
CATEGORIES = ("flat", "construction", "sky")


def _iou(matrix: list[list[int]]) -> list[float | None]:
    """By the definition, in plain Python."""
    values: list[float | None] = []
    for k in range(len(matrix)):
        union = sum(matrix[k]) + sum(row[k] for row in matrix) - matrix[k][k]
        values.append(matrix[k][k] / union if union else None)
    return values


def write_run_evidence(folder: Path, matrices: list[list[list[int]]], *, variant: str, seed: int) -> dict[str, Any]:
    """metrics.json and confusion.npz of one run from the confusion matrices of its images."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / "confusion.npz",
        confusion=np.array(matrices, dtype=np.int64),
        classes=np.array(CLASSES),
        names=np.array([f"image{number}" for number in range(len(matrices))]),
    )
    total = [[sum(one[row][column] for one in matrices) for column in range(3)] for row in range(3)]
    values = _iou(total)
    present = [value for value in values if value is not None]
    figures = {
        "mean_iou": sum(present) / len(present),
        "pixel_accuracy": sum(total[k][k] for k in range(3)) / sum(map(sum, total)),
        "class_iou": dict(zip(CLASSES, values, strict=True)),
        "images": len(matrices),
        "split": "val",
        "label_space": "toy-3",
        "weights_sha256": "0" * 64,
        "confusion_sha256": hashlib.sha256((folder / "confusion.npz").read_bytes()).hexdigest(),
        "run": {
            "variant": variant,
            "seed": seed,
            "network": {"block": variant},
            "ladder": ["train"],
            "recipe": "e" * 64,
            "fingerprint": "f" * 64,
        },
    }
    (folder / "metrics.json").write_text(json.dumps(figures))
    return figures


def hits(right: int, wrong: int) -> list[list[int]]:
    """A confusion matrix whose road and building have IoU right / (right + 2 * wrong); sky is absent."""
    return [[right, wrong, 0], [wrong, right, 0], [0, 0, 0]]


def make_evidence(evidence: Path, table: dict[tuple[str, int], int]) -> None:
    """The evidence of a grid: `table[variant, seed]` of 100 pixels a class are right, over two images; and its cost.

    Each class's IoU is then right / (200 - right).
    """
    for (variant, seed), right in table.items():
        first = right // 2
        matrices = [hits(first, 50 - first), hits(right - first, 50 - right + first)]
        write_run_evidence(evidence / f"{variant}-s{seed}", matrices, variant=variant, seed=seed)
    write_cost(evidence, list(dict.fromkeys(variant for variant, _ in table)))


def write_cost(evidence: Path, variants: list[str], *, networks: dict[str, dict[str, Any]] | None = None) -> None:
    """cost.json: the second variant takes twice as much of everything as the first, and so on."""
    rows = {
        variant: {
            "network": (networks or {}).get(variant, {"block": variant}),
            "parameters": 1000 * (position + 1),
            "macs": 2_000_000 * (position + 1),
            "activation_bytes": 4096,
            "peak_bytes": (position + 1) * 2**20,
            "step_seconds": [0.1 * (position + 1), 0.2 * (position + 1), 0.4 * (position + 1)],
            "median_step_seconds": 0.2 * (position + 1),
        }
        for position, variant in enumerate(variants)
    }
    cost = {
        "environment": {"processor": "a processor", "threads": 2, "accelerator": None, "torch": "2.x"},
        "dataset": "toy",
        "device": "cpu",
        "batch": 4,
        "height": 32,
        "width": 64,
        "classes": 3,
        "variants": rows,
    }
    (evidence / "cost.json").write_text(json.dumps(cost))
