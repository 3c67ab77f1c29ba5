"""The two worlds that `mmseg bench calibration` draws ablations from, whose truth is known.

In the *linear* one a difference is mu + a_s + b_j + e_sj, as the intervals suppose, with normal or other noise. In the
*confusion* world runs have skill, images have mixtures of classes and difficulty, and both interact; counted are hits
and unions, and mIoU is computed from them: nothing is linear, normal or equal there.

numpy only. Shapes: T = trials, V = variants, S = seeds, B = blocks of one image, K = classes; F = 1 + K: the mean over
classes, then every class; D = V - 1: differences to the first variant, the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.ablation import estimates
from mmseg_cli.ablation.power import Noise

Array = NDArray[np.float64]

VARIANTS = 5  # four comparisons that share a baseline
NUMBERS = 2**22  # that are held at once

# The variance of a difference on all images with one seed: parts of seeds, images, and both together.
NOISES: dict[str, tuple[float, float, float]] = {
    "seeds 10 : images 1": (10, 1, 1),
    "seeds 4 : images 1": (4, 1, 1),
    "seeds 1 : images 1": (1, 1, 1),
    "seeds 1 : images 4": (1, 4, 4),
    "no seed noise": (0, 1, 1),
    "no image noise": (1, 0, 1),
    "mostly residual": (1, 1, 4),
    "no residual": (1, 1, 0),
}

SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {  # of mean 0 and variance 1
    "normal": lambda rng, size: rng.standard_normal(size),
    "laplace": lambda rng, size: rng.laplace(size=size) / math.sqrt(2),
    "gamma 4": lambda rng, size: rng.gamma(4, size=size) / 2 - 2,
    "exponential": lambda rng, size: rng.exponential(size=size) - 1,
    "t3": lambda rng, size: rng.standard_t(3, size=size) / math.sqrt(3),
}
OF_RUNS, OF_DIFFERENCES = "runs", "differences"


def chunks(trials: int, *, numbers: int) -> Iterator[int]:
    """Numbers of trials that add up to all; one trial holds that many numbers."""
    step = max(1, NUMBERS // numbers)
    for first in range(0, trials, step):
        yield min(step, trials - first)


# ------------------------------------------------------------------------------------------------ linear world


def noise_of(name: str, *, blocks: int) -> Noise:
    """The variances of one seed, one block, and both together, behind a name of NOISES."""
    seed, image, residual = NOISES[name]
    return Noise(seed, blocks * image, blocks * residual)


def draw_differences(
    rng: np.random.Generator, noise: Noise, *, shape: str, of: str, trials: int, seeds: int, blocks: int
) -> tuple[Array, Array]:
    """Differences of 0 with noise.

    Args:
        rng: of the draws.
        noise: of a difference.
        shape: a name of SHAPES.
        of: OF_RUNS: every run has noise of that shape, the baseline too, and four variants are compared with it.
            OF_DIFFERENCES: the difference itself has it, as if only the variant were noisy; there is one.
        trials, seeds, blocks: T, S and B.

    Returns:
        (T, D, S, B) the differences, and (T, D) their truth on these very images.
    """
    runs = VARIANTS if of == OF_RUNS else 1
    share = 2 if of == OF_RUNS else 1  # a difference has the noise of two runs
    seed, image, both = (
        math.sqrt(variance / share) * SHAPES[shape](rng, (trials, runs, *end))
        for variance, end in (
            (noise.seed, (seeds, 1)),
            (noise.image, (1, blocks)),
            (noise.residual, (seeds, blocks)),
        )
    )
    cells, of_set = seed + image + both, image.mean(axis=(-2, -1))
    if of == OF_RUNS:
        cells, of_set = cells[:, 1:] - cells[:, :1], of_set[:, 1:] - of_set[:, :1]
    return cells, of_set


# ------------------------------------------------------------------------------------------------ confusion world


@dataclass(frozen=True)
class World:
    """What images and runs are like; logits are of the share of a class's pixels that is right.

    Attributes:
        mixture: Dirichlet parameters of the K classes; the last is in one image of three.
        pixels: of an image.
        ease: (K) mean logit.
        mistaken: (K, K) where the wrong pixels of a class go.
        difficulty: standard deviation over images, the same for all runs.
        seed, image, residual: standard deviations of a run's skill, of how an image suits a variant, and of both.
        class_seed: as `seed`, of every class on its own.
        effect: what the second variant and others have more than the baseline.
    """

    mixture: Array
    pixels: int
    ease: Array
    mistaken: Array
    difficulty: float
    seed: float
    image: float
    residual: float
    class_seed: float
    effect: float


MIOU = estimates.Figure("iou", "parts", lambda parts: parts, estimates.share, lambda parts: parts[..., 1, :])
CLASSES = 8
UNIT = 0.06  # logits; a noise of 1 in NOISES


def world_of(noise: str, *, blocks: int, effect: float) -> World:
    """The confusion world whose differences have about the noise of that name."""
    seed, image, residual = NOISES[noise]
    wrong = np.exp(-0.7 * np.abs(np.subtract.outer(np.arange(CLASSES), np.arange(CLASSES))))
    np.fill_diagonal(wrong, 0)
    return World(
        mixture=np.array([4.0, 3.0, 2.0, 1.0, 0.5, 0.3, 0.15, 0.06]),
        pixels=20_000,
        ease=np.linspace(3.0, 0.5, CLASSES),
        mistaken=wrong / wrong.sum(axis=1, keepdims=True),
        difficulty=0.7,
        seed=UNIT * math.sqrt(seed),
        image=UNIT * math.sqrt(image * blocks),
        residual=UNIT * math.sqrt(residual * blocks),
        class_seed=UNIT * math.sqrt(seed),
        effect=effect,
    )


@dataclass(frozen=True)
class Images:
    """Some images: pixels of every class, and logits (their difficulty, and how they suit every variant)."""

    pixels_TBK: Array
    logits_TVB: Array


def draw_images(rng: np.random.Generator, world: World, *, trials: int, variants: int, blocks: int) -> Images:
    """Images of (T) validation sets."""
    shares = rng.standard_gamma(np.broadcast_to(world.mixture, (trials, blocks, CLASSES)))
    pixels = np.rint(world.pixels * shares / shares.sum(axis=-1, keepdims=True))
    difficulty = world.difficulty * rng.standard_normal((trials, 1, blocks))
    return Images(pixels, difficulty + world.image * rng.standard_normal((trials, variants, blocks)))


def draw_runs(rng: np.random.Generator, world: World, images: Images, *, seeds: int, mirrored: bool) -> Array:
    """(T, V, S, B, 2, K): hits and union of runs on images.

    Args:
        rng: of the runs.
        world: what they are like.
        images: that all of them see.
        seeds: S.
        mirrored: the second half of the seeds has the noise of the first with the other sign (antithetic draws), so
            that means over seeds are much nearer to their limit.
    """
    trials, variants, blocks = images.logits_TVB.shape
    drawn = seeds // 2 if mirrored else seeds
    noise = (
        world.seed * rng.standard_normal((trials, variants, drawn, 1, 1))
        + world.class_seed * rng.standard_normal((trials, variants, drawn, 1, CLASSES))
        + world.residual * rng.standard_normal((trials, variants, drawn, blocks, 1))
    )
    if mirrored:
        noise = np.concatenate([noise, -noise], axis=2)
    noise += images.logits_TVB[:, :, None, :, None] + world.ease
    noise[:, 1:] += world.effect
    pixels = images.pixels_TBK[:, None, None]
    hits = np.rint(pixels / (1 + np.exp(-noise)))
    union = pixels + np.rint((pixels - hits) @ world.mistaken)
    return np.stack([hits, union], axis=-2)


def figures_of(parts: Array) -> Array:
    """(..., F): mIoU and IoU on all images, of hits and unions (..., B, 2, K)."""
    return estimates.jackknife(MIOU, parts.sum(axis=-3, keepdims=True))[0]


def population(rng: np.random.Generator, world: World, *, sets: int, images: int, seeds: int) -> tuple[Array, Array]:
    """(F): the mean difference of the second variant to the first over endless seeds and images, and its own error.

    Args:
        rng: of the draws.
        world: what is drawn.
        sets: independent draws of images, each seen by seeds of its own.
        images: of each; so many that a ratio of their sums is as good as that of the population.
        seeds: of each, even; every one is drawn together with its mirror image.
    """
    found = []
    for _ in range(sets):
        drawn = draw_images(rng, world, trials=1, variants=2, blocks=images)
        whole = figures_of(draw_runs(rng, world, drawn, seeds=seeds, mirrored=True))[0].mean(axis=1)
        found.append(whole[1] - whole[0])
    return np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(sets)


def set_truth(rng: np.random.Generator, world: World, images: Images, *, seeds: int) -> Array:
    """(T, F): the mean difference over endless seeds on these very images."""
    found = []
    step = max(1, NUMBERS // (2 * seeds * images.logits_TVB[0, :2].size * CLASSES))
    for first in range(0, len(images.pixels_TBK), step):
        some = slice(first, first + step)
        part = Images(images.pixels_TBK[some], images.logits_TVB[some, :2])
        whole = figures_of(draw_runs(rng, world, part, seeds=seeds, mirrored=True)).mean(axis=2)
        found.append(whole[:, 1] - whole[:, 0])
    return np.concatenate(found)
