"""Measured predictions and energy, on networks that note what is done to them."""

from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor, nn

from mmseg_cli.models import cost
from mmseg_cli.models.cost import Work, inference_seconds, step_joules, step_seconds


class Recorder(nn.Module):
    """Notes its name and state at every call."""

    def __init__(self, name: str, calls: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        self.conv, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.calls.append((self.name, self.training))
        self.shape, self.inference = tuple(x_BCHW.shape), torch.is_inference_mode_enabled()
        self.channels_last = x_BCHW.is_contiguous(memory_format=torch.channels_last)
        self.tf32 = torch.backends.cudnn.allow_tf32
        return self.norm(self.conv(x_BCHW))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_predictions_take_turns_in_evaluation_mode(memory_format: torch.memory_format) -> None:
    calls: list[tuple[str, bool]] = []
    networks = {name: Recorder(name, calls) for name in "abc"}
    before = {name: [value.clone() for value in network.state_dict().values()] for name, network in networks.items()}
    rounds: list[int] = []
    seconds = inference_seconds(
        networks,
        work=Work(1, 4, 6, "cpu", memory_format=memory_format),
        repeats=3,
        warmup=2,
        advance=lambda: rounds.append(len(calls)),
    )
    assert calls == [(name, False) for name in "abc"] * 5
    assert rounds == [3, 6, 9, 12, 15]
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(sample > 0 for samples in seconds.values() for sample in samples)
    for name, network in networks.items():
        assert (network.shape, network.inference, network.tf32) == ((1, 3, 4, 6), True, False)
        assert network.channels_last == (memory_format is torch.channels_last)
        assert all(map(torch.equal, network.state_dict().values(), before[name]))
    assert torch.backends.cudnn.allow_tf32  # as training has it
    assert not torch.is_inference_mode_enabled()


def test_a_trained_network_predicts_without_its_gradients() -> None:
    calls: list[tuple[str, bool]] = []
    network = Recorder("a", calls)
    step_seconds({"a": network}, work=Work(2, 4, 6, "cpu"), repeats=1, warmup=0)
    assert network.conv.weight.grad is not None
    inference_seconds({"a": network}, work=Work(1, 4, 6, "cpu"), repeats=1, warmup=0)
    assert calls == [("a", True), ("a", False)]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_setting_is_put_back_after_a_failure() -> None:
    class Broken(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        inference_seconds({"a": Broken()}, work=Work(1, 4, 6, "cpu"), repeats=1, warmup=0)
    assert torch.backends.cudnn.allow_tf32


def test_joules_of_a_step_are_the_mean_over_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of `b` takes five times the energy of one of `a`, in half of the time."""
    calls: list[tuple[str, bool]] = []
    networks = {name: Recorder(name, calls) for name in "ab"}

    def total(each: dict[str, float]) -> float:
        return sum(each[name] for name, _ in calls)

    clock = types.SimpleNamespace(perf_counter=lambda: total({"a": 0.25, "b": 0.125}))
    monkeypatch.setattr(cost, "time", clock)
    rounds: list[int] = []
    joules = step_joules(
        networks,
        work=Work(2, 4, 6, "cpu"),
        meter=lambda: total({"a": 2.0, "b": 10.0}),
        seconds=0.45,
        repeats=3,
        warmup=1,
        advance=lambda: rounds.append(len(calls)),
    )
    assert joules == {"a": [2.0] * 3, "b": [10.0] * 3}
    # A round that warms up, one that tells how long a step takes, then runs of half a second.
    assert "".join(name for name, _ in calls) == "abab" + 3 * "aabbbb"
    assert all(training for _, training in calls)
    assert rounds == [10, 16, 22]


def test_a_run_is_one_step_at_least() -> None:
    calls: list[tuple[str, bool]] = []
    joules = step_joules(
        {"a": Recorder("a", calls)},
        work=Work(2, 4, 6, "cpu"),
        meter=lambda: float(len(calls)),
        seconds=0,
        repeats=2,
        warmup=0,
    )
    assert joules == {"a": [1.0, 1.0]}
    assert len(calls) == 3


def test_the_images_are_the_same_every_time() -> None:
    work = Work(2, 4, 6, "cpu")
    images_BCHW = work.images()
    assert images_BCHW.shape == (2, 3, 4, 6)
    assert images_BCHW.min() >= 0
    assert images_BCHW.max() < 1
    assert torch.equal(images_BCHW, work.images())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_predictions_and_energy_on_cuda() -> None:
    from mmseg_cli import energy

    networks = {"a": nn.Conv2d(3, 8, 3, padding=1)}
    work = Work(1, 64, 64, "cuda")
    assert len(inference_seconds(networks, work=work, repeats=2, warmup=1)["a"]) == 2
    meter = energy.meter(torch.device("cuda"))
    if meter is not None:
        (joules,) = step_joules(networks, work=work, meter=meter, seconds=0.5, repeats=1, warmup=1)["a"]
        assert joules > 0
