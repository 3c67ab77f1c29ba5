"""Several processes of one training on this machine, started and watched by torch's elastic agent, as torchrun does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmseg_cli import runtime
from mmseg_cli.errors import INTERRUPTED, MmsegError, ResourceError

SHUTDOWN_SECONDS = 600  # for the step that runs and the checkpoint after it, before a process is killed
OWN_END_SECONDS = 25  # torch kills after 30 what goes on when another failed: that is no failure of its own
CLEAR = (2, 3, 4)  # exit codes of a process that said why it ended; the others end because it did
ERRORS = "MMSEG_ERRORS"  # the folder in which the processes leave their last lines, so that none is printed eight times


def gpus(device: str) -> int | None:
    """The GPUs that `runtime.device` leaves to choose from; None where it means the CPU."""
    import torch

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return torch.cuda.device_count() if on_gpu else None


def count(wanted: int | str, *, device: str, gpus: int | None) -> int:
    """How many processes to start: `auto` is one for each GPU, or one.

    Raises:
        MmsegError: there are fewer GPUs.
    """
    if ":" in device:
        if wanted not in (1, "auto"):
            raise MmsegError("runtime.device", f"{device} is one device", "set it to auto, cuda or cpu for several")
        return 1
    if wanted == "auto":
        return max(1, gpus or 0)
    processes = int(wanted)
    if gpus is not None and processes > max(1, gpus):
        raise MmsegError("devices", f"{processes} are more than the {gpus} GPUs here", f"use {max(1, gpus)} or fewer")
    return processes


def launch(command: Sequence[str], *, processes: int) -> tuple[int, str]:
    """Run `mmseg COMMAND` in several processes that know of each other.

    SIGTERM, SIGINT and SIGUSR1 are passed on; the processes save a checkpoint and end. One that fails ends the others.

    Returns:
        The exit code of them all, and the line, if any, of the first that had something to say about it.

    Raises:
        ResourceError: one was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # each process says itself what is wrong
    logging.disable(logging.ERROR)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # the machine's own name need not lead anywhere
        max_restarts=0,  # DVC, or the person, starts a failed run again; it goes on from its checkpoint
        monitor_interval=0.1,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    with tempfile.TemporaryDirectory(prefix="mmseg-") as folder:
        os.environ[ERRORS] = folder
        try:
            elastic_launch(config, sys.executable)("-m", "mmseg_cli", *command)
        except SignalException as error:
            return INTERRUPTED + int(error.sigval), _said(Path(folder))
        except ChildFailedError as error:
            first = min(failure.timestamp for failure in error.failures.values())
            codes = {
                rank: failure.exitcode
                for rank, failure in sorted(error.failures.items())
                if failure.timestamp < first + OWN_END_SECONDS
            }
            clear = [code for code in codes.values() if code in CLEAR]
            return clear[0] if clear else _unclear(codes), _said(Path(folder))
        finally:
            del os.environ[ERRORS]
    return 0, ""


def tell(line: str, *, secondary: bool) -> bool:
    """Leave a line for the launcher, from one of its processes; False where there is no launcher of ours.

    Args:
        secondary: the process ends because another one did; told only if that one said nothing.
    """
    where = runtime.place()
    if ERRORS not in os.environ or where is None:
        return False
    (Path(os.environ[ERRORS]) / f"{'later' if secondary else 'first'}-{where.rank:06d}").write_text(line)
    return True


def _said(folder: Path) -> str:
    """One line for all: what each has to say differs in figures that change while they say it."""
    return next((f"{file.read_text()}\n" for file in sorted(folder.iterdir())), "")


def _unclear(codes: Mapping[int, int]) -> int:
    """A crash is not an interruption, though the others were then interrupted."""
    for rank, code in codes.items():
        if code < 0:
            name = signal.Signals(-code).name
            what = f"was ended by {name}" + (", as a machine out of memory does" if code == -signal.SIGKILL else "")
            raise ResourceError(f"process {rank}", what, "run the same command again to go on")
    crashed = [code for code in codes.values() if code < INTERRUPTED]
    return crashed[0] if crashed else min(codes.values())
