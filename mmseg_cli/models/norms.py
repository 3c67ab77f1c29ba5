"""Batch norm over several processes, and batch norm that runs a second time without leaving a trace.

Shape suffixes: B batch, C channels, H height, W width; R ranks (processes); 1 a dimension of one element.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmseg_cli.errors import MmsegError


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm (arXiv 1502.03167) whose statistics are of the images of all processes; for the CPU.

    ``torch.nn.SyncBatchNorm`` raises there. The arguments, attributes and state keys are those of ``nn.BatchNorm2d``,
    and so is all it does in evaluation, without a process group, or in a group of one.

    Every process may bring another number of images, or none; all of them must bring the same channels, and run the
    forward and the backward pass together. The statistics are computed from the same numbers in the same order
    everywhere, hence equal in every bit, and so are the running ones. Gradients of the weight and the bias are of a
    process's own images: summing or averaging them is left to who does that for all parameters, as in torch's.

    Statistics are in float32 at least, whatever the input's type; the output has the input's type and memory format.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: of the running statistics; None for their plain average.
        affine: whether there are a weight and a bias.
        track_running_stats: whether there are running statistics.
        process_group: the processes that share their statistics; None for all.
        device: of the weights.
        dtype: of the weights.

    Maps ``x_BCHW`` to the same shape.

    Raises:
        ValueError: all processes together have a single value per channel, or none.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.process_group = process_group

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise ``x_BCHW``; in training, by the statistics of all processes."""
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(self.process_group) < 2
        if alone or not self.training or x_BCHW.is_meta:  # the meta device counts costs: it has nothing to exchange
            return super().forward(x_BCHW)
        self._check_input_dim(x_BCHW)
        mean_C, var_C, count = _statistics(x_BCHW, self.process_group)
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got {count} in all processes")
        if self.track_running_stats:
            self._track(mean_C, var_C, count)
        y_BCHW: Tensor = _Normalise.apply(
            x_BCHW, self.weight, self.bias, mean_C, var_C, count, self.eps, self.process_group
        )
        return y_BCHW

    @torch.no_grad()
    def _track(self, mean_C: Tensor, var_C: Tensor, count: int) -> None:
        """Move the running statistics towards this step's, the variance made unbiased as in ``nn.BatchNorm2d``."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / int(self.num_batches_tracked) if self.num_batches_tracked is not None else 0.0
        if self.running_mean is not None:
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
        if self.running_var is not None:
            self.running_var.lerp_((var_C * (count / (count - 1))).to(self.running_var.dtype), share)


@torch.no_grad()
def _statistics(x_BCHW: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, int]:
    """Give mean, biased variance and number of the values per channel over all processes; the same bits in each.

    One exchange of each process's own three, joined by the formula of Chan, Golub and LeVeque (Updating Formulae and
    a Pairwise Algorithm for Computing Sample Variances, 1979): no difference of two large sums, hence as exact as one
    process's. In float64, where the number of pixels is exact too (float32 ends at 16.8 million of them).
    """
    channels, dtype = x_BCHW.shape[1], _computing_dtype(x_BCHW)
    own = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x_BCHW.device)
    own[-1] = x_BCHW.numel() // channels
    if x_BCHW.numel() > 0:
        # torch's own kernel, several times faster than `var_mean`. It computes in the type of the running statistics,
        # of which it gets a pair to throw away.
        unused_C = torch.zeros(channels, dtype=dtype, device=x_BCHW.device)
        mean_C, var_C = torch.batch_norm_update_stats(x_BCHW, unused_C, unused_C.clone(), 0.0)
        own[:channels], own[channels:-1] = mean_C, var_C
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    means_RC, vars_RC, counts_R1 = torch.split(torch.stack(every), [channels, channels, 1], dim=1)
    count = counts_R1.sum()
    mean_C = (counts_R1 * means_RC).sum(0) / count
    var_C = (counts_R1 * (vars_RC + (means_RC - mean_C) ** 2)).sum(0) / count
    return mean_C.to(dtype), var_C.to(dtype), int(count)


def _computing_dtype(x_BCHW: Tensor) -> torch.dtype:
    return torch.promote_types(x_BCHW.dtype, torch.float32)


class _Normalise(torch.autograd.Function):
    """Normalise by the statistics of all processes, with the gradient that flows through these as well."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        mean_C: Tensor,
        var_C: Tensor,
        count: int,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, var_C)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        # What evaluation does with its running statistics; the kernel wants all per-channel numbers of one type.
        weight_C, bias_C = (None if each_C is None else each_C.to(mean_C.dtype) for each_C in (weight_C, bias_C))
        return F.batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_C, mean_C, var_C = ctx.saved_tensors
        # The sums over this process's own values: of dy times the normalised x, and of dy.
        own_scaled_C, own_C = torch.zeros_like(mean_C), torch.zeros_like(mean_C)
        if x_BCHW.numel() > 0:
            unit_C = torch.ones_like(mean_C)
            _, own_scaled_C, own_C = torch.ops.aten.native_batch_norm_backward(
                dy_BCHW, x_BCHW, unit_C, mean_C, var_C, None, None, False, ctx.eps, [False, True, True]
            )
        dx_BCHW = None
        if ctx.needs_input_grad[0]:
            sums_2C = torch.cat([own_scaled_C, own_C])
            dist.all_reduce(sums_2C, group=ctx.group)
            scaled_C, plain_C = (sums_2C / ctx.count).chunk(2)
            # dx = weight / deviation * (dy - mean(dy) - normalised x * mean(dy * normalised x)), as a dy + b x + c.
            inverse_C = (var_C + ctx.eps).rsqrt()
            a_C = inverse_C if weight_C is None else inverse_C * weight_C.to(inverse_C.dtype)
            b_C = -a_C * scaled_C * inverse_C
            c_C = -a_C * plain_C - b_C * mean_C
            a_1C11, b_1C11, c_1C11 = (each_C[None, :, None, None] for each_C in (a_C, b_C, c_C))
            dx_BCHW = torch.addcmul(c_1C11, x_BCHW.to(mean_C.dtype), b_1C11)
            dx_BCHW = dx_BCHW.addcmul_(dy_BCHW.to(mean_C.dtype), a_1C11).to(x_BCHW.dtype)
        dweight_C = own_scaled_C if ctx.needs_input_grad[1] else None
        dbias_C = own_C if ctx.needs_input_grad[2] else None
        return dx_BCHW, dweight_C, dbias_C, None, None, None, None, None


def synchronise(network: nn.Module) -> nn.Module:
    """Give every ``nn.BatchNorm2d`` of ``network``, in place, the kind that shares its statistics with all processes.

    torch's own where the weights are on CUDA, :class:`SyncBatchNorm` elsewhere. Parameters, buffers and state keys
    stay; call it before ``DistributedDataParallel`` and after the network is on its device.

    Returns:
        ``network``, or what replaces it where it is a batch norm itself.

    Raises:
        MmsegError: a batch norm of another class, whose further doings a replacement would lose.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in network.named_modules():
        if type(module) is nn.BatchNorm2d:
            replacements[module] = _synchronised(module)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(
            module, SyncBatchNorm | nn.SyncBatchNorm
        ):
            what = f"a {type(module).__name__} cannot share its statistics between processes"
            raise MmsegError(name, what, "use nn.BatchNorm2d in the block, or one process")
    for parent in [*network.modules()]:
        for name, child in parent._modules.items():  # `named_children` leaves out a child's second name
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(network, network)


def _synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    """Make the synchronised twin of ``norm``, with the same parameters and buffers."""
    reference = next((tensor for tensor in [*norm.parameters(), *norm.buffers()]), None)
    if reference is not None and reference.is_cuda:
        twin: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
        return twin
    ours = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    ours._parameters, ours._buffers, ours.training = norm._parameters, norm._buffers, norm.training
    return ours


class frozen_statistics:
    """A context in which running ``module`` leaves its buffers as they are, batch norm's running statistics above all.

    For running a part a second time, as recomputation does: batch norm still normalises by the batch, and what it
    learns goes into copies that are dropped. The copies are taken when this is made, not when the context begins, so
    that whatever else a module keeps in buffers and reads in training is as it was, too, if this was made before the
    first run. The context can be entered more than once.

    DEVIATION from the usual ``track_running_stats = False``: that changes what autograd keeps, and recomputation must
    keep what the first run kept.
    """

    def __init__(self, module: nn.Module) -> None:
        self._copies = [
            (owner, name, buffer.detach().clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]
        self._own: list[Tensor | None] = []

    def __enter__(self) -> None:
        self._own = [owner._buffers[name] for owner, name, _ in self._copies]
        for owner, name, copy in self._copies:
            owner._buffers[name] = copy.clone()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for (owner, name, _), own in zip(self._copies, self._own, strict=True):
            owner._buffers[name] = own
        self._own = []
