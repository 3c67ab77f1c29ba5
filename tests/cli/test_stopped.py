"""A signal ends any command with one line and 128 + its number; those that save or tell more do so themselves."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from mmseg_cli.prediction import export
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
if {ignored}:
    signal.signal(signal.{name}, signal.SIG_IGN)
right = export.export
def stopped(*args, **more):
    os.kill(os.getpid(), signal.{name})
    return right(*args, **more)
export.export = stopped
sys.argv = ["mmseg", "export", "--run", "runs/demo/train/mmbconv-s0", "--format", "torch"]
from mmseg_cli.cli.app import main
main()
"""


def exported(name, *, ignored=False):
    script = SCRIPT.format(name=name, ignored=ignored)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_one_line(trained, name):
    done = exported(name)
    assert done.returncode == 128 + signal.Signals[name]
    last = done.stderr.splitlines()[-1]
    assert last == f"mmseg: error: mmseg export: stopped by {name}: run the same command again to go on"
    assert "Traceback" not in done.stderr
    assert not list(trained.glob("*.pt2"))


def test_what_the_caller_ignores_is_ignored(trained):
    done = exported("SIGHUP", ignored=True)
    assert done.returncode == 0, done.stderr
    assert list(trained.glob("*.pt2"))
