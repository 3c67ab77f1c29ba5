from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmseg_cli.data.labels import IGNORE, cityscapes_19
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import metrics

TRUTH = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
PREDICTED = np.array([[0, 1, 1, 1], [2, 0, 0, 3]], np.uint8)


def test_a_case_computed_by_hand():
    matrix = metrics.confusion(TRUTH, PREDICTED, classes=5)
    expected = np.zeros((5, 5), int)
    expected[0, 0] = expected[0, 1] = expected[2, 2] = expected[2, 0] = 1
    expected[1, 1] = 2
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(metrics.class_iou(matrix), [1 / 3, 2 / 3, 1 / 2, np.nan, np.nan])
    assert metrics.mean_iou(matrix) == pytest.approx(0.5, abs=1e-15)
    assert metrics.pixel_accuracy(matrix) == 4 / 6
    assert metrics.category_iou(matrix, ("a", "a", "b", "c", "c")) == {
        "a": pytest.approx(4 / 5),
        "b": 0.5,
        "c": pytest.approx(math.nan, nan_ok=True),
    }


def test_a_class_predicted_but_absent_from_the_truth_counts_nothing():
    matrix = metrics.confusion(np.zeros((1, 2), np.uint8), np.array([[0, 1]], np.uint8), classes=3)
    np.testing.assert_array_equal(metrics.class_iou(matrix), [0.5, 0.0, np.nan])
    assert metrics.mean_iou(matrix) == 0.25


def test_nothing_but_ignored_pixels_has_no_figures():
    matrix = metrics.confusion(np.full((2, 2), IGNORE, np.uint8), np.zeros((2, 2), np.uint8), classes=3)
    assert math.isnan(metrics.mean_iou(matrix))
    assert math.isnan(metrics.pixel_accuracy(matrix))
    with pytest.raises(MmsegError, match="every pixel of every label is ignored"):
        metrics.require_pixels(matrix, "store")
    metrics.require_pixels(matrix + 1, "store")


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="truth is"):
        metrics.confusion(TRUTH, PREDICTED[:1], classes=5)
    with pytest.raises(ValueError, match="not below 2"):
        metrics.confusion(TRUTH, PREDICTED, classes=2)
    with pytest.raises(ValueError, match="not below 3"):
        metrics.confusion(TRUTH, np.full(TRUTH.shape, 3, np.uint8), classes=3)


@given(seed=st.integers(0, 10**6), classes=st.integers(1, 9))
def test_a_confusion_matrix_adds_up(seed, classes):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (6, 7)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    predicted = rng.integers(0, classes, (6, 7)).astype(np.uint8)
    whole = metrics.confusion(truth, predicted, classes=classes)
    parts = sum(metrics.confusion(truth[row], predicted[row], classes=classes) for row in range(6))
    np.testing.assert_array_equal(whole, parts)
    assert whole.sum() == (truth != IGNORE).sum()
    assert np.trace(whole) == (truth == predicted).sum()
    merged = metrics.merge(whole, [k % 2 for k in range(classes)], count=2)
    assert merged.sum() == whole.sum()


# ------------------------------------------------------------------------------------------- the official evaluator


@pytest.fixture(scope="module")
def official():
    """Evaluate lists of prediction and label files with the benchmark's own program."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as program

    program.args.JSONOutput = False
    program.args.quiet = True
    program.args.evalInstLevelScore = False
    program.args.evalPixelAccuracy = False
    return lambda predictions, labels: program.evaluateImgLists(predictions, labels, program.args)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Fifty label and prediction files of ids, with void, absent and predicted-but-absent classes; and their arrays."""
    from cityscapesscripts.helpers.labels import labels

    folder = tmp_path_factory.mktemp("official")
    space, table = cityscapes_19()
    every_id = [label.id for label in labels if label.id >= 0]
    rng = np.random.default_rng(7)
    out = []
    for number in range(50):
        present = rng.choice(every_id, size=int(rng.integers(1, 12)), replace=False)
        answered = rng.choice(space.ids, size=int(rng.integers(1, 12)), replace=False)
        ids_HW = rng.choice(present, size=(24, 40)).astype(np.uint8)
        predicted_HW = rng.choice(answered, size=(24, 40)).astype(np.uint8)
        right = (rng.random(ids_HW.shape) < 0.5) & np.isin(ids_HW, space.ids)
        predicted_HW[right] = ids_HW[right]
        if number == 0:
            ids_HW[:] = 0  # nothing but void
        label_file, prediction_file = (folder / f"{number}_{name}.png" for name in ("gtFine_labelIds", "prediction"))
        Image.fromarray(ids_HW).save(label_file)
        Image.fromarray(predicted_HW).save(prediction_file)
        matrix = metrics.confusion(
            table[ids_HW].astype(np.uint8), table[predicted_HW].astype(np.uint8), classes=len(space.classes)
        )
        out.append((str(prediction_file), str(label_file), matrix))
    return out


def compare(result, matrix):
    space, _ = cityscapes_19()
    theirs = np.array([result["classScores"][name] for name in space.classes])
    ours = metrics.class_iou(matrix)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics.mean(ours), result["averageScoreClasses"], rtol=0, atol=1e-12)
    categories = metrics.category_iou(matrix, space.categories)
    their_categories = {name: value for name, value in result["categoryScores"].items() if name in categories}
    assert set(their_categories) == set(categories)
    for name, value in categories.items():
        np.testing.assert_allclose(value, their_categories[name], rtol=0, atol=1e-12)
    ours_mean = metrics.mean(np.array(list(categories.values())))
    np.testing.assert_allclose(ours_mean, result["averageScoreCategories"], rtol=0, atol=1e-12)
    return theirs


def test_every_image_scores_what_the_benchmark_gives_it(official, pairs):
    absent = nothing = 0
    for prediction, label, matrix in pairs:
        theirs = compare(official([prediction], [label]), matrix)
        absent += int(np.isnan(theirs).sum())
        nothing += int(((matrix.sum(1) == 0) & (matrix.sum(0) > 0)).sum())
    assert absent > 50  # the cases that matter are there
    assert nothing > 50


def test_all_images_together_score_what_the_benchmark_gives_them(official, pairs):
    predictions, labels, matrices = zip(*pairs, strict=True)
    compare(official(list(predictions), list(labels)), sum(matrices))
    compare(official(list(predictions[1:3]), list(labels[1:3])), sum(matrices[1:3]))
