"""Stages side by side on this machine, with the real DVC: each its own GPU, failures, Ctrl-C, a killed driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from mmseg_cli.cli import execution
from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import drive, dvc
from mmseg_cli.execution.jobs import State
from mmseg_cli.execution.local import Local, gpus_here
from mmseg_cli.runtime import only_one
from tests.execution.conftest import alive
from tests.execution.test_stage import until

GRID = {
    "x": ("true", []),
    "a": ("sleep 0.2", ["x"]),
    "b": ("sleep 0.2", ["x"]),
    "ablate": ("true", ["a", "b"]),
}


def needs(project, **kinds):
    """Set what kinds of stages need."""
    text = (project.root / "params.yaml").read_text()
    more = "".join(f"    {kind}: {value}\n" for kind, value in kinds.items())
    (project.root / "params.yaml").write_text(text.replace("  retries: 3", f"{more}  retries: 1"))


def driven(project, *, jobs=2, gpus=()):
    params = project.params
    with closing(Local(project.root, jobs=jobs, gpus=gpus)) as engine:
        wanted = drive.jobs_of(dvc.graph(project.paths), project.paths, params, gpus=len(gpus))
        for job in wanted:
            engine.require(job)
        drive.drive(wanted, engine, paths=project.paths, params=params, show=lambda status: None)
    assert not alive(f"execution.stage {project.root}")
    return wanted


def test_a_grid_runs_and_dvc_finds_it_up_to_date(shell_project):
    project = shell_project(GRID)
    jobs = driven(project)
    assert jobs.count(State.DONE) == 4
    assert dvc.graph(project.paths).to_run() == {}
    assert project.dvc("repro").count("didn't change, skipping") == 4
    assert list(driven(project)) == []


def test_each_stage_has_a_gpu_of_its_own_and_its_threads(shell_project):
    use = 'echo "$CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS" > {0}.gpu; sleep 2'
    project = shell_project({name: (use.format(name), []) for name in ("a", "b", "c")})
    needs(project, **dict.fromkeys("abc", "{gpus: 1, cpus: 3, memory_gib: 1}"))
    os.environ.pop("OMP_NUM_THREADS", None)
    try:
        driven(project, jobs=3, gpus=["4", "7"])
    finally:
        os.environ["OMP_NUM_THREADS"] = "1"
    seen = [(project.root / f"{name}.gpu").read_text().split() for name in "abc"]
    assert sorted(gpu for gpu, _ in seen[:2]) == ["4", "7"]
    assert seen[2][0] in ("4", "7")
    assert {threads for _, threads in seen} == {"3"}


@pytest.mark.slow
def test_a_stage_that_measures_has_the_machine_to_itself(shell_project):
    watch = "touch {0}.runs; ls *.runs > {0}.seen; sleep 1; ls *.runs >> {0}.seen; rm {0}.runs"
    project = shell_project({name: (watch.format(name), []) for name in ("a", "cost", "b")})
    needs(project)
    driven(project, jobs=3)
    assert set((project.root / "cost.seen").read_text().split()) == {"cost.runs"}


def test_more_gpus_than_there_are_is_said_before_anything_runs(shell_project):
    project = shell_project(GRID)
    needs(project, a="{gpus: 2, cpus: 1, memory_gib: 1}")
    with pytest.raises(MmsegError, match=r"execution.needs: a needs 2 GPUs, and 1 are here: lower it"):
        driven(project, gpus=["0"])
    assert not (project.root / "x.out").exists()


def test_gpus_are_those_that_the_environment_leaves(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    assert gpus_here() == ["2", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_here() == []


def test_a_failure_is_told_with_its_reason_and_its_log_and_the_rest_runs(shell_project, capsys):
    fails = "echo 'mmseg: error: train.steps: too few: raise it' >&2; exit 2"
    project = shell_project({**GRID, "a": (fails, ["x"])})
    with pytest.raises(MmsegError) as error:
        execution.run(project.paths, project.params, executor="local", jobs=2, address=None)
    assert str(error.value) == (
        "dvc.yaml: 1 of 4 stages failed, 1 that come after them were left out:"
        " mend what is said above, and run this again"
    )
    told = capsys.readouterr().err
    line = "a failed: train.steps: too few: raise it (log: .work/execution/demo/a.log)"
    assert line in told.splitlines()
    assert (project.root / "b.out").is_file()
    assert not (project.root / "ablate.out").exists()
    execution.status(project.paths)
    shown = capsys.readouterr().out
    assert "1 failed" in shown
    assert "left out" in shown


def test_a_process_that_is_killed_while_it_waits_for_a_stage_is_replaced(shell_project):
    project = shell_project({"a": ("sleep 1", []), "b": ("true", ["a"])})
    with closing(Local(project.root, jobs=1, gpus=[])) as engine:
        jobs = drive.jobs_of(dvc.graph(project.paths), project.paths, project.params, gpus=0)
        engine.submit(jobs.of["a"])
        assert engine.next is not None
        engine.next.kill()
        engine.next.wait()
        until(lambda: [one.code for one in engine.ended()] == [0])
        engine.submit(jobs.of["b"])
        until(lambda: [one.code for one in engine.ended()] == [0])


def test_what_interrupts_a_hand_over_leaves_no_process(shell_project, monkeypatch):
    project = shell_project({"a": ("sleep 60", []), "b": ("sleep 60", [])})
    jobs = drive.jobs_of(dvc.graph(project.paths), project.paths, project.params, gpus=0)
    start, started = Local._start, []

    def interrupted(engine):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(start(engine))
        return started[-1]

    monkeypatch.setattr(Local, "_start", interrupted)
    with closing(Local(project.root, jobs=2, gpus=[])) as engine, pytest.raises(KeyboardInterrupt):
        drive.drive(jobs, engine, paths=project.paths, params=project.params, show=lambda status: None)
    assert [job.state for job in jobs] == [State.STOPPED] * 2
    assert not [pid for pid in alive(str(project.root)) if pid != os.getpid()]


def test_what_is_killed_is_tried_again(shell_project):
    once = "test -e again || { touch again; kill -9 $$; }"
    project = shell_project({**GRID, "a": (once, ["x"])})
    jobs = driven(project)
    assert jobs.of["a"].tries == 2
    assert jobs.count(State.DONE) == 4


COMMAND = [sys.executable, "-m", "mmseg_cli", "ablate", "--executor", "local", "--jobs", "2"]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_whatever_ends_the_driver_lets_stages_save_and_leaves_no_process(shell_project, number, capsys):
    mark = f"77{os.getpid()}.5"
    saves = f"trap 'kill $!; echo saved > $1.saved; exit 130' INT TERM; sleep {mark} & touch $1.began; wait"
    project = shell_project({name: (f"bash saves {name}", []) for name in ("a", "b")})
    (project.root / "saves").write_text(f"{saves}\n")
    driver = subprocess.Popen(
        COMMAND,
        cwd=project.root,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in a background shell
    )
    until(lambda: len(list(project.root.glob("*.began"))) == 2)
    driver.send_signal(number)
    _, told = driver.communicate(timeout=60)
    until(lambda: len(list(project.root.glob("*.saved"))) == 2)
    until(lambda: not [pid for pid in alive(str(project.root)) if pid != os.getpid()])
    if number != signal.SIGKILL:
        assert driver.returncode == 128 + number
        what = "dvc.yaml: stopped, what ran is kept up to its last save: run the same command again to go on"
        assert told.strip().splitlines()[-1] == f"mmseg: error: {what}"
        assert "Traceback" not in told
        assert "a: saves on " in told
    execution.status(project.paths)
    table = capsys.readouterr().out
    assert table.startswith("2 stages by local: 2 stopped, 0 done; ")
    assert "nobody runs it now" in table


def test_a_second_driver_is_refused_and_a_status_says_when_nobody_drives(shell_project, capsys):
    project = shell_project(GRID)
    with pytest.raises(MmsegError, match="--status: no grid of demo has been run by an executor here"):
        execution.status(project.paths)
    with (
        only_one(drive.lock(project.paths)),
        pytest.raises(MmsegError, match=f"process {os.getpid()} is already at work on this run"),
    ):
        execution.run(project.paths, project.params, executor="local", jobs=1, address=None)
    jobs = drive.jobs_of(dvc.graph(project.paths), project.paths, project.params, gpus=0)
    drive.Status("local", "there", time.time(), time.time(), list(jobs)).write(drive.status_file(project.paths))
    execution.status(project.paths)
    assert (
        "nobody runs it now: its driver on there has ended; the same command goes on with it" in capsys.readouterr().out
    )
    with only_one(drive.lock(project.paths)):
        execution.status(project.paths)
    assert "nobody" not in capsys.readouterr().out
