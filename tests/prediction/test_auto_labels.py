"""Labels by a teacher: what prepare reads of them, and teachers that may not teach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trees
from fakes import Quiet, classes_of, confidence_of, fake_model
from PIL import Image

from mmseg_cli.data.labels import LabelSpace, cityscapes_19
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation.segmenter import Protocol
from mmseg_cli.files import sha256
from mmseg_cli.prediction.labels import write_as_labels

SPACE, _ = cityscapes_19()
EXTRA = "cityscapes/train_extra"
THRESHOLD = 0.5
ALLOW = ("--allow", "outside-link")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Cityscapes with images of train_extra, one of which is the known black one, and no coarse labels."""
    monkeypatch.chdir(tmp_path)
    root = trees.make_coarse(trees.make_cityscapes(tmp_path / "cityscapes", train=3, val=2), extra=4, seed=5)
    for path in sorted((root / "gtCoarse").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "gtCoarse").rmdir()
    return root


def record(store: Path | str, **more) -> dict:
    return {"stage": "train", "ladder": ["train"], "data_manifest_sha256": sha256(Path(store) / "manifest.json")} | more


@pytest.fixture
def teacher(root, mmseg, tmp_path):
    """A network that was trained on train, by the store data/cityscapes of the current folder."""
    assert mmseg("prepare", "cityscapes", "--root", root).code == 0
    run = tmp_path / "runs/demo/train/mmbconv-s0"

    known = record("data/cityscapes")

    def make(**more):
        return fake_model(run, **{"record": known} | more)

    return make


def label(model, root, out, target=EXTRA, *, threshold=THRESHOLD, data=None, show=None):
    return write_as_labels(model, target, root, out, threshold=threshold, data=data, show=show or Quiet())


def extra_images(root):
    paths = sorted((root / "leftImg8bit/train_extra").rglob("*.png"))
    images = {path.name[: -len("_leftImg8bit.png")]: np.asarray(Image.open(path)) for path in paths}
    return {name: image for name, image in images.items() if name != "troisdorf_000000_000073"}


def expected(image_HWC):
    """Train ids as the new store must hold them."""
    return np.where(confidence_of(image_HWC) >= THRESHOLD, classes_of(image_HWC), 255)


# ------------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("packed", [False, True], ids=["extracted", "in the official zips"])
def test_prepare_reads_what_the_teacher_is_sure_of(root, teacher, tmp_path, mmseg, packed):
    images = extra_images(root)
    if packed:
        (tmp_path / "aside").mkdir()
        (root / "leftImg8bit/train_extra").rename(tmp_path / "aside/train_extra")
        trees.zip_away(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
        trees.zip_away(root, "gtFine_trainvaltest.zip", "gtFine")
        (root / "leftImg8bit").mkdir()
        (tmp_path / "aside/train_extra").rename(root / "leftImg8bit/train_extra")
        trees.zip_away(root, "leftImg8bit_trainextra.zip", "leftImg8bit/train_extra")
    before = trees.snapshot(root)
    out = tmp_path / "auto"
    made = label(teacher(), root, out)
    assert trees.snapshot(root) == before
    assert made.images == len(images) == 3
    folder = out / "gtCoarse/train_extra/troisdorf"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}_gtCoarse_labelIds.png" for name in images]
    for name, image_HWC in images.items():
        written = Image.open(folder / f"{name}_gtCoarse_labelIds.png")
        assert written.mode == "L"
        sure = confidence_of(image_HWC) >= THRESHOLD
        assert 0 < sure.sum() < sure.size  # both cases are there
        ids = np.array(SPACE.ids)[classes_of(image_HWC)]
        np.testing.assert_array_equal(np.asarray(written), np.where(sure, ids, 0))
    command = made.prepare.split()
    assert command[:5] == ["mmseg", "prepare", "cityscapes", "--root", str(out)]
    assert command[-2:] == ["--out", "data/auto"]  # not where the dataset itself is prepared
    done = mmseg(*command[1:])
    assert done.code == 0, done.err
    store = open_store(Path("data/auto"))
    train = store.split("train")
    assert len(train) == 3 + len(images)
    assert set(images) < set(train.names())
    for item, name in enumerate(train.names()):
        if name in images:
            np.testing.assert_array_equal(train.label(item), expected(images[name]))
            np.testing.assert_array_equal(train.image(item), images[name])
    assert store.names("val") == open_store(Path("data/cityscapes")).names("val")
    without = mmseg(*command[1 : -2 - len(ALLOW)], "--out", "data/other")
    assert (without.code, "leads out of the dataset" in without.err) == (2, True)


def test_labels_json_says_what_was_kept(root, teacher, tmp_path):
    made = label(teacher(protocol=Protocol(flip=True)), root, tmp_path / "auto")
    images = list(extra_images(root).values())
    classes = np.concatenate([classes_of(image).ravel() for image in images])
    sure = np.concatenate([confidence_of(image).ravel() >= THRESHOLD for image in images])
    assert made.kept == pytest.approx(sure.mean())
    for k, name in enumerate(SPACE.classes):
        assert made.kept_by_class[name] == pytest.approx(sure[classes == k].mean())
    about = json.loads((tmp_path / "auto/labels.json").read_text())
    assert about["kept_by_class"] == made.kept_by_class
    assert sum(about["pixels_by_class"].values()) == sure.sum()
    assert about["teacher"]["weights_sha256"] == teacher().weights_sha256
    assert about["teacher"]["data_manifest_sha256"] == sha256(Path("data/cityscapes/manifest.json"))
    assert (about["target"], about["threshold"], about["images"]) == (EXTRA, THRESHOLD, 3)
    assert about["protocol"]["flip"] is True


def test_train_gets_labels_of_its_own(root, teacher, tmp_path, mmseg):
    made = label(teacher(), root, tmp_path / "auto", "cityscapes/train")
    done = mmseg(*made.prepare.split()[1:], "--out", "data/student")
    assert done.code == 0, done.err
    train = open_store(Path("data/student")).split("train")
    assert len(train) == 3
    for item in range(3):
        np.testing.assert_array_equal(train.label(item), expected(train.image(item)))


def test_a_dataset_of_ones_own(tmp_path, monkeypatch, mmseg):
    monkeypatch.chdir(tmp_path)
    labelled, root = trees.make_folder(tmp_path / "labelled"), trees.make_folder(tmp_path / "mine", train=4, seed=9)
    for path in (root / "masks/train").iterdir():
        path.unlink()
    (root / "masks/train").rmdir()
    assert mmseg("prepare", "folder", "--root", labelled, "--out", "data/labelled").code == 0
    space = open_store(Path("data/labelled")).space
    made = label(
        fake_model(tmp_path / "run", record=record("data/labelled"), space=space), root, Path("auto"), "folder/train"
    )
    done = mmseg(*made.prepare.split()[1:], "--out", "data/student")
    assert done.code == 0, done.err
    store = open_store(Path("data/student"))
    assert store.space == space
    train = store.split("train")
    assert len(train) == 4
    for item, name in enumerate(train.names()):
        image = np.asarray(Image.open(root / f"images/train/{name}.jpg"))
        sure = confidence_of(image) >= THRESHOLD
        np.testing.assert_array_equal(train.label(item), np.where(sure, classes_of(image, 3), 255))
    assert len(store.split("val")) == 2


def test_a_folder_that_cannot_be_labelled_says_why(tmp_path, monkeypatch, mmseg):
    monkeypatch.chdir(tmp_path)
    root = trees.make_folder(tmp_path / "mine")
    assert mmseg("prepare", "folder", "--root", root, "--out", "data/mine").code == 0
    space = open_store(Path("data/mine")).space
    content = json.loads((root / "classes.yaml").read_text())

    def refused(change=None, *, model=None, target="folder/train"):
        (root / "classes.yaml").write_text(json.dumps(content | (change or {})))
        model = model or fake_model(tmp_path / "run", record=record("data/mine"), space=space)
        return refusal(model, root, Path("auto"), target)

    assert "splits by lists or shares" in refused({"splits": {"val": 0.5}})
    assert "has other classes than" in refused(model=fake_model(tmp_path / "run", record=record("data/mine")))
    colours = [{"name": name, "colour": list(shade)} for name, _, shade in trees.OWN_CLASSES]
    assert "has masks of colours" in refused({"classes": colours, "ignore": [255, 255, 255], "masks": "colour"})
    assert "val is what networks are judged on" in refused(target="folder/val")


# --------------------------------------------------------------------------------------------------------------- guards


def refusal(model, root, out, target=EXTRA, **more):
    """The one line that refuses it; asserts that no label was written."""
    with pytest.raises(MmsegError) as caught:
        label(model, root, out, target, **more)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not list(Path(out).rglob("*.png"))
    assert not Path(out).is_dir() or list(Path(out).iterdir())  # no empty folder is left
    return str(caught.value)


def test_a_teacher_that_saw_val_is_refused(root, teacher, tmp_path, mmseg):
    both = ("--train-from", "train", "--train-from", "val")
    assert mmseg("prepare", "cityscapes", "--root", root, *both, "--out", "data/both").code == 0
    line = refusal(teacher(record=record("data/both")), root, tmp_path / "auto")
    assert "was trained on 2 frames of val (lindau_000000_000019, lindau_000001_000019)" in line
    # Its first weights count as well, whatever it was trained on last.
    before = tmp_path / "runs/demo/pretrain_mapillary/mmbconv-s0/record.json"
    before.parent.mkdir(parents=True)
    first = record("data/both", stage="pretrain_mapillary", ladder=["pretrain_mapillary"], weights_sha256="1" * 64)
    before.write_text(json.dumps(first))
    ladder = ["pretrain_mapillary", "train"]
    second = record("data/cityscapes", ladder=ladder, initial_weights_sha256="1" * 64)
    assert "was trained on 2 frames of val" in refusal(teacher(record=second), root, tmp_path / "auto")
    # So do frames whose files are other ones: saved again, or with other labels.
    other = trees.make_cityscapes(tmp_path / "other", train=3, val=2, seed=9)
    assert mmseg("prepare", "cityscapes", "--root", other, *both, "--out", "data/again").code == 0
    before.write_text(json.dumps(first | record("data/again")))
    assert "was trained on 2 frames of val" in refusal(teacher(record=second), root, tmp_path / "auto")
    before.write_text(json.dumps(first | record("data/cityscapes")))
    assert label(teacher(record=second), root, tmp_path / "auto").unchecked == []


def test_first_weights_of_unknown_data_are_said(root, teacher, tmp_path):
    ladder = ["pretrain_imagenet", "pretrain_mapillary", "train"]
    unknown = record("data/cityscapes", ladder=ladder, initial_weights_sha256="1" * 64)
    made = label(teacher(record=unknown), root, tmp_path / "auto")
    assert made.unchecked == ["pretrain_mapillary"]
    assert json.loads((tmp_path / "auto/labels.json").read_text())["teacher"]["data_not_at_hand"] == made.unchecked


def test_a_frame_of_val_is_found_by_its_content_too(root, teacher, tmp_path, mmseg):
    """A copy of a val frame under another name in train."""
    for top, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        source = root / top / "val/lindau" / f"lindau_000000_000019_{end}.png"
        (root / top / "train/aachen" / f"aachen_000777_000019_{end}.png").write_bytes(source.read_bytes())
    made = mmseg("prepare", "cityscapes", "--root", root, "--out", "data/leaky", "--allow", "shared-content")
    assert made.code == 0, made.err
    line = refusal(teacher(record=record("data/leaky")), root, tmp_path / "auto")
    assert "was trained on 1 frames of val (aachen_000777_000019)" in line


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_networks_are_judged_on_is_not_labelled(root, teacher, tmp_path, split):
    line = refusal(teacher(), root, tmp_path / "auto", f"cityscapes/{split}")
    assert f"{split} is what networks are judged on" in line


def test_frames_of_val_in_another_split_are_not_labelled(root, teacher, tmp_path, mmseg):
    folder = root / "leftImg8bit/train_extra"
    (folder / "lindau").mkdir()
    picture = next(folder.rglob("*.png"))
    (folder / "lindau/lindau_000009_000019_leftImg8bit.png").write_bytes(picture.read_bytes())
    assert "a frame of lindau, a city of val or test" in refusal(teacher(), root, tmp_path / "auto")
    (folder / "lindau/lindau_000009_000019_leftImg8bit.png").unlink()
    # Of a val of one's own: a store whose val has a frame that the teacher shall label.
    own = trees.make_cityscapes(tmp_path / "own", val=1)
    for top, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        place = own / top / "val"
        (place / "troisdorf").mkdir()
        old = place / "lindau" / f"lindau_000000_000019_{end}.png"
        old.rename(place / "troisdorf" / f"troisdorf_000000_000000_{end}.png")
    assert mmseg("prepare", "cityscapes", "--root", own, "--out", "data/own").code == 0
    line = refusal(teacher(record=record("data/own")), root, tmp_path / "auto")
    assert "1 frames to be labelled are in val (troisdorf_000000_000000)" in line


def test_a_teacher_of_unknown_data_is_refused(root, teacher, tmp_path):
    model = teacher()
    (tmp_path / "data/cityscapes").rename(tmp_path / "store")
    line = refusal(model, root, tmp_path / "auto")
    assert "what it was trained on is not at hand" in line
    assert "--data STORE" in line
    assert label(model, root, tmp_path / "auto", data=tmp_path / "store").images == 3
    line = refusal(teacher(record={"data_manifest_sha256": "0" * 64}), root, tmp_path / "b", data=tmp_path / "store")
    assert "is not the store that" in line
    assert "does not say what it was trained on" in refusal(teacher(record={}), root, tmp_path / "b")


def test_the_store_is_found_from_elsewhere(root, teacher, tmp_path, monkeypatch):
    """Beside the run, in data/PRESET/DATASET."""
    model = teacher()
    (tmp_path / "data/demo").mkdir()
    (tmp_path / "data/cityscapes").rename(tmp_path / "data/demo/cityscapes")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert label(model, root, tmp_path / "auto").images == 3


def test_other_options_that_cannot_be_are_refused(root, teacher, tmp_path):
    assert "cannot write the labels of 'camvid/train'" in refusal(teacher(), root, tmp_path / "auto", "camvid/train")
    assert "no split 'extra'" in refusal(teacher(), root, tmp_path / "auto", "cityscapes/extra")
    assert "is not a probability" in refusal(teacher(), root, tmp_path / "auto", threshold=90)
    toy = LabelSpace("toy-2", ("road", "car"), ((0, 0, 0), (1, 1, 1)), (7, 26))
    assert "has the classes of toy-2" in refusal(teacher(space=toy), root, tmp_path / "auto")
    with pytest.raises(MmsegError, match="which is only read"):
        label(teacher(), root, root / "auto")
    assert not (root / "auto").exists()
    with pytest.raises(MmsegError, match="which is only read"):
        label(teacher(), root, tmp_path)
    (tmp_path / "file").touch()
    assert "is a file" in refusal(teacher(), root, tmp_path / "file")
    bare = trees.make_cityscapes(tmp_path / "bare")
    assert "has no leftImg8bit/train_extra" in refusal(teacher(), bare, tmp_path / "auto")


# -------------------------------------------------------------------------------------------------------- interruptions


def test_interrupted_labelling_goes_on_and_ends_the_same(root, teacher, tmp_path):
    out, whole = tmp_path / "auto", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        label(teacher(stop_after=2), root, out)
    assert not (out / "gtCoarse").exists()
    model, show = teacher(), Quiet()
    made = label(model, root, out, show=show)
    assert (model.segmenter.predicted, show.begun) == (1, [("labels", 3, 2)])
    assert made == label(teacher(), root, whole).__class__(**{**vars(made), "folder": out})
    assert trees.contents(out / "gtCoarse") == trees.contents(whole / "gtCoarse")
    assert (out / "labels.json").read_bytes() == (whole / "labels.json").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["gtCoarse", "gtFine", "labels.json", "leftImg8bit"]
    again = teacher()
    assert label(again, root, out) == made
    assert again.segmenter.predicted == 0


def test_labels_of_another_teacher_are_never_mixed_in(root, teacher, tmp_path):
    out = tmp_path / "auto"
    with pytest.raises(KeyboardInterrupt):
        label(teacher(stop_after=2), root, out)
    other = teacher(weights="others")
    label(other, root, out)
    assert other.segmenter.predicted == 3
    before = trees.contents(out / "gtCoarse")
    for changed, words in (
        ({"model": teacher()}, "teacher"),
        ({"threshold": 0.9}, "threshold"),
        ({"target": "cityscapes/train"}, "target"),
    ):
        with pytest.raises(MmsegError, match=rf"holds labels made otherwise \({words}\)"):
            label(changed.pop("model", other), root, out, **changed)
    assert trees.contents(out / "gtCoarse") == before
    (out / "labels.json").unlink()
    with pytest.raises(MmsegError, match="holds labels, but no labels.json"):
        label(other, root, out)


def test_what_stands_in_the_way_of_a_link_is_left_alone(root, teacher, tmp_path):
    out = tmp_path / "auto"
    (out / "leftImg8bit").mkdir(parents=True)
    assert "is no link to" in refusal(teacher(), root, out)
    assert (out / "leftImg8bit").is_dir()
