"""`mmseg bench calibration`: do the intervals and verdicts of an ablation keep what they promise? By simulation.

Ablations are drawn whose truth is known, and pass through `mmseg_cli.ablation.statistics` as measured ones do. Counted
is how often a 95 % interval holds the truth, how often variants that are alike get a verdict all the same, and how
often a true gap is seen, next to the noncentral t that `mmseg_cli.ablation.power` plans by.

Two worlds. In the *linear* one a difference is mu + a_s + b_j + e_sj, as the intervals suppose, with normal or other
noise. In the *confusion* world runs have skill, images have mixtures of classes and difficulty, and both interact;
counted are hits and unions, and mIoU is computed from them: nothing is linear, normal or equal there.

For comparison the interval for new images by the textbook, and three bootstraps (percentile, 95 %) of the same data:

- crossed: S seeds and B blocks are drawn with replacement, each once, and every drawn seed sees the same drawn blocks;
- nested: S seeds are drawn, and for each drawn one B blocks of its own;
- seeds only: S seeds are drawn; the images stay.

numpy and scipy only. Shapes: T = trials, V = variants, S = seeds, B = blocks of one image, K = classes, R = replicates;
F = 1 + K: the mean over classes, then every class; D = V - 1: differences to the first variant, the baseline.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli import runtime
from mmseg_cli.ablation import estimates, power, statistics
from mmseg_cli.ablation.statistics import ESTIMANDS, NEW_IMAGES, THIS_SET

Array = NDArray[np.float64]
Row = dict[str, Any]

SEEDS = (2, 3, 5, 10)
BLOCKS = (16, 100)
VARIANTS = 5  # four comparisons that share a baseline
POWERS = (0.5, 0.8)
TEXTBOOK = "textbook"
BOOTSTRAPS = ("crossed", "nested", "seeds only")
BOUNDS = (0.93, 0.97)  # of the coverage of a 95 % interval
POWER_OFF = 0.1  # by how much, as a difference, power may be off its theory
NUMBERS = 2**22  # that are held at once
SHARED = 25  # trials that share the draws of a bootstrap

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


@dataclass(frozen=True)
class Size:
    """How much is simulated.

    Attributes:
        trials: of each configuration.
        bootstrap_trials: of them, those that are bootstrapped as well, where that is done.
        replicates: of each bootstrap.
        populations: draws of many images, from which a truth of the confusion world is computed.
        seed: of all draws.
    """

    trials: int = 2000
    bootstrap_trials: int = 400
    replicates: int = 400
    populations: int = 200
    seed: int = 0


# ------------------------------------------------------------------------------------------------ judging


class Tally:
    """Means of what was seen in chunks of trials."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, seen: Any) -> None:
        """One truth value for every trial."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + float(np.sum(seen)), count + np.size(seen))

    def means(self) -> dict[str, float]:
        """By name, in the order in which they were first added."""
        return {name: total / count for name, (total, count) in self._sums.items()}


def _chunks(trials: int, *, numbers: int) -> Iterator[int]:
    """Numbers of trials that add up to all; one trial holds that many numbers."""
    step = max(1, NUMBERS // numbers)
    for first in range(0, trials, step):
        yield min(step, trials - first)


def _holm(p_TD: Array) -> Array:
    """`statistics.holm` of every trial."""
    order_TD = np.argsort(p_TD, axis=1)
    factor_D = np.arange(p_TD.shape[1], 0, -1)
    sorted_TD = np.maximum.accumulate(np.minimum(np.take_along_axis(p_TD, order_TD, axis=1) * factor_D, 1), axis=1)
    adjusted_TD = np.empty_like(p_TD)
    np.put_along_axis(adjusted_TD, order_TD, sorted_TD, axis=1)
    return adjusted_TD


def _judge(
    tally: Tally, plain_TDS: Array, without_TDSB: Array, truths: dict[str, Array], *, family: bool, of: str = ""
) -> None:
    """Count coverage of the first difference, and with `family` whether any got a verdict that the truth denies.

    Args:
        tally: counts.
        plain_TDS, without_TDSB: jackknifed differences.
        truths: (T, D) for each estimand.
        family: all true differences are judged as if they were 0: the truth is taken off first.
        of: what is told apart in the counts.
    """
    squares = statistics.mean_squares(plain_TDS, without_TDSB)
    for estimand, truth_TD in truths.items():
        off_TD = plain_TDS.mean(axis=-1) - truth_TD
        ways = {estimand: squares.error(estimand)}
        if estimand == NEW_IMAGES and family:
            ways[TEXTBOOK] = textbook_error(squares)
        for way, (squared_TD, df_TD) in ways.items():
            low_TD, high_TD = statistics.limits(off_TD, squared_TD, df_TD)
            tally.add(f"coverage {way}{of}", ((low_TD <= 0) & (high_TD >= 0))[:, 0])
            if family:
                adjusted_TD = _holm(statistics.p_value(off_TD, squared_TD, df_TD))
                tally.add(f"false {way}", (adjusted_TD < 1 - statistics.LEVEL).any(axis=1))


def textbook_error(squares: statistics.MeanSquares) -> tuple[Array, Array]:
    """As `MeanSquares.error` for new images, without its two deviations: what they are held against.

    (MS_seeds + MS_images - MS_residual) / (S B), and Satterthwaite's degrees of freedom; of the two components one that
    comes out below zero is zero, which leaves the other's mean square and degrees of freedom.
    """
    df_seeds, df_images = squares.count_seeds - 1, squares.count_blocks - 1
    sum_ = squares.seeds + squares.images - squares.residual
    parts = squares.seeds**2 / df_seeds + squares.images**2 / df_images
    mixed = sum_**2 / (parts + squares.residual**2 / (df_seeds * df_images))
    no_images = squares.images <= np.minimum(squares.residual, squares.seeds)
    no_seeds = squares.seeds <= np.minimum(squares.residual, squares.images)
    sum_ = np.where(no_images, squares.seeds, np.where(no_seeds, squares.images, sum_))
    df = np.where(no_images, df_seeds, np.where(no_seeds, df_images, np.maximum(mixed, 1.0)))
    return sum_ / (squares.count_seeds * squares.count_blocks), df


def _judge_power(tally: Tally, plain_TS: Array, without_TSB: Array, truths: dict[str, Array], gaps: Row) -> None:
    """Count how often a gap that is added to the differences is seen, its sign included."""
    squares = statistics.mean_squares(plain_TS, without_TSB)
    for estimand, truth_T in truths.items():
        off_T = plain_TS.mean(axis=-1) - truth_T
        squared_T, df_T = squares.error(estimand)
        for wanted, gap in gaps[estimand].items():
            seen_T = (statistics.p_value(off_T + gap, squared_T, df_T) < 1 - statistics.LEVEL) & (off_T + gap > 0)
            tally.add(f"power {estimand} {wanted}", seen_T)


def _weights(rng: np.random.Generator, kind: str, *, seeds: int, blocks: int, replicates: int) -> Array:
    """(R, S, B): how often every cell is drawn, in a bootstrap of that kind; see the top of the file."""
    seeds_RS = statistics.draws(rng, count=seeds, replicates=replicates)
    if kind == "nested":
        return rng.multinomial(blocks * seeds_RS.astype(np.int64), np.full(blocks, 1 / blocks)).astype(np.float64)
    if kind == "crossed":
        return seeds_RS[:, :, None] * statistics.draws(rng, count=blocks, replicates=replicates)[:, None]
    return np.repeat(seeds_RS[:, :, None], blocks, axis=2)


def _judge_bootstrap(tally: Tally, name: str, values_RT: Array, truths: dict[str, Array]) -> None:
    tails = ((1 - statistics.LEVEL) / 2, (1 + statistics.LEVEL) / 2)
    low_T, high_T = np.quantile(values_RT, tails, axis=0)
    for estimand, truth_T in truths.items():
        tally.add(f"{name} {estimand}", (low_T <= truth_T) & (high_T >= truth_T))


# ------------------------------------------------------------------------------------------------ linear world


def linear(
    size: Size, *, noise: str, shape: str, of: str, seeds: int, blocks: int, bootstrap: bool, stream: int
) -> Row:
    """One configuration of the linear world.

    Args:
        size: how much.
        noise: a name of NOISES.
        shape: a name of SHAPES.
        of: OF_RUNS: every run has noise of that shape, the baseline too, and four variants are compared with it, in one
            family. OF_DIFFERENCES: the difference itself has it, as if only the variant were noisy.
        seeds, blocks: S and B.
        bootstrap: bootstraps too.
        stream: a number of its own for its draws.
    """
    rng = np.random.default_rng([size.seed, stream])
    parts = NOISES[noise]
    variances = power.Noise(parts[0], blocks * parts[1], blocks * parts[2])
    gaps = {
        estimand: {
            wanted: power.smallest_gap(variances, seeds=seeds, blocks=blocks, estimand=estimand, wanted=wanted)
            for wanted in POWERS
        }
        for estimand in ESTIMANDS
    }
    runs = VARIANTS if of == OF_RUNS else 1
    share = 2 if of == OF_RUNS else 1  # a difference has the noise of two runs
    tally, left = Tally(), size.bootstrap_trials if bootstrap else 0
    for trials in _chunks(size.trials, numbers=runs * seeds * blocks):
        seed, image, both = (
            math.sqrt(variance / share) * SHAPES[shape](rng, (trials, runs, *end))
            for variance, end in (
                (variances.seed, (seeds, 1)),
                (variances.image, (1, blocks)),
                (variances.residual, (seeds, blocks)),
            )
        )
        cells, of_set = seed + image + both, image.mean(axis=(-2, -1))
        if of == OF_RUNS:
            cells, of_set = cells[:, 1:] - cells[:, :1], of_set[:, 1:] - of_set[:, :1]
        truths = {THIS_SET: of_set, NEW_IMAGES: np.zeros_like(of_set)}
        plain_TDS = cells.mean(axis=-1)
        without_TDSB = (blocks * plain_TDS[..., None] - cells) / (blocks - 1)
        _judge(tally, plain_TDS, without_TDSB, truths, family=of == OF_RUNS)
        first = {estimand: truth_TD[:, 0] for estimand, truth_TD in truths.items()}
        _judge_power(tally, plain_TDS[:, 0], without_TDSB[:, 0], first, gaps)
        for start in range(0, min(left, trials), SHARED):
            some = slice(start, min(start + SHARED, left, trials))
            flat_CT = cells[some, 0].reshape(-1, seeds * blocks).T / (seeds * blocks)
            for kind in BOOTSTRAPS:
                weights = _weights(rng, kind, seeds=seeds, blocks=blocks, replicates=size.replicates)
                values_RT = weights.reshape(size.replicates, -1) @ flat_CT
                _judge_bootstrap(tally, kind, values_RT, {key: truth_T[some] for key, truth_T in first.items()})
        left -= min(left, trials)
    return {
        "world": "linear",
        "noise": noise,
        "shape": shape,
        "of": of,
        "seeds": seeds,
        "blocks": blocks,
    } | tally.means()


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


MIOU = estimates.Figure("iou", "parts", lambda parts: parts, estimates.share)
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


def _whole(parts: Array) -> Array:
    """(..., F) of (..., B, 2, K)."""
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
        whole = _whole(draw_runs(rng, world, drawn, seeds=seeds, mirrored=True))[0].mean(axis=1)
        found.append(whole[1] - whole[0])
    return np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(sets)


def _set_truth(rng: np.random.Generator, world: World, images: Images, *, seeds: int) -> Array:
    """(T, F): the mean difference over endless seeds on these very images."""
    found = []
    step = max(1, NUMBERS // (2 * seeds * images.logits_TVB[0, :2].size * CLASSES))
    for first in range(0, len(images.pixels_TBK), step):
        some = slice(first, first + step)
        part = Images(images.pixels_TBK[some], images.logits_TVB[some, :2])
        whole = _whole(draw_runs(rng, world, part, seeds=seeds, mirrored=True)).mean(axis=2)
        found.append(whole[:, 1] - whole[:, 0])
    return np.concatenate(found)


def _first_seeds(parts: Array, seeds: int) -> tuple[Array, Array]:
    """(T, D, S, F) and (T, D, S, B, F): jackknifed differences to the first variant."""
    whole, without = estimates.jackknife(MIOU, parts[:, :, :seeds])
    return whole[:, 1:] - whole[:, :1], without[:, 1:] - without[:, :1]


def confusion(
    size: Size, *, noise: str, blocks: int, counts_of_seeds: Sequence[int], bootstrap: bool, stream: int
) -> list[Row]:
    """One noise of the confusion world: coverage of mIoU's difference, and of the rarest class's IoU.

    Fewer seeds are the first ones of the same runs. Other arguments as `linear`.
    """
    rng = np.random.default_rng([size.seed, stream])
    world = world_of(noise, blocks=blocks, effect=0.1)
    truth_F, error_F = population(rng, world, sets=size.populations, images=5_000, seeds=4)
    most = max(counts_of_seeds)
    tallies = {seeds: Tally() for seeds in counts_of_seeds}
    found: list[Array] = []
    left = size.bootstrap_trials if bootstrap else 0
    for trials in _chunks(size.trials, numbers=4 * most * blocks * CLASSES):
        images = draw_images(rng, world, trials=trials, variants=2, blocks=blocks)
        parts = draw_runs(rng, world, images, seeds=most, mirrored=False)
        of_set_TF = _set_truth(rng, world, images, seeds=64)
        whole_TDSF, without_TDSBF = _first_seeds(parts, most)
        squares = statistics.mean_squares(whole_TDSF[:, 0, :, 0], without_TDSBF[:, 0, :, :, 0])
        off_T = whole_TDSF[:, 0, :, 0].mean(axis=-1) - truth_F[0]
        found.append(np.stack([off_T, squares.seeds, squares.images, squares.residual]))
        for seeds, tally in tallies.items():
            for place, of in ((0, ""), (CLASSES, " rare class")):
                truths = {
                    THIS_SET: of_set_TF[:, None, place],
                    NEW_IMAGES: np.full((trials, 1), truth_F[place]),
                }
                plain, without = whole_TDSF[:, :, :seeds, place], without_TDSBF[:, :, :seeds, :, place]
                _judge(tally, plain, without, truths, family=False, of=of)
        some = min(left, trials)
        for start in range(0, some, SHARED):
            part = slice(start, min(start + SHARED, some))
            truths_T = {THIS_SET: of_set_TF[part, 0], NEW_IMAGES: np.full(part.stop - start, truth_F[0])}
            _bootstrap_iou(rng, tallies, parts[part], truths_T, replicates=size.replicates)
        left -= some
    means = np.concatenate(found, axis=1).mean(axis=1)
    average = statistics.MeanSquares(means[1], means[2], means[3], most, blocks).components()
    told = {
        "truth": float(truth_F[0]),
        "truth_error": float(error_F[0]),
        "bias": float(means[0]),
        "variances": [float(average[0]), float(average[1]) / blocks, float(average[2]) / blocks],
    }
    key = {"world": "confusion", "noise": noise, "blocks": blocks}
    return [key | {"seeds": seeds} | tally.means() | told for seeds, tally in tallies.items()]


def _bootstrap_iou(
    rng: np.random.Generator, tallies: dict[int, Tally], parts: Array, truths: dict[str, Array], *, replicates: int
) -> None:
    """The crossed bootstrap and that of seeds only, of mIoU, for every number of seeds."""
    blocks = parts.shape[3]
    weights_RB = statistics.draws(rng, count=blocks, replicates=replicates)
    sums = np.einsum("rb,tvsbpk->rtvspk", weights_RB, parts, optimize=True)
    miou_RTVS = estimates.share(sums).mean(axis=-1)
    plain_TVS = _whole(parts)[..., 0]
    for seeds, tally in tallies.items():
        drawn_RS = statistics.draws(rng, count=seeds, replicates=replicates) / seeds
        crossed_RTS = (miou_RTVS[:, :, 1] - miou_RTVS[:, :, 0])[..., :seeds]
        plain_TS = (plain_TVS[:, 1] - plain_TVS[:, 0])[:, :seeds]
        _judge_bootstrap(tally, "crossed", np.einsum("rts,rs->rt", crossed_RTS, drawn_RS), truths)
        _judge_bootstrap(tally, "seeds only", drawn_RS @ plain_TS.T, truths)


def alike(size: Size, *, noise: str, blocks: int, counts_of_seeds: Sequence[int], stream: int) -> list[Row]:
    """Five variants of the confusion world that are alike: how often any of four gets a verdict.

    On these very images they are alike only where images do not suit variants differently (no image noise); else only
    the verdict for new images is judged. Arguments as `confusion`.
    """
    rng = np.random.default_rng([size.seed, stream])
    world = world_of(noise, blocks=blocks, effect=0.0)
    most = max(counts_of_seeds)
    tallies = {seeds: Tally() for seeds in counts_of_seeds}
    for trials in _chunks(size.trials, numbers=2 * VARIANTS * most * blocks * CLASSES):
        images = draw_images(rng, world, trials=trials, variants=VARIANTS, blocks=blocks)
        parts = draw_runs(rng, world, images, seeds=most, mirrored=False)
        whole_TDSF, without_TDSBF = _first_seeds(parts, most)
        truth_TD = np.zeros((trials, VARIANTS - 1))
        truths = {NEW_IMAGES: truth_TD} | ({} if world.image else {THIS_SET: truth_TD})
        for seeds, tally in tallies.items():
            _judge(tally, whole_TDSF[:, :, :seeds, 0], without_TDSBF[:, :, :seeds, :, 0], truths, family=True)
    key = {"world": "alike", "noise": noise, "blocks": blocks}
    return [key | {"seeds": seeds} | tally.means() for seeds, tally in tallies.items()]


# ------------------------------------------------------------------------------------------------ everything


def plan(
    size: Size,
    *,
    counts_of_seeds: Sequence[int] = SEEDS,
    counts_of_blocks: Sequence[int] = BLOCKS,
    noises: Sequence[str] = tuple(NOISES),
    shapes: Sequence[str] = tuple(SHAPES),
) -> list[Callable[[], list[Row]]]:
    """What is to be simulated, one call after the other.

    Args:
        size: how much.
        counts_of_seeds, counts_of_blocks: S and B.
        noises: names of NOISES.
        shapes: names of SHAPES.
    """
    stream = itertools.count()
    calls: list[Callable[[], list[Row]]] = []
    for of, shape, noise in itertools.product((OF_RUNS, OF_DIFFERENCES), shapes, noises):
        if of == OF_DIFFERENCES and shape == "normal":
            continue  # a difference of normal noise is normal
        for seeds, blocks in itertools.product(counts_of_seeds, counts_of_blocks):
            arguments = {"noise": noise, "shape": shape, "of": of, "seeds": seeds, "blocks": blocks}
            calls.append(_linear_call(size, arguments, stream=next(stream)))
    for noise, blocks in itertools.product(noises, counts_of_blocks):
        arguments = {"noise": noise, "blocks": blocks, "counts_of_seeds": tuple(counts_of_seeds)}
        calls.append(_confusion_call(size, arguments, stream=next(stream)))
        if noise in ("seeds 1 : images 1", "no image noise"):
            calls.append(_alike_call(size, arguments, stream=next(stream)))
    return calls


def _linear_call(size: Size, arguments: Row, *, stream: int) -> Callable[[], list[Row]]:
    return lambda: [linear(size, **arguments, bootstrap=arguments["shape"] == "normal", stream=stream)]


def _confusion_call(size: Size, arguments: Row, *, stream: int) -> Callable[[], list[Row]]:
    return lambda: confusion(size, **arguments, bootstrap=True, stream=stream)


def _alike_call(size: Size, arguments: Row, *, stream: int) -> Callable[[], list[Row]]:
    return lambda: alike(size, **arguments, stream=stream)


def run(calls: Sequence[Callable[[], list[Row]]], size: Size, *, advance: Callable[[], None]) -> Row:
    """Simulate what was planned.

    Args:
        calls: of `plan`.
        size: the same as there.
        advance: called after each call.

    Returns:
        The content of the JSON report; the same seed gives the same numbers.
    """
    rows = []
    for call in calls:
        rows += call()
        advance()
    versions = {"scipy": importlib.metadata.version("scipy")}
    settings = {**vars(size), "noises": NOISES, "bounds": BOUNDS, "power_off": POWER_OFF}
    return {"environment": runtime.environment() | versions, "settings": settings, "rows": rows}


# ------------------------------------------------------------------------------------------------ report


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that are told together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["world"] != "linear":
            name = {"confusion": "mIoU of the confusion world", "alike": "alike, in the confusion world"}[row["world"]]
        elif row["shape"] == "normal":
            name = "normal"
        else:
            name = f"{row['shape']}, of {row['of']}"
        found.setdefault(name, []).append(row)
    return found


def seeds_of(result: Row) -> list[int]:
    """The numbers of seeds that were simulated."""
    return sorted({row["seeds"] for row in result["rows"]})


def headings(result: Row) -> tuple[str, ...]:
    """Of the tables of `tables`."""
    return ("noise", *(f"{seeds} seeds" for seeds in seeds_of(result)))


def _ranges(result: Row, key: str, *, rare: bool = False) -> list[tuple[str, ...]]:
    """Smallest and largest value of a key by group and number of seeds, in percent."""
    lines = []
    for name, rows in _groups(result["rows"]).items():
        for suffix, end in (("", ""), (", its rarest class", " rare class")):
            having = [row for row in rows if key + end in row]
            if not having or (end and not rare):
                continue
            cells = []
            for seeds in seeds_of(result):
                values = [100 * row[key + end] for row in having if row["seeds"] == seeds]
                cells.append(f"{min(values):.1f} - {max(values):.1f}" if values else "–")
            lines.append((name + suffix, *cells))
    return lines


def tables(result: Row) -> dict[str, list[tuple[str, ...]]]:
    """The rows of each summary by its title, under `headings`."""
    found = {}
    for estimand in ESTIMANDS:
        found[f"coverage of the 95 % interval, {estimand}, in percent"] = _ranges(
            result, f"coverage {estimand}", rare=True
        )
    for estimand in ESTIMANDS:
        found[f"any false verdict of four, {estimand}, in percent"] = _ranges(result, f"false {estimand}")
    for estimand, wanted in itertools.product(ESTIMANDS, POWERS):
        title = f"power where theory says {100 * wanted:.0f} %, {estimand}, in percent"
        found[title] = _ranges(result, f"power {estimand} {wanted}")
    found["for comparison: coverage of the textbook interval, new-images, in percent"] = _ranges(
        result, f"coverage {TEXTBOOK}"
    )
    found["for comparison: any false verdict of four by the textbook, new-images, in percent"] = _ranges(
        result, f"false {TEXTBOOK}"
    )
    for kind, estimand in itertools.product(BOOTSTRAPS, ESTIMANDS):
        title = f"for comparison: coverage of the bootstrap, {kind}, {estimand}, in percent"
        found[title] = _ranges(result, f"{kind} {estimand}")
    return found


@dataclass(frozen=True)
class Miss:
    """A figure outside its bounds.

    Attributes:
        group: as the tables tell it.
        row: whose figure it is.
        estimand: of statistics.ESTIMANDS.
        kind: what it is, in words.
        value: in [0, 1].
        off: by how much it is outside.
        beyond_chance: whether it is outside by more than two standard errors of the simulation.
    """

    group: str
    row: Row
    estimand: str
    kind: str
    value: float
    off: float
    beyond_chance: bool


def _outside(row: Row, estimand: str, settings: Row) -> Iterator[tuple[str, float, float, float]]:
    """What of a row is outside: in words, its value, by how much, and the share that was to be expected there."""
    low, high = settings["bounds"]
    coverage = row.get(f"coverage {estimand}", statistics.LEVEL)
    if not low <= coverage <= high:
        yield "coverage", coverage, max(low - coverage, coverage - high), statistics.LEVEL
    alpha = 1 - statistics.LEVEL
    false = row.get(f"false {estimand}", 0.0)
    if false > alpha:
        yield "false verdicts", false, false - alpha, alpha
    for wanted in POWERS:
        seen = row.get(f"power {estimand} {wanted}", wanted)
        if abs(seen - wanted) > settings["power_off"]:
            off = abs(seen - wanted) - settings["power_off"]
            yield f"power where theory says {100 * wanted:.0f} %", seen, off, wanted


def missed(result: Row) -> list[Miss]:
    """What is outside the bounds from three seeds on: coverage, false verdicts, power.

    The rarest class of the confusion world is not among them; it has a line of its own in the tables.
    """
    settings, found = result["settings"], []
    for group, rows in _groups(result["rows"]).items():
        for row, estimand in itertools.product(rows, ESTIMANDS):
            if row["seeds"] >= statistics.FEWEST_SEEDS:
                for kind, value, off, share in _outside(row, estimand, settings):
                    error = math.sqrt(share * (1 - share) / settings["trials"])
                    found.append(Miss(group, row, estimand, kind, value, off, off > 2 * error))
    return found


def _told(misses: Sequence[Miss]) -> list[str]:
    """Misses of a group, estimand and kind in a line."""
    alike: dict[tuple[str, str, str], list[Miss]] = {}
    for miss in misses:
        alike.setdefault((miss.group, miss.estimand, miss.kind), []).append(miss)
    lines = []
    for (group, estimand, kind), own in alike.items():
        values = [100 * miss.value for miss in own]
        worst = max(own, key=lambda miss: miss.off).row
        where = f"{worst['noise']}; {worst['seeds']} seeds, {worst['blocks']} images"
        span = f"{values[0]:.1f} %" if len(own) == 1 else f"{min(values):.1f} - {max(values):.1f} %"
        more = f"{len(own)} configurations; most in " if len(own) > 1 else ""
        lines.append(f"- {group}; {estimand}; {kind}: {span} ({more}{where})")
    return lines


def _count(result: Row) -> list[tuple[str, ...]]:
    """For every group how many configurations there are, and how many figures of them are outside."""
    misses = missed(result)
    lines = []
    for group, rows in _groups(result["rows"]).items():
        judged = sum(row["seeds"] >= statistics.FEWEST_SEEDS for row in rows)
        cells = []
        for kind in ("coverage", "false", "power"):
            own = [miss for miss in misses if miss.group == group and miss.kind.startswith(kind)]
            cells.append(f"{len(own)} ({sum(miss.beyond_chance for miss in own)})")
        lines.append((group, str(judged), *cells))
    return lines


def _detail(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        (row["noise"], str(row["blocks"]), str(row["seeds"]), *(f"{100 * row[key]:.1f}" for key in keys))
        for row in rows
    ]


def _table(titles: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    rule = "|:--" + "|--:" * (len(titles) - 1) + "|"
    return ["| " + " | ".join(titles) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]


def markdown(result: Row) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings, rows = result["settings"], result["rows"]
    low, high = (f"{100 * bound:.0f}" for bound in settings["bounds"])
    trials = settings["trials"]
    noises = (f"{name} ({' + '.join(f'{part:g}' for part in parts)})" for name, parts in settings["noises"].items())
    lines = [
        "# Calibration of intervals and verdicts",
        "",
        f"{trials} simulated ablations of each of {len(rows)} configurations, seed {settings['seed']}; a share near",
        f"95 % has a standard error of {100 * math.sqrt(0.0475 / trials):.1f} points. Bootstraps: "
        f"{settings['bootstrap_trials']} ablations, {settings['replicates']} replicates.",
        f"Machine: {machine}.",
        "",
        "A difference of seed s on image j is mu + a_s + b_j + e_sj. Noise is named by the parts of seeds, images and",
        "both together in the variance of a difference on all images with one seed:",
        f"{'; '.join(noises)}.",
        "",
        "- *normal*, and *of runs*: every run has noise of that shape, the baseline too; four variants share it.",
        "- *of differences*: the difference itself has noise of that shape, as if the variant alone were noisy.",
        f"- *confusion world*: hits and unions of images with Dirichlet mixtures of {CLASSES} classes, skill of runs,",
        "  difficulty of images, and both together on the logits. The rarest class is in one image of three.",
        "- *textbook*: MS_seeds + MS_images - MS_residual with Satterthwaite's degrees of freedom.",
        "- bootstraps, percentile: *crossed* draws seeds and images, each once; *nested* draws seeds, and images anew",
        "  for each drawn seed; *seeds only* leaves the images as they are.",
        "",
        "## What is outside its bounds, from three seeds on",
        "",
        f"Coverage outside {low} to {high} %, any false verdict of four in more than 5 %, power more than "
        f"{100 * settings['power_off']:.0f} points off its",
        "theory. In brackets, and below: by more than two standard errors.",
        "",
        *_table(("noise", "configurations", "coverage", "false verdicts", "power"), _count(result)),
    ]
    certain = [miss for miss in missed(result) if miss.beyond_chance]
    lines += ["", *_told(certain)] if certain else []
    for title, body in tables(result).items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *_table(headings(result), body)] if body else []
    keys = [f"coverage {estimand}" for estimand in ESTIMANDS]
    keys += [f"false {estimand}" for estimand in ESTIMANDS]
    keys += [f"power {estimand} {wanted}" for estimand in ESTIMANDS for wanted in POWERS]
    normal = [row for row in rows if row["world"] == "linear" and row["shape"] == "normal"]
    lines += ["", "## Normal noise, every configuration, in percent", ""]
    lines += _table(("noise", "images", "seeds", *keys), _detail(normal, keys))
    keys = [f"coverage {estimand}{of}" for of in ("", " rare class") for estimand in ESTIMANDS]
    confused = [row for row in rows if row["world"] == "confusion"]
    lines += ["", "## The confusion world, every configuration, in percent", ""]
    lines += _table(("noise", "images", "seeds", *keys), _detail(confused, keys))
    return "\n".join(lines) + "\n"
