"""A part of the training images, held out to choose by: a split like any other.

Shapes: H, W = height, width; C = 3 colours; M = centroids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.store import Split, Store
from mmseg_cli.errors import MmsegError

HELD_OUT = 0.2  # of the training images, the last by name, where no sequence is named


@dataclass(frozen=True)
class Part(Split):
    """Some items of a split, as a split.

    Attributes:
        kept: the items, by their positions in the whole.
    """

    kept: tuple[int, ...]

    @property
    def whole(self) -> Split:
        """The split that the items are of."""
        return _opened(self.folder, self.split)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"kept": self.kept}

    def __len__(self) -> int:
        return len(self.kept)

    def size(self, item: int) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.whole.size(self.kept[item])

    def label_size(self, item: int) -> tuple[int, int]:
        """(height, width) of the label."""
        return self.whole.label_size(self.kept[item])

    def class_pixels(self, item: int) -> dict[int, int]:
        """Pixels of each class that the item has."""
        return self.whole.class_pixels(self.kept[item])

    def image(self, item: int, region: Any = None) -> NDArray[np.uint8]:
        """image_HWC, RGB, whole or one region."""
        return self.whole.image(self.kept[item], region)

    def label(self, item: int, region: Any = None) -> NDArray[np.uint8]:
        """label_HW of train ids, whole or one region."""
        return self.whole.label(self.kept[item], region)

    def centroids(self, class_index: int) -> NDArray[np.int32]:
        """(M, 3) = (item, row, column) of the items that are kept, see `Split.centroids`."""
        own = {item: position for position, item in enumerate(self.kept)}
        rows = [(own[item], *place) for item, *place in self.whole.centroids(class_index).tolist() if item in own]
        return np.array(rows, dtype=np.int32).reshape(-1, 3)

    def classes_with_centroids(self) -> NDArray[np.intp]:
        """The classes that appear in the labels of the items that are kept."""
        return self._there

    @cached_property
    def _there(self) -> NDArray[np.intp]:
        return np.array([each for each in self.whole.classes_with_centroids() if len(self.centroids(int(each)))])


@lru_cache(maxsize=4)
def _opened(folder: Path, split: str) -> Split:
    return Split(folder, split)


@dataclass(frozen=True)
class Images:
    """What is trained and judged on.

    Attributes:
        train: the training images.
        judged: those that are judged.
        class_pixels: of the training images.
        classes: how many.
    """

    train: Split
    judged: Split
    class_pixels: Sequence[int]
    classes: int


def whole(store: Store) -> Images:
    """All training images, judged on val."""
    train = store.manifest["splits"]["train"]
    return Images(store.split("train"), store.split("val"), train["class_pixels"], len(store.space.classes))


def held_out(store: Store, prefix: str | None) -> Images:
    """The training images without those that are held out, and these.

    Args:
        prefix: of the names of those that are held out; None is the last fifth by name.

    Raises:
        MmsegError: nothing, or all, would be held out.
    """
    train = store.split("train")
    names = train.names()
    if prefix is None:
        order = sorted(range(len(names)), key=lambda item: names[item])
        out = set(order[round((1 - HELD_OUT) * len(order)) :])
    else:
        out = {item for item, name in enumerate(names) if name.startswith(prefix)}
    if not 0 < len(out) < len(names):
        what = f"holds out {len(out)} of {len(names)} training images"
        raise MmsegError("--hold-out", what, "name the beginning of a sequence's file names")
    kept = [item for item in range(len(names)) if item not in out]
    classes = len(store.space.classes)
    pixels = [0] * classes
    for item in kept:
        for index, count in train.class_pixels(item).items():
            if index < classes:
                pixels[index] += count
    left, judged = (Part(train.folder, train.split, tuple(items)) for items in (kept, sorted(out)))
    return Images(left, judged, pixels, classes)
