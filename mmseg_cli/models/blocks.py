"""The blocks that are compared: one class for the inverted-residual family, one for the residual baseline.

A block is a row of :data:`BLOCKS`, not a subclass, so that the table shows all that differs. Every block maps
``x_BCHW`` to ``(B, out_channels, H, W)``, and passes its residual branch, where it has a skip, through its attribute
``drop_path``: the identity, until :func:`mmseg_cli.models.unet.set_stochastic_depth` puts something there.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from torch import Tensor, nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models import layers, lean
from mmseg_cli.models.own import build_own_block
from mmseg_cli.names import unknown_name

Dense = Literal["full", "grouped", "separable"]


class Residual(nn.Module):
    """The basic block of ResNet (arXiv 1512.03385, figure 5 left): two 3x3 convolutions around a skip.

    Where the channels differ, a 1x1 convolution with its normalisation projects the skip (option B there).
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: str, activation: str) -> None:
        super().__init__()
        self.conv1 = layers.conv(in_channels, out_channels, kernel_size=3)
        self.norm1 = layers.norm(norm, out_channels)
        self.act1 = layers.activation(activation)
        self.conv2 = layers.conv(out_channels, out_channels, kernel_size=3)
        self.norm2 = layers.norm(norm, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                layers.conv(in_channels, out_channels, kernel_size=1), layers.norm(norm, out_channels)
            )
        self.drop_path: nn.Module = nn.Identity()
        self.act2 = layers.activation(activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map ``x_BCHW`` to ``(B, out_channels, H, W)``."""
        branch_BCHW = lean.norm_act_conv(self.conv1(x_BCHW), self.norm1, self.act1, self.conv2)
        branch_BCHW = lean.norm_alone(branch_BCHW, self.norm2)
        y_BCHW: Tensor = self.act2(self.drop_path(branch_BCHW) + self.shortcut(x_BCHW))
        return y_BCHW


class InvertedResidual(nn.Module):
    """MBConv (arXiv 1801.04381, with squeeze-excite as in arXiv 1905.11946) with free kernels.

    expand -> depthwise -> squeeze-excite -> project (linear), each convolution with its normalisation, and an
    identity skip where the channels agree. Kernels 1 and 1 give MBConv; 3 and 3 give MMBConv (arXiv 2402.04618),
    in which every 1x1 convolution of MBConv is a 3x3 one. Squeeze-excite keeps its 1x1 convolutions: its maps are
    1x1 in size, where a 3x3 kernel would see padding only.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        expand_kernel: kernel size of the expanding convolution.
        project_kernel: kernel size of the projecting convolution.
        depthwise_kernel: kernel size of the depthwise convolution; None leaves it out (fused MBConv, arXiv 2104.00298).
        dense: what the expanding and the projecting convolution are: ``full``; ``grouped``, in
            :func:`mmseg_cli.models.layers.group_count` groups, between which the expanded channels are shuffled; or
            ``separable``, see :class:`mmseg_cli.models.layers.SeparableConv`. The latter two answer the ninefold
            weights of a 3x3; they are not in the source.
        expansion: hidden channels per input channel; the product is rounded. DEVIATION: reference
            implementations round it to a multiple of eight; the same wherever the product already is one.
            Unlike them, a factor of 1 keeps the expanding convolution, so that every row has the same layers.
        se_ratio: channels inside squeeze-excite per *input* channel (EfficientNet's rule); 0 leaves it out.
        norm: ``batch`` or ``group``.
        activation: ``relu``, ``silu``, ``hardswish`` or ``gelu``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expand_kernel: int,
        project_kernel: int,
        depthwise_kernel: int | None = 3,
        dense: Dense = "full",
        expansion: float,
        se_ratio: float,
        norm: str,
        activation: str,
    ) -> None:
        super().__init__()
        hidden = max(1, round(in_channels * expansion))
        self.expand = layers.NormAct(
            _dense_conv(in_channels, hidden, kernel_size=expand_kernel, dense=dense),
            hidden,
            norm=norm,
            activation=activation,
        )
        self.shuffle: nn.Module = nn.Identity()
        if dense == "grouped":
            self.shuffle = layers.ChannelShuffle(layers.group_count(in_channels, hidden))
        self.depthwise: nn.Module = nn.Identity()
        if depthwise_kernel is not None:
            self.depthwise = layers.ConvNormAct(
                hidden, hidden, kernel_size=depthwise_kernel, groups=hidden, norm=norm, activation=activation
            )
        self.se: nn.Module = nn.Identity()
        if se_ratio > 0:
            reduced = max(1, round(in_channels * se_ratio))
            self.se = layers.SqueezeExcite(hidden, reduced_channels=reduced, activation=activation)
        self.project = _dense_conv(hidden, out_channels, kernel_size=project_kernel, dense=dense)
        self.project_norm = layers.norm(norm, out_channels)
        self.has_skip = in_channels == out_channels
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map ``x_BCHW`` to ``(B, out_channels, H, W)``."""
        project, *rest = self.project if isinstance(self.project, layers.SeparableConv) else (self.project,)
        last, between = self.expand, [self.shuffle]
        hidden_BCHW = self.expand.conv(x_BCHW)
        if isinstance(self.depthwise, layers.ConvNormAct):
            hidden_BCHW = lean.norm_act_conv(hidden_BCHW, last.norm, last.act, self.depthwise.conv, between=between)
            last, between = self.depthwise, []
        y_BCHW = lean.norm_act_conv(hidden_BCHW, last.norm, last.act, project, between=[*between, self.se])
        for conv in rest:
            y_BCHW = conv(y_BCHW)
        y_BCHW = lean.norm_alone(y_BCHW, self.project_norm)
        return x_BCHW + self.drop_path(y_BCHW) if self.has_skip else y_BCHW


def _dense_conv(in_channels: int, out_channels: int, *, kernel_size: int, dense: Dense) -> nn.Module:
    """Make a convolution in which channels meet: ``x_BCHW`` to ``(B, out_channels, H, W)``."""
    match dense:
        case "full":
            return layers.conv(in_channels, out_channels, kernel_size=kernel_size)
        case "grouped":
            groups = layers.group_count(in_channels, out_channels)
            if groups == 1:  # it would be a full one, under another name
                what = f"{in_channels} and {out_channels} channels have no divisor in common up to {layers.MOST_GROUPS}"
                raise MmsegError("mmbconv-grouped", what, "choose a width that is a multiple of 8")
            return layers.conv(in_channels, out_channels, kernel_size=kernel_size, groups=groups)
        case "separable":
            return layers.SeparableConv(in_channels, out_channels, kernel_size=kernel_size)


class Kernels(TypedDict):
    """The arguments of :class:`InvertedResidual` in which the rows of :data:`BLOCKS` differ."""

    expand_kernel: int
    project_kernel: int
    depthwise_kernel: NotRequired[int | None]
    dense: NotRequired[Dense]


# None: not of the inverted-residual family, hence without expansion and squeeze-excite.
BLOCKS: dict[str, Kernels | None] = {
    "residual": None,
    "mbconv": {"expand_kernel": 1, "project_kernel": 1},
    "mmbconv": {"expand_kernel": 3, "project_kernel": 3},
    "mmbconv-expand": {"expand_kernel": 3, "project_kernel": 1},
    "mmbconv-project": {"expand_kernel": 1, "project_kernel": 3},
    "mmbconv-grouped": {"expand_kernel": 3, "project_kernel": 3, "dense": "grouped"},
    "mmbconv-separable": {"expand_kernel": 3, "project_kernel": 3, "dense": "separable"},
    # MMBConv's receptive field (3 + 3 + 3 - 2 = 7) with MBConv's weights: the control for "spatial context".
    "mbconv-k7": {"expand_kernel": 1, "project_kernel": 1, "depthwise_kernel": 7},
    "fused-mbconv": {"expand_kernel": 3, "project_kernel": 1, "depthwise_kernel": None},  # EfficientNetV2
}


def build_block(
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    expansion: float,
    se_ratio: float,
    norm: str,
    activation: str,
) -> nn.Module:
    """Make the block ``name``, which maps ``x_BCHW`` to ``(B, out_channels, H, W)``.

    ``expansion`` and ``se_ratio`` are as in :class:`InvertedResidual`; ``residual`` has neither and ignores them.

    Args:
        name: a key of :data:`BLOCKS`, or ``package.module:Class`` of a block of the user's own, see
            :func:`mmseg_cli.models.own.build_own_block`.

    Raises:
        MmsegError: ``name``, ``norm`` or ``activation`` is unknown, or the user's class cannot be used.
    """
    if ":" in name:
        return build_own_block(
            name,
            in_channels,
            out_channels,
            settings={"expansion": expansion, "se_ratio": se_ratio, "norm": norm, "activation": activation},
        )
    if name not in BLOCKS:
        raise unknown_name("block", name, BLOCKS)
    kernels = BLOCKS[name]
    if kernels is None:
        return Residual(in_channels, out_channels, norm=norm, activation=activation)
    return InvertedResidual(
        in_channels,
        out_channels,
        **kernels,
        expansion=expansion,
        se_ratio=se_ratio,
        norm=norm,
        activation=activation,
    )
