"""Mirror a run's parameters and metrics to MLflow without slowing or endangering the run.

Our own files are the record; MLflow is a copy for browsing. So everything that can be slow or fail (importing MLflow,
creating its database, a server that is down) happens in a child process that reads JSON lines from a pipe. A thread
would share the interpreter lock, the import locks and the exit of the command with a library of two thousand modules;
a child process shares nothing, starts in parallel, can hang without anybody waiting for it, and sees the end of the
pipe when the command is killed, so that the run does not stay RUNNING for ever.

This is the command's side; :mod:`mmseg_cli.mirror` is the child.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, Self

from mmseg_cli import errors

Status = Literal["FINISHED", "FAILED", "KILLED"]

CLOSE_SECONDS: Final = 5.0  # the most that `Tracker.close` waits
QUEUE_POINTS: Final = 10_000  # calls of `log` that wait for a mirror that does not read; more are dropped and counted

# What the child goes by. It is sent with the first line, because the child sees no change made in this process.
FLUSH_SECONDS: Final = 2.0  # how often the child writes while training goes on
RETRY_SECONDS: Final = (1.0, 5.0, 10.0, 20.0, 40.0, 60.0)  # pauses after failures in a row; the last one stays
SOON_SECONDS: Final = 3.0  # a failure younger than this is not tried again while the command waits
LINGER_SECONDS: Final = 20  # the child tries that long after the command closed it or died, then ends itself
BUFFER_VALUES: Final = 100_000  # values (about 25 MB) that wait for a server that is away; more are dropped and counted

CHECK_ADDRESS: Final = "check that address"

# The child starts with the parent's sys.path, sent through the pipe: it needs no installed package, and nothing
# that may hold a password (the address of the server) appears in the list of processes.
_CHILD: Final = (
    "import sys, json; config = json.loads(sys.stdin.buffer.readline()); sys.path[:] = config['sys_path']; "
    "from mmseg_cli.mirror import serve; serve(config)"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When and how much the child writes, from the constants above as they are when it starts; times in seconds."""

    flush_seconds: float = field(default_factory=lambda: FLUSH_SECONDS)
    retry_seconds: Sequence[float] = field(default_factory=lambda: RETRY_SECONDS)
    soon_seconds: float = field(default_factory=lambda: SOON_SECONDS)
    linger_seconds: int = field(default_factory=lambda: LINGER_SECONDS)
    buffer_values: int = field(default_factory=lambda: BUFFER_VALUES)


class Tracker:
    """One MLflow run, written by a child process. Get one from :func:`start`.

    No method raises or blocks, except that :meth:`close` waits up to five seconds. As a context manager the run ends
    FINISHED, FAILED after an exception, or KILLED after ``KeyboardInterrupt``, ``SystemExit`` or
    :class:`errors.Interrupted`.
    A command that dies without closing leaves a run marked KILLED.

    Args:
        process: the child, its first line already sent, or None for a tracker that does nothing.
        where: the tracking address as shown to the user, without credentials.
        warn: called at most once, with one line, if the mirror is incomplete.
    """

    def __init__(self, process: subprocess.Popen[bytes] | None, where: str, warn: Callable[[str], None]) -> None:
        self._process = process
        self._where = where
        self._warn = warn
        self._lock = threading.RLock()  # re-entrant: a signal handler may close while `log` runs
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._gone = False
        self._closed = process is None
        self._pid = os.getpid()

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record metrics (name to number) at an optimizer step; a value that is no number is dropped and counted."""
        if self._closed or self._gone or os.getpid() != self._pid:
            return
        try:
            point = {str(name): float(value) for name, value in metrics.items()}
            at = int(step)
            if not -(2**63) <= at < 2**63:
                raise ValueError("no step of a database")
            line = encode(["point", at, now_ms(), point])
        except Exception:
            self._dropped += 1
            return
        with self._lock:
            if len(self._waiting) >= QUEUE_POINTS:
                self._dropped += 1
            else:
                self._waiting.append(line)
            self._pump()

    def close(self, *, status: Status = "FINISHED", summary: Mapping[str, float] = MappingProxyType({})) -> None:
        """End the run, wait at most five seconds for the mirror, and warn once if it is incomplete.

        Args:
            status: how the run ended, in MLflow's words.
            summary: final metrics, recorded at the last step that was logged.
        """
        process = self._process
        if self._closed or process is None or os.getpid() != self._pid:
            return
        self._closed = True
        problem: str | None
        todo = CHECK_ADDRESS
        try:
            final = {}
            for name, value in summary.items():
                try:
                    final[str(name)] = float(value)
                except (TypeError, ValueError):
                    self._dropped += 1
            with self._lock:
                self._waiting.append(encode(["end", status, now_ms(), final]))
            problem, todo = self._finish(process, time.monotonic() + CLOSE_SECONDS)
        except Exception as error:
            problem = describe(error)
        if problem is None and self._dropped:
            problem = f"{self._dropped} points could not be recorded"
        if problem is not None:
            _say(self._warn, self._where, problem, todo)

    def _pump(self) -> None:
        """Write what the pipe takes now."""
        if self._process is None or self._process.stdin is None:
            return
        while self._waiting and not self._gone:
            try:
                written = os.write(self._process.stdin.fileno(), self._waiting[0])
            except BlockingIOError:
                return
            except (OSError, ValueError):  # the child has ended; its report says why
                self._gone = True
                self._waiting.clear()
                return
            line = self._waiting.popleft()
            if written < len(line):
                self._waiting.appendleft(line[written:])

    def _finish(self, process: subprocess.Popen[bytes], deadline: float) -> tuple[str | None, str]:
        """Send the rest, read the child's report, and return what is wrong, if anything, and what to do about it."""
        if process.stdin is None or process.stdout is None:
            return "no pipe", CHECK_ADDRESS
        report = b""
        with selectors.DefaultSelector() as selector, process.stdin, process.stdout:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                with self._lock:
                    self._pump()
                    waiting = bool(self._waiting)
                watched = process.stdin in selector.get_map()
                if waiting and not watched:
                    selector.register(process.stdin, selectors.EVENT_WRITE)
                elif watched and not waiting:
                    selector.unregister(process.stdin)
                for key, _ in selector.select(left):
                    if key.fileobj is process.stdout:
                        part = os.read(process.stdout.fileno(), 65536)
                        report += part
                        if not part:
                            problem, todo = _read_report(report)
                            if problem is None:  # else it goes on trying for a while, and nobody waits for that
                                with contextlib.suppress(subprocess.TimeoutExpired):
                                    process.wait(max(deadline - time.monotonic(), 0.01))
                            return problem, todo
        return f"no answer within {CLOSE_SECONDS:.0f} s (it may still finish in the background)", CHECK_ADDRESS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            killed = isinstance(error, KeyboardInterrupt | SystemExit | errors.Interrupted)
            self.close(status="KILLED" if killed else "FAILED")


def start(
    *,
    enabled: bool,
    uri: str | None,
    root: Path,
    experiment: str,
    run_name: str,
    parent: str | None,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    warn: Callable[[str], None],
    resume_key: str | None = None,
) -> Tracker:
    """Begin mirroring one run, and return at once.

    While the server is away the child keeps points up to a bound and tries again for as long as the run
    lasts. What it still has when the command ends, it tries to write for a short while in the background.

    Args:
        enabled: False gives a tracker that does nothing.
        uri: the tracking address. None takes ``MLFLOW_TRACKING_URI`` or else a database of our own,
            ``<root>/mlflow.db`` with ``<root>/mlartifacts``, created safely when several runs start at once.
        root: the project's folder; its git commit is recorded.
        experiment: the experiment, created if need be.
        run_name: the run's name.
        parent: a parent run's name; runs of one machine that name it are grouped under one parent.
        params: parameters, nested ones flattened to ``a.b.c``.
        tags: further tags of the run.
        warn: called with one line if MLflow is missing or, in :meth:`Tracker.close`, if the mirror is incomplete.
        resume_key: a later start with the same key and parameters goes on with the newest such run, unless that
            one finished. Points that the run already holds are not written again.
    """
    if not enabled:
        return Tracker(None, "", warn)
    root = root.absolute()
    address = uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    where = without_credentials(address or sqlite(root / "mlflow.db"))
    try:
        if not _installed("mlflow"):
            _say(warn, where, "mlflow is not installed", todo="install it or switch tracking off")
            return Tracker(None, where, warn)
        config = {
            "sys_path": sys.path,
            "uri": address,
            "root": str(root),
            "experiment": experiment,
            "run_name": run_name,
            "parent": parent,
            "params": dict(_flatten(params)),
            "tags": {str(name): str(value) for name, value in tags.items()},
            "source": Path(sys.argv[0]).name if sys.argv else "",
            "resume_key": resume_key,
            "start_ms": now_ms(),
            "limits": asdict(Limits()),
        }
        first = encode(config)
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in a terminal must not end the child before it has said KILLED
        )
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
        tracker = Tracker(process, where, warn)
        tracker._waiting.append(first)
        tracker._pump()
        return tracker
    except Exception as error:
        _say(warn, where, describe(error))
        return Tracker(None, where, warn)


def _say(warn: Callable[[str], None], where: str, what: str, todo: str = CHECK_ADDRESS) -> None:
    with contextlib.suppress(Exception):
        warn(f"MLflow mirror {where}: {what}: {todo}; metrics are complete in history.jsonl")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # imported by unusual means
        return package in sys.modules


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return int(time.time() * 1000)


def encode(message: object) -> bytes:
    """A message as one line of the pipe."""
    return json.dumps(message, default=str).encode() + b"\n"


def _flatten(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``("a.b.c", text)`` for each leaf; lists are leaves, written as JSON."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            yield from _flatten(item, f"{name}.")
        else:
            yield name, item if isinstance(item, str) else json.dumps(item, default=str)


def sqlite(path: Path) -> str:
    """Return the address of a database file; only what would end or change the path is quoted."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def without_credentials(text: str) -> str:
    """An address, or a text with addresses, as it may be shown: user and password cut out."""
    # A password may hold "@" and "/" where somebody forgot to quote them: cut up to the last "@" of the word. The
    # path of a local database may hold them too, and has no password.
    text = re.sub(r"(?<![\w+])(?!sqlite:|file:)([A-Za-z][\w+.-]*://)\S*@", r"\1", text)
    return re.sub(r"(?i)\b(password|passwd|pwd|token)=[^&\s]+", r"\1=...", text)


def describe(error: BaseException) -> str:
    """Return an exception as one short line; for a server that fails, the network's error rather than its wrappers."""
    shown, inner = error, error.__cause__ or error.__context__
    while inner is not None:
        if isinstance(inner, OSError):
            shown = inner
        inner = inner.__cause__ or inner.__context__
    text = without_credentials(" ".join(f"{type(shown).__name__}: {shown}".split()))
    return text if len(text) <= 240 else text[:237] + "..."


def _read_report(report: bytes) -> tuple[str | None, str]:
    try:
        message = json.loads(report)
        problem, todo = message["problem"], message["todo"]
    except (ValueError, KeyError, TypeError):
        return "the mirroring process died", CHECK_ADDRESS
    return None if problem is None else str(problem), str(todo)
