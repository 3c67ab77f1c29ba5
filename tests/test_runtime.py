from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from mmseg_cli import runtime

# Maps are taken and given back as in a training step; how often the system had to hand out a page is printed.
TRAIN = """
import resource, sys
import torch
from mmseg_cli import runtime
from mmseg_cli.models.unet import build_network
from mmseg_cli.training.optim import build_optimizer

if sys.argv[1] == "keep":
    runtime.keep_freed_memory()
    runtime.keep_freed_memory()
torch.manual_seed(0)
network = build_network(
    task="segmentation", num_classes=3, block="mmbconv", layout="uniform", width=8, depth=1, levels=2, stem_stride=2,
    expansion=2.0, se_ratio=0.25, norm="batch", activation="silu",
)
optimizer = build_optimizer(network, name="sgd", learning_rate=0.1, weight_decay=0.0)
losses = []
for step in range(12):
    if step == 6:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    loss = network(torch.ones(2, 3, 256, 256)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, *losses)
"""


def trained(how):
    done = subprocess.run([sys.executable, "-c", TRAIN, how], capture_output=True, text=True, check=True, timeout=120)
    faults, *losses = done.stdout.split()
    return int(faults), losses


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_is_kept_for_the_next_step():
    """The numbers are the same; the system is hardly asked for pages any more."""
    faults, losses = trained("keep")
    plain_faults, plain_losses = trained("plain")
    assert losses == plain_losses
    assert len(losses) == 12
    assert faults < plain_faults / 4


def test_algorithms_are_tried_for_training_and_not_for_images_of_many_sizes(monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", False)
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: None)
    runtime.prepare_training(threads=None)
    assert cudnn.benchmark
    with pytest.raises(ZeroDivisionError), runtime.algorithms_untried():
        assert not cudnn.benchmark
        raise ZeroDivisionError
    assert cudnn.benchmark
    called = []
    monkeypatch.setattr(runtime, "be_deterministic", lambda: called.append("deterministic"))
    monkeypatch.setattr(cudnn, "benchmark", False)
    runtime.prepare_training(threads=None, deterministic=True)
    assert called == ["deterministic"]
    assert not cudnn.benchmark
