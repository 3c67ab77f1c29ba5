"""A submission: the zip that the server takes, and val by the same way against the benchmark's own program."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trees
from fakes import Quiet, classes_of, fake_model, make_test
from PIL import Image

from mmseg_cli.data.labels import LabelSpace, cityscapes_19
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError, ResourceError
from mmseg_cli.evaluation.segmenter import Protocol
from mmseg_cli.files import sha256
from mmseg_cli.prediction import submission
from tests.networks import NETWORK

SPACE, TABLE = cityscapes_19()
SIZE = (32, 64)
COUNTS = {"berlin": 3, "munich": 2}
FRAMES = 5
VAL = 2


@pytest.fixture
def small(monkeypatch):
    """A benchmark of five small test frames."""
    monkeypatch.setattr(submission, "TEST_COUNTS", COUNTS)
    monkeypatch.setattr(submission, "OFFICIAL_SIZE", SIZE)


@pytest.fixture
def root(tmp_path, small) -> Path:
    return make_test(trees.make_cityscapes(tmp_path / "cityscapes", train=1, val=VAL), COUNTS)


def submit(root, out, *, model=None, incomplete=False, skip_val=False, show=None):
    dataset = submission.open_dataset(root, incomplete=incomplete, skip_val=skip_val)
    model = model or fake_model(root)
    return submission.submit(model, dataset, out, incomplete=incomplete, skip_val=skip_val, show=show or Quiet())


def members(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def listed(folder):
    """Everything in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())


def expected_iou(root):
    """mIoU of the fake on val, counted pixel by pixel."""
    hits, union = np.zeros(19), np.zeros(19)
    for path in sorted((root / "leftImg8bit" / "val").rglob("*.png")):
        label = str(path).replace("leftImg8bit/val", "gtFine/val").replace("_leftImg8bit", "_gtFine_labelIds")
        truth = TABLE[np.asarray(Image.open(label))]
        predicted = classes_of(np.asarray(Image.open(path)))
        for k in range(19):
            a, b = truth == k, (predicted == k) & (truth != 255)
            hits[k] += (a & b).sum()
            union[k] += (a | b).sum()
    return (hits[union > 0] / union[union > 0]).mean()


# ------------------------------------------------------------------------------------------------------ what it writes


def test_a_submission_is_what_the_server_takes(root, tmp_path):
    out, show = tmp_path / "out" / "submission.zip", Quiet()
    before = trees.snapshot(root)
    made = submit(root, out, show=show)
    assert trees.snapshot(root) == before
    assert (made.zip, made.frames, made.cities, made.bytes) == (out, FRAMES, COUNTS, out.stat().st_size)
    images = {path.name[: -len("_leftImg8bit.png")]: path for path in (root / "leftImg8bit/test").rglob("*.png")}
    found = members(out)
    assert set(found) == {f"{name}_predictions.png" for name in images}
    for name, path in images.items():
        written = found[f"{name}_predictions.png"]
        assert (written.format, written.mode, written.size) == ("PNG", "L", SIZE[::-1])
        predicted = classes_of(np.asarray(Image.open(path)))
        np.testing.assert_array_equal(np.asarray(written), np.array(SPACE.ids)[predicted])
    assert show.notes == ["cityscapesscripts compares 2 images", made.val.line()]
    assert made.val.images == VAL
    assert made.val.difference == 0.0
    assert made.val.mean_iou == pytest.approx(expected_iou(root), abs=1e-12)
    assert made.val.official_mean_iou == pytest.approx(expected_iou(root), abs=1e-12)
    assert listed(out.parent) == ["submission.zip"]  # nothing is left of the work
    assert [part[0] for part in show.begun] == ["val", "test", "check the zip"]


def test_the_zips_of_the_dataset_are_read_in_place_and_equal_predictions_make_an_equal_zip(root, tmp_path):
    first = submit(root, tmp_path / "a.zip")
    trees.zip_away(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    trees.zip_away(root, "gtFine_trainvaltest.zip", "gtFine")
    second = submit(root, tmp_path / "b.zip")
    assert second.val == first.val
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_all_1525_frames_are_wanted(tmp_path):
    counts = dict(submission.TEST_COUNTS)
    assert sum(counts.values()) == 1525
    root = make_test(tmp_path, counts, height=4, width=4)
    assert len(submission.open_dataset(root, incomplete=False, skip_val=True).test) == 1525
    (root / "leftImg8bit/test/bonn/bonn_000045_000019_leftImg8bit.png").unlink()
    with pytest.raises(MmsegError, match=r"1524 frames, and the server wants 1525 \(bonn 45 of 46\)"):
        submission.open_dataset(root, incomplete=False, skip_val=True)
    assert len(submission.open_dataset(root, incomplete=True, skip_val=True).test) == 1524


def test_another_number_or_size_is_taken_only_when_asked_for(root, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "OFFICIAL_SIZE", (1024, 2048))
    out = tmp_path / "a.zip"
    with pytest.raises(MmsegError, match="is 64x32, the benchmark's images are 2048x1024"):
        submit(root, out)
    assert not out.exists()
    assert submit(root, out, incomplete=True).frames == FRAMES
    out.unlink()
    (root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(MmsegError, match="berlin 2 of 3"):
        submit(root, out)
    assert submit(root, out, incomplete=True).cities == {"berlin": 2, "munich": 2}


# --------------------------------------------------------------------------------------------------------- val first


def test_a_wrong_figure_on_val_ends_it_before_test(root, tmp_path, monkeypatch):
    """Train ids instead of labelIds: the program takes them, and finds another mIoU than was counted."""
    out = tmp_path / "a.zip"
    submit(root, out)
    before = out.read_bytes()
    real = submission.official.own_ids
    monkeypatch.setattr(submission.official, "own_ids", lambda space: np.arange(256).astype(np.uint8) % 19)
    model = fake_model(root)
    with pytest.raises(MmsegError, match="as counted and .* by the benchmark's program"):
        submit(root, out, model=model)
    assert model.segmenter.predicted == VAL  # no test frame
    assert out.read_bytes() == before
    monkeypatch.setattr(submission.official, "own_ids", real)
    # Two ids that are swapped for each other are seen as well.
    swapped = real(SPACE)
    swapped[[0, 13]] = swapped[[13, 0]]
    monkeypatch.setattr(submission.official, "own_ids", lambda space: swapped)
    with pytest.raises(MmsegError, match="by the benchmark's program"):
        submit(root, out, model=fake_model(root, weights="others"))


def test_without_val_it_says_how_to_go_on(root, tmp_path):
    label = next((root / "gtFine/val").rglob("*_labelIds.png"))
    label.unlink()
    with pytest.raises(MmsegError, match="1 of 2 frames of val have no label file .*--skip-val"):
        submit(root, tmp_path / "a.zip")
    for path in (root / "leftImg8bit/val").rglob("*.png"):
        path.unlink()
    with pytest.raises(MmsegError, match="has no leftImg8bit/val .*--skip-val"):
        submit(root, tmp_path / "a.zip")
    made = submit(root, tmp_path / "a.zip", skip_val=True)
    assert made.val is None
    assert made.frames == FRAMES
    with pytest.raises(MmsegError, match="has no leftImg8bit/test"):
        submission.open_dataset(trees.make_cityscapes(tmp_path / "none"), incomplete=True, skip_val=True)


def test_other_classes_are_refused(root, tmp_path):
    space = LabelSpace("toy-2", ("road", "car"), ((0, 0, 0), (1, 1, 1)), (7, 26))
    with pytest.raises(MmsegError, match="has the classes of toy-2"):
        submit(root, tmp_path / "a.zip", model=fake_model(root, space=space))
    assert not (tmp_path / "a.zip").exists()


# -------------------------------------------------------------------------------------------------------- interruptions


def test_an_interrupted_submission_goes_on(root, tmp_path):
    out = tmp_path / "a.zip"
    model = fake_model(root, stop_after=VAL + 3)
    with pytest.raises(KeyboardInterrupt):
        submit(root, out, model=model)
    assert not out.exists()
    model, show = fake_model(root), Quiet()
    made = submit(root, out, model=model, show=show)
    assert model.segmenter.predicted == FRAMES - 3
    assert show.begun[:2] == [("val", VAL, VAL), ("test", FRAMES, 3)]
    assert made.val.mean_iou == pytest.approx(expected_iou(root), abs=1e-12)
    whole = tmp_path / "whole.zip"
    submit(root, whole)
    assert whole.read_bytes() == out.read_bytes()
    assert listed(tmp_path) == ["a.zip", "cityscapes", "whole.zip"]


@pytest.mark.parametrize("other", [{"weights": "others"}, {"protocol": Protocol(flip=True)}, "image"])
def test_what_another_network_protocol_or_image_gave_is_not_gone_on_with(root, tmp_path, other):
    out = tmp_path / "a.zip"
    with pytest.raises(KeyboardInterrupt):
        submit(root, out, model=fake_model(root, stop_after=VAL + 3))
    if other == "image":
        path = next((root / "leftImg8bit/test").rglob("*.png"))
        Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(path)
        other = {}
    model = fake_model(root, **other)
    submit(root, out, model=model)
    assert model.segmenter.predicted == VAL + FRAMES


@pytest.mark.parametrize("other", [{"limit": 2**30}, {"precision": "bfloat16"}, {"fold": False}])
def test_other_arithmetic_is_not_gone_on_with(root, tmp_path, other):
    out = tmp_path / "a.zip"
    with pytest.raises(KeyboardInterrupt):
        submit(root, out, model=fake_model(root, stop_after=VAL + 3))
    model = replace(fake_model(root), **other)
    submit(root, out, model=model)
    assert model.segmenter.predicted == VAL + FRAMES


def test_windows_that_nobody_asked_for_end_it(root, tmp_path):
    """Other free memory would give another prediction; with a limit that the user names it is the same every time."""
    model = fake_model(root, window=(8, 8))
    with pytest.raises(ResourceError, match=r"suffices only for windows of 8x8: say how much to take with --memory"):
        submit(root, tmp_path / "a.zip", model=model)
    submit(root, tmp_path / "a.zip", model=replace(model, limit=2**30))


def test_an_unreadable_image_is_one_line(root, tmp_path):
    path = next((root / "leftImg8bit/test").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(MmsegError) as caught:
        submit(root, tmp_path / "a.zip")
    assert str(path) in str(caught.value)
    path.rename(path.with_name("berlin.png_leftImg8bit.png"))
    with pytest.raises(MmsegError, match="is not where a frame lies"):
        submit(root, tmp_path / "a.zip")


# ---------------------------------------------------------------------------------------------------- the zip, re-read


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def right(value=7, size=SIZE):
    return png(np.full(size, value, dtype=np.uint8))


GOOD = {"berlin_000000_000019_predictions.png": right(), "munich_000000_000019_predictions.png": right(33)}
FIRST = next(iter(GOOD))
WRONG = {
    "train ids": ({FIRST: right(0)}, r"holds \[0\], which are no labelIds"),
    "ignored": ({FIRST: right(255)}, r"holds \[255\]"),
    "void": ({FIRST: right(4)}, r"holds \[4\]"),
    "colours": ({FIRST: png(np.zeros((*SIZE, 3), dtype=np.uint8))}, "of mode RGB"),
    "16 bits": ({FIRST: png(np.full(SIZE, 7, dtype=np.uint16))}, "of mode I"),
    "size": ({FIRST: right(size=(32, 63))}, "is 63x32, 64x32 is wanted"),
    "cut short": ({FIRST: right()[:40]}, "cannot be read back"),
    "no image": ({FIRST: b"text"}, "cannot be read back"),
    "missing": ({FIRST: None}, "Found no prediction"),
    "twice": ({"berlin_000000_000019.png": right()}, "Found multiple predictions"),
    "another": ({"bonn_000000_000019_predictions.png": right()}, "holds 3 files for 2 frames, such as bonn"),
}


@pytest.mark.parametrize("change", WRONG)
def test_whatever_the_server_would_refuse_is_seen(tmp_path, change):
    changes, message = WRONG[change]
    path, sizes = tmp_path / "a.zip", {name.removesuffix("_predictions.png"): SIZE for name in GOOD}

    def write(content):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                if data is not None:
                    archive.writestr(name, data)

    counts = {"berlin": 1, "munich": 1}
    write(GOOD)
    submission.check_zip(path, sizes, counts=counts)
    with pytest.raises(MmsegError, match="berlin 1 of"):
        submission.check_zip(path, sizes, counts={**counts, "berlin": 2})
    write(GOOD | changes)
    with pytest.raises(MmsegError, match=message):
        submission.check_zip(path, sizes, counts=counts)


def test_a_zip_that_is_none_is_one_line(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"nothing")
    with pytest.raises(MmsegError, match="cannot be read back"):
        submission.check_zip(tmp_path / "a.zip", {}, counts=None)


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def run(tmp_path, mmseg, monkeypatch, small) -> tuple[Path, Path]:
    """The root of a small Cityscapes, and a tiny run trained on it, in a project that is the current folder."""
    from mmseg_cli.models import weights
    from mmseg_cli.models.unet import build_network

    root = make_test(trees.make_cityscapes(tmp_path / "cityscapes", train=3, val=VAL), COUNTS)
    monkeypatch.chdir(tmp_path)
    assert mmseg("prepare", "cityscapes", "--root", root).code == 0
    return root, _write_run(tmp_path / "runs/demo/train/mmbconv-s0", Path("data/cityscapes"), weights, build_network)


def _write_run(folder, store, weights, build_network):
    network = NETWORK | {"block": "mbconv"}
    folder.mkdir(parents=True)
    weights.save_weights(build_network(task="segmentation", num_classes=19, **network), folder / weights.WEIGHTS)
    record = {
        "stage": "train",
        "variant": "mmbconv",
        "seed": 0,
        "ladder": ["train"],
        "task": "segmentation",
        "network": network,
        "label_space": open_store(store).manifest["label_space"],
        "initial_weights_sha256": None,
        "data_manifest_sha256": sha256(store / "manifest.json"),
        "weights_sha256": sha256(folder / weights.WEIGHTS),
    }
    (folder / weights.RECORD).write_text(json.dumps(record))
    return folder


def test_the_command(run, mmseg, tmp_path):
    root, folder = run
    command = ("submit", "cityscapes", "--run", folder, "--root", root, "--device", "cpu")
    done = mmseg(*command, "--flip", "--scales", "0.5,1")
    assert done.code == 0, done.err
    assert "5 (berlin 3, munich 2)" in done.out
    assert "scales 0.5, 1, mirrored too" in done.out
    assert "classes differ by at most 0" in done.out
    assert "upload submission.zip" in done.out
    assert "warning" not in done.err
    assert len(members("submission.zip")) == FRAMES
    (root / "leftImg8bit/test/munich/munich_000001_000019_leftImg8bit.png").unlink()
    assert "munich 1 of 2" in mmseg(*command).one_error()
    tried = mmseg(*command, "--incomplete", "--skip-val", "--out", "b.zip")
    assert tried.code == 0
    assert "this is no submission" in tried.err
    assert "upload" not in tried.out
    assert "val is not checked" in tried.err
    for wrong in (("--out", "b.png"), ("--scales", "a"), ("--window", "12"), ("--run", tmp_path / "none")):
        assert mmseg(*command, *wrong).code == 2
        mmseg(*command, *wrong).one_error()


def test_a_run_that_saw_val_says_so(run, mmseg, tmp_path):
    root, _ = run
    command = ("submit", "cityscapes", "--root", root, "--device", "cpu", "--run")
    both = ("--train-from", "train", "--train-from", "val", "--out", "data/both")
    assert mmseg("prepare", "cityscapes", "--root", root, *both).code == 0
    from mmseg_cli.models import weights
    from mmseg_cli.models.unet import build_network

    greedy = _write_run(tmp_path / "runs/demo/train/greedy-s0", Path("data/both"), weights, build_network)
    done = mmseg(*command, greedy)
    assert done.code == 0
    assert "the run was trained on 2 frames of val: its figure on val says nothing about new images" in done.err
    (tmp_path / "data/both").rename(tmp_path / "elsewhere")
    assert "whether the run was trained on val is unknown" in mmseg(*command, greedy).err
    assert "trained on 2 frames of val" in mmseg(*command, greedy, "--data", "elsewhere").err
    assert "is not the store" in mmseg(*command, greedy, "--data", "data/cityscapes").one_error()
