"""Batches for training and validation: the store, the sampling and the transforms joined behind torch's DataLoader.

Shapes: B = batch, C = 3 colours, H, W = height, width, K = classes. Images are uint8 and channels-last in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmseg_cli import runtime
from mmseg_cli.data import sampling, transforms
from mmseg_cli.data.store import Split
from mmseg_cli.errors import MmsegError

Batch = tuple[Tensor, Tensor]  # (image_BCHW uint8, label_BHW uint8 or target_B int64 or target_BK float32)
_MIXING = 0x5DEECE66D  # tells the seed of a pair's mixing from the seed of its first picture's own changes


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
        blur: share of the crops that are blurred.
        class_uniform: share of the crops that are centred on a uniformly drawn class (Zhu et al. 2019).
        uniform_from: the step from which on there are none of these (HMSA's last phase); None for never.
        norm_batch: samples behind one batch-norm statistic; None is the whole batch.
        rank: which of `world` processes this is.
        world: how many processes share a global batch, see `sampling.positions`.

    Raises:
        MmsegError: the batch cannot be shared equally, or there is no class to centre a crop on.
    """

    split: Split
    seed: int
    batch: int
    crop: tuple[int, int]
    zoom: tuple[float, float]
    flip: bool
    colour: float
    blur: float
    class_uniform: float
    uniform_from: int | None = None
    norm_batch: int | None = None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        _own(self)
        if self.class_uniform and not len(self.split.classes_with_centroids()):
            raise MmsegError(self.split.folder, "no label names a class", "set augment.class_uniform: 0")

    def _draw(self, step: int, position: int) -> sampling.Draw:
        return sampling.draw(seed=self.seed, step=step, position=position, batch=self.batch, items=len(self.split))

    def _place(self, draw: sampling.Draw, step: int) -> tuple[int, transforms.Region]:
        """The item that a crop is taken from, and the part of it."""
        share, which, where = draw.focus
        if share < self.class_uniform and (self.uniform_from is None or step < self.uniform_from):
            classes = self.split.classes_with_centroids()
            places = self.split.centroids(int(classes[int(which * len(classes))]))
            item, row, column = places[int(where * len(places))].tolist()
            region = transforms.centred_region(
                self.split.size(item), self.crop, zoom=self.zoom, scale=draw.scale, centre=(row, column)
            )
            return item, region
        region = transforms.zoomed_region(
            self.split.size(draw.item), self.crop, zoom=self.zoom, scale=draw.scale, top=draw.top, left=draw.left
        )
        return draw.item, region

    def _image(self, item: int, region: transforms.Region, draw: sampling.Draw) -> NDArray[np.uint8]:
        """image_HWC of a region, as large as in the crop."""
        image_HWC = self.split.image(item, region.box)
        size = (region.out_height, region.out_width)
        grows = region.height * region.width < size[0] * size[1]
        if grows:  # colour and size may be changed in either order: the one with fewer pixels to recolour
            image_HWC = transforms.jitter_colour(image_HWC, strength=self.colour, colour=draw.colour)
        image_HWC = transforms.resize_image(image_HWC, size)
        if not grows:
            image_HWC = transforms.jitter_colour(image_HWC, strength=self.colour, colour=draw.colour)
        return transforms.blur(image_HWC, probability=self.blur, numbers=draw.blur)

    def items(self, step: int) -> list[int]:
        """The items that this process's part of a step is made of."""
        return [self._place(self._draw(step, position), step)[0] for position in _own(self)]

    def __getitem__(self, step: int) -> Batch:
        part = _own(self)
        image_BHWC = np.empty((len(part), *self.crop, 3), dtype=np.uint8)
        label_BHW = np.empty((len(part), *self.crop), dtype=np.uint8)
        for row, position in enumerate(part):
            draw = self._draw(step, position)
            item, region = self._place(draw, step)
            assert self.split.size(item) == self.split.label_size(item), "training labels have their image's size"
            flip = self.flip and draw.flip
            transforms.put_image(image_BHWC[row], self._image(item, region, draw), flip=flip)
            label_HW = self.split.label(item, region.box)
            label_HW = transforms.resize_label(label_HW, (region.out_height, region.out_width))
            transforms.put_label(label_BHW[row], label_HW, flip=flip)
        return torch.from_numpy(image_BHWC).permute(0, 3, 1, 2), torch.from_numpy(label_BHW)


@dataclass(frozen=True)
class ClassificationCrops(Dataset[Batch]):
    """Maps an optimizer step to its batch of random-resized crops: (image_BCHW uint8, target_B int64).

    Where pictures are mixed, the target is target_BK float32, probabilities of K classes: the pictures at positions 2k
    and 2k + 1 of the global batch are mixed with each other, whichever process has them, so that the number of
    processes changes nothing. The last picture of an odd batch is left as it is.

    Arguments as for SegmentationCrops, and
        area: smallest and largest share of the picture's area.
        rand_augment: (ops, magnitude) or None.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; a pair draws one of the two where both are wanted.
        classes: K.
    """

    split: Split
    seed: int
    batch: int
    crop: tuple[int, int]
    area: tuple[float, float]
    flip: bool
    colour: float
    rand_augment: tuple[int, int] | None
    mixup: float
    cutmix: float
    classes: int
    norm_batch: int | None = None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        _own(self)
        if self.rand_augment or self.mixup or self.cutmix:
            transforms.torchvision_v2()  # once, before the worker processes start

    def _draw(self, step: int, position: int) -> sampling.Draw:
        return sampling.draw(seed=self.seed, step=step, position=position, batch=self.batch, items=len(self.split))

    def _put(self, out_HWC: NDArray[np.uint8], draw: sampling.Draw) -> int:
        """Write one picture, not mixed yet, and return its class."""
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
        transforms.put_image(out_HWC, image_HWC, flip=self.flip and draw.flip)
        if self.rand_augment:
            ops, magnitude = self.rand_augment
            out_HWC[:] = transforms.rand_augment(out_HWC, ops=ops, magnitude=magnitude, key=draw.key)
        return self.split.target(draw.item)

    def items(self, step: int) -> list[int]:
        """The items that this process's part of a step is made of; of a mixed pair, each its own."""
        return [self._draw(step, position).item for position in _own(self)]

    def _plain(self, step: int, part: Sequence[int]) -> tuple[NDArray[np.uint8], list[int]]:
        """image_BHWC and the classes of some positions, not mixed."""
        image_BHWC = np.empty((len(part), *self.crop, 3), dtype=np.uint8)
        targets = [self._put(image_BHWC[row], self._draw(step, position)) for row, position in enumerate(part)]
        return image_BHWC, targets

    def _mix(
        self, step: int, position: int, image_2HWC: NDArray[np.uint8], targets: list[int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The pair that begins at an even position, mixed."""
        draw = self._draw(step, position)
        mixup = bool(self.mixup) and (not self.cutmix or draw.mix < 0.5)
        return transforms.mix_pair(
            image_2HWC,
            (targets[0], targets[1]),
            kind="mixup" if mixup else "cutmix",
            alpha=self.mixup if mixup else self.cutmix,
            classes=self.classes,
            # Not the seed of the picture's own changes, on which the share would depend otherwise.
            key=draw.key ^ _MIXING,
        )

    def __getitem__(self, step: int) -> Batch:
        own = _own(self)
        if not (self.mixup or self.cutmix):
            image_BHWC, targets = self._plain(step, own)
            return torch.from_numpy(image_BHWC).permute(0, 3, 1, 2), torch.tensor(targets)
        pairs = sorted({position - position % 2 for position in own})  # by their first position
        part = [position for first in pairs for position in (first, first + 1) if position < self.batch]
        image_BHWC, targets = self._plain(step, part)
        target_BK = np.eye(self.classes, dtype=np.float32)[targets]
        for row in range(0, len(part) - 1, 2):
            pair = slice(row, row + 2)
            image_BHWC[pair], target_BK[pair] = self._mix(step, part[row], image_BHWC[pair], targets[pair])
        rows = [part.index(position) for position in own]
        return torch.from_numpy(image_BHWC[rows]).permute(0, 3, 1, 2), torch.from_numpy(target_BK[rows])


def _own(crops: SegmentationCrops | ClassificationCrops) -> list[int]:
    """The positions of this process."""
    norm_batch = crops.batch if crops.norm_batch is None else crops.norm_batch
    return sampling.positions(batch=crops.batch, norm_batch=norm_batch, rank=crops.rank, world=crops.world)


@dataclass(frozen=True)
class WholeImages(Dataset[Batch]):
    """Validation images at the stored size with labels at native size: (image_BCHW, label_BHW) uint8.

    Neighbours of equal size come together, `batch` at most; the others one by one. How they are grouped depends on
    nothing else, so that several processes, which have every world-th batch, predict what a single one does.
    """

    split: Split
    batch: int = 1

    @cached_property
    def _groups(self) -> list[range]:
        groups: list[range] = []
        for item in range(len(self.split)):
            last = groups[-1] if groups else range(0)
            if 0 < len(last) < self.batch and self._sizes(last.start) == self._sizes(item):
                groups[-1] = range(last.start, item + 1)
            else:
                groups.append(range(item, item + 1))
        return groups

    def _sizes(self, item: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.split.size(item), self.split.label_size(item)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Batch:
        group = self._groups[index]
        image_BHWC = np.stack([self.split.image(item) for item in group])
        label_BHW = np.stack([self.split.label(item) for item in group])
        return torch.from_numpy(image_BHWC).permute(0, 3, 1, 2), torch.from_numpy(label_BHW)


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


def steps_loader(
    batches: Dataset[Batch], *, start: int, stop: int, workers: int, pinned: bool = False
) -> DataLoader[Batch]:
    """The batches of steps start .. stop - 1, in order; the same for any number of workers.

    Args:
        pinned: whether they lie in memory that a GPU reads by itself, while the host goes on.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
        worker_init_fn=runtime.serve_parent,
    )


def items_loader(
    batches: WholeImages | CentreCrops, *, workers: int, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """All batches of a validation set once, in order; each of `world` processes has every world-th, none is padded."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(rank, len(batches), world),
        num_workers=workers,
        worker_init_fn=runtime.serve_parent,
    )
