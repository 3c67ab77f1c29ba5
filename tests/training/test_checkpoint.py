from __future__ import annotations

import copy
import errno
import json
import os
import shutil

import pytest
import torch
import trees
from hypothesis import given
from hypothesis import strategies as st

from mmseg_cli.errors import MmsegError, ResourceError
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.unet import build_network
from mmseg_cli.training import checkpoint
from mmseg_cli.training.averaging import Ema, Lookahead
from mmseg_cli.training.optim import build_optimizer
from mmseg_cli.training.state import State
from tests.networks import NETWORK

DEFINITION = {"train.learning_rate": 0.1, "train.crop": [32, 32], "seed": 0}
FILES = ["model.safetensors", "training.safetensors", "training.json", "manifest.json"]


def parts(*, name="adamw", seed=0, lookahead=True, ema=True, precision="float32", deep=False):
    torch.manual_seed(seed)
    network = build_network(task="segmentation", num_classes=3, **{**NETWORK, "levels": 3})
    if deep:
        network = DeepSupervision(network)
    return State(
        network=network,
        optimizer=build_optimizer(network, name=name, learning_rate=0.01, weight_decay=0.1),
        scaler=torch.amp.GradScaler("cpu", enabled=precision == "float16", growth_interval=2),
        lookahead=Lookahead(network, k=2, alpha=0.5) if lookahead else None,
        ema=Ema(network, decay=0.9) if ema else None,
    )


def step(state, number):
    generator = torch.Generator().manual_seed(number)
    state.network.train()
    output = state.network(torch.randn(2, 3, 16, 16, generator=generator))
    loss = sum(part.square().mean() for part in (output if isinstance(output, list) else [output]))
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.follow(step=number)


def everything(state):
    """All of a state, flat: names to tensors and plain values."""
    flat: dict[str, object] = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}.{key}", item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                walk(f"{name}.{index}", item)
        else:
            flat[name] = value.detach().clone() if isinstance(value, torch.Tensor) else value

    walk("network", dict(state.network.state_dict()))
    walk("training", state.training())
    return flat


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert equal, name


def save(work, state, number, **changes):
    checkpoint.save_checkpoint(
        work,
        step=number,
        **{
            "definition": DEFINITION,
            "network": state.network.state_dict(),
            "training": state.training(),
            "best_step": None,
            **changes,
        },
    )


def resume(work, state, definition=DEFINITION):
    warnings: list[str] = []
    number = checkpoint.load_checkpoint(work, definition=definition, try_on=state.take_over, warn=warnings.append)
    return number, warnings


@pytest.fixture
def work(tmp_path):
    """Checkpoints after steps 1, 2 and 3, of which the last two are kept; and the state after each."""
    state, states = parts(), {}
    for number in (1, 2, 3):
        step(state, number)
        save(tmp_path, state, number)
        states[number] = everything(state)
    return tmp_path, states


RECIPES = {
    "adamw, both averages": {},
    "sgd, lookahead": {"name": "sgd", "ema": False},
    "adamw, ema, auxiliary heads": {"lookahead": False, "deep": True},
    "sgd, float16": {"name": "sgd", "lookahead": False, "ema": False, "precision": "float16"},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_going_on_is_as_if_nothing_had_happened(tmp_path, recipe):
    state = parts(**recipe)
    for number in (1, 2, 3):
        step(state, number)
    save(tmp_path, state, 3)
    again = parts(seed=9, **recipe)
    assert resume(tmp_path, again) == (3, [])
    same(everything(again), everything(state))
    for number in (4, 5):
        step(state, number)
        step(again, number)
    same(everything(again), everything(state))


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, marks=pytest.mark.slow if number else (), id=name)
        for number, (name, recipe) in enumerate(RECIPES.items())
    ],
)
def test_every_part_of_the_state_is_needed(tmp_path, recipe):
    """Whatever is not taken over from a checkpoint changes what follows: so nothing is saved in vain, or by chance."""
    state = parts(**recipe)
    for number in (1, 2, 3):
        step(state, number)
    save(tmp_path, state, 3)
    saved: list[checkpoint.Saved] = []
    checkpoint.load_checkpoint(tmp_path, definition=DEFINITION, try_on=saved.append, warn=print)
    step(state, 4)
    expected = everything(state)

    def ends_otherwise(change):
        network, training = dict(saved[0].network), dict(saved[0].training)
        again = parts(seed=9, **recipe)
        change(network, training, again)
        again.take_over(checkpoint.Saved(3, network, training))
        step(again, 4)
        try:
            same(everything(again), expected)
        except AssertionError:
            return True
        return False

    assert not ends_otherwise(lambda network, training, again: None)
    for name, tensor in saved[0].network.items():
        assert ends_otherwise(lambda network, t, a, one={name: tensor + 1}: network.update(one)), name
    active = [key for key, value in saved[0].training.items() if value]
    assert "optimizer" in active
    for key in active:
        assert ends_otherwise(lambda n, training, again, key=key: training.update({key: again.training()[key]})), key
    for key in saved[0].training["optimizer"]["state"][0]:  # exp_avg, exp_avg_sq, step; momentum_buffer

        def without(network, training, again, key=key):
            optimizer = copy.deepcopy(training["optimizer"])
            for values in optimizer["state"].values():
                values[key] = values[key] + 1
            training["optimizer"] = optimizer

        assert ends_otherwise(without), key


def test_the_last_two_and_the_best_are_kept(tmp_path):
    state = parts()
    for number in range(1, 7):
        step(state, number)
        save(tmp_path, state, number, best_step=2 if number >= 2 else None)
    names = ["step-000000002", "step-000000005", "step-000000006"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    checkpoint.keep_last(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == names[-1:]


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_one_is_named_and_the_one_before_is_used(work, name, damage):
    folder, states = work
    newest = folder / "step-000000003"
    damage(newest / name)
    state = parts(seed=9)
    number, warnings = resume(folder, state)
    assert number == 2
    assert sorted(path.name for path in folder.iterdir()) == ["damaged-step-000000003", "step-000000002"]
    assert len(warnings) == 1
    assert f"checkpoint {newest} cannot be used" in warnings[0]
    assert warnings[0].endswith("going on from step-000000002")
    assert "\n" not in warnings[0]
    same(everything(state), states[2])


@pytest.mark.parametrize("content", ["[]", '{"step": 3, "sha256": []}', '{"step": 3}', "3", "null", "[" * 100_000])
def test_a_manifest_of_another_form_is_damage_too(work, content):
    folder, _ = work
    (folder / "step-000000003" / "manifest.json").write_text(content)
    number, warnings = resume(folder, parts(seed=9))
    assert (number, len(warnings)) == (2, 1)


def test_nothing_but_damage_starts_again_aloud(work):
    folder, _ = work
    for path in folder.iterdir():
        (path / "manifest.json").unlink()
    state = parts(seed=9)
    first = everything(state)
    number, warnings = resume(folder, state)
    assert (number, len(warnings)) == (0, 2)
    assert all("starting from the beginning" in line for line in warnings)
    same(everything(state), first)


def test_an_empty_folder_starts_at_nothing(tmp_path):
    assert resume(tmp_path, parts()) == (0, [])
    assert resume(tmp_path / "absent", parts()) == (0, [])


def test_a_run_that_is_defined_otherwise_is_refused_with_the_keys(work):
    folder, _ = work
    before = trees.contents(folder)
    other = {**DEFINITION, "train.learning_rate": 0.2, "train.new": 1}
    state = parts(seed=9)
    first = everything(state)
    with pytest.raises(MmsegError, match=r"is of a run with other train\.learning_rate, train\.new: ") as caught:
        resume(folder, state, other)
    assert caught.value.exit_code == 2
    assert trees.contents(folder) == before
    same(everything(state), first)


def test_one_that_does_not_fit_is_left_out_for_one_that_does(tmp_path):
    state = parts()
    step(state, 1)
    save(tmp_path, state, 1)
    other = parts(deep=True)
    step(other, 2)
    save(tmp_path, other, 2)
    number, warnings = resume(tmp_path, parts(seed=9))
    assert number == 1
    assert "does not fit" in warnings[0]


PASSING = {
    "full": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"), RuntimeError),
    "narrow": (MemoryError(), MemoryError),
    "silent": (OSError(errno.EIO, os.strerror(errno.EIO)), ResourceError),
    "stale": (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), ResourceError),
}


@pytest.mark.parametrize(
    ("where", "fault"), [*(("read", fault) for fault in PASSING), ("taken over", "full"), ("taken over", "narrow")]
)
def test_what_the_machine_lacks_now_costs_no_checkpoint(work, monkeypatch, where, fault):
    folder, _ = work
    before = trees.contents(folder)
    raised, expected = PASSING[fault]

    def fail(*_):
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoint, "sha256", fail) if where == "read" else (State, "take_over", fail)))
        with pytest.raises(expected):
            resume(folder, parts(seed=9))
    assert trees.contents(folder) == before
    assert resume(folder, parts(seed=9))[0] == 3


@pytest.mark.parametrize("recipe", [{"name": "sgd"}, {"lookahead": False}, {"deep": True}, {"precision": "float16"}])
def test_a_checkpoint_that_does_not_fit_is_left_out_whole(tmp_path, recipe):
    """As from another version of the program: nothing of it may be taken over by halves."""
    other = parts(**recipe)
    step(other, 1)
    save(tmp_path, other, 1)
    state = parts(seed=9)
    step(state, 5)
    before, files = everything(state), trees.contents(tmp_path)
    if recipe == {"precision": "float16"}:
        assert resume(tmp_path, state)[0] == 1  # a scale is not used where there is no scaler
        return
    with pytest.raises(MmsegError, match="step-000000001: does not fit .*: go back to the versions"):
        resume(tmp_path, state)
    same(everything(state), before)
    assert trees.contents(tmp_path) == files


@pytest.mark.parametrize(
    "harm",
    [
        lambda optimizer: optimizer["state"].pop(0),
        lambda optimizer: optimizer["state"][0].update(exp_avg=torch.zeros(3)),
        lambda optimizer: optimizer["param_groups"][0].update(betas="x"),
    ],
)
def test_optimizer_state_with_holes_does_not_fit(tmp_path, harm):
    state = parts()
    step(state, 1)
    training = state.training()
    harm(training["optimizer"])
    save(tmp_path, state, 1, training=training)
    with pytest.raises(MmsegError, match=r"does not fit \(its optimizer is"):
        resume(tmp_path, parts(seed=9))


def test_a_half_written_one_is_not_seen(work):
    folder, _ = work
    shutil.copytree(folder / "step-000000003", folder / ".step-000000004.abc")
    assert resume(folder, parts(seed=9))[0] == 3


def test_the_same_state_gives_the_same_bytes(tmp_path):
    state = parts()
    step(state, 1)
    for name in ("a", "b"):
        save(tmp_path / name, state, 1)
    assert trees.contents(tmp_path / "a") == trees.contents(tmp_path / "b")


def test_tensors_come_back_in_the_layout_of_their_parameters(tmp_path):
    state = parts()
    state.network.to(memory_format=torch.channels_last)
    step(state, 1)
    save(tmp_path, state, 1)
    again = parts(seed=9)
    again.network.to(memory_format=torch.channels_last)
    resume(tmp_path, again)
    for parameter, values in again.optimizer.state.items():
        assert values["exp_avg"].stride() == parameter.stride()


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(value=nested)
def test_any_plain_state_comes_back_as_it_was(value):
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(checkpoint._taken_apart(value, tensors))
    back = checkpoint._put_together(json.loads(text), tensors)
    assert back == value
    assert repr(back) == repr(value)  # types too


def test_more_than_could_be_read_is_not_saved(tmp_path):
    state = parts()
    with pytest.raises(MmsegError, match="bytes to describe"):
        save(tmp_path, state, 1, training={"x": "y" * (checkpoint.LARGEST_JSON + 1)})
    assert not list(tmp_path.iterdir())


def test_what_is_not_plain_is_refused():
    with pytest.raises(TypeError, match="set cannot be saved"):
        checkpoint._taken_apart({"a": {1, 2}}, {})
