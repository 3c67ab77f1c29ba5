"""What every dataset module returns: the files of each split and the label space. Nothing is decoded here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.errors import MmsegError


@dataclass(frozen=True)
class Item:
    """One image and its label: a file of ids (segmentation) or the index of a class (classification)."""

    name: str
    image: Path
    label: Path | None = None
    target: int | None = None


@dataclass(frozen=True)
class Listing:
    """A dataset as found on disk.

    Attributes:
        task: what its labels are for.
        table: 256 entries from the dataset's id to a train id, IGNORE or UNKNOWN; None for classification.
        splits: the items of `train`, `val` and, where labelled, `test`.
        expected_size: (height, width) of every official image, or None where they vary.
        warnings: what a person should know, such as counts that differ from the official ones.
    """

    dataset: str
    task: Literal["segmentation", "classification"]
    space: LabelSpace
    table: NDArray[np.int16] | None
    splits: dict[str, list[Item]]
    expected_size: tuple[int, int] | None = None
    warnings: list[str] = field(default_factory=list)


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of `folder` with one of the (lower-case) suffixes, sorted by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return [folder / name for name in names if name.lower().endswith(suffixes)]


def folders_in(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted by name; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def pair(images: Iterable[Path], labels: Iterable[Path], *, image_end: str = "", label_end: str = "") -> list[Item]:
    """Join images and label files by the part of the name before `image_end` and `label_end` (or the suffix).

    Raises:
        MmsegError: an image without label, or a label without image.
    """

    def key(path: Path, end: str) -> str:
        return path.name.removesuffix(end) if end else path.stem

    by_key = {key(path, label_end): path for path in labels}
    items = []
    for image in images:
        name = key(image, image_end)
        label = by_key.pop(name, None)
        if label is None:
            raise MmsegError(image, "has no label file", "add the label or remove the image")
        items.append(Item(name=name, image=image, label=label))
    for label in by_key.values():
        raise MmsegError(label, "has no image", "add the image or remove the label")
    return items


def require_items(root: Path, splits: dict[str, list[Item]]) -> None:
    """Raise MmsegError for a split without items."""
    for name, items in splits.items():
        if not items:
            raise MmsegError(root, f"the split {name!r} is empty", "check that the archive was extracted whole")


def count_warnings(found: dict[str, int], official: dict[str, int]) -> list[str]:
    """One line for each split whose number of images is not the official one."""
    return [
        f"{split}: {count} images, the official number is {official[split]}"
        for split, count in found.items()
        if split in official and count != official[split]
    ]
