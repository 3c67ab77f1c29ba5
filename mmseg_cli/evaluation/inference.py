"""From uint8 images to predictions: the one place where images are normalised and logits become classes.

Shapes: B = batch, C = 3 colours, K = classes, H, W = height, width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmseg_cli.evaluation import metrics

# ImageNet's statistics on the 0..255 scale, the field's convention for all three datasets.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def normalise(image_BCHW: Tensor, *, device: torch.device) -> Tensor:
    """uint8 RGB to float32 with mean 0 and deviation 1 over ImageNet, on `device`, memory format kept."""
    mean_C11, std_C11 = _statistics(device)
    return image_BCHW.to(device, non_blocking=True).float().sub_(mean_C11).div_(std_C11)


@lru_cache
@torch.inference_mode(mode=False)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and STD on `device`, as C11: a GPU is waited for when they are copied there."""
    mean_C11, std_C11 = (torch.tensor(each, device=device).view(3, 1, 1) for each in (MEAN, STD))
    return mean_C11, std_C11


@torch.inference_mode()
def segment(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]:
    """Whole-image predictions at the labels' native size, image by image.

    The logits, not the classes, are resized to the label, and the label never is.

    Args:
        batches: (image_BCHW uint8, label_BHW uint8), as `mmseg_cli.data.loader.WholeImages` gives them.

    Yields:
        image_HWC, predicted_HW and label_HW, all uint8.
    """
    network.eval()
    for image_BCHW, label_BHW in batches:
        logits_BKHW = network(normalise(image_BCHW, device=device))
        if logits_BKHW.shape[-2:] != label_BHW.shape[-2:]:
            logits_BKHW = F.interpolate(
                logits_BKHW, size=list(label_BHW.shape[-2:]), mode="bilinear", align_corners=False
            )
        predicted_BHW = logits_BKHW.argmax(1).to(torch.uint8).cpu().numpy()
        image_BHWC = image_BCHW.permute(0, 2, 3, 1).numpy()
        yield from zip(image_BHWC, predicted_BHW, label_BHW.numpy(), strict=True)


def confusions(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, classes: int, device: torch.device
) -> NDArray[np.int64]:
    """The confusion matrix of every validation image, NKK; N may be 0."""
    matrices = [
        metrics.confusion(label_HW, predicted_HW, classes=classes)
        for _, predicted_HW, label_HW in segment(network, batches, device=device)
    ]
    return np.stack(matrices) if matrices else np.zeros((0, classes, classes), dtype=np.int64)


@torch.inference_mode()
def top_k_counts(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device
) -> NDArray[np.int64]:
    """How many pictures there are, and of how many the class is the first, or among the first five: [total, first,
    fifth].

    Args:
        batches: (image_BCHW uint8, target_B int64).
    """
    network.eval()
    counts = np.zeros(3, dtype=np.int64)
    for image_BCHW, target_B in batches:
        logits_BK = network(normalise(image_BCHW, device=device)).cpu()
        best_BK = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
        hit_BK = best_BK == target_B[:, None]
        counts += (len(target_B), int(hit_BK[:, 0].sum()), int(hit_BK.any(dim=1).sum()))
    return counts
