"""Checks on the content of single files, before anything is stored. What is wrong is returned as faults, not raised.

A file is judged by its content, never by its suffix. Pixels are taken as they lie in the file: an orientation in the
EXIF data is not applied, since labels are drawn on what lies there.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mmseg_cli.data.faults import Fault
from mmseg_cli.data.labels import UNKNOWN
from mmseg_cli.data.tree import File

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # no format that starts another program to be decoded
IMAGE_MODES = (
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
)  # what converts to RGB without loss of range
MAX_PIXELS = int(Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own limit, 89 million: more is a decompression bomb
TODO_COPY = "copy it from the archive again"
STRAY_BYTES = 8  # in a JPEG's data, that do no harm; a hole leaves more
NAMED_IDS = 8  # known ids that a message lists
NAMED_VALUES = 5  # unknown values that a message spells out

_MODES = {
    "1": "1-bit",
    "L": "8-bit grey",
    "LA": "grey with alpha",
    "P": "palette",
    "RGB": "RGB",
    "RGBA": "RGB with alpha",
    "I": "32-bit integer",
    "F": "32-bit float",
    "CMYK": "CMYK",
}
_PNG = b"\x89PNG\r\n\x1a\n"
_ADAM7 = (  # first row and column of each pass of an interlaced PNG, and the steps to the next ones
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
_INFLATED = 1 << 20  # bytes at once, so that a bomb costs no memory
_JPEG = b"\xff\xd8"
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # not a stuffed byte, not a restart
_JPEG_ALONE = (0x01, 0xD8)  # markers without a length
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of a frame


class Labels(Protocol):
    """How a dataset writes its labels; a `Listing` is one."""

    @property
    def table(self) -> NDArray[np.int16] | None:
        """256 entries from id to train id, IGNORE or UNKNOWN; None where labels are colours."""

    @property
    def label_modes(self) -> tuple[str, ...]:
        """Pillow's modes of a right file."""

    @property
    def colours(self) -> dict[int, int] | None:
        """The train id or IGNORE of each 0xRRGGBB; None where labels are ids."""


def check_image(file: File, content: bytes) -> Image.Image | Fault:
    """Decode an image wholly.

    Args:
        file: what a fault names.
        content: its bytes.

    Returns:
        The decoded image, in one of IMAGE_MODES, or what is wrong: `empty-file`, `damaged` or `wrong-mode`.
    """
    image = _decode(file, content)
    if isinstance(image, Fault):
        return image
    found = _depth(content) or image.mode
    if found not in IMAGE_MODES:
        return Fault(
            "wrong-mode", file.where, f"is {_mode(found)}, 8 bits a channel are expected", "convert it to 8-bit RGB"
        )
    if image.mode == "P":  # the colours count, and Pillow warns of a conversion that drops transparency
        image.info.pop("transparency", None)
    return image


def jpeg_damage(content: bytes) -> str | None:
    """What libjpeg-turbo warns of in a JPEG's data, which decoders fill with grey in silence.

    None where the data are right, in other files, and without simplejpeg. A few stray bytes are common and harmless.
    """
    if simplejpeg is None or not content.startswith(_JPEG):
        return None
    try:
        simplejpeg.decode_jpeg(content, strict=True)
    except ValueError as error:
        warning = str(error).strip()
        stray = re.search(r"(\d+) extraneous bytes", warning)
        harmless = stray is not None and int(stray[1]) <= STRAY_BYTES
        if not harmless and ("Corrupt JPEG data" in warning or "remature end" in warning):
            return f"is damaged ({warning})"
    return None


def check_label(file: File, content: bytes, listing: Labels) -> NDArray[np.uint8] | list[Fault]:
    """Decode a label file and map it to train ids.

    Args:
        file: what a fault names.
        content: its bytes.
        listing: the dataset's table of ids, or its colours.

    Returns:
        label_HW: train ids, 255 for ignore; or what is wrong: `empty-file`, `damaged`, `wrong-mode`, `unknown-label`.
    """
    image = _decode(file, content)
    if isinstance(image, Fault):
        return [image]
    coloured = listing.colours is not None
    found = _depth(content) or image.mode
    if found not in listing.label_modes:
        return [_wrong_label_mode(file, found, listing.label_modes, coloured=coloured)]
    if content.startswith(_JPEG):
        return [Fault("wrong-mode", file.where, "is a JPEG, which changes labels at every edge", "give a lossless PNG")]
    if listing.colours is not None:
        return _label_of_colours(file, image, listing.colours)
    if (bits := _narrow_grey(content)) is not None:
        what = f"is {bits}-bit grey, whose values readers stretch over 0 to 255"
        return [Fault("wrong-mode", file.where, what, "save the label ids as 8-bit grey")]
    if listing.table is None:
        raise ValueError("a dataset without table and colours has no label files")
    return _label_of_ids(file, image, listing.table)


def same_size(image: File, image_size: tuple[int, int], label: File, label_size: tuple[int, int]) -> Fault | None:
    """A fault unless image and label have one size, each (height, width) as the pixels lie in the file."""
    if image_size == label_size:
        return None
    sizes = f"is {label_size[1]}x{label_size[0]}, its image {image.where} is {image_size[1]}x{image_size[0]}"
    return Fault("size-mismatch", label.where, sizes, "replace the one that is wrong")


# ---------------------------------------------------------------------------------------------------------- decoding


def _decode(file: File, content: bytes) -> Image.Image | Fault:
    """The decoded image, or why it cannot be decoded."""
    if not content:
        return Fault("empty-file", file.where, "is empty (0 bytes)", TODO_COPY)
    if content.startswith(_PNG):
        what = _png_damage(content)
    elif content.startswith(_JPEG):
        what = _jpeg_damage(content)
    else:
        what = None
    if what is not None:
        return Fault("damaged", file.where, what, TODO_COPY)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        too_large = _too_large(image.width, image.height)
        if too_large is None:
            image.load()
            last_row_is_empty = image.crop((0, image.height - 1, image.width, image.height)).getbbox() is None
            # The rows of an interlaced one lie in seven passes: what lacks there is not at the bottom.
            suspect = content.startswith(_PNG) and (last_row_is_empty or content[28])
            if suspect and _png_is_short(content):
                return Fault("damaged", file.where, "is damaged: it holds fewer rows than its header says", TODO_COPY)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly everything where bytes are damaged
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else f"{error}".strip().split("\n")[0]
        return Fault("damaged", file.where, f"cannot be decoded ({reason or type(error).__name__})", TODO_COPY)
    return image if too_large is None else Fault("damaged", file.where, too_large, "make it smaller or remove it")


def _too_large(width: int, height: int) -> str | None:
    if width * height <= MAX_PIXELS:
        return None
    return f"claims {width}x{height} pixels, too large to be true (the limit is {MAX_PIXELS // 10**6} million)"


def _png_damage(content: bytes) -> str | None:
    """What is wrong with the chunks of a PNG (W3C PNG, section 5), or None. Bytes behind the last chunk do no harm."""
    position = len(_PNG)
    while True:
        kind = content[position + 4 : position + 8]
        if len(kind) < 4:
            return f"is cut short: it ends at byte {len(content)} without the chunk IEND"
        if not (kind.isascii() and kind.isalpha()):
            return f"is damaged: no chunk begins at byte {position}"
        name, end = kind.decode(), position + 8 + int.from_bytes(content[position : position + 4])
        if len(content) < end + 4:
            return f"is cut short in the chunk {name} at byte {position}"
        checksum = zlib.crc32(memoryview(content)[position + 4 : end])
        if checksum != int.from_bytes(content[end : end + 4]):
            return f"is damaged: the chunk {name} at byte {position} has a wrong checksum"
        if position == len(_PNG):
            if name != "IHDR" or end - position - 8 != 13:
                return f"is damaged: it begins with the chunk {name}, not with a header"
            sides = content[position + 8 : position + 16]
            too_large = _too_large(int.from_bytes(sides[:4]), int.from_bytes(sides[4:]))
            if too_large is not None:
                return too_large
        if name == "IEND":
            return None
        position = end + 4


def _png_is_short(content: bytes) -> bool:
    """Whether a PNG with right chunks lacks rows. Pillow fills them with zeros, which are a class in many datasets."""
    width, height = (int.from_bytes(content[place : place + 4]) for place in (16, 20))
    depth, colour_type, interlaced = content[24], content[25], content[28]
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour_type, 1)
    missing = 0
    for row, column, down, across in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        rows, columns = -((row - height) // down), -((column - width) // across)
        missing += max(rows, 0) * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    inflate = zlib.decompressobj()
    position = len(_PNG)
    while position < len(content) and missing > 0:
        end = position + 8 + int.from_bytes(content[position : position + 4])
        waiting = content[position + 8 : end] if content[position + 4 : position + 8] == b"IDAT" else b""
        while waiting and missing > 0:
            missing -= len(inflate.decompress(waiting, _INFLATED))
            waiting = inflate.unconsumed_tail
        position = end + 4
    return missing > 0 and missing > len(inflate.flush())


def _jpeg_damage(content: bytes) -> str | None:
    """What is wrong with the segments of a JPEG (ITU-T T.81, annex B), or None.

    Decoders fill what is missing with grey and say nothing, so the end marker is looked for. Behind it cameras put
    what they like.
    """
    position = len(_JPEG)
    while found := _JPEG_MARKER.search(content, position):
        marker, position = found[1][0], found.end()
        if marker == 0xD9:
            return None
        if marker in _JPEG_ALONE:
            continue
        length = int.from_bytes(content[position : position + 2])
        if marker in _JPEG_SIZES:
            too_large = _too_large(
                int.from_bytes(content[position + 5 : position + 7]),
                int.from_bytes(content[position + 3 : position + 5]),
            )
            if too_large is not None:
                return too_large
        position += length
    return f"is cut short: it ends at byte {len(content)} without an end marker"


# ------------------------------------------------------------------------------------------------------------- modes


def _depth(content: bytes) -> str | None:
    """A PNG of 16 bits a channel, which Pillow gives as 8 bits where there are colours."""
    return "I;16" if content.startswith(_PNG) and content[24] == 16 else None


def _narrow_grey(content: bytes) -> int | None:
    """The bits of a grey PNG of less than 8: Pillow gives 2-bit ids 0 to 3 as 0, 85, 170, 255."""
    grey = content.startswith(_PNG) and content[25] == 0
    return content[24] if grey and content[24] < 8 else None


def _mode(mode: str) -> str:
    known = "16-bit" if mode.startswith("I;16") else _MODES.get(mode)
    return f"{known} (mode {mode})" if known and known != mode else mode


def _wrong_label_mode(file: File, found: str, expected: Collection[str], *, coloured: bool) -> Fault:
    what = f"is {_mode(found)}, {' or '.join(_mode(mode) for mode in expected)} is expected"
    if coloured:
        todo = "give the mask of colours, or say in classes.yaml that masks hold ids"
    elif found in ("RGB", "RGBA", "CMYK"):
        todo = "give the file of label ids; the folder layout reads colours too, with masks: colour in classes.yaml"
    else:
        todo = "save the label ids as the grey values of an 8-bit PNG"
    return Fault("wrong-mode", file.where, what, todo)


# ------------------------------------------------------------------------------------------------------------ labels


def _label_of_ids(file: File, image: Image.Image, table: NDArray[np.int16]) -> NDArray[np.uint8] | list[Fault]:
    counts = image.histogram()
    unknown = [(str(value), counts[value]) for value in np.flatnonzero(table == UNKNOWN) if counts[value]]
    if unknown:
        ids = np.flatnonzero(table != UNKNOWN)
        known = ", ".join(map(str, ids[:NAMED_IDS])) + (", ..." if len(ids) > NAMED_IDS else "")
        todo = f"mend the file, or the dataset's description of its classes (known: {known})"
        return [_unknown(file, "value", unknown, todo)]
    label_HW: NDArray[np.uint8] = np.take(table.astype(np.uint8), np.asarray(image))
    return label_HW


def _label_of_colours(file: File, image: Image.Image, colours: dict[int, int]) -> NDArray[np.uint8] | list[Fault]:
    """Masks are made of long runs of one colour, so only the first pixel of each run is looked up."""
    pixels = np.frombuffer(image.convert("RGBA").tobytes(), dtype=">u4")  # 0xRRGGBBAA
    starts = np.concatenate(([0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1))
    lengths = np.diff(starts, append=pixels.size)
    runs = pixels[starts].astype(np.uint32)
    clear = (runs & 0xFF) != 0xFF
    if clear.any():
        what = f"has {int(lengths[clear].sum())} pixels that are not opaque"
        return [Fault("wrong-mode", file.where, what, "save the mask without transparency")]
    runs >>= 8
    known = np.array(sorted(colours), dtype=np.uint32)
    places = np.searchsorted(known, runs).clip(max=max(known.size - 1, 0))
    wrong = known[places] != runs if known.size else np.ones(runs.shape, dtype=bool)
    if wrong.any():
        values, which = np.unique(runs[wrong], return_inverse=True)
        counts = np.bincount(which, weights=lengths[wrong]).astype(np.int64)
        named = [
            (f"#{value:06x} ({value >> 16}, {value >> 8 & 255}, {value & 255})", int(count))
            for value, count in zip(values.tolist(), counts, strict=True)
        ]
        todo = "mend the mask, or say in classes.yaml what the colour stands for"
        return [_unknown(file, "colour", named, todo)]
    targets = np.array([colours[int(colour)] for colour in known], dtype=np.uint8)
    return np.repeat(targets[places], lengths).reshape(image.height, image.width)


def _unknown(file: File, kind: str, found: list[tuple[str, int]], todo: str) -> Fault:
    """The fault of a label file with values that are no label; the most frequent ones are named."""
    named = sorted(found, key=lambda one: -one[1])[:NAMED_VALUES]
    listed = ", ".join(f"{value} in {count} {'pixel' if count == 1 else 'pixels'}" for value, count in named)
    more = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
    what = f"label {kind} {listed}{more}: not in the dataset's table"
    return Fault("unknown-label", file.where, what, todo)
