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
from functools import partial

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
        seconds: wall time since the step before, waiting for data included and pauses left out. A GPU that computes
            for longer than it takes to give it the next step is waited for in the next one's.
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


@dataclass(frozen=True)
class _Taken:
    """A step that was given to the device, and whose numbers may still be on their way.

    Attributes:
        made: the step, from its loss and its gradient's norm.
        numbers: the loss of the global batch, the gradient's norm, and the loss of this process's part.
        ready: recorded when they have arrived; None where they have already.
        overflows: whether an infinite gradient is the scaler's business, which leaves that update out.
        images, target: what the step was taken on.
    """

    made: Callable[..., Step]
    numbers: Tensor
    ready: torch.cuda.Event | None
    overflows: bool
    images: Tensor
    target: Tensor

    def read(self) -> Step:
        """Wait for the numbers.

        Raises:
            NotFinite: they are not.
        """
        _wait(self.ready)
        loss, norm, own = self.numbers.tolist()
        step = self.made(loss=loss, gradient_norm=norm)
        if math.isfinite(loss) and (self.overflows or math.isfinite(norm)):
            return step
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        here = math.isfinite(loss) or not math.isfinite(own)
        raise NotFinite(step=step.number, what=what, images=self.images, target=self.target, here=here)


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
    pauses: Callable[[int], bool] = lambda _step: False,
    on_pause: Callable[[int], None] = lambda _step: None,
) -> None:
    """Train over all `batches`, in place.

    A GPU is given one step after the other without waiting for any: the numbers of a step are read while the next one
    runs, but for the steps that pause. An update with a loss or a gradient that is not finite is left out by the
    optimizer itself, and so is every later one, so that the weights are those before it when that is found out.

    Args:
        state: on the device, its network in the layout of `channels_last`, in training mode after every `on_pause`.
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
        on_step: told of each update, in order; the state may be a step further.
        pauses: whether `on_pause` is called after a step, from 1; asked once a step, in all processes.
        on_pause: called when all steps up to this one were told; it may validate, save, or raise to stop.

    Raises:
        NotFinite: in all processes at once.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    parameters = list(state.network.parameters())
    device = processes.device
    dtype = PRECISIONS[precision]
    # The scaler of float16 decides about updates by itself, so there each step is looked at before the next.
    waits = device.type != "cuda" or state.scaler.is_enabled()
    broken = torch.zeros((), device=device)  # 1 from the first number that is not finite on
    untold: list[_Taken] = []

    def tell() -> None:
        while untold:
            on_step(untold.pop(0).read())

    begun = asked = time.perf_counter()
    state.network.train()
    for number, (image_BCHW, target) in enumerate(batches, start=start):
        waited = time.perf_counter() - asked
        runtime.failpoint("step", at=number + 1)
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
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)
        whole = processes.total(loss)
        broken = torch.where(torch.isfinite(whole) & torch.isfinite(norm), broken, 1)
        overflows = state.scaler.is_enabled() and state.scaler.get_scale() > 1  # until its halving is used up
        _update(state, loss=whole, broken=broken)
        numbers, ready = _on_its_way(torch.stack([whole, norm, loss]))
        tell()  # the step before: this one runs meanwhile
        pausing = not waits and pauses(number + 1)
        if waits or pausing:
            _wait(ready)
        now = time.perf_counter()
        made = partial(
            Step,
            number=number + 1,
            learning_rate=rate,
            images=len(image_BCHW) * processes.world,
            seconds=now - begun,
            waited=waited,
            data=data,
        )
        begun = now
        untold.append(_Taken(made, numbers, ready, overflows, image_BCHW, target))
        if waits or pausing:
            tell()
        state.follow(step=number + 1, broken=None if waits else broken)
        if pausing or (waits and pauses(number + 1)):
            on_pause(number + 1)
            state.network.train()
            begun = time.perf_counter()
        asked = time.perf_counter()
    tell()


def _update(state: State, *, loss: Tensor, broken: Tensor) -> None:
    """Let the optimizer go its step, unless a number is broken: fused optimizers look at that on the device."""
    if state.scaler.is_enabled():
        if math.isfinite(loss.item()):  # the scaler sees to the gradient alone
            state.scaler.step(state.optimizer)
            state.scaler.update()
        return
    state.optimizer.found_inf = broken  # type: ignore[attr-defined]  # how torch's own scaler tells them
    state.optimizer.step()
    del state.optimizer.found_inf  # type: ignore[attr-defined]


def _on_its_way(numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Numbers in the host's memory, and the event after which they are there; None: they are."""
    if not numbers.is_cuda:
        return numbers, None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record(torch.cuda.current_stream(numbers.device))
    return host, ready


def _wait(ready: torch.cuda.Event | None) -> None:
    if ready is not None:
        ready.synchronize()


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
