"""Networks of equal parameters, MACs and step time."""

from __future__ import annotations

import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmseg_cli.ablation import match
from mmseg_cli.errors import MmsegError
from mmseg_cli.names import BLOCK_NAMES

SIZES = {"classes": 3, "height": 32, "width": 32}
COARSE = {"residual": 0.07, "mmbconv-grouped": 0.07}  # whole widths, and multiples of eight, come no nearer


def network(block, *, width=16, layout="uniform", expansion=2.0, levels=2):
    return {
        "block": block,
        "layout": layout,
        "width": width,
        "depth": 1,
        "levels": levels,
        "stem_stride": 2,
        "expansion": expansion,
        "se_ratio": 0.25,
        "norm": "batch",
        "activation": "relu",
    }


def count(arguments, quantity):
    import torch

    from mmseg_cli.models import cost
    from mmseg_cli.models.unet import build_network

    with torch.device("meta"):
        built = build_network(task="segmentation", num_classes=3, **arguments)
    return cost.parameters(built) if quantity == "parameters" else cost.macs(built, (1, 3, 32, 32))


# ------------------------------------------------------------------------------------------------ counts


@pytest.mark.parametrize("base", ["residual", "mbconv"])
@pytest.mark.parametrize(
    ("quantity", "width", "layout"),
    [
        ("parameters", 16, "uniform"),
        ("parameters", 40, "pyramid"),
        ("parameters", 64, "uniform"),
        pytest.param("macs", 32, "uniform", marks=pytest.mark.slow),
    ],
)
def test_counts_match_to_a_percent(base, quantity, width, layout):
    baseline = network(base, width=width, layout=layout)
    target = count(baseline, quantity)
    for block in BLOCK_NAMES:
        variant = network(block, width=width, layout=layout)
        found = match.by_count(baseline=baseline, variant=variant, quantity=quantity, **SIZES)
        made = {**variant, "width": found.width, "expansion": found.expansion}
        assert (found.baseline_value, found.value) == (target, count(made, quantity)), block
        assert found.difference == found.value / target - 1
        assert abs(found.difference) <= COARSE.get(block, match.CLOSE), (block, found)
        assert 1 <= found.expansion <= 4
        assert (found.quantity, found.device) == (quantity, None)


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_the_baseline_is_its_own_match(block):
    same = network(block, width=24, expansion=3.0)
    found = match.by_count(baseline=same, variant=same, quantity="parameters", **SIZES)
    assert (found.width, found.expansion, found.difference) == (24, 3.0, 0)


def test_a_block_without_expansion_has_the_nearest_width():
    baseline, variant = network("mbconv", width=32), network("residual", width=32)
    found = match.by_count(baseline=baseline, variant=variant, quantity="parameters", **SIZES)
    assert found.expansion == 2.0
    off = {
        width: abs(math.log(count({**variant, "width": width}, "parameters") / found.baseline_value))
        for width in range(found.width - 2, found.width + 3)
    }
    assert min(off, key=off.get) == found.width


@pytest.mark.parametrize("base", ["residual", "mbconv"])
def test_grouped_convolutions_keep_their_groups(base):
    from mmseg_cli.models.unet import blocks_of, build_network

    for layout in ("uniform", "pyramid"):
        variant = network("mmbconv-grouped", width=20, layout=layout)
        found = match.by_count(
            baseline=network(base, width=20, layout=layout), variant=variant, quantity="parameters", **SIZES
        )
        made = {**variant, "width": found.width, "expansion": found.expansion}
        blocks = blocks_of(build_network(task="segmentation", num_classes=3, **made))
        assert [(block.expand.conv.groups, block.project.groups) for block in blocks] == [(8, 8)] * 3


def test_a_pyramid_is_tuned_at_its_widest_level():
    """There the expanded channels are so many that one more of them is little."""
    variant = network("mmbconv", layout="pyramid", levels=3)
    found = match.by_count(
        baseline=network("residual", layout="pyramid", levels=3), variant=variant, quantity="parameters", **SIZES
    )
    assert abs(found.difference) < 0.005
    assert (found.width, found.expansion) == (12, 1.875)  # 12 x 4 x 1.875 = 90 channels there, 22 at the finest level


def test_the_expansion_has_no_more_digits_than_it_takes():
    space = match._Space(network("mbconv", width=16))
    assert space.network(16, 32)["expansion"] == 2.0
    assert space.network(43, 85)["expansion"] == 1.98  # 85.14 channels, rounded to 85
    assert all(
        round(width * space.network(width, hidden)["expansion"]) == hidden
        for width in range(1, 70)
        for hidden in range(1, 300, 7)
    )


def test_blocks_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_for_match.py").write_text(
        """
from torch import nn

class Plain(nn.Conv2d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 3, padding=1)

class Passes(nn.Sequential):
    def __init__(self, in_channels, out_channels, **settings):
        hidden = round(in_channels * settings["expansion"])
        super().__init__(nn.Conv2d(in_channels, hidden, 1), nn.Conv2d(hidden, out_channels, 3, padding=1))
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    baseline = network("mmbconv", width=24)
    found = {
        name: match.by_count(
            baseline=baseline, variant=network(f"own_for_match:{name}", width=24), quantity="parameters", **SIZES
        )
        for name in ("Plain", "Passes")
    }
    sys.modules.pop("own_for_match")
    assert found["Plain"].expansion == 2.0
    assert abs(found["Plain"].difference) < 1 / found["Plain"].width
    assert abs(found["Passes"].difference) <= match.CLOSE


def test_a_misspelled_block_is_a_one_line_error():
    with pytest.raises(MmsegError, match="did you mean mmbconv"):
        match.by_count(baseline=network("residual"), variant=network("mmbcomv"), quantity="parameters", **SIZES)


def test_a_baseline_too_small_to_match_gets_what_is_nearest():
    baseline, variant = network("mbconv", width=1, expansion=1.0), network("mmbconv", width=8)
    found = match.by_count(baseline=baseline, variant=variant, quantity="parameters", **SIZES)
    assert (found.width, found.expansion) == (1, 1.0)
    assert found.difference > 0


# ------------------------------------------------------------------------------------------------ search


@given(
    steps=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60),
    scale=st.floats(0.02, 20.0),
    start=st.integers(1, 60),
    power=st.sampled_from([1.0, 1.5, 2.0]),
)
def test_the_search_encloses_the_place(steps, scale, start, power):
    """Against a look at all numbers, of functions that rise, stand still and jump."""
    values = {}
    for number, step in enumerate(steps, 1):
        values[number] = values.get(number - 1, 0.0) + (step or 0.0) + 1e-3
    values = {number: value / scale for number, value in values.items()}
    asked = []

    def ratio(number):
        asked.append(number)
        return values[number]

    found = match._root(ratio, start=min(start, len(values)), power=power, largest=len(values))
    assert len(asked) == len(set(asked))
    assert found == {number: values[number] for number in asked}
    below = [number for number, value in values.items() if value <= 1]
    above = [number for number, value in values.items() if value >= 1]
    assert not below or max(below) in found
    assert not above or min(above) in found


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("root", [1, 2, 77, 1000, 54321])
@pytest.mark.parametrize("start", [1, 64, 4096])
def test_the_search_takes_few_looks(power, root, start):
    found = match._root(lambda number: 0.3 + 0.7 * (number / (root + 0.4)) ** power, start=start, power=2.0)
    assert {root, root + 1} <= set(found)
    assert len(found) <= 30
    assert max(found) <= 2 * max(root + 1, start)  # a network of that width is built


def test_the_search_stops_where_it_must():
    found = match._root(lambda number: number / 1000.5, start=1, power=1.0, most=3)
    assert len(found) == 3
    more = match._root(lambda number: number / 1000.5, start=max(found), power=1.0, known=found, most=2)
    assert len(more) == 5
    assert set(found) < set(more)


# ------------------------------------------------------------------------------------------------ time


class FakeMachine:
    """Times are a power of width and expansion, with noise; notes what it was asked."""

    def __init__(self, *, factor, noise=0.0):
        self.factor, self.noise, self.random, self.asked = factor, noise, random.Random(0), []

    def step(self, arguments):
        return arguments["width"] ** 1.4 * arguments["expansion"] ** 0.7

    def __call__(self, first, second):
        self.asked.append((first, second))
        drift = [1 + self.random.random() for _ in range(9)]  # of the machine: it slows down both

        def series(arguments, factor):
            return [self.step(arguments) * factor * slow * math.exp(self.random.gauss(0, self.noise)) for slow in drift]

        return series(first, 1.0), series(second, self.factor)


@pytest.mark.parametrize("factor", [0.3, 0.8, 1.0, 1.7, 5.0])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_time_is_matched_in_few_measurements(factor, noise):
    baseline, variant = network("residual", width=48), network("mbconv", width=48)
    machine = FakeMachine(factor=factor, noise=noise)
    found = match.by_time(baseline=baseline, variant=variant, seconds=machine, device="a machine")
    assert len(machine.asked) <= match.WIDTHS + match.EXPANSIONS + 1
    assert all(first == baseline for first, _ in machine.asked)
    made = {**variant, "width": found.width, "expansion": found.expansion}
    assert machine.asked[-1] == (baseline, made)
    assert made in [second for _, second in machine.asked[:-1]]
    assert abs(machine.step(made) * factor / machine.step(baseline) - 1) < 0.03 + 2 * noise
    assert (found.quantity, found.device) == ("time", "a machine")


def test_the_ratio_that_was_chosen_by_is_not_the_one_that_is_reported():
    """The search sees a perfect match by luck; what is said comes from another measurement."""
    asked = []

    def seconds(first, second):
        asked.append(second)
        luck = 1.0 if len(asked) == 1 else 1.25
        return [2.0, 4.0, 1.0], [2.0 * luck, 4.0 * luck, 1.0 * luck]

    found = match.by_time(baseline=network("residual"), variant=network("mbconv"), seconds=seconds, device="a machine")
    assert (found.width, found.expansion) == (16, 2.0)
    assert (found.baseline_value, found.value, found.difference) == (2.0, 2.5, 0.25)


def test_the_difference_is_the_ratio_within_rounds():
    def seconds(first, second):
        return [1.0, 10.0, 2.0], [1.1, 11.0, 0.2]  # medians 2 and 1.1

    found = match.by_time(baseline=network("mbconv"), variant=network("residual"), seconds=seconds, device="a machine")
    assert math.isclose(found.difference, 0.1)
    assert (found.baseline_value, found.value) == (2.0, 1.1)


def test_grouped_convolutions_keep_their_groups_by_time():
    machine = FakeMachine(factor=1.3)
    match.by_time(
        baseline=network("residual", width=40),
        variant=network("mmbconv-grouped", width=40),
        seconds=machine,
        device="a machine",
    )
    for _, second in machine.asked:
        assert second["width"] % 8 == 0
        assert round(second["width"] * second["expansion"]) % 8 == 0


def test_steps_are_really_measured():
    found = match.solve(
        baseline=network("residual", width=4),
        variant=network("mbconv", width=4),
        quantity="time",
        classes=3,
        batch=1,
        height=16,
        width=16,
        repeats=1,
        warmup=0,
        device="cpu",
        threads=1,
        channels_last=True,
    )
    assert found.value > 0
    assert found.baseline_value > 0
    assert found.device


def test_counts_need_no_device():
    found = match.solve(
        baseline=network("residual"),
        variant=network("mbconv"),
        quantity="macs",
        **SIZES,
        batch=1,
        repeats=1,
        warmup=0,
        device="cuda:99",
        threads=None,
        channels_last=True,
    )
    assert abs(found.difference) <= match.CLOSE
    assert found.device is None
