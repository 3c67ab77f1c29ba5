"""SIGTERM, SIGINT and SIGUSR1 anywhere: a checkpoint, exit code 128 + n, and the same weights in the end."""

from __future__ import annotations

import os
import signal

import pytest

from mmseg_cli import runtime
from mmseg_cli.errors import Interrupted
from mmseg_cli.evaluation import inference
from tests.chaos.harm import (
    RUN,
    STEPS,
    Screen,
    Start,
    checkpoints,
    forget,
    last_step,
    members,
    outcome,
    stage,
    unreadable,
    wait_until,
)

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]

# Where the signal comes, and the step after which the run must have been saved; in the order of one run that is
# stopped and started again twenty times. Checkpoints come every 5 steps, validation every 15 and after the last.
POINTS = [
    ("after a step", 1),
    ("in a step", 3),
    ("after a step", 4),
    ("save:between_files", 5),
    ("after a step", 7),
    ("in a step", 8),
    ("save:before_manifest", 10),
    ("in a step", 12),
    ("after a step", 14),
    ("in validation", 15),
    ("in validation", 15),  # the one that is made up for
    ("after a step", 17),
    ("save:before_replace", 20),
    ("after a step", 22),
    ("save:after_replace", 25),
    ("in validation", 30),
    ("after a step", 33),
    ("after a step", 39),
    ("after a step", 40),
    ("in validation", 40),
]


def stopped(number, where, step, monkeypatch):
    """Run until the signal has ended it."""
    screen = Screen()
    with monkeypatch.context() as patch:
        if where == "after a step":
            screen = Screen(at={step: lambda: os.kill(os.getpid(), number)})
        elif where == "in validation":
            real = inference.confusions

            def confusions(*arguments, **named):
                os.kill(os.getpid(), number)
                return real(*arguments, **named)

            patch.setattr(inference, "confusions", confusions)
        else:
            runtime._passed.clear()
            name = number.name.removeprefix("SIG").lower()
            patch.setenv("MMSEG_FAILPOINT", f"step:{step}={name}" if where == "in a step" else f"{where}={name}")
        before = signal.getsignal(number)
        with pytest.raises(Interrupted) as caught:
            stage(screen=screen)
        assert signal.getsignal(number) is before
    assert caught.value.exit_code == 128 + number
    assert f"stopped by {number.name}, saved after step {step} of {STEPS}" in str(caught.value)
    assert last_step() == step
    assert not screen.warnings
    assert not unreadable(checkpoints())
    assert not RUN.exists()
    return screen.begun[1]


def stop_everywhere(number, points, monkeypatch):
    done = 0
    for where, step in points:
        assert stopped(number, where, step, monkeypatch) == done
        done = step
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (STEPS, done)
    assert not screen.warnings


@pytest.mark.parametrize("number", [signal.SIGUSR1])  # the others: below, and in tests/training/test_stages.py
def test_a_run_stopped_in_validation_and_after_the_last_step_ends_as_if_untouched(rung, whole, number, monkeypatch):
    stop_everywhere(number, [POINTS[index] for index in (2, 9, 18)], monkeypatch)
    assert outcome() == whole.outcome


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_stopped_at_twenty_points_ends_as_if_untouched(rung, whole, number, monkeypatch):
    assert len(POINTS) == 20
    stop_everywhere(number, POINTS, monkeypatch)
    assert outcome() == whole.outcome


def one_line_says(text, number):
    errors = [line for line in text.splitlines() if line.startswith("mmseg: error: ")]
    assert len(errors) == 1, text
    assert f"stopped by {number.name}, saved after step" in errors[0]
    assert errors[0].endswith("run the same command again to go on")
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_the_command_ends_with_128_and_the_signal(rung, whole, number):
    running = Start(rung)
    wait_until(lambda: running.trains() or running.ended())
    running.process.send_signal(number)
    code, text = running.wait()
    assert code == 128 + number, text
    one_line_says(text, number)
    stage()
    assert outcome() == whole.outcome


@pytest.mark.slow
@pytest.mark.parametrize("point", ["finish:before", "finish:before_record"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_last_checkpoint_ends_the_command_and_loses_nothing(rung, whole, number, point):
    """Nothing listens there any more: it ends at once, and the last checkpoint is enough."""
    code, text = Start(rung, failpoint=f"{point}={number.name.removeprefix('SIG').lower()}").wait()
    assert code == 128 + number, text
    assert "Traceback" not in text
    assert not RUN.exists()
    assert [path.name for path in RUN.parent.iterdir() if "train" in str(path.parent)] == []
    assert last_step() == STEPS
    stage()
    assert outcome() == whole.outcome


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_dvc_and_its_trainer_leaves_no_trainer_and_loses_nothing(pipeline, number):
    """Ctrl-C goes to all of them; so does what a batch system sends."""
    forget(pipeline.root)
    running = pipeline.start(through_dvc=True)
    wait_until(lambda: running.trains() or running.ended())
    os.killpg(running.process.pid, number)
    code, text = running.wait()
    assert code not in (0, -9), text
    assert not members(running.process.pid)
    assert not unreadable(checkpoints(pipeline.root))
    saved = last_step(pipeline.root)
    assert 0 < saved < STEPS or "saved after step" not in text
    code, text = pipeline.start(through_dvc=True).wait()
    assert code == 0, text
    assert f"going on after step {saved} of {STEPS}" in text
    assert outcome(pipeline.root)[0] == pipeline.expected[0]
    forget(pipeline.root)
