"""What every dataset module returns: the files of each split and the label space. Nothing is decoded here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.faults import Fault
from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.data.tree import File


@dataclass(frozen=True, slots=True)
class Item:
    """One image and its label: a file of ids or colours (segmentation) or the index of a class (classification).

    `sequence` and `frame` place a frame of a video: frames of one sequence look alike.
    """

    name: str
    image: File
    label: File | None = None
    target: int | None = None
    sequence: str | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Listing:
    """A dataset as found on disk.

    Attributes:
        task: what its labels are for.
        table: 256 entries from the dataset's id to a train id, IGNORE or UNKNOWN; None for classification and for
            labels that are colours.
        splits: the items of `train`, `val` and, where labelled, `test`.
        label_modes: Pillow's modes of a right label file; a palette ("P") is read by index.
        colours: for labels that are RGB colours, the train id or IGNORE of each 0xRRGGBB.
        expected_size: (height, width) of every official image, or None where they vary.
        faults: what is wrong with the names of the files, and warnings such as counts that are not official.
        notes: what was found, such as the version of the dataset.
    """

    dataset: str
    task: Literal["segmentation", "classification"]
    space: LabelSpace
    table: NDArray[np.int16] | None
    splits: dict[str, list[Item]]
    label_modes: tuple[str, ...] = ("L",)
    colours: dict[int, int] | None = None
    expected_size: tuple[int, int] | None = None
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def pair(
    images: Iterable[File], labels: Iterable[File], *, image_end: str = "", label_end: str = ""
) -> tuple[list[Item], list[Fault]]:
    """Join images and label files by the part of the name before `image_end` and `label_end` (or the suffix).

    Returns:
        The items in the order of the images, and a fault for each image without label, label without image, and
        second file of one name: the first is kept.
    """

    items: list[Item] = []
    faults: list[Fault] = []

    def by_key(files: Iterable[File], end: str) -> dict[str, File]:
        found: dict[str, File] = {}
        for file in files:
            first = found.setdefault(file.base.removesuffix(end) if end else file.stem, file)
            if first is not file:
                what = f"has the name of {first.where}, so which of them belongs to it is unknown"
                faults.append(Fault("wrong-place", file.where, what, "rename or remove one of the two"))
        return found

    left = by_key(labels, label_end)
    for name, image in by_key(images, image_end).items():
        label = left.pop(name, None)
        if label is None:
            faults.append(
                Fault("missing-partner", image.where, "has no label file", "add the label or remove the image")
            )
        else:
            items.append(Item(name=name, image=image, label=label))
    for label in left.values():
        faults.append(Fault("missing-partner", label.where, "has no image", "add the image or remove the label"))
    return items, faults


def empty_splits(root: str, splits: dict[str, list[Item]]) -> list[Fault]:
    """A fault for each split without items."""
    return [
        Fault("empty-split", root, f"the split {name!r} is empty", "check that the archive was extracted whole")
        for name, items in splits.items()
        if not items
    ]


def hidden_test(where: str, images: int, labels: str) -> Fault:
    """A warning that a test set without any labels is left out."""
    todo = "nothing to do, unless you have them"
    return Fault("left-out", where, f"{images} images of test have no {labels} and are left out", todo, "warning")


def count_warnings(root: str, splits: dict[str, list[Item]], official: dict[str, int]) -> list[Fault]:
    """A warning for each split whose number of images is not the official one."""
    return [
        Fault(
            "count",
            root,
            f"{split}: {len(items)} images, the official number is {official[split]}",
            "check that nothing is missing",
            "warning",
        )
        for split, items in splits.items()
        if items and split in official and len(items) != official[split]
    ]
