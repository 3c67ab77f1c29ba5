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


# The rows that timm can express: the arguments of its `InvertedResidual`, or none for its `EdgeResidual`.
IN_TIMM: dict[str, dict[str, int] | None] = {
    "mbconv": {"exp_kernel_size": 1, "dw_kernel_size": 3, "pw_kernel_size": 1},
    "mmbconv": {"exp_kernel_size": 3, "dw_kernel_size": 3, "pw_kernel_size": 3},
    "mmbconv-expand": {"exp_kernel_size": 3, "dw_kernel_size": 3, "pw_kernel_size": 1},
    "mmbconv-project": {"exp_kernel_size": 1, "dw_kernel_size": 3, "pw_kernel_size": 3},
    "mbconv-k7": {"exp_kernel_size": 1, "dw_kernel_size": 7, "pw_kernel_size": 1},
    "fused-mbconv": None,
}
SQUEEZE_EXCITE = {"se.reduce": "se.conv_reduce", "se.expand": "se.conv_expand"}


def timm_twin(block: InvertedResidual, name: str, *, in_channels: int, out_channels: int) -> nn.Module:
    """Make timm's block with the same weights: its squeeze-excite reduced from the input, symmetric padding."""
    reduced = functools.partial(timm_blocks.SqueezeExcite, rd_channels=round(in_channels * 0.25))
    settings = {"exp_ratio": 2.0, "act_layer": nn.SiLU, "se_layer": reduced}
    kernels = IN_TIMM[name]
    if kernels is None:
        twin = timm_blocks.EdgeResidual(in_channels, out_channels, **settings)
        pairs = {"expand.conv": "conv_exp", "expand.norm": "bn1", "project": "conv_pwl", "project_norm": "bn2"}
    else:
        twin = timm_blocks.InvertedResidual(in_channels, out_channels, **kernels, **settings)
        pairs = {
            "expand.conv": "conv_pw",
            "expand.norm": "bn1",
            "depthwise.conv": "conv_dw",
            "depthwise.norm": "bn2",
            "project": "conv_pwl",
            "project_norm": "bn3",
        }
    for ours, theirs in (pairs | SQUEEZE_EXCITE).items():
        twin.get_submodule(theirs).load_state_dict(block.get_submodule(ours).state_dict())
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in block.parameters())
    return twin


def with_statistics(block: nn.Module) -> nn.Module:
    """Weights and statistics of all batch norms that a mix-up would show."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return block


def assert_the_same(block: nn.Module, twin: nn.Module, *, out_channels: int, training: bool) -> None:
    """Outputs and the gradient of the input agree."""
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


@pytest.mark.parametrize("name", IN_TIMM)
@pytest.mark.parametrize("out_channels", [16, 24])
@pytest.mark.parametrize("training", [True, False])
def test_equals_timm(name: str, out_channels: int, training: bool) -> None:
    torch.manual_seed(0)
    block = with_statistics(make(name, out_channels=out_channels, activation="silu"))
    assert isinstance(block, InvertedResidual)
    twin = timm_twin(block, name, in_channels=WIDTH, out_channels=out_channels)
    assert_the_same(block, twin, out_channels=out_channels, training=training)
    if training:  # the running statistics moved alike
        last = twin.bn2 if name == "fused-mbconv" else twin.bn3
        torch.testing.assert_close(block.project_norm.running_var, last.running_var, rtol=1e-6, atol=1e-6)


# --------------------------------------------------- the two answers to the ninefold weights, which timm does not have


def shuffled_by_hand(channels: int, groups: int) -> list[int]:
    """Where each channel comes from: dealt out in turn, the first of every group, then the second of every group."""
    return [group * (channels // groups) + place for place in range(channels // groups) for group in range(groups)]


def test_the_shuffle_deals_the_groups_out_in_turn() -> None:
    assert shuffled_by_hand(6, 2) == [0, 3, 1, 4, 2, 5]
    x_BCHW = torch.randn(2, 12, 3, 2)
    for groups in (1, 2, 3, 4, 6, 12):
        shuffle = layers.ChannelShuffle(groups)
        assert torch.equal(shuffle(x_BCHW), x_BCHW[:, shuffled_by_hand(12, groups)])
        as_on_gpu_BCHW = shuffle.in_channels_last(x_BCHW.contiguous(memory_format=torch.channels_last))
        assert torch.equal(as_on_gpu_BCHW, shuffle(x_BCHW))
        assert as_on_gpu_BCHW.is_contiguous(memory_format=torch.channels_last)


def grouped_as_full(weight_OIHW: Tensor, *, groups: int) -> Tensor:
    """The full kernel that does what a grouped one does: zero between channels of different groups."""
    out_size, in_size = weight_OIHW.shape[0] // groups, weight_OIHW.shape[1]
    full_OIHW = weight_OIHW.new_zeros(out_size * groups, in_size * groups, *weight_OIHW.shape[2:])
    for group in range(groups):
        for out_channel in range(group * out_size, (group + 1) * out_size):
            for in_channel in range(in_size):
                full_OIHW[out_channel, group * in_size + in_channel] = weight_OIHW[out_channel, in_channel]
    return full_OIHW


def column_and_row_as_full(conv: nn.Module) -> Tensor:
    """The 3x3 kernel that does what a column and then a row do: their product, summed over the channels between."""
    column_MI, row_OM = conv.column.weight[:, :, :, 0], conv.row.weight[:, :, 0, :]
    full_OIHW = torch.zeros(row_OM.shape[0], column_MI.shape[1], 3, 3)
    for y in range(3):
        for x in range(3):
            full_OIHW[:, :, y, x] = row_OM[:, :, x] @ column_MI[:, :, y]
    return full_OIHW


@pytest.mark.parametrize(("in_channels", "out_channels"), [(6, 10), (10, 6), (7, 7)])
def test_a_column_and_a_row_are_one_3x3_convolution(in_channels: int, out_channels: int) -> None:
    """At the borders too: nothing is between the two."""
    torch.manual_seed(0)
    conv = layers.SeparableConv(in_channels, out_channels, kernel_size=3)
    x_BCHW = torch.randn(2, in_channels, 5, 4)
    whole_BCHW = nn.functional.conv2d(x_BCHW, column_and_row_as_full(conv), padding=1)
    torch.testing.assert_close(conv(x_BCHW), whole_BCHW, rtol=1e-4, atol=1e-5)
    assert conv.column.out_channels == min(in_channels, out_channels)
    assert (conv.column.kernel_size, conv.row.kernel_size) == ((3, 1), (1, 3))
    assert conv.column.bias is None and conv.row.bias is None


@pytest.mark.parametrize("name", ["mmbconv-grouped", "mmbconv-separable"])
@pytest.mark.parametrize("out_channels", [16, 24])
@pytest.mark.parametrize("training", [True, False])
def test_both_equal_an_mmbconv_with_the_full_kernels(name: str, out_channels: int, training: bool) -> None:
    """The MMBConv that timm agrees with, its kernels put together by hand."""
    torch.manual_seed(0)
    block = with_statistics(make(name, out_channels=out_channels, activation="silu"))
    twin = make("mmbconv", out_channels=out_channels, activation="silu")
    state = {key: value.clone() for key, value in block.state_dict().items() if key in twin.state_dict()}
    with torch.no_grad():
        if name == "mmbconv-separable":
            full = {"expand.conv": block.expand.conv, "project": block.project}
            state |= {f"{key}.weight": column_and_row_as_full(conv) for key, conv in full.items()}
        else:
            assert block.expand.conv.groups == block.project.groups == 8
            state["expand.conv.weight"] = grouped_as_full(block.expand.conv.weight, groups=8)
            state["project.weight"] = grouped_as_full(block.project.weight, groups=8)
            for key in [key for key in state if key.startswith("expand.") and state[key].dim()]:
                state[key] = state[key][shuffled_by_hand(2 * WIDTH, 8)]
    twin.load_state_dict(state)
    assert_the_same(block, twin, out_channels=out_channels, training=training)


def reach(block: nn.Module, *, channels: int) -> Tensor:
    """Which of the input's channels each of the branch's output channels depends on, (out, in)."""
    assert isinstance(block, InvertedResidual)
    block.has_skip = False
    x_BCHW = torch.randn(1, channels, 5, 5, requires_grad=True)
    y_BCHW = block.eval()(x_BCHW)
    rows = [torch.autograd.grad(y_BCHW[0, out].sum(), x_BCHW, retain_graph=True)[0] for out in range(channels)]
    return torch.stack(rows).abs().sum((1, 3, 4)) > 0


@pytest.mark.parametrize("expansion", [2, 4])
def test_with_the_shuffle_every_channel_sees_every_channel(expansion: int) -> None:
    torch.manual_seed(0)
    arguments = {"in_channels": 32, "out_channels": 32, "se_ratio": 0, "activation": "silu", "expansion": expansion}
    block = make("mmbconv-grouped", **arguments)
    assert reach(block, channels=32).all()
    block.shuffle = nn.Identity()
    group = torch.arange(32) // 4
    assert torch.equal(reach(block, channels=32), group[:, None] == group)  # its own eighth of the network only
    assert reach(make("mmbconv-separable", **arguments), channels=32).all()


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "groups"),
    [
        *[(16, 32, 8), (32, 16, 8), (24, 48, 8), (12, 24, 6), (10, 20, 5), (9, 18, 3), (7, 14, 7), (3, 6, 3)],
        *[(20, 50, 5), (16, 27, 1), (11, 22, 1), (13, 13, 1), (1, 2, 1)],
    ],
)
def test_groups_are_the_most_that_divide_both(in_channels: int, out_channels: int, groups: int) -> None:
    assert layers.group_count(in_channels, out_channels) == groups


@pytest.mark.parametrize("channels", [12, 10, 9, 7, 3])
def test_grouped_blocks_of_any_divisor(channels: int) -> None:
    block = make("mmbconv-grouped", in_channels=channels, out_channels=channels, expansion=2)
    assert block(torch.rand(2, channels, 4, 5)).shape == (2, channels, 4, 5)


@pytest.mark.parametrize("channels", [11, 13, 37])
def test_a_grouped_block_without_groups_is_refused(channels: int) -> None:
    """It would be mmbconv under another name."""
    with pytest.raises(MmsegError, match=f"mmbconv-grouped: {channels} and {2 * channels} channels have no divisor"):
        make("mmbconv-grouped", in_channels=channels, out_channels=channels)


# ------------------------------------------------------------------------------------------------------ all of the rows

RECEPTIVE_FIELDS = {
    "residual": 5,
    "mbconv": 3,
    "mmbconv": 7,
    "mmbconv-expand": 5,
    "mmbconv-project": 5,
    "mmbconv-grouped": 7,
    "mmbconv-separable": 7,
    "mbconv-k7": 7,  # the control: as far as mmbconv, with about the weights of mbconv
    "fused-mbconv": 3,
}


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_receptive_fields(name: str) -> None:
    """Squeeze-excite left out, which sees the whole image: what is left sees a square of this side."""
    torch.manual_seed(0)
    x_BCHW = torch.randn(1, WIDTH, 11, 11, requires_grad=True)
    y_BCHW = make(name, se_ratio=0, activation="silu").eval()(x_BCHW)
    (gradient_BCHW,) = torch.autograd.grad(y_BCHW[0, :, 5, 5].sum(), x_BCHW)
    seen_HW = gradient_BCHW[0].abs().sum(0) > 0
    radius = RECEPTIVE_FIELDS[name] // 2
    expected_HW = torch.zeros(11, 11, dtype=torch.bool)
    expected_HW[5 - radius : 6 + radius, 5 - radius : 6 + radius] = True
    assert torch.equal(seen_HW, expected_HW)


@pytest.mark.parametrize("name", [name for name in BLOCK_NAMES if name != "residual"])
def test_the_projection_is_linear(name: str) -> None:
    block = make(name, out_channels=24).eval()
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


def test_squeeze_excite_sums_large_maps_in_float16():
    """A sum of 128 x 256 pixels of 4 is beyond float16; their mean is not."""
    torch.manual_seed(0)
    module = layers.SqueezeExcite(8, reduced_channels=2, activation="silu")
    x_BCHW = torch.full((1, 8, 128, 256), 4.0)
    expected_BCHW = module(x_BCHW)
    found_BCHW = module.half()(x_BCHW.half())
    assert found_BCHW.dtype == torch.float16
    torch.testing.assert_close(found_BCHW.float(), expected_BCHW, rtol=5e-3, atol=0)
