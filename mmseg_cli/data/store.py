"""Prepared data: one file of records and one index a split, and a manifest.

A record is lossless and read by tiles of 128x128 pixels (PNG sources and all labels, see `tiles`), or a JPEG as it came
(JPEG sources, see `jpeg`). Layout: `manifest.json`, `<split>.records`, `<split>.index.npz`, as `SplitWriter` makes
them. Read-only once made; any number of processes may read it. Every byte is covered by a CRC-32 that is checked when
it is read.

Members of an index; one is read only when it is asked for:
    rows (N, 8): start, length, height, width of the image's record, then of the label's.
    crc32 (N, 2): of the image's record and the label's.
    sha256 (N, 32): of the source's bytes, image then label.
    names, name_ends (N): UTF-8, one after the other, and where each ends.
    pixel_starts (N + 1), pixel_class, pixel_count: the classes of each item and their pixels; 255 = ignored.
    centroid_starts (K + 1), centroids (M, 3): (item, row, column) in pixels of the label, by class.

Shapes: H, W = height, width of an image; C = 3 colours; N = items of a split; K = classes; M = centroids.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import IGNORE, LabelSpace
from mmseg_cli.data.records import jpeg, tiles
from mmseg_cli.data.records.tiles import DamagedError, Region, pack
from mmseg_cli.data.records.writer import SplitWriter, label_summary
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import read_json

__all__ = ["FORMAT", "Region", "Split", "SplitWriter", "Store", "label_summary", "open_store", "pack"]

MANIFEST = "manifest.json"
FORMAT = 2
PREPARE = "run `mmseg prepare` for this dataset again"

# What zipfile and numpy raise for a file that is none of theirs.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)

Image_HWC = NDArray[np.uint8]
Label_HW = NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """One split of a store, opened for reading.

    Methods take the item's position. Regions are (top, left, height, width) and must lie inside the image.

    Raises:
        MmsegError: the split's files are missing or damaged; a damaged record is named by item and block. So do the
            methods.
    """

    folder: Path
    split: str

    def _member(self, name: str) -> NDArray[Any]:
        path = self.folder / f"{self.split}.index.npz"
        try:
            with zipfile.ZipFile(path) as index:
                content = index.read(f"{name}.npy")  # as a whole: only then is its CRC-32 checked
            return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
        except _UNREADABLE as error:
            raise MmsegError(path, f"cannot be read ({error})", PREPARE) from error

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        return self._member("rows")

    @cached_property
    def _crc32(self) -> NDArray[np.uint32]:
        return self._member("crc32")

    @cached_property
    def _name_ends(self) -> NDArray[np.int64]:
        return self._member("name_ends")

    @cached_property
    def _names(self) -> bytes:
        return self._member("names").tobytes()

    @cached_property
    def _pixels(self) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.int64]]:
        return self._member("pixel_starts"), self._member("pixel_class"), self._member("pixel_count")

    @cached_property
    def _centroid_starts(self) -> NDArray[np.int64]:
        return self._member("centroid_starts")

    @cached_property
    def _centroids(self) -> NDArray[np.int32]:
        return self._member("centroids")

    @cached_property
    def _sha256(self) -> NDArray[np.uint8]:
        return self._member("sha256")

    @property
    def _records_path(self) -> Path:
        return self.folder / f"{self.split}.records"

    @cached_property
    def _records(self) -> IO[bytes]:
        try:
            return self._records_path.open("rb", buffering=0)
        except OSError as error:
            raise MmsegError(self._records_path, f"cannot be read ({error})", PREPARE) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}  # a worker process opens the files itself

    def __len__(self) -> int:
        return len(self._rows)

    def size(self, item: int) -> tuple[int, int]:
        """(height, width) of the image."""
        return int(self._rows[item, 2]), int(self._rows[item, 3])

    def label_size(self, item: int) -> tuple[int, int]:
        """(height, width) of the label file, which is the native size even where the image was made smaller."""
        return int(self._rows[item, 6]), int(self._rows[item, 7])

    def target(self, item: int) -> int:
        """The class of a classification item."""
        return int(self._rows[item, 6])

    def name(self, item: int) -> str:
        """The name of an item."""
        item = range(len(self))[item]
        start = int(self._name_ends[item - 1]) if item else 0
        return str(self._names[start : int(self._name_ends[item])], "utf-8")

    def names(self) -> list[str]:
        """The items' names, in the order of their positions."""
        return [self.name(item) for item in range(len(self))]

    def sha256(self, item: int) -> str:
        """Hexadecimal SHA-256 of the source's bytes, image then label."""
        return bytes(self._sha256[item]).hex()

    def class_pixels(self, item: int) -> dict[int, int]:
        """Pixels of each class that the item has; ignored ones at 255 in a segmentation."""
        starts, classes, counts = self._pixels
        item = range(len(self))[item]
        part = slice(int(starts[item]), int(starts[item + 1]))
        return dict(zip(classes[part].tolist(), counts[part].tolist(), strict=True))

    def image_bytes(self) -> int:
        """Bytes that the records of all images take."""
        return int(self._rows[:, 1].sum())

    def total_pixels(self, classes: int) -> NDArray[np.int64]:
        """(classes or 256, whichever is more) pixels of each class in all items; ignored ones at 255."""
        _, index, count = self._pixels
        total = np.zeros(max(classes, IGNORE + 1), dtype=np.int64)
        np.add.at(total, index, count)
        return total

    def centroids(self, class_index: int) -> NDArray[np.int32]:
        """(M, 3) = (item, row, column), in pixels of the label: one for each square of 256 pixels with this class."""
        start, end = self._centroid_starts[class_index : class_index + 2].tolist()
        return self._centroids[start:end]

    def classes_with_centroids(self) -> NDArray[np.intp]:
        """The classes that appear in this split's labels, in order."""
        return np.flatnonzero(np.diff(self._centroid_starts))

    def _read(self, item: int, which: int, region: Region | None) -> NDArray[np.uint8]:
        start, length, height, width = self._rows[item, 4 * which : 4 * which + 4].tolist()
        descriptor = self._records.fileno()

        def read(position: int, count: int) -> bytes:
            return os.pread(descriptor, max(0, min(count, length - position)), start + position)

        try:
            if read(0, 2) != jpeg.START:
                return tiles.unpack(read, size=(height, width), region=region)
            content = read(0, length)
            if zlib.crc32(content) != self._crc32[item, which]:
                raise DamagedError("JPEG")
            if region is None:
                return jpeg.decode(content)
            top, left, tall, wide = tiles.inside(region, (height, width))
            return jpeg.decode(content, rows=(top, top + tall), columns=(left, left + wide))
        except (OSError, DamagedError) as error:
            what = f'item {range(len(self))[item]} ("{self.name(item)}"), {("image", "label")[which]} {error}'
            raise MmsegError(self._records_path, f"{what} is damaged", PREPARE) from error

    def image(self, item: int, region: Region | None = None) -> Image_HWC:
        """image_HWC, RGB, whole or one region."""
        return self._read(item, 0, region)

    def label(self, item: int, region: Region | None = None) -> Label_HW:
        """label_HW of train ids (255 = ignore), whole or one region."""
        return self._read(item, 1, region)


@dataclass(frozen=True)
class Store:
    """A prepared dataset: its manifest and its splits."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def task(self) -> str:
        """`segmentation` or `classification`."""
        return str(self.manifest["task"])

    @property
    def title(self) -> str:
        """The dataset as people call it."""
        generated = self.manifest["parameters"].get("source") == "synthetic"
        return ("generated " if generated else "") + str(self.manifest["dataset"])

    @cached_property
    def space(self) -> LabelSpace:
        """The classes, in training order."""
        return LabelSpace.from_json(self.manifest["label_space"])

    def split(self, name: str) -> Split:
        """One split.

        Raises:
            MmsegError: the store has no such split.
        """
        if name not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"])
            raise MmsegError(self.folder, f"has no split {name!r}", f"choose from {known}")
        return Split(self.folder, name)

    def names(self, split: str) -> list[str]:
        """The items' names, in the order of their positions."""
        return self.split(split).names()


def open_store(folder: Path, *, parameters: dict[str, Any] | None = None) -> Store:
    """Open a prepared dataset.

    Args:
        folder: where `mmseg prepare` wrote it.
        parameters: the dataset's section of params.yaml; None accepts any.

    Raises:
        MmsegError: there is no store, it has another format, or it was made by other parameters.
    """
    manifest = read_json(folder / MANIFEST, todo=PREPARE)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MmsegError(folder / MANIFEST, "was written by another version of mmseg", PREPARE)
    if missing := [key for key in ("task", "parameters", "label_space", "splits") if key not in manifest]:
        raise MmsegError(folder / MANIFEST, f"lacks {', '.join(missing)}", PREPARE)
    if parameters is not None and manifest["parameters"] != parameters:
        before = manifest["parameters"]
        keys = sorted(key for key in {*parameters, *before} if before.get(key) != parameters.get(key))
        raise MmsegError(folder, f"was made by other parameters ({', '.join(keys)} differ)", PREPARE)
    return Store(folder=folder, manifest=manifest)
