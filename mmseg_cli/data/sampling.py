"""Which item and which crop a training step sees: a pure function of (seed, step, position in the global batch).

Philox, a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), gives every
sample its own stream, so workers, ranks, variants and restarts cannot change the data order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.errors import MmsegError

_ORDER, _DRAW = 1, 2  # the two uses of a seed, each with streams of its own


@dataclass(frozen=True, slots=True)
class Draw:
    """The random part of one training sample. All uniform in [0, 1); what they mean is the transforms' business.

    Attributes:
        item: the position in the split.
        scale, aspect, top, left: shape and place of the crop.
        flip: mirror left and right.
        colour: three numbers for brightness, contrast and saturation.
        focus: three numbers for class-uniform crops: whether this is one, its class, and which place of that class.
        blur: two numbers: whether, and how much.
        mix: which way of mixing pictures.
        key: 63 bits that seed what draws its own numbers.
    """

    item: int
    scale: float
    aspect: float
    top: float
    left: float
    flip: bool
    colour: tuple[float, float, float]
    focus: tuple[float, float, float]
    blur: tuple[float, float]
    mix: float
    key: int


def _generator(seed: int, use: int, first: int, second: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, use], np.uint64), counter=[0, 0, first, second]))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, items: int) -> NDArray[np.int64]:
    """The order of one epoch: every item once."""
    return _generator(seed, _ORDER, epoch, 0).permutation(items)


def draw(*, seed: int, step: int, position: int, batch: int, items: int) -> Draw:
    """The sample at `position` of the global batch of `step`.

    Args:
        seed: the run's seed.
        step: the optimizer step, from 0.
        position: 0 .. batch - 1.
        batch: the global batch size.
        items: the number of items in the split; each epoch of `items` samples is a permutation of them.
    """
    epoch, place = divmod(step * batch + position, items)
    stream = _generator(seed, _DRAW, step, position)
    # A new number is drawn last, behind the key, so that it leaves all before it as they were.
    numbers = stream.random(14).tolist()
    scale, aspect, top, left, flip = numbers[:5]
    return Draw(
        item=int(_order(seed, epoch, items)[place]),
        scale=scale,
        aspect=aspect,
        top=top,
        left=left,
        flip=flip < 0.5,
        colour=(numbers[5], numbers[6], numbers[7]),
        focus=(numbers[8], numbers[9], numbers[10]),
        blur=(numbers[11], numbers[12]),
        mix=numbers[13],
        key=int(stream.integers(2**63)),
    )


def share(*, norm_batch: int, world: int) -> int:
    """The samples of one batch-norm statistic that each of `world` processes has.

    Raises:
        MmsegError: they cannot be shared out equally.
    """
    each, rest = divmod(norm_batch, world)
    if rest:
        what = f"{norm_batch} samples cannot be shared equally by {world} processes"
        fits = [str(count) for count in range(1, norm_batch + 1) if norm_batch % count == 0]
        raise MmsegError("norm_batch", what, f"use {', '.join(fits)} devices; another norm_batch is another experiment")
    return each


def at_once(*, batch: int, norm_batch: int, norm: str, chosen: int | None, world: int) -> int:
    """Samples that a process works on at once: its share of `norm_batch`, or fewer where no batch norm looks at them.

    Args:
        norm: of the network, as `network.norm`.
        chosen: `runtime.micro_batch`.

    Raises:
        MmsegError: `norm_batch` cannot be shared out equally, or `chosen` would change the batch norm's samples.
    """
    each = share(norm_batch=norm_batch, world=world)
    if chosen is None or chosen == each:
        return each
    if norm == "batch":
        what = f"{chosen} is not the {each} samples that norm_batch {norm_batch} leaves to a process"
        raise MmsegError("runtime.micro_batch", what, "set it to null; another norm_batch is another experiment")
    return min(chosen, batch // world)


def positions(*, batch: int, norm_batch: int, rank: int, world: int) -> list[int]:
    """The positions of the global batch that one process of several has, in the order in which it works on them.

    Each run of `norm_batch` positions is the sample of one batch-norm statistic, whatever the number of processes;
    every process has an equal, contiguous part of each.

    Args:
        batch: the global batch size, a multiple of `norm_batch`.

    Raises:
        MmsegError: `norm_batch` cannot be shared out equally.
    """
    each = share(norm_batch=norm_batch, world=world)
    starts = range(rank * each, batch, norm_batch)
    return [position for start in starts for position in range(start, start + each)]
