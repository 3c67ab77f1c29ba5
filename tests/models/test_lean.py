"""What training no longer keeps: the same outputs to the bit, and the same gradients but for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmseg_cli.models import layers, lean
from mmseg_cli.models.blocks import build_block
from mmseg_cli.models.cost import activation_bytes
from mmseg_cli.models.lean import plain_path
from mmseg_cli.models.unet import SegmentationNetwork, build_network, recompute_blocks, set_stochastic_depth
from mmseg_cli.names import ACTIVATION_NAMES, BLOCK_NAMES

WIDTH = 8
# What a sum of some thousand numbers loses; of float64 it shows that nothing is merely nearly right.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
CASES = [(name, "silu", 0.25) for name in BLOCK_NAMES]
CASES += [("mmbconv", activation, se_ratio) for activation in ACTIVATION_NAMES for se_ratio in (0.0, 0.25)]
CASES = list(dict.fromkeys(CASES))


def with_norms(module: nn.Module) -> nn.Module:
    """Norms that a mix-up would show."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias)
    return module


def make(name: str = "mmbconv", **changes: object) -> nn.Module:
    torch.manual_seed(0)
    settings = {"expansion": 2.0, "se_ratio": 0.25, "norm": "batch", "activation": "silu"}
    return with_norms(build_block(name, WIDTH, WIDTH, **{**settings, **changes}))


def make_network(**changes: object) -> SegmentationNetwork:
    torch.manual_seed(0)
    settings = {"block": "mmbconv", "layout": "uniform", "width": WIDTH, "depth": 1, "levels": 3, "stem_stride": 2}
    settings |= {"expansion": 2.0, "se_ratio": 0.25, "norm": "batch", "activation": "silu"}
    return with_norms(build_network(task="segmentation", num_classes=5, **{**settings, **changes}))


def images(*, dtype: torch.dtype = torch.float32, channels: int = WIDTH, size: tuple[int, int] = (7, 9)) -> Tensor:
    return torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def step(module: nn.Module, x_BCHW: Tensor, *, autocast: bool = False) -> dict[str, Tensor]:
    """Output, gradients and buffers of one training step of a copy."""
    module = copy.deepcopy(module).to(x_BCHW.dtype).train()
    leaf_BCHW = x_BCHW.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y_BCHW = module(leaf_BCHW)
    weights_BCHW = torch.randn(y_BCHW.shape, generator=torch.Generator().manual_seed(2), dtype=x_BCHW.dtype)
    torch.autograd.backward((y_BCHW * weights_BCHW).sum())
    seen = {"y": y_BCHW.detach(), "d x": leaf_BCHW.grad}
    seen |= {f"d {name}": parameter.grad for name, parameter in module.named_parameters()}
    return seen | dict(module.named_buffers())


def compare(got: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float) -> None:
    """Outputs and buffers agree in every bit, gradients to a share of the largest number in each.

    Or to a share of a thousandth of the largest of all: some are sums of numbers that cancel, a bias before a norm.
    """
    assert got.keys() == expected.keys()
    largest = {name: float(value.abs().max()) for name, value in expected.items() if name.startswith("d ")}
    for name, value in expected.items():
        if name in largest:
            atol = tolerance * max(largest[name], 1e-3 * max(largest.values()))
            torch.testing.assert_close(
                got[name], value, rtol=tolerance, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            assert torch.equal(got[name], value), name


def runs(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The norms that took the lean path, from now on."""
    seen, real = [], lean._run

    def note(x_BCHW: Tensor, norm: nn.Module, *others: object) -> Tensor:
        seen.append(norm)
        return real(x_BCHW, norm, *others)

    monkeypatch.setattr(lean, "_run", note)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "activation", "se_ratio"), CASES)
def test_a_block_gives_the_plain_bits_and_gradients(
    name: str, activation: str, se_ratio: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make(name, activation=activation, se_ratio=se_ratio)
    x_BCHW = images(dtype=dtype)
    with plain_path():
        expected = step(block, x_BCHW)
    seen = runs(monkeypatch)
    got = step(block, x_BCHW)
    assert len(seen) == (1 if name in ("residual", "fused-mbconv") else 2)
    assert all(value == 1 for name, value in got.items() if name.endswith("num_batches_tracked"))
    compare(got, expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("stride", [1, 2])
def test_layers_outside_of_blocks(activation: str, stride: int) -> None:
    torch.manual_seed(0)
    layer = with_norms(layers.ConvNormAct(WIDTH, 6, kernel_size=3, stride=stride, norm="batch", activation=activation))
    for dtype, tolerance in TOLERANCE.items():
        with plain_path():
            expected = step(layer, images(dtype=dtype))
        compare(step(layer, images(dtype=dtype)), expected, tolerance=tolerance)


@pytest.mark.parametrize("name", ["residual", "mmbconv-grouped"])
def test_gradients_are_those_of_numbers(name: str) -> None:
    """Against differences of the function itself, whatever the plain path does."""
    block = make(name, activation="gelu").double()
    x_BCHW = torch.randn(2, WIDTH, 3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x_BCHW, *block.parameters()), fast_mode=True)


def test_a_whole_network_in_float64() -> None:
    network, x_BCHW = make_network(), images(channels=3, size=(32, 40), dtype=torch.double)
    with plain_path():
        expected = step(network, x_BCHW)
    compare(step(network, x_BCHW), expected, tolerance=TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ["residual", "mmbconv", "mmbconv-grouped", "mmbconv-separable", "fused-mbconv"])
def test_mixed_precision(name: str) -> None:
    """What is computed again is rounded to bfloat16 in other places: gradients move by a part in a hundred."""
    block, x_BCHW = make(name), images()
    with plain_path():
        expected = step(block, x_BCHW, autocast=True)
    got = step(block, x_BCHW, autocast=True)
    assert got["y"].dtype == expected["y"].dtype
    for key, value in expected.items():
        if key.startswith("d "):
            assert got[key].dtype == value.dtype == torch.float32
            assert (got[key] - value).norm() <= 0.02 * value.norm() + 1e-6, key
        else:
            assert torch.equal(got[key], value), key


def test_what_does_not_fit_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, x_BCHW = runs(monkeypatch), images()
    make().eval()(x_BCHW)
    make(norm="group")(x_BCHW)
    with torch.no_grad():
        make()(x_BCHW)
    norm, act = nn.BatchNorm2d(WIDTH), nn.SiLU()
    lean.norm_act_conv(x_BCHW, norm, act, nn.Conv2d(WIDTH, WIDTH, 3))  # it has a bias
    lean.norm_act_conv(x_BCHW, norm, act, nn.Identity())
    lean.norm_act(x_BCHW, norm, nn.Sigmoid())
    lean.norm_act(x_BCHW, nn.Identity(), act)
    for changes in ({"momentum": None}, {"affine": False}, {"track_running_stats": False}):
        lean.norm_act(x_BCHW, nn.BatchNorm2d(WIDTH, **changes), act)
    assert seen == []
    lean.norm_act(x_BCHW, norm, act)
    assert seen == [norm]


def test_evaluation_and_a_forward_pass_without_gradients_keep_their_numbers() -> None:
    for training in (False, True):
        network, x_BCHW = make_network().train(training), images(channels=3, size=(24, 32))
        twin = copy.deepcopy(network)
        with torch.no_grad():
            got_BKHW = network(x_BCHW)
            with plain_path():
                assert torch.equal(twin(x_BCHW), got_BKHW)
        assert all(map(torch.equal, network.buffers(), twin.buffers()))


def test_a_single_value_per_channel_is_refused_as_ever() -> None:
    for run in (
        lambda x, norm: lean.norm_act(x, norm, nn.ReLU()),
        lambda x, norm: lean.norm_act_conv(x, norm, nn.ReLU(), layers.conv(WIDTH, WIDTH, kernel_size=1)),
    ):
        norm = nn.BatchNorm2d(WIDTH)
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            run(torch.randn(1, WIDTH, 1, 1), norm)
        assert not norm.running_mean.any()


@pytest.mark.parametrize(("activation", "share"), [("silu", 0.5), ("hardswish", 0.5), ("gelu", 0.5), ("relu", 0.6)])
def test_a_network_keeps_half(activation: str, share: float) -> None:
    """Of ReLU the plain path keeps its output alone, which the next convolution keeps as well."""
    size = (2, 3, 64, 96)
    with torch.device("meta"):
        network = make_network(block="mmbconv", activation=activation, width=16, levels=4)
    kept = activation_bytes(network, size)
    with plain_path():
        assert kept <= share * activation_bytes(network, size)


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_recomputed_blocks_have_the_same_gradients(name: str) -> None:
    network, x_BCHW = make_network(block=name), images(channels=3, size=(24, 32), dtype=torch.double)
    set_stochastic_depth(network, 0.5)
    steps = []
    for recompute in (False, True):
        recompute_blocks(network, recompute)
        torch.manual_seed(3)
        steps.append(step(network, x_BCHW))
    compare(steps[1], steps[0], tolerance=0)
    with plain_path():
        torch.manual_seed(3)
        compare(steps[1], step(network, x_BCHW), tolerance=TOLERANCE[torch.float64])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_within_torchs_checkpoint(use_reentrant: bool) -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = make()

        def forward(self, x_BCHW: Tensor) -> Tensor:
            return checkpoint(self.block, x_BCHW, use_reentrant=use_reentrant)

    module, x_BCHW = Kept(), images(dtype=torch.double)
    got = step(module, x_BCHW)
    with plain_path():
        expected = step(module, x_BCHW)  # torch's checkpoint takes statistics twice, on either path
    compare(got, expected, tolerance=TOLERANCE[torch.float64])


def test_backward_twice_and_what_was_given_stays_as_it_is() -> None:
    """In place is worked only on what was made again."""
    for name in BLOCK_NAMES:
        block, x_BCHW = make(name, activation="hardswish"), images().requires_grad_()
        y_BCHW = block(x_BCHW)
        dy_BCHW, before = torch.ones_like(y_BCHW), x_BCHW.detach().clone()
        leaves = [x_BCHW, *block.parameters()]
        one, other = (torch.autograd.grad(y_BCHW, leaves, dy_BCHW, retain_graph=True) for _ in range(2))
        assert all(map(torch.equal, one, other)), name
        assert (dy_BCHW == 1).all()
        assert torch.equal(x_BCHW, before)


def test_a_weight_that_was_changed_in_between_is_noticed() -> None:
    for name in ("expand.norm.weight", "depthwise.conv.weight", "se.reduce.weight"):
        block = make()
        y_BCHW = block(images())
        with torch.no_grad():
            block.get_parameter(name).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.backward(y_BCHW.sum())


@pytest.mark.parametrize("name", BLOCK_NAMES)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_stays(name: str, memory_format: torch.memory_format) -> None:
    block = make(name).to(memory_format=memory_format)
    x_BCHW = images().to(memory_format=memory_format)
    got = step(block, x_BCHW)
    with plain_path():
        expected = step(block, x_BCHW)
    compare(got, expected, tolerance=TOLERANCE[torch.float32])
    for key, value in got.items():
        if value.dim() == 4:
            assert value.stride() == expected[key].stride(), key
    for key in ("y", "d x"):
        assert got[key].is_contiguous(memory_format=memory_format), key


def test_frozen_weights_get_no_gradient() -> None:
    block, x_BCHW = make(se_ratio=0), images()
    whole = step(block, x_BCHW)
    block.expand.norm.weight.requires_grad_(False)
    block.depthwise.conv.weight.requires_grad_(False)
    torch.autograd.backward(block(x_BCHW).sum())
    assert block.expand.norm.weight.grad is None
    assert block.depthwise.conv.weight.grad is None
    assert block.expand.conv.weight.grad.shape == whole["d expand.conv.weight"].shape


def test_the_plain_path_is_left_again():
    network, shape = make_network(), (2, 3, 32, 32)
    kept = activation_bytes(network, shape)
    with pytest.raises(ZeroDivisionError), plain_path():
        with plain_path(on=False):
            assert activation_bytes(network, shape) == kept
        assert activation_bytes(network, shape) > 1.5 * kept
        raise ZeroDivisionError
    assert activation_bytes(network, shape) == kept


@pytest.mark.parametrize(
    ("act", "conv"),
    [
        (nn.GELU(approximate="tanh"), nn.Conv2d(WIDTH, 5, 3, padding=1, bias=False)),
        (nn.SiLU(), nn.Conv2d(WIDTH, 5, 3, padding="same", bias=False)),
        (nn.SiLU(), nn.Conv2d(WIDTH, 5, 3, padding=1, bias=True)),
    ],
)
def test_what_does_not_fit_is_trained_as_it_is(act, conv):
    norm, ways = with_norms(nn.BatchNorm2d(WIDTH)), []
    for made in (lean.norm_act_conv, lambda x, norm, act, conv: conv(act(norm(x)))):
        x_BCHW = images().requires_grad_()
        y_BCHW = made(x_BCHW, norm, act, conv)
        ways.append([y_BCHW, *torch.autograd.grad(y_BCHW.square().sum(), [x_BCHW, conv.weight, norm.weight])])
    assert all(map(torch.equal, *ways))
