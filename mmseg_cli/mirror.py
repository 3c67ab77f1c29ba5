"""The child process of :mod:`mmseg_cli.tracking`: what comes through the pipe goes to MLflow, however long that takes.

The server may be away for hours of a run of days. Meanwhile the points wait here, up to a bound, and everything that
is sent may be sent again: MLflow keeps one of several equal points (name, step, time, value), parameters and tags are
written with the values that they had, and a run that was perhaps created is looked for before it is created again.

This is the only module that imports MLflow, and nothing imports this module: it runs in the child only.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from mmseg_cli import runtime
from mmseg_cli.tracking import CHECK_ADDRESS, Limits, Status, describe, encode, now_ms, sqlite

AGAIN_SECONDS: Final = 0.3  # at the end, before the one other try of a server that was there until then
LINGER_PAUSE_SECONDS: Final = 2.0  # between the tries after the command has ended

METRICS_PER_BATCH: Final = 1000  # MLflow's own limits
PARAMS_PER_BATCH: Final = 100
PARAM_CHARACTERS: Final = 6000
TAG_CHARACTERS: Final = 5000
NAME_CHARACTERS: Final = 250
LEAST_METRICS_PER_BATCH: Final = 50  # where a server does not manage more within the time of one request

RESUME_TAG: Final = "mmseg.resume"
GROUP_TAG: Final = "mmseg.group"
START_TAG: Final = "mmseg.start"  # one value for every start of a command

# MLflow runs without these (its distribution `mlflow-skinny` does) but imports them where they exist, for
# features not used here; hiding them saves a quarter of the child's CPU time.
_NOT_NEEDED: Final = ("pandas", "numpy", "scipy", "sklearn")

_DENIED: Final = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
_REFUSED: Final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
_MISSING: Final = ("RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "NOT_FOUND")

T = TypeVar("T")
Tell = Callable[[str | None, str], None]


class Point(NamedTuple):
    """A value of a metric at an optimizer step; `when` in ms since 1970."""

    name: str
    value: float
    when: int
    step: int


class End(NamedTuple):
    """How the run ended; `step` is the last one that was logged, if any."""

    status: Status
    when: int
    summary: Mapping[str, float]
    step: int | None


class DeletedError(Exception):
    """The run or its experiment was deleted in MLflow."""


class Inbox:
    """What came through the pipe and is not in MLflow yet.

    One thread appends, another one takes from the left; a deque allows that. What does not fit is the newest, because
    the oldest may be on its way.

    Args:
        bound: the most values that wait. The summary of the end is not counted.
    """

    def __init__(self, bound: int) -> None:
        self.points: deque[Point] = deque()
        self.dropped = 0
        self.end: End | None = None
        self.ended = threading.Event()
        self._bound = bound
        self._step: int | None = None

    def receive(self, lines: Iterable[bytes]) -> None:
        """Take all messages. Lines that stop without an "end" mean that the command was killed."""
        for line in lines:
            try:
                kind, *rest = json.loads(line)
                if kind == "end":
                    self._stop(*rest)
                    return
                self._point(*rest)
            except (ValueError, TypeError):  # cut off by a signal
                continue
        self._stop("KILLED", now_ms(), {})

    def _point(self, step: int, when: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        for name, value in metrics.items():
            if len(self.points) < self._bound:
                self.points.append(Point(sys.intern(name), value, when, step))
            else:
                self.dropped += 1

    def _stop(self, status: Status, when: int, summary: Mapping[str, float]) -> None:
        self.end = End(status, when, summary, self._step)
        self.ended.set()


def serve(config: dict[str, Any]) -> None:
    """Run the child: mirror what comes through standard input, report in one line on standard output, and exit."""
    gc.disable()  # importing MLflow allocates much and frees nothing: a quarter of the time would go into collecting
    out = os.dup(1)
    with Path(os.devnull).open("wb") as sink:
        os.dup2(sink.fileno(), 1)  # whatever MLflow prints must not look like a report
    # A scheduler sends them to all of a job: the command then says how the run ended, and the pipe's end is ours.
    for number in runtime.SENT_TO_ALL:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limits = Limits(**config["limits"])
    inbox = Inbox(limits.buffer_values)

    def receive() -> None:
        inbox.receive(sys.stdin.buffer)
        signal.alarm(limits.linger_seconds)

    def tell(problem: str | None, todo: str) -> None:
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(out, encode({"problem": problem, "todo": todo}))
        os.close(out)  # which is what the command waits for

    threading.Thread(target=receive, daemon=True).start()
    try:
        mirror(Run(config), inbox, limits, tell)
    except BaseException as error:
        with contextlib.suppress(OSError):  # told before
            tell(describe(error), CHECK_ADDRESS)
    os._exit(0)  # nothing to tidy up, and taking the modules apart would cost half as much as importing them


def mirror(run: Run, inbox: Inbox, limits: Limits, tell: Tell) -> None:
    """Write the points until the command has ended, and then the end.

    Failures are tried again after growing pauses for as long as the command runs. When it has ended, it gets one
    report, soon; what is missing then is tried for a short while more, because a server that is being restarted
    comes back within seconds.

    Args:
        run: the MLflow side.
        inbox: filled by another thread.
        limits: pauses and patience.
        tell: called once, with what is missing from the mirror (or None) and what to do about it.
    """
    failures, failed_at, error = 0, 0.0, None
    pause = 0.0
    while not inbox.ended.wait(pause):
        try:
            run.open()
            run.write(inbox.points)
        except Exception as caught:
            error, failed_at = _without_frames(caught), time.monotonic()
            pause = limits.retry_seconds[min(failures, len(limits.retry_seconds) - 1)]
            if _lasting(caught):
                pause = limits.retry_seconds[-1]
            failures += 1
        else:
            failures, pause = 0, limits.flush_seconds
    end = inbox.end
    if end is None:
        return
    began = time.monotonic()
    tries = 0 if failures and began - failed_at < limits.soon_seconds else 1 if failures else 2
    while tries:
        try:
            run.end(inbox.points, end)
        except Exception as caught:
            error, tries = _without_frames(caught), tries - 1
            if time.monotonic() - began > 1.0 or _lasting(caught):
                break
            if tries:  # a server drops connections that were not used for a while, which shows in the next request
                time.sleep(AGAIN_SECONDS)
        else:
            tell(_losses(inbox, run), CHECK_ADDRESS)
            return
    what = describe(error) if error is not None else "unknown"
    if isinstance(error, DeletedError):
        what = str(error)
    if losses := _losses(inbox, run):
        what = f"{what}; {losses}"
    tell(what, _todo(error))
    while time.monotonic() - began < limits.linger_seconds:
        time.sleep(min(LINGER_PAUSE_SECONDS, limits.retry_seconds[-1]))
        with contextlib.suppress(Exception):
            run.end(inbox.points, end)
            return


def _without_frames(error: Exception) -> Exception:
    """Forget where an error came from: its frames would keep requests and points in memory until the next one."""
    inner: BaseException | None = error
    while inner is not None:
        inner.__traceback__ = None
        inner = inner.__cause__ or inner.__context__
    return error


def _code(error: BaseException | None) -> str:
    return str(getattr(error, "error_code", ""))


def _lasting(error: BaseException) -> bool:
    """Whether only a person can mend it, so that asking often makes no sense."""
    return isinstance(error, DeletedError) or _code(error) in (*_DENIED, *_REFUSED, *_MISSING)


def _todo(error: BaseException | None) -> str:
    if isinstance(error, DeletedError):
        return "restore it in MLflow"
    if _code(error) in _DENIED:
        return "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the token"
    return CHECK_ADDRESS


def _losses(inbox: Inbox, run: Run) -> str | None:
    losses = []
    if inbox.dropped:
        losses.append(f"{inbox.dropped} values came while too many waited for the server, and were dropped")
    if run.refused:
        losses.append(f"MLflow refused {run.refused} values ({run.refusal})")
    return "; ".join(losses) or None


class Run:
    """The MLflow side of one run; every method may be called again after it failed."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.root = Path(config["root"])
        self.environment = _environment(config)
        self.client: Any = None
        self.run_id: str | None = None
        self.params: dict[str, str] = {}
        self.ready = False
        self.refused = 0
        self.refusal = ""
        self._start = uuid.uuid4().hex
        self._perhaps_created = False
        self._batch = METRICS_PER_BATCH
        # Of a run that is gone on with: the last step of each metric, and (step, value) of those that come again.
        self._last: dict[str, int] = {}
        self._held: dict[str, set[tuple[int, float | None]]] = {}

    def open(self) -> None:
        """Import MLflow, find or create the store, the experiment, the parent and the run, and write the params."""
        if self.ready:
            return
        _import_mlflow(local=not self.config["uri"] or self.config["uri"].startswith("sqlite:"))
        gc.enable()
        if self.run_id is None:
            with _locked(self.root / "mlflow.db-lock"):
                self._create()
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in self.params.items()]
        for first in range(0, len(params), PARAMS_PER_BATCH):
            self._send(
                params[first : first + PARAMS_PER_BATCH],
                lambda batch: self.client.log_batch(self.run_id, params=batch),
            )
        self.ready = True
        gc.freeze()

    def _create(self) -> None:
        from mlflow.tracking import MlflowClient

        config = self.config
        artifacts = None
        uri = config["uri"]
        if not uri:
            uri = sqlite(_local_store(self.root))
            artifacts = (self.root / "mlartifacts").as_uri()
        self.client = MlflowClient(uri)
        experiment = self._experiment(config["experiment"], artifacts)
        tags = self.environment | {str(name): value[:TAG_CHARACTERS] for name, value in config["tags"].items()}
        tags[START_TAG] = self._start
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
        if old is None and self._perhaps_created:  # the answer was lost, not the request
            old = self._newest(experiment, START_TAG, self._start)
        if old is None:
            self._perhaps_created = True
            created = self.client.create_run(
                experiment, start_time=config["start_ms"], tags=tags, run_name=config["run_name"]
            )
            self.run_id = created.info.run_id
            return
        from mlflow.entities import RunTag

        self.client.update_run(old.info.run_id, status="RUNNING", name=config["run_name"])
        self.client.log_batch(old.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        self._last = {metric.key: metric.step for metric in old.data.to_proto().metrics}
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
        if found.lifecycle_stage == "deleted":
            raise DeletedError(f"the experiment {name!r} was deleted")
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
        if run.info.status != "FINISHED":
            self.client.set_terminated(run.info.run_id, status="FINISHED")
        return str(run.info.run_id)

    def write(self, points: deque[Point]) -> None:
        """Write and remove points, batch by batch; another thread may append meanwhile."""
        from mlflow.entities import Metric

        while points:
            batch = [points[index] for index in range(min(len(points), self._batch))]
            metrics = [
                Metric(_name(point.name), point.value, point.when, point.step)
                for point in batch
                if not self._holds(_name(point.name), point.step, point.value)
            ]
            try:
                self._send(metrics, lambda part: self.client.log_batch(self.run_id, metrics=part))
            except Exception:
                self._batch = max(self._batch // 2, LEAST_METRICS_PER_BATCH)
                raise
            self._batch = min(self._batch * 2, METRICS_PER_BATCH)
            for _ in batch:
                points.popleft()

    def _holds(self, name: str, step: int, value: float) -> bool:
        """Whether a run that is gone on with has the point, because the command repeats the steps after a checkpoint.

        Another value at the same step, such as a measured time, is a point of its own.
        """
        if not self._last:
            return False
        if step > self._last.get(name, step - 1):
            self._last.pop(name, None)
            self._held.pop(name, None)
            return False
        if name not in self._last:
            return False
        if name not in self._held:
            history = self.client.get_metric_history(self.run_id, name)
            self._held[name] = {(old.step, _comparable(old.value)) for old in history if old.step >= step}
        return (step, _comparable(value)) in self._held[name]

    def _send(self, items: list[T], send: Callable[[list[T]], object]) -> None:
        """Send the items; those that MLflow itself refuses are found, left out and counted, and the others arrive."""
        if not items:
            return
        try:
            send(items)
        except Exception as error:
            if _code(error) in (*_REFUSED, *_MISSING):
                self._require_active()
            if _code(error) not in _REFUSED:
                raise
            if len(items) == 1:
                self.refused += 1
                self.refusal = describe(error)
                return
            for half in (items[: len(items) // 2], items[len(items) // 2 :]):
                self._send(half, send)

    def _require_active(self) -> None:
        if self.client.get_run(self.run_id).info.lifecycle_stage == "deleted":
            raise DeletedError("the run was deleted")

    def end(self, points: deque[Point], end: End) -> None:
        """Write what waits, the summary and the final status."""
        self.open()
        self.write(points)
        step = end.step if end.step is not None else max(self._last.values(), default=0)
        self.write(deque(Point(name, value, end.when, step) for name, value in end.summary.items()))
        try:
            self.client.set_terminated(self.run_id, status=end.status, end_time=end.when)
        except Exception as error:
            if _code(error) in (*_REFUSED, *_MISSING):
                self._require_active()
            raise


def _comparable(value: float) -> float | None:
    """The value as MLflow returns it; None for what is no number, which is not even equal to itself."""
    return None if math.isnan(value) else max(min(value, sys.float_info.max), -sys.float_info.max)


def _import_mlflow(local: bool) -> None:
    # MLflow's own tries would double the time that a server that hangs takes, and may create a run twice.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
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


_tries: Final = itertools.count()


def _local_store(root: Path) -> Path:
    """Return our own database, created whole: a killed first run leaves no half of one. The caller holds the lock."""
    from mlflow.tracking import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    store = root / "mlflow.db"
    if store.exists():
        return store
    for left in root.glob("mlflow.db-new*"):
        left.unlink(missing_ok=True)
    # A name of its own for every try: MLflow keeps connections, and those of a file that is gone are no use.
    new = root / f"mlflow.db-new{next(_tries)}"
    new.touch()  # a folder that is full or not writable gets the system's words for it, which the database's are not

    def hurry(connection: Any, _: object) -> None:
        # MLflow runs its whole history of migrations, and each would wait for the disk several times.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    event.listen(Engine, "connect", hurry)
    try:
        MlflowClient(sqlite(new)).search_experiments(max_results=1)
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
