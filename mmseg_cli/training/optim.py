"""Optimizers. Norms and biases (all parameters with fewer than two dimensions) get no weight decay, as is usual."""

from __future__ import annotations

import torch
from torch import nn

from mmseg_cli.errors import MmsegError

MOMENTUM = 0.9


def build_optimizer(
    network: nn.Module, *, name: str, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or AdamW (Loshchilov and Hutter 2019); in torch's fused form, one kernel for all weights.

    Raises:
        MmsegError: an unknown name.
    """
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    free = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    if name == "sgd":
        sgd = torch.optim.SGD(groups, lr=learning_rate, momentum=MOMENTUM, fused=True)
        for parameter in network.parameters():
            # What the first step would make of nothing. Where that step is left out (an overflow under float16), torch
            # 2.14's fused form goes on with momentum that was never written.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    raise MmsegError("optimizer", f"unknown name {name!r}", "choose from sgd, adamw")
