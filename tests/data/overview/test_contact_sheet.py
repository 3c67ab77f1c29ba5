from __future__ import annotations

import numpy as np
import pytest
import stores
from hypothesis import given
from hypothesis import strategies as st

from mmseg_cli.data.overview import contact_sheet
from mmseg_cli.errors import MmsegError


class FakeSplit:
    """A split of 10x10 labels known by the pixels of their classes."""

    def __init__(self, pixels: list[dict[int, int]]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def class_pixels(self, item: int) -> dict[int, int]:
        return self.pixels[item]

    def label_size(self, item: int) -> tuple[int, int]:
        return 10, 10


def test_every_class_is_shown_where_there_is_room():
    """Nine rare classes in one image each, 40 of 49 images hold the common ones only."""
    pixels = [{0: 50, 1: 50} for _ in range(49)]
    for k in range(9):
        pixels[5 * k + 2] = {0: 50, 2 + k: 50}
    chosen = contact_sheet.cover(FakeSplit(pixels), items=10, classes=11)
    assert set().union(*(pixels[item] for item in chosen)) == set(range(11))
    assert len(chosen) == 10
    assert chosen == sorted(set(chosen))


def test_one_image_with_many_classes_is_taken_before_several_with_few():
    pixels = [{k: 100} for k in range(6)] + [dict.fromkeys(range(6), 16)]
    assert 6 in contact_sheet.cover(FakeSplit(pixels), items=1, classes=6)


def test_the_image_is_taken_in_which_a_class_can_be_seen():
    """One pixel of a class does not show it where another image has half of its pixels of it."""
    split = FakeSplit([{0: 100}, {0: 99_999, 1: 1}, {0: 50_000, 1: 50_000}, {0: 100}])
    split.label_size = lambda item: (1000, 100)
    assert contact_sheet.cover(split, items=1, classes=2) == [2]


def test_without_rare_classes_the_items_lie_spread_over_the_split():
    chosen = contact_sheet.cover(FakeSplit([{0: 100}] * 101), items=5, classes=1)
    gaps = np.diff([-1, *chosen, 101])
    assert gaps.max() <= 2 * 26


@given(
    st.lists(st.dictionaries(st.sampled_from([0, 1, 2, 3, 4, 255]), st.integers(1, 100)), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_the_cover_is_as_many_different_items_as_asked_for(pixels, items):
    chosen = contact_sheet.cover(FakeSplit(pixels), items=items, classes=5)
    assert len(set(chosen)) == len(chosen) == min(items, len(pixels))
    if items >= 5:  # a class a step is the least that greedy cover gains
        there = set().union(*pixels) - {255}
        assert set().union(*(pixels[item] for item in chosen)) - {255} == there


@pytest.mark.parametrize(("items", "counts"), [(2, 2), (3, 3), (7, 3), (100, 3)])
def test_a_classification_shows_as_many_classes_as_there_is_room_for(tmp_path, items, counts):
    targets = [0] * 5 + [2] * 4 + [1]
    toy = stores.make_classification(tmp_path / "s", {"train": targets}, names=["a", "b", "c"])
    chosen = contact_sheet.one_of_each(toy.split("train"), items=items)
    assert len(chosen) == len(set(chosen)) == min(items, 10)
    shown = [targets[item] for item in chosen]
    assert len(set(shown)) == counts
    assert shown == sorted(shown)
    if items == 7:
        assert [shown.count(k) for k in range(3)] == [3, 1, 3]


def test_an_overlay_mixes_image_and_colour_and_marks_what_is_ignored():
    image_HWC = np.full((40, 60, 3), 100, dtype=np.uint8)
    label_HW = np.zeros((40, 60), dtype=np.uint8)
    label_HW[:, 20:] = 1
    label_HW[:, 40:] = 255
    drawn = np.asarray(contact_sheet.overlay(image_HWC, label_HW, [(200, 0, 0), (0, 0, 200)]))
    assert drawn[5, 10].tolist() == [150, 50, 50]
    assert drawn[5, 30].tolist() == [50, 50, 150]
    assert drawn[5, 20].tolist() == [0, 0, 200]  # the outline
    ignored = drawn[:, 41:]
    assert (ignored == ignored[..., :1]).all()  # grey
    assert len(np.unique(ignored)) == 2  # and striped


def test_classes_of_one_colour_are_told_apart():
    colours = contact_sheet.distinct([(0, 0, 142)] * 4 + [(255, 255, 255)] * 4 + [(9, 9, 9)])
    assert len(set(colours)) == 9
    assert colours[0] == (0, 0, 142)
    assert colours[-1] == (9, 9, 9)


@pytest.mark.parametrize(("items", "shape"), [(1, (40, 80)), (3, (80, 40)), (12, (40, 80)), (40, (32, 32))])
def test_a_sheet_shows_the_classes_in_their_colours_and_stays_in_its_width(tmp_path, items, shape):
    labels = [np.full(shape, number % 5, dtype=np.uint8) for number in range(items)]
    names = ["a", "b", "c", "d", "a name much too long for any column of a legend " * 9]
    toy = stores.make_segmentation(tmp_path / "s", {"train": labels}, names=names)
    sheet = contact_sheet.draw(toy, split="train", items=items)
    assert sheet.width <= contact_sheet.WIDTH
    pixels = np.asarray(sheet)
    for k in range(5):
        has = (pixels == stores.COLOURS[k]).all(axis=2).sum()  # the swatch, as nothing else is of the pure colour
        assert (has > 200) == (k < items)
    for edge in (pixels[:, -8:], pixels[-4:]):  # nothing is cut off
        assert (edge == 255).all()


def test_val_labels_larger_than_the_stored_image_are_laid_over_it(tmp_path):
    labels = [np.zeros((64, 96), dtype=np.uint8)]
    toy = stores.make_segmentation(tmp_path / "s", {"val": labels}, names=["a"], image_size=(32, 48))
    assert contact_sheet.draw(toy, split="val", items=5).height > 64


def test_odd_names_are_drawn(tmp_path):
    names = ["two\nlines", "\x00", "", "naïve – ☃", "x" * 500]
    toy = stores.make_segmentation(tmp_path / "s", {"train": [stores.label(20, 20, c0=9, c4=9)]}, names=names)
    assert contact_sheet.draw(toy, split="train", items=2).width <= contact_sheet.WIDTH
    toy = stores.make_classification(tmp_path / "c", {"train": [0, 1, 2, 3, 4]}, names=names)
    assert contact_sheet.draw(toy, split="train", items=9).width <= contact_sheet.WIDTH


def test_a_thousand_classes_are_drawn(tmp_path):
    names = [f"class {k}" for k in range(1000)]
    toy = stores.make_classification(tmp_path / "c", {"train": list(range(0, 1000, 9))}, names=names)
    sheet = contact_sheet.draw(toy, split="train", items=60)
    assert sheet.width <= contact_sheet.WIDTH
    assert sheet.height < 2400


def test_the_same_store_gives_the_same_picture(tmp_path):
    labels = [stores.label(20, 30, c0=200, c1=50 * number) for number in range(6)]
    toy = stores.make_segmentation(tmp_path / "s", {"train": labels}, names=["a", "b"])
    first, second = (contact_sheet.draw(toy, split="train", items=3).tobytes() for _ in range(2))
    assert first == second


def test_a_split_that_is_not_there_or_empty_is_an_error(tmp_path):
    toy = stores.make_segmentation(tmp_path / "s", {"train": []}, names=["a"])
    with pytest.raises(MmsegError, match="has no split 'val'"):
        contact_sheet.draw(toy, split="val", items=3)
    with pytest.raises(MmsegError, match="is empty"):
        contact_sheet.draw(toy, split="train", items=3)
