"""The blocks: pinned costs, what the 1x1 -> 3x3 change touches, and agreement with timm's independent ones."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from timm.models import _efficientnet_blocks as timm_blocks
from torch import Tensor, nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models import layers
from mmseg_cli.models.blocks import BLOCKS, InvertedResidual, build_block
from mmseg_cli.names import ACTIVATION_NAMES, BLOCK_NAMES, NORM_NAMES

WIDTH = 16
SETTINGS = {"expansion": 2, "se_ratio": 0.25, "norm": "batch", "activation": "relu"}


def make(name: str, *, in_channels: int = WIDTH, out_channels: int = WIDTH, **changes: object) -> nn.Module:
    return build_block(name, in_channels, out_channels, **{**SETTINGS, **changes})


def test_the_names_known_without_torch_are_the_tables_keys() -> None:
    assert tuple(BLOCKS) == BLOCK_NAMES


def test_names_are_importable_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from mmseg_cli.names import BLOCK_NAMES; print(BLOCK_NAMES)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(BLOCK_NAMES)


def test_every_declared_norm_and_activation_can_be_made() -> None:
    for name in NORM_NAMES:
        layers.norm(name, 8)
    for name in ACTIVATION_NAMES:
        layers.activation(name)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (16, 2), (24, 3), (64, 8), (256, 32), (512, 32)])
def test_group_norm_groups(channels: int, groups: int) -> None:
    group_norm = layers.norm("group", channels)
    assert isinstance(group_norm, nn.GroupNorm)
    assert group_norm.num_groups == groups


@pytest.mark.parametrize("name", BLOCK_NAMES)
@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("out_channels", [16, 24])
@pytest.mark.parametrize("se_ratio", [0, 0.25])
def test_blocks_keep_the_size(name: str, norm: str, out_channels: int, se_ratio: float) -> None:
    block = make(name, out_channels=out_channels, norm=norm, se_ratio=se_ratio)
    assert block(torch.rand(2, WIDTH, 5, 7)).shape == (2, out_channels, 5, 7)


def test_1x1_to_3x3_multiplies_exactly_those_weights_by_nine() -> None:
    mbconv = {name: weight.shape for name, weight in make("mbconv").named_parameters()}
    mmbconv = {name: weight.shape for name, weight in make("mmbconv").named_parameters()}
    assert mbconv.keys() == mmbconv.keys()
    changed = {name for name in mbconv if mbconv[name] != mmbconv[name]}
    assert changed == {"expand.conv.weight", "project.weight"}
    for name in changed:
        assert mmbconv[name].numel() == 9 * mbconv[name].numel()
        assert mbconv[name][2:] == (1, 1)
        assert mmbconv[name][2:] == (3, 3)
        assert mbconv[name][:2] == mmbconv[name][:2]


def timm_twin(block: InvertedResidual, *, kernel: int, in_channels: int, out_channels: int) -> nn.Module:
    """Make timm's block with the same weights: its squeeze-excite reduced from the input, symmetric padding."""
    twin = timm_blocks.InvertedResidual(
        in_channels,
        out_channels,
        exp_ratio=2.0,
        exp_kernel_size=kernel,
        pw_kernel_size=kernel,
        act_layer=nn.SiLU,
        se_layer=functools.partial(timm_blocks.SqueezeExcite, rd_channels=round(in_channels * 0.25)),
    )
    pairs = {
        "expand.conv": "conv_pw",
        "expand.norm": "bn1",
        "depthwise.conv": "conv_dw",
        "depthwise.norm": "bn2",
        "se.reduce": "se.conv_reduce",
        "se.expand": "se.conv_expand",
        "project": "conv_pwl",
        "project_norm": "bn3",
    }
    for ours, theirs in pairs.items():
        twin.get_submodule(theirs).load_state_dict(block.get_submodule(ours).state_dict())
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in block.parameters())
    return twin


@pytest.mark.parametrize(("name", "kernel"), [("mbconv", 1), ("mmbconv", 3)])
@pytest.mark.parametrize("out_channels", [16, 24])
@pytest.mark.parametrize("training", [True, False])
def test_equals_timm(name: str, kernel: int, out_channels: int, training: bool) -> None:
    torch.manual_seed(0)
    block = make(name, out_channels=out_channels, activation="silu")
    assert isinstance(block, InvertedResidual)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):  # weights and statistics that a mix-up would show
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    twin = timm_twin(block, kernel=kernel, in_channels=WIDTH, out_channels=out_channels)
    block.double().train(training)
    twin.double().train(training)
    x_BCHW = torch.randn(2, WIDTH, 7, 9, dtype=torch.double)
    weights_BCHW = torch.randn(2, out_channels, 7, 9, dtype=torch.double)

    def run(module: nn.Module) -> tuple[Tensor, Tensor]:
        leaf_BCHW = x_BCHW.clone().requires_grad_()
        y_BCHW = module(leaf_BCHW)
        (gradient_BCHW,) = torch.autograd.grad((y_BCHW * weights_BCHW).sum(), leaf_BCHW)
        return y_BCHW, gradient_BCHW

    for ours, theirs in zip(run(block), run(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    if training:  # the running statistics moved alike
        torch.testing.assert_close(block.project_norm.running_var, twin.bn3.running_var, rtol=1e-6, atol=1e-6)


def test_the_projection_is_linear() -> None:
    block = make("mmbconv", out_channels=24).eval()
    y_BCHW = block(torch.randn(2, WIDTH, 5, 5))
    assert (y_BCHW < 0).any()  # after a ReLU there would be none


def test_no_squeeze_excite_at_ratio_zero() -> None:
    assert not any(name.startswith("se.") for name, _ in make("mbconv", se_ratio=0).named_parameters())


def test_squeeze_excite_is_reduced_from_the_input_and_never_to_nothing() -> None:
    assert make("mbconv").se.reduce.out_channels == 4
    assert make("mbconv", se_ratio=0.01).se.reduce.out_channels == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "mbcnov"},
            f"block: unknown name 'mbcnov': use one of {', '.join(BLOCK_NAMES)} (did you mean mbconv?)",
        ),
        ({"name": "zzz"}, f"block: unknown name 'zzz': use one of {', '.join(BLOCK_NAMES)}"),
        ({"norm": "bacth"}, "norm: unknown name 'bacth': use one of batch, group (did you mean batch?)"),
        (
            {"activation": "swish"},
            "activation: unknown name 'swish': use one of relu, silu, hardswish, gelu (did you mean hardswish?)",
        ),
    ],
)
def test_unknown_names_say_what_is_known(change: dict[str, str], message: str) -> None:
    with pytest.raises(MmsegError) as caught:
        make(**{"name": "mbconv", **change})
    assert str(caught.value) == message
