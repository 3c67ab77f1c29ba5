"""The command line: parses, calls one function with explicit keywords, and prints what it returns."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from mmseg_cli.cli import (
    ablate,
    bench_trials,
    compare,
    cost,
    data,
    doctor,
    evaluate,
    export,
    plan,
    predict,
    train,
    verify,
)
from mmseg_cli.cli.bench import bench_app
from mmseg_cli.cli.common import example, group
from mmseg_cli.cli.submit import submit_app
from mmseg_cli.errors import INTERRUPTED, Interrupted, MmsegError, ResourceError, ran_out

app = group(
    name="mmseg",
    help="Does a change to a segmentation network really help, and what does it cost?",
    epilog="Start with `make demo`, or `dvc repro`; then read reports/demo/ablation.md.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"mmseg {version('mmseg-cli')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["MMSEG_DEBUG"] = "1"
    from mmseg_cli.runtime import die_with_parent

    die_with_parent()


app.command(epilog=example("mmseg generate cityscapes --out /tmp/streets --train 20 --val 5"))(data.generate)
app.command(
    cls=data.PrepareCommand,
    epilog=example(
        "mmseg prepare cityscapes --root /datasets/cityscapes", "mmseg prepare folder --root my --check-only"
    ),
)(data.prepare)
app.command(epilog=example("mmseg inspect data/demo/cityscapes"))(data.inspect)
app.command(epilog=example("mmseg doctor --preset paper"))(doctor.doctor)
app.command(epilog=example("mmseg plan paper", "mmseg plan paper --gpus 8x80GB"))(plan.plan)
bench_app.command(
    epilog=example(
        "mmseg bench accuracy --hold-out 0006R0",
        "mmseg bench accuracy --seconds 600 --peers torchvision-lraspp,smp-unet-resnet34 --variants mmbconv",
    )
)(bench_trials.accuracy)
bench_app.command(epilog=example("mmseg bench calibration", "mmseg bench calibration --trials 200 --out /tmp/report"))(
    bench_trials.calibration
)
bench_app.command(epilog=example("mmseg bench alike", "mmseg bench alike --trainings 60 --seeds 5 --block residual"))(
    bench_trials.alike
)
app.add_typer(bench_app, name="bench")
app.command(epilog=example("mmseg pretrain imagenet --variant mmbconv --seed 0", "mmseg pretrain mapillary"))(
    train.pretrain
)
app.command(epilog=example("mmseg train --preset camvid-small --variant mbconv", "mmseg train --devices 8"))(
    train.train
)
app.command(epilog=example("mmseg evaluate --preset camvid-small --variant mbconv --seed 1"))(evaluate.evaluate)
app.command(
    epilog=example(
        "mmseg predict photos --run runs/demo/train/mmbconv-s0 --out predictions --overlay",
        "mmseg predict film.mp4 --model net.onnx --out predictions --scales 0.5,1,2 --flip",
        "mmseg predict --as-labels cityscapes/train_extra --root DIR --run RUN --out labelled",
    )
)(predict.predict)
app.add_typer(submit_app, name="submit")
app.command(
    epilog=example(
        "mmseg export --run runs/demo/train/mmbconv-s0",
        "mmseg export --run runs/demo/train/mmbconv-s0 --format onnx --format torch --out net.onnx --images photos",
    )
)(export.export)
app.command(epilog=example("mmseg cost", "mmseg cost --preset paper --height 1024 --width 2048"))(cost.cost)
app.command(
    epilog=example(
        "mmseg ablate --blocks residual,mbconv,mmbconv --seeds 0,1,2",
        "mmseg ablate --layouts uniform,pyramid --set train.lookahead=null,'{k: 5, alpha: 0.5}'",
        "mmseg ablate --power 0.5",
    )
)(ablate.ablate)
app.command(epilog=example("mmseg compare camvid-small camvid"))(compare.compare)
app.command(epilog=example("mmseg verify", "mmseg verify reports/demo/ablation.md --level 1"))(verify.verify)


def _as_error(error: Exception) -> MmsegError | None:
    """The user's error behind an exception that the machine raised; None where it is a bug of ours."""
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        what = f"a process that reads data was ended ({' '.join(str(error).split())[:160]})"
        return ResourceError("memory", what, "set fewer runtime.workers, or give the container more shared memory")
    if ran_out(error):
        todo = (
            "set runtime.recompute: true or more runtime.devices, which change no result; a smaller batch, norm_batch"
            " or crop does. `mmseg plan` says what fits"
        )
        return ResourceError("memory", "does not suffice for this step", todo)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        from mmseg_cli.files import no_space

        where = Path(error.filename or ".")
        return ResourceError(where, no_space(where, error), "free some and run the same command again")
    return None


# What torch says in a process when another one has gone.
GONE = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore")


def _lost_contact(error: Exception) -> MmsegError | None:
    """The error of one of several processes whose exchange with the others failed: most likely it has its own line."""
    from mmseg_cli.runtime import place

    where = place()
    if where is None or not isinstance(error, RuntimeError) or not any(word in str(error) for word in GONE):
        return None
    what = f"lost the other processes ({' '.join(str(error).split())[:200]})"
    lost = MmsegError(f"process {where.rank}", what, "see what they say, and run the same command again to go on")
    lost.exit_code = 1
    return lost


def _tell(known: MmsegError, *, secondary: bool) -> None:
    """Print the one line, or hand it to the launcher of several processes.

    Args:
        secondary: another process most likely knows better why.
    """
    line = f"mmseg: error: {known}"
    if "MMSEG_ERRORS" in os.environ:
        from mmseg_cli.training.launch import tell

        if tell(line, secondary=secondary):
            return
    with contextlib.suppress(OSError):  # the terminal has gone
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _end_on_signals(came: list[signal.Signals]) -> None:
    """End on SIGTERM, SIGHUP and SIGUSR1 as on Ctrl-C: what is half written is removed on the way out.

    Args:
        came: to which those that come are added.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(INTERRUPTED + number)

    from mmseg_cli.runtime import SENT_TO_ALL

    for number in SENT_TO_ALL:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup, or in a script's background
            signal.signal(number, end)


def _stopped(error: BaseException, came: list[signal.Signals]) -> Interrupted | None:
    """The error of a command that a signal ended, if it did and the command had no more to say."""
    number = came[-1] if came else signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
    if number is None:
        return None
    ended = isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and error.code == INTERRUPTED + number
    )
    hung_up = isinstance(error, OSError) and error.errno == errno.EIO  # of the terminal that has gone, on the way out
    if not ended and not hung_up:
        return None
    where, what = " ".join(["mmseg", *sys.argv[1:2]]), f"stopped by {number.name}"
    return Interrupted(where, number, what, "run the same command again")


def _require_values(words: Sequence[str]) -> None:
    """Raise MmsegError for an empty argument, as of a shell's variable that is not set: a path would be this folder."""
    for before, word in pairwise(["", *words]):
        name, equals, value = word.partition("=")
        if not word:
            where = f"the argument after {before}" if before else "the first argument"
            raise MmsegError(where, "is empty", "give a value, or leave it out")
        if equals and name.startswith("--") and not value:
            raise MmsegError(name, "is empty", "give a value, or leave it out")


def main() -> None:
    """The entry point: one line for an error that the user can mend, and its exit code."""
    main_thread = threading.current_thread() is threading.main_thread()
    came: list[signal.Signals] = []
    try:
        if main_thread:
            _end_on_signals(came)
        _require_values(sys.argv[1:])
        app()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        stopped = _stopped(error, came)
        known = stopped or (error if isinstance(error, MmsegError) else None)
        if known is None and isinstance(error, Exception):
            known = _as_error(error) or _lost_contact(error)
        if known is None:
            raise
        if main_thread and "MMSEG_ERRORS" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, while this process ends already
        if os.environ.get("MMSEG_DEBUG"):
            traceback.print_exc()
        _tell(known, secondary=known.exit_code == 1 or stopped is not None)
        sys.exit(known.exit_code)
