from __future__ import annotations

import functools
import math
import operator

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


def test_counts_of_twenty_thousand_large_images_are_exact():
    """Test sets of that size have more pixels than 32 bits count, and more than float32 tells apart."""
    rng = np.random.default_rng(11)
    truth = np.minimum(rng.integers(0, 60, (1024, 2048)), 18).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.9, truth, rng.integers(0, 19, truth.shape)).astype(np.uint8)
    truth[:100, :3] = IGNORE
    one = metrics.confusion(truth, predicted, classes=19)
    total = np.zeros_like(one)
    for _ in range(20_000):
        total += one
    assert total.dtype == np.int64
    expected = [[20_000 * count for count in row] for row in one.tolist()]
    assert total.tolist() == expected
    assert sum(map(sum, expected)) == int(total.sum()) == 20_000 * (2**21 - 300)
    assert expected[18][18] > 2**32
    np.testing.assert_array_equal(metrics.class_iou(total), metrics.class_iou(one))
    assert metrics.pixel_accuracy(total) == metrics.pixel_accuracy(one)
    merged = metrics.merge(total, [k % 7 for k in range(19)], count=7)
    assert merged.tolist() == [
        [sum(expected[i][j] for i in range(a, 19, 7) for j in range(b, 19, 7)) for b in range(7)] for a in range(7)
    ]


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


PAIRS = 200


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Label and prediction files of ids, with void, absent and predicted-but-absent classes; and their arrays."""
    from cityscapesscripts.helpers.labels import labels

    folder = tmp_path_factory.mktemp("official")
    space, table = cityscapes_19()
    every_id = [label.id for label in labels if label.id >= 0]
    rng = np.random.default_rng(7)
    out = []
    for number in range(PAIRS):
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


def in_turn(values):
    """Their mean: what is not NaN, added one after the other, where numpy adds eight columns of numbers."""
    kept = [value for value in values if not math.isnan(value)]
    return functools.reduce(operator.add, kept, 0.0) / len(kept) if kept else math.nan


def compare(result, matrix):
    """Every class and category scores theirs to the last bit, NaN where theirs is; means, added in their order, too."""
    space, _ = cityscapes_19()
    theirs = np.array([result["classScores"][name] for name in space.classes])
    ours = metrics.class_iou(matrix)
    np.testing.assert_array_equal(ours, theirs, strict=True)
    categories = metrics.category_iou(matrix, space.categories)
    their_categories = {name: value for name, value in result["categoryScores"].items() if name in categories}
    assert list(their_categories) == list(categories)
    np.testing.assert_array_equal(list(categories.values()), list(their_categories.values()), strict=True)
    for values, their_mean in (
        (ours, result["averageScoreClasses"]),
        (np.array(list(categories.values())), result["averageScoreCategories"]),
    ):
        np.testing.assert_array_equal(in_turn(values.tolist()), their_mean)
        np.testing.assert_allclose(metrics.mean(values), their_mean, rtol=0, atol=1e-12)
    return theirs


def test_every_image_scores_what_the_benchmark_gives_it(official, pairs):
    absent = nothing = 0
    for prediction, label, matrix in pairs:
        theirs = compare(official([prediction], [label]), matrix)
        absent += int(np.isnan(theirs).sum())
        nothing += int(((matrix.sum(1) == 0) & (matrix.sum(0) > 0)).sum())
    assert absent > PAIRS  # the cases that matter are there
    assert nothing > PAIRS


def test_all_images_together_score_what_the_benchmark_gives_them(official, pairs):
    predictions, labels, matrices = zip(*pairs, strict=True)
    compare(official(list(predictions), list(labels)), sum(matrices))
    compare(official(list(predictions[1:3]), list(labels[1:3])), sum(matrices[1:3]))


# CamVid's classes, and its void, as the benchmark calls them
CAMVID = ("sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence", "car", "person")
CAMVID = (*CAMVID, "bicycle", "unlabeled")
ABSENT = ("truck", "bus")  # CamVid has none; they are predicted all the same


def test_real_labels_score_what_the_benchmark_gives_them(official, camvid_root, tmp_path):
    """All of CamVid's val, against itself some pixels aside: real shapes, real void, and classes that it has not."""
    from cityscapesscripts.helpers.labels import name2label

    to_ids = np.array([name2label[name].id for name in CAMVID], np.uint8)
    space, table = cityscapes_19()
    predictions, labels, matrices = [], [], []
    for number, file in enumerate(sorted((camvid_root / "valannot").glob("*.png"))):
        ids_HW = to_ids[np.asarray(Image.open(file))]
        predicted_HW = np.roll(ids_HW, (3, -5), (0, 1))
        predicted_HW[predicted_HW == name2label["unlabeled"].id] = name2label[ABSENT[number % 2]].id
        for paths, name, pixels in ((predictions, "prediction", predicted_HW), (labels, "gtFine_labelIds", ids_HW)):
            paths.append(str(tmp_path / f"{number}_{name}.png"))
            Image.fromarray(pixels).save(paths[-1], compress_level=1)
        truth_HW, answer_HW = (table[pixels].astype(np.uint8) for pixels in (ids_HW, predicted_HW))
        matrices.append(metrics.confusion(truth_HW, answer_HW, classes=len(space.classes)))
    assert len(labels) == 101
    lacking = [space.classes.index(name) for name in space.classes if name not in CAMVID]
    for number, (prediction, label, matrix) in enumerate(zip(predictions, labels, matrices, strict=True)):
        theirs = compare(official([prediction], [label]), matrix)
        expected = [0.0 if space.classes[k] == ABSENT[number % 2] else math.nan for k in lacking]
        np.testing.assert_array_equal(theirs[lacking], expected)
    theirs = compare(official(predictions, labels), sum(matrices))
    assert np.isnan(theirs).sum() == len(lacking) - len(ABSENT) == 6
    assert min(theirs[theirs > 0]) < 0.5 < 0.9 < max(theirs)
