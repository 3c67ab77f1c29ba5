from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official

from mmseg_cli.data.labels import (
    IGNORE,
    UNKNOWN,
    LabelSpace,
    ade20k_150,
    camvid_11,
    cityscapes_19,
    folder_classes,
    vistas,
    vistas_cityscapes_19,
    voc_colour,
)
from mmseg_cli.data.sources.vistas_labels import VISTAS_LABELS
from mmseg_cli.data.sources.vistas_maps import MAPS, cityscapes_classes

VISTAS = [
    {"name": label.name, "readable": label.readable, "color": list(label.color), "evaluate": label.name[:4] != "void"}
    for label in VISTAS_LABELS
]


def test_cityscapes_maps_every_official_id_and_no_other():
    space, table = cityscapes_19()
    known = {label.id: label for label in official if label.id >= 0}
    for value in range(256):
        if value not in known:
            assert table[value] == UNKNOWN
        elif known[value].trainId in (255, -1):
            assert table[value] == IGNORE
        else:
            train_id = known[value].trainId
            assert table[value] == train_id
            assert space.ids[train_id] == value
            assert space.classes[train_id] == known[value].name
            assert space.colours[train_id] == known[value].color
            assert space.categories is not None
            assert space.categories[train_id] == known[value].category
    assert (space.classes[0], space.classes[13], space.classes[18]) == ("road", "car", "bicycle")


def test_camvid_numbers_eleven_classes_and_one_void():
    space, table = camvid_11()
    assert len(space.classes) == len(set(space.colours)) == 11
    assert (space.classes[0], space.classes[3], space.classes[10]) == ("sky", "road", "bicyclist")
    assert table[:11].tolist() == list(range(11))
    assert table[11] == IGNORE
    assert (table[12:] == UNKNOWN).all()


def test_vistas_keeps_the_order_and_leaves_out_what_is_not_evaluated():
    space, table = vistas(VISTAS)
    evaluated = [index for index, label in enumerate(VISTAS) if label["evaluate"]]
    assert space.ids == tuple(evaluated)
    assert [table[index] for index in evaluated] == list(range(len(evaluated)))
    left_out = [index for index, label in enumerate(VISTAS) if not label["evaluate"]]
    assert left_out
    assert (table[left_out] == IGNORE).all()
    assert (table[len(VISTAS) :] == UNKNOWN).all()
    assert space.categories is not None
    assert space.categories[space.classes.index("Road")] == "construction"


@pytest.mark.parametrize("space", [cityscapes_19()[0], camvid_11()[0], vistas(VISTAS)[0], folder_classes("x", ["a"])])
def test_a_label_space_survives_json(space):
    assert LabelSpace.from_json(json.loads(json.dumps(space.as_json()))) == space


def test_folder_classes_keep_the_given_order():
    space = folder_classes("imagenet", ["n2", "n1"])
    assert (space.name, space.classes, space.ids) == ("imagenet-2", ("n2", "n1"), (0, 1))
    assert np.array(space.colours).max() < 256


def test_the_three_maps_to_cityscapes_agree_on_22_labels_and_differ_on_21():
    maps = [cityscapes_classes(label_map) for label_map in MAPS]
    names = {label.readable for label in VISTAS_LABELS}
    assert all(set(one) == names for one in maps)
    assert {value for one in maps for value in one.values()} == {None, *cityscapes_19()[0].classes}
    chosen = [tuple(one[name] for one in maps) for name in names]
    assert sum(len(set(classes)) == 1 and classes[0] is not None for classes in chosen) == 22
    assert sum(len(set(classes)) > 1 for classes in chosen) == 21


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ("Bicyclist", ("rider", "rider", "rider")),
        ("Guard Rail", (None, "fence", None)),
        ("Manhole", ("road", None, None)),
        ("Pothole", (None, None, "road")),
        ("Other Rider", ("rider", "rider", None)),
        ("Ego Vehicle", (None, None, None)),
    ],
)
def test_the_maps_to_cityscapes_by_hand(label, classes):
    assert tuple(cityscapes_classes(label_map)[label] for label_map in MAPS) == classes


@pytest.mark.parametrize("label_map", MAPS)
def test_the_maps_to_cityscapes_are_the_published_ones(label_map):
    place = Path(os.environ.get("MMSEG_TEST_DATA", "")).parent / "facts" / "mapillary_vistas_v1.2.csv"
    if not os.environ.get("MMSEG_TEST_DATA") or not place.is_file():
        pytest.skip("needs the published maps: facts/mapillary_vistas_v1.2.csv beside MMSEG_TEST_DATA")
    with place.open() as file:
        column = f"cityscapes_{label_map.replace('-', '_')}"
        assert cityscapes_classes(label_map) == {row["name"]: row[column] or None for row in csv.DictReader(file)}


@pytest.mark.parametrize("label_map", MAPS)
def test_vistas_as_cityscapes_has_the_benchmarks_space_and_ignores_the_rest(label_map):
    space, table = vistas_cityscapes_19(VISTAS, classes=cityscapes_classes(label_map))
    assert space == cityscapes_19()[0]
    for index, label in enumerate(VISTAS):
        name = cityscapes_classes(label_map)[label["readable"]] if label["evaluate"] else None
        assert table[index] == (IGNORE if name is None else space.classes.index(name))
    assert (table[len(VISTAS) :] == UNKNOWN).all()


def test_a_label_of_no_map_to_cityscapes_is_named_where_it_is_evaluated():
    castle = {"name": "a--castle", "readable": "Castle", "color": [0, 0, 0], "evaluate": True}
    with pytest.raises(ValueError, match="'Castle'"):
        vistas_cityscapes_19([*VISTAS, castle], classes=cityscapes_classes("mseg"))
    _, table = vistas_cityscapes_19([*VISTAS, {**castle, "evaluate": False}], classes=cityscapes_classes("mseg"))
    assert table[len(VISTAS)] == IGNORE


def test_voc_colours_are_those_of_the_benchmark_and_all_differ():
    # background, aeroplane, bicycle, bird, boat, bottle; person (15), tv monitor (20), void (255)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: voc_colour(index) for index in known} == known
    assert len({voc_colour(index) for index in range(256)}) == 256


def test_ade20k_counts_from_one_and_ignores_zero():
    names = [f"thing {index}" for index in range(1, 151)]
    space, table = ade20k_150(names)
    assert (space.name, space.ids[0], space.ids[-1]) == ("ade20k-150", 1, 150)
    assert table.tolist() == [IGNORE, *range(150), *[UNKNOWN] * 105]
