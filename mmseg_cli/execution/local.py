"""Stages side by side on this machine, each with GPUs of its own."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import stage
from mmseg_cli.execution.engine import Ended, News
from mmseg_cli.execution.jobs import Job

PAUSE_SECONDS = 0.02  # between two looks at what runs
GPUS, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


def gpus_here() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get(GPUS)
    if named is not None:
        return [name for name in named.split(",") if name.strip() and name.strip() != "-1"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def threads_of(job: Job) -> str:
    """OMP_NUM_THREADS of a stage where nobody set it: or each takes all cores, and they wait for each other."""
    return os.environ.get(THREADS) or str(job.needs.cpus)


@dataclass(frozen=True)
class Running:
    """A stage that runs: its process, the GPUs it has and where its output begins in the log."""

    process: subprocess.Popen[bytes]
    job: Job
    gpus: list[str]
    log_start: int


class Local:
    """An engine that runs `jobs` stages at once.

    Args:
        root: the project's folder.
        jobs: how many at once.
        gpus: names of this machine's, each of which one stage has at a time.
    """

    name = "local"

    def __init__(self, root: Path, *, jobs: int, gpus: Sequence[str]) -> None:
        self.root, self.jobs, self.gpus = root, jobs, list(gpus)
        self.running: dict[str, Running] = {}
        self.next: subprocess.Popen[bytes] | None = None  # waits for its stage

    def require(self, job: Job) -> None:
        """Raise MmsegError where this machine can never give a stage what it needs."""
        wanted = int(job.needs.gpus)
        if wanted > len(self.gpus):
            what = f"{job.stage} needs {wanted} GPUs, and {len(self.gpus)} are here"
            raise MmsegError("execution.needs", what, "lower it, or use --executor ray or slurm")

    def takes(self, job: Job) -> bool:
        """Whether there is a place, and GPUs, for it; one that must be alone has the machine to itself."""
        if any(one.job.needs.alone for one in self.running.values()):
            return False
        if job.needs.alone and self.running:
            return False
        return len(self.running) < self.jobs and int(job.needs.gpus) <= len(self._free())

    def _free(self) -> list[str]:
        taken = {name for one in self.running.values() for name in one.gpus}
        return [name for name in self.gpus if name not in taken]

    def _start(self) -> subprocess.Popen[bytes]:
        """The process of the stage that comes next, while others run: its start would be 5 % of a short stage."""
        return subprocess.Popen(
            stage.waiting(self.root),
            cwd=self.root,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C comes to us, and `stop` passes it on
        )

    def submit(self, job: Job) -> None:
        """Tell the process that waits what to do."""
        gpus = self._free()[: int(job.needs.gpus)]
        log = Path(job.log)
        start = log.stat().st_size if log.is_file() else 0
        environment = {GPUS: ",".join(gpus), THREADS: threads_of(job)}
        process, self.next = self.next, None  # whatever interrupts this, it is known either here or there
        if process is None or process.poll() is not None:  # somebody killed it
            process = self._start()
        self.running[job.stage] = Running(process, job, gpus, start)
        _tell(process, stage.order(job.stage, log=log, environment=environment))
        self.next = self._start()

    def ended(self) -> list[Ended]:
        """Look at all that runs."""
        found = []
        for address, one in list(self.running.items()):
            code = one.process.poll()
            if code is None:
                continue
            del self.running[address]
            found.append(_ended(one, code))
        if not found:
            time.sleep(PAUSE_SECONDS)
        return found

    def news(self) -> dict[str, News]:
        """All runs on this machine, in this folder."""
        return {address: News(platform.node()) for address in self.running}

    def stop(self, *, seconds: float) -> None:
        """SIGTERM to all, and once more to those that take too long, which then kill their stages."""
        for one in self.running.values():
            one.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for one in self.running.values():
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.send_signal(signal.SIGTERM)
                one.process.wait()

    def close(self) -> None:
        """There is no next stage."""
        if self.next is not None:
            _tell(self.next, b"")
            self.next.wait()


def _tell(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Give a process its whole input; one that was killed meanwhile is found by its exit code."""
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(text)


def _ended(one: Running, code: int) -> Ended:
    why = stage.why(Path(one.job.log), start=one.log_start, code=code)
    return Ended.by_code(one.job.stage, code, why)
