"""Networks of other libraries: made without a download, of the sizes that their authors give."""

import pytest
import torch

from mmseg_cli.bench import peers
from mmseg_cli.errors import MmsegError
from mmseg_cli.models import cost
from tests.networks import NETWORK

MILLIONS = {  # parameters for 19 classes, as the libraries and the papers give them for 19 or 21
    "smp-unet-resnet18": 14.3,
    "smp-unet-resnet34": 24.4,
    "smp-unet-efficientnet-b0": 6.3,
    "smp-unet-efficientnet-b3": 13.2,
    "smp-deeplabv3plus-mobilenetv2": 4.4,
    "torchvision-lraspp": 3.2,
    "torchvision-deeplabv3": 39.6,
    "timm-hrnet-w48": 65.9,
    "transformers-segformer-b2": 27.4,
}


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_has_its_size_and_gives_logits_of_the_image_s(name):
    if name.startswith("transformers"):
        pytest.importorskip("transformers")
    with torch.device("meta"):
        network = peers.build_peer(name=name, classes=19)
    assert network.training
    assert round(cost.parameters(network) / 1e6, 1) == MILLIONS[name]
    x_BCHW = torch.empty(2, 3, 64, 96, device="meta")
    assert network(x_BCHW).shape == (2, 19, 64, 96)
    assert network.eval()(x_BCHW).shape == (2, 19, 64, 96)
    camvid_BCHW = torch.empty(1, 3, 360, 480, device="meta")  # no multiple of 16
    assert network(camvid_BCHW).shape == (1, 19, 360, 480)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert {norm.momentum for norm in norms} == {0.1}


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setattr(peers, "version", lambda package: (_ for _ in ()).throw(peers.PackageNotFoundError(package)))
    with pytest.raises(MmsegError, match="torchvision-lraspp: needs the package torchvision: pip install"):
        peers.build_peer(name="torchvision-lraspp", classes=2)


def test_an_unknown_peer_is_said():
    with pytest.raises(MmsegError, match="torchvision-lraspp"):
        peers.build_peer(name="torchvision-lrasp", classes=2)


@pytest.mark.parametrize("width", [4, 12, 40])
def test_the_width_of_equal_macs_is_found(width):
    macs = peers.macs_of({**NETWORK, "width": width}, size=(64, 96), classes=3)
    for target in (macs, round(1.02 * macs), round(0.98 * macs)):
        assert peers.at_equal_macs(NETWORK, target, size=(64, 96), classes=3) == {**NETWORK, "width": width}
    assert peers.at_equal_macs(NETWORK, 1, size=(64, 96), classes=3)["width"] == peers.WIDTH_STEP
