"""Networks of equal cost: the width and the expansion that give a variant the baseline's parameters, MACs or step time.

At equal width a block with more weights wins or loses partly by its size. A matched row answers the other question:
which block makes more of the same budget? Width comes first, then the expansion makes up for what whole numbers of
channels leave; it stays as near to the preset's as it can.

A network is named by two whole numbers here: its width (channels of the finest level) and `hidden`, the expanded
channels of the *widest* level, which in a pyramid is the finest scale that an expansion has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mmseg_cli import provenance, runtime
from mmseg_cli.ablation.costs import Timing, versus

Network = Mapping[str, Any]  # the arguments of `mmseg_cli.models.unet.UNet`
Counted = Literal["parameters", "macs"]
Seconds = Callable[[Network, Network], tuple[list[float], list[float]]]
CLOSE = 0.01  # relative: widths whose difference is below it are equally good, and the expansion decides
MOST_STRETCH = 2.0  # by which an expansion may differ from the preset's
MOST_RINGS = 6  # pairs of widths whose expansions are solved for
FAR = 2**62  # stands for no largest number
WIDTHS, EXPANSIONS = 6, 3  # measurements of each search by time; one more measures what was found


@dataclass(frozen=True)
class Match:
    """What was found, and what it leaves.

    Attributes:
        width, expansion: of the variant's network; the expansion is the preset's for a block that has none.
        quantity: `parameters`, `macs` or `time`.
        baseline_value, value: of the two networks: parameters, MACs of one image, or median seconds of a step.
        difference: value / baseline - 1. Of `time` it is the median ratio within a round, of a measurement that the
            search has not seen: the one it chose by is flattered by having been chosen.
        device: on which time was measured, else None: counts are the same everywhere.
    """

    width: int
    expansion: float
    quantity: str
    baseline_value: float
    value: float
    difference: float
    device: str | None


def solve(
    *,
    baseline: Network,
    variant: Network,
    quantity: Literal["parameters", "macs", "time"],
    classes: int,
    batch: int,
    height: int,
    width: int,
    repeats: int,
    warmup: int,
    device: str,
    threads: int | None,
    channels_last: bool,
) -> Match:
    """Match a variant to the baseline by whichever quantity.

    Args:
        baseline, variant: the networks' arguments.
        quantity: that is to be equal.
        classes: of the segmentation head.
        batch, height, width: of a training step; MACs are of one image of this size.
        repeats, warmup: rounds of each measurement of time.
        device, threads, channels_last: as in the parameters' section `runtime`; for `time` alone.

    Raises:
        MmsegError: a network cannot be built, or the device is not there.
    """
    if quantity != "time":
        return by_count(
            baseline=baseline, variant=variant, quantity=quantity, classes=classes, height=height, width=width
        )
    import torch

    from mmseg_cli.models import cost
    from mmseg_cli.models.unet import build_network

    runtime.limit_threads(threads)
    chosen = runtime.pick_device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    work = cost.Work(batch=batch, height=height, width=width, device=str(chosen), memory_format=layout)

    def seconds(first: Network, second: Network) -> tuple[list[float], list[float]]:
        networks = {
            str(place): build_network(task="segmentation", num_classes=classes, **arguments)
            for place, arguments in enumerate((first, second))
        }
        taken = cost.step_seconds(networks, work=work, repeats=repeats, warmup=warmup)
        return taken["0"], taken["1"]

    name = provenance.accelerator(str(chosen)) or runtime.processor()
    return by_time(baseline=baseline, variant=variant, seconds=seconds, device=name)


def by_count(*, baseline: Network, variant: Network, quantity: Counted, classes: int, height: int, width: int) -> Match:
    """Match parameters or MACs, which are counted exactly and need no device.

    Each width has its best expansion. Of the widths that come within one percent, that whose expansion is nearest to
    the preset's is taken; where none does, the nearest count. No expansion is more than twice or less than half of the
    preset's. A block that has no expansion gets the nearest width, which at width w leaves up to about 1 / w.

    `mmbconv-grouped` has eight groups in each: its widths and expanded channels are multiples of eight. With fewer it
    would be another block, of twice the weights and more. That leaves few networks to choose from, and so differences
    of some percent in narrow ones. `norm: group` takes any width too, but has fewer groups, down to a single one, where
    it is no multiple of eight.

    Args:
        baseline, variant: the networks' arguments.
        quantity: `parameters`, or `macs` of one image.
        classes: of the segmentation head.
        height, width: of the image in pixels.

    Raises:
        MmsegError: a network cannot be built.
    """
    target = _count(baseline, quantity=quantity, classes=classes, height=height, width=width)
    space = _Space(variant)
    counts: dict[tuple[int, int], int] = {}

    def ratio(point: tuple[int, int]) -> float:
        if point not in counts:
            network = space.network(*point)
            counts[point] = _count(network, quantity=quantity, classes=classes, height=height, width=width)
        return counts[point] / target

    point = _nearest_count(space, ratio)
    found = space.network(*point)
    return Match(
        width=found["width"],
        expansion=found["expansion"],
        quantity=quantity,
        baseline_value=target,
        value=counts[point],
        difference=ratio(point) - 1,
        device=None,
    )


def by_time(*, baseline: Network, variant: Network, seconds: Seconds, device: str) -> Match:
    """Match the measured time of a training step: by the width, then by the expansion, in ten measurements at most.

    Time is noisy, and jumps where a width suits the device's kernels, so what is found need not be the best there is.
    Multiples of eight are kept as in `by_count`.

    Args:
        baseline, variant: the networks' arguments.
        seconds: of training steps of two networks that take turns (A B A B ...), one number a round each.
        device: where it measures, for the record.

    Raises:
        MmsegError: a network cannot be built.
    """
    space = _Space(variant)
    ratios: dict[tuple[int, int], float] = {}

    def measure(point: tuple[int, int]) -> tuple[Timing, Timing]:
        base, own = seconds(baseline, space.network(*point))
        return versus(base, base), versus(own, base)

    def ratio(point: tuple[int, int]) -> float:
        ratios[point] = measure(point)[1].ratio
        return ratios[point]

    _root(lambda number: ratio(space.plain(number)), start=space.start, power=1.5, most=WIDTHS)
    width, hidden = _closest(ratios)
    if space.flexible and abs(ratios[width, hidden] - 1) > CLOSE:
        known = {hidden // space.step: ratios[width, hidden]}
        _expansions(space, width // space.grain, ratio, known=known, most=EXPANSIONS)
    point = _closest(ratios)
    found = space.network(*point)
    base, own = measure(point)  # anew
    return Match(
        width=found["width"],
        expansion=found["expansion"],
        quantity="time",
        baseline_value=base.median,
        value=own.median,
        difference=own.ratio - 1,
        device=device,
    )


# ------------------------------------------------------------------------------------------------ candidates


class _Space:
    """The networks that may be chosen from: (width, hidden).

    Attributes:
        start: of the search, the variant's own width as a multiple of `grain`.
        grain: widths are multiples of it.
        step: `hidden` is a multiple of it.
        flexible: whether the block has an expansion.
    """

    def __init__(self, variant: Network) -> None:
        from mmseg_cli.models.blocks import BLOCKS
        from mmseg_cli.models.layers import MOST_GROUPS
        from mmseg_cli.models.unet import level_widths

        self._variant = dict(variant)
        self._nominal = float(variant["expansion"])
        self._scales = level_widths(layout=variant["layout"], width=1, levels=variant["levels"])
        kernels = BLOCKS.get(variant["block"])
        grouped = kernels is not None and kernels.get("dense") == "grouped"
        self.grain = MOST_GROUPS if grouped else 1
        self.step = MOST_GROUPS * self._scales[-1] if grouped else 1
        self.start = max(1, round(variant["width"] / self.grain))

    @cached_property
    def flexible(self) -> bool:
        """Whether an expansion changes the network; told by the network itself, whatever its block is."""
        other = {**self._variant, "expansion": 2 * self._nominal}
        some, more = (_count(network, quantity="parameters", classes=1) for network in (self._variant, other))
        return some != more

    def plain(self, number: int) -> tuple[int, int]:
        """The network of the width `number * grain` whose expansion is nearest to the preset's."""
        width = number * self.grain
        return width, self.step * max(1, round(width * self._scales[-1] * self._nominal / self.step))

    def bounds(self, width: int) -> tuple[int, int]:
        """The least and the largest `hidden / step` of a width."""
        plain = width * self._scales[-1] * self._nominal / self.step
        least = max(1, math.ceil(plain / MOST_STRETCH))
        return least, max(least, math.floor(plain * MOST_STRETCH))

    def stretch(self, point: tuple[int, int]) -> float:
        """How far the expansion is from the preset's."""
        return abs(math.log(point[1] / (point[0] * self._scales[-1]) / self._nominal))

    def network(self, width: int, hidden: int) -> dict[str, Any]:
        """The arguments of a network; its expansion has no more digits than it takes."""
        exact = hidden / (width * self._scales[-1])

        def channels(expansion: float) -> list[int]:
            return [round(width * scale * expansion) for scale in self._scales]

        shorter = (self._nominal, *(round(exact, digits) for digits in range(1, 16)))
        expansion = next((one for one in shorter if channels(one) == channels(exact)), exact)
        return {**self._variant, "width": width, "expansion": expansion if self.flexible else self._nominal}


def _count(network: Network, *, quantity: Counted, classes: int, height: int = 0, width: int = 0) -> int:
    import torch

    from mmseg_cli.models import cost
    from mmseg_cli.models.unet import build_network

    with torch.device("meta"):
        built = build_network(task="segmentation", num_classes=classes, **network)
    return cost.parameters(built) if quantity == "parameters" else cost.macs(built, (1, 3, height, width))


# ------------------------------------------------------------------------------------------------ search


def _closest(ratios: Mapping[tuple[int, int], float]) -> tuple[int, int]:
    return min(ratios, key=lambda point: abs(math.log(ratios[point])))


def _nearest_count(space: _Space, ratio: Callable[[tuple[int, int]], float]) -> tuple[int, int]:
    """The point that `by_count` describes: widths outwards from where the preset's expansion fits, two by two."""
    plain = _root(lambda number: ratio(space.plain(number)), start=space.start, power=2.0)
    if not space.flexible:
        return _closest({space.plain(number): value for number, value in plain.items()})
    first = max((number for number, value in plain.items() if value <= 1), default=0)
    best: dict[tuple[int, int], float] = {}  # of every width its closest
    for ring in range(MOST_RINGS):
        for number in (first - ring, first + 1 + ring):
            if number >= 1:
                point = _closest(_expansions(space, number, ratio))
                best[point] = ratio(point)
        close = [point for point, value in best.items() if abs(value - 1) <= CLOSE]
        if close:
            return min(close, key=space.stretch)
    return _closest(best)


def _expansions(
    space: _Space,
    number: int,
    ratio: Callable[[tuple[int, int]], float],
    *,
    known: Mapping[int, float] | None = None,
    most: int | None = None,
) -> dict[tuple[int, int], float]:
    """The ratios of one width, around the expansion that fits. The last two arguments are those of `_root`."""
    width, hidden = space.plain(number)
    least, largest = space.bounds(width)
    solved = _root(
        lambda count: ratio((width, count * space.step)),
        start=hidden // space.step,
        power=1.0,
        least=least,
        largest=largest,
        known=known,
        most=most,
    )
    return {(width, count * space.step): value for count, value in solved.items()}


def _root(
    ratio: Callable[[int], float],
    *,
    start: int,
    power: float,
    least: int = 1,
    largest: int | None = None,
    known: Mapping[int, float] | None = None,
    most: int | None = None,
) -> dict[int, float]:
    """Evaluate a rising function of whole numbers around the place where it is 1.

    Secants in logarithms, kept between the largest number that is too small and the smallest that is too large, until
    these two are neighbours. So it ends even where noise makes the function fall.

    Args:
        ratio: the function, above 0.
        start: where to begin.
        power: of the number that the function is about proportional to.
        least, largest: the numbers that there are.
        known: values from before.
        most: evaluations; None is as many as it takes.

    Returns:
        Every value that is known, by its number.
    """
    found = dict(known or {})
    low, high = least - 1, FAR if largest is None else largest + 1
    guess, evaluated = start, 0
    while True:
        if guess not in found:
            if evaluated == most:
                return found
            found[guess] = ratio(guess)
            evaluated += 1
        if found[guess] <= 1:
            low = max(low, guess)
        if found[guess] >= 1:
            high = min(high, guess)
        if high - low <= 1:
            return found
        further = 2 * max(found) if high == FAR else high - 1  # not too far at once: a network may be huge
        guess = min(max(_secant(found, low, high, power=power), low + 1), further)


def _secant(found: Mapping[int, float], low: int, high: int, *, power: float) -> int:
    """Where the function is 1, by the two ends of the bracket, else by the two values that are nearest to 1."""
    ends = [number for number in (low, high) if number in found]
    near = sorted(found, key=lambda number: abs(math.log(found[number])))
    first, *others = ends if len(ends) == 2 else near
    slope = power
    if others:
        slope = math.log(found[others[0]] / found[first]) / math.log(others[0] / first)
        slope = min(max(slope, power / 8), 2 * power)  # noise, or a part that does not grow
    return round(first * math.exp(-math.log(found[first]) / slope))
