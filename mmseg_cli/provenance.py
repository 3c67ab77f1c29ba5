"""Where a result comes from: the commit and what differs from it, the libraries, the machine, and when.

What is said here decides no number. It is kept beside results, for whoever wants to know how one came about.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmseg_cli import runtime
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import read_json, sha256, write_json

PROVENANCE = "provenance.json"
SESSIONS = "sessions.json"
# What decides a result; reports, locks and documents may change while a pipeline runs.
CODE = ("mmseg_cli", "blocks", "params.yaml", "pipelines/*/params.yaml", "dvc.yaml", "pyproject.toml")


def code_state(root: Path) -> dict[str, str | None]:
    """The commit of a project, and a digest of what its code and parameters differ from it by.

    Returns:
        `commit`, None where it is not under git, and `changes`: None where nothing differs.
    """
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "changes": None}
    plain = ("--no-color", "--no-ext-diff", "--no-textconv")  # whatever its user has set
    changed = _git(root, "diff", *plain, "HEAD", "--", *CODE)
    if changed is None:
        return {"commit": commit.strip(), "changes": "cannot be told"}
    for name in (_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE) or "").split("\0"):
        changed += f"{name} {_digest(root / name)}\n" if name else ""
    return {"commit": commit.strip(), "changes": hashlib.sha256(changed.encode()).hexdigest() if changed else None}


def _digest(file: Path) -> str:
    """SHA-256 of a file; of what is none, such as a broken link or a repository inside, only that it is there."""
    try:
        return sha256(file)
    except OSError:
        return "cannot be read"


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def about(root: Path, *, device: str, processes: int = 1) -> dict[str, Any]:
    """The state of the code, the environment and the machine of a piece of work that begins now."""
    torch = sys.modules.get("torch")  # whoever computes with it has it by now
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        **code_state(root),
        "environment": runtime.environment(),
        "threads": None if torch is None else torch.get_num_threads(),
        "device": device,
        "accelerator": accelerator(device),
        "processes": processes,
    }


def accelerator(device: str) -> str | None:
    """The name of a GPU; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    name: str = torch.cuda.get_device_name(device)
    return name


def _read(file: Path) -> list[dict[str, Any]]:
    """The sittings before this one; a damaged file costs no training."""
    try:
        found = read_json(file, todo="remove it")
    except MmsegError:
        return []
    whole = isinstance(found, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(key), int) for key in ("from_step", "to_step"))
        for one in found
    )
    return found if whole else []


class Sessions:
    """The sittings in which a run was trained, kept in its work folder: one, unless it was interrupted.

    Args:
        work: the run's work folder.
        start: the step that this sitting goes on from; 0 forgets all before.
        about: see `about`.
    """

    def __init__(self, work: Path, *, start: int, about: dict[str, Any]) -> None:
        self._file = work / SESSIONS
        before = _read(self._file) if start else []
        self.sessions: list[dict[str, Any]] = [*before, {**about, "from_step": start, "to_step": start, "seconds": 0.0}]
        self._begun = time.perf_counter()

    def reached(self, step: int) -> None:
        """A checkpoint was saved after `step`."""
        self.sessions[-1] |= {"to_step": step, "seconds": round(time.perf_counter() - self._begun, 3)}
        write_json(self._file, self.sessions)

    def done(self) -> list[dict[str, Any]]:
        """The sittings that did any step."""
        return [one for one in self.sessions if one["to_step"] > one["from_step"]]


def sittings(training: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The sittings of a run's training, the first rung first, each with the name of its rung.

    Args:
        training: the content of PROVENANCE; None where it was not kept.
    """
    if training is None:
        return
    yield from sittings(training.get("before"))
    for one in training["sessions"]:
        yield {"stage": training["stage"], **one}


def seconds(*trainings: dict[str, Any] | None) -> float | None:
    """What trainings took, in seconds of a device; a rung that they share counts once. None where it was not kept."""
    found: list[dict[str, Any]] = []
    for training in trainings:
        own = list(sittings(training))
        if not own:
            return None
        found += [one for one in own if one not in found]
    return sum(float(one["seconds"]) * int(one.get("processes", 1)) for one in found)
