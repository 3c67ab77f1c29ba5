"""Folded batch norms: the same outputs, no batch norm left, and the original as it was."""

import copy

import pytest
import torch
from torch import nn

from mmseg_cli.models import blocks, layers, norms
from mmseg_cli.models.fold import fold_norms
from mmseg_cli.models.unet import build_network
from mmseg_cli.names import BLOCK_NAMES

ARGUMENTS = {
    "task": "segmentation",
    "num_classes": 5,
    "width": 8,
    "depth": 1,
    "levels": 3,
    "stem_stride": 2,
    "expansion": 2.0,
    "se_ratio": 0.25,
    "activation": "silu",
}


def with_statistics(module: nn.Module) -> nn.Module:
    """Every batch norm as after some training: statistics, weights and biases of its own."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.5)
            nn.init.uniform_(norm.running_var, 0.3, 3)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.5)
    return module


def difference(one: nn.Module, other: nn.Module, x_BCHW: torch.Tensor) -> float:
    """The largest difference of two outputs, relative to the largest value."""
    with torch.inference_mode():
        expected, found = one.eval()(x_BCHW), other(x_BCHW)
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("layout", ["uniform", "pyramid"])
@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_a_folded_network_gives_the_same_logits(block, layout):
    torch.manual_seed(1)
    network = with_statistics(build_network(**ARGUMENTS, block=block, layout=layout, norm="batch"))
    network.train()
    before = copy.deepcopy(network.state_dict())
    folded = fold_norms(network)
    assert network.training
    assert not folded.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert difference(network, folded, torch.randn(2, 3, 37, 52)) < 1e-5


def test_the_projected_skip_of_a_residual_block_is_folded_too():
    torch.manual_seed(2)
    block = with_statistics(
        blocks.build_block("residual", 4, 8, expansion=1, se_ratio=0, norm="batch", activation="relu")
    )
    folded = fold_norms(block)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert difference(block, folded, torch.randn(2, 4, 9, 11)) < 1e-5


@pytest.mark.parametrize("block", [block for block in BLOCK_NAMES if block != "residual"])
def test_a_block_that_changes_the_channels_is_folded(block):
    torch.manual_seed(2)
    made = with_statistics(
        blocks.build_block(block, 12, 8, expansion=1.5, se_ratio=0.25, norm="batch", activation="relu")
    )
    convolutions = [module for module in made.modules() if isinstance(module, nn.Conv2d)]
    folded = fold_norms(made)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert len([module for module in folded.modules() if isinstance(module, nn.Conv2d)]) == len(convolutions)
    assert difference(made, folded, torch.randn(2, 12, 9, 11)) < 1e-5


def test_group_norms_stay():
    torch.manual_seed(3)
    network = build_network(**ARGUMENTS, block="mmbconv", layout="uniform", norm="group")
    folded = fold_norms(network)
    assert [type(module) for module in folded.modules()] == [type(module) for module in network.modules()]
    assert folded.state_dict().keys() == network.state_dict().keys()
    assert difference(network, folded, torch.randn(1, 3, 32, 32)) == 0


def test_synchronised_batch_norms_are_folded():
    torch.manual_seed(4)
    network = build_network(**ARGUMENTS, block="mbconv", layout="uniform", norm="batch")
    network = with_statistics(norms.synchronise(network))
    assert any(isinstance(module, norms.SyncBatchNorm) for module in network.modules())
    folded = fold_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert difference(network, folded, torch.randn(1, 3, 32, 32)) < 1e-5


def test_torch_s_own_synchronised_batch_norm_is_folded():
    """It runs on CUDA only, so its plain twin says what is right."""
    torch.manual_seed(5)
    plain = with_statistics(layers.ConvNormAct(3, 4, kernel_size=3, norm="batch", activation="relu"))
    folded = fold_norms(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain)))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in folded.modules())
    assert difference(plain, folded, torch.randn(1, 3, 8, 8)) < 1e-5


def test_a_batch_norm_without_statistics_or_elsewhere_stays():
    own = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    assert isinstance(fold_norms(own)[0], nn.BatchNorm2d)
    layer = layers.ConvNormAct(3, 4, kernel_size=3, norm="batch", activation="relu")
    layer.norm = nn.BatchNorm2d(4, track_running_stats=False)
    folded = fold_norms(layer)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    assert difference(layer, folded, torch.randn(2, 3, 8, 8)) == 0
