from __future__ import annotations

import numpy as np
import pytest

from mmseg_cli.ablation import statistics
from mmseg_cli.ablation.statistics import NEW_IMAGES, THIS_SET
from mmseg_cli.bench import calibration_trials as trials
from mmseg_cli.bench.calibration_worlds import OF_RUNS

TINY = trials.Size(trials=40, bootstrap_trials=10, replicates=40, populations=3)


def test_the_same_seed_gives_the_same_numbers():
    arguments = {"noise": "seeds 1 : images 1", "shape": "t3", "of": OF_RUNS, "seeds": 3, "blocks": 8}
    one, again, other = (trials.linear(TINY, **arguments, bootstrap=True, stream=stream) for stream in (1, 1, 2))
    assert one == again != other


def test_holm_of_many_is_holm_of_each():
    p_TD = np.random.default_rng(1).random((20, 4)) ** 3
    for found, p_values in zip(trials.holm(p_TD), p_TD, strict=True):
        assert found == pytest.approx(statistics.holm(list(p_values)))


@pytest.mark.parametrize("kind", trials.BOOTSTRAPS)
def test_every_bootstrap_draws_as_many_cells_as_there_are(kind):
    weights_RSB = trials._weights(np.random.default_rng(2), kind, seeds=3, blocks=5, replicates=50)
    assert (weights_RSB.sum(axis=(1, 2)) == 15).all()
    of_seeds = weights_RSB.sum(axis=2) / 5
    assert (of_seeds == of_seeds.round()).all()
    seen_alike = (weights_RSB * of_seeds[:, ::-1, None] == (weights_RSB * of_seeds[:, ::-1, None])[:, ::-1]).all()
    assert seen_alike == (kind != "nested")


def test_normal_noise_is_covered_as_promised():
    """A wide net, that a wrong formula does not pass: 600 trials have a standard error of 0.9 points."""
    size = trials.Size(trials=600, bootstrap_trials=0)
    for noise in ("seeds 4 : images 1", "seeds 1 : images 4"):
        arguments = {"shape": "normal", "of": OF_RUNS, "seeds": 5, "blocks": 16}
        row = trials.linear(size, noise=noise, **arguments, bootstrap=False, stream=3)
        assert row["coverage this-set"] == pytest.approx(0.95, abs=0.03)
        assert row["coverage new-images"] == pytest.approx(0.95, abs=0.03)
        assert max(row["false this-set"], row["false new-images"]) < 0.08
        for estimand in (THIS_SET, NEW_IMAGES):
            assert row[f"power {estimand} 0.8"] == pytest.approx(0.8, abs=0.1)


def test_caution_costs_power_where_seeds_are_few_and_images_differ():
    prices = [trials.price("seeds 1 : images 1", seeds=seeds, blocks=100, comparisons=1) for seeds in (3, 5, 10)]
    assert prices[0] > 1.2 > prices[1] > prices[2] > 0.99
    assert trials.price("no image noise", seeds=3, blocks=100, comparisons=4) == pytest.approx(1)  # no caution needed
    assert trials.price("seeds 1 : images 1", seeds=3, blocks=100, comparisons=4) > prices[0]
