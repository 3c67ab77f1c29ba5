"""ImageNet: class folders, one archive, the official tars, and mixtures."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import trees

from mmseg_cli.data import faults
from mmseg_cli.data.sources import camvid, devkit, imagenet
from mmseg_cli.data.tree import read

TRAIN, VAL, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
WNIDS = ["n00001000", "n00001001", "n00001002"]


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory) -> Path:
    """The official files as they come; only read."""
    return trees.make_ilsvrc(tmp_path_factory.mktemp("ilsvrc"))


@pytest.fixture
def tars(downloaded, tmp_path) -> Path:
    return Path(shutil.copytree(downloaded, tmp_path / "ilsvrc"))


def errors(root):
    return faults.errors(imagenet.scan(root).faults)


def only(root):
    (fault,) = errors(root)
    return fault


def named(listing):
    """What a listing holds, whatever it is read from: split, name, class and content."""
    return {
        (split, item.name, listing.space.classes[item.target], read(item.image))
        for split, items in listing.splits.items()
        for item in items
    }


def extract(root, *, split):
    """A split's tar extracted as people do, the tar removed."""
    folder = root / split
    with tarfile.open(root / (TRAIN if split == "train" else VAL)) as tar:
        tar.extractall(folder, filter="data")
    for inner in sorted(folder.glob("*.tar")):
        with tarfile.open(inner) as tar:
            tar.extractall(folder / inner.stem, filter="data")
        inner.unlink()
    (root / (TRAIN if split == "train" else VAL)).unlink()


# -------------------------------------------------------------------------------------------------------- class folders


def test_class_folders(raw):
    listing = imagenet.scan(raw["imagenet"])
    assert (listing.dataset, listing.task, listing.table) == ("imagenet", "classification", None)
    assert listing.space.name == "imagenet-3"
    assert list(listing.space.classes) == WNIDS
    assert listing.faults == []  # three classes are not ILSVRC, so its counts do not matter
    assert [item.name for item in listing.splits["val"]] == [
        f"{wnid}/{wnid}_{k}.JPEG" for wnid in WNIDS for k in (0, 1)
    ]
    assert [item.target for item in listing.splits["val"]] == [0, 0, 1, 1, 2, 2]


def test_any_names_and_image_types(tmp_path):
    for name in (
        "train/cat/a.PNG",
        "train/cat/old/b.webp",
        "train/n12345678_dog/n87654321_1.jpg",
        "val/cat/c.bmp",
        "val/n12345678_dog/d.GIF",
        "val/n12345678_dog/e.jfif",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train/cat/notes.txt").write_text("x")
    (tmp_path / "train/README").write_text("x")
    listing = imagenet.scan(tmp_path)
    assert listing.faults == []
    assert [(item.name, item.target) for item in listing.splits["train"]] == [
        ("cat/a.PNG", 0),
        ("cat/old/b.webp", 0),
        ("n12345678_dog/n87654321_1.jpg", 1),
    ]


def test_classes_called_like_folders_keep_their_names(tmp_path):
    for name in ("top/train/train/a.jpg", "top/train/top/a.jpg", "top/val/train/val/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = imagenet.scan(tmp_path)
    assert [item.name for item in listing.splits["train"]] == ["top/a.jpg", "train/a.jpg"]
    assert [item.name for item in listing.splits["val"]] == ["train/val/a.jpg"]


def test_a_single_folder_above_is_no_matter(raw, tmp_path):
    shutil.copytree(raw["imagenet"], tmp_path / "above" / "ILSVRC")
    (tmp_path / "above" / "notes").mkdir()
    assert imagenet.looks_like(tmp_path / "above")
    assert named(imagenet.scan(tmp_path / "above")) == named(imagenet.scan(raw["imagenet"]))


@pytest.mark.parametrize("top", ["", "tiny/"])
@pytest.mark.parametrize("kind", ["tar", "zip", "tar.gz"])
def test_one_archive_is_read_in_place(raw, tmp_path, top, kind):
    (tmp_path / "tree").mkdir()
    shutil.copytree(raw["imagenet"], tmp_path / "tree" / top if top else tmp_path / "tree", dirs_exist_ok=True)
    formats = {"tar": "tar", "zip": "zip", "tar.gz": "gztar"}
    path = Path(shutil.make_archive(str(tmp_path / "set"), formats[kind], tmp_path / "tree"))
    assert imagenet.looks_like(path)
    assert not camvid.looks_like(path)
    listing = imagenet.scan(path)
    assert listing.faults == []
    assert listing.notes == [f"read in place: set.{kind}"]
    assert named(listing) == named(imagenet.scan(raw["imagenet"]))


def test_the_archive_and_the_folder_give_the_same_order(raw, tmp_path):
    path = Path(shutil.make_archive(str(tmp_path / "set"), "tar", raw["imagenet"]))
    for split in ("train", "val"):
        names = [[item.name for item in imagenet.scan(root).splits[split]] for root in (path, raw["imagenet"])]
        assert names[0] == names[1]


# -------------------------------------------------------------------------------------------------- faults in the names


def test_all_faults_are_collected(raw_copy):
    root = raw_copy("imagenet")
    (root / "val/n00009999").mkdir()
    (root / "val/n00009999/n00009999_1.JPEG").write_bytes(b"x")
    (root / "train" / WNIDS[0] / f"{WNIDS[1]}_77.JPEG").write_bytes(b"x")
    (root / "train/empty").mkdir()
    (root / "train/words").mkdir()
    (root / "train/words/words.txt").write_bytes(b"x")
    (root / "train/loose.JPEG").write_bytes(b"x")
    found = {(fault.kind, fault.where, fault.what) for fault in errors(root)}
    assert found == {
        ("wrong-place", f"{root}/val/n00009999", "the class n00009999 is not in train"),
        ("wrong-place", f"{root}/train/{WNIDS[0]}/{WNIDS[1]}_77.JPEG", f"is an image of {WNIDS[1]}, not of {WNIDS[0]}"),
        ("empty-split", f"{root}/train/empty", "this class has no images"),
        ("empty-split", f"{root}/train/words", "this class has no images"),
        ("wrong-place", f"{root}/train/loose.JPEG", "lies in no class's folder"),
    }


@pytest.mark.parametrize("how", ["missing", "empty"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_says_what_is_needed(raw_copy, split, how):
    root = raw_copy("imagenet")
    shutil.rmtree(root / split)
    if how == "empty":
        (root / split).mkdir()
    fault = only(root)
    assert (fault.kind, fault.where, fault.what) == ("empty-split", f"{root}/{split}", f"the split '{split}' is empty")
    assert (TRAIN if split == "train" else VAL) in fault.todo
    assert (KIT in fault.todo) == (split == "val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_without_class_folders_are_one_fault(raw_copy, split):
    root = raw_copy("imagenet")
    for name in WNIDS:
        shutil.rmtree(root / split / name)
    for number in range(5):
        (root / split / f"{number}.jpg").write_bytes(b"x")
    fault = only(root)
    assert (fault.kind, fault.where) == ("wrong-place", f"{root}/{split}")
    assert fault.what == "holds 5 images and no folder of a class"


def test_only_the_thousand_classes_have_official_counts(tmp_path):
    for split in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            (folder / "a.JPEG").write_bytes(b"x")
    found = imagenet.scan(tmp_path).faults
    assert [(fault.kind, fault.severity) for fault in found] == [("count", "warning")] * 2
    assert found[0].what == "train: 1000 images, the official number is 1281167"
    for split in ("train", "val"):
        (tmp_path / split / "n00000000").rename(tmp_path / split / "cat")
    assert imagenet.scan(tmp_path).faults == []


def test_files_of_other_suffixes_are_counted_once_a_split(raw_copy):
    root = raw_copy("imagenet")
    for name in ("a.avif", "b.AVIF", "c.db", "notes.txt", "list.csv"):
        (root / "train" / WNIDS[0] / name).write_bytes(b"x")
    (fault,) = imagenet.scan(root).faults
    assert (fault.kind, fault.where, fault.severity) == ("left-out", f"{root}/train", "warning")
    assert fault.what == "3 files with other suffixes (.avif, .db) are not read"


def test_classes_without_images_in_val_are_one_warning(raw_copy):
    root = raw_copy("imagenet")
    for name in WNIDS[1:]:
        shutil.rmtree(root / "val" / name)
    (fault,) = imagenet.scan(root).faults
    assert (fault.kind, fault.where, fault.severity) == ("count", f"{root}/val", "warning")
    assert fault.what == f"2 of 3 classes have no image in val: {WNIDS[1]}, {WNIDS[2]}"


@pytest.mark.parametrize("name", ["aachen_000000_000019_leftImg8bit.png", "aachen_000000_000019_gtFine_labelIds.png"])
def test_a_folder_of_cityscapes_is_no_imagenet(tmp_path, name):
    (tmp_path / "train/aachen").mkdir(parents=True)
    assert imagenet.looks_like(tmp_path)
    (tmp_path / "train/aachen" / name).write_bytes(b"x")
    assert not imagenet.looks_like(tmp_path)


@pytest.mark.parametrize("name", ["leftImg8bit_trainvaltest.zip", "leftImg8bit_trainextra.zip", "gtCoarse.zip"])
def test_a_zip_of_cityscapes_is_no_imagenet(raw, tmp_path, name):
    path = Path(shutil.make_archive(str(tmp_path / "set"), "zip", raw["imagenet"]))
    assert imagenet.looks_like(path)
    assert not imagenet.looks_like(path.rename(tmp_path / name))


def test_a_class_that_links_outside_is_listed_and_named(raw_copy, tmp_path):
    root = raw_copy("imagenet")
    shutil.move(root / "train" / WNIDS[1], tmp_path / "elsewhere")
    (root / "train" / WNIDS[1]).symlink_to(tmp_path / "elsewhere")
    assert [fault.kind for fault in errors(root)] == ["outside-link"]
    assert len(imagenet.scan(root).splits["train"]) == 12


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_closed_folder_is_one_fault(raw_copy):
    root = raw_copy("imagenet")
    (root / "train" / WNIDS[1]).chmod(0)
    found = errors(root)
    (root / "train" / WNIDS[1]).chmod(0o755)
    assert [(fault.kind, fault.where) for fault in found if fault.kind != "wrong-place"] == [
        ("unreadable", f"{root}/train/{WNIDS[1]}")
    ]


# --------------------------------------------------------------------------------------------------- the official files


def test_the_tars_are_read_in_place(downloaded):
    before = trees.snapshot(downloaded)
    assert imagenet.looks_like(downloaded)
    listing = imagenet.scan(downloaded)
    assert listing.faults == []
    assert list(listing.space.classes) == WNIDS
    assert [item.name for item in listing.splits["train"]] == [f"{w}/{w}_{k}.JPEG" for w in WNIDS for k in range(4)]
    # The kit numbers the classes in another order than the wnids: image k is of class (k - 1) modulo 3.
    assert {item.name: item.target for item in listing.splits["val"]} == {
        f"{WNIDS[k % 3]}/ILSVRC2012_val_{k + 1:08d}.JPEG": k % 3 for k in range(6)
    }
    assert all(read(item.image)[:2] == b"\xff\xd8" for items in listing.splits.values() for item in items)
    assert listing.notes == [f"read in place: {name}" for name in (TRAIN, VAL, KIT)]
    assert trees.snapshot(downloaded) == before


@pytest.mark.parametrize("extracted", [("train",), ("val",), ("train", "val"), ("kit",), ("train", "val", "kit")])
def test_extracted_parts_give_the_same_dataset(downloaded, tars, extracted):
    for part in extracted:
        if part == "kit":
            with tarfile.open(tars / KIT) as tar:
                tar.extractall(tars, filter="data")
            (tars / KIT).unlink()
        else:
            extract(tars, split=part)
    listing = imagenet.scan(tars)
    assert listing.faults == []
    assert named(listing) == named(imagenet.scan(downloaded))


def test_a_train_folder_of_class_tars(downloaded, tars):
    with tarfile.open(tars / TRAIN) as tar:
        tar.extractall(tars / "train", filter="data")
    (tars / TRAIN).unlink()
    with tarfile.open(tars / "train" / f"{WNIDS[0]}.tar") as tar:  # one is extracted, and its tar still there
        tar.extractall(tars / "train" / WNIDS[0], filter="data")
    assert imagenet.looks_like(tars)
    listing = imagenet.scan(tars)
    assert listing.faults == []
    assert named(listing) == named(imagenet.scan(downloaded))


def test_what_is_extracted_wins_and_is_said(downloaded, tars):
    shutil.copy(tars / TRAIN, tars / "copy")
    extract(tars, split="train")
    (tars / "copy").rename(tars / TRAIN)
    listing = imagenet.scan(tars)
    assert f"{TRAIN} is left out, because train/ is extracted" in listing.notes
    assert not any(item.image.archive for item in listing.splits["train"])


def test_a_train_folder_that_is_partly_extracted_is_one_fault(tars):
    shutil.copy(tars / TRAIN, tars / "copy")
    extract(tars, split="train")
    (tars / "copy").rename(tars / TRAIN)
    shutil.rmtree(tars / "train" / WNIDS[2])
    fault = only(tars)
    assert (fault.kind, fault.where) == ("empty-split", f"{tars}/train")
    assert fault.what == f"holds 2 of the 3 classes of {TRAIN}"


@pytest.mark.parametrize(
    ("missing", "kind", "where"),
    [(TRAIN, "empty-split", "train"), (VAL, "empty-split", "val"), (KIT, "config", KIT)],
)
def test_a_missing_piece_is_named_with_its_place(tars, missing, kind, where):
    (tars / missing).unlink()
    fault = only(tars)
    assert (fault.kind, fault.where) == (kind, f"{tars}/{where}")
    assert str(tars) in fault.todo
    assert missing in fault.line()


def kit_with(root, changes):
    """The kit again, with other files."""
    with tarfile.open(root / KIT) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}
    members |= {f"{devkit.NAME}/{name}": content for name, content in changes.items()}
    kept = {name: content for name, content in members.items() if content is not None}
    trees.write_tar(root / KIT, kept, mode="w:gz")


def many_synsets() -> bytes:
    """A small file of Matlab that holds a list larger than any kit's."""
    import scipy.io

    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": np.zeros((1000, 1000), np.uint8)}, do_compression=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("changes", "named_file", "what"),
    [
        ({devkit.META: None}, devkit.META, "missing"),
        ({devkit.GROUND_TRUTH: None}, devkit.GROUND_TRUTH, "missing"),
        ({devkit.META: b"no matlab"}, devkit.META, "not the kit's list of classes"),
        ({devkit.META: b""}, devkit.META, "not the kit's list of classes"),
        ({devkit.META: bytes((4 << 20) + 1)}, devkit.META, "not the kit's list of classes (4194305 bytes)"),
        ({devkit.META: many_synsets()}, devkit.META, "not the kit's list of classes (ValueError)"),
        ({devkit.GROUND_TRUTH: b"1\ntwo\n"}, devkit.GROUND_TRUTH, "line 2 is no class of data/meta.mat: 'two'"),
        ({devkit.GROUND_TRUTH: b"1\n4\n"}, devkit.GROUND_TRUTH, "line 2 is no class"),
        ({devkit.GROUND_TRUTH: b"1\n1001\n"}, devkit.GROUND_TRUTH, "line 2 is no class"),  # a group, not a class
        ({devkit.GROUND_TRUTH: b"9" * 9999}, devkit.GROUND_TRUTH, "line 1 is no class"),
    ],
)
def test_a_wrong_kit_is_named(tars, changes, named_file, what):
    kit_with(tars, changes)
    fault = only(tars)
    assert fault.kind == "config"
    assert named_file in fault.where
    assert fault.where.startswith(str(tars / KIT))
    assert what in fault.what


def test_validation_images_that_the_kit_does_not_know(tars):
    kit_with(tars, {devkit.GROUND_TRUTH: b"1\n2\n3\n1\n"})
    found = errors(tars)
    assert [(fault.kind, fault.where) for fault in found] == [
        ("wrong-place", f"{tars / VAL}/ILSVRC2012_val_{number:08d}.JPEG") for number in (5, 6)
    ]


def test_a_class_of_the_kit_that_train_lacks(tars):
    extract(tars, split="train")
    shutil.rmtree(tars / "train" / WNIDS[2])
    fault = only(tars)
    assert (fault.kind, fault.where) == ("wrong-place", str(tars / VAL))
    assert fault.what == f"the class {WNIDS[2]} is not in train"


def test_an_image_that_is_there_twice(tars):
    extract(tars, split="val")
    (tars / "val" / WNIDS[0]).mkdir()
    shutil.copy(tars / "val/ILSVRC2012_val_00000001.JPEG", tars / "val" / WNIDS[0])
    fault = only(tars)
    assert (fault.kind, fault.where) == ("wrong-place", f"{tars}/val/ILSVRC2012_val_00000001.JPEG")


def test_a_train_tar_cut_short_is_named(tars):
    content = (tars / TRAIN).read_bytes()
    (tars / TRAIN).write_bytes(content[: len(content) * 2 // 3])
    found = errors(tars)
    assert found
    assert all(fault.where.startswith(str(tars / TRAIN)) for fault in found if fault.kind == "archive")
    assert any(fault.kind == "archive" for fault in found)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
@pytest.mark.parametrize("name", [TRAIN, VAL, KIT])
def test_a_file_that_is_no_archive_is_named(tars, name, content):
    (tars / name).write_bytes(content)
    found = errors(tars)
    assert any(fault.where.startswith(str(tars / name)) for fault in found)


def test_an_empty_class_in_the_tar_is_named(tars):
    trees.write_tar(
        tars / TRAIN, {f"{WNIDS[0]}.tar": trees.tar_of({}), f"{WNIDS[1]}.tar": trees.tar_of({"a.JPEG": b"x"})}
    )
    assert (f"{tars / TRAIN}/{WNIDS[0]}.tar", "this class has no images") in {(f.where, f.what) for f in errors(tars)}


# ------------------------------------------------------------------------------------------------------------ real data


def test_the_real_subset_of_cifar10():
    place = os.environ.get("MMSEG_TEST_DATA")
    path = Path(place or "", "cifar10-subset.tar")
    if not place or not path.is_file():
        pytest.skip("needs real data: set MMSEG_TEST_DATA to a folder that holds cifar10-subset.tar")
    assert imagenet.looks_like(path)
    listing = imagenet.scan(path)
    assert listing.faults == []
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 4000, "val": 800}
    assert "airplane" in listing.space.classes
    assert len(listing.space.classes) == 10
