"""Training's forward and backward pass of a network as one launch each, and evaluation's forward pass, by CUDA graphs.

A GPU is faster than the host can give it the thousands of small kernels of a deep network. A graph is given at once.
It runs the very kernels that it was captured from, on the same memory; those of ours are :mod:`mmseg_cli.models.fused`.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_cli.errors import NotCaptured, first_line, ran_out
from mmseg_cli.models import fused

SHAPES = 12  # of images that are captured for prediction: each holds its images and logits
_lock = threading.Lock()  # graphs share what they work in


class Graphed:
    """A network in training, as it is called; captured at once, for images of one shape and one precision.

    Any other call goes to the network itself. What a network decides in Python is decided once: give it none that draws
    or counts there. Its weights and buffers must stay where they are, as optimizers and `load_state_dict` leave them.
    Make it before another thread works for the GPU, such as one that pins a loader's batches: a capture bears none.

    Args:
        network: on a GPU; set to training mode, in which it is to be whenever this is called.
        like_BCHW: images of the kind that it will be called with.
        autocast: the type of mixed precision, as in `torch.autocast`; None for float32.

    Raises:
        NotCaptured: it cannot be captured, because it waits for the device, say.
    """

    def __init__(self, network: nn.Module, like_BCHW: Tensor, *, autocast: torch.dtype | None) -> None:
        self._network = network
        self._key = _key(like_BCHW, autocast is not None)
        self._replay = _captured(network.train(), like_BCHW, autocast)

    def __call__(self, x_BCHW: Tensor) -> Any:
        """What the network gives; the next call overwrites it."""
        if _key(x_BCHW, torch.is_autocast_enabled("cuda")) != self._key:
            return self._network(x_BCHW)
        for parameter in self._network.parameters():  # of samples before: the graph's own memory, which it overwrites
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        with torch.cuda.device(x_BCHW.device):
            return self._replay(x_BCHW)


class Replayed:
    """What a network does without gradients, captured for each shape of images when it comes for the second time.

    Before that, and for shapes after the first SHAPES, the same kernels are launched one by one: the same bits,
    whatever came before. Where a graph cannot be captured, for want of memory, say, a warning tells, and from then on
    all is launched one by one. One thread at a time replays; a stream of its own has to wait for what it gets.

    Args:
        call: images on a GPU to one tensor; it does the same every time, and all tensors that it reads stay where they
            are.
    """

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        self._call = call
        self._seen: set[Any] = set()
        self._graphs: dict[Any, _Graph] = {}
        self._most = SHAPES

    @torch.inference_mode()
    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """What the call gives."""
        key = _shape_and_precision(x_BCHW)
        with self._at_work(x_BCHW.device):
            if key not in self._graphs and key in self._seen and len(self._graphs) < self._most:
                try:
                    self._graphs[key] = _Graph(self._call, x_BCHW)
                except RuntimeError as error:
                    self._give_up(x_BCHW.device, error)
            self._seen.add(key)
            return self._graphs[key].replay(x_BCHW) if key in self._graphs else self._call(x_BCHW)

    @torch.inference_mode()
    def capture(self, like_BCHW: Tensor) -> None:
        """Capture such images now.

        Raises:
            NotCaptured: that cannot be done.
        """
        with self._at_work(like_BCHW.device):
            self._call(like_BCHW)
            try:
                self._graphs[_shape_and_precision(like_BCHW)] = _Graph(self._call, like_BCHW)
            except RuntimeError as error:
                if ran_out(error):
                    raise
                raise _not_captured(like_BCHW.device, error, "measure on a CPU, which does without") from error

    @contextmanager
    def _at_work(self, device: torch.device) -> Iterator[None]:
        with _lock, torch.cuda.device(device), fused.precision_now("cuda"), fused.serving(device):
            yield

    def _give_up(self, device: torch.device, error: RuntimeError) -> None:
        self._graphs, self._most = {}, 0
        _place.cache_clear()  # torch has left the memory as if something were still captured
        warnings.warn(f"{_not_captured(device, error, 'predicting is slower without')}", stacklevel=3)


class _Graph:
    """A captured call."""

    def __init__(self, call: Callable[[Tensor], Tensor], like_BCHW: Tensor) -> None:
        self._given_BCHW = like_BCHW.clone()
        torch.cuda.empty_cache()  # what calls before worked in, which another stream cannot take
        aside, memory = _place(like_BCHW.device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            call(self._given_BCHW)  # what is built or tried at a first call cannot be captured
            gc.collect()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=memory, stream=aside, capture_error_mode="thread_local"):
                self._made = call(self._given_BCHW)
        torch.cuda.current_stream().wait_stream(aside)

    def replay(self, x_BCHW: Tensor) -> Tensor:
        """What the call gives: a copy, as another graph writes into the same memory."""
        self._given_BCHW.copy_(x_BCHW)
        self._graph.replay()
        return self._made.clone()


@cache
def _place(device: torch.device) -> tuple[torch.cuda.Stream, Any]:
    """Where all graphs that predict are captured, and what they work in, one after the other; what they give stays."""
    return torch.cuda.Stream(device), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]


def _shape_and_precision(x_BCHW: Tensor) -> Any:
    return *_key(x_BCHW, torch.is_autocast_enabled("cuda")), torch.get_autocast_dtype("cuda")


def _not_captured(device: torch.device, error: RuntimeError, todo: str) -> NotCaptured:
    return NotCaptured(str(device), f"the network cannot be captured as a CUDA graph ({first_line(error)})", todo)


def _key(x_BCHW: Tensor, mixed: bool) -> Any:
    return x_BCHW.shape, x_BCHW.stride(), x_BCHW.dtype, mixed


class _Step(nn.Module):
    """What the graphs are put into, so that the network itself stays as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Any:
        return self.network(x_BCHW)


def _captured(network: nn.Module, like_BCHW: Tensor, autocast: torch.dtype | None) -> nn.Module:
    """The network as two graphs. Its buffers and the generator stay as they were."""
    device = like_BCHW.device
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    generator = torch.cuda.get_rng_state(device)
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)  # since torch 2.10
    if quiet is not None:
        quiet(False)  # gradients are made on the stream of the capture, and added up on the one of the step
    gc.collect()  # graphs of before that are of no more use: torch knows them in circles, and they hold memory
    step = _Step(network)
    try:
        with (
            torch.cuda.device(device),
            torch.autocast("cuda", dtype=autocast, enabled=autocast is not None, cache_enabled=False),
            fused.serving(device),
        ):
            torch.cuda.make_graphed_callables(step, (like_BCHW.clone(),), allow_unused_input=True)
    except RuntimeError as error:
        if ran_out(error):
            raise
        raise _not_captured(device, error, "set runtime.compile or runtime.recompute, which do without") from error
    finally:
        torch.cuda.set_rng_state(generator, device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return step
