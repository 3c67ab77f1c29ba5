from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from mmseg_cli.processes import Processes
from mmseg_cli.training.loop import NotFinite, fit
from mmseg_cli.training.losses import Objective
from mmseg_cli.training.state import State

CPU = torch.device("cpu")


def state_of(network, *, precision="float32", optimizer=None):
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=99.0)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "float16")
    return State(network=network, optimizer=optimizer, scaler=scaler, lookahead=None, ema=None)


class MeanSquare:
    """A loss of images whose mean over a step is the mean over its images."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def weight(self, target):
        return torch.tensor(float(len(target)))

    def total(self, logits, target):
        return self.factor * (logits.float().mean(dim=(1, 2, 3)) - target).square().sum()


def run(
    network,
    batches,
    *,
    loss=None,
    clip_norm=None,
    start=0,
    learning_rate=lambda step: 0.1,
    on_step=None,
    micro_batch=2,
    precision="float32",
    seed=0,
    state=None,
    log_data=lambda step: False,
):
    steps = []
    fit(
        state or state_of(network, precision=precision),
        batches,
        model=network,
        processes=Processes(device=CPU),
        objective=Objective(terms=((1.0, loss or MeanSquare()),)),
        learning_rate=learning_rate,
        start=start,
        micro_batch=micro_batch,
        precision=precision,
        channels_last=True,
        clip_norm=clip_norm,
        seed=seed,
        log_data=log_data,
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
    steps = run(network, data, learning_rate=lambda step: 0.1 / (step + 1), start=0)
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

    steps = run(nn.Conv2d(3, 1, 1), batches(2), start=7, learning_rate=rate)
    assert [step.number for step in steps] == [8, 9]
    assert rates == [7, 8]


def test_clipping_limits_the_whole_gradient():
    network = nn.Conv2d(3, 1, 1)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    steps = run(network, batches(1), loss=MeanSquare(1000), clip_norm=0.5)
    change = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(network.parameters(), before, strict=True)))
    assert change == pytest.approx(0.1 * 0.5, rel=1e-4)
    assert steps[0].gradient_norm > 0.5


class Broken(MeanSquare):
    """No number from the n-th call on: `loss` itself, or only its gradient."""

    def __init__(self, *, bad, call, where):
        super().__init__()
        self.bad, self.call, self.where, self.calls, self.seen = bad, call, where, 0, []

    def total(self, logits, target):
        self.calls += 1
        value = super().total(logits, target)
        if self.calls < self.call:
            return value
        if self.where == "loss":
            return value * self.bad
        return value + Poison.apply(logits, self.bad)


class Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bad):
        ctx.bad, ctx.shape = bad, x.shape
        return torch.zeros(())

    @staticmethod
    def backward(ctx, gradient):
        return torch.full(ctx.shape, ctx.bad), None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("micro_batch", [2, 1])
def test_what_is_no_number_stops_before_the_update(bad, where, step, micro_batch):
    """36 kinds: also in the second of two parts of a batch."""
    network = nn.Sequential(nn.Conv2d(3, 1, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=99.0, momentum=0.9)
    before, calls = [], []

    def remember(done):
        calls.append(done)
        before[:] = [copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])]

    before[:] = [copy.deepcopy(network.state_dict()), {}]
    call = step * (2 // micro_batch)
    data = batches(5)
    with pytest.raises(NotFinite, match=f"at step {step}$") as caught:
        run(
            network,
            data,
            loss=Broken(bad=bad, call=call, where=where),
            on_step=remember,
            micro_batch=micro_batch,
            state=state_of(network, optimizer=optimizer),
        )
    assert len(calls) == step - 1
    assert caught.value.step == step
    assert ("loss" in caught.value.what) == (where == "loss")
    assert torch.equal(caught.value.images, data[step - 1][0])
    assert caught.value.here
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in network.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[index]["momentum_buffer"], before[1][index]["momentum_buffer"]) for index in after)


def test_training_mode_comes_back_after_a_validation():
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    modes = []
    network.register_forward_pre_hook(lambda module, x: modes.append(module.training))
    run(network, batches(3), on_step=lambda step: network.eval())
    assert modes == [True, True, True]


def test_accumulation_changes_neither_loss_nor_gradient():
    results = []
    for micro_batch in (4, 2, 1):
        torch.manual_seed(0)
        network = nn.Conv2d(3, 2, 3)
        generator = torch.Generator().manual_seed(0)
        data = [
            (torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(4.0))
            for _ in range(3)
        ]
        steps = run(network, data, micro_batch=micro_batch, learning_rate=lambda step: 1e-3)
        results.append(([step.loss for step in steps], [step.images for step in steps], network.weight.detach()))
    for losses, images, weight in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        assert images == [4, 4, 4]
        torch.testing.assert_close(weight, results[0][2], rtol=1e-5, atol=1e-6)


def test_what_the_network_draws_depends_on_seed_and_step_alone():
    def losses(*, seed, start, count):
        torch.manual_seed(5)
        network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout(0.5))
        torch.manual_seed(start)  # whatever the generator's state is
        return [
            s.loss for s in run(network, batches(4)[start:count], start=start, seed=seed, learning_rate=lambda s: 0)
        ]

    whole = losses(seed=0, start=0, count=4)
    assert losses(seed=0, start=2, count=4) == whole[2:]
    assert losses(seed=1, start=0, count=4) != whole


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_keeps_weights_and_gradients_in_float32(precision):
    seen = []
    network = nn.Conv2d(3, 2, 3)
    network.register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    steps = run(network, batches(2), precision=precision, learning_rate=lambda step: 1e-3)
    assert seen == [getattr(torch, precision)] * 2
    assert all(math.isfinite(step.loss) for step in steps)
    assert {tensor.dtype for p in network.parameters() for tensor in (p, p.grad)} == {torch.float32}


def test_float16_leaves_out_an_update_that_overflows_and_goes_on():
    network = nn.Conv2d(3, 1, 1)
    state = state_of(network, precision="float16")
    before = copy.deepcopy(network.state_dict())
    steps = run(
        network, batches(1), loss=Broken(bad=math.inf, call=1, where="gradient"), precision="float16", state=state
    )
    assert len(steps) == 1
    assert state.scaler.get_scale() == 2**15
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    state.scaler.update(1.0)
    with pytest.raises(NotFinite):  # until there is no scale left to give
        run(network, batches(1), loss=Broken(bad=math.inf, call=1, where="gradient"), precision="float16", state=state)


def test_deep_supervision_s_outputs_all_count():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.side = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)

        def forward(self, x):
            return [self.main(x), self.side(x)]

    network = Two()
    objective = Objective(terms=((1.0, MeanSquare()),), auxiliary=0.4)
    done = []
    fit(
        state_of(network),
        batches(1),
        model=network,
        processes=Processes(device=CPU),
        objective=objective,
        learning_rate=lambda step: 0.0,
        start=0,
        micro_batch=2,
        precision="float32",
        channels_last=False,
        clip_norm=None,
        seed=0,
        log_data=lambda step: False,
        on_step=done.append,
    )
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
