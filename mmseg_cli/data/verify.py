"""Checks on single files, each a MmsegError that names the file. Used while a dataset is read, before it is stored."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import UNKNOWN
from mmseg_cli.errors import MmsegError


def read_bytes(path: Path) -> bytes:
    """The content of a file of the dataset.

    Raises:
        MmsegError: it cannot be read, as where a link leads nowhere.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise MmsegError(path, f"cannot be read ({error.strerror or error})", "mend the file") from error


def open_image(path: Path) -> Image.Image:
    """Decode an image file wholly, so that a truncated or damaged one is found now.

    Raises:
        MmsegError: the file is not an image, is cut short or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise MmsegError(path, f"cannot be decoded ({error})", "copy it from the archive again") from error
    return image


def read_label(path: Path, table: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Read a label file of ids (grey or palette PNG) and map it by `table`.

    Returns:
        label_HW: train ids, 255 for ignore.

    Raises:
        MmsegError: a damaged file, a mode that holds no ids, or an id that `table` does not know.
    """
    image = open_image(path)
    if image.mode not in ("L", "P"):
        raise MmsegError(path, f"is a {image.mode} image, not one of ids", "give the file of label ids")
    ids_HW = np.asarray(image)
    label_HW = table[ids_HW]
    unknown = np.unique(ids_HW[label_HW == UNKNOWN])
    if unknown.size:
        values = ", ".join(str(value) for value in unknown[:5])
        pixels = int((label_HW == UNKNOWN).sum())
        raise MmsegError(path, f"label value {values} is not in the dataset's table ({pixels} pixels)", "mend the file")
    mapped_HW: NDArray[np.uint8] = label_HW.astype(np.uint8)
    return mapped_HW


def require_same_size(image: Path, image_size: tuple[int, int], label: Path, label_size: tuple[int, int]) -> None:
    """Raise MmsegError unless image and label have one size, each (height, width)."""
    if image_size != label_size:
        sizes = f"{label_size[1]}x{label_size[0]}, its image {image.name} is {image_size[1]}x{image_size[0]}"
        raise MmsegError(label, f"is {sizes}", "replace the one that is wrong")
