"""`mmseg bench data`: the same work for all, timed in turn; no speed is asserted."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_cli.bench import data
from tests.conftest import run_inside


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(data, "SIZE", (64, 128))
    monkeypatch.setattr(data, "CROP", (32, 64))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_benchmark_times_all_readers_and_loaders_of_each_kind(tmp_path, tiny):
    advanced = []
    result = data.run(tmp_path, images=1, rounds=1, calls=4, seed=0, advance=lambda: advanced.append(1))
    assert len(advanced) == 2 * len(data.KINDS)
    assert list(result["kinds"]) == ["png", "jpg", "jpeg"]
    for part in result["kinds"].values():
        assert {"mmseg store", "Pillow", "torchvision"} <= set(part["crops"])
        assert set(part["batches"]) == {"mmseg loader", "Pillow"}
        for timing in [*part["crops"].values(), *part["batches"].values()]:
            assert len(timing["rates"]) == len(timing["ratios"]) == 1
            assert timing["rates"][0] > 0
        assert part["crops"]["Pillow"]["ratios"] == part["batches"]["Pillow"]["ratios"] == [1]
    assert 0.9 < result["kinds"]["jpg"]["store_bytes_per_file_byte"] < 1.1  # its own bytes
    result = json.loads(json.dumps(result))  # what the report is made of must survive being written
    tables = data.tables(result)
    assert len(tables) == 6
    assert all(len(row) == len(data.HEADINGS) for rows in tables.values() for row in rows)
    text = data.markdown(result)
    assert all(f"## {title}" in text for title in tables)
    assert "64x32 from 128x64" in text
    assert "page cache" in text


def test_others_read_an_ordinary_jpeg_where_the_store_has_our_encoding(tmp_path, tiny):
    (path,) = data.write_pictures(tmp_path / "jpeg", kind="jpeg", images=1, seed=0)
    own = tmp_path / "jpeg" / "images" / "train" / path.name
    with Image.open(path) as usual, Image.open(own) as ours:
        assert usual.layer[0][1:3] == (2, 2)  # 4:2:0
        assert ours.layer[0][1:3] == (1, 1)
    assert b"\xff\xdd" not in path.read_bytes()  # no restart interval is defined
    assert b"\xff\xdd" in own.read_bytes()
    (path,) = data.write_pictures(tmp_path / "jpg", kind="jpg", images=1, seed=0)
    assert path.parent == tmp_path / "jpg" / "images" / "train"


@pytest.mark.parametrize(
    ("kind", "name", "by", "right"),
    [
        ("png", "OpenCV", 0, True),
        ("png", "OpenCV", 1, False),
        ("jpg", "OpenCV", 8, True),
        ("jpg", "OpenCV", 9, False),
        ("jpg", "mmseg store", 1, False),
        ("jpeg", "mmseg store", 2, True),
        ("jpeg", "mmseg store", 3, False),
    ],
)
def test_a_reader_of_another_picture_is_not_timed(kind, name, by, right):
    readers = {
        "Pillow": lambda item, region: np.full((2, 2, 3), 100, np.uint8),
        name: lambda item, region: np.full((2, 2, 3), 100 - by, np.uint8),
    }
    if right:
        data.check_readers(readers, kind=kind, item=0, region=(0, 0, 2, 2))
    else:
        with pytest.raises(RuntimeError, match=f"{name} reads another picture"):
            data.check_readers(readers, kind=kind, item=0, region=(0, 0, 2, 2))


@pytest.mark.parametrize(("image", "label", "match"), [(2, 0, None), (3, 0, "images"), (0, 1, "labels")])
def test_loaders_of_other_batches_are_not_timed(image, label, match):
    def batch(image, label):
        return torch.full((1, 3, 2, 2), image, dtype=torch.uint8), torch.full((1, 2, 2), label, dtype=torch.uint8)

    if match is None:
        data.check_batches(batch(0, 0), batch(image, label), kind="png")
    else:
        with pytest.raises(RuntimeError, match=f"different {match}"):
            data.check_batches(batch(0, 0), batch(image, label), kind="png")


def test_the_command_writes_both_reports_and_leaves_nothing_else(tmp_path, tiny):
    out = tmp_path / "report"
    result = run_inside("bench", "data", "--images", 1, "--rounds", 1, "--calls", 4, "--out", out)
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["data.json", "data.md"]
    assert (out / "data.md").read_text() == data.markdown(json.loads((out / "data.json").read_text()))
