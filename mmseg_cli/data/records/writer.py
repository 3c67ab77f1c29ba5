"""Writes one split of a store so that a kill at any byte, or a power cut, costs no more than the last items.

Every item goes to `<split>.records`, then a row that describes it to `<split>.journal`. Opening the pair again finds
how far both agree, by length and CRC-32, and cuts off the rest; `close` makes `<split>.index.npz` of the journal. The
index depends on the items alone, not on when the writer was stopped.

Shapes: H, W = height, width of a label; N = items, K = classes, M = centroids.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import IGNORE
from mmseg_cli.files import atomic, refusal

CELL = 256  # pixels a side of the squares that a label's centroids come from
SYNC_BYTES = 256 << 20  # written at most before they are forced to the disk
_COPY_BYTES = 1 << 20

_MAGIC = b"MMJ2"
_FRAME = struct.Struct("<II")  # length and CRC-32 of the row behind it
_ROW = struct.Struct("<8q2I32s6I")

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one item.

    Attributes:
        name: unique in its split.
        sha256: of the source's bytes, image then label; 32 bytes.
        place: start, length, height, width of the image's record, then of the label's.
        crc32: of the image's record and the label's.
        class_pixels: pixels of each class; ignored ones at 255 in a segmentation.
        centroids: (M, 3) = (class, row, column), in pixels of the label.
        identity: what tells whether the source is still the same; kept in the journal only.
        extra: small facts for a resumed run; kept in the journal only.
    """

    name: str
    sha256: bytes
    place: tuple[int, ...]
    crc32: tuple[int, int]
    class_pixels: NDArray[np.int64]
    centroids: NDArray[np.int32]
    identity: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The position in the records behind this item."""
        return self.place[4] + self.place[5]

    def to_bytes(self) -> bytes:
        """The row as the journal holds it, with its frame."""
        texts = [self.name.encode(), self.identity.encode(), _json(self.extra)]
        present = np.flatnonzero(self.class_pixels)
        body = b"".join(
            [
                _ROW.pack(
                    *self.place,
                    *self.crc32,
                    self.sha256,
                    *map(len, texts),
                    len(self.class_pixels),
                    len(present),
                    len(self.centroids),
                ),
                *texts,
                present.astype("<u2").tobytes(),
                self.class_pixels[present].astype("<i8").tobytes(),
                self.centroids.astype("<i4").tobytes(),
            ]
        )
        return _FRAME.pack(len(body), zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, body: bytes) -> Row:
        """The row behind a frame."""
        *numbers, name, identity, extra, classes, present, centroids = _ROW.unpack_from(body)
        position = _ROW.size

        def take(length: int) -> bytes:
            nonlocal position
            position += length
            return body[position - length : position]

        texts = [take(length) for length in (name, identity, extra)]
        class_pixels = np.zeros(classes, dtype=np.int64)
        indices = np.frombuffer(take(2 * present), dtype="<u2")
        class_pixels[indices] = np.frombuffer(take(8 * present), dtype="<i8")
        return cls(
            name=texts[0].decode(),
            sha256=numbers[10],
            place=tuple(numbers[:8]),
            crc32=(numbers[8], numbers[9]),
            class_pixels=class_pixels,
            centroids=np.frombuffer(take(12 * centroids), dtype="<i4").reshape(-1, 3),
            identity=texts[1].decode(),
            extra=json.loads(texts[2]),
        )


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Rows(Sequence[Row]):
    """The rows of a journal, read one by one when asked for: a million of them take 8 MB."""

    def __init__(self, journal: IO[bytes], ends: array[int]) -> None:
        self._journal, self._ends = journal, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, item: int) -> Row: ...
    @overload
    def __getitem__(self, item: slice) -> list[Row]: ...
    def __getitem__(self, item: int | slice) -> Row | list[Row]:
        if isinstance(item, slice):
            return [self[index] for index in range(len(self))[item]]
        index = range(len(self))[item]
        start = self._ends[index] + _FRAME.size
        return Row.from_bytes(os.pread(self._journal.fileno(), self._ends[index + 1] - start, start))


class SplitWriter:
    """Appends the items of one split; `close` writes its index. Goes on where an earlier writer was stopped.

    Args:
        folder: where the split's files lie, or will.
        split: its name.

    Attributes:
        done: the items that are safely there, in order; first those of an earlier writer.

    Raises:
        MmsegError: the folder cannot be written (exit 2) or the disk is full (exit 4); so do the methods.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._records_path = folder / f"{split}.records"
        self._journal_path = folder / f"{split}.journal"
        self._index_path = folder / f"{split}.index.npz"
        self._unsynced = 0
        try:
            self._index_path.unlink(missing_ok=True)
            self._records: IO[bytes] = self._records_path.open("a+b", buffering=0)
            self._journal: IO[bytes] = self._journal_path.open("a+b", buffering=0)
            self._ends, self._records_end = self._agreement()
            if len(self._ends) == 1:
                os.ftruncate(self._journal.fileno(), 0)
                _write(self._journal, _MAGIC)
            self._cut()
        except OSError as error:
            raise refusal(self._records_path, error) from error
        self.done = Rows(self._journal, self._ends)

    def _agreement(self) -> tuple[array[int], int]:
        """The journal's position behind its head and behind each good row, and the end of their records."""
        ends = array("q", [len(_MAGIC)])
        records_end = 0
        with self._journal_path.open("rb") as journal, self._records_path.open("rb") as records:
            if journal.read(len(_MAGIC)) != _MAGIC:
                return ends, 0
            for row, end in _frames(journal):
                good = row.place[0] == records_end and row.place[4] == row.place[0] + row.place[1]
                if not good or (_crc32(records, row.place[1]), _crc32(records, row.place[5])) != row.crc32:
                    break
                ends.append(end)
                records_end = row.end
        return ends, records_end

    def _cut(self) -> None:
        os.ftruncate(self._records.fileno(), self._records_end)
        os.ftruncate(self._journal.fileno(), self._ends[-1])

    def keep(self, count: int) -> None:
        """Forget all items but the first `count`, as when the sources behind the next one have changed."""
        if not 0 <= count <= len(self.done):
            raise ValueError(f"cannot keep {count} of {len(self.done)} items")
        self._records_end = self.done[count - 1].end if count else 0
        del self._ends[count + 1 :]
        try:
            self._cut()
        except OSError as error:
            raise refusal(self._records_path, error) from error

    def append(
        self,
        *,
        name: str,
        sha256: bytes,
        image: bytes,
        image_size: Size,
        label: bytes,
        label_size: Size,
        class_pixels: NDArray[np.int64],
        centroids: NDArray[np.int32],
        identity: str = "",
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Add one item.

        Args:
            name: unique in the split.
            sha256: of the source's bytes; 32 bytes.
            image: a record of tiles or a JPEG.
            image_size: (height, width).
            label: a record of tiles; empty for a classification.
            label_size: (height, width); for a classification (target, 0).
            class_pixels: pixels of each class, as `label_summary` counts them.
            centroids: (M, 3) = (class, row, column), as `label_summary` finds them.
            identity: what tells whether the source is still the same, for a resumed run.
            extra: small facts for a resumed run, as JSON.
        """
        start = self._records_end
        row = Row(
            name=name,
            sha256=sha256,
            place=(start, len(image), *image_size, start + len(image), len(label), *label_size),
            crc32=(zlib.crc32(image), zlib.crc32(label)),
            class_pixels=class_pixels,
            centroids=centroids,
            identity=identity,
            extra=extra or {},
        )
        line = row.to_bytes()
        try:
            _write(self._records, image)
            _write(self._records, label)
            _write(self._journal, line)
            self._unsynced += len(image) + len(label)
            if self._unsynced >= SYNC_BYTES:
                os.fsync(self._records.fileno())
                os.fsync(self._journal.fileno())
                self._unsynced = 0
        except BaseException as error:
            self._cut()
            raise refusal(self._records_path, error) if isinstance(error, OSError) else error from error
        self._records_end = row.end
        self._ends.append(self._ends[-1] + len(line))

    def close(self, *, classes: int) -> None:
        """Force the records to the disk and write the index.

        The journal stays: with it a later writer knows that this split is whole. A finished store needs none.

        Args:
            classes: K, more than the largest class that has centroids.
        """
        try:
            os.fsync(self._records.fileno())
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise refusal(self._records_path, error) from error
        columns = _columns(self.done, classes=classes)
        with atomic(self._index_path) as file:
            np.savez(file, **columns)  # type: ignore[arg-type]
        self.stop()

    def stop(self) -> None:
        """Let go of the files and leave them to a later writer."""
        self._records.close()
        self._journal.close()


def _write(file: IO[bytes], content: bytes) -> None:
    """All of it: an unbuffered file may take less at once."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _frames(journal: IO[bytes]) -> Iterator[tuple[Row, int]]:
    """Each row up to the first that is not whole, with the position behind it."""
    while len(frame := journal.read(_FRAME.size)) == _FRAME.size:
        length, crc32 = _FRAME.unpack(frame)
        body = journal.read(length)
        if length < _ROW.size or len(body) < length or zlib.crc32(body) != crc32:
            return
        yield Row.from_bytes(body), journal.tell()


def _crc32(records: IO[bytes], length: int) -> int:
    """CRC-32 of the next bytes; -1 where the file ends before."""
    crc32 = 0
    while length:
        content = records.read(min(length, _COPY_BYTES))
        if not content:
            return -1
        crc32 = zlib.crc32(content, crc32)
        length -= len(content)
    return crc32


def _columns(rows: Rows, *, classes: int) -> dict[str, NDArray[Any]]:
    """The members of the index; `mmseg_cli.data.store.Split` says what they are."""
    count = len(rows)
    places = np.empty((count, 8), dtype=np.int64)
    sums = np.empty((count, 2), dtype=np.uint32)
    hashes = np.empty((count, 32), dtype=np.uint8)
    name_ends = np.empty(count, dtype=np.int64)
    pixel_starts = np.zeros(count + 1, dtype=np.int64)
    names, pixel_class, pixel_count, found, points = (bytearray() for _ in range(5))
    for item, row in enumerate(rows):
        places[item], sums[item] = row.place, row.crc32
        hashes[item] = np.frombuffer(row.sha256, dtype=np.uint8)
        names += row.name.encode()
        name_ends[item] = len(names)
        present = np.flatnonzero(row.class_pixels)
        pixel_class += present.astype(np.uint16).tobytes()
        pixel_count += row.class_pixels[present].tobytes()
        pixel_starts[item + 1] = pixel_starts[item] + len(present)
        if len(row.centroids):
            found += row.centroids[:, 0].tobytes()
            point = row.centroids.copy()
            point[:, 0] = item
            points += point.tobytes()
    centroid_class = np.frombuffer(found, dtype=np.int32)
    order = np.argsort(centroid_class, kind="stable")
    ordered = centroid_class[order]
    if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < classes:
        raise ValueError(f"centroids of class {ordered[-1]} in a split of {classes} classes")
    return {
        "rows": places,
        "crc32": sums,
        "sha256": hashes,
        "names": np.frombuffer(names, dtype=np.uint8),
        "name_ends": name_ends,
        "pixel_starts": pixel_starts,
        "pixel_class": np.frombuffer(pixel_class, dtype=np.uint16),
        "pixel_count": np.frombuffer(pixel_count, dtype=np.int64),
        "centroid_starts": np.searchsorted(ordered, np.arange(classes + 1)).astype(np.int64),
        "centroids": np.frombuffer(points, dtype=np.int32).reshape(-1, 3)[order],
    }


def label_summary(label_HW: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """How much of each class a label holds, and where.

    A class has one centroid in each square of 256x256 pixels that it appears in: the mean place of its pixels there.
    Sampling that draws a class first (Zhu et al. 2019, arXiv 1812.01593, section 3.3) centres its crops on them.

    Returns:
        class_pixels: (256,) pixels of each class; ignored ones at 255.
        centroids: (M, 3) = (class, row, column), in pixels of the label; by class, then from the top left.
    """
    total = np.zeros(256, dtype=np.int64)
    found: list[tuple[int, int, int]] = []
    height, width = label_HW.shape
    for top in range(0, height, CELL):
        for left in range(0, width, CELL):
            cell_HW = np.ascontiguousarray(label_HW[top : top + CELL, left : left + CELL])
            counts = np.bincount(cell_HW.ravel(), minlength=256)
            total += counts
            down = np.ones(cell_HW.shape[1], dtype=np.float32)
            along = np.ones(cell_HW.shape[0], dtype=np.float32)
            for index in np.flatnonzero(counts).tolist():
                if index == IGNORE:
                    continue
                mask_HW = (cell_HW == index).astype(np.float32)
                rows = (mask_HW @ down).astype(np.int64) @ np.arange(len(along))
                columns = (along @ mask_HW).astype(np.int64) @ np.arange(len(down))
                pixels = int(counts[index])
                found.append((index, top + int(rows) // pixels, left + int(columns) // pixels))
    found.sort(key=lambda point: point[0])  # stable: the squares keep their order
    return total, np.asarray(found, dtype=np.int32).reshape(-1, 3)
