"""The processes that work on one run together, and what they say to each other. torch's own `env://` meeting: what
started them (`mmseg train --devices`, torchrun) has told each of them who it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmseg_cli import runtime
from mmseg_cli.errors import Interrupted

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # the first process writes checkpoints and checks data while the others wait


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        device: where this one computes.
        rank: 0 .. world - 1.
        world: how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks to the person."""
        return self.rank == 0

    def total(self, part: Tensor) -> Tensor:
        """The sum over all processes; exact for integers."""
        if self.world == 1:
            return part
        whole = part.detach().clone()
        dist.all_reduce(whole)
        return whole

    def gather(self, value: T) -> list[T]:
        """Any small value of every process, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def largest(self, value: int) -> int:
        """The largest of all processes' numbers; quicker than `gather`."""
        if self.world == 1:
            return value
        box = torch.tensor(value)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box)

    def meet(self) -> None:
        """Wait for all of them."""
        self.largest(0)

    def from_first(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.world == 1:
            return value
        box: list[Any] = [value if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[no-any-return]


@contextmanager
def joined(name: str) -> Iterator[Processes]:
    """Meet the other processes, on the device `name` (see `runtime.pick_device`), for as long as the block lasts.

    Raises:
        MmsegError: the device is not on this machine.
    """
    place = runtime.place()
    device = runtime.pick_device(name, local_rank=0 if place is None else place.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for what is given to no device by name: events, pinned memory
    if place is None:
        yield Processes(device=device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=place.rank, world_size=place.world, timeout=PATIENCE)
    try:
        yield Processes(device=device, rank=place.rank, world=place.world)
    except Interrupted:  # in all of them at once
        dist.destroy_process_group()
        raise
    # After any other error the others may sit in an exchange that never ends, and NCCL would wait for them here.
    dist.destroy_process_group()
