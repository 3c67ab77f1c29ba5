"""Training's forward and backward pass of a network as one launch each, by CUDA graphs.

A GPU is faster than the host can give it the thousands of small kernels of a deep network. A graph is given at once.
It runs the very kernels that it was captured from, on the same memory; those of ours are :mod:`mmseg_cli.models.fused`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmseg_cli.errors import ran_out
from mmseg_cli.models import fused


class Graphed:
    """A network in training, as it is called; captured at the first call, for the shapes and the precision of then.

    Any other call goes to the network itself, and so do all if it cannot be captured, because it waits for the device.
    What a network decides in Python is decided once: give it none that draws or counts there. Its weights and buffers
    must stay where they are, as optimizers and `load_state_dict` leave them.

    Args:
        network: on a GPU, in training mode whenever this is called.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._key: Any = None
        self._replay: nn.Module | None = None

    def __call__(self, x_BCHW: Tensor) -> Any:
        """What the network gives; the next call overwrites it."""
        key = (x_BCHW.shape, x_BCHW.stride(), x_BCHW.dtype, torch.is_autocast_enabled("cuda"))
        if self._key is None:
            self._key = key
            self._replay = _captured(self._network, x_BCHW)
        if self._replay is None or key != self._key:
            return self._network(x_BCHW)
        for parameter in self._network.parameters():  # of samples before: the graph's own memory, which it overwrites
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        return self._replay(x_BCHW)


class _Step(nn.Module):
    """What the graphs are put into, so that the network itself stays as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Any:
        return self.network(x_BCHW)


def _captured(network: nn.Module, x_BCHW: Tensor) -> nn.Module | None:
    """The network as two graphs; None if that cannot be. Its buffers and the generator stay as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    generator = torch.cuda.get_rng_state(x_BCHW.device)
    precision = torch.autocast(
        "cuda", torch.get_autocast_dtype("cuda"), enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False
    )
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)  # since torch 2.10
    if quiet is not None:
        quiet(False)  # gradients are made on the stream of the capture, and added up on the one of the step
    try:
        with precision, fused.serving():
            step = _Step(network)
            torch.cuda.make_graphed_callables(step, (x_BCHW.clone(),), allow_unused_input=True)
        return step
    except RuntimeError as error:
        if ran_out(error):
            raise
        return None
    finally:
        torch.cuda.set_rng_state(generator, x_BCHW.device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
