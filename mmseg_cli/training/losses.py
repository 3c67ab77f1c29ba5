"""Losses. Written with log_softmax and gather, whose backward passes are deterministic on CUDA as well.

Shapes: B = batch, K = classes, H, W = height, width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def cross_entropy(logits_BK: Tensor, target_B: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean cross entropy of a classification, with label smoothing (Szegedy et al. 2016)."""
    log_BK = F.log_softmax(logits_BK, dim=1)
    loss_B = -log_BK.gather(1, target_B[:, None]).squeeze(1)
    if label_smoothing:
        loss_B = (1 - label_smoothing) * loss_B - label_smoothing * log_BK.mean(dim=1)
    return loss_B.mean()


def pixel_cross_entropy(logits_BKHW: Tensor, label_BHW: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean cross entropy over the pixels that are not ignored; 0 where all are.

    Args:
        logits_BKHW: float.
        label_BHW: train ids, 255 = ignore.
    """
    label_BHW = label_BHW.long()
    kept_BHW = label_BHW != IGNORE
    log_BKHW = F.log_softmax(logits_BKHW, dim=1)
    loss_BHW = -log_BKHW.gather(1, label_BHW.masked_fill(~kept_BHW, 0)[:, None]).squeeze(1)
    if label_smoothing:
        loss_BHW = (1 - label_smoothing) * loss_BHW - label_smoothing * log_BKHW.mean(dim=1)
    return (loss_BHW * kept_BHW).sum() / kept_BHW.sum().clamp(min=1)
