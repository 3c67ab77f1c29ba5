"""Three published ways to learn the 19 Cityscapes classes from the labels of Mapillary Vistas v1.2.

They agree on 22 labels and differ on 21, so a map is a choice that has a name:

- `conservative` takes a label only where it means what Cityscapes means by the class. Everything doubtful is ignored:
  crosswalks, parking, bridges.
- `by-name` is generous: a label goes to the class that it resembles or lies on. Guard rails are fences, bridges and
  tunnels are buildings, whatever one drives on is road, snow is terrain.
- `mseg` is what the unified taxonomy of MSeg (Lambert et al. 2020) makes of them. It is generous with surfaces and
  signs, but keeps riders of motorcycles, rails and bridges apart, because they are classes of their own there.

Labels are keyed by their `readable` name. None is ignore.
"""

from __future__ import annotations

MAPS = ("conservative", "by-name", "mseg")

_AGREED = {
    "Bicycle": "bicycle",
    "Bicyclist": "rider",
    "Building": "building",
    "Bus": "bus",
    "Car": "car",
    "Curb": "sidewalk",
    "Fence": "fence",
    "Lane Marking - General": "road",
    "Motorcycle": "motorcycle",
    "On Rails": "train",
    "Person": "person",
    "Pole": "pole",
    "Road": "road",
    "Sidewalk": "sidewalk",
    "Sky": "sky",
    "Terrain": "terrain",
    "Traffic Light": "traffic light",
    "Traffic Sign (Front)": "traffic sign",
    "Truck": "truck",
    "Utility Pole": "pole",
    "Vegetation": "vegetation",
    "Wall": "wall",
}
_DISPUTED = {  # in the order of MAPS
    "Bike Lane": (None, "road", "road"),
    "Bridge": (None, "building", None),
    "Caravan": (None, None, "car"),
    "Crosswalk - Plain": (None, "road", "road"),
    "Curb Cut": (None, "sidewalk", "sidewalk"),
    "Guard Rail": (None, "fence", None),
    "Lane Marking - Crosswalk": (None, "road", "road"),
    "Manhole": ("road", None, None),
    "Motorcyclist": ("rider", "rider", None),
    "Other Rider": ("rider", "rider", None),
    "Parking": (None, "road", "road"),
    "Pedestrian Area": (None, "sidewalk", "sidewalk"),
    "Phone Booth": (None, None, "building"),
    "Pothole": (None, None, "road"),
    "Rail Track": (None, "road", None),
    "Sand": (None, "terrain", "terrain"),
    "Service Lane": (None, "road", "road"),
    "Snow": (None, "terrain", None),
    "Traffic Sign (Back)": (None, None, "traffic sign"),
    "Traffic Sign Frame": (None, "traffic sign", "traffic sign"),
    "Tunnel": (None, "building", None),
}
_IGNORED = (
    *("Banner", "Barrier", "Bench", "Bike Rack", "Billboard", "Bird", "Boat", "CCTV Camera", "Car Mount"),
    *("Catch Basin", "Ego Vehicle", "Fire Hydrant", "Ground Animal", "Junction Box", "Mailbox", "Mountain"),
    *("Other Vehicle", "Street Light", "Trailer", "Trash Can", "Unlabeled", "Water", "Wheeled Slow"),
)


def cityscapes_classes(label_map: str) -> dict[str, str | None]:
    """The Cityscapes class, or None, of each of the 66 labels of Vistas v1.2 by its readable name.

    Args:
        label_map: one of MAPS.
    """
    column = MAPS.index(label_map)
    disputed = {name: classes[column] for name, classes in _DISPUTED.items()}
    return {**dict.fromkeys(_IGNORED), **_AGREED, **disputed}
