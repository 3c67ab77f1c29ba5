"""What can be wrong with a dataset, planted into small trees one by one: all of it is named, and nothing else is.

A fault is one line of the table FAULTS: what it is called, the layout, what is done to a copy of the tree, the kind of
the fault, and the paths that must be named (relative to the root; "" is the root).
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from mmseg_cli.data import prepare as room
from mmseg_cli.data.faults import KINDS, Fault, FaultsFound, errors
from mmseg_cli.errors import MmsegError

Spoil = Callable[[Path], None]
QUIET = {"count", "image-size"}  # kinds that a tree of a few small images must have

# ------------------------------------------------------------------------------------------------------- clean trees


def make_listed(root: Path) -> Path:
    """A dataset of one's own that is split by list files."""
    rng = np.random.default_rng(3)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(5):
        Image.fromarray(trees.photo(rng, 30, 44)).save(root / "images" / f"{number}.jpg", quality=95)
        Image.fromarray(trees.regions(rng, 30, 44, (0, 4, 9, 255))).save(root / "masks" / f"{number}.png")
    (root / "classes.yaml").write_text(
        "classes: {grass: 0, path: 4}\nignore: 9\nsplits: {train: train.txt, val: val.txt}\n"
    )
    (root / "train.txt").write_text("0\n1.jpg\nimages/2.jpg\n")
    (root / "val.txt").write_text("3\n4\n")
    return root


def make_zipped(root: Path) -> Path:
    """Cityscapes as downloaded."""
    trees.make_cityscapes(root, train=5, val=3)
    trees.zip_away(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit/train", "leftImg8bit/val")
    trees.zip_away(root, "gtFine_trainvaltest.zip", "gtFine/train", "gtFine/val")
    return root


MAKERS: dict[str, tuple[str, Callable[[Path], Path]]] = {  # of each layout: the command's name for it, and its tree
    "cityscapes": ("cityscapes", lambda root: trees.make_cityscapes(root, train=5, val=3)),
    "cityscapes-zips": ("cityscapes", make_zipped),
    "mapillary": ("mapillary", trees.make_mapillary),
    "mapillary-v2": ("mapillary", trees.make_vistas_v2),
    "camvid": ("camvid", lambda root: trees.make_camvid(root, test=1)),
    "imagenet": ("imagenet", trees.make_imagenet),
    "ade20k": ("ade20k", trees.make_ade20k),
    "folder": ("folder", trees.make_folder),
    "folder-colours": ("folder", lambda root: trees.make_folder(root, colour=True)),
    "folder-lists": ("folder", make_listed),
}

# ------------------------------------------------------------------------------------------------- what can be done


def cut(name: str, *, keep: float = 0.6) -> Spoil:
    """Keep a part of a file: a copy that broke off."""

    def spoil(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(len(content) * keep)])

    return spoil


def endless(name: str) -> Spoil:
    """Drop the last two bytes: the end marker of a JPEG."""
    return lambda root: change(root / name, lambda content: content[:-2])


def zeros(name: str) -> Spoil:
    """Zeros instead of the last half: a disk that was full."""
    return lambda root: change(root / name, lambda content: content[: len(content) // 2].ljust(len(content), b"\0"))


def flip(name: str) -> Spoil:
    """One bit in the middle of a file."""

    def flipped(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]

    return lambda root: change(root / name, flipped)


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def content(name: str, value: bytes | str) -> Spoil:
    """A file of other bytes, new or not."""

    def spoil(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(value.encode() if isinstance(value, str) else value)

    return spoil


def remove(*names: str) -> Spoil:
    """Files and folders are gone."""

    def spoil(root: Path) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def rename(*pairs: tuple[str, str]) -> Spoil:
    """Files and folders have other names."""

    def spoil(root: Path) -> None:
        for old, new in pairs:
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            (root / old).rename(root / new)

    return spoil


def copy(old: str, new: str) -> Spoil:
    """One file has the content of another."""
    return lambda root: content(new, (root / old).read_bytes())(root)


def new_image(name: str, *, seed: int = 90, size: tuple[int, int] = (32, 64), kind: str = "PNG") -> Spoil:
    """An image that is nowhere else."""
    return image(name, trees.photo(np.random.default_rng(seed), *size), kind=kind)


def image(name: str, pixels: np.ndarray, *, mode: str | None = None, kind: str = "PNG") -> Spoil:
    """These pixels, in this mode and format whatever the suffix."""
    picture = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind)
    return content(name, buffer.getvalue())


def converted(name: str, mode: str, *, kind: str = "PNG") -> Spoil:
    """The same image in another mode or format."""

    def spoil(root: Path) -> None:
        picture = Image.open(root / name).convert(mode)
        picture.save(root / name, kind)

    return spoil


def palette(name: str) -> Spoil:
    """The same ids with a palette."""

    def spoil(root: Path) -> None:
        picture = Image.open(root / name)
        picture.putpalette(random.Random(1).randbytes(768))
        picture.save(root / name)

    return spoil


def values(name: str, *found: int) -> Spoil:
    """Pixels of a label file become these values."""

    def spoil(root: Path) -> None:
        picture = Image.open(root / name)
        pixels = np.asarray(picture).copy()
        pixels[5, : len(found)] = np.array(found)[:, None] if pixels.ndim == 3 else found
        changed = Image.fromarray(pixels)
        if picture.mode == "P":
            changed.putpalette(picture.getpalette())
        changed.save(root / name)

    return spoil


def turned(name: str) -> Spoil:
    """An image turned by 90 degrees."""

    def spoil(root: Path) -> None:
        picture = Image.open(root / name)
        picture.transpose(Image.Transpose.ROTATE_90).save(root / name)

    return spoil


def link(name: str, target: str) -> Spoil:
    """A link in the place of a file; `target` is relative to the root's parent."""

    def spoil(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(root.parent / target)

    return spoil


def moved_out(name: str) -> Spoil:
    """The file lies outside the root, and a link leads to it."""

    def spoil(root: Path) -> None:
        (root / name).rename(root.parent / "elsewhere.png")
        link(name, "elsewhere.png")(root)

    return spoil


def folder_for(name: str) -> Spoil:
    """A folder in the place of a file."""

    def spoil(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return spoil


def altered(first: str, second: str) -> Spoil:
    """Two images of one scene, which has patches as photographs have; the second is brighter and was a JPEG."""

    def spoil(root: Path) -> None:
        cells = np.random.default_rng(5).integers(0, 220, (8, 16, 3), dtype=np.uint8)
        scene = Image.fromarray(cells).resize((64, 32), Image.Resampling.BICUBIC)
        scene.save(root / first)
        buffer = io.BytesIO()
        scene.point(lambda value: min(255, value * 1.05)).save(buffer, "JPEG", quality=90)
        Image.open(buffer).save(root / second)

    return spoil


def steps(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(root: Path) -> None:
        for step in spoils:
            step(root)

    return spoil


# ---------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Row:
    name: str
    layout: str
    spoil: Spoil
    kind: str
    paths: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()  # (kind, path) of faults that cannot but follow from it
    severity: str = "error"


C_IMAGE = "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png"
C_LABEL = "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png"
C_FIRST = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
C_SECOND = "leftImg8bit/train/bad-honnef/bad-honnef_000001_000019_leftImg8bit.png"
M_IMAGE, M_LABEL = "training/images/training-2.jpg", "training/labels/training-2.png"
V_IMAGE, V_LABEL = "val/0001.png", "valannot/0001.png"
I_IMAGE = "train/n00001001/n00001001_2.JPEG"
A_IMAGE, A_LABEL = "images/validation/ADE_val_00000002.jpg", "annotations/validation/ADE_val_00000002.png"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2300000\n"
DEEP = np.full((32, 64), 7, dtype=np.uint16)


def c_image(split: str, city: str, frame: str) -> str:
    return f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png"


def c_label(split: str, city: str, frame: str) -> str:
    return f"gtFine/{split}/{city}/{frame}_gtFine_labelIds.png"


def new_frame(split: str, city: str, frame: str, *, seed: int = 90) -> Spoil:
    """A right frame of Cityscapes more."""
    ids_HW = np.full((32, 64), 7, dtype=np.uint8)
    return steps(new_image(c_image(split, city, frame), seed=seed), image(c_label(split, city, frame), ids_HW))


def renamed_frame(old: tuple[str, str, str], new: tuple[str, str, str]) -> Spoil:
    return rename((c_image(*old), c_image(*new)), (c_label(*old), c_label(*new)))


VAL_IDS = [f"gtFine/val/lindau/lindau_{number:06d}_000019_gtFine_labelIds.png" for number in range(3)]
only_train_ids = rename(*((name, name.replace("labelIds", "labelTrainIds")) for name in VAL_IDS))
one_video = rename(
    *((f"train{end}/0000.png", f"train{end}/drive_100.png") for end in ("", "annot")),
    *((f"val{end}/0000.png", f"val{end}/drive_130.png") for end in ("", "annot")),
)
names_by_case = steps(
    *(new_image(f"train/{name}.png", seed=seed, size=(36, 48)) for seed, name in enumerate("Aa", 50)),
    *(copy("trainannot/0000.png", f"trainannot/{name}.png") for name in "Aa"),
)


FAULTS = [
    # partners and places
    Row("a label is missing", "cityscapes", remove(C_LABEL), "missing-partner", (C_IMAGE,)),
    Row("an image is missing", "cityscapes", remove(C_IMAGE), "missing-partner", (C_LABEL,)),
    Row("a label is missing", "mapillary", remove(M_LABEL), "missing-partner", (M_IMAGE,)),
    Row(
        "a label is missing",
        "mapillary-v2",
        remove("training/v2.0/labels/training-1.png"),
        "missing-partner",
        ("training/images/training-1.jpg",),
    ),
    Row("an image is missing", "camvid", remove(V_IMAGE), "missing-partner", (V_LABEL,)),
    Row("a label is missing", "ade20k", remove(A_LABEL), "missing-partner", (A_IMAGE,)),
    Row("a mask is missing", "folder-lists", remove("masks/3.png"), "missing-partner", ("images/3.jpg",)),
    Row("a folder lies where a label should", "cityscapes", folder_for(C_LABEL), "missing-partner", (C_IMAGE,)),
    Row("only labelTrainIds", "cityscapes", only_train_ids, "missing-partner", ("gtFine/val",)),
    Row(
        "a frame of another city",
        "cityscapes",
        renamed_frame(("train", "aachen", "aachen_000002_000019"), ("train", "aachen", "bremen_000002_000019")),
        "wrong-place",
        (c_image("train", "aachen", "bremen_000002_000019"), c_label("train", "aachen", "bremen_000002_000019")),
    ),
    Row(
        "a city of val in train",
        "cityscapes",
        new_frame("train", "munster", "munster_000003_000019"),
        "wrong-place",
        (c_image("train", "munster", "munster_000003_000019"), c_label("train", "munster", "munster_000003_000019")),
    ),
    Row(
        "a frame in two splits",
        "cityscapes",
        steps(new_frame("train", "ely", "ely_000003_000019"), new_frame("val", "ely", "ely_000003_000019", seed=91)),
        "wrong-place",
        (c_image("val", "ely", "ely_000003_000019"),),
    ),
    Row(
        "a suffix in other case",
        "cityscapes",
        rename((C_IMAGE, C_IMAGE.replace("leftImg8bit.png", "leftimg8bit.PNG"))),
        "wrong-place",
        (C_IMAGE.replace("leftImg8bit.png", "leftimg8bit.PNG"),),
    ),
    Row(
        "a picture of another class",
        "imagenet",
        rename((I_IMAGE, "train/n00001001/n00001002_7.JPEG")),
        "wrong-place",
        ("train/n00001001/n00001002_7.JPEG",),
    ),
    Row(
        "a class of val that train lacks",
        "imagenet",
        new_image("val/n00009999/n00009999_1.JPEG", kind="JPEG"),
        "wrong-place",
        ("val/n00009999",),
    ),
    Row("one name in two lists", "folder-lists", content("val.txt", "3\n4\n0\n"), "wrong-place", ("val.txt",)),
    Row(
        "a list names no image",
        "folder-lists",
        content("train.txt", "0\n1\n2\n77\n"),
        "missing-partner",
        ("train.txt",),
    ),
    # what is not there at all
    Row("an empty split", "cityscapes", remove("leftImg8bit/val", "gtFine/val"), "empty-split", ("",)),
    Row("an empty split", "mapillary", remove("validation"), "empty-split", ("",)),
    Row("an empty split", "camvid", remove("val", "valannot"), "empty-split", ("",)),
    Row("no val", "imagenet", remove("val"), "empty-split", ("val",)),
    Row(
        "a class without pictures",
        "imagenet",
        content("train/n00000999/readme.txt", "no pictures"),
        "empty-split",
        ("train/n00000999",),
    ),
    Row("no config", "mapillary", remove("config.json"), "config", ("config.json",)),
    Row("a broken config", "mapillary", cut("config.json"), "config", ("config.json",)),
    Row(
        "a config of something else",
        "mapillary",
        content("config.json", json.dumps({"labels": [{"name": 3}]})),
        "config",
        ("config.json",),
    ),
    Row("no names of the classes", "ade20k", remove("objectInfo150.txt"), "config", ("objectInfo150.txt",)),
    Row(
        "classes.yaml with a slip",
        "folder-lists",
        content("classes.yaml", "clases: [grass]\n"),
        "config",
        ("classes.yaml",),
    ),
    Row("a list is missing", "folder-lists", remove("val.txt"), "config", ("val.txt",)),
    # damage
    Row("a label is cut short", "cityscapes", cut(C_LABEL), "damaged", (C_LABEL,)),
    Row("an image is cut short", "cityscapes", cut(C_IMAGE, keep=0.97), "damaged", (C_IMAGE,)),
    Row("a flipped bit in an image", "cityscapes", flip(C_IMAGE), "damaged", (C_IMAGE,)),
    Row("a flipped bit in a label", "cityscapes", flip(C_LABEL), "damaged", (C_LABEL,)),
    Row("an image ends in zeros", "cityscapes", zeros(C_IMAGE), "damaged", (C_IMAGE,)),
    Row("a JPEG is cut short", "mapillary", cut(M_IMAGE), "damaged", (M_IMAGE,)),
    Row("a JPEG without its end", "mapillary", endless(M_IMAGE), "damaged", (M_IMAGE,)),
    Row("a JPEG ends in zeros", "imagenet", zeros(I_IMAGE), "damaged", (I_IMAGE,)),
    Row("a JPEG is cut short", "imagenet", cut(I_IMAGE), "damaged", (I_IMAGE,)),
    Row(
        "a damaged PNG that is called JPEG", "imagenet", steps(new_image(I_IMAGE), flip(I_IMAGE)), "damaged", (I_IMAGE,)
    ),
    Row("a pointer instead of an image", "cityscapes", content(C_IMAGE, LFS), "damaged", (C_IMAGE,)),
    Row("a page instead of an image", "imagenet", content(I_IMAGE, "<html>404</html>"), "damaged", (I_IMAGE,)),
    Row("a damaged label", "ade20k", flip(A_LABEL), "damaged", (A_LABEL,)),
    Row("an empty image", "cityscapes", content(C_IMAGE, b""), "empty-file", (C_IMAGE,)),
    Row("an empty label", "camvid", content(V_LABEL, b""), "empty-file", (V_LABEL,)),
    Row("an empty picture", "imagenet", content(I_IMAGE, b""), "empty-file", (I_IMAGE,)),
    Row(
        "a damaged member of a zip",
        "cityscapes-zips",
        flip("gtFine_trainvaltest.zip"),
        "archive",
        ("gtFine_trainvaltest.zip/",),
    ),
    Row(
        "a zip that was not downloaded whole",
        "cityscapes-zips",
        cut("gtFine_trainvaltest.zip"),
        "archive",
        ("gtFine_trainvaltest.zip",),
        also=(("missing-partner", "gtFine/train"), ("missing-partner", "gtFine/val")),
    ),
    # modes, sizes and values
    Row("an unknown value", "cityscapes", values(C_LABEL, 77, 200), "unknown-label", (C_LABEL,)),
    Row("an unknown value", "camvid", values(V_LABEL, 12), "unknown-label", (V_LABEL,)),
    Row("an unknown value", "mapillary", values(M_LABEL, 6), "unknown-label", (M_LABEL,)),
    Row("an unknown value", "ade20k", values(A_LABEL, 151), "unknown-label", (A_LABEL,)),
    Row("an unknown value", "folder", values("masks/val/val1.png", 254), "unknown-label", ("masks/val/val1.png",)),
    Row(
        "an unknown colour", "folder-colours", values("masks/val/val1.png", 9), "unknown-label", ("masks/val/val1.png",)
    ),
    Row("colours instead of ids", "cityscapes", converted(C_LABEL, "RGB"), "wrong-mode", (C_LABEL,)),
    Row("colours instead of indices", "mapillary", converted(M_LABEL, "RGB"), "wrong-mode", (M_LABEL,)),
    Row("a palette instead of ids", "cityscapes", palette(C_LABEL), "wrong-mode", (C_LABEL,)),
    Row("a palette instead of ids", "camvid", palette(V_LABEL), "wrong-mode", (V_LABEL,)),
    Row("a label of 16 bits", "cityscapes", image(C_LABEL, DEEP), "wrong-mode", (C_LABEL,)),
    Row("a label of 1 bit", "camvid", converted(V_LABEL, "1"), "wrong-mode", (V_LABEL,)),
    Row("a label saved as JPEG", "cityscapes", converted(C_LABEL, "L", kind="JPEG"), "wrong-mode", (C_LABEL,)),
    Row(
        "a mask with transparency",
        "folder-colours",
        image("masks/val/val1.png", np.zeros((32, 40, 4), np.uint8)),
        "wrong-mode",
        ("masks/val/val1.png",),
    ),
    Row("an image of 16 bits", "cityscapes", image(C_IMAGE, DEEP), "wrong-mode", (C_IMAGE,)),
    Row("an image of 1 bit", "camvid", converted(V_IMAGE, "1"), "wrong-mode", (V_IMAGE,)),
    Row("a small label", "cityscapes", image(C_LABEL, np.full((16, 32), 7, np.uint8)), "size-mismatch", (C_LABEL,)),
    Row("a small image", "cityscapes", new_image(C_IMAGE, size=(16, 32)), "size-mismatch", (C_LABEL,)),
    Row("a label that was turned", "mapillary", turned(M_LABEL), "size-mismatch", (M_LABEL,)),
    # twice
    Row("an image twice in a split", "cityscapes", copy(C_FIRST, C_SECOND), "duplicate-content", (C_SECOND,)),
    Row("an image in two splits", "cityscapes", copy(C_FIRST, C_IMAGE), "shared-content", (C_IMAGE,)),
    Row("an image in two splits", "camvid", copy("train/0000.png", V_IMAGE), "shared-content", (V_IMAGE,)),
    Row("names that differ by case", "camvid", names_by_case, "duplicate-case", ("train/a.png", "trainannot/a.png")),
    # links
    Row("a link that leads out", "cityscapes", moved_out(C_IMAGE), "outside-link", (C_IMAGE,)),
    Row(
        "a link that leads nowhere",
        "cityscapes",
        link(C_IMAGE, "nowhere.png"),
        "unreadable",
        (C_IMAGE,),
        also=(("missing-partner", C_LABEL),),
    ),
]

LEAKS = [
    Row(
        "a picture twice",
        "imagenet",
        copy(I_IMAGE, "train/n00001001/n00001001_1.JPEG"),
        "duplicate-content",
        (I_IMAGE,),
        severity="warning",
    ),
    Row(
        "a picture in two splits",
        "imagenet",
        copy(I_IMAGE, "val/n00001001/n00001001_1.JPEG"),
        "shared-content",
        ("val/n00001001/n00001001_1.JPEG",),
        severity="warning",
    ),
    Row("frames of one video", "camvid", one_video, "near-split", ("val/drive_130.png",), severity="warning"),
    Row("an altered copy", "cityscapes", altered(C_FIRST, C_IMAGE), "near-split", (C_IMAGE,), severity="warning"),
]


# ---------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> dict[str, Path]:
    """One tree of every layout; only read."""
    root = tmp_path_factory.mktemp("clean")
    return {layout: maker(root / layout) for layout, (_, maker) in MAKERS.items()}


def state(root: Path) -> dict[str, tuple[object, ...]]:
    """Of everything below `root`: kind, times and content; links as they are."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in (*folders, *files))):
            stat = path.lstat()
            inside = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
            found[str(path)] = (stat.st_mode, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, inside)
    return found


def run(layout: str, root: Path, out: Path, *, check_only: bool) -> tuple[int, list[Fault]]:
    """The exit code that the command would have, and all faults."""
    try:
        made = room.prepare(
            MAKERS[layout][0],
            root,
            out,
            options={},
            parameters={},
            long_side=None,
            short_side=None,
            allow=(),
            check_only=check_only,
            threads=2,
            on_start=lambda total: None,
            advance=lambda: None,
        )
    except FaultsFound as found:
        return found.exit_code, found.faults
    except MmsegError as error:  # nothing could go on, as without a config
        return error.exit_code, [Fault("config", error.where, error.what, error.todo)]
    return 0, made.faults


def named(row: Row, root: Path) -> list[tuple[str, str]]:
    """The (kind, place) that must be reported; a place that ends in a slash stands for any file below it."""
    pairs = [(row.kind, path) for path in row.paths] + list(row.also)
    return sorted((kind, str(root) if not path else f"{root}/{path}") for kind, path in pairs)


def agrees(fault: Fault, kind: str, place: str) -> bool:
    return fault.kind == kind and (fault.where.startswith(place) if place.endswith("/") else fault.where == place)


def check(row: Row, found: list[Fault], root: Path, severity: str) -> None:
    wanted = named(row, root)
    for kind, place in wanted:
        assert any(agrees(fault, kind, place) and fault.severity == severity for fault in found), (wanted, found)
    others = [fault for fault in found if not any(agrees(fault, *pair) for pair in wanted)]
    assert not errors(others)
    for fault in found:
        assert fault.kind in KINDS
        assert fault.what
        assert fault.todo
        assert fault.line().isprintable()


@pytest.mark.parametrize("check_only", [True, False], ids=["check", "write"])
@pytest.mark.parametrize("row", FAULTS, ids=lambda row: f"{row.layout}: {row.name}")
def test_a_planted_fault_is_named_and_nothing_else(clean, tmp_path, row, check_only):
    root = Path(shutil.copytree(clean[row.layout], tmp_path / "root"))
    row.spoil(root)
    before, out = state(root), tmp_path / "out" / "store"
    code, found = run(row.layout, root, out, check_only=check_only)
    assert code == 2
    check(row, found, root, "error")
    assert state(root) == before
    assert not out.exists()
    if check_only:
        assert not out.parent.exists()


@pytest.mark.parametrize("row", LEAKS, ids=lambda row: f"{row.layout}: {row.name}")
def test_a_leak_is_a_warning_and_the_store_is_written(clean, tmp_path, row):
    root = Path(shutil.copytree(clean[row.layout], tmp_path / "root"))
    row.spoil(root)
    before = state(root)
    code, found = run(row.layout, root, tmp_path / "store", check_only=False)
    assert code == 0
    check(row, found, root, "warning")
    assert {fault.kind for fault in found} <= {row.kind, *QUIET}
    assert state(root) == before
    assert (tmp_path / "store" / "manifest.json").is_file()


def test_there_are_forty_different_faults():
    assert len(FAULTS) >= 40
    assert len({(row.layout, row.name) for row in FAULTS}) == len(FAULTS)
    # Tested elsewhere: warnings, and what needs a file of its own.
    without = {"absent-class", "count", "damaged-jpeg", "image-size", "left-out", "near-split"}
    assert {row.kind for row in FAULTS} == set(KINDS) - without


@pytest.mark.parametrize("check_only", [True, False], ids=["check", "write"])
@pytest.mark.parametrize("layout", MAKERS)
def test_a_clean_tree_has_no_faults(clean, tmp_path, layout, check_only):
    before = state(clean[layout])
    code, found = run(layout, clean[layout], tmp_path / "store", check_only=check_only)
    assert code == 0
    assert not errors(found)
    assert {fault.kind for fault in found} <= QUIET
    assert state(clean[layout]) == before
    assert (tmp_path / "store").exists() != check_only


def test_many_faults_of_one_tree_are_all_named(clean, tmp_path):
    """Every fault of Cityscapes that concerns other files than the others do, at once."""
    root = Path(shutil.copytree(clean["cityscapes"], tmp_path / "root"))
    frames = [f"lindau_{number:06d}_000019" for number in range(3)]
    planted = [
        (remove(c_label("val", "lindau", frames[0])), "missing-partner", c_image("val", "lindau", frames[0])),
        (cut(c_image("val", "lindau", frames[1])), "damaged", c_image("val", "lindau", frames[1])),
        (palette(c_label("val", "lindau", frames[1])), "wrong-mode", c_label("val", "lindau", frames[1])),
        (values(c_label("val", "lindau", frames[2]), 99), "unknown-label", c_label("val", "lindau", frames[2])),
        (copy(C_FIRST, C_SECOND), "duplicate-content", C_SECOND),
    ]
    for spoil, _, _ in planted:
        spoil(root)
    code, found = run("cityscapes", root, tmp_path / "store", check_only=False)
    assert code == 2
    assert sorted((fault.kind, fault.where) for fault in errors(found)) == sorted(
        (kind, f"{root}/{path}") for _, kind, path in planted
    )
