"""Damaged checkpoints: each is noticed, named, and left out for the one before."""

from __future__ import annotations

import random
import shutil

import pytest
import torch

from mmseg_cli.training import checkpoint

DEFINITION = {"train.learning_rate": 0.1, "train.crop": [32, 32], "seed": 0}
FILES = ("model.safetensors", "training.safetensors", "training.json", "manifest.json")
FLIPS, TRUNCATIONS = 500, 50


def state(number):
    """The weights and all else after a step, with tensors in the places that training has."""
    generator = torch.Generator().manual_seed(number)
    network = {f"level{i}.weight": torch.randn(8, 4, 3, 3, generator=generator) for i in range(3)}
    average = {name: tensor * 0.5 for name, tensor in network.items()}
    optimizer = {"state": {0: {"step": torch.tensor(float(number)), "exp_avg": network["level0.weight"] * 0.1}}}
    return network, {"optimizer": optimizer, "ema": average, "lookahead": None, "best": [number, 0.5], "world": 1}


def save(work, number):
    network, training = state(number)
    checkpoint.save_checkpoint(
        work, step=number, definition=DEFINITION, network=network, training=training, best_step=None
    )
    return work / f"step-{number:09d}"


class Damaged:
    """Checkpoints after steps 10 and 20, of which the newest can be damaged and mended."""

    def __init__(self, work):
        self.work = work
        self.before, self.newest = save(work, 10), save(work, 20)
        self.whole = {name: (self.newest / name).read_bytes() for name in FILES}

    def mend(self):
        for path in self.newest.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, content in self.whole.items():
            (self.newest / name).write_bytes(content)

    def load(self):
        used, warnings = [], []
        step = checkpoint.load_checkpoint(self.work, definition=DEFINITION, try_on=used.append, warn=warnings.append)
        return step, used, warnings

    def noticed(self):
        """Whether the one before was used, in one line that names both."""
        step, used, warnings = self.load()
        if step == 20:
            return False
        aside = self.newest.with_name(f"damaged-{self.newest.name}")
        aside.rename(self.newest)  # where the next damage is done
        assert (step, used[-1].step, len(warnings)) == (10, 10, 1)
        assert str(self.newest) in warnings[0]
        assert warnings[0].endswith(f"going on from {self.before.name}")
        assert "\n" not in warnings[0]
        assert all(torch.equal(used[-1].network[name], tensor) for name, tensor in state(10)[0].items())
        return True


@pytest.fixture
def damaged(tmp_path):
    pair = Damaged(tmp_path / "work")
    assert pair.load()[0] == 20
    return pair


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_one_of_500_flipped_bits_is_noticed(damaged):
    chance = random.Random("flips")
    unnoticed = []
    for number in range(FLIPS):
        name = FILES[number % len(FILES)]
        bit = chance.randrange(8 * len(damaged.whole[name]))
        (damaged.newest / name).write_bytes(flipped(damaged.whole[name], bit))
        if not damaged.noticed():
            unnoticed.append((name, bit))
        (damaged.newest / name).write_bytes(damaged.whole[name])
    assert unnoticed == []
    assert damaged.load()[0] == 20


@pytest.mark.slow
def test_every_single_bit_of_the_manifest_counts(damaged):
    """Nothing vouches for the manifest itself; but no flipped bit leaves it a manifest with the same content."""
    path, content = damaged.newest / "manifest.json", damaged.whole["manifest.json"]
    unnoticed = []
    for bit in range(8 * len(content)):
        path.write_bytes(flipped(content, bit))
        if not damaged.noticed():
            unnoticed.append((bit, content[bit // 8 : bit // 8 + 1]))
    assert unnoticed == []


def test_every_one_of_50_truncations_is_noticed(damaged):
    chance = random.Random("truncations")
    lengths = [(name, length) for name in FILES for length in (0, 1, len(damaged.whole[name]) - 1)]
    while len(lengths) < TRUNCATIONS:
        name = FILES[len(lengths) % len(FILES)]
        lengths.append((name, chance.randrange(len(damaged.whole[name]))))
    unnoticed = []
    for name, length in lengths:
        (damaged.newest / name).write_bytes(damaged.whole[name][:length])
        if not damaged.noticed():
            unnoticed.append((name, len(damaged.whole[name]) - length))
        (damaged.newest / name).write_bytes(damaged.whole[name])
    # The manifest without its last line break has all its content, and is used: nothing is lost with that byte.
    assert [case for case in unnoticed if case != ("manifest.json", 1)] == []


def another_run(folder, work):
    """The weights of a run with another definition, under the right name."""
    network, training = state(99)
    checkpoint.save_checkpoint(
        work.parent / "other",
        step=20,
        definition={**DEFINITION, "seed": 1},
        network=network,
        training=training,
        best_step=None,
    )
    shutil.copy(work.parent / "other" / "step-000000020" / "model.safetensors", folder)


WRONG = {
    "the weights of another run": another_run,
    "a folder": lambda folder, work: (
        (folder / "model.safetensors").unlink(),
        (folder / "model.safetensors").mkdir(),
    ),
    "a link to the right content": lambda folder, work: (
        shutil.move(folder / "model.safetensors", work.parent / "elsewhere"),
        (folder / "model.safetensors").symlink_to(work.parent / "elsewhere"),
    ),
    "an empty file": lambda folder, work: (folder / "training.safetensors").write_bytes(b""),
    "a text": lambda folder, work: (folder / "training.json").write_text("see the other folder\n"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_every_wrong_file_is_noticed(damaged, change):
    change(damaged.newest, damaged.work)
    assert damaged.noticed()
    damaged.mend()
    assert damaged.load()[0] == 20


def test_a_whole_checkpoint_of_another_step_under_this_name_is_noticed(damaged):
    shutil.rmtree(damaged.newest)
    shutil.copytree(damaged.before, damaged.newest)
    assert damaged.noticed()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_noticed(damaged, name):
    (damaged.newest / name).unlink()
    (damaged.newest / name).mkdir()
    assert damaged.noticed()
