from __future__ import annotations

import json
import shutil

import pytest
import torch
import trees
from test_optim import BODY

from mmseg_cli.models.unet import build_network
from mmseg_cli.training import checkpoint
from mmseg_cli.training.optim import build_optimizer


def parts(name="adamw", seed=0):
    torch.manual_seed(seed)
    network = build_network(task="segmentation", num_classes=3, **BODY)
    return network, build_optimizer(network, name=name, learning_rate=0.01, weight_decay=0.1)


def step(network, optimizer, number):
    generator = torch.Generator().manual_seed(number)
    network.train()
    loss = network(torch.randn(2, 3, 16, 16, generator=generator)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def work(tmp_path):
    """Checkpoints after steps 1, 2 and 3, of which the last two are kept; and the state after each."""
    network, optimizer = parts()
    states = {}
    for number in (1, 2, 3):
        step(network, optimizer, number)
        checkpoint.save(tmp_path, step=number, network=network, optimizer=optimizer)
        states[number] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return tmp_path, states


def resumed(folder, **of):
    network, optimizer = parts(seed=9, **of)
    warnings: list[str] = []
    number = checkpoint.resume(folder, network=network, optimizer=optimizer, warn=warnings.append)
    return number, network, optimizer, warnings


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_going_on_is_as_if_nothing_had_happened(tmp_path, name):
    network, optimizer = parts(name)
    for number in (1, 2):
        step(network, optimizer, number)
    checkpoint.save(tmp_path, step=2, network=network, optimizer=optimizer)
    number, again, again_optimizer, warnings = resumed(tmp_path, name=name)
    assert (number, warnings) == (2, [])
    same(again.state_dict(), network.state_dict())
    for number in (3, 4):
        step(network, optimizer, number)
        step(again, again_optimizer, number)
    same(again.state_dict(), network.state_dict())


def test_the_last_two_are_kept(work):
    folder, states = work
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000002", "step-000000003"]
    number, network, _, warnings = resumed(folder)
    assert (number, warnings) == (3, [])
    same(network.state_dict(), states[3])


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_one_is_named_and_the_one_before_is_used(work, name, damage):
    folder, states = work
    newest = folder / "step-000000003"
    if name == "manifest.json" and damage is flip:  # a changed digit of a hash
        manifest = json.loads((newest / name).read_text())
        manifest["sha256"]["optimizer.pt"] = "0" * 64
        (newest / name).write_text(json.dumps(manifest))
    elif name == "manifest.json" and damage is cut:
        (newest / name).write_text("{")
    else:
        damage(newest / name)
    number, network, _, warnings = resumed(folder)
    assert number == 2
    assert len(warnings) == 1
    assert f"checkpoint {newest} cannot be used" in warnings[0]
    assert "\n" not in warnings[0]
    same(network.state_dict(), states[2])


@pytest.mark.parametrize("content", ["[]", '{"step": 3, "sha256": []}', '{"step": 3}', "3", "null"])
def test_a_manifest_of_another_form_is_damage_too(work, content):
    folder, _ = work
    (folder / "step-000000003" / "manifest.json").write_text(content)
    number, _, _, warnings = resumed(folder)
    assert (number, len(warnings)) == (2, 1)


def test_nothing_but_damage_starts_again_aloud(work):
    folder, _ = work
    for path in folder.iterdir():
        (path / "manifest.json").unlink()
    network, optimizer = parts(seed=9)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    warnings: list[str] = []
    assert checkpoint.resume(folder, network=network, optimizer=optimizer, warn=warnings.append) == 0
    assert len(warnings) == 2
    same(network.state_dict(), first)


def test_an_empty_folder_starts_at_nothing(tmp_path):
    assert resumed(tmp_path)[0] == 0
    assert resumed(tmp_path / "absent")[0] == 0


def test_state_with_code_in_it_is_not_run(work):
    """A pickle that would make a file when loaded, with hashes that fit."""
    folder, _ = work
    newest = folder / "step-000000003"

    class Evil:
        def __reduce__(self):
            return (open, (str(folder / "made"), "w"))

    torch.save({"state": Evil()}, newest / "optimizer.pt")
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["sha256"]["optimizer.pt"] = checkpoint.sha256(newest / "optimizer.pt")
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert resumed(folder)[0] == 2
    assert not (folder / "made").exists()

    shutil.rmtree(folder / "step-000000002")
    network, optimizer = parts(seed=9)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert checkpoint.resume(folder, network=network, optimizer=optimizer, warn=lambda text: None) == 0
    same(network.state_dict(), first)  # no half of it was taken


def test_a_half_written_one_is_not_seen(work):
    folder, _ = work
    shutil.copytree(folder / "step-000000003", folder / ".step-000000004.abc")
    assert resumed(folder)[0] == 3


def test_the_same_state_gives_the_same_bytes(tmp_path):
    network, optimizer = parts()
    step(network, optimizer, 1)
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, step=1, network=network, optimizer=optimizer)
    assert trees.contents(tmp_path / "a") == trees.contents(tmp_path / "b")
