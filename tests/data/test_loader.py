from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from mmseg_cli.data import loader, sampling, transforms
from mmseg_cli.data.labels import IGNORE
from mmseg_cli.data.store import open_store


@pytest.fixture(scope="module")
def splits(_prepared):
    return {
        (name, split): open_store(_prepared / "data" / "demo" / name).split(split)
        for name in ("cityscapes", "mapillary", "imagenet")
        for split in ("train", "val")
    }


def crops(splits, kind, *, seed=0, **changes):
    if kind == "imagenet":
        usual = {"batch": 3, "crop": (16, 24), "area": (0.3, 1.0), "flip": True, "colour": 0.3}
        return loader.ClassificationCrops(splits["imagenet", "train"], seed=seed, **(usual | changes))
    usual = {"batch": 3, "crop": (24, 48), "zoom": (0.5, 2.0), "flip": True, "colour": 0.3}
    return loader.SegmentationCrops(splits[kind, "train"], seed=seed, **(usual | changes))


def digests(batches):
    return [
        hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in batch)).hexdigest() for batch in batches
    ]


KINDS = ("cityscapes", "mapillary", "imagenet")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_for_any_number_of_workers_and_from_any_step(splits, kind):
    batches = crops(splits, kind)
    expected = digests(batches[step] for step in range(6))
    assert len(set(expected)) == 6
    for workers in (0, 1, 2):
        for start in (0, 4):
            got = digests(loader.steps_loader(batches, start=start, stop=6, workers=workers))
            assert got == expected[start:]


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_differ(splits, kind):
    assert digests([crops(splits, kind, seed=0)[0]]) != digests([crops(splits, kind, seed=1)[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_promised_form(splits, kind):
    image_BCHW, label = crops(splits, kind)[0]
    assert image_BCHW.dtype == torch.uint8
    assert image_BCHW.is_contiguous(memory_format=torch.channels_last)
    if kind == "imagenet":
        assert image_BCHW.shape == (3, 3, 16, 24)
        assert (label.shape, label.dtype) == ((3,), torch.int64)
    else:
        assert image_BCHW.shape == (3, 3, 24, 48)
        assert (label.shape, label.dtype) == ((3, 24, 48), torch.uint8)
        classes = 19 if kind == "cityscapes" else 5
        assert {value for value in label.unique().tolist() if value != IGNORE} <= set(range(classes))


def test_flips_keep_image_and_label_together(splits):
    """Without zoom and colour a crop is a piece of the image, mirrored or not; both halves must say the same."""
    split = splits["cityscapes", "train"]
    plain = crops(splits, "cityscapes", zoom=(1.0, 1.0), colour=0.0, flip=False)
    mirrored = crops(splits, "cityscapes", zoom=(1.0, 1.0), colour=0.0, flip=True)
    flips = 0
    for step in range(8):
        (plain_BCHW, plain_BHW), (image_BCHW, label_BHW) = plain[step], mirrored[step]
        for position in range(3):
            draw = sampling.draw(seed=0, step=step, position=position, batch=3, items=len(split))
            region = transforms.zoomed_region(
                split.size(draw.item), (24, 48), zoom=(1.0, 1.0), scale=draw.scale, top=draw.top, left=draw.left
            )
            image_HWC = split.image(draw.item, region.box)
            np.testing.assert_array_equal(plain_BCHW[position].permute(1, 2, 0).numpy(), image_HWC)
            np.testing.assert_array_equal(plain_BHW[position].numpy(), split.label(draw.item, region.box))
            axes = (-1,) if draw.flip else ()
            flips += draw.flip
            assert torch.equal(image_BCHW[position], plain_BCHW[position].flip(axes))
            assert torch.equal(label_BHW[position], plain_BHW[position].flip(axes))
    assert 0 < flips < 24


def test_an_image_smaller_than_the_crop_is_padded_with_ignore(splits):
    image_BCHW, label_BHW = crops(splits, "cityscapes", crop=(48, 96), zoom=(1.0, 1.0), flip=False, colour=0.0)[0]
    assert (label_BHW[:, 32:] == IGNORE).all()
    assert (label_BHW[:, :, 64:] == IGNORE).all()
    assert (label_BHW[:, :32, :64] != IGNORE).any()
    assert (image_BCHW[:, :, 32:].permute(0, 2, 3, 1) == torch.tensor(transforms.MEAN)).all()


def test_classification_keeps_picture_and_class_together(splits):
    split = splits["imagenet", "train"]
    _, targets = crops(splits, "imagenet", batch=12)[0]
    order = [sampling.draw(seed=0, step=0, position=p, batch=12, items=12).item for p in range(12)]
    assert targets.tolist() == [split.target(item) for item in order]
    assert sorted(targets.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_sees_every_item_once_and_in_order(splits, workers):
    split = splits["mapillary", "val"]
    seen = list(loader.items_loader(loader.WholeImages(split), workers=workers))
    assert len(seen) == len(split)
    for position, (image_1CHW, label_1HW) in enumerate(seen):
        np.testing.assert_array_equal(image_1CHW[0].permute(1, 2, 0).numpy(), split.image(position))
        np.testing.assert_array_equal(label_1HW[0].numpy(), split.label(position))
    pictures = loader.CentreCrops(splits["imagenet", "val"], batch=4, crop=(16, 16))
    batches = list(loader.items_loader(pictures, workers=workers))
    assert [len(targets) for _, targets in batches] == [4, 2]
    assert torch.cat([targets for _, targets in batches]).tolist() == [0, 0, 1, 1, 2, 2]
