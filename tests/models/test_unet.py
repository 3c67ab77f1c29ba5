"""The network: sizes, layouts, what pretraining reaches, initialisation and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models.blocks import InvertedResidual
from mmseg_cli.models.unet import ClassificationNetwork, SegmentationNetwork, build_network, initialise
from mmseg_cli.names import BLOCK_NAMES

CLASSES = 5


def make(**changes: object) -> SegmentationNetwork | ClassificationNetwork:
    settings: dict[str, object] = {
        "task": "segmentation",
        "num_classes": CLASSES,
        "block": "mmbconv",
        "layout": "uniform",
        "width": 8,
        "depth": 1,
        "levels": 3,
        "stem_stride": 2,
        "expansion": 2,
        "se_ratio": 0.25,
        "norm": "batch",
        "activation": "relu",
    }
    return build_network(**{**settings, **changes})


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(37, 53), (64, 33), (1, 1), (3, 2), (32, 48)])
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_any_image_size_works(stem_stride: int, size: tuple[int, int], task: str) -> None:
    network = make(task=task, stem_stride=stem_stride)
    x_BCHW = torch.rand(2, 3, *size)
    logits = network(x_BCHW)
    finest = [-(-side // stem_stride) for side in size]
    assert logits.shape == ((2, CLASSES, *finest) if task == "segmentation" else (2, CLASSES))
    logits.sum().backward()
    assert network.eval()(x_BCHW).shape == ((2, CLASSES, *size) if task == "segmentation" else (2, CLASSES))


@torch.no_grad()
def test_evaluation_enlarges_the_logits_bilinearly() -> None:
    torch.manual_seed(0)
    network = make(stem_stride=4)
    network.eval()
    x_BCHW = torch.rand(2, 3, 37, 53)
    network.training = True  # of the network alone, not of its norms
    coarse_BKhw = network(x_BCHW)
    network.training = False
    assert coarse_BKhw.shape == (2, CLASSES, 10, 14)
    expected = nn.functional.interpolate(coarse_BKhw, size=(37, 53), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(x_BCHW), expected, rtol=0, atol=0)


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_features_are_finest_first_and_halve(stem_stride: int) -> None:
    body = make(stem_stride=stem_stride, levels=4, layout="pyramid").body
    features = body(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape) for x in features] == [
        (1, 8 * 2**level, 64 // stem_stride // 2**level, 96 // stem_stride // 2**level) for level in range(4)
    ]
    assert body.channels == (8, 16, 32, 64)


@pytest.mark.parametrize("block", BLOCK_NAMES)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_one_level_is_enough(block: str, norm: str) -> None:
    network = make(block=block, norm=norm, levels=1)
    assert network(torch.rand(2, 3, 9, 9)).shape == (2, CLASSES, 5, 5)
    assert network.eval()(torch.rand(2, 3, 9, 9)).shape == (2, CLASSES, 9, 9)


def blocks_of(module: nn.Module) -> list[InvertedResidual]:
    return [child for child in module.children() if isinstance(child, InvertedResidual)]


@pytest.mark.parametrize("layout", ["uniform", "pyramid"])
def test_layouts(layout: str) -> None:
    body = make(layout=layout, depth=2, levels=4).body
    assert list(body.encoder) == ["level0", "level1", "level2", "level3"]
    assert list(body.decoder) == ["level2", "level1", "level0"]
    for side in (body.encoder, body.decoder):
        for level, stage in side.items():
            width = 8 if layout == "uniform" else 8 * 2 ** int(level[-1])
            blocks = blocks_of(stage)
            assert len(blocks) == 2
            assert all(block.project.out_channels == width for block in blocks)
            assert all(block.expand.conv.in_channels == width for block in blocks)


def test_keys_carry_the_level() -> None:
    keys = make(depth=2).state_dict().keys()
    for key in (
        "body.stem.conv0.conv.weight",
        "body.encoder.level0.block1.expand.conv.weight",
        "body.encoder.level1.down.conv.weight",
        "body.decoder.level0.fuse.conv.weight",
        "body.decoder.level1.block0.project.weight",
        "head.classifier.bias",
    ):
        assert key in keys
    assert all(key.startswith(("body.", "head.")) for key in keys)


@pytest.mark.parametrize("block", BLOCK_NAMES)
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_the_gradient_reaches_every_parameter_of_encoder_and_decoder(block: str, task: str) -> None:
    torch.manual_seed(0)
    network = make(task=task, block=block, activation="silu")
    logits = network(torch.randn(4, 3, 33, 47))
    target = torch.randint(0, CLASSES, (logits.shape[0], *logits.shape[2:]))
    nn.functional.cross_entropy(logits, target).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_classification_weights_fit_the_segmentation_body() -> None:
    pretrained = make(task="classification", num_classes=10).body.state_dict()
    make().body.load_state_dict(pretrained, strict=True)


def test_memory_format_and_evaluation_do_not_change_the_result() -> None:
    torch.manual_seed(0)
    network = make().eval()
    x_BCHW = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = network(x_BCHW)
        got = network.to(memory_format=torch.channels_last)(x_BCHW.to(memory_format=torch.channels_last))
        alone = network(x_BCHW[:1])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alone, expected[:1], rtol=1e-4, atol=1e-6)


def test_the_seed_decides_the_initialisation() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return make().state_dict()

    first, second, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], second[key]) for key in first)
    drawn = [key for key in first if key.endswith("weight") and first[key].ndim > 1]
    assert drawn
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_the_initialisation_is_the_declared_one() -> None:
    torch.manual_seed(0)
    network = make(task="classification", width=64, num_classes=100)
    block = network.body.encoder["level0"].block0
    torch.testing.assert_close(block.expand.conv.weight.std(), torch.tensor((2 / (9 * 128)) ** 0.5), rtol=0.02, atol=0)
    torch.testing.assert_close(block.depthwise.conv.weight.std(), torch.tensor((2 / 9) ** 0.5), rtol=0.1, atol=0)
    torch.testing.assert_close(network.head.classifier.weight.std(), torch.tensor(0.01), rtol=0.05, atol=0)
    assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))
    assert all((m.weight == 1).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_initialise_forgets_what_was_there() -> None:
    network = make()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)
    initialise(network)
    assert not any((parameter == 7).any() for parameter in network.parameters())


def test_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = make(width=512)
        coarse = network(torch.empty(1, 3, 1024, 2048))
        logits = network.eval()(torch.empty(1, 3, 1024, 2048))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert coarse.shape == (1, CLASSES, 512, 1024)
    assert logits.shape == (1, CLASSES, 1024, 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "mmbconw"}, "block: unknown name 'mmbconw': use one of residual, mbconv, mmbconv, mmbconv-expand"),
        ({"layout": "unifrom"}, "layout: unknown name 'unifrom': use one of uniform, pyramid (did you mean uniform?)"),
        ({"task": "detection"}, "task: unknown name 'detection': use one of segmentation, classification"),
        ({"levels": 0}, "levels: 0 is too small: use 1 or more"),
        ({"depth": 0}, "depth: 0 is too small: use 1 or more"),
        ({"width": 0}, "width: 0 is too small: use 1 or more"),
        ({"num_classes": 0}, "num_classes: 0 is too small: use 1 or more"),
        ({"stem_stride": 3}, "stem_stride: 3 is not possible: use 1, 2 or 4"),
    ],
)
def test_bad_values_are_one_line_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(MmsegError) as caught:
        make(**change)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
