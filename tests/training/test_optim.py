from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models.unet import build_network
from mmseg_cli.training.optim import build_optimizer
from tests.networks import NETWORK


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_norms_and_biases_are_not_decayed(name, kind):
    network = build_network(task="segmentation", num_classes=3, **NETWORK)
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


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_in_one_kernel_the_weights_are_those_of_torchs_plain_form(name):
    """Over some steps with changing rates, within rounding."""
    torch.manual_seed(0)
    ours = build_network(task="segmentation", num_classes=3, **NETWORK)
    theirs = copy.deepcopy(ours)
    fused = build_optimizer(ours, name=name, learning_rate=0.1, weight_decay=0.05)
    assert all(group["fused"] for group in fused.param_groups)
    decayed, free = ([p for p in theirs.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    plain = {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9, foreach=False),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.1, foreach=False),
    }[name]()
    for step in range(5):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in (fused, plain):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            optimizer.step()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    kept, expected = (optimizer.state_dict()["state"] for optimizer in (fused, plain))
    assert kept.keys() == expected.keys()
    for index, values in expected.items():
        assert values.keys() == kept[index].keys()
        for key, value in values.items():
            torch.testing.assert_close(kept[index][key], value, rtol=1e-5, atol=1e-6)


def test_momentum_begins_at_nothing_in_the_weights_layout():
    layer = nn.Conv2d(16, 8, 3).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(layer, name="sgd", learning_rate=0.1, weight_decay=0)
    momentum = {id(parameter): optimizer.state[parameter]["momentum_buffer"] for parameter in layer.parameters()}
    for parameter in layer.parameters():
        assert momentum[id(parameter)].stride() == parameter.stride()
        assert not momentum[id(parameter)].any()
