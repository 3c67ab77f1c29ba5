"""What a benchmark says of its machine: the environment, and what the device can do at best.

Shapes: none; rates are one number a round, the first of which does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from mmseg_cli import provenance, runtime
from mmseg_cli.models.cost import wait

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices whose product gives the device's peak
STREAM_BYTES = 2**28  # of the array whose copy gives the bandwidth
ROUNDS = 7
CALLS = 3  # in a round


def environment_of(device: torch.device) -> dict[str, str | int]:
    """What a reader needs to judge a timing on `device`."""
    accelerator = provenance.accelerator(str(device))
    if accelerator is None:
        return runtime.environment()
    tf32 = "on" if torch.backends.cudnn.allow_tf32 else "off"
    return runtime.environment() | {"accelerator": accelerator, "TF32 of float32's convolutions": tf32}


def matrix_peak(device: torch.device, dtype: torch.dtype) -> list[float]:
    """FLOP/s of products of two large square matrices; of float32 in TF32 where convolutions train in it."""
    size = PEAK_SIZE[device.type]
    one, other = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    with runtime.switched(torch.backends.cuda.matmul, "allow_tf32", torch.backends.cudnn.allow_tf32):
        return _rates(lambda: one @ other, units=2 * size**3, device=device)


def bandwidth(device: torch.device) -> list[float]:
    """Bytes a second, read and written, of copies of a large array."""
    source = torch.ones(STREAM_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return _rates(lambda: target.copy_(source), units=2 * STREAM_BYTES, device=device)


def _rates(call: Callable[[], object], *, units: int, device: torch.device) -> list[float]:
    rates = []
    for _ in range(ROUNDS + 1):
        wait(device)
        begun = time.perf_counter()
        for _ in range(CALLS):
            call()
        wait(device)
        rates.append(CALLS * units / (time.perf_counter() - begun))
    return rates[1:]
