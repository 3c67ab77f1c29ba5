"""Bilinear resizing, and cross entropy at a size that logits are enlarged to, without keeping what is enlarged.

Resizing is linear in each direction, hence a product with a matrix of two numbers a row. The backward pass is the
product with the transposed matrices, in the gradient's type (which holds the numbers of an enlargement by a power of
two exactly): the same bits every time on CUDA as well, where torch's own adds up in any order, and faster than torch's
on a CPU.

Shape suffixes: B batch, C channels, H, W height and width; h, w those before resizing; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmseg_cli import runtime


def resize(x_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``x_BChw`` bilinearly to ``size`` (height, width), without aligning corners; a no-op at that size."""
    if tuple(x_BChw.shape[-2:]) == tuple(size):
        return x_BChw
    if torch.is_grad_enabled() and x_BChw.requires_grad:
        y_BCHW: Tensor = _Resize.apply(x_BChw, tuple(size))
        return y_BCHW
    return _forward(x_BChw, size)


def _forward(x_BChw: Tensor, size: Sequence[int]) -> Tensor:
    with _without_autocast(x_BChw.device.type):  # which would make float32 of it, and of all that comes after it
        return F.interpolate(x_BChw, size=list(size), mode="bilinear", align_corners=False)


def _matrix(before: int, after: int, like: Tensor) -> Tensor:
    """matrix_Hh: a line of ``before`` numbers to one of ``after``; what torch's own resizing does to each unit line."""
    unit_hh = torch.eye(before, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    return F.interpolate(unit_hh[None], size=after, mode="linear", align_corners=False)[0].T.to(like.dtype)


def _as_convolutions() -> AbstractContextManager[None]:
    """Inside the block products of float32 matrices on CUDA are in TF32 where float32 convolutions are."""
    return runtime.switched(torch.backends.cuda.matmul, "allow_tf32", torch.backends.cudnn.allow_tf32)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, enabled=False)


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BChw: Tensor, size: Sequence[int]) -> Tensor:
        ctx.before = x_BChw.shape[-2:]
        return _forward(x_BChw, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BCHW: Tensor) -> tuple[Tensor, None]:
        (height, width), (tall, wide) = ctx.before, dy_BCHW.shape[-2:]
        dy_BHWC = dy_BCHW.permute(0, 2, 3, 1)
        with _as_convolutions():
            # Rows first: a row of all columns and channels is one piece of memory in channels_last.
            dy_BhWC = (_matrix(height, tall, dy_BCHW).T @ dy_BHWC.flatten(2)).view(-1, height, *dy_BHWC.shape[2:])
            dx_BhwC = _matrix(width, wide, dy_BCHW).T @ dy_BhWC
        return dx_BhwC.permute(0, 3, 1, 2), None


def enlarged_cross_entropy(
    logits_BKhw: Tensor, target_BHW: Tensor, share_BHW: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """The sum over the pixels of ``share`` times the cross entropy of the resized logits: a scalar, float32.

    What ``resize`` and ``log_softmax`` would give, but for rounding. The logits are enlarged for one image at a time,
    and what is kept for the backward pass is the gradient at their own size: at a stem of stride 4, a sixteenth of one
    of the five enlarged maps that the plain way makes.

    Args:
        logits_BKhw: of any size and floating type.
        target_BHW: classes in [0, K); any class where ``share`` is 0.
        share_BHW: float32.
        label_smoothing: share of the uniform distribution in a pixel's target.
    """
    loss: Tensor = _EnlargedCrossEntropy.apply(logits_BKhw, target_BHW.long(), share_BHW, label_smoothing)
    return loss


def _enlarged(x_Khw: Tensor, matrices: Sequence[Tensor] | None) -> Tensor:
    """x_KHW by the matrices of rows and columns, which there are none of where nothing changes."""
    if matrices is None:
        return x_Khw
    rows_Hh, columns_Ww = matrices
    if x_Khw.is_cuda:  # the other way round its own kernel is the fast one
        return _forward(x_Khw[None], (len(rows_Hh), len(columns_Ww)))[0]
    return rows_Hh @ (x_Khw @ columns_Ww.T)


def _gathered(dx_KHW: Tensor, matrices: Sequence[Tensor] | None) -> Tensor:
    """dx_Khw: the way back of `_enlarged`."""
    if matrices is None:
        return dx_KHW
    rows_Hh, columns_Ww = matrices
    with _as_convolutions():
        return rows_Hh.T @ dx_KHW @ columns_Ww


class _EnlargedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BKhw: Tensor, target_BHW: Tensor, share_BHW: Tensor, label_smoothing: float) -> Tensor:
        small_BKhw = logits_BKhw.float().contiguous()
        classes, small = small_BKhw.shape[1], small_BKhw.shape[2:]
        matrices = None
        if small != target_BHW.shape[1:]:
            matrices = [_matrix(*sizes, small_BKhw) for sizes in zip(small, target_BHW.shape[1:], strict=True)]
        total = small_BKhw.new_zeros(())
        gradient_BKhw = torch.empty_like(small_BKhw) if ctx.needs_input_grad[0] else None
        for index, (small_Khw, target_HW, share_HW) in enumerate(zip(small_BKhw, target_BHW, share_BHW, strict=True)):
            log_KHW = F.log_softmax(_enlarged(small_Khw, matrices), dim=0)
            loss_HW = log_KHW.gather(0, target_HW[None])[0].mul_(label_smoothing - 1)
            if label_smoothing:
                loss_HW -= label_smoothing * log_KHW.mean(dim=0)
            total += (loss_HW * share_HW).sum()
            if gradient_BKhw is None:
                continue
            # d loss / d logits = softmax - target, the target being smoothed.
            slope_KHW = log_KHW.exp_()
            if label_smoothing:
                slope_KHW -= label_smoothing / classes
            slope_KHW.mul_(share_HW)
            slope_KHW.scatter_add_(0, target_HW[None], share_HW[None] * (label_smoothing - 1))
            gradient_BKhw[index] = _gathered(slope_KHW, matrices)
        ctx.save_for_backward(gradient_BKhw)
        ctx.dtype = logits_BKhw.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_BKhw,) = ctx.saved_tensors
        return (gradient_BKhw * dloss).to(ctx.dtype), None, None, None
