from __future__ import annotations

import pytest

from mmseg_cli.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("poly", [2.0, 2 * 0.75**0.9, 2 * 0.5**0.9, 2 * 0.25**0.9]),
        ("cosine", [2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5]),
        ("constant", [2.0, 2.0, 2.0, 2.0]),
    ],
)
def test_the_rate_of_every_step(schedule, expected):
    rates = [learning_rate(step, base=2.0, steps=4, schedule=schedule, power=0.9) for step in range(4)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_poly_has_its_power():
    assert learning_rate(5, base=1.0, steps=10, schedule="poly", power=2.0) == pytest.approx(0.25)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_warmup_rises_to_the_schedule_and_never_starts_at_nothing(schedule):
    plain = [learning_rate(step, base=1.0, steps=10, schedule=schedule) for step in range(10)]
    warm = [learning_rate(step, base=1.0, steps=10, schedule=schedule, warmup_steps=4) for step in range(10)]
    assert warm[4:] == plain[4:]
    assert warm[:4] == pytest.approx([rate * share for rate, share in zip(plain, (0.25, 0.5, 0.75, 1), strict=False)])
    assert warm[0] > 0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="unknown schedule"):
        learning_rate(0, base=1.0, steps=1, schedule="step")
