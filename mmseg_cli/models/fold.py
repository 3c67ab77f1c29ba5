"""Batch norms folded into the convolutions before them: in evaluation both are linear, hence one convolution.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmseg_cli.models.blocks import InvertedResidual, Residual
from mmseg_cli.models.layers import NormAct, SeparableConv


def fold_norms(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in evaluation mode without the batch norms of our layers and blocks, synchronised ones too.

    It gives what ``network`` gives in evaluation mode, but for rounding. Group norms stay: their statistics are those
    of the image. So does a batch norm in a block of the user's own, of which nobody knows what it follows.
    """
    folded = copy.deepcopy(network).eval()
    for module in [*folded.modules()]:
        if isinstance(module, NormAct):
            _fold(module, "conv", "norm")
        elif isinstance(module, Residual):
            _fold(module, "conv1", "norm1")
            _fold(module, "conv2", "norm2")
            if isinstance(module.shortcut, nn.Sequential):
                _fold(module.shortcut, "0", "1")
        elif isinstance(module, InvertedResidual):
            _fold(module, "project", "project_norm")
    return folded


def _fold(parent: nn.Module, conv: str, norm: str) -> None:
    """Fold one batch norm; an identity takes its place, so that ``parent`` runs as before."""
    before, after = parent.get_submodule(conv), parent.get_submodule(norm)
    if not isinstance(after, _BatchNorm) or after.running_mean is None:
        return
    if isinstance(before, SeparableConv):  # nothing is between the two: what follows the row follows both
        before.row = fuse_conv_bn_eval(before.row, after)
    else:
        setattr(parent, conv, fuse_conv_bn_eval(cast(nn.Conv2d, before), after))
    setattr(parent, norm, nn.Identity())
