from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from mmseg_cli import runtime
from mmseg_cli.data import prepare as room
from mmseg_cli.data.faults import FaultsFound
from mmseg_cli.data.labels import IGNORE
from mmseg_cli.data.prepare import SOURCES, Prepared, prepare
from mmseg_cli.data.store import open_store
from mmseg_cli.data.tree import File
from mmseg_cli.errors import MmsegError


def run(
    name: str,
    root: Path,
    out: Path,
    *,
    threads: int = 2,
    options: dict[str, object] | None = None,
    allow: tuple[str, ...] = (),
    check_only: bool = False,
    advance: Callable[[], None] = lambda: None,
    **limits: int,
) -> Prepared:
    sides = {"long_side": None, "short_side": None} | limits
    return prepare(
        name,
        root,
        out,
        options=options or {},
        parameters=sides,
        allow=allow,
        check_only=check_only,
        threads=threads,
        on_start=lambda total: None,
        advance=advance,
        **sides,
    )


def refused(name: str, root: Path, out: Path) -> str:
    with pytest.raises(MmsegError) as caught:
        run(name, root, out)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def opened(file: File) -> Image.Image:
    return Image.open(file.path)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", SOURCES)
def test_a_store_holds_what_the_dataset_holds(raw, tmp_path, name):
    made = run(name, raw[name], tmp_path / "store")
    listing = SOURCES[name].scan(raw[name])
    store = open_store(tmp_path / "store")
    assert made.counts == {split: len(items) for split, items in listing.splits.items()}
    assert made.classes == len(store.space.classes) == len(listing.space.classes)
    assert made.bytes == sum(len(content) for content in trees.contents(tmp_path / "store").values())
    for split_name, items in listing.splits.items():
        split = store.split(split_name)
        assert len(split) == len(items)
        assert store.names(split_name) == [item.name for item in items]
        for position, item in enumerate(items):
            image_HWC = np.asarray(opened(item.image).convert("RGB"))
            assert split.size(position) == image_HWC.shape[:2]
            np.testing.assert_array_equal(split.image(position), image_HWC)
            if item.label is None:
                assert split.target(position) == item.target
            else:
                ids_HW = np.asarray(opened(item.label))
                expected_HW = np.array([int(listing.table[value]) for value in ids_HW.ravel()]).reshape(ids_HW.shape)
                np.testing.assert_array_equal(split.label(position), expected_HW)


@pytest.mark.parametrize("name", SOURCES)
def test_the_dataset_stays_as_it_is_and_the_same_bytes_come_out_again(raw, tmp_path, name):
    before = trees.snapshot(raw[name])
    run(name, raw[name], tmp_path / "first", threads=1)
    run(name, raw[name], tmp_path / "second", threads=3)
    assert trees.snapshot(raw[name]) == before
    assert trees.contents(tmp_path / "first") == trees.contents(tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.parametrize("name", ["cityscapes", "camvid"])
def test_the_manifest_counts_the_pixels_of_every_class(raw, tmp_path, name):
    run(name, raw[name], tmp_path / "store")
    listing = SOURCES[name].scan(raw[name])
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    for split, items in listing.splits.items():
        mapped = [listing.table[np.asarray(opened(item.label))] for item in items]
        part = manifest["splits"][split]
        assert part["class_pixels"] == [
            sum(int((one == k).sum()) for one in mapped) for k in range(len(listing.space.classes))
        ]
        assert part["ignored_pixels"] == sum(int((one == IGNORE).sum()) for one in mapped) > 0
        assert part["count"] == len(items)


def test_the_manifest_counts_the_pictures_of_every_class(raw, tmp_path):
    run("imagenet", raw["imagenet"], tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["class_pixels"] == [4, 4, 4]


def test_a_changed_file_changes_its_hash_alone(raw_copy, tmp_path):
    root = raw_copy("camvid")
    run("camvid", root, tmp_path / "first")
    Image.fromarray(np.zeros((36, 48), np.uint8)).save(root / "trainannot" / "0001.png")
    run("camvid", root, tmp_path / "second")
    hashes = []
    for out in ("first", "second"):
        split = open_store(tmp_path / out).split("train")
        hashes.append([split.sha256(item) for item in range(len(split))])
    assert [one == other for one, other in zip(*hashes, strict=True)] == [True, False, True]


def test_counts_and_sizes_that_are_not_official_are_said(raw, tmp_path):
    made = run("cityscapes", raw["cityscapes"], tmp_path / "store")
    assert {fault.severity for fault in made.faults} == {"warning"}
    assert [fault.what for fault in made.faults] == [
        "train: 5 images, the official number is 2975",
        "val: 3 images, the official number is 500",
        "train: 5 images are not 2048x1024 (most 64x32)",
        "val: 3 images are not 2048x1024 (most 64x32)",
    ]
    assert not any("are not" in fault.what for fault in run("mapillary", raw["mapillary"], tmp_path / "other").faults)


# ------------------------------------------------------------------------------------------------------ other sizes


@pytest.mark.parametrize(
    ("limits", "train", "upright"),
    [({"long_side": 30}, (20, 30), (30, 20)), ({"short_side": 24}, (24, 36), (36, 24)), ({"long_side": 500}, 0, 0)],
)
def test_train_shrinks_while_val_labels_keep_their_size(raw, tmp_path, limits, train, upright):
    run("mapillary", raw["mapillary"], tmp_path / "store", **limits)
    store = open_store(tmp_path / "store")
    train, upright = train or (40, 60), upright or (60, 40)
    for name, native in (("train", [(40, 60), (60, 40), (40, 60)]), ("val", [(40, 60), (60, 40)])):
        split = store.split(name)
        for position, size in enumerate(native):
            expected = upright if size == (60, 40) else train
            assert split.size(position) == expected
            assert split.image(position).shape == (*expected, 3)
            assert split.label_size(position) == (expected if name == "train" else size)
            assert split.label(position).shape == split.label_size(position)


def test_a_label_that_shrinks_gets_no_new_values_and_stays_with_its_image(tmp_path):
    """Every second pixel of a label in stripes of two ids is still one of the two, at its own place."""
    root = trees.make_cityscapes(tmp_path / "raw", height=32)
    path = root / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    ids_HW = np.full((32, 64), 7, np.uint8)
    ids_HW[:, 32:] = 26
    Image.fromarray(ids_HW).save(path)
    run("cityscapes", root, tmp_path / "store", long_side=32)
    label_HW = open_store(tmp_path / "store").split("train").label(0)
    assert label_HW.shape == (16, 32)
    assert (label_HW[:, :16] == 0).all()
    assert (label_HW[:, 16:] == 13).all()


def test_a_jpeg_that_keeps_its_size_keeps_its_bytes(raw, tmp_path):
    run("mapillary", raw["mapillary"], tmp_path / "store")
    records = (tmp_path / "store" / "train.records").read_bytes()
    for path in (raw["mapillary"] / "training" / "images").iterdir():
        assert path.read_bytes() in records


# ----------------------------------------------------------------------------------------------------- odd pictures


def test_imagenet_takes_grey_cmyk_and_png_pictures(raw_copy, tmp_path):
    root = raw_copy("imagenet")
    folder = root / "train" / "n00001000"
    picture = Image.fromarray(trees.photo(np.random.default_rng(5), 30, 50))
    odd = {
        "0_grey.JPEG": saved(picture.convert("L"), "JPEG"),
        "1_cmyk.JPEG": saved(picture.convert("CMYK"), "JPEG", quality=98),
        "2_png.JPEG": saved(picture, "PNG"),
        "3_alpha.png": saved(picture.convert("RGBA"), "PNG"),
        "4_palette.png": saved(picture.convert("P"), "PNG"),
    }
    for name, content in odd.items():
        (folder / name).write_bytes(content)
    run("imagenet", root, tmp_path / "store")
    store = open_store(tmp_path / "store")
    split, names = store.split("train"), store.names("train")
    for name, content in odd.items():
        position = names.index(f"n00001000/{name}")
        expected_HWC = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        assert split.image(position).shape == (30, 50, 3)
        difference = np.abs(split.image(position) - expected_HWC)
        if name == "1_cmyk.JPEG":  # encoded once more
            assert difference.mean() < 3
        else:
            assert difference.max() == 0
    assert np.ptp(split.image(names.index("n00001000/0_grey.JPEG")), axis=2).max() == 0


def test_a_palette_label_is_read_by_index(raw, tmp_path):
    """Two of its classes share a colour, so a reader of colours could not tell them apart."""
    run("mapillary", raw["mapillary"], tmp_path / "store")
    label_HW = open_store(tmp_path / "store").split("train").label(0)
    assert label_HW[0, :6].tolist() == [0, 1, 2, 3, 4, IGNORE]


# ----------------------------------------------------------------------------------------------------------- faults

IMAGE = "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png"
LABEL = "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png"


def unknown_value(root: Path) -> str:
    ids_HW = np.asarray(Image.open(root / LABEL)).copy()
    ids_HW[5:7, 5:8], ids_HW[9, 9] = 77, 200
    Image.fromarray(ids_HW).save(root / LABEL)
    return f"{root / LABEL}: label value 77 in 6 pixels, 200 in 1 pixel: "


def other_size(root: Path) -> str:
    Image.fromarray(np.full((16, 64), 7, np.uint8)).save(root / LABEL)
    return f"{root / LABEL}: is 64x16, its image "


def truncated_image(root: Path) -> str:
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:-2000])
    return f"{root / IMAGE}: is cut short in the chunk IDAT at byte 33: "


def no_label(root: Path) -> str:
    (root / LABEL).unlink()
    return f"{root / IMAGE}: has no label file: "


FAULTS = [unknown_value, other_size, truncated_image, no_label]


def outside(folder: Path) -> dict[str, object]:
    """What lies in `folder`, its own time and the staging aside."""
    return {name: what for name, what in trees.snapshot(folder).items() if name != "." and ".partial" not in name}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_named_and_the_store_that_was_there_stays(raw_copy, tmp_path, fault):
    root, out = raw_copy("cityscapes"), tmp_path / "data" / "store"
    run("cityscapes", root, out)
    before = outside(out.parent)
    expected = fault(root)
    assert refused("cityscapes", root, out).startswith(expected)
    assert outside(out.parent) == before
    shutil.rmtree(out)
    refused("cityscapes", root, out)
    assert not outside(out.parent)


def test_all_faults_are_found_at_once(raw_copy, tmp_path):
    root = raw_copy("camvid")
    (root / "train" / "0000.png").write_bytes(b"")
    Image.fromarray(np.full((36, 48), 77, np.uint8)).save(root / "trainannot" / "0001.png")
    (root / "valannot" / "0001.png").unlink()
    with pytest.raises(FaultsFound) as caught:
        run("camvid", root, tmp_path / "store")
    found = {(fault.kind, fault.where) for fault in caught.value.faults if fault.severity == "error"}
    assert found == {
        ("empty-file", str(root / "train" / "0000.png")),
        ("unknown-label", str(root / "trainannot" / "0001.png")),
        ("missing-partner", str(root / "val" / "0001.png")),
    }
    assert "(and 2 more faults)" in str(caught.value)


def test_check_only_writes_nothing(raw, tmp_path):
    made = run("cityscapes", raw["cityscapes"], tmp_path / "store", check_only=True)
    assert (made.folder, made.counts) == (None, {"train": 5, "val": 3})
    assert not list(tmp_path.iterdir())


def test_val_may_be_trained_on_where_it_is_asked_for(raw, tmp_path):
    made = run("cityscapes", raw["cityscapes"], tmp_path / "store", options={"train_from": ["train", "val"]})
    assert made.counts == {"train": 8, "val": 3}
    assert {fault.kind for fault in made.faults} == {"count", "image-size"}


def test_an_option_of_another_layout_is_refused(raw, tmp_path):
    with pytest.raises(MmsegError, match="target: is no option of camvid: "):
        run("camvid", raw["camvid"], tmp_path / "store", options={"target": "vistas-65"})


# ------------------------------------------------------------------------------------------------------ interruption


def test_what_was_read_before_a_fault_is_not_read_again(raw_copy, raw, tmp_path):
    """And the mended dataset gives the bytes of one that was right from the start."""
    root = raw_copy("camvid")
    path = root / "valannot" / "0001.png"
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    refused("camvid", root, tmp_path / "store")
    assert (tmp_path / ".store.partial").is_dir()
    path.write_bytes(good)
    read = []
    before = room.ingest.ingest
    room.ingest.ingest = lambda item, *rest, **more: read.append(item.name) or before(item, *rest, **more)
    try:
        run("camvid", root, tmp_path / "store")
    finally:
        room.ingest.ingest = before
    assert 0 < len(read) < 6
    run("camvid", root, tmp_path / "whole")
    assert trees.contents(tmp_path / "store") == trees.contents(tmp_path / "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["raw-camvid", "store", "whole"]


def test_a_file_that_changed_since_is_read_again(raw_copy, tmp_path):
    root = raw_copy("camvid")
    (root / "valannot" / "0001.png").write_bytes(b"x")
    refused("camvid", root, tmp_path / "store")
    for name in ("trainannot/0000.png", "valannot/0001.png"):
        Image.fromarray(np.zeros((36, 48), np.uint8)).save(root / name)
    run("camvid", root, tmp_path / "store")
    assert open_store(tmp_path / "store").split("train").label(0).max() == 0
    run("camvid", root, tmp_path / "whole")
    assert trees.contents(tmp_path / "store") == trees.contents(tmp_path / "whole")


def prepare_process(root: Path, cwd: Path, **variables: str) -> subprocess.Popen[bytes]:
    """`mmseg prepare cityscapes` in a process of its own; the store is data/cityscapes in `cwd`."""
    command = [sys.executable, "-m", "mmseg_cli", "prepare", "cityscapes", "--root", str(root)]
    environment = {**os.environ, **variables}
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


ENDS = (
    "prepare:split:1",
    "prepare:split:2",
    "prepare:before_rename",
    "prepare:between_renames",
    "prepare:after_rename",
)
ITEMS = tuple(f"prepare:item:{number}" for number in range(1, 16))
DELAYS = tuple(f"{0.30 + 0.06 * number:.2f} s" for number in range(10))


def killed_and_rerun(root: Path, folder: Path, point: str, *, over: Path | None) -> dict[str, bytes]:
    """The store after a kill at `point` and one more run; an older store may lie there already."""
    folder.mkdir()
    if over is not None:
        shutil.copytree(over, folder / "data" / "cityscapes")
    if point.startswith("prepare:"):
        process = prepare_process(root, folder, MMSEG_FAILPOINT=point)
        assert process.wait(timeout=60) == -signal.SIGKILL
    else:
        process = prepare_process(root, folder)
        time.sleep(float(point.split()[0]))
        process.kill()
        process.wait(timeout=60)
    assert prepare_process(root, folder).wait(timeout=60) == 0
    assert [path.name for path in (folder / "data").iterdir()] == ["cityscapes"]
    return trees.contents(folder / "data" / "cityscapes")


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    return trees.make_cityscapes(tmp_path_factory.mktemp("streets"), train=10, val=5, height=96)


@pytest.fixture(scope="module")
def whole(streets, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert prepare_process(streets, folder).wait(timeout=60) == 0
    return folder / "data" / "cityscapes"


@pytest.mark.parametrize("point", [ITEMS[0], ITEMS[7], ENDS[0], ENDS[3], ENDS[4]])
def test_a_killed_command_goes_on_to_the_same_bytes(streets, whole, tmp_path, point):
    assert killed_and_rerun(streets, tmp_path / "killed", point, over=None) == trees.contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("point", [*ITEMS, *ENDS, *DELAYS])
def test_thirty_kills_give_the_same_bytes(streets, whole, tmp_path, raw, point):
    older = tmp_path / "older"
    run("cityscapes", raw["cityscapes"], older)
    assert killed_and_rerun(streets, tmp_path / "killed", point, over=older) == trees.contents(whole)


@pytest.mark.parametrize("point", ENDS)
def test_a_killed_command_loses_no_older_store(streets, raw, tmp_path, point):
    """Between the two renames the old one lies aside; the next command puts it back before anything else."""
    out = tmp_path / "data" / "cityscapes"
    run("cityscapes", raw["cityscapes"], out)
    before = trees.contents(out)
    assert prepare_process(streets, tmp_path, MMSEG_FAILPOINT=point).wait(timeout=60) == -signal.SIGKILL
    if point == "prepare:after_rename":
        assert trees.contents(out) != before
        return
    broken = shutil.copytree(streets, tmp_path / "broken")
    next((broken / "gtFine/train/aachen").glob("*_labelIds.png")).unlink()
    assert prepare_process(broken, tmp_path).wait(timeout=60) == 2
    assert trees.contents(out) == before


def test_a_killed_publishing_reads_nothing_again(streets, tmp_path):
    assert prepare_process(streets, tmp_path, MMSEG_FAILPOINT="prepare:between_renames").wait(timeout=60) < 0
    again = {"MMSEG_FAILPOINT": "prepare:item:1"}  # would kill at the first item that is read
    assert prepare_process(streets, tmp_path, **again).wait(timeout=60) == 0


def test_records_of_another_meaning_are_not_gone_on_with(raw_copy, tmp_path):
    """A fault, then a changed classes.yaml, then the same command: no label of before may stay."""
    root = raw_copy("folder")
    path = root / "masks" / "val" / "val1.png"
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    refused("folder", root, tmp_path / "store")
    path.write_bytes(good)
    file = root / "classes.yaml"
    classes = json.loads(file.read_text())
    file.write_text(
        json.dumps({**classes, "ignore": [9, 3], "classes": [one for one in classes["classes"] if one["id"] != 3]})
    )
    run("folder", root, tmp_path / "store")
    run("folder", root, tmp_path / "whole")
    assert trees.contents(tmp_path / "store") == trees.contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["imagenet", "mapillary"])
def test_a_damaged_jpeg_is_an_error_where_pixels_are_labelled(raw_copy, tmp_path, name):
    root = raw_copy(name)
    path = sorted(root.rglob("*.jpg" if name == "mapillary" else "*.JPEG"))[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    if name == "mapillary":
        assert refused(name, root, tmp_path / "store").startswith(f"{path}: is damaged (")
    made = run(name, root, tmp_path / "store", allow=("damaged-jpeg",) if name == "mapillary" else ())
    found = [(fault.where, fault.severity) for fault in made.faults if fault.kind == "damaged-jpeg"]
    assert found == [(str(path), "warning")]


def test_what_was_allowed_once_is_not_allowed_when_the_command_goes_on(raw_copy, tmp_path):
    root = raw_copy("mapillary")
    path = sorted(root.rglob("*.jpg"))[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    label = sorted(root.rglob("validation/labels/*.png"))[-1]
    good = label.read_bytes()
    label.write_bytes(good[:-20])
    with pytest.raises(FaultsFound):
        run("mapillary", root, tmp_path / "store", allow=("damaged-jpeg",))
    label.write_bytes(good)
    assert refused("mapillary", root, tmp_path / "store").startswith(f"{path}: is damaged (")


def test_a_class_that_train_never_shows_is_said(raw_copy, tmp_path):
    root = raw_copy("folder")
    classes = json.loads((root / "classes.yaml").read_text())
    classes["classes"].append({"name": "unicorn", "id": 200})
    (root / "classes.yaml").write_text(json.dumps(classes))
    for check_only in (True, False):
        made = run("folder", root, tmp_path / "store", check_only=check_only)
        assert [fault.what for fault in made.faults if fault.kind == "absent-class"] == ["train never shows unicorn"]


def test_two_commands_do_not_write_one_store(raw, tmp_path):
    with runtime.only_one(tmp_path / ".store.partial" / "lock"), pytest.raises(MmsegError, match="is already at work"):
        run("camvid", raw["camvid"], tmp_path / "store")


def test_a_root_that_is_mounted_read_only_will_do(streets, whole, tmp_path):
    """A bind mount in a name space of its own, so that any write into the dataset would be an error."""
    inner = f"mount --bind {streets} {streets} && mount -o remount,bind,ro {streets} && ! touch {streets}/x 2>/dev/null"
    run_it = f"{inner} && exec {sys.executable} -m mmseg_cli prepare cityscapes --root {streets}"
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "sh", "-c", inner], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    done = subprocess.run([unshare, "-m", "sh", "-c", run_it], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert trees.contents(tmp_path / "data" / "cityscapes") == trees.contents(whole)


# ----------------------------------------------------------------------------------------------------- single files


def test_a_truncated_jpeg_is_named(raw_copy, tmp_path):
    root = raw_copy("mapillary")
    path = root / "training/images/training-2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert refused("mapillary", root, tmp_path / "store").startswith(f"{path}: is cut short: ")


@pytest.mark.parametrize("inside", [".", "store", "gtFine/store"])
def test_nothing_is_written_into_the_dataset(raw_copy, inside):
    root = raw_copy("cityscapes")
    before = trees.snapshot(root)
    assert "lies inside the dataset" in refused("cityscapes", root, root / inside)
    assert trees.snapshot(root) == before


@pytest.mark.parametrize("where", ["above", "folder", "file", "raw data"])
def test_only_a_store_is_replaced(raw_copy, tmp_path, where):
    root = raw_copy("camvid")
    out = tmp_path / "out"
    if where == "above":
        out.mkdir()
        root = Path(shutil.move(root, out / "raw"))
    elif where == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    elif where == "file":
        out.write_text("years of work")
    else:
        shutil.copytree(root, out)
    before = trees.contents(tmp_path)
    assert "with --out" in refused("camvid", root, out)
    assert trees.contents(tmp_path) == before


def test_a_link_to_a_larger_disk_stays_a_link(raw, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "store").symlink_to("large")
    run("camvid", raw["camvid"], tmp_path / "store")
    assert (tmp_path / "store").is_symlink()
    assert len(open_store(tmp_path / "store").split("train")) == 3


def test_real_photographs_are_stored_whole(camvid_root, tmp_path):
    """Twelve real frames and their labels, by Pillow alone and out of the store."""
    root = tmp_path / "camvid"
    for split, count in (("train", 8), ("val", 4)):
        for path in sorted((camvid_root / split).iterdir())[:count]:
            for folder, suffix in ((split, path.suffix), (f"{split}annot", ".png")):
                (root / folder).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(camvid_root / folder / f"{path.stem}{suffix}", root / folder / f"{path.stem}{suffix}")
    run("camvid", root, tmp_path / "store")
    store = open_store(tmp_path / "store")
    for split in ("train", "val"):
        for position, name in enumerate(store.names(split)):
            image = next((root / split).glob(f"{name}.*"))
            np.testing.assert_array_equal(
                store.split(split).image(position), np.asarray(Image.open(image).convert("RGB"))
            )
            ids_HW = np.asarray(Image.open(root / f"{split}annot" / f"{name}.png"))
            np.testing.assert_array_equal(store.split(split).label(position), np.where(ids_HW == 11, IGNORE, ids_HW))


def test_more_classes_than_a_byte_holds(tmp_path):
    """ImageNet has a thousand."""
    root = trees.make_imagenet(tmp_path / "raw", classes=300, train=1, val=1, size=8)
    assert run("imagenet", root, tmp_path / "store").classes == 300
    store = open_store(tmp_path / "store")
    assert [store.split("train").target(item) for item in range(300)] == list(range(300))
    part = store.manifest["splits"]["train"]
    assert (part["class_pixels"], part["ignored_pixels"]) == ([1] * 300, 0)
