from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import trees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmseg_cli.data.faults import FaultsFound, errors
from mmseg_cli.data.labels import IGNORE, UNKNOWN
from mmseg_cli.data.sources import mapillary
from mmseg_cli.data.sources.vistas_labels import VISTAS_LABELS
from mmseg_cli.errors import MmsegError

CITYSCAPES = {"target": "cityscapes-19", "label_map": "conservative"}


@pytest.fixture
def v1(tmp_path) -> Path:
    return trees.make_mapillary(tmp_path / "v1")


@pytest.fixture
def v2(tmp_path) -> Path:
    return trees.make_vistas_v2(tmp_path / "v2")


def official(trained: int, labels: int) -> dict[str, object]:
    """A config of that many labels, the last ones not evaluated."""
    return {
        "labels": [
            {"name": f"a--b{index}", "readable": f"B {index}", "color": [1, 2, 3], "evaluate": index < trained}
            for index in range(labels)
        ]
    }


def write(root: Path, name: str, content: object) -> None:
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


def broken(root, **options) -> list[tuple[str, str]]:
    """Kind and place, relative to the root, of every error of a scan that ends early."""
    with pytest.raises(FaultsFound) as caught:
        mapillary.scan(root, **options)
    assert "\n" not in str(caught.value)
    return [(fault.kind, os.path.relpath(fault.where, root)) for fault in errors(caught.value.faults)]


# --------------------------------------------------------------------------------------------- versions and targets


def test_v1_2_is_told_and_its_evaluated_labels_are_learned(v1):
    before = trees.snapshot(v1)
    listing = mapillary.scan(v1)
    assert not errors(listing.faults)
    assert listing.notes == ["Vistas v1.2; labels of v1.2, learned as vistas-5"]
    assert listing.space.classes == ("Road", "Building", "Sky", "Car", "Truck")
    assert listing.table is not None
    assert listing.table[:7].tolist() == [0, 1, 2, 3, 4, IGNORE, UNKNOWN]
    assert set(listing.label_modes) == {"P", "L"}
    assert {split: [item.name for item in items] for split, items in listing.splits.items()} == {
        "train": ["training-0", "training-1", "training-2"],
        "val": ["validation-0", "validation-1"],
    }
    assert [fault.what[-6:] for fault in listing.faults] == [" 18000", "s 2000"]
    assert trees.snapshot(v1) == before


def test_v2_0_is_told_and_its_own_labels_come_first(v2):
    listing = mapillary.scan(v2)
    assert not errors(listing.faults)
    assert listing.notes == ["Vistas v2.0; labels of v2.0, learned as vistas-4"]
    assert listing.space.classes == ("Road", "Building", "Sky", "Car")
    assert [item.label.name for item in listing.splits["val"]] == ["validation/v2.0/labels/validation-0.png"]


def test_v2_0_labels_are_indices_though_all_colours_are_alike(v2):
    listing = mapillary.scan(v2)
    label = listing.splits["train"][0].label
    assert listing.table is not None
    with Image.open(label.path) as picture:
        assert picture.mode in listing.label_modes
        mapped = set(np.unique(listing.table[np.asarray(picture)]).tolist())
    assert mapped == {0, 1, 2, 3, IGNORE}


def test_cityscapes_19_of_a_v2_0_root_takes_the_labels_of_v1_2(v2):
    listing = mapillary.scan(v2, **CITYSCAPES)
    assert not errors(listing.faults)
    assert listing.notes == ["Vistas v2.0; labels of v1.2, learned as cityscapes-19 by the map 'conservative'"]
    assert listing.splits["train"][0].label.name == "training/v1.2/labels/training-0.png"
    assert listing.table is not None
    names = [None if index == IGNORE else listing.space.classes[index] for index in listing.table[:6]]
    assert names == ["road", "building", "sky", "car", "truck", None]
    assert listing.table[6] == UNKNOWN


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("target", "trained"), [("vistas-65", 65), ("vistas-116", 116)])
def test_a_target_is_the_number_of_evaluated_labels(request, version, target, trained):
    root = request.getfixturevalue(version)
    name = "config.json" if version == "v1" else "config_v1.2.json" if target == "vistas-65" else "config_v2.0.json"
    if (version, target) == ("v1", "vistas-116"):
        with pytest.raises(MmsegError, match="this is Vistas v1.2, which has 65 classes: give v2.0, or set target"):
            mapillary.scan(root, target=target)
        return
    write(root, name, official(trained, trained + 8))
    assert mapillary.scan(root, target=target).space.name == target
    assert mapillary.scan(root, target=target).space.ids == tuple(range(trained))
    write(root, name, official(trained - 1, trained + 8))
    assert broken(root, target=target) == [("config", name)]


def test_a_v2_0_root_without_the_labels_of_v1_2_is_refused_for_targets_that_need_them(v2):
    for split in ("training", "validation"):
        shutil.rmtree(v2 / split / "v1.2")
    (v2 / "config_v1.2.json").unlink()
    assert not errors(mapillary.scan(v2).faults)
    for options in ({"target": "vistas-65"}, CITYSCAPES):
        with pytest.raises(MmsegError, match="this is Vistas v2.0 without the labels of v1.2"):
            mapillary.scan(v2, **options)


@pytest.mark.parametrize("label_map", ["conservative", "by-name", "mseg"])
def test_the_official_66_labels_map_by_every_map(v1, label_map):
    labels = [
        {"name": label.name, "readable": label.readable, "color": list(label.color), "evaluate": True}
        for label in VISTAS_LABELS
    ]
    write(v1, "config.json", {"labels": labels})
    listing = mapillary.scan(v1, target="cityscapes-19", label_map=label_map)
    assert listing.table is not None
    assert set(listing.table[:66].tolist()) == {*range(19), IGNORE}
    assert listing.space.name == "cityscapes-19"


def test_a_label_that_no_map_knows_is_named_unless_it_is_ignored_anyway(v1):
    content = json.loads((v1 / "config.json").read_text())
    content["labels"][1]["readable"] = "Castle"
    write(v1, "config.json", content)
    with pytest.raises(FaultsFound, match=r"config.json: no map to Cityscapes knows 'Castle': "):
        mapillary.scan(v1, **CITYSCAPES)
    content["labels"][1]["evaluate"] = False
    write(v1, "config.json", content)
    listing = mapillary.scan(v1, **CITYSCAPES)
    assert listing.table is not None
    assert listing.table[1] == IGNORE


@pytest.mark.parametrize(
    "options",
    [
        {"target": "vistas-66"},
        {"target": "cityscapes-19"},
        {"target": "cityscapes-19", "label_map": "other"},
        {"label_map": "mseg"},
        {"target": "vistas-65", "label_map": "mseg"},
    ],
)
def test_options_that_do_not_go_together_are_refused(v1, options):
    with pytest.raises(MmsegError, match="^(target|label_map): "):
        mapillary.scan(v1, **options)


# ------------------------------------------------------------------------------------------------------------ faults


def test_all_faults_of_files_and_config_are_named_in_one_go(v1):
    (v1 / "training/images/training-0.jpg").unlink()
    (v1 / "training/labels/training-1.png").unlink()
    shutil.rmtree(v1 / "validation")
    expected = {
        ("missing-partner", "training/labels/training-0.png"),
        ("missing-partner", "training/images/training-1.jpg"),
        ("empty-split", "."),
    }
    found = errors(mapillary.scan(v1).faults)
    assert {(fault.kind, os.path.relpath(fault.where, v1)) for fault in found} == expected
    (v1 / "config.json").unlink()
    found = broken(v1)
    assert found[0] == ("config", "config.json")
    assert set(found[1:]) == expected


GOOD = {"name": "a--b", "readable": "B", "color": [0, 0, 0], "evaluate": True}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("\0", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "holds no list 'labels'"),
        ({"labels": "road"}, "holds no list 'labels'"),
        ({"labels": []}, "holds no list 'labels'"),
        ({"labels": [GOOD, 1]}, "labels[1] is not a label"),
        ({"labels": [{**GOOD, "name": None}]}, "labels[0] has no 'name'"),
        ({"labels": [{**GOOD, "readable": "a\nb"}]}, "labels[0] has no 'readable'"),
        ({"labels": [{**GOOD, "readable": "\ud800"}]}, "labels[0] has no 'readable'"),
        ({"labels": [{**GOOD, "evaluate": "false"}]}, "labels[0] has no 'evaluate'"),
        ({"labels": [{**GOOD, "color": [0, 0]}]}, "labels[0] has no 'color'"),
        ({"labels": [{**GOOD, "color": [0, 0, 256]}]}, "labels[0] has no 'color'"),
        ({"labels": [{**GOOD, "color": [0, 0, float("inf")]}]}, "labels[0] has no 'color'"),
        ({"labels": [{**GOOD, "color": [0, 0, True]}]}, "labels[0] has no 'color'"),
        ({"labels": [{**GOOD, "evaluate": False}]}, "1 labels, 0 of them evaluated"),
        ({"labels": [GOOD] * 256}, "256 labels, 256 of them evaluated"),
        ({"labels": [GOOD] * 9 + [{**GOOD, "evaluate": False}] * 248}, "257 labels, 9 of them evaluated"),
    ],
)
def test_a_broken_config_is_named(v1, content, what):
    write(v1, "config.json", content)
    with pytest.raises(FaultsFound) as caught:
        mapillary.scan(v1)
    assert str(caught.value).startswith(f"{v1 / 'config.json'}: {what}")


@pytest.mark.parametrize("path", ["absent", "nul\0"])
def test_looks_like_never_raises(tmp_path, path):
    assert not mapillary.looks_like(tmp_path / path)


# ----------------------------------------------------------------------------------------------------------- fuzzing

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
LABEL = st.fixed_dictionaries(
    {
        "name": st.just("a--b") | ANY,
        "readable": st.sampled_from(["Road", "Sky", "Castle"]) | ANY,
        "color": st.lists(st.integers(-1, 256), min_size=3, max_size=3) | ANY,
        "evaluate": st.booleans() | ANY,
    }
)
CONFIG = (
    st.fixed_dictionaries({"labels": st.lists(LABEL, max_size=3)}).map(json.dumps)
    | ANY.map(json.dumps)
    | st.fixed_dictionaries({"labels": ANY}).map(json.dumps)
    | st.text(max_size=20)
)


def survives_any_config(root: Path, content: str | bytes) -> None:
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    (root / "config.json").write_bytes(raw)
    for options in ({}, CITYSCAPES):
        try:
            listing = mapillary.scan(root, **options)
        except MmsegError as error:
            assert "\n" not in str(error)
            assert str(root / "config.json") in str(error)
        else:
            assert listing.table is not None
            assert listing.table.max() == IGNORE or listing.table.max() < len(listing.space.classes)
            json.dumps(listing.space.as_json()).encode()
            "".join(listing.space.classes).encode()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory) -> Path:
    return trees.make_mapillary(tmp_path_factory.mktemp("fuzzed"), train=1, val=1, height=16)


SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=100, suppress_health_check=SHARED)
@given(content=CONFIG | st.binary(max_size=20))
def test_any_config_is_read_or_named(fuzzed, content):
    survives_any_config(fuzzed, content)


@pytest.mark.slow
@settings(max_examples=5000, suppress_health_check=SHARED)
@given(content=CONFIG | st.binary(max_size=20))
def test_any_config_is_read_or_named_in_five_thousand_examples(fuzzed, content):
    survives_any_config(fuzzed, content)
