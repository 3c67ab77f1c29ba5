"""The numbers of a store: items, classes, sizes, and how evenly the classes lie over it and over its splits.

Shapes: K = classes, N = items of a split. In a classification a "pixel" is an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.balance import inverse_log_weights
from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.data.store import Split, Store

TRAIN = "train"
WORST = 5  # classes that are named
UNEVEN = 1.1  # ratio of two shares from which a class is unevenly spread


def percent(share: float) -> str:
    """A share of [0, 1] in percent."""
    if share and share < 0.00001:
        return "<0.001"
    return f"{100 * share:.3f}" if 0 < share < 0.001 else f"{100 * share:.2f}"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a split's images as stored, (height, width), ordered by area; `distinct` is how many there are."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    distinct: int

    def __str__(self) -> str:
        shown = [f"{width}x{height}" for height, width in (self.smallest, self.median, self.largest)]
        return f"{shown[0]}, all" if self.distinct == 1 else " / ".join(shown)


@dataclass(frozen=True)
class SplitSummary:
    """One split.

    Attributes:
        class_pixels: pixels of each class, int64 (K,).
        class_images: images in which each class occurs, int64 (K,).
        ignored_pixels: pixels that are no class.
    """

    name: str
    count: int
    class_pixels: NDArray[np.int64]
    class_images: NDArray[np.int64]
    ignored_pixels: int
    sizes: Sizes | None

    @property
    def shares(self) -> NDArray[np.float64]:
        """The share of each class in the labelled pixels, in [0, 1], (K,)."""
        return np.asarray(self.class_pixels / max(int(self.class_pixels.sum()), 1))

    @property
    def ignored_share(self) -> float:
        """The share of the pixels that are ignored, in [0, 1]."""
        return self.ignored_pixels / max(int(self.class_pixels.sum()) + self.ignored_pixels, 1)


@dataclass(frozen=True)
class Imbalance:
    """A class whose share differs between the training split and another: `share` there, `ratio` >= 1 between them."""

    index: int
    split: str
    train_share: float
    share: float
    ratio: float


@dataclass(frozen=True)
class Summary:
    """A store in numbers.

    Attributes:
        weights: of each class in the loss, from the first split, (K,).
    """

    dataset: str
    task: str
    space: LabelSpace
    splits: tuple[SplitSummary, ...]
    weights: NDArray[np.float64]

    @property
    def first(self) -> SplitSummary:
        """The training split, or the first one where there is none."""
        return self.splits[0]

    @property
    def others(self) -> tuple[SplitSummary, ...]:
        """The other splits."""
        return self.splits[1:]

    @property
    def unit(self) -> str:
        """What is counted."""
        return "images" if self.task == "classification" else "pixels"

    def by_share(self) -> NDArray[np.intp]:
        """The classes from the most frequent to the rarest in the first split."""
        return np.argsort(-self.first.class_pixels, kind="stable")

    def rarest(self, number: int = WORST) -> list[int]:
        """The classes with the smallest share of the first split that occur in it, the rarest first."""
        return [int(k) for k in self.by_share()[::-1] if self.first.class_pixels[k]][:number]

    def absent(self) -> dict[str, list[int]]:
        """The classes of which a split has nothing, by split; splits that have all are left out."""
        missing = {split.name: [int(k) for k in np.flatnonzero(split.class_pixels == 0)] for split in self.splits}
        return {name: classes for name, classes in missing.items() if classes}

    def nowhere(self) -> list[int]:
        """The classes that no split has."""
        total = np.sum([split.class_pixels for split in self.splits], axis=0)
        return [int(k) for k in np.flatnonzero(total == 0)]

    def worst_balanced(self, number: int = WORST) -> list[Imbalance]:
        """The classes whose share differs most, and by UNEVEN at least, between the first split and another that also
        has them."""
        found = []
        first = self.first.shares
        for split in self.others:
            for k in np.flatnonzero((first > 0) & (split.class_pixels > 0)):
                here, there = float(first[k]), float(split.shares[k])
                ratio = max(here / there, there / here)
                if ratio >= UNEVEN:
                    found.append(Imbalance(int(k), split.name, here, there, ratio))
        found.sort(key=lambda entry: (-entry.ratio, entry.index))
        return found[:number]

    def names(self, classes: Iterable[int]) -> str:
        """The names of classes, separated by commas."""
        return ", ".join(self.space.classes[k] for k in classes)


def occurrences(split: Split, *, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which item has how many pixels of which class: three equally long columns (item, class, pixels), no ignored ones.

    Args:
        classes: number of classes, K.
    """
    items, indices, pixels = [], [], []
    for item in range(len(split)):
        for index, count in split.class_pixels(item).items():
            if index < classes and count:
                items.append(item)
                indices.append(index)
                pixels.append(count)
    return np.array(items, dtype=np.int64), np.array(indices, dtype=np.int64), np.array(pixels, dtype=np.int64)


def _sizes(split: Split) -> Sizes | None:
    if not len(split):
        return None
    sizes_N2 = np.array([split.size(item) for item in range(len(split))], dtype=np.int64)
    order = np.lexsort((sizes_N2[:, 1], sizes_N2[:, 0], sizes_N2.prod(axis=1)))

    def at(position: int) -> tuple[int, int]:
        height, width = sizes_N2[order[position]].tolist()
        return height, width

    return Sizes(at(0), at((len(order) - 1) // 2), at(-1), len(np.unique(sizes_N2, axis=0)))


def _split_summary(store: Store, name: str) -> SplitSummary:
    part = store.manifest["splits"][name]
    split = store.split(name)
    class_pixels = np.array(part["class_pixels"], dtype=np.int64)
    if store.task == "classification":
        class_images = class_pixels
    else:
        _, indices, _ = occurrences(split, classes=len(class_pixels))
        class_images = np.bincount(indices, minlength=len(class_pixels)).astype(np.int64)
    return SplitSummary(
        name=name,
        count=int(part["count"]),
        class_pixels=class_pixels,
        class_images=class_images,
        ignored_pixels=int(part["ignored_pixels"]),
        sizes=_sizes(split),
    )


def summarise(store: Store) -> Summary:
    """The numbers of a store, from its manifest and indices; no image is read.

    Raises:
        MmsegError: a split's index cannot be read.
    """
    names = sorted(store.manifest["splits"], key=lambda name: name != TRAIN)
    splits = tuple(_split_summary(store, name) for name in names)
    return Summary(
        dataset=str(store.manifest["dataset"]),
        task=store.task,
        space=store.space,
        splits=splits,
        weights=inverse_log_weights(splits[0].class_pixels),
    )
