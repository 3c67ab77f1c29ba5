"""NaN or Inf in the loss or the gradient: the run stops before the update, and leaves what is needed to see why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmseg_cli import runtime
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import NumericalStop
from mmseg_cli.params import load
from mmseg_cli.training import parts
from tests.chaos.harm import EVERY, RUN, STEPS, Screen, checkpoints, last_step, outcome, stage, unreadable


class BadGradient(torch.autograd.Function):
    """A number as it is, with a gradient that is none."""

    @staticmethod
    def forward(context, value, gradient):
        context.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.gradient, None


HARM = {
    "loss nan": (lambda loss: loss * torch.nan, "the loss is nan"),
    "loss inf": (lambda loss: loss + torch.inf, "the loss is inf"),
    "loss -inf": (lambda loss: loss - torch.inf, "the loss is -inf"),
    "gradient nan": (lambda loss: BadGradient.apply(loss, torch.nan), "the gradient's norm is nan"),
    "gradient inf": (lambda loss: BadGradient.apply(loss, torch.inf), "the gradient's norm is "),
}
STEPS_OF_HARM = {  # in the order of one run; 6 is the first step after a checkpoint, 15 is validated, 40 is the last
    "loss nan": (1, 8, 15, 22, 29, 40),
    "loss inf": (2, 9, 16, 23, 30, 36),
    "loss -inf": (3, 10, 17, 24, 31, 37),
    "gradient nan": (5, 12, 19, 26, 33, 38),
    "gradient inf": (6, 13, 20, 27, 34, 39),
}


@pytest.fixture
def poison(monkeypatch):
    """Lets the real loss of a step be changed: `poison.update(step=7, change=...)`."""
    now, wanted = {"step": 0}, {}
    real_failpoint, real_objective = runtime.failpoint, parts.objective

    def failpoint(name, *, at=None):
        if name == "step":
            now["step"] = at
        real_failpoint(name, at=at)

    class Poisoned:
        def __init__(self, objective):
            self._objective = objective

        def __getattr__(self, name):
            return getattr(self._objective, name)

        def __call__(self, *arguments, **named):
            loss = self._objective(*arguments, **named)
            return wanted["change"](loss) if now["step"] == wanted.get("step") else loss

    monkeypatch.setattr(runtime, "failpoint", failpoint)
    monkeypatch.setattr(parts, "objective", lambda *arguments, **named: Poisoned(real_objective(*arguments, **named)))
    return wanted


def stops(step, what, whole):
    """The run stops there and leaves the weights before the update and the step's batch; checkpoints are untouched."""
    screen = Screen()
    with pytest.raises(NumericalStop) as caught:
        stage(screen=screen)
    assert caught.value.exit_code == 3
    assert what in str(caught.value)
    assert f" at step {step} (" in str(caught.value)
    folder = next(iter(only_work().glob(f"not-finite-step-{step:09d}*")))
    assert str(folder) in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["batch.safetensors", "facts.json", "model.safetensors"]

    batch, (images, target) = load_file(folder / "batch.safetensors"), whole.batches[step]
    assert torch.equal(batch["images"], images)
    assert torch.equal(batch["target"], target)

    weights, before = load_file(folder / "model.safetensors"), whole.weights[step - 1]
    assert weights.keys() == before.keys()
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm: the forward pass is in them
    for name in before:
        assert name.endswith(statistics) or torch.equal(weights[name], before[name]), name

    facts = json.loads((folder / "facts.json").read_text())
    assert facts["step"] == step
    assert facts["what"] in str(caught.value)
    names = set(map(train_split().name, range(len(train_split()))))
    assert len(facts["items"]) == len(images)
    assert set(facts["items"]) <= names
    assert all(name in str(caught.value) for name in facts["items"][:4])

    assert not screen.warnings
    assert not unreadable(checkpoints())
    assert last_step() == (step - 1) // EVERY * EVERY
    assert not RUN.exists()
    return screen.begun[1]


def train_split():
    params = load(Path("params.yaml"))
    return open_store(Path("data/demo/cityscapes"), parameters=params.datasets["cityscapes"].content()).split("train")


def only_work():
    """The one work folder of the train stage."""
    (work,) = (path for path in Path(".work/demo-train").iterdir() if path.is_dir())
    return work


def stop_at(cases, poison, whole):
    done = 0
    for step, kind in cases:
        change, what = HARM[kind]
        poison.update(step=step, change=change)
        assert stops(step, what, whole) == done
        done = last_step()
    poison.clear()
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (STEPS, done)
    assert outcome() == whole.outcome


def test_each_kind_of_harm_stops_the_run_and_without_it_the_run_goes_on(rung, whole, poison):
    stop_at(
        [(1, "loss nan"), (9, "loss inf"), (11, "loss -inf"), (19, "gradient nan"), (40, "gradient inf")], poison, whole
    )


@pytest.mark.slow
def test_thirty_harmed_steps_each_stop_the_run_and_without_them_it_ends_as_if_untouched(rung, whole, poison):
    cases = sorted((step, kind) for kind, steps in STEPS_OF_HARM.items() for step in steps)
    assert len(cases) == 30
    stop_at(cases, poison, whole)


def test_the_command_says_it_in_one_line_and_ends_with_3(rung, poison, mmseg):
    poison.update(step=7, change=HARM["loss nan"][0])
    done = mmseg("train", "--variant", "mbconv", "--seed", 0)
    assert done.code == 3
    assert "the loss is nan at step 7 (" in done.one_error()
