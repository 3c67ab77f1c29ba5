"""From what is counted in every image to the figures of a run, with and without each block of images.

A figure is a ratio of counts that are first added over images: `Figure.parts` keeps of an image's counts only what the
ratio needs (of a confusion matrix, hits and union of every class), `Figure.ratio` takes it. Between the two, counts can
be added over all images, over all but one block (the jackknife), or with weights (the bootstrap).

The classes that make up a mean are those that the labels have, so they are the same in every run that is compared. The
benchmark's own rule also counts, as 0, a class that labels lack and a run predicts somewhere: one stray pixel of it in
one of two runs would be a difference of whole points. They stay the same in every replicate, too: where leaving out a
block makes a class 0/0, it keeps its value of the whole set, so that a class which is in a single block neither leaves
the mean nor moves it.

numpy only. Shapes: N = images, B = blocks, K = classes, P = parts of a ratio, R = replicates; F = 1 + K: the mean over
classes, then every class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.ablation.statistics import Sample, crossed_bootstrap
from mmseg_cli.evaluation.boundary import BOUNDARY
from mmseg_cli.evaluation.evidence import Counts
from mmseg_cli.evaluation.regions import REGION, SIZES

RULES = ("image", "prefix")
CHUNK = 2**23  # numbers that are held dense at once

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


# ------------------------------------------------------------------------------------------------ figures


@dataclass(frozen=True)
class Figure:
    """How a figure is computed.

    Attributes:
        name: as `Run.figures` has it.
        kind: of the counts it is computed from.
        parts: (..., *shape) -> (..., P, K); the parts of a sum are the sums of the parts.
        ratio: (..., P, K) -> (..., K); NaN where a class is not defined.
        labels: (..., *shape) -> (..., K): how much the labels have of every class.
    """

    name: str
    kind: str
    parts: Callable[[Ints], Ints]
    ratio: Callable[[Floats], Floats]
    labels: Callable[[Ints], Ints]


def share(parts: Floats) -> Floats:
    """(..., 2, K) -> (..., K): the first part over the second, NaN where that is 0."""
    part, whole = parts[..., 0, :], parts[..., 1, :]
    found: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found


def _hits_and_union(matrices: Ints) -> Ints:
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    return np.stack([hits, matrices.sum(axis=-1) + matrices.sum(axis=-2) - hits], axis=-2)


def _hits_and_pixels(matrices: Ints) -> Ints:
    hits = np.trace(matrices, axis1=-2, axis2=-1)
    return np.stack([hits, matrices.sum(axis=(-2, -1))], axis=-1)[..., None]


def _labelled(matrices: Ints) -> Ints:
    found: Ints = matrices.sum(axis=-1)
    return found


def _band(matrices: Ints, *, band: int) -> Ints:
    return _hits_and_union(matrices[..., band, :, :])


def _labelled_in_band(matrices: Ints, *, band: int) -> Ints:
    return _labelled(matrices[..., band, :, :])


def _row(counts: Ints, *, first: int, row: int) -> Ints:
    """One row of counts (..., first, row, K)."""
    return counts[..., first, row, :]


def _rows(counts: Ints, *, first: int, rows: tuple[int, ...]) -> Ints:
    """Some rows of counts (..., first, row, K)."""
    return counts[..., first, rows, :]


def _f1(parts: Floats) -> Floats:
    """As `boundary.boundary_f1`: 0 for a contour in one of truth and prediction, NaN for one in neither."""
    found, predicted, hit, true = np.moveaxis(parts, -2, 0)
    precision = np.divide(found, predicted, out=np.zeros(found.shape), where=predicted > 0)
    recall = np.divide(hit, true, out=np.zeros(hit.shape), where=true > 0)
    both = precision + recall
    f1: Floats = np.divide(2 * precision * recall, both, out=np.zeros(both.shape), where=both > 0)
    f1[(predicted == 0) & (true == 0)] = np.nan
    return f1


def iou(name: str, kind: str) -> Figure:
    """IoU, of counts that are confusion matrices."""
    return Figure(name, kind, _hits_and_union, share, _labelled)


def pixel_accuracy(name: str, kind: str) -> Figure:
    """The share of right pixels: K = 1, so its mean is itself."""
    return Figure(name, kind, _hits_and_pixels, share, lambda matrices: _hits_and_pixels(matrices)[..., 1, :])


def figures_of(shapes: Mapping[str, tuple[int, ...]], *, distances: Sequence[int]) -> list[Figure]:
    """All figures of the kinds that were counted; kinds that have none are left out.

    Args:
        shapes: of one image's counts, by kind.
        distances: in pixels, of `boundaries`.

    Raises:
        ValueError: there are more or fewer distances than were counted.
    """
    found: list[Figure] = []
    if "confusion" in shapes:
        found += [iou("iou", "confusion"), pixel_accuracy("pixel_accuracy", "confusion")]
    if "augmented" in shapes:
        found.append(iou("iou_augmented", "augmented"))
    found += [iou(kind, kind) for kind in shapes if kind.startswith(("knocked_out_", "head_"))]
    if "boundaries" in shapes:
        if len(distances) != shapes["boundaries"][0]:
            raise ValueError(f"{len(distances)} distances, but {shapes['boundaries'][0]} were counted")
        of_iou = tuple(BOUNDARY.index(part) for part in ("intersection", "union"))
        of_f1 = tuple(BOUNDARY.index(part) for part in ("found", "predicted", "hit", "true"))
        for first, pixels in enumerate(distances):
            labels = partial(_row, first=first, row=BOUNDARY.index("true"))
            parts = partial(_rows, first=first, rows=of_iou)
            found.append(Figure(f"boundary_iou_{pixels}px", "boundaries", parts, share, labels))
            parts = partial(_rows, first=first, rows=of_f1)
            found.append(Figure(f"boundary_f1_{pixels}px", "boundaries", parts, _f1, labels))
    if "sizes" in shapes:
        for name, part, whole in (("recall", "hits", "pixels"), ("found", "found", "regions")):
            rows = REGION.index(part), REGION.index(whole)
            for first, size in enumerate(SIZES):
                parts, labels = partial(_rows, first=first, rows=rows), partial(_row, first=first, row=rows[1])
                found.append(Figure(f"{name}_{size}", "sizes", parts, share, labels))
    if "rows" in shapes:
        for band in range(shapes["rows"][0]):
            parts, labels = partial(_band, band=band), partial(_labelled_in_band, band=band)
            found.append(Figure(f"iou_rows_{band}", "rows", parts, share, labels))
    return found


# ------------------------------------------------------------------------------------------------ blocks


def blocks_of(names: Sequence[str], rule: str) -> Ints:
    """(N): which block every image is of, numbered from 0 in order of first appearance.

    Args:
        names: of the images, without their folder.
        rule: `image`: each is a block of its own. `prefix`: what stands before the first underscore, which is the city
            in Cityscapes and the sequence in CamVid; images of one drive look alike and are no independent draws.

    Raises:
        ValueError: the rule is neither.
    """
    if rule not in RULES:
        raise ValueError(f"{rule} is none of {', '.join(RULES)}")
    if rule == "image":
        return np.arange(len(names), dtype=np.int64)
    prefixes = [name.partition("_")[0] for name in names]
    numbers = {prefix: number for number, prefix in enumerate(dict.fromkeys(prefixes))}
    return np.array([numbers[prefix] for prefix in prefixes], dtype=np.int64)


def _chunks(counts: Counts) -> Iterator[Ints]:
    """Dense counts of some images after the other: all at once may be too many for the memory."""
    step = max(1, CHUNK // math.prod(counts.shape))
    for first in range(0, len(counts), step):
        starts = counts.starts[first : first + step + 1]
        part = slice(int(starts[0]), int(starts[-1]))
        yield Counts(counts.shape, starts - starts[0], counts.cells[part], counts.values[part]).dense()


def _by_block(parts_NPK: Ints, blocks_N: Ints) -> Ints:
    """(B, P, K): the sums over the images of every block."""
    order = np.argsort(blocks_N, kind="stable")
    starts = np.flatnonzero(np.diff(blocks_N[order], prepend=-1))
    sums: Ints = np.add.reduceat(parts_NPK[order], starts, axis=0)
    return sums


# ------------------------------------------------------------------------------------------------ a run


@dataclass(frozen=True)
class Estimate:
    """One figure of one run.

    Attributes:
        figure: how it is computed.
        sums_BPK: the parts of every block.
        labels_K: how much the labels have of every class.
        whole_F: on all images; NaN for a class that the labels do not have, and for the mean where they have none.
        without_BF: without the images of one block; NaN just where the whole is.
    """

    figure: Figure
    sums_BPK: Ints
    labels_K: Ints
    whole_F: Floats
    without_BF: Floats

    @property
    def official_F(self) -> Floats:
        """On all images, by the benchmark's rule: a class that is predicted alone counts, as 0. NaN as in `whole_F`."""
        whole_K = self.figure.ratio(self.sums_BPK.sum(axis=0).astype(np.float64))
        return _with_mean(whole_K, whole_K)

    def reweighted(self, weights_RB: Floats) -> Floats:
        """(R, F): with every block counted as often as its weight says; the classes are those of the whole set."""
        sums_RX = weights_RB @ self.sums_BPK.reshape(len(self.sums_BPK), -1).astype(np.float64)
        return _with_mean(self.figure.ratio(sums_RX.reshape(-1, *self.sums_BPK.shape[1:])), self.whole_F[1:])


def _with_mean(values_XK: Floats, whole_XK: Floats) -> Floats:
    """(..., F): the mean over the classes that the whole set defines, then the classes; 0/0 keeps the whole's value."""
    values_XK = np.where(np.isnan(values_XK) | np.isnan(whole_XK), whole_XK, values_XK)
    defined_XK = ~np.isnan(values_XK)
    count_X1 = defined_XK.sum(axis=-1, keepdims=True)
    sum_X1 = values_XK.sum(axis=-1, keepdims=True, where=defined_XK)
    mean_X1 = np.divide(sum_X1, count_X1, out=np.full(sum_X1.shape, np.nan), where=count_X1 > 0)
    return np.concatenate([mean_X1, values_XK], axis=-1)


def jackknife(figure: Figure, sums_XBPK: Ints | Floats, *, labels_K: Ints | None = None) -> tuple[Floats, Floats]:
    """A figure and its delete-one-block jackknife (Miller 1974), f(total - counts of block j), of any number of runs.

    Args:
        figure: how it is computed.
        sums_XBPK: the parts of every block.
        labels_K: how much the labels have of every class; None where they have all that is defined.

    Returns:
        (X, F) on all images, and (X, B, F) without one block.
    """
    total_X1PK = sums_XBPK.sum(axis=-3, keepdims=True)
    whole_X1K = figure.ratio(total_X1PK.astype(np.float64))
    if labels_K is not None:
        whole_X1K = np.where(labels_K > 0, whole_X1K, np.nan)
    without_XBK = figure.ratio((total_X1PK - sums_XBPK).astype(np.float64))
    return _with_mean(whole_X1K, whole_X1K)[..., 0, :], _with_mean(without_XBK, whole_X1K)


def estimate(figure: Figure, parts_NPK: Ints, labels_K: Ints, blocks_N: Ints) -> Estimate:
    """A figure of one run, with its jackknife.

    Args:
        figure: how it is computed.
        parts_NPK: `figure.parts` of every image.
        labels_K: `figure.labels` of all of them.
        blocks_N: the block of every image, from 0 without a gap.

    Raises:
        ValueError: there are not as many block numbers as images, or a number between them is left out.
    """
    if len(blocks_N) != len(parts_NPK) or not np.array_equal(np.unique(blocks_N), np.arange(blocks_N.max() + 1)):
        raise ValueError(f"{len(parts_NPK)} images do not have block numbers from 0 without a gap")
    sums_BPK = _by_block(parts_NPK, blocks_N)
    return Estimate(figure, sums_BPK, labels_K, *jackknife(figure, sums_BPK, labels_K=labels_K))


@dataclass(frozen=True)
class Run:
    """All figures of one run.

    Attributes:
        classes: K names.
        figures: by `Figure.name`.
    """

    classes: list[str]
    figures: dict[str, Estimate]

    @property
    def labels(self) -> list[int]:
        """How many pixels the labels have of every class."""
        return [int(count) for count in self.figures["iou"].labels_K]

    def place(self, class_: str | None) -> int:
        """Where in F the mean of a figure (None) or one class of it stands."""
        return 0 if class_ is None else 1 + self.classes.index(class_)


def of_run(counts: Mapping[str, Counts], figures: Sequence[Figure], *, classes: list[str], blocks_N: Ints) -> Run:
    """Compute figures of a run with their jackknife.

    Args:
        counts: of every image, by kind.
        figures: what to compute; see `figures_of`.
        classes: K names.
        blocks_N: the block of every image; see `blocks_of`.

    Raises:
        ValueError: as `estimate`.
    """
    found = {}
    for kind in dict.fromkeys(figure.kind for figure in figures):
        own = [figure for figure in figures if figure.kind == kind]
        parts: list[list[Ints]] = [[] for _ in own]
        labels: list[list[Ints]] = [[] for _ in own]
        for dense in _chunks(counts[kind]):
            for place, figure in enumerate(own):
                parts[place].append(figure.parts(dense))
                labels[place].append(figure.labels(dense).sum(axis=0))
        for figure, parts_, labels_ in zip(own, parts, labels, strict=True):
            found[figure.name] = estimate(figure, np.concatenate(parts_), np.sum(labels_, axis=0), blocks_N)
    return Run(classes, {figure.name: found[figure.name] for figure in figures})


def sample(runs: Sequence[Run], name: str, *, class_: str | None = None, scale: float = 1.0) -> Sample:
    """One figure of the runs of all seeds of a variant.

    Args:
        runs: one for each seed, in the order of the seeds.
        name: of the figure.
        class_: its name; None for the mean over classes.
        scale: what values are multiplied by; 100 for percent.
    """
    found = [(run.figures[name], run.place(class_)) for run in runs]
    return Sample(
        scale * np.array([one.whole_F[place] for one, place in found]),
        scale * np.stack([one.without_BF[:, place] for one, place in found]),
    )


def bootstrap(
    variant: Sequence[Run],
    baseline: Sequence[Run],
    name: str,
    *,
    class_: str | None = None,
    scale: float = 1.0,
    replicates: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """`statistics.crossed_bootstrap` of the difference variant - baseline of a figure; other arguments as `sample`."""

    def of_runs(runs: Sequence[Run], weights_RB: Floats) -> Floats:
        columns = [run.figures[name].reweighted(weights_RB)[:, run.place(class_)] for run in runs]
        return scale * np.stack(columns, axis=1)

    def values(weights_RB: Floats) -> Floats:
        return of_runs(variant, weights_RB) - of_runs(baseline, weights_RB)

    blocks = len(variant[0].figures[name].sums_BPK)
    return crossed_bootstrap(values, seeds=len(variant), blocks=blocks, replicates=replicates, seed=seed)
