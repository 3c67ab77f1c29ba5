from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_cli.ablation import power
from mmseg_cli.ablation.power import Noise
from mmseg_cli.ablation.statistics import ESTIMANDS, NEW_IMAGES, THIS_SET, Interval

NOISE = Noise(seed=0.25, image=4.0, residual=6.0)
estimands = st.sampled_from(ESTIMANDS)


def pilot(*, seeds=3, blocks=100, spread=0.5, image=4.0, residual=6.0):
    return Interval(NEW_IMAGES, seeds, blocks, 1.0, spread=spread, image_variance=image, residual_variance=residual)


# ------------------------------------------------------------------------------------------------ power


@pytest.mark.parametrize("comparisons", [1, 4])
def test_power_for_this_set_is_that_of_a_t_test(comparisons):
    stats = pytest.importorskip("scipy.stats")
    found = power.power(1.0, NOISE, seeds=[2, 3, 5, 20], blocks=100, estimand=THIS_SET, comparisons=comparisons)
    for seeds, value in zip([2, 3, 5, 20], found, strict=True):
        error = math.sqrt((0.25 + 6 / 100) / seeds)
        critical = stats.t.isf(0.05 / comparisons / 2, seeds - 1)
        assert value == pytest.approx(stats.nct.sf(critical, seeds - 1, 1 / error), abs=1e-6)


def test_power_for_new_images_computed_apart():
    stats = pytest.importorskip("scipy.stats")
    seeds, blocks = 5, 100
    expected = [blocks * 0.25 + 6, seeds * 4 + 6, 6]  # of seeds, images, residual
    bound = expected[0] * 4 / stats.chi2.ppf(0.2, 4)
    df = (bound + expected[1] - 6) ** 2 / (bound**2 / 4 + expected[1] ** 2 / 99 + 6**2 / 396)
    error = math.sqrt(0.25 / 5 + 4 / 100 + 6 / 500)
    value = power.power(0.8, NOISE, seeds=5, blocks=100, estimand=NEW_IMAGES)
    assert value == pytest.approx(stats.nct.sf(stats.t.isf(0.025, df), df, 0.8 / error), abs=1e-6)


def test_a_gap_without_noise_is_seen_for_certain():
    nothing = Noise(0.0, 0.0, 0.0)
    for estimand in ESTIMANDS:
        assert power.power(1e-6, nothing, seeds=[2, 9], blocks=4, estimand=estimand).tolist() == [1, 1]


@given(estimands, st.floats(0.05, 5), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_power_rises_with_the_gap_and_with_seeds_and_falls_with_comparisons(estimand, gap, comparisons):
    seeds = np.arange(3, 40)
    found = power.power(gap, NOISE, seeds=seeds, blocks=50, estimand=estimand, comparisons=comparisons)
    larger = power.power(1.1 * gap, NOISE, seeds=seeds, blocks=50, estimand=estimand, comparisons=comparisons)
    more = power.power(gap, NOISE, seeds=seeds, blocks=50, estimand=estimand, comparisons=comparisons + 1)
    assert (np.diff(found) > -1e-9).all()
    assert (larger >= found - 1e-9).all()
    assert (more <= found + 1e-9).all()


@given(estimands, st.integers(2, 30), st.integers(2, 200), st.integers(1, 6), st.floats(0.1, 0.95))
@settings(max_examples=40, deadline=None)
def test_the_smallest_gap_is_seen_just_so_often(estimand, seeds, blocks, comparisons, wanted):
    arguments = {"seeds": seeds, "blocks": blocks, "estimand": estimand, "comparisons": comparisons}
    gap = power.smallest_gap(NOISE, **arguments, wanted=wanted)
    assert power.power(gap, NOISE, **arguments) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("gap", [0.0, -1.0, math.nan])
def test_a_gap_is_more_than_nothing(gap):
    with pytest.raises(ValueError, match="cannot be seen"):
        power.power(gap, NOISE, seeds=3, blocks=9, estimand=THIS_SET)


# ------------------------------------------------------------------------------------------------ seeds needed


@pytest.mark.parametrize("estimand", ESTIMANDS)
@pytest.mark.parametrize("comparisons", [1, 4])
def test_the_answer_is_the_smallest_number_that_does(estimand, comparisons):
    arguments = {"blocks": 100, "estimand": estimand, "comparisons": comparisons}
    need = power.seeds_needed(1.0, NOISE, **arguments)
    assert need.reason is None
    assert power.power(1.0, NOISE, seeds=need.seeds, **arguments) >= 0.8
    assert power.power(1.0, NOISE, seeds=need.seeds - 1, **arguments) < 0.8


def test_at_least_three_seeds_are_asked_for():
    """Fewer get no verdict."""
    assert power.seeds_needed(1e6, NOISE, blocks=100, estimand=THIS_SET).seeds == 3


def test_images_alone_may_hide_a_gap():
    """Their error is 4 / 100: with endless seeds a gap of 0.2, one standard error, is seen in one case of six."""
    found = power.seeds_needed(0.2, NOISE, blocks=100, estimand=NEW_IMAGES)
    assert found.seeds is None
    assert found.reason == "100 blocks of images are too few for a gap of 0.2, whatever the seeds"
    assert power.seeds_needed(0.2, NOISE, blocks=100, estimand=THIS_SET).seeds is not None
    assert power.seeds_needed(0.2, NOISE, blocks=10_000, estimand=NEW_IMAGES).seeds is not None


def test_more_seeds_than_anyone_has_are_no_answer():
    found = power.seeds_needed(0.01, NOISE, blocks=100, estimand=THIS_SET)
    assert (found.seeds, found.reason) == (None, "more than 1000 seeds")


def test_one_block_is_no_ground_for_new_images():
    found = power.seeds_needed(1.0, NOISE, blocks=1, estimand=NEW_IMAGES)
    assert (found.seeds, found.reason) == (None, "one block of images tells nothing of others")


# ------------------------------------------------------------------------------------------------ the pilot


def test_the_pilots_variances_and_their_upper_bound():
    """Chi-square with two degrees of freedom is exponential: its lower fifth is below -2 log(0.8)."""
    found, upper = power.noise_of(pilot())
    assert (found.seed, found.image, found.residual) == (pytest.approx(0.25 - 0.06), 4.0, 6.0)
    assert upper.seed == pytest.approx(0.25 * 2 / (-2 * math.log(0.8)) - 0.06)
    assert (upper.image, upper.residual) == (4.0, 6.0)


def test_seeds_that_differ_by_less_than_images_explain_have_no_variance_of_their_own():
    """But the residual of the images is still there, so that a lucky pilot does not promise a sure result."""
    found, _ = power.noise_of(pilot(spread=0.01))
    assert found.seed == 0
    with_it = power.power(0.3, found, seeds=3, blocks=100, estimand=THIS_SET)
    assert with_it == pytest.approx(power.power(0.3, Noise(0.06, 0, 0), seeds=3, blocks=100, estimand=THIS_SET))


def test_a_pilot_of_one_block_knows_its_seeds():
    found, _ = power.noise_of(pilot(blocks=1, image=None, residual=None))
    assert (found.seed, found.image, found.residual) == (0.25, 0, 0)


def test_a_pilot_of_one_seed_knows_nothing():
    with pytest.raises(ValueError, match="the pilot has no spread: one seed"):
        power.noise_of(Interval(THIS_SET, 1, 3, 1.0, reason="one seed tells nothing of its noise"))


def test_the_upper_bound_holds_the_variance_in_four_pilots_of_five():
    rng = np.random.default_rng(0)
    spreads = rng.normal(size=(4000, 3)).std(axis=1, ddof=1)
    upper = [power.noise_of(pilot(spread=spread, residual=0.0))[1].seed for spread in spreads]
    assert np.mean(np.array(upper) >= 1) == pytest.approx(0.8, abs=0.02)
