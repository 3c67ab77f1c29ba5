"""DVC, which is called as a program: run a pipeline, and read its graph and what of it is out of date."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.errors import INTERRUPTED, Interrupted, MmsegError
from mmseg_cli.paths import Paths

LAST_SIGNAL = 64  # DVC has codes of its own above: 253 outside a repository, 255 for a failed stage
BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked by|Unable to read RWLock-file")
BUSY_SECONDS = 60.0
_NODE = re.compile(r'^"([^"]+)";$')
_EDGE = re.compile(r'^"([^"]+)" -> "([^"]+)";$')


def program(name: str) -> str:
    """A program beside this interpreter, or on PATH.

    Raises:
        MmsegError: there is none.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise MmsegError(name, "is not installed", f"run `pip install {name}`")
    return found


def patient() -> list[str]:
    """The beginning of a call of DVC that waits while another call holds the project's lock; DVC gives up after 3 s."""
    return [program("dvc"), "--wait-for-lock"]


def environment() -> dict[str, str]:
    """This process's, with the programs beside this interpreter on PATH: stages call `mmseg`."""
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}


def require_outside_stage() -> None:
    """Raise MmsegError inside a DVC stage: DVC called by DVC waits for itself."""
    if "DVC_STAGE" in os.environ:
        raise MmsegError("mmseg ablate", "called inside a DVC stage", "use `mmseg ablate --no-run` there")


def repro(paths: Paths) -> None:
    """Run `dvc repro` on the preset's pipeline; its output goes to the screen.

    Raises:
        MmsegError: called inside a DVC stage, DVC is missing, or a stage failed.
        Interrupted: Ctrl-C.
    """
    require_outside_stage()
    pipeline = paths.pipeline.relative_to(paths.root)
    command = [program("dvc"), "repro", str(pipeline)]
    with subprocess.Popen(command, cwd=paths.root, env=environment()) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # DVC and its stage got it as well; let them save and end
            process.wait()
            raise Interrupted(pipeline, signal.SIGINT, "stopped by SIGINT") from None
        except SystemExit:  # SIGTERM came to us alone; where the kernel can, DVC's end ends its stage, which saves
            process.terminate()
            raise
    if code < 0:
        raise Interrupted(pipeline, -code, f"dvc was ended by signal {-code}")
    if is_interruption(code):
        raise Interrupted(pipeline, code - INTERRUPTED, "dvc was interrupted")
    if code:
        raise MmsegError(pipeline, f"dvc repro ended with exit code {code}", "see the lines above, then run this again")


@dataclass(frozen=True)
class Graph:
    """The stages of a preset as DVC knows them.

    Attributes:
        before: for each stage, by its address as `dvc repro` takes it, those that it directly comes after.
        changed: stages that DVC would run now; what comes after them is not among these for that alone.
    """

    before: dict[str, frozenset[str]]
    changed: frozenset[str]

    def to_run(self) -> dict[str, frozenset[str]]:
        """The stages that have changed or come after one that has, each with those of them that it comes after."""
        wanted: dict[str, bool] = {}

        def is_wanted(stage: str) -> bool:
            if stage not in wanted:
                wanted[stage] = stage in self.changed or any(map(is_wanted, self.before[stage]))
            return wanted[stage]

        return {
            stage: frozenset(one for one in before if is_wanted(one))
            for stage, before in self.before.items()
            if is_wanted(stage)
        }


def graph(paths: Paths) -> Graph:
    """The preset's graph and state, from DVC itself.

    Raises:
        MmsegError: DVC cannot say.
    """
    pipeline = str(paths.pipeline.relative_to(paths.root))
    changed = frozenset(json.loads(_said(paths.root, ["status", "--json", pipeline]) or "{}"))
    before: dict[str, set[str]] = {}
    for line in _said(paths.root, ["dag", "--dot", pipeline]).splitlines():
        if node := _NODE.match(line.strip()):
            before.setdefault(node[1], set())
        elif edge := _EDGE.match(line.strip()):
            before.setdefault(edge[2], set()).add(edge[1])
    return Graph({stage: frozenset(others) for stage, others in before.items()}, changed)


def _said(root: Path, arguments: Sequence[str]) -> str:
    """What a call of DVC printed.

    Raises:
        MmsegError: it failed; with DVC's own words.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        command = [*patient(), *arguments]
        done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
        if not (done.returncode and BUSY.search(done.stderr)) or time.monotonic() > deadline:
            break
        time.sleep(1.0)  # stages of a grid that was just stopped may still save
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        what = lines[-1].removeprefix("ERROR: ").rstrip(". ")
        raise MmsegError(f"dvc {' '.join(arguments)}", what, "mend that and run this again")
    return done.stdout


def is_interruption(code: int) -> bool:
    """Whether an exit code says that a signal ended a command."""
    return INTERRUPTED < code <= INTERRUPTED + LAST_SIGNAL


def name_of(stage: str) -> str:
    """A stage's name without the file it is defined in, as in `train@mmbconv-0`."""
    return stage.rpartition(":")[2]


def kind_of(stage: str) -> str:
    """What kind of stage it is: its name up to the `@`."""
    return name_of(stage).partition("@")[0]


def run_of(stage: str) -> str | None:
    """The run of the grid that a stage works on, as `mmseg_cli.paths.run_name` writes it; None for the others."""
    variant, dash, seed = name_of(stage).partition("@")[2].rpartition("-")
    return f"{variant}-s{seed}" if dash and seed.isdigit() else None
