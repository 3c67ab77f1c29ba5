"""What was counted in every image of a split: the file behind a run's figures, from which each can be computed again.

Counts are kept image by image, so that later comparisons can pair, resample or leave out images. Most of them are 0:
of 19 classes an image shows ten, and confuses few. Only the others are written. numpy only.

Shapes: N = images, K = classes.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.errors import MmsegError
from mmseg_cli.files import atomic

EVALUATE = "run `mmseg evaluate` for it again"


@dataclass(frozen=True)
class Counts:
    """One kind of count of every image, such as its confusion matrix.

    Attributes:
        shape: of one image's array.
        starts: (N + 1) where each image's entries begin in `cells` and `values`.
        cells: the places in the flattened array that are not 0.
        values: what is there.
    """

    shape: tuple[int, ...]
    starts: NDArray[np.int64]
    cells: NDArray[np.uint32]
    values: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def total(self) -> NDArray[np.int64]:
        """The sum over all images."""
        flat = np.zeros(math.prod(self.shape), dtype=np.int64)
        np.add.at(flat, self.cells, self.values.astype(np.int64))
        return flat.reshape(self.shape)

    def dense(self) -> NDArray[np.int64]:
        """(N, *shape): every image's array."""
        flat = np.zeros((len(self), math.prod(self.shape)), dtype=np.int64)
        flat[np.repeat(np.arange(len(self)), np.diff(self.starts)), self.cells] = self.values
        return flat.reshape(len(self), *self.shape)

    def image(self, position: int) -> NDArray[np.int64]:
        """One image's array."""
        part = slice(int(self.starts[position]), int(self.starts[position + 1]))
        flat = np.zeros(math.prod(self.shape), dtype=np.int64)
        flat[self.cells[part]] = self.values[part]
        return flat.reshape(self.shape)


class Collector:
    """Takes the counts of one image after another."""

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._cells: dict[str, list[NDArray[np.uint32]]] = {}
        self._values: dict[str, list[NDArray[np.uint32]]] = {}

    def add(self, counts: Mapping[str, NDArray[np.int64]]) -> None:
        """The counts of the next image, by kind; every image has the same kinds, of the same shapes."""
        for kind, array in counts.items():
            if self._shapes.setdefault(kind, array.shape) != array.shape:
                raise ValueError(f"{kind} is {array.shape}, was {self._shapes[kind]}")
            cells = np.flatnonzero(array)
            self._cells.setdefault(kind, []).append(cells.astype(np.uint32))
            self._values.setdefault(kind, []).append(array.reshape(-1)[cells].astype(np.uint32))

    def counts(self) -> dict[str, Counts]:
        """All that was added, by kind."""
        return {
            kind: Counts(
                shape=shape,
                starts=np.cumsum([0, *map(len, self._cells[kind])]),
                cells=np.concatenate(self._cells[kind]),
                values=np.concatenate(self._values[kind]),
            )
            for kind, shape in self._shapes.items()
        }


@dataclass(frozen=True)
class Evidence:
    """The content of one file.

    Attributes:
        classes: K names.
        names: N images.
        counts: by kind; `confusion` (K, K) is always there.
    """

    classes: list[str]
    names: list[str]
    counts: dict[str, Counts]


def save(path: Path, evidence: Evidence) -> None:
    """Write a file, atomically; equal counts give equal bytes."""
    arrays: dict[str, NDArray[np.generic]] = {
        "classes": np.array(evidence.classes),
        "names": np.array(evidence.names),
    }
    for kind, counts in evidence.counts.items():
        smallest = np.uint16 if math.prod(counts.shape) <= 2**16 else np.uint32
        arrays[f"{kind}.shape"] = np.array(counts.shape)
        arrays[f"{kind}.lengths"] = np.diff(counts.starts).astype(np.uint32)
        arrays[f"{kind}.cells"] = counts.cells.astype(smallest)
        arrays[f"{kind}.values"] = counts.values
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Evidence:
    """Read a file.

    Raises:
        MmsegError: it is missing, damaged, or holds no confusion matrices.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            kinds = [name.removesuffix(".shape") for name in content.files if name.endswith(".shape")]
            counts = {
                kind: Counts(
                    shape=tuple(content[f"{kind}.shape"].tolist()),
                    starts=np.concatenate([[0], np.cumsum(content[f"{kind}.lengths"], dtype=np.int64)]),
                    cells=content[f"{kind}.cells"].astype(np.uint32),
                    values=content[f"{kind}.values"].astype(np.uint32),
                )
                for kind in kinds
            }
            found = Evidence(content["classes"].tolist(), content["names"].tolist(), counts)
    except FileNotFoundError:
        raise MmsegError(path, "missing", EVALUATE) from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise MmsegError(path, f"cannot be read ({error})", EVALUATE) from error
    if "confusion" not in counts:
        raise MmsegError(path, "holds no confusion matrices", EVALUATE)
    return found
