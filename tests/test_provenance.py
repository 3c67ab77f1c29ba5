"""Where a result comes from: the state of the code under git or without it, and the sittings of a run."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from mmseg_cli import provenance
from mmseg_cli.provenance import Sessions, about, code_state


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "core.autocrlf=false"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A project under git with one commit."""
    root = tmp_path / "project"
    for name in ("mmseg_cli/loop.py", "params.yaml", "pipelines/small/params.yaml", "reports/table.md", "dvc.lock"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}\n")
    (root / ".gitignore").write_text("__pycache__/\n")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def changes(root: Path) -> str | None:
    state = code_state(root)
    assert state["commit"] == git(root, "rev-parse", "HEAD").strip()
    return state["changes"]


def test_a_clean_project_has_a_commit_and_no_changes(repository: Path) -> None:
    assert code_state(repository) == {"commit": git(repository, "rev-parse", "HEAD").strip(), "changes": None}


@pytest.mark.parametrize("name", ["mmseg_cli/loop.py", "params.yaml", "pipelines/small/params.yaml"])
@pytest.mark.parametrize("staged", [False, True])
def test_a_change_of_code_or_parameters_has_a_digest_of_its_own(repository: Path, name: str, staged: bool) -> None:
    found = []
    for content in ("a\n", "b\n"):
        (repository / name).write_text(content)
        if staged:
            git(repository, "add", name)
        found.append(changes(repository))
    assert None not in found
    assert len(set(found)) == 2
    (repository / name).write_text(f"{name}\n")
    if staged:
        git(repository, "add", name)
    assert changes(repository) is None


def test_a_file_that_is_gone_is_a_change(repository: Path) -> None:
    (repository / "mmseg_cli" / "loop.py").unlink()
    assert changes(repository) is not None


@pytest.mark.parametrize("name", ["mmseg_cli/new.py", "blocks/mine.py", "blocks/deep/er/mine.py", "blocks/my block.py"])
def test_code_that_git_does_not_know_is_a_change(repository: Path, name: str) -> None:
    file = repository / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x = 1\n")
    first = changes(repository)
    file.write_text("x = 2\n")
    second = changes(repository)
    assert None not in (first, second)
    assert first != second
    git(repository, "add", name)
    git(repository, "commit", "--quiet", "--message", "second")
    assert changes(repository) is None


@pytest.mark.parametrize("name", ["reports/table.md", "dvc.lock", "notes.txt", "mmseg_cli/__pycache__/loop.pyc"])
def test_what_decides_no_result_is_no_change(repository: Path, name: str) -> None:
    """A pipeline writes reports and its lock while it runs."""
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text("other\n")
    assert changes(repository) is None


@pytest.mark.parametrize("name", ["blocks/blöck.py", 'blocks/"quoted".py', "blocks/cloned/mine.py", "blocks/broken.py"])
def test_code_of_a_strange_name_or_kind_stops_nothing(repository: Path, name: str) -> None:
    file = repository / name
    file.parent.mkdir(parents=True)
    if name == "blocks/broken.py":
        file.symlink_to("nowhere.py")
    else:
        file.write_text("x = 1\n")
    if name == "blocks/cloned/mine.py":
        git(file.parent, "init", "--quiet")
    assert changes(repository) is not None


def test_a_project_below_the_top_of_a_repository_is_its_own(repository: Path) -> None:
    """Its own files count, those of its neighbours do not."""
    inner = repository / "inner"
    (inner / "blocks").mkdir(parents=True)
    (inner / "params.yaml").write_text("x\n")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "inner")
    (repository / "params.yaml").write_text("other\n")
    assert changes(repository) is not None
    assert changes(inner) is None
    (inner / "blocks" / "mine.py").write_text("x\n")
    assert changes(inner) is not None


def test_without_git_there_is_neither(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"commit": None, "changes": None}
    assert code_state(tmp_path) == nothing  # no repository
    git(tmp_path, "init", "--quiet")
    assert code_state(tmp_path) == nothing  # no commit yet
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_state(repository) == nothing  # no git


def test_a_git_that_does_not_answer_is_no_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: object, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(provenance.subprocess, "run", hang)
    assert code_state(repository) == {"commit": None, "changes": None}


def test_about_says_what_a_reader_needs(repository: Path) -> None:
    told = about(repository, device="cpu", processes=2)
    assert {"python", "torch", "numpy", "processor", "cores"} <= set(told["environment"])
    assert told["commit"] and told["changes"] is None
    assert (told["device"], told["accelerator"], told["processes"]) == ("cpu", None, 2)
    json.dumps(told)


# ------------------------------------------------------------------------------------------------------------ sittings

ABOUT = {"commit": "0" * 40, "device": "cpu"}


def steps(sessions: Sessions) -> list[tuple[int, int]]:
    return [(one["from_step"], one["to_step"]) for one in sessions.done()]


def test_sittings_are_told_one_after_the_other(tmp_path: Path) -> None:
    first = Sessions(tmp_path, start=0, about=ABOUT)
    assert first.done() == []
    assert list(tmp_path.iterdir()) == []  # nothing is written before a step is saved
    first.reached(2)
    first.reached(5)
    assert steps(first) == [(0, 5)]
    second = Sessions(tmp_path, start=5, about=ABOUT | {"device": "cuda"})
    assert steps(second) == [(0, 5)]
    second.reached(9)
    assert steps(second) == [(0, 5), (5, 9)]
    assert [one["device"] for one in second.done()] == ["cpu", "cuda"]
    assert all(one["seconds"] >= 0 and one["commit"] == "0" * 40 for one in second.done())
    assert steps(Sessions(tmp_path, start=9, about=ABOUT)) == [(0, 5), (5, 9)]


def test_a_run_from_the_start_has_nothing_before_it(tmp_path: Path) -> None:
    Sessions(tmp_path, start=0, about=ABOUT).reached(4)
    again = Sessions(tmp_path, start=0, about=ABOUT)
    again.reached(3)
    assert steps(again) == [(0, 3)]
    assert steps(Sessions(tmp_path, start=3, about=ABOUT)) == [(0, 3)]


def test_a_sitting_that_saved_nothing_is_not_told(tmp_path: Path) -> None:
    Sessions(tmp_path, start=0, about=ABOUT).reached(4)
    Sessions(tmp_path, start=4, about=ABOUT)  # killed at once
    third = Sessions(tmp_path, start=4, about=ABOUT)
    third.reached(6)
    assert steps(third) == [(0, 4), (4, 6)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"null",
        b"5",
        b"[1]",
        b"[[]]",
        b"[{}]",
        b'[{"from_step": 0}]',
        b"\xff\xfe",
        b"\x00" * 100,
        *[b'[{"from_step": null, "to_step": 4}]', b'[{"from_step": 0, "to_step": "4"}]'],
    ],
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / provenance.SESSIONS).write_bytes(content)
    sessions = Sessions(tmp_path, start=4, about=ABOUT)
    sessions.reached(6)
    assert steps(sessions) == [(4, 6)]
    assert steps(Sessions(tmp_path, start=6, about=ABOUT)) == [(4, 6)]


def test_the_digest_of_changes_is_of_what_git_shows(repository: Path) -> None:
    """So that whoever has the commit and a patch can say whether this is the one."""
    (repository / "params.yaml").write_text("other\n")
    patch = git(repository, "diff", "HEAD")
    assert changes(repository) == hashlib.sha256(patch.encode()).hexdigest()
