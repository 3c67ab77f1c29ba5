"""The driver with an engine that only pretends: what is handed over, what becomes of it, and what stopping does."""

from __future__ import annotations

import copy
import time

import pytest

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import drive, dvc
from mmseg_cli.execution.engine import Ended, News
from mmseg_cli.execution.jobs import State
from mmseg_cli.execution.progress import Progress
from mmseg_cli.params import load
from mmseg_cli.paths import Paths
from tests.execution.conftest import REPOSITORY


class Pretender:
    """An engine in which every stage ends at once, as `says` tells: its codes, one try after the other."""

    name = "pretender"

    def __init__(self, says=None, *, room=1000):
        self.says, self.room = says or {}, room
        self.handed, self.running, self.stopped = [], {}, None

    def require(self, job):
        pass

    def takes(self, job):
        return len(self.running) < self.room

    def submit(self, job):
        self.handed.append(job.stage)
        self.running[job.stage] = job

    def ended(self):
        found = []
        for stage in list(self.running):
            codes = self.says.get(stage, [0])
            code = codes.pop(0) if len(codes) > 1 else codes[0]
            if code == "ctrl-c":
                raise KeyboardInterrupt
            if code != "goes on":
                del self.running[stage]
                found.append(Ended(stage, code, "" if code == 0 else f"code {code}"))
        return found

    def news(self):
        return {stage: News("elsewhere", Progress(5, 10, 0.5)) for stage in self.running}

    def stop(self, *, seconds):
        self.stopped = seconds

    def close(self):
        pass


def graph_of(edges):
    return dvc.Graph({stage: frozenset(before) for stage, before in edges.items()}, frozenset(edges))


SMALL = {"prepare@x": [], "train@a-0": ["prepare@x"], "train@b-0": ["prepare@x"], "ablate": ["train@a-0", "train@b-0"]}


@pytest.fixture
def driven(tmp_path):
    """Drive a graph by a Pretender: the jobs, and the statuses that were shown."""
    params = load(REPOSITORY / "params.yaml")

    def run(engine, edges=SMALL):
        paths, shown = Paths(tmp_path, "demo"), []
        jobs = drive.jobs_of(graph_of(edges), paths, params, gpus=0)
        run.jobs, run.paths, run.shown = jobs, paths, shown
        drive.drive(jobs, engine, paths=paths, params=params, show=lambda status: shown.append(copy.deepcopy(status)))
        return jobs

    return run


def test_all_stages_are_handed_over_in_an_order_that_the_graph_allows(driven):
    engine = Pretender()
    jobs = driven(engine)
    assert engine.handed == ["prepare@x", "train@a-0", "train@b-0", "ablate"]
    assert all(job.state is State.DONE for job in jobs)
    assert drive.Status.read(drive.status_file(driven.paths)).jobs == list(jobs)


def test_an_engine_gets_no_more_than_it_takes(driven):
    engine = Pretender({"train@a-0": ["goes on", "goes on", 0]}, room=1)
    driven(engine)
    assert engine.handed == ["prepare@x", "train@a-0", "train@b-0", "ablate"]


def test_a_stage_begins_when_a_machine_has_it_and_not_when_it_is_queued(driven):
    engine = Pretender()
    jobs = driven(engine)
    job = jobs.of["train@a-0"]
    jobs.begin(job, clock=lambda: 7.0)
    for machine, queued in (("", True), ("node", False)):
        engine.news = lambda machine=machine: {job.stage: News(machine)}
        drive._look(jobs, engine, paths=driven.paths, params=load(REPOSITORY / "params.yaml"))
        assert (job.began == 7.0) is queued
    began = job.began
    drive._look(jobs, engine, paths=driven.paths, params=load(REPOSITORY / "params.yaml"))
    assert job.began == began


@pytest.mark.parametrize("code", [None, 130, 143])
def test_what_is_lost_or_stopped_by_a_signal_is_tried_again(driven, code):
    engine = Pretender({"train@a-0": [code, code, 0]})
    jobs = driven(engine)
    assert engine.handed.count("train@a-0") == 3
    assert jobs.of["train@a-0"].tries == 3
    assert all(job.state is State.DONE for job in jobs)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 254, 255])
def test_what_fails_is_not_tried_again_and_the_rest_goes_on(driven, code):
    engine = Pretender({"train@a-0": [code]})
    jobs = driven(engine)
    assert engine.handed == ["prepare@x", "train@a-0", "train@b-0"]
    assert jobs.of["train@a-0"].state is State.FAILED
    assert jobs.of["train@a-0"].why == f"code {code}"
    assert jobs.of["ablate"].state is State.LEFT_OUT


def test_ctrl_c_stops_the_engine_and_says_what_is_left(driven):
    engine = Pretender({"train@b-0": ["goes on", "ctrl-c"]})
    with pytest.raises(KeyboardInterrupt):
        driven(engine)
    assert engine.stopped == 300.0  # save_minutes: 5
    states = {job.stage: job.state for job in drive.Status.read(drive.status_file(driven.paths)).jobs}
    assert states == {
        "prepare@x": State.DONE,
        "train@a-0": State.DONE,
        "train@b-0": State.STOPPED,
        "ablate": State.WAITING,
    }
    assert [status.jobs[2].state for status in driven.shown[-3:]] == [State.RUNNING, State.SAVING, State.STOPPED]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), SystemExit(1)])
def test_a_screen_or_disk_that_fails_does_not_keep_the_engine_from_being_stopped(driven, monkeypatch, fault):
    tell = drive._tell

    def told(status, paths, show):
        if any(job.state in (State.SAVING, State.STOPPED) for job in status.jobs):
            raise fault
        return tell(status, paths, show)

    monkeypatch.setattr(drive, "_tell", told)
    engine = Pretender({"train@b-0": ["goes on", "ctrl-c"]})
    with pytest.raises(KeyboardInterrupt):
        driven(engine)
    assert engine.stopped == 300.0


def test_news_of_an_engine_are_shown(driven, monkeypatch):
    monkeypatch.setattr(drive, "LOOK_SECONDS", 0.0)
    driven(Pretender({"train@a-0": ["goes on", "goes on", 0]}))
    seen = [job for status in driven.shown for job in status.jobs if job.stage == "train@a-0"]
    assert {job.machine for job in seen} >= {"elsewhere"}
    assert seen[-1].step == 5
    assert seen[-1].steps == 10


@pytest.mark.parametrize(
    ("device", "devices", "here", "gpus"),
    [("auto", "auto", 8, 1), ("auto", 2, 8, 2), ("auto", 1, 0, 0), ("auto", 1, None, 1), ("cpu", 2, 8, 0)],
)
def test_needs_of_gpus_are_by_the_runtime(device, devices, here, gpus):
    params = load(REPOSITORY / "params.yaml")
    runtime = params.runtime.model_copy(update={"device": device, "devices": devices})
    params = params.model_copy(update={"runtime": runtime})
    assert drive.needs_of(params, "train@a-0", gpus=here).gpus == gpus
    assert drive.needs_of(params, "prepare@x", gpus=here).gpus == 0
    assert drive.needs_of(params, "cost", gpus=here).alone
    assert not drive.needs_of(params, "evaluate@a-0", gpus=here).alone


def test_a_kind_that_there_is_not_is_said(tmp_path):
    params = load(REPOSITORY / "params.yaml")
    wrong = params.execution.model_copy(
        update={"needs": {**params.execution.needs, "cots": params.execution.needs["cost"]}}
    )
    with pytest.raises(MmsegError, match=r"execution.needs: unknown name 'cots': .*cost"):
        drive.jobs_of(graph_of(SMALL), Paths(tmp_path, "demo"), params.model_copy(update={"execution": wrong}), gpus=0)


def test_a_file_that_is_no_status_is_said(tmp_path):
    file = tmp_path / "status.json"
    file.write_text('{"jobs": 3}')
    with pytest.raises(MmsegError, match=r"status.json: is no status of a grid: remove it"):
        drive.Status.read(file)


def test_the_graph_is_dvc_s_own(shell_project):
    project = shell_project(
        {"one": ("true", []), "two": ("true", ["one"]), "other": ("true", []), "last": ("true", ["two", "other"])}
    )
    graph = dvc.graph(project.paths)
    assert graph.before == {
        "one": frozenset(),
        "two": frozenset(["one"]),
        "other": frozenset(),
        "last": frozenset(["two", "other"]),
    }
    assert set(graph.to_run()) == {"one", "two", "other", "last"}
    project.dvc("repro")
    assert dvc.graph(project.paths).to_run() == {}
    (project.root / "other.out").unlink()
    assert dvc.graph(project.paths).to_run() == {"other": frozenset(), "last": frozenset(["other"])}


def test_what_dvc_cannot_read_is_one_error(shell_project):
    project = shell_project({"one": ("true", [])})
    (project.root / "dvc.yaml").write_text("stages: {one: {cmd: true, deps: [}}")
    with pytest.raises(MmsegError, match=r"^dvc status --json dvc.yaml: .+: mend that and run this again"):
        dvc.graph(project.paths)


def test_driving_itself_takes_next_to_nothing(driven):
    """No bound on a time: it is here so that a driver that slows down with the square of a grid hangs the suite."""
    edges = {"prepare@x": []} | {f"train@a-{seed}": ["prepare@x"] for seed in range(500)}
    begun = time.monotonic()
    jobs = driven(Pretender(), edges)
    assert jobs.count(State.DONE) == 501
    print(f"{time.monotonic() - begun:.2f} s for 501 stages")
