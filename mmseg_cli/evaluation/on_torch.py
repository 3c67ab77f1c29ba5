"""A segmenter whose network runs on torch.

Shapes: B = batch, C = 3 colours, K = classes, H, W = height, width, h, w = of a scaled image or a window.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmseg_cli import memory
from mmseg_cli.evaluation import inference
from mmseg_cli.evaluation.segmenter import PLAIN, Arrays, Protocol, Segmenter
from mmseg_cli.models import cost
from mmseg_cli.models.fold import fold_norms
from mmseg_cli.models.unet import inference_callable, predicts_by_graph

AT_ONCE = 8  # windows on a GPU, memory permitting
PROBE = 256  # pixels of the side of the image by which a network's working memory is counted


class TorchArrays(Arrays):
    """Tensors on one device."""

    def __init__(self, device: torch.device, *, channels_last: bool) -> None:
        self._device = device
        self._layout = torch.channels_last if channels_last else torch.contiguous_format

    def put(self, x: NDArray[Any]) -> Tensor:
        """A tensor on the device."""
        x = x if x.flags.writeable and min(x.strides, default=1) > 0 else x.copy()
        return torch.from_numpy(x).to(self._device, non_blocking=True)

    def get(self, x: Tensor) -> NDArray[Any]:
        """Back on the CPU."""
        return x.cpu().numpy()

    def float32(self, x: Tensor) -> Tensor:
        """As float32; always a copy."""
        return x.to(torch.float32, copy=True)

    def zeros(self, *shape: int) -> Tensor:
        """float32 zeros."""
        return torch.zeros(shape, device=self._device)

    def batch(self, images: list[Tensor]) -> Tensor:
        """x_BCHW of several x_HWC."""
        return torch.stack(images).permute(0, 3, 1, 2).contiguous(memory_format=self._layout)

    def flip(self, x: Tensor) -> Tensor:
        """Mirrored along the last axis."""
        return x.flip(-1)

    def softmax(self, x: Tensor, *, axis: int) -> Tensor:
        """Along one axis, in float32."""
        return x.softmax(axis)

    def best(self, scores_KHW: Tensor) -> tuple[NDArray[np.uint8], Tensor]:
        """The class of the largest score of every pixel, and that score."""
        best_HW, classes_HW = scores_KHW.max(0)
        return classes_HW.to(torch.uint8).cpu().numpy(), best_HW

    def finite(self, x: Tensor) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(x.isfinite().all())


def segmenter(
    network: nn.Module,
    *,
    classes: int,
    protocol: Protocol = PLAIN,
    device: torch.device,
    precision: Literal["float32", "bfloat16"] = "float32",
    channels_last: bool = True,
    fold: bool = False,
    compile: bool = False,
    graphs: bool = True,
    limit: int | None = None,
    at_once: int | None = None,
) -> Segmenter:
    """A segmenter of `network`, which is moved to `device` unless it is folded, and put into evaluation mode.

    Args:
        network: x_BCHW to logits_BKHW of the same size.
        precision: `bfloat16` by autocast; probabilities and what is summed stay float32.
        fold: see `folded`: faster, and equal but for rounding.
        compile: torch.compile; pays after some images of one size.
        graphs: on an NVIDIA GPU give it all that a network of ours does at one launch, unless it is compiled; hooks of
            its modules are not called then. See :func:`mmseg_cli.models.unet.inference_callable`.
        limit: see `Segmenter`. What graphs hold between two calls comes on top, about as much again at most.
        at_once: windows that go through the network together; None is one on a CPU, which gains nothing from more, and
            AT_ONCE elsewhere.
    """
    if fold:
        network = folded(network, device=device, by_graph=graphs and not compile)
    network.to(device).eval()
    network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    counted = 0 if limit is None else cost.inference_bytes(network, (1, 3, PROBE, PROBE))
    run: Any = network
    if compile:
        run = torch.compile(network)
    elif graphs:
        run = inference_callable(network)
    mixed = precision == "bfloat16"
    if device.type == "cuda" and not mixed:
        torch.backends.cudnn.allow_tf32 = False  # on by default, with 10 bits where float32 has 23

    @torch.inference_mode()
    def forward(x_BCHW: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            logits_BKHW: Tensor = run(x_BCHW)
        return logits_BKHW.float()

    return Segmenter(
        forward=forward,
        arrays=TorchArrays(device, channels_last=channels_last),
        classes=classes,
        mean=inference.MEAN,
        std=inference.STD,
        protocol=protocol,
        bytes_per_pixel=counted / PROBE**2,
        limit=limit,
        at_once=at_once or (1 if device.type == "cpu" else AT_ONCE),
    )


def folded(network: nn.Module, *, device: torch.device, by_graph: bool) -> nn.Module:
    """A copy with batch norms folded into the convolutions before them; as it is where graphs' kernels see to them.

    Args:
        by_graph: whether graphs are replayed where that can be done.
    """
    return network if by_graph and predicts_by_graph(network, device) else fold_norms(network)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.look().available
