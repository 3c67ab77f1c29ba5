from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmseg_cli.training.losses import IGNORE, cross_entropy, inverse_log_weights, pixel_cross_entropy


def example(*, classes=7, ignored=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, classes, 5, 6, generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes, (2, 5, 6), generator=generator, dtype=torch.uint8)
    label[torch.rand(label.shape, generator=generator) < ignored] = IGNORE
    return logits.requires_grad_(), label


@pytest.mark.parametrize("ignored", [0.0, 0.3, 0.98])
@pytest.mark.parametrize("seed", [0, 1])
def test_pixel_loss_and_gradient_are_torchs(ignored, seed):
    logits, label = example(ignored=ignored, seed=seed)
    assert (label != IGNORE).any()
    ours = pixel_cross_entropy(logits, label, label_smoothing=0.0)
    (gradient,) = torch.autograd.grad(ours, logits)
    theirs = F.cross_entropy(logits, label.long(), ignore_index=IGNORE)
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
def test_smoothed_losses_are_torchs(smoothing):
    logits, label = example()
    theirs = F.cross_entropy(logits, label.long(), ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(pixel_cross_entropy(logits, label, label_smoothing=smoothing), theirs)
    logits_BK = logits.detach()[:, :, 0, 0].requires_grad_()
    target_B = torch.tensor([3, 0])
    for value in (0.0, smoothing):
        ours = cross_entropy(logits_BK, target_B, label_smoothing=value)
        theirs = F.cross_entropy(logits_BK, target_B, label_smoothing=value)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours, logits_BK), torch.autograd.grad(theirs, logits_BK))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_a_loss_of_mixed_targets_is_torchs(smoothing):
    logits_BK = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    target_BK = torch.rand(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(dim=1)
    ours = cross_entropy(logits_BK, target_BK, label_smoothing=smoothing)
    theirs = F.cross_entropy(logits_BK, target_BK, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits_BK), torch.autograd.grad(theirs, logits_BK))
    target_B = torch.tensor([3, 0, 6, 6])
    torch.testing.assert_close(
        cross_entropy(logits_BK, F.one_hot(target_B, 7).double(), label_smoothing=smoothing),
        cross_entropy(logits_BK, target_B, label_smoothing=smoothing),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_that_is_wholly_ignored_costs_nothing(smoothing):
    logits, label = example(ignored=1.1)
    assert (label == IGNORE).all()
    loss = pixel_cross_entropy(logits, label, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert not gradient.any()


def test_ignored_pixels_have_no_gradient():
    logits, label = example()
    (gradient,) = torch.autograd.grad(pixel_cross_entropy(logits, label, label_smoothing=0.1), logits)
    ignored_BHW = label == IGNORE
    assert not gradient.permute(0, 2, 3, 1)[ignored_BHW].any()
    assert gradient.permute(0, 2, 3, 1)[~ignored_BHW].any(dim=1).all()


def test_class_weights_are_those_of_enet_and_weigh_as_torch_does():
    weight_K = inverse_log_weights([900, 100, 0])
    assert weight_K.tolist() == pytest.approx([1 / math.log(1.92), 1 / math.log(1.12), 1 / math.log(1.02)])
    logits_BKHW = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    label_BHW = torch.randint(0, 3, (2, 5, 7), generator=torch.Generator().manual_seed(1))
    label_BHW[0, :2] = 255
    ours = pixel_cross_entropy(logits_BKHW, label_BHW, label_smoothing=0.0, weight_K=weight_K)
    assert ours.item() == pytest.approx(
        F.cross_entropy(logits_BKHW, label_BHW, weight=weight_K, ignore_index=255).item(), rel=1e-5
    )
    nothing = pixel_cross_entropy(logits_BKHW, torch.full_like(label_BHW, 255), label_smoothing=0.0, weight_K=weight_K)
    assert nothing.item() == 0
