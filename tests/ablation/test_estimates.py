from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_cli.ablation import estimates
from mmseg_cli.evaluation import boundary, metrics, regions
from mmseg_cli.evaluation.evidence import Collector

NAN = math.nan
CLASSES = ["road", "car", "sky"]
DISTANCES = [1, 3]
SHAPES = {"confusion": (3, 3), "boundaries": (2, 6, 3), "sizes": (3, 4, 3), "rows": (2, 3, 3), "augmented": (3, 3)}


def drawn(rng, images, *, classes=3, zeros=0.3):
    """Counts as an evaluation could have made them: parts are never more than their whole."""
    found = []
    for _ in range(images):
        rows = rng.integers(0, 50, (2, classes, classes)) * (rng.random((2, classes, classes)) > zeros)
        boundaries = np.zeros((2, 6, classes), dtype=np.int64)
        boundaries[:, 1::2] = rng.integers(0, 30, (2, 3, classes)) * (rng.random((2, 3, classes)) > zeros)
        boundaries[:, 0::2] = rng.integers(0, boundaries[:, 1::2] + 1)
        sizes = np.zeros((3, 4, classes), dtype=np.int64)
        sizes[:, 0::2] = rng.integers(0, 30, (3, 2, classes)) * (rng.random((3, 2, classes)) > zeros)
        sizes[:, 1::2] = rng.integers(0, sizes[:, 0::2] + 1)
        augmented = rng.integers(0, 50, (classes, classes))
        kinds = {"boundaries": boundaries, "sizes": sizes, "rows": rows, "augmented": augmented}
        found.append({"confusion": rows.sum(axis=0), **kinds})
    return found


def run_of(images, blocks=None, *, figures=None):
    collector = Collector()
    for image in images:
        collector.add(image)
    counts = collector.counts()
    if figures is None:
        figures = estimates.figures_of({kind: found.shape for kind, found in counts.items()}, distances=DISTANCES)
    blocks = np.arange(len(images)) if blocks is None else np.asarray(blocks)
    return estimates.of_run(counts, figures, classes=CLASSES, blocks_N=blocks)


def matrices(*per_image):
    return [{"confusion": np.array(matrix)} for matrix in per_image]


# ------------------------------------------------------------------------------------------------ values


def test_a_jackknife_computed_by_hand():
    """Hits and unions of two classes: (3, 6), (2, 5) in the first image, (1, 1), (4, 4) in the second."""
    run = run_of(matrices([[3, 2], [1, 2]], [[1, 0], [0, 4]]), figures=[estimates.iou("iou", "confusion")])
    iou = run.figures["iou"]
    assert iou.sums_BPK.tolist() == [[[3, 2], [6, 5]], [[1, 4], [1, 4]]]
    assert iou.whole_F == pytest.approx([(4 / 7 + 6 / 9) / 2, 4 / 7, 6 / 9])
    assert iou.without_BF == pytest.approx(np.array([[1, 1, 1], [(3 / 6 + 2 / 5) / 2, 3 / 6, 2 / 5]]))


def expected_figures(images):
    """All means and classes by the modules that evaluation uses, of the counts of some images."""
    total = {kind: sum(image[kind] for image in images) for kind in SHAPES}
    accuracy = metrics.pixel_accuracy(total["confusion"])
    by_class = {"iou": metrics.class_iou(total["confusion"]), "iou_augmented": metrics.class_iou(total["augmented"])}
    ious, f1s = boundary.boundary_iou(total["boundaries"]), boundary.boundary_f1(total["boundaries"])
    for place, pixels in enumerate(DISTANCES):
        by_class |= {f"boundary_iou_{pixels}px": ious[place], f"boundary_f1_{pixels}px": f1s[place]}
    recalls, founds = regions.size_recall(total["sizes"]), regions.size_found(total["sizes"])
    for place, size in enumerate(regions.SIZES):
        by_class |= {f"recall_{size}": recalls[place], f"found_{size}": founds[place]}
    by_class |= {f"iou_rows_{band}": metrics.class_iou(matrix) for band, matrix in enumerate(total["rows"])}
    found = {name: [metrics.mean(values), *values] for name, values in by_class.items()}
    return found | {"pixel_accuracy": [accuracy, accuracy]}


def test_every_figure_is_that_of_the_evaluation():
    images = drawn(np.random.default_rng(0), 4)
    run = run_of(images)
    expected = expected_figures(images)
    assert set(run.figures) == set(expected)
    for name, figure in run.figures.items():
        assert figure.official_F == pytest.approx(np.array(expected[name]), nan_ok=True), name


@pytest.mark.parametrize("blocks", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 1, 0], [2, 0, 2, 1, 0, 0]])
def test_a_replicate_is_the_figure_of_the_other_blocks(blocks):
    """By loops, with many pixels so that no class is ever undefined."""
    images = drawn(np.random.default_rng(1), 6, zeros=0)
    run = run_of(images, blocks)
    for left_out in range(max(blocks) + 1):
        expected = expected_figures([image for image, own in zip(images, blocks, strict=True) if own != left_out])
        for name, figure in run.figures.items():
            assert figure.without_BF[left_out] == pytest.approx(np.array(expected[name])), name


def test_counts_are_read_in_parts(monkeypatch):
    images = drawn(np.random.default_rng(2), 7)
    expected = run_of(images)
    monkeypatch.setattr(estimates, "CHUNK", 2 * 36)
    found = run_of(images)
    for name, figure in found.figures.items():
        np.testing.assert_array_equal(figure.sums_BPK, expected.figures[name].sums_BPK)


def test_a_kind_that_was_not_counted_has_no_figures():
    names = [figure.name for figure in estimates.figures_of({"confusion": (3, 3)}, distances=DISTANCES)]
    assert names == ["iou", "pixel_accuracy"]
    with pytest.raises(ValueError, match="3 distances, but 2 were counted"):
        estimates.figures_of(SHAPES, distances=[1, 3, 5])


# ------------------------------------------------------------------------------------------------ the fixed class set


def test_a_class_of_one_image_stays_in_the_mean():
    """`car` is in the second image alone. Without it the mean is still over two classes, and its IoU does not move."""
    run = run_of(
        matrices([[8, 0, 0], [0, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 3, 0], [0, 0, 0]]),
        figures=[estimates.iou("iou", "confusion")],
    )
    iou = run.figures["iou"]
    assert iou.whole_F == pytest.approx([(9 / 10 + 3 / 4) / 2, 9 / 10, 3 / 4, NAN], nan_ok=True)
    without_first, without_second = iou.without_BF
    assert without_first == pytest.approx([(1 / 2 + 3 / 4) / 2, 1 / 2, 3 / 4, NAN], nan_ok=True)
    assert without_second == pytest.approx([(1 + 3 / 4) / 2, 1, 3 / 4, NAN], nan_ok=True)


def test_a_class_of_one_image_stays_in_the_bootstrap():
    run = run_of(
        matrices([[8, 0, 0], [0, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 3, 0], [0, 0, 0]]),
        figures=[estimates.iou("iou", "confusion")],
    )
    found = run.figures["iou"].reweighted(np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    assert found[0] == pytest.approx([(1 + 3 / 4) / 2, 1, 3 / 4, NAN], nan_ok=True)
    assert found[1] == pytest.approx(run.figures["iou"].whole_F, nan_ok=True)
    assert found[2] == pytest.approx([(1 / 2 + 3 / 4) / 2, 1 / 2, 3 / 4, NAN], nan_ok=True)


def test_a_class_that_the_labels_lack_is_in_no_mean_whoever_predicts_it():
    """One stray pixel of `sky`: the benchmark's rule counts the class as 0 in that run alone."""
    clean = run_of(matrices([[4, 0, 0], [1, 3, 0], [0, 0, 0]], [[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    stray = run_of(matrices([[4, 0, 0], [1, 3, 0], [0, 0, 0]], [[3, 0, 1], [0, 4, 0], [0, 0, 0]]))
    found, other = clean.figures["iou"], stray.figures["iou"]
    assert found.whole_F == pytest.approx([(7 / 9 + 7 / 9) / 2, 7 / 9, 7 / 9, NAN], nan_ok=True)
    assert other.whole_F == pytest.approx([(7 / 9 + 7 / 8) / 2, 7 / 9, 7 / 8, NAN], nan_ok=True)
    assert other.official_F == pytest.approx([(7 / 9 + 7 / 8 + 0) / 3, 7 / 9, 7 / 8, 0])
    assert other.without_BF[0] == pytest.approx([(3 / 4 + 1) / 2, 3 / 4, 1, NAN], nan_ok=True)
    assert other.reweighted(np.array([[1.0, 1.0]]))[0] == pytest.approx(other.whole_F, nan_ok=True)


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_what_labels_have_decides_what_is_in_a_figure(seed, images):
    """Of two runs on the same images, whatever they predict."""
    rng = np.random.default_rng(seed)
    present = rng.random(3) > 0.4
    runs = []
    for _ in range(2):
        found = drawn(rng, images, zeros=0.8)
        for image in found:
            for kind in ("confusion", "augmented", "rows"):
                image[kind][..., ~present, :] = 0
                image[kind][..., present, present] += 1
        runs.append(run_of(found))
    for name in ("iou", "iou_augmented", "iou_rows_0", "iou_rows_1"):
        for run in runs:
            assert (~np.isnan(run.figures[name].whole_F[1:])).tolist() == present.tolist(), name


def test_a_figure_without_any_class_is_not_defined():
    run = run_of(matrices(np.zeros((3, 3), int), np.zeros((3, 3), int)), figures=[estimates.iou("iou", "confusion")])
    assert np.isnan(run.figures["iou"].whole_F).all()
    assert np.isnan(run.figures["iou"].without_BF).all()


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_what_is_defined_is_so_in_every_replicate_and_nothing_else(seed, images):
    for figure in run_of(drawn(np.random.default_rng(seed), images, zeros=0.8)).figures.values():
        undefined = np.isnan(figure.whole_F)
        assert (np.isnan(figure.without_BF) == undefined).all()
        assert (np.isnan(figure.reweighted(np.eye(images))) == undefined).all()


# ------------------------------------------------------------------------------------------------ laws


@given(st.integers(0, 10_000), st.randoms())
@settings(max_examples=20, deadline=None)
def test_the_order_of_images_moves_replicates_with_them(seed, random):
    images = drawn(np.random.default_rng(seed), 5)
    order = random.sample(range(5), 5)
    run, moved = run_of(images), run_of([images[place] for place in order])
    for name, figure in run.figures.items():
        np.testing.assert_array_equal(moved.figures[name].whole_F, figure.whole_F)
        np.testing.assert_array_equal(moved.figures[name].without_BF, figure.without_BF[order])


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_weight_is_a_number_of_copies(seed):
    rng = np.random.default_rng(seed)
    images = drawn(rng, 4, zeros=0)
    copies = rng.integers(0, 3, 4)
    copies[0] += 1
    many = run_of([image for image, count in zip(images, copies, strict=True) for _ in range(count)])
    for name, figure in run_of(images).figures.items():
        found = figure.reweighted(copies[None].astype(np.float64))
        assert found[0] == pytest.approx(many.figures[name].whole_F), name


# ------------------------------------------------------------------------------------------------ blocks


def test_blocks_are_images_or_what_their_names_begin_with():
    names = ["munster_000000_000019", "frankfurt_000000_000294", "munster_000001_000019", "alone"]
    assert estimates.blocks_of(names, "image").tolist() == [0, 1, 2, 3]
    assert estimates.blocks_of(names, "prefix").tolist() == [0, 1, 0, 2]
    with pytest.raises(ValueError, match="city is none of image, prefix"):
        estimates.blocks_of(names, "city")


@pytest.mark.parametrize("blocks", [[0, 1], [0, 2, 2], [1, 1, 2], [-1, 0, 1]])
def test_block_numbers_have_no_gap(blocks):
    with pytest.raises(ValueError, match="3 images do not have block numbers from 0 without a gap"):
        run_of(drawn(np.random.default_rng(3), 3), blocks)


# ------------------------------------------------------------------------------------------------ samples


def test_a_sample_holds_all_seeds_of_one_figure():
    runs = [run_of(drawn(np.random.default_rng(seed), 4)) for seed in range(3)]
    mean = estimates.sample(runs, "iou", scale=100)
    assert mean.plain_S == pytest.approx([100 * run.figures["iou"].whole_F[0] for run in runs])
    assert mean.without_SB.shape == (3, 4)
    sky = estimates.sample(runs, "found_small", class_="sky")
    assert sky.without_SB[1] == pytest.approx(runs[1].figures["found_small"].without_BF[:, 3])


def test_the_bootstrap_of_a_difference_sees_the_same_images_in_both():
    """A variant that is its baseline differs by nothing in any replicate, and a better one by more than nothing."""
    rng = np.random.default_rng(4)
    images = [drawn(rng, 8, zeros=0) for _ in range(3)]
    base = [run_of(each) for each in images]
    assert estimates.bootstrap(base, base, "iou", replicates=100) == (0.0, 0.0)
    for each in images:
        for image in each:
            image["confusion"] = image["confusion"] + 100 * np.eye(3, dtype=np.int64)
    better = [run_of(each) for each in images]
    low, high = estimates.bootstrap(better, base, "iou", class_="car", scale=100, replicates=200)
    assert 0 < low < high < 100


# ------------------------------------------------------------------------------------------------ speed


def test_thirty_runs_take_about_a_second():
    """500 images and 19 classes: all figures of confusion, boundaries and sizes. 0.35 s where nothing else runs."""
    rng = np.random.default_rng(5)
    shapes = {"confusion": (19, 19), "boundaries": (4, 6, 19), "sizes": (3, 4, 19)}
    collector = Collector()
    for _ in range(500):
        collector.add({kind: rng.integers(0, 99, shape) * (rng.random(shape) < 0.3) for kind, shape in shapes.items()})
    counts, figures = collector.counts(), estimates.figures_of(shapes, distances=[1, 3, 5, 9])
    classes, blocks = [str(number) for number in range(19)], np.arange(500)
    began = time.process_time()
    for _ in range(30):
        estimates.of_run(counts, figures, classes=classes, blocks_N=blocks)
    assert time.process_time() - began < 5
