"""The rows of an ablation's table: what each variant is, what it reaches, what it costs, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmseg_cli.ablation import costs, statistics
from mmseg_cli.ablation.costs import Measured
from mmseg_cli.ablation.grid import Evidence, Wanted
from mmseg_cli.ablation.statistics import FEWEST_SEEDS, Interval, Verdict

MATCHED = {"parameters": "parameters", "macs": "MACs", "time": "step time"}  # what a row's size is solved for
SIZE = ("width", "expansion")  # of the network: what is solved


@dataclass(frozen=True)
class Row:
    """One variant. mIoU in percent, differences in points of percent.

    Attributes:
        wanted: what the parameters say of it.
        cost: what it costs, and the ratios to the baseline.
        mean: mIoU over seeds.
        augmented: mIoU with test-time augmentation; None where it was not asked for.
        difference: to the baseline; None for itself.
        verdict: of the difference, after Holm over the table.
    """

    variant: str
    wanted: Wanted
    cost: Measured
    mean: Interval
    augmented: Interval | None
    difference: Interval | None
    verdict: Verdict | None


def rows(evidence: Evidence) -> list[Row]:
    """One row a variant, in the table's order."""
    differences = evidence.differences("iou")
    verdicts = dict(zip(differences, statistics.verdicts(list(differences.values())), strict=True))
    measured = costs.compared(evidence.cost, variants=evidence.variants)
    augmented = "iou_augmented" in evidence.figure_names
    return [
        Row(
            variant=variant,
            wanted=evidence.wanted[variant],
            cost=measured[variant],
            mean=evidence.mean(variant, "iou"),
            augmented=evidence.mean(variant, "iou_augmented") if augmented else None,
            difference=differences.get(variant),
            verdict=verdicts.get(variant),
        )
        for variant in evidence.variants
    ]


# ------------------------------------------------------------------------------------------------ numbers as text


def number(value: float | None, *, sign: str = "", digits: int = 2) -> str:
    """A number of the table; a dash where there is none. A rounded zero has no sign."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:{sign}.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text


def interval(found: Interval, *, sign: str = "", digits: int = 2) -> str:
    """`mean [low, high]`, or the mean alone."""
    text = number(found.estimate, sign=sign, digits=digits)
    if found.low is None or found.high is None:
        return text
    show = partial(number, sign=sign, digits=digits)
    return f"{text} [{show(found.low)}, {show(found.high)}]"


def probability(value: float | None) -> str:
    """A p value."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def ratio(value: float | None) -> str:
    """A ratio to the baseline."""
    return "–" if value is None else f"{value:.2f}"


def in_words(wanted: Wanted) -> str:
    """What a row is: its block and whatever else it changes of the preset."""
    words = [f"{key} {_value(value)}" for key, value in wanted.changes.items()]
    return ", ".join(words) + (f" (matched {MATCHED[wanted.match]})" if wanted.match else "")


def _value(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# ------------------------------------------------------------------------------------------------ the main table


def headings(evidence: Evidence) -> list[str]:
    """Of the main table."""
    augmented = ["mIoU % augmented"] if "iou_augmented" in evidence.figure_names else []
    return [
        "variant",
        "params (M)",
        "MACs (G)",
        "time ratio",
        "memory ratio",
        "mIoU % [95 %]",
        *augmented,
        "Δ mIoU [95 %]",
        "p (Holm)",
        "verdict",
    ]


def cells(row: Row) -> list[str]:
    """A row as text, in the order of `headings`."""
    if row.difference is None or row.verdict is None:
        compared = ["baseline", "", ""]
    else:
        compared = [interval(row.difference, sign="+"), probability(row.verdict.adjusted_p), row.verdict.word]
    return [
        row.variant,
        f"{row.cost.parameters / 1e6:.3f}",
        f"{row.cost.macs / 1e9:.3f}",
        ratio(row.cost.step.ratio),
        ratio(row.cost.memory_ratio),
        interval(row.mean),
        *([] if row.augmented is None else [interval(row.augmented)]),
        *compared,
    ]


def matched_ratio(kind: str, own: Measured, other: Measured) -> float:
    """How many times as much a row has of what a size is solved for (a key of MATCHED) as another; steps took turns."""
    match kind:
        case "parameters":
            return own.parameters / other.parameters
        case "macs":
            return own.macs / other.macs
    return own.step.ratio / other.step.ratio


def few_seeds(rows: Sequence[Row]) -> str:
    """Why there is no verdict, or how there is one."""
    if rows[0].mean.seeds < FEWEST_SEEDS:
        return (
            f"With fewer than {FEWEST_SEEDS} seeds there is **no verdict**: the noise between two trainings cannot be"
            " told from so few."
        )
    if rows[1:] and all(row.difference is None or row.difference.p is None for row in rows[1:]):
        return "There is **no verdict**, for want of an interval."
    return (
        "The verdict is *better* or *worse* where the p value, adjusted by Holm over the rows of this table, is below"
        " 0.05, else *no evidence*: which is not evidence that there is no difference. claims.md compares other pairs,"
        " and adjusts for those."
    )


# ------------------------------------------------------------------------------------------------ families


@dataclass(frozen=True)
class Judged:
    """A difference to the baseline, and what may be said of it within its family."""

    interval: Interval
    verdict: Verdict


Line = tuple[str, str | None]  # a figure and a class; None is the mean over classes


def judged(evidence: Evidence, lines: Sequence[Line]) -> dict[Line, dict[str, Judged]]:
    """The differences of some figures by variant, judged together: Holm is over all of them.

    A class that the baseline does not have in every run is left out.
    """
    kept: dict[Line, dict[str, Interval]] = {}
    for figure, class_ in lines:
        if class_ is None or evidence.mean(evidence.baseline, figure, class_=class_).estimate is not None:
            kept[figure, class_] = evidence.differences(figure, class_=class_)
    verdicts = iter(statistics.verdicts([one for found in kept.values() for one in found.values()]))
    return {
        line: {variant: Judged(one, next(verdicts)) for variant, one in found.items()} for line, found in kept.items()
    }
