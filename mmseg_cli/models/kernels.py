"""Triton kernels of what takes a GPU time besides dense convolutions: batch norm, activations and depthwise 3x3.

All work on maps in channels_last, of float32, bfloat16 or float16, compute in float32 and add up in the same order
every time. Sums over pixels are made in chunks, so that there is work for every multiprocessor; torch adds the chunks
up. Triton comes with torch's builds for NVIDIA's GPUs; import this module only where it is there. With
TRITON_INTERPRET=1 in the environment the kernels run on the CPU, to be tested.

Places within one image are counted in 32 bits, which :func:`mmseg_cli.models.fused.serves` minds.

Shape suffixes: B batch, C channels, H, W height and width; N chunks. P is the number of an image's pixels.
"""

# Triton compiles Python by its own rules, which know no types of arguments.
# ruff: noqa: ANN001, ANN202, PIE808, RET505
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1056  # that a sum over pixels is divided into, roughly: eight for each multiprocessor of an H100
FINISHED = 128  # chunks that are added up at once


@triton.jit
def _activated(n, ACT: tl.constexpr):
    if ACT == "silu":
        return n * tl.sigmoid(n)
    elif ACT == "relu":
        return tl.maximum(n, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        return n


@triton.jit
def _slope(n, ACT: tl.constexpr):
    if ACT == "silu":
        s = tl.sigmoid(n)
        return s * (1.0 + n * (1.0 - s))
    elif ACT == "relu":
        return (n > 0.0).to(tl.float32)
    else:
        return tl.full(n.shape, 1.0, tl.float32)


@triton.jit
def _line(ptr, c, C):
    """A number of each channel, as a line of a tile."""
    return tl.load(ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _moments(x_ptr, out_ptr, P, C, CHUNK, BP: tl.constexpr, BC: tl.constexpr):
    # Sums of differences from the first pixel, and of their squares: no difference of two large sums.
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    chunk = tl.program_id(1)
    first = _line(x_ptr, c, C)
    total = tl.zeros([BP, BC], tl.float32)
    squares = tl.zeros([BP, BC], tl.float32)
    for start in range(0, CHUNK, BP):
        p = chunk.to(tl.int64) * CHUNK + start + tl.arange(0, BP)
        inside = (p < P)[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + p[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        difference = tl.where(inside, x - first, 0.0)
        total += difference
        squares += difference * difference
    out = out_ptr + chunk * C + c
    tl.store(out, tl.sum(total, 0), mask=c < C)
    tl.store(out + tl.num_programs(1) * C, tl.sum(squares, 0), mask=c < C)


@triton.jit
def _norm_of(
    x_ptr, sums_ptr, weight_ptr, bias_ptr, mean_ptr, var_ptr, out_ptr, N, C, P, momentum, eps,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros([BC], tl.float64)
    squares = tl.zeros([BC], tl.float64)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        inside = (n < N)[:, None] & (c < C)[None, :]
        at = sums_ptr + n[:, None] * C + c[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0).to(tl.float64), 0)
        squares += tl.sum(tl.load(at + N * C, mask=inside, other=0.0).to(tl.float64), 0)
    kept = c < C
    offset = total / P
    mean = (tl.load(x_ptr + c, mask=kept, other=0.0).to(tl.float64) + offset).to(tl.float32)
    var = tl.maximum((squares / P - offset * offset).to(tl.float32), 0.0, propagate_nan=tl.PropagateNan.ALL)
    inverse = 1.0 / tl.sqrt(var + eps)
    scale = inverse * tl.load(weight_ptr + c, mask=kept, other=0.0)
    shift = tl.load(bias_ptr + c, mask=kept, other=0.0) - mean * scale
    tl.store(out_ptr + c, scale, mask=kept)
    tl.store(out_ptr + C + c, shift, mask=kept)
    tl.store(out_ptr + 2 * C + c, mean, mask=kept)
    tl.store(out_ptr + 3 * C + c, inverse, mask=kept)
    before = tl.load(mean_ptr + c, mask=kept, other=0.0)
    tl.store(mean_ptr + c, before + momentum * (mean - before), mask=kept)
    before = tl.load(var_ptr + c, mask=kept, other=0.0)
    tl.store(var_ptr + c, before + momentum * (var * (P / (P - 1.0)) - before), mask=kept)


@triton.jit
def _kept_norm(weight_ptr, bias_ptr, mean_ptr, var_ptr, out_ptr, C, eps, BC: tl.constexpr):
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    kept = c < C
    mean = tl.load(mean_ptr + c, mask=kept, other=0.0)
    inverse = 1.0 / tl.sqrt(tl.load(var_ptr + c, mask=kept, other=1.0) + eps)
    scale = inverse * tl.load(weight_ptr + c, mask=kept, other=0.0)
    tl.store(out_ptr + c, scale, mask=kept)
    tl.store(out_ptr + C + c, tl.load(bias_ptr + c, mask=kept, other=0.0) - mean * scale, mask=kept)
    tl.store(out_ptr + 2 * C + c, mean, mask=kept)
    tl.store(out_ptr + 3 * C + c, inverse, mask=kept)


@triton.jit
def _pool(x_ptr, norm_ptr, out_ptr, P, C, CHUNK, ACT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    chunk = tl.program_id(1)
    b = tl.program_id(2)
    scale = _line(norm_ptr, c, C)
    shift = _line(norm_ptr + C, c, C)
    total = tl.zeros([BP, BC], tl.float32)
    image = x_ptr + b.to(tl.int64) * P * C
    for start in range(0, CHUNK, BP):
        p = chunk * CHUNK + start + tl.arange(0, BP)
        inside = (p < P)[:, None] & (c < C)[None, :]
        x = tl.load(image + p[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.where(inside, _activated(x * scale + shift, ACT), 0.0)
    tl.store(out_ptr + (b * tl.num_programs(1) + chunk) * C + c, tl.sum(total, 0), mask=c < C)


@triton.jit
def _apply(
    x_ptr, y_ptr, norm_ptr, gate_ptr, P, C,
    GATED: tl.constexpr, ACT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(C, BC)
    c = (tl.program_id(0) % across) * BC + tl.arange(0, BC)
    p = (tl.program_id(0) // across) * BP + tl.arange(0, BP)
    b = tl.program_id(1)
    inside = (p < P)[:, None] & (c < C)[None, :]
    at = b.to(tl.int64) * P * C + p[:, None] * C + c[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = _activated(x * _line(norm_ptr, c, C) + _line(norm_ptr + C, c, C), ACT)
    if GATED:
        y *= _line(gate_ptr + b * C, c, C)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sums(
    x_ptr, dy_ptr, norm_ptr, out_ptr, P, C, CHUNK, stride,
    GATED: tl.constexpr, ACT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # By image: of dy times the activation's slope, and that times the normalised x; of a gate also what its own
    # gradient and that of the mean under it need, so that the maps are read once.
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    chunk = tl.program_id(1)
    b = tl.program_id(2)
    scale = _line(norm_ptr, c, C)
    shift = _line(norm_ptr + C, c, C)
    mean = _line(norm_ptr + 2 * C, c, C)
    inverse = _line(norm_ptr + 3 * C, c, C)
    plain = tl.zeros([BP, BC], tl.float32)
    scaled = tl.zeros([BP, BC], tl.float32)
    slopes = tl.zeros([BP, BC], tl.float32)
    scaled_slopes = tl.zeros([BP, BC], tl.float32)
    gates = tl.zeros([BP, BC], tl.float32)
    image = b.to(tl.int64) * P * C
    for start in range(0, CHUNK, BP):
        p = chunk * CHUNK + start + tl.arange(0, BP)
        inside = (p < P)[:, None] & (c < C)[None, :]
        at = image + p[:, None] * C + c[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        n = x * scale + shift
        unit = (x - mean) * inverse
        slope = tl.where(inside, _slope(n, ACT), 0.0)
        plain += dy * slope
        scaled += dy * slope * unit
        if GATED:
            slopes += slope
            scaled_slopes += slope * unit
            gates += dy * _activated(n, ACT)
    out = out_ptr + (b * tl.num_programs(1) + chunk) * C + c
    tl.store(out, tl.sum(plain, 0), mask=c < C)
    tl.store(out + stride, tl.sum(scaled, 0), mask=c < C)
    if GATED:
        tl.store(out + 2 * stride, tl.sum(slopes, 0), mask=c < C)
        tl.store(out + 3 * stride, tl.sum(scaled_slopes, 0), mask=c < C)
        tl.store(out + 4 * stride, tl.sum(gates, 0), mask=c < C)


@triton.jit
def _backward(
    x_ptr, dy_ptr, dx_ptr, norm_ptr, plain_ptr, scaled_ptr, gate_ptr, dmean_ptr, P, C, share,
    GATED: tl.constexpr, ACT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(C, BC)
    c = (tl.program_id(0) % across) * BC + tl.arange(0, BC)
    p = (tl.program_id(0) // across) * BP + tl.arange(0, BP)
    b = tl.program_id(1)
    inside = (p < P)[:, None] & (c < C)[None, :]
    at = b.to(tl.int64) * P * C + p[:, None] * C + c[None, :]
    scale = _line(norm_ptr, c, C)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        dy = dy * _line(gate_ptr + b * C, c, C) + _line(dmean_ptr + b * C, c, C)
    dn = dy * _slope(x * scale + _line(norm_ptr + C, c, C), ACT)
    unit = (x - _line(norm_ptr + 2 * C, c, C)) * _line(norm_ptr + 3 * C, c, C)
    dx = scale * (dn - share * (_line(plain_ptr, c, C) + unit * _line(scaled_ptr, c, C)))
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _tap(k_ptr, c, C, index: tl.constexpr, FLIP: tl.constexpr):
    # Of the kernel k_C133, forwards or point-reflected.
    if FLIP:
        return tl.load(k_ptr + c * 9 + (8 - index), mask=c < C, other=0.0).to(tl.float32)[None, :]
    else:
        return tl.load(k_ptr + c * 9 + index, mask=c < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _depthwise(
    x_ptr, k_ptr, y_ptr, H, W, C, FLIP: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr
):
    # A strip of columns from top to bottom: each row is read once (its neighbours in the row from the cache) and adds
    # to three rows of the output, which move up by one.
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    b = tl.program_id(2)
    strips = tl.cdiv(W, BW)
    w = (tl.program_id(1) % strips) * BW + tl.arange(0, BW)
    first = (tl.program_id(1) // strips) * ROWS
    k00 = _tap(k_ptr, c, C, 0, FLIP)
    k01 = _tap(k_ptr, c, C, 1, FLIP)
    k02 = _tap(k_ptr, c, C, 2, FLIP)
    k10 = _tap(k_ptr, c, C, 3, FLIP)
    k11 = _tap(k_ptr, c, C, 4, FLIP)
    k12 = _tap(k_ptr, c, C, 5, FLIP)
    k20 = _tap(k_ptr, c, C, 6, FLIP)
    k21 = _tap(k_ptr, c, C, 7, FLIP)
    k22 = _tap(k_ptr, c, C, 8, FLIP)
    image = b.to(tl.int64) * H * W * C
    column = w[:, None] * C + c[None, :]
    known = (c < C)[None, :]
    inside = (w < W)[:, None] & known
    above = tl.zeros([BW, BC], tl.float32)
    here = tl.zeros([BW, BC], tl.float32)
    for i in range(0, ROWS + 2):
        r = first - 1 + i
        row = x_ptr + image + r * W * C + column
        real = (r >= 0) & (r < H)
        left = tl.load(row - C, mask=((w >= 1) & (w <= W))[:, None] & known & real, other=0.0).to(tl.float32)
        middle = tl.load(row, mask=inside & real, other=0.0).to(tl.float32)
        right = tl.load(row + C, mask=(w + 1 < W)[:, None] & known & real, other=0.0).to(tl.float32)
        above += k20 * left + k21 * middle + k22 * right
        done = (i >= 2) & (r - 1 < H)
        tl.store(y_ptr + image + (r - 1) * W * C + column, above.to(y_ptr.dtype.element_ty), mask=inside & done)
        above = here + k10 * left + k11 * middle + k12 * right
        here = k00 * left + k01 * middle + k02 * right


@triton.jit
def _depthwise_weight(x_ptr, dy_ptr, out_ptr, H, W, C, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    b = tl.program_id(2)
    strips = tl.cdiv(W, BW)
    w = (tl.program_id(1) % strips) * BW + tl.arange(0, BW)
    first = (tl.program_id(1) // strips) * ROWS
    image = b.to(tl.int64) * H * W * C
    column = w[:, None] * C + c[None, :]
    known = (c < C)[None, :]
    inside = (w < W)[:, None] & known
    k00 = tl.zeros([BW, BC], tl.float32)
    k01 = tl.zeros([BW, BC], tl.float32)
    k02 = tl.zeros([BW, BC], tl.float32)
    k10 = tl.zeros([BW, BC], tl.float32)
    k11 = tl.zeros([BW, BC], tl.float32)
    k12 = tl.zeros([BW, BC], tl.float32)
    k20 = tl.zeros([BW, BC], tl.float32)
    k21 = tl.zeros([BW, BC], tl.float32)
    k22 = tl.zeros([BW, BC], tl.float32)
    dy = dy_ptr + image + column
    above = tl.load(dy + (first - 1) * W * C, mask=inside & (first >= 1), other=0.0).to(tl.float32)
    here = tl.load(dy + first * W * C, mask=inside & (first < H), other=0.0).to(tl.float32)
    for i in range(0, ROWS):
        r = first + i
        below = tl.load(dy + (r + 1) * W * C, mask=inside & (r + 1 < H), other=0.0).to(tl.float32)
        row = x_ptr + image + r * W * C + column
        left = tl.load(row - C, mask=((w >= 1) & (w <= W))[:, None] & known & (r < H), other=0.0).to(tl.float32)
        middle = tl.load(row, mask=inside & (r < H), other=0.0).to(tl.float32)
        right = tl.load(row + C, mask=(w + 1 < W)[:, None] & known & (r < H), other=0.0).to(tl.float32)
        k00 += below * left
        k01 += below * middle
        k02 += below * right
        k10 += here * left
        k11 += here * middle
        k12 += here * right
        k20 += above * left
        k21 += above * middle
        k22 += above * right
        above = here
        here = below
    out = out_ptr + ((b * tl.num_programs(1) + tl.program_id(1)) * C + c) * 9
    tl.store(out, tl.sum(k00, 0), mask=c < C)
    tl.store(out + 1, tl.sum(k01, 0), mask=c < C)
    tl.store(out + 2, tl.sum(k02, 0), mask=c < C)
    tl.store(out + 3, tl.sum(k10, 0), mask=c < C)
    tl.store(out + 4, tl.sum(k11, 0), mask=c < C)
    tl.store(out + 5, tl.sum(k12, 0), mask=c < C)
    tl.store(out + 6, tl.sum(k20, 0), mask=c < C)
    tl.store(out + 7, tl.sum(k21, 0), mask=c < C)
    tl.store(out + 8, tl.sum(k22, 0), mask=c < C)


def _columns(channels: int) -> int:
    """Channels of a tile: a power of two that divides them, if it can be."""
    return next((count for count in (32, 16) if channels % count == 0), 32)


def _chunks(pixels: int, programs: int, *, step: int) -> tuple[int, int]:
    """(pixels of a chunk, a multiple of `step`; chunks), for `PROGRAMS` in all where each chunk is `programs`."""
    count = max(1, min(triton.cdiv(pixels, step), triton.cdiv(PROGRAMS, programs)))
    size = triton.cdiv(triton.cdiv(pixels, count), step) * step
    return size, triton.cdiv(pixels, size)


def batch_norm(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, var_C: Tensor, *, momentum: float, eps: float
) -> Tensor:
    """norm_4C, float32: scale and shift of a batch norm (arXiv 1502.03167) that trains, mean and 1 / deviation.

    The running ``mean_C`` and ``var_C`` are brought up to date in place. More than one value a channel is needed.
    """
    batch, channels, height, width = x_BCHW.shape
    pixels, tile = batch * height * width, _columns(channels)
    across = triton.cdiv(channels, tile)
    size, count = _chunks(pixels, across, step=32)
    sums_2NC = torch.empty((2, count, channels), device=x_BCHW.device)
    _moments[across, count](x_BCHW, sums_2NC, pixels, channels, size, BP=32, BC=tile, num_warps=8)
    norm_4C = torch.empty((4, channels), device=x_BCHW.device)
    _norm_of[across,](
        x_BCHW, sums_2NC, weight_C, bias_C, mean_C, var_C, norm_4C, count, channels, float(pixels), momentum, eps,
        BN=FINISHED, BC=tile,
    )  # fmt: skip
    return norm_4C


def kept_norm(weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, var_C: Tensor, *, eps: float) -> Tensor:
    """norm_4C, as of `batch_norm`, by the statistics that are given: what a batch norm is in evaluation."""
    channels = len(weight_C)
    norm_4C = torch.empty((4, channels), device=weight_C.device)
    _kept_norm[triton.cdiv(channels, 128),](weight_C, bias_C, mean_C, var_C, norm_4C, channels, eps, BC=128)
    return norm_4C


def pooled(x_BCHW: Tensor, norm_4C: Tensor, *, activation: str) -> Tensor:
    """mean_BC, float32: of the activated, normalised map over each image."""
    batch, channels, height, width = x_BCHW.shape
    pixels, tile = height * width, _columns(channels)
    across = triton.cdiv(channels, tile)
    size, count = _chunks(pixels, across * batch, step=64)
    sums_BNC = torch.empty((batch, count, channels), device=x_BCHW.device)
    _pool[across, count, batch](
        x_BCHW, norm_4C, sums_BNC, pixels, channels, size, ACT=activation, BP=64, BC=tile, num_warps=8
    )
    return sums_BNC.sum(1) / pixels


def activated(x_BCHW: Tensor, norm_4C: Tensor, gate_BC: Tensor | None, *, activation: str) -> Tensor:
    """The activated, normalised map, times a gate if there is one: of ``x_BCHW``'s shape and type."""
    batch, channels, height, width = x_BCHW.shape
    pixels, tile = height * width, _columns(channels)
    y_BCHW = torch.empty_like(x_BCHW)
    _apply[triton.cdiv(channels, tile) * triton.cdiv(pixels, 64), batch](
        x_BCHW, y_BCHW, norm_4C, gate_BC, pixels, channels,
        GATED=gate_BC is not None, ACT=activation, BP=64, BC=tile, num_warps=4,
    )  # fmt: skip
    return y_BCHW


def gradient_sums(x_BCHW: Tensor, dy_BCHW: Tensor, norm_4C: Tensor, *, gated: bool, activation: str) -> Tensor:
    """sums_2BC over each image: of dy times the activation's slope, alone and times the normalised map.

    With a gate sums_5BC: also of the slope, of the slope times the normalised map, and of dy times the activated map.
    """
    batch, channels, height, width = x_BCHW.shape
    pixels, tile = height * width, _columns(channels)
    across = triton.cdiv(channels, tile)
    size, count = _chunks(pixels, across * batch, step=64)
    sums_BNC = torch.empty((5 if gated else 2, batch, count, channels), device=x_BCHW.device)
    _sums[across, count, batch](
        x_BCHW, dy_BCHW, norm_4C, sums_BNC, pixels, channels, size, batch * count * channels,
        GATED=gated, ACT=activation, BP=64, BC=tile, num_warps=8,
    )  # fmt: skip
    return sums_BNC.sum(2)


def norm_backward(
    x_BCHW: Tensor,
    dy_BCHW: Tensor,
    norm_4C: Tensor,
    dbias_C: Tensor,
    dweight_C: Tensor,
    gate_BC: Tensor | None,
    dmean_BC: Tensor | None,
    *,
    activation: str,
) -> Tensor:
    """dx_BCHW, of ``x_BCHW``'s type.

    Args:
        dbias_C, dweight_C: the gradients of the norm's own.
        gate_BC, dmean_BC: the gate, and the gradient of each pixel by the mean under it; both or none.
    """
    batch, channels, height, width = x_BCHW.shape
    pixels, tile = height * width, _columns(channels)
    dx_BCHW = torch.empty_like(x_BCHW)
    _backward[triton.cdiv(channels, tile) * triton.cdiv(pixels, 32), batch](
        x_BCHW, dy_BCHW, dx_BCHW, norm_4C, dbias_C, dweight_C, gate_BC, dmean_BC, pixels, channels,
        1 / (batch * pixels), GATED=gate_BC is not None, ACT=activation, BP=32, BC=tile, num_warps=4,
    )  # fmt: skip
    return dx_BCHW


def _strip(height: int, width: int, *, rows: int, columns: int) -> tuple[int, int, int]:
    """(rows, columns) of a strip, powers of two, and the number of strips that cover an image."""
    rows = min(rows, triton.next_power_of_2(height))
    columns = min(columns, max(4, triton.next_power_of_2(width)))
    return rows, columns, triton.cdiv(width, columns) * triton.cdiv(height, rows)


def depthwise(x_BCHW: Tensor, kernel_C133: Tensor, *, reflected: bool = False) -> Tensor:
    """The depthwise 3x3 convolution at stride 1, padded by zeros to the same size; of ``x_BCHW``'s type.

    Args:
        reflected: by the kernel's point reflection: what makes the gradient of the input from that of the output.
    """
    batch, channels, height, width = x_BCHW.shape
    tile = _columns(channels)
    rows, columns, strips = _strip(height, width, rows=16, columns=32)
    y_BCHW = torch.empty_like(x_BCHW)
    _depthwise[triton.cdiv(channels, tile), strips, batch](
        x_BCHW, kernel_C133, y_BCHW, height, width, channels,
        FLIP=reflected, ROWS=rows, BW=columns, BC=tile, num_warps=2,
    )  # fmt: skip
    return y_BCHW


def depthwise_weight(x_BCHW: Tensor, dy_BCHW: Tensor) -> Tensor:
    """dkernel_C133, float32, of `depthwise`."""
    batch, channels, height, width = x_BCHW.shape
    tile = _columns(channels)
    rows, columns, strips = _strip(height, width, rows=32, columns=16)
    parts = torch.empty((batch * strips, channels, 1, 3, 3), device=x_BCHW.device)
    _depthwise_weight[triton.cdiv(channels, tile), strips, batch](
        x_BCHW, dy_BCHW, parts, height, width, channels, ROWS=rows, BW=columns, BC=tile, num_warps=4
    )
    return parts.sum(0)


def run_all(x_BCHW: Tensor, *, activation: str, gated: bool) -> None:
    """Run every kernel once, on maps like this one, to see whether they can be built."""
    batch, channels = x_BCHW.shape[:2]
    device = x_BCHW.device
    numbers_C, kernel_C133 = torch.ones(channels, device=device), torch.ones((channels, 1, 3, 3), device=device)
    running = [torch.ones(channels, device=device) for _ in range(2)]
    gate_BC = torch.ones((batch, channels), device=device) if gated else None
    kept_norm(numbers_C, numbers_C, *running, eps=1e-5)
    norm_4C = batch_norm(x_BCHW, numbers_C, numbers_C, *running, momentum=0.1, eps=1e-5)
    pooled(x_BCHW, norm_4C, activation=activation)
    activated(x_BCHW, norm_4C, gate_BC, activation=activation)
    gradient_sums(x_BCHW, x_BCHW, norm_4C, gated=gated, activation=activation)
    norm_backward(x_BCHW, x_BCHW, norm_4C, numbers_C, numbers_C, gate_BC, gate_BC, activation=activation)
    depthwise(x_BCHW, kernel_C133)
    depthwise_weight(x_BCHW, x_BCHW)
