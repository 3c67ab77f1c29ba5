from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_cli.training.averaging import Ema, Lookahead, estimate_statistics, evaluated_with, take_over


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def walk(net, optimizer, number):
    generator = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    net(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
    optimizer.step()


def test_lookahead_is_algorithm_1_of_the_paper():
    """By hand, on a quadratic: slow weights from step 0, pulled every k steps, the fast ones start again from there."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ahead = Lookahead(net, k=3, alpha=0.5)
    fast = slow = 1.0
    for step in range(1, 10):
        with torch.no_grad():
            net.weight.sub_(0.1 * net.weight)
        fast -= 0.1 * fast
        ahead.follow(net, step=step)
        if step % 3 == 0:
            slow += 0.5 * (fast - slow)
            fast = slow
        assert net.weight.item() == pytest.approx(fast)
        assert ahead.weights["weight"].item() == pytest.approx(slow)


def test_lookahead_s_first_window_counts():
    """A known fault elsewhere: slow weights that are taken after the first k steps make the first window do nothing."""
    net = network()
    first = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    ahead = Lookahead(net, k=2, alpha=0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in (1, 2):
        walk(net, optimizer, step)
        if step == 2:
            fast = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
        ahead.follow(net, step=step)
    for name, tensor in net.named_parameters():
        torch.testing.assert_close(tensor.detach(), (first[name] + fast[name]) / 2)
        assert not torch.equal(tensor, fast[name]) or torch.equal(first[name], fast[name])


def test_lookahead_goes_on_from_its_weights_and_the_step_alone():
    """The other known fault elsewhere: it cannot be resumed in the middle of a window."""

    def run(cut):
        net = network()
        ahead = Lookahead(net, k=3, alpha=0.5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(1, 8):
            if step == cut:
                saved = (net.state_dict(), optimizer.state_dict(), ahead.weights)
                net = network()
                net.load_state_dict(saved[0])
                optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
                optimizer.load_state_dict(saved[1])
                ahead = Lookahead(network(), k=3, alpha=0.5)
                ahead.weights = saved[2]
            walk(net, optimizer, step)
            ahead.follow(net, step=step)
        return net.state_dict() | {f"slow {name}": tensor for name, tensor in ahead.weights.items()}

    whole = run(None)
    for cut in range(2, 8):
        assert all(torch.equal(tensor, whole[name]) for name, tensor in run(cut).items()), cut


def test_the_average_is_the_recurrence_with_a_warm_start():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema = Ema(net, decay=0.5)
    value = 0.0
    for step in range(1, 12):
        with torch.no_grad():
            net.weight.fill_(step)
        ema.follow(net, step=step)
        decay = min(0.5, (1 + step) / (10 + step))
        value = decay * value + (1 - decay) * step
        assert ema.weights["weight"].item() == pytest.approx(value)


def test_statistics_are_means_over_the_batches():
    net = network()
    batches = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    estimate_statistics(net, batches, seed=0)
    with torch.no_grad():
        inside = [net[0](x) for x in batches]
    mean = torch.stack([y.mean((0, 2, 3)) for y in inside]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in inside]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)
    assert net[1].momentum == 0.1


def test_an_evaluation_with_averaged_weights_leaves_no_trace():
    net = network()
    ahead = Lookahead(net, k=5, alpha=0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    walk(net, optimizer, 1)
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with evaluated_with(net, ahead.weights, [torch.randn(4, 3, 8, 8)], seed=3):
        assert all(torch.equal(p, ahead.weights[name]) for name, p in net.named_parameters())
        assert not torch.equal(net[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    torch.set_rng_state(state)
    with pytest.raises(ZeroDivisionError), evaluated_with(net, ahead.weights, None, seed=3):
        raise ZeroDivisionError
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_taking_over_keeps_the_parameters_themselves():
    net = network()
    own = list(net.parameters())
    take_over(net, {name: torch.zeros_like(p) for name, p in net.named_parameters()})
    assert all(p is q for p, q in zip(net.parameters(), own, strict=True))
    assert not any(p.any() for p in own)
