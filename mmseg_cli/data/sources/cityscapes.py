"""Cityscapes (Cordts et al. 2016): `leftImg8bit/<split>/<city>/*.png` beside `gtFine/<split>/<city>/*_labelIds.png`.

labelTrainIds files are not part of the download: labelIds are mapped here, and nothing is written into the dataset.
"""

from __future__ import annotations

from pathlib import Path

from mmseg_cli.data.labels import cityscapes_19
from mmseg_cli.data.sources.listing import (
    Item,
    Listing,
    count_warnings,
    files_in,
    folders_in,
    pair,
    require_items,
)

OFFICIAL_COUNTS = {"train": 2975, "val": 500}
OFFICIAL_SIZE = (1024, 2048)
IMAGE_END = "_leftImg8bit.png"
LABEL_END = "_gtFine_labelIds.png"


def looks_like(root: Path) -> bool:
    """Whether `root` holds this dataset's folders."""
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def scan(root: Path) -> Listing:
    """List train and val. Test is left out: its public labels are dummies.

    Raises:
        MmsegError: a file without partner, or an empty split.
    """
    space, table = cityscapes_19()
    splits: dict[str, list[Item]] = {}
    for split in OFFICIAL_COUNTS:
        images: list[Path] = []
        labels: list[Path] = []
        for top, end, found in (("leftImg8bit", IMAGE_END, images), ("gtFine", LABEL_END, labels)):
            for city in folders_in(root / top / split) if (root / top / split).is_dir() else []:
                found += files_in(city, (end.lower(),))
        splits[split] = pair(images, labels, image_end=IMAGE_END, label_end=LABEL_END)
    require_items(root, splits)
    warnings = count_warnings({name: len(items) for name, items in splits.items()}, OFFICIAL_COUNTS)
    return Listing("cityscapes", "segmentation", space, table, splits, OFFICIAL_SIZE, warnings)
