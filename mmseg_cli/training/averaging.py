"""Averaged weights: Lookahead's slow ones and the exponential moving average, and evaluating a network with them.

Both hold copies of the parameters by name, follow the optimizer from step 0 on, and are plain state for a checkpoint.
Running statistics belong to other weights, so they are estimated anew whenever averaged weights are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


@torch.no_grad()
def take_over(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give the network these parameters, in place."""
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])


class Lookahead:
    """k steps forward, 1 step back (Zhang et al. 2019, arXiv 1907.08610, algorithm 1).

    The slow weights are those before the first step. After every k-th step of the inner optimizer they go the share
    alpha of the way to the fast weights, which start again from there; the inner optimizer keeps its momentum (the
    paper's default). Other implementations take their slow weights after the first k steps, so that their first window
    does nothing, or cannot be resumed.

    Args:
        network: whose parameters the inner optimizer moves.
        k: steps of the inner optimizer for one of the slow weights.
        alpha: the slow weights' step size, above 0 and at most 1.
    """

    def __init__(self, network: nn.Module, *, k: int, alpha: float) -> None:
        self.k, self.alpha = k, alpha
        self.weights = _copies(network)

    @torch.no_grad()
    def follow(self, network: nn.Module, *, step: int, broken: Tensor | None = None) -> None:
        """To be called after the update of step `step` (from 1).

        Args:
            broken: 1 on the device where that update was left out: then nothing moves, though the host does not know.
        """
        if step % self.k:
            return
        moves: float | Tensor = 1.0 if broken is None else 1 - broken
        for name, fast in network.named_parameters():
            slow = self.weights[name]
            slow.lerp_(fast, self.alpha * moves)
            fast.lerp_(slow, moves)  # all the way, or not at all: exact


class Ema:
    """An exponential moving average of the weights (Polyak and Juditsky 1992).

    Early on the decay is (1 + t) / (10 + t) after t steps where that is smaller, so that the initial weights are soon
    forgotten, as in TensorFlow's ExponentialMovingAverage.

    Args:
        network: whose parameters are averaged.
        decay: what remains of the average in a step, below 1.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.weights = _copies(network)

    @torch.no_grad()
    def follow(self, network: nn.Module, *, step: int) -> None:
        """To be called after the update of step `step` (from 1), and after Lookahead's."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self.weights.values()), [parameter.detach() for parameter in network.parameters()], step)


def estimate_statistics(network: nn.Module, batches: Iterable[Tensor], *, seed: int) -> None:
    """Replace the running statistics of all batch norms by means over `batches` ("precise batch norm").

    Args:
        batches: x_BCHW, normalised, on the network's device; nothing happens to a network without batch norms.
        seed: for what the network draws in training mode (stochastic depth).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        update_bn(batches, network)


@contextmanager
def evaluated_with(
    network: nn.Module, weights: dict[str, Tensor], batches: Iterable[Tensor] | None, *, seed: int
) -> Iterator[None]:
    """Inside the block the network has averaged weights and statistics to go with them; its own come back after it.

    Args:
        batches: see `estimate_statistics`, as `seed`; None keeps the running statistics.
    """
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        take_over(network, weights)
        if batches is not None:
            estimate_statistics(network, batches, seed=seed)
        yield
    finally:
        network.load_state_dict(own)
