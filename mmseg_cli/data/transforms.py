"""From a stored image to a training or validation sample. Pure functions of arrays and numbers in [0, 1).

Shapes: H, W = height, width; C = 3 colours (RGB, uint8). Labels are resized by Pillow's NEAREST, which takes pixel
centres ("nearest-exact").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import IGNORE

Image_HWC = NDArray[np.uint8]
Label_HW = NDArray[np.uint8]
MEAN = (124, 116, 104)  # ImageNet's mean colour, for what lies outside an image
LOG_ASPECT = math.log(4 / 3)  # Szegedy et al. 2014 (GoogLeNet): aspect ratios from 3/4 to 4/3
RESIZE_OVER_CROP = 256 / 224  # the usual ratio of ImageNet validation: short side to centre crop


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image in whole pixels, inside it, and the size that it takes in the crop (at its top left)."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, height, width), as the store reads it."""
        return self.top, self.left, self.height, self.width


def zoomed_region(
    size: tuple[int, int], crop: tuple[int, int], *, zoom: tuple[float, float], scale: float, top: float, left: float
) -> Region:
    """The part of an image of `size` that fills a crop of `crop` pixels when the image is enlarged by a random factor.

    The factor is log-uniform in `zoom`, so that halving and doubling are equally likely. An image smaller than the
    crop fills only a part of it.

    Args:
        size: (height, width) of the image.
        crop: (height, width) of the crop.
        zoom: smallest and largest factor.
        scale, top, left: numbers in [0, 1).
    """
    factor = zoom[0] * (zoom[1] / zoom[0]) ** scale
    height, width = (max(1, round(crop[axis] / factor)) for axis in (0, 1))
    full_height, full_width = height <= size[0], width <= size[1]
    height, width = min(height, size[0]), min(width, size[1])
    return Region(
        top=int(top * (size[0] - height + 1)),
        left=int(left * (size[1] - width + 1)),
        height=height,
        width=width,
        out_height=crop[0] if full_height else min(crop[0], max(1, round(height * factor))),
        out_width=crop[1] if full_width else min(crop[1], max(1, round(width * factor))),
    )


def area_region(
    size: tuple[int, int],
    crop: tuple[int, int],
    *,
    area: tuple[float, float],
    scale: float,
    aspect: float,
    top: float,
    left: float,
) -> Region:
    """The random-resized-crop of ImageNet training: a share of the area in `area`, an aspect ratio from 3/4 to 4/3."""
    share = (area[0] + (area[1] - area[0]) * scale) * size[0] * size[1]
    ratio = math.exp(LOG_ASPECT * (2 * aspect - 1))
    height = min(size[0], max(1, round(math.sqrt(share / ratio))))
    width = min(size[1], max(1, round(math.sqrt(share * ratio))))
    return Region(
        top=int(top * (size[0] - height + 1)),
        left=int(left * (size[1] - width + 1)),
        height=height,
        width=width,
        out_height=crop[0],
        out_width=crop[1],
    )


def resize_image(image_HWC: Image_HWC, size: tuple[int, int]) -> Image_HWC:
    """Bilinear, with antialiasing where it shrinks, to `size` = (height, width)."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_label(label_HW: Label_HW, size: tuple[int, int]) -> Label_HW:
    """Nearest pixel centre, to `size` = (height, width)."""
    if label_HW.shape == size:
        return label_HW
    return np.asarray(Image.fromarray(label_HW).resize((size[1], size[0]), Image.Resampling.NEAREST))


def place_image(image_HWC: Image_HWC, crop: tuple[int, int]) -> Image_HWC:
    """The image at the top left of a crop; the rest has the mean colour."""
    if image_HWC.shape[:2] == crop:
        return image_HWC
    out_HWC = np.empty((*crop, 3), dtype=np.uint8)
    out_HWC[:] = MEAN
    out_HWC[: image_HWC.shape[0], : image_HWC.shape[1]] = image_HWC
    return out_HWC


def place_label(label_HW: Label_HW, crop: tuple[int, int]) -> Label_HW:
    """The label at the top left of a crop; the rest is ignored."""
    if label_HW.shape == crop:
        return label_HW
    out_HW = np.full(crop, IGNORE, dtype=np.uint8)
    out_HW[: label_HW.shape[0], : label_HW.shape[1]] = label_HW
    return out_HW


def jitter_colour(image_HWC: Image_HWC, *, strength: float, colour: tuple[float, float, float]) -> Image_HWC:
    """Random brightness, contrast and saturation (Howard 2013), each a factor in [1 - strength, 1 + strength]."""
    if strength == 0:
        return image_HWC
    brightness, contrast, saturation = (1 + strength * (2 * number - 1) for number in colour)
    x_HWC = image_HWC.astype(np.float32) * brightness
    grey_HW1 = x_HWC @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
    x_HWC *= saturation * contrast
    x_HWC += grey_HW1 * ((1 - saturation) * contrast) + float(grey_HW1.mean()) * (1 - contrast)
    np.clip(x_HWC, 0, 255, out=x_HWC)
    return x_HWC.astype(np.uint8)


def centre_crop(image_HWC: Image_HWC, crop: tuple[int, int]) -> Image_HWC:
    """ImageNet's validation view: resized so that the crop covers 7/8 of it, then the centre."""
    factor = max(crop[axis] * RESIZE_OVER_CROP / image_HWC.shape[axis] for axis in (0, 1))
    size = (max(crop[0], round(image_HWC.shape[0] * factor)), max(crop[1], round(image_HWC.shape[1] * factor)))
    image_HWC = resize_image(image_HWC, size)
    top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    return np.ascontiguousarray(image_HWC[top : top + crop[0], left : left + crop[1]])
