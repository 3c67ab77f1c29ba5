"""How many seeds does it take to see a gap? From the noise of a pilot, by the noncentral t distribution.

The test is that of `statistics.of_difference`: two-sided, at 5 % divided by the number of comparisons (Bonferroni,
which is Holm's first step). With S seeds the squared error of a difference is

    this-set:    (seed variance + residual variance / B) / S
    new-images:  the same, and image variance / B, which no number of seeds lessens

and its degrees of freedom are those that the expected mean squares give. A pilot of few seeds knows its seed variance
badly: the upper bound of its one-sided 80 % confidence interval (chi-square) shows how badly.

numpy and scipy.special only. Shapes: S = seeds, B = blocks of images; X = any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmseg_cli.ablation.statistics import FEWEST_SEEDS, LEVEL, NEW_IMAGES, Interval, MeanSquares, upper_factor

POWER = 0.8
MOST_SEEDS = 1000
FAR = 1e3  # standard errors; scipy has no answer for endless ones

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """The variances of a difference, in the squared unit of its values.

    Attributes:
        seed: of one seed, over all images that there could be.
        image: of one block of images, in all seeds alike.
        residual: of one block in one seed.
    """

    seed: float
    image: float
    residual: float

    def expected(self, seeds: Array, *, blocks: int) -> MeanSquares:
        """The mean squares that an analysis of variance would find on average, for (X) numbers of seeds."""
        one = np.ones_like(seeds)
        return MeanSquares(
            seeds=(blocks * self.seed + self.residual) * one,
            images=seeds * self.image + self.residual,
            residual=self.residual * one,
            count_seeds=seeds,
            count_blocks=blocks,
        )


def noise_of(pilot: Interval) -> tuple[Noise, Noise]:
    """The noise that a pilot found, and the same at the upper bound of its seed variance.

    Args:
        pilot: of a difference, of at least two seeds. With a single block its seeds' variance is all that is known: the
            noise then holds for this set only.

    Raises:
        ValueError: the pilot has one seed, or its figure is not defined.
    """
    if pilot.spread is None:
        raise ValueError(f"the pilot has no spread: {pilot.reason}")
    residual = pilot.residual_variance or 0.0
    factor = float(upper_factor(pilot.seeds - 1))
    of_seed = [max(scale * pilot.spread**2 - residual / pilot.blocks, 0.0) for scale in (1.0, factor)]
    found = Noise(of_seed[0], pilot.image_variance or 0.0, residual)
    return found, replace(found, seed=of_seed[1])


def power(gap: float, noise: Noise, *, seeds: ArrayLike, blocks: int, estimand: str, comparisons: int = 1) -> Array:
    """The probability that a true gap is seen, its sign included.

    Args:
        gap: true difference, more than 0.
        noise: in the same unit, squared.
        seeds: (X), each at least 2.
        blocks: of images.
        estimand: as `statistics.ESTIMANDS`.
        comparisons: in the family.

    Returns:
        (X), in [0, 1].

    Raises:
        ValueError: the gap is not more than 0, or as `MeanSquares.error`.
    """
    if not 0 < gap < np.inf:
        raise ValueError(f"a gap of {gap} cannot be seen")
    squared, df = noise.expected(np.asarray(seeds, dtype=np.float64), blocks=blocks).error(estimand)
    return _seen(gap, squared, df, comparisons=comparisons)


def _seen(gap: float, squared_error: Array, df: Array, *, comparisons: int) -> Array:
    """The probability that t is above its critical value."""
    from scipy.special import nctdtr, stdtrit

    shift = np.divide(gap, np.sqrt(squared_error), out=np.full(np.shape(df), np.inf), where=squared_error > 0)
    critical = stdtrit(df, 1 - (1 - LEVEL) / 2 / comparisons)
    below = nctdtr(df, np.minimum(shift, FAR), critical)
    found: Array = 1 - np.nan_to_num(below, nan=0.0)  # scipy gives NaN for some shifts near 40, where nothing is below
    return found


@dataclass(frozen=True)
class Need:
    """An answer to: how many seeds?

    Attributes:
        seeds: the smallest number that sees the gap, at least 3; None where there is none.
        reason: why there is none; None where there is one.
    """

    seeds: int | None
    reason: str | None


def seeds_needed(
    gap: float,
    noise: Noise,
    *,
    blocks: int,
    estimand: str,
    comparisons: int = 1,
    wanted: float = POWER,
    most: int = MOST_SEEDS,
) -> Need:
    """The smallest number of seeds by which a true gap is seen with the wanted power.

    Args:
        gap, noise, blocks, estimand, comparisons: as `power`.
        wanted: power.
        most: the largest number that is tried.

    Raises:
        ValueError: as `power`.
    """
    if estimand == NEW_IMAGES:
        if blocks < 2:
            return Need(None, "one block of images tells nothing of others")
        squared, df = np.array(noise.image / blocks), np.array(blocks - 1.0)  # what is left with endless seeds
        if noise.image > 0 and _seen(gap, squared, df, comparisons=comparisons) < wanted:
            return Need(None, f"{blocks} blocks of images are too few for a gap of {gap:g}, whatever the seeds")
    seeds = np.arange(FEWEST_SEEDS, most + 1)
    enough = power(gap, noise, seeds=seeds, blocks=blocks, estimand=estimand, comparisons=comparisons) >= wanted
    if not enough.any():
        return Need(None, f"more than {most} seeds")
    return Need(int(seeds[np.argmax(enough)]), None)


def smallest_gap(
    noise: Noise, *, seeds: int, blocks: int, estimand: str, comparisons: int = 1, wanted: float = POWER
) -> float:
    """The true gap that some seeds see with the wanted power; arguments as `seeds_needed`."""
    from scipy.special import nctdtrinc, stdtrit

    squared, df = noise.expected(np.array(float(seeds)), blocks=blocks).error(estimand)
    critical = stdtrit(df, 1 - (1 - LEVEL) / 2 / comparisons)
    return float(nctdtrinc(df, 1 - wanted, critical) * np.sqrt(squared))
