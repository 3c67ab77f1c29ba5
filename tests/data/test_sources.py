"""What all layouts have in common. What is particular to one is in its own test file."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest
import trees

from mmseg_cli.data import faults
from mmseg_cli.data.prepare import SOURCES, find_root
from mmseg_cli.errors import MmsegError

SPLITS = {
    "cityscapes": {"train": 5, "val": 3},
    "mapillary": {"train": 3, "val": 2},
    "imagenet": {"train": 12, "val": 6},
    "camvid": {"train": 3, "val": 2, "test": 1},
    "ade20k": {"train": 3, "val": 2},
    "folder": {"train": 3, "val": 2},
}


def errors(name: str, root: Path) -> list[tuple[str, str, str]]:
    return [(fault.kind, fault.where, fault.what) for fault in faults.errors(SOURCES[name].scan(root).faults)]


@pytest.mark.parametrize("name", SOURCES)
def test_every_layout_is_listed(raw, name):
    before = trees.snapshot(raw[name])
    listing = SOURCES[name].scan(raw[name])
    assert listing.dataset == name
    assert {split: len(items) for split, items in listing.splits.items()} == SPLITS[name]
    assert faults.errors(listing.faults) == []
    assert {fault.kind for fault in listing.faults} <= {"count"}
    for items in listing.splits.values():
        assert len({item.name for item in items}) == len(items)
        for item in items:
            assert Path(item.image.path).is_file()
            if listing.task == "segmentation":
                assert item.label is not None
                assert Path(item.label.path).is_file()
                assert item.label.stem.startswith(item.name)
            else:
                assert item.target is not None
                assert listing.space.classes[item.target] == Path(item.image.path).parent.name
    assert trees.snapshot(raw[name]) == before


@pytest.mark.parametrize("name", SOURCES)
def test_every_layout_says_what_it_takes(name):
    module = SOURCES[name]
    assert len(module.HINT.splitlines()) == 1
    arguments = inspect.signature(module.scan).parameters
    assert list(arguments) == ["root", *module.OPTIONS]
    assert all(arguments[option].kind is inspect.Parameter.KEYWORD_ONLY for option in module.OPTIONS)
    assert all(arguments[option].default is not inspect.Parameter.empty for option in module.OPTIONS)


@pytest.mark.parametrize("name", SOURCES)
def test_every_root_is_found(raw, monkeypatch, name):
    assert find_root(name, raw[name]) == raw[name]
    monkeypatch.setenv(f"MMSEG_{name.upper()}_ROOT", str(raw[name]))
    assert find_root(name, None) == raw[name]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("other", SOURCES)
def test_the_root_of_another_dataset_is_named(raw, name, other):
    if name == other:
        return
    with pytest.raises(MmsegError, match=f"looks like {other}, not {name}: use `mmseg prepare {other}`"):
        find_root(name, raw[other])


@pytest.mark.parametrize("name", SOURCES)
def test_a_root_that_is_missing_or_of_no_dataset_is_refused(tmp_path, name):
    with pytest.raises(MmsegError, match=f"give --root FOLDER or set MMSEG_{name.upper()}_ROOT"):
        find_root(name, None)
    with pytest.raises(MmsegError, match="there is no such"):
        find_root(name, tmp_path / "absent")
    with pytest.raises(MmsegError, match=f"does not look like {name}"):
        find_root(name, tmp_path)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"x" * 2000])
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".txt"])
def test_looks_like_never_raises(tmp_path, name, suffix, content):
    path = tmp_path / f"set{suffix}"
    path.write_bytes(content)
    assert SOURCES[name].looks_like(path) is False
    assert SOURCES[name].looks_like(tmp_path) is False
    assert SOURCES[name].looks_like(tmp_path / "absent") is False
    assert SOURCES[name].looks_like(Path("a\0b")) is False


IMAGES = {
    "cityscapes": "leftImg8bit/train/bad-honnef/bad-honnef_000001_000019_leftImg8bit.png",
    "mapillary": "training/images/training-1.jpg",
    "camvid": "train/0001.png",
    "folder": "images/train/train1.jpg",
}
LABELS = {
    "cityscapes": "gtFine/train/bad-honnef/bad-honnef_000001_000019_gtFine_labelIds.png",
    "mapillary": "training/labels/training-1.png",
    "camvid": "trainannot/0001.png",
    "folder": "masks/train/train1.png",
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_without_label_is_named(raw_copy, name):
    root = raw_copy(name)
    (root / LABELS[name]).unlink()
    ((kind, where, what),) = errors(name, root)
    assert (kind, where) == ("missing-partner", str(root / IMAGES[name]))
    assert what.startswith("has no ")


@pytest.mark.parametrize("name", IMAGES)
def test_a_label_without_image_is_named(raw_copy, name):
    root = raw_copy(name)
    (root / IMAGES[name]).unlink()
    assert errors(name, root) == [("missing-partner", str(root / LABELS[name]), "has no image")]


VAL = {
    "cityscapes": ("leftImg8bit/val", "gtFine/val"),
    "mapillary": ("validation",),
    "camvid": ("val", "valannot"),
    "imagenet": ("val",),
    "ade20k": ("images/validation", "annotations/validation"),
    "folder": ("images/val", "masks/val"),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_an_empty_split_is_named(raw_copy, name, how):
    root = raw_copy(name)
    for folder in VAL[name]:
        shutil.rmtree(root / folder)
        if how == "empty":
            (root / folder).mkdir()
    ((kind, where, what),) = errors(name, root)
    assert kind == "empty-split"
    assert "val" in what
    assert where.startswith(str(root))


@pytest.mark.parametrize("name", SOURCES)
def test_files_beside_the_dataset_are_left_alone(raw_copy, name):
    root = raw_copy(name)
    for folder in [root, *(path for path in sorted(root.rglob("*")) if path.is_dir())]:
        for junk in (".DS_Store", "._train1.jpg", "README.md", "checksums.md5", "Thumbs.db"):
            (folder / junk).write_bytes(b"x")
        (folder / ".hidden").mkdir()
        (folder / ".hidden" / "a.png").write_bytes(b"x")
        (folder / "__MACOSX").mkdir()
        (folder / "__MACOSX" / "a.png").write_bytes(b"x")
    assert errors(name, root) == []
    assert {split: len(items) for split, items in SOURCES[name].scan(root).splits.items()} == SPLITS[name]


def test_the_parameters_name_the_layouts_that_there_are():
    from typing import get_args

    from mmseg_cli.params import Layout

    assert set(get_args(Layout)) == set(SOURCES)
