"""What a training step computes and keeps, counted on torch's meta device; and estimates from that.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mmseg_cli.models import cost, lean
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.unet import blocks_of, build_network, recompute_blocks
from mmseg_cli.params import ClassificationStage
from mmseg_cli.planning.choose import Case, Need
from mmseg_cli.training import parts
from mmseg_cli.training.losses import ClassificationCrossEntropy, PixelCrossEntropy

FLOAT = 4  # bytes
LOW_PRECISION = 0.55  # of float32's activations under automatic mixed precision: statistics, losses and sums stay wide
WORKING = 0.25  # of a step's maps, on top of those kept: gradients and a convolution's scratch memory, while in use
BANDWIDTH = 1e12  # bytes a second that a data-centre GPU moves while it trains: about half of its peak
TRAFFIC = 5  # times that a map is moved: it is written, read by the next layer and by backward, its gradient twice
WORKSPACE = 1.5 * 2**30  # bytes of a GPU for its libraries' handles, kernels and scratch memory, whatever the network
STATES = {"sgd": 1, "adamw": 2}  # copies of the weights that an optimizer keeps


class _WithLoss(nn.Module):
    """A network and cross entropy on its outputs: what backward needs from the loss is kept as well."""

    def __init__(self, network: nn.Module, *, label_smoothing: float, pixels: bool) -> None:
        super().__init__()
        self.network, self.pixels = network, pixels
        self.term = (PixelCrossEntropy if pixels else ClassificationCrossEntropy)(label_smoothing=label_smoothing)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        size = (x_BCHW.shape[0], *x_BCHW.shape[2:]) if self.pixels else x_BCHW.shape[:1]
        target = torch.zeros(size, dtype=torch.uint8 if self.pixels else torch.long, device=x_BCHW.device)
        outputs = self.network(x_BCHW)
        each = [outputs] if isinstance(outputs, Tensor) else outputs
        return torch.stack([self.term.total(logits, target) for logits in each]).sum()


@dataclass(frozen=True)
class Storage:
    """Bytes on disk of one run.

    Attributes:
        weights: of the finished run.
        checkpoint: weights, optimizer and averages.
    """

    weights: int
    checkpoint: int


class Counts:
    """The counts of one case.

    Args:
        alone: whether one process trains it: several keep norms' and activations' maps, see `mmseg_cli.models.lean`.
    """

    def __init__(self, case: Case, *, alone: bool) -> None:
        self.case = case
        self.alone = alone
        self._kept: dict[tuple[tuple[int, int], bool], float] = {}
        self._made: dict[tuple[int, int], float] = {}
        self._macs: dict[tuple[int, int], float] = {}

    @cached_property
    def network(self) -> nn.Module:
        """The network as it is trained, on the meta device."""
        task = cast(Literal["segmentation", "classification"], self.case.task)
        with torch.device("meta"):
            network = build_network(task=task, num_classes=self.case.classes, **self.case.network)
            return parts.with_recipe(self.case.section, network)

    @property
    def precision_share(self) -> float:
        """Of the bytes of float32's activations, what the stage's precision keeps."""
        return LOW_PRECISION if self.case.section.precision != "float32" else 1.0

    def macs(self, size: tuple[int, int]) -> float:
        """Multiply-accumulates of the forward pass of one image."""
        if size not in self._macs:
            self._macs[size] = cost.macs(self.network, (2, 3, *size)) / 2
        return self._macs[size]

    def work(self, size: tuple[int, int], *, recompute: bool) -> float:
        """Multiply-accumulates of a training step for one image: backward is two forwards, recomputing one more."""
        return self.macs(size) * (4 if recompute else 3)

    def kept(self, size: tuple[int, int], *, recompute: bool) -> float:
        """Bytes kept for the backward pass of one image, in float32; with recomputation, while a block is redone."""
        key = (size, recompute)
        if key not in self._kept:
            with lean.plain_path(on=not self.alone):
                self._kept[key] = self._count(size, recompute=recompute) / 2
        return self._kept[key]

    def made(self, size: tuple[int, int]) -> float:
        """Bytes of the maps that a step makes of one image, in float32, whether they are kept or made again."""
        if size not in self._made:
            with lean.plain_path():
                self._made[size] = self._count(size, recompute=False) / 2
        return self._made[size]

    def held(self, size: tuple[int, int], *, recompute: bool) -> float:
        """Bytes of one image at the peak of a step, in float32, about: what is kept, and what is in progress."""
        kept = self.kept(size, recompute=recompute)
        return kept + WORKING * (kept if recompute else self.made(size))

    def _count(self, size: tuple[int, int], *, recompute: bool) -> float:
        section = self.case.section
        pixels = not isinstance(section, ClassificationStage)
        whole = _WithLoss(self.network, label_smoothing=section.label_smoothing, pixels=pixels)
        recompute_blocks(self.network, on=recompute)
        inputs: list[Tensor] = []
        blocks = blocks_of(self.network)

        def note(_block: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs.append(arguments[0])

        hooks = [block.register_forward_pre_hook(note) for block in blocks] if recompute else []
        try:
            kept: float = cost.activation_bytes(whole, (2, 3, *size))
        finally:
            for hook in hooks:
                hook.remove()
            recompute_blocks(self.network, on=False)
        if not recompute:
            return kept
        insides = [
            cost.activation_bytes(block, tuple(x_BCHW.shape))
            for block, x_BCHW in {
                (type(b), tuple(x.shape)): (b, x) for b, x in zip(blocks, inputs, strict=True)
            }.values()
        ]
        storages = {x_BCHW.untyped_storage()._cdata: x_BCHW.untyped_storage().nbytes() for x_BCHW in inputs}
        return kept + sum(storages.values()) + max(insides)

    @property
    def parameter_bytes(self) -> int:
        """Of the trained network, auxiliary heads included."""
        return FLOAT * cost.parameters(self.network)

    @property
    def copies(self) -> int:
        """Copies of the weights that the recipe keeps besides them: the optimizer's and the averages."""
        section = self.case.section
        return STATES[section.optimizer] + (section.lookahead is not None) + (section.ema is not None)

    @property
    def state_bytes(self) -> float:
        """Memory that does not grow with the samples: weights, gradients, optimizer, averages, the update's scratch."""
        low = 0.5 if self.case.section.precision != "float32" else 0.0  # autocast's copies of the weights
        return self.parameter_bytes * (3 + self.copies + low)

    def storage(self) -> Storage:
        """What one run writes."""
        trained = _bytes(self.network)
        plain = _bytes(self.network.network) if isinstance(self.network, DeepSupervision) else trained
        return Storage(weights=plain, checkpoint=trained + self.copies * self.parameter_bytes)

    def estimate(self, *, recompute: bool, micro: int, flops: float) -> Need:
        """A micro-step on a GPU that achieves `flops` floating-point operations a second, and BANDWIDTH besides.

        The times add up: depthwise convolutions and norms compute next to nothing, and wait for memory.
        """
        size = (self.case.section.crop[0], self.case.section.crop[1])
        sample = self.precision_share * self.held(size, recompute=recompute)
        traffic = (TRAFFIC + 2 * recompute) * self.precision_share * self.made(size)
        seconds = micro * (2 * self.work(size, recompute=recompute) / flops + traffic / BANDWIDTH)
        return Need(self.state_bytes + WORKSPACE + micro * sample, seconds, None, "estimated")


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
