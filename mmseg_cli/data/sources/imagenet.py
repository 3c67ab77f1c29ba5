"""ImageNet (ILSVRC 2012): `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`; any tree with one folder a class works."""

from __future__ import annotations

from pathlib import Path

from mmseg_cli.data.labels import folder_classes
from mmseg_cli.data.sources.listing import Item, Listing, count_warnings, files_in, folders_in, require_items
from mmseg_cli.errors import MmsegError

OFFICIAL_COUNTS = {"train": 1281167, "val": 50000}


def looks_like(root: Path) -> bool:
    """Whether `root` holds this dataset's folders: classes below `train`, and no other dataset's annotations."""
    train = root / "train"
    return train.is_dir() and not (root / "trainannot").exists() and any(path.is_dir() for path in train.iterdir())


def scan(root: Path) -> Listing:
    """List train and val; the classes are the folders of train in the order of their names.

    Raises:
        MmsegError: an empty split or class, or a val folder that train does not have.
    """
    names = [folder.name for folder in folders_in(root / "train")]
    space = folder_classes("imagenet", names)
    index = {name: position for position, name in enumerate(names)}
    splits: dict[str, list[Item]] = {}
    for split in ("train", "val"):
        items: list[Item] = []
        for folder in folders_in(root / split) if (root / split).is_dir() else []:
            if folder.name not in index:
                raise MmsegError(folder, "this class is not in train", "remove the folder or add its training images")
            found = files_in(folder, (".jpeg", ".jpg", ".png"))
            if not found and split == "train":
                raise MmsegError(folder, "this class has no images", "add images or remove the folder")
            items += [Item(f"{folder.name}/{path.name}", path, target=index[folder.name]) for path in found]
        splits[split] = items
    require_items(root, splits)
    warnings = count_warnings({name: len(items) for name, items in splits.items()}, OFFICIAL_COUNTS)
    return Listing("imagenet", "classification", space, None, splits, None, warnings)
