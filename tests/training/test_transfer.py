from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmseg_cli.errors import MmsegError
from mmseg_cli.models.unet import build_network
from mmseg_cli.training.transfer import transfer
from tests.networks import NETWORK

FILE = Path("runs/before/model.safetensors")


def network(task="segmentation", classes=3, **changes):
    return build_network(task=task, num_classes=classes, **(NETWORK | changes))


def state(of):
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


@pytest.mark.parametrize(("task", "classes"), [("classification", 7), ("segmentation", 7), ("segmentation", 3)])
def test_the_body_arrives_and_the_head_stays_new(task, classes):
    """Even where its size agrees (3 classes): their meaning does not."""
    before, after = network(task, classes), network()
    first = state(after)
    arrived = transfer(after, before.state_dict(), FILE)
    for name, tensor in after.state_dict().items():
        source = before.state_dict() if name.startswith("body.") else first
        assert torch.equal(tensor, source[name]), name
    assert arrived.body_share == 1
    assert arrived.kept == sorted(name for name in first if name.startswith("body."))
    assert arrived.new == sorted(name for name in first if not name.startswith("body."))
    assert arrived.dropped == sorted(name for name in before.state_dict() if not name.startswith("body."))
    assert arrived.new
    assert arrived.dropped
    assert arrived.as_json() == {
        "kept": len(arrived.kept),
        "dropped": arrived.dropped,
        "new": arrived.new,
        "body_share": 1.0,
    }
    assert "100.0 % of the body" in arrived.line()


def test_a_little_that_does_not_fit_is_listed():
    before, after = network(width=32), network(width=32)
    tensors = state(before)
    name = next(name for name in tensors if name.startswith("body.") and tensors[name].ndim == 1)
    tensors[name] = torch.zeros(1)
    tensors["body.extra"] = torch.zeros(2)
    arrived = transfer(after, tensors, FILE)
    assert 0.95 < arrived.body_share < 1
    assert name in arrived.dropped
    assert name in arrived.new
    assert "body.extra" in arrived.dropped


@pytest.mark.parametrize("changes", [{"width": 8}, {"block": "residual"}, {"levels": 1}, {"block": "mbconv"}])
def test_another_architecture_is_refused_and_changes_nothing(changes):
    after = network()
    first = state(after)
    with pytest.raises(MmsegError, match=r"of another architecture \(only .* % of the body's weights fit\)"):
        transfer(after, network(**changes).state_dict(), FILE)
    assert all(torch.equal(tensor, first[name]) for name, tensor in after.state_dict().items())
