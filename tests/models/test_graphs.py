from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmseg_cli.models import fused
from mmseg_cli.models.graphs import Graphed
from mmseg_cli.models.unet import build_network, recompute_blocks, set_stochastic_depth, training_callable
from tests.networks import NETWORK

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def a_network(*, device: str = "cuda") -> nn.Module:
    torch.manual_seed(0)
    network = build_network(task="segmentation", num_classes=5, **NETWORK)
    set_stochastic_depth(network, 0.3)
    return network.to(device=device, memory_format=torch.channels_last)


def trained(called: Callable[[nn.Module], Callable[[Tensor], Any]], *, low: bool, parts: int) -> list[Tensor]:
    """Weights, buffers and losses after some steps in which the network draws, each of `parts` parts."""
    network = a_network()
    model = called(network)
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
    return [*network.state_dict().values(), *losses]


@gpu
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_graph_trains_to_the_same_bits(low: bool, parts: int) -> None:
    """Draws, running statistics and gradients that are added up included."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        with fused.serving():
            plain = trained(lambda network: network, low=low, parts=parts)
        graphed = trained(training_callable, low=low, parts=parts)
    assert all(torch.equal(one, other) for one, other in zip(plain, graphed, strict=True))


@gpu
def test_another_shape_and_evaluation_go_to_the_network() -> None:
    network = a_network()
    model = training_callable(network)
    assert isinstance(model, Graphed)
    images_BCHW = torch.rand(2, 3, 40, 56, device="cuda").contiguous(memory_format=torch.channels_last)
    model(images_BCHW)
    assert model._replay is not None
    assert model(images_BCHW[:, :, :32]).shape[2:] == (16, 28)
    network.eval()
    with torch.no_grad():
        assert network(images_BCHW).shape[2:] == (40, 56)


class Waiting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.conv(x_BCHW)
        return y_BCHW * float(y_BCHW.sum() > 0)


@gpu
def test_what_waits_for_the_device_is_not_captured() -> None:
    network = Waiting().cuda()
    model = Graphed(network)
    images_BCHW = torch.rand(2, 3, 8, 8, device="cuda")
    for _ in range(2):
        assert torch.equal(model(images_BCHW), network(images_BCHW))


def test_without_a_gpu_or_where_blocks_recompute_the_network_is_called_itself() -> None:
    network = a_network(device="cpu")
    assert training_callable(network) is network
    recompute_blocks(network)
    assert training_callable(network) is network
