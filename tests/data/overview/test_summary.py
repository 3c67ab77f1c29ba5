from __future__ import annotations

import math

import numpy as np
import pytest
import stores

from mmseg_cli.data.overview import summary
from mmseg_cli.errors import MmsegError

NAMES = ["road", "pole", "sky", "train", "ghost"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Train: road 70, pole 2, sky 18, train 10, 100 ignored, over two images; val: road 40, pole 20, sky 20."""
    train = [stores.label(10, 10, c0=30, c1=2, c2=18), stores.label(10, 10, c0=40, c3=10)]
    val = [stores.label(8, 20, c0=40, c1=20, c2=20)]
    return stores.make_segmentation(tmp_path_factory.mktemp("toy") / "s", {"val": val, "train": train}, names=NAMES)


def test_counts_pixels_and_images_are_those_of_the_labels(toy):
    made = summary.summarise(toy)
    assert [split.name for split in made.splits] == ["train", "val"]  # the manifest has val first
    train, val = made.splits
    assert (train.count, val.count) == (2, 1)
    assert train.class_pixels.tolist() == [70, 2, 18, 10, 0]
    assert train.class_images.tolist() == [2, 1, 1, 1, 0]
    assert train.ignored_pixels == 100
    assert train.ignored_share == 0.5
    assert train.shares.tolist() == [0.7, 0.02, 0.18, 0.1, 0]
    assert val.shares.tolist() == [0.5, 0.25, 0.25, 0, 0]


def test_weights_are_enets_of_the_training_split(toy):
    weights = summary.summarise(toy).weights
    assert weights == pytest.approx([1 / math.log(1.02 + share) for share in (0.7, 0.02, 0.18, 0.1, 0)])


def test_rare_unbalanced_and_absent_classes_are_named(toy):
    made = summary.summarise(toy)
    assert made.names(made.by_share()) == "road, sky, train, pole, ghost"
    assert made.names(made.rarest(2)) == "pole, train"
    worst = made.worst_balanced(2)
    assert [(made.space.classes[entry.index], entry.split) for entry in worst] == [("pole", "val"), ("road", "val")]
    assert [entry.ratio for entry in worst] == pytest.approx([12.5, 1.4])
    assert len(made.worst_balanced(9)) == 3
    assert made.absent() == {"train": [4], "val": [3, 4]}
    assert made.nowhere() == [4]


def test_sizes_are_smallest_median_and_largest_by_area(tmp_path):
    labels = [np.zeros(shape, dtype=np.uint8) for shape in ((30, 10), (10, 40), (20, 10), (100, 5), (9, 9))]
    toy = stores.make_segmentation(tmp_path / "s", {"train": labels, "val": [labels[0]] * 2}, names=["a"])
    train, val = summary.summarise(toy).splits
    assert (train.sizes.smallest, train.sizes.median, train.sizes.largest) == ((9, 9), (30, 10), (100, 5))
    assert str(train.sizes) == "9x9 / 10x30 / 5x100"
    assert str(val.sizes) == "10x30, all"


def test_a_classification_counts_images(tmp_path):
    toy = stores.make_classification(tmp_path / "s", {"train": [0, 0, 0, 2], "val": [1]}, names=["a", "b", "c"])
    made = summary.summarise(toy)
    assert made.unit == "images"
    assert made.first.class_pixels.tolist() == made.first.class_images.tolist() == [3, 0, 1]
    assert made.absent() == {"train": [1], "val": [0, 2]}
    assert made.worst_balanced() == []
    assert made.nowhere() == []


def test_a_split_of_ignored_pixels_alone_breaks_nothing(tmp_path):
    toy = stores.make_segmentation(tmp_path / "s", {"train": [stores.label(4, 4)]}, names=["a", "b"])
    made = summary.summarise(toy)
    assert made.first.ignored_share == 1
    assert made.rarest() == made.worst_balanced() == []
    assert made.nowhere() == [0, 1]


def test_a_damaged_index_is_named(tmp_path):
    toy = stores.make_segmentation(tmp_path / "s", {"train": [stores.label(4, 4, c0=3)]}, names=["a"])
    (toy.folder / "train.index.npz").write_bytes(b"nothing")
    with pytest.raises(MmsegError, match=r"train\.index\.npz: cannot be read"):
        summary.summarise(toy)


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0.00"), (1, "100.00"), (0.1234, "12.34"), (0.0004, "0.040"), (0.00002, "0.002"), (1e-9, "<0.001")],
)
def test_percent(share, shown):
    assert summary.percent(share) == shown
