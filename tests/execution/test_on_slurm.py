"""The job scripts of Slurm, run by submitit's local executor; and what Slurm itself would be asked for."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import drive, dvc
from mmseg_cli.execution.jobs import State
from mmseg_cli.execution.on_slurm import OnSlurm, Work
from tests.execution.conftest import alive
from tests.execution.test_local import GRID
from tests.execution.test_stage import until

submitit = pytest.importorskip("submitit")


def begun(project, *, jobs=None):
    engine = OnSlurm(project.paths, project.params, jobs=jobs, cluster="local")
    return engine, drive.jobs_of(dvc.graph(project.paths), project.paths, project.params, gpus=0)


def task_of(engine):
    """The process of the only job that runs: what Slurm sends signals to."""
    (task,) = set(alive("submitit.core._submit")) & set(alive(str(engine.folder)))
    return task


def drive_it(project, engine, jobs):
    drive.drive(jobs, engine, paths=project.paths, params=project.params, show=lambda status: None)


def test_a_grid_runs_as_jobs_and_dvc_finds_it_up_to_date(shell_project):
    project = shell_project(GRID)
    engine, jobs = begun(project)
    drive_it(project, engine, jobs)
    assert jobs.count(State.DONE) == 4
    assert {job.machine for job in jobs} == {os.uname().nodename}
    assert dvc.graph(project.paths).to_run() == {}
    assert "Running stage 'a'" in (project.root / ".work" / "execution" / "demo" / "a.log").read_text()


@pytest.mark.slow
def test_a_job_that_fails_says_why_and_one_that_is_killed_is_tried_again(shell_project):
    fails = "echo 'mmseg: error: train.steps: too few: raise it' >&2; exit 2"
    once = "test -e again || { touch again; kill -KILL $$; }"
    project = shell_project({**GRID, "a": (fails, ["x"]), "b": (once, ["x"])})
    engine, jobs = begun(project)
    drive_it(project, engine, jobs)
    assert (jobs.of["a"].state, jobs.of["a"].why) == (State.FAILED, "train.steps: too few: raise it")
    assert (jobs.of["b"].state, jobs.of["b"].tries) == (State.DONE, 2)
    assert jobs.of["ablate"].state is State.LEFT_OUT


@pytest.mark.slow
def test_a_job_whose_process_slurm_kills_is_tried_again(shell_project):
    mark = f"55{os.getpid()}.5"
    once = f"test -e again || {{ touch again; exec sleep {mark}; }}"
    project = shell_project({"a": (once, [])})
    engine, jobs = begun(project)
    engine.submit(jobs.of["a"])
    jobs.begin(jobs.of["a"])
    until(lambda: alive(mark))
    os.kill(task_of(engine), signal.SIGKILL)
    drive_it(project, engine, jobs)
    assert (jobs.of["a"].state, jobs.of["a"].tries) == (State.DONE, 2)
    until(lambda: not alive(mark))


def test_a_warning_of_slurm_saves_and_hands_the_stage_over_again(shell_project):
    saves = "trap 'echo saved > saved; exit 130' INT; touch began; while true; do sleep 0.05; done"
    project = shell_project({"a": (f'test -e saved || bash -c "{saves}"', [])})
    engine, jobs = begun(project)
    engine.submit(jobs.of["a"])
    jobs.begin(jobs.of["a"])
    until((project.root / "began").is_file)
    os.kill(task_of(engine), signal.SIGUSR2)  # as Slurm does before it takes a job's node away
    drive_it(project, engine, jobs)
    assert (project.root / "saved").is_file()
    assert (jobs.of["a"].state, jobs.of["a"].tries) == (State.DONE, 1)  # for us it is one try


@pytest.mark.slow
def test_stopping_lets_jobs_save_and_leaves_no_process(shell_project):
    saves = "trap 'echo saved > saved; exit 130' INT TERM; touch began; while true; do sleep 0.05; done"
    project = shell_project({"a": (f'bash -c "{saves}"', [])})
    engine, jobs = begun(project)
    engine.submit(jobs.of["a"])
    until((project.root / "began").is_file)
    engine.stop(seconds=30)
    until((project.root / "saved").is_file)
    until(lambda: not [pid for pid in alive(str(project.root)) if pid != os.getpid()])


def test_slurm_is_asked_for_what_a_stage_needs(shell_project, monkeypatch):
    project = shell_project(GRID)
    monkeypatch.setattr("submitit.slurm.slurm.SlurmExecutor.affinity", classmethod(lambda cls: 2))
    text = (project.root / "params.yaml").read_text()
    text = text.replace("slurm: {}", "slurm: {partition: gpu, time: 90}")
    text = text.replace("    cost: {", "    a: {gpus: 2, cpus: 9, memory_gib: 64, alone: true}\n    cost: {")
    (project.root / "params.yaml").write_text(text)
    engine = OnSlurm(project.paths, project.params, jobs=None, cluster="slurm")
    jobs = drive.jobs_of(dvc.graph(project.paths), project.paths, project.params, gpus=None)
    scripts = []

    def submit(executor, work):
        assert isinstance(work, Work)
        scripts.append(executor._executor._make_submission_file_text("command", "uid"))
        if len(scripts) == 2:
            raise submitit.core.utils.FailedJobError("sbatch: QOSMaxSubmitJobPerUserLimit")
        return SimpleNamespace(job_id=str(len(scripts)), done=lambda: False)

    monkeypatch.setattr("submitit.AutoExecutor.submit", submit)
    engine.submit(jobs.of["a"])
    for line in ("--job-name=a", "--cpus-per-task=9", "--gpus-per-node=2", "--mem=64G", "--partition=gpu", "--time=90"):
        assert f"#SBATCH {line}" in scripts[0], scripts[0]
    assert "#SBATCH --exclusive" in scripts[0]
    assert "--signal=USR2@360" in scripts[0]
    assert (project.root / ".work/execution/demo/slurm/handed.json").read_text().split() == ["[", '"1"', "]"]
    engine.submit(jobs.of["b"])  # refused, as the queue is full: it is offered again later
    assert not engine.takes(jobs.of["b"])
    assert [(one.stage, one.unbegun) for one in engine.ended()] == [("b", True)]
    assert "--exclusive" not in scripts[1]
    assert "--cpus-per-task=1\n" in scripts[1]
    text = text.replace("partition: gpu", "no_such_parameter: 1")
    (project.root / "params.yaml").write_text(text)
    (project.root / ".work/execution/demo/slurm/handed.json").unlink()
    wrong = OnSlurm(project.paths, project.params, jobs=None, cluster="slurm")
    with pytest.raises(MmsegError, match=r"execution.slurm: Slurm does not take a .*no_such_parameter"):
        wrong.submit(jobs.of["a"])


def test_what_a_killed_driver_left_in_the_queue_is_cancelled(shell_project, monkeypatch, tmp_path):
    project = shell_project(GRID)
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n')
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("submitit.slurm.slurm.SlurmExecutor.affinity", classmethod(lambda cls: 2))
    folder = project.root / ".work" / "execution" / "demo" / "slurm"
    folder.mkdir(parents=True)
    (folder / "handed.json").write_text('["12", "13"]')
    OnSlurm(project.paths, project.params, jobs=None)
    assert (tmp_path / "cancelled").read_text().split() == ["12", "13"]
    OnSlurm(project.paths, project.params, jobs=None)
    assert (tmp_path / "cancelled").read_text().split() == ["12", "13"]


def test_where_there_is_no_slurm_that_is_said(shell_project, monkeypatch):
    project = shell_project(GRID)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MmsegError, match=r"--executor slurm: there is no Slurm here .*: call it where `sbatch` is"):
        OnSlurm(project.paths, project.params, jobs=None)
