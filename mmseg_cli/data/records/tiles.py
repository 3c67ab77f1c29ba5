"""The lossless record: an array cut into tiles that are compressed and checked one by one, so that a crop reads few.

Layout, little-endian: a head (magic, height, width, channels, side of a tile, CRC-32), a table with each tile's end
and CRC-32, then the tiles row by row. A tile is a blosc2 chunk: LZ4 behind bitshuffle. The head's CRC-32 covers the
head before it and the table, so every byte of a record is covered.

Shapes: H, W = height, width; C = 3 colours.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import blosc2
import numpy as np
from numpy.typing import NDArray

TILE = 128  # pixels a side; the unit of reading
MAGIC = b"MMT1"

_HEAD = struct.Struct("<4sIIHHI")
_TABLE = np.dtype([("end", "<u8"), ("crc32", "<u4")])
_UNSIGNED = _HEAD.size - 4  # bytes of the head before its own CRC-32

Region = tuple[int, int, int, int]  # top, left, height, width


class DamagedError(Exception):
    """Bytes that are not those that were written.

    Attributes:
        what: which part of the record, such as "block at row 128, column 256".
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def pack(array: NDArray[np.uint8]) -> bytes:
    """An image_HWC or label_HW as a record of tiles.

    Raises:
        ValueError: the array is not uint8, is empty, or has neither two nor three axes.
    """
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"a record holds uint8 pixels, not {array.dtype} of shape {array.shape}")
    blosc2.set_releasegil(True)  # several threads pack at once
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 0
    parts = [
        blosc2.compress2(
            np.ascontiguousarray(array[row : row + TILE, column : column + TILE]),
            codec=blosc2.Codec.LZ4,
            clevel=5,
            filters=[blosc2.Filter.BITSHUFFLE],
            filters_meta=[0],
            typesize=1,
            nthreads=1,
        )
        for row in range(0, height, TILE)
        for column in range(0, width, TILE)
    ]
    table = np.empty(len(parts), dtype=_TABLE)
    table["end"] = np.cumsum([len(part) for part in parts])
    table["crc32"] = [zlib.crc32(part) for part in parts]
    head = _HEAD.pack(MAGIC, height, width, channels, TILE, 0)[:_UNSIGNED]
    entries = table.tobytes()
    return b"".join([head, struct.pack("<I", zlib.crc32(entries, zlib.crc32(head))), entries, *parts])


def inside(region: Region | None, size: tuple[int, int]) -> Region:
    """The region, or all of an image of `size` (height, width) for None.

    Raises:
        ValueError: the region does not lie inside the image.
    """
    top, left, height, width = region if region is not None else (0, 0, *size)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"the region {region} does not lie inside {size[0]}x{size[1]} pixels")
    return top, left, height, width


def unpack(
    read: Callable[[int, int], bytes], *, size: tuple[int, int], region: Region | None = None
) -> NDArray[np.uint8]:
    """The array of a record, or one region of it; only the tiles that the region touches are read.

    Args:
        read: the record's bytes from a position, in a given number; fewer where the record ends early.
        size: (height, width) that the record must have.
        region: (top, left, height, width) inside the array, or None for all of it.

    Returns:
        image_HWC or label_HW.

    Raises:
        DamagedError: some bytes are not those that `pack` made.
        ValueError: the region does not lie inside the array.
    """
    top, left, height, width = inside(region, size)
    across = -(-size[1] // TILE)
    channels, table = _table(read, size=size, tiles=across * -(-size[0] // TILE))
    ends, sums = table["end"].tolist(), table["crc32"].tolist()
    start_of_tiles = _HEAD.size + table.nbytes
    out = np.empty((height, width, channels) if channels else (height, width), dtype=np.uint8)
    depth = channels or 1
    scratch = np.empty(TILE * TILE * depth, dtype=np.uint8)
    first, last = left // TILE, (left + width - 1) // TILE
    for i in range(top // TILE, (top + height - 1) // TILE + 1):
        row = i * TILE
        tall = min(TILE, size[0] - row)
        begin = ends[i * across + first - 1] if i + first else 0
        content = memoryview(read(start_of_tiles + begin, ends[i * across + last] - begin))
        y0, y1 = max(top, row), min(top + height, row + tall)
        position = 0
        for j in range(first, last + 1):
            column = j * TILE
            wide = min(TILE, size[1] - column)
            tile = i * across + j
            part = content[position : ends[tile] - begin]
            position = ends[tile] - begin
            if zlib.crc32(part) != sums[tile]:
                raise DamagedError(f"block at row {row}, column {column}")
            pixels = scratch[: tall * wide * depth]
            blosc2.decompress2(part, dst=pixels, nthreads=1)
            x0, x1 = max(left, column), min(left + width, column + wide)
            shaped = pixels.reshape(tall, wide, channels) if channels else pixels.reshape(tall, wide)
            out[y0 - top : y1 - top, x0 - left : x1 - left] = shaped[y0 - row : y1 - row, x0 - column : x1 - column]
    return out


def _table(read: Callable[[int, int], bytes], *, size: tuple[int, int], tiles: int) -> tuple[int, NDArray[np.void]]:
    """(channels, one entry a tile) out of the head of a record."""
    content = read(0, _HEAD.size + tiles * _TABLE.itemsize)
    if len(content) == _HEAD.size + tiles * _TABLE.itemsize:
        magic, height, width, channels, side, crc32 = _HEAD.unpack_from(content)
        whole = zlib.crc32(memoryview(content)[_HEAD.size :], zlib.crc32(content[:_UNSIGNED])) == crc32
        if whole and (magic, height, width, side) == (MAGIC, *size, TILE):
            return int(channels), np.frombuffer(content, dtype=_TABLE, offset=_HEAD.size)
    raise DamagedError("head")
