"""Any image file as RGB of 8 bits a channel, or one line that says why not. A file is judged by its content.

What becomes RGB:

- grey of 1 to 8 bits: three equal channels;
- grey of 16 bits: the upper 8 bits of each value (`value >> 8`), in either byte order; Pillow alone would clip at 255.
  Colours of 16 bits: the upper 8 as well (a PPM is rounded);
- a palette: its colours; of several frames or pages, the first;
- alpha: left out, the colours beneath it stay as they are in the file;
- CMYK and YCCK: Pillow's conversion without colour profiles; Adobe's inverted JPEGs are turned right.

Signed and 32-bit integers, floats and Lab have no one way to become RGB and are refused. So is what is damaged, never
shown half; of images beyond :data:`CHECKED_PIXELS` as far as Pillow and libjpeg-turbo see it.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mmseg_cli.data import verify
from mmseg_cli.data.archives.file import File, shown
from mmseg_cli.errors import MmsegError

MAX_PIXELS = 2**28  # 16384x16384, about 0.8 GB as RGB: more is taken for a decompression bomb
CHECKED_PIXELS = verify.MAX_PIXELS  # up to here the checks of `mmseg prepare` look at the file as well
MAX_BYTES = 2**31  # of a file; the largest picture takes 0.8 GB without compression
TODO = "replace it, or leave it out"

_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
_PLAIN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_ORIENTATION = 0x0112  # EXIF 2.32, section 4.6.4
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a named pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)
_pillow = threading.Lock()  # its limit on pixels is a global


def read_content(path: Path) -> bytes:
    """The bytes of a regular file. What could block, such as a named pipe, is never opened.

    Raises:
        MmsegError: it is missing, may not be read, is no file, or is too large for a picture.
    """
    where = shown(os.fspath(path))
    try:
        require_file(path)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            state = os.fstat(file.fileno())
            _require_kind(state, where)  # it may have been replaced in between
            if state.st_size > MAX_BYTES:
                what = f"has {state.st_size:,} bytes, too many for a picture (the limit is {MAX_BYTES:,})"
                raise MmsegError(where, what, TODO)
            return file.read(MAX_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error


def require_file(path: Path) -> None:
    """Raise MmsegError unless there is a regular file, or a link to one. It is not opened."""
    try:
        state = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    _require_kind(state, shown(os.fspath(path)))


def unreadable(path: Path, error: OSError) -> MmsegError:
    """The user's error behind a file or folder that cannot be opened."""
    where = shown(os.fspath(path))
    if error.errno == errno.ELOOP or (error.errno == errno.ENOENT and path.is_symlink()):
        return MmsegError(where, "is a link that leads nowhere", "repair or remove the link")
    if error.errno == errno.ENOENT:
        return MmsegError(where, "is not there", "check its name")
    todo = "check its permissions" if error.errno in (errno.EACCES, errno.EPERM) else TODO
    return MmsegError(where, f"cannot be read ({error.strerror or error})", todo)


def _require_kind(state: os.stat_result, where: str) -> None:
    for is_kind, what in _KINDS:
        if is_kind(state.st_mode):
            raise MmsegError(where, f"{what}, not an image file", TODO)


def read_picture(content: bytes, where: str, *, upright: bool = True) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        content: its bytes.
        where: what messages call it.
        upright: turn it as its EXIF orientation says; else the pixels stay as they lie in the file, where labels were
            drawn on them. (Pillow always turns TIFFs.)

    Returns:
        image_HWC: RGB.

    Raises:
        MmsegError: it is no image, is damaged, has more than MAX_PIXELS, or colours that do not become RGB in one way.
    """
    if not content:
        raise MmsegError(where, "is empty (0 bytes)", TODO)
    with _one_line(where):
        image = _decode(content, where)
    return as_rgb(image, where, upright=upright)


def as_rgb(image: Image.Image, where: str, *, upright: bool = True) -> NDArray[np.uint8]:
    """image_HWC of an image that Pillow has opened; arguments and errors as of :func:`read_picture`."""
    with _one_line(where):
        turn = _TURNS.get(_orientation(image)) if upright else None
        image_HWC = _rgb(image, where)
    return image_HWC if turn is None else np.array(Image.fromarray(image_HWC).transpose(turn))


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Pillow's readers raise nearly everything where bytes are damaged."""
    try:
        yield
    except (MmsegError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MmsegError(where, f"cannot be decoded ({shown(reason)})", TODO) from error


# ---------------------------------------------------------------------------------------------------------- decoding


def _decode(content: bytes, where: str) -> Image.Image:
    """The decoded image, whatever its mode."""
    try:
        with _without_limit():  # ours is below; opening reads the header only
            image = Image.open(io.BytesIO(content), formats=verify.FORMATS)
    except UnidentifiedImageError as error:
        raise _unknown(content, where) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        what = f"claims {width}x{height} pixels, the limit is {MAX_PIXELS // 10**6} million"
        raise MmsegError(where, what, "make it smaller")
    if width * height <= CHECKED_PIXELS:
        found = verify.check_image(File(where, where, len(content), 0), content)
        if isinstance(found, Image.Image):
            _require_whole(content, where)
            return found
        if found.kind != "wrong-mode":
            raise MmsegError(where, found.what, TODO)
    with _without_limit():
        image.load()
    _require_whole(content, where)
    return image


def _unknown(content: bytes, where: str) -> MmsegError:
    """The error for what Pillow does not take for an image: it may be one that is cut short in its header."""
    if content.startswith((b"\x89PNG", b"\xff\xd8")):
        found = verify.check_image(File(where, where, len(content), 0), content)
        if not isinstance(found, Image.Image):
            return MmsegError(where, found.what, TODO)
    return MmsegError(where, "is not an image that can be read here", f"give one of {', '.join(verify.FORMATS)}")


def _require_whole(content: bytes, where: str) -> None:
    """Refuse a JPEG that decoders fill with grey in silence."""
    damage = verify.jpeg_damage(content)
    if damage is not None:
        raise MmsegError(where, damage, TODO)


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow warns above 89 million pixels and refuses twice as many; the limit here is another one."""
    with _pillow:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> int:
    """As the EXIF data have it; 1 (as it lies) where they are damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # they are read by the same readers
        return 1


def _rgb(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """image_HWC of a decoded image."""
    mode = image.mode
    if mode in _GREY16 or (mode == "I" and image.format in ("PNG", "PPM")):  # both hold 0 to 65535 in an "I"
        return _grey(np.right_shift(np.asarray(image), 8).astype(np.uint8))
    if mode not in _PLAIN:
        kind = {"I": "32-bit or signed integers", "F": "floating point numbers"}.get(mode, f"Pillow's mode {mode}")
        raise MmsegError(
            where, f"holds {kind}, for which there is no one way to become colours", "convert it to 8-bit RGB"
        )
    if mode in ("1", "L"):
        return _grey(np.asarray(image.convert("L")))
    image.info.pop("transparency", None)  # Pillow warns of a conversion that drops it
    if mode in ("La", "RGBa", "PA"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _grey(grey_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey_HW[:, :, None], 3, axis=2)
