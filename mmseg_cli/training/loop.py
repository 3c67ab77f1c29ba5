"""The training loop: plain functions, no trainer object. Everything it needs is passed in.

A step's global batch is worked on in parts: over processes, and one after the other (gradient accumulation). The loss
is one number for the whole of it however it is divided, and so is its gradient.

Shapes: B = batch, C = 3 colours, H, W = height, width, T = terms of the loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmseg_cli import runtime
from mmseg_cli.evaluation.inference import normalise
from mmseg_cli.processes import Processes
from mmseg_cli.training.losses import Objective
from mmseg_cli.training.state import State

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step did.

    Attributes:
        number: steps done, this one included.
        loss: of the global batch, before the update.
        gradient_norm: of the whole gradient, before clipping.
        learning_rate: used by the update.
        images: in the global batch.
        seconds: wall time of the step, waiting for data included.
        waited: seconds of it spent waiting for data.
        data: digest of the pixels and labels that all processes saw, of the steps that are logged.
    """

    number: int
    loss: float
    gradient_norm: float
    learning_rate: float
    images: int
    seconds: float
    waited: float
    data: str | None = None


class NotFinite(Exception):
    """The loss or the gradient is NaN or infinite; the weights are those before the update.

    Args:
        step: which one, from 1.
        what: the number at fault, in words.
        images: image_BCHW uint8 of this process's part of the batch.
        target: what goes with them.
        here: whether this process's part is at fault, as far as that can be told.
    """

    def __init__(self, *, step: int, what: str, images: Tensor, target: Tensor, here: bool) -> None:
        super().__init__(f"{what} at step {step}")
        self.step, self.what, self.images, self.target, self.here = step, what, images, target, here


def fit(
    state: State,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    model: Callable[[Tensor], Tensor | list[Tensor]],
    processes: Processes,
    objective: Objective,
    learning_rate: Callable[[int], float],
    start: int,
    micro_batch: int,
    precision: str,
    channels_last: bool,
    clip_norm: float | None,
    seed: int,
    log_data: Callable[[int], bool],
    on_step: Callable[[Step], None],
) -> None:
    """Train over all `batches`, in place.

    Args:
        state: on the device, its network in the layout of `channels_last`, in training mode after every `on_step`.
        batches: this process's part (image_BCHW uint8, label or target) of steps start, start + 1, ...
        model: the state's network as it is called: itself, compiled, or for several processes.
        objective: the loss.
        learning_rate: of a step's number, from 0.
        start: the number of steps already done.
        micro_batch: samples that are worked on at once in this process.
        precision: a key of PRECISIONS, for automatic mixed precision; weights, gradients and sums are float32.
        clip_norm: largest norm of the whole gradient, or None.
        seed: of everything that the network draws in training, by step, process and part.
        log_data: whether the data of a step, from 1, are digested.
        on_step: called after each update; it may validate, save, or raise to stop.

    Raises:
        NotFinite: in all processes at once.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    parameters = list(state.network.parameters())
    device = processes.device
    dtype = PRECISIONS[precision]
    begun = time.perf_counter()
    for number, (image_BCHW, target) in enumerate(batches, start=start):
        waited = time.perf_counter() - begun
        runtime.failpoint("step", at=number + 1)
        state.network.train()
        rate = learning_rate(number)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        data = digest(image_BCHW, target, processes=processes) if log_data(number + 1) else None
        images = torch.split(image_BCHW, micro_batch)
        targets = [part.to(device, non_blocking=True) for part in torch.split(target, micro_batch)]
        weights_T = processes.total(torch.stack([objective.weights(part) for part in targets]).sum(0))
        state.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        for index, (image, part) in enumerate(zip(images, targets, strict=True)):
            _seed(seed, number, processes.rank, index)
            x_BCHW = normalise(image, device=device).contiguous(memory_format=layout)
            with _reduced_when(model, last=index == len(images) - 1):
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    outputs = model(x_BCHW)
                value = objective(outputs, part, weights=weights_T)
                loss += value.detach()
                # DDP divides the sum over processes by their number; the weights are already those of all of them.
                torch.autograd.backward(state.scaler.scale(value * processes.world))
        scalar = processes.total(loss).item()
        if not math.isfinite(scalar):
            here = not math.isfinite(loss.item())
            raise NotFinite(step=number + 1, what=f"the loss is {scalar}", images=image_BCHW, target=target, here=here)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm).item()
        # Under float16 the scaler leaves out an update that overflowed, and halves its scale: until that is used up.
        if not math.isfinite(norm) and state.scaler.get_scale() <= 1:
            raise NotFinite(
                step=number + 1, what=f"the gradient's norm is {norm}", images=image_BCHW, target=target, here=True
            )
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.follow(step=number + 1)
        now = time.perf_counter()
        size = len(image_BCHW) * processes.world
        on_step(Step(number + 1, scalar, norm, rate, size, now - begun, waited, data))
        begun = time.perf_counter()


def digest(image_BCHW: Tensor, target: Tensor, *, processes: Processes) -> str:
    """16 hex digits of all samples of a global batch, images and targets, however many processes share it."""
    image_BHWC = image_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
    targets = target.contiguous().numpy()
    own = [
        hashlib.blake2b(image_HWC.tobytes() + one.tobytes(), digest_size=8).digest()
        for image_HWC, one in zip(image_BHWC, targets, strict=True)
    ]
    every = sorted(sample for part in processes.gather(own) for sample in part)
    return hashlib.blake2b(b"".join(every), digest_size=8).hexdigest()


def _seed(*numbers: int) -> None:
    """Seed torch's generators by where in the run we are, so that no generator's state has to be kept."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _reduced_when(model: object, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """Processes add up their gradients once a step, in the last part's backward pass."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()
