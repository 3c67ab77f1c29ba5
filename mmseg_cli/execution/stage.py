"""One stage on the machine that runs it: `python -m mmseg_cli.execution.stage`, which every engine starts.

It calls `dvc repro -s STAGE`, passes signals on so that a training saves, and ends with the stage's own exit code,
which DVC hides. Whatever ends this process, or whoever started it, ends the stage too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from mmseg_cli.errors import INTERRUPTED
from mmseg_cli.execution import dvc
from mmseg_cli.files import write_json
from mmseg_cli.runtime import SENT_TO_ALL, signal_at_parents_death

LOST = 75  # EX_TEMPFAIL of sysexits.h: DVC was busy for all of BUSY_SECONDS
BUSY_SECONDS = 600.0
PAUSE_SECONDS = (0.2, 1.0)  # before DVC is asked again, at random so that many do not ask at once
AT_WORK = "is already at work on this run"  # one that was cut off saves, or somebody trains it by hand, for hours
AT_WORK_SECONDS = 5.0
EXITED = re.compile(r"failed to run: .* exited with (-?\d+)\s*$", re.MULTILINE | re.DOTALL)
ERROR = "mmseg: error: "


def command(root: Path, stage: str, *, log: Path, told: Path | None = None) -> list[str]:
    """The command line of this module, for the process that is to start it and no other: it ends with that one.

    Args:
        root: the project's folder.
        stage: its address.
        log: the file to append what is printed to.
        told: a file to say in where and when it began.
    """
    more = [] if told is None else ["--told", str(told)]
    return [*waiting(root), "--stage", stage, "--log", str(log), *more]


def waiting(root: Path) -> list[str]:
    """The same for one that is started before it is known what for: `order` is what it reads, or nothing."""
    return [sys.executable, "-m", "mmseg_cli.execution.stage", str(root), "--parent", str(os.getpid())]


def order(stage: str, *, log: Path, environment: Mapping[str, str]) -> bytes:
    """What a process that waits is to be given as its input: the arguments of `command`, and variables to set."""
    return json.dumps({"stage": stage, "log": str(log), "environment": dict(environment)}).encode()


def said(text: str) -> str:
    """The line that says why a stage failed, of what it and DVC printed; empty where nothing was."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for start in (ERROR, "ERROR: "):  # the stage's own words first, then DVC's
        own = [line.removeprefix(start) for line in lines if line.startswith(start)]
        if own:
            return own[-1]
    return lines[-1] if lines else ""


def why(log: Path, *, start: int, code: int) -> str:
    """A line on a stage that failed, from what its log holds from byte `start` on; empty where it ended well."""
    if code == 0:
        return ""
    try:
        text = log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        text = ""
    return said(text) or f"ended with exit code {code}"


def code_of(text: str, code: int) -> int:
    """The stage's exit code: by DVC's words, as its own exit code is the same for every stage that failed."""
    exited = EXITED.search(text)
    found = int(exited[1]) if exited else code
    return INTERRUPTED - found if found < 0 else found


def as_child() -> None:
    """In a process of ours before its program starts: as a shell would start it, whatever an engine did to ours.

    SIGUSR2 is submitit's own warning, which Slurm may send to every process of a job.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in SENT_TO_ALL:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal_at_parents_death(signal.SIGTERM)


class Passed:
    """The first signal that this process got; it is passed to the stage as SIGINT, which DVC leaves to the stage.

    A second one means now: the stage is killed.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.signal_number is None:
            self.signal_number = signal_number
            self.again()
        elif self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def again(self) -> None:
        """Pass on what came, if anything did."""
        if self.signal_number is not None and self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)


def run(root: Path, stage: str, *, log: Path) -> int:
    """Run a stage to its end and return its exit code; 128 + n after a signal, LOST where DVC had no time for it."""
    passed = Passed()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in SENT_TO_ALL:
        signal.signal(number, passed)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + BUSY_SECONDS
    with log.open("ab") as file:
        while True:
            start = file.seek(0, os.SEEK_END)
            code = _repro(root, stage, file=file.fileno(), passed=passed)
            text = log.read_bytes()[start:].decode(errors="replace")
            if passed.signal_number is not None and code:
                return INTERRUPTED + passed.signal_number
            busy = dvc.BUSY.search(text) and not EXITED.search(text)
            if code == 0 or not (busy or AT_WORK in text):
                return code_of(text, code)
            if busy and time.monotonic() > deadline:
                return LOST
            time.sleep(random.uniform(*PAUSE_SECONDS) if busy else AT_WORK_SECONDS)


def _repro(root: Path, stage: str, *, file: int, passed: Passed) -> int:
    """DVC's exit code."""
    if passed.signal_number is not None:
        return INTERRUPTED + passed.signal_number
    passed.process = subprocess.Popen(
        [*dvc.patient(), "repro", "--single-item", stage],
        cwd=root,
        env=dvc.environment(),
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a group of its own, so that a signal can be passed to all of it
        preexec_fn=as_child,
    )
    passed.again()  # one may have come in between
    return passed.process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser(description="one stage of a grid, for `mmseg ablate --executor`")
    parser.add_argument("root", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--stage", help="read from the input if it is not here, and the log likewise")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--told", type=Path)
    given = parser.parse_args(arguments)
    signal_at_parents_death(signal.SIGTERM)
    if os.getppid() != given.parent:  # it died before we asked
        return INTERRUPTED + signal.SIGTERM
    if given.stage is None:
        text = sys.stdin.read()
        if not text:  # there was nothing to do
            return 0
        ordered = json.loads(text)
        os.environ.update(ordered["environment"])
        given.stage, given.log = ordered["stage"], Path(ordered["log"])
    if given.told is not None:
        write_json(given.told, {"machine": platform.node(), "pid": os.getpid(), "began": time.time()})
    return run(given.root, given.stage, log=given.log)


if __name__ == "__main__":
    sys.exit(main())
