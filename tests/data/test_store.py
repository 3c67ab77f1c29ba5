from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import trees
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmseg_cli.data import store
from mmseg_cli.data.records import tiles, writer
from mmseg_cli.errors import MmsegError, ResourceError

CLASSES = 20
SPACE = {"name": "hand-made", "classes": ["a"], "colours": [[0, 0, 0]], "categories": ["a"], "ids": [0]}


def record(number, height=9, width=11, jpeg=False):
    """The arguments of `SplitWriter.append` for one made-up item."""
    rng = np.random.default_rng(number)
    image_HWC = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    image_HWC[::3] += rng.integers(0, 99, image_HWC[::3].shape, np.uint8)
    label_HW = np.full((height, width), number % CLASSES, np.uint8)
    label_HW[height // 2 :] = 255
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=90)
    pixels, centroids = store.label_summary(label_HW)
    return {
        "name": f"städte/item_{number}",
        "sha256": rng.bytes(32),
        "image": buffer.getvalue() if jpeg else store.pack(image_HWC),
        "image_size": (height, width),
        "label": store.pack(label_HW),
        "label_size": (height, width),
        "class_pixels": pixels,
        "centroids": centroids,
        "identity": f"{number}:stamp",
        "extra": {"look": number, "source": [height, width]},
    }


def write(folder, records, split="train"):
    folder.mkdir(exist_ok=True)
    made = store.SplitWriter(folder, split)
    for item in records:
        made.append(**item)
    made.close(classes=CLASSES)
    return store.Split(folder, split)


def make_store(folder, records, **changes):
    """A store with one split; its manifest is written by hand."""
    write(folder, records)
    manifest = {"format": store.FORMAT, "task": "segmentation", "parameters": {"long_side": None}}
    manifest |= {"label_space": SPACE, "splits": {"train": {"count": len(records)}}} | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """One image of several tiles, in no multiple of them, losslessly and as JPEG with and without restart markers."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    image_HWC = rng.integers(0, 256, (331, 445, 3), dtype=np.uint8)
    label_HW = rng.integers(0, CLASSES, (331, 445), dtype=np.uint8)
    images, expected = [store.pack(image_HWC)], [image_HWC]
    for options in ({}, {"restart_marker_rows": 1}):
        buffer = io.BytesIO()
        Image.fromarray(image_HWC).save(buffer, "JPEG", quality=90, **options)
        images.append(buffer.getvalue())
        expected.append(np.asarray(Image.open(buffer).convert("RGB")))
    sizes = {"image_size": (331, 445), "label": store.pack(label_HW), "label_size": (331, 445)}
    records = [record(0) | sizes | {"image": image} for image in images]
    return write(folder, records), expected, label_HW


@pytest.fixture
def small(tmp_path):
    """A store of four small items, one of them a JPEG, that the test may damage."""
    return make_store(tmp_path / "store", [record(number, jpeg=number == 2) for number in range(4)])


def spans(length):
    return st.integers(0, length - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(1, length - first)))


# ------------------------------------------------------------------------------------------------------------ reading


@given(rows=spans(331), columns=spans(445), item=st.integers(0, 2))
def test_a_region_is_the_slice_of_the_whole(large, rows, columns, item):
    split, images, label_HW = large
    region = (rows[0], columns[0], rows[1], columns[1])
    window = (slice(rows[0], sum(rows)), slice(columns[0], sum(columns)))
    np.testing.assert_array_equal(split.image(item, region), images[item][window])
    np.testing.assert_array_equal(split.label(item, region), label_HW[window])


def test_whole_items_come_back(large):
    split, images, label_HW = large
    assert len(split) == 3
    for item, expected_HWC in enumerate(images):
        np.testing.assert_array_equal(split.image(item), expected_HWC)
        np.testing.assert_array_equal(split.label(item), label_HW)
        assert split.size(item) == split.label_size(item) == (331, 445)


@pytest.mark.parametrize("item", [0, 1, 2])
@pytest.mark.parametrize(
    "region", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 332, 5), (400, 0, 1, 1), (0, 441, 5, 5), (0, 0, 0, 5)]
)
def test_a_region_outside_is_refused(large, item, region):
    with pytest.raises(ValueError, match="does not lie inside 331x445 pixels"):
        large[0].image(item, region)


def test_a_crop_reads_only_the_tiles_that_it_touches(large):
    image_HWC = large[1][0]
    content = store.pack(image_HWC)
    taken = []

    def read(position, count):
        taken.append(count)
        return content[position : position + count]

    tiles.unpack(read, size=(331, 445), region=(130, 130, 100, 100))
    assert len(taken) == 2  # the head, then one tile of the twelve
    assert taken[1] < len(content) / 6


@given(
    shape=st.sampled_from([(1, 1), (128, 128), (129, 3), (5, 257)])
    | st.tuples(st.integers(1, 300), st.integers(1, 300)),
    channels=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 3),
)
def test_any_array_comes_back(shape, channels, seed):
    rng = np.random.default_rng(seed)
    full = shape if channels is None else (*shape, channels)
    array = rng.integers(0, (1, 2, 20, 256)[seed], full, dtype=np.uint8)
    content = store.pack(array)
    back = tiles.unpack(lambda position, count: content[position : position + count], size=shape)
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.int64), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8)])
def test_only_pixels_are_packed(array):
    with pytest.raises(ValueError, match="a record holds uint8 pixels"):
        store.pack(array)


def test_packing_is_the_same_on_many_threads():
    arrays = [np.random.default_rng(number).integers(0, 9, (200, 300, 3), dtype=np.uint8) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(store.pack, arrays)) == [store.pack(array) for array in arrays]


def test_the_index_says_what_was_appended(small):
    split = store.open_store(small).split("train")
    records = [record(number) for number in range(4)]
    assert split.names() == store.open_store(small).names("train") == [item["name"] for item in records]
    assert [split.name(item) for item in (0, 3, -1)] == [records[item]["name"] for item in (0, 3, -1)]
    for item, made in enumerate(records):
        assert split.sha256(item) == made["sha256"].hex()
        assert split.class_pixels(item) == {item: 4 * 11, 255: 5 * 11}
        assert split.centroids(item).tolist() == [[item, 1, 5]]
    assert split.classes_with_centroids().tolist() == [0, 1, 2, 3]
    assert split.centroids(7).shape == (0, 3)
    total = split.total_pixels(CLASSES)
    assert (total.shape, total[:5].tolist(), int(total[255])) == ((256,), [44, 44, 44, 44, 0], 220)


def test_centroids_are_by_class_then_by_item(tmp_path):
    points = [[(3, 7, 8), (1, 5, 6)], [], [(1, 2, 3), (3, 4, 4), (3, 1, 1)]]
    records = [record(n) | {"centroids": np.array(p, np.int32).reshape(-1, 3)} for n, p in enumerate(points)]
    split = write(tmp_path / "s", records)
    assert split.classes_with_centroids().tolist() == [1, 3]
    assert split.centroids(1).tolist() == [[0, 5, 6], [2, 2, 3]]
    assert split.centroids(3).tolist() == [[0, 7, 8], [2, 4, 4], [2, 1, 1]]


def test_a_classification_has_targets_and_no_labels(tmp_path):
    none = {"label": b"", "centroids": np.empty((0, 3), np.int32)}
    records = [
        record(n, jpeg=True) | none | {"label_size": (300 + n, 0), "class_pixels": np.bincount([300 + n])}
        for n in range(3)
    ]
    made = store.SplitWriter(tmp_path, "val")
    for item in records:
        made.append(**item)
    made.close(classes=1000)
    split = store.Split(tmp_path, "val")
    assert [split.target(item) for item in range(3)] == [300, 301, 302]
    assert split.class_pixels(1) == {301: 1}
    assert split.total_pixels(1000)[298:304].tolist() == [0, 0, 1, 1, 1, 0]
    assert split.classes_with_centroids().tolist() == []


def test_an_empty_split_can_be_read(tmp_path):
    split = write(tmp_path / "s", [])
    assert (len(split), split.names(), split.total_pixels(3).sum()) == (0, [], 0)


def first_pixels(split):
    """For worker processes: the same item in each."""
    return [split.image(item).tobytes() for item in range(len(split))] + [split.label(0).tobytes()]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_read_a_folder_that_nobody_may_write(small, method):
    split = store.open_store(small).split("train")
    expected = first_pixels(split)
    before = trees.snapshot(small)
    small.chmod(0o555)
    for path in small.iterdir():
        path.chmod(0o444)
    try:
        with multiprocessing.get_context(method).Pool(3) as pool:
            assert pool.map(first_pixels, [split] * 6) == [expected] * 6
    finally:
        small.chmod(0o755)
        for path in small.iterdir():
            path.chmod(0o644)
    assert {name: entry[-1] for name, entry in trees.snapshot(small).items()} == {
        name: entry[-1] for name, entry in before.items()
    }


def test_a_split_travels_without_what_it_has_open(small):
    split = store.open_store(small).split("train")
    split.image(0)
    content = pickle.dumps(split)
    assert len(content) < 1000
    assert first_pixels(pickle.loads(content)) == first_pixels(split)


def test_reading_changes_nothing(small):
    before = trees.snapshot(small)
    split = store.open_store(small).split("train")
    first_pixels(split)
    split.names()
    assert trees.snapshot(small) == before


# ------------------------------------------------------------------------------------------------------------- opening


def test_an_unknown_split_is_named(small):
    with pytest.raises(MmsegError, match=r"has no split 'test': choose from train"):
        store.open_store(small).split("test")


def test_a_missing_store_is_named(tmp_path):
    with pytest.raises(MmsegError, match=r"absent/manifest.json: missing: run `mmseg prepare`"):
        store.open_store(tmp_path / "absent")


def test_other_parameters_are_refused(small):
    opened = store.open_store(small, parameters={"long_side": None})
    assert opened.task == "segmentation"
    with pytest.raises(MmsegError, match=r"made by other parameters \(long_side differ\)"):
        store.open_store(small, parameters={"long_side": 512})


@pytest.mark.parametrize("value", [None, [], {}, {"format": store.FORMAT + 1}, {"format": "1"}])
def test_another_format_is_refused(small, value):
    manifest = small / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, **value} if value else value))
    with pytest.raises(MmsegError, match="was written by another version of mmseg"):
        store.open_store(small)


# -------------------------------------------------------------------------------------------------------------- damage


def test_every_flipped_byte_of_the_records_is_detected(small):
    path = small / "train.records"
    content = path.read_bytes()
    rows = store.open_store(small).split("train")._rows
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        split = store.Split(small, "train")
        item, which = next(
            (item, which)
            for item in range(4)
            for which in (0, 1)
            if 0 <= position - rows[item, 4 * which] < rows[item, 4 * which + 1]
        )
        with pytest.raises(MmsegError) as caught:
            (split.image, split.label)[which](item)
        assert str(path) in str(caught.value)
        assert f'item {item} ("städte/item_{item}"), {("image", "label")[which]} ' in str(caught.value)
        assert "is damaged: run `mmseg prepare`" in str(caught.value)
        (split.label, split.image)[which](item)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 256), (128, 128), (256, 384)])
@pytest.mark.parametrize("damage", ["zeros", "noise", "one bit"])
def test_a_damaged_block_is_named_and_the_others_can_be_read(large, tmp_path, row, column, damage):
    split, images, _ = large
    folder = shutil.copytree(split.folder, tmp_path / "copy")
    content = bytearray((folder / "train.records").read_bytes())
    first = content.index(store.pack(images[0][row : row + 128, column : column + 128])[20 + 12 :][:300])
    if damage == "one bit":
        content[first + 200] ^= 4
    else:
        content[first + 100 : first + 200] = bytes(100) if damage == "zeros" else random.Random(0).randbytes(100)
    (folder / "train.records").write_bytes(content)
    read = store.Split(folder, "train")
    for region in (None, (row, column, 1, 1), (0, 0, row + 1, column + 1)):
        with pytest.raises(MmsegError) as caught:
            read.image(0, region)
        what = f'item 0 ("städte/item_0"), image block at row {row}, column {column} is damaged'
        assert str(caught.value).startswith(f"{folder / 'train.records'}: {what}: run `mmseg prepare`")
    other = (0, 128, 100, 100)
    np.testing.assert_array_equal(read.image(0, other), images[0][:100, 128:228])
    np.testing.assert_array_equal(read.image(1), images[1])


def test_records_that_are_cut_short_anywhere_are_named(small):
    path = small / "train.records"
    content = path.read_bytes()
    start = int(store.Split(small, "train")._rows[3, 0])
    for length in range(start, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(MmsegError, match="train.records: item 3 .* is damaged"):
            store.Split(small, "train").image(3)
            store.Split(small, "train").label(3)


def everything(split):
    """All that an index says."""
    return [
        len(split),
        split.names(),
        [split.size(item) + split.label_size(item) for item in range(len(split))],
        [split.sha256(item) for item in range(len(split))],
        [split.class_pixels(item) for item in range(len(split))],
        split.classes_with_centroids().tolist(),
        [split.centroids(index).tolist() for index in range(CLASSES)],
    ]


def test_a_flipped_byte_of_the_index_is_named_or_changes_nothing(small):
    path = small / "train.index.npz"
    content = path.read_bytes()
    expected = everything(store.Split(small, "train"))
    named = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = everything(store.Split(small, "train"))
        except MmsegError as error:
            assert str(path) in str(error)
            named += 1
        else:
            assert found == expected, position
    assert named > len(content) / 2


@pytest.mark.parametrize("name", ["train.index.npz", "train.records"])
@pytest.mark.parametrize("how", ["missing", "empty", "half", "text"])
def test_a_damaged_file_is_named(small, name, how):
    path = small / name
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"not a file of ours"}[how])
    with pytest.raises(MmsegError, match=rf"{name}: .*: run `mmseg prepare`"):
        split = store.open_store(small).split("train")
        split.image(len(split) - 1)


# ------------------------------------------------------------------------------------------------------------- writing


def tiny(number):
    """As small as an item can be, so that every byte of a pair can be tried."""
    return record(number, 2, 2) | {"name": f"n{number}", "identity": str(number), "extra": {"n": number}}


TINY = [tiny(number) for number in range(3)]


@pytest.fixture
def fast(monkeypatch):
    """No waiting for the disk in tests that open thousands of writers."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def interrupted(tmp_path, fast):
    """The (records, journal) of a writer that stopped after three items, and the finished (records, index)."""
    folder = tmp_path / "whole"
    folder.mkdir()
    made = store.SplitWriter(folder, "train")
    for item in TINY:
        made.append(**item)
    made.stop()
    pair = (folder / "train.records").read_bytes(), (folder / "train.journal").read_bytes()
    write(tmp_path / "other", TINY)
    finished = (tmp_path / "other/train.records").read_bytes(), (tmp_path / "other/train.index.npz").read_bytes()
    assert pair[0] == finished[0]
    return pair, finished


def finish(folder, records, journal):
    """Open a pair with this content and write what is missing; the number of items that were kept, and the result."""
    folder.mkdir(exist_ok=True)
    (folder / "train.records").write_bytes(records)
    (folder / "train.journal").write_bytes(journal)
    made = store.SplitWriter(folder, "train")
    kept = len(made.done)
    for row, item in zip(made.done, TINY, strict=False):
        assert (row.name, row.identity, row.extra) == (item["name"], item["identity"], item["extra"])
        assert (row.sha256, row.place[2:4]) == (item["sha256"], item["image_size"])
        np.testing.assert_array_equal(row.class_pixels, item["class_pixels"])
        np.testing.assert_array_equal(row.centroids, item["centroids"])
    for item in TINY[kept:]:
        made.append(**item)
    made.close(classes=CLASSES)
    return kept, ((folder / "train.records").read_bytes(), (folder / "train.index.npz").read_bytes())


@pytest.mark.parametrize("which", ["records", "journal"])
def test_a_pair_that_is_cut_at_any_byte_ends_in_the_same_bytes(tmp_path, interrupted, which):
    (records, journal), finished = interrupted
    all_kept = []
    for length in range(len(records if which == "records" else journal) + 1):
        cut = (records[:length], journal) if which == "records" else (records, journal[:length])
        kept, result = finish(tmp_path / "again", *cut)
        assert result == finished
        all_kept.append(kept)
    assert all_kept == sorted(all_kept)
    assert (all_kept[0], set(all_kept), all_kept[-1]) == (0, {0, 1, 2, 3}, 3)


@pytest.mark.parametrize("which", ["records", "journal"])
def test_a_pair_with_any_wrong_byte_ends_in_the_same_bytes(tmp_path, interrupted, which):
    pair, finished = interrupted
    number = 0 if which == "records" else 1
    for position in range(len(pair[number])):
        damaged = bytearray(pair[number])
        damaged[position] ^= 1 << position % 8
        kept, result = finish(tmp_path / "again", *(bytes(damaged) if at == number else pair[at] for at in (0, 1)))
        assert result == finished
        assert kept < 3


@pytest.mark.parametrize("which", ["records", "journal", "both"])
def test_pages_that_a_power_cut_left_empty_end_in_the_same_bytes(tmp_path, interrupted, which):
    pair, finished = interrupted
    for share in (0, 0.2, 0.5, 0.9):
        left = [
            content[: int(share * len(content))] + bytes(len(content) - int(share * len(content)) + 4096)
            if which in (name, "both")
            else content
            for name, content in zip(("records", "journal"), pair, strict=True)
        ]
        kept, result = finish(tmp_path / "again", *left)
        assert result == finished
        assert kept < 3


def test_what_lies_behind_the_items_is_cut_off(tmp_path, interrupted):
    (records, journal), finished = interrupted
    assert finish(tmp_path / "again", records + b"half of the next one", journal + b"\0\1") == (3, finished)


def test_another_files_journal_is_not_believed(tmp_path, interrupted):
    (records, _), finished = interrupted
    assert finish(tmp_path / "again", records, b"a text") == (0, finished)
    assert finish(tmp_path / "again", bytes(len(records)), b"") == (0, finished)


@pytest.mark.parametrize("count", range(4))
def test_items_whose_source_changed_are_forgotten(tmp_path, interrupted, count):
    (records, journal), finished = interrupted
    (tmp_path / "train.records").write_bytes(records)
    (tmp_path / "train.journal").write_bytes(journal)
    made = store.SplitWriter(tmp_path, "train")
    made.keep(count)
    assert [row.name for row in made.done] == ["n0", "n1", "n2"][:count]
    for item in TINY[count:]:
        made.append(**item | {"identity": "another time", "extra": {}})
    made.close(classes=CLASSES)
    assert ((tmp_path / "train.records").read_bytes(), (tmp_path / "train.index.npz").read_bytes()) == finished
    with pytest.raises(ValueError, match="cannot keep 4 of 3 items"):
        made.keep(4)


def test_a_closed_split_is_known_to_be_whole(tmp_path, interrupted):
    _, finished = interrupted
    write(tmp_path / "closed", TINY)
    made = store.SplitWriter(tmp_path / "closed", "train")
    assert len(made.done) == 3
    assert [row.name for row in made.done[1:]] == ["n1", "n2"]
    made.close(classes=CLASSES)
    assert (tmp_path / "closed/train.index.npz").read_bytes() == finished[1]


def test_an_index_never_lies_beside_records_that_grow(tmp_path):
    write(tmp_path / "closed", TINY[:2])
    made = store.SplitWriter(tmp_path / "closed", "train")
    assert not (tmp_path / "closed/train.index.npz").exists()
    made.stop()


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_items_before_it(tmp_path, monkeypatch, interrupted, at, error):
    """At the image, the label and the journal's row: each is written by a call of its own."""
    _, finished = interrupted
    made = store.SplitWriter(tmp_path, "train")
    made.append(**TINY[0])
    real, calls = writer._write, []

    def failing(file, content):
        calls.append(len(content))
        real(file, content[: len(content) // 2] if len(calls) == at + 1 else content)
        if len(calls) == at + 1:
            raise error

    monkeypatch.setattr(writer, "_write", failing)
    with pytest.raises(ResourceError if isinstance(error, OSError) else KeyboardInterrupt):
        made.append(**TINY[1])
    monkeypatch.setattr(writer, "_write", real)
    assert len(made.done) == 1
    for item in TINY[1:]:
        made.append(**item)
    made.close(classes=CLASSES)
    assert ((tmp_path / "train.records").read_bytes(), (tmp_path / "train.index.npz").read_bytes()) == finished


def test_a_file_that_takes_less_at_once_gets_all(tmp_path, monkeypatch):
    class Slow(io.BytesIO):
        def write(self, content):
            return super().write(bytes(content[:7]))

    file = Slow()
    writer._write(file, bytes(range(100)))
    assert file.getvalue() == bytes(range(100))


def test_records_reach_the_disk_from_time_to_time(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(writer, "SYNC_BYTES", len(TINY[0]["image"]) * 3)
    made = store.SplitWriter(tmp_path, "train")
    for number in range(12):
        made.append(**tiny(number))
    assert 2 <= len(synced) <= 12
    made.stop()


def test_a_class_that_the_dataset_lacks_is_refused(tmp_path):
    made = store.SplitWriter(tmp_path, "train")
    made.append(**record(7))
    with pytest.raises(ValueError, match="centroids of class 7 in a split of 5 classes"):
        made.close(classes=5)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(MmsegError, match=r"train.records: cannot be written"):
        store.SplitWriter(tmp_path / "absent", "train")


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_pair_to_go_on_with(tmp_path):
    records = [record(number) for number in range(2000)]
    expected = write(tmp_path / "whole", records).folder
    items = tmp_path / "items.pickle"
    items.write_bytes(pickle.dumps(records))
    code = """
        import pickle, sys
        from pathlib import Path
        from mmseg_cli.data import store
        records = pickle.loads(Path(sys.argv[1]).read_bytes())
        made = store.SplitWriter(Path(sys.argv[2]), "train")
        print(len(made.done), flush=True)
        for item in records[len(made.done):]:
            made.append(**item)
        made.close(classes=20)
        print("end", flush=True)
    """
    folder, kept = tmp_path / "killed", []
    folder.mkdir()
    for attempt in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(items), str(folder)], stdout=subprocess.PIPE, text=True
        )
        kept.append(int(child.stdout.readline()))
        if attempt < 9:
            time.sleep(random.Random(attempt).uniform(0, 0.03))
            child.send_signal(signal.SIGKILL)
        ended = "end" in child.communicate()[0]
    assert ended
    assert len(set(kept)) > 3
    assert kept == sorted(kept)
    for name in ("train.records", "train.index.npz"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


# ------------------------------------------------------------------------------------------------------- label summary


def slow_summary(label_HW):
    """The same by its definition."""
    found = []
    for index in range(255):
        for top in range(0, label_HW.shape[0], 256):
            for left in range(0, label_HW.shape[1], 256):
                rows, columns = np.nonzero(label_HW[top : top + 256, left : left + 256] == index)
                if len(rows):
                    found.append([index, top + int(np.floor(rows.mean())), left + int(np.floor(columns.mean()))])
    return [int((label_HW == index).sum()) for index in range(256)], found


@settings(max_examples=40)
@given(height=st.integers(1, 600), width=st.integers(1, 600), classes=st.integers(1, 6), seed=st.integers(0, 9))
def test_a_labels_summary_is_what_its_definition_says(height, width, classes, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 3, 18, 254, 255, 7][:classes], (-(-height // 50), -(-width // 50))).astype(np.uint8)
    label_HW = np.kron(coarse, np.ones((50, 50), np.uint8))[:height, :width]
    pixels, centroids = store.label_summary(label_HW)
    expected_pixels, expected_centroids = slow_summary(label_HW)
    assert (pixels.dtype, centroids.dtype) == (np.int64, np.int32)
    assert pixels.tolist() == expected_pixels
    assert centroids.tolist() == expected_centroids


def test_a_label_without_classes_has_no_centroids():
    pixels, centroids = store.label_summary(np.full((300, 20), 255, np.uint8))
    assert (int(pixels[255]), centroids.shape) == (6000, (0, 3))


# --------------------------------------------------------------------------------------------------------------- scale


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store of 100,000 tiny items."""
    folder = tmp_path_factory.mktemp("many") / "store"
    base = [record(number, 24, 24, jpeg=number % 2 == 1) for number in range(10)]
    records = [base[number % 10] | {"name": f"item_{number:06d}"} for number in range(100_000)]
    return make_store(folder, records)


def outside(code, *args):
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_store_of_many_items_opens_without_reading_them(many):
    code = """
        import json, sys, time
        from pathlib import Path
        import mmseg_cli.data.store as store
        start = time.perf_counter()
        split = store.open_store(Path(sys.argv[1])).split("train")
        count, shape = len(split), split.image(0).shape
        seconds = time.perf_counter() - start
        print(json.dumps([count, shape, seconds, sorted(k for k in vars(split) if k.startswith("_"))]))
    """
    count, shape, seconds, loaded = outside(code, many)
    assert (count, shape) == (100_000, [24, 24, 3])
    assert loaded == ["_records", "_rows"]
    assert (many / "manifest.json").stat().st_size < 10_000
    print(f"opened in {seconds:.3f} s")


@pytest.mark.slow
def test_memory_stays_flat_over_many_reads(many):
    code = """
        import json, os, sys
        from pathlib import Path
        import numpy as np
        import mmseg_cli.data.store as store
        split = store.open_store(Path(sys.argv[1])).split("train")
        page = os.sysconf("SC_PAGE_SIZE")
        resident = lambda: int(open("/proc/self/statm").read().split()[1]) * page
        order, sizes = np.random.default_rng(0).permutation(100_000)[:12_000].tolist(), []
        for number, item in enumerate(order):
            split.image(item, (3, 4, 15, 16)), split.label(item), split.name(item)
            if number >= 2_000 and number % 100 == 0:
                sizes.append((number, resident()))
        print(json.dumps(sizes))
    """
    numbers, sizes = zip(*outside(code, many), strict=True)
    slope = np.polyfit(numbers, sizes, 1)[0]
    print(f"{slope:.0f} bytes an item")
    assert slope <= 1024
