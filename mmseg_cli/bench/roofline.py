"""What a training step should take if nothing but arithmetic and memory traffic took time (Williams et al. 2009).

Each convolution takes the longer of its arithmetic at the device's matrix peak and its traffic at its bandwidth; each
without a bias is charged the traffic of a norm and an activation behind it as well. Residual sums, squeeze-excite's
scale, resizing, the loss and the optimizer are not in it. Counted on torch's meta device, from the sizes of what each
convolution reads and writes. No cache is taken into account, so a network whose maps fit into it may be faster.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_cli.bench.peers import build_ours

FLOAT = 4  # bytes
PASSES = 3  # of a convolution in a training step: forward, and backward to its input and to its weights
# Times that a norm with its activation moves its map. Forward: read twice for the statistics, read and written, read
# and written by the activation. Backward: both once more (4), the activation's (3), the norm's sums (2) and map (3).
NORM_TRAFFIC = 18


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Attributes:
        flops: operations a second, of products of large matrices.
        bandwidth: bytes a second, read and written, of a copy of a large array.
    """

    flops: float
    bandwidth: float


def step_seconds(network: Mapping[str, Any], *, classes: int, batch: int, size: Sequence[int], device: Device) -> float:
    """The roofline of one training step of one of our networks; the loss and the optimizer are left out."""
    with torch.device("meta"):
        made = build_ours(network=network, classes=classes).eval()
    images_BCHW = torch.empty((batch, 3, *size), device="meta")
    with torch.no_grad(), _Convolutions(device) as counted:
        made(images_BCHW)
    seconds: float = counted.seconds
    return seconds


class _Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what convolutions take, with the norms and activations behind them."""

    def __init__(self, device: Device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            read, weight = args[0], args[1]
            operations = 2 * made.numel() * weight[0].numel()
            traffic = FLOAT * (read.numel() + made.numel() + weight.numel())
            self.seconds += PASSES * max(operations / self.device.flops, traffic / self.device.bandwidth)
            if args[2] is None:  # no bias: a norm follows, but for the first of a separable pair and a joined half
                self.seconds += NORM_TRAFFIC * FLOAT * made.numel() / self.device.bandwidth
        return made
