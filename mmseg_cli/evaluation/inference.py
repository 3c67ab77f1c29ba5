"""From uint8 images to predictions: the one place where images are normalised and logits become classes.

Shapes: B = batch, C = 3 colours, K = classes, H, W = height, width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
    x_BCHW = image_BCHW.to(device, non_blocking=True).float()
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    return x_BCHW.sub_(mean).div_(std)


@torch.inference_mode()
def segment(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]:
    """Whole-image predictions at the labels' native size, one image at a time.

    The logits, not the classes, are resized to the label, and the label never is.

    Args:
        batches: (image_1CHW uint8, label_1HW uint8), as `mmseg_cli.data.loader.WholeImages` gives them.

    Yields:
        image_HWC, predicted_HW and label_HW, all uint8.
    """
    network.eval()
    for image_1CHW, label_1HW in batches:
        logits_1KHW = network(normalise(image_1CHW, device=device))
        if logits_1KHW.shape[-2:] != label_1HW.shape[-2:]:
            logits_1KHW = F.interpolate(
                logits_1KHW, size=list(label_1HW.shape[-2:]), mode="bilinear", align_corners=False
            )
        predicted_HW = logits_1KHW.argmax(1)[0].to(torch.uint8).cpu().numpy()
        yield image_1CHW[0].permute(1, 2, 0).numpy(), predicted_HW, label_1HW[0].numpy()


def confusions(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, classes: int, device: torch.device
) -> NDArray[np.int64]:
    """The confusion matrix of every validation image, NKK."""
    matrices = [
        metrics.confusion(label_HW, predicted_HW, classes=classes)
        for _, predicted_HW, label_HW in segment(network, batches, device=device)
    ]
    return np.stack(matrices)


@torch.inference_mode()
def top_k_accuracy(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device
) -> dict[str, float]:
    """Share of pictures whose class is the first, or among the first five, in [0, 1].

    Args:
        batches: (image_BCHW uint8, target_B int64).
    """
    network.eval()
    first = fifth = total = 0
    for image_BCHW, target_B in batches:
        logits_BK = network(normalise(image_BCHW, device=device)).cpu()
        best_BK = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
        hit_BK = best_BK == target_B[:, None]
        first += int(hit_BK[:, 0].sum())
        fifth += int(hit_BK.any(dim=1).sum())
        total += len(target_B)
    return {"top1": first / total, "top5": fifth / total}
