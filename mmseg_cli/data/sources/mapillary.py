"""Mapillary Vistas (Neuhold et al. 2017), v1.2 and v2.0: `{training,validation}/images` beside palette PNGs of labels.

A label file's pixel is the index into `labels` of the version's config. Colours are for the eye: in v2.0 they are not
unique, so files are read by index. v2.0 brings the labels of v1.2 along.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.faults import Fault, FaultsFound
from mmseg_cli.data.labels import IGNORE, LabelSpace, vistas, vistas_cityscapes_19
from mmseg_cli.data.sources.listing import Item, Listing, count_warnings, empty_splits, pair
from mmseg_cli.data.sources.vistas_maps import MAPS, cityscapes_classes
from mmseg_cli.data.tree import File, Tree, open_tree, read
from mmseg_cli.errors import MmsegError

OPTIONS: tuple[str, ...] = ("target", "label_map")
HINT = "config.json (v1.2) or config_v2.0.json (v2.0), training/ and validation/"
OFFICIAL_COUNTS = {"train": 18000, "val": 2000}
FOLDERS = {"train": "training", "val": "validation"}
TRAINED = {"vistas-65": 65, "vistas-116": 116}
TODO_COPY = "copy it from the archive again"


@dataclass(frozen=True)
class _Version:
    """Where a version of the labels lies: `config`, and `labels` in each split's folder."""

    name: str
    config: str
    labels: str

    def is_in(self, tree: Tree) -> bool:
        return tree.get(self.config) is not None or any(tree.has(f"{top}/{self.labels}") for top in FOLDERS.values())


V1 = _Version("v1.2", "config.json", "labels")
V1_IN_V2 = _Version("v1.2", "config_v1.2.json", "v1.2/labels")
V2 = _Version("v2.0", "config_v2.0.json", "v2.0/labels")


def looks_like(root: Path) -> bool:
    """Whether `root` holds this dataset's folders."""
    return os.path.isdir(os.path.join(os.fspath(root), "training", "images"))  # noqa: PTH112, PTH118


def scan(root: Path, *, target: str | None = None, label_map: str | None = None) -> Listing:
    """List training and validation with the labels that the config marks as evaluated; the others are ignored.

    Args:
        target: the classes to learn: `vistas-65` (the labels of v1.2), `vistas-116` (those of v2.0) or `cityscapes-19`
            (from the labels of v1.2). None takes all evaluated labels of the version that is there.
        label_map: how v1.2 becomes `cityscapes-19`, one of `vistas_maps.MAPS`; goes with it, and only with it.

    Raises:
        MmsegError: options that do not go together, labels of another version than the target's, or a config that
            is missing or no config (FaultsFound, with all other faults). All else is a fault of the listing.
    """
    _require_options(target, label_map)
    tree = open_tree(root, folders=tuple(FOLDERS.values()))
    found, version = _versions(tree, target)
    splits: dict[str, list[Item]] = {}
    unpaired: list[Fault] = []
    for split, folder in FOLDERS.items():
        images = tree.under(f"{folder}/images", (".jpg", ".jpeg"))
        splits[split], faults = pair(images, tree.under(f"{folder}/{version.labels}", (".png",)))
        unpaired += faults
    faults = [*tree.faults, *empty_splits(tree.root, splits), *unpaired]
    faults += count_warnings(tree.root, splits, OFFICIAL_COUNTS)
    try:
        space, table = _space(tree, version, target=target, label_map=label_map)
    except _ConfigError as error:
        where = f"{tree.root.rstrip('/')}/{version.config}"
        raise FaultsFound([Fault("config", where, str(error), error.todo), *faults]) from error
    learned = space.name if label_map is None else f"{space.name} by the map {label_map!r}"
    notes = [*tree.notes, f"Vistas {found}; labels of {version.name}, learned as {learned}"]
    return Listing(
        "mapillary", "segmentation", space, table, splits, label_modes=("P", "L"), faults=faults, notes=notes
    )


def _require_options(target: str | None, label_map: str | None) -> None:
    targets = (*TRAINED, "cityscapes-19")
    if target is not None and target not in targets:
        raise MmsegError("target", f"no target {target!r}", f"choose one of {', '.join(targets)}")
    if label_map is not None and label_map not in MAPS:
        raise MmsegError("label_map", f"no map {label_map!r}", f"choose one of {', '.join(MAPS)}")
    if target == "cityscapes-19" and label_map is None:
        raise MmsegError("label_map", "the target cityscapes-19 needs a map", f"choose one of {', '.join(MAPS)}")
    if target != "cityscapes-19" and label_map is not None:
        raise MmsegError("label_map", "goes with the target cityscapes-19 only", "set that target, or leave it out")


def _versions(tree: Tree, target: str | None) -> tuple[str, _Version]:
    """Which version lies at the root, and which labels of it serve the target."""
    second = V2.is_in(tree)
    # A half extracted v2.0 may have the old labels and not yet the new ones.
    first = V1_IN_V2 if V1_IN_V2.is_in(tree) else V1
    found = "v2.0" if second or first is V1_IN_V2 else "v1.2"
    if target == "vistas-116" and found == "v1.2":
        raise MmsegError(tree.root, "this is Vistas v1.2, which has 65 classes", "give v2.0, or set target: vistas-65")
    if found == "v2.0" and target in (None, "vistas-116"):
        return found, V2
    if found == "v2.0" and not first.is_in(tree):
        todo = "extract the folders v1.2, or set target: vistas-116"
        raise MmsegError(tree.root, f"this is Vistas v2.0 without the labels of v1.2, which {target} needs", todo)
    return found, first


# ------------------------------------------------------------------------------------------------------- the config


class _ConfigError(Exception):
    """The config cannot serve."""

    def __init__(self, what: str, todo: str = TODO_COPY) -> None:
        super().__init__(what)
        self.todo = todo


def _space(
    tree: Tree, version: _Version, *, target: str | None, label_map: str | None
) -> tuple[LabelSpace, NDArray[np.int16]]:
    """The label space and the table of the target, from the version's config."""
    file = tree.get(version.config)
    if file is None:
        raise _ConfigError("missing", "give the folder that holds Vistas' config, or copy it there")
    labels = _labels(file)
    if label_map is not None:
        try:
            return vistas_cityscapes_19(labels, classes=cityscapes_classes(label_map))
        except ValueError as error:
            raise _ConfigError(str(error), "copy the config from the archive again, or set another target") from error
    space, table = vistas(labels)
    if target is not None and len(space.classes) != TRAINED[target]:
        raise _ConfigError(f"{len(space.classes)} labels are evaluated, {target} has {TRAINED[target]}")
    return space, table


def _labels(file: File) -> list[dict[str, Any]]:
    """The checked label list of a config. Raises _ConfigError."""
    try:
        content = json.loads(read(file))
    except MmsegError as error:
        raise _ConfigError(error.what, error.todo) from error
    except (ValueError, RecursionError) as error:
        raise _ConfigError("not JSON") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not labels:
        raise _ConfigError("holds no list 'labels'")
    for index, label in enumerate(labels):
        if wrong := _wrong(label):
            raise _ConfigError(f"labels[{index}] {wrong}")
    trained = sum(label["evaluate"] for label in labels)
    if len(labels) > 256 or not 0 < trained < IGNORE + 1:
        raise _ConfigError(f"{len(labels)} labels, {trained} of them evaluated, do not fit into a byte beside 'ignore'")
    return labels


def _wrong(label: Any) -> str | None:
    """What is wrong with one label of a config."""
    if not isinstance(label, dict):
        return "is not a label"
    for key in ("name", "readable"):
        text = label.get(key)
        if not isinstance(text, str) or not text or not text.isprintable():
            return f"has no {key!r}"
    if not isinstance(label.get("evaluate"), bool):
        return "has no 'evaluate' that is true or false"
    colour = label.get("color")
    numbers = (
        [value for value in colour if type(value) is int and 0 <= value <= 255] if isinstance(colour, list) else []
    )
    if not isinstance(colour, list) or not len(colour) == len(numbers) == 3:
        return "has no 'color' of three numbers from 0 to 255"
    return None
