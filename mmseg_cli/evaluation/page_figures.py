"""The figures of an evaluation page, each drawn for a light and for a dark page.

The same numbers give the same bytes on the same library versions.

Shapes: K = classes, N = classes that are drawn.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.text import shortened

NUMBERED = 25  # classes up to which the cells of the confusion matrix hold their number
NAMED = 80  # classes up to which its rows and columns are named
COLUMN = 40  # bars below each other; more are split into two columns
LONGEST = 26  # letters of a name
DPI = 160


@dataclass(frozen=True)
class Drawing:
    """One figure as two PNGs."""

    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Theme:
    """The colours of a page; the ramp leads from no pixels to all of them."""

    ink: str
    soft: str
    paper: str
    grid: str
    void: str
    ramp: tuple[str, str, str]
    first: str
    second: str


# Blue and vermillion (sky blue and orange on dark) of Okabe and Ito's palette, told apart by colour-blind readers too.
LIGHT = Theme(
    "#1c1f24", "#5b6169", "#ffffff", "#e1e4e8", "#eceef1", ("#ffffff", "#4a9cc9", "#08304d"), "#0072B2", "#D55E00"
)
DARK = Theme(
    "#e6e8eb", "#a0a7b0", "#17191d", "#33373d", "#26292f", ("#17191d", "#2f7fad", "#d9f1ff"), "#56B4E9", "#E69F00"
)


def _drawn(paint: Callable[[Theme], Any]) -> Drawing:
    """`paint` makes a figure in the colours that it is given; the reader's own matplotlib settings do not matter."""
    import matplotlib.style

    pictures = []
    for theme in (LIGHT, DARK):
        settings = {
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "axes.edgecolor": theme.soft,
            "axes.labelcolor": theme.soft,
            "axes.titlecolor": theme.ink,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.titlepad": 10,
            "axes.labelsize": 9,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": theme.grid,
            "text.color": theme.ink,
            "xtick.color": theme.soft,
            "ytick.color": theme.soft,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "ytick.labelcolor": theme.ink,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "text.parse_math": False,
        }
        with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
            # A letter that the font lacks is drawn as a box; the table below the figure has it.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            buffer = io.BytesIO()
            paint(theme).savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            pictures.append(buffer.getvalue())
    return Drawing(*pictures)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _name(text: str) -> str:
    return shortened(text, LONGEST)


# -------------------------------------------------------------------------------------------------- confusion matrix


def present(confusion_KK: NDArray[np.int64]) -> list[int]:
    """The classes that are in the truth or in the prediction."""
    return [int(k) for k in np.flatnonzero(confusion_KK.sum(0) + confusion_KK.sum(1))]


def row_shares(confusion_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row divided by its sum: the share of a class's true pixels by prediction. NaN where it has none."""
    true_K1 = confusion_KK.sum(1, keepdims=True)
    shape = np.full(confusion_KK.shape, np.nan)
    shares_KK: NDArray[np.float64] = np.divide(confusion_KK, true_K1, out=shape, where=true_K1 > 0)
    return shares_KK


def confusion(confusion_KK: NDArray[np.int64], space: LabelSpace) -> Drawing:
    """The confusion matrix as shares of the truth; classes that are nowhere are left out.

    Up to NUMBERED classes have their percentages, up to NAMED their names; more have their train ids.
    """
    return _drawn(lambda theme: _confusion(confusion_KK, space, theme))


def _confusion(confusion_KK: NDArray[np.int64], space: LabelSpace, theme: Theme) -> Any:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    drawn = present(confusion_KK)
    shares_NN = row_shares(confusion_KK)[np.ix_(drawn, drawn)]
    count = len(drawn)
    numbered, named = count <= NUMBERED, count <= NAMED
    side = max(3.0, count * 0.42) if numbered else 9.75
    figure = _figure(side + 2.6, side + 1.5)
    axes = figure.subplots()
    ramp = LinearSegmentedColormap.from_list("share", theme.ramp).with_extremes(bad=theme.void)
    # The square root shows confusions of a few percent beside hits of nearly all pixels.
    image = axes.imshow(np.ma.masked_invalid(shares_NN), cmap=ramp, norm=PowerNorm(0.5, vmin=0, vmax=1), aspect="equal")
    if named:
        labels = [_name(space.classes[k]) for k in drawn]
        size = 9 if numbered else 7
        axes.set_xticks(range(count), labels, rotation=90, fontsize=size, color=theme.ink)
        axes.set_yticks(range(count), labels, fontsize=size)
    else:
        shown = range(0, count, 10)
        axes.set_xticks(shown, [str(drawn[place]) for place in shown])
        axes.set_yticks(shown, [str(drawn[place]) for place in shown])
    axes.tick_params(length=0 if named else 3)
    if named:  # thin lines between the cells
        axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
        axes.grid(which="minor", color=theme.grid, linewidth=0.6 if numbered else 0.3)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(theme.grid)
    if numbered:
        for row, column in np.argwhere(np.nan_to_num(shares_NN) >= 0.005):
            share = shares_NN[row, column]
            ink = max(theme.ink, theme.paper, key=lambda ink: abs(_light(ink) - _light(image.to_rgba(share))))
            weight = "bold" if row == column else "normal"
            text = f"{100 * share:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8, fontweight=weight)
        for row in np.flatnonzero(np.isnan(shares_NN).all(1)):
            style = {"ha": "center", "va": "center", "color": theme.soft, "fontsize": 8, "fontstyle": "italic"}
            axes.text((count - 1) / 2, row, "not in the truth", **style)
    unit = "" if named else ", train id"
    axes.set_ylabel(f"truth{unit}", fontsize=10)
    axes.set_xlabel(f"prediction{unit}", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "20", "50", "100"])
    bar.set_label("% of the true pixels")
    bar.outline.set_visible(False)
    return figure


def _light(colour: Any) -> float:
    """How light a colour looks, in [0, 1]: the cube root of its luminance, as in CIE L*."""
    from matplotlib.colors import to_rgb

    red, green, blue = (float(value) ** 2.2 for value in to_rgb(colour))
    return math.cbrt(0.2126 * red + 0.7152 * green + 0.0722 * blue)


# --------------------------------------------------------------------------------------------------- bars by class


def classes(class_iou: Mapping[str, float | None], confusion_KK: NDArray[np.int64], space: LabelSpace) -> Drawing:
    """Bars of IoU by class, from the highest to the lowest, and the share of each class in the true pixels beside.

    A class without an IoU, which is neither in truth nor in prediction, is left out.
    """
    values_K = np.array([math.nan if (value := class_iou.get(name)) is None else value for name in space.classes])
    share_K = confusion_KK.sum(1) / max(1, int(confusion_KK.sum()))
    order = [int(k) for k in np.argsort(-values_K, kind="stable") if not math.isnan(values_K[k])]
    return _drawn(lambda theme: _classes(values_K, share_K, order, space, theme))


def _classes(
    values_K: NDArray[np.float64], share_K: NDArray[np.float64], order: list[int], space: LabelSpace, theme: Theme
) -> Any:
    columns = 1 if len(order) <= COLUMN else 2
    rows = max(1, math.ceil(len(order) / columns))
    line = 0.27 if columns == 1 else 0.2
    figure = _figure(10.5 if columns == 1 else 12.5, 0.9 + line * max(rows, 3))
    ratios = [3.4, 1.0] * columns
    panels = figure.subplots(1, 2 * columns, squeeze=False, gridspec_kw={"width_ratios": ratios})[0]
    positive = share_K[share_K > 0]
    low = 10.0 ** math.floor(math.log10(positive.min()) - 0.05) if len(positive) else 1e-4
    for column in range(columns):
        part = order[column * rows : (column + 1) * rows]
        bars, shares = panels[2 * column], panels[2 * column + 1]
        places = np.arange(len(part))
        fill = [tuple(value / 255 for value in space.colours[k]) for k in part]
        heights = [100 * values_K[k] for k in part]
        bars.barh(places, heights, height=0.72, color=fill, edgecolor=theme.ink, linewidth=0.8)
        for place, value in zip(places, heights, strict=True):
            bars.text(value + 1, place, f"{value:.1f}", va="center", fontsize=8)
        bars.set_yticks(places, [_name(space.classes[k]) for k in part], fontsize=9 if columns == 1 else 8)
        bars.set_xlim(0, 108)
        bars.set_xticks(range(0, 101, 20))
        bars.set_xlabel("IoU (%)")
        seen = np.array([share_K[k] > 0 for k in part], dtype=bool)
        percentages = np.array([100 * share_K[k] for k in part])
        shares.hlines(places[seen], 100 * low, percentages[seen], color=theme.grid, linewidth=1.5)
        shares.scatter(percentages[seen], places[seen], s=22, color=theme.first, zorder=3)
        shares.set_xscale("log")
        shares.set_xlim(100 * low, 130)
        shares.set_yticks(places, [])
        shares.set_xlabel("pixels (%, log)")
        shares.xaxis.set_major_formatter(
            lambda value, _: np.format_float_positional(value, 3, trim="-", fractional=False)
        )
        for axes in (bars, shares):
            axes.set_ylim(rows - 0.4, -0.6)
            axes.grid(axis="x", linewidth=0.8)
            axes.tick_params(which="both", length=0)
            axes.spines["left"].set_visible(axes is bars)
    return figure


# ------------------------------------------------------------------------------------------ boundaries, sizes, rows


def scale(
    *,
    boundary: Mapping[int, tuple[float | None, float | None]],
    sizes: Mapping[str, tuple[float | None, float | None]],
    rows: Sequence[tuple[float, float, float | None]],
) -> Drawing:
    """Three panels: boundary IoU and F1 over the distance, recall by object size, mIoU by band of rows.

    Args:
        boundary: by distance in pixels, (IoU, F1).
        sizes: by size, (recall of the pixels, share of the regions found).
        rows: (from, to, mIoU) of bands as shares of the height, from the top.
    """
    return _drawn(lambda theme: _scale(boundary, sizes, rows, theme))


def _percent(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else 100 * value for value in values], dtype=np.float64)


def _scale(
    boundary: Mapping[int, tuple[float | None, float | None]],
    sizes: Mapping[str, tuple[float | None, float | None]],
    rows: Sequence[tuple[float, float, float | None]],
    theme: Theme,
) -> Any:
    figure = _figure(12, 3.7)
    near, size, band = figure.subplots(1, 3)

    distances = sorted(boundary)
    for index, (label, colour, marker) in enumerate((("IoU", theme.first, "o"), ("F1", theme.second, "s"))):
        values = _percent([boundary[distance][index] for distance in distances])
        near.plot(distances, values, color=colour, marker=marker, markersize=6, linewidth=1.8, label=label)
    near.set_title("Boundaries")
    near.set_xticks(distances)
    near.set_xlabel("distance (px)")
    near.margins(x=0.1)

    for index, (label, colour) in enumerate((("pixels", theme.first), ("regions found", theme.second))):
        values = _percent([pair[index] for pair in sizes.values()])
        at = np.arange(len(sizes), dtype=np.float64) + 0.4 * index - 0.2
        size.bar(at, np.nan_to_num(values), width=0.36, color=colour, label=label)
        _on_top(size, at, values, theme)
    size.set_title("Recall by size of the true region")
    size.set_xticks(range(len(sizes)), list(sizes))
    size.tick_params(axis="x", labelcolor=theme.ink)

    for axes in (near, size):
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
        axes.set_ylabel("%")
        axes.grid(axis="y", linewidth=0.8)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", ncols=2, borderaxespad=0.1, handlelength=1.4)

    values = _percent([value for _, _, value in rows])
    places = np.arange(len(rows))
    band.barh(places, np.nan_to_num(values), height=0.72, color=theme.first)
    for place, value in zip(places, values, strict=True):
        known = not math.isnan(value)
        band.text(value + 1.5 if known else 1.5, place, f"{value:.1f}" if known else "–", va="center", fontsize=8.5)
    band.set_title("mIoU by rows of the image")
    band.set_yticks(places, [span(start, end) for start, end, _ in rows])
    band.set_ylabel("share of the height, top to bottom")
    band.set_xlabel("mIoU (%)")
    band.set_xlim(0, 112)
    band.set_xticks(range(0, 101, 20))
    band.set_ylim(max(1, len(rows)) - 0.4, -0.6)
    band.grid(axis="x", linewidth=0.8)
    for axes in (near, size, band):
        axes.tick_params(length=0)
    return figure


def _on_top(axes: Any, places: NDArray[np.float64], values: NDArray[np.float64], theme: Theme) -> None:
    for place, value in zip(places, values, strict=True):
        known = not math.isnan(value)
        text = f"{value:.0f}" if known else "–"
        axes.text(place, (value if known else 0) + 1.5, text, ha="center", fontsize=8.5, color=theme.ink)


def span(start: float, end: float) -> str:
    """A band of rows as shares of the height: `25–50 %`."""
    return f"{100 * start:.4g}–{100 * end:.4g} %"
