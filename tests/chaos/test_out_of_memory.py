"""Memory that does not suffice: one line that says what to set, and nothing lost."""

from __future__ import annotations

import pytest

from tests.chaos.harm import COMMAND, Screen, Start, checkpoints, last_step, outcome, stage, unreadable


def test_a_step_without_memory_ends_the_command_with_4_and_the_run_goes_on(rung, whole, mmseg, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MMSEG_FAILPOINT", "step:8=memory")
        done = mmseg(*COMMAND)
    assert done.code == 4
    line = done.one_error()
    assert "memory" in line
    assert "runtime.recompute" in line
    assert last_step() == 5
    assert not unreadable(checkpoints())
    screen = Screen()
    stage(screen=screen)
    assert screen.begun[1] == 5
    assert outcome() == whole.outcome


@pytest.mark.slow
def test_the_same_in_a_process_of_its_own(rung, whole):
    code, text = Start(rung, failpoint="step:3=memory").wait()
    assert code == 4, text
    errors = [line for line in text.splitlines() if line.startswith("mmseg: error: ")]
    assert len(errors) == 1
    assert text.splitlines()[-1] == errors[0]
    assert "runtime.recompute" in errors[0]
    assert "Traceback" not in text
    stage()
    assert outcome() == whole.outcome
