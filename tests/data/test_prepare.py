from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from mmseg_cli.data import prepare as room
from mmseg_cli.data.labels import IGNORE
from mmseg_cli.data.prepare import SOURCES, Prepared, prepare
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError


def run(name: str, root: Path, out: Path, *, threads: int = 2, **limits: int) -> Prepared:
    sides = {"long_side": None, "short_side": None} | limits
    return prepare(
        name,
        root,
        out,
        parameters=sides,
        threads=threads,
        on_start=lambda total: None,
        advance=lambda: None,
        **sides,
    )


def refused(name: str, root: Path, out: Path) -> str:
    with pytest.raises(MmsegError) as caught:
        run(name, root, out)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", SOURCES)
def test_a_store_holds_what_the_dataset_holds(raw, tmp_path, name):
    made = run(name, raw[name], tmp_path / "store")
    listing = SOURCES[name].scan(raw[name])
    store = open_store(tmp_path / "store")
    assert made.counts == {split: len(items) for split, items in listing.splits.items()}
    assert made.classes == len(store.space.classes) == len(listing.space.classes)
    assert made.bytes == sum(len(content) for content in trees.contents(tmp_path / "store").values())
    for split_name, items in listing.splits.items():
        split = store.split(split_name)
        assert len(split) == len(items)
        assert store.names(split_name) == [item.name for item in items]
        for position, item in enumerate(items):
            image_HWC = np.asarray(Image.open(item.image).convert("RGB"))
            assert split.size(position) == image_HWC.shape[:2]
            np.testing.assert_array_equal(split.image(position), image_HWC)
            if item.label is None:
                assert split.target(position) == item.target
            else:
                ids_HW = np.asarray(Image.open(item.label))
                expected_HW = np.array([int(listing.table[value]) for value in ids_HW.ravel()]).reshape(ids_HW.shape)
                np.testing.assert_array_equal(split.label(position), expected_HW)


@pytest.mark.parametrize("name", SOURCES)
def test_the_dataset_stays_as_it_is_and_the_same_bytes_come_out_again(raw, tmp_path, name):
    before = trees.snapshot(raw[name])
    run(name, raw[name], tmp_path / "first", threads=1)
    run(name, raw[name], tmp_path / "second", threads=3)
    assert trees.snapshot(raw[name]) == before
    assert trees.contents(tmp_path / "first") == trees.contents(tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.parametrize("name", ["cityscapes", "camvid"])
def test_the_manifest_counts_the_pixels_of_every_class(raw, tmp_path, name):
    run(name, raw[name], tmp_path / "store")
    listing = SOURCES[name].scan(raw[name])
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    for split, items in listing.splits.items():
        mapped = [listing.table[np.asarray(Image.open(item.label))] for item in items]
        part = manifest["splits"][split]
        assert part["class_pixels"] == [
            sum(int((one == k).sum()) for one in mapped) for k in range(len(listing.space.classes))
        ]
        assert part["ignored_pixels"] == sum(int((one == IGNORE).sum()) for one in mapped) > 0
        assert part["count"] == len(items)


def test_the_manifest_counts_the_pictures_of_every_class(raw, tmp_path):
    run("imagenet", raw["imagenet"], tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["class_pixels"] == [4, 4, 4]


def test_a_changed_file_changes_its_hash_alone(raw_copy, tmp_path):
    root = raw_copy("camvid")
    run("camvid", root, tmp_path / "first")
    Image.fromarray(np.zeros((36, 48), np.uint8)).save(root / "trainannot" / "0001.png")
    run("camvid", root, tmp_path / "second")
    hashes = [
        [
            item["sha256"]
            for item in json.loads((tmp_path / out / "manifest.json").read_text())["splits"]["train"]["items"]
        ]
        for out in ("first", "second")
    ]
    assert [one == other for one, other in zip(*hashes, strict=True)] == [True, False, True]


def test_counts_and_sizes_that_are_not_official_are_said(raw, tmp_path):
    warnings = run("cityscapes", raw["cityscapes"], tmp_path / "store").warnings
    assert warnings == [
        "train: 5 images, the official number is 2975",
        "val: 3 images, the official number is 500",
        "train: 5 images are not 2048x1024 (most 64x32)",
        "val: 3 images are not 2048x1024 (most 64x32)",
    ]
    assert not any("are not" in line for line in run("mapillary", raw["mapillary"], tmp_path / "other").warnings)


# ------------------------------------------------------------------------------------------------------ other sizes


@pytest.mark.parametrize(
    ("limits", "train", "upright"),
    [({"long_side": 30}, (20, 30), (30, 20)), ({"short_side": 24}, (24, 36), (36, 24)), ({"long_side": 500}, 0, 0)],
)
def test_train_shrinks_while_val_labels_keep_their_size(raw, tmp_path, limits, train, upright):
    run("mapillary", raw["mapillary"], tmp_path / "store", **limits)
    store = open_store(tmp_path / "store")
    train, upright = train or (40, 60), upright or (60, 40)
    for name, native in (("train", [(40, 60), (60, 40), (40, 60)]), ("val", [(40, 60), (60, 40)])):
        split = store.split(name)
        for position, size in enumerate(native):
            expected = upright if size == (60, 40) else train
            assert split.size(position) == expected
            assert split.image(position).shape == (*expected, 3)
            assert split.label_size(position) == (expected if name == "train" else size)
            assert split.label(position).shape == split.label_size(position)


def test_a_label_that_shrinks_gets_no_new_values_and_stays_with_its_image(tmp_path):
    """Every second pixel of a label in stripes of two ids is still one of the two, at its own place."""
    root = trees.make_cityscapes(tmp_path / "raw", height=32)
    path = root / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    ids_HW = np.full((32, 64), 7, np.uint8)
    ids_HW[:, 32:] = 26
    Image.fromarray(ids_HW).save(path)
    run("cityscapes", root, tmp_path / "store", long_side=32)
    label_HW = open_store(tmp_path / "store").split("train").label(0)
    assert label_HW.shape == (16, 32)
    assert (label_HW[:, :16] == 0).all()
    assert (label_HW[:, 16:] == 13).all()


def test_a_jpeg_that_keeps_its_size_keeps_its_bytes(raw, tmp_path):
    run("mapillary", raw["mapillary"], tmp_path / "store")
    records = (tmp_path / "store" / "train.records").read_bytes()
    for path in (raw["mapillary"] / "training" / "images").iterdir():
        assert path.read_bytes() in records


# ----------------------------------------------------------------------------------------------------- odd pictures


def test_imagenet_takes_grey_cmyk_and_png_pictures(raw_copy, tmp_path):
    root = raw_copy("imagenet")
    folder = root / "train" / "n00001000"
    picture = Image.fromarray(trees.photo(np.random.default_rng(5), 30, 50))
    odd = {
        "0_grey.JPEG": saved(picture.convert("L"), "JPEG"),
        "1_cmyk.JPEG": saved(picture.convert("CMYK"), "JPEG", quality=98),
        "2_png.JPEG": saved(picture, "PNG"),
        "3_alpha.png": saved(picture.convert("RGBA"), "PNG"),
        "4_palette.png": saved(picture.convert("P"), "PNG"),
    }
    for name, content in odd.items():
        (folder / name).write_bytes(content)
    run("imagenet", root, tmp_path / "store")
    store = open_store(tmp_path / "store")
    split, names = store.split("train"), store.names("train")
    for name, content in odd.items():
        position = names.index(f"n00001000/{name}")
        expected_HWC = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        assert split.image(position).shape == (30, 50, 3)
        difference = np.abs(split.image(position) - expected_HWC)
        if name == "1_cmyk.JPEG":  # encoded once more
            assert difference.mean() < 3
        else:
            assert difference.max() == 0
    assert np.ptp(split.image(names.index("n00001000/0_grey.JPEG")), axis=2).max() == 0


def test_a_palette_label_is_read_by_index(raw, tmp_path):
    """Two of its classes share a colour, so a reader of colours could not tell them apart."""
    run("mapillary", raw["mapillary"], tmp_path / "store")
    label_HW = open_store(tmp_path / "store").split("train").label(0)
    assert label_HW[0, :6].tolist() == [0, 1, 2, 3, 4, IGNORE]


# ----------------------------------------------------------------------------------------------------------- faults

IMAGE = "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png"
LABEL = "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png"


def unknown_value(root: Path) -> str:
    ids_HW = np.asarray(Image.open(root / LABEL)).copy()
    ids_HW[5:7, 5:8], ids_HW[9, 9] = 77, 200
    Image.fromarray(ids_HW).save(root / LABEL)
    return f"{root / LABEL}: label value 77, 200 is not in the dataset's table (7 pixels): "


def other_size(root: Path) -> str:
    Image.fromarray(np.full((16, 64), 7, np.uint8)).save(root / LABEL)
    return f"{root / LABEL}: is 64x16, its image {Path(IMAGE).name} is 64x32: "


def truncated_label(root: Path) -> str:
    (root / LABEL).write_bytes((root / LABEL).read_bytes()[:60])
    return f"{root / LABEL}: cannot be decoded ("


def truncated_image(root: Path) -> str:
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:-2000])
    return f"{root / IMAGE}: cannot be decoded ("


def empty_image(root: Path) -> str:
    (root / IMAGE).write_bytes(b"")
    return f"{root / IMAGE}: cannot be decoded ("


def text_image(root: Path) -> str:
    (root / IMAGE).write_text("version https://git-lfs.github.com/spec/v1")
    return f"{root / IMAGE}: cannot be decoded ("


def colour_label(root: Path) -> str:
    Image.open(root / LABEL).convert("RGB").save(root / LABEL)
    return f"{root / LABEL}: is a RGB image, not one of ids: "


def deep_label(root: Path) -> str:
    Image.fromarray(np.full((32, 64), 7, np.uint16)).save(root / LABEL)
    return f"{root / LABEL}: is a I;16 image, not one of ids: "


def dangling_image(root: Path) -> str:
    (root / IMAGE).unlink()
    (root / IMAGE).symlink_to("nowhere.png")
    return f"{root / IMAGE}: cannot be read ("


def folder_for_label(root: Path) -> str:
    (root / LABEL).unlink()
    (root / LABEL).mkdir()
    return f"{root / LABEL}: cannot be read ("


FAULTS = [
    unknown_value,
    other_size,
    truncated_label,
    truncated_image,
    empty_image,
    text_image,
    colour_label,
    deep_label,
    dangling_image,
    folder_for_label,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_named_and_the_store_that_was_there_stays(raw_copy, tmp_path, fault):
    root, out = raw_copy("cityscapes"), tmp_path / "data" / "store"
    run("cityscapes", root, out)
    before = trees.snapshot(out.parent)
    expected = fault(root)
    assert refused("cityscapes", root, out).startswith(expected)
    after = trees.snapshot(out.parent)
    assert {name: what for name, what in after.items() if name != "."} == {
        name: what for name, what in before.items() if name != "."
    }  # of the parent, only its time changes
    shutil.rmtree(out)
    refused("cityscapes", root, out)
    assert not list(out.parent.iterdir())


def test_a_truncated_jpeg_is_named(raw_copy, tmp_path):
    root = raw_copy("mapillary")
    path = root / "training/images/training-2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert refused("mapillary", root, tmp_path / "store").startswith(f"{path}: cannot be decoded (")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_anywhere_is_found_or_decodes_to_the_same_pixels(tmp_path, kind):
    image_HWC = trees.photo(np.random.default_rng(1), 12, 16)
    content = saved(Image.fromarray(image_HWC), kind)
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(content)
    whole_HWC = np.asarray(room.verify.open_image(path))
    found = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(np.asarray(room.verify.open_image(path)), whole_HWC)
        except MmsegError as error:
            assert "cannot be decoded" in str(error)
            found += 1
    assert found > 0.9 * len(content)


def test_a_picture_too_large_to_be_true_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(path)
    with pytest.raises(MmsegError, match="cannot be decoded"):
        room.verify.open_image(path)


@pytest.mark.parametrize("inside", [".", "store", "gtFine/store"])
def test_nothing_is_written_into_the_dataset(raw_copy, inside):
    root = raw_copy("cityscapes")
    before = trees.snapshot(root)
    assert "lies inside the dataset" in refused("cityscapes", root, root / inside)
    assert trees.snapshot(root) == before


def test_real_photographs_are_stored_whole(camvid_root, tmp_path):
    """Twelve real frames and their labels, by Pillow alone and out of the store."""
    root = tmp_path / "camvid"
    for split, count in (("train", 8), ("val", 4)):
        for path in sorted((camvid_root / split).iterdir())[:count]:
            for folder, suffix in ((split, path.suffix), (f"{split}annot", ".png")):
                (root / folder).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(camvid_root / folder / f"{path.stem}{suffix}", root / folder / f"{path.stem}{suffix}")
    run("camvid", root, tmp_path / "store")
    store = open_store(tmp_path / "store")
    for split in ("train", "val"):
        for position, name in enumerate(store.names(split)):
            image = next((root / split).glob(f"{name}.*"))
            np.testing.assert_array_equal(
                store.split(split).image(position), np.asarray(Image.open(image).convert("RGB"))
            )
            ids_HW = np.asarray(Image.open(root / f"{split}annot" / f"{name}.png"))
            np.testing.assert_array_equal(store.split(split).label(position), np.where(ids_HW == 11, IGNORE, ids_HW))


def test_more_classes_than_a_byte_holds(tmp_path):
    """ImageNet has a thousand."""
    root = trees.make_imagenet(tmp_path / "raw", classes=300, train=1, val=1, size=8)
    assert run("imagenet", root, tmp_path / "store").classes == 300
    store = open_store(tmp_path / "store")
    assert [store.split("train").target(item) for item in range(300)] == list(range(300))
    part = store.manifest["splits"]["train"]
    assert (part["class_pixels"], part["ignored_pixels"]) == ([1] * 300, 0)
