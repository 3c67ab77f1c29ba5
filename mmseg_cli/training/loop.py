"""The training loop: plain functions, no trainer object. Everything it needs is passed in.

Shapes: B = batch, C = 3 colours, H, W = height, width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmseg_cli.errors import NumericalStop
from mmseg_cli.evaluation.inference import normalise


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step did.

    Attributes:
        number: steps done, this one included.
        loss: before the update.
        learning_rate: used by the update.
        images: in the batch.
        seconds: wall time of the step, waiting for data included.
        waited: seconds of it spent waiting for data.
    """

    number: int
    loss: float
    learning_rate: float
    images: int
    seconds: float
    waited: float


def fit(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    learning_rate: Callable[[int], float],
    start: int,
    device: torch.device,
    channels_last: bool,
    clip_norm: float | None,
    on_step: Callable[[Step], None],
) -> None:
    """Train over all `batches`, in place.

    Args:
        network: on `device`, in training mode after every `on_step`.
        batches: (image_BCHW uint8, label or target) of steps start, start + 1, ...
        loss: of (logits, label or target).
        learning_rate: of a step's number, from 0.
        start: the number of steps already done.
        clip_norm: largest norm of the whole gradient, or None.
        on_step: called after each update; it may validate, save, or raise to stop.

    Raises:
        NumericalStop: the loss or the gradient is NaN or infinite; the weights are those before the update.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=layout)
    begun = time.perf_counter()
    for number, (image_BCHW, label) in enumerate(batches, start=start):
        waited = time.perf_counter() - begun
        network.train()
        rate = learning_rate(number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x_BCHW = normalise(image_BCHW, device=device).contiguous(memory_format=layout)
        value = loss(network(x_BCHW), label.to(device, non_blocking=True))
        scalar = value.item()
        if not math.isfinite(scalar):
            what = f"the loss is {scalar} at step {number + 1}"
            raise NumericalStop("training", what, "lower the learning rate or set clip_norm")
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(network.parameters(), math.inf if clip_norm is None else clip_norm).item()
        if not math.isfinite(norm):
            what = f"the gradient's norm is {norm} at step {number + 1}"
            raise NumericalStop("training", what, "lower the learning rate or set clip_norm")
        optimizer.step()
        now = time.perf_counter()
        on_step(Step(number + 1, scalar, rate, len(image_BCHW), now - begun, waited))
        begun = time.perf_counter()
