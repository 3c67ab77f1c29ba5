"""What a network costs: counted without running it, and measured by running it.

Counted (:func:`parameters`, :func:`macs`, :func:`activation_bytes`, :func:`inference_bytes`): the module runs on
torch's meta device, which knows shapes but holds no numbers, so a 1024x2048 image costs neither memory nor time, and
the counts are the same on every machine. Measured (:func:`step_seconds`, :func:`inference_seconds`,
:func:`step_joules`, :func:`peak_training_bytes`): true for one machine and one moment only; all give what was seen and
leave statistics to the reader.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mmseg_cli import runtime
from mmseg_cli.errors import ResourceError, ran_out
from mmseg_cli.models.blocks import build_block
from mmseg_cli.models.resizing import enlarged_cross_entropy
from mmseg_cli.models.unet import inference_callable, training_callable

TRAINING_FLOPS = 6  # for each multiply-accumulate: two operations forward, and two backward to inputs and to weights


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


def wait(device: torch.device) -> None:
    """Wait until `device` has done all that it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def true_float32() -> contextlib.AbstractContextManager[None]:
    """Inside the block float32 convolutions on CUDA are without TF32, as `mmseg evaluate` predicts."""
    return runtime.switched(torch.backends.cudnn, "allow_tf32", False)


def mean_cross_entropy(logits: Tensor, class_BHW: Tensor) -> Tensor:
    """As training computes it: of logits_BKhw at the labels' size, or of a classification's logits_BK."""
    if logits.ndim == 2:
        return F.cross_entropy(logits, class_BHW[:, 0, 0])
    share_BHW = torch.full(class_BHW.shape, 1 / class_BHW.numel(), device=logits.device)
    return enlarged_cross_entropy(logits, class_BHW, share_BHW)


@dataclass(frozen=True)
class Work:
    """What a measured network works on, and how.

    Attributes:
        batch: images at once.
        height, width: of the images, in pixels.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        autocast: the type for automatic mixed precision, such as ``torch.bfloat16``; None for float32.
        memory_format: of images and weights.
        loss: of float32 logits and class_BHW, int64 at the images' size; at a module's top level.
    """

    batch: int
    height: int
    width: int
    device: str
    autocast: torch.dtype | None = None
    memory_format: torch.memory_format = torch.channels_last
    loss: Callable[[Tensor, Tensor], Tensor] = mean_cross_entropy

    def images(self) -> Tensor:
        """Noise in [0, 1), the same every time: x_BCHW on the device."""
        generator = torch.Generator().manual_seed(0)
        images_BCHW = torch.rand(self.batch, 3, self.height, self.width, generator=generator)
        return images_BCHW.to(device=self.device, memory_format=self.memory_format)

    def run(self, network: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> Tensor:
        """The network's logits, in its precision."""
        with self._precision():
            return network(images_BCHW)

    def prediction(self, network: nn.Module) -> Callable[[], Tensor]:
        """Place a network, and give a call that predicts :meth:`images` by it as `mmseg predict` does.

        Make it, and call it, without gradients and with :func:`true_float32`.

        Raises:
            NotCaptured: it cannot be captured as a CUDA graph.
        """
        self.place(network)
        images_BCHW = self.images()
        with self._precision():
            call = inference_callable(network.eval(), images_BCHW)
        return lambda: self.run(call, images_BCHW)

    def _precision(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, dtype=self.autocast, enabled=self.autocast is not None)

    def place(self, network: nn.Module) -> None:
        """Move a network to the device, in the memory format, without the gradients of earlier work."""
        network.zero_grad(set_to_none=True)
        network.to(device=self.device)
        network.to(memory_format=self.memory_format)

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        wait(torch.device(self.device))


def _nothing() -> None:
    pass


def step_seconds(
    networks: Mapping[str, nn.Module],
    *,
    work: Work,
    repeats: int,
    warmup: int,
    advance: Callable[[], None] = _nothing,
) -> dict[str, list[float]]:
    """Measure full training steps of several networks: forward, cross entropy, backward, SGD with momentum.

    The networks take turns (A B C A B C ...), so that a machine that slows down slows all of them alike. They are
    trained on noise, so pass throw-away ones; they end up on the work's device, in its memory format.

    Args:
        networks: name -> a network from RGB images to logits ``(B, K)`` or ``(B, K, H, W)``.
        work: of one step.
        repeats: measured rounds.
        warmup: rounds before them that are not measured.
        advance: called after each round.

    Returns:
        Name -> seconds of each measured step, in the order of measurement.
    """
    steps = {name: training_step(network, work=work) for name, network in networks.items()}
    return _in_turns(steps, read=time.perf_counter, work=work, rounds=range(-warmup, repeats), advance=advance)


def inference_seconds(
    networks: Mapping[str, nn.Module],
    *,
    work: Work,
    repeats: int,
    warmup: int,
    advance: Callable[[], None] = _nothing,
) -> dict[str, list[float]]:
    """Measure forward passes of several networks in evaluation mode, from images on the device to logits there.

    With a ``work`` of one image it is the latency. The network is as :mod:`mmseg_cli.evaluation.on_torch` has it: batch
    norms are not folded and nothing is compiled, on an NVIDIA GPU it is one launch, and float32 is without TF32.
    Reading, moving and normalising images, and the search for the largest logit, are not in it.

    The networks take turns, and the arguments are those of :func:`step_seconds`. Logits may be of any shape.

    Returns:
        Name -> seconds of each measured pass, in the order of measurement.
    """
    with torch.inference_mode(), true_float32():
        passes = {name: work.prediction(network) for name, network in networks.items()}
        return _in_turns(passes, read=time.perf_counter, work=work, rounds=range(-warmup, repeats), advance=advance)


def step_joules(
    networks: Mapping[str, nn.Module],
    *,
    work: Work,
    meter: Callable[[], float],
    seconds: float,
    repeats: int,
    warmup: int,
    advance: Callable[[], None] = _nothing,
) -> dict[str, list[float]]:
    """Measure the energy of training steps as in :func:`step_seconds`; the networks take turns, run by run.

    NVML renews its counter about every 100 ms, so a single step cannot be read; of a run of some seconds the two ends
    weigh little ("Thermally Stable Profiling for Accurate GPU Energy Measurement", ml.energy/blog). It is the energy
    of the whole device, with what it takes when idle and what others do on it, as far as the device knows: A100 and
    H100 look at their power in a quarter of the time only (arXiv 2312.02741).

    Args:
        networks: as in :func:`step_seconds`.
        work: of one step.
        meter: the joules that the device has used so far.
        seconds: that a run takes, roughly; at least one step is run.
        repeats: measured runs of each network.
        warmup: rounds of one step before them.
        advance: called after each round of runs.

    Returns:
        Name -> joules of one step, the mean over each measured run, in the order of measurement.
    """
    steps = {name: training_step(network, work=work) for name, network in networks.items()}
    once = _in_turns(steps, read=time.perf_counter, work=work, rounds=range(-warmup, 1), advance=_nothing)
    counts = {name: max(1, math.ceil(seconds / taken)) for name, (taken,) in once.items()}

    def run(step: Callable[[], object], count: int) -> Callable[[], object]:
        return lambda: [step() for _ in range(count)]

    runs = {name: run(step, counts[name]) for name, step in steps.items()}
    joules = _in_turns(runs, read=meter, work=work, rounds=range(repeats), advance=advance)
    return {name: [value / counts[name] for value in values] for name, values in joules.items()}


def _in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    read: Callable[[], float],
    work: Work,
    rounds: range,
    advance: Callable[[], None],
) -> dict[str, list[float]]:
    """How much `read` grows during each call, round by round; the rounds below 0 do not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in rounds:
        for name, call in calls.items():
            work.wait()
            before = read()
            call()
            work.wait()
            if turn >= 0:
                taken[name].append(read() - before)
        advance()
    return taken


def training_step(network: nn.Module, *, work: Work) -> Callable[[], None]:
    """Place ``network`` and give a function that trains it by one step on fixed noise."""
    work.place(network)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)
    images_BCHW = work.images()
    model: Any = training_callable(network, images_BCHW, autocast=work.autocast)
    class_BHW = torch.zeros((work.batch, work.height, work.width), dtype=torch.long, device=work.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = work.loss(work.run(model, images_BCHW).float(), class_BHW)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def peak_training_bytes(make_network: Callable[..., nn.Module], arguments: Mapping[str, Any], *, work: Work) -> int:
    """Measure the peak memory of training: weights, gradients, momentum, activations and working memory.

    Two training steps as in :func:`step_seconds` are run, so that the second finds the optimizer's state in place,
    and what was in use before the network was built is subtracted. On CUDA the peak is what torch holds in the second
    step, in which it no longer tries algorithms: blocks of 2 to 20 MiB, so small networks are told coarsely. On
    the CPU it is that of the resident memory of a fresh process (which loads torch, about a second), because
    what an allocator keeps from earlier work would count otherwise.

    Args:
        make_network: builds the network. For the CPU it goes to another process, so it must be a module's top-level
            function, such as :func:`mmseg_cli.models.unet.build_network`.
        arguments: the keyword arguments of ``make_network``.
        work: of one step.

    Returns:
        Peak bytes above what was in use before.

    Raises:
        MmsegError: from ``make_network``.
        ResourceError: the memory does not suffice.
    """
    if torch.device(work.device).type == "cuda":
        return _peak_on_cuda(make_network, arguments, work)
    with torch.device("meta"):
        make_network(**arguments)  # a bad argument raises here, in one line, and not in the other process
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        measuring = pool.submit(_peak_on_cpu, make_network, arguments, work, torch.get_num_threads())
        try:
            return measuring.result()
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, BrokenProcessPool) or ran_out(error):
                raise ResourceError("cpu", "not enough memory for this step", "use a smaller batch") from error
            raise


def _two_steps(network: nn.Module, work: Work, *, between: Callable[[], object] = _nothing) -> None:
    step = training_step(network, work=work)
    step()
    work.wait()
    between()
    step()
    work.wait()


def _peak_on_cuda(make_network: Callable[..., nn.Module], arguments: Mapping[str, Any], work: Work) -> int:
    gc.collect()
    device = torch.device(work.device)
    before = restart_peak(device)
    try:  # in the first step cuDNN tries its algorithms
        _two_steps(make_network(**arguments), work, between=lambda: restart_peak(device))
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(work.device, "not enough memory for this step", "use a smaller batch") from error
    return peak_bytes(device) - before


def _peak_on_cpu(make_network: Callable[..., nn.Module], arguments: Mapping[str, Any], work: Work, threads: int) -> int:
    torch.set_num_threads(threads)
    runtime.keep_freed_memory()  # as training does
    # Loads the libraries that the first step of any network needs: they are no network's cost.
    warm_up = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    for _ in range(2):
        _two_steps(warm_up, replace(work, batch=2, height=16, width=16))
    gc.collect()
    cpu = torch.device("cpu")
    before = restart_peak(cpu)
    _two_steps(make_network(**arguments), work)
    return peak_bytes(cpu) - before


def restart_peak(device: torch.device) -> int:
    """Restart the peak of the bytes that this process has of a device, and give those of now.

    Of a GPU those that torch holds, after it has given back what it does not use. Of the CPU the resident memory, where
    the system can restart its peak.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_reserved(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: see proc(5)
    resident = _proc_status_bytes("VmRSS")
    return peak_bytes(device) if resident is None else resident


def peak_bytes(device: torch.device) -> int:
    """The most that this process had of a device since `restart_peak`, or since its start.

    Of a GPU what torch held and not what it had allocated: the maps of a CUDA graph count as allocated in its capture
    only, but are its own for ever.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
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
