from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from mmseg_cli.data.labels import IGNORE
from mmseg_cli.evaluation import boundary
from mmseg_cli.evaluation.boundary import BOUNDARY, boundary_counts, boundary_f1, boundary_iou


def named(counts_D6K, *, distance=0, of=0):
    return dict(zip(BOUNDARY, counts_D6K[distance, :, of].tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ computed by hand


def test_a_square_that_lies_one_pixel_beside_the_true_one():
    truth, predicted = np.zeros((2, 9, 10), np.uint8)
    truth[2:7, 2:7] = 1
    predicted[2:7, 3:8] = 1
    counts = boundary_counts(truth, predicted, classes=3, distances=[1, 2, 3])
    assert counts.shape == (3, 6, 3)
    assert counts.dtype == np.int64
    # Rings of 16 pixels share 4 + 4 + 0; frames two wide have 24 and share 20 - 2; three wide they are the squares.
    assert named(counts, of=1) == {
        "intersection": 8,
        "union": 24,
        "found": 16,
        "predicted": 16,
        "hit": 16,
        "true": 16,
    }
    iou = boundary_iou(counts)
    np.testing.assert_array_equal(iou[:, 1], [8 / 24, 18 / 30, 20 / 30])
    np.testing.assert_array_equal(boundary_f1(counts)[:, 1], [1, 1, 1])
    np.testing.assert_array_equal(iou[:, 2], [np.nan] * 3)
    np.testing.assert_array_equal(boundary_f1(counts)[:, 2], [np.nan] * 3)


def test_the_border_of_the_image_bounds_a_mask_and_makes_no_contour():
    whole = np.zeros((5, 7), np.uint8)
    counts = boundary_counts(whole, whole, classes=1, distances=[1, 2, 3])
    assert [named(counts, distance=d)["union"] for d in range(3)] == [35 - 15, 35 - 3, 35]
    assert not counts[:, 2:].any()
    np.testing.assert_array_equal(boundary_iou(counts), np.ones((3, 1)))
    np.testing.assert_array_equal(boundary_f1(counts), np.full((3, 1), np.nan))


def test_ignored_pixels_belong_to_no_mask():
    truth = np.full((7, 9), IGNORE, np.uint8)
    truth[:, :3], truth[:, 6:] = 0, 1
    predicted = np.where(truth == IGNORE, 1, truth).astype(np.uint8)
    counts = boundary_counts(truth, predicted, classes=2, distances=[1])
    # each mask is 7 x 3, of which 5 x 1 are inside; what was predicted between them has no part in it
    for of in range(2):
        assert named(counts, of=of) == dict(zip(BOUNDARY, (16, 16, 0, 0, 0, 0), strict=True))
    changed = boundary_counts(truth, np.where(truth == IGNORE, 0, truth).astype(np.uint8), classes=2, distances=[1])
    np.testing.assert_array_equal(counts, changed)


def test_distance_is_euclidean_and_its_own_is_within():
    """Two edges three columns apart; two single pixels 3 down and 4 right of each other."""
    truth, predicted = np.zeros((2, 4, 12), np.uint8)
    truth[:, 4:], predicted[:, 7:] = 1, 1
    counts = boundary_counts(truth, predicted, classes=2, distances=[2, 3])
    # of four rows none is inside at 2: the regions are the masks
    assert named(counts, distance=0, of=1) == dict(zip(BOUNDARY, (20, 32, 0, 4, 0, 4), strict=True))
    assert named(counts, distance=1, of=1)["found"] == 4
    np.testing.assert_array_equal(boundary_f1(counts), [[0, 0], [1, 1]])
    truth, predicted = np.zeros((2, 12, 12), np.uint8)
    truth[3, 3] = predicted[6, 7] = 1
    counts = boundary_counts(truth, predicted, classes=2, distances=[4, 5])
    np.testing.assert_array_equal(counts[:, :, 1], [[0, 2, 0, 1, 0, 1], [0, 2, 1, 1, 1, 1]])


def test_precision_and_recall_are_harmonically_averaged():
    counts = np.zeros((1, 6, 4), np.int64)
    counts[0, :, 0] = [1, 4, 1, 2, 3, 4]
    counts[0, :, 1] = [0, 5, 0, 5, 0, 0]
    counts[0, :, 2] = [0, 5, 0, 0, 0, 5]
    np.testing.assert_array_equal(boundary_f1(counts), [[2 * 0.5 * 0.75 / 1.25, 0, 0, np.nan]])
    np.testing.assert_array_equal(boundary_iou(counts), [[0.25, 0, 0, np.nan]])


def test_nothing_but_ignored_pixels_has_no_figures():
    truth = np.full((4, 5), IGNORE, np.uint8)
    counts = boundary_counts(truth, np.arange(20, dtype=np.uint8).reshape(4, 5) % 3, classes=3, distances=[1, 3])
    assert not counts.any()
    assert np.isnan(boundary_iou(counts)).all()
    assert np.isnan(boundary_f1(counts)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2), (0, 3)])
def test_images_smaller_than_a_square_have_no_inside(shape):
    truth = (np.arange(np.prod(shape)).reshape(shape) // 3).astype(np.uint8)
    counts = boundary_counts(truth, truth, classes=3, distances=[1, 40])
    np.testing.assert_array_equal(counts[:, 0], [np.bincount(truth.ravel(), minlength=3)] * 2)
    np.testing.assert_array_equal(counts, brute(truth, truth, classes=3, distances=[1, 40]))


def test_what_cannot_be_counted_is_refused():
    truth = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=r"truth is \(4, 5\), prediction is \(3, 5\)"):
        boundary_counts(truth, truth[:3], classes=2, distances=[1])
    for wrong in ((truth + 2, truth), (truth, truth + 2)):
        with pytest.raises(ValueError, match="not below 2"):
            boundary_counts(*wrong, classes=2, distances=[1])
    for distances in ([], [0, 1], [3, 1], [1, 1]):
        with pytest.raises(ValueError, match="do not rise"):
            boundary_counts(truth, truth, classes=2, distances=distances)


# ------------------------------------------------------------------------ slow, class by class, by other programs


def eroded_scipy(mask, distance):
    return ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


def eroded_cv2(mask, distance):
    """As the authors of Boundary IoU do it."""
    cv2 = pytest.importorskip("cv2")
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1].astype(bool)


def contour_brute(ids_HW, of):
    """Pixels of the class that touch a pixel of another one."""
    other = (ids_HW != of) & (ids_HW != IGNORE)
    touched = ndimage.binary_dilation(other, np.ones((3, 3))) if other.size else other
    return (ids_HW == of) & touched


def close(pixels, to, distance):
    """How many pixels have one of the others within the distance."""
    if not to.any():
        return 0
    return int((ndimage.distance_transform_edt(~to)[pixels] <= distance).sum())


def brute(truth, predicted, *, classes, distances, eroded=eroded_scipy):
    predicted = np.where(truth == IGNORE, IGNORE, predicted)
    counts = np.zeros((len(distances), 6, classes), np.int64)
    for row, distance in enumerate(distances):
        for of in range(classes):
            masks = [truth == of, predicted == of]
            true, found = (mask & ~eroded(mask, distance) if mask.size else mask for mask in masks)
            edge, predicted_edge = contour_brute(truth, of), contour_brute(predicted, of)
            counts[row, :, of] = [
                (true & found).sum(),
                (true | found).sum(),
                close(predicted_edge, edge, distance),
                predicted_edge.sum(),
                close(edge, predicted_edge, distance),
                edge.sum(),
            ]
    return counts


@st.composite
def cases(draw):
    """Blotches of classes, some of it ignored, and a prediction that is shifted, and wrong in places."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, grain = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))

    def blotches(count, grain):
        coarse = rng.integers(0, count, (height // grain + 1, width // grain + 1))
        return coarse.repeat(grain, 0).repeat(grain, 1)[:height, :width]

    truth = blotches(classes, grain).astype(np.uint8)
    predicted = np.roll(truth, rng.integers(-3, 4, 2), (0, 1))
    wrong = blotches(4, max(1, grain // 2)) == 0
    predicted[wrong] = blotches(classes, grain)[wrong]
    if draw(st.booleans()):
        truth[blotches(5, draw(st.integers(1, 6))) == 0] = IGNORE
    distances = sorted(draw(st.sets(st.integers(1, 12), min_size=1, max_size=4)))
    return truth, predicted, classes, distances


@given(case=cases())
def test_counts_are_those_of_each_class_alone(case):
    truth, predicted, classes, distances = case
    counts = boundary_counts(truth, predicted, classes=classes, distances=distances)
    np.testing.assert_array_equal(counts, brute(truth, predicted, classes=classes, distances=distances))
    for figures in (boundary_iou(counts), boundary_f1(counts)):
        assert ((figures >= 0) & (figures <= 1) | np.isnan(figures)).all()


@given(case=cases())
def test_border_regions_are_those_of_the_authors(case):
    pytest.importorskip("cv2")
    truth, predicted, classes, distances = case
    counts = boundary_counts(truth, predicted, classes=classes, distances=distances)
    theirs = brute(truth, predicted, classes=classes, distances=distances, eroded=eroded_cv2)
    np.testing.assert_array_equal(counts[:, :2], theirs[:, :2])


@given(case=cases())
def test_a_perfect_prediction_scores_one(case):
    truth, predicted, classes, distances = case
    perfect = np.where(truth == IGNORE, predicted, truth)
    counts = boundary_counts(truth, perfect, classes=classes, distances=distances)
    iou, f1 = boundary_iou(counts), boundary_f1(counts)
    present = np.isin(np.arange(classes), truth)
    assert (iou[:, present] == 1).all()
    assert np.isnan(iou[:, ~present]).all()
    assert (f1[~np.isnan(f1)] == 1).all()
    if len(set(truth[truth != IGNORE])) > 1 and IGNORE not in truth:
        assert (f1 == 1).any()


@given(case=cases())
def test_truth_and_prediction_change_places(case):
    truth, predicted, classes, distances = case
    predicted = np.where(truth == IGNORE, IGNORE, predicted)
    there = boundary_counts(truth, np.minimum(predicted, classes - 1), classes=classes, distances=distances)
    back = boundary_counts(predicted, np.minimum(truth, classes - 1), classes=classes, distances=distances)
    np.testing.assert_array_equal(there, back[:, [BOUNDARY.index(name) for name in swapped()]])
    np.testing.assert_array_equal(boundary_f1(there), boundary_f1(back))


def swapped():
    return "intersection", "union", "hit", "true", "found", "predicted"


def test_counts_of_images_add_up():
    """Two images far apart in one picture, all between them ignored, are the two images."""
    rng = np.random.default_rng(5)
    first, second, wrong, other = (rng.integers(0, 3, (4, 5, 6)).repeat(4, 1).repeat(4, 2)).astype(np.uint8)
    gap, filled = np.full((20, 30), IGNORE, np.uint8), np.zeros((20, 30), np.uint8)
    together = boundary_counts(
        np.hstack([first, gap, second]), np.hstack([wrong, filled, other]), classes=3, distances=[1, 3, 9]
    )
    alone = [boundary_counts(*pair, classes=3, distances=[1, 3, 9]) for pair in ((first, wrong), (second, other))]
    np.testing.assert_array_equal(together, sum(alone))
    pooled = boundary_iou(sum(alone))
    assert not np.array_equal(pooled, np.mean([boundary_iou(counts) for counts in alone], axis=0))


def test_a_pixel_is_looked_up_until_it_is_found(monkeypatch):
    """One pass serves all distances: whatever the later ones are, the earlier ones' counts are the same."""
    rng = np.random.default_rng(6)
    truth, predicted = rng.integers(0, 4, (2, 8, 10)).repeat(5, 1).repeat(5, 2).astype(np.uint8)
    whole = boundary_counts(truth, predicted, classes=4, distances=[1, 2, 4, 7])
    for row, distance in enumerate([1, 2, 4, 7]):
        alone = boundary_counts(truth, predicted, classes=4, distances=[distance])
        np.testing.assert_array_equal(whole[row], alone[0])
    steps = [step for ring in boundary._steps([1, 2, 4]) for step in ring]
    assert len(steps) == len(set(steps)) == 49  # points of a grid in a disk of radius 4
