"""Real files: every small set in MMSEG_TEST_DATA is prepared by the command, and what is wrong with it is said."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_cli.data.store import open_store


@pytest.fixture
def real(monkeypatch, tmp_path) -> Path:
    place = os.environ.get("MMSEG_TEST_DATA")
    if not place:
        pytest.skip("needs real data: set MMSEG_TEST_DATA")
    monkeypatch.chdir(tmp_path)
    return Path(place)


def findings(mmseg, layout: str, root: Path) -> list[dict[str, str]]:
    done = mmseg("prepare", layout, "--root", root, "--json", "findings.json")
    assert done.code == 0, done.err
    report = json.loads(Path("findings.json").read_text())
    assert report["errors"] == 0
    return report["faults"]


def test_camvid_and_its_leak(real, mmseg):
    """val is a piece of a sequence whose rest is in train."""
    found = findings(mmseg, "camvid", real / "camvid")
    assert [(fault["kind"], fault["severity"]) for fault in found] == [("near-split", "warning")]
    assert "0016E5 has 204 images in train and 101 in val" in found[0]["what"]
    assert Path(found[0]["where"]).is_file()
    assert "0016E5" in mmseg("prepare", "camvid", "--root", real / "camvid", "--check-only").err


def test_the_cityscapes_layout(real, mmseg):
    found = findings(mmseg, "cityscapes", real / "cityscapes-layout")
    assert {fault["kind"] for fault in found} == {"count", "image-size"}
    store = open_store(Path("data/cityscapes"))
    assert {split: len(store.split(split)) for split in ("train", "val")} == {"train": 36, "val": 12}


def test_a_tar_of_folders_a_class(real, mmseg):
    assert findings(mmseg, "imagenet", real / "cifar10-subset.tar") == []
    split = open_store(Path("data/imagenet")).split("train")
    assert len(split) == 4000
    assert {split.target(item) for item in range(4000)} == set(range(10))


def test_imagenet_pictures(real, mmseg, tmp_path):
    """Real ILSVRC files, six of them grey, and every one in both splits, of which a person is warned."""
    root = tmp_path / "imagenet"
    files = sorted((real / "imagenet-jpegs").glob("*.JPEG"))
    for file in files:
        for split in ("train", "val"):
            folder = root / split / file.name.split("_")[0]
            folder.mkdir(parents=True)
            shutil.copyfile(file, folder / file.name)
    kinds = defaultdict(int)
    for fault in findings(mmseg, "imagenet", root):
        kinds[fault["kind"]] += 1
    assert kinds["shared-content"] >= 23
    split = open_store(Path("data/imagenet")).split("val")
    assert len(split) == 23
    for item, file in enumerate(files):
        np.testing.assert_array_equal(split.image(item), np.asarray(Image.open(file).convert("RGB")))
