"""Does a small preset predict the ranking of variants that a full one gives? `mmseg compare camvid-small camvid`.

A variant is the same in both where it has the same name and changes the same of its preset. The width and expansion of
a matched row are solved anew in every preset, and are not looked at. All else of two presets (network, recipe, data)
may differ: that is the question.

Both rankings are of means over few trainings. Noise within each preset pulls a correlation towards 0, so that what is
found tends to understate how the true rankings agree; and variants that are nearly as good as each other change places
whatever the presets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mmseg_cli.ablation.grid import Evidence, Wanted
from mmseg_cli.ablation.rows import interval
from mmseg_cli.ablation.statistics import LEVEL, Interval
from mmseg_cli.errors import MmsegError

FEWEST = 6  # variants, for a correlation
SOLVED = ("width", "expansion")  # what a matched row has of its own in every preset


@dataclass(frozen=True)
class Shared:
    """A variant of both grids.

    Attributes:
        small, full: its mIoU over seeds, in percent, in either preset.
        small_rank, full_rank: among the shared ones, 1 for the best; the mean rank of those that are equal.
    """

    variant: str
    small: Interval
    full: Interval
    small_rank: float
    full_rank: float


@dataclass(frozen=True)
class Agreement:
    """How alike two rankings are.

    Attributes:
        spearman: rank correlation, from -1 to 1.
        low, high: its 95 % interval; None where the ranks are the same or opposite, for which the formula has none.
        kendall: tau b.
        alike: pairs of variants that have the same order in both.
        pairs: of variants.
    """

    spearman: float
    low: float | None
    high: float | None
    kendall: float
    alike: int
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """Two presets.

    Attributes:
        small, full: their names.
        rows: the variants of both, the best of the full preset first.
        left_out: why a variant of one of them is not in `rows`, by its name.
        agreement: None where there is none to speak of.
        reason: why, in words; else None.
    """

    small: str
    full: str
    rows: list[Shared]
    left_out: dict[str, str]
    agreement: Agreement | None
    reason: str | None


def compare(small: Evidence, full: Evidence) -> Comparison:
    """Compare the rankings of the variants that two presets share.

    Raises:
        MmsegError: the two are one preset, or share no variant.
    """
    require_two(small.preset, full.preset)
    left_out = _left_out(small, full)
    names = [name for name in full.variants if name in small.variants and name not in left_out]
    if not names:
        what = f"has no variant in common with {full.preset}"
        raise MmsegError(small.preset, what, f"add one to its grid: it has {', '.join(small.variants)}")
    means = [[evidence.mean(name, "iou") for name in names] for evidence in (small, full)]
    values = [[float(found.estimate or 0.0) for found in column] for column in means]  # `_left_out` has those without
    ranks = [ranks_of(column) for column in values]
    rows = [Shared(*row) for row in zip(names, *means, *ranks, strict=True)]
    found = agreement(*values) if len(names) >= FEWEST else None
    reason = None if found else "all means of a preset are the same"
    if len(names) < FEWEST:
        reason = f"too few variants: {len(names)} in both, a correlation takes {FEWEST}"
    return Comparison(
        small=small.preset,
        full=full.preset,
        rows=sorted(rows, key=lambda row: row.full_rank),
        left_out=left_out,
        agreement=found,
        reason=reason,
    )


def require_two(small: str, full: str) -> None:
    """Raise MmsegError where both names are of one preset."""
    if small == full:
        raise MmsegError("mmseg compare", f"{small} is given twice", "name a small preset and a full one")


def _left_out(small: Evidence, full: Evidence) -> dict[str, str]:
    """Why variants of either grid are not compared, by their names."""
    found = {}
    for name in dict.fromkeys([*small.variants, *full.variants]):
        if name not in small.variants or name not in full.variants:
            found[name] = f"only in {full.preset if name not in small.variants else small.preset}"
        elif _identity(small.wanted[name]) != _identity(full.wanted[name]):
            found[name] = "changes other things in either preset"
        elif any(evidence.mean(name, "iou").estimate is None for evidence in (small, full)):
            found[name] = "its mIoU is not defined in every run"
    return found


def _identity(wanted: Wanted) -> tuple[str | None, dict[str, Any]]:
    """What makes two rows the same in different presets."""
    if wanted.match is None:
        return None, wanted.changes
    return wanted.match, {key: value for key, value in wanted.changes.items() if key not in SOLVED}


# ------------------------------------------------------------------------------------------------ rankings


def ranks_of(values: Sequence[float]) -> list[float]:
    """The rank of each value, 1 for the largest; equal values share their mean rank."""
    from scipy.stats import rankdata

    return [float(rank) for rank in rankdata([-value for value in values])]


def agreement(small: Sequence[float], full: Sequence[float]) -> Agreement | None:
    """How alike two rankings of the same things are; None where all values of either are equal.

    The interval is Bonett and Wright's (2000, Psychometrika 65:23): on Fisher's z, with the standard error
    sqrt((1 + r^2 / 2) / (n - 3)). It is about which variants were chosen, and knows nothing of the noise within means.

    Args:
        small, full: (n) values, n at least 4.
    """
    from scipy.stats import kendalltau, norm, spearmanr

    if len(set(small)) == 1 or len(set(full)) == 1:
        return None
    correlation = min(1.0, max(-1.0, float(spearmanr(small, full).statistic)))
    low = high = None
    if not math.isclose(abs(correlation), 1.0):
        half = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt((1 + correlation**2 / 2) / (len(small) - 3))
        low, high = (math.tanh(math.atanh(correlation) + side * half) for side in (-1, 1))
    pairs = list(combinations(range(len(small)), 2))
    return Agreement(
        spearman=correlation,
        low=low,
        high=high,
        kendall=float(kendalltau(small, full).statistic),
        alike=sum(_order(small[a], small[b]) == _order(full[a], full[b]) for a, b in pairs),
        pairs=len(pairs),
    )


def _order(first: float, second: float) -> int:
    """Which of two is larger: 1, -1, or 0 for neither."""
    return (first > second) - (first < second)


# ------------------------------------------------------------------------------------------------ text


def headings(found: Comparison) -> list[str]:
    """Of the table of means."""
    return ["variant", f"{found.small}: mIoU % [95 %]", "rank", f"{found.full}: mIoU % [95 %]", "rank"]


def cells(row: Shared) -> list[str]:
    """A row as text, in the order of `headings`."""
    return [row.variant, interval(row.small), f"{row.small_rank:g}", interval(row.full), f"{row.full_rank:g}"]


def lines(found: Comparison) -> list[tuple[str, str]]:
    """What is said of a comparison, as (key, text)."""
    said = [("variants", f"{len(found.rows)} in both grids, by name and by what they change of their preset")]
    if found.left_out:
        said.append(("left out", "; ".join(f"{name} ({why})" for name, why in found.left_out.items())))
    if found.agreement is None:
        said.append(("agreement", found.reason or "–"))
    else:
        said += _agreement_lines(found.agreement)
    noise = "both rankings are of means over few trainings: their noise pulls the agreement towards none"
    return [*said, ("beware", noise)]


def _agreement_lines(found: Agreement) -> list[tuple[str, str]]:
    limits = "no interval: the formula has none for ranks that are the same or opposite"
    if found.low is not None and found.high is not None:
        limits = f"95 % interval {found.low:+.2f} to {found.high:+.2f} (Bonett and Wright 2000)"
    share = f"{found.alike} of {found.pairs} ({100 * found.alike / found.pairs:.0f} %)"
    return [
        ("Spearman", f"{found.spearman:+.2f}; {limits}"),
        ("Kendall", f"tau {found.kendall:+.2f}"),
        ("pairs", f"{share} have the same order in both"),
    ]
