from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
from pathlib import Path

import pytest
import trees
import typer

from mmseg_cli import paths as places
from mmseg_cli.cli.app import app
from mmseg_cli.params import load
from tests import evidence as made


def walk(command, path=()):
    """Every command with its words."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


TREE = dict(walk(typer.main.get_command(app)))
COMMANDS = [path for path in TREE if path]


def test_the_commands_are_there():
    assert {path[0] for path in COMMANDS} >= {"generate", "prepare", "pretrain", "train", "evaluate", "cost", "ablate"}


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_every_command_explains_itself(mmseg, path):
    for flag in ("--help", "-h"):
        done = mmseg(*path, flag)
        assert (done.code, done.err) == (0, "")
        assert re.search(rf"Usage: .*{' '.join(path)} \[OPTIONS\]", done.out)
    command = TREE[path]
    assert command.help
    assert len(command.help) > 20
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{parameter.name} of {path} has no help"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_that_parses(mmseg, path):
    command = TREE[path]
    examples = re.findall(r"^  (mmseg .+)$", command.epilog or "", flags=re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example)[1:]
        assert tuple(words[: len(path)]) == path
        command.make_context(path[-1], words[len(path) :])  # raises for an option or a choice that is not there
    shown = [line.strip() for line in mmseg(*path, "--help").out.splitlines()]
    assert set(examples) <= set(shown)  # each in a line of its own, to be copied


def test_the_command_alone_shows_its_help(mmseg):
    assert "Usage: " in mmseg().err


def test_help_lists_commands_with_whole_sentences(mmseg):
    listed = re.sub(r"\s+", " ", mmseg("--help").out.partition("Commands:")[2])
    for path, command in TREE.items():
        if len(path) == 1:
            sentence = re.match(r".*?(?=\. |\.?$)", " ".join(command.help.partition("\n\n")[0].split()))
            assert f" {path[0]} {sentence[0]}" in listed


def test_the_version_is_that_of_the_package(mmseg):
    done = mmseg("--version")
    assert (done.code, done.out) == (0, f"mmseg {importlib.metadata.version('mmseg-cli')}\n")


@pytest.mark.parametrize(
    "args",
    [
        ["nothing"],
        ["train", "--sede", "1"],
        ["train", "--seed", "-1"],
        ["train", "--seed", "one"],
        ["prepare"],
        ["prepare", "kitti"],
        ["pretrain", "cityscapes"],
        ["generate", "cityscapes", "--out", "x", "--height", "5"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_writes_nothing(project, mmseg, args):
    before = trees.snapshot(project)
    done = mmseg(*args)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert done.err
    assert trees.snapshot(project) == before


def poison(folder, *names):
    """Variables with which importing what is named fails."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def poisoned(tmp_path):
    """For a machine without torch."""
    return poison(tmp_path / "poison", "torch", "torchvision", "mlflow")


def test_the_poison_works(prepared, poisoned, mmseg_process):
    done = mmseg_process("pretrain", "imagenet", env=poisoned)
    assert done.code == 1
    assert "torch was imported" in done.err


@pytest.mark.parametrize(
    "args", [["--help"], ["train", "--help"], ["cost", "--help"], ["ablate", "--help"]], ids=" ".join
)
def test_help_imports_nothing_large(tmp_path, mmseg_process, args):
    names = ("torch", "torchvision", "mlflow", "rich", "numpy")
    done = mmseg_process(*args, env=poison(tmp_path / "poison", *names))
    assert (done.code, done.err) == (0, "")
    assert "Usage: " in done.out


def test_data_and_tables_work_without_torch(project, poisoned, raw, mmseg_process):
    """On a machine that prepares data, or one that only reads the evidence."""
    done = mmseg_process(
        "generate", "cityscapes", "--out", "streets", "--train", 1, "--val", 1, "--height", 32, env=poisoned
    )
    assert done.code == 0, done.err
    done = mmseg_process("prepare", "cityscapes", "--root", "streets", env=poisoned)
    assert done.code == 0, done.err
    assert (project / "data" / "cityscapes" / "manifest.json").is_file()
    done = mmseg_process("prepare", "camvid", "--root", raw["imagenet"], env=poisoned)
    assert done.code == 2
    assert "use `mmseg prepare imagenet`" in done.one_error()
    paths = places.find(preset="demo")
    made.make(paths, load(paths.params))
    done = mmseg_process("ablate", "--no-run", env=poisoned)
    assert done.code == 0, done.err
    assert Path("reports/demo/ablation.md").is_file()
    assert "mmbconv" in done.out
    done = mmseg_process("train", "--variant", "mmbcnov", env=poisoned)
    assert done.code == 2
    assert "did you mean mmbconv?" in done.one_error()
