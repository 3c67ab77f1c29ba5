from __future__ import annotations

import json
import shutil

import pytest

from mmseg_cli.data.prepare import SOURCES, find_root
from mmseg_cli.errors import MmsegError

SPLITS = {
    "cityscapes": {"train": 5, "val": 3},
    "mapillary": {"train": 3, "val": 2},
    "imagenet": {"train": 12, "val": 6},
    "camvid": {"train": 3, "val": 2, "test": 1},
}


def refused(name, root) -> str:
    with pytest.raises(MmsegError) as caught:
        SOURCES[name].scan(root)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("name", SOURCES)
def test_every_layout_is_listed(raw, name):
    listing = SOURCES[name].scan(raw[name])
    assert {split: len(items) for split, items in listing.splits.items()} == SPLITS[name]
    for items in listing.splits.values():
        assert len({item.name for item in items}) == len(items)
        for item in items:
            assert item.image.is_file()
            if listing.task == "segmentation":
                assert item.label is not None
                assert item.label.is_file()
                assert item.label.name.startswith(item.name)
            else:
                assert item.target is not None
                assert listing.space.classes[item.target] == item.image.parent.name
    assert len(listing.warnings) == len(SPLITS[name])  # no split has the official number of images
    assert f"train: {SPLITS[name]['train']} images, the official number is " in listing.warnings[0]


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
    with pytest.raises(MmsegError, match="there is no such folder"):
        find_root(name, tmp_path / "absent")
    with pytest.raises(MmsegError, match=f"does not look like {name}"):
        find_root(name, tmp_path)


IMAGES = {
    "cityscapes": "leftImg8bit/train/bad-honnef/bad-honnef_000001_000019_leftImg8bit.png",
    "mapillary": "training/images/training-1.jpg",
    "camvid": "train/0001.png",
}
LABELS = {
    "cityscapes": "gtFine/train/bad-honnef/bad-honnef_000001_000019_gtFine_labelIds.png",
    "mapillary": "training/labels/training-1.png",
    "camvid": "trainannot/0001.png",
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_without_label_is_named(raw_copy, name):
    root = raw_copy(name)
    (root / LABELS[name]).unlink()
    assert refused(name, root).startswith(f"{root / IMAGES[name]}: has no label file: ")


@pytest.mark.parametrize("name", IMAGES)
def test_a_label_without_image_is_named(raw_copy, name):
    root = raw_copy(name)
    (root / IMAGES[name]).unlink()
    assert refused(name, root).startswith(f"{root / LABELS[name]}: has no image: ")


def test_a_city_without_its_images_is_named(raw_copy):
    root = raw_copy("cityscapes")
    shutil.rmtree(root / "leftImg8bit/train/bad-honnef")
    assert refused("cityscapes", root).startswith(f"{root / LABELS['cityscapes']}: has no image: ")


def test_a_city_without_its_labels_is_named(raw_copy):
    root = raw_copy("cityscapes")
    shutil.rmtree(root / "gtFine/train/bad-honnef")
    assert refused("cityscapes", root).startswith(f"{root / IMAGES['cityscapes']}: has no label file: ")


VAL = {
    "cityscapes": "leftImg8bit/val gtFine/val",
    "mapillary": "validation",
    "camvid": "val valannot",
    "imagenet": "val",
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_an_empty_split_is_named(raw_copy, name, how):
    root = raw_copy(name)
    for folder in VAL[name].split():
        shutil.rmtree(root / folder)
        if how == "empty":
            (root / folder).mkdir()
    message = refused(name, root)
    assert "\n" not in message
    assert "the split 'val' is empty" in message
    assert str(root) in message


def test_files_beside_the_dataset_are_left_alone(raw_copy):
    root = raw_copy("cityscapes")
    folder = root / "leftImg8bit/train/aachen"
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "._aachen_000000_000019_leftImg8bit.png").write_bytes(b"x")
    (root / "leftImg8bit/train/.hidden").mkdir()
    (root / "leftImg8bit/train/README").write_text("x")
    (root / "gtFine/train/aachen/aachen_000000_000019_gtFine_color.png").write_bytes(b"x")
    assert len(SOURCES["cityscapes"].scan(root).splits["train"]) == SPLITS["cityscapes"]["train"]


def test_camvid_works_without_a_test_split(raw_copy):
    root = raw_copy("camvid")
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "testannot")
    assert set(SOURCES["camvid"].scan(root).splits) == {"train", "val"}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"labels": [{"name": "a"}]}', '{"labels": "road"}', '{"labels": [1]}', '{"labels": null}'],
)
def test_a_broken_vistas_config_is_named(raw_copy, content):
    root = raw_copy("mapillary")
    (root / "config.json").write_text(content)
    assert refused("mapillary", root).startswith(f"{root / 'config.json'}: ")


def test_more_labels_than_a_byte_holds_are_refused(raw_copy):
    root = raw_copy("mapillary")
    labels = json.loads((root / "config.json").read_text())["labels"]
    (root / "config.json").write_text(json.dumps({"labels": labels * 50}))
    assert refused("mapillary", root).startswith(f"{root / 'config.json'}: ")


def test_a_missing_vistas_config_is_named(raw_copy):
    root = raw_copy("mapillary")
    (root / "config.json").unlink()
    assert "config.json: missing: " in refused("mapillary", root)


def test_vistas_v2_is_told_from_v1_2(raw_copy):
    root = raw_copy("mapillary")
    (root / "config.json").rename(root / "config_v2.0.json")
    for split in ("training", "validation"):
        (root / split / "v2.0").mkdir()
        (root / split / "labels").rename(root / split / "v2.0" / "labels")
    assert "this is Vistas v2.0: give the root of v1.2" in refused("mapillary", root)


def test_imagenet_classes_are_those_of_train(raw_copy):
    root = raw_copy("imagenet")
    (root / "val" / "n99999999").mkdir()
    assert "n99999999: this class is not in train: " in refused("imagenet", root)
    (root / "train" / "n99999999").mkdir()
    assert f"{root / 'train' / 'n99999999'}: this class has no images: " in refused("imagenet", root)
