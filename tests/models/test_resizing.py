"""Resizing and what is enlarged for the loss alone, against torch's own ways; and the decoder that joins before it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_cli.models.layers import activation as make_activation
from mmseg_cli.models.resizing import enlarged_cross_entropy, resize
from mmseg_cli.models.unet import DecoderLevel

CLASSES = 5
SIZES = [
    ((4, 6), (8, 12)),  # twice, as between levels
    ((4, 6), (16, 24)),
    ((5, 3), (9, 6)),  # odd ones
    ((1, 1), (3, 2)),
    ((2, 1), (7, 5)),
    ((9, 6), (5, 3)),  # smaller
    ((8, 12), (4, 6)),
    ((7, 4), (3, 9)),  # one way each
    ((6, 5), (1, 1)),
    ((6, 4), (6, 8)),  # in one direction only
]


def random(*size: int, dtype: torch.dtype = torch.double, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_torch(x_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x_BChw, size=size, mode="bilinear", align_corners=False)


# --------------------------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_resizing_equals_torchs_and_so_does_its_gradient(
    before: tuple[int, int], after: tuple[int, int], memory_format: torch.memory_format
) -> None:
    for dtype in (torch.float64, torch.float32):  # the matrices are float32's in both
        x_BChw = random(2, 3, *before, dtype=dtype).to(memory_format=memory_format)
        dy_BCHW = random(2, 3, *after, dtype=dtype, seed=1).to(memory_format=memory_format)
        got, expected = (x_BChw.clone().requires_grad_() for _ in range(2))
        y_BCHW = resize(got, after)
        assert torch.equal(y_BCHW, by_torch(x_BChw, after))
        torch.autograd.backward(y_BCHW, dy_BCHW)
        torch.autograd.backward(by_torch(expected, after), dy_BCHW)
        assert got.grad.shape == x_BChw.shape
        assert got.grad.dtype == dtype
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [((4, 6), (8, 12)), ((5, 3), (9, 6)), ((7, 4), (3, 9))])
def test_its_gradient_is_that_of_numbers(before: tuple[int, int], after: tuple[int, int]) -> None:
    x_BChw = random(1, 2, *before).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize(x, after), x_BChw, atol=1e-6)


def test_a_channels_last_map_stays_one() -> None:
    x_BChw = random(2, 8, 4, 6).to(memory_format=torch.channels_last).requires_grad_()
    y_BCHW = resize(x_BChw, (8, 12))
    assert y_BCHW.is_contiguous(memory_format=torch.channels_last)
    (dx_BChw,) = torch.autograd.grad(y_BCHW, x_BChw, torch.ones_like(y_BCHW))
    assert dx_BChw.is_contiguous(memory_format=torch.channels_last)


def test_resizing_in_bfloat16() -> None:
    x_BChw = random(2, 3, 4, 6, dtype=torch.bfloat16).requires_grad_()
    y_BCHW = resize(x_BChw, (8, 12))
    dy_BCHW = random(2, 3, 8, 12, dtype=torch.bfloat16, seed=1)
    (got,) = torch.autograd.grad(y_BCHW, x_BChw, dy_BCHW)
    exact = x_BChw.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(by_torch(exact, (8, 12)), exact, dy_BCHW.double())
    assert (y_BCHW.dtype, got.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (got.double() - expected).norm() < 1e-2 * expected.norm()


def test_at_its_own_size_nothing_happens_and_nothing_is_kept() -> None:
    x_BChw = random(2, 3, 4, 6).requires_grad_()
    assert resize(x_BChw, (4, 6)) is x_BChw
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        resize(x_BChw, (8, 12))
    assert kept == []


# ------------------------------------------------------------------------------------------------- the enlarged loss


def plain(logits_BKhw: Tensor, target_BHW: Tensor, share_BHW: Tensor, *, label_smoothing: float) -> Tensor:
    log_BKHW = F.log_softmax(by_torch(logits_BKhw.double(), target_BHW.shape[1:]), dim=1)
    loss_BHW = -log_BKHW.gather(1, target_BHW.long()[:, None])[:, 0]
    loss_BHW = (1 - label_smoothing) * loss_BHW - label_smoothing * log_BKHW.mean(dim=1)
    return (loss_BHW * share_BHW).sum()


def case(size: tuple[int, int], *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of some size; classes; shares that are class weights, of which every third pixel has none."""
    generator = torch.Generator().manual_seed(0)
    logits_BKhw = (3 * torch.randn(3, CLASSES, *size, generator=generator)).to(dtype)
    logits_BKhw[1] *= 20  # an image on which it is certain, and often wrong
    target_BHW = torch.randint(0, CLASSES, (3, 9, 14), generator=generator, dtype=torch.uint8)
    share_BHW = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0])[target_BHW.long()]
    share_BHW[torch.rand(share_BHW.shape, generator=generator) < 1 / 3] = 0
    share_BHW[2, :4] = 0
    return logits_BKhw, target_BHW, share_BHW


@pytest.mark.parametrize("size", [(9, 14), (5, 7), (3, 4), (1, 1), (9, 7), (12, 20)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_loss_and_its_gradient_are_those_of_enlarged_logits(
    size: tuple[int, int], label_smoothing: float, memory_format: torch.memory_format
) -> None:
    logits_BKhw, target_BHW, share_BHW = case(size)
    got, expected = (logits_BKhw.to(memory_format=memory_format).requires_grad_() for _ in range(2))
    got = got.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = enlarged_cross_entropy(got, target_BHW, share_BHW, label_smoothing=label_smoothing)
    reference = plain(expected, target_BHW, share_BHW, label_smoothing=label_smoothing)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-4)
    torch.autograd.backward(0.25 * loss)
    torch.autograd.backward(0.25 * reference)
    torch.testing.assert_close(got.grad, expected.grad.float(), rtol=1e-4, atol=1e-5)


def test_it_is_torchs_cross_entropy_of_the_pixels_that_count() -> None:
    logits_BKhw, target_BHW, share_BHW = case((5, 7))
    weight_K = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0])
    ignored_BHW = target_BHW.long().masked_fill(share_BHW == 0, 255)
    expected = F.cross_entropy(
        by_torch(logits_BKhw, (9, 14)), ignored_BHW, weight=weight_K, ignore_index=255, reduction="sum"
    )
    got = enlarged_cross_entropy(logits_BKhw, target_BHW, share_BHW)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_images_do_not_touch_each_other() -> None:
    logits_BKhw, target_BHW, share_BHW = case((5, 7))
    whole = logits_BKhw.clone().requires_grad_()
    loss = enlarged_cross_entropy(whole, target_BHW, share_BHW, label_smoothing=0.1)
    torch.autograd.backward(loss)
    parts = [logits_BKhw[index, None].clone().requires_grad_() for index in range(3)]
    losses = [
        enlarged_cross_entropy(part, target_BHW[index, None], share_BHW[index, None], label_smoothing=0.1)
        for index, part in enumerate(parts)
    ]
    torch.autograd.backward(sum(losses))
    torch.testing.assert_close(loss, sum(losses))
    for part, expected_Khw in zip(parts, whole.grad, strict=True):
        torch.testing.assert_close(part.grad[0], expected_Khw)


def test_nothing_counts() -> None:
    logits_BKhw, target_BHW, share_BHW = case((5, 7))
    leaf = logits_BKhw.requires_grad_()
    loss = enlarged_cross_entropy(leaf, target_BHW, torch.zeros_like(share_BHW), label_smoothing=0.1)
    torch.autograd.backward(loss)
    assert loss == 0
    assert not leaf.grad.any()


@pytest.mark.parametrize("size", [(9, 14), (5, 7)])
def test_logits_in_bfloat16(size: tuple[int, int]) -> None:
    logits_BKhw, target_BHW, share_BHW = case(size, dtype=torch.bfloat16)
    got = logits_BKhw.requires_grad_()
    expected = logits_BKhw.detach().float().requires_grad_()
    loss, wide = (enlarged_cross_entropy(each, target_BHW, share_BHW) for each in (got, expected))
    assert torch.equal(loss, wide)  # the numbers are the same, and the sums are wide
    torch.autograd.backward(loss)
    torch.autograd.backward(wide)
    assert got.grad.dtype == torch.bfloat16
    assert torch.equal(got.grad, expected.grad.bfloat16())


def test_not_a_number_stays_one() -> None:
    logits_BKhw, target_BHW, share_BHW = case((5, 7))
    logits_BKhw[1, 2, 3, 4] = torch.nan
    leaf = logits_BKhw.requires_grad_()
    loss = enlarged_cross_entropy(leaf, target_BHW, share_BHW)
    torch.autograd.backward(loss)
    assert loss.isnan()
    assert leaf.grad[1].isnan().any()


@pytest.mark.parametrize("size", [(9, 14), (5, 7)])
def test_what_is_kept_is_of_the_logits_own_size(size: tuple[int, int]) -> None:
    logits_BKhw, target_BHW, share_BHW = case(size)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = enlarged_cross_entropy(logits_BKhw.requires_grad_(), target_BHW, share_BHW, label_smoothing=0.1)
    assert loss.requires_grad
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) == 4 * logits_BKhw.numel()


def test_without_a_gradient_none_is_made() -> None:
    logits_BKhw, target_BHW, share_BHW = case((5, 7))
    loss = enlarged_cross_entropy(logits_BKhw, target_BHW, share_BHW)
    assert not loss.requires_grad
    with torch.no_grad():
        assert torch.equal(enlarged_cross_entropy(logits_BKhw.requires_grad_(), target_BHW, share_BHW), loss)


# -------------------------------------------------------------------------------------------------------- the decoder


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("coarse", "fine"), [((4, 6), (8, 12)), ((5, 3), (9, 6)), ((4, 6), (4, 6))])
def test_joining_before_upsampling_is_joining_after_it(
    norm: str, training: bool, coarse: tuple[int, int], fine: tuple[int, int]
) -> None:
    """Concatenated and through the whole 1x1 convolution, as it reads in the papers."""
    torch.manual_seed(0)
    level = DecoderLevel(16, 8, blocks={"block0": make_activation("silu")}, norm=norm, activation="relu").double()
    nn.init.normal_(level.fuse.norm.bias)
    level.train(training)
    twin = copy.deepcopy(level)
    inputs = [[random(2, 16, *coarse).requires_grad_(), random(2, 8, *fine, seed=1).requires_grad_()] for _ in "ab"]

    (coarser_BCHW, skip_BCHW), (twins_coarser_BCHW, twins_skip_BCHW) = inputs
    got_BCHW = level(coarser_BCHW, skip_BCHW)
    joined_BCHW = torch.cat([twins_skip_BCHW, by_torch(twins_coarser_BCHW, fine)], dim=1)
    fuse = twin.fuse
    expected_BCHW = twin.block0(fuse.act(fuse.norm(fuse.conv(joined_BCHW))))
    torch.testing.assert_close(got_BCHW, expected_BCHW, rtol=1e-6, atol=1e-6)

    dy_BCHW = random(2, 8, *fine, seed=2)
    torch.autograd.backward(got_BCHW, dy_BCHW)
    torch.autograd.backward(expected_BCHW, dy_BCHW)
    pairs = zip([*inputs[0], *level.parameters()], [*inputs[1], *twin.parameters()], strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(level.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_folded_bias_is_added_once() -> None:
    torch.manual_seed(0)
    level = DecoderLevel(8, 8, blocks={}, norm="batch", activation="relu").eval()
    level.fuse.conv = nn.Conv2d(16, 8, 1)
    level.fuse.norm = nn.Identity()
    coarser_BCHW, skip_BCHW = random(1, 8, 3, 4, dtype=torch.float32), random(1, 8, 5, 8, dtype=torch.float32, seed=1)
    with torch.no_grad():
        joined_BCHW = torch.cat([skip_BCHW, by_torch(coarser_BCHW, (5, 8))], dim=1)
        expected_BCHW = level.fuse.conv(joined_BCHW).relu()
        torch.testing.assert_close(level(coarser_BCHW, skip_BCHW), expected_BCHW, rtol=1e-5, atol=1e-5)
