"""`torch.compile` sees whole networks and gives their numbers; without its last part, which calls a C++ compiler.

`fullgraph` raises where the graph would break.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.unet import SegmentationNetwork, blocks_of, build_network, recompute_blocks
from mmseg_cli.names import BLOCK_NAMES

# What a network's numbers lose; gradients are held to the largest of their own.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Compiled code is kept by the code object, and there is a limit to how much."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(block: str, **changes: object) -> SegmentationNetwork:
    torch.manual_seed(0)
    settings = {"layout": "uniform", "width": 8, "depth": 1, "levels": 2, "stem_stride": 2, "expansion": 2.0}
    settings |= {"se_ratio": 0.25, "norm": "batch", "activation": "silu"}
    return build_network(task="segmentation", num_classes=5, block=block, **{**settings, **changes})


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Output, gradients and buffers of one training step."""
    x_BCHW = images().requires_grad_()
    outs = model(x_BCHW)
    torch.autograd.backward(sum(out.square().sum() for out in ([outs] if isinstance(outs, Tensor) else outs)))
    seen = {"d x": x_BCHW.grad} | {f"d {name}": parameter.grad for name, parameter in network.named_parameters()}
    return seen | dict(network.named_buffers()) | {"y": outs if isinstance(outs, Tensor) else outs[-1]}


def compare(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        largest = max(1.0, float(value.detach().abs().max()))
        torch.testing.assert_close(
            got[name], value, rtol=TOLERANCE, atol=TOLERANCE * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_compiled_training_has_the_plain_numbers(block: str) -> None:
    network = make(block)
    twin = copy.deepcopy(network)
    compare(step(network, torch.compile(network, backend="aot_eager", fullgraph=True)), step(twin, twin))


@pytest.mark.parametrize("block", BLOCK_NAMES)
@torch.no_grad()
def test_compiled_evaluation_has_the_plain_numbers(block: str) -> None:
    network = make(block).eval()
    got_BKHW = torch.compile(network, backend="eager", fullgraph=True)(images())
    torch.testing.assert_close(got_BKHW, network(images()), rtol=TOLERANCE, atol=TOLERANCE)


def test_compiled_deep_supervision() -> None:
    network = DeepSupervision(make("mmbconv", levels=3))
    twin = copy.deepcopy(network)
    compare(step(network, torch.compile(network, backend="aot_eager", fullgraph=True)), step(twin, twin))


def test_compiled_blocks_that_are_recomputed() -> None:
    network = make("mmbconv")
    twin = copy.deepcopy(network)
    recompute_blocks(network)
    for block in blocks_of(network):
        block.compile(backend="aot_eager", fullgraph=True)
    compare(step(network, network), step(twin, twin))
