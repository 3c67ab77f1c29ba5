"""Mapillary Vistas v1.2 (Neuhold et al. 2017): `config.json`, `{training,validation}/{images,labels}`.

A label file is a palette PNG whose pixel is the index into `config["labels"]`.
"""

from __future__ import annotations

from pathlib import Path

from mmseg_cli.data.labels import vistas
from mmseg_cli.data.sources.listing import Item, Listing, count_warnings, files_in, pair, require_items
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import read_json

OFFICIAL_COUNTS = {"train": 18000, "val": 2000}
FOLDERS = {"train": "training", "val": "validation"}


def looks_like(root: Path) -> bool:
    """Whether `root` holds this dataset's folders."""
    return (root / "training" / "images").is_dir()


def scan(root: Path) -> Listing:
    """List training and validation with the labels that config.json marks as evaluated.

    Raises:
        MmsegError: a missing or broken config.json, a file without partner, or an empty split.
    """
    config = root / "config.json"
    if not config.is_file() and (root / "config_v2.0.json").is_file():
        raise MmsegError(root, "this is Vistas v2.0", "give the root of v1.2")
    content = read_json(config, todo="give the folder that holds Vistas' config.json")
    try:
        space, table = vistas(content["labels"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MmsegError(config, f"not a Vistas config ({error!r})", "copy it from the archive again") from error
    splits: dict[str, list[Item]] = {}
    for split, folder in FOLDERS.items():
        images, labels = root / folder / "images", root / folder / "labels"
        splits[split] = pair(
            files_in(images, (".jpg", ".jpeg")) if images.is_dir() else [],
            files_in(labels, (".png",)) if labels.is_dir() else [],
        )
    require_items(root, splits)
    warnings = count_warnings({name: len(items) for name, items in splits.items()}, OFFICIAL_COUNTS)
    return Listing("mapillary", "segmentation", space, table, splits, None, warnings)
