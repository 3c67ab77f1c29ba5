"""From a stored image to a training or validation sample. Pure functions of arrays and numbers in [0, 1).

Shapes: H, W = height, width; C = 3 colours (RGB, uint8); K = classes. Images are resized by torch, whose kernel for
uint8 is Pillow's algorithm several times as fast; labels by Pillow's NEAREST, which takes pixel centres
("nearest-exact").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmseg_cli.data.labels import IGNORE

Image_HWC = NDArray[np.uint8]
Label_HW = NDArray[np.uint8]
MEAN = (124, 116, 104)  # ImageNet's mean colour, for what lies outside an image
LOG_ASPECT = math.log(4 / 3)  # Szegedy et al. 2014 (GoogLeNet): aspect ratios from 3/4 to 4/3
RESIZE_OVER_CROP = 256 / 224  # the usual ratio of ImageNet validation: short side to centre crop
GREY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601, as Pillow and torchvision have it
BLUR = (0.15, 1.3)  # pixels, smallest and largest sigma: what HMSA's code (Tao et al. 2020) draws from
_UNIT = 4096  # colour matrices are whole multiples of 1 / 4096
_WIDE = 8  # pixels in a row of the matrix product
_PIECE = 1 << 16  # pixels mapped at a time, which stay in a core's cache


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


def _zoomed_size(
    size: tuple[int, int], crop: tuple[int, int], *, zoom: tuple[float, float], scale: float
) -> tuple[int, int, int, int]:
    """Height and width of what fills a crop, and the size that it takes there.

    The zoom is log-uniform, so that halving and doubling are equally likely. An image smaller than the crop fills only
    a part of it.
    """
    factor = zoom[0] * (zoom[1] / zoom[0]) ** scale
    height, width = (max(1, round(crop[axis] / factor)) for axis in (0, 1))
    full_height, full_width = height <= size[0], width <= size[1]
    height, width = min(height, size[0]), min(width, size[1])
    out_height = crop[0] if full_height else min(crop[0], max(1, round(height * factor)))
    out_width = crop[1] if full_width else min(crop[1], max(1, round(width * factor)))
    return height, width, out_height, out_width


def zoomed_region(
    size: tuple[int, int], crop: tuple[int, int], *, zoom: tuple[float, float], scale: float, top: float, left: float
) -> Region:
    """The part of an image of `size` that fills a crop of `crop` pixels when the image is enlarged by a random factor.

    Args:
        size: (height, width) of the image.
        crop: (height, width) of the crop.
        zoom: smallest and largest factor.
        scale, top, left: numbers in [0, 1).
    """
    height, width, out_height, out_width = _zoomed_size(size, crop, zoom=zoom, scale=scale)
    return Region(
        top=int(top * (size[0] - height + 1)),
        left=int(left * (size[1] - width + 1)),
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
    )


def centred_region(
    size: tuple[int, int], crop: tuple[int, int], *, zoom: tuple[float, float], scale: float, centre: tuple[int, int]
) -> Region:
    """As `zoomed_region`, but about the pixel `centre` = (row, column): in its middle where the image allows."""
    height, width, out_height, out_width = _zoomed_size(size, crop, zoom=zoom, scale=scale)
    return Region(
        top=min(max(centre[0] - height // 2, 0), size[0] - height),
        left=min(max(centre[1] - width // 2, 0), size[1] - width),
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
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


def _as_tensor(array: NDArray[np.uint8]) -> Tensor:
    """The same memory as a tensor; a copy where numpy may not write to it, which torch would warn of."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def resize_image(image_HWC: Image_HWC, size: tuple[int, int]) -> Image_HWC:
    """Bilinear, with antialiasing where it shrinks, to `size` = (height, width)."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    # The new axis comes first: after a permutation torch would not see that the memory is channels-last, and take a
    # path that is four times as slow.
    image_1CHW = _as_tensor(image_HWC)[None].permute(0, 3, 1, 2)
    resized_1CHW = F.interpolate(image_1CHW, size=size, mode="bilinear", antialias=True)
    return np.asarray(resized_1CHW.permute(0, 2, 3, 1)[0].contiguous().numpy())


def resize_label(label_HW: Label_HW, size: tuple[int, int]) -> Label_HW:
    """Nearest pixel centre, to `size` = (height, width)."""
    if label_HW.shape == size:
        return label_HW
    return np.asarray(Image.fromarray(label_HW).resize((size[1], size[0]), Image.Resampling.NEAREST))


def put_image(out_HWC: Image_HWC, image_HWC: Image_HWC, *, flip: bool) -> None:
    """Write an image to the top left of a crop, whose rest gets the mean colour; `flip` then mirrors the crop."""
    height, width = image_HWC.shape[:2]
    if out_HWC.shape != image_HWC.shape:
        out_HWC[:] = MEAN
    if flip:  # by torch: ten times as fast as numpy's copy from negative strides
        place_HWC = out_HWC[:height, out_HWC.shape[1] - width :]
        torch.from_numpy(place_HWC).copy_(_as_tensor(image_HWC).flip(1))
    else:
        out_HWC[:height, :width] = image_HWC


def put_label(out_HW: Label_HW, label_HW: Label_HW, *, flip: bool) -> None:
    """As `put_image`, for a label: the rest of the crop is ignored."""
    height, width = label_HW.shape
    if out_HW.shape != label_HW.shape:
        out_HW[:] = IGNORE
    if flip:
        out_HW[:height, out_HW.shape[1] - width :] = label_HW[:, ::-1]
    else:
        out_HW[:height, :width] = label_HW


def jitter_colour(image_HWC: Image_HWC, *, strength: float, colour: tuple[float, float, float]) -> Image_HWC:
    """Random brightness, contrast and saturation (Howard 2013), each a factor in [1 - strength, 1 + strength].

    Together they are one affine map of a pixel's three numbers, which is taken as a matrix product of whole numbers in
    float32: all partial sums stay below 2^24, so that it is exact, and the same for any order of summation.
    """
    if strength == 0:
        return image_HWC
    brightness, contrast, saturation = (1 + strength * (2 * number - 1) for number in colour)
    height, width = image_HWC.shape[:2]
    sums_C = image_HWC.reshape(height, -1).sum(axis=0, dtype=np.uint32).reshape(width, 3).sum(axis=0)
    mean = brightness * float(sums_C @ GREY) / (height * width)  # of the grey picture: what contrast leaves as it is
    map_CC = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * GREY[:, None])
    shift = (1 - contrast) * mean + 0.5  # the half rounds
    pixels_N3 = _as_tensor(image_HWC).view(-1, 3)
    out_N3 = torch.empty_like(pixels_N3)
    even = len(pixels_N3) // _WIDE * _WIDE
    for part, wide in ((slice(0, even), _WIDE), (slice(even, None), len(pixels_N3) - even)):
        if wide:
            _map_colours(pixels_N3[part], out_N3[part], map_CC=map_CC, shift=shift, wide=wide)
    return np.asarray(out_N3.numpy().reshape(image_HWC.shape))


def _map_colours(pixels_N3: Tensor, out_N3: Tensor, *, map_CC: NDArray[np.float64], shift: float, wide: int) -> None:
    """out = pixels @ map + shift, cut to 0 .. 255 and then down to whole numbers; N is a multiple of `wide`.

    Several pixels make a row, since BLAS is slow for a matrix of three columns.
    """
    map_PP = torch.from_numpy(np.kron(np.eye(wide), np.round(map_CC * _UNIT) / _UNIT).astype(np.float32))
    shift_P = torch.full((3 * wide,), round(shift * _UNIT) / _UNIT)
    step = max(_PIECE // wide, 1) * wide
    for start in range(0, len(pixels_N3), step):
        piece_MP = pixels_N3[start : start + step].view(-1, 3 * wide)
        mapped_MP = torch.addmm(shift_P, piece_MP.float(), map_PP).clamp_(0, 255)
        # By way of int16: torch's own way from float to uint8 is four times as slow.
        out_N3[start : start + step].view(-1, 3 * wide).copy_(mapped_MP.short())


def blur(image_HWC: Image_HWC, *, probability: float, numbers: tuple[float, float]) -> Image_HWC:
    """Gaussian blur in a share of cases, with a standard deviation drawn from BLUR.

    Args:
        probability: the share.
        numbers: in [0, 1): whether, and how much.
    """
    if numbers[0] >= probability:
        return image_HWC
    return smooth(image_HWC, sigma=BLUR[0] + (BLUR[1] - BLUR[0]) * numbers[1])


def smooth(image_HWC: Image_HWC, *, sigma: float) -> Image_HWC:
    """Gaussian blur with a standard deviation of `sigma` pixels; the border is continued.

    In int16, with weights in whole 128ths, which suits a small sigma: several times as fast as Pillow's, whose time is
    the same for every sigma.
    """
    reach = math.ceil(3 * sigma)
    shares = np.exp(-0.5 * (np.arange(1, reach + 1) / sigma) ** 2)
    sides = np.round(128 * shares / (1 + 2 * shares.sum())).astype(int).tolist()
    middle = 128 - 2 * sum(sides)
    x_HWC = image_HWC.astype(np.int16)
    for axis in (0, 1):
        padded = np.pad(x_HWC, [(reach, reach) if axis == this else (0, 0) for this in range(3)], mode="edge")
        length = x_HWC.shape[axis]
        x_HWC *= middle
        for distance, weight in enumerate(sides, start=1):
            before, after = (reach + side for side in (-distance, distance))
            if axis == 0:
                x_HWC += weight * (padded[before : before + length] + padded[after : after + length])
            else:
                x_HWC += weight * (padded[:, before : before + length] + padded[:, after : after + length])
        x_HWC += 64  # a half: rounds
        x_HWC >>= 7
    return x_HWC.astype(np.uint8)


def torchvision_v2() -> Any:
    """torchvision.transforms.v2, which takes seconds to import and is needed by some recipes only."""
    from torchvision.transforms import v2

    return v2


@lru_cache(maxsize=4)
def _rand_augment(ops: int, magnitude: int) -> Any:
    v2 = torchvision_v2()
    return v2.RandAugment(ops, magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill=list(MEAN))


def rand_augment(image_HWC: Image_HWC, *, ops: int, magnitude: int, key: int) -> Image_HWC:
    """`ops` random changes of colour or shape of strength `magnitude` out of 30 (RandAugment, Cubuk et al. 2020).

    torchvision draws from torch's generator, which is seeded with `key` for the while and then put back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        return np.asarray(_rand_augment(ops, magnitude)(Image.fromarray(image_HWC)))


@lru_cache(maxsize=4)
def _mixing(kind: Literal["mixup", "cutmix"], alpha: float, classes: int) -> Any:
    v2 = torchvision_v2()
    return (v2.MixUp if kind == "mixup" else v2.CutMix)(alpha=alpha, num_classes=classes)


def mix_pair(
    image_2HWC: NDArray[np.uint8],
    target_2: tuple[int, int],
    *,
    kind: Literal["mixup", "cutmix"],
    alpha: float,
    classes: int,
    key: int,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mix two pictures with each other: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    Args:
        target_2: their classes.
        alpha: of the Beta(alpha, alpha) distribution of the share.
        classes: K.
        key: seeds torch's generator for the while.

    Returns:
        image_2HWC and target_2K, probabilities.
    """
    image_2CHW = torch.from_numpy(image_2HWC).permute(0, 3, 1, 2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        # Both take a batch and mix each picture with the one before it: in a batch of two, with the other.
        image_2CHW, target_2K = _mixing(kind, alpha, classes)(image_2CHW.float(), torch.tensor(target_2))
    image_2CHW = image_2CHW.round_().clamp_(0, 255).to(torch.uint8)
    return image_2CHW.permute(0, 2, 3, 1).contiguous().numpy(), target_2K.numpy()


def centre_crop(image_HWC: Image_HWC, crop: tuple[int, int]) -> Image_HWC:
    """ImageNet's validation view: resized so that the crop covers 7/8 of it, then the centre."""
    factor = max(crop[axis] * RESIZE_OVER_CROP / image_HWC.shape[axis] for axis in (0, 1))
    size = (max(crop[0], round(image_HWC.shape[0] * factor)), max(crop[1], round(image_HWC.shape[1] * factor)))
    image_HWC = resize_image(image_HWC, size)
    top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    return np.ascontiguousarray(image_HWC[top : top + crop[0], left : left + crop[1]])
