"""The layers that every block is made of.

Shape suffixes: B batch, C channels, H height, W width; 1 a dimension of one element.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mmseg_cli.names import unknown_name

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
}


def conv(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Make a convolution that keeps the size at stride 1 and gives ``ceil(size / 2)`` at stride 2.

    Padding is ``kernel_size // 2`` with zeros on every side, so ``kernel_size`` must be odd. No bias unless asked
    for: a normalisation that follows would cancel it.
    """
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=bias,
    )


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


class ConvNormAct(nn.Sequential):
    """A convolution, its normalisation and its activation, under the keys ``conv``, ``norm`` and ``act``.

    Maps ``x_BCHW`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

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
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel_size=kernel_size, stride=stride, groups=groups)
        self.norm = _norm(norm, out_channels)
        self.act = _activation(activation)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507) as EfficientNet uses it (arXiv 1905.11946).

    Every channel is scaled by a gate in (0, 1) that is computed from the means of all channels. Both convolutions
    work on 1x1 maps and stay 1x1 in every block. The mean is a plain one because the backward pass of
    ``AdaptiveAvgPool2d`` has no deterministic form on CUDA.

    Maps ``x_BCHW`` to the same shape.
    """

    def __init__(self, channels: int, *, reduced_channels: int, activation: str) -> None:
        super().__init__()
        self.reduce = conv(channels, reduced_channels, kernel_size=1, bias=True)
        self.act = _activation(activation)
        self.expand = conv(reduced_channels, channels, kernel_size=1, bias=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Scale every channel of ``x_BCHW`` by its gate."""
        mean_BC11 = x_BCHW.mean((2, 3), keepdim=True)
        gate_BC11: Tensor = self.expand(self.act(self.reduce(mean_BC11))).sigmoid()
        return x_BCHW * gate_BC11
