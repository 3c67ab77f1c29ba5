from __future__ import annotations

import re
import shutil

import pytest
import stores
import trees
from PIL import Image

NAMES = ["road", "pole", "sky", "train", "ghost"]


@pytest.fixture(scope="module")
def _toy(tmp_path_factory):
    train = [stores.label(10, 10, c0=30, c1=2, c2=18), stores.label(10, 10, c0=40, c3=10)]
    val = [stores.label(8, 20, c0=40, c1=20, c2=20)]
    folder = tmp_path_factory.mktemp("toy") / "streets"
    stores.make_segmentation(folder, {"train": train, "val": val}, names=NAMES)
    return folder


@pytest.fixture
def toy(_toy, tmp_path, monkeypatch):
    """A store in the folder `data` of the current folder."""
    monkeypatch.chdir(tmp_path)
    return stores.Path(shutil.copytree(_toy, tmp_path / "data" / "streets"))


def test_the_numbers_are_printed_and_the_picture_lies_beside_the_store(toy, mmseg):
    before = trees.snapshot(toy)
    done = mmseg("inspect", "data/streets")
    assert done.code == 0, done.err
    cells = [re.split(r"\s*│\s*", line.strip("│ ")) for line in done.out.splitlines()]
    table = {row[0]: row[1:] for row in cells}
    assert ["train", "2", "10x10, all", "100", "50.00 %"] in cells
    assert ["val", "1", "20x8, all", "80", "50.00 %"] in cells
    assert table["road"][:5] == ["70", "70.00", "2", "1.84", "50.00"]
    assert table["pole"][:5] == ["2", "2.00", "1", "25.50", "25.00"]
    assert table["ghost"][:5] == ["0", "absent", "0", "50.50", "absent"]
    assert len(table["road"][5]) > len(table["pole"][5]) > 0  # the bars
    assert re.search(r"Rarest in train +pole \(2\.00 %\)", done.out)
    assert re.search(r"Worst-balanced between the splits +pole \(2\.00 % of train, 25\.00 % of val: x12\.5\)", done.out)
    assert re.search(r"IN NO SPLIT +ghost", done.out)
    assert re.search(r"ABSENT FROM val +train", done.out)
    assert "streets-overlays.png" in done.out
    assert Image.open("data/streets-overlays.png").width > 500
    assert trees.snapshot(toy) == before


def test_the_picture_can_go_elsewhere_and_show_fewer(toy, tmp_path, mmseg):
    done = mmseg("inspect", toy, "--out", tmp_path / "new" / "sheet.png", "--items", 1)
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "new" / "sheet.png").format == "PNG"
    assert not (toy.parent / "streets-overlays.png").exists()


def test_the_store_may_be_the_current_folder(toy, monkeypatch, mmseg):
    monkeypatch.chdir(toy)
    assert mmseg("inspect", ".").code == 0
    assert (toy.parent / "streets-overlays.png").is_file()


def test_a_classification_is_shown_too(tmp_path, mmseg):
    names = [f"n{k:08d}" for k in range(200)]
    folder = tmp_path / "pictures"
    stores.make_classification(folder, {"train": [*range(200), 7], "val": [7]}, names=names)
    done = mmseg("inspect", folder)
    assert done.code == 0, done.err
    assert "160 more" in done.out
    assert "n00000007" in done.out
    assert (tmp_path / "pictures-overlays.png").is_file()


def test_a_folder_that_is_no_store_is_an_error(tmp_path, mmseg):
    for where in (tmp_path / "nothing", tmp_path):
        done = mmseg("inspect", where)
        assert done.code == 2
        assert str(where) in done.one_error()
    (tmp_path / "manifest.json").write_text("[")
    assert mmseg("inspect", tmp_path).code == 2


@pytest.mark.parametrize(
    ("out", "what"),
    [
        ("data/streets/manifest.json", "is not a name for a picture"),
        ("data/streets/sheet.png", "lies inside the store"),
        ("data/../data/streets/x/sheet.png", "lies inside the store"),
        ("folder.png", "is a folder"),
        ("file/sheet.png", "cannot be written"),
    ],
)
def test_a_place_that_is_no_place_for_a_picture_is_an_error(toy, tmp_path, mmseg, out, what):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    before = trees.snapshot(tmp_path)
    done = mmseg("inspect", "data/streets", "--out", out)
    assert done.code == 2
    assert what in done.one_error()
    assert trees.snapshot(tmp_path) == before


def test_a_damaged_store_is_named_and_leaves_the_old_picture(toy, mmseg):
    assert mmseg("inspect", toy).code == 0
    picture = (toy.parent / "streets-overlays.png").read_bytes()
    records = bytearray((toy / "train.records").read_bytes())
    records[len(records) // 2] ^= 1
    (toy / "train.records").write_bytes(records)
    done = mmseg("inspect", toy)
    assert done.code == 2
    assert "train.records" in done.one_error()
    assert (toy.parent / "streets-overlays.png").read_bytes() == picture


def test_it_works_without_torch(toy, tmp_path, mmseg_process):
    poison = tmp_path / "poison"
    poison.mkdir()
    for name in ("torch", "torchvision", "mlflow"):
        (poison / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    done = mmseg_process("inspect", toy, env={"PYTHONPATH": str(poison)})
    assert done.code == 0, done.err
