from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmseg_cli.ablation import statistics
from mmseg_cli.ablation.statistics import (
    BETTER,
    ESTIMANDS,
    NEW_IMAGES,
    NO_EVIDENCE,
    NO_VERDICT,
    THIS_SET,
    WORSE,
    Interval,
    Sample,
    summarise,
)


def linear(cells_SB):
    """The sample of a figure that is a plain mean over blocks: its pseudo-values are the cells themselves."""
    cells = np.asarray(cells_SB, dtype=np.float64)
    blocks = cells.shape[1]
    plain = cells.mean(axis=1)
    return Sample(plain, (blocks * plain[:, None] - cells) / max(blocks - 1, 1))


def difference(cells_SB, *, estimand=NEW_IMAGES):
    return statistics.of_difference(linear(cells_SB), linear(np.zeros_like(cells_SB, dtype=float)), estimand=estimand)


def test_a_summary_computed_by_hand():
    summary = summarise([1.0, 2.0, 6.0])
    assert (summary.mean, summary.count) == (3.0, 3)
    assert summary.spread == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2


def test_one_value_has_no_spread():
    summary = summarise([4.5])
    assert (summary.mean, summary.spread, summary.count) == (4.5, None, 1)


# ------------------------------------------------------------------------------------------------ by hand

# Two seeds on three blocks. Means of seeds 3 and 5, of blocks 1, 4, 7; residuals 1 -1 0 / -1 1 0.
BY_HAND = [[1.0, 2.0, 6.0], [1.0, 6.0, 8.0]]


def test_an_interval_for_this_set_computed_by_hand():
    """Differences 3 and 5: variance 2, squared error 1, and t of one degree of freedom is Cauchy's."""
    found = difference(BY_HAND, estimand=THIS_SET)
    quantile = math.tan(math.pi * 0.475)
    assert (found.estimate, found.error, found.df) == (4.0, pytest.approx(1.0), 1.0)
    assert (found.low, found.high) == (pytest.approx(4 - quantile), pytest.approx(4 + quantile))
    assert found.p == pytest.approx(1 - 2 * math.atan(4.0) / math.pi)
    assert (found.seeds, found.blocks, found.reason) == (2, 3, None)


def test_an_interval_for_new_images_computed_by_hand():
    """MS_seeds 3 x 2 = 6, MS_images 2 x (9 + 0 + 9) / 2 = 18, MS_residual 4 / 2 = 2."""
    found = difference(BY_HAND)
    assert found.spread == pytest.approx(math.sqrt(2))
    assert found.seed_variance == pytest.approx((6 - 2) / 3)
    assert found.image_variance == pytest.approx((18 - 2) / 2)
    assert found.residual_variance == pytest.approx(2)
    assert found.error == pytest.approx(math.sqrt((6 + 18 - 2) / 6))
    seeds = 6 / NormalDist().inv_cdf(0.6) ** 2  # a lower fifth of chi-square with one degree of freedom
    assert found.df == pytest.approx((seeds + 16) ** 2 / (seeds**2 / 1 + 18**2 / 2 + 2**2 / 2))


def test_of_few_images_the_degrees_of_freedom_are_cautious_as_well():
    """The same table turned over: three seeds, two blocks. The images' mean square is at its upper bound."""
    found = difference(np.transpose(BY_HAND))
    assert found.error == pytest.approx(math.sqrt((6 + 18 - 2) / 6))
    images = 6 / NormalDist().inv_cdf(0.6) ** 2
    assert found.df == pytest.approx((18 + images - 2) ** 2 / (18**2 / 2 + images**2 / 1 + 2**2 / 2))


def test_images_without_noise_of_their_own_leave_the_error_of_this_set():
    """Blocks whose means differ less than chance alone would have it: their component is zero, not below."""
    cells = [[1.0, 4.0], [7.0, 2.0]]  # means of blocks 4 and 3, of seeds 2.5 and 4.5
    found, this = (difference(cells, estimand=estimand) for estimand in (NEW_IMAGES, THIS_SET))
    assert found.image_variance == 0
    assert (found.error, found.df, found.p) == (this.error, this.df, this.p)
    assert (found.low, found.high) == (this.low, this.high)


def test_the_seeds_mean_square_is_that_of_the_plain_differences():
    """A figure that is no plain mean: pseudo-values do not average to it, the seeds' spread is of what is shown."""
    plain, without = np.array([1.0, 2.0, 4.0]), np.random.default_rng(0).normal(size=(3, 5))
    squares = statistics.mean_squares(plain, without)
    assert squares.seeds == pytest.approx(5 * np.var(plain, ddof=1))


def test_the_analysis_of_variance_agrees_with_loops():
    rng = np.random.default_rng(3)
    plain, without = rng.normal(size=4), rng.normal(size=(4, 6))
    pseudo = [[6 * plain[s] - 5 * without[s, b] for b in range(6)] for s in range(4)]
    grand = sum(map(sum, pseudo)) / 24
    of_seed = [sum(row) / 6 for row in pseudo]
    of_block = [sum(pseudo[s][b] for s in range(4)) / 4 for b in range(6)]
    images = 4 * sum((mean - grand) ** 2 for mean in of_block) / 5
    residual = sum((pseudo[s][b] - of_seed[s] - of_block[b] + grand) ** 2 for s in range(4) for b in range(6)) / 15
    squares = statistics.mean_squares(plain, without)
    assert (squares.images, squares.residual) == (pytest.approx(images), pytest.approx(residual))


def test_the_analysis_of_variance_agrees_with_statsmodels():
    pandas = pytest.importorskip("pandas")
    formula = pytest.importorskip("statsmodels.formula.api")
    anova_lm = pytest.importorskip("statsmodels.stats.anova").anova_lm
    cells = np.random.default_rng(4).normal(size=(3, 7))
    rows = [{"seed": s, "block": b, "value": cells[s, b]} for s in range(3) for b in range(7)]
    table = anova_lm(formula.ols("value ~ C(seed) + C(block)", pandas.DataFrame(rows)).fit())
    squares = statistics.mean_squares(linear(cells).plain_S, linear(cells).without_SB)
    expected = table["mean_sq"]
    assert squares.seeds == pytest.approx(expected["C(seed)"])
    assert squares.images == pytest.approx(expected["C(block)"])
    assert squares.residual == pytest.approx(expected["Residual"])


def test_the_interval_for_this_set_is_the_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    own, base = rng.normal(0.5, 1, (6, 9)), rng.normal(size=(6, 9))
    found = statistics.of_difference(linear(own), linear(base), estimand=THIS_SET)
    expected = stats.ttest_rel(own.mean(axis=1), base.mean(axis=1))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_many_at_once_are_as_one_by_one():
    rng = np.random.default_rng(6)
    plain, without = rng.normal(size=(8, 3)), rng.normal(size=(8, 3, 5))
    together = statistics.mean_squares(plain, without)
    for estimand in ESTIMANDS:
        squared, df = together.error(estimand)
        for place in range(8):
            alone = statistics.mean_squares(plain[place], without[place]).error(estimand)
            assert [squared[place], df[place]] == pytest.approx([float(value) for value in alone])


# ------------------------------------------------------------------------------------------------ laws

cells = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
    elements=st.floats(-1, 1).map(lambda value: round(value, 3)),
)
estimands = st.sampled_from(ESTIMANDS)


def numbers(interval, *, but=()):
    return [
        value
        for name, value in vars(interval).items()
        if name not in ("estimand", "reason", *but) and value is not None
    ]


@given(cells, estimands, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_seeds_and_of_images_does_not_matter(values, estimand, random):
    seeds, blocks = (random.sample(range(side), side) for side in values.shape)
    found, other = (difference(array, estimand=estimand) for array in (values, values[seeds][:, blocks]))
    assert numbers(found) == pytest.approx(numbers(other), rel=1e-6, abs=1e-9)


@given(cells, estimands, st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_a_constant_moves_the_interval_and_nothing_else(values, estimand, constant):
    found, moved = (difference(array, estimand=estimand) for array in (values, values + constant))
    assert moved.estimate == pytest.approx(found.estimate + constant, abs=1e-9)
    assert moved.low == pytest.approx(found.low + constant, rel=1e-6, abs=1e-9)
    assert moved.high == pytest.approx(found.high + constant, rel=1e-6, abs=1e-9)
    edges = ("estimate", "low", "high", "p")
    assert numbers(moved, but=edges) == pytest.approx(numbers(found, but=edges), rel=1e-6, abs=1e-9)


@given(cells, cells, estimands)
@settings(max_examples=60, deadline=None)
def test_baseline_and_variant_exchanged_change_the_sign(own, base, estimand):
    shape = tuple(map(min, own.shape, base.shape))
    own, base = (linear(array[: shape[0], : shape[1]]) for array in (own, base))
    found = statistics.of_difference(own, base, estimand=estimand)
    other = statistics.of_difference(base, own, estimand=estimand)
    assert (found.estimate, found.low, found.high) == (-other.estimate, -other.high, -other.low)
    assert (found.error, found.df, found.p) == (other.error, other.df, other.p)


@given(cells)
@settings(max_examples=60, deadline=None)
def test_other_images_are_never_surer_than_these(values):
    this, new = (difference(values, estimand=estimand) for estimand in (THIS_SET, NEW_IMAGES))
    assert new.error >= this.error
    assert new.df >= min(values.shape) - 1


@given(cells, estimands)
@settings(max_examples=60, deadline=None)
def test_the_interval_leaves_out_zero_just_when_p_is_below_5_percent(values, estimand):
    found = difference(values, estimand=estimand)
    if found.p is not None and abs(found.p - 0.05) > 1e-9:
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


# ------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("estimand", ESTIMANDS)
def test_a_variant_that_is_the_baseline_differs_by_nothing(estimand):
    sample = linear(np.random.default_rng(7).normal(size=(4, 5)))
    found = statistics.of_difference(sample, sample, estimand=estimand)
    assert (found.estimate, found.low, found.high, found.error, found.p) == (0, 0, 0, 0, 1)
    assert [verdict.word for verdict in statistics.verdicts([found])] == [NO_EVIDENCE]


@pytest.mark.parametrize("estimand", ESTIMANDS)
def test_the_same_difference_everywhere_has_no_noise_to_judge_by(estimand):
    """Up to the last bits of floating point, which are no noise either."""
    base = np.random.default_rng(8).uniform(50, 60, size=(4, 5))
    found = statistics.of_difference(linear(base + 0.1), linear(base), estimand=estimand)
    assert found.estimate == pytest.approx(0.1)
    assert (found.low, found.high, found.error, found.p) == (found.estimate, found.estimate, 0, None)
    assert found.reason == "all seeds give the same value: there is no noise to judge by"
    assert statistics.verdicts([found])[0].word == NO_VERDICT


def test_seeds_that_agree_still_leave_the_choice_of_images():
    row = [0.1, 0.5, 0.3]
    found = difference([row, row, row])
    assert found.error == pytest.approx(np.std(row, ddof=1) / math.sqrt(3))
    assert found.df == pytest.approx(2)
    assert found.p is not None


@pytest.mark.parametrize("estimand", ESTIMANDS)
def test_one_seed_gives_the_estimate_alone(estimand):
    found = difference([[1.0, 2.0, 6.0]], estimand=estimand)
    assert found == Interval(estimand, 1, 3, 3.0, reason="one seed tells nothing of its noise")


def test_one_block_tells_nothing_of_other_images():
    found = difference([[1.0], [2.0], [4.0]])
    assert (found.estimate, found.low, found.p) == (pytest.approx(7 / 3), None, None)
    assert found.reason == "one block of images tells nothing of others"
    this = difference([[1.0], [2.0], [4.0]], estimand=THIS_SET)
    assert this.error == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))
    assert (this.image_variance, this.residual_variance, this.reason) == (None, None, None)


def test_a_figure_that_is_not_defined_everywhere_has_no_estimate():
    found = difference([[1.0, 2.0], [math.nan, math.nan]])
    assert (found.estimate, found.low, found.p) == (None, None, None)
    assert found.reason == "not defined in every run"


def test_a_mean_has_the_interval_of_its_own_noise_and_no_p():
    found = statistics.of_mean(linear(BY_HAND), estimand=NEW_IMAGES)
    expected = difference(BY_HAND)
    assert (found.low, found.high, found.df) == (expected.low, expected.high, expected.df)
    assert found.p is None


def test_samples_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(seeds, blocks\) are \(2, 3\) and \(2, 2\)"):
        linear(np.zeros((2, 3))) - linear(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="plain is"):
        Sample(np.zeros(2), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="one block"):
        statistics.mean_squares(np.zeros(2), np.zeros((2, 1))).error(NEW_IMAGES)
    with pytest.raises(ValueError, match="every-set is none of this-set, new-images"):
        difference(BY_HAND, estimand="every-set")


# ------------------------------------------------------------------------------------------------ verdicts


def test_holm_computed_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, None]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        pytest.approx(0.06),
        None,
    ]
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
    assert statistics.holm([None]) == [None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
@pytest.mark.slow  # statsmodels takes seconds to import
def test_holm_agrees_with_statsmodels(p_values):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert statistics.holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])


def interval(estimate, p, *, seeds=3):
    return Interval(NEW_IMAGES, seeds, 10, estimate, p=p)


def test_verdicts_are_of_the_whole_family():
    """0.02 alone would do; among three the largest step leaves it at 0.04, and with a fourth at 0.06."""
    three = [interval(1.0, 0.02), interval(-1.0, 0.001), interval(1.0, 0.5)]
    assert [found.word for found in statistics.verdicts(three)] == [BETTER, WORSE, NO_EVIDENCE]
    four = statistics.verdicts([*three, interval(1.0, 0.9)])
    assert [found.word for found in four] == [NO_EVIDENCE, WORSE, NO_EVIDENCE, NO_EVIDENCE]
    assert four[0].adjusted_p == pytest.approx(0.06)


def test_two_seeds_get_no_verdict():
    found = statistics.verdicts([interval(1.0, 1e-9, seeds=2), interval(1.0, None), interval(None, None)])
    assert [one.word for one in found] == [NO_VERDICT] * 3


# ------------------------------------------------------------------------------------------------ bootstrap


def test_the_crossed_bootstrap_agrees_with_loops():
    """The same draws, one replicate and one drawn cell after the other."""
    cells = np.random.default_rng(9).normal(size=(3, 4))
    found = statistics.crossed_bootstrap(lambda w_RB: w_RB @ cells.T / 4, seeds=3, blocks=4, replicates=50, seed=1)
    rng = np.random.default_rng(1)
    seeds, blocks = (statistics.draws(rng, count=count, replicates=50) for count in (3, 4))
    means = []
    for replicate in range(50):
        drawn = [s for s in range(3) for _ in range(int(seeds[replicate, s]))]
        seen = [b for b in range(4) for _ in range(int(blocks[replicate, b]))]
        means.append(sum(cells[s, b] for s in drawn for b in seen) / 12)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_the_crossed_bootstrap_has_about_the_variance_of_owen():
    """Owen (2007): about s_a / S + s_b / B + 3 s_e / (S B), where seeds and blocks are many."""
    rng = np.random.default_rng(10)
    cells = rng.normal(size=(60, 1)) + 2 * rng.normal(size=(1, 80)) + 5 * rng.normal(size=(60, 80))
    low, high = statistics.crossed_bootstrap(lambda w_RB: w_RB @ cells.T / 80, seeds=60, blocks=80, replicates=4000)
    squares = statistics.mean_squares(linear(cells).plain_S, linear(cells).without_SB)
    a, b, e = squares.components()
    assert (high - low) / 2 / 1.96 == pytest.approx(math.sqrt(a / 60 + b / 80 + 3 * e / 4800), rel=0.06)


def test_a_seed_gives_the_same_bootstrap_again():
    cells = np.random.default_rng(11).normal(size=(3, 4))
    one, again, other = (
        statistics.crossed_bootstrap(lambda w_RB: w_RB @ cells.T / 4, seeds=3, blocks=4, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == again != other
