from __future__ import annotations

import io
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import stores
from PIL import Image

from mmseg_cli.data.faults import Fault
from mmseg_cli.data.overview import card
from mmseg_cli.data.overview.summary import summarise
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import sha256

NAMES = ["road", "pole", "sky", "train", "ghost"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Train: road 70, pole 2, sky 18, train 10, 100 ignored, over two images; val: road 40, pole 20, sky 20."""
    train = [stores.label(10, 10, c0=30, c1=2, c2=18), stores.label(10, 10, c0=40, c3=10)]
    val = [stores.label(8, 20, c0=40, c1=20, c2=20)]
    folder = tmp_path_factory.mktemp("toy") / "streets"
    return stores.make_segmentation(folder, {"train": train, "val": val}, names=NAMES)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(1000), rng.integers(1, 4, 1000)).tolist()
    names = [f"n{1000 + k:08d}" for k in range(1000)]
    folder = tmp_path_factory.mktemp("thousand") / "imagenet"
    return stores.make_classification(folder, {"train": targets, "val": list(range(999))}, names=names)


def text(store, **more):
    return card.text(store, summarise(store), name="toy", chart_name="toy.png", **more)


def rows(content):
    """The cells of every table row by its first cell."""
    split = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in content.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in split}


def test_the_card_holds_the_numbers_of_the_store(toy):
    table = rows(text(toy, official={"train": 2975, "test": 7}))
    assert table["split"] == ["items", "official", "width x height", "labelled pixels", "ignored"]
    assert table["train"] == ["13", "10", "10.00", "1", "8.82", "absent"]  # the class of that name
    assert table["val"] == ["1", "-", "20x8, all", "80", "50.00 %"]
    assert table["class"] == ["id", "train pixels", "share %", "images", "weight", "val share %"]
    assert table["road"] == ["10", "70", "70.00", "2", "1.84", "50.00"]
    assert table["pole"] == ["11", "2", "2.00", "1", "25.50", "25.00"]
    assert table["ghost"] == ["14", "0", "0.00", "0", "50.50", "absent"]
    assert table["label space"] == ["toy-5, 5 classes"]
    assert table["task"] == ["segmentation"]
    assert table["code"] == ["mmseg 0.1.0"]
    assert table["manifest"] == [f"sha256 {sha256(toy.folder / 'manifest.json')}"]
    size = sum(file.stat().st_size for file in toy.folder.iterdir())
    assert table["store"] == [f"{size:,} bytes, format 2"]


def test_the_official_count_stands_beside_the_found_one(toy):
    assert "| train | 2 | 2,975 | 10x10, all | 100 | 50.00 % |" in text(toy, official={"train": 2975})
    assert "official" not in text(toy)


def test_the_card_names_rare_unbalanced_and_absent_classes(toy):
    content = text(toy)
    assert "Rarest in train: pole (2.00 %), train (10.00 %), sky (18.00 %), road (70.00 %)." in content
    assert "Worst-balanced between the splits: pole (2.00 % of train, 25.00 % of val: x12.5)" in content
    assert "IN NO SPLIT: ghost." in content
    assert "ABSENT FROM val: train." in content
    assert "ABSENT FROM train" not in content


def test_what_verification_found_is_listed_by_kind_and_left_out_files_apart(toy):
    found = [
        Fault("count", "/d/toy", "train: 2 images, the official number is 2975", "check", "warning"),
        Fault("left-out", "/d/toy/a/black.png", "is black", "nothing", "warning"),
        *(Fault("near-split", f"/d/toy/{n}.png", "looks like /d/toy/b.png", "", "warning") for n in range(40)),
    ]
    content = text(toy, faults=found, root=stores.Path("/d/toy"))
    assert "6 files were read whole and verified; no errors. Warnings: count 1, near-split 40." in content
    assert "- **count**: the dataset: train: 2 images" in content
    assert "- **near-split**: 3.png: looks like b.png" in content
    assert "- and 11 more" in content
    assert "Left out:\n\n- a/black.png: is black" in content
    assert "/d/toy" not in content
    assert "6 files were read whole and verified; no errors. No warnings." in text(toy)


@pytest.mark.parametrize("relative", [False, True])
def test_no_path_of_the_machine_is_in_the_card(toy, tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    root = stores.Path("raw/toy") if relative else tmp_path / "raw" / "toy"
    found = [
        Fault("count", str(root), f"odd: {root}", "check", "warning"),
        Fault("near-split", f"{root}/raw/toy/x.png", f"as {root}/y.png, and {tmp_path}/raw/toy/z.png", "", "warning"),
    ]
    content = text(toy, faults=found, notes=[f"read in place: {root}/left.zip"], root=root)
    assert "**count**: the dataset: odd: the dataset\n" in content
    assert "**near-split**: raw/toy/x.png: as y.png, and z.png\n" in content
    assert "| found | read in place: left.zip |" in content
    assert str(tmp_path) not in content


def test_the_root_here_leaves_full_stops_alone(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [Fault("count", "x.png", "is odd. Look.", "", "warning")]
    assert "**count**: x.png: is odd. Look.\n" in text(toy, faults=found, root=stores.Path())


def test_even_classes_are_called_even(tmp_path):
    toy = stores.make_classification(tmp_path / "s", {"train": [0, 1] * 10, "val": [0, 1]}, names=["a", "b"])
    content = text(toy)
    assert "Even: all classes are equally frequent in train." in content
    assert "Rarest" not in content
    assert "Worst-balanced" not in content


@pytest.mark.parametrize(("classes", "shown"), [(1000, True), (10, False)])
def test_only_a_dataset_of_the_official_classes_has_an_official_number(tmp_path, classes, shown):
    names = [f"n{k:08d}" for k in range(classes)]
    toy = stores.make_classification(tmp_path / "s", {"train": [1, 2]}, names=names)
    made = SimpleNamespace(folder=toy.folder, dataset="imagenet", notes=[])
    content = card.write_for(made, root=tmp_path, reports=tmp_path / "r", faults=[]).read_text()
    assert ("| 1,281,167 |" in content) == shown


def test_a_thousand_classes_stay_readable(thousand):
    content = text(thousand)
    assert len(content.splitlines()) < 100
    assert len(content) < 12_000
    assert "### The 20 most frequent" in content
    assert "### The 20 rarest" in content
    assert content.count("| n0000") == 40
    assert "ABSENT FROM val: n00001999." in content
    assert "images" in rows(content)["class"][1]
    made = summarise(thousand)
    order = made.by_share()
    assert made.first.class_pixels[order[:20]].min() == 3
    shown = re.findall(r"^\| (n\d+) ", content, flags=re.MULTILINE)
    assert shown == [made.space.classes[k] for k in (*order[:20], *order[-20:])]


@pytest.mark.parametrize("odd", ["a|b", "two\nlines", "<b>", "`code`", "*bold*", "[x](y)", "back\\slash", "\udcff"])
def test_odd_names_break_no_table(tmp_path, odd):
    toy = stores.make_segmentation(tmp_path / "s", {"train": [stores.label(9, 9, c0=3, c1=4)]}, names=["plain", "odd"])
    toy.manifest["label_space"]["classes"][1] = odd
    content = text(toy)
    content.encode()
    line = next(line for line in content.splitlines() if "57.14" in line and line.startswith("|"))
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 7
    assert "<b>" not in content.replace("\\<", "")


def pictures(store):
    return card.chart(summarise(store), title="toy $1")


def test_the_chart_has_no_date_and_is_the_same_each_time(toy, thousand):
    for store in (toy, thousand):
        first = pictures(store)
        assert first == pictures(store)
        picture = Image.open(io.BytesIO(first))
        assert picture.info.keys() <= {"dpi"}
        assert 600 < picture.width < 2400
        assert 300 < picture.height < 2400


@pytest.mark.parametrize("classes", [1, 51, 150, 151])
def test_the_chart_has_room_for_any_number_of_classes(tmp_path, classes):
    labels = [np.arange(classes, dtype=np.uint8).reshape(1, -1).repeat(3, axis=0)]
    names = [f"a $ long_name ^ of the class with number {k}" for k in range(classes)]
    toy = stores.make_segmentation(tmp_path / "s", {"train": labels, "val": labels}, names=names)
    picture = Image.open(io.BytesIO(pictures(toy)))
    assert picture.width <= 2400
    assert picture.height <= 2400


def test_a_store_without_labelled_pixels_has_a_card(tmp_path):
    toy = stores.make_segmentation(tmp_path / "s", {"train": [stores.label(4, 4)], "val": []}, names=["a", "b"])
    assert "IN NO SPLIT: a, b." in text(toy)
    assert pictures(toy)


def test_prepare_gets_its_card_under_the_stores_name(toy, tmp_path):
    made = SimpleNamespace(folder=toy.folder, dataset="camvid", notes=["eleven classes"])
    found = [Fault("count", "/d/toy", "odd", "", "warning")]
    written = card.write_for(made, root=stores.Path("/d/toy"), reports=tmp_path / "reports", faults=found)
    assert written == tmp_path / "reports" / "data-streets.md"
    content = written.read_text()
    assert "](data-streets.png)" in content
    assert "| train | 2 | 367 |" in content  # CamVid's official number
    assert "| found | eleven classes |" in content
    assert "**count**: the dataset: odd" in content
    assert sorted(path.name for path in written.parent.iterdir()) == ["data-streets.md", "data-streets.png"]
    before = {path.name: path.read_bytes() for path in written.parent.iterdir()}
    card.write_for(made, root=stores.Path("/d/toy"), reports=tmp_path / "reports", faults=found)
    assert {path.name: path.read_bytes() for path in written.parent.iterdir()} == before


@pytest.mark.parametrize("parameters", [{"source": "synthetic"}, {"annotations": "coarse"}, {"train_from": ["val"]}])
def test_generated_and_chosen_items_have_no_official_number(toy, tmp_path, parameters):
    folder = shutil.copytree(toy.folder, tmp_path / "s")
    manifest = (folder / "manifest.json").read_text()
    shown = str(parameters).replace("'", '"')
    (folder / "manifest.json").write_text(manifest.replace('"parameters": {}', f'"parameters": {shown}'))
    assert open_store(folder).manifest["parameters"] == parameters
    made = SimpleNamespace(folder=folder, dataset="cityscapes", notes=[])
    content = card.write_for(made, root=tmp_path, reports=tmp_path / "reports", faults=[]).read_text()
    assert "official" not in content


def test_a_card_that_cannot_be_written_leaves_the_old_one(toy, tmp_path):
    (tmp_path / "card.md").write_text("old")
    with pytest.raises(MmsegError, match="cannot be written"):
        card.write(toy, markdown=tmp_path / "card.md", chart_file=tmp_path / "card.md" / "x.png", name="toy")
    assert (tmp_path / "card.md").read_text() == "old"
