"""Segmentation networks of other libraries as their users build them, with random weights; and ours at equal cost.

The libraries come with `pip install mmseg-cli[bench]`. Each network maps ``x_BCHW`` to ``logits_BKHW`` of the image's
size by its own code, in training too. Nothing is downloaded. Their batch norms follow the images as torch's do, and
ours: by the 0.01 a step that MobileNetV3 and EfficientNet take, for trainings of days, a network that is judged after
170 steps would be judged by a fifth of the statistics that it began with.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_cli.errors import MmsegError
from mmseg_cli.models import cost
from mmseg_cli.models.unet import build_network
from mmseg_cli.names import unknown_name

WIDTH_STEP = 4  # channels; vector units take multiples of it
WIDEST = 4096
MOMENTUM = 0.1  # of running means in norms: torch's, and ours


@dataclass(frozen=True)
class Peer:
    """A network of another library.

    Attributes:
        title: its name, as its authors write it.
        package: that it comes from, as the registry calls it.
        kind: what most of its multiply-accumulates are in.
        build: makes it for a number of classes.
        multiple: what it asks heights and widths to be divisible by; 1 takes any.
    """

    title: str
    package: str
    kind: Literal["dense", "depthwise", "attention"]
    build: Callable[[int], nn.Module]
    multiple: int = 1


class _Padded(nn.Module):
    """A network that takes sizes divisible by some number: others get zeros at the right and below, cut off after.

    Args:
        multiple: that number.
    """

    def __init__(self, network: nn.Module, *, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        padded_BCHW = F.pad(x_BCHW, (0, right, 0, below)) if below or right else x_BCHW
        logits_BKHW: Tensor = self.network(padded_BCHW)
        return logits_BKHW[..., :height, :width]


def _smp(architecture: str, encoder: str) -> Callable[[int], nn.Module]:
    def build(classes: int) -> nn.Module:
        import segmentation_models_pytorch

        network: nn.Module = getattr(segmentation_models_pytorch, architecture)(
            encoder, encoder_weights=None, classes=classes
        )
        return network

    return build


class _Out(nn.Module):
    """torchvision's networks give a dictionary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BKHW: Tensor = self.network(x_BCHW)["out"]
        return logits_BKHW


def _lraspp(classes: int) -> nn.Module:
    from torchvision.models import segmentation

    return _Out(segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes))


def _deeplab(classes: int) -> nn.Module:
    from torchvision.models import segmentation

    return _Out(segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes))


class _HrNet(nn.Module):
    """The four branches of HRNet, enlarged to the finest and joined, and HRNetV2's head (arXiv 1904.04514)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        import timm

        self.body = timm.create_model(
            "hrnet_w48", pretrained=False, features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
        )
        channels: int = sum(self.body.feature_info.channels())  # type: ignore[operator,union-attr]
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, classes, 1)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        finest_BCHW, *coarser = self.body(x_BCHW)
        enlarged = [_enlarged(each_BCHW, finest_BCHW) for each_BCHW in coarser]
        return _enlarged(self.head(torch.cat([finest_BCHW, *enlarged], dim=1)), x_BCHW)


class _SegFormer(nn.Module):
    """SegFormer-B2 (arXiv 2105.15203), whose logits are enlarged to the image's size, as its loss does."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        config = SegformerConfig(  # type: ignore[call-arg]  # it takes more than it declares
            num_labels=classes, depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768
        )
        self.network = SegformerForSemanticSegmentation(config)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return _enlarged(self.network(x_BCHW).logits, x_BCHW)


def _enlarged(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, size=list(like_BCHW.shape[-2:]), mode="bilinear", align_corners=False)


SMP, TORCHVISION = "segmentation-models-pytorch", "torchvision"
PEERS: dict[str, Peer] = {
    "smp-unet-resnet18": Peer("U-Net, ResNet-18", SMP, "dense", _smp("Unet", "resnet18")),
    "smp-unet-resnet34": Peer("U-Net, ResNet-34", SMP, "dense", _smp("Unet", "resnet34")),
    "smp-unet-efficientnet-b0": Peer("U-Net, EfficientNet-B0", SMP, "depthwise", _smp("Unet", "efficientnet-b0")),
    "smp-unet-efficientnet-b3": Peer("U-Net, EfficientNet-B3", SMP, "depthwise", _smp("Unet", "efficientnet-b3")),
    "smp-deeplabv3plus-mobilenetv2": Peer(
        "DeepLabV3+, MobileNetV2", SMP, "depthwise", _smp("DeepLabV3Plus", "mobilenet_v2"), multiple=16
    ),
    "torchvision-lraspp": Peer("LRASPP, MobileNetV3-Large", TORCHVISION, "depthwise", _lraspp),
    "torchvision-deeplabv3": Peer("DeepLabV3, ResNet-50", TORCHVISION, "dense", _deeplab),
    "timm-hrnet-w48": Peer("HRNetV2-W48", "timm", "dense", _HrNet, multiple=32),
    "transformers-segformer-b2": Peer("SegFormer-B2", "transformers", "attention", _SegFormer),
}


def build_peer(*, name: str, classes: int) -> nn.Module:
    """Make a peer, in training mode, on the CPU.

    Raises:
        MmsegError: an unknown name, or its package is not installed.
    """
    if name not in PEERS:
        raise unknown_name("peer", name, PEERS)
    peer = PEERS[name]
    try:
        version(peer.package)
        network = peer.build(classes).train()
    except (PackageNotFoundError, ModuleNotFoundError) as error:
        raise MmsegError(name, f"needs the package {peer.package}", "pip install 'mmseg-cli[bench]'") from error
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = MOMENTUM
    return network if peer.multiple == 1 else _Padded(network, multiple=peer.multiple)


def build_ours(*, network: Mapping[str, Any], classes: int) -> nn.Module:
    """Make one of our networks, in training mode, on the CPU."""
    return build_network(task="segmentation", num_classes=classes, **network)


def at_equal_macs(network: Mapping[str, Any], macs: int, *, size: tuple[int, int], classes: int) -> dict[str, Any]:
    """Our network with the width that comes nearest to `macs` for an image of `size` (height, width).

    Widths are multiples of :data:`WIDTH_STEP`; nothing else changes, and nothing is tuned.
    """

    def of(width: int) -> int:
        return macs_of({**network, "width": width}, size=size, classes=classes)

    low, high = WIDTH_STEP, WIDEST
    while high - low > WIDTH_STEP:
        middle = (low + high) // 2 // WIDTH_STEP * WIDTH_STEP
        low, high = (middle, high) if of(middle) <= macs else (low, middle)
    nearest = min((low, high), key=lambda width: abs(of(width) - macs))
    return dict(network) | {"width": nearest}


def macs_of(network: Mapping[str, Any], *, size: tuple[int, int], classes: int) -> int:
    """Multiply-accumulates of one of our networks for one image."""
    with torch.device("meta"):
        made = build_ours(network=network, classes=classes)
    return cost.macs(made, (1, 3, *size))


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that some peers come from."""
    return {package: version(package) for package in dict.fromkeys(PEERS[name].package for name in names)}
