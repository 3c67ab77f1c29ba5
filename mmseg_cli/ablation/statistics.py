"""Plain summaries of a few seeds. Intervals and verdicts need more than that, and are not claimed here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and spread over seeds.

    Attributes:
        mean: arithmetic mean.
        spread: sample standard deviation (n - 1), None for a single seed.
        count: number of seeds.
    """

    mean: float
    spread: float | None
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of at least one value."""
    return Summary(
        mean=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        count=len(values),
    )


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Summary:
    """Summary of value - baseline, seed by seed: equal seeds share the data order, so their noise is shared too."""
    return summarise([value - base for value, base in zip(values, baseline, strict=True)])
