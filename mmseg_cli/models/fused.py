"""`lean` in a CUDA graph: the same maps are kept, and what is made of them again runs in few kernels of our own.
Evaluation's forward pass runs in them as well.

Batch norm, its activation and squeeze-excite read and write their maps as rarely as can be, and depthwise 3x3
convolutions do not go through cuDNN; dense ones do. Sums are in float32 whatever the maps' type, where torch rounds
what is between two operations, so results differ from the plain path's in last bits; they are the same every time.
Triton takes the host longer to launch than torch's operations, which a graph makes up for: without one this is slower.

Shape suffixes: B batch, C channels, H height, W width; 1 a dimension of one element.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmseg_cli.errors import first_line

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.SiLU: "silu", nn.ReLU: "relu", nn.Identity: "none"}


class Gated(Protocol):
    """A module that scales every channel by what it makes of the means of all: squeeze-excite."""

    def gate(self, mean_BC11: Tensor) -> Tensor:
        """gate_BC11."""
        ...


_TYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 2**31 - 1  # elements of one image's map: the kernels count in 32 bits there
PIXELS = 2**24  # of one image's map: its strips are launched as a dimension of a grid, which ends at 65535
_serves = False


@contextmanager
def serving(device: torch.device) -> Iterator[None]:
    """Inside the block, on a GPU, this takes `lean`'s place where it can."""
    global _serves
    before, _serves = _serves, device.type != "cuda" or _works(device)
    try:
        yield
    finally:
        _serves = before


@cache
def _kernels() -> ModuleType:
    from mmseg_cli.models import kernels  # Triton is slow to import

    return kernels


@cache
def _works(device: torch.device) -> bool:
    """Whether the kernels can be built and run; warns if not: Triton may be missing, as may its compilers."""
    try:
        x_BCHW = torch.ones((1, 16, 2, 2), device=device).contiguous(memory_format=torch.channels_last)
        _kernels().run_all(x_BCHW, activation="silu", gated=True)
        torch.cuda.synchronize(device)
    except Exception as error:  # of compilers, which have no class in common
        warnings.warn(f"no Triton kernels here ({first_line(error)}): torch's own run, more slowly", stacklevel=2)
        return False
    return True


def serves(x_BCHW: Tensor, act: nn.Module, between: Sequence[nn.Module]) -> bool:
    """Whether `run` can take the place of `lean`'s own way."""
    return (
        _serves
        and x_BCHW.is_cuda
        and x_BCHW.dtype in _TYPES
        and type(act) in _ACTIVATIONS
        and x_BCHW.is_contiguous(memory_format=torch.channels_last)
        and x_BCHW.numel() <= x_BCHW.shape[0] * LARGEST
        and x_BCHW.shape[2] * x_BCHW.shape[3] <= PIXELS
        and (len(between) == 0 or (len(between) == 1 and hasattr(between[0], "gate")))
    )


def run(
    x_BCHW: Tensor, norm: nn.BatchNorm2d, act: nn.Module, between: Sequence[nn.Module], conv: nn.Conv2d | None
) -> Tensor:
    """``conv(between(act(norm(x))))``; without a ``conv``, ``act(norm(x))``. In evaluation without a backward pass."""
    se = between[0] if between else None
    if not norm.training:
        return _forward(x_BCHW, None if conv is None else conv.weight, norm, _ACTIVATIONS[type(act)], se, conv)[0]
    parameters = [] if se is None else [each for each in se.parameters() if each.requires_grad]
    kernel = None if conv is None else conv.weight
    activation = _ACTIVATIONS[type(act)]
    y_BCHW: Tensor = _Fused.apply(x_BCHW, norm.weight, norm.bias, kernel, norm, activation, se, conv, *parameters)
    return y_BCHW


def precision_now(device: str) -> AbstractContextManager[Any]:
    """The mixed precision of this moment, for later; without a cache of weights, which a graph would hold on to."""
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)


def convolution_backward(dy_BCHW: Tensor, y_BCHW: Tensor, kernel: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """The gradients of ``conv``'s input ``y_BCHW`` and of its weight, by the type of that of its output."""
    dy_BCHW, dkernel, _ = torch.ops.aten.convolution_backward(
        dy_BCHW,
        y_BCHW.to(dy_BCHW.dtype),
        kernel.to(dy_BCHW.dtype),
        None,
        conv.stride,
        conv.padding,
        conv.dilation,
        False,
        [0, 0],
        conv.groups,
        [True, True, False],
    )
    return dy_BCHW, dkernel.to(conv.weight.dtype)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether our kernels know it."""
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)
    same = conv.groups == conv.in_channels == conv.out_channels
    return same and shape == ((3, 3), (1, 1), (1, 1), (1, 1), "zeros")


def _channels_last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def _gate(se: nn.Module, mean_BC: Tensor, *, dtype: torch.dtype) -> Tensor:
    """gate_BC, as the module computes it for maps of `dtype`."""
    gate_BC11 = cast(Gated, se).gate(mean_BC[:, :, None, None].to(dtype))
    return gate_BC11.flatten(1)


def _forward(
    x_BCHW: Tensor,
    kernel: Tensor | None,
    norm: nn.BatchNorm2d,
    activation: str,
    se: nn.Module | None,
    conv: nn.Conv2d | None,
) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]]:
    """What `run` gives, and of that the norm_4C, mean_BC, gate_BC and the kernel as it convolved."""
    kernels, device = _kernels(), x_BCHW.device.type
    assert norm.running_mean is not None and norm.running_var is not None
    if norm.training:
        assert norm.momentum is not None
        norm_4C = kernels.batch_norm(
            x_BCHW, norm.weight, norm.bias, norm.running_mean, norm.running_var, momentum=norm.momentum, eps=norm.eps
        )
    else:
        norm_4C = kernels.kept_norm(norm.weight, norm.bias, norm.running_mean, norm.running_var, eps=norm.eps)
    mean_BC = gate_BC = None
    if se is not None:
        mean_BC = kernels.pooled(x_BCHW, norm_4C, activation=activation)
        gate_BC = _gate(se, mean_BC, dtype=x_BCHW.dtype).float()
    y_BCHW = kernels.activated(x_BCHW, norm_4C, gate_BC, activation=activation)
    if conv is not None and kernel is not None:
        if _is_depthwise(conv):
            y_BCHW = kernels.depthwise(y_BCHW, kernel)
        else:
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else y_BCHW.dtype
            kernel = kernel.to(dtype)  # kept for the backward pass: a second rounding costs more than it takes
            y_BCHW = F.conv2d(y_BCHW.to(dtype), kernel, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return y_BCHW, (norm_4C, mean_BC, gate_BC, kernel)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        kernel: Tensor | None,
        norm: nn.BatchNorm2d,
        activation: str,
        se: nn.Module | None,
        conv: nn.Conv2d | None,
        *parameters: Tensor,
    ) -> Tensor:
        y_BCHW, (norm_4C, mean_BC, gate_BC, kernel) = _forward(x_BCHW, kernel, norm, activation, se, conv)
        ctx.precision = precision_now(x_BCHW.device.type)
        ctx.activation, ctx.se, ctx.conv = activation, se, conv
        ctx.save_for_backward(x_BCHW, norm_4C, mean_BC, gate_BC, kernel, *parameters)
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, norm_4C, mean_BC, gate_BC, kernel, *parameters = ctx.saved_tensors
        kernels, conv, activation = _kernels(), ctx.conv, ctx.activation
        dkernel = None
        dy_BCHW = _channels_last(dy_BCHW)
        if conv is not None:
            y_BCHW = kernels.activated(x_BCHW, norm_4C, gate_BC, activation=activation)
            if _is_depthwise(conv):
                dkernel = kernels.depthwise_weight(y_BCHW, dy_BCHW).to(kernel.dtype)
                dy_BCHW = kernels.depthwise(dy_BCHW, kernel, reflected=True)
            else:
                dy_BCHW, dkernel = convolution_backward(dy_BCHW, y_BCHW, kernel, conv)
                dy_BCHW = _channels_last(dy_BCHW)
        sums_BC = kernels.gradient_sums(x_BCHW, dy_BCHW, norm_4C, gated=ctx.se is not None, activation=activation)
        dmean_BC: Tensor | None = None
        dparameters: list[Tensor] = []
        if ctx.se is None:
            dbias_C, dweight_C = sums_BC.sum(1)
        else:
            dmean_BC, dparameters = _gate_backward(
                ctx.se, mean_BC, sums_BC[4], parameters, dtype=x_BCHW.dtype, precision=ctx.precision
            )
            dmean_BC = dmean_BC / (x_BCHW.shape[2] * x_BCHW.shape[3])
            dbias_C, dweight_C = (gate_BC * sums_BC[:2] + dmean_BC * sums_BC[2:4]).sum(1)
        dx_BCHW = kernels.norm_backward(
            x_BCHW, dy_BCHW, norm_4C, dbias_C, dweight_C, gate_BC, dmean_BC, activation=activation
        )
        return dx_BCHW, dweight_C, dbias_C, dkernel, None, None, None, None, *dparameters


def _gate_backward(
    se: nn.Module,
    mean_BC: Tensor,
    dgate_BC: Tensor,
    parameters: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    precision: AbstractContextManager[None],
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the means, float32, and of the module's parameters."""
    with torch.enable_grad(), precision:
        mean_BC = mean_BC.detach().requires_grad_()
        gate_BC = _gate(se, mean_BC, dtype=dtype)
    dmean_BC, *dparameters = torch.autograd.grad(gate_BC, [mean_BC, *parameters], dgate_BC.to(gate_BC.dtype))
    return dmean_BC, dparameters
