"""Two processes at once on one run: exactly one of them works on it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.chaos.harm import Start, forget, outcome, stage, wait_until
from tests.conftest import edit
from tests.pipeline.tiny import REPOSITORY

ROUNDS = 20
RACER = """
import os, pathlib, sys
from mmseg_cli.errors import MmsegError
from mmseg_cli.runtime import only_one
print("ready", flush=True)
sys.stdin.readline()
try:
    with only_one(pathlib.Path(sys.argv[1])):
        print("proceeds", flush=True)
        sys.stdin.readline()
except MmsegError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def race(lock):
    """Both start at the same word; the exit codes, and the pids and what each said."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, lock],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate(timeout=60)
    return [racer.returncode for racer in racers], [racer.pid for racer in racers], said


def test_of_two_at_once_exactly_one_proceeds_each_of_20_times(tmp_path):
    """All rounds take one lock file, which keeps what the holder before has written."""
    lock = tmp_path / "run.lock"
    nameless = []
    for number in range(ROUNDS):
        codes, pids, said = race(lock)
        assert sorted(codes) == [0, 2], (number, said)
        winner = codes.index(0)
        assert said[winner] == "proceeds"
        assert "is already at work on this run" in said[1 - winner]
        if f"process {pids[winner]} is" not in said[1 - winner]:
            nameless.append((number, pids[winner], said[1 - winner]))
    assert nameless == []  # the one that is refused names the one that holds the run, not one that held it before


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_of_two_commands_at_once_exactly_one_trains(rung, whole, number):
    edit(rung / "params.yaml", lambda p: p["train"].update(steps=5000))
    both = [Start(rung) for _ in range(2)]
    wait_until(lambda: any(one.ended() for one in both))
    loser = next(one for one in both if one.ended())
    (winner,) = (one for one in both if one is not loser)
    wait_until(lambda: winner.trains() or winner.ended())
    code, text = loser.wait()
    assert code == 2, text
    assert text.count("\n") == 1
    assert f"process {winner.process.pid} is already at work on this run" in text
    winner.process.send_signal(signal.SIGTERM)
    code, text = winner.wait()
    assert code == 128 + signal.SIGTERM, text
    forget()
    edit(rung / "params.yaml", lambda p: p["train"].update(steps=40))
    stage()
    assert outcome() == whole.outcome
