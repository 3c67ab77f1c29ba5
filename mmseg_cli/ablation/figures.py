"""The charts of an ablation: mIoU against cost, differences by class and by place in the image, and the ladder.

The same evidence gives the same bytes on the same library versions. A variant has the same colour and the same marker
in every chart; both tell it apart, so colour-blind readers need no colour.

Shapes: X = places on an axis.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.ablation import statistics, tables
from mmseg_cli.ablation.grid import Evidence, Wanted
from mmseg_cli.ablation.rows import Judged, Row, judged
from mmseg_cli.ablation.statistics import NEW_IMAGES, Interval
from mmseg_cli.evaluation.page_figures import DPI, LIGHT
from mmseg_cli.evaluation.regions import SIZES
from mmseg_cli.names import LADDER
from mmseg_cli.text import shortened

WIDTH = 9.0  # inches; a README shows an inch as about 100 pixels
LONGEST = 30  # letters of a name
LINE = 140  # letters of a line below a title
TOGETHER = 4  # variants, with the baseline, that share a panel of classes; and lines that share a narrow panel
COLUMNS = 8  # panels of classes beside each other
SPANS = 10  # times the smallest cost, above which an axis of costs is logarithmic
CUT = 2  # times what most intervals take, above which the longest ones are cut, and marked so
FILLED = (statistics.BETTER, statistics.WORSE)  # verdicts that a marker is filled for
RUNGS = {(): "scratch", LADDER[:1]: "ImageNet", LADDER[1:2]: "Mapillary", LADDER[:2]: "ImageNet + Mapillary"}

# Okabe and Ito's palette without its yellow, then two of Tol's: told apart by colour-blind readers too. The baseline,
# which is always the first, is grey.
BASE = "#4d5259"
BAND = "#f3f4f6"  # behind every other line, and below the front
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """How a variant is drawn."""

    colour: str
    marker: str


def styles(variants: Sequence[str]) -> dict[str, Style]:
    """The style of every variant; the first is the baseline."""
    found = {}
    for place, variant in enumerate(variants):
        colour = COLOURS[(place - 1) % len(COLOURS)] if place else BASE
        found[variant] = Style(colour, MARKERS[place % len(MARKERS)])
    return found


def draw(evidence: Evidence, rows: Sequence[Row]) -> dict[str, bytes]:
    """The charts that this evidence has something for, as PNGs by file name.

    `pareto.png` always; `classes.png` and `anatomy.png` where there is a variant to compare with the baseline, the
    latter where boundaries, sizes or rows were counted; `ladder.png` where variants differ in what training started
    from and in nothing else.

    Args:
        evidence: of the whole grid.
        rows: of the main table, one a variant, in the order of the grid.
    """
    charts: dict[str, Callable[[], Any]] = {
        "pareto.png": lambda: _pareto(evidence, rows),
        "classes.png": lambda: _classes(evidence),
        "anatomy.png": lambda: _anatomy(evidence),
        "ladder.png": lambda: _ladder(evidence),
    }
    found = {}
    for name, paint in charts.items():
        with _style():
            figure = paint()
            if figure is not None:
                buffer = io.BytesIO()
                figure.canvas.print_png(buffer, metadata={"Software": None})  # savefig draws twice: the first lays out
                found[name] = buffer.getvalue()
    return found


# ------------------------------------------------------------------------------------------------ what all have


@contextmanager
def _style() -> Iterator[None]:
    """The house style, whatever the reader's own matplotlib settings are."""
    import matplotlib.style

    settings = {
        "figure.facecolor": LIGHT.paper,
        "axes.facecolor": LIGHT.paper,
        "axes.edgecolor": LIGHT.soft,
        "axes.labelcolor": LIGHT.soft,
        "axes.titlecolor": LIGHT.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.titlepad": 8,
        "axes.labelsize": 9,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": LIGHT.grid,
        "grid.linewidth": 0.8,
        "text.color": LIGHT.ink,
        "xtick.color": LIGHT.soft,
        "ytick.color": LIGHT.soft,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "text.parse_math": False,
    }
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as a box; the table has the name
        yield


def _figure(height: float, *, title: str, says: str) -> Any:
    """A figure with its title and, below it, what is to be seen; `height` in inches is without the two."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = math.ceil(len(says) / LINE)
    lines = textwrap.wrap(says, LINE if count == 1 else min(LINE, len(says) // count + 12))
    head = 0.56 + 0.17 * len(lines)
    whole = height + head
    below = ConstrainedLayoutEngine(rect=(0.005, 0, 0.99, 1 - head / whole))
    figure = Figure(figsize=(WIDTH, whole), dpi=DPI, layout=below)
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.12 / whole, title, va="top", fontsize=11.5, fontweight="bold")
    figure.text(0.012, 1 - 0.37 / whole, "\n".join(lines), va="top", fontsize=8.5, color=LIGHT.soft, linespacing=1.35)
    return figure


def _name(variant: str) -> str:
    return shortened(variant, LONGEST)


def _seeds(evidence: Evidence) -> str:
    count = len(evidence.seeds)
    return f"{count} seed{'s' if count > 1 else ''}"


def _bars(found: Sequence[Interval], evidence: Evidence) -> str:
    """What the bars are, or why there are none."""
    if any(one.low is not None for one in found):
        images = "new images" if evidence.estimand == NEW_IMAGES else "this set of images"
        return f"bars are 95 % intervals for {images}"
    reasons = [one.reason for one in found if one.estimate is not None and one.reason]
    return f"no intervals ({reasons[0]})" if reasons else "no intervals"


def _values(found: Sequence[Interval | None]) -> tuple[Array, Array, Array]:
    """(X) estimates, lower and upper limits; NaN where there is none."""

    def of(key: str) -> Array:
        values = [None if one is None else getattr(one, key) for one in found]
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)

    return of("estimate"), of("low"), of("high")


def _marker(style: Style, *, filled: bool, size: float = 6.5) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": style.marker,
        "markersize": size,
        "color": style.colour,
        "markerfacecolor": style.colour if filled else LIGHT.paper,
        "markeredgecolor": style.colour,
        "markeredgewidth": 1.1,
    }


def _keys(found: Mapping[str, Style], **more: Any) -> dict[str, Any]:
    """A legend's samples and names."""
    from matplotlib.lines import Line2D

    samples = [Line2D([], [], **{**_marker(style, filled=True, size=6), **more}) for style in found.values()]
    return {"handles": samples, "labels": [_name(name) for name in found], "handletextpad": 0.4}


def _beside(axes: Any, found: Mapping[str, Style], **more: Any) -> None:
    """A legend at the right of the last panel."""
    axes.legend(**_keys(found, **more), loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)


def _below(figure: Any, found: Mapping[str, Style]) -> None:
    """A legend in lines below all panels."""
    columns = max(1, min(len(found), 105 // (max(len(_name(name)) for name in found) + 5)))
    figure.legend(**_keys(found), loc="outside lower center", ncols=columns)


def _banded(axes: Any, count: int, *, across: bool) -> None:
    """A faint band behind every other of the places 0, 1, ... on one axis."""
    for place in range(0, count, 2):
        (axes.axhspan if across else axes.axvspan)(place - 0.5, place + 0.5, color=BAND, linewidth=0, zorder=0)


# ------------------------------------------------------------------------------------------------ mIoU against cost


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """The positions of what nothing beats that costs as little or less, from the cheapest on (Pareto)."""
    found: list[int] = []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -values[place])):
        if not found or values[place] > values[found[-1]]:
            found.append(place)
    return found


def _pareto(evidence: Evidence, rows: Sequence[Row]) -> Any:
    means = [row.mean for row in rows]
    says = (
        f"{evidence.preset}, {_seeds(evidence)}: markers are means, faint dots beside them the seeds;"
        f" {_bars(means, evidence)}. In the grey, something has a better mean and costs no more."
    )
    figure = _figure(max(3.2, 0.7 + 0.19 * len(rows)), title="mIoU against what it costs", says=says)
    panels = figure.subplots(1, 3, sharey=True)
    own = styles(evidence.variants)
    estimates, lows, highs = _values(means)
    seeds = [evidence.sample(row.variant, "iou").plain_S for row in rows]
    _between(panels[0].set_ylim, np.concatenate([estimates, lows, highs, *seeds]), least=0.0, most=100.0)
    costs = {
        "training step (ms": [1000 * row.cost.step.median for row in rows],
        "peak memory of a step (MiB": [row.cost.peak_bytes / 2**20 for row in rows],
        "parameters (millions": [row.cost.parameters / 1e6 for row in rows],
    }
    for axes, (label, values) in zip(panels, costs.items(), strict=True):
        wide = _cost_axis(axes, values)
        axes.set_xlabel(f"{label}{', log' if wide else ''})")
        _front(axes, values, estimates)
        beside = _moved(axes, points=6)
        for place, row in enumerate(rows):
            style, x = own[row.variant], values[place]
            dots = seeds[place]
            faint = {"s": 11, "color": style.colour, "alpha": 0.45, "edgecolors": "none", "zorder": 2}
            axes.scatter([x] * len(dots), dots, transform=beside, **faint)
            axes.vlines(x, lows[place], highs[place], color=style.colour, linewidth=1.3, zorder=3)
            axes.plot(x, estimates[place], **_marker(style, filled=True), zorder=4)
        axes.grid(True)
    panels[0].set_ylabel("mIoU (%)")
    ranked = sorted(range(len(rows)), key=lambda place: -np.nan_to_num(estimates[place], nan=-1))
    _beside(panels[-1], {rows[place].variant: own[rows[place].variant] for place in ranked})
    return figure


def _front(axes: Any, costs: Sequence[float], values: Array) -> None:
    """The best mean at each cost or less, as a thin line, and grey below it."""
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    best = [known[place] for place in front([costs[place] for place in known], values[known].tolist())]
    if not best:
        return
    x = [*(costs[place] for place in best), axes.get_xlim()[1]]
    y = [*values[best].tolist(), float(values[best[-1]])]
    axes.fill_between(x, y, axes.get_ylim()[0], step="post", color=BAND, linewidth=0, zorder=0)
    axes.plot(x, y, drawstyle="steps-post", color=LIGHT.soft, linewidth=0.9, zorder=1)


def _moved(axes: Any, *, points: float) -> Any:
    """The axes' own places, moved to the right."""
    from matplotlib.transforms import ScaledTranslation

    return axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def _cost_axis(axes: Any, values: Sequence[float]) -> bool:
    """Limits and ticks of an axis of costs; whether it is logarithmic."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    wide = max(values) > SPANS * min(values) > 0
    if wide:
        axes.set_xscale("log")
        margin = (max(values) / min(values)) ** 0.1
        axes.set_xlim(min(values) / margin, max(values) * margin**1.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 100 * min(values) else (1,)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        margin = 0.1 * ((max(values) - min(values)) or abs(max(values)) or 1)
        axes.set_xlim(min(values) - margin, max(values) + 1.3 * margin)  # room for the dots beside the last marker
    return wide


def _between(set_limits: Any, values: Array, *, least: float, most: float) -> None:
    """Limits around all values with a margin, but never where no value can be."""
    known = values[~np.isnan(values)]
    if len(known):
        low, high = float(known.min()), float(known.max())
        margin = 0.05 * (high - low) or 0.5
        set_limits(max(least, low - margin), min(most, high + margin))


# ------------------------------------------------------------------------------------------------ differences


def _limits(found: Sequence[Interval]) -> tuple[float, float]:
    """The limits of an axis of differences: 0 and every estimate are inside, and all but the very longest intervals."""
    estimates, lows, highs = (values[~np.isnan(values)] for values in _values(found))
    if not len(estimates):
        return -1.0, 1.0
    low, high = min(0.0, float(estimates.min())), max(0.0, float(estimates.max()))
    if len(lows):
        most_low, most_high = min(low, float(np.quantile(lows, 0.05))), max(high, float(np.quantile(highs, 0.95)))
        all_low, all_high = min(low, float(lows.min())), max(high, float(highs.max()))
        cut = all_high - all_low > CUT * (most_high - most_low)
        low, high = (most_low, most_high) if cut else (all_low, all_high)
    margin = 0.06 * (high - low) or 0.5
    return max(-100.0, low - margin), min(100.0, high + margin)


def _any_cut(found: Sequence[Interval], limits: tuple[float, float]) -> bool:
    return any(
        one.low is not None and one.high is not None and (one.low < limits[0] or one.high > limits[1]) for one in found
    )


def _point(axes: Any, at: float, found: Judged, style: Style, *, limits: tuple[float, float], across: bool) -> None:
    """Draw one difference: its marker, its interval, and an arrow where the axis ends before the interval.

    Args:
        at: the place on the other axis.
        limits: of the axis of differences.
        across: differences go from left to right, else from bottom to top.
    """
    one = found.interval
    if one.estimate is None:
        return
    if one.low is not None and one.high is not None:
        lines = axes.hlines if across else axes.vlines
        look = {"color": style.colour, "linewidth": 1.9 if found.verdict.word in FILLED else 1.1, "zorder": 2}
        lines(at, max(one.low, limits[0]), min(one.high, limits[1]), **look)
        ends = (
            ("<" if across else "v", limits[0], one.low < limits[0]),
            (">" if across else "^", limits[1], one.high > limits[1]),
        )
        for arrow, limit, beyond in ends:
            if beyond:
                place = (limit, at) if across else (at, limit)
                axes.plot(*place, marker=arrow, markersize=4, color=style.colour, clip_on=False, zorder=2)
    place = (one.estimate, at) if across else (at, one.estimate)
    axes.plot(*place, **_marker(style, filled=found.verdict.word in FILLED, size=5.5), zorder=3)


def _zero(axes: Any, *, across: bool) -> None:
    (axes.axvline if across else axes.axhline)(0, color=LIGHT.ink, linewidth=1, zorder=1)


def _differences_say(evidence: Evidence, found: Sequence[Interval], limits: tuple[float, float]) -> str:
    """What is to be seen in a chart of differences."""
    if len(evidence.seeds) < statistics.FEWEST_SEEDS:
        filled = f"all hollow: no verdict with fewer than {statistics.FEWEST_SEEDS} seeds"
    else:
        filled = "filled where p < 0.05 after Holm over the whole table, else hollow"
    cut = " An arrow: the interval goes on beyond the axis." if _any_cut(found, limits) else ""
    return f"{evidence.preset}, {_seeds(evidence)}: {_bars(found, evidence)}; {filled}.{cut}"


def _classes(evidence: Evidence) -> Any:
    compared = evidence.variants[1:]
    found = judged(evidence, [("iou", name) for name in evidence.classes])
    if not compared or not found:
        return None
    every = [one.interval for line in found.values() for one in line.values()]
    limits = _limits(every)
    names = [name for _, name in found if name is not None]
    together = len(evidence.variants) <= TOGETHER
    lines = 1 if together else math.ceil(len(compared) / COLUMNS)
    columns = 1 if together else math.ceil(len(compared) / lines)
    tall = (0.12 + 0.07 * len(compared) if together else 0.19) * max(len(names), 4)
    figure = _figure(
        0.8 + lines * (tall + (0.1 if together else 0.5)),
        title=f"IoU by class: difference to {_name(evidence.baseline)}",
        says=_differences_say(evidence, every, limits),
    )
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    own = styles(evidence.variants)
    for place, variant in enumerate(compared):
        axes = panels[0, 0] if together else panels.flat[place]
        shift = (place - (len(compared) - 1) / 2) * 0.72 / len(compared) if together else 0.0
        for row, differences in enumerate(found.values()):
            _point(axes, row + shift, differences[variant], own[variant], limits=limits, across=True)
        if not together:
            letters = int((WIDTH - 1.2) / columns / 0.085) - 1
            title = "\n".join(textwrap.wrap(_name(variant), max(6, letters)))
            axes.set_title(title, fontsize=8.5, color=own[variant].colour, fontweight="bold")
    for place, axes in enumerate(panels.flat):
        if place >= len(compared):
            axes.set_visible(False)
            continue
        _banded(axes, len(names), across=True)
        _zero(axes, across=True)
        axes.set_xlim(*limits)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        _ticks(axes.xaxis, 8 if together else 4)
        axes.tick_params(axis="y", labelcolor=LIGHT.ink)
        axes.tick_params(axis="x", labelbottom=True, labelsize=8.5 if columns < 6 else 8)
    panels[0, 0].set_yticks(range(len(names)), [_name(name) for name in names])
    unit = "difference of IoU (points of percent)"
    if together:
        panels[0, 0].set_xlabel(unit)
        _below(figure, {variant: own[variant] for variant in compared})
    else:
        figure.supxlabel(unit, fontsize=9, color=LIGHT.soft)
    return figure


def _ticks(axis: Any, count: int) -> None:
    """About so many ticks with their sign."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda value, _: "0" if value == 0 else f"{value:+g}".replace("-", "−"))


# ------------------------------------------------------------------------------------------------ anatomy


def _places(evidence: Evidence) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The panels: (title, axis, [(label, name of the figure)])."""
    names = evidence.figure_names
    distances = [name for name in names if name.startswith("boundary_iou_")]
    bands = [name for name in names if name.startswith("iou_rows_")]
    labels = [str(place + 1) for place in range(len(bands))]
    if len(bands) > 1:
        labels[0], labels[-1] = f"{labels[0]} (top)", f"{labels[-1]} (bottom)"
    panels = [
        (
            "boundary IoU",
            "distance from the boundary (px)",
            [(name.removeprefix("boundary_iou_").removesuffix("px"), name) for name in distances],
        ),
        (
            "recall by size",
            "true regions",
            [(size, f"recall_{size}") for size in SIZES if f"recall_{size}" in names],
        ),
        ("mIoU by rows", "band of rows, top to bottom", list(zip(labels, bands, strict=True))),
    ]
    return [panel for panel in panels if panel[2]]


def _anatomy(evidence: Evidence) -> Any:
    compared, places = evidence.variants[1:], _places(evidence)
    if not compared or not places:
        return None
    found = judged(evidence, [(name, None) for _, name in tables.anatomy(evidence)])
    every = [found[name, None][variant].interval for *_, own in places for _, name in own for variant in compared]
    limits = _limits(every)
    together = len(compared) <= TOGETHER
    says = _differences_say(evidence, every, limits)
    title = f"Where in the image: difference to {_name(evidence.baseline)}"
    own = styles(evidence.variants)
    if together:
        figure = _figure(3.2, title=title, says=says)
        panels = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    else:
        figure = _figure(2.1 * len(places) + 0.5, title=title, says=says)
        panels = figure.subplots(len(places), 1, sharey=True, squeeze=False)[:, 0]
    for axes, (heading, label, lines) in zip(panels, places, strict=True):
        at = np.arange(len(lines), dtype=np.float64)
        for place, variant in enumerate(compared):
            shifted = at + (place - (len(compared) - 1) / 2) * min(0.12, 0.76 / len(compared))
            points = [found[name, None][variant] for _, name in lines]
            estimates, *_ = _values([point.interval for point in points])
            axes.plot(shifted, estimates, color=own[variant].colour, linewidth=0.9, alpha=0.45, zorder=1.5)
            for x, point in zip(shifted, points, strict=True):
                _point(axes, x, point, own[variant], limits=limits, across=False)
        _banded(axes, len(lines), across=False)
        _zero(axes, across=False)
        axes.set_title(heading)
        axes.set_xlabel(label)
        axes.set_xticks(at, [text for text, _ in lines], color=LIGHT.ink)
        axes.set_xlim(-0.5, len(lines) - 0.5)
        axes.set_ylim(*limits)
        axes.grid(axis="y")
        _ticks(axes.yaxis, 8 if together else 6)
    figure.supylabel("difference (points of percent)", fontsize=9, color=LIGHT.soft)
    _below(figure, {variant: own[variant] for variant in compared})
    return figure


# ------------------------------------------------------------------------------------------------ the ladder


def ladders(wanted: Mapping[str, Wanted]) -> list[dict[str, str]]:
    """Variants that are the same but for what training starts from: for each of them, a variant by rung."""
    groups: dict[str, dict[str, str]] = {}
    for variant, want in wanted.items():
        rest = sorted((key, repr(value)) for key, value in want.changes.items() if key != "start")
        rung = RUNGS[tuple(stage for stage in LADDER[:-1] if stage in want.rungs)]
        groups.setdefault(repr((rest, want.match)), {}).setdefault(rung, variant)
    return [group for group in groups.values() if len(group) > 1]


def _ladder(evidence: Evidence) -> Any:
    groups = ladders(evidence.wanted)
    if not groups:
        return None
    rungs = [rung for rung in RUNGS.values() if any(rung in group for group in groups)]
    means = {variant: evidence.mean(variant, "iou") for group in groups for variant in group.values()}
    says = f"{evidence.preset}, {_seeds(evidence)}: mean over seeds; {_bars(list(means.values()), evidence)}."
    figure = _figure(3.3, title="mIoU by what training starts from", says=says)
    axes = figure.subplots()
    own = styles(evidence.variants)
    lines: dict[str, Style] = {}
    for place, group in enumerate(groups):
        style = own[next(iter(group.values()))]
        shift = (place - (len(groups) - 1) / 2) * min(0.08, 0.6 / len(groups))
        found = [means[group[rung]] if rung in group else None for rung in rungs]
        known = [number for number, one in enumerate(found) if one is not None]
        estimates, lows, highs = _values([found[number] for number in known])
        at = np.array(known, dtype=np.float64) + shift
        axes.vlines(at, lows, highs, color=style.colour, linewidth=1.3, zorder=2)
        axes.plot(at, estimates, **{**_marker(style, filled=True), "linestyle": "-", "linewidth": 1.2}, zorder=3)
        lines[_without_start(evidence.wanted[next(iter(group.values()))])] = style
    axes.set_xticks(range(len(rungs)), rungs, color=LIGHT.ink, fontsize=9)
    axes.set_xlim(-0.5, len(rungs) - 0.5)
    axes.set_ylabel("mIoU (%)")
    _between(axes.set_ylim, np.concatenate(_values(list(means.values()))), least=0.0, most=100.0)
    axes.grid(axis="y")
    _beside(axes, lines, linestyle="-")
    return figure


def _without_start(want: Wanted) -> str:
    """A line of the ladder in words: its block, and whatever else it changes."""
    block = [str(want.changes[key]) for key in ("block", "class") if key in want.changes]
    more = [f"{key} {value}" for key, value in want.changes.items() if key not in ("block", "class", "start")]
    return ", ".join(block + more)
