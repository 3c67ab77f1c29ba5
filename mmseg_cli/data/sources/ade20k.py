"""ADE20K (Zhou et al. 2017) in its SceneParsing layout: `images/{training,validation}`, `annotations/...`, 150 classes.

A label file holds 1 to 150, the rows of objectInfo150.txt; 0 is everything else and is ignored.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmseg_cli.data.faults import Fault
from mmseg_cli.data.labels import ade20k_150
from mmseg_cli.data.sources.listing import Item, Listing, count_warnings, empty_splits, pair
from mmseg_cli.data.tree import Tree, open_tree, read
from mmseg_cli.errors import MmsegError

OPTIONS: tuple[str, ...] = ()
TOP = "ADEChallengeData2016"
HINT = f"images/, annotations/ and objectInfo150.txt, maybe in {TOP}/, or {TOP}.zip as downloaded"
OFFICIAL_COUNTS = {"train": 20210, "val": 2000}
FOLDERS = {"train": "training", "val": "validation"}
CLASSES = 150


def looks_like(root: Path) -> bool:
    """Whether `root` holds this dataset's folders or its archive, or is one of them."""
    for top in (root, root / TOP):
        if os.path.isdir(top / "images" / "training") and os.path.isdir(top / "annotations" / "training"):  # noqa: PTH112
            return True
    zipped = root if root.name == f"{TOP}.zip" else root / f"{TOP}.zip"
    return os.path.isfile(zipped)  # noqa: PTH113


def scan(root: Path) -> Listing:
    """List training and validation.

    Raises:
        MmsegError: no objectInfo150.txt that names 150 classes; all else is a fault of the listing.
    """
    # A zip that is extracted is not needed, so that a damaged one is no matter.
    parts = (
        "objectInfo150.txt",
        *(f"{kind}/{name}" for kind in ("images", "annotations") for name in FOLDERS.values()),
    )
    extracted = any(all((top / part).exists() for part in parts) for top in (root, root / TOP))
    tree = open_tree(root, folders=("images", "annotations", TOP), archives=() if extracted else (f"{TOP}.zip",))
    top = f"{TOP}/" if tree.has(TOP) else ""
    space, table = ade20k_150(_names(tree, f"{top}objectInfo150.txt"))
    splits: dict[str, list[Item]] = {}
    faults: list[Fault] = []
    for split, folder in FOLDERS.items():
        images = tree.under(f"{top}images/{folder}", (".jpg", ".jpeg"))
        labels = tree.under(f"{top}annotations/{folder}", (".png",))
        splits[split], found = pair(images, labels)
        faults += found
        other = "ADE_val_" if split == "train" else "ADE_train_"
        for file in (file for file in (*images, *labels) if file.base.startswith(other)):
            faults.append(
                Fault("wrong-place", file.where, f"its name is not one of {folder}", "put it where it belongs")
            )
    faults = [
        *tree.faults,
        *empty_splits(tree.root, splits),
        *faults,
        *count_warnings(tree.root, splits, OFFICIAL_COUNTS),
    ]
    return Listing("ade20k", "segmentation", space, table, splits, faults=faults, notes=tree.notes)


def _names(tree: Tree, place: str) -> list[str]:
    """The first name of each class, from a table with the columns Idx, Ratio, Train, Val, Stuff and Name."""
    file = tree.get(place)
    if file is None:
        raise MmsegError(f"{tree.root}/{place}", "missing", "copy it from the archive again")
    rows = [line.split("\t") for line in read(file).decode("utf-8", "replace").splitlines()[1:] if line.strip()]
    names = [row[-1].split(",")[0].strip() for row in rows]
    if [row[0].strip() for row in rows] != [str(index + 1) for index in range(CLASSES)] or len(set(names)) != CLASSES:
        raise MmsegError(file.where, f"does not name the classes 1 to {CLASSES}", "copy it from the archive again")
    return names
