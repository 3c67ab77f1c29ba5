from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from mmseg_cli.data import loader
from mmseg_cli.training import parts
from mmseg_cli.training.state import State
from tests.chaos import harm
from tests.conftest import edit

collect_ignore_glob = [] if Path("/proc/self").exists() else ["test_*.py"]  # they look for processes and memory there


@dataclass
class Whole:
    """What an uninterrupted run gives: SHA-256 and history, and by step the weights after it and its batch."""

    outcome: tuple[str, str] = ("", "")
    weights: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    batches: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@pytest.fixture(scope="session")
def _laid_out(tmp_path_factory, _prepared):
    """A project whose train stage runs alone, with everything that resumes; and its uninterrupted run."""
    root = shutil.copytree(_prepared, tmp_path_factory.mktemp("chaos") / "project")
    edit(root / "params.yaml", harm.set_everything)
    whole = Whole()
    real_state, real_follow, real_steps = parts.state, State.follow, loader.steps_loader

    def state(*arguments, **named):
        made = real_state(*arguments, **named)
        whole.weights[0] = copy_of(made)
        return made

    def steps(crops, *, start, stop, workers, pinned=False):
        loaded = real_steps(crops, start=start, stop=stop, workers=workers, pinned=pinned)
        for number, batch in enumerate(loaded, start=start + 1):
            whole.batches[number] = batch
            yield batch

    def copy_of(state):
        return {name: tensor.clone() for name, tensor in state.network.state_dict().items()}

    def follow(own, *, step, broken=None):
        real_follow(own, step=step, broken=broken)
        whole.weights[step] = copy_of(own)

    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        harm.stage("pretrain_imagenet")
        harm.stage("pretrain_mapillary")
        patch.setattr(parts, "state", state)
        patch.setattr(loader, "steps_loader", steps)
        patch.setattr(State, "follow", follow)
        harm.stage()
        whole.outcome = harm.outcome()
        harm.forget()
    return root, whole


@pytest.fixture
def whole(_laid_out) -> Whole:
    """The uninterrupted run of `rung`."""
    return _laid_out[1]


@pytest.fixture
def rung(_laid_out, tmp_path, monkeypatch):
    """The project as the current folder, before its train stage."""
    root = shutil.copytree(_laid_out[0], tmp_path / "project")
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> harm.ChaosProject:
    """The same with DVC and code of its own. A test that uses it forgets what it has trained."""
    return harm.ChaosProject(tmp_path_factory.mktemp("chaos") / "pipeline")
