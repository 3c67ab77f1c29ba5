from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmseg_cli.errors import NotCaptured
from mmseg_cli.models import fused, graphs, lean
from mmseg_cli.models.graphs import Graphed, Replayed
from mmseg_cli.models.unet import (
    build_network,
    inference_callable,
    predicts_by_graph,
    recompute_blocks,
    set_stochastic_depth,
    training_callable,
)
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
        with torch.no_grad(), lean.plain_path():
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
"""
TRAINING = """
try:
    Graphed(Waiting().cuda(), torch.rand(2, 3, 8, 8, device="cuda"), autocast=None)
except MmsegError as error:
    print(error)
"""
PREDICTING = """
import warnings
from mmseg_cli.models.graphs import Replayed

def right(network):
    call = Replayed(network)
    images_BCHW = torch.rand(2, 3, 8, 8).cuda()
    with warnings.catch_warnings(record=True) as said, torch.inference_mode():
        warnings.simplefilter("always")
        same = sum(torch.equal(call(images_BCHW), network(images_BCHW)) for _ in range(3))
    return f"{same} of 3, {len(said)} warnings, {len(call._graphs)} graphs"

print("waiting:", right(Waiting().cuda()))
print("another:", right(nn.Conv2d(3, 4, 3).cuda()))
"""


@gpu
def test_what_waits_for_the_device_cannot_be_captured() -> None:
    """In a process of its own: after a failed capture torch 2.11 draws no random numbers on a GPU any more."""
    done = subprocess.run([sys.executable, "-c", WAITING + TRAINING], capture_output=True, text=True, check=True)
    assert "cannot be captured as a CUDA graph" in done.stdout


@gpu
def test_what_waits_for_the_device_predicts_without_and_others_are_captured() -> None:
    done = subprocess.run([sys.executable, "-c", WAITING + PREDICTING], capture_output=True, text=True, check=True)
    assert "waiting: 3 of 3, 1 warnings, 0 graphs" in done.stdout
    assert "another: 3 of 3, 0 warnings, 1 graphs" in done.stdout


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


def predictions(*, low: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of images of three shapes and two networks in turn: by graphs from the second round on, and by torch."""
    networks = [a_network().eval() for _ in range(2)]
    for network in networks:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    calls = [inference_callable(network) for network in networks]
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for shape in ((1, 3, 40, 56), (2, 3, 64, 32), (1, 3, 33, 47)):
            images_BCHW = torch.rand(shape, generator=generator).to(device="cuda", memory_format=torch.channels_last)
            with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=low):
                for call, network in zip(calls, networks, strict=True):
                    found[0].append(call(images_BCHW))
                    found[1].append(network(images_BCHW))
    return found


@gpu
@pytest.mark.parametrize("low", [False, True])
def test_graphs_of_several_shapes_predict_as_the_network_does(monkeypatch: pytest.MonkeyPatch, low: bool) -> None:
    """And to the same bits whether captured or not."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found, plain = predictions(low=low)
        monkeypatch.setattr(graphs, "SHAPES", 0)
        launched, _ = predictions(low=low)
    for one, other, by_torch in zip(found, launched, plain, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == torch.float32
        assert float((one - by_torch).norm() / by_torch.norm()) < (0.02 if low else 1e-5)


@gpu
def test_a_prediction_is_captured_at_its_second_image_and_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    network = a_network().eval()
    call = inference_callable(network)
    images_BCHW = torch.rand(1, 3, 40, 56, device="cuda")
    first = call(images_BCHW)
    second = call(images_BCHW)
    monkeypatch.setattr(network.body, "forward", None)
    third = call(images_BCHW + 1)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(second, third)
    with pytest.raises(TypeError):
        call(images_BCHW[:, :, :32])


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> tuple[Replayed, list[Any]]:
    """On a CPU, without the captures: shapes that were captured; "broken" among them makes a capture fail."""
    taken: list[Any] = []

    class Graph:
        def __init__(self, call: Any, like_BCHW: Tensor) -> None:
            if "broken" in taken:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            taken.append(tuple(like_BCHW.shape))

        def replay(self, x_BCHW: Tensor) -> Tensor:
            return x_BCHW + 1

    monkeypatch.setattr(graphs, "_Graph", Graph)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return Replayed(lambda x_BCHW: x_BCHW * 0), taken


def test_a_shape_is_captured_when_it_comes_again_and_only_so_many_are(replayed: tuple[Replayed, list[Any]]) -> None:
    call, taken = replayed
    call._most = 2
    for size in (9, 8, 1, 2, 3, 1, 2, 3, 1, 2, 3):  # what came once takes no place
        made = call(torch.ones(1, 3, size, size))
        assert float(made.max()) == (2 if (1, 3, size, size) in taken else 0)
    assert taken == [(1, 3, 1, 1), (1, 3, 2, 2)]
    call.capture(torch.ones(1, 3, 5, 5))
    assert float(call(torch.ones(1, 3, 5, 5)).max()) == 2


def test_what_cannot_be_captured_is_said_once_and_predicts_without(replayed: tuple[Replayed, list[Any]]) -> None:
    call, taken = replayed
    taken.append("broken")
    images_BCHW = torch.ones(1, 3, 2, 2)
    call(images_BCHW)
    with pytest.warns(UserWarning, match=r"not permitted when stream is capturing\): predicting is slower"):
        assert float(call(images_BCHW).max()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (2, 4, 4, 4):
            assert float(call(torch.ones(1, 3, size, size)).max()) == 0


def test_what_must_be_captured_says_why_it_cannot(replayed: tuple[Replayed, list[Any]]) -> None:
    call, taken = replayed
    taken.append("broken")
    with pytest.raises(NotCaptured, match="not permitted when stream is capturing"):
        call.capture(torch.ones(1, 3, 2, 2))


def test_networks_on_a_cpu_predict_as_they_are_and_others_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    network = a_network(device="cpu").eval()
    assert inference_callable(network) is network
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cuda = torch.device("cuda")
    assert predicts_by_graph(network, cuda)
    assert not predicts_by_graph(network, torch.device("cpu"))
    assert not predicts_by_graph(build_network(task="classification", num_classes=5, **NETWORK), cuda)
    assert not predicts_by_graph(nn.Conv2d(3, 4, 3), cuda)


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
