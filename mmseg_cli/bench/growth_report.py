"""The result of `mmseg bench growth`, read: exponents, the curve of the two blocks, the figure and the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_cli.ablation.costs import versus
from mmseg_cli.bench import on_paper
from mmseg_cli.bench.growth import FIRST, SECOND

Row = dict[str, Any]

PAPER_TIME, PAPER_MEMORY = 1.30, 1.10  # of MMBConv against MBConv (arXiv 2402.04618)


@dataclass(frozen=True)
class Power:
    """A fit of y = c x^exponent, by least squares of the logarithms.

    Attributes:
        exponent: with its standard error, which is None of two points.
        worst: the largest factor by which a point is off the fit.
    """

    exponent: float
    error: float | None
    worst: float


def power(x: Sequence[float], y: Sequence[float]) -> Power:
    """Fit at least two points."""
    log_x, log_y = np.log(x), np.log(y)
    slope, start = np.polyfit(log_x, log_y, 1)
    off = log_y - (slope * log_x + start)
    error = None
    if len(log_x) > 2:
        error = float(np.sqrt(np.square(off).sum() / (len(off) - 2) / np.square(log_x - log_x.mean()).sum()))
    return Power(float(slope), error, float(np.exp(np.abs(off).max())))


def _fitted(fit: Power) -> str:
    return f"{fit.exponent:.2f}" + ("" if fit.error is None else f" ± {fit.error:.2f}")


def _values(rows: Row) -> list[int]:
    return [int(key) for key in rows]


def _seconds(rows: Row) -> list[float]:
    return [statistics.median(row["seconds"]) for row in rows.values()]


EXPONENTS = ("turned", "from - to", "time", "peak memory", "multiply-accumulates", "time, worst point off by")


def exponents(result: Row) -> list[tuple[str, ...]]:
    """One row for each thing that was turned, under EXPONENTS."""
    found: list[tuple[str, ...]] = []
    for name, rows in result["axes"].items():
        values, times = _values(rows), power(_values(rows), _seconds(rows))
        found.append(
            (
                name,
                f"{values[0]} - {values[-1]}",
                _fitted(times),
                _fitted(power(values, [row["peak_bytes"] for row in rows.values()])),
                _fitted(power(values, [row["macs"] for row in rows.values()])),
                f"{times.worst:.2f}x",
            )
        )
    data = result["data"]
    times = power(_values(data), _seconds(data))
    found.append(
        ("images of the dataset", _ends(data), f"{_fitted(times)} of a batch", "-", "-", f"{times.worst:.2f}x")
    )
    prepared = power(_values(data), [row["prepare_seconds"] for row in data.values()])
    found.append(("", _ends(data), f"{_fitted(prepared)} of preparing", "-", "-", f"{prepared.worst:.2f}x"))
    processes = result["processes"]
    if len(processes) > 1:
        times = power(_values(processes), _seconds(processes))
        row = (_ends(processes), f"{_fitted(times)} (-1 is ideal)", "-", "-", f"{times.worst:.2f}x")
        found.append(("processes, one thread each", *row))
    return found


def _ends(rows: Row) -> str:
    values = _values(rows)
    return f"{values[0]} - {values[-1]}"


CURVE = ("width", "time ratio", "95 %", "roofline", "MACs ratio", "memory ratio", f"{FIRST} ms", f"{SECOND} ms")


def _pairs(result: Row) -> list[tuple[int, Row, Row]]:
    """(width, the first block's row, the second's)."""
    by_width: dict[int, dict[str, Row]] = {}
    for row in result["curve"]:
        by_width.setdefault(row["width"], {})[row["block"]] = row
    return [(width, both[FIRST], both[SECOND]) for width, both in sorted(by_width.items())]


def curve(result: Row) -> list[tuple[str, ...]]:
    """What the second block costs more than the first, by width, under CURVE."""
    found: list[tuple[str, ...]] = []
    for width, first, second in _pairs(result):
        timing = versus(second["seconds"], first["seconds"])
        found.append(
            (
                str(width),
                f"{timing.ratio:.2f}",
                "-" if timing.low is None else f"{timing.low:.2f} - {timing.high:.2f}",
                f"{second['roofline_seconds'] / first['roofline_seconds']:.2f}",
                f"{second['macs'] / first['macs']:.2f}",
                f"{second['peak_bytes'] / first['peak_bytes']:.2f}",
                f"{1e3 * statistics.median(first['seconds']):.1f}",
                f"{1e3 * statistics.median(second['seconds']):.1f}",
            )
        )
    return found


def where_the_paper_holds(result: Row) -> str:
    """A sentence: the widths at which the paper's figures are within what was measured."""
    time, memory = [], []
    for width, first, second in _pairs(result):
        timing = versus(second["seconds"], first["seconds"])
        if timing.low is not None and timing.high is not None and timing.low <= PAPER_TIME <= timing.high:
            time.append(str(width))
        if abs(second["peak_bytes"] / first["peak_bytes"] - PAPER_MEMORY) < 0.05:
            memory.append(str(width))
    where = f"lies in the interval at width {', '.join(time) or 'none of these'}"
    if all(len(first["seconds"]) == 1 for _, first, _ in _pairs(result)):
        where = "cannot be judged, as one round has no interval"
    return (
        f"The paper reports +30 % time and +10 % memory. Here +30 % time {where}, and memory is within 5 points of"
        f" +10 % at width {', '.join(memory) or 'none of these'}."
    )


def figure(result: Row, path: Path) -> None:
    """Draw what was measured, with the fits, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, grid = pyplot.subplots(2, 3, figsize=(12, 7), layout="constrained")
    panels = list(grid.flat)
    for axes, (name, rows) in zip(panels, result["axes"].items(), strict=False):
        values = np.array(_values(rows), dtype=np.float64)
        for what, unit, numbers in (
            ("time", "ms", [1e3 * value for value in _seconds(rows)]),
            ("peak memory", "MB", [row["peak_bytes"] / 1e6 for row in rows.values()]),
        ):
            fit = power(values.tolist(), numbers)
            (line,) = axes.loglog(values, numbers, "o", label=f"{what} ({unit}): exponent {fit.exponent:.2f}")
            scale = np.exp(np.mean(np.log(numbers) - fit.exponent * np.log(values)))
            axes.loglog(values, scale * values**fit.exponent, "-", color=line.get_color(), linewidth=1)
        axes.set_xlabel(name)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    pairs = _pairs(result)
    widths = [width for width, _, _ in pairs]
    axes = panels[4]
    timings = [versus(second["seconds"], first["seconds"]) for _, first, second in pairs]
    axes.plot(widths, [timing.ratio for timing in timings], "o-", label="time, measured")
    ideal = [second["roofline_seconds"] / first["roofline_seconds"] for _, first, second in pairs]
    axes.plot(widths, ideal, "--", label="time, roofline")
    memory = [second["peak_bytes"] / first["peak_bytes"] for _, first, second in pairs]
    axes.plot(widths, memory, "s-", label="peak memory, measured")
    axes.axhline(PAPER_TIME, color="grey", linewidth=1, linestyle=":")
    axes.axhline(PAPER_MEMORY, color="grey", linewidth=1, linestyle=":")
    axes.set_xlabel("width")
    axes.set_ylabel(f"{SECOND} / {FIRST}")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, title="dotted: the paper's", title_fontsize=8)
    axes.grid(alpha=0.3)
    axes = panels[5]
    data = result["data"]
    axes.loglog(_values(data), [1e3 * value for value in _seconds(data)], "o-", label="a batch of crops (ms)")
    axes.loglog(
        _values(data), [1e3 * row["open_seconds"] for row in data.values()], "s-", label="opening the store (ms)"
    )
    axes.loglog(_values(data), [row["prepare_seconds"] for row in data.values()], "^-", label="preparing (s)")
    axes.set_xlabel("images of the dataset")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(picture)


def tables(result: Row) -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Headings and rows by the tables' titles."""
    return {
        "Exponents": (EXPONENTS, exponents(result)),
        f"{SECOND} against {FIRST}, training": (CURVE, curve(result)),
        f"On paper: {result['on_paper']['preset']} on many GPUs": (
            on_paper.HEADINGS,
            on_paper.rows(result["on_paper"]),
        ),
    }


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"## {title}",
        "",
        "| " + " | ".join(headings) + " |",
        "|:--" + "|--:" * (len(headings) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def markdown(result: Row) -> str:
    """The report as markdown; its figure is growth.png beside it."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    network = ", ".join(f"{key} {value}" for key, value in settings["network"].items() if key not in ("width", "depth"))
    peak, stream = statistics.median(result["matrix_peak"]), statistics.median(result["bandwidth"])
    growing, surcharge, paper = (_table(title, *rest) for title, rest in tables(result).items())
    lines = [
        "# How cost grows",
        "",
        "One thing is turned at a time, all its settings in turns, round by round; the others stay at",
        f"width {settings['width']}, depth {settings['depth']}, batch {settings['batch']}, crops of"
        f" {settings['height']}x{settings['height'] * 3 // 2}. A training step is forward, cross",
        f"entropy at the images' size, backward and SGD; {settings['rounds']} rounds, {settings['threads']} threads,"
        f" device {settings['device']},",
        f"float32. The network: {network}. Peak of the device {peak / 1e12:.3f} TFLOP/s (products",
        f"of large matrices), bandwidth {stream / 1e9:.1f} GB/s (copies of a large array). Machine: {machine}.",
        "",
        "![growth](growth.png)",
        "",
        *growing,
        "Exponents are of fitted powers, ± their standard error: time that grows like the square of a crop's height",
        "grows like its area. Memory is the peak of a step above what the process took before, weights included.",
        "Several processes exchange gradients and the statistics of norms, and keep what one process makes again.",
        "",
        *surcharge,
        f"{where_the_paper_holds(result)} The roofline takes the longer of arithmetic and traffic for each",
        "convolution, and traffic alone for the norm and the activation behind it, as torch's operations one by one",
        "cause it; it knows of no cache, of no sums and of no resizing.",
        "",
        *paper,
        *on_paper.text(result["on_paper"]),
    ]
    return "\n".join(lines) + "\n"
