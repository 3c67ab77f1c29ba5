"""What each resolution of a trained U-Net contributes: the network without it, and what its own head makes of it.

**Knocked out.** One level's feature is withheld from the decoder of a trained network, which is not trained again
(Meyes et al. 2019, arXiv 1901.08644): of the bottom what the first decoder level upsamples, of every other level the
skip; the path through the deeper levels stays. In the feature's place stands, at every pixel, its *mean* by channel
over the images that are evaluated, rather than zero. The joining convolution is linear, so with the mean its output
stays about where the batch norm behind it knows it, and what is lost is what the feature says of the image.
Zero also takes away what the feature adds everywhere, like a bias (Wang et al. 2022, arXiv 2211.00593): a constant
that training may put into the feature or into the norm behind it, where it is worth the same. Zero would tell these two
networks apart. The mean is taken from pixels, never from labels.

What is measured is how much the *trained* network leans on a level. One that was trained without it might do as well.

**A head per branch.** A run that was trained with deep supervision left the head of every decoder level above the
bottom and below the finest; each is read alone, as in training.

All networks here are made of the modules of the one that they come from, and share its weights and statistics.

Shapes: B = batch, C = channels, H, W = height, width of a level; a list ``x_LC`` holds one tensor per level.
"""
# used by evaluate.py alone, which has torch

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmseg_cli.evaluation.segmenter import Segmenter
from mmseg_cli.models import weights
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.unet import SegmentationHead, SegmentationNetwork

KNOCKED_OUT, HEAD = "knocked_out", "head"  # kinds of counts, with the level behind: `knocked_out_0`
ONLY = "it is the network's only level"
NETWORKS_OWN = "it is the network's own: mean_iou"
BOTTOM = "the bottom of the encoder has none"


# ------------------------------------------------------------------------------------------------------- knocked out


class Means:
    """The means of every level's feature, by channel, over all images that went through the network.

    Every pixel counts once for each time that the network saw it: where windows overlap, more than once.
    """

    def __init__(self, levels: int) -> None:
        self._sums: list[Tensor | None] = [None] * levels
        self._pixels = [0] * levels

    def add(self, level: int, feature_BCHW: Tensor) -> None:
        """The feature of some more images."""
        batch, _, height, width = feature_BCHW.shape
        pixels = batch * height * width
        # A float64 mean on the device would need a copy, and not every device has them.
        sum_C = feature_BCHW.mean((0, 2, 3), dtype=torch.float32).cpu().double() * pixels
        before = self._sums[level]
        self._sums[level] = sum_C if before is None else before + sum_C
        self._pixels[level] += pixels

    def of_levels(self) -> list[Tensor]:
        """mean_LC, float32 on the CPU, finest level first.

        Raises:
            ValueError: nothing went through.
        """
        if any(sum_C is None for sum_C in self._sums):
            raise ValueError("the means of no images")
        both = zip(self._sums, self._pixels, strict=True)
        return [(sum_C / pixels).float() for sum_C, pixels in both if sum_C is not None]


@contextmanager
def means_of(network: SegmentationNetwork) -> Iterator[Means]:
    """Inside the block, whatever goes through `network` adds to the means; afterwards it is as before."""
    found = Means(len(network.body.encoder))

    def watch(level: int, module: nn.Module, inputs: Any, feature_BCHW: Tensor) -> None:
        found.add(level, feature_BCHW)

    hooks = [
        encoder.register_forward_hook(partial(watch, level))
        for level, encoder in enumerate(network.body.encoder.values())
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Withheld(nn.Module):
    """A decoder level to which one of its two inputs tells nothing of the image.

    That input is overwritten: nothing reads it afterwards, and a second tensor of its size would be memory that the
    network itself does not take. For inference only.

    Args:
        level: maps the coarser feature and the skip to the feature of the level.
        input: which of the two.
        mean_C: what it is at every pixel instead.
    """

    mean_1C11: Tensor

    def __init__(self, level: nn.Module, *, input: Literal["coarser", "skip"], mean_C: Tensor) -> None:
        super().__init__()
        self.level = level
        self._coarser = input == "coarser"
        self.register_buffer("mean_1C11", mean_C.view(1, -1, 1, 1))

    def forward(self, coarser_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        """Give the feature of the level."""
        (coarser_BCHW if self._coarser else skip_BCHW).copy_(self.mean_1C11)
        feature_BCHW: Tensor = self.level(coarser_BCHW, skip_BCHW)
        return feature_BCHW


def without(network: SegmentationNetwork, level: int, *, mean_C: Tensor) -> SegmentationNetwork:
    """The network whose decoder is told nothing by one level of the encoder.

    Args:
        network: with two levels or more; it stays as it is.
        level: 0 is the finest.
        mean_C: of that level's feature, which stands in its place.
    """
    knocked_out = _sharing(network)
    decoder, bottom = knocked_out.body.decoder, len(knocked_out.body.encoder) - 1
    joined = f"level{min(level, bottom - 1)}"
    decoder[joined] = Withheld(decoder[joined], input="coarser" if level == bottom else "skip", mean_C=mean_C)
    return knocked_out


def _sharing(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy of the modules alone, around the same weights and statistics."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]})


# ---------------------------------------------------------------------------------------------------- a head per branch


def heads_of(run: Path, network: SegmentationNetwork) -> dict[int, SegmentationHead]:
    """The auxiliary heads that a run was trained with, by level; none where it left none.

    Raises:
        MmsegError: the file is damaged, or of another network.
    """
    file = run / weights.AUXILIARY
    if not file.is_file():
        return {}
    auxiliary = DeepSupervision(network).auxiliary.eval()
    weights.fill(auxiliary, weights.read_weights(file), file)
    return {int(name.removeprefix("level")): cast(SegmentationHead, head) for name, head in auxiliary.items()}


def up_to(network: SegmentationNetwork, level: int, *, head: SegmentationHead) -> SegmentationNetwork:
    """The network that ends with one level of the decoder, and the head that reads that level.

    Args:
        network: it stays as it is.
        level: 0 is the finest.
        head: of that level's feature.
    """
    cut = _sharing(network)
    for finer in range(level):
        del cut.body.decoder[f"level{finer}"]
    cut.body.channels = cut.body.channels[level:]
    cut.head = head
    return cut


# --------------------------------------------------------------------------------------------------------- both at work


def segmenters(
    network: SegmentationNetwork,
    heads: Mapping[int, SegmentationHead],
    *,
    plain: Segmenter,
    make: Callable[..., Segmenter],
    compile: bool,
    go_through: Callable[[Segmenter], None],
) -> dict[str, Segmenter]:
    """What predicts without a level, or by a level's head, by the kind of its counts: `knocked_out_0`, `head_1`.

    A network of one level has nothing to knock out.

    Args:
        network: where it runs; it stays as it is.
        heads: by level.
        plain: predicts by the network itself. Images are seen in the windows that it takes, whatever the memory: it
            takes no less than a network without a part.
        make: `mmseg_cli.evaluation.on_torch.segmenter` with all but network, protocol, compile, graphs and limit.
        compile: torch.compile; while the means are found there is neither that nor a graph, which would not show them.
        go_through: predicts all images with a segmenter.
    """

    def of(part: SegmentationNetwork, *, watched: bool = False) -> Segmenter:
        how = {"compile": compile and not watched, "graphs": not watched}
        made = make(part, protocol=plain.protocol, limit=None, **how)
        return replace(made, limit=plain.limit, bytes_per_pixel=plain.bytes_per_pixel)

    with means_of(network) as means:
        go_through(of(network, watched=True))
    mean_LC = means.of_levels()
    parts = {
        f"{KNOCKED_OUT}_{level}": without(network, level, mean_C=mean_C)
        for level, mean_C in enumerate(mean_LC)
        if len(mean_LC) > 1
    }
    parts |= {f"{HEAD}_{level}": up_to(network, level, head=head) for level, head in heads.items()}
    return {kind: of(part) for kind, part in parts.items()}


def missing(record: Mapping[str, Any], heads: Mapping[int, SegmentationHead]) -> list[dict[str, str]]:
    """Why a level has no figure, by what it lacks, of every level.

    Args:
        record: of the run.
        heads: as `heads_of` found them.
    """
    levels = record["network"]["levels"]
    supervised = record["rungs"][-1]["parameters"].get("deep_supervision", 0) > 0
    no_heads = f"the run has no {weights.AUXILIARY}" if supervised else "trained without deep supervision"
    found: list[dict[str, str]] = []
    for level in range(levels):
        lacks = {KNOCKED_OUT: ONLY} if levels == 1 else {}
        if level == 0:
            lacks[HEAD] = NETWORKS_OWN
        elif level == levels - 1:
            lacks[HEAD] = BOTTOM
        elif level not in heads:
            lacks[HEAD] = no_heads
        found.append(lacks)
    return found
