"""The layers that every block is made of.

Shape suffixes: B batch, C channels, H height, W width; 1 a dimension of one element.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_cli.models import lean
from mmseg_cli.names import unknown_name

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
}


MOST_GROUPS = 8  # of a grouped convolution: its 3x3 has 9/8 of the weights of a full 1x1


def conv(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """Make a convolution that keeps the size at stride 1 and gives ``ceil(size / 2)`` at stride 2.

    Padding is ``kernel_size // 2`` with zeros on every side, so ``kernel_size``, one number or (height, width), must be
    odd. No bias unless asked for: a normalisation that follows would cancel it.
    """
    tall, wide = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return nn.Conv2d(
        in_channels,
        out_channels,
        (tall, wide),
        stride=stride,
        padding=(tall // 2, wide // 2),
        groups=groups,
        bias=bias,
    )


def group_count(in_channels: int, out_channels: int) -> int:
    """Give the groups of a grouped convolution: the largest number up to :data:`MOST_GROUPS` that divides both."""
    return max(count for count in range(1, MOST_GROUPS + 1) if math.gcd(in_channels, out_channels) % count == 0)


class SeparableConv(nn.Sequential):
    """A square kernel taken apart into a column and a row, under the keys ``column`` and ``row``, with nothing between.

    The channels between the two are the fewer of both ends, which is where the weights are saved: of ``k * k * a * b``
    there remain ``k * a * (a + b)``, ``a`` being the fewer. After the factorised kernels of ERFNet (Romera et al. 2018)
    without the activation in between, so that what takes the place of a convolution is linear like it.

    Maps ``x_BCHW`` to ``(B, out_channels, H, W)``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int) -> None:
        super().__init__()
        between = min(in_channels, out_channels)
        self.column = conv(in_channels, between, kernel_size=(kernel_size, 1))
        self.row = conv(between, out_channels, kernel_size=(1, kernel_size))


class ChannelShuffle(nn.Module):
    """Let the next grouped convolution see channels of all groups of the last (ShuffleNet, arXiv 1707.01083).

    Maps ``x_BCHW`` to the same shape; C is a multiple of ``groups``.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Interleave the groups."""
        if x_BCHW.is_cuda and x_BCHW.is_contiguous(memory_format=torch.channels_last):
            return self.in_channels_last(x_BCHW)
        return F.channel_shuffle(x_BCHW, self.groups)

    def in_channels_last(self, x_BCHW: Tensor) -> Tensor:
        """The same; a map in channels_last stays so, which torch's own leaves on a GPU."""
        batch, channels, height, width = x_BCHW.shape
        x_BHWgc = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height, width, self.groups, channels // self.groups)
        return x_BHWgc.transpose(-1, -2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def norm(name: str, channels: int) -> nn.Module:
    """Make the normalisation ``name`` (``batch`` or ``group``) of ``channels`` channels.

    Raises:
        MmsegError: ``name`` is unknown.
    """
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(_group_count(channels), channels)
    raise unknown_name("norm", name, ("batch", "group"))


def _group_count(channels: int) -> int:
    """Give the largest number of equal groups, at most 32, that leaves at least 8 channels in each.

    32 groups is the default of Group Normalization (arXiv 1803.08494). Our own floor of 8 channels keeps narrow
    networks from ending at one channel a group, which is instance normalisation and was worse there.
    """
    return max((count for count in range(1, 33) if channels % count == 0 and channels // count >= 8), default=1)


def activation(name: str) -> nn.Module:
    """Make the activation ``name``: ``relu``, ``silu``, ``hardswish`` or ``gelu``.

    Raises:
        MmsegError: ``name`` is unknown.
    """
    if name not in _ACTIVATIONS:
        raise unknown_name("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]()


# The classes below name their arguments `norm` and `activation`, which hides the functions there.
_norm, _activation = norm, activation


class NormAct(nn.Sequential):
    """``conv``, its normalisation and its activation, under the keys ``conv``, ``norm`` and ``act``."""

    def __init__(self, conv: nn.Module, channels: int, *, norm: str, activation: str) -> None:
        super().__init__()
        self.conv = conv
        self.norm = _norm(norm, channels)
        self.act = _activation(activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map ``x_BCHW`` to what ``conv`` gives, normalised and activated."""
        return lean.norm_act(self.conv(x_BCHW), self.norm, self.act)


class ConvNormAct(NormAct):
    """A convolution, its normalisation and its activation.

    Maps ``x_BCHW`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    conv: nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        norm: str,
        activation: str,
    ) -> None:
        made = conv(in_channels, out_channels, kernel_size=kernel_size, stride=stride, groups=groups)
        super().__init__(made, out_channels, norm=norm, activation=activation)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507) as EfficientNet uses it (arXiv 1905.11946).

    Every channel is scaled by a gate in (0, 1) that is computed from the means of all channels. Both convolutions
    work on 1x1 maps and stay 1x1 in every block. The mean is a plain one because the backward pass of
    ``AdaptiveAvgPool2d`` has no deterministic form on CUDA, and spelt as a sum because that of ``mean`` divides a map
    of the whole size.

    Maps ``x_BCHW`` to the same shape.
    """

    def __init__(self, channels: int, *, reduced_channels: int, activation: str) -> None:
        super().__init__()
        self.reduce = conv(channels, reduced_channels, kernel_size=1, bias=True)
        self.act = _activation(activation)
        self.expand = conv(reduced_channels, channels, kernel_size=1, bias=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Scale every channel of ``x_BCHW`` by its gate."""
        height, width = x_BCHW.shape[2:]
        wide = torch.promote_types(x_BCHW.dtype, torch.float32)  # float16 ends at 65504
        mean_BC11 = (x_BCHW.sum((2, 3), keepdim=True, dtype=wide) / (height * width)).to(x_BCHW.dtype)
        return x_BCHW * self.gate(mean_BC11)

    def gate(self, mean_BC11: Tensor) -> Tensor:
        """gate_BC11: what the channels are scaled by, of their means."""
        gate_BC11: Tensor = self.expand(self.act(self.reduce(mean_BC11))).sigmoid()
        return gate_BC11
