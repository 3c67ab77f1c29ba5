"""Several processes of one training on this machine, started and watched by torch's elastic agent, as torchrun does."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Sequence

from mmseg_cli.errors import INTERRUPTED, MmsegError

SHUTDOWN_SECONDS = 600  # for the step that runs and the checkpoint after it, before a process is killed
CLEAR = (2, 3, 4)  # exit codes of a process that said why it ended; the others end because it did


def count(wanted: int | str, *, device: str) -> int:
    """How many processes to start: `auto` is one for each GPU, or one.

    Raises:
        MmsegError: there are fewer GPUs.
    """
    import torch

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    gpus = torch.cuda.device_count() if on_gpu else 0
    if wanted == "auto":
        return max(1, gpus)
    processes = int(wanted)
    if on_gpu and processes > gpus:
        raise MmsegError("--devices", f"{processes} are more than the {gpus} GPUs here", f"use {gpus} or fewer")
    if processes > 1 and ":" in device:
        raise MmsegError("runtime.device", f"{device} is one device", "set it to auto, cuda or cpu for several")
    return processes


def launch(command: Sequence[str], *, processes: int) -> int:
    """Run `mmseg COMMAND` in several processes that know of each other, and give the exit code of them all.

    SIGTERM, SIGINT and SIGUSR1 are passed on; the processes save a checkpoint and end. One that fails ends the others.
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
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # DVC, or the person, starts a failed run again; it goes on from its checkpoint
        monitor_interval=0.1,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "mmseg_cli", *command)
    except SignalException as error:
        return INTERRUPTED + int(error.sigval)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        clear = [code for code in codes if code in CLEAR or code > INTERRUPTED]
        if clear:
            return min(clear)
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            what = f"was ended by {name}" + (", as a machine out of memory does" if name == "SIGKILL" else "")
            raise MmsegError(f"process {rank}", what, "run the same command again to go on") from error
        return failure.exitcode
    return 0
