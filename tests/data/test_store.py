from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmseg_cli.data import store
from mmseg_cli.data.prepare import prepare
from mmseg_cli.errors import MmsegError


def build(raw, name, out):
    prepare(
        name,
        raw[name],
        out,
        parameters={"long_side": None},
        long_side=None,
        short_side=None,
        threads=1,
        on_start=lambda total: None,
        advance=lambda: None,
    )
    return out


@pytest.fixture(scope="module")
def stores(raw, tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return {name: build(raw, name, root / name) for name in ("cityscapes", "mapillary")}


@pytest.fixture
def store_copy(stores, tmp_path):
    """A cityscapes store that the test may damage."""
    return shutil.copytree(stores["cityscapes"], tmp_path / "store")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """One image larger than a block and a chunk of the codec, in no multiple of either, as PNG and as JPEG."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 256, (531, 645, 3), dtype=np.uint8)
    label_HW = rng.integers(0, 20, (531, 645), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=90)
    writer = store.SplitWriter(folder, "train")
    for image in (store.pack(image_HWC), buffer.getvalue()):
        writer.append(image=image, image_size=(531, 645), label=store.pack(label_HW), label_size=(531, 645))
    writer.close()
    decoded_HWC = np.asarray(Image.open(buffer).convert("RGB"))
    return store.Split(folder, "train"), (image_HWC, decoded_HWC), label_HW


def spans(length):
    return st.integers(0, length - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(1, length - first)))


@given(rows=spans(531), columns=spans(645), item=st.integers(0, 1))
def test_a_region_is_the_slice_of_the_whole(large, rows, columns, item):
    split, images, label_HW = large
    region = (rows[0], columns[0], rows[1], columns[1])
    window = (slice(rows[0], sum(rows)), slice(columns[0], sum(columns)))
    np.testing.assert_array_equal(split.image(item, region), images[item][window])
    np.testing.assert_array_equal(split.label(item, region), label_HW[window])


def test_whole_items_come_back(large):
    split, images, label_HW = large
    assert len(split) == 2
    for item in (0, 1):
        np.testing.assert_array_equal(split.image(item), images[item])
        np.testing.assert_array_equal(split.label(item), label_HW)
        assert split.size(item) == split.label_size(item) == (531, 645)


@given(height=st.integers(1, 300), width=st.integers(1, 300), tail=st.sampled_from([(), (3,)]))
def test_packing_loses_nothing_at_any_size(tmp_path_factory, height, width, tail):
    array = np.random.default_rng([height, width]).integers(0, 256, (height, width, *tail), dtype=np.uint8)
    np.testing.assert_array_equal(store.blosc2.ndarray_from_cframe(store.pack(array))[:], array)


def test_a_split_goes_to_a_worker_process(stores):
    split = store.open_store(stores["mapillary"]).split("train")
    expected = split.image(1)  # the files are open now
    again = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(again.image(1), expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(store.Split.image, (split, 1)), expected)


def test_a_split_that_is_not_there_is_named(stores):
    with pytest.raises(MmsegError, match="has no split 'test': choose from train, val"):
        store.open_store(stores["cityscapes"]).split("test")


def test_a_missing_store_says_what_to_run(tmp_path):
    with pytest.raises(MmsegError, match=r"manifest.json: missing: run `mmseg prepare`"):
        store.open_store(tmp_path / "absent")


def test_other_parameters_are_refused_by_name(stores):
    opened = store.open_store(stores["cityscapes"], parameters={"long_side": None})
    assert opened.task == "segmentation"
    with pytest.raises(MmsegError, match=r"was made by other parameters \(long_side differ\): run `mmseg prepare`"):
        store.open_store(stores["cityscapes"], parameters={"long_side": 512})


@pytest.mark.parametrize("value", [None, [], {}, {"format": store.FORMAT + 1}, {"format": "1"}])
def test_another_format_is_refused(store_copy, value):
    manifest = store_copy / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, **value} if value else value))
    with pytest.raises(MmsegError, match="was written by another version of mmseg"):
        store.open_store(store_copy)


@pytest.mark.parametrize("column", [0, 4])
@pytest.mark.parametrize("damage", ["zeros", "noise", "cut"])
def test_a_damaged_record_names_the_store(store_copy, column, damage):
    split = store.open_store(store_copy).split("train")
    start, length = split._rows[1, column : column + 2]
    path = store_copy / "train.records"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: start + length // 2]
    elif damage == "zeros":
        content[start : start + 64] = bytes(64)
    else:
        content[start : start + 64] = np.random.default_rng(0).bytes(64)
    path.write_bytes(content)
    read = store.open_store(store_copy).split("train")
    with pytest.raises(MmsegError, match=r"train.records: item 1 is damaged .*: run `mmseg prepare`"):
        (read.image if column == 0 else read.label)(1)
    read.image(0)


def test_a_damaged_jpeg_names_the_store(stores, tmp_path):
    copy = shutil.copytree(stores["mapillary"], tmp_path / "store")
    split = store.open_store(copy).split("train")
    start, length = split._rows[2, :2]
    content = bytearray((copy / "train.records").read_bytes())
    content[start + 2 : start + length] = bytes(length - 2)
    (copy / "train.records").write_bytes(content)
    with pytest.raises(MmsegError, match="item 2 is damaged"):
        store.open_store(copy).split("train").image(2)


@pytest.mark.parametrize("name", ["train.index.npz", "train.records"])
@pytest.mark.parametrize("how", ["missing", "empty", "half", "text"])
def test_a_damaged_file_is_named(store_copy, name, how):
    path = store_copy / name
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"not a file of ours"}[how])
    with pytest.raises(MmsegError, match=rf"{name}: .*: run `mmseg prepare`"):
        split = store.open_store(store_copy).split("train")
        split.image(len(split) - 1)


def test_reading_changes_nothing(store_copy):
    before = trees.snapshot(store_copy)
    split = store.open_store(store_copy).split("val")
    for item in range(len(split)):
        split.image(item)
        split.label(item)
    assert trees.snapshot(store_copy) == before
