"""A signal ends any command with one line and 128 + its number; those that save or tell more do so themselves."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RUN = "runs/demo/train/mmbconv-s0"
BEGIN = """
import os, signal, sys, time
from pathlib import Path
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
"""
END = """
from mmseg_cli.cli.app import main
main()
"""
EXPORT = """
right = Path.replace
def stopped(*args):
    os.kill(os.getpid(), signal.{name})  # what was made lies beside its place
    return right(*args)
Path.replace = stopped
sys.argv = ["mmseg", "export", "--run", "{run}", "--format", "torch"]
"""
PREDICT = """
from mmseg_cli.evaluation.segmenter import Segmenter
def stopped(*args, **more):
    Path("ready").touch()
    while not Path("gone").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGHUP)
Segmenter.predict = stopped
sys.argv = ["mmseg", "predict", "street.png", "--run", "{run}", "--out", "out"]
"""


def exported(name, before="", **environment):
    script = BEGIN + before + EXPORT.format(name=name, run=RUN) + END
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.is_file())


@pytest.mark.parametrize(
    "name", ["SIGINT", *[pytest.param(other, marks=pytest.mark.slow) for other in ("SIGTERM", "SIGHUP", "SIGUSR1")]]
)
def test_a_signal_is_one_line(trained, name):
    before = files(trained)
    done = exported(name)
    assert done.returncode == 128 + signal.Signals[name]
    last = done.stderr.splitlines()[-1]
    assert last == f"mmseg: error: mmseg export: stopped by {name}: run the same command again"
    assert "Traceback" not in done.stderr
    assert files(trained) == before


@pytest.mark.slow
def test_of_several_processes_one_that_fails_has_the_first_word(trained):
    """What a launcher's signal ended is told only if no process said more."""
    Path("errors").mkdir()
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here"}
    done = exported("SIGTERM", MMSEG_ERRORS="errors", **place)
    assert done.returncode == 128 + signal.SIGTERM
    assert "mmseg: error" not in done.stderr
    assert files("errors") == ["later-000000"]


@pytest.mark.slow
def test_what_the_caller_ignores_is_ignored(trained):
    done = exported("SIGHUP", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    assert done.returncode == 0, done.stderr
    assert "mmbconv-s0.pt2" in files(trained)


def test_a_terminal_that_has_gone_is_no_error_of_ours(trained):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("street.png")
    here, there = pty.openpty()
    command = [sys.executable, "-c", BEGIN + PREDICT.format(run=RUN) + END]
    process = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, start_new_session=True)
    os.close(there)
    while not Path("ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.close(here)
    Path("gone").touch()
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
