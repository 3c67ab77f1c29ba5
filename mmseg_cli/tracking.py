"""Mirror a run's parameters and metrics to MLflow without slowing or endangering the run.

Our own files are the record; MLflow is a copy for browsing. So everything that can be slow or fail (importing MLflow,
creating its database, a server that is down) happens in a child process that reads JSON lines from a pipe. A thread
would share the interpreter lock, the import locks and the exit of the command with a library of two thousand modules;
a child process shares nothing, starts in parallel, can hang without anybody waiting for it, and sees the end of the
pipe when the command is killed, so that the run does not stay RUNNING for ever.

This is the only module that imports MLflow, and only in the child.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import queue
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, Self

from mmseg_cli import errors

Status = Literal["FINISHED", "FAILED", "KILLED"]

CLOSE_SECONDS: Final = 5.0  # the most that `Tracker.close` waits
QUEUE_POINTS: Final = 10_000  # calls of `log` that wait for a slow mirror; more are dropped and counted
LINGER_SECONDS: Final = 20  # the child ends itself this long after the command closed it or died
FLUSH_SECONDS: Final = 2.0  # how often the child writes while training goes on
RETRY_SECONDS: Final = 60.0  # after a failure, the one other attempt
SOON_SECONDS: Final = 10.0  # a failure younger than this is not tried again when the run ends

METRICS_PER_BATCH: Final = 1000  # MLflow's own limits
PARAMS_PER_BATCH: Final = 100
PARAM_CHARACTERS: Final = 6000
TAG_CHARACTERS: Final = 5000
NAME_CHARACTERS: Final = 250

RESUME_TAG: Final = "mmseg.resume"
GROUP_TAG: Final = "mmseg.group"

# The child starts with the parent's sys.path, sent through the pipe: it needs no installed package, and nothing
# that may hold a password (the address of the server) appears in the list of processes.
_CHILD: Final = (
    "import sys, json; config = json.loads(sys.stdin.buffer.readline()); sys.path[:] = config['sys_path']; "
    "from mmseg_cli.tracking import _serve; _serve(config)"
)

# MLflow runs without these (its distribution `mlflow-skinny` does) but imports them where they exist, for
# features not used here; hiding them saves a quarter of the child's CPU time.
_NOT_NEEDED: Final = ("pandas", "numpy", "scipy", "sklearn")


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
            line = _line(["point", int(step), _now_ms(), point])
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
        try:
            final = {}
            for name, value in summary.items():
                try:
                    final[str(name)] = float(value)
                except (TypeError, ValueError):
                    self._dropped += 1
            with self._lock:
                self._waiting.append(_line(["end", status, _now_ms(), final]))
            problem = self._finish(process, time.monotonic() + CLOSE_SECONDS)
        except Exception as error:
            problem = _describe(error)
        if problem is None and self._dropped:
            problem = f"{self._dropped} points could not be recorded"
        if problem is not None:
            _say(self._warn, self._where, problem)

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

    def _finish(self, process: subprocess.Popen[bytes], deadline: float) -> str | None:
        """Send the rest, read the child's report, and return what is wrong with the mirror, if anything."""
        if process.stdin is None or process.stdout is None:
            return "no pipe"
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
                            with contextlib.suppress(subprocess.TimeoutExpired):
                                process.wait(max(deadline - time.monotonic(), 0.01))
                            return _read_report(report)
        return f"no answer within {CLOSE_SECONDS:.0f} s (it may still finish in the background)"

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
            one finished.
    """
    if not enabled:
        return Tracker(None, "", warn)
    root = root.absolute()
    address = uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    where = without_credentials(address or _sqlite(root / "mlflow.db"))
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
            "start_ms": _now_ms(),
        }
        first = _line(config)
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
        _say(warn, where, _describe(error))
        return Tracker(None, where, warn)


def _say(warn: Callable[[str], None], where: str, what: str, todo: str = "check that address") -> None:
    with contextlib.suppress(Exception):
        warn(f"MLflow mirror {where}: {what}: {todo}; metrics are complete in history.jsonl")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # imported by unusual means
        return package in sys.modules


def _now_ms() -> int:
    return int(time.time() * 1000)


def _line(message: object) -> bytes:
    return json.dumps(message, default=str).encode() + b"\n"


def _flatten(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``("a.b.c", text)`` for each leaf; lists are leaves, written as JSON."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            yield from _flatten(item, f"{name}.")
        else:
            yield name, item if isinstance(item, str) else json.dumps(item, default=str)


def _sqlite(path: Path) -> str:
    """Return the address of a database file; only what would end or change the path is quoted."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def without_credentials(text: str) -> str:
    """An address as it may be shown: user and password cut out."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _describe(error: BaseException) -> str:
    """Return an exception as one short line; for a server that fails, the network's error rather than its wrappers."""
    shown, inner = error, error.__cause__ or error.__context__
    while inner is not None:
        if isinstance(inner, OSError):
            shown = inner
        inner = inner.__cause__ or inner.__context__
    text = without_credentials(" ".join(f"{type(shown).__name__}: {shown}".split()))
    return text if len(text) <= 240 else text[:237] + "..."


def _read_report(report: bytes) -> str | None:
    try:
        problem = json.loads(report)["problem"]
    except (ValueError, KeyError, TypeError):
        return "the mirroring process died"
    return None if problem is None else str(problem)


# ---- from here on: the child process -------------------------------------------------------------------------------


def _serve(config: dict[str, Any]) -> None:
    """Run the child: mirror what comes through standard input, report in one line on standard output, and exit."""
    gc.disable()  # importing MLflow allocates much and frees nothing: a quarter of the time would go into collecting
    report = os.dup(1)
    with Path(os.devnull).open("wb") as sink:
        os.dup2(sink.fileno(), 1)  # whatever MLflow prints must not look like a report
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    lines: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    try:
        problem = _mirror(config, lines)
    except BaseException as error:
        problem = _describe(error)
    with contextlib.suppress(OSError):
        os.write(report, _line({"problem": problem}))
    os._exit(0)  # nothing to tidy up, and taking the modules apart would cost half as much as importing them


def _read(lines: queue.SimpleQueue[list[Any]]) -> None:
    """Hand over the messages; the end of the pipe without an "end" means that the command was killed."""
    for line in sys.stdin.buffer:
        try:
            message = json.loads(line)
        except ValueError:  # cut off by a signal
            continue
        lines.put(message)
        if message[0] == "end":
            break
    else:
        lines.put(["end", "KILLED", _now_ms(), {}])
    signal.alarm(LINGER_SECONDS)


def _mirror(config: dict[str, Any], lines: queue.SimpleQueue[list[Any]]) -> str | None:
    """Write the messages until the end. After a failure there is one more attempt; the second one in a row is final.

    Returns what is missing from the mirror, or None.
    """
    run: _Run | None = None
    points: deque[tuple[str, float, int, int]] = deque()
    dropped, last_step = 0, 0
    failed: tuple[float, str] | None = None
    due = time.monotonic()
    while True:
        message: list[Any] | None = None
        with contextlib.suppress(queue.Empty):
            message = lines.get(timeout=max(due - time.monotonic(), 0.001))
        if message is not None and message[0] == "point":
            last_step = message[1]
            for name, value in message[3].items():
                if len(points) < QUEUE_POINTS * 10:
                    points.append((name, value, message[2], last_step))
                else:
                    dropped += 1
            if time.monotonic() < due:
                continue
        end = message if message is not None and message[0] == "end" else None
        now = time.monotonic()
        if end is not None:
            points.extend((name, value, end[2], last_step) for name, value in end[3].items())
            if failed is not None and now - failed[0] < SOON_SECONDS:
                return failed[1]
        try:
            run = run or _Run(config)
            run.open()
            run.write(points)
            if end is not None:
                run.end(end[1], end[2])
        except Exception as error:
            if failed is not None or end is not None:
                return _describe(error)
            failed = (time.monotonic(), _describe(error))
            due = time.monotonic() + RETRY_SECONDS
            continue
        if end is not None:
            return f"{dropped} values came while the server was away" if dropped else None
        failed = None
        due = time.monotonic() + FLUSH_SECONDS


class _Run:
    """The MLflow side of one run; every method may be called again after it failed."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.root = Path(config["root"])
        self.environment = _environment(config)
        self.client: Any = None
        self.run_id: str | None = None
        self.params: dict[str, str] = {}
        self.ready = False

    def open(self) -> None:
        """Import MLflow, find or create the store, the experiment, the parent and the run, and write the params."""
        if self.ready:
            return
        _import_mlflow(local=not self.config["uri"] or self.config["uri"].startswith("sqlite:"))
        if self.run_id is None:
            with _locked(self.root / "mlflow.db-lock"):
                self._create()
        from mlflow.entities import Param

        names = list(self.params)
        for first in range(0, len(names), PARAMS_PER_BATCH):
            batch = [Param(name, self.params[name]) for name in names[first : first + PARAMS_PER_BATCH]]
            self.client.log_batch(self.run_id, params=batch)
        self.ready = True
        gc.freeze()
        gc.enable()

    def _create(self) -> None:
        from mlflow.tracking import MlflowClient

        config = self.config
        artifacts = None
        uri = config["uri"]
        if not uri:
            uri = _sqlite(_local_store(self.root))
            artifacts = (self.root / "mlartifacts").as_uri()
        self.client = MlflowClient(uri)
        experiment = self._experiment(config["experiment"], artifacts)
        tags = self.environment | {str(name): value[:TAG_CHARACTERS] for name, value in config["tags"].items()}
        if config["parent"] is not None:
            tags["mlflow.parentRunId"] = self._parent(experiment, config["parent"])
        self.params = {_name(name): value[:PARAM_CHARACTERS] for name, value in config["params"].items()}
        old = None
        if config["resume_key"] is not None:
            digest = hashlib.sha256(json.dumps(self.params, sort_keys=True).encode()).hexdigest()[:12]
            tags[RESUME_TAG] = _searchable(f"{config['resume_key']} {digest}")
            old = self._newest(experiment, RESUME_TAG, tags[RESUME_TAG])
            if old is not None and old.info.status == "FINISHED":
                old = None  # done again from the start, not gone on with
        if old is None:
            created = self.client.create_run(
                experiment, start_time=config["start_ms"], tags=tags, run_name=config["run_name"]
            )
            self.run_id = created.info.run_id
            return
        from mlflow.entities import RunTag

        self.client.update_run(old.info.run_id, status="RUNNING", name=config["run_name"])
        self.client.log_batch(old.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        self.run_id = old.info.run_id

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=artifacts))
            except Exception:  # another machine was faster, or the server fails, which the next call shows
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _newest(self, experiment: str, tag: str, value: str) -> Any:
        """Return the newest run of the experiment with that tag, or None."""
        runs = self.client.search_runs(
            [experiment], f"tags.`{tag}` = '{value}'", max_results=1, order_by=["attributes.start_time DESC"]
        )
        return runs[0] if runs else None

    def _parent(self, experiment: str, name: str) -> str:
        """Return the id of the parent run of that name; the caller holds the lock."""
        group = _searchable(name)
        run = self._newest(experiment, GROUP_TAG, group)
        if run is None:
            run = self.client.create_run(experiment, tags={GROUP_TAG: group}, run_name=name)
            self.client.set_terminated(run.info.run_id, status="FINISHED")
        return str(run.info.run_id)

    def write(self, points: deque[tuple[str, float, int, int]]) -> None:
        """Write and remove ``(name, value, timestamp in ms, step)`` points, batch by batch."""
        from mlflow.entities import Metric

        while points:
            batch = [points[index] for index in range(min(len(points), METRICS_PER_BATCH))]
            self.client.log_batch(
                self.run_id, metrics=[Metric(_name(name), value, when, step) for name, value, when, step in batch]
            )
            for _ in batch:
                points.popleft()

    def end(self, status: str, when: int) -> None:
        """Set the final status, at a time in ms."""
        self.client.set_terminated(self.run_id, status=status, end_time=when)


def _import_mlflow(local: bool) -> None:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # The second module is imported here, not by the first call, so that the lock is not held meanwhile.
    modules = ["mlflow.tracking", *(["mlflow.store.tracking.sqlalchemy_store"] if local else [])]
    if "mlflow" in sys.modules:
        return
    for name in _NOT_NEEDED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        for name in modules:
            importlib.import_module(name)
    except ImportError:  # a version of MLflow that does need them
        for name in [name for name in sys.modules if name in _NOT_NEEDED or name.split(".")[0] == "mlflow"]:
            del sys.modules[name]
        for name in modules:
            importlib.import_module(name)


def _local_store(root: Path) -> Path:
    """Return our own database, created whole: a killed first run leaves no half of one. The caller holds the lock."""
    from mlflow.tracking import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    store = root / "mlflow.db"
    if store.exists():
        return store
    new = root / "mlflow.db-new"
    for left in (new, root / "mlflow.db-new-journal"):
        left.unlink(missing_ok=True)

    def hurry(connection: Any, _: object) -> None:
        # MLflow runs its whole history of migrations, and each would wait for the disk several times.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    event.listen(Engine, "connect", hurry)
    try:
        MlflowClient(_sqlite(new)).search_experiments(max_results=1)
    finally:
        event.remove(Engine, "connect", hurry)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.rename(store)
    return store


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes of this machine; where the folder is not writable, hold none."""
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _environment(config: dict[str, Any]) -> dict[str, str]:
    """Return the tags that say what ran, from which commit, in which environment; never the machine's name."""
    import getpass
    import platform

    tags = {
        "mlflow.runName": config["run_name"],
        "mlflow.source.name": config["source"],
        "mlflow.source.type": "JOB",
        "env.python": platform.python_version(),
        "env.platform": platform.platform(),
        "dvc.stage": os.environ.get("DVC_STAGE", ""),  # set by DVC for the command of every stage
    }
    with contextlib.suppress(Exception):
        tags["mlflow.user"] = getpass.getuser()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        tags["env.torch"] = importlib.metadata.version("torch")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", config["root"], "rev-parse", "HEAD"]
        head = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True, stdin=subprocess.DEVNULL)
        tags["mlflow.source.git.commit"] = head.stdout.strip()
    return {name: value[:TAG_CHARACTERS] for name, value in tags.items() if value}


def _name(name: str) -> str:
    """Return the name with what MLflow refuses replaced by underscores."""
    clean = re.sub(r"[^\w.\- :/]", "_", name)[:NAME_CHARACTERS]
    if clean != os.path.normpath(clean) or clean.startswith(("/", "..")) or clean in ("", "."):
        clean = re.sub(r"[/.]", "_", clean) or "_"
    return clean


def _searchable(value: str) -> str:
    """Return a tag value that can stand between quotes in a search."""
    return re.sub(r"['\"`\\%\s]+", " ", value)[:TAG_CHARACTERS]
