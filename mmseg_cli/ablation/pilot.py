"""What a grid that is there, as a pilot, says of a larger one: seeds and hours to see a gap."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmseg_cli.ablation import power
from mmseg_cli.ablation.grid import Evidence
from mmseg_cli.ablation.power import Need
from mmseg_cli.ablation.statistics import FEWEST_SEEDS
from mmseg_cli.errors import MmsegError
from mmseg_cli.provenance import seconds


@dataclass(frozen=True)
class Answer:
    """For one variant against the baseline.

    Attributes:
        spread: standard deviation of the difference over seeds, in points.
        need, cautious: with the noise that was found, and with as much as 80 % confidence allows.
        seconds: that one more seed takes of both, as the pilot's trainings took; None where that was not kept.
        power: of the seeds that there are, for that gap; NaN where they give no interval.
        seeds: that there are.
    """

    variant: str
    spread: float
    need: Need
    cautious: Need
    seconds: float | None
    power: float
    seeds: int


def answers(evidence: Evidence, *, gap: float) -> list[Answer]:
    """For every variant but the baseline: what it takes to see a true gap in mIoU.

    Args:
        gap: in points of percent.

    Raises:
        MmsegError: there is nothing to compare, or one seed, which tells nothing of its noise.
    """
    where = f"the grid of {evidence.preset}"
    if len(evidence.variants) < 2:
        raise MmsegError(where, "has a single row", "add one with --blocks, the noise of a difference needs two")
    if len(evidence.seeds) < 2:
        raise MmsegError(where, "has one seed, which tells nothing of its noise", "add one with --seeds 0,1")
    found = []
    for variant in evidence.variants[1:]:
        pilot = evidence.difference(variant, "iou")
        if pilot.spread is None:
            raise MmsegError(where, f"mIoU of {variant} is {pilot.reason}", "evaluate it again")
        noise, cautious = power.noise_of(pilot)
        common = {"blocks": pilot.blocks, "estimand": evidence.estimand, "comparisons": len(evidence.variants) - 1}
        need = power.seeds_needed(gap, noise, **common)  # type: ignore[arg-type]
        now = math.nan if pilot.low is None else 0.0  # no interval, no verdict; and none under three seeds
        if pilot.low is not None and len(evidence.seeds) >= FEWEST_SEEDS:
            now = float(power.power(gap, noise, seeds=[len(evidence.seeds)], **common)[0])  # type: ignore[arg-type]
        found.append(
            Answer(
                variant=variant,
                spread=pilot.spread,
                need=need,
                cautious=power.seeds_needed(gap, cautious, **common),  # type: ignore[arg-type]
                seconds=_seconds(evidence, variant),
                power=now,
                seeds=len(evidence.seeds),
            )
        )
    return found


def _seconds(evidence: Evidence, variant: str) -> float | None:
    """What one seed of a variant and one of the baseline took to train, on average; a rung that they share once."""
    pairs = [
        [evidence.certificates[name, seed].get("training") for name in (variant, evidence.baseline)]
        for seed in evidence.seeds
    ]
    taken = [found for pair in pairs if (found := seconds(*pair)) is not None]
    return sum(taken) / len(taken) if taken else None


HEADINGS = ("variant", "sd of Δ", "power now", "seeds", "more hours", "seeds, cautious", "more hours")


def cells(answer: Answer) -> list[str]:
    """An answer as text, in the order of `HEADINGS`."""
    return [
        answer.variant,
        f"{answer.spread:.2f}",
        "–" if math.isnan(answer.power) else f"{100 * answer.power:.0f} %",
        _count(answer.need),
        _hours(answer, answer.need),
        _count(answer.cautious),
        _hours(answer, answer.cautious),
    ]


def _count(need: Need) -> str:
    return "none" if need.seeds is None else str(need.seeds)


def reasons(answers: list[Answer]) -> list[tuple[str, str]]:
    """Why no number of seeds is an answer, by variant."""
    found = [(answer.variant, answer.need.reason or answer.cautious.reason) for answer in answers]
    return [(variant, reason) for variant, reason in found if reason is not None]


def _hours(answer: Answer, need: Need) -> str:
    """Of the further seeds, on one device."""
    if need.seeds is None or answer.seconds is None:
        return "–"
    hours = max(0, need.seeds - answer.seeds) * answer.seconds / 3600
    return f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"
