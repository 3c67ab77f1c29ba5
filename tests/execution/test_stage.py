"""One stage under the real DVC: its exit code, its last words, signals, locks, and that nothing outlives it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from mmseg_cli.execution import stage
from tests.execution.conftest import alive


def begun(project, name, *more):
    """The process that runs a stage."""
    command = stage.command(project.root, name, log=project.root / "log")
    return subprocess.Popen([*command, *more], cwd=project.root, start_new_session=True)


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_stage_that_ends_well_is_in_dvc_s_lock(shell_project):
    project = shell_project({"one": ("echo done well", [])})
    told = project.root / "told.json"
    assert begun(project, "one", "--told", str(told)).wait() == 0
    assert "done well" in (project.root / "log").read_text()
    assert "one:" in (project.root / "dvc.lock").read_text()
    assert '"machine"' in told.read_text()
    assert begun(project, "one").wait() == 0
    assert (project.root / "log").read_text().count("done well\n") == 1  # DVC ran nothing


@pytest.mark.parametrize("code", [2, 3, 4, 77])
def test_the_exit_code_is_the_stage_s_and_its_line_is_kept(shell_project, code):
    words = "mmseg: error: train.steps: 0 is too few: raise it"
    project = shell_project({"one": (f"echo '{words}' >&2; exit {code}", [])})
    assert begun(project, "one").wait() == code
    why = stage.why(project.root / "log", start=0, code=code)
    assert why == "train.steps: 0 is too few: raise it"


def test_a_crash_is_told_in_dvc_s_words(shell_project):
    project = shell_project({"one": ("python -c 'raise SystemError(1)'", [])})
    code = begun(project, "one").wait()
    assert code == 1
    assert "failed to reproduce 'one'" in stage.why(project.root / "log", start=0, code=code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_lets_the_stage_save_and_is_told_by_the_exit_code(shell_project, number):
    saves = "trap 'echo saved > saved; exit 130' INT; echo > began; while true; do sleep 0.05; done"
    project = shell_project({"one": (f'bash -c "{saves}"', [])})
    process = begun(project, "one")
    until((project.root / "began").is_file)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert (project.root / "saved").is_file()


@pytest.mark.parametrize("who", ["the starter", "the stage's own process"])
def test_nothing_outlives_whoever_is_killed(shell_project, who):
    mark = f"time.sleep(987.{os.getpid()})"
    ends_with_dvc = "import time; from mmseg_cli import runtime; runtime.die_with_parent()"  # as mmseg does
    ends_with_dvc += f'; open("began", "w"); {mark}'
    project = shell_project({"one": (f"exec python -c '{ends_with_dvc}'", [])})
    starter = (
        "import pathlib, subprocess; from mmseg_cli.execution import stage;"
        "here = pathlib.Path.cwd(); subprocess.run(stage.command(here, 'one', log=here / 'log'))"
    )
    outer = subprocess.Popen([sys.executable, "-c", starter], cwd=project.root, start_new_session=True)
    until((project.root / "began").is_file)
    killed = outer.pid if who == "the starter" else alive(f"execution.stage {project.root}")[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: not alive(mark))
    until(lambda: not alive(str(project.root)))
    outer.wait()


def test_a_stage_whose_starter_is_gone_does_not_begin(shell_project):
    project = shell_project({"one": ("touch began", [])})
    command = stage.command(project.root, "one", log=project.root / "log")
    starter = f"import subprocess; print(subprocess.run({command!r}).returncode)"  # not the one that it is meant for
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(128 + signal.SIGTERM)
    assert not (project.root / "began").exists()


def test_a_second_signal_kills_a_stage_that_does_not_end(shell_project):
    mark = f"44{os.getpid()}.5"
    stays = f"trap '' INT TERM; touch began; sleep {mark}; sleep {mark}"
    project = shell_project({"one": (f'bash -c "{stays}"', [])})
    process = begun(project, "one")
    until((project.root / "began").is_file)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    until(lambda: not alive(mark))


def test_a_stage_waits_while_another_dvc_is_at_work(shell_project):
    project = shell_project({"one": ("true", [])})
    (project.root / ".dvc" / "tmp").mkdir(exist_ok=True)
    with (project.root / ".dvc" / "tmp" / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = begun(project, "one")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)  # DVC alone gives up after 3 s
    assert process.wait(30) == 0


def test_a_run_that_somebody_trains_is_waited_for(shell_project):
    busy = "echo 'mmseg: error: x.lock: process 12 is already at work on this run: wait for it' >&2; exit 2"
    project = shell_project({"one": (f"test -e free || {{ touch free; {busy}; }}", [])})
    assert begun(project, "one").wait() == 0
    assert "already at work" in (project.root / "log").read_text()


@pytest.mark.parametrize(
    ("text", "code", "found"),
    [
        ("ERROR: failed to reproduce 'a': failed to run: exec mmseg train, exited with 3\n", 255, 3),
        ("ERROR: failed to reproduce 'a': failed to run: exec mmseg train, exited with -9\n", 255, 137),
        ("ERROR: unexpected error\n", 255, 255),
        ("", 0, 0),
    ],
)
def test_dvc_s_words_hold_the_exit_code(text, code, found):
    assert stage.code_of(text, code) == found


def test_what_is_said_is_the_stage_s_own_line_then_dvc_s_then_the_last():
    assert stage.said("a\nmmseg: error: x: y: z\nERROR: failed\n") == "x: y: z"
    assert stage.said("a\nERROR: failed\nsee the docs\n") == "failed"
    assert stage.said("a\nKilled\n\n") == "Killed"
    assert stage.said("") == ""
