"""Losses. Written with log_softmax and gather, whose backward passes are deterministic on CUDA as well.

Shapes: B = batch, K = classes, H, W = height, width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmseg_cli.data import balance
from mmseg_cli.data.labels import IGNORE


def cross_entropy(logits_BK: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean cross entropy of a classification, with label smoothing (Szegedy et al. 2016).

    Args:
        logits_BK: float.
        target: target_B, int64 classes, or target_BK, float probabilities (of mixed pictures).
    """
    log_BK = F.log_softmax(logits_BK, dim=1)
    if target.is_floating_point():
        loss_B = -(target * log_BK).sum(dim=1)
    else:
        loss_B = -log_BK.gather(1, target[:, None]).squeeze(1)
    if label_smoothing:
        loss_B = (1 - label_smoothing) * loss_B - label_smoothing * log_BK.mean(dim=1)
    return loss_B.mean()


def inverse_log_weights(class_pixels: Sequence[int]) -> Tensor:
    """`balance.inverse_log_weights` as weight_K, float32."""
    return torch.from_numpy(balance.inverse_log_weights(class_pixels)).float()


def pixel_cross_entropy(
    logits_BKHW: Tensor, label_BHW: Tensor, *, label_smoothing: float, weight_K: Tensor | None = None
) -> Tensor:
    """Mean cross entropy over the pixels that are not ignored; 0 where all are.

    Args:
        logits_BKHW: float.
        label_BHW: train ids, 255 = ignore.
        weight_K: weight of each class's pixels in the mean; None weighs all alike.
    """
    label_BHW = label_BHW.long()
    kept_BHW = label_BHW != IGNORE
    label_BHW = label_BHW.masked_fill(~kept_BHW, 0)
    log_BKHW = F.log_softmax(logits_BKHW, dim=1)
    loss_BHW = -log_BKHW.gather(1, label_BHW[:, None]).squeeze(1)
    if label_smoothing:
        loss_BHW = (1 - label_smoothing) * loss_BHW - label_smoothing * log_BKHW.mean(dim=1)
    share_BHW = kept_BHW.float() if weight_K is None else kept_BHW * weight_K[label_BHW]
    return (loss_BHW * share_BHW).sum() / share_BHW.sum().clamp(min=1)
