"""Training that keeps less for the backward pass: normalised and activated maps are computed again, not kept.

Of ``conv(between(act(norm(x))))`` autograd keeps the input of every operation; here only ``x`` is kept, and the rest,
which is cheap, is made again from it when the backward pass needs it: batch norm from the statistics that it took,
hence without taking them a second time. The convolutions and the statistics, which are not cheap, run once. The idea
is that of In-Place Activated BatchNorm (arXiv 1712.02616), whose inverse of the activation is not needed here.

On a CPU forward passes are equal in every bit to the plain ones (on CUDA the plain path may take cuDNN's batch norm);
gradients differ in last bits, because a map that is computed again is rounded once where it was rounded twice. What
does not fit (other norms, several processes, a convolution with a bias) takes the plain path, and so does
``torch.compile``, whose partitioner does the same by itself. The modules' own forward hooks are called on the plain
path only, and the backward pass reads the modules' own weights, not those of ``torch.func.functional_call``. In a CUDA
graph the same runs in kernels of our own where it can, see :mod:`mmseg_cli.models.fused`. Evaluation, which keeps
nothing, takes the plain path too, but for those kernels.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmseg_cli.models import fused

_aten = torch.ops.aten

# In place, and backwards into the place of the input: what is computed again is needed only once.
_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (_aten.relu_, lambda dy, x: _aten.threshold_backward.grad_input(dy, x, 0, grad_input=x)),
    nn.SiLU: (_aten.silu_, lambda dy, x: _aten.silu_backward.grad_input(dy, x, grad_input=x)),
    nn.Hardswish: (_aten.hardswish_, lambda dy, x: _aten.hardswish_backward.out(dy, x, out=x)),
    nn.GELU: (_aten.gelu_, lambda dy, x: _aten.gelu_backward.grad_input(dy, x, grad_input=x)),
}

_NO_ACTIVATION = nn.Identity()
_plain = False


@contextmanager
def plain_path(*, on: bool = True) -> Iterator[None]:
    """Inside the block everything is kept, as with several processes: to count and to time that; with `on` only."""
    global _plain
    before, _plain = _plain, on
    try:
        yield
    finally:
        _plain = before


def norm_act(x_BCHW: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
    """``act(norm(x))``: ``x_BCHW`` to the same shape."""
    if not _fits(x_BCHW, norm, act, ()):
        y_BCHW: Tensor = act(norm(x_BCHW))
        return y_BCHW
    return _run(x_BCHW, norm, act, (), None)


def norm_alone(x_BCHW: Tensor, norm: nn.Module) -> Tensor:
    """``norm(x)``: ``x_BCHW`` to the same shape."""
    return norm_act(x_BCHW, norm, _NO_ACTIVATION)


def norm_act_conv(
    x_BCHW: Tensor, norm: nn.Module, act: nn.Module, conv: nn.Module, *, between: Sequence[nn.Module] = ()
) -> Tensor:
    """``conv(between(act(norm(x))))``: ``x_BCHW`` to what ``conv`` gives.

    Args:
        between: modules that keep the shape and are cheap to run again: squeeze-excite, a channel shuffle.
    """
    between = [module for module in between if not isinstance(module, nn.Identity)]
    if (
        type(conv) is nn.Conv2d
        and conv.bias is None
        and not isinstance(conv.padding, str)
        and conv.padding_mode == "zeros"
        and _fits(x_BCHW, norm, act, between)
    ):
        return _run(x_BCHW, norm, act, between, conv)
    active_BCHW = act(norm(x_BCHW)) if norm.training else norm_act(x_BCHW, norm, act)
    y_BCHW: Tensor = conv(_in_turn(between, active_BCHW))
    return y_BCHW


def _fits(x_BCHW: Tensor, norm: nn.Module, act: nn.Module, between: Sequence[nn.Module]) -> bool:
    """Whether `_run` can do it, by ``norm``'s statistics of this process's images alone or, in evaluation, by those it
    keeps; the latter in a CUDA graph.
    """
    if (
        _plain
        or type(norm) is not nn.BatchNorm2d
        or not (norm.affine and norm.track_running_stats)
        or torch.compiler.is_compiling()
    ):
        return False
    if not norm.training:
        return not torch.is_grad_enabled() and fused.serves(x_BCHW, act, between)
    return (
        (type(act) in _ACTIVATIONS or fused.serves(x_BCHW, act, ()))
        and getattr(act, "approximate", "none") == "none"  # of GELU
        and norm.momentum is not None
        and torch.is_grad_enabled()
        and x_BCHW.numel() > x_BCHW.shape[1]  # a single value per channel: the plain path says what is wrong
    )


def _run(
    x_BCHW: Tensor, norm: nn.Module, act: nn.Module, between: Sequence[nn.Module], conv: nn.Conv2d | None
) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if fused.serves(x_BCHW, act, between):
        return fused.run(x_BCHW, norm, act, between, conv)
    weight = None if conv is None else conv.weight
    parameters = [each for module in between for each in module.parameters() if each.requires_grad]
    y_BCHW: Tensor = _Kept.apply(x_BCHW, norm.weight, norm.bias, weight, norm, act, between, conv, *parameters)
    return y_BCHW


def _in_turn(modules: Sequence[nn.Module], x_BCHW: Tensor) -> Tensor:
    for module in modules:
        x_BCHW = module(x_BCHW)
    return x_BCHW


class _Kept(torch.autograd.Function):
    """Normalise, run what is cheap, convolve; and the same backwards, from the input and its statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        kernel: Tensor | None,
        norm: nn.BatchNorm2d,
        act: nn.Module,
        between: Sequence[nn.Module],
        conv: nn.Conv2d | None,
        *parameters: Tensor,
    ) -> Tensor:
        normal_BCHW, mean_C, inverse_C = _aten.native_batch_norm(
            x_BCHW, weight_C, bias_C, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )
        ctx.save_for_backward(x_BCHW, weight_C, bias_C, kernel, mean_C, inverse_C, *parameters)
        ctx.precision = fused.precision_now(x_BCHW.device.type)
        ctx.eps, ctx.act, ctx.between, ctx.conv = norm.eps, act, between, conv
        activate, _ = _ACTIVATIONS[type(act)]
        y_BCHW = _in_turn(between, activate(normal_BCHW))
        return y_BCHW if conv is None else conv(y_BCHW)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_C, bias_C, kernel, mean_C, inverse_C, *parameters = ctx.saved_tensors
        scale_C = inverse_C * weight_C
        shift_C = bias_C - mean_C * scale_C
        normal_BCHW = torch.addcmul(shift_C[:, None, None], x_BCHW, scale_C[:, None, None]).to(x_BCHW.dtype)
        active_BCHW = again_BCHW = ctx.act(normal_BCHW)
        if ctx.between:
            with torch.enable_grad(), ctx.precision:
                again_BCHW = _in_turn(ctx.between, active_BCHW.requires_grad_())
        dkernel = None
        if ctx.conv is not None:
            dy_BCHW, dkernel = fused.convolution_backward(dy_BCHW, again_BCHW.detach(), kernel, ctx.conv)
        dparameters: Sequence[Tensor] = ()
        if ctx.between:
            dy_BCHW, *dparameters = torch.autograd.grad(again_BCHW, [active_BCHW, *parameters], dy_BCHW)
        _, activate_backward = _ACTIVATIONS[type(ctx.act)]
        dnormal_BCHW = activate_backward(dy_BCHW, normal_BCHW.detach())
        dx_BCHW, dweight_C, dbias_C = _aten.native_batch_norm_backward(
            dnormal_BCHW, x_BCHW, weight_C, None, None, mean_C, inverse_C, True, ctx.eps, [True, True, True]
        )
        return dx_BCHW, dweight_C, dbias_C, dkernel, None, None, None, None, *dparameters
