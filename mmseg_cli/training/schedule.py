"""Learning rate over steps: a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, base: float, steps: int, schedule: str, power: float = 0.9, warmup_steps: int = 0
) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`.

    Args:
        base: the highest rate.
        schedule: `poly` (base * (1 - t) ** power, the DeepLab rule), `cosine` (Loshchilov and Hutter 2017, to 0)
            or `constant`.
        power: of `poly`.
        warmup_steps: a linear rise to the schedule's rate over the first steps.
    """
    progress = step / steps
    rate: float
    if schedule == "poly":
        rate = base * (1 - progress) ** power
    elif schedule == "cosine":
        rate = base * 0.5 * (1 + math.cos(math.pi * progress))
    elif schedule == "constant":
        rate = base
    else:
        raise ValueError(f"unknown schedule {schedule!r}")
    return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps else rate
