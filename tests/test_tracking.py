"""The MLflow mirror: what arrives in it, and that nothing it does can hurt the command it mirrors."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmseg_cli import errors, tracking

pytest.importorskip("mlflow")

PROJECT = Path(tracking.__file__).parents[1]

# One short command: start, 50 logs, close. Its only argument is a JSON object of options.
COMMAND = """
import json, sys, time
options = json.loads(sys.argv[1])
if options.get("poison"):
    sys.modules["mlflow"] = None
from pathlib import Path
from mmseg_cli import tracking
began = time.perf_counter()
tracker = tracking.start(
    enabled=options.get("enabled", True), uri=options.get("uri"), root=Path(options["root"]), experiment="test",
    run_name=options.get("name", "run"), parent=options.get("parent"), params={"a": 1}, tags={},
    warn=lambda line: print("WARN", line, file=sys.stderr), resume_key=options.get("resume_key"),
)
started = time.perf_counter() - began
for step in range(50):
    tracker.log({"loss": 1.0 / (step + 1)}, step=step)
if options.get("hold"):
    print("ready", flush=True)
    time.sleep(60)
if options.get("close", True):
    began = time.perf_counter()
    tracker.close()
    print(json.dumps({"start": started, "close": time.perf_counter() - began, "mlflow": "mlflow" in sys.modules,
                      "threads": __import__("threading").active_count()}))
"""


def command(**options: Any) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    environment["PYTHONPATH"] = str(PROJECT)
    arguments = [sys.executable, "-c", COMMAND, json.dumps(options, default=str)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run_command(**options: Any) -> tuple[dict[str, Any], list[str], float]:
    """Return what the command printed, the lines on stderr, and its wall time in seconds."""
    began = time.perf_counter()
    with command(**options) as process:
        out, err = process.communicate(timeout=30)
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
    return folder


PATIENT = 18.0  # seconds to wait for the mirror where waiting is not what is tested: a busy machine may take them


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def start(root: Path, warnings: list[str], request: pytest.FixtureRequest) -> Any:
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


# ---- what arrives --------------------------------------------------------------------------------------------------


def test_a_run_arrives_whole(
    root: Path, start: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train@mmbconv-0")
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", PATIENT)
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
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert err == "" or "no answer within 5 s" in err  # a crowded machine: the mirror finishes by itself
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
    (tmp_path / "mlflow.db-new").write_bytes(b"half")
    _, err, _ = run_command(root=tmp_path)
    assert err == []
    assert len(runs(client(tmp_path), "test")) == 1


def test_a_real_server_receives_the_run(tmp_path: Path, start: Any, warnings: list[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    arguments = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *arguments], stdout=log, stderr=log, env=environment, cwd=tmp_path, start_new_session=True
        )
    try:

        def healthy() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
            return False

        assert eventually(healthy, 40), (tmp_path / "log").read_text()
        with start(uri=uri, experiment="far", parent="group", params={"a": {"b": 1}}, root=tmp_path) as tracker:
            for step in range(20):
                tracker.log({"loss": float(step), "nan": float("nan")}, step=step)
        assert warnings == []
        (run,) = [run for run in runs(client(uri), "far") if run.info.run_name == "run"]
        assert run.info.status == "FINISHED"
        assert run.data.params == {"a.b": "1"}
        assert run.data.metrics["loss"] == 19.0
        assert len(client(uri).get_metric_history(run.info.run_id, "loss")) == 20
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_how_a_run_ends(root: Path, start: Any) -> None:
    for name, error in {
        "bad": ValueError(),
        "key": KeyboardInterrupt(),
        "term": errors.Interrupted("x", 15, "y"),
    }.items():
        with pytest.raises(type(error)), start(run_name=name):
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

    run_command(root=root, resume_key="it's a key")
    run_command(root=root, resume_key="another")
    statuses = {run.info.run_id: run.info.status for run in runs(mlflow, "test")}
    assert len(statuses) == 2
    assert set(statuses.values()) == {"FINISHED"}
    assert killed.info.run_id in statuses


def test_other_parameters_or_a_finished_run_begin_a_new_one(root: Path, start: Any, warnings: list[str]) -> None:
    start(params={"steps": 10}, resume_key="k").close(status="KILLED")
    start(params={"steps": 20}, resume_key="k").close()
    start(params={"steps": 20}, resume_key="k").close()
    start(params={"steps": 10}, resume_key="k").close()
    found = runs(client(root), "test_other_parameters_or_a_finished_run_begin_a_new_one")
    assert sorted(run.data.params["steps"] for run in found) == ["10", "20", "20"]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert warnings == []


def test_the_environment_names_the_store(
    root: Path, tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
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
def failing() -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("server", "reason"), [(refusing, "refused"), (hanging, "no answer within 5 s"), (failing, "500")]
)
def test_a_dead_server_costs_five_seconds_and_one_line(tmp_path: Path, server: Any, reason: str) -> None:
    *_, plain = run_command(root=tmp_path, enabled=False)
    with server() as port:
        printed, err, wall = run_command(root=tmp_path, uri=f"http://user:secret@127.0.0.1:{port}")
    assert printed["start"] < 0.2
    assert printed["close"] < 5.5
    assert wall - plain < 6.0
    (line,) = err
    assert line.startswith(f"WARN MLflow mirror http://127.0.0.1:{port}: ")
    assert reason in line
    assert line.endswith("metrics are complete in history.jsonl")
    assert "secret" not in line


def test_an_unusable_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is not a database, " * 100)
    printed, err, _ = run_command(root=tmp_path)
    assert printed["close"] < 5.5
    assert len(err) == 1


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


def test_the_command_itself_never_imports_mlflow_nor_starts_a_thread(root: Path) -> None:
    printed, err, _ = run_command(root=root)
    assert (printed["mlflow"], printed["threads"], err) == (False, 1, [])
    assert printed["start"] < 0.2


def test_a_command_that_never_closes_exits_at_once(root: Path) -> None:
    *_, plain = run_command(root=root, enabled=False)
    _, err, wall = run_command(root=root, close=False, name="unclosed")
    assert err == []
    assert wall - plain < 1.0


def test_a_full_queue_drops_counts_and_never_blocks(
    start: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", PATIENT)
    tracker = start()
    os.kill(tracker._process.pid, signal.SIGSTOP)  # a mirror that takes nothing
    began = time.perf_counter()
    for step in range(tracking.QUEUE_POINTS + 5000):
        tracker.log({"loss": 1.0, "a": 2.0, "b": 3.0}, step=step)
    assert time.perf_counter() - began < 2.0
    os.kill(tracker._process.pid, signal.SIGCONT)
    tracker.close()
    (line,) = warnings
    assert "points could not be recorded" in line


def test_values_that_are_no_numbers_do_not_raise(start: Any, warnings: list[str]) -> None:
    tracker = start()
    tracker.log({"loss": "much"}, step=0)
    tracker.close(summary={"miou": None})
    assert len(warnings) == 1


def test_a_mirror_that_dies_is_one_line(start: Any, warnings: list[str]) -> None:
    tracker = start()
    tracker._process.kill()
    for step in range(100):
        tracker.log({"loss": 1.0}, step=step)
    tracker.close()
    (line,) = warnings
    assert "died" in line


def test_a_forked_worker_cannot_write_to_the_run(root: Path, start: Any) -> None:
    tracker = start()
    child = os.fork()
    if child == 0:
        tracker.log({"worker": 1.0}, step=0)
        tracker.close(status="FAILED")
        os._exit(0)
    os.waitpid(child, 0)
    tracker.log({"loss": 1.0}, step=0)
    tracker.close()
    (run,) = runs(client(root), "test_a_forked_worker_cannot_write_to_the_run")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})


def test_an_mlflow_that_needs_the_hidden_packages_gets_them(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").touch()
    (tmp_path / "mlflow" / "tracking.py").write_text("import pandas")
    (tmp_path / "pandas.py").touch()
    code = "import sys; from mmseg_cli import tracking; tracking._import_mlflow(False); print(sys.modules['pandas'])"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert str(tmp_path) in done.stdout, done.stderr


# ---- the child's retry, without a process --------------------------------------------------------------------------


class FlakyRun:
    """Stands for the MLflow side: fails as often as told."""

    failures = 0
    written: list[Any]

    def __init__(self, config: dict[str, Any]) -> None:
        FlakyRun.written = []

    def open(self) -> None:
        pass

    def write(self, points: Any) -> None:
        if points and FlakyRun.failures:
            FlakyRun.failures -= 1
            raise OSError("away")
        FlakyRun.written += points
        points.clear()

    def end(self, status: str, when: int) -> None:
        FlakyRun.written.append(status)


@pytest.mark.parametrize(("failures", "problem"), [(0, None), (1, None), (2, "OSError: away")])
def test_one_failure_is_retried_and_the_second_is_final(
    monkeypatch: pytest.MonkeyPatch, failures: int, problem: str | None
) -> None:
    monkeypatch.setattr(tracking, "_Run", FlakyRun)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.1)
    FlakyRun.failures = failures
    lines: Any = tracking.queue.SimpleQueue()
    ended = threading.Timer(0.5, lines.put, [["end", "FINISHED", 2, {"final": 1.0}]])
    ended.start()
    lines.put(["point", 7, 1, {"loss": 0.5}])
    assert tracking._mirror({}, lines) == problem
    ended.join()
    if problem is None:
        assert FlakyRun.written == [("loss", 0.5, 1, 7), ("final", 1.0, 2, 7), "FINISHED"]
