from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmseg_cli.data.labels import IGNORE
from mmseg_cli.evaluation import metrics
from mmseg_cli.evaluation.regions import REGION, SIZES, band_confusions, size_counts, size_found, size_recall

# ------------------------------------------------------------------------------------------------------------- sizes


def test_a_case_computed_by_hand():
    """Class 1 has a pixel, a pair that touches at a corner, 2 x 2, and 3 x 3; 0 is the rest, in one piece."""
    truth = np.zeros((6, 12), np.uint8)
    truth[0, 0] = 1
    truth[0, 3] = truth[1, 4] = 1
    truth[4:6, 0:2] = 1
    truth[2:5, 8:11] = 1
    truth[0, 11] = IGNORE
    predicted = np.zeros_like(truth)
    predicted[0, 3] = 1  # half of the pair
    predicted[4, 0] = 1  # a quarter of the four
    predicted[2:5, 8:10] = 1  # two thirds of the nine
    predicted[0, 6:12] = 2  # six where nothing of it is, one of them ignored
    counts = size_counts(truth, predicted, classes=3, limits=(4, 9))
    assert counts.shape == (len(SIZES), len(REGION), 3)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts[:, :, 1], [[3, 1, 2, 1], [4, 1, 1, 0], [9, 6, 1, 1]])
    zeros = 72 - 16 - 1
    np.testing.assert_array_equal(counts[:, :, 0], [[0] * 4, [0] * 4, [zeros, zeros - 5, 1, 1]])
    assert not counts[:, :, 2].any()
    nan = np.nan
    recall = [[nan, 1 / 3, nan], [nan, 1 / 4, nan], [(zeros - 5) / zeros, 6 / 9, nan]]
    np.testing.assert_array_equal(size_recall(counts), recall)
    np.testing.assert_array_equal(size_found(counts), [[nan, 1 / 2, nan], [nan, 0, nan], [1, 1, nan]])


def test_nothing_but_ignored_pixels_has_no_figures():
    truth = np.full((4, 5), IGNORE, np.uint8)
    counts = size_counts(truth, np.zeros_like(truth), classes=2, limits=(4, 9))
    assert not counts.any()
    assert np.isnan(size_recall(counts)).all()
    assert np.isnan(size_found(counts)).all()
    assert not size_counts(truth[:0], truth[:0], classes=2, limits=(4, 9)).any()


def test_as_many_classes_as_a_byte_holds():
    truth = np.arange(256, dtype=np.uint8).reshape(16, 16)
    counts = size_counts(truth, np.where(truth == IGNORE, 0, truth), classes=255, limits=(2, 3))
    np.testing.assert_array_equal(counts[0], np.ones((4, 255)))
    assert not counts[1:].any()


def test_what_cannot_be_counted_is_refused():
    truth = np.zeros((4, 5), np.uint8)
    for shape in (truth[:3], truth[:, :1]):
        with pytest.raises(ValueError, match=r"truth is \(4, 5\), prediction is"):
            size_counts(truth, shape, classes=2, limits=(4, 9))
        with pytest.raises(ValueError, match=r"truth is \(4, 5\), prediction is"):
            band_confusions(truth, shape, classes=2, bands=2)
    with pytest.raises(ValueError, match="not below 2"):
        size_counts(truth + 2, truth, classes=2, limits=(4, 9))
    with pytest.raises(ValueError, match="not below 2"):
        band_confusions(truth, truth + 2, classes=2, bands=2)


def flood(truth):
    """The regions as lists of (row, column), with their class."""
    height, width = truth.shape
    left = {(y, x) for y in range(height) for x in range(width) if truth[y, x] != IGNORE}
    found = []
    while left:
        start = left.pop()
        region, border = [start], [start]
        while border:
            y, x = border.pop()
            for there in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if there in left and truth[there] == truth[start]:
                    left.remove(there)
                    region.append(there)
                    border.append(there)
        found.append((int(truth[start]), region))
    return found


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, grain = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    coarse = rng.integers(0, classes, (height // grain + 1, width // grain + 1))
    truth = coarse.repeat(grain, 0).repeat(grain, 1)[:height, :width].astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, classes, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < draw(st.sampled_from([0, 0.1, 0.5]))] = IGNORE
    return truth, predicted, classes


@given(case=cases(), limits=st.sampled_from([(2, 3), (4, 9), (16, 64)]))
def test_regions_are_those_of_a_flood(case, limits):
    truth, predicted, classes = case
    counts = size_counts(truth, predicted, classes=classes, limits=limits)
    expected = np.zeros((3, 4, classes), np.int64)
    for of, region in flood(truth):
        size = sum(len(region) >= limit for limit in limits)
        hits = sum(int(predicted[there]) == of for there in region)
        expected[size, :, of] += [len(region), hits, 1, hits >= len(region) / 2]
    np.testing.assert_array_equal(counts, expected)
    matrix = metrics.confusion(truth, predicted, classes=classes)
    np.testing.assert_array_equal(counts[:, REGION.index("pixels")].sum(0), matrix.sum(1))
    np.testing.assert_array_equal(counts[:, REGION.index("hits")].sum(0), np.diag(matrix))


@given(case=cases())
def test_a_perfect_prediction_finds_everything(case):
    truth, predicted, classes = case
    counts = size_counts(truth, np.where(truth == IGNORE, predicted, truth), classes=classes, limits=(4, 9))
    for figures in (size_recall(counts), size_found(counts)):
        assert (figures[~np.isnan(figures)] == 1).all()
        np.testing.assert_array_equal(np.isnan(figures), counts[:, REGION.index("regions")] == 0)


def test_counts_of_images_add_up():
    rng = np.random.default_rng(5)
    first, second, wrong, other = rng.integers(0, 3, (4, 8, 9)).astype(np.uint8)
    gap = np.full((8, 1), IGNORE, np.uint8)  # keeps them apart
    together = size_counts(
        np.hstack([first, gap, second]), np.hstack([wrong, gap * 0, other]), classes=3, limits=(4, 9)
    )
    alone = [size_counts(*pair, classes=3, limits=(4, 9)) for pair in ((first, wrong), (second, other))]
    np.testing.assert_array_equal(together, sum(alone))


# ------------------------------------------------------------------------------------------------------------- bands


def test_bands_run_from_the_top_to_the_bottom():
    truth = np.array([[0], [1], [1], [IGNORE], [0]], np.uint8)
    predicted = np.array([[0], [0], [1], [1], [1]], np.uint8)
    bands = band_confusions(truth, predicted, classes=2, bands=2)  # rows 0-1 and 2-4
    np.testing.assert_array_equal(bands, [[[1, 0], [1, 0]], [[0, 1], [0, 1]]])
    assert bands.dtype == np.int64


@given(case=cases(), bands=st.integers(1, 30))
def test_bands_are_equal_and_sum_to_the_whole(case, bands):
    truth, predicted, classes = case
    found = band_confusions(truth, predicted, classes=classes, bands=bands)
    assert found.shape == (bands, classes, classes)
    np.testing.assert_array_equal(found.sum(0), metrics.confusion(truth, predicted, classes=classes))
    rows = band_confusions(np.zeros_like(truth), predicted, classes=classes, bands=bands).sum((1, 2)) // truth.shape[1]
    assert rows.sum() == len(truth)
    assert rows.max() - rows.min() <= 1
