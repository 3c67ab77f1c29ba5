from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmseg_cli.models import fused, graphs
from mmseg_cli.models.graphs import Graphed
from mmseg_cli.models.unet import build_network, recompute_blocks, set_stochastic_depth, training_callable
from tests.networks import NETWORK

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def a_network(*, device: str = "cuda") -> nn.Module:
    torch.manual_seed(0)
    network = build_network(task="segmentation", num_classes=5, **NETWORK)
    set_stochastic_depth(network, 0.3)
    return network.to(device=device, memory_format=torch.channels_last)


def trained(*, graphed: bool, low: bool, parts: int) -> list[Tensor]:
    """Weights, buffers and losses after some steps in which the network draws, each of `parts` parts."""
    network = a_network()
    like_BCHW = torch.rand(2, 3, 40, 56).to(device="cuda", memory_format=torch.channels_last)
    model: Any = network
    if graphed:
        model = training_callable(network, like_BCHW, autocast=torch.bfloat16 if low else None)
        assert isinstance(model, Graphed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    losses = []
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        for part in range(parts):
            torch.manual_seed(100 * step + part)
            images_BCHW = torch.rand(2, 3, 40, 56).to(device="cuda", memory_format=torch.channels_last)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=low):
                logits_BKhw = model(images_BCHW)
            loss = logits_BKhw.float().square().mean() / parts
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        network.eval()  # validation, between two replays
        with torch.no_grad():
            losses.append(network(like_BCHW).sum())
        network.train()
    return [*network.state_dict().values(), *losses]


@gpu
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_graph_trains_to_the_same_bits(low: bool, parts: int) -> None:
    """Draws, running statistics and gradients that are added up included."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        with fused.serving(torch.device("cuda")):
            plain = trained(graphed=False, low=low, parts=parts)
        graphed = trained(graphed=True, low=low, parts=parts)
    assert all(torch.equal(one, other) for one, other in zip(plain, graphed, strict=True))


@gpu
def test_a_replay_does_not_call_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network, like_BCHW = a_network(), torch.rand(2, 3, 40, 56, device="cuda")
    model = training_callable(network, like_BCHW, autocast=None)
    monkeypatch.setattr(network, "forward", None)
    assert model(like_BCHW).shape[:2] == (2, 5)


WAITING = """
import torch
from torch import nn
from mmseg_cli.errors import MmsegError
from mmseg_cli.models.graphs import Graphed

class Waiting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x_BCHW):
        y_BCHW = self.conv(x_BCHW)
        return y_BCHW * float(y_BCHW.sum() > 0)

try:
    Graphed(Waiting().cuda(), torch.rand(2, 3, 8, 8, device="cuda"), autocast=None)
except MmsegError as error:
    print(error)
"""


@gpu
def test_what_waits_for_the_device_cannot_be_captured() -> None:
    """In a process of its own: after a failed capture torch 2.11 draws no random numbers on a GPU any more."""
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, check=True)
    assert "cannot be captured as a CUDA graph" in done.stdout


def test_other_calls_go_to_the_network_and_gradients_are_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is around a capture, which needs a GPU."""
    network = a_network(device="cpu")
    taken: list[Any] = []

    def captured(network: nn.Module, like_BCHW: Tensor, autocast: torch.dtype | None) -> Callable[[Tensor], Any]:
        taken.append((network.training, autocast))
        return lambda x_BCHW: "replayed"

    monkeypatch.setattr(graphs, "_captured", captured)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    images_BCHW = torch.rand(2, 3, 32, 32)
    model = Graphed(network.eval(), images_BCHW, autocast=None)
    assert taken == [(True, None)]
    assert model(torch.rand(2, 3, 32, 32)) == "replayed"
    assert model(images_BCHW[:1]).shape[0] == 1
    assert model(images_BCHW.contiguous(memory_format=torch.channels_last)).shape[0] == 2
    model(images_BCHW[:1]).sum().backward()
    before = {parameter: parameter.grad for parameter in network.parameters()}
    model(images_BCHW)
    for parameter, gradient in before.items():
        assert parameter.grad is not gradient
        assert torch.equal(parameter.grad, gradient)


def test_where_there_is_nothing_to_capture_the_network_is_called_itself() -> None:
    network, images_BCHW = a_network(device="cpu"), torch.rand(2, 3, 32, 32)
    assert training_callable(network, images_BCHW, autocast=None) is network


@gpu
def test_blocks_that_recompute_and_foreign_networks_are_not_captured() -> None:
    network, images_BCHW = a_network(), torch.rand(2, 3, 32, 32, device="cuda")
    foreign = nn.Conv2d(3, 4, 3).cuda()
    assert training_callable(foreign, images_BCHW, autocast=None) is foreign
    recompute_blocks(network)
    assert training_callable(network, images_BCHW, autocast=None) is network
