from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label
from PIL import Image

from mmseg_cli.data.sources.scenes.canvas import TABLE, Kind
from mmseg_cli.data.sources.scenes.render import render
from mmseg_cli.data.sources.scenes.subjects import SUBJECTS
from mmseg_cli.data.sources.synthetic import (
    contact_sheet,
    stream,
    write_cityscapes,
    write_imagenet,
    write_mapillary,
)
from mmseg_cli.data.sources.vistas_labels import VISTAS_LABELS
from mmseg_cli.errors import MmsegError

TRAIN_ID = np.asarray([id2label[TABLE[kind].cityscapes_id].trainId for kind in Kind])


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    write_cityscapes(root, train=10, val=4, height=64, seed=3)
    return root


@pytest.fixture(scope="module")
def vistas(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("vistas")
    write_mapillary(root, training=8, validation=2, seed=3, height=64)
    return root


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    write_imagenet(root, classes=10, train_per_class=8, val_per_class=2, size=32, seed=3)
    return root


@pytest.fixture(scope="module")
def scenes():
    """Forty frames of 64 x 128 and their train ids."""
    drawn = [render(stream(1, "frames-train", k), height=64, width=128, bonnet=True, border=1) for k in range(40)]
    return [(scene.image_HWC, TRAIN_ID[scene.label_HW]) for scene in drawn]


def test_cityscapes_layout_is_the_official_one(cityscapes):
    files = set(tree(cityscapes))
    assert len(files) == 14 * 4
    for split, city, stem in (
        ("train", "aachen", "aachen_000000_000019"),
        ("train", "aachen", "aachen_000001_000019"),
        ("val", "frankfurt", "frankfurt_000001_000019"),
        ("val", "munster", "munster_000000_000019"),
    ):
        assert f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png" in files
        for part in ("labelIds", "instanceIds", "color"):
            assert f"gtFine/{split}/{city}/{stem}_gtFine_{part}.png" in files


def test_cityscapes_frames_agree_with_their_labels(cityscapes):
    seen = set()
    for path in cityscapes.rglob("*_labelIds.png"):
        labels = Image.open(path)
        assert labels.mode == "L" and labels.size == (128, 64)
        ids = np.asarray(labels)
        seen |= set(np.unique(ids).tolist())
        instances = np.asarray(Image.open(str(path).replace("labelIds", "instanceIds"))).astype(int)
        np.testing.assert_array_equal(np.where(instances >= 1000, instances // 1000, instances), ids)
        for value in np.unique(instances):
            assert id2label[value // 1000 if value >= 1000 else value].hasInstances == (value >= 1000)
        colour = np.asarray(Image.open(str(path).replace("labelIds", "color")))
        assert all((colour[ids == k] == id2label[k].color).all() for k in np.unique(ids))
        name = path.name.replace("gtFine_labelIds", "leftImg8bit")
        picture = Image.open(cityscapes / "leftImg8bit" / path.parent.relative_to(cityscapes / "gtFine") / name)
        assert picture.mode == "RGB" and picture.size == labels.size
    assert seen <= set(id2label)
    assert {1, 3} <= seen  # bonnet and frame


def test_vistas_layout_modes_and_sizes(vistas):
    config = json.loads((vistas / "config.json").read_text())
    assert len(config["labels"]) == 66
    assert set(config["labels"][0]) == {"color", "instances", "readable", "name", "evaluate"}
    assert [label["evaluate"] for label in config["labels"]] == [True] * 65 + [False]
    assert config["labels"][13]["name"] == "construction--flat--road" and config["labels"][13]["color"] == [
        128,
        64,
        128,
    ]
    shapes = []
    for split, count in (("training", 8), ("validation", 2)):
        stems = sorted(path.stem for path in (vistas / split / "images").glob("*.jpg"))
        assert len(stems) == count and all(len(stem) == 22 for stem in stems)
        for stem in stems:
            labels = Image.open(vistas / split / "labels" / f"{stem}.png")
            assert labels.mode == "P" and labels.getpalette()[:198] == [c for row in VISTAS_LABELS for c in row.color]
            instances = np.asarray(Image.open(vistas / split / "instances" / f"{stem}.png"))
            assert instances.dtype == np.uint16
            np.testing.assert_array_equal(instances // 256, np.asarray(labels))
            assert all(VISTAS_LABELS[k // 256].instances for k in np.unique(instances) if k % 256)
            assert Image.open(vistas / split / "images" / f"{stem}.jpg").size == labels.size
            shapes.append(labels.size)
    assert any(width < height for width, height in shapes) and any(width > height for width, height in shapes)
    assert len(set(shapes)) > 4


def test_vistas_labels_are_whole():
    assert len({label.name for label in VISTAS_LABELS}) == 66
    assert len({label.readable for label in VISTAS_LABELS}) == 66
    assert sum(label.instances for label in VISTAS_LABELS) == 37
    assert set(TABLE) == set(Kind)


def test_imagenet_layout_and_some_grey(imagenet):
    folders = sorted(path.name for path in (imagenet / "train").iterdir())
    assert folders == [f"n{k:08d}" for k in range(1, 11)]
    assert (imagenet / "train" / "n00000003" / "n00000003_8.JPEG").is_file()
    names = sorted(path.name for path in (imagenet / "val").rglob("*.JPEG"))
    assert names == [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 21)]
    pictures = [Image.open(path) for path in imagenet.rglob("*.JPEG")]
    assert {picture.mode for picture in pictures} == {"L", "RGB"}
    assert sum(picture.mode == "L" for picture in pictures) < 20
    assert len({picture.size for picture in pictures}) > 20


@pytest.mark.parametrize("kind", ["cityscapes", "vistas", "imagenet"])
def test_same_arguments_same_bytes(kind, request, tmp_path):
    again = tmp_path / "again"
    if kind == "cityscapes":
        write_cityscapes(again, train=10, val=4, height=64, seed=3)
    elif kind == "vistas":
        write_mapillary(again, training=8, validation=2, seed=3, height=64)
    else:
        write_imagenet(again, classes=10, train_per_class=8, val_per_class=2, size=32, seed=3)
    assert tree(again) == tree(request.getfixturevalue(kind))


def test_a_picture_does_not_depend_on_how_many_there_are(cityscapes, vistas, imagenet, tmp_path):
    write_cityscapes(tmp_path / "c", train=3, val=1, height=64, seed=3)
    write_mapillary(tmp_path / "v", training=2, validation=1, seed=3, height=64)
    write_imagenet(tmp_path / "i", classes=10, train_per_class=2, val_per_class=1, size=32, seed=3)
    for few, many in (("c", cityscapes), ("v", vistas), ("i", imagenet)):
        small, large = tree(tmp_path / few), tree(many)
        assert small.items() <= large.items() and len(small) < len(large)


def test_another_seed_and_another_split_give_other_pictures(cityscapes, tmp_path):
    write_cityscapes(tmp_path / "c", train=10, val=4, height=64, seed=4)
    assert not set(tree(tmp_path / "c").values()) & set(tree(cityscapes).values())
    pictures = [path.read_bytes() for path in cityscapes.rglob("*_leftImg8bit.png")]
    assert len(set(pictures)) == 14


def test_nearly_all_train_classes_appear_and_the_usual_ones_everywhere(scenes):
    present = [set(np.unique(labels).tolist()) - {255, -1} for _, labels in scenes]
    assert len(set().union(*present)) >= 17
    usual = {0: "road", 1: "sidewalk", 2: "building", 8: "vegetation", 10: "sky", 13: "car"}
    for number, name in usual.items():
        assert sum(number in classes for classes in present) >= 37, name


def test_colour_alone_does_not_give_the_class(scenes):
    halves = scenes[::2], scenes[1::2]
    pixels = [np.concatenate([image.reshape(-1, 3) for image, _ in half]).astype(float) for half in halves]
    truth = [np.concatenate([labels.ravel() for _, labels in half]) for half in halves]
    classes = [k for k in range(19) if (truth[0] == k).any() and (truth[1] == k).any()]
    means = np.stack([pixels[0][truth[0] == k].mean(axis=0) for k in classes])
    guess = np.asarray(classes)[((pixels[1][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)]
    recall = np.mean([(guess[truth[1] == k] == k).mean() for k in classes])
    assert recall < 0.25, recall  # 0.16 when written; a blind guess gets 0.05


def test_label_edges_lie_on_picture_edges():
    # Two pixels above the skyline the picture must look like the sky higher up, not like what stands below.
    closer = []
    for k in range(12):
        scene = render(stream(2, "frames-train", k), height=128, width=256)
        image, sky = scene.image_HWC.astype(float), scene.label_HW == Kind.SKY
        y, x = np.nonzero(sky[:-8] & sky[3:-5] & ~sky[5:-3] & ~sky[8:])
        inside, outside, near = image[y, x], image[y + 8, x], image[y + 3, x]
        clear = np.abs(inside - outside).sum(axis=1) > 120
        closer += list((np.abs(near - inside).sum(axis=1) < np.abs(near - outside).sum(axis=1))[clear])
    assert len(closer) > 500
    assert np.mean(closer) > 0.95, np.mean(closer)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for write in (
        lambda: write_cityscapes(tmp_path, train=1, val=1, height=32, seed=0),
        lambda: write_mapillary(tmp_path, training=1, validation=1, seed=0, height=32),
        lambda: write_imagenet(tmp_path, classes=2, train_per_class=1, val_per_class=1, size=32, seed=0),
    ):
        with pytest.raises(MmsegError, match="not an empty folder"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_more_classes_than_things_are_refused(tmp_path):
    with pytest.raises(MmsegError, match=str(len(SUBJECTS))):
        write_imagenet(tmp_path / "i", classes=len(SUBJECTS) + 1, train_per_class=1, val_per_class=1, size=32, seed=0)
    assert not (tmp_path / "i").exists()


def test_contact_sheet_is_small_enough_for_the_docs(tmp_path):
    contact_sheet(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width == 1400
    assert (tmp_path / "sheet.png").stat().st_size < 1_500_000
