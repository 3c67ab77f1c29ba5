"""The U-Net around the blocks, its two heads, and the one function that builds a network from names and numbers.

A body gives one feature per level, the finest first. A head turns features into class scores. Segmentation reads
the finest feature, which depends on every level; classification reads all of them, so that pretraining trains the
encoder *and* the decoder.

Shape suffixes: B batch, C channels, H height, W width, K classes; a list ``x_LBCHW`` holds one tensor per level.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmseg_cli.errors import MmsegError
from mmseg_cli.models import layers, lean, resizing
from mmseg_cli.models.blocks import InvertedResidual, Residual, build_block
from mmseg_cli.models.graphs import Graphed, Replayed
from mmseg_cli.models.norms import frozen_statistics
from mmseg_cli.names import LAYOUT_NAMES, unknown_name


def level_widths(*, layout: str, width: int, levels: int) -> tuple[int, ...]:
    """Give the channels of every level, finest first.

    ``uniform`` gives every level ``width`` channels: objects appear at every scale, so no scale gets less
    (arXiv 2402.04618). ``pyramid`` doubles them from level to level, as in U-Net (arXiv 1505.04597).

    Raises:
        MmsegError: ``layout`` is unknown, or ``width`` or ``levels`` is below 1.
    """
    _at_least_one("width", width)
    _at_least_one("levels", levels)
    if layout == "uniform":
        return (width,) * levels
    if layout == "pyramid":
        return tuple(width * 2**level for level in range(levels))
    raise unknown_name("layout", layout, LAYOUT_NAMES)


def _at_least_one(where: str, value: int) -> None:
    if value < 1:
        raise MmsegError(where, f"{value} is too small", "use 1 or more")


class Stem(nn.Sequential):
    """3x3 convolutions that lower the resolution by ``stride`` (1, 2 or 4) and give ``width`` channels.

    The paper has a stem to bound memory; its form is not in the source. Ours halves the size with every convolution
    (one convolution of stride 1 where ``stride`` is 1). With two, the first has half the channels: it works at the
    highest resolution of the network, where activations cost most.

    Maps ``x_BCHW`` to ``(B, width, ceil(H / stride), ceil(W / stride))``.

    Raises:
        MmsegError: ``stride`` is not 1, 2 or 4.
    """

    def __init__(self, in_channels: int, *, width: int, stride: int, norm: str, activation: str) -> None:
        if stride not in (1, 2, 4):
            raise MmsegError("stem_stride", f"{stride} is not possible", "use 1, 2 or 4")
        widths = [max(1, width // 2), width] if stride == 4 else [width]
        convs: OrderedDict[str, nn.Module] = OrderedDict()
        for index, out_channels in enumerate(widths):
            convs[f"conv{index}"] = layers.ConvNormAct(
                in_channels,
                out_channels,
                kernel_size=3,
                stride=1 if stride == 1 else 2,
                norm=norm,
                activation=activation,
            )
            in_channels = out_channels
        super().__init__(convs)


class _Level(nn.Module):
    """The blocks of one level, under the keys ``block0``, ``block1``, ...

    Attributes:
        recompute: whether training keeps only the blocks' inputs and computes their insides a second time for the
            backward pass ("activation checkpointing", arXiv 1604.06174). See :func:`recompute_blocks`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False
        self._block_names: tuple[str, ...] = ()

    def _add_blocks(self, blocks: dict[str, nn.Module]) -> None:
        for name, block in blocks.items():
            self.add_module(name, block)
        self._block_names = tuple(blocks)

    def blocks(self) -> list[nn.Module]:
        """Give the blocks in the order in which they run."""
        return [self.get_submodule(name) for name in self._block_names]

    def _run_blocks(self, x_BCHW: Tensor) -> Tensor:
        recompute = self.recompute and self.training and torch.is_grad_enabled()
        for block in self.blocks():
            x_BCHW = _checkpointed(block, x_BCHW) if recompute else block(x_BCHW)
        return x_BCHW


def _checkpointed(block: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Run ``block`` and keep nothing of its inside; the second run draws the same numbers and updates no statistics."""
    # Drawing the same numbers costs a copy of the generators' states. Of the user's own blocks nobody knows.
    is_ours = type(block) in (Residual, InvertedResidual)
    draws = not is_ours or not isinstance(block.drop_path, nn.Identity)
    y_BCHW: Tensor = checkpoint(
        block,
        x_BCHW,
        use_reentrant=False,
        preserve_rng_state=draws,
        context_fn=lambda: (contextlib.nullcontext(), frozen_statistics(block)),
    )
    return y_BCHW


class EncoderLevel(_Level):
    """Halve the resolution (``down``, which the finest level has not), and run the blocks.

    Maps ``x_BCHW`` to ``(B, C, ceil(H / 2), ceil(W / 2))``, at the finest level to ``(B, C, H, W)``.
    """

    def __init__(self, *, down: nn.Module | None, blocks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.down = nn.Identity() if down is None else down
        self._add_blocks(blocks)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Give the feature of this level."""
        return self._run_blocks(self.down(x_BCHW))


class DecoderLevel(_Level):
    """Upsample the coarser feature to the skip, join the two with a 1x1 convolution, and run the blocks.

    Bilinear upsampling and a 1x1 convolution change nothing when they change places, so the coarser feature's part of
    the convolution runs before it is upsampled, on a quarter of the pixels, and the two are added up: what joining
    the channels first gives, but for rounding.

    DEVIATION from U-Net (arXiv 1505.04597): bilinear upsampling to the skip's exact size instead of a transposed
    convolution and cropping, so that any image size works. The joining convolution belongs to the U-Net, not to the
    block, and stays 1x1 whatever block is compared.

    Maps the coarser feature and the skip ``(B, C, H, W)`` to ``(B, C, H, W)``.
    """

    def __init__(
        self, coarser_channels: int, channels: int, *, blocks: dict[str, nn.Module], norm: str, activation: str
    ) -> None:
        super().__init__()
        self.fuse = layers.ConvNormAct(
            coarser_channels + channels, channels, kernel_size=1, norm=norm, activation=activation
        )
        self._add_blocks(blocks)

    def forward(self, coarser_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        """Give the feature of this level, of the skip's shape."""
        conv, channels = self.fuse.conv, skip_BCHW.shape[1]
        of_skip, of_coarser = conv.weight[:, :channels], conv.weight[:, channels:]
        x_BCHW = F.conv2d(skip_BCHW, of_skip, conv.bias)
        x_BCHW = x_BCHW + resizing.resize(F.conv2d(coarser_BCHW, of_coarser), skip_BCHW.shape[-2:])
        return self._run_blocks(lean.norm_act(x_BCHW, self.fuse.norm, self.fuse.act))


class UNet(nn.Module):
    """The multi-scale body (arXiv 2402.04618, after U-Net, arXiv 1505.04597).

    Stem, then ``levels`` encoder levels of ``depth`` blocks with a strided 3x3 convolution between them, then
    ``levels - 1`` decoder levels of ``depth`` blocks. ``level0`` is the finest. Any image size works.

    Args:
        block: a name of :data:`mmseg_cli.names.BLOCK_NAMES`, or ``package.module:Class``.
        layout: ``uniform`` or ``pyramid``, see :func:`level_widths`.
        width: channels of the finest level.
        depth: blocks per level, on each side.
        levels: number of resolutions.
        stem_stride: 1, 2 or 4; the finest level has 1 / ``stem_stride`` of the image's resolution.
        expansion: see :class:`mmseg_cli.models.blocks.InvertedResidual`.
        se_ratio: see the same.
        norm: ``batch`` or ``group``.
        activation: ``relu``, ``silu``, ``hardswish`` or ``gelu``.
        in_channels: channels of the image.

    Attributes:
        channels: channels of each feature that :meth:`forward` gives, finest first.

    Raises:
        MmsegError: a name is unknown or a number is out of range.
    """

    def __init__(
        self,
        *,
        block: str,
        layout: str,
        width: int,
        depth: int,
        levels: int,
        stem_stride: int,
        expansion: float,
        se_ratio: float,
        norm: str,
        activation: str,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _at_least_one("depth", depth)
        self.channels = level_widths(layout=layout, width=width, levels=levels)

        def blocks(channels: int) -> dict[str, nn.Module]:
            return {
                f"block{index}": build_block(
                    block,
                    channels,
                    channels,
                    expansion=expansion,
                    se_ratio=se_ratio,
                    norm=norm,
                    activation=activation,
                )
                for index in range(depth)
            }

        self.stem = Stem(in_channels, width=width, stride=stem_stride, norm=norm, activation=activation)
        self.encoder = nn.ModuleDict()
        for level, channels in enumerate(self.channels):
            down: nn.Module | None = None
            if level > 0:
                # Not in the source: how the resolution is halved. A strided 3x3, outside the blocks, so that no
                # block's design decides it.
                down = layers.ConvNormAct(
                    self.channels[level - 1], channels, kernel_size=3, stride=2, norm=norm, activation=activation
                )
            self.encoder[f"level{level}"] = EncoderLevel(down=down, blocks=blocks(channels))
        self.decoder = nn.ModuleDict()
        for level in reversed(range(levels - 1)):
            self.decoder[f"level{level}"] = DecoderLevel(
                self.channels[level + 1],
                self.channels[level],
                blocks=blocks(self.channels[level]),
                norm=norm,
                activation=activation,
            )

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Give one feature per level, finest first; the last is the encoder's bottom."""
        x_BCHW = self.stem(x_BCHW)
        skips_LBCHW: list[Tensor] = []
        for encode in self.encoder.values():
            x_BCHW = encode(x_BCHW)
            skips_LBCHW.append(x_BCHW)
        features_LBCHW = [skips_LBCHW.pop()]
        for decode in self.decoder.values():  # from coarse to fine
            features_LBCHW.append(decode(features_LBCHW[-1], skips_LBCHW.pop()))
        return features_LBCHW[::-1]


class SegmentationHead(nn.Module):
    """A 1x1 convolution on the finest feature: features to ``(B, num_classes, H, W)`` at that feature's size."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = layers.conv(in_channels, num_classes, kernel_size=1, bias=True)

    def forward(self, features_LBCHW: list[Tensor]) -> Tensor:
        """Give the logits at the finest feature's size."""
        logits_BKHW: Tensor = self.classifier(features_LBCHW[0])
        return logits_BKHW


class ClassificationHead(nn.Module):
    """The means of every level's feature, joined, through one linear layer: features to ``(B, num_classes)``.

    Not in the source: how the U-Net is pretrained on classification. Reading every decoder level lets the gradient
    reach the whole body, so that segmentation starts from a trained decoder as well.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(sum(channels), num_classes)

    def forward(self, features_LBCHW: list[Tensor]) -> Tensor:
        """Give the logits of the image."""
        means_BC = torch.cat([feature_BCHW.mean((2, 3)) for feature_BCHW in features_LBCHW], dim=1)
        logits_BK: Tensor = self.classifier(means_BC)
        return logits_BK


class SegmentationNetwork(nn.Module):
    """A body and a segmentation head, under the keys ``body`` and ``head``.

    In training it gives the head's logits as they are, at the finest feature's size: a loss enlarges them itself, see
    :func:`mmseg_cli.models.resizing.enlarged_cross_entropy`, and keeps less of them.
    """

    def __init__(self, body: UNet, head: SegmentationHead) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images to ``logits_BKHW`` of exactly the images' size; in training, of the finest feature's."""
        features_LBCHW = self.body(x_BCHW)
        if self.training:
            logits_BKHW: Tensor = self.head(features_LBCHW)
            return logits_BKHW
        return self.read(features_LBCHW, x_BCHW.shape[-2:])

    def read(self, features_LBCHW: list[Tensor], size: Sequence[int]) -> Tensor:
        """Map the body's features to ``logits_BKHW`` of ``size`` (height, width)."""
        return enlarged(self.head(features_LBCHW), size)


def enlarged(logits_BKhw: Tensor, size: Sequence[int]) -> Tensor:
    """Logits of ``size`` (height, width), float32 at least: between two pixels, bfloat16 would make classes equal."""
    narrow = logits_BKhw.dtype in (torch.bfloat16, torch.float16)
    return resizing.resize(logits_BKhw.float() if narrow else logits_BKhw, size)


class ClassificationNetwork(nn.Module):
    """A body and a classification head, under the keys ``body`` and ``head``."""

    def __init__(self, body: UNet, head: ClassificationHead) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images to ``logits_BK``."""
        logits_BK: Tensor = self.head(self.body(x_BCHW))
        return logits_BK


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Give every block of ``network`` in the order in which they run."""
    return [block for level in network.modules() if isinstance(level, _Level) for block in level.blocks()]


def training_callable(
    network: nn.Module, like_BCHW: Tensor, *, autocast: torch.dtype | None
) -> Callable[[Tensor], Any]:
    """The network as one process's training calls it: on an NVIDIA GPU at one launch, see `graphs.Graphed`.

    Not where a block recomputes, nor a network without our U-Net, which may decide in Python what it does. A user's own
    block may not, so all blocks are timed alike. The arguments, and what is raised, are those of
    :class:`mmseg_cli.models.graphs.Graphed`.
    """
    on_gpu = like_BCHW.is_cuda and torch.version.cuda is not None
    recomputes = any(isinstance(module, _Level) and module.recompute for module in network.modules())
    if not on_gpu or recomputes or not blocks_of(network):
        return network
    return Graphed(network, like_BCHW, autocast=autocast)


def predicts_by_graph(network: nn.Module, device: torch.device) -> bool:
    """Whether `inference_callable` replays graphs there, whose kernels see to the norms: none need be folded."""
    return isinstance(network, SegmentationNetwork) and device.type == "cuda" and torch.version.cuda is not None


def inference_callable(network: nn.Module, like_BCHW: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """The network as prediction calls it, without gradients: on an NVIDIA GPU at one launch, see `graphs.Replayed`.

    It is for a segmentation network of ours, from images to ``logits_BKHW`` of their size; another is given as it is.
    It must be in evaluation mode where it runs, and not change any more; hooks of its modules are not called.

    Args:
        like_BCHW: images of the kind that it will be called with first: captured at once, under the autocast of now.

    Raises:
        NotCaptured: they cannot be captured.
    """
    if not (
        isinstance(network, SegmentationNetwork) and predicts_by_graph(network, network.head.classifier.weight.device)
    ):
        return network
    small = Replayed(lambda x_BCHW: network.head(network.body(x_BCHW)))
    if like_BCHW is not None:
        small.capture(like_BCHW)
    return lambda x_BCHW: enlarged(small(x_BCHW), x_BCHW.shape[-2:])


def recompute_blocks(network: nn.Module, on: bool = True) -> None:
    """Let every block of ``network`` keep only its input in training, and compute its inside again when needed.

    Saves most of the memory for about a third more work. Results, gradients and running statistics stay
    the same, but for rounding on a GPU, where training is not launched as graphs then.
    """
    for module in network.modules():
        if isinstance(module, _Level):
            module.recompute = on


def compile_blocks(network: nn.Module) -> None:
    """Compile every block of ``network`` by itself: recomputation, which happens around a block, cannot be compiled."""
    for block in blocks_of(network):
        block.compile()


def set_stochastic_depth(network: nn.Module, rate: float) -> None:
    """Let training skip the residual branch of each block at random, for each image (arXiv 1603.09382).

    The probability rises linearly from 0 at the first block to ``rate`` at the last, in the order in which the blocks
    run: the paper's rule, that EfficientNet follows too, begun at 0. What stays is scaled up, so that expectations
    stay. 0 takes it all away.

    Args:
        network: whatever holds one or more bodies.
        rate: in [0, 1).

    Raises:
        MmsegError: ``rate`` is out of range, or a block has no ``drop_path``.
    """
    if not 0 <= rate < 1:
        raise MmsegError("stochastic_depth", f"{rate} is not a probability below 1", "use a number from 0 to below 1")
    blocks = blocks_of(network)
    without = next((block for block in blocks if not isinstance(getattr(block, "drop_path", None), nn.Module)), None)
    if rate > 0 and without is not None:
        what = f"the block {type(without).__name__} has no drop_path"
        todo = "give it `self.drop_path = nn.Identity()` and pass the residual branch through it, or set it to 0"
        raise MmsegError("stochastic_depth", what, todo)
    for index, block in enumerate(blocks):
        probability = rate * index / (len(blocks) - 1) if len(blocks) > 1 else rate
        if probability > 0:
            from torchvision.ops import StochasticDepth  # slow to import

            block.drop_path = StochasticDepth(probability, mode="row")
        elif hasattr(block, "drop_path"):
            block.drop_path = nn.Identity()


def initialise(network: SegmentationNetwork | ClassificationNetwork) -> None:
    """Draw every weight anew from torch's global generator; on the meta device this does nothing.

    Convolutions: normal with variance 2 / fan-out (He, arXiv 1502.01852), a channel's own group being all it fans
    out to, as in EfficientNet's code. Normalisations: weight 1, bias 0. Classifier: normal with deviation 0.01. All
    biases 0. Not in the source: the paper names no initialisation. The last normalisation of a residual branch
    is *not* set to zero (arXiv 1706.02677): the layers before it would get no gradient in the first step.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    initialise_classifier(network.head.classifier)


def initialise_classifier(classifier: nn.Conv2d | nn.Linear) -> None:
    """Draw the weight of a head's classifier: normal with deviation 0.01. Its bias becomes 0."""
    nn.init.normal_(classifier.weight, 0.0, 0.01)
    if classifier.bias is not None:
        nn.init.zeros_(classifier.bias)


def build_network(
    *,
    task: Literal["segmentation", "classification"],
    num_classes: int,
    block: str,
    layout: str,
    width: int,
    depth: int,
    levels: int,
    stem_stride: int,
    expansion: float,
    se_ratio: float,
    norm: str,
    activation: str,
) -> SegmentationNetwork | ClassificationNetwork:
    """Build and initialise a network for RGB images; two calls after the same ``torch.manual_seed`` are equal.

    A segmentation network maps ``x_BCHW`` to ``logits_BKHW`` of the same size (in training mode of the size of its
    head, see :class:`SegmentationNetwork`), a classification network to ``logits_BK``. Both have the same ``body.*``
    keys, so that weights move from one to the other. The other arguments are those of :class:`UNet`.

    Raises:
        MmsegError: a name is unknown or a number is out of range.
    """
    _at_least_one("num_classes", num_classes)
    if task not in ("segmentation", "classification"):
        raise unknown_name("task", task, ("segmentation", "classification"))
    body = UNet(
        block=block,
        layout=layout,
        width=width,
        depth=depth,
        levels=levels,
        stem_stride=stem_stride,
        expansion=expansion,
        se_ratio=se_ratio,
        norm=norm,
        activation=activation,
    )
    network: SegmentationNetwork | ClassificationNetwork
    if task == "segmentation":
        network = SegmentationNetwork(body, SegmentationHead(body.channels[0], num_classes))
    else:
        network = ClassificationNetwork(body, ClassificationHead(body.channels, num_classes))
    initialise(network)
    return network
