from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmseg_cli.evaluation.inference import normalise
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.unet import build_network, set_stochastic_depth, training_callable
from mmseg_cli.processes import Processes
from mmseg_cli.training import loop
from mmseg_cli.training.averaging import Ema, Lookahead
from mmseg_cli.training.loop import NotFinite, fit
from mmseg_cli.training.losses import Objective, build_objective
from mmseg_cli.training.optim import build_optimizer
from mmseg_cli.training.state import State
from tests.networks import NETWORK

CPU = torch.device("cpu")


class Late(str):
    """The CPU, which the loop takes for a GPU: it reads a step's numbers while the next one runs."""

    type = "cuda"


LATE = Late("cpu")


def state_of(network, *, precision="float32", optimizer=None, lookahead=None, ema=None):
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=99.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "float16")
    return State(network=network, optimizer=optimizer, scaler=scaler, lookahead=lookahead, ema=ema)


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
    device=CPU,
    model=None,
    **pauses,
):
    steps = []
    fit(
        state or state_of(network, precision=precision),
        batches,
        model=model or network,
        processes=Processes(device=device),
        objective=loss if isinstance(loss, Objective) else Objective(terms=((1.0, loss or MeanSquare()),)),
        learning_rate=learning_rate,
        start=start,
        micro_batch=micro_batch,
        precision=precision,
        channels_last=True,
        clip_norm=clip_norm,
        seed=seed,
        log_data=log_data,
        on_step=on_step or steps.append,
        **pauses,
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
@pytest.mark.parametrize("device", [CPU, LATE], ids=["at once", "late"])
def test_what_is_no_number_stops_before_the_update(bad, where, step, micro_batch, device):
    """72 kinds: also in the second of two parts of a batch, and found out when the next step is done."""
    network = nn.Sequential(nn.Conv2d(3, 1, 1))
    optimizer = build_optimizer(network, name="sgd", learning_rate=99.0, weight_decay=0.1)
    before, calls = [], []

    def remember(done):
        calls.append(done)
        before[:] = [copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])]

    before[:] = [copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])]
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
            device=device,
        )
    assert len(calls) == step - 1
    assert caught.value.step == step
    assert ("loss" in caught.value.what) == (where == "loss")
    assert torch.equal(caught.value.images, data[step - 1][0])
    assert caught.value.here
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in network.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert len(after) == 2
    assert all(torch.equal(after[index]["momentum_buffer"], before[1][index]["momentum_buffer"]) for index in after)


@pytest.mark.parametrize("device", [CPU, LATE], ids=["at once", "late"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("step", [1, 2, 4, 5])
@pytest.mark.parametrize("k", [1, 2])
def test_with_averages_too_the_weights_are_those_before_the_update(device, name, step, k):
    """Of the network; late, the averages may be a step further, which nobody writes down."""
    network = nn.Sequential(nn.Conv2d(3, 1, 1))
    optimizer = build_optimizer(network, name=name, learning_rate=0.1, weight_decay=0.1)
    averages = {"lookahead": Lookahead(network, k=k, alpha=0.5), "ema": Ema(network, decay=0.9)}
    before = copy.deepcopy(network.state_dict())
    state, twin = state_of(network, optimizer=optimizer, **averages), copy.deepcopy(network)
    if step > 1:  # what so many steps make, in a run of their own
        again = build_optimizer(twin, name=name, learning_rate=0.1, weight_decay=0.1)
        run(
            twin,
            batches(5)[: step - 1],
            state=state_of(twin, optimizer=again, lookahead=Lookahead(twin, k=k, alpha=0.5)),
        )
        before = twin.state_dict()
    with pytest.raises(NotFinite, match=f"at step {step}$"):
        run(network, batches(5), loss=Broken(bad=math.nan, call=step, where="loss"), state=state, device=device)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_update_that_is_left_out_leaves_nothing(name):
    """The first one: torch's own momentum would be whatever lay in memory. What follows is as if it had not been."""
    ways = []
    for broken in ([], [1.0], [1.0, 1.0, 1.0]):
        torch.manual_seed(0)
        network = nn.Linear(300, 200)
        state = state_of(network, optimizer=build_optimizer(network, name=name, learning_rate=0.1, weight_decay=0.1))
        weight = network.weight.detach().clone()
        for each in [*broken, 0.0, 0.0]:
            for parameter in network.parameters():
                parameter.grad = torch.full_like(parameter, math.nan if each else 0.5)
            loop._update(state, loss=torch.tensor(1.0), broken=torch.tensor(each))
            assert not hasattr(state.optimizer, "found_inf")
            assert torch.equal(network.weight, weight) == bool(each)
        kept = state.optimizer.state_dict()["state"]
        ways.append((network.weight, network.bias, *(value for of in kept.values() for value in of.values())))
    assert all(len(way) == len(ways[0]) > 3 for way in ways)
    for way in ways[1:]:
        assert all(map(torch.equal, way, ways[0]))


def test_training_mode_comes_back_after_a_validation():
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)).eval()
    modes, pauses = [], []
    network.register_forward_pre_hook(lambda module, x: modes.append(module.training))

    def validate(step):
        pauses.append(step)
        network.eval()

    run(network, batches(4), pauses=lambda step: step != 2, on_pause=validate)
    assert modes == [True, True, True, True]
    assert pauses == [1, 3, 4]
    assert network.training


def told(device, **changes):
    """What happens in which order in four steps, from the sixth on, of which the third pauses."""
    network, seen = nn.Conv2d(3, 1, 1), []
    network.register_forward_pre_hook(lambda *_: seen.append("runs"))

    def pauses(step):
        seen.append(f"asked {step}")
        return step == 8

    run(
        network,
        batches(4),
        start=5,
        device=device,
        on_step=lambda step: seen.append(f"told {step.number}"),
        pauses=pauses,
        on_pause=lambda step: seen.append(f"pauses {step}"),
        **changes,
    )
    return seen


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_every_step_is_told_in_order_and_before_a_pause():
    at_once = ["runs", "told 6", "asked 6", "runs", "told 7", "asked 7", "runs", "told 8", "asked 8", "pauses 8"]
    at_once += ["runs", "told 9", "asked 9"]
    assert told(CPU) == at_once
    assert told(LATE, precision="float16", state=None) == at_once  # whose scaler decides about updates by itself


def test_a_gpu_runs_a_step_while_the_one_before_is_told():
    expected = ["runs", "asked 6", "runs", "told 6", "asked 7", "runs", "told 7", "asked 8", "told 8", "pauses 8"]
    assert told(LATE) == [*expected, "runs", "asked 9", "told 9"]


def test_told_late_the_numbers_are_the_same():
    ways = []
    for device in (CPU, LATE):
        torch.manual_seed(0)
        network = nn.Conv2d(3, 1, 1)
        steps = run(network, batches(4), device=device, learning_rate=lambda step: 0.01 / (step + 1), clip_norm=1.0)
        numbers = [(step.number, step.loss, step.gradient_norm, step.learning_rate, step.images) for step in steps]
        ways.append((numbers, network.weight.tolist()))
        assert all(0 <= step.waited <= step.seconds for step in steps)
    assert ways[0] == ways[1]


def test_seconds_hold_all_that_a_step_takes_but_no_pause(monkeypatch):
    """By a clock that only what is waited for moves: a batch 1 s, the device 3 s a step, telling 10, a pause 1000."""
    now = 0.0

    def wait(seconds):
        nonlocal now
        now += seconds

    class Ready:
        """The device's steps end one after the other."""

        done = False

        def synchronize(self):
            wait(0 if self.done else 3)
            self.done = True

    def slow():
        for batch in batches(4):
            wait(1)
            yield batch

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    monkeypatch.setattr(loop, "_on_its_way", lambda numbers: (numbers, Ready()))

    def seconds(device):
        steps = []

        def on_step(step):
            wait(10)
            steps.append((step.waited, step.seconds))

        run(
            nn.Conv2d(3, 1, 1),
            slow(),
            device=device,
            on_step=on_step,
            pauses=lambda step: step == 3,
            on_pause=lambda _: wait(1000),
        )
        return steps

    # Telling belongs to the step after, as it keeps that one waiting; so does, on a GPU, the step before that runs.
    assert seconds(CPU) == [(1, 4), (1, 14), (1, 14), (1, 4)]
    assert seconds(LATE) == [(1, 1), (1, 14), (1, 17), (1, 1)]


# ---------------------------------------------------------------------------------------------- a GPU is not waited for

READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_static", "equal", "masked_select", "lift_fresh"}


class Waits(TorchDispatchMode):
    """Notes every operation that makes the host wait for a GPU: what reads a number from it, or needs one for a shape.

    `torch.tensor(...)` is one too: a copy from memory that a GPU cannot read by itself.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [leaf for leaf in tree_leaves(args[1:2]) if isinstance(leaf, torch.Tensor)]
        masked = "index" in name and any(mask.dtype in (torch.bool, torch.uint8) for mask in masks)
        if name in READS or "unique" in name or masked:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("waits", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.where(x > 0), "nonzero"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.unique(), "_unique2"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x + torch.tensor([1.0]), "lift_fresh"),
        (lambda x: x.new_zeros(3).index_put_((x > 0,), x.new_ones(())), "index_put_"),
    ],
)
def test_what_waits_is_noticed(waits, name):
    with Waits() as found:
        waits(torch.tensor([1.0, -1.0, 2.0]))
    assert name in found.seen


def test_numbers_that_have_arrived_are_read_without_waiting():
    numbers = torch.ones(3)
    with Waits() as found:
        assert numbers.tolist() == [1.0, 1.0, 1.0]
        torch.where(numbers > 0, numbers, 0)
    assert found.seen == []


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("loss", ["cross_entropy", "ohem", "rmi"])
@pytest.mark.parametrize(("device", "precision"), [(CPU, "float32"), (CPU, "bfloat16"), (LATE, "float32")])
def test_no_step_waits_for_the_device(loss, optimizer, precision, device, monkeypatch):
    """With all that a recipe may have. A CPU's one_hot looks at its input, a GPU's does not."""
    monkeypatch.setattr(F, "one_hot", lambda index, classes: (index[..., None] == torch.arange(classes)).long())
    torch.manual_seed(0)
    body = NETWORK | {"width": 8, "levels": 3}
    network = DeepSupervision(build_network(task="segmentation", num_classes=5, **body))
    set_stochastic_depth(network, 0.2)
    state = state_of(
        network,
        optimizer=build_optimizer(network, name=optimizer, learning_rate=0.1, weight_decay=0.1),
        lookahead=Lookahead(network, k=2, alpha=0.5),
        ema=Ema(network, decay=0.9),
    )
    objective = build_objective(
        loss={loss: 1.0},
        label_smoothing=0.1,
        weight_K=torch.rand(5) + 0.5,
        ohem_threshold=0.7,
        ohem_min_share=0.1,
        auxiliary=0.4,
    )
    target_BHW = torch.randint(0, 5, (2, 32, 32), dtype=torch.uint8)
    target_BHW[:, :3] = 255
    data = [(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), target_BHW) for _ in range(3)]
    normalise(data[0][0], device=device)  # copies the mean to the device, once
    before, steps = network.network.head.classifier.weight.detach().clone(), []
    settings = {"micro_batch": 1, "clip_norm": 1.0, "learning_rate": lambda step: 0.01, "device": device}
    with Waits() as found:
        run(network, data, loss=objective, state=state, precision=precision, on_step=steps.append, **settings)
    assert found.seen == []
    assert [step.number for step in steps] == [1, 2, 3]
    assert not torch.equal(network.network.head.classifier.weight, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("graphed", [False, True])
def test_on_a_gpu_nothing_synchronises(optimizer, graphed):
    """torch raises where the host waits for the device otherwise than for the event of a step's numbers."""
    device = torch.device("cuda", torch.cuda.current_device())
    network = build_network(task="segmentation", num_classes=5, **NETWORK).to(device)
    state = state_of(network, optimizer=build_optimizer(network, name=optimizer, learning_rate=0.1, weight_decay=0.1))
    target_BHW = torch.randint(0, 5, (2, 32, 32), dtype=torch.uint8).pin_memory()
    data = [(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8).pin_memory(), target_BHW) for _ in range(3)]
    loss = build_objective(
        loss={"cross_entropy": 1.0},
        label_smoothing=0.1,
        weight_K=None,
        ohem_threshold=0.7,
        ohem_min_share=0.1,
        auxiliary=0.4,
    )
    given = {"loss": loss, "state": state, "device": device, "clip_norm": 1.0}
    if graphed:
        like_BCHW = torch.rand(2, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        given["model"] = training_callable(network, like_BCHW, autocast=None)
        assert given["model"] is not network
    run(network, data[:1], **given)  # libraries, algorithms, constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = run(network, data, **given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [step.number for step in steps] == [1, 2, 3]
    assert all(math.isfinite(step.loss) and step.loss > 0 for step in steps)


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


def test_float16_and_an_infinite_loss_whose_gradient_is_finite():
    """The scaler looks at gradients alone."""

    class Infinite(MeanSquare):
        def total(self, logits, target):
            return super().total(logits, target) + math.inf

    network = nn.Conv2d(3, 1, 1)
    before, state = copy.deepcopy(network.state_dict()), state_of(network, precision="float16")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with pytest.raises(NotFinite, match="the loss is inf at step 1$"):
        run(network, batches(1), loss=Infinite(), precision="float16", state=state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


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
