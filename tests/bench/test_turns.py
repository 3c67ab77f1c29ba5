"""Contenders in turn, by a clock of our own."""

from mmseg_cli.bench import turns


def test_contenders_take_turns_and_are_compared_within_a_round():
    now, called = [0.0], []
    slow = [1.0]  # the machine's slowness, which changes between rounds

    def contender(name, seconds):
        def call(index):
            called.append((name, index))
            now[0] += seconds * slow[0]

        return call

    def advance():
        slow[0] *= 2

    timings = turns.take_turns(
        {"ours": contender("ours", 0.25), "Pillow": contender("Pillow", 1.0)},
        reference="Pillow",
        rounds=2,
        calls=2,
        units=4,
        advance=advance,
        clock=lambda: now[0],
    )
    warm = [("ours", 0), ("Pillow", 0)]
    first = [("ours", 0), ("ours", 1), ("Pillow", 0), ("Pillow", 1)]
    second = [("ours", 2), ("ours", 3), ("Pillow", 2), ("Pillow", 3)]
    assert called == warm + first + second
    assert slow == [4]  # advanced after each round
    assert timings["ours"].rates == [16, 8]
    assert timings["Pillow"].rates == [4, 2]
    assert timings["ours"].ratios == [4, 4]


def test_turns_are_long_enough_for_the_fastest(monkeypatch):
    monkeypatch.setattr(turns, "LEAST_SECONDS", 0.5)
    now, called = [0.0], []

    def contender(name, seconds):
        def call(index):
            called.append((name, index))
            now[0] += seconds

        return call

    timings = turns.take_turns(
        {"graph": contender("graph", 0.125), "plain": contender("plain", 1.0)},
        reference="plain",
        rounds=3,
        calls=None,
        units=8,
        advance=lambda: None,
        clock=lambda: now[0],
    )
    assert called[:4] == [("graph", 0), ("plain", 0)] * 2  # they do not count
    assert [name for name, _ in called[4:]] == (["graph"] * 4 + ["plain"] * 4) * 3
    assert timings["graph"].rates == [64.0] * 3
    assert timings["graph"].ratios == [8.0] * 3


def test_a_timing_is_told_by_its_medians_and_its_range():
    timing = {"rates": [1.0, 4.0, 2.0], "ratios": [0.5, 2.0, 1.25]}
    assert turns.cells(timing) == ("2.0", "1.2", "0.5 - 2.0")
    assert turns.cells(timing, rate=".3g", ratio=".2f") == ("2", "1.25", "0.50 - 2.00")
