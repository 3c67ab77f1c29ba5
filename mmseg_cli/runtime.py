"""The process and its machine: seeds, device, threads, signals, one process a folder. Imports torch when asked."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from mmseg_cli.errors import Held, Interrupted, MmsegError, ResourceError, ran_out

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SENT_TO_ALL = (*STOPPING, signal.SIGHUP)  # by a terminal, a launcher or a scheduler, to every process of a group
_passed: dict[str, int] = {}  # how often each failpoint was reached


def seed_everything(seed: int) -> None:
    """Seed torch's generators, which draw the initial weights. Data sampling has its own, counter-based one."""
    import torch

    torch.manual_seed(seed)


@dataclass(frozen=True)
class Place:
    """Which of several processes this is, as torchrun and `mmseg train --devices` tell it.

    Attributes:
        rank: among all.
        world: how many there are.
        local_rank: among those of this machine.
        local_world: how many this machine has.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int


def place() -> Place | None:
    """This process's place among several; None for one that was started alone.

    Raises:
        MmsegError: the environment says it by halves.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        return None
    try:
        return Place(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError):
        raise MmsegError(
            ", ".join(names), "not all are numbers in the environment", "start it with torchrun or --devices"
        ) from None


def pick_device(name: str, *, local_rank: int = 0, where: str = "runtime.device") -> torch.device:
    """`auto` (CUDA where there is one, else CPU) or any torch device name.

    Args:
        where: the key or option that names it.
        local_rank: of several processes of this machine each takes the GPU of its number.

    Raises:
        MmsegError: the device is not on this machine.
        ResourceError: it is full.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if name == "cuda":
            device = torch.device("cuda", local_rank)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if ran_out(error):
            todo = "end what else uses it (nvidia-smi shows it), or choose another with CUDA_VISIBLE_DEVICES"
            raise ResourceError(where, f"{name!r} has no memory left", todo) from error
        why = str(error).split("\n")[0].partition(" device type at start of device string")[0]
        raise MmsegError(where, f"{name!r} is not usable here ({why})", "set it to auto or cpu") from error
    return device


def limit_threads(threads: int | None) -> None:
    """Let torch use `threads` CPU threads; None is one per core, shared out among the processes of this machine."""
    import torch

    where = place()
    if threads is None and where is not None and where.local_world > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // where.local_world) if sys.platform == "linux" else 1
    if threads is not None:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next step to take, where it would give it back to the system.

    The maps of a training step are freed and taken again hundreds of times a second; every page that was given back is
    cleared and mapped anew by the kernel. The memory is the process's until it ends; glibc only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
            mallopt(parameter, value)


def be_deterministic() -> None:
    """Take algorithms that give equal bits every time on one machine type and thread count, or raise where there is
    none."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def prepare_training(*, threads: int | None, deterministic: bool = False) -> None:
    """What training does to its process before it begins, and so does all that times training.

    On NVIDIA's GPUs cuDNN times its convolution algorithms at each new shape and takes the fastest, as crops are of one
    size. See also `limit_threads` and `keep_freed_memory`.

    Args:
        deterministic: see `be_deterministic`; nothing is timed then, as another time may win.
    """
    import torch

    if deterministic:
        be_deterministic()
    else:
        torch.backends.cudnn.benchmark = True
    limit_threads(threads)
    keep_freed_memory()


@contextmanager
def switched(owner: object, name: str, value: bool) -> Iterator[None]:
    """Inside the block the switch `name` of `owner`, such as of one of torch's backends, is at `value`."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def algorithms_untried() -> AbstractContextManager[None]:
    """Inside the block cuDNN chooses its algorithms without timing them: for images of many sizes."""
    import torch

    return switched(torch.backends.cudnn, "benchmark", False)


@contextmanager
def deaf_to(*signals: int) -> Iterator[None]:
    """Inside the block these signals do nothing to this process; for its main thread."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def signal_at_parents_death(number: int) -> None:
    """Ask the kernel for a signal when the process that started this one dies; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def die_with_parent() -> None:
    """Under DVC or a launcher, ask the kernel for SIGTERM when it dies: a killed `dvc repro` must leave no trainer
    behind."""
    if sys.platform == "linux" and not {"DVC_STAGE", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ):
        parent = os.getppid()
        signal_at_parents_death(signal.SIGTERM)
        if os.getppid() != parent:  # it died before the request
            os.kill(os.getpid(), signal.SIGTERM)


def serve_parent(_number: int = 0) -> None:
    """To be called in a process that only reads data for this one: it ends with it, and with nothing else.

    A signal to a whole group (Ctrl-C, a launcher, a scheduler) is the trainer's business, which goes on for a step; and
    a reader that outlived a killed trainer would keep its lock.
    """
    for number in SENT_TO_ALL:
        signal.signal(number, signal.SIG_IGN)
    signal_at_parents_death(signal.SIGKILL)


class StopRequest:
    """Set by SIGTERM, SIGINT or SIGUSR1; the training loop looks at it between two steps."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[signal.Signals, Any] = {}  # the handlers that are put back

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and signal_number == signal.SIGINT:  # the second Ctrl-C means now
            before = self._before[signal.SIGINT]
            if callable(before):
                before(signal_number, frame)
            raise KeyboardInterrupt
        self.signal_number = signal_number

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Replace the handlers of the three signals inside the block."""
        self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)


def interrupted(where: Path, signal_number: int, what: str) -> Interrupted:
    """The error (exit code 128 + n) that ends a command after a signal; the caller raises it."""
    return Interrupted(where, signal_number, f"stopped by {signal.Signals(signal_number).name}, {what}")


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold the file `lock` inside the block; the lock goes with the process, however that ends.

    Raises:
        Held: another process, which the message names, holds it.
        MmsegError: the file cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        opened = lock.open("a+")
    except OSError as error:
        raise MmsegError(lock, f"cannot be written ({error.strerror})", "check its permissions") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = f"process {_holder(file)} is already at work on this run"
            raise Held(lock, what, "wait for it to end, or stop it") from None
        except OSError as error:
            todo = "mount it with flock, or work in another folder"
            raise MmsegError(lock, f"its file system cannot lock ({error.strerror})", todo) from error
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()} {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def only_one_after(lock: Path, *, seconds: float) -> Iterator[None]:
    """`only_one`, after waiting so long for others to let go.

    Raises:
        Held: they did not; or as `only_one`.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(only_one(lock))
                break
            except Held:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield


def is_held(lock: Path) -> bool:
    """Whether a process is in the block of `only_one(lock)`."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _holder(file: IO[str]) -> str:
    """The process that a lock file names: it may have taken the lock and have yet to write its name."""
    for _ in range(20):
        file.seek(0)
        name, _, machine = file.read().strip().partition(" ")
        if machine not in ("", platform.node()):
            return f"{name} on {machine}"
        if name.isdigit() and Path(f"/proc/{name}").exists():
            return name
        time.sleep(0.05)
    return name or "unknown"


def failpoint(name: str, *, at: int | None = None) -> None:
    """Do harm here if MMSEG_FAILPOINT names this point; for tests of interruption, inert when unset.

    It reads `name`, `name:N` or either with `=action`. N is `at` where the point has a number, else the N-th call; the
    action is `kill` (SIGKILL, what is meant where none is named), `term`, `int`, `usr1` (signals), `full` (ENOSPC) or
    `memory` (MemoryError).
    """
    wanted = os.environ.get("MMSEG_FAILPOINT")
    if wanted is None:
        return
    wanted, _, action = wanted.partition("=")
    point, _, count = wanted.rpartition(":") if wanted.rsplit(":", 1)[-1].isdigit() else (wanted, "", "")
    if point != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if (at if at is not None else _passed[name]) != int(count or (at if at is not None else 1)):
        return
    match action or "kill":
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "memory":
            raise MemoryError
        case "kill" | "term" | "int" | "usr1" as number:
            os.kill(os.getpid(), signal.Signals[f"SIG{number.upper()}"])
        case other:
            raise MmsegError("MMSEG_FAILPOINT", f"unknown action {other!r}", "kill, term, int, usr1, full or memory")


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
    from importlib.metadata import version  # a quarter of the start of a process that needs no more than this module

    versions = {name: version(name) for name in ("torch", "numpy")}
    return {"python": platform.python_version(), **versions, "processor": processor(), "cores": os.cpu_count() or 1}
