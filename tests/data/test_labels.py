from __future__ import annotations

import json

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official

from mmseg_cli.data.labels import IGNORE, UNKNOWN, LabelSpace, camvid_11, cityscapes_19, folder_classes, vistas
from mmseg_cli.data.sources.vistas_labels import VISTAS_LABELS

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
