"""The MLflow mirror: what arrives in it, and that nothing it does can hurt the command it mirrors."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmseg_cli import errors, mirror, tracking

pytest.importorskip("mlflow")

PROJECT = Path(tracking.__file__).parents[1]

PATIENT = 18.0  # seconds to wait for the mirror where waiting is not what is tested: a busy machine may take them

# One short command: start, 50 logs (or as many as told, 200 in about a second), close. Its only argument is a JSON
# object of options; `constants` are set in the module.
COMMAND = """
import json, sys, time
options = json.loads(sys.argv[1])
if options.get("poison"):
    sys.modules["mlflow"] = None
from pathlib import Path
from mmseg_cli import tracking
for name, value in options.get("constants", {}).items():
    setattr(tracking, name, value)
began = time.perf_counter()
tracker = tracking.start(
    enabled=options.get("enabled", True), uri=options.get("uri"), root=Path(options["root"]), experiment="test",
    run_name=options.get("name", "run"), parent=options.get("parent"), params={"a": 1}, tags={},
    warn=lambda line: print("WARN", line, file=sys.stderr), resume_key=options.get("resume_key"),
)
started = time.perf_counter() - began
for step in range(options.get("first", 0), options.get("steps", 50)):
    tracker.log({"loss": 1.0 / (step + 1)}, step=step)
    if "steps" in options:
        time.sleep(0.005)
if options.get("hold"):
    print("ready", flush=True)
    sys.stdin.readline()
if options.get("close", True):
    began = time.perf_counter()
    tracker.close()
    print(json.dumps({"start": started, "close": time.perf_counter() - began, "mlflow": "mlflow" in sys.modules,
                      "threads": __import__("threading").active_count()}))
"""


def command(**options: Any) -> subprocess.Popen[str]:
    options["constants"] = {"CLOSE_SECONDS": PATIENT} | options.get("constants", {})
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    environment["PYTHONPATH"] = str(PROJECT)
    arguments = [sys.executable, "-c", COMMAND, json.dumps(options, default=str)]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def run_command(**options: Any) -> tuple[dict[str, Any], list[str], float]:
    """Return what the command printed, the lines on stderr, and its wall time in seconds."""
    began = time.perf_counter()
    with command(**options) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out) if out else {}, err.splitlines(), time.perf_counter() - began


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a git commit; its store is shared by the tests, which use one experiment each."""
    folder = tmp_path_factory.mktemp("a project")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    mirror._local_store(folder)
    return folder


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def start(root: Path, warnings: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", PATIENT)

    def begin(**changes: Any) -> tracking.Tracker:
        options: dict[str, Any] = {
            "enabled": True,
            "uri": None,
            "root": root,
            "experiment": request.node.name,
            "run_name": "run",
            "parent": None,
            "params": {},
            "tags": {},
            "warn": warnings.append,
        }
        return tracking.start(**(options | changes))

    return begin


def client(uri: str | Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{uri / 'mlflow.db'}" if isinstance(uri, Path) else uri)


def runs(of: Any, experiment: str) -> list[Any]:
    found = of.get_experiment_by_name(experiment)
    return list(of.search_runs([found.experiment_id])) if found else []


def eventually(check: Any, seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := check()) and time.monotonic() < end:
        time.sleep(0.1)
    return value


def in_process(root: Path, **changes: Any) -> mirror.Run:
    """The MLflow side of a run in this process, which costs no start of another one."""
    config: dict[str, Any] = {
        "uri": "",
        "root": str(root),
        "experiment": "test",
        "run_name": "run",
        "parent": None,
        "params": {},
        "tags": {},
        "source": "",
        "resume_key": None,
        "start_ms": tracking.now_ms(),
    }
    return mirror.Run(config | changes)


def points(steps: range, *, name: str = "loss", value: Callable[[int], float] = float) -> deque[mirror.Point]:
    now = tracking.now_ms()
    return deque(mirror.Point(name, value(step), now, step) for step in steps)


def end(status: tracking.Status = "FINISHED", **summary: float) -> mirror.End:
    return mirror.End(status, tracking.now_ms(), summary, None)


def mirrored(run: Any, *, end_after: float = 0.0, **limits: Any) -> list[tuple[str | None, str]]:
    """Mirror one point and an end, which comes after some seconds; return all that was told."""
    quick = {"flush_seconds": 0.02, "retry_seconds": (0.01,), "soon_seconds": 0.0, "linger_seconds": 0}
    told: list[tuple[str | None, str]] = []
    inbox = mirror.Inbox(100)

    def lines() -> Iterator[bytes]:
        yield tracking.encode(["point", 7, 1, {"loss": 0.5}])
        time.sleep(end_after)
        yield tracking.encode(["end", "FINISHED", 2, {"final": 1.0}])

    thread = threading.Thread(target=inbox.receive, args=(lines(),))
    thread.start()
    mirror.mirror(run, inbox, tracking.Limits(**(quick | limits)), lambda *report: told.append(report))
    thread.join()
    return told


# ---- what arrives --------------------------------------------------------------------------------------------------


def test_a_run_arrives_whole(
    root: Path, start: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train@mmbconv-0")
    many = {f"k{index}": index for index in range(230)}  # more than one batch
    params = {"model": {"width": 16, "depths": [1, 2], "free": None, "on": True}, "many": many, "long": "x" * 9000}
    began = time.perf_counter()
    tracker = start(run_name="mmbconv-s0", parent="demo", params=params, tags={"variant": "mmbconv"})
    assert time.perf_counter() - began < 0.2
    for step in range(2500):
        tracker.log({"train/loss": 1.0 / (step + 1), "lr": 0.1}, step=step)
    tracker.log({"iou.traffic light": 0.25, "odd name, (x)": float("nan"), "huge": float("inf")}, step=2500)
    tracker.close(summary={"miou": 0.5})
    tracker.close(status="FAILED")  # a second close does nothing
    tracker.log({"late": 1.0}, step=1)
    assert warnings == []
    assert capfd.readouterr() == ("", "")

    mlflow = client(root)
    child, parent = sorted(runs(mlflow, "test_a_run_arrives_whole"), key=lambda run: run.info.run_name == "demo")
    assert parent.info.status == child.info.status == "FINISHED"
    assert child.info.run_name == "mmbconv-s0"
    assert child.data.params["model.width"] == "16"
    assert child.data.params["model.depths"] == "[1, 2]"
    assert child.data.params["model.free"] == "null"
    assert child.data.params["model.on"] == "true"
    assert child.data.params["many.k229"] == "229"
    assert child.data.params["long"] == "x" * 6000
    loss = sorted((point.step, point.value) for point in mlflow.get_metric_history(child.info.run_id, "train/loss"))
    assert loss == [(step, pytest.approx(1.0 / (step + 1))) for step in range(2500)]
    assert child.data.metrics["iou.traffic light"] == 0.25
    assert child.data.metrics["odd name_ _x_"] != child.data.metrics["odd name_ _x_"]
    (miou,) = mlflow.get_metric_history(child.info.run_id, "miou")
    assert (miou.value, miou.step) == (0.5, 2500)
    tags = child.data.tags
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert tags["mlflow.source.type"] == "JOB"
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert tags["dvc.stage"] == "train@mmbconv-0"
    assert tags["variant"] == "mmbconv"
    assert tags["env.python"] == sys.version.split()[0]
    assert "env.torch" in tags and "mlflow.source.name" in tags and "mlflow.user" in tags
    hostname = socket.gethostname()
    assert all(hostname not in value for name, value in tags.items() if name.startswith(("env.", "mlflow.source")))


def test_two_first_runs_at_once_share_a_fresh_store_and_one_parent(tmp_path: Path) -> None:
    processes = [command(root=tmp_path, name=f"run-{index}", parent="demo") for index in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert err == ""
    mlflow = client(tmp_path)
    assert eventually(lambda: [run.info.status for run in runs(mlflow, "test")] == ["FINISHED"] * 3)
    found = runs(mlflow, "test")
    assert sorted(run.info.run_name for run in found) == ["demo", "run-0", "run-1"]
    (parent,) = [run.info.run_id for run in found if run.info.run_name == "demo"]
    children = [run for run in found if run.info.run_id != parent]
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent, parent]
    assert [(run.info.status, run.data.metrics["loss"]) for run in children] == [("FINISHED", 0.02)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db-lock"]


def test_half_a_store_left_by_a_kill_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db-new0").write_bytes(b"half")
    (tmp_path / "mlflow.db-new-journal").write_bytes(b"half")
    run = in_process(tmp_path)
    run.open()
    assert [found.info.run_id for found in runs(client(tmp_path), "test")] == [run.run_id]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db-lock"]


def test_how_a_run_ends(root: Path, start: Any) -> None:
    failures = {"bad": ValueError(), "key": KeyboardInterrupt(), "term": errors.Interrupted("x", 15, "y")}
    trackers = {name: start(run_name=name) for name in failures}
    for name, error in failures.items():
        with pytest.raises(type(error)), trackers[name]:
            raise error
    ended = {run.info.run_name: run.info.status for run in runs(client(root), "test_how_a_run_ends")}
    assert ended == {"bad": "FAILED", "key": "KILLED", "term": "KILLED"}


def test_a_killed_command_leaves_a_killed_run_that_its_key_resumes(root: Path) -> None:
    first = command(root=root, hold=True, resume_key="it's a key")
    assert first.stdout is not None and first.stderr is not None
    assert first.stdout.readline() == "ready\n"
    assert eventually(lambda: runs(client(root), "test"))
    first.kill()
    first.communicate()
    mlflow = client(root)
    assert eventually(lambda: [run.info.status for run in runs(mlflow, "test")] == ["KILLED"])
    (killed,) = runs(mlflow, "test")
    assert killed.data.metrics["loss"] == 0.02

    printed, err, _ = run_command(root=root, resume_key="it's a key")
    (resumed,) = runs(mlflow, "test")
    assert (resumed.info.run_id, resumed.info.status) == (killed.info.run_id, "FINISHED")
    assert len(mlflow.get_metric_history(killed.info.run_id, "loss")) == 50  # the steps that came twice are there once
    assert (printed["mlflow"], printed["threads"], err) == (False, 1, [])  # the command itself stays light
    assert printed["start"] < 0.2


def test_the_environment_names_the_store(
    root: Path, tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    shutil.copy(root / "mlflow.db", tmp_path)
    start(experiment="elsewhere").close()
    assert len(runs(client(tmp_path), "elsewhere")) == 1


# ---- what cannot hurt ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    with socket.socket() as bound:  # bound and not listening
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.contextmanager
def hanging() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)  # the kernel accepts, nobody answers
        yield listener.getsockname()[1]


@contextlib.contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server with one answer; yields its port and the paths that it was asked for."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(status)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], requests
        server.shutdown()


@contextlib.contextmanager
def failing() -> Iterator[int]:
    with answering(500) as (port, _):
        yield port


@pytest.fixture(scope="module")
def plain_wall(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that the command of 200 steps takes without a mirror."""
    return run_command(root=tmp_path_factory.mktemp("plain"), enabled=False, steps=200)[2]


@pytest.mark.parametrize(("server", "reason"), [(refusing, "refused"), (hanging, "timed out"), (failing, "500")])
def test_a_dead_server_costs_five_seconds_and_one_line(
    tmp_path: Path, plain_wall: float, server: Any, reason: str
) -> None:
    with server() as port:
        printed, err, wall = run_command(
            root=tmp_path,
            uri=f"http://user:secret@127.0.0.1:{port}",
            steps=200,
            constants={"CLOSE_SECONDS": 5.0, "BUFFER_VALUES": 150},
        )
    assert printed["start"] < 0.2
    assert printed["close"] < 8  # five seconds, on a busy machine
    assert wall - plain_wall < 8
    (line,) = err
    assert line.startswith(f"WARN MLflow mirror http://127.0.0.1:{port}: ")
    late = "no answer within 5 s" in line  # where MLflow takes that long to import, or to give up
    assert late or (reason in line and "50 values came while too many waited" in line)
    assert line.endswith("metrics are complete in history.jsonl")
    assert "secret" not in line


@pytest.mark.parametrize(
    ("status", "todo"), [(401, "MLFLOW_TRACKING_USERNAME"), (403, "MLFLOW_TRACKING_USERNAME"), (404, "address")]
)
def test_what_a_person_must_mend_is_asked_for_slowly_and_said(tmp_path: Path, status: int, todo: str) -> None:
    with answering(status) as (port, requests):
        run = in_process(tmp_path, uri=f"http://user:secret@127.0.0.1:{port}")
        told = mirrored(run, end_after=0.3, retry_seconds=(0.01, 60.0))
        asked = len(requests)
    ((problem, do),) = told
    assert problem is not None and str(status) in problem and "secret" not in problem
    assert todo in do
    assert asked == 2  # at first, and at the end while somebody waits


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pass@host:5000/x", "http://host:5000/x"),
        ("https://user:p@ss/word@host", "https://host"),
        ("postgresql+psycopg2://u:p@host/db?password=x&a=1", "postgresql+psycopg2://host/db?password=...&a=1"),
        ("no http://u:p@h/a nor http://h/b", "no http://h/a nor http://h/b"),
        ("sqlite:////a@b/c@d/mlflow.db", "sqlite:////a@b/c@d/mlflow.db"),
    ],
)
def test_credentials_are_never_shown(text: str, shown: str) -> None:
    assert tracking.without_credentials(text) == shown


def test_an_unusable_store_is_said(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is not a database, " * 100)
    ((problem, _),) = mirrored(in_process(tmp_path))
    assert problem is not None and "not a database" in problem


def test_a_folder_that_takes_no_store_is_said_and_may_be_mended_meanwhile(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.write_text("a file where the folder should be: root may write everywhere")
    run = in_process(folder)
    with pytest.raises(NotADirectoryError):
        run.open()
    folder.unlink()
    folder.mkdir()
    shutil.copy(root / "mlflow.db", folder)
    assert mirrored(run) == [(None, tracking.CHECK_ADDRESS)]


def test_without_mlflow_there_is_one_line(tmp_path: Path) -> None:
    printed, err, wall = run_command(root=tmp_path, poison=True)
    assert err == [
        f"WARN MLflow mirror sqlite:///{tmp_path}/mlflow.db: mlflow is not installed: install it or switch tracking "
        "off; metrics are complete in history.jsonl"
    ]
    assert printed["close"] < 0.1
    assert wall < 2
    assert list(tmp_path.iterdir()) == []


def test_off_does_nothing(tmp_path: Path) -> None:
    printed, err, _ = run_command(root=tmp_path, enabled=False)
    assert err == []
    assert printed["mlflow"] is False
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_never_closes_exits_at_once(root: Path) -> None:
    *_, plain = run_command(root=root, enabled=False)
    _, err, wall = run_command(root=root, close=False, name="unclosed")
    assert err == []
    assert wall - plain < 1.0


def test_a_full_queue_drops_counts_and_never_blocks(
    start: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "QUEUE_POINTS", 500)
    tracker = start()
    os.kill(tracker._process.pid, signal.SIGSTOP)  # a mirror that takes nothing
    began = time.perf_counter()
    for step in range(20_000):
        tracker.log({"loss": 1.0, "a": 2.0, "b": 3.0}, step=step)
    assert time.perf_counter() - began < 2.0
    assert len(tracker._waiting) == 500
    assert 0 < tracker._dropped < 20_000
    tracker._process.kill()
    tracker.close()
    assert len(warnings) == 1


@pytest.mark.slow
def test_a_million_points_in_an_outage_take_little_memory(start: Any, warnings: list[str]) -> None:
    def resident(pid: int | str) -> float:
        (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024

    with refusing() as port:
        before = resident("self")
        tracker = start(uri=f"http://127.0.0.1:{port}")
        slowest = 0.0
        for step in range(1_000_000):
            began = time.perf_counter()
            tracker.log({"loss": 1.0 / (step + 1)}, step=step)
            slowest = max(slowest, time.perf_counter() - began)
        time.sleep(3)
        print(
            f"parent {resident('self') - before:.0f} MB more, child {resident(tracker._process.pid):.0f} MB, {slowest}"
        )
        assert resident("self") - before < 50
        assert resident(tracker._process.pid) < 400
        assert slowest < 0.5
        tracker.close()
    (line,) = warnings
    assert "dropped" in line


def test_a_mirror_that_dies_is_one_line(start: Any, warnings: list[str]) -> None:
    tracker = start()
    tracker._process.kill()
    for step in range(100):
        tracker.log({"loss": 1.0}, step=step)
    tracker.close()
    (line,) = warnings
    assert "died" in line


def test_a_forked_worker_and_what_is_no_number_do_not_get_into_the_run(
    root: Path, start: Any, warnings: list[str]
) -> None:
    tracker = start()
    child = os.fork()
    if child == 0:
        tracker.log({"worker": 1.0}, step=0)
        tracker.close(status="FAILED")
        os._exit(0)
    os.waitpid(child, 0)
    tracker.log({"loss": 1.0}, step=0)
    tracker.log({"loss": "much"}, step=0)
    tracker.log({"loss": 1.0}, step=2**70)
    tracker.close(summary={"miou": None})
    (run,) = runs(client(root), "test_a_forked_worker_and_what_is_no_number_do_not_get_into_the_run")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})
    (line,) = warnings
    assert "3 points could not be recorded" in line


def test_an_mlflow_that_needs_the_hidden_packages_gets_them(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").touch()
    (tmp_path / "mlflow" / "tracking.py").write_text("import pandas")
    (tmp_path / "pandas.py").touch()
    code = "import sys; from mmseg_cli import mirror; mirror._import_mlflow(False); print(sys.modules['pandas'])"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert str(tmp_path) in done.stdout, done.stderr


# ---- an outage -----------------------------------------------------------------------------------------------------


class Server:
    """A real MLflow server on a port of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        arguments += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        arguments += ["--artifacts-destination", str(self.folder)]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        assert eventually(self.healthy, 60), (self.folder / "log").read_text()

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    shutil.copy(root / "mlflow.db", tmp_path)  # made before, which takes a server longer
    running = Server(tmp_path)
    running.start()
    yield running
    running.kill()


def steps_of(of: Any, run_id: str) -> list[int]:
    return sorted(point.step for point in of.get_metric_history(run_id, "loss"))


@pytest.mark.slow
def test_a_real_server_killed_and_restarted_has_the_whole_run(
    server: Server, start: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", (0.5,))
    near = client(server.folder)  # its database, which answers also while the server is away
    with start(uri=server.uri, experiment="far", parent="group", params={"a": {"b": 1}}, tags={"c": "d"}) as tracker:

        def train(steps: range) -> None:
            for step in steps:
                tracker.log({"loss": float(step), "nan": float("nan")}, step=step)
                time.sleep(0.005)

        train(range(70))
        assert eventually(lambda: [run for run in runs(near, "far") if "loss" in run.data.metrics])
        killing = threading.Timer(0.1, server.kill)
        killing.start()
        train(range(70, 140))
        killing.join()
        time.sleep(1.0)  # several tries
        server.start()
        train(range(140, 200))
        (mine,) = [run for run in runs(near, "far") if "loss" in run.data.metrics]
        # The end does not wait for a server that was away a moment ago; a run of days finds it back before.
        assert eventually(lambda: len(steps_of(near, mine.info.run_id)) > 140, seconds=30)
    assert warnings == []
    parent, run = sorted(runs(client(server.uri), "far"), key=lambda run: str(run.info.run_name))
    assert (parent.info.run_name, parent.info.status) == ("group", "FINISHED")
    assert (run.info.status, run.data.params, run.data.tags["c"]) == ("FINISHED", {"a.b": "1"}, "d")
    assert steps_of(client(server.uri), run.info.run_id) == list(range(200))
    assert len(near.get_metric_history(run.info.run_id, "nan")) == 200


@pytest.mark.slow
def test_a_server_killed_under_a_command_costs_a_line_and_the_next_command_goes_on(server: Server) -> None:
    options: dict[str, Any] = {"root": server.folder, "uri": server.uri, "resume_key": "k", "steps": 200}
    options["constants"] = {"CLOSE_SECONDS": 5.0}
    near = client(server.folder)
    with command(**options, hold=True) as first:
        assert first.stdin is not None and first.stdout is not None and first.stderr is not None
        assert first.stdout.readline() == "ready\n"
        assert eventually(lambda: [run for run in runs(near, "test") if "loss" in run.data.metrics])
        server.kill()
        out, err = first.communicate("go on\n", timeout=30)
    assert first.returncode == 0
    assert json.loads(out)["close"] < 8
    assert len(err.splitlines()) == 1 and "refused" in err
    time.sleep(tracking.LINGER_SECONDS)
    (run,) = runs(near, "test")
    assert run.info.status == "RUNNING"
    server.start()
    _, err_lines, _ = run_command(**(options | {"first": 150, "steps": 250, "constants": {}}))
    (resumed,) = runs(near, "test")
    assert (resumed.info.run_id, resumed.info.status, err_lines) == (run.info.run_id, "FINISHED", [])
    assert steps_of(near, run.info.run_id) == list(range(250))


@pytest.mark.slow
def test_a_server_that_returns_soon_after_the_command_still_gets_all(server: Server) -> None:
    server.kill()
    constants = {"CLOSE_SECONDS": 5.0, "LINGER_SECONDS": 60}
    printed, err, _ = run_command(root=server.folder, uri=server.uri, steps=200, constants=constants)
    assert printed["close"] < 8
    assert len(err) == 1
    server.start()
    near = client(server.folder)
    assert eventually(lambda: [run.info.status for run in runs(near, "test")] == ["FINISHED"], 20)
    (run,) = runs(near, "test")
    assert steps_of(near, run.info.run_id) == list(range(200))


class LossyClient:
    """Stands before an MLflow client: the named calls arrive, and their first answers are lost."""

    def __init__(self, inner: Any, *lost: str) -> None:
        self.inner = inner
        self.lost = list(lost)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            answer = getattr(self.inner, name)(*arguments, **keywords)
            if name in self.lost:
                self.lost.remove(name)
                raise OSError(f"no answer to {name}")
            return answer

        return call


def test_what_is_sent_twice_is_there_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.tracking

    lossy = LossyClient(client(root), "create_experiment", "create_run", "create_run", *["log_batch"] * 3)
    lossy.lost.append("set_terminated")
    monkeypatch.setattr(mlflow.tracking, "MlflowClient", lambda _: lossy)
    run = in_process(
        root, experiment="twice", params={f"p{index}": index for index in map(str, range(150))}, parent="g"
    )
    waiting = points(range(1500))
    failures = 0
    while failures < 20:
        try:
            run.end(waiting, end(miou=0.5))
            break
        except OSError:
            failures += 1
    assert (failures, lossy.lost) == (6, [])
    parent, found = sorted(runs(client(root), "twice"), key=lambda run: str(run.info.run_name))
    assert (parent.info.run_name, found.info.run_name, found.info.status) == ("g", "run", "FINISHED")
    assert len(found.data.params) == 150
    assert steps_of(client(root), str(found.info.run_id)) == list(range(1500))
    assert len(client(root).get_metric_history(found.info.run_id, "miou")) == 1


def test_a_run_that_goes_on_fills_its_gaps_and_repeats_nothing(root: Path) -> None:
    first = in_process(root, experiment="gaps", resume_key="k")
    first.open()
    first.write(points(range(50)))
    first.write(points(range(60, 100)))
    first.write(points(range(100), name="nan", value=lambda _: float("nan")))
    second = in_process(root, experiment="gaps", resume_key="k")  # from the checkpoint at step 40
    second.open()
    second.write(points(range(40, 120), name="nan", value=lambda _: float("nan")))
    second.end(points(range(40, 120), value=lambda step: 0.25 if step == 99 else step), end("KILLED"))
    assert second.run_id == first.run_id
    steps = steps_of(client(root), str(first.run_id))
    assert steps == sorted([*range(120), 99])  # what was measured again is a point of its own
    assert len(client(root).get_metric_history(first.run_id, "nan")) == 120


def test_other_parameters_or_a_finished_run_begin_a_new_one(root: Path) -> None:
    for steps, status in (("10", "KILLED"), ("20", "FINISHED"), ("20", "FINISHED"), ("10", "FINISHED")):
        run = in_process(root, experiment="others", params={"steps": steps}, resume_key="it's a key")
        run.end(deque(), end(status))  # type: ignore[arg-type]
    in_process(root, experiment="others", params={"steps": "10"}, resume_key="another").open()
    found = runs(client(root), "others")
    assert sorted(run.data.params["steps"] for run in found) == ["10", "10", "20", "20"]
    assert sorted(run.info.status for run in found) == ["FINISHED", "FINISHED", "FINISHED", "RUNNING"]


def test_what_was_deleted_in_mlflow_is_said_and_goes_on_when_restored(root: Path) -> None:
    run = in_process(root, experiment="deleted")
    run.open()
    run.client.delete_run(run.run_id)
    assert mirrored(run) == [("the run was deleted", "restore it in MLflow")]
    run.client.restore_run(run.run_id)
    assert mirrored(run) == [(None, tracking.CHECK_ADDRESS)]
    experiment = run.client.get_experiment_by_name("deleted").experiment_id
    run.client.delete_experiment(experiment)
    again = in_process(root, experiment="deleted")
    assert mirrored(again) == [("the experiment 'deleted' was deleted", "restore it in MLflow")]
    run.client.restore_experiment(experiment)
    assert mirrored(again) == [(None, tracking.CHECK_ADDRESS)]


def test_a_value_that_mlflow_refuses_does_not_keep_the_others_away(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_name", lambda name: name)
    run = in_process(root, experiment="refused", params={"good": "1", "bad, too": "2"})
    run.open()
    run.write(deque([*points(range(30)), *points(range(2), name="bad, too"), *points(range(30, 60))]))
    assert steps_of(client(root), str(run.run_id)) == list(range(60))
    ((problem, _),) = mirrored(run)
    assert problem is not None and "MLflow refused 3 values" in problem


def test_the_inbox_is_bounded_and_counts(root: Path) -> None:
    inbox = mirror.Inbox(1000)
    inbox.receive(tracking.encode(["point", step, 1, {"a": 1.0, "b": 2.0}]) for step in range(50_000))
    assert (len(inbox.points), inbox.dropped) == (1000, 99_000)
    assert inbox.points[-1] == mirror.Point("b", 2.0, 1, 499)
    assert inbox.end is not None and (inbox.end.status, inbox.end.step) == ("KILLED", 49_999)


# ---- the child's retry, without MLflow -----------------------------------------------------------------------------


class FlakyRun:
    """Stands for the MLflow side: fails as often as told."""

    refused = 0

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or OSError("away")
        self.written: list[Any] = []
        self.tries = 0

    def open(self) -> None:
        pass

    def write(self, points: Any) -> None:
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise self.error
        self.written += points
        points.clear()

    def end(self, points: Any, end: mirror.End) -> None:
        self.write(points)
        self.written.append((end.status, end.summary, end.step))


WHOLE = [mirror.Point("loss", 0.5, 1, 7), ("FINISHED", {"final": 1.0}, 7)]
FINE = [(None, tracking.CHECK_ADDRESS)]
AWAY = [("OSError: away", tracking.CHECK_ADDRESS)]


@pytest.mark.parametrize("failures", [0, 1, 2, 10])
def test_the_mirror_tries_for_as_long_as_the_run_lasts(failures: int) -> None:
    run = FlakyRun(failures)
    assert mirrored(run, end_after=0.5, retry_seconds=(0.01, 0.02)) == FINE
    assert run.written == WHOLE


def test_the_pauses_grow_to_a_bound() -> None:
    run = FlakyRun(1000)
    assert mirrored(run, end_after=0.5, retry_seconds=(0.01, 0.02, 0.2), soon_seconds=60.0) == AWAY
    assert 3 <= run.tries <= 6


def test_a_server_that_is_back_at_the_end_gets_all() -> None:
    run = FlakyRun(1)
    assert mirrored(run, end_after=0.2, retry_seconds=(60.0,)) == FINE
    assert (run.written, run.tries) == (WHOLE, 2)


def test_a_fresh_failure_is_said_at_once_and_tried_again_afterwards() -> None:
    run = FlakyRun(1)
    told = mirrored(run, end_after=0.2, retry_seconds=(60.0, 0.01), soon_seconds=10.0, linger_seconds=5)
    assert told == AWAY
    assert run.written == WHOLE


def test_a_connection_that_was_dropped_meanwhile_is_made_again_at_the_end() -> None:
    run = FlakyRun(1)
    assert mirrored(run) == FINE  # the end is there before the first try
    assert (run.written, run.tries) == (WHOLE, 2)


def test_what_lasts_is_tried_rarely() -> None:
    run = FlakyRun(1000, mirror.DeletedError("gone"))
    assert mirrored(run, end_after=0.3, retry_seconds=(0.01, 60.0)) == [("gone", "restore it in MLflow")]
    assert run.tries == 2
