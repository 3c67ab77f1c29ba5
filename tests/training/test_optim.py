from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models.unet import build_network
from mmseg_cli.training.optim import build_optimizer

BODY = {
    "block": "mmbconv",
    "layout": "uniform",
    "width": 4,
    "depth": 1,
    "levels": 2,
    "stem_stride": 2,
    "expansion": 2.0,
    "se_ratio": 0.25,
    "norm": "batch",
    "activation": "silu",
}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_norms_and_biases_are_not_decayed(name, kind):
    network = build_network(task="segmentation", num_classes=3, **BODY)
    optimizer = build_optimizer(network, name=name, learning_rate=0.1, weight_decay=0.01)
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for module in network.modules():
        for key, parameter in module.named_parameters(recurse=False):
            plain = key == "bias" or isinstance(module, nn.BatchNorm2d)
            assert decay[id(parameter)] == (0.0 if plain else 0.01)


def test_a_step_without_gradient_decays_weights_alone():
    layer = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    optimizer = build_optimizer(layer, name="sgd", learning_rate=0.5, weight_decay=0.1)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * 0.95)
    assert torch.equal(layer.bias, before["bias"])


def test_an_unknown_name_is_refused():
    with pytest.raises(MmsegError, match="unknown name 'lion'"):
        build_optimizer(nn.Linear(1, 1), name="lion", learning_rate=1, weight_decay=0)
