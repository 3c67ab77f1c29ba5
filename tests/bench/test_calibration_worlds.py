from __future__ import annotations

import numpy as np
import pytest

from mmseg_cli.ablation import estimates
from mmseg_cli.bench import calibration_worlds as worlds


@pytest.mark.parametrize("shape", list(worlds.SHAPES))
def test_noise_has_mean_0_and_variance_1(shape):
    drawn = worlds.SHAPES[shape](np.random.default_rng(0), (400_000,))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.15 if shape == "t3" else 0.02)  # of t3 it hardly converges


@pytest.mark.parametrize("of", [worlds.OF_RUNS, worlds.OF_DIFFERENCES])
def test_differences_have_the_noise_that_is_asked_for(of):
    noise = worlds.noise_of("seeds 4 : images 1", blocks=16)
    draw = {"shape": "normal", "of": of, "trials": 4000, "seeds": 3, "blocks": 16}
    cells, of_set = worlds.draw_differences(np.random.default_rng(7), noise, **draw)
    assert cells.shape == (4000, 4 if of == worlds.OF_RUNS else 1, 3, 16)
    assert of_set.shape == cells.shape[:2]
    assert cells.mean(axis=-1).var() == pytest.approx(4 + 1 + 1, rel=0.1)
    assert of_set.var() == pytest.approx(1, rel=0.1)
    off = cells[:, 0].mean(axis=-1) - of_set[:, :1]  # seeds and residual
    assert off.var() == pytest.approx(4 + 1, rel=0.1)
    if of == worlds.OF_RUNS:  # they share a baseline
        assert np.corrcoef(of_set[:, 0], of_set[:, 1])[0, 1] == pytest.approx(0.5, abs=0.05)


def test_chunks_add_up():
    assert list(worlds.chunks(10, numbers=worlds.NUMBERS // 4)) == [4, 4, 2]
    assert list(worlds.chunks(3, numbers=10 * worlds.NUMBERS)) == [1, 1, 1]


def test_runs_are_drawn_as_counts_of_their_images():
    rng = np.random.default_rng(4)
    world = worlds.world_of("seeds 1 : images 1", blocks=6, effect=0.1)
    images = worlds.draw_images(rng, world, trials=2, variants=3, blocks=6)
    parts = worlds.draw_runs(rng, world, images, seeds=4, mirrored=False)
    assert parts.shape == (2, 3, 4, 6, 2, worlds.CLASSES)
    hits, union = np.moveaxis(parts, -2, 0)
    pixels = images.pixels_TBK[:, None, None]
    assert (parts == parts.round()).all()
    assert ((hits >= 0) & (hits <= pixels) & (union >= pixels)).all()
    wrong = (pixels - hits).sum(axis=-1)
    assert (union - pixels).sum(axis=-1) == pytest.approx(wrong, abs=worlds.CLASSES)  # each is somewhere


def test_the_truth_of_the_population_agrees_with_plain_draws():
    """Mirrored draws only make it surer; by other seeds and images without them, it is the same within errors."""
    world = worlds.world_of("seeds 1 : images 1", blocks=4, effect=0.3)
    truth_F, error_F = worlds.population(np.random.default_rng(5), world, sets=60, images=300, seeds=2)
    rng = np.random.default_rng(6)
    found = []
    for _ in range(60):
        images = worlds.draw_images(rng, world, trials=1, variants=2, blocks=300)
        parts = worlds.draw_runs(rng, world, images, seeds=2, mirrored=False)
        whole = estimates.jackknife(worlds.MIOU, parts.sum(axis=-3, keepdims=True))[0][0, ..., 0].mean(axis=1)
        found.append(whole[1] - whole[0])
    error = np.hypot(np.std(found, ddof=1) / np.sqrt(60), error_F[0])
    assert truth_F[0] > 0.02
    assert abs(np.mean(found) - truth_F[0]) < 4 * error
    assert error_F[0] < np.std(found, ddof=1) / np.sqrt(60)
