"""Training's forward and backward pass of a network as one launch each, by CUDA graphs.

A GPU is faster than the host can give it the thousands of small kernels of a deep network. A graph is given at once.
It runs the very kernels that it was captured from, on the same memory; those of ours are :mod:`mmseg_cli.models.fused`.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_cli.errors import NotCaptured, first_line, ran_out
from mmseg_cli.models import fused


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
        what = f"the network cannot be captured as a CUDA graph ({first_line(error)})"
        raise NotCaptured(str(device), what, "set runtime.compile or runtime.recompute, which do without") from error
    finally:
        torch.cuda.set_rng_state(generator, device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return step
