"""The process and its machine: seeds, device, threads, signals, one process a folder. Imports torch when asked."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mmseg_cli.errors import Interrupted, MmsegError

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_passed: dict[str, int] = {}  # how often each failpoint was reached


def seed_everything(seed: int) -> None:
    """Seed torch's generators, which draw the initial weights. Data sampling has its own, counter-based one."""
    import torch

    torch.manual_seed(seed)


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one, else CPU) or any torch device name.

    Raises:
        MmsegError: the device is not on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MmsegError("runtime.device", f"{name!r} is not usable here ({error})", "set it to auto or cpu") from error
    return device


def limit_threads(threads: int | None) -> None:
    """Let torch use `threads` CPU threads; None leaves its own choice, one per core."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def die_with_parent() -> None:
    """Under DVC, ask the kernel for SIGTERM when DVC dies: a killed `dvc repro` must leave no trainer behind."""
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the request
            os.kill(os.getpid(), signal.SIGTERM)


class StopRequest:
    """Set by SIGTERM, SIGINT or SIGUSR1; the training loop looks at it between two steps."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def _note(self, signal_number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None and signal_number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self.signal_number = signal_number

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Replace the handlers of the three signals inside the block."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_set(self, where: Path, what: str) -> None:
        """Raise Interrupted (exit code 128 + n) if a signal has come."""
        if self.signal_number is not None:
            name = signal.Signals(self.signal_number).name
            raise Interrupted(where, self.signal_number, f"stopped by {name}, {what}")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` inside the block; the lock goes with the process, however that ends.

    Raises:
        MmsegError: another process, which the message names, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise MmsegError(
                folder, f"process {holder} is already at work on this run", "wait for it to end, or stop it"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def failpoint(name: str) -> None:
    """Kill this process here if MMSEG_FAILPOINT is `name`, or `name:N` at the N-th call. For tests of interruption."""
    wanted = os.environ.get("MMSEG_FAILPOINT")
    if wanted is None:
        return
    point, _, count = wanted.rpartition(":") if wanted.rsplit(":", 1)[-1].isdigit() else (wanted, "", "1")
    if point == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)


def code_hash(parts: Sequence[str]) -> str:
    """SHA-256 over the package's source files named by `parts`, files or folders such as `models/unet.py`.

    Part of the identity of what that code makes.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for part in sorted(parts):
        path = package / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(package)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def processor() -> str:
    """The processor's model name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, str | int]:
    """What a reader needs to judge a timing: interpreter, library versions, processor and cores."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {"python": platform.python_version(), **versions, "processor": processor(), "cores": os.cpu_count() or 1}
