from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmseg_cli.data import loader, sampling, transforms
from mmseg_cli.data.labels import IGNORE
from mmseg_cli.data.store import Split, SplitWriter, label_summary, open_store, pack
from mmseg_cli.errors import MmsegError


@pytest.fixture(scope="module")
def splits(_prepared):
    return {
        (name, split): open_store(_prepared / "data" / "demo" / name).split(split)
        for name in ("cityscapes", "mapillary", "imagenet")
        for split in ("train", "val")
    }


PLAIN = {"flip": False, "colour": 0.0}
STRONG = {
    "cityscapes": {"blur": 0.5, "class_uniform": 0.5},
    "mapillary": {"blur": 1.0, "class_uniform": 1.0},
    "imagenet": {"rand_augment": (2, 9), "mixup": 0.2, "cutmix": 1.0},
}


def crops(splits, kind, *, seed=0, **changes):
    if kind == "imagenet":
        usual = {"batch": 4, "crop": (16, 24), "area": (0.3, 1.0), "flip": True, "colour": 0.3}
        usual |= {"rand_augment": None, "mixup": 0.0, "cutmix": 0.0, "classes": 3}
        return loader.ClassificationCrops(splits[kind, "train"], seed=seed, **(usual | changes))
    usual = {"batch": 4, "crop": (24, 48), "zoom": (0.5, 2.0), "flip": True, "colour": 0.3}
    usual |= {"blur": 0.0, "class_uniform": 0.0}
    return loader.SegmentationCrops(splits[kind, "train"], seed=seed, **(usual | changes))


def digests(batches):
    return [
        hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in batch)).hexdigest() for batch in batches
    ]


KINDS = ("cityscapes", "mapillary", "imagenet")
RECIPES = [(kind, changes) for kind in KINDS for changes in ({}, STRONG[kind])]
recipes = pytest.mark.parametrize(("kind", "changes"), RECIPES, ids=lambda value: value if value in KINDS else "")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@recipes
def test_batches_are_the_same_for_any_number_of_workers_and_from_any_step(splits, kind, changes):
    batches = crops(splits, kind, **changes)
    before = torch.get_rng_state()
    expected = digests(batches[step] for step in range(6))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(expected)) == 6
    for workers, start in ((0, 4), (1, 4), (2, 0), (2, 3), (4, 0)):
        torch.manual_seed(workers)  # the global generator has no say
        got = digests(loader.steps_loader(batches, start=start, stop=6, workers=workers))
        assert got == expected[start:]


def joined(parts):
    """The batches of several processes, put together step by step."""
    return [tuple(torch.cat(pieces) for pieces in zip(*together, strict=True)) for together in zip(*parts, strict=True)]


@recipes
@pytest.mark.parametrize(("batch", "world"), [(4, 2), (6, 2), (4, 4), (3, 3), (6, 6), (5, 1)])
def test_batches_are_the_same_for_any_number_of_processes(splits, kind, changes, batch, world):
    """Batch 6 for 2 processes, and 3 for 3, part the pictures of a pair from each other."""
    batches = crops(splits, kind, batch=batch, **changes)
    expected = digests(batches[step] for step in range(3))
    parts = [replace(batches, rank=rank, world=world) for rank in range(world)]
    workers = 1 if (batch, world) == (6, 2) else 0
    loaded = [list(loader.steps_loader(part, start=1, stop=3, workers=workers)) for part in parts]
    assert {len(image_BCHW) for part in loaded for image_BCHW, _ in part} == {batch // world}
    assert digests(joined(loaded)) == expected[1:]


@recipes
def test_parts_of_a_batch_are_the_same_norm_batches_for_any_number_of_processes(splits, kind, changes):
    batches = crops(splits, kind, batch=6, norm_batch=3, **changes)
    whole = crops(splits, kind, batch=6, **changes)[2]
    assert digests([batches[2]]) == digests([whole])
    parts = [replace(batches, rank=rank, world=3)[2] for rank in range(3)]
    for turn in range(2):  # what the three work on at the same time is one norm batch
        for index in range(2):
            now = torch.cat([part[index][turn : turn + 1] for part in parts])
            assert torch.equal(now, whole[index][3 * turn : 3 * turn + 3])


def test_the_last_steps_sample_uniformly(splits):
    focused = crops(splits, "cityscapes", class_uniform=1.0, uniform_from=2)
    plain = crops(splits, "cityscapes", class_uniform=0.0)
    assert digests([focused[2], focused[3]]) == digests([plain[2], plain[3]])
    assert digests([focused[1]]) != digests([plain[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_items_of_a_step_are_named(splits, kind):
    """What a numerical stop reports is what was seen."""
    batches = crops(splits, kind, batch=4, norm_batch=2)
    expected = [
        sampling.draw(seed=batches.seed, step=3, position=p, batch=4, items=len(batches.split)).item for p in range(4)
    ]
    assert batches.items(3) == expected
    assert replace(batches, rank=1, world=2).items(3) == expected[1::2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_processes_cannot_share_is_refused(splits, kind):
    with pytest.raises(MmsegError, match="norm_batch: 4 samples cannot be shared equally by 3 processes"):
        crops(splits, kind, world=3)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_differ(splits, kind):
    assert digests([crops(splits, kind, seed=0)[0]]) != digests([crops(splits, kind, seed=1)[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_promised_form(splits, kind):
    image_BCHW, label = crops(splits, kind)[0]
    assert image_BCHW.dtype == torch.uint8
    assert image_BCHW.is_contiguous(memory_format=torch.channels_last)
    if kind == "imagenet":
        assert image_BCHW.shape == (4, 3, 16, 24)
        assert (label.shape, label.dtype) == ((4,), torch.int64)
    else:
        assert image_BCHW.shape == (4, 3, 24, 48)
        assert (label.shape, label.dtype) == ((4, 24, 48), torch.uint8)
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
        for position in range(4):
            draw = sampling.draw(seed=0, step=step, position=position, batch=4, items=len(split))
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
    assert 0 < flips < 32


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


# ---------------------------------------------------------------------------------------------- class-uniform crops

RARE, COMMON, ABSENT = 2, 0, 1  # of three classes


def write_split(folder, *, squares, size=(64, 96), sides=8):
    """Labels of class COMMON with a square of class RARE in some of them; pictures show the item's number."""
    writer = SplitWriter(folder, "train")
    for item, square in enumerate(squares):
        label_HW = np.full(size, COMMON, np.uint8)
        if square is not None:
            label_HW[square[0] : square[0] + sides, square[1] : square[1] + sides] = RARE
        class_pixels, centroids = label_summary(label_HW)
        writer.append(
            name=f"{item}",
            sha256=hashlib.sha256(bytes([item])).digest(),
            image=pack(np.full((*size, 3), item, np.uint8)),
            image_size=size,
            label=pack(label_HW),
            label_size=size,
            class_pixels=class_pixels,
            centroids=centroids,
        )
    writer.close(classes=3)
    return Split(folder, "train")


def shares(split, *, class_uniform, steps=40, **changes):
    """Of all crops, the share that shows the rare class; and the items that those crops were taken from."""
    usual = {"batch": 8, "crop": (16, 16), "zoom": (0.5, 2.0), "flip": True, "colour": 0.0, "blur": 0.0}
    batches = loader.SegmentationCrops(split, seed=0, class_uniform=class_uniform, **(usual | changes))
    found, items = 0, []
    for step in range(steps):
        image_BCHW, label_BHW = batches[step]
        rare_B = (label_BHW == RARE).flatten(1).any(dim=1)
        found += int(rare_B.sum())
        items += image_BCHW[rare_B].flatten(1)[:, 0].tolist()
        assert (label_BHW != IGNORE).all()  # a crop at the border is moved, not cut
    return found / (steps * 8), items


def test_class_uniform_crops_show_a_rare_class_in_half_of_them(tmp_path):
    """A square of 8 in one of ten images, in a corner: a plain crop hardly ever meets it."""
    split = write_split(tmp_path, squares=[*[None] * 9, (56, 88)])
    assert split.classes_with_centroids().tolist() == [COMMON, RARE]
    plain, _ = shares(split, class_uniform=0.0)
    half, _ = shares(split, class_uniform=0.5)
    every, items = shares(split, class_uniform=1.0)
    assert plain < 0.03
    assert 0.18 < half < 0.33  # half of the crops are class-uniform, and one in two of those is for the rare class
    assert 0.42 < every < 0.6
    assert set(items) == {9}


def test_a_class_is_drawn_from_all_its_places(tmp_path):
    split = write_split(tmp_path, squares=[(0, 0), (56, 88), (30, 40), None])
    _, items = shares(split, class_uniform=1.0)
    counts = np.bincount(items, minlength=3)
    assert counts[3:].sum() == 0
    assert counts.min() > 0.2 * counts.sum()


def test_a_class_uniform_crop_covers_the_place_that_was_drawn(tmp_path):
    split = write_split(tmp_path, squares=[(0, 0), (56, 88), (0, 88), (56, 0), (30, 40), None])
    batches = loader.SegmentationCrops(
        split, seed=1, batch=4, crop=(16, 16), zoom=(1.0, 1.0), **PLAIN, blur=0.0, class_uniform=1.0
    )
    classes = split.classes_with_centroids()
    seen = set()
    for step in range(12):
        _, label_BHW = batches[step]
        for position in range(4):
            draw = sampling.draw(seed=1, step=step, position=position, batch=4, items=6)
            wanted = classes[int(draw.focus[1] * len(classes))]
            seen.add(int(wanted))
            assert (label_BHW[position] == wanted).any()
            if wanted == RARE:
                assert (label_BHW[position] == RARE).sum() == 64  # the whole square, since the crop is centred on it
    assert seen == {COMMON, RARE}


def test_plain_crops_do_not_depend_on_the_share_of_class_uniform_ones(splits):
    plain, some = crops(splits, "cityscapes"), crops(splits, "cityscapes", class_uniform=0.5)
    same = 0
    for step in range(8):
        (plain_BCHW, _), (some_BCHW, _) = plain[step], some[step]
        for position in range(4):
            draw = sampling.draw(seed=0, step=step, position=position, batch=4, items=len(plain.split))
            if draw.focus[0] >= 0.5:
                assert torch.equal(plain_BCHW[position], some_BCHW[position])
                same += 1
    assert 4 < same < 28


def test_a_split_without_any_class_cannot_have_class_uniform_crops(tmp_path):
    writer = SplitWriter(tmp_path, "train")
    label_HW = np.full((32, 32), IGNORE, np.uint8)
    class_pixels, centroids = label_summary(label_HW)
    writer.append(
        name="0",
        sha256=bytes(32),
        image=pack(np.zeros((32, 32, 3), np.uint8)),
        image_size=(32, 32),
        label=pack(label_HW),
        label_size=(32, 32),
        class_pixels=class_pixels,
        centroids=centroids,
    )
    writer.close(classes=3)
    split = {("cityscapes", "train"): Split(tmp_path, "train")}
    assert (crops(split, "cityscapes")[0][1] == IGNORE).all()
    with pytest.raises(MmsegError, match="no label names a class"):
        crops(split, "cityscapes", class_uniform=0.5)


# ------------------------------------------------------------------------------------------------------ mixed pictures


def test_mixing_pairs_neighbours_and_leaves_the_last_of_an_odd_batch(splits):
    plain = crops(splits, "imagenet", batch=5, classes=3)
    mixed = crops(splits, "imagenet", batch=5, cutmix=1.0, classes=3)
    changed = 0
    for step in range(6):
        (plain_BCHW, target_B), (mixed_BCHW, target_BK) = plain[step], mixed[step]
        assert (target_BK.shape, target_BK.dtype) == ((5, 3), torch.float32)
        assert torch.equal(plain_BCHW[4], mixed_BCHW[4])
        assert torch.equal(target_BK[4], F.one_hot(target_B[4], 3).float())
        for first, second in ((0, 1), (1, 0), (2, 3), (3, 2)):
            from_second = (plain_BCHW[second] == mixed_BCHW[first]).all(dim=0)
            from_first = (plain_BCHW[first] == mixed_BCHW[first]).all(dim=0)
            assert (from_first | from_second).all()  # every pixel is one of the two pictures'
            share = target_BK[first, target_B[first]].item()
            if target_B[first] != target_B[second]:
                assert from_first.float().mean().item() == pytest.approx(share, abs=0.02)
                changed += share < 0.98
    assert changed > 6


def test_with_both_ways_of_mixing_each_pair_draws_one(splits):
    only = {kind: crops(splits, "imagenet", batch=4, **{kind: 8.0}) for kind in ("mixup", "cutmix")}
    both = crops(splits, "imagenet", batch=4, mixup=8.0, cutmix=8.0)  # 8: shares near a half, which leave traces
    counts = {"mixup": 0, "cutmix": 0}
    for step in range(10):
        for pair in (slice(0, 2), slice(2, 4)):
            drawn = [
                kind
                for kind in only
                if digests([tuple(part[pair] for part in only[kind][step])])
                == digests([tuple(part[pair] for part in both[step])])
            ]
            assert len(drawn) == 1
            counts[drawn[0]] += 1
    assert min(counts.values()) >= 5


def test_rand_augment_changes_pictures_and_no_target(splits):
    (plain_BCHW, target_B), (strong_BCHW, strong_B) = (
        crops(splits, "imagenet", batch=8, rand_augment=value)[0] for value in (None, (2, 9))
    )
    assert torch.equal(target_B, strong_B)
    differs_B = (plain_BCHW != strong_BCHW).flatten(1).any(dim=1)
    assert differs_B.sum() >= 6


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
