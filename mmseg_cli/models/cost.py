"""What a network costs: counted without running it, and measured by running it.

Counted (:func:`parameters`, :func:`macs`, :func:`activation_bytes`, :func:`inference_bytes`): the module runs on
torch's meta device, which knows shapes but holds no numbers, so a 1024x2048 image costs neither memory nor time, and
the counts are the same on every machine. Measured (:func:`step_seconds`, :func:`peak_training_bytes`): true for one
machine and one moment only; both give what was seen and leave statistics to the reader.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mmseg_cli.errors import ResourceError, ran_out
from mmseg_cli.models.blocks import build_block


@dataclass(frozen=True)
class Cost:
    """The counted cost of a module at one input size.

    Attributes:
        parameters: number of trainable and frozen weights.
        macs: multiply-accumulates of one forward pass.
        activation_bytes: bytes kept from the forward for the backward pass in training, in float32.
    """

    parameters: int
    macs: int
    activation_bytes: int


def describe(module: nn.Module, input_size: Sequence[int]) -> Cost:
    """Count the cost of ``module`` for one input of ``input_size`` (B, C, H, W).

    Building the module under ``torch.device("meta")`` saves its memory too.
    """
    return Cost(
        parameters=parameters(module),
        macs=macs(module, input_size),
        activation_bytes=activation_bytes(module, input_size),
    )


def block_cost(
    name: str,
    *,
    width: int,
    height: int,
    width_px: int,
    expansion: float,
    se_ratio: float,
    norm: str,
    activation: str,
) -> Cost:
    """Count the cost of one block from ``width`` to ``width`` channels on one map of ``height`` x ``width_px`` pixels.

    The other arguments are those of :func:`mmseg_cli.models.blocks.build_block`.

    Raises:
        MmsegError: a name is unknown.
    """
    with torch.device("meta"):
        block = build_block(
            name, width, width, expansion=expansion, se_ratio=se_ratio, norm=norm, activation=activation
        )
    return describe(block, (1, width, height, width_px))


def parameters(module: nn.Module) -> int:
    """Count the elements of all parameters, a shared one once; running statistics are no parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs(module: nn.Module, input_size: Sequence[int]) -> int:
    """Count the multiply-accumulates of one forward pass for one input of ``input_size`` (B, C, H, W).

    Half of what torch's flop counter finds, hence convolutions and linear layers only, as is the field's custom:
    normalisation, activation, pooling and resizing are not counted.
    """
    with _training_mode(module, on=False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _call_on_meta(module, input_size)
    flops: int = counter.get_total_flops()
    return flops // 2


def activation_bytes(module: nn.Module, input_size: Sequence[int]) -> int:
    """Count the bytes that autograd keeps for the backward pass of one training step, at float32.

    Every storage counts once, however many operations keep it; parameters and buffers do not count, the input does
    where an operation keeps it. This is a lower bound of what training needs: gradients, optimizer state and working
    memory come on top, see :func:`peak_training_bytes`.

    Raises:
        ValueError: batch norm met a single value per channel (a batch of one at a map of 1x1).
    """
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no freed storage's identity is used again

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage_identity(tensor)] = tensor
        return tensor

    with _training_mode(module, on=True), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, _same):
        state = _call_on_meta(module, input_size)
    for tensor in state.values():
        kept.pop(_storage_identity(tensor), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of all tensors that operations made and that somebody still holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)):
            identity, size = _storage_identity(tensor), tensor.untyped_storage().nbytes()
            if not self._holders.get(identity):
                self.now += size
                self.most = max(self.most, self.now)
            self._holders[identity] = self._holders.get(identity, 0) + 1
            weakref.finalize(tensor, self._let_go, identity, size)
        return made

    def _let_go(self, identity: int, size: int) -> None:
        self._holders[identity] -= 1
        if not self._holders[identity]:
            del self._holders[identity]
            self.now -= size


def inference_bytes(module: nn.Module, input_size: Sequence[int]) -> int:
    """Count the bytes of all activations that are alive at once, at most, in a forward pass without gradients.

    At float32, the output counts, the input and the weights do not; convolutions may need working memory on top.
    """
    state, x_BCHW = _on_meta(module), torch.empty(tuple(input_size), device="meta")
    with _training_mode(module, on=False), torch.no_grad(), _Alive() as alive:
        functional_call(module, state, (x_BCHW,))
    most: int = alive.most
    return most


def _storage_identity(tensor: Tensor) -> int:
    """Tell storages apart; their addresses do not, all of them being 0 on the meta device."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _call_on_meta(module: nn.Module, input_size: Sequence[int]) -> dict[str, Tensor]:
    """Run ``module`` on stand-ins without numbers for its weights and its input, and give the weights' stand-ins.

    The module itself, and where its weights lie, stay as they are.
    """
    state = _on_meta(module)
    functional_call(module, state, (torch.empty(tuple(input_size), device="meta"),))
    return state


def _on_meta(module: nn.Module) -> dict[str, Tensor]:
    """Stand-ins without numbers for a module's weights and buffers."""
    return {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


@contextlib.contextmanager
def _training_mode(module: nn.Module, *, on: bool) -> Iterator[None]:
    """Set training or evaluation mode for a while; every submodule gets its own mode back."""
    before = [(submodule, submodule.training) for submodule in module.modules()]
    module.train(on)
    try:
        yield
    finally:
        for submodule, training in before:
            submodule.training = training


def step_seconds(
    networks: Mapping[str, nn.Module],
    *,
    batch: int,
    height: int,
    width: int,
    repeats: int,
    warmup: int,
    device: str,
    autocast: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> dict[str, list[float]]:
    """Measure full training steps of several networks: forward, cross entropy, backward, SGD with momentum.

    The networks take turns (A B C A B C ...), so that a machine that slows down slows all of them alike. They are
    trained on noise, so pass throw-away ones; they end up on ``device`` in ``memory_format``.

    Args:
        networks: name -> a network from RGB images to logits ``(B, K)`` or ``(B, K, H, W)``.
        batch: images per step.
        height: of the images, in pixels.
        width: of the images, in pixels.
        repeats: measured rounds.
        warmup: rounds before them that are not measured.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        autocast: the type for automatic mixed precision, such as ``torch.bfloat16``; None for float32.
        memory_format: of images and weights.

    Returns:
        Name -> seconds of each measured step, in the order of measurement.
    """
    steps = {
        name: _training_step(
            network,
            batch=batch,
            height=height,
            width=width,
            device=device,
            autocast=autocast,
            memory_format=memory_format,
        )
        for name, network in networks.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(warmup + repeats):
        for name, step in steps.items():
            _wait_for(device)
            start = time.perf_counter()
            step()
            _wait_for(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _training_step(
    network: nn.Module,
    *,
    batch: int,
    height: int,
    width: int,
    device: str,
    autocast: torch.dtype | None,
    memory_format: torch.memory_format,
) -> Callable[[], None]:
    """Put ``network`` on ``device`` and give a function that trains it by one step on fixed noise."""
    network.to(device=device)
    network.to(memory_format=memory_format)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.rand(batch, 3, height, width, generator=generator).to(
        device=device, memory_format=memory_format
    )

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
            logits_BKHW = network(images_BCHW)
        target_BHW = torch.zeros(logits_BKHW.shape[:1] + logits_BKHW.shape[2:], dtype=torch.long, device=device)
        loss = F.cross_entropy(logits_BKHW.float(), target_BHW)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def _wait_for(device: str) -> None:
    """Wait until ``device`` has done all that it was given; the CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_training_bytes(
    make_network: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    *,
    batch: int,
    height: int,
    width: int,
    device: str,
    autocast: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> int:
    """Measure the peak memory of training: weights, gradients, momentum, activations and working memory.

    Two training steps as in :func:`step_seconds` are run, so that the second finds the optimizer's state in place,
    and what was in use before the network was built is subtracted. On CUDA the peak is that of torch's allocator. On
    the CPU it is that of the resident memory of a fresh process (which loads torch, about a second), because
    what an allocator keeps from earlier work would count otherwise.

    Args:
        make_network: builds the network. For the CPU it goes to another process, so it must be a module's top-level
            function, such as :func:`mmseg_cli.models.unet.build_network`.
        arguments: the keyword arguments of ``make_network``.
        batch: images per step.
        height: of the images, in pixels.
        width: of the images, in pixels.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        autocast: the type for automatic mixed precision; None for float32.
        memory_format: of weights and images.

    Returns:
        Peak bytes above what was in use before.

    Raises:
        MmsegError: from ``make_network``.
        ResourceError: the memory does not suffice.
    """
    if torch.device(device).type == "cuda":
        return _peak_on_cuda(make_network, arguments, batch, height, width, device, autocast, memory_format)
    with torch.device("meta"):
        make_network(**arguments)  # a bad argument raises here, in one line, and not in the other process
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        measuring = pool.submit(
            _peak_on_cpu,
            make_network,
            arguments,
            batch,
            height,
            width,
            autocast,
            memory_format,
            torch.get_num_threads(),
        )
        try:
            return measuring.result()
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, BrokenProcessPool) or ran_out(error):
                raise ResourceError("cpu", "not enough memory for this step", "use a smaller batch") from error
            raise


def _two_steps(
    make_network: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    batch: int,
    height: int,
    width: int,
    device: str,
    autocast: torch.dtype | None,
    memory_format: torch.memory_format,
) -> None:
    step = _training_step(
        make_network(**arguments),
        batch=batch,
        height=height,
        width=width,
        device=device,
        autocast=autocast,
        memory_format=memory_format,
    )
    step()
    step()
    _wait_for(device)


def _peak_on_cuda(
    make_network: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    batch: int,
    height: int,
    width: int,
    device: str,
    autocast: torch.dtype | None,
    memory_format: torch.memory_format,
) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        _two_steps(make_network, arguments, batch, height, width, device, autocast, memory_format)
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(device, "not enough memory for this step", "use a smaller batch") from error
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(
    make_network: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    batch: int,
    height: int,
    width: int,
    autocast: torch.dtype | None,
    memory_format: torch.memory_format,
    threads: int,
) -> int:
    torch.set_num_threads(threads)
    # Loads the libraries that the first step of any network needs: they are no network's cost.
    warm_up = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    for _ in range(2):
        _two_steps(lambda: warm_up, {}, 2, 16, 16, "cpu", autocast, memory_format)
    gc.collect()
    before = restart_peak()
    _two_steps(make_network, arguments, batch, height, width, "cpu", autocast, memory_format)
    return peak_resident_bytes() - before


def restart_peak() -> int:
    """Restart the peak of this process's resident memory where the system can, and give what is resident now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: see proc(5)
    resident = _proc_status_bytes("VmRSS")
    return peak_resident_bytes() if resident is None else resident


def peak_resident_bytes() -> int:
    """The peak of this process's resident memory since `restart_peak`, or since its start."""
    peak = _proc_status_bytes("VmHWM")
    if peak is not None:
        return peak
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _proc_status_bytes(field: str) -> int | None:
    """Read a field of /proc/self/status, which is in KiB; None where there is no such file or field."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
