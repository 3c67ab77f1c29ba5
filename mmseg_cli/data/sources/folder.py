"""Anybody's dataset: `images/`, `masks/`, and a `classes.yaml` for what masks hold and how images are split."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.archives.file import shown
from mmseg_cli.data.faults import Fault
from mmseg_cli.data.labels import IGNORE, lookup_table, own_classes
from mmseg_cli.data.sources.classes_file import FILE, Classes, Colour, read_classes
from mmseg_cli.data.sources.listing import Item, Listing, hidden_test
from mmseg_cli.data.sources.roots import IMAGE_SUFFIXES, subfolders
from mmseg_cli.data.tree import File, Tree, open_tree, read
from mmseg_cli.errors import MmsegError

OPTIONS: tuple[str, ...] = ()
HINT = "images/ masks/ classes.yaml: a dataset of your own"
HELP = """\
A dataset of your own (mmseg prepare folder --root mydata):

  mydata/images/train/a.jpg   mydata/masks/train/a.png   a mask is a PNG with the name of its image
  mydata/images/val/b.jpg     mydata/masks/val/b.png     (and test, if you like)
  mydata/classes.yaml:

    name: streets             # optional
    classes: [road, car]      # a mask's pixel is the position: 0 is road, 1 is car; or with ids and colours:
    #  - {name: road, id: 7, colour: [128, 64, 128]}
    #  - {name: car, id: 26, colour: "#00008e"}
    masks: index              # index: pixels are ids (grey or palette PNG); colour: pixels are colours (RGB PNG).
                              # Needed only where classes have both. Masks of 0 and 255: colour, with
                              # [0, 0, 0] and [255, 255, 255]
    ignore: 2                 # optional: ids or colours that are not learned, such as [2, 254] or "#000000";
                              # 255 is always ignored in index masks
    mask_suffix: _mask        # optional: the mask of a.jpg is a_mask.png
    splits: {val: 0.1}        # optional, see below

  How images are split, one of:
    no `splits`                              folders images/train, images/val (and test), as above
    splits: {train: train.txt, val: val.txt} files in mydata with the name of an image a line
    splits: {val: 0.1, seed: 0}              a share of the images, drawn by their names; train gets the rest

Every label value must be a class or ignored. `--check-only` verifies everything and writes nothing."""
SPLITS = ("train", "val", "test")


def looks_like(root: Path) -> bool:
    """Whether `root` holds a classes.yaml, or the two folders that need one."""
    try:
        return (root / FILE).is_file() or {"images", "masks"} <= set(subfolders(root))
    except (OSError, ValueError):
        return False


def scan(root: Path) -> Listing:
    """List the splits that classes.yaml tells of.

    Raises:
        MmsegError: classes.yaml is missing or wrong, or there are no images or no masks at all.
    """
    if not root.is_dir():
        raise MmsegError(root, "is no folder", "unpack it, and give the folder with images/, masks/ and classes.yaml")
    classes = read_classes(root / FILE)
    lists = {name.split("/")[0] for name in classes.lists.values() if "/" in name}
    tree = open_tree(root, folders=("images", "masks", *sorted(lists)))
    for folder in ("images", "masks"):
        if not tree.under(folder, IMAGE_SUFFIXES):
            found = ", ".join(subfolders(root)) or "no folders"
            raise MmsegError(root / folder, f"holds no images (the root holds {found})", f"put the {folder} there")
    suffix = classes.mask_suffix
    masks = tree.under("masks", IMAGE_SUFFIXES)
    if not any(file.stem.endswith(suffix) for file in masks):
        what = f"no mask's name ends in mask_suffix {shown(suffix)!r} (masks/ holds {masks[0].base})"
        raise MmsegError(root / FILE, what, "set mask_suffix to what a mask's name has behind its image's")
    notes = [*tree.notes, f"masks hold {'ids' if classes.masks == 'index' else 'colours'}"]
    if classes.lists:
        splits, faults = _by_lists(tree, classes)
    elif classes.shares:
        splits, faults = _by_shares(tree, classes)
        shares = ", ".join(f"{share:g} {split}" for split, share in classes.shares.items())
        counts = ", ".join(f"{len(items)} {split}" for split, items in splits.items())
        notes.append(f"split by the images' names: {shares} of them with seed {classes.seed}: {counts}")
    else:
        splits, faults = _by_folders(tree, classes)
    return Listing(
        "folder",
        "segmentation",
        own_classes(classes.name, classes=classes.names, ids=classes.ids, colours=classes.colours),
        _table(classes) if classes.masks == "index" else None,
        splits,
        label_modes=("L", "P") if classes.masks == "index" else ("RGB", "RGBA", "P", "L"),
        colours=_colours(classes) if classes.masks == "colour" else None,
        faults=[*tree.faults, *faults],
        notes=notes,
    )


def _table(classes: Classes) -> NDArray[np.int16]:
    ignored = dict.fromkeys((*classes.ignored_ids, IGNORE), IGNORE)
    return lookup_table(ignored | {own: position for position, own in enumerate(classes.ids)})


def _colours(classes: Classes) -> dict[int, int]:
    def value(colour: Colour) -> int:
        return colour[0] << 16 | colour[1] << 8 | colour[2]

    known = {value(colour): position for position, colour in enumerate(classes.colours) if colour is not None}
    return dict.fromkeys(map(value, classes.ignored_colours), IGNORE) | known


# --------------------------------------------------------------------------------------------------- images and masks


def _by_key(tree: Tree, folder: str, *, suffix: str = "") -> tuple[dict[str, File], list[Fault]]:
    """The images below a folder by their path in it without `suffix` and file type, and the faults of second ones."""
    found: dict[str, File] = {}
    faults: list[Fault] = []
    for file in tree.under(folder, IMAGE_SUFFIXES):
        key = file.name[len(folder) + 1 :].rsplit(".", 1)[0]
        if not key.endswith(suffix):
            continue
        other = found.setdefault(key.removesuffix(suffix), file)
        if other is not file:
            what = f"has the name of {other.base}, and a mask belongs to one image"
            faults.append(Fault("missing-partner", file.where, what, "rename or remove one of them"))
    return found, faults


def _pairs(
    images: dict[str, File], masks: dict[str, File], *, suffix: str, all_masks: bool = True
) -> tuple[dict[str, Item], list[Fault]]:
    """Join images and masks of one key.

    Args:
        suffix: what a mask's name has behind the image's, for messages.
        all_masks: whether a mask without image is a fault.
    """
    items: dict[str, Item] = {}
    faults: list[Fault] = []
    for key, image in images.items():
        mask = masks.get(key)
        if mask is None:
            what = f"has no mask {image.stem}{suffix}.png"
            faults.append(Fault("missing-partner", image.where, what, "add the mask or remove the image"))
        elif not mask.name.lower().endswith(".png"):
            what = "is not a PNG, and other files may change labels"
            faults.append(Fault("wrong-mode", mask.where, what, "save the mask as PNG"))
        else:
            items[key] = Item(key, image, mask)
    for key in masks.keys() - images.keys() if all_masks else ():
        faults.append(Fault("missing-partner", masks[key].where, "has no image", "add the image or remove the mask"))
    return items, sorted(faults, key=lambda fault: fault.where)


def _empty(tree: Tree, split: str, todo: str) -> Fault:
    return Fault("empty-split", tree.root, f"the split {split!r} is empty", todo)


def _by_folders(tree: Tree, classes: Classes) -> tuple[dict[str, list[Item]], list[Fault]]:
    """images/train with masks/train, and so on."""
    splits: dict[str, list[Item]] = {}
    faults: list[Fault] = []
    for split in SPLITS:
        images, twins = _by_key(tree, f"images/{split}")
        masks, mask_twins = _by_key(tree, f"masks/{split}", suffix=classes.mask_suffix)
        if split == "test" and not images and not masks:
            continue
        if split == "test" and not tree.under("masks/test", IMAGE_SUFFIXES):
            faults += [*twins, hidden_test(f"{tree.root}/images/test", len(images), "masks")]
            continue
        items, found = _pairs(images, masks, suffix=classes.mask_suffix)
        splits[split] = list(items.values())
        faults += [*twins, *mask_twins, *found]
        if not images and not masks:
            there = ", ".join(tree.folders("images")) or "no folders"
            todo = f"fill images/{split} and masks/{split} (images/ holds {there}), or set `splits` in {FILE}"
            faults.append(_empty(tree, split, todo))
    other = Counter(
        file.name.split("/")[1] if file.name.count("/") > 1 else ""
        for file in tree.under("images", IMAGE_SUFFIXES)
        if not file.name.startswith(tuple(f"images/{split}/" for split in SPLITS))
    )
    for name, count in sorted(other.items()):
        where = f"{tree.root}/images/{name}".rstrip("/")
        what = f"{count} images are in none of train, val and test"
        faults.append(Fault("left-out", where, what, f"move them, or set `splits` in {FILE}", "warning"))
    return splits, faults


def _by_shares(tree: Tree, classes: Classes) -> tuple[dict[str, list[Item]], list[Fault]]:
    """Each image's split is drawn from its name alone, so that it keeps its split when others come or go."""
    images, twins = _by_key(tree, "images")
    masks, mask_twins = _by_key(tree, "masks", suffix=classes.mask_suffix)
    items, faults = _pairs(images, masks, suffix=classes.mask_suffix)
    splits: dict[str, list[Item]] = {split: [] for split in ("train", *classes.shares)}
    for key, item in items.items():
        splits[_drawn(key, classes)].append(item)
    faults = [*twins, *mask_twins, *faults]
    if {"train", "val"} <= set(tree.folders("images")):
        what = f"images/ has the folders train and val, and {FILE} has a share"
        faults.append(Fault("config", f"{tree.root}/{FILE}", what, "remove one of the two"))
    if not faults:
        todo = f"take another share or another seed in {FILE}, or list the images"
        faults = [_empty(tree, split, todo) for split, members in splits.items() if not members]
    return splits, faults


def _drawn(key: str, classes: Classes) -> str:
    digest = hashlib.sha256(f"{classes.seed}/{key}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    for split, share in classes.shares.items():
        if place < share:
            return split
        place -= share
    return "train"


# --------------------------------------------------------------------------------------------------------- list files


def _by_lists(tree: Tree, classes: Classes) -> tuple[dict[str, list[Item]], list[Fault]]:
    """A file a split with the name of an image a line."""
    images, twins = _by_key(tree, "images")
    masks, mask_twins = _by_key(tree, "masks", suffix=classes.mask_suffix)
    faults: list[Fault] = [*twins, *mask_twins]
    bases = Counter(key.rsplit("/", 1)[-1] for key in images)
    by_base = {key.rsplit("/", 1)[-1]: key for key in images if bases[key.rsplit("/", 1)[-1]] == 1}
    taken: dict[str, str] = {}  # where an image was listed
    splits: dict[str, list[Item]] = {}
    for split, name in classes.lists.items():
        keys, found = _listed(tree, name, images, by_base, taken)
        wanted = {key: images[key] for key in keys}
        items, missing = _pairs(wanted, masks, suffix=classes.mask_suffix, all_masks=False)
        faults += [*found, *missing]
        splits[split] = list(items.values())
        if not items and not found and not missing:
            faults.append(_empty(tree, split, f"{name} lists no images"))
    unlisted = len(images) - len(taken)
    if unlisted:
        files = ", ".join(classes.lists.values())
        what = f"{unlisted} of {len(images)} images are in none of {files}"
        faults.append(Fault("left-out", f"{tree.root}/images", what, "list them if they are wanted", "warning"))
    return splits, faults


def _listed(
    tree: Tree, name: str, images: dict[str, File], by_base: dict[str, str], taken: dict[str, str]
) -> tuple[list[str], list[Fault]]:
    """The keys that a list file names and that no list named before; adds them to `taken`."""
    file = tree.get(name)
    where = f"{tree.root}/{name}"
    if file is None:
        return [], [
            Fault("config", where, f"missing, and {FILE} names it", "write it, with the name of an image a line")
        ]
    try:
        lines = read(file).decode("utf-8-sig").splitlines()
    except MmsegError as error:
        return [], [Fault("config", error.where, error.what, error.todo)]
    except UnicodeDecodeError:
        return [], [Fault("config", where, "is not UTF-8 text", "write the name of an image a line")]
    keys: list[str] = []
    faults: list[Fault] = []
    unknown: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        key = _key(text, images, by_base)
        if key is None:
            what = f"line {number} names {shown(text)!r}, and images/ has no such image"
            unknown.append(Fault("missing-partner", where, what, "add the image or remove the line"))
        elif key in taken:
            before, _, line_before = taken[key].rpartition(":")
            twice = before == name
            other = f"line {line_before}" if twice else f"line {line_before} of {before}"
            what = f"line {number} names {shown(text)!r}, which {other} has too"
            faults.append(Fault("config" if twice else "wrong-place", where, what, "remove one of the two lines"))
        else:
            taken[key] = f"{name}:{number}"
            keys.append(key)
    if len(unknown) > 1 and not keys and not faults:  # the wrong list: one fault says it better than one a line
        what = f"none of its {len(unknown)} names is an image ({unknown[0].what})"
        unknown = [Fault("missing-partner", where, what, "list names of files in images/, with or without .jpg")]
    return keys, [*unknown, *faults]


def _key(text: str, images: dict[str, File], by_base: dict[str, str]) -> str | None:
    """The image that a line names: by its path in images/ or by its name alone, with or without the file type."""
    path = text.replace("\\", "/").removeprefix("./").removeprefix("images/")
    for name in (path, path.rsplit(".", 1)[0] if path.lower().endswith(IMAGE_SUFFIXES) else path):
        key = name if name in images else by_base.get(name)
        if key is not None:
            return key
    return None
