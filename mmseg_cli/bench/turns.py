"""Contenders that take turns, round by round (A B C A B C): a machine that slows down slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mmseg_cli.models.cost import Work

LEAST_SECONDS = 0.5  # of a turn whose calls are not given: a GPU's step of 40 ms is at the mercy of the host


@dataclass(frozen=True)
class Timing:
    """One contender of one comparison.

    Attributes:
        rates: units a second, one number a round.
        ratios: how many times as fast as the reference in the same round.
    """

    rates: list[float]
    ratios: list[float]


def take_turns(
    contenders: Mapping[str, Callable[[int], object]],
    *,
    reference: str,
    rounds: int,
    calls: int | None,
    units: int,
    advance: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every contender in turn, `rounds` times, after calls that do not count.

    Args:
        contenders: called with 0, 1, 2, ...; all do the same work for the same number.
        reference: the contender that the ratios are to.
        calls: in a round; None for as many as take the fastest LEAST_SECONDS.
        units: crops or images that one call makes.
        advance: called after each round.
        clock: seconds.
    """
    for call in contenders.values():
        call(0)
    if calls is None:
        fastest = min(_seconds(call, clock) for call in contenders.values())
        calls = max(1, math.ceil(LEAST_SECONDS / fastest))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, call in contenders.items():
            begun = clock()
            for index in range(number * calls, (number + 1) * calls):
                call(index)
            rates[name].append(calls * units / (clock() - begun))
        advance()
    return {
        name: Timing(own, [mine / other for mine, other in zip(own, rates[reference], strict=True)])
        for name, own in rates.items()
    }


def settings_of(work: Work, *, classes: int, rounds: int) -> dict[str, object]:
    """What a report says of steps that were timed in turns of LEAST_SECONDS."""
    return {
        "size": [work.height, work.width],
        "batch": work.batch,
        "classes": classes,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "device": work.device,
        "precision": "float32" if work.autocast is None else str(work.autocast).removeprefix("torch."),
        "turn_seconds": LEAST_SECONDS,
    }


def told(settings: Mapping[str, object]) -> str:
    """A clause on the turns of a report's settings: before these had `turn_seconds`, a turn was one call."""
    return f" of as many steps as take the fastest {settings['turn_seconds']:g} s" if "turn_seconds" in settings else ""


def _seconds(call: Callable[[int], object], clock: Callable[[], float]) -> float:
    begun = clock()
    call(0)
    return clock() - begun


def uncounted(call: Callable[[], object]) -> Callable[[int], object]:
    """A contender that does the same whatever its number is."""
    return lambda _number: call()


def cells(timing: Mapping[str, list[float]], *, rate: str = ".1f", ratio: str = ".1f") -> tuple[str, str, str]:
    """A timing as text: the median rate, the median ratio, and the range of the ratios over the rounds.

    Args:
        rate, ratio: how numbers are written, as in `format`.
    """
    rates, ratios = timing["rates"], timing["ratios"]
    low, high = (format(end(ratios), ratio) for end in (min, max))
    return format(statistics.median(rates), rate), format(statistics.median(ratios), ratio), f"{low} - {high}"
