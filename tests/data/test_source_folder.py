"""Anybody's dataset: images, masks and classes.yaml."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmseg_cli.data import faults
from mmseg_cli.data.sources import classes_file, folder
from mmseg_cli.errors import MmsegError


@pytest.fixture(scope="session")
def own(tmp_path_factory) -> Path:
    """A clean tree with masks of ids and a folder a split; only read."""
    return trees.make_folder(tmp_path_factory.mktemp("own") / "mine")


@pytest.fixture
def tree(own, tmp_path) -> Path:
    return Path(shutil.copytree(own, tmp_path / "mine"))


@pytest.fixture
def pool(tree) -> Path:
    """The same without folders for splits: a0 to a4."""
    number = 0
    for split in ("train", "val"):
        for image in sorted((tree / "images" / split).iterdir()):
            image.rename(tree / "images" / f"a{number}.jpg")
            (tree / "masks" / split / f"{image.stem}.png").rename(tree / "masks" / f"a{number}.png")
            number += 1
        (tree / "images" / split).rmdir()
        (tree / "masks" / split).rmdir()
    return tree


def says(root: Path, **changes: Any) -> Path:
    """Change keys of classes.yaml; None removes one."""
    path = root / "classes.yaml"
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return root


def names(root: Path) -> dict[str, list[str]]:
    listing = folder.scan(root)
    assert faults.errors(listing.faults) == []
    return {split: [item.name for item in items] for split, items in listing.splits.items()}


def found(root: Path) -> set[tuple[str, str, str]]:
    return {(fault.kind, fault.where, fault.what) for fault in faults.errors(folder.scan(root).faults)}


# ------------------------------------------------------------------------------------------------------ what masks hold


def test_masks_of_ids(own):
    assert folder.looks_like(own)
    listing = folder.scan(own)
    assert listing.faults == []
    assert (listing.dataset, listing.task, listing.colours) == ("folder", "segmentation", None)
    assert listing.space.name == "mine-3"
    assert listing.space.classes == ("road", "car", "sky")
    assert listing.space.ids == (0, 3, 7)
    assert listing.label_modes == ("L", "P")
    assert listing.table is not None
    known = {index: int(value) for index, value in enumerate(listing.table) if value >= 0}
    assert known == {0: 0, 3: 1, 7: 2, 9: 255, 255: 255}
    assert [(item.name, item.sequence, item.frame) for item in listing.splits["val"]] == [
        ("val0", None, None),
        ("val1", None, None),
    ]
    for items in listing.splits.values():
        for item in items:
            assert item.label is not None
            assert item.label.path == item.image.path.replace("/images/", "/masks/").replace(".jpg", ".png")


def test_masks_of_colours(tmp_path):
    listing = folder.scan(trees.make_folder(tmp_path / "mine", colour=True))
    assert listing.faults == []
    assert listing.table is None
    assert listing.colours == {0x804080: 0, 0x00008E: 1, 0x4682B4: 2, 0xFFFFFF: 255}
    assert set(listing.label_modes) == {"RGB", "RGBA", "P", "L"}
    assert listing.space.colours == ((128, 64, 128), (0, 0, 142), (70, 130, 180))
    assert listing.space.ids == (-1, -1, -1)


def test_black_and_white_masks(tree):
    white = [{"name": "other", "colour": [0, 0, 0]}, {"name": "thing", "colour": "#FFFFFF"}]
    listing = folder.scan(says(tree, classes=white, ignore=None))
    assert listing.colours == {0: 0, 0xFFFFFF: 1}
    assert "L" in listing.label_modes


@pytest.mark.parametrize(
    ("classes", "ids"),
    [
        (["road", "car"], (0, 1)),
        ([{"name": "road"}, "car"], (0, 1)),
        ([{"name": "road", "id": 5}, {"name": "car", "id": 2}], (5, 2)),
        ({"road": 5, "car": 2}, (5, 2)),
        ({5: "road", 2: "car"}, (5, 2)),
        ({"road": {"id": 5}, "car": {"id": 2}}, (5, 2)),
        ({"road": None, "car": None}, (0, 1)),
    ],
)
def test_ids_may_be_written_in_many_ways(tree, classes, ids):
    listing = folder.scan(says(tree, classes=classes))
    assert (listing.space.classes, listing.space.ids) == (("road", "car"), ids)
    assert len(set(listing.space.colours)) == 2  # pictures need some


@pytest.mark.parametrize(
    "classes",
    [
        [{"name": "road", "colour": [1, 2, 3]}, {"name": "car", "color": "#0a0b0c"}],
        {"road": [1, 2, 3], "car": "#0A0B0C"},
        {"road": {"color": "#010203"}, "car": {"colour": [10, 11, 12]}},
    ],
)
def test_colours_may_be_written_in_many_ways(tree, classes):
    assert folder.scan(says(tree, classes=classes, ignore=None)).colours == {0x010203: 0, 0x0A0B0C: 1}


def test_classes_with_both_need_a_word(tree):
    both = [{"name": "road", "id": 4, "colour": [1, 2, 3]}, {"name": "car", "id": 5, "colour": [4, 5, 6]}]
    says(tree, classes=both, ignore=None)
    with pytest.raises(MmsegError, match="the classes have ids and colours: say `masks: index` or `masks: colour`"):
        folder.scan(tree)
    index = folder.scan(says(tree, masks="index"))
    assert index.table is not None
    assert (index.table[4], index.colours, index.space.colours) == (0, None, ((1, 2, 3), (4, 5, 6)))
    colour = folder.scan(says(tree, masks="color"))
    assert (colour.table, colour.colours, colour.space.ids) == (None, {0x010203: 0, 0x040506: 1}, (4, 5))


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        ([0, 0, 0], {0: 255}),
        ([[0, 0, 0]], {0: 255}),
        ("#000000", {0: 255}),
        (["#000000", [0, 0, 1]], {0: 255, 1: 255}),
        ([], {}),
    ],
)
def test_ignored_colours(tmp_path, ignore, expected):
    root = says(trees.make_folder(tmp_path / "mine", colour=True), ignore=ignore)
    colours = folder.scan(root).colours
    assert colours is not None
    assert {colour: target for colour, target in colours.items() if target == 255} == expected


def test_two_hundred_and_fifty_five_classes_are_possible(tree):
    listing = folder.scan(says(tree, classes=[f"c{number}" for number in range(255)], ignore=None))
    assert listing.table is not None
    assert np.array_equal(listing.table, np.arange(256))
    assert len(set(listing.space.colours)) == 255


# ----------------------------------------------------------------------------------------------- what classes.yaml says

WRONG = [  # (the whole file, or changes to a good one; what the error says)
    ("", "holds no keys"),
    ("- a\n- b\n", "holds no keys"),
    ("classes: [a, b\n", "not valid YAML, line 2"),
    ("classes: [a]\nclasses: [b]\n", "the key 'classes' stands twice"),
    ("classes: !!bool x\n", "cannot be read"),
    ("classes: " + "[" * 3000, ""),
    ("classes: !!python/object:os.system x\n", "not valid YAML, line 1"),
    (
        "a: &a [" + "x, " * 9 + "]\nb: &b [" + "*a, " * 9 + "]\nc: &c [" + "*b, " * 9 + "]\nclasses: [*c, *c]\n",
        "classes.0",
    ),
    ("name: mine\n", "the key classes is missing"),
    ({"colour": 1}, "unknown key colour"),
    ({"classes": []}, "classes: 0 classes, from 1 to 255 are possible"),
    ({"classes": [f"c{number}" for number in range(256)]}, "classes: 256 classes"),
    ({"classes": "road"}, "classes: a list of names or of {name, id, colour} is expected, got 'road'"),
    ({"classes": [1, 2]}, "classes.0.name: the name of a class is text (quote it), got 1"),
    ({"classes": [True]}, "classes.0.name: the name of a class is text (quote it), got True"),
    ({"classes": ["road", ""]}, "classes.1.name: the name of a class is one line"),
    ({"classes": ["a\nb"]}, "classes.0.name: the name of a class is one line of 1 to 100 characters, got 'a\\nb'"),
    ({"classes": ["road", "car", "road"]}, "classes: the name 'road' stands twice"),
    ({"classes": {"road": 1, "car": 1}}, "classes: the id 1 stands twice"),
    ({"classes": {"road": [1, 1, 1], "car": "#010101"}, "ignore": None}, "classes: the colour [1, 1, 1] stands twice"),
    ({"classes": [{"id": 1}]}, "the key classes.0.name is missing"),
    ({"classes": [{"name": "road", "colr": 1}]}, "unknown key classes.0.colr"),
    ({"classes": [{"name": "road", "id": "7"}]}, "classes.0.id: Input should be a valid integer, got '7'"),
    ({"classes": [{"name": "road", "id": 256}]}, "classes.0.id: Input should be less than or equal to 255, got 256"),
    ({"classes": {"road": -1}}, "classes.0.id: Input should be greater than or equal to 0, got -1"),
    ({"classes": [{"name": "a"}, {"name": "b", "id": 255}]}, "classes.0: 'a' has no id, and others have one"),
    ({"classes": {"a": 0, "b": 255}}, "classes.1: the id 255 is always ignored"),
    ({"classes": {"road": [1, 2, 256]}}, "classes.0.colour: a colour is [red, green, blue] of 0 to 255"),
    ({"classes": {"road": [1, 2]}}, "classes.0.colour: a colour is"),
    ({"classes": {"road": "#12345"}}, "classes.0.colour: a colour is"),
    ({"classes": {"road": "#12345g"}}, "classes.0.colour: a colour is"),
    ({"classes": {"road": {"colour": [1, 2, 3], "color": [1, 2, 3]}}}, "classes.0: has both colour and color"),
    ({"classes": {"road": {"name": "road"}}}, "classes: the class 'road' has two names"),
    ({"classes": ["road"], "masks": "colour", "ignore": None}, "classes.0: 'road' has no colour"),
    ({"masks": "rgb"}, "masks: Input should be 'index' or 'colour', got 'rgb'"),
    ({"ignore": 7}, "ignore: 7 is also the id of a class"),
    ({"ignore": 256}, "ignore: an id is from 0 to 255, got 256"),
    ({"ignore": [9, 9]}, "ignore: the id 9 stands twice"),
    ({"ignore": "#000000"}, "ignore: '#000000' is a colour, and the masks hold ids"),
    ({"ignore": "sky"}, "ignore: a colour is"),
    ({"classes": {"road": [1, 1, 1]}, "ignore": 3}, "ignore: 3 is an id, and the masks hold colours"),
    ({"classes": {"road": [1, 1, 1]}, "ignore": [1, 1, 1]}, "ignore: [1, 1, 1] is also the colour of a class"),
    ({"name": "a b"}, "name: String should match pattern"),
    ({"name": "../../x"}, "name: String should match pattern"),
    ({"mask_suffix": "../x"}, "mask_suffix: what follows the image's name"),
    ({"splits": "random"}, "splits: Input should be"),
    ({"splits": {"train": "train.txt"}}, "the key splits.val is missing"),
    ({"splits": {"val": "val.txt"}}, "splits: list files go with train and val"),
    ({"splits": {"train": "a.txt", "val": 0.1}}, "splits: list files go with train and val"),
    ({"splits": {"train": "a.txt", "val": "a.txt"}}, "splits: two splits have the same list file"),
    (
        {"splits": {"train": "../a.txt", "val": "b.txt"}},
        "splits.train: a list file lies below the root, got '../a.txt'",
    ),
    ({"splits": {"train": "/etc/passwd", "val": "b.txt"}}, "splits.train: a list file lies below the root"),
    ({"splits": {"val": 1}}, "splits.val: a list file such as val.txt or a share between 0 and 1 is expected, got 1"),
    ({"splits": {"val": float("nan")}}, "splits.val: a list file"),
    ({"splits": {"val": 0.5, "test": 0.5}}, "splits: shares go with val (and test) and leave something to train"),
    ({"splits": {"train": 0.9, "val": 0.1}}, "splits: shares go with val"),
    ({"splits": {"val": 0.1, "seed": 0.5}}, "splits.seed: Input should be a valid integer, got 0.5"),
    ({"splits": {"valid": 0.1}}, "the key splits.val is missing"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_classes_file_is_one_line_with_the_key(tree, content, message):
    if isinstance(content, str):
        (tree / "classes.yaml").write_text(content)
    else:
        says(tree, **content)
    with pytest.raises(MmsegError) as caught:
        folder.scan(tree)
    line = str(caught.value)
    assert line.startswith(f"{tree / 'classes.yaml'}: ")
    assert message in line
    assert "\n" not in line
    assert len(line) < 600


def test_without_a_classes_file_the_help_is_named(tree):
    (tree / "classes.yaml").unlink()
    assert folder.looks_like(tree)
    with pytest.raises(MmsegError, match="classes.yaml: missing: .*mmseg prepare folder --help"):
        folder.scan(tree)
    (tree / "classes.yaml").write_bytes(b"# " + b"x" * (1 << 20))
    with pytest.raises(MmsegError, match="too large"):
        folder.scan(tree)
    (tree / "classes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MmsegError, match="cannot be read"):
        folder.scan(tree)


def test_an_archive_is_refused_in_one_line(tmp_path):
    (tmp_path / "mine.zip").write_bytes(b"PK")
    assert not folder.looks_like(tmp_path / "mine.zip")
    with pytest.raises(MmsegError, match="mine.zip: is no folder: unpack it"):
        folder.scan(tmp_path / "mine.zip")


def test_the_help_shows_a_file_that_works(tree, pool):
    lines = folder.HELP.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 120
    start = next(number for number, line in enumerate(lines) if "mydata/classes.yaml" in line) + 1
    stop = next(number for number, line in enumerate(lines) if "How images are split" in line)
    text = "\n".join(line[4:] for line in lines[start:stop])
    for commented in (False, True):
        if commented:  # the other way to write the classes
            text = text.replace("classes: [road, car]", "classes:").replace("#  - {", "   - {")
        (pool / "classes.yaml").write_text(text)
        keys = {"name", "classes", "masks", "ignore", "mask_suffix", "splits"}
        assert set(yaml.safe_load(text)) == keys
        classes = classes_file.read_classes(pool / "classes.yaml")
        assert classes.ids == ((7, 26) if commented else (0, 1))
        assert classes.colours[1] == ((0, 0, 142) if commented else None)
        assert (classes.ignored_ids, classes.shares) == ((2,), {"val": 0.1})
    ways = re.findall(r"^    (splits: \{.*?\})", "\n".join(lines[stop:]), re.MULTILINE)
    assert len(ways) == 2
    for way in ways:
        says(pool, **yaml.safe_load(way))
        classes_file.read_classes(pool / "classes.yaml")


# --------------------------------------------------------------------------------------------------- folders for splits


def test_test_is_a_split_where_it_is_there(tree):
    shutil.copytree(tree / "images/val", tree / "images/test")
    shutil.copytree(tree / "masks/val", tree / "masks/test")
    assert list(names(tree)) == ["train", "val", "test"]


def test_a_test_set_without_masks_is_left_out_aloud(tree):
    shutil.copytree(tree / "images/val", tree / "images/test")
    assert list(names(tree)) == ["train", "val"]
    (fault,) = folder.scan(tree).faults
    assert (fault.kind, fault.where, fault.severity) == ("left-out", f"{tree}/images/test", "warning")
    assert fault.what == "2 images of test have no masks and are left out"


def test_folders_and_a_share_contradict_each_other(tree):
    what = "images/ has the folders train and val, and classes.yaml has a share"
    assert found(says(tree, splits={"val": 0.5})) == {("config", f"{tree}/classes.yaml", what)}


def test_a_suffix_that_no_mask_has_is_one_fault(tree):
    with pytest.raises(MmsegError, match=r"classes\.yaml: no mask's name ends in mask_suffix '_label'"):
        folder.scan(says(tree, mask_suffix="_label"))


def test_images_in_folders_keep_their_paths(tree):
    for top, end in (("images", "jpg"), ("masks", "png")):
        for scene in ("a", "b"):
            (tree / top / "train" / scene).mkdir()
            shutil.copy(tree / top / f"train/train0.{end}", tree / top / f"train/{scene}/same.{end}")
    assert names(tree)["train"] == ["a/same", "b/same", "train0", "train1", "train2"]


def test_all_faults_are_collected(tree):
    (tree / "masks/train/train0.png").unlink()
    (tree / "images/train/train1.jpg").unlink()
    shutil.copy(tree / "images/train/train2.jpg", tree / "images/train/train2.png")
    (tree / "masks/val/val0.png").rename(tree / "masks/val/val0.jpg")
    assert found(tree) == {
        ("missing-partner", f"{tree}/images/train/train0.jpg", "has no mask train0.png"),
        ("missing-partner", f"{tree}/masks/train/train1.png", "has no image"),
        (
            "missing-partner",
            f"{tree}/images/train/train2.png",
            "has the name of train2.jpg, and a mask belongs to one image",
        ),
        ("wrong-mode", f"{tree}/masks/val/val0.jpg", "is not a PNG, and other files may change labels"),
    }


def test_masks_with_a_suffix(tree):
    for mask in list((tree / "masks").rglob("*.png")):
        shutil.copy(mask, mask.with_name(f"{mask.stem}_mask.png"))
        mask.rename(mask.with_name(f"{mask.stem}_view.png"))
    expected = {"train": ["train0", "train1", "train2"], "val": ["val0", "val1"]}
    assert names(says(tree, mask_suffix="_mask")) == expected
    assert names(says(tree, mask_suffix="_mask.png")) == expected
    (tree / "masks/val/val0_mask.png").unlink()
    assert found(tree) == {("missing-partner", f"{tree}/images/val/val0.jpg", "has no mask val0_mask.png")}


def test_an_empty_split_says_what_is_there(tree):
    (tree / "images/val").rename(tree / "images/validation")
    (tree / "masks/val").rename(tree / "masks/validation")
    assert found(tree) == {("empty-split", str(tree), "the split 'val' is empty")}
    (fault,) = faults.errors(folder.scan(tree).faults)
    assert "images/ holds train, validation" in fault.todo
    warnings = [fault for fault in folder.scan(tree).faults if fault.severity == "warning"]
    assert [(fault.kind, fault.where) for fault in warnings] == [("left-out", f"{tree}/images/validation")]


@pytest.mark.parametrize("top", ["images", "masks"])
def test_a_missing_folder_is_named(tree, top):
    (tree / top).rename(tree / "pictures")
    with pytest.raises(
        MmsegError, match=rf"{top}: holds no images \(the root holds .*pictures.*\): put the {top} there"
    ):
        folder.scan(tree)


# ---------------------------------------------------------------------------------------------------------- list files


def listed(root: Path, *, train: str, val: str, **more: str) -> Path:
    files = {"train": train, "val": val, **more}
    for split, text in files.items():
        (root / f"{split}.txt").write_bytes(text.encode())
    return says(root, splits={split: f"{split}.txt" for split in files})


def test_list_files_with_names_as_people_write_them(pool):
    text = "\ufeff# my images\r\na3\r\n\r\n  ./a1.jpg \r\n"
    root = listed(pool, train=text, val="images/a0.jpg\nimages\\a4", test="a2.png")
    assert names(root) == {"train": ["a3", "a1"], "val": ["a0", "a4"], "test": ["a2"]}


def test_list_files_in_a_folder_of_their_own(pool):
    listed(pool, train="a0\n", val="a1\n")
    (pool / "lists").mkdir()
    for split in ("train", "val"):
        (pool / f"{split}.txt").rename(pool / "lists" / f"{split}.txt")
    says(pool, splits={"train": "lists/train.txt", "val": "lists/val.txt"})
    assert names(pool) == {"train": ["a0"], "val": ["a1"]}
    (warning,) = folder.scan(pool).faults
    assert (warning.kind, warning.severity) == ("left-out", "warning")
    assert warning.what == "3 of 5 images are in none of lists/train.txt, lists/val.txt"


def test_names_alone_do_where_they_are_unique(tree):
    root = listed(tree, train="train0\ntrain/train1\n", val="val0.jpg\nval/val1.jpg\n")
    assert names(root) == {"train": ["train/train0", "train/train1"], "val": ["val/val0", "val/val1"]}
    for top, end in (("images", "jpg"), ("masks", "png")):
        shutil.copy(tree / top / f"train/train0.{end}", tree / top / f"val/train0.{end}")
    assert {(kind, what) for kind, _, what in found(tree)} == {
        ("missing-partner", "line 1 names 'train0', and images/ has no such image")
    }


def test_faults_of_list_files_name_file_and_line(pool):
    (pool / "masks/a4.png").unlink()
    (pool / "masks/a3.png").unlink()  # not listed, so not needed
    root = listed(pool, train="a0\nnone\na1\na0.jpg\n", val="a1\na2\na4\n../secret\n")
    assert found(root) == {
        ("missing-partner", f"{root}/train.txt", "line 2 names 'none', and images/ has no such image"),
        ("config", f"{root}/train.txt", "line 4 names 'a0.jpg', which line 1 has too"),
        ("wrong-place", f"{root}/val.txt", "line 1 names 'a1', which line 3 of train.txt has too"),
        ("missing-partner", f"{root}/val.txt", "line 4 names '../secret', and images/ has no such image"),
        ("missing-partner", f"{root}/images/a4.jpg", "has no mask a4.png"),
    }


def test_a_list_of_something_else_is_one_fault(pool):
    root = listed(pool, train="a0\n", val="".join(f"x{number}\n" for number in range(1000)))
    ((kind, where, what),) = found(root)
    assert (kind, where) == ("missing-partner", f"{root}/val.txt")
    assert what.startswith("none of its 1000 names is an image (line 1 names 'x0'")


def test_missing_empty_and_unreadable_list_files(pool):
    listed(pool, train="a0\n", val="# nothing\n")
    assert found(pool) == {("empty-split", str(pool), "the split 'val' is empty")}
    (pool / "val.txt").write_bytes(b"\xff\xfea\x000\x00")
    assert found(pool) == {("config", f"{pool}/val.txt", "is not UTF-8 text")}
    (pool / "val.txt").unlink()
    assert found(pool) == {("config", f"{pool}/val.txt", "missing, and classes.yaml names it")}


# -------------------------------------------------------------------------------------------------------------- shares


def test_a_share_is_drawn_by_name_alone(pool):
    for number in range(5, 200):
        shutil.copy(pool / "images/a0.jpg", pool / f"images/a{number}.jpg")
        shutil.copy(pool / "masks/a0.png", pool / f"masks/a{number}.png")
    says(pool, splits={"val": 0.2, "test": 0.1, "seed": 3})
    before = names(pool)
    assert sorted(name for split in before.values() for name in split) == sorted(f"a{number}" for number in range(200))
    assert 25 <= len(before["val"]) <= 55
    assert 10 <= len(before["test"]) <= 32
    note = folder.scan(pool).notes[-1]
    assert "0.2 val, 0.1 test of them with seed 3" in note
    assert f"{len(before['val'])} val" in note
    for number in range(0, 200, 2):
        (pool / f"images/a{number}.jpg").unlink()
        (pool / f"masks/a{number}.png").unlink()
    odd = names(pool)
    assert odd == {split: [n for n in all_of_it if int(n[1:]) % 2] for split, all_of_it in before.items()}
    assert names(says(pool, splits={"val": 0.2, "test": 0.1, "seed": 4})) != odd


def test_the_draw_does_not_change(pool):
    assert names(says(pool, splits={"val": 0.5})) == {"train": ["a0", "a2", "a3"], "val": ["a1", "a4"]}


def test_a_share_that_takes_nothing_is_named(pool):
    assert found(says(pool, splits={"val": 0.000001})) == {("empty-split", str(pool), "the split 'val' is empty")}


def test_with_a_share_every_image_needs_its_mask(pool):
    (pool / "masks/a1.png").unlink()
    (pool / "images/a3.jpg").unlink()
    assert found(says(pool, splits={"val": 0.5})) == {
        ("missing-partner", f"{pool}/images/a1.jpg", "has no mask a1.png"),
        ("missing-partner", f"{pool}/masks/a3.png", "has no image"),
    }


# ------------------------------------------------------------------------------------------------------------- fuzzing

SCALARS = (
    st.none() | st.booleans() | st.integers(-300, 300) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["road", "car", "#010203", "train.txt", "val.txt", "lists/val.txt", "colour", "index", 255, 0.2])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "id", "colour", "color", "val", "road", "car", 7]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
COLOURS = st.lists(st.integers(-1, 256), min_size=3, max_size=3)
ENTRIES = st.fixed_dictionaries(
    {"name": st.sampled_from(["road", "car", "sky", "", "a\nb"])},
    optional={"id": st.integers(-1, 256), "colour": COLOURS, "color": COLOURS | SCALARS},
)
RIGHT = (
    {"classes": ["road", "car"], "ignore": 9, "splits": {"val": 0.5, "seed": 1}},
    {"name": "mine", "classes": {"road": 1, "car": {"id": 2, "colour": [1, 2, 3]}}, "masks": "index"},
    {"classes": [{"name": "road", "colour": "#010203"}, {"name": "car", "color": [4, 5, 6]}], "ignore": [0, 0, 0]},
    {"classes": ["road"], "splits": {"train": "train.txt", "val": "val.txt"}, "mask_suffix": "_mask"},
)
KEYS = st.sampled_from(["name", "classes", "ignore", "masks", "splits", "mask_suffix", "other"])
CHANGED = st.builds(lambda value, key, new: value | {key: new}, st.sampled_from(RIGHT), KEYS, VALUES)
ANYHOW = st.fixed_dictionaries(
    {"classes": st.lists(ENTRIES | st.sampled_from(["x", "y"]), max_size=5) | VALUES},
    optional={
        "name": SCALARS,
        "ignore": st.integers(-1, 256) | COLOURS | st.lists(COLOURS, max_size=2) | VALUES,
        "masks": st.sampled_from(["index", "colour", "color", "rgb"]) | SCALARS,
        "splits": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("train", "val", "test", "seed", "other"), SCALARS)
        ) | VALUES,
        "mask_suffix": SCALARS,
        "other": VALUES,
    },
)  # fmt: skip
NEARLY = CHANGED | st.sampled_from(RIGHT) | ANYHOW
PIECES = (
    *(
        "classes",
        "name",
        "ignore",
        "road",
        ": ",
        "- ",
        "\n",
        "  ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a ",
        "<<",
        "? ",
        "#",
        ", ",
    ),
    *(
        "!!",
        "bool ",
        "timestamp ",
        "int ",
        "float ",
        "binary ",
        "set ",
        "omap ",
        "pairs ",
        "!!python/name:os ",
        "!!null x",
    ),
    *("0x", "1e9", "2020-01-01", "'", '"', "---\n", "...\n", "%YAML 1.1\n", "%TAG ! tag:\n", "\t", "\x85", "\u2028"),
)
CUT = st.builds(
    lambda value, at, length, new: (
        (text := yaml.dump(value).encode())[: at % len(text)] + new + text[at % len(text) + length :]
    ),
    *(st.sampled_from(RIGHT), st.integers(0, 999), st.integers(0, 8)),
    st.binary(max_size=4) | st.sampled_from(PIECES).map(str.encode),
)
TEXTS = (
    CUT
    | st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.text(alphabet="classes:[]{}-#&*!<>|?'\",.\n 0123\t%@`", max_size=200).map(str.encode)
    | st.lists(
        st.sampled_from(PIECES),
        max_size=40,
    ).map(lambda parts: "".join(parts).encode())
)


def survives(root: Path, content: bytes) -> None:
    """Only our own error may come, on one line; otherwise a listing whose faults are lines too."""
    (root / "classes.yaml").write_bytes(content)
    try:
        listing = folder.scan(root)
    except MmsegError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(str(root))
    else:
        assert 1 <= len(listing.space.classes) <= 255
        assert (listing.table is None) != (listing.colours is None)
        assert all("\n" not in fault.line() for fault in listing.faults)
        json.dumps(listing.space.as_json())


def fuzzed(examples: int):
    return settings(
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def dumped(value: Any) -> bytes:
    return yaml.dump(value, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


@fuzzed(100)
@given(TEXTS)
def test_any_text_is_read_or_refused(pool, content):
    survives(pool, content)


@fuzzed(100)
@given(NEARLY)
def test_nearly_right_files_are_read_or_refused(pool, value):
    survives(pool, dumped(value))


@pytest.mark.slow
@fuzzed(5000)
@given(TEXTS)
def test_any_text_is_read_or_refused_5000_times(pool, content):
    survives(pool, content)


@pytest.mark.slow
@fuzzed(5000)
@given(NEARLY)
def test_nearly_right_files_are_read_or_refused_5000_times(pool, value):
    survives(pool, dumped(value))
