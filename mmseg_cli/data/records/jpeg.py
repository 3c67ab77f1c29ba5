"""JPEG records: only what a crop needs is decoded, to the same pixels as Pillow's decode of the whole.

A baseline JPEG (ITU-T T.81) is a run of blocks from the top left to the bottom right. The rows below a crop are left
out by a smaller height in the frame's head. Restart markers cut the run into intervals that can be decoded by
themselves: where these fit into rows of blocks, a file of only those that the crop touches is made and decoded. Where
colour is subsampled its enlargement looks at the neighbour, so one more block is decoded on each such side. Any other
JPEG (progressive, arithmetic, CMYK, ...) is decoded whole.

Decoding is simplejpeg's where that is installed, else Pillow's; both are libjpeg-turbo and give the same pixels.

Shapes: H, W = height, width; C = 3 colours.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_COLOURS = ("YCbCr", "Gray", "RGB")  # simplejpeg's names; from CMYK it makes other pixels than Pillow

START = b"\xff\xd8"  # of every JPEG
INTERVAL = 16  # blocks between the restart markers that `encode` aims at: 128 pixels

_END = b"\xff\xd9"
_SIDE = 8  # pixels of one component's block
_BASELINE = (0xC0, 0xC1)
_SCAN = 0xDA
_RESTART_INTERVAL = 0xDD
_FIRST_RESTART = 0xD0
_RESTARTS = [bytes([0xFF, _FIRST_RESTART + number]) for number in range(8)]
# Segments that say nothing about the pixels: EXIF and the like, comments. APP0 and APP14 tell the colour space.
_NEEDLESS = frozenset([*range(0xE1, 0xEE), 0xEF, 0xFE])

Span = tuple[int, int]  # first, and one behind the last


def decode(content: bytes, *, rows: Span | None = None, columns: Span | None = None) -> NDArray[np.uint8]:
    """The image_HWC, RGB, or only the given rows and columns of it.

    Raises:
        OSError: it is no JPEG that Pillow can decode.
    """
    layout = None if rows is None and columns is None else _layout(content)
    if layout is None:
        image_HWC, top, left = _pixels(content), 0, 0
    else:
        down, across = rows or (0, layout.height), columns or (0, layout.width)
        part, top, left = _part(content, layout, rows=down, columns=across)
        image_HWC = _pixels(part, strict=False)  # the data of the rows below are a warning, not a fault
    y0, y1 = rows or (0, image_HWC.shape[0])
    x0, x1 = columns or (0, image_HWC.shape[1])
    return image_HWC[y0 - top : y1 - top, x0 - left : x1 - left]


def encode(image: Image.Image, *, quality: int) -> bytes:
    """An RGB image as a JPEG with full colour resolution, in restart intervals that a crop can be cut out by."""
    across = -(-image.width // _SIDE)
    interval = max(count for count in range(1, INTERVAL + 1) if across % count == 0)
    if interval < INTERVAL // 2:  # such short ones would cost more bytes than they save time
        interval = across
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0, restart_marker_blocks=interval)
    return buffer.getvalue()


def _pixels(content: bytes, *, strict: bool = True) -> NDArray[np.uint8]:
    """The image_HWC of a whole JPEG."""
    if simplejpeg is not None:
        try:
            if simplejpeg.decode_jpeg_header(content, strict=strict)[2] in _COLOURS:
                return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB", strict=strict))
        except ValueError:
            pass  # a warning, or damage: Pillow decides
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


@dataclass(frozen=True)
class _Layout:
    """What the head of a baseline JPEG says.

    Attributes:
        height, width: pixels.
        tall, wide: pixels of a block of all components together ("minimum coded unit").
        interval: blocks between restart markers; 0 without any.
        head: all segments before the data, those without meaning for the pixels left out.
        size_at: where the head holds the height and the width.
        data_at: where the compressed data begin in the file.
    """

    height: int
    width: int
    tall: int
    wide: int
    interval: int
    head: bytes
    size_at: int
    data_at: int


def _layout(content: bytes) -> _Layout | None:
    """The layout, or None where the file is to be decoded whole."""
    head = bytearray(START)
    frame: tuple[Any, ...] | None = None
    interval = size_at = 0
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        kind, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position : position + 2 + length]
        position += 2 + length
        if kind in _BASELINE and frame is None:
            frame = struct.unpack_from(">BHHB", segment, 4)
            factors = [(value >> 4, value & 15) for value in segment[11::3]]
            size_at = len(head) + 5
        elif kind == 0xFF or (0xC0 <= kind <= 0xCF and kind != 0xC4):  # filling, or another kind of frame
            return None
        elif kind == _RESTART_INTERVAL:
            interval = int.from_bytes(segment[4:6], "big")
        if kind not in _NEEDLESS:
            head += segment
        if kind == _SCAN:
            break
    else:
        return None
    if frame is None or content.rfind(_END) < position:  # no end: cut short
        return None
    bits, height, width, components = frame
    if bits != 8 or not height or not width or components not in (1, 3) or segment[4] != components:
        return None
    wide, tall = (max(axis) for axis in zip(*factors, strict=True)) if components == 3 else (1, 1)
    return _Layout(height, width, _SIDE * tall, _SIDE * wide, interval, bytes(head), size_at, position)


def _blocks(span: Span, block: int, pixels: int) -> Span:
    """The blocks that a span of pixels needs, with the neighbours that subsampled colour looks at."""
    more = 1 if block > _SIDE else 0
    return max(0, span[0] // block - more), min(-(-pixels // block), -(-span[1] // block) + more)


def _part(content: bytes, layout: _Layout, *, rows: Span, columns: Span) -> tuple[bytes, int, int]:
    """A JPEG of what the rows and columns need, and the row and column where it begins."""
    across = -(-layout.width // layout.wide)  # blocks in a row
    y0, y1 = _blocks(rows, layout.tall, layout.height)
    x0, x1 = 0, across
    bounds = _intervals(content, layout) if layout.interval else None
    chosen: list[int] = []
    if bounds is not None and layout.interval % across == 0:
        each = layout.interval // across  # rows of blocks in an interval
        y0, last = y0 // each, min(-(-y1 // each), len(bounds) - 1)
        chosen = list(range(y0, last))
        y0 *= each
    elif bounds is not None and across % layout.interval == 0:
        each = across // layout.interval  # intervals in a row of blocks
        x0, x1 = _blocks(columns, layout.wide, layout.width)
        x0, x1 = x0 // layout.interval, -(-x1 // layout.interval)
        chosen = [row * each + column for row in range(y0, y1) for column in range(x0, x1)]
        x0, x1 = x0 * layout.interval, x1 * layout.interval
    if bounds is None or not chosen:
        y0, x0, x1 = 0, 0, across
        data = content[layout.data_at :]
    else:
        pieces = [content[bounds[at] : bounds[at + 1] - 2] for at in chosen]
        marked = [piece + _RESTARTS[at % 8] for at, piece in enumerate(pieces[:-1])]
        data = b"".join([*marked, pieces[-1], _END])
    top, left = y0 * layout.tall, x0 * layout.wide
    height = min(layout.height, y1 * layout.tall) - top
    width = min(layout.width, x1 * layout.wide) - left
    head = bytearray(layout.head)
    struct.pack_into(">HH", head, layout.size_at, height, width)
    return bytes(head) + data, top, left


def _intervals(content: bytes, layout: _Layout) -> list[int] | None:
    """Where each restart interval's data begin, and two bytes behind the end of the last one's.

    None where the markers are not as they must be; the file is then decoded whole.
    """
    total = -(-layout.height // layout.tall) * -(-layout.width // layout.wide)
    count = -(-total // layout.interval)
    end = content.rfind(_END)
    data = np.frombuffer(content, np.uint8, count=end - layout.data_at, offset=layout.data_at)
    escapes = np.flatnonzero(data[:-1] == 0xFF)
    kinds = data[escapes + 1] - np.uint8(_FIRST_RESTART)  # others wrap around to large numbers
    places, kinds = escapes[kinds < 8], kinds[kinds < 8]
    if len(places) != count - 1 or not np.array_equal(kinds, np.arange(count - 1) % 8):
        return None
    return [layout.data_at, *(places + (layout.data_at + 2)).tolist(), end + 2]
