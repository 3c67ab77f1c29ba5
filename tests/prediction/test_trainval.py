"""Retraining on train and val for a test server: a preset of its own, and its figure on val is marked everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import trees
from fakes import make_test
from PIL import Image

from mmseg_cli.data.store import open_store
from mmseg_cli.prediction import submission
from tests.conftest import edit

COUNTS = {"berlin": 2}


def make_preset(name: str) -> None:
    """A copy of the demo preset that trains on train and val."""
    folder = Path("pipelines") / name
    folder.mkdir(parents=True)
    shutil.copyfile("params.yaml", folder / "params.yaml")

    def change(content):
        content.update({"preset": name, "root": "../..", "params_file": f"pipelines/{name}/params.yaml"})
        content["datasets"]["cityscapes"]["train_from"] = ["train", "val"]

    edit(folder / "params.yaml", change)


def test_a_run_on_train_and_val_submits_with_a_note_and_may_not_teach(prepared, raw_copy, mmseg, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "TEST_COUNTS", COUNTS)
    monkeypatch.setattr(submission, "OFFICIAL_SIZE", (32, 64))
    root = make_test(raw_copy("cityscapes"), COUNTS)
    make_preset("both")
    grid = ("--variant", "mmbconv", "--seed", 0)
    for command in (
        ("prepare", "cityscapes", "--preset", "both", "--root", root),
        ("pretrain", "imagenet", *grid),
        ("pretrain", "mapillary", *grid),
    ):
        done = mmseg(*command)
        assert done.code == 0, done.err
    store = open_store(Path("data/both/cityscapes"))
    assert set(store.names("val")) < set(store.names("train"))
    # The rungs below are those of the other preset.
    Path("runs/both").mkdir()
    Path("runs/both/pretrain_mapillary").symlink_to(Path("runs/demo/pretrain_mapillary").resolve())
    done = mmseg("train", "--preset", "both", *grid)
    assert done.code == 0, done.err
    run = "runs/both/train/mmbconv-s0"
    done = mmseg("submit", "cityscapes", "--run", run, "--root", root, "--device", "cpu")
    assert done.code == 0, done.err
    assert "the run was trained on 3 frames of val: its figure on val says nothing about new images" in done.err

    extra = root / "leftImg8bit/train_extra/troisdorf"
    extra.mkdir(parents=True)
    picture_HWC = trees.photo(np.random.default_rng(3), 32, 64)
    Image.fromarray(picture_HWC).save(extra / "troisdorf_000000_000000_leftImg8bit.png")
    label = (
        "predict",
        "--as-labels",
        "cityscapes/train_extra",
        "--root",
        root,
        "--device",
        "cpu",
        "--threshold",
        "0.1",
    )
    line = mmseg(*label, "--run", run, "--out", "auto").one_error()
    assert "was trained on 3 frames of val" in line
    assert mmseg("train", *grid).code == 0
    done = mmseg(*label, "--run", "runs/demo/train/mmbconv-s0", "--out", "auto")
    assert done.code == 0, done.err
    assert "mmseg prepare cityscapes --root auto --train-from train --train-from train_extra" in done.out
    student = ("--train-from", "train", "--train-from", "train_extra", "--allow", "outside-link", "--out", "data/auto")
    done = mmseg("prepare", "cityscapes", "--root", "auto", *student)
    assert done.code == 0, done.err
    assert "troisdorf_000000_000000" in open_store(Path("data/auto")).names("train")
