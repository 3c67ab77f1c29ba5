"""A disk that is full, anywhere in saving: the checkpoints before stay, and one line names the path and the bytes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trees

from mmseg_cli import runtime
from mmseg_cli.errors import ResourceError
from mmseg_cli.training import checkpoint
from tests.chaos.harm import COMMAND, Start, checkpoints, last_step, outcome, stage, unreadable
from tests.pipeline.tiny import REPOSITORY

DEFINITION = {"seed": 0}
CASES = 20
PAGE = 4096


def save(work, number):
    generator = torch.Generator().manual_seed(number)
    network = {name: torch.randn(50, 100, generator=generator) for name in "abc"}
    training = {"optimizer": {name: tensor * 2 for name, tensor in network.items()}, "best": None}
    checkpoint.save_checkpoint(
        work, step=number, definition=DEFINITION, network=network, training=training, best_step=None
    )


def load(work):
    warnings = []
    step = checkpoint.load_checkpoint(work, definition=DEFINITION, try_on=lambda saved: None, warn=warnings.append)
    return step, warnings


def visible(work):
    """All content under names that count."""
    return {name: content for name, content in trees.contents(work).items() if not str(name).startswith(".")}


@contextlib.contextmanager
def mounted(place, size):
    """A small file system in memory."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def free(place):
    numbers = os.statvfs(place)
    return numbers.f_bavail * numbers.f_frsize


@contextlib.contextmanager
def filled(place, *, leaving):
    """Take all space but `leaving` bytes."""
    filler = place / ".filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, (free(place) - leaving) // PAGE * PAGE))
    try:
        yield
    finally:
        filler.unlink()


def names_place_and_bytes(text, place):
    assert "\n" not in text
    assert str(place) in text
    assert "no space left" in text or "is larger than the limit on file sizes" in text
    assert re.search(r"\d[\d,]* bytes", text), text


def test_saving_on_a_full_disk_leaves_what_was_there_each_of_20_times(tmp_path):
    with mounted(tmp_path / "small", "2m") as place:
        work = place / "work"
        before = free(place)
        save(work, 1)
        needed = before - free(place)
        save(work, 2)
        kept = visible(work)
        texts = []
        for case in range(CASES):
            with filled(place, leaving=needed * case // CASES):
                with pytest.raises(ResourceError) as caught:
                    save(work, 3)
                assert caught.value.exit_code == 4
                texts.append(str(caught.value))
            assert visible(work) == kept
            assert load(work) == (2, [])
            assert sorted(path.name for path in work.iterdir()) == ["step-000000001", "step-000000002"]
        save(work, 3)
        assert load(work) == (3, [])
    for text in texts:
        names_place_and_bytes(text, place)


LIMITED = """
import json, resource, sys
from pathlib import Path
from mmseg_cli import runtime
from mmseg_cli.errors import ResourceError
from tests.chaos.test_full_disk import CASES, load, save, visible
work = Path(sys.argv[1])
save(work, 1), save(work, 2)
kept = visible(work)
largest = max(map(len, kept.values()))
smallest = min(map(len, kept.values()))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
found = []
for case in range(CASES):
    limit = case * smallest // 4 if case < 4 else smallest + (case - 4) * (largest - smallest) // (CASES - 4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save(work, 3)
        code, text = 0, "saved"
    except ResourceError as error:
        code, text = error.exit_code, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    found.append((limit, code, text, visible(work) == kept, load(work)))
save(work, 3)
print(json.dumps({"cases": found, "after": load(work)}))
"""


def test_a_limit_on_the_size_of_files_leaves_what_was_there_each_of_20_times(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "work"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    result = json.loads(done.stdout)
    assert len(result["cases"]) == CASES
    for limit, code, text, untouched, loaded in result["cases"]:
        assert (code, untouched, loaded) == (4, True, [2, []]), (limit, text)
    assert result["after"] == [3, []]
    for _, _, text, _, _ in result["cases"]:
        names_place_and_bytes(text, tmp_path / "work")


def test_the_command_on_a_full_disk_ends_with_4_and_goes_on_when_there_is_room(rung, whole, mmseg, monkeypatch):
    with mounted(rung / ".work" / "demo-train", "8m") as place:
        with monkeypatch.context() as patch:
            patch.setenv("MMSEG_FAILPOINT", "step:8=term")
            assert mmseg(*COMMAND).code == 143
        kept = {path.name: trees.contents(path) for path in checkpoints()}
        assert list(kept) == ["step-000000005", "step-000000008"]
        (work,) = (path for path in place.iterdir() if path.is_dir())
        with filled(place, leaving=64 * 2**10):
            done = mmseg(*COMMAND)
        assert done.code == 4
        line = done.one_error()
        assert {path.name: trees.contents(path) for path in checkpoints()} == kept
        assert not unreadable(checkpoints())
        assert mmseg(*COMMAND).code == 0
        assert outcome() == whole.outcome
    names_place_and_bytes(line, work)


@pytest.mark.slow
def test_the_command_under_a_limit_on_the_size_of_files_ends_with_4(rung, whole):
    Start(rung, failpoint="step:8=term").wait()
    kept = {path.name: trees.contents(path) for path in checkpoints()}
    limit = 20_000  # the history fits, the weights do not
    code, text = Start(rung, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))).wait()
    assert code == 4, text
    errors = [line for line in text.splitlines() if line.startswith("mmseg: error: ")]
    assert len(errors) == 1
    assert "Traceback" not in text
    assert {path.name: trees.contents(path) for path in checkpoints()} == kept
    assert not unreadable(checkpoints())
    stage()
    assert outcome() == whole.outcome
    names_place_and_bytes(errors[0], Path(".work").resolve())


@pytest.mark.slow
@pytest.mark.parametrize("point", ["save:between_files:4", "save:before_manifest:2", "save:before_replace:2"])
def test_the_command_without_room_in_saving_ends_with_4(rung, whole, mmseg, monkeypatch, point):
    runtime._passed.clear()
    with monkeypatch.context() as patch:
        patch.setenv("MMSEG_FAILPOINT", f"{point}=full")
        done = mmseg(*COMMAND)
    assert done.code == 4
    done.one_error()
    assert last_step() == 5
    stage()
    assert outcome() == whole.outcome
