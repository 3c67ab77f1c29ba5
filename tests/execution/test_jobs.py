"""What becomes of stages: which are ready, tried again, failed, left out; and what a person sees of it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mmseg_cli.execution import board, dvc
from mmseg_cli.execution.drive import Status
from mmseg_cli.execution.jobs import Job, Jobs, State
from mmseg_cli.params import Needs

NEEDS = Needs(gpus=0, cpus=1, memory_gib=1)
GRAPH = {"prepare": [], "train@a-0": ["prepare"], "train@b-0": ["prepare"], "ablate": ["train@a-0", "train@b-0"]}


def made(graph=GRAPH, *, retries=2):
    jobs = Jobs(retries=retries)
    for stage, before in graph.items():
        jobs.of[stage] = Job(stage, frozenset(before), frozenset(before), NEEDS, f"{stage}.log")
    return jobs


def ready(jobs):
    return [job.stage for job in jobs.ready()]


def run(jobs, *stages):
    for stage in stages:
        jobs.begin(jobs.of[stage])
        jobs.done(jobs.of[stage])


def test_a_stage_is_ready_when_all_before_it_are_done():
    jobs = made()
    assert ready(jobs) == ["prepare"]
    jobs.begin(jobs.of["prepare"])
    assert ready(jobs) == []
    jobs.done(jobs.of["prepare"])
    assert ready(jobs) == ["train@a-0", "train@b-0"]
    run(jobs, "train@a-0", "train@b-0")
    assert ready(jobs) == ["ablate"]
    assert not jobs.finished
    run(jobs, "ablate")
    assert jobs.finished


def test_a_failure_leaves_out_what_comes_after_it_and_nothing_else():
    jobs = made({**GRAPH, "verify": ["ablate"], "cost": []})
    run(jobs, "prepare")
    jobs.begin(jobs.of["train@a-0"])
    jobs.fail(jobs.of["train@a-0"], "the loss is not finite")
    states = {job.stage: job.state for job in jobs}
    assert states["ablate"] is states["verify"] is State.LEFT_OUT
    assert jobs.of["verify"].why == "comes after ablate"
    assert ready(jobs) == ["train@b-0", "cost"]
    run(jobs, "train@b-0", "cost")
    assert jobs.finished


def test_what_was_lost_is_tried_again_and_not_for_ever():
    jobs = made(retries=2)
    job = jobs.of["prepare"]
    for _ in range(2):
        jobs.begin(job)
        jobs.lost(job, "its machine was lost")
        assert job.state is State.WAITING
    jobs.begin(job)
    jobs.lost(job, "its machine was lost")
    assert job.state is State.FAILED
    assert job.why == "its machine was lost, 3 times in a row without a step gained"


def test_a_step_gained_lets_a_training_be_lost_again():
    jobs = made(retries=1)
    job = jobs.of["prepare"]
    for at in range(1, 6):
        jobs.begin(job)
        jobs.reached(job, step=10 * at, steps=100, loss=1.0)
        jobs.lost(job, "lost")
        assert (job.in_vain, job.state) == (0, State.WAITING)
    for in_vain, state in ((1, State.WAITING), (2, State.FAILED)):
        jobs.begin(job)
        jobs.reached(job, step=40, steps=100, loss=1.0)  # back at an older checkpoint, and no further than before
        jobs.reached(job, step=50, steps=100, loss=1.0)
        jobs.lost(job, "lost")
        assert (job.in_vain, job.state) == (in_vain, state)


def test_what_was_never_begun_counts_for_nothing():
    jobs = made(retries=0)
    job = jobs.of["prepare"]
    for _ in range(3):
        jobs.begin(job)
        jobs.again(job, "the cluster did not begin it")
        assert (job.state, job.in_vain) == (State.WAITING, 0)


def test_the_time_left_is_by_the_steps_of_this_try():
    jobs = made()
    job = jobs.of["prepare"]
    jobs.begin(job, clock=lambda: 1000.0)
    assert job.seconds_left(now=1001.0) is None
    jobs.reached(job, step=40, steps=100, loss=2.0, clock=lambda: 5000.0)  # from a checkpoint, after a long queue
    assert job.seconds_left(now=5001.0) is None
    jobs.reached(job, step=50, steps=100, loss=1.5)
    assert job.seconds_left(now=5020.0) == pytest.approx(20 * 50 / 10)


def test_a_graph_runs_what_changed_and_all_after_it():
    before = {stage: frozenset(others) for stage, others in GRAPH.items()}
    assert dvc.Graph(before, frozenset()).to_run() == {}
    assert dvc.Graph(before, frozenset(["train@b-0"])).to_run() == {
        "train@b-0": frozenset(),
        "ablate": frozenset(["train@b-0"]),
    }
    assert set(dvc.Graph(before, frozenset(["prepare"])).to_run()) == set(GRAPH)


@pytest.mark.parametrize(
    ("stage", "name", "kind", "run"),
    [
        ("train@mmbconv-0", "train@mmbconv-0", "train", "mmbconv-s0"),
        ("pipelines/paper/dvc.yaml:train@my-block-12", "train@my-block-12", "train", "my-block-s12"),
        ("prepare@cityscapes", "prepare@cityscapes", "prepare", None),
        ("ablate", "ablate", "ablate", None),
    ],
)
def test_stages_have_names_kinds_and_runs(stage, name, kind, run):
    assert (dvc.name_of(stage), dvc.kind_of(stage), dvc.run_of(stage)) == (name, kind, run)


def status_of(jobs, *, now=1060.0):
    return Status("local", "here", 1000.0, now, list(jobs))


def test_a_status_survives_its_file(tmp_path):
    jobs = made()
    jobs.begin(jobs.of["prepare"], clock=lambda: 1000.0)
    status_of(jobs).write(tmp_path / "status.json")
    assert Status.read(tmp_path / "status.json") == status_of(jobs)
    assert json.loads((tmp_path / "status.json").read_text())["jobs"][0]["state"] == "running"


def test_the_table_shows_what_runs_first_and_no_more_rows_than_fit():
    jobs = made()
    run(jobs, "prepare")
    job = jobs.of["train@b-0"]
    jobs.begin(job, clock=lambda: 1000.0)
    job.machine = "node2"
    jobs.reached(job, step=10, steps=100, loss=2.5, clock=lambda: 1000.0)
    jobs.reached(job, step=40, steps=100, loss=1.25)
    rows = board.rows(status_of(jobs))
    assert all(len(row) == len(board.HEADINGS) for row in rows)
    assert rows[0] == ("train@b-0", "node2", "running", "40/100", "2 min", "1.250", "")
    assert [row[0] for row in rows[1:]] == ["train@a-0", "ablate", "prepare"]
    assert [row[0] for row in board.rows(status_of(jobs), limit=3)] == ["train@b-0", "train@a-0", "and 2 more"]
    assert board.summary(status_of(jobs)) == "4 stages by local: 2 waiting, 1 running, 1 done; 60 s"
    assert dataclasses.replace(job, machine="").state is State.RUNNING
    job.machine = ""
    assert board.rows(status_of(jobs))[0][2] == "queued"


def test_without_a_terminal_there_is_a_line_for_each_change():
    jobs, changes = made(retries=1), board.Changes(every_seconds=1e9)
    job = jobs.of["prepare"]
    jobs.begin(job, clock=lambda: 1000.0)
    assert list(changes.lines(status_of(jobs))) == []  # it is queued
    job.machine = "node1"
    assert list(changes.lines(status_of(jobs))) == ["prepare: runs on node1"]
    assert list(changes.lines(status_of(jobs))) == []
    jobs.lost(job, "its machine was lost")
    assert list(changes.lines(status_of(jobs))) == ["prepare: to be tried again: its machine was lost"]
    jobs.begin(job, clock=lambda: 1000.0)
    job.machine = "node2"
    assert list(changes.lines(status_of(jobs))) == ["prepare: runs on node2, try 2, after: its machine was lost"]
    jobs.fail(job, "train.steps: too few: raise it")
    lines = list(changes.lines(status_of(jobs)))
    assert lines[0] == "prepare: failed on node2: train.steps: too few: raise it"
    assert lines[1:] == ["train@a-0 and 2 more: left out, after prepare"]
