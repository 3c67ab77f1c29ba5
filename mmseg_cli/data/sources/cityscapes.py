"""Cityscapes (Cordts et al. 2016): `leftImg8bit/<split>/<city>/*.png` beside `gtFine` and `gtCoarse`.

Each of the three may be extracted or lie in its official zips, which are read in place. labelTrainIds files are not
part of the download: labelIds are mapped here, and nothing is written into the dataset.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmseg_cli.data.faults import Fault
from mmseg_cli.data.labels import cityscapes_19
from mmseg_cli.data.sources.listing import Item, Listing, count_warnings, empty_splits, pair
from mmseg_cli.data.sources.roots import subfolders
from mmseg_cli.data.tree import File, Tree, open_tree
from mmseg_cli.errors import MmsegError

OPTIONS: tuple[str, ...] = ("annotations", "train_from")
HINT = "leftImg8bit/ and gtFine/ or gtCoarse/, extracted or as the official zips"
OFFICIAL_COUNTS = {"train": 2975, "train_extra": 19998, "val": 500}
OFFICIAL_SIZE = (1024, 2048)
IMAGES = "leftImg8bit"
IMAGE_END = "_leftImg8bit.png"
EXTRA_ARCHIVE = "leftImg8bit_trainextra.zip"
ARCHIVES = {
    IMAGES: ("leftImg8bit_trainvaltest.zip", EXTRA_ARCHIVE),
    "gtFine": ("gtFine_trainvaltest.zip",),
    "gtCoarse": ("gtCoarse.zip",),
}
CITIES = {  # of the splits that share no city with others; a city that is not here is anybody's own
    "train": (
        *("aachen", "bochum", "bremen", "cologne", "darmstadt", "dusseldorf", "erfurt", "hamburg", "hanover", "jena"),
        *("krefeld", "monchengladbach", "strasbourg", "stuttgart", "tubingen", "ulm", "weimar", "zurich"),
    ),
    "val": ("frankfurt", "lindau", "munster"),
    "test": ("berlin", "bielefeld", "bonn", "leverkusen", "mainz", "munich"),
}
KNOWN_BAD = {"train_extra": {"troisdorf_000000_000073": "the image is black"}}
FRAME = re.compile(r"(?P<sequence>.+_[0-9]+)_(?P<frame>[0-9]+)")


def _holds(root: Path, top: str) -> bool:
    """Whether a top folder is there, extracted or in an official zip; never raises."""
    return os.path.isdir(root / top) or any(os.path.isfile(root / name) for name in ARCHIVES[top])  # noqa: PTH112, PTH113


def looks_like(root: Path) -> bool:
    """Whether `root` holds this dataset's folders or zips."""
    return _holds(root, IMAGES) and (_holds(root, "gtFine") or _holds(root, "gtCoarse"))


def _extracted(root: Path, top: str, split: str) -> bool:
    return bool(subfolders(root / top / split))


def _needed(root: Path, top: str, splits: set[str], coarse: set[str]) -> list[str]:
    """The official zips of a top folder that hold a split which is asked for and not extracted."""
    if top == "gtCoarse":
        fine_val = _extracted(root, "gtFine", "val") or any((root / name).is_file() for name in ARCHIVES["gtFine"])
        splits = coarse if fine_val else coarse | {"val"}
    elif top == "gtFine":
        splits = splits - coarse
    wanted = {split for split in splits if not _extracted(root, top, split)}
    extra = {"train_extra"} if top == IMAGES else set()
    return [name for name in ARCHIVES[top] if (wanted & extra if name == EXTRA_ARCHIVE else wanted - extra)]


def scan(root: Path, *, annotations: str | None = None, train_from: Sequence[str] | None = None) -> Listing:
    """List train and val. Test is left out: its public labels are dummies.

    Args:
        annotations: `fine` (the default) or `coarse`, of train. train_extra has coarse ones only. val is fine, or
            coarse where the dataset holds no fine ones.
        train_from: the official splits that make up train, of train, train_extra and val; ["train"] by default, and
            ["train_extra"] for coarse annotations.

    Raises:
        MmsegError: an option of another value. All else is a fault of the listing.
    """
    if annotations not in (None, "fine", "coarse"):
        raise MmsegError("annotations", f"no annotations {annotations!r}", "choose fine or coarse")
    sources = list(dict.fromkeys(train_from or (["train_extra"] if annotations == "coarse" else ["train"])))
    if unknown := [split for split in sources if split not in OFFICIAL_COUNTS]:
        raise MmsegError("train_from", f"no split {unknown[0]!r}", f"choose of {', '.join(OFFICIAL_COUNTS)}")
    coarse = {split for split in sources if annotations == "coarse" or split == "train_extra"} - {"val"}

    # What is not asked for is not opened: a half downloaded zip of it is no fault.
    tops = (IMAGES, "gtFine", "gtCoarse") if coarse or not _holds(root, "gtFine") else (IMAGES, "gtFine")
    archives = [name for top in tops for name in _needed(root, top, {*sources, "val"}, coarse)]
    tree = open_tree(root, folders=tops, archives=archives)
    notes = list(tree.notes)
    if not tree.has("gtFine/val") and tree.has("gtCoarse/val"):
        coarse.add("val")
        notes.append("val has coarse annotations, because there are no fine ones")
    found = {
        split: _scan_split(tree, split, "gtCoarse" if split in coarse else "gtFine") for split in {*sources, "val"}
    }
    if "train_extra" in sources and annotations != "coarse":
        notes.append("train_extra has coarse annotations, because there are no fine ones")
    if "val" in sources:
        notes.append("val is a part of train: a figure on val says nothing about images never seen")

    faults = list(tree.faults)
    absent = annotations == "coarse" and not _holds(root, "gtCoarse")
    if absent:
        what = f"missing, and coarse annotations are asked for (of {', '.join(sources)}; train_extra is the default)"
        todo = f"put {ARCHIVES['gtCoarse'][0]} there, or take fine annotations"
        faults.append(Fault("missing-partner", f"{tree.root.rstrip('/')}/gtCoarse", what, todo))
    for split in (split for split in OFFICIAL_COUNTS if split in found):
        named = ("empty-split", "missing-partner") if absent and split in coarse else ()
        faults += [fault for fault in found[split].faults if fault.kind not in named]
    faults += _shared_frames({split: found[split].items for split in OFFICIAL_COUNTS if split in found})
    splits = {"train": [item for split in sources for item in found[split].items], "val": found["val"].items}
    left_out = sum(len(found[split].left_out) for split in sources)
    official = {"train": sum(OFFICIAL_COUNTS[split] for split in sources) - left_out, "val": OFFICIAL_COUNTS["val"]}
    faults += count_warnings(tree.root, splits, official)
    space, table = cityscapes_19()
    return Listing(
        "cityscapes", "segmentation", space, table, splits, expected_size=OFFICIAL_SIZE, faults=faults, notes=notes
    )


@dataclass
class _Found:
    """An official split."""

    items: list[Item] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)


def _scan_split(tree: Tree, split: str, annotation: str) -> _Found:
    """The items of an official split, and everything that is wrong with the names of its files."""
    found = _Found()
    label_end = f"_{annotation}_labelIds.png"
    images, faults = _files(tree, IMAGES, split, IMAGE_END)
    labels, more = _files(tree, annotation, split, label_end)
    found.faults = [*faults, *more]
    # A file that is there under a wrong name is one fault, not another one for its partner.
    miscalled = [name for name, file in images.items() if not file.base.endswith(IMAGE_END)]
    miscalled += [name for name, file in labels.items() if not file.base.endswith(label_end)]
    for name in miscalled:
        images.pop(name, None)
        labels.pop(name, None)
    for name, reason in KNOWN_BAD.get(split, {}).items():
        for file in (images.pop(name, None), labels.pop(name, None)):
            if file is not None and name not in found.left_out:
                found.left_out.add(name)
                found.faults.append(Fault("left-out", file.where, f"left out, {reason}", "nothing to do", "warning"))
    one_sided = _one_sided(tree, split, annotation, images, labels)
    if one_sided is not None:
        found.faults.append(one_sided)
        return found
    items, faults = pair(images.values(), labels.values(), image_end=IMAGE_END, label_end=label_end)
    found.items = [_with_frame(item) for item in items]
    found.faults += [*empty_splits(tree.root, {split: items}), *faults]
    return found


def _one_sided(
    tree: Tree, split: str, annotation: str, images: dict[str, File], labels: dict[str, File]
) -> Fault | None:
    """The one fault of a split that has images and no labels at all, or labels and no images; else None."""
    train_ids = tree.under(f"{annotation}/{split}", (f"_{annotation}_labelTrainIds.png".lower(),))
    if train_ids and not labels:
        what = f"{len(train_ids)} files of labelTrainIds and none of labelIds"
        todo = f"copy the *_{annotation}_labelIds.png files from the official zip; mmseg maps them"
        return Fault("missing-partner", _place(train_ids[0], f"{annotation}/{split}"), what, todo)
    # A single file is better named itself, by `pair`.
    if len(images) > 1 and not labels:
        top, what = annotation, f"no label files, and {len(images)} images"
    elif len(labels) > 1 and not images:
        top, what = IMAGES, f"no images, and {len(labels)} label files"
    else:
        return None
    archive = EXTRA_ARCHIVE if (top, split) == (IMAGES, "train_extra") else ARCHIVES[top][0]
    return Fault("missing-partner", f"{tree.root.rstrip('/')}/{top}/{split}", what, f"add what {archive} holds")


def _files(tree: Tree, top: str, split: str, end: str) -> tuple[dict[str, File], list[Fault]]:
    """The files `<top>/<split>/<city>/<frame><end>` by their frame, whatever the case of `end`.

    Returns:
        The files, and a fault for each one that is not where its name says.
    """
    files: dict[str, File] = {}
    faults: list[Fault] = []
    by_city: dict[str, list[File]] = defaultdict(list)
    for folder in tree.folders(top):
        if folder != split and folder.lower() == split:
            where = _place(tree.under(f"{top}/{folder}")[0], f"{top}/{folder}")
            faults.append(_wrong_place(where, "upper and lower case count", f"call it {split}"))
    for file in tree.under(f"{top}/{split}", (end.lower(),)):
        frame, city = file.base[: -len(end)], file.folder.rpartition("/")[2]
        if file.folder != f"{top}/{split}/{city}":
            faults.append(_wrong_place(file.where, "lies in no city's folder", f"put it into {top}/{split}/<city>"))
        elif not file.base.endswith(end):
            faults.append(_wrong_place(file.where, "upper and lower case count in its name", f"let it end in {end}"))
        elif not frame.startswith(f"{city}_"):
            faults.append(_wrong_place(file.where, "its name begins with another city", "put it into its own folder"))
        else:
            by_city[city].append(file)
            files[frame] = file
            continue
        files.setdefault(frame, file)
    for city, there in by_city.items():
        for other in (other for other, cities in CITIES.items() if city in cities and other != split):
            where = there[0].where if len(there) == 1 else _place(there[0], there[0].folder)
            faults.append(_wrong_place(where, f"a city of {other}, not of {split}", f"put it into {top}/{other}"))
    return files, faults


def _wrong_place(where: str, what: str, todo: str) -> Fault:
    return Fault("wrong-place", where, what, todo)


def _place(file: File, folder: str) -> str:
    """What a message calls the folder of the tree that holds `file`."""
    return file.where[: len(file.where) - len(file.name)] + folder


def _with_frame(item: Item) -> Item:
    match = FRAME.fullmatch(item.name)
    return replace(item, sequence=match["sequence"], frame=int(match["frame"])) if match else item


def _shared_frames(splits: dict[str, list[Item]]) -> list[Fault]:
    """A fault for each frame that is in two official splits."""
    faults: list[Fault] = []
    seen: dict[str, str] = {}
    for split, items in splits.items():
        for item in items:
            other = seen.setdefault(item.name, split)
            if other != split:
                faults.append(_wrong_place(item.image.where, f"the same frame is in {other}", "remove one of the two"))
    return faults
