from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmseg_cli.errors import NumericalStop
from mmseg_cli.training.loop import fit


def run(network, batches, *, loss, clip_norm=None, start=0, learning_rate=lambda step: 0.1, on_step=None):
    steps = []
    fit(
        network,
        batches,
        optimizer=torch.optim.SGD(network.parameters(), lr=99.0),
        loss=loss,
        learning_rate=learning_rate,
        start=start,
        device=torch.device("cpu"),
        channels_last=True,
        clip_norm=clip_norm,
        on_step=on_step or steps.append,
    )
    return steps


def batches(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return [(image, torch.tensor([1.0, 2.0])) for image in images]


def mean_square(output, target):
    return (output.mean(dim=(1, 2, 3)) - target).square().mean()


def test_a_step_is_plain_gradient_descent():
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 1)
    twin = nn.Conv2d(3, 2, 1)
    twin.load_state_dict(network.state_dict())
    data = batches(3)
    steps = run(network, data, loss=mean_square, learning_rate=lambda step: 0.1 / (step + 1), start=0)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    deviation = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    for number, (image, target) in enumerate(data):
        value = mean_square(twin((image.float() - mean) / deviation), target)
        gradients = torch.autograd.grad(value, list(twin.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter -= 0.1 / (number + 1) * gradient
        assert steps[number].loss == pytest.approx(value.item(), rel=1e-5)
        assert steps[number].learning_rate == 0.1 / (number + 1)
        assert (steps[number].number, steps[number].images) == (number + 1, 2)
        assert 0 <= steps[number].waited <= steps[number].seconds
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_steps_are_counted_from_the_start():
    rates = []

    def rate(step):
        rates.append(step)
        return 0.0

    steps = run(nn.Conv2d(3, 1, 1), batches(2), loss=mean_square, start=7, learning_rate=rate)
    assert [step.number for step in steps] == [8, 9]
    assert rates == [7, 8]


def test_clipping_limits_the_whole_gradient():
    network = nn.Conv2d(3, 1, 1)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    run(network, batches(1), loss=lambda out, target: 1000 * mean_square(out, target), clip_norm=0.5)
    change = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(network.parameters(), before, strict=True)))
    assert change == pytest.approx(0.1 * 0.5, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_stops_before_the_update(bad):
    network = nn.Conv2d(3, 1, 1)
    states, calls = [], []

    def loss(output, target):
        states.append([parameter.detach().clone() for parameter in network.parameters()])
        return mean_square(output, target) * (bad if len(states) == 3 else 1.0)

    with pytest.raises(NumericalStop, match="at step 3: ") as caught:
        run(network, batches(5), loss=loss, on_step=calls.append)
    assert caught.value.exit_code == 3
    assert len(calls) == 2
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), states[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))


def test_training_mode_comes_back_after_a_validation():
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    modes = []

    def loss(output, target):
        modes.append(network.training)
        return mean_square(output, target)

    run(network, batches(3), loss=loss, on_step=lambda step: network.eval())
    assert modes == [True, True, True]
