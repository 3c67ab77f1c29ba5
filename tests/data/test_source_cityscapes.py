from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from mmseg_cli.data.faults import errors
from mmseg_cli.data.sources import cityscapes
from mmseg_cli.data.tree import read
from mmseg_cli.errors import MmsegError

IMAGE = "leftImg8bit/train/bad-honnef/bad-honnef_000001_000019_leftImg8bit.png"
LABEL = "gtFine/train/bad-honnef/bad-honnef_000001_000019_gtFine_labelIds.png"


@pytest.fixture
def root(tmp_path) -> Path:
    return trees.make_cityscapes(tmp_path / "cityscapes")


@pytest.fixture
def whole(root) -> Path:
    """Fine and coarse labels, with train_extra."""
    return trees.make_coarse(root)


def found(root, **options) -> set[tuple[str, str]]:
    """Kind and place, relative to the root, of every error."""
    listing = cityscapes.scan(root, **options)
    return {(fault.kind, os.path.relpath(fault.where, root)) for fault in errors(listing.faults)}


def names(root, split="train", **options) -> list[str]:
    listing = cityscapes.scan(root, **options)
    assert not errors(listing.faults), listing.faults
    return [item.name for item in listing.splits[split]]


def test_a_clean_tree_has_no_errors_and_every_frame_its_place_in_a_video(root):
    before = trees.snapshot(root)
    listing = cityscapes.scan(root)
    assert not errors(listing.faults)
    assert [(fault.kind, fault.severity) for fault in listing.faults] == [("count", "warning")] * 2
    assert "the official number is 2975" in listing.faults[0].what
    item = listing.splits["train"][2]
    assert (item.name, item.sequence, item.frame) == ("bad-honnef_000001_000019", "bad-honnef_000001", 19)
    assert item.label is not None
    assert (item.image.name, item.label.name) == (IMAGE, LABEL)
    assert listing.expected_size == (1024, 2048)
    assert trees.snapshot(root) == before


ZIPS = {
    "leftImg8bit_trainvaltest.zip": ("leftImg8bit/train", "leftImg8bit/val"),
    "gtFine_trainvaltest.zip": ("gtFine",),
    "gtCoarse.zip": ("gtCoarse",),
    "leftImg8bit_trainextra.zip": ("leftImg8bit/train_extra",),
}


@pytest.mark.parametrize("packed", range(16))
def test_every_mixture_of_folders_and_official_zips_holds_the_same(whole, packed):
    options = {"train_from": ["train", "train_extra"]}
    plain = cityscapes.scan(whole, **options)
    expected = {
        (split, item.name): (read(item.image), read(item.label))
        for split, items in plain.splits.items()
        for item in items
        if item.label
    }
    zipped = [archive for bit, archive in enumerate(ZIPS) if packed >> bit & 1]
    for archive in zipped:
        trees.zip_away(whole, archive, *ZIPS[archive])
    assert cityscapes.looks_like(whole)
    listing = cityscapes.scan(whole, **options)
    assert not errors(listing.faults), listing.faults
    got = {
        (split, item.name): (read(item.image), read(item.label))
        for split, items in listing.splits.items()
        for item in items
        if item.label
    }
    assert got == expected
    for archive in zipped:
        assert f"read in place: {archive}" in listing.notes


def test_a_fault_in_a_zip_names_archive_and_member(root):
    (root / LABEL).unlink()
    trees.zip_away(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    assert found(root) == {("missing-partner", f"leftImg8bit_trainvaltest.zip/{IMAGE}")}


def test_coarse_annotations_train_on_train_extra_by_default(whole):
    extra = ["troisdorf_000000_000000", "troisdorf_000000_000001"]
    fine = names(whole)
    assert names(whole, annotations="coarse") == extra
    assert names(whole, annotations="coarse", train_from=["train"]) == fine
    assert names(whole, annotations="coarse", train_from=["train_extra", "train"]) == extra + fine
    listing = cityscapes.scan(whole, annotations="coarse", train_from=["train"])
    assert all(item.label.name.startswith("gtCoarse/train/") for item in listing.splits["train"])
    assert all(item.label.name.startswith("gtFine/val/") for item in listing.splits["val"])


def test_fine_train_and_coarse_train_extra_make_one_split(whole):
    listing = cityscapes.scan(whole, train_from=["train", "train_extra"])
    assert not errors(listing.faults)
    assert len(listing.splits["train"]) == 3 + 2
    assert any("train_extra has coarse annotations" in note for note in listing.notes)
    counts = [fault.what for fault in listing.faults if fault.kind == "count"]
    assert counts[0] == f"train: 5 images, the official number is {2975 + 19997}"


def test_the_known_black_frame_is_left_out_aloud(whole):
    listing = cityscapes.scan(whole, annotations="coarse")
    assert "troisdorf_000000_000073" not in [item.name for item in listing.splits["train"]]
    left_out = [fault for fault in listing.faults if fault.kind == "left-out"]
    assert [fault.severity for fault in left_out] == ["warning"]
    assert left_out[0].where.endswith("troisdorf_000000_000073_leftImg8bit.png")


def test_the_known_black_frame_is_left_out_where_a_user_removed_its_label(whole):
    (whole / "gtCoarse/train_extra/troisdorf/troisdorf_000000_000073_gtCoarse_labelIds.png").unlink()
    assert found(whole, annotations="coarse") == set()


def test_val_is_coarse_only_where_there_is_no_fine_one(whole):
    shutil.rmtree(whole / "gtFine")
    assert cityscapes.looks_like(whole)
    listing = cityscapes.scan(whole, annotations="coarse")
    assert not errors(listing.faults)
    assert listing.splits["val"][0].label.name.endswith("_gtCoarse_labelIds.png")
    assert any("val has coarse annotations" in note for note in listing.notes)


def test_train_and_val_may_be_trained_together_and_it_is_said(root):
    listing = cityscapes.scan(root, train_from=["train", "val"])
    assert not errors(listing.faults)
    assert (len(listing.splits["train"]), len(listing.splits["val"])) == (5, 2)
    assert any("val is a part of train" in note for note in listing.notes)


def test_test_and_train_extra_are_left_alone_unless_asked_for(whole):
    shutil.rmtree(whole / "gtCoarse")
    (whole / "leftImg8bit/test/berlin").mkdir(parents=True)
    (whole / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png").write_bytes(b"x")
    (whole / "leftImg8bit/train_extra/troisdorf/nonsense_leftImg8bit.png").write_bytes(b"x")
    assert len(names(whole)) == 3
    place = "leftImg8bit/train_extra/troisdorf/nonsense_leftImg8bit.png"
    assert ("wrong-place", place) in found(whole, annotations="coarse")


# ------------------------------------------------------------------------------------------------ files out of place


def move(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


def test_a_file_in_another_citys_folder_is_named(root):
    moved = "leftImg8bit/train/aachen/bad-honnef_000001_000019_leftImg8bit.png"
    move(root, IMAGE, moved)
    assert found(root) == {("wrong-place", moved)}


def test_a_city_of_val_in_train_is_named_once_a_folder(root):
    for top in ("leftImg8bit", "gtFine"):
        shutil.move(root / top / "val/lindau", root / top / "train/lindau")
    trees.make_cityscapes(root, val=0)
    places = {(kind, place) for kind, place in found(root) if kind == "wrong-place"}
    assert places == {("wrong-place", "leftImg8bit/train/lindau"), ("wrong-place", "gtFine/train/lindau")}


def test_a_single_frame_of_a_val_city_in_train_is_named_itself(root):
    base = "lindau/lindau_000001_000019"
    for top, end in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", "_gtFine_labelIds.png")):
        move(root, f"{top}/val/{base}{end}", f"{top}/train/{base}{end}")
    assert found(root) == {
        ("wrong-place", f"leftImg8bit/train/{base}_leftImg8bit.png"),
        ("wrong-place", f"gtFine/train/{base}_gtFine_labelIds.png"),
    }


@pytest.mark.parametrize(("split", "city"), [("val", "aachen"), ("val", "zurich"), ("train", "berlin")])
def test_a_city_of_another_official_split_is_named(root, split, city):
    for top, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        place = root / top / split / city / f"{city}_000900_000019_{end}.png"
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(root / (IMAGE if top == "leftImg8bit" else LABEL), place)
    assert {kind for kind, _ in found(root)} == {"wrong-place"}
    assert all(f"/{split}/{city}/" in place for _, place in found(root))


def test_cities_of_ones_own_are_fine_in_any_split(root):
    for top, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        for split, city in (("train", "cambridge"), ("val", "ely"), ("val", "st-ives")):
            place = root / top / split / city / f"{city}_000000_000001_{end}.png"
            place.parent.mkdir()
            shutil.copyfile(root / (IMAGE if top == "leftImg8bit" else LABEL), place)
    assert found(root) == set()


def test_the_same_frame_in_two_splits_is_named(root):
    for place in (IMAGE, LABEL):
        other = root / place.replace("/train/", "/val/")
        other.parent.mkdir()
        shutil.copyfile(root / place, other)
    assert found(root) == {("wrong-place", IMAGE.replace("/train/", "/val/"))}


@pytest.mark.parametrize("place", [IMAGE, LABEL])
def test_a_name_in_another_case_is_named_and_its_partner_is_not(root, place):
    other = place.replace("_leftImg8bit.png", "_leftimg8bit.PNG").replace("_labelIds", "_labelids")
    move(root, place, other)
    assert found(root) == {("wrong-place", other)}


def test_a_split_in_another_case_is_named(root):
    (root / "leftImg8bit/val").rename(root / "leftImg8bit/Val")
    assert ("wrong-place", "leftImg8bit/Val") in found(root)


@pytest.mark.parametrize("folder", ["leftImg8bit/train", "leftImg8bit/train/bad-honnef/more"])
def test_an_image_in_no_citys_folder_is_named(root, folder):
    move(root, IMAGE, f"{folder}/{Path(IMAGE).name}")
    assert found(root) == {("wrong-place", f"{folder}/{Path(IMAGE).name}")}


# ------------------------------------------------------------------------------------------------------ missing files


def test_train_ids_beside_label_ids_are_ignored(root):
    shutil.copyfile(root / LABEL, root / LABEL.replace("labelIds", "labelTrainIds"))
    assert len(names(root)) == 3


def test_train_ids_instead_of_label_ids_are_one_clear_fault_a_split(root):
    for path in (root / "gtFine").rglob("*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    assert found(root) == {("missing-partner", "gtFine/train"), ("missing-partner", "gtFine/val")}
    line = errors(cityscapes.scan(root).faults)[0].line()
    assert "3 files of labelTrainIds and none of labelIds: copy the *_gtFine_labelIds.png files" in line


def test_a_split_without_any_labels_is_one_fault_and_so_is_one_without_images(whole):
    shutil.rmtree(whole / "gtFine/train")
    shutil.rmtree(whole / "leftImg8bit/val")
    shutil.rmtree(whole / "leftImg8bit/train_extra")
    expected = {("missing-partner", "gtFine/train"), ("missing-partner", "leftImg8bit/val")}
    assert found(whole) == expected
    extra = ("missing-partner", "leftImg8bit/train_extra")
    assert found(whole, train_from=["train", "train_extra"]) == {*expected, extra}
    lines = [fault.line() for fault in cityscapes.scan(whole, annotations="coarse").faults]
    assert any(line.endswith("add what leftImg8bit_trainextra.zip holds") for line in lines)


def test_an_archive_that_is_not_asked_for_is_not_opened(root):
    for name in ("leftImg8bit_trainextra.zip", "gtCoarse.zip"):
        (root / name).write_bytes(b"half a download")
    assert names(root)
    listing = cityscapes.scan(root, train_from=["train", "train_extra"])
    damaged = {Path(fault.where).name for fault in errors(listing.faults) if fault.kind == "archive"}
    assert damaged == {"leftImg8bit_trainextra.zip", "gtCoarse.zip"}


def test_a_damaged_archive_of_what_is_extracted_is_no_matter(root):
    for name in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
        (root / name).write_bytes(b"<html>not found</html>")
    assert found(root) == set()
    shutil.rmtree(root / "gtFine/val")
    assert ("archive", "gtFine_trainvaltest.zip") in found(root)


def test_coarse_annotations_that_are_not_there_are_named(root):
    (fault,) = errors(cityscapes.scan(root, annotations="coarse").faults)
    assert (fault.kind, fault.where) == ("missing-partner", f"{root}/gtCoarse")
    assert "train_extra is the default" in fault.what


def test_several_faults_are_all_named_in_one_go(root):
    aachen = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    (root / LABEL).unlink()
    (root / aachen).unlink()
    shutil.rmtree(root / "leftImg8bit/val")
    shutil.rmtree(root / "gtFine/val")
    assert found(root) == {
        ("missing-partner", IMAGE),
        ("missing-partner", "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"),
        ("empty-split", "."),
    }


def test_an_empty_train_extra_is_named_by_its_own_name(root):
    listing = cityscapes.scan(root, train_from=["train", "train_extra"])
    assert [fault.what for fault in errors(listing.faults)] == ["the split 'train_extra' is empty"]


@pytest.mark.parametrize("options", [{"annotations": "rough"}, {"train_from": ["test"]}])
def test_an_option_of_another_value_is_refused(root, options):
    with pytest.raises(MmsegError, match="choose "):
        cityscapes.scan(root, **options)


@pytest.mark.parametrize("path", ["absent", "file", "nul\0", "folder"])
def test_looks_like_never_raises(tmp_path, path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder/leftImg8bit").mkdir(parents=True)
    assert not cityscapes.looks_like(tmp_path / path)


def test_links_inside_the_root_are_followed(root, tmp_path):
    (root / "leftImg8bit/train").rename(root / "frames")
    (root / "leftImg8bit/train").symlink_to(root / "frames")
    assert len(names(root)) == 3


def test_frames_of_ones_own_in_the_exact_layout():
    place = os.environ.get("MMSEG_TEST_DATA")
    if not place or not (Path(place) / "cityscapes-layout").is_dir():
        pytest.skip("needs real data: set MMSEG_TEST_DATA to a folder that holds cityscapes-layout/")
    listing = cityscapes.scan(Path(place) / "cityscapes-layout")
    assert not errors(listing.faults)
    assert {split: len(items) for split, items in listing.splits.items()} == {"train": 36, "val": 12}
    assert listing.table is not None
    for item in listing.splits["val"]:
        with Image.open(item.label.path) as label:
            assert (listing.table[np.asarray(label)] >= 0).all()
