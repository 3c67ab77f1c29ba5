"""Losses whose value does not depend on how a step's batch is split over micro-batches and processes.

Every term gives a sum over its part of the batch and, from the target alone, the weight of that part in the mean. The
loop adds up the weights of all parts before the first backward pass; a part's loss is its sum over that whole weight,
so the losses of the parts, and their gradients, add up to those of the whole batch. A term that is no mean over pixels
is a mean over images.

Written with log_softmax, gather and sort, whose backward passes are deterministic on CUDA as well.

Shapes: B = batch, K = classes, H, W = height, width of the target, h, w = those of the logits, which are resized to it
bilinearly where they are coarser, P = pixels of an image, T = terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmseg_cli.data import balance
from mmseg_cli.data.labels import IGNORE
from mmseg_cli.errors import MmsegError
from mmseg_cli.models.resizing import enlarged_cross_entropy, resize
from mmseg_cli.names import LOSS_NAMES, unknown_name
from mmseg_cli.training import rmi


class Term(Protocol):
    """A loss as a sum over a part of a step's batch. The step's loss is sum(total) / sum(weight) over all parts."""

    def weight(self, target: Tensor) -> Tensor:
        """The part's share in the mean: a scalar, float32, on the target's device."""
        ...

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over the part: a scalar, float32, with a gradient that is zero where nothing counts."""
        ...


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms, over a network's main output and its auxiliary ones.

    Attributes:
        terms: (coefficient, term) pairs.
        auxiliary: coefficient of the auxiliary outputs' mean loss (deep supervision, Lee et al. 2015).
    """

    terms: tuple[tuple[float, Term], ...]
    auxiliary: float = 0.0

    def weights(self, target: Tensor) -> Tensor:
        """The weight of this part in each term: weight_T, float32. Add them up over all parts of a step."""
        return torch.stack([term.weight(target) for _, term in self.terms])

    def __call__(self, outputs: Tensor | Sequence[Tensor], target: Tensor, *, weights: Tensor) -> Tensor:
        """This part's share of the step's loss: a scalar, float32. The shares of all parts add up to the loss.

        Args:
            outputs: logits, or the main logits followed by auxiliary ones; those of pixels may be coarser than the
                target, each in its own measure.
            target: what the terms take.
            weights: weight_T, summed over all parts of the step. Where one is 0, nothing counts and the term is 0.
        """
        main, *others = [outputs] if isinstance(outputs, Tensor) else outputs
        with torch.autocast(device_type=main.device.type, enabled=False):  # sums over pixels need their digits
            loss = self._share(main, target, weights=weights)
            if others:
                loss = loss + self.auxiliary * torch.stack(
                    [self._share(logits, target, weights=weights) for logits in others]
                ).mean(dim=0)
        return loss

    def _share(self, logits: Tensor, target: Tensor, *, weights: Tensor) -> Tensor:
        weight_T = torch.where(weights > 0, weights, 1)  # not a minimum of 1: class weights may sum to less
        shares = [
            coefficient * term.total(logits, target) / weight
            for (coefficient, term), weight in zip(self.terms, weight_T.unbind(), strict=True)
        ]
        return torch.stack(shares).sum()


@dataclass(frozen=True)
class ClassificationCrossEntropy:
    """Cross entropy of a classification with label smoothing (Szegedy et al. 2016), a mean over the samples.

    logits_BK; target_B, int64 classes, or target_BK, float probabilities (of mixed pictures).
    """

    label_smoothing: float

    def weight(self, target: Tensor) -> Tensor:
        """B."""
        return target.new_full((), len(target), dtype=torch.float32)

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over the samples."""
        log_BK = F.log_softmax(logits.float(), dim=1)
        if target.is_floating_point():
            loss_B = -(target.float() * log_BK).sum(dim=1)
        else:
            loss_B = -log_BK.gather(1, target.long()[:, None]).squeeze(1)
        if self.label_smoothing:
            loss_B = (1 - self.label_smoothing) * loss_B - self.label_smoothing * log_BK.mean(dim=1)
        return loss_B.sum()


@dataclass(frozen=True, eq=False)
class PixelCrossEntropy:
    """Cross entropy of a segmentation with label smoothing, a mean over the pixels that are not ignored.

    logits_BKhw; target_BHW, train ids, 255 = ignore.

    Attributes:
        label_smoothing: share of the uniform distribution in a pixel's target.
        weight_K: weight of each class's pixels in the mean, smoothing included; None weighs all alike.
    """

    label_smoothing: float
    weight_K: Tensor | None = None

    def weight(self, target: Tensor) -> Tensor:
        """The summed class weights of the pixels that are not ignored."""
        return self._share(target).sum()

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over those pixels, times their class weights."""
        class_BHW = target.long().masked_fill(target == IGNORE, 0)
        return enlarged_cross_entropy(logits, class_BHW, self._share(target), label_smoothing=self.label_smoothing)

    def _share(self, target: Tensor) -> Tensor:
        kept_BHW = target != IGNORE
        if self.weight_K is None:
            return kept_BHW.float()
        return kept_BHW * self.weight_K.to(target.device)[target.long().masked_fill(~kept_BHW, 0)]


class _ImageMean:
    """A mean over the images that have a pixel which is not ignored."""

    def weight(self, target: Tensor) -> Tensor:
        """The number of images with a pixel that is not ignored."""
        return _labelled(target).sum().float()


@dataclass(frozen=True)
class Ohem(_ImageMean):
    """Online hard example mining (Shrivastava et al. 2016): cross entropy of hard pixels, as in HRNet-OCR's code.

    logits_BKhw; target_BHW, train ids, 255 = ignore. DEVIATION: HRNet-OCR ranks the pixels of a GPU's whole batch and
    keeps a fixed number at least, so its loss depends on the number of GPUs. Here each image ranks its own and keeps a
    share, and the loss is the mean over images of the mean over an image's hard pixels.

    Attributes:
        threshold: a pixel is hard where the probability of its class is below this.
        min_share: at least this share of an image's valid pixels, the hardest ones, counts as hard, and one pixel
            always does. Pixels that tie with the last of them count too.
    """

    threshold: float
    min_share: float

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over the images of each one's mean."""
        loss_BP = _true_class_loss(F.log_softmax(_at_size(logits, target), dim=1), target).flatten(1)
        kept_BP = (target != IGNORE).flatten(1)
        with torch.no_grad():  # sort instead of kthvalue, which is not deterministic on CUDA
            hardest_BP = loss_BP.masked_fill(~kept_BP, -math.inf).sort(dim=1, descending=True).values
            least_B = (self.min_share * kept_BP.sum(dim=1)).ceil().long().clamp(min=1)
            last_B1 = hardest_BP.gather(1, least_B[:, None] - 1)
            bound = -math.log(self.threshold) if self.threshold > 0 else math.inf
            hard_BP = kept_BP & ((loss_BP > bound) | (loss_BP >= last_B1))
        return ((loss_BP * hard_BP).sum(dim=1) / hard_BP.sum(dim=1).clamp(min=1)).sum()


class Dice(_ImageMean):
    """1 - Dice of each class, a mean over all K classes in which those absent from an image count 0, then over images.

    logits_BKhw; target_BHW, train ids, 255 = ignore. From segmentation_models_pytorch, image by image.

    Raises:
        MmsegError: the package is not installed.
    """

    def __init__(self) -> None:
        self._loss = _smp("dice").DiceLoss(mode="multiclass", from_logits=True, ignore_index=IGNORE)

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over the images."""
        return _sum_of_images(self._loss, _at_size(logits, target), target)


class Lovasz(_ImageMean):
    """The Lovász-Softmax loss (Berman et al. 2018): a mean over the classes present in an image, then over images.

    logits_BKhw; target_BHW, train ids, 255 = ignore. From segmentation_models_pytorch, image by image; it applies the
    softmax itself.

    Raises:
        MmsegError: the package is not installed.
    """

    def __init__(self) -> None:
        self._loss = _smp("lovasz").LovaszLoss(mode="multiclass", per_image=True, ignore_index=IGNORE)

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over the images."""
        return _sum_of_images(self._loss, _at_size(logits, target), target)


@dataclass(frozen=True)
class Rmi(_ImageMean):
    """Region mutual information (Zhao et al. 2019), as HMSA (arXiv 2005.10821) uses it; see `mmseg_cli.training.rmi`.

    logits_BKhw; target_BHW, train ids, 255 = ignore. Half of it is the sigmoid binary cross entropy, summed over
    classes and averaged over an image's valid pixels, and half is the negated bound of the mutual information, so it
    may be negative. DEVIATION: the authors average over a GPU's valid pixels.

    Attributes:
        share: of the binary cross entropy; lambda in the paper.
    """

    share: float = 0.5

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over the images.

        Raises:
            MmsegError: the images are too small.
        """
        logits_BKHW = _at_size(logits, target)
        kept_B1HW = (target != IGNORE)[:, None]
        index_BHW = target.long().masked_fill(~kept_B1HW[:, 0], 0)
        truth_BKHW = F.one_hot(index_BHW, logits.shape[1]).movedim(3, 1) * kept_B1HW.float()
        binary_BKHW = F.binary_cross_entropy_with_logits(logits_BKHW, truth_BKHW, reduction="none")
        binary_B = (binary_BKHW * kept_B1HW).sum(dim=(1, 2, 3)) / kept_B1HW.sum(dim=(1, 2, 3)).clamp(min=1)
        bound_B = rmi.negative_bound(logits_BKHW.sigmoid() * kept_B1HW, truth_BKHW)
        # The bound of an empty image is a constant, but not 0.
        return ((self.share * binary_B + (1 - self.share) * bound_B) * _labelled(target)).sum()


def build_objective(
    *,
    loss: Mapping[str, float],
    label_smoothing: float,
    weight_K: Tensor | None,
    ohem_threshold: float | None,
    ohem_min_share: float | None,
    auxiliary: float,
) -> Objective:
    """The objective of a segmentation.

    Args:
        loss: a coefficient for each of `LOSS_NAMES`; 0 and what is absent are left out.
        label_smoothing: of the cross entropy alone.
        weight_K: class weights, of the cross entropy alone.
        ohem_threshold: goes with `ohem`.
        ohem_min_share: goes with `ohem`.
        auxiliary: coefficient of the auxiliary outputs' mean loss.

    Raises:
        MmsegError: an unknown name, no loss at all, ohem without its numbers, or a package that is not installed.
    """
    terms: list[tuple[float, Term]] = []
    for name, coefficient in loss.items():
        if name not in LOSS_NAMES:
            raise unknown_name("loss", name, LOSS_NAMES)
        if not coefficient:
            continue
        term: Term
        if name == "cross_entropy":
            term = PixelCrossEntropy(label_smoothing=label_smoothing, weight_K=weight_K)
        elif name == "ohem":
            if ohem_threshold is None or ohem_min_share is None:
                raise MmsegError("loss.ohem", "its threshold or its smallest share is missing", "give both")
            term = Ohem(threshold=ohem_threshold, min_share=ohem_min_share)
        elif name == "dice":
            term = Dice()
        elif name == "lovasz":
            term = Lovasz()
        else:
            term = Rmi()
        terms.append((coefficient, term))
    if not terms:
        raise MmsegError("loss", "there is none", "give at least one a coefficient above 0")
    return Objective(terms=tuple(terms), auxiliary=auxiliary)


def inverse_log_weights(class_pixels: Sequence[int]) -> Tensor:
    """`balance.inverse_log_weights` as weight_K, float32."""
    return torch.from_numpy(balance.inverse_log_weights(class_pixels)).float()


def _labelled(target_BHW: Tensor) -> Tensor:
    """labelled_B, bool: the images with a pixel that is not ignored."""
    return (target_BHW != IGNORE).flatten(1).any(dim=1)


def _at_size(logits_BKhw: Tensor, target_BHW: Tensor) -> Tensor:
    """logits_BKHW, float32."""
    return resize(logits_BKhw.float(), target_BHW.shape[-2:])


def _true_class_loss(log_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
    """loss_BHW: minus the log probability of each pixel's class; of class 0 where it is ignored."""
    index_BHW = target_BHW.long().masked_fill(target_BHW == IGNORE, 0)
    return -log_BKHW.gather(1, index_BHW[:, None]).squeeze(1)


def _sum_of_images(loss: torch.nn.Module, logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
    """The loss of each image on its own, summed; wholly ignored images, which smp cannot handle, count 0.

    Which these are has to be known on the host: a GPU is waited for.
    """
    total: Tensor = 0 * logits_BKHW.sum()  # keeps a gradient where no image counts
    for index in _labelled(target_BHW).nonzero().flatten().tolist():
        total = total + loss(logits_BKHW[index, None], target_BHW[index, None].long())
    return total


def _smp(name: str) -> ModuleType:
    """segmentation_models_pytorch's losses, imported when one is used: it takes seconds, and machines may lack it."""
    try:
        from segmentation_models_pytorch import losses
    except ModuleNotFoundError as error:
        raise MmsegError("loss", f"{name} needs the package segmentation-models-pytorch", "install it") from error
    module: ModuleType = losses
    return module
