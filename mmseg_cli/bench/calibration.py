"""`mmseg bench calibration`: do the intervals and verdicts of an ablation keep what they promise? By simulation.

Ablations are drawn whose truth is known, and pass through `mmseg_cli.ablation.statistics` as measured ones do. Counted
is how often a 95 % interval holds the truth, how often variants that are alike get a verdict all the same, and how
often a true gap is seen. Here is what is simulated, and the report: `calibration_worlds` says what ablations are drawn
from, `calibration_trials` how they are judged. With real trainings: `mmseg_cli.bench.alike`.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmseg_cli import runtime
from mmseg_cli.ablation import statistics
from mmseg_cli.ablation.statistics import ESTIMANDS
from mmseg_cli.bench.calibration_trials import BOOTSTRAPS, POWERS, TEXTBOOK, Size, alike, confusion, linear, price
from mmseg_cli.bench.calibration_worlds import CLASSES, NOISES, OF_DIFFERENCES, OF_RUNS, SHAPES, VARIANTS

Row = dict[str, Any]

SEEDS = (2, 3, 5, 10)
BLOCKS = (16, 100)
FEW_BLOCKS = (2, 3)  # as of cities; of normal noise alone
BOUNDS = (0.93, 0.97)  # of the coverage of a 95 % interval
POWER_OFF = 0.1  # by how much, as a difference, power may be off its theory


def plan(
    size: Size,
    *,
    counts_of_seeds: Sequence[int] = SEEDS,
    counts_of_blocks: Sequence[int] = BLOCKS,
    noises: Sequence[str] = tuple(NOISES),
    shapes: Sequence[str] = tuple(SHAPES),
    few_blocks: Sequence[int] = FEW_BLOCKS,
) -> list[Callable[[], list[Row]]]:
    """What is to be simulated, one call after the other.

    Args:
        size: how much.
        counts_of_seeds, counts_of_blocks: S and B.
        noises: names of NOISES.
        shapes: names of SHAPES.
        few_blocks: so small a B that it is told apart; with normal noise.
    """
    stream = itertools.count()
    calls: list[Callable[[], list[Row]]] = []
    for of, shape, noise in itertools.product((OF_RUNS, OF_DIFFERENCES), shapes, noises):
        if of == OF_DIFFERENCES and shape == "normal":
            continue  # a difference of normal noise is normal
        for seeds, blocks in itertools.product(counts_of_seeds, counts_of_blocks):
            arguments = {"noise": noise, "shape": shape, "of": of, "seeds": seeds, "blocks": blocks}
            calls.append(_linear_call(size, arguments, bootstrap=shape == "normal", stream=next(stream)))
    for noise, blocks in itertools.product(noises, counts_of_blocks):
        arguments = {"noise": noise, "blocks": blocks, "counts_of_seeds": tuple(counts_of_seeds)}
        calls.append(_confusion_call(size, arguments, stream=next(stream)))
        if noise in ("seeds 1 : images 1", "no image noise"):
            calls.append(_alike_call(size, arguments, stream=next(stream)))
    for blocks, noise, seeds in itertools.product(few_blocks, noises, counts_of_seeds):
        arguments = {"noise": noise, "shape": "normal", "of": OF_RUNS, "seeds": seeds, "blocks": blocks}
        calls.append(_linear_call(size, arguments, bootstrap=False, stream=next(stream)))
    return calls


def _linear_call(size: Size, arguments: Row, *, bootstrap: bool, stream: int) -> Callable[[], list[Row]]:
    return lambda: [linear(size, **arguments, bootstrap=bootstrap, stream=stream)]


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
        elif row["blocks"] in FEW_BLOCKS:
            name = f"normal, {row['blocks']} images"
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


def _prices(result: Row) -> list[tuple[str, ...]]:
    """Smallest and largest `price` of normal noise by the number of comparisons and of seeds."""
    normal = _groups(result["rows"]).get("normal", [])
    lines = []
    for comparisons in (1, VARIANTS - 1):
        cells = []
        for seeds in seeds_of(result):
            found = [
                price(row["noise"], seeds=seeds, blocks=row["blocks"], comparisons=comparisons)
                for row in normal
                if row["seeds"] == seeds
            ]
            cells.append(f"{min(found):.2f} - {max(found):.2f}" if found else "–")
        lines.append((f"normal, comparisons: {comparisons}", *cells))
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
    found["for comparison: the gap seen in 80 of 100, new-images, over that by the textbook"] = _prices(result)
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
        "An image stands for whatever is drawn: 3 images may be three cities.",
        "",
        "- *normal*, and *of runs*: every run has noise of that shape, the baseline too; four variants share it.",
        "- *of differences*: the difference itself has noise of that shape, as if the variant alone were noisy.",
        f"- *confusion world*: hits and unions of images with Dirichlet mixtures of {CLASSES} classes, skill of runs,",
        "  difficulty of images, and both together on the logits. The rarest class is in one image of three.",
        "- *textbook*: MS_seeds + MS_images - MS_residual with Satterthwaite's degrees of freedom. *The gap over",
        "  that by the textbook* is computed from the noncentral t, not simulated.",
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
