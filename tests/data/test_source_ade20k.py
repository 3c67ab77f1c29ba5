from __future__ import annotations

import os
from pathlib import Path

import pytest
import trees

from mmseg_cli.data.faults import errors
from mmseg_cli.data.labels import IGNORE, UNKNOWN
from mmseg_cli.data.sources import ade20k
from mmseg_cli.data.tree import read
from mmseg_cli.errors import MmsegError

TOP = "ADEChallengeData2016"


@pytest.fixture
def root(tmp_path) -> Path:
    """With its top folder, as the archive unpacks."""
    trees.make_ade20k(tmp_path / "ade" / TOP)
    return tmp_path / "ade"


def contents(listing) -> list[tuple[str, str, bytes, bytes]]:
    assert not errors(listing.faults), listing.faults
    return [
        (split, item.name, read(item.image), read(item.label))
        for split, items in listing.splits.items()
        for item in items
    ]


def test_the_folder_with_or_without_its_top_and_the_zip_hold_the_same(root):
    with_top = contents(ade20k.scan(root))
    assert [name for _, name, _, _ in with_top] == [
        *(f"ADE_train_{number:08d}" for number in (1, 2, 3)),
        *(f"ADE_val_{number:08d}" for number in (1, 2)),
    ]
    assert contents(ade20k.scan(root / TOP)) == with_top
    archive = trees.zip_away(root, f"{TOP}.zip", TOP)
    for place in (root, archive):
        assert ade20k.looks_like(place)
        listing = ade20k.scan(place)
        assert contents(listing) == with_top
        assert listing.notes == [f"read in place: {TOP}.zip"]


def test_names_ids_and_counts(root):
    listing = ade20k.scan(root)
    assert listing.space.name == "ade20k-150"
    assert listing.space.classes[:3] == ("wall", "building", "sky")
    assert listing.space.ids == tuple(range(1, 151))
    assert len(set(listing.space.colours)) == 150
    assert listing.table is not None
    assert listing.table[:3].tolist() == [IGNORE, 0, 1]
    assert listing.table[149:153].tolist() == [148, 149, UNKNOWN, UNKNOWN]
    assert ["the official number is 20210" in fault.what for fault in listing.faults] == [True, False]


def test_all_faults_are_named_in_one_go(root):
    image = root / TOP / "images/training/ADE_train_00000002.jpg"
    label = root / TOP / "annotations/training/ADE_train_00000003.png"
    image.unlink()
    label.unlink()
    for path in (root / TOP).glob("*/validation/*"):
        path.unlink()
    found = {(fault.kind, os.path.relpath(fault.where, root / TOP)) for fault in errors(ade20k.scan(root).faults)}
    assert found == {
        ("missing-partner", "annotations/training/ADE_train_00000002.png"),
        ("missing-partner", "images/training/ADE_train_00000003.jpg"),
        ("empty-split", ".."),
    }


def test_a_file_of_the_other_split_is_named(root):
    moved = root / TOP / "annotations/training/ADE_val_00000001.png"
    (root / TOP / "annotations/validation/ADE_val_00000001.png").rename(moved)
    faults = errors(ade20k.scan(root).faults)
    assert ("wrong-place", str(moved)) in [(fault.kind, fault.where) for fault in faults]


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe\0", b"Idx\n1\twall\n", b"\n" * 151, b"Idx\n" + b"1\twall\n" * 150]
)
def test_a_missing_or_wrong_list_of_names_is_named(root, content):
    path = root / TOP / "objectInfo150.txt"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(MmsegError) as caught:
        ade20k.scan(root)
    assert caught.value.where == str(path)


def test_looks_like_never_raises(tmp_path):
    assert not ade20k.looks_like(tmp_path / "nul\0")
    assert not ade20k.looks_like(tmp_path / "absent.zip")
    assert not ade20k.looks_like(tmp_path / f"{TOP}.zip")
