"""The simulated ablations of `mmseg bench calibration`: drawn, judged as measured ones are, and counted.

Every function below is a configuration, or several; its rows hold how often a 95 % interval held the truth, how often
variants that are alike got a verdict all the same, and how often a true gap was seen, next to the noncentral t that
`mmseg_cli.ablation.power` plans by.

For comparison the interval for new images by the textbook, and three bootstraps (percentile, 95 %) of the same data:

- crossed: S seeds and B blocks are drawn with replacement, each once, and every drawn seed sees the same drawn blocks;
- nested: S seeds are drawn, and for each drawn one B blocks of its own;
- seeds only: S seeds are drawn; the images stay.

numpy and scipy only. Shapes: T = trials, V = variants, S = seeds, B = blocks of one image, K = classes, R = replicates;
F = 1 + K: the mean over classes, then every class; D = V - 1: differences to the first variant, the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.ablation import estimates, power, statistics
from mmseg_cli.ablation.statistics import ESTIMANDS, NEW_IMAGES, THIS_SET
from mmseg_cli.bench import calibration_worlds as worlds
from mmseg_cli.bench.calibration_worlds import CLASSES, MIOU, OF_RUNS, VARIANTS

Array = NDArray[np.float64]
Row = dict[str, Any]

POWERS = (0.5, 0.8)
TEXTBOOK = "textbook"
BOOTSTRAPS = ("crossed", "nested", "seeds only")
SHARED = 25  # trials that share the draws of a bootstrap


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


def holm(p_TD: Array) -> Array:
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
                adjusted_TD = holm(statistics.p_value(off_TD, squared_TD, df_TD))
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


def price(noise: str, *, seeds: int, blocks: int, comparisons: int) -> float:
    """What fewer degrees of freedom than the textbook's cost: the gap for new images that is seen in 80 of 100
    ablations, over that by `textbook_error`.

    Args:
        noise: a name of NOISES, of normal noise.
        seeds, blocks: S and B.
        comparisons: in the family.
    """
    from scipy.special import nctdtrinc, stdtrit

    variances = worlds.noise_of(noise, blocks=blocks)
    ours = power.smallest_gap(variances, seeds=seeds, blocks=blocks, estimand=NEW_IMAGES, comparisons=comparisons)
    squared, df = textbook_error(variances.expected(np.array(float(seeds)), blocks=blocks))
    critical = stdtrit(df, 1 - (1 - statistics.LEVEL) / 2 / comparisons)
    return ours / float(nctdtrinc(df, 1 - power.POWER, critical) * np.sqrt(squared))


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
    variances = worlds.noise_of(noise, blocks=blocks)
    gaps = {
        estimand: {
            wanted: power.smallest_gap(variances, seeds=seeds, blocks=blocks, estimand=estimand, wanted=wanted)
            for wanted in POWERS
        }
        for estimand in ESTIMANDS
    }
    tally, left = Tally(), size.bootstrap_trials if bootstrap else 0
    runs = VARIANTS if of == OF_RUNS else 1
    for trials in worlds.chunks(size.trials, numbers=runs * seeds * blocks):
        cells, of_set = worlds.draw_differences(
            rng, variances, shape=shape, of=of, trials=trials, seeds=seeds, blocks=blocks
        )
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
    world = worlds.world_of(noise, blocks=blocks, effect=0.1)
    truth_F, error_F = worlds.population(rng, world, sets=size.populations, images=5_000, seeds=4)
    most = max(counts_of_seeds)
    tallies = {seeds: Tally() for seeds in counts_of_seeds}
    found: list[Array] = []
    left = size.bootstrap_trials if bootstrap else 0
    for trials in worlds.chunks(size.trials, numbers=4 * most * blocks * CLASSES):
        images = worlds.draw_images(rng, world, trials=trials, variants=2, blocks=blocks)
        parts = worlds.draw_runs(rng, world, images, seeds=most, mirrored=False)
        of_set_TF = worlds.set_truth(rng, world, images, seeds=64)
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
    plain_TVS = worlds.figures_of(parts)[..., 0]
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
    world = worlds.world_of(noise, blocks=blocks, effect=0.0)
    most = max(counts_of_seeds)
    tallies = {seeds: Tally() for seeds in counts_of_seeds}
    for trials in worlds.chunks(size.trials, numbers=2 * VARIANTS * most * blocks * CLASSES):
        images = worlds.draw_images(rng, world, trials=trials, variants=VARIANTS, blocks=blocks)
        parts = worlds.draw_runs(rng, world, images, seeds=most, mirrored=False)
        whole_TDSF, without_TDSBF = _first_seeds(parts, most)
        truth_TD = np.zeros((trials, VARIANTS - 1))
        truths = {NEW_IMAGES: truth_TD} | ({} if world.image else {THIS_SET: truth_TD})
        for seeds, tally in tallies.items():
            _judge(tally, whole_TDSF[:, :, :seeds, 0], without_TDSBF[:, :, :seeds, :, 0], truths, family=True)
    key = {"world": "alike", "noise": noise, "blocks": blocks}
    return [key | {"seeds": seeds} | tally.means() for seeds, tally in tallies.items()]
