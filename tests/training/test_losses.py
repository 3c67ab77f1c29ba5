from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmseg_cli.errors import MmsegError
from mmseg_cli.training.losses import (
    IGNORE,
    LOSS_NAMES,
    ClassificationCrossEntropy,
    Dice,
    Lovasz,
    Objective,
    Ohem,
    PixelCrossEntropy,
    Rmi,
    build_objective,
    inverse_log_weights,
)

CLASSES = 5
WEIGHTS = torch.tensor([0.02, 3.0, 0.5, 1.0, 0.01])
MAKERS = {
    "cross_entropy": lambda: PixelCrossEntropy(label_smoothing=0.0),
    "smoothed": lambda: PixelCrossEntropy(label_smoothing=0.1),
    "weighted": lambda: PixelCrossEntropy(label_smoothing=0.1, weight_K=WEIGHTS),
    "ohem": lambda: Ohem(threshold=0.3, min_share=0.4),
    "dice": Dice,
    "lovasz": Lovasz,
    "rmi": Rmi,
}
TERMS = pytest.mark.parametrize("name", MAKERS)


def example(*, batch=4, size=(12, 20), ignored=0.3, seed=0):
    """Logits and labels; the images differ in how much of them is ignored, and not every class is in every one."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, CLASSES, *size, generator=generator)
    label = torch.randint(0, CLASSES, (batch, *size), generator=generator, dtype=torch.uint8)
    label[0][label[0] == 2] = 1
    share = ignored * torch.linspace(0.2, 1.8, batch)[:, None, None]
    label[torch.rand(label.shape, generator=generator) < share] = IGNORE
    return logits.requires_grad_(), label


def objective_of(name):
    return Objective(terms=((1.0, MAKERS[name]()),))


def everything():
    return build_objective(
        loss=dict(zip(LOSS_NAMES, (0.5, 1.0, 2.0, 0.7, 0.3), strict=True)),
        label_smoothing=0.1,
        weight_K=WEIGHTS,
        ohem_threshold=0.3,
        ohem_min_share=0.4,
        auxiliary=0.4,
    )


def value_and_gradient(objective, logits, target, *, weights=None):
    loss = objective(logits, target, weights=objective.weights(target) if weights is None else weights)
    assert loss.dtype == torch.float32 and loss.shape == ()
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


# --- cross entropy


@pytest.mark.parametrize("ignored", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_pixel_loss_and_gradient_are_torchs(ignored, smoothing):
    logits, label = example(ignored=ignored, seed=round(10 * ignored))
    ours = value_and_gradient(Objective(terms=((1.0, PixelCrossEntropy(label_smoothing=smoothing)),)), logits, label)
    theirs = F.cross_entropy(logits, label.long(), ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(ours, (theirs.detach(), torch.autograd.grad(theirs, logits)[0]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_a_classification_is_torchs_for_classes_and_for_mixed_targets(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits_BK = torch.randn(4, 7, generator=generator).requires_grad_()
    objective = Objective(terms=((1.0, ClassificationCrossEntropy(label_smoothing=smoothing)),))
    for target in (torch.tensor([3, 0, 6, 6]), torch.rand(4, 7, generator=generator).softmax(dim=1)):
        ours = value_and_gradient(objective, logits_BK, target)
        theirs = F.cross_entropy(logits_BK, target, label_smoothing=smoothing)
        torch.testing.assert_close(ours, (theirs.detach(), torch.autograd.grad(theirs, logits_BK)[0]))
        assert objective.weights(target).tolist() == [4.0]


def test_class_weights_are_those_of_enet_and_weigh_as_torch_does():
    weight_K = inverse_log_weights([900, 100, 0])
    assert weight_K.tolist() == pytest.approx([1 / math.log(1.92), 1 / math.log(1.12), 1 / math.log(1.02)])
    logits, label = example()
    ours = value_and_gradient(
        Objective(terms=((1.0, PixelCrossEntropy(label_smoothing=0.0, weight_K=WEIGHTS)),)), logits, label
    )
    theirs = F.cross_entropy(logits, label.long(), weight=WEIGHTS, ignore_index=IGNORE)
    torch.testing.assert_close(ours, (theirs.detach(), torch.autograd.grad(theirs, logits)[0]))


def test_a_weighted_mean_is_one_where_the_weights_sum_to_less_than_one():
    logits, label = example()
    label.fill_(IGNORE)
    label[2, 3, 4] = 4  # of weight 0.01
    label[1, 0, 0] = 0  # of weight 0.02
    loss, _ = value_and_gradient(objective_of("weighted"), logits, label)
    log_BKHW = logits.detach().log_softmax(dim=1)
    first, second = (
        -0.9 * log_KHW[k] - 0.1 * log_KHW.mean()
        for k, log_KHW in ((4, log_BKHW[2, :, 3, 4]), (0, log_BKHW[1, :, 0, 0]))
    )
    assert loss.item() == pytest.approx((0.01 * first + 0.02 * second).item() / 0.03, rel=1e-5)


# --- hard examples


def of_probabilities(*rows):
    """Logits of two classes and labels, of images in one row, from the probability of the true class of each pixel."""
    true_BP = torch.tensor(rows)
    label_BP = (torch.arange(true_BP.numel()) % 2).reshape(true_BP.shape)
    first_BP = torch.where(label_BP == 0, true_BP, 1 - true_BP)
    logits_B2P = torch.stack([first_BP, 1 - first_BP], dim=1).log()
    return logits_B2P[:, :, None].requires_grad_(), label_BP[:, None]


@pytest.mark.parametrize(
    ("threshold", "min_share", "kept"),
    [
        (0.7, 0.0, [[2, 3, 4], [0, 1]]),  # below the threshold
        (0.25, 0.4, [[3, 4], [0, 1]]),  # too few are: the hardest 0.4 of 5, and of 4 (rounded up)
        (0.25, 0.0, [[4], [0]]),
        (0.0, 0.0, [[4], [0]]),  # one always counts
        (0.1, 1.0, [[0, 1, 2, 3, 4], [0, 1, 2, 4]]),
        (1.0, 0.0, [[0, 1, 2, 3, 4], [0, 1, 2, 4]]),
    ],
)
def test_ohem_takes_the_hard_pixels_of_each_image(threshold, min_share, kept):
    rows = [[0.9, 0.8, 0.6, 0.3, 0.2], [0.1, 0.65, 0.95, 0.01, 0.98]]
    logits, label = of_probabilities(*rows)
    label[1, 0, 3] = IGNORE  # the hardest of all does not count
    loss, gradient = value_and_gradient(
        Objective(terms=((1.0, Ohem(threshold=threshold, min_share=min_share)),)), logits, label
    )
    means = [np.mean([-math.log(rows[b][p]) for p in kept[b]]) for b in (0, 1)]
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-5)
    for b in (0, 1):
        assert gradient[b, 0, 0].nonzero().flatten().tolist() == kept[b]


def test_ohem_keeps_pixels_that_tie():
    logits, label = of_probabilities([0.5, 0.5, 0.5, 0.9])
    loss, gradient = value_and_gradient(Objective(terms=((1.0, Ohem(threshold=0.2, min_share=0.5)),)), logits, label)
    assert loss.item() == pytest.approx(math.log(2))
    assert gradient[0, 0, 0].nonzero().flatten().tolist() == [0, 1, 2]


# --- overlap


def images_of(logits, label):
    """(probability_PK, label_P) of the valid pixels of each image that has one, float64."""
    for logits_KHW, label_HW in zip(logits.detach().double(), label, strict=True):
        valid_HW = label_HW != IGNORE
        if valid_HW.any():
            yield logits_KHW.softmax(dim=0)[:, valid_HW].T.numpy(), label_HW[valid_HW].numpy()


def test_dice_is_the_mean_over_images_of_hand_computed_ones():
    logits, label = example()
    label[3] = IGNORE
    images = []
    for probability_PK, label_P in images_of(logits, label):
        losses = []
        for k in range(CLASSES):
            truth_P = label_P == k
            overlap = sum(float(p) for p, t in zip(probability_PK[:, k], truth_P, strict=True) if t)
            dice = 2 * overlap / (probability_PK[:, k].sum() + truth_P.sum())
            losses.append(1 - dice if truth_P.any() else 0.0)
        images.append(sum(losses) / CLASSES)
    assert len(images) == 3 and 0 in [(label[0] == k).sum() for k in range(CLASSES)]
    loss, _ = value_and_gradient(objective_of("dice"), logits, label)
    assert loss.item() == pytest.approx(np.mean(images), rel=1e-5)


def jaccard_loss(truth: set, wrong: set) -> float:
    """1 - intersection over union of a class, when exactly the pixels `wrong` are mispredicted."""
    return 1 - len(truth - wrong) / len(truth | wrong)


def test_lovasz_is_the_extension_of_the_jaccard_loss():
    logits, label = example(size=(4, 6))
    label[3] = IGNORE
    images = []
    for probability_PK, label_P in images_of(logits, label):
        losses = []
        for k in sorted(set(label_P.tolist())):
            truth = {p for p, value in enumerate(label_P) if value == k}
            error_P = np.abs((label_P == k) - probability_PK[:, k])
            wrong, loss = set(), 0.0
            for pixel in sorted(range(len(label_P)), key=lambda p: -error_P[p]):
                before = jaccard_loss(truth, wrong)
                wrong = wrong | {pixel}
                loss += error_P[pixel] * (jaccard_loss(truth, wrong) - before)
            losses.append(loss)
        images.append(np.mean(losses))
    assert len(images) == 3
    loss, _ = value_and_gradient(objective_of("lovasz"), logits, label)
    assert loss.item() == pytest.approx(np.mean(images), rel=1e-5)


# --- region mutual information


def slow_rmi(logits_KHW, label_HW):
    """The loss of one image, pixel by pixel from the paper's formulas with the authors' constants, in float64."""
    classes, height, width = logits_KHW.shape
    valid = [(y, x) for y in range(height) for x in range(width) if label_HW[y, x] != IGNORE]
    binary, bound = 0.0, 0.0
    for k in range(classes):
        truth_HW, probability_HW = np.zeros((height, width)), np.zeros((height, width))
        for y, x in valid:
            truth_HW[y, x] = label_HW[y, x] == k
            probability_HW[y, x] = 1 / (1 + math.exp(-logits_KHW[k, y, x]))
            right = probability_HW[y, x] if truth_HW[y, x] else 1 - probability_HW[y, x]
            binary -= math.log(right) / len(valid)

        def pooled(map_HW):
            padded = np.pad(map_HW, 2)
            rows, columns = height // 4 + 1, width // 4 + 1
            return np.array(
                [[padded[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum() / 16 for j in range(columns)] for i in range(rows)]
            )

        def cloud(map_hw):
            points = [
                map_hw[i : i + 3, j : j + 3].ravel()
                for i in range(map_hw.shape[0] - 2)
                for j in range(map_hw.shape[1] - 2)
            ]
            return np.array(points) - np.mean(points, axis=0)

        y_Nd, p_Nd = cloud(pooled(truth_HW)), cloud(pooled(probability_HW))
        diagonal = 5e-4 * np.eye(9)
        posterior = y_Nd.T @ y_Nd - y_Nd.T @ p_Nd @ np.linalg.inv(p_Nd.T @ p_Nd + diagonal) @ p_Nd.T @ y_Nd
        bound += 0.5 * np.linalg.slogdet(posterior + diagonal)[1] / 9
    return 0.5 * binary + 0.5 * bound


@pytest.mark.parametrize("size", [(8, 8), (24, 37)])
def test_rmi_is_the_papers(size):
    logits, label = example(size=size, seed=3)
    label[2] = IGNORE
    label[1][:, :5] = IGNORE
    slow = [slow_rmi(logits[b].detach().double().numpy(), label[b].numpy()) for b in (0, 1, 3)]
    loss, _ = value_and_gradient(objective_of("rmi"), logits, label)
    assert loss.item() == pytest.approx(np.mean(slow), rel=1e-5)


def test_rmi_is_finite_for_flat_and_for_extreme_predictions_and_prefers_the_right_ones():
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label[0, :, 20:] = 1
    label[0, 30:40, 10:40] = 2
    truth_BKHW = F.one_hot(label.long(), CLASSES).movedim(3, 1).float()
    values = []
    for logits in (20 * (2 * truth_BKHW - 1), torch.zeros_like(truth_BKHW), 20 * (1 - 2 * truth_BKHW.roll(9, dims=3))):
        loss, gradient = value_and_gradient(objective_of("rmi"), logits.requires_grad_(), label)
        assert gradient.isfinite().all()
        values.append(loss.item())
    assert values == sorted(values) and values[0] < values[1] - 1


def test_rmi_of_what_is_not_finite_is_not_finite():
    logits = torch.randn(2, CLASSES, 64, 64)
    logits[0, 0, 5, 5] = torch.nan
    label = torch.zeros(2, 64, 64, dtype=torch.uint8)
    assert not objective_of("rmi")(logits, label, weights=torch.full((1,), 2.0)).isfinite()


def test_rmi_says_that_a_crop_is_too_small():
    logits, label = example(size=(7, 20))
    with pytest.raises(MmsegError, match="8 pixels or more"):
        objective_of("rmi")(logits, label, weights=torch.ones(1))


# --- all terms


@TERMS
@pytest.mark.parametrize("size", [(6, 10), (5, 7), (3, 5)])
def test_coarser_logits_cost_what_they_cost_enlarged(name, size):
    """In value and gradient; an auxiliary output may be coarser than the main one."""
    _, target = example()
    objective = Objective(terms=((1.0, MAKERS[name]()),), auxiliary=0.4)
    small = [example(size=each)[0].detach() for each in (size, (3, 4))]
    got, leaves = [each.clone().requires_grad_() for each in small], [each.clone().requires_grad_() for each in small]
    large = [F.interpolate(each, size=(12, 20), mode="bilinear", align_corners=False) for each in leaves]
    losses = [objective(outputs, target, weights=objective.weights(target)) for outputs in (got, large)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    pairs = zip(torch.autograd.grad(losses[0], got), torch.autograd.grad(losses[1], leaves), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("name", [*MAKERS, "everything"])
@pytest.mark.parametrize("split", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_a_batch_costs_the_same_however_it_is_split(name, split):
    objective = everything() if name == "everything" else objective_of(name)
    logits, label = example()
    label[1] = IGNORE
    whole = value_and_gradient(objective, logits, label)
    labels = label.split(split)
    weights = torch.stack([objective.weights(part) for part in labels]).sum(dim=0)
    torch.testing.assert_close(weights, objective.weights(label))
    parts = [
        value_and_gradient(objective, part.detach().requires_grad_(), target, weights=weights)
        for part, target in zip(logits.split(split), labels, strict=True)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), whole[1], rtol=1e-5, atol=1e-7)
    assert whole[1].abs().max() > 5e-4  # so that the tolerance means something


@pytest.mark.parametrize("split", [(1, 3), (1, 1, 1, 1)])
def test_a_classification_costs_the_same_however_it_is_split(split):
    logits_BK = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target_B = torch.tensor([3, 0, 6, 6])
    objective = Objective(terms=((1.0, ClassificationCrossEntropy(label_smoothing=0.1)),))
    whole = value_and_gradient(objective, logits_BK, target_B)
    weights = objective.weights(target_B)
    pairs = zip(logits_BK.split(split), target_B.split(split), strict=True)
    losses = [objective(part, target, weights=weights) for part, target in pairs]
    torch.testing.assert_close(sum(losses), whole[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(sum(losses), logits_BK)[0], whole[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*MAKERS, "everything"])
def test_a_batch_that_is_wholly_ignored_costs_nothing(name):
    objective = everything() if name == "everything" else objective_of(name)
    logits, label = example(ignored=10)
    assert (label == IGNORE).all() and not objective.weights(label).any()
    loss, gradient = value_and_gradient(objective, logits, label)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


@TERMS
def test_ignored_pixels_have_no_gradient(name):
    logits, label = example()
    _, gradient = value_and_gradient(objective_of(name), logits, label)
    ignored_BHW = label == IGNORE
    assert not gradient.movedim(1, 3)[ignored_BHW].any()
    assert gradient.movedim(1, 3)[~ignored_BHW].any(dim=1).float().mean() > 0.3


@TERMS
def test_the_gradient_is_the_slope(name):
    logits, label = example(seed=1)
    objective = objective_of(name)
    _, gradient = value_and_gradient(objective, logits, label)
    assert gradient.isfinite().all()
    step = 0.02 * gradient / gradient.norm()
    weights = objective.weights(label)
    ahead, behind = (objective(logits.detach() + way * step, label, weights=weights) for way in (1, -1))
    assert (ahead - behind).item() == pytest.approx(2 * (step * gradient).sum().item(), rel=0.02)


@TERMS
def test_the_classes_may_be_named_in_any_order(name):
    if name == "weighted":
        pytest.skip("its weights belong to classes")
    logits, label = example()
    order = [3, 0, 4, 1, 2]
    renamed = label.clone()
    for new, old in enumerate(order):
        renamed[label == old] = new
    loss, gradient = value_and_gradient(objective_of(name), logits, label)
    again, permuted = value_and_gradient(objective_of(name), logits.detach()[:, order].requires_grad_(), renamed)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(permuted, gradient[:, order])


@TERMS
def test_twice_the_same_is_the_same_to_the_bit(name):
    logits, label = example()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (value_and_gradient(objective_of(name), logits, label) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("name", ["cross_entropy", "ohem", "dice", "lovasz"])
def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much(name):
    _, label = example()
    right_BKHW = F.one_hot(label.long().where(label != IGNORE, 0), CLASSES).movedim(3, 1).float()
    right, wrong = (40 * way * right_BKHW.requires_grad_() for way in (1, -1))
    assert value_and_gradient(objective_of(name), right, label)[0].item() == pytest.approx(0, abs=1e-5)
    assert value_and_gradient(objective_of(name), wrong, label)[0].item() > 0.7


@TERMS
def test_losses_are_computed_in_float32_under_mixed_precision(name):
    logits, label = example()
    objective = objective_of(name)
    low = logits.detach().bfloat16()
    expected = objective(low.float(), label, weights=objective.weights(label))
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
        loss = objective(low, label, weights=objective.weights(label))
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


# --- the objective


class Product:
    """A term with a matrix product, which mixed precision would take in bfloat16."""

    def weight(self, target):
        return torch.tensor(1.0)

    def total(self, logits, target):
        flat_BN = logits.float().flatten(1)
        return (flat_BN @ flat_BN.T).sum()


def test_mixed_precision_does_not_reach_a_term():
    logits, label = example()
    objective = Objective(terms=((1.0, Product()),))
    expected = Product().total(logits, label)
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
        assert torch.equal(objective(logits, label, weights=torch.ones(1)), expected)


def test_auxiliary_outputs_cost_their_mean_times_the_coefficient():
    objective = everything()
    _, label = example()
    outputs = [example(seed=seed)[0].detach() for seed in (1, 2, 3)]
    weights = objective.weights(label)
    main, *others = (objective(logits, label, weights=weights).item() for logits in outputs)
    loss = objective(outputs, label, weights=weights).item()
    assert loss == pytest.approx(main + 0.4 * sum(others) / 2, rel=1e-5)
    assert objective(outputs[:1], label, weights=weights).item() == main


def test_an_objective_is_the_sum_of_its_terms_times_their_coefficients():
    logits, label = example()
    objective = everything()
    assert [coefficient for coefficient, _ in objective.terms] == [0.5, 1.0, 2.0, 0.7, 0.3]
    singles = [value_and_gradient(objective_of(name), logits, label)[0].item() for name in list(MAKERS)[2:]]
    loss, _ = value_and_gradient(objective, logits, label)
    assert loss.item() == pytest.approx(
        0.5 * singles[0] + singles[1] + 2 * singles[2] + 0.7 * singles[3] + 0.3 * singles[4], rel=1e-5
    )


def build(**loss):
    return build_objective(
        loss=loss, label_smoothing=0.1, weight_K=WEIGHTS, ohem_threshold=None, ohem_min_share=None, auxiliary=0.0
    )


def test_a_coefficient_of_zero_leaves_a_term_out():
    objective = build(cross_entropy=2.0, dice=0.0, ohem=0)
    ((coefficient, term),) = objective.terms
    assert coefficient == 2.0 and isinstance(term, PixelCrossEntropy)
    assert term.label_smoothing == 0.1 and term.weight_K is WEIGHTS


def test_wrong_losses_are_said():
    with pytest.raises(MmsegError, match=r"unknown name 'lovas': .*did you mean lovasz"):
        build(lovas=1.0)
    with pytest.raises(MmsegError, match="at least one"):
        build(cross_entropy=0.0)
    with pytest.raises(MmsegError, match=r"loss\.ohem"):
        build(ohem=1.0)


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_only_the_losses_that_need_it_need_the_package(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    assert len(build(cross_entropy=1.0, rmi=1.0).terms) == 2
    with pytest.raises(MmsegError, match=f"{name} needs the package segmentation-models-pytorch: install it"):
        build(cross_entropy=1.0, **{name: 1.0})
