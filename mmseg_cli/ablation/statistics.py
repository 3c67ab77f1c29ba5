"""Is a variant better than the baseline? Intervals and verdicts that know of two sources of noise: seeds and images.

Every seed of every variant sees the same images, so what is measured is crossed. A difference of seed s on block j
(an image, or the images of one city or sequence) is taken as

    p_sj = mu + a_s + b_j + e_sj        a: training noise, b: choice of images, e: both together

and the mean squares of the two-way analysis of variance with one observation a cell estimate the three variances
(Searle, Casella and McCulloch 1992, Variance Components, ch. 4). Two questions have two answers:

- `this-set`: is it better on these very images, whatever the seed? Only training noise is random: Student's t over
  the seeds' differences.
- `new-images`: is it better on other images of the same kind? Both are random:
  Var = (MS_seeds + max(MS_images - MS_residual, 0)) / (S B), degrees of freedom as Satterthwaite (1946).

The figures (mIoU and others) are ratios of sums over images and have no value of one image; the jackknife's
pseudo-values p_sj = B d_s - (B - 1) d_s,-j stand for it (Miller 1974; Efron and Stein 1981). The mean square of seeds
is that of the plain differences d_s, which are what the reader sees.

DEVIATION, twice. (1) Textbooks take MS_seeds + MS_images - MS_residual and put 0 for any component below it. The seeds'
mean square is never cut here, for it measures directly what more seeds would lessen, as Hillis (2007, Statistics in
Medicine 26:596) does with readers and cases. So an error for new images is never below that for this set. (2)
Satterthwaite's degrees of freedom are too many just when the mean square of few seeds came out small by chance; far out
in the tail, where Holm's first step is, three seeds then gave twice the false verdicts. They are computed here at the
upper 80 % bound (chi-square) of the scarcer mean square, that of the seeds where S <= B, and are never below its own:
between Satterthwaite's rule (no bound) and the cautious one that counts the scarcer alone (an endless bound). The error
is as before. Both were chosen by simulation over all its configurations, not one (`mmseg bench calibration`).

numpy and scipy.special only. Shapes: S = seeds, B = blocks of images, R = replicates; X = any leading axes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

THIS_SET, NEW_IMAGES = "this-set", "new-images"
ESTIMANDS = (THIS_SET, NEW_IMAGES)
LEVEL = 0.95
BOUND = 0.8  # one-sided confidence of the upper bound of a variance
FEWEST_SEEDS = 3  # for a verdict
BETTER, WORSE, NO_EVIDENCE, NO_VERDICT = "better", "worse", "no evidence", "no verdict"
ROUNDING = 1e-12  # relative; a standard error below it is no noise but the last bits of ratios or percents

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Mean and spread over seeds.

    Attributes:
        mean: arithmetic mean.
        spread: sample standard deviation (n - 1), None for a single seed.
        count: number of seeds.
    """

    mean: float
    spread: float | None
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of at least one value."""
    return Summary(
        mean=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        count=len(values),
    )


# ------------------------------------------------------------------------------------------------ variances


@dataclass(frozen=True)
class Sample:
    """One figure of one variant, or a difference of two, for every seed.

    Attributes:
        plain_S: its value on all images; NaN where it is not defined.
        without_SB: its value without the images of one block.
    """

    plain_S: Array
    without_SB: Array

    def __post_init__(self) -> None:
        if self.plain_S.ndim != 1 or not len(self.plain_S) or self.without_SB.shape[:-1] != self.plain_S.shape:
            raise ValueError(f"plain is {self.plain_S.shape}, without is {self.without_SB.shape}")

    def __sub__(self, baseline: Sample) -> Sample:
        """The difference to a baseline, seed by seed and block by block.

        Raises:
            ValueError: the two have other seeds or blocks.
        """
        if self.without_SB.shape != baseline.without_SB.shape:
            raise ValueError(f"(seeds, blocks) are {self.without_SB.shape} and {baseline.without_SB.shape}")
        return Sample(self.plain_S - baseline.plain_S, self.without_SB - baseline.without_SB)


@dataclass(frozen=True)
class MeanSquares:
    """The two-way analysis of variance, of any number of differences at once.

    Attributes:
        seeds: B times the variance of the plain differences over seeds.
        images, residual: of the pseudo-values; NaN with a single block or seed.
        count_seeds, count_blocks: S and B; S may be an array where numbers of seeds are compared.
    """

    seeds: Array
    images: Array
    residual: Array
    count_seeds: int | Array
    count_blocks: int

    def components(self) -> tuple[Array, Array, Array]:
        """The variances of a (seeds), b (images) and e (residual); one that comes out below zero is zero."""
        seeds = np.maximum((self.seeds - self.residual) / self.count_blocks, 0)
        images = np.maximum((self.images - self.residual) / self.count_seeds, 0)
        return seeds, images, self.residual

    def error(self, estimand: str) -> tuple[Array, Array]:
        """The squared standard error of the mean over seeds, and its degrees of freedom; see the top of the file.

        Raises:
            ValueError: the estimand is unknown, or is new images and there is a single block.
        """
        df_seeds, df_images = np.full(np.shape(self.seeds), self.count_seeds - 1.0), self.count_blocks - 1.0
        cells = self.count_seeds * self.count_blocks
        if estimand == THIS_SET:
            return self.seeds / cells, df_seeds
        if estimand != NEW_IMAGES:
            raise ValueError(f"{estimand} is none of {', '.join(ESTIMANDS)}")
        if self.count_blocks < 2:
            raise ValueError("one block of images tells nothing of others")
        few_seeds = df_seeds <= df_images
        seeds = np.where(few_seeds, self.seeds * upper_factor(df_seeds), self.seeds)
        images = np.where(few_seeds, self.images, self.images * upper_factor(df_images))
        of_images = np.maximum(images - self.residual, 0)
        squares = seeds**2 / df_seeds + images**2 / df_images + self.residual**2 / (df_seeds * df_images)
        mixed = np.divide((seeds + of_images) ** 2, squares, out=df_seeds.copy(), where=squares > 0)
        df = np.where(of_images > 0, np.maximum(mixed, np.minimum(df_seeds, df_images)), df_seeds)
        unseen = self.images <= self.residual  # then the error is the seeds' alone
        sum_ = self.seeds + np.where(unseen, 0, self.images - self.residual)
        return sum_ / cells, np.where(unseen, np.minimum(df, df_seeds), df)


def upper_factor(df: ArrayLike) -> Array:
    """By what a variance of so many degrees of freedom is multiplied to have its upper 80 % bound (chi-square)."""
    from scipy.special import chdtri

    return np.asarray(df / chdtri(df, BOUND), dtype=np.float64)  # chdtri counts from the upper tail


def mean_squares(plain_XS: Array, without_XSB: Array) -> MeanSquares:
    """The analysis of variance of jackknifed figures or differences.

    Args:
        plain_XS: on all images, at least two seeds.
        without_XSB: without the images of one block.
    """
    seeds, blocks = without_XSB.shape[-2:]
    spread = blocks * np.var(plain_XS, axis=-1, ddof=1)
    if blocks < 2:
        nothing = np.full(np.shape(spread), np.nan)
        return MeanSquares(spread, nothing, nothing, seeds, blocks)
    pseudo = (1 - blocks) * (without_XSB - without_XSB.mean(axis=-1, keepdims=True))  # less the mean of its seed
    of_blocks = pseudo.mean(axis=-2, keepdims=True)
    images = seeds * np.square(of_blocks).sum(axis=(-2, -1)) / (blocks - 1)
    residual = np.square(pseudo - of_blocks).sum(axis=(-2, -1)) / ((seeds - 1) * (blocks - 1))
    return MeanSquares(spread, images, residual, seeds, blocks)


def limits(estimate: Array, squared_error: Array, df: Array) -> tuple[Array, Array]:
    """Lower and upper limit of Student's 95 % interval."""
    from scipy.special import stdtrit

    half = stdtrit(df, (1 + LEVEL) / 2) * np.sqrt(squared_error)
    return estimate - half, estimate + half


def p_value(estimate: Array, squared_error: Array, df: Array) -> Array:
    """Two-sided p of a difference by Student's t; where there is no noise, 1 for a difference of 0, else 0."""
    from scipy.special import stdtr

    size = np.abs(estimate)
    none = np.where(size > 0, np.inf, 0.0)
    t = np.divide(size, np.sqrt(squared_error), out=none, where=squared_error > 0)
    return np.asarray(2 * stdtr(df, -t), dtype=np.float64)


# ------------------------------------------------------------------------------------------------ intervals


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with what is known of its noise, in the unit of the values.

    Attributes:
        estimand: THIS_SET or NEW_IMAGES.
        seeds, blocks: how many.
        estimate: None where the figure is not defined in every run.
        low, high: the 95 % interval.
        error: standard error.
        df: degrees of freedom of the t distribution.
        p: two-sided, of a true difference of 0; None for the interval of a mean.
        spread: sample standard deviation of the seeds' values.
        seed_variance, image_variance, residual_variance: the components a (of one seed), b (of one block) and e (of one
            block in one seed).
        reason: why something is None, in words; None where nothing is missing.
    """

    estimand: str
    seeds: int
    blocks: int
    estimate: float | None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    df: float | None = None
    p: float | None = None
    spread: float | None = None
    seed_variance: float | None = None
    image_variance: float | None = None
    residual_variance: float | None = None
    reason: str | None = None


def _interval(sample: Sample, estimand: str, *, scale: float) -> Interval:
    """The interval of a mean; p is of a true mean of 0. `scale` is the size of the values that were subtracted."""
    if estimand not in ESTIMANDS:
        raise ValueError(f"{estimand} is none of {', '.join(ESTIMANDS)}")
    seeds, blocks = sample.without_SB.shape
    if np.isnan(sample.plain_S).any():
        return Interval(estimand, seeds, blocks, None, reason="not defined in every run")
    estimate = sample.plain_S.mean()
    if seeds < 2:
        return Interval(estimand, seeds, blocks, float(estimate), reason="one seed tells nothing of its noise")
    squares = mean_squares(sample.plain_S, sample.without_SB)
    parts = [None if np.isnan(part) else float(part) for part in squares.components()]
    known = Interval(
        estimand,
        seeds,
        blocks,
        float(estimate),
        spread=float(sample.plain_S.std(ddof=1)),
        seed_variance=parts[0],
        image_variance=parts[1],
        residual_variance=parts[2],
    )
    if estimand == NEW_IMAGES and blocks < 2:
        return replace(known, reason="one block of images tells nothing of others")
    squared, df = squares.error(estimand)
    noiseless = math.sqrt(squared) <= ROUNDING * max(1.0, scale)
    if noiseless:
        squared = np.zeros_like(squared)
        zero = abs(estimate) <= ROUNDING * max(1.0, scale)
        p, reason = (1.0, None) if zero else (None, "all seeds give the same value: there is no noise to judge by")
    else:
        p, reason = float(p_value(estimate, squared, df)), None
    low, high = limits(estimate, squared, df)
    error = math.sqrt(squared)
    return replace(known, low=float(low), high=float(high), error=error, df=float(df), p=p, reason=reason)


def of_difference(variant: Sample, baseline: Sample, *, estimand: str) -> Interval:
    """The difference variant - baseline, paired by seed and by image.

    Args:
        variant, baseline: the same seeds and blocks, in the same order.
        estimand: THIS_SET or NEW_IMAGES.

    Raises:
        ValueError: the two have other seeds or blocks.
    """
    scale = max(float(np.abs(side.plain_S).max()) for side in (variant, baseline))
    return _interval(variant - baseline, estimand, scale=scale)


def of_mean(sample: Sample, *, estimand: str) -> Interval:
    """The mean of one variant's figure over seeds; it has no p."""
    return replace(_interval(sample, estimand, scale=float(np.abs(sample.plain_S).max())), p=None)


def of_one_more(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % prediction interval of one training more: mean ± t(n - 1) s sqrt(1 + 1 / n).

    Wider than that of the mean, for one training has all its noise.

    Args:
        values: of n seeds.

    Returns:
        (low, high); None with fewer than three seeds, or where all are the same.
    """
    from scipy.special import stdtrit

    summary = summarise(values)
    if summary.count < FEWEST_SEEDS or not summary.spread:
        return None
    half = float(stdtrit(summary.count - 1, (1 + LEVEL) / 2)) * summary.spread * math.sqrt(1 + 1 / summary.count)
    return summary.mean - half, summary.mean + half


# ------------------------------------------------------------------------------------------------ verdicts


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979): the family-wise error stays below any level that the results are held to.

    None stays None and is not counted.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Verdict:
    """What may be said of a difference.

    Attributes:
        word: BETTER, WORSE, NO_EVIDENCE or NO_VERDICT.
        adjusted_p: by Holm, over the family; None where there is no p.
    """

    word: str
    adjusted_p: float | None


def verdicts(family: Sequence[Interval]) -> list[Verdict]:
    """The verdicts of all differences that are judged together, of figures where more is better.

    With fewer than three seeds, or without p, there is none.
    """
    found = []
    judged = [interval.p if interval.seeds >= FEWEST_SEEDS else None for interval in family]
    for interval, adjusted in zip(family, holm(judged), strict=True):
        if adjusted is None or interval.estimate is None:
            word = NO_VERDICT
        elif adjusted >= 1 - LEVEL:
            word = NO_EVIDENCE
        else:
            word = BETTER if interval.estimate > 0 else WORSE
        found.append(Verdict(word, adjusted))
    return found


# ------------------------------------------------------------------------------------------------ bootstrap


def draws(rng: np.random.Generator, *, count: int, replicates: int) -> Array:
    """(R, count): how often each of `count` things is drawn when `count` are, with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.float64)


def crossed_bootstrap(
    values: Callable[[Array], Array], *, seeds: int, blocks: int, replicates: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile 95 % interval of a mean over seeds where seeds and blocks are drawn anew, each on its own.

    The pigeonhole bootstrap of Owen (2007, Annals of Applied Statistics 1:386): a check on the interval for new images,
    which needs no formula. With few seeds it is too narrow: S drawn seeds have only (S - 1) / S of the variance.

    Args:
        values: from weights (R, B) of the blocks to the values (R, S) of every seed under them.
        seeds, blocks: S and B.
        replicates: R.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    weights_RS = draws(rng, count=seeds, replicates=replicates)
    values_RS = values(draws(rng, count=blocks, replicates=replicates))
    low, high = np.quantile((weights_RS * values_RS).sum(axis=1) / seeds, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
