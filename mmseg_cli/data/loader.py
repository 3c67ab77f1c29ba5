"""Batches for training and validation: the store, the sampling and the transforms joined behind torch's DataLoader.

Shapes: B = batch, C = 3 colours, H, W = height, width. Images are uint8 and channels-last in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmseg_cli.data import sampling, transforms
from mmseg_cli.data.store import Split

Batch = tuple[Tensor, Tensor]  # (image_BCHW uint8, label_BHW uint8 or target_B int64)


@dataclass(frozen=True)
class SegmentationCrops(Dataset[Batch]):
    """Maps an optimizer step to its batch of random crops: (image_BCHW uint8, label_BHW uint8).

    Args:
        split: the training items.
        seed: of the run; it alone decides the data order.
        batch: global batch size.
        crop: (height, width).
        zoom: smallest and largest enlargement of the image.
        flip: whether half of the crops are mirrored.
        colour: strength of the colour jitter.
    """

    split: Split
    seed: int
    batch: int
    crop: tuple[int, int]
    zoom: tuple[float, float]
    flip: bool
    colour: float

    def __getitem__(self, step: int) -> Batch:
        images, labels = [], []
        for position in range(self.batch):
            draw = sampling.draw(seed=self.seed, step=step, position=position, batch=self.batch, items=len(self.split))
            size = self.split.size(draw.item)
            region = transforms.zoomed_region(
                size, self.crop, zoom=self.zoom, scale=draw.scale, top=draw.top, left=draw.left
            )
            out = (region.out_height, region.out_width)
            image_HWC = transforms.resize_image(self.split.image(draw.item, region.box), out)
            label_HW = transforms.resize_label(self.split.label(draw.item, region.box), out)
            image_HWC = transforms.jitter_colour(image_HWC, strength=self.colour, colour=draw.colour)
            image_HWC = transforms.place_image(image_HWC, self.crop)
            label_HW = transforms.place_label(label_HW, self.crop)
            if self.flip and draw.flip:
                image_HWC, label_HW = image_HWC[:, ::-1], label_HW[:, ::-1]
            images.append(image_HWC)
            labels.append(label_HW)
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(labels))


@dataclass(frozen=True)
class ClassificationCrops(Dataset[Batch]):
    """Maps an optimizer step to its batch of random-resized crops: (image_BCHW uint8, target_B int64).

    Arguments as for SegmentationCrops, but `area` is the smallest and largest share of the image's area.
    """

    split: Split
    seed: int
    batch: int
    crop: tuple[int, int]
    area: tuple[float, float]
    flip: bool
    colour: float

    def __getitem__(self, step: int) -> Batch:
        images, targets = [], []
        for position in range(self.batch):
            draw = sampling.draw(seed=self.seed, step=step, position=position, batch=self.batch, items=len(self.split))
            region = transforms.area_region(
                self.split.size(draw.item),
                self.crop,
                area=self.area,
                scale=draw.scale,
                aspect=draw.aspect,
                top=draw.top,
                left=draw.left,
            )
            image_HWC = transforms.resize_image(self.split.image(draw.item, region.box), self.crop)
            image_HWC = transforms.jitter_colour(image_HWC, strength=self.colour, colour=draw.colour)
            images.append(image_HWC[:, ::-1] if self.flip and draw.flip else image_HWC)
            targets.append(self.split.target(draw.item))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(targets)


@dataclass(frozen=True)
class WholeImages(Dataset[Batch]):
    """Validation images one by one at the stored size with labels at native size: (image_1CHW, label_1HW) uint8."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: int) -> Batch:
        image_HWC, label_HW = self.split.image(item), self.split.label(item)
        return torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None], torch.from_numpy(label_HW.copy())[None]


@dataclass(frozen=True)
class CentreCrops(Dataset[Batch]):
    """Validation pictures in batches, ImageNet's centre crop: (image_BCHW uint8, target_B int64)."""

    split: Split
    batch: int
    crop: tuple[int, int]

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch)

    def __getitem__(self, index: int) -> Batch:
        items = range(index * self.batch, min((index + 1) * self.batch, len(self.split)))
        images = [transforms.centre_crop(self.split.image(item), self.crop) for item in items]
        targets = [self.split.target(item) for item in items]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(targets)


def steps_loader(batches: Dataset[Batch], *, start: int, stop: int, workers: int) -> DataLoader[Batch]:
    """The batches of steps start .. stop - 1, in order; the same for any number of workers."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )


def items_loader(batches: WholeImages | CentreCrops, *, workers: int) -> DataLoader[Batch]:
    """All batches of a validation set once, in order."""
    return DataLoader(batches, batch_size=None, sampler=range(len(batches)), num_workers=workers)
