"""Prepared data: one file of records and one index a split, and a manifest.

A record is a blosc2 array, lossless and read by 128x128 blocks (PNG sources and all labels), or a JPEG as it came (JPEG
sources). Layout: `manifest.json`, `<split>.records`, `<split>.index.npz`. Read-only once made; any number of
processes may read it.

Shapes: H, W = height, width of an image; C = 3 colours; N = items of a split.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import blosc2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import read_json

FORMAT = 1
BLOCK = 128  # pixels a side; the unit of decompression
PREPARE = "run `mmseg prepare` for this dataset again"

Image_HWC = NDArray[np.uint8]
Label_HW = NDArray[np.uint8]


def pack(array: NDArray[np.uint8]) -> bytes:
    """An image_HWC or label_HW as a blosc2 frame of 128x128 blocks, LZ4 behind bitshuffle."""
    blosc2.set_nthreads(1)
    height, width = array.shape[:2]
    tail = array.shape[2:]
    block = (min(BLOCK, height), min(BLOCK, width), *tail)
    chunk = (min(4 * BLOCK, height), min(4 * BLOCK, width), *tail)
    parameters = blosc2.CParams(codec=blosc2.Codec.LZ4, filters=[blosc2.Filter.BITSHUFFLE], clevel=5, nthreads=1)
    packed = blosc2.asarray(np.ascontiguousarray(array), chunks=chunk, blocks=block, cparams=parameters)
    return bytes(packed.to_cframe())


class SplitWriter:
    """Appends the records of one split; `close` writes its index. Two lists of equal length: images and labels."""

    def __init__(self, folder: Path, split: str) -> None:
        self._file: IO[bytes] = (folder / f"{split}.records").open("wb")
        self._index_path = folder / f"{split}.index.npz"
        self._rows: list[tuple[int, int, int, int, int, int, int, int]] = []

    def append(self, *, image: bytes, image_size: tuple[int, int], label: bytes, label_size: tuple[int, int]) -> None:
        """Add one item; sizes are (height, width); a classification item has an empty label and `label_size`
        (target, 0)."""
        start = self._file.tell()
        self._file.write(image)
        self._file.write(label)
        self._rows.append((start, len(image), *image_size, start + len(image), len(label), *label_size))

    def close(self) -> None:
        """Flush the records and write the index."""
        self._file.close()
        columns = np.asarray(self._rows, dtype=np.int64).reshape(-1, 8)
        np.savez(self._index_path, rows=columns)


@dataclass(frozen=True)
class Split:
    """One split of a store, opened for reading.

    Methods take the item's position. Regions are (top, left, height, width) and must lie inside the image.
    """

    folder: Path
    name: str

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        path = self.folder / f"{self.name}.index.npz"
        try:
            with np.load(path) as index:
                return np.asarray(index["rows"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise MmsegError(path, f"cannot be read ({error})", PREPARE) from error

    @cached_property
    def _records(self) -> mmap.mmap:
        path = self.folder / f"{self.name}.records"
        try:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise MmsegError(path, f"cannot be read ({error})", PREPARE) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "name": self.name}  # a worker process opens the files itself

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

    def _record(self, item: int, column: int) -> bytes:
        start, length = int(self._rows[item, column]), int(self._rows[item, column + 1])
        return self._records[start : start + length]

    def _read(self, item: int, column: int, region: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
        record = self._record(item, column)
        try:
            if record[:2] == b"\xff\xd8":
                picture = Image.open(io.BytesIO(record)).convert("RGB")
                if region is not None:
                    top, left, height, width = region
                    picture = picture.crop((left, top, left + width, top + height))
                return np.asarray(picture)
            array = blosc2.ndarray_from_cframe(record)
            if region is None:
                return np.asarray(array[:])
            top, left, height, width = region
            return np.asarray(array[top : top + height, left : left + width])
        except (OSError, RuntimeError, ValueError) as error:
            where = f"{self.folder / self.name}.records"
            raise MmsegError(where, f"item {item} is damaged ({error})", PREPARE) from error

    def image(self, item: int, region: tuple[int, int, int, int] | None = None) -> Image_HWC:
        """image_HWC, RGB, whole or one region."""
        return self._read(item, 0, region)

    def label(self, item: int, region: tuple[int, int, int, int] | None = None) -> Label_HW:
        """label_HW of train ids (255 = ignore), whole or one region."""
        return self._read(item, 4, region)


@dataclass(frozen=True)
class Store:
    """A prepared dataset: its manifest and its splits."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def task(self) -> str:
        """`segmentation` or `classification`."""
        return str(self.manifest["task"])

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
        return [str(item["name"]) for item in self.manifest["splits"][split]["items"]]


def open_store(folder: Path, *, parameters: dict[str, Any] | None = None) -> Store:
    """Open a prepared dataset.

    Args:
        folder: where `mmseg prepare` wrote it.
        parameters: the dataset's section of params.yaml; None accepts any.

    Raises:
        MmsegError: there is no store, it has another format, or it was made by other parameters.
    """
    manifest = read_json(folder / "manifest.json", todo=PREPARE)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MmsegError(folder / "manifest.json", "was written by another version of mmseg", PREPARE)
    if parameters is not None and manifest["parameters"] != parameters:
        keys = sorted(key for key in parameters if manifest["parameters"].get(key) != parameters[key])
        raise MmsegError(folder, f"was made by other parameters ({', '.join(keys)} differ)", PREPARE)
    return Store(folder=folder, manifest=manifest)
