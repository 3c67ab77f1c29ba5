"""Stages as jobs of a Slurm cluster, by submitit; its nodes share the project's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import drive, dvc, stage
from mmseg_cli.execution.engine import Ended, News
from mmseg_cli.execution.jobs import Job
from mmseg_cli.execution.local import THREADS, threads_of
from mmseg_cli.files import read_json, write_json
from mmseg_cli.params import Params
from mmseg_cli.paths import Paths

PAUSE_SECONDS = 0.2
REFUSED_SECONDS = 60.0  # before a job is offered again that Slurm did not take
HANDED = "handed.json"
TIMEOUT_MINUTES = 24 * 60  # of a job, where execution.slurm names no time


@dataclass
class Work:
    """What a Slurm job runs; submitit calls `checkpoint` when Slurm is about to stop it, and hands it over again."""

    root: Path
    stage: str
    log: Path
    told: Path
    save_seconds: float
    threads: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> tuple[int, str]:
        """Run the stage; its exit code and a line on why it failed."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        start = self.log.stat().st_size if self.log.is_file() else 0
        command = stage.command(self.root, self.stage, log=self.log, told=self.told)
        environment = {**os.environ, THREADS: self.threads}
        self.process = subprocess.Popen(
            command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        signal.signal(signal.SIGTERM, self._pass_on)  # submitit only notes it
        while (code := self.process.poll()) is None:  # `wait` would hold a lock that `checkpoint` needs
            time.sleep(PAUSE_SECONDS)
        return code, stage.why(self.log, start=start, code=code)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def checkpoint(self) -> Any:
        """Have the stage save and end, and hand it over again: pre-empted, or out of time."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + self.save_seconds
            while self.process.poll() is None and time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS)
            self.process.kill()
        return DelayedSubmission(replace(self, process=None))


class OnSlurm:
    """An engine on a Slurm cluster.

    Args:
        jobs: the most that are in Slurm's queue at once; None is no limit.
        cluster: submitit's name for it; `local` runs the same job scripts here, for tests.

    Raises:
        MmsegError: submitit is not installed, Slurm is not here, or a parameter of execution.slurm makes no sense.
    """

    name = "slurm"

    def __init__(self, paths: Paths, params: Params, *, jobs: int | None, cluster: str = "slurm") -> None:
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise MmsegError(
                "--executor slurm", "submitit is not installed", "run `pip install mmseg-cli[slurm]`"
            ) from None
        if params.execution.clones is not None:
            raise MmsegError("execution.clones", "is not for Slurm, whose nodes share a folder", "set it to null")
        self.paths, self.params, self.jobs, self.cluster = paths, params, jobs, cluster
        self.folder = drive.folder(paths) / "slurm"
        self._executor()  # or there is no Slurm
        self.handed: dict[str, tuple[Any, Job]] = {}
        self.refused: list[str] = []
        self.next_try = 0.0
        self._cancel_left_over()

    def _executor(self) -> Any:
        """A new one for each job: parameters that were set on one stay set."""
        import submitit

        try:
            return submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        except RuntimeError as error:
            what = f"there is no Slurm here ({' '.join(str(error).split())[:120]})"
            raise MmsegError("--executor slurm", what, "call it where `sbatch` is, or use another executor") from None

    def _note(self) -> None:
        """Write down which jobs Slurm has of us: one that is killed leaves them in its queue."""
        write_json(self.folder / HANDED, [str(handed.job_id) for handed, _ in self.handed.values()])

    def _cancel_left_over(self) -> None:
        """Cancel what an earlier driver, which was killed, has left in the queue: it would run beside ours."""
        file = self.folder / HANDED
        left = read_json(file, todo="remove it") if file.is_file() and self.cluster == "slurm" else []
        for job_id in left:
            subprocess.run(["scancel", str(job_id)], check=False, capture_output=True)
        file.unlink(missing_ok=True)

    def require(self, job: Job) -> None:
        """Slurm itself refuses what no partition has."""

    def takes(self, job: Job) -> bool:
        """Slurm has a queue of its own; what it refused is offered again after a while."""
        if time.monotonic() < self.next_try:
            return False
        return self.jobs is None or len(self.handed) < self.jobs

    def _told(self, job: Job) -> Path:
        return self.folder / f"{dvc.name_of(job.stage)}.where.json"

    def submit(self, job: Job) -> None:
        """Hand a job script over to Slurm."""
        needs, minutes = job.needs, self.params.execution.save_minutes
        given: dict[str, Any] = {
            "name": dvc.name_of(job.stage),
            "cpus_per_task": needs.cpus,
            "mem_gb": needs.memory_gib,
            "gpus_per_node": int(needs.gpus),
            "timeout_min": TIMEOUT_MINUTES,
        }
        own = {f"slurm_{key}": value for key, value in self.params.execution.slurm.items()}
        if self.cluster == "slurm":
            given |= (
                {"slurm_signal_delay_s": 60 * (minutes + 1)} | ({"slurm_exclusive": True} if needs.alone else {}) | own
            )
        executor = self._executor()
        try:
            executor.update_parameters(**given)
            self._told(job).unlink(missing_ok=True)
            log, threads = Path(job.log), threads_of(job)
            work = Work(self.paths.root, job.stage, log, self._told(job), 60.0 * minutes, threads)
            self.handed[job.stage] = executor.submit(work), job
            self._note()
        except (NameError, ValueError, TypeError, subprocess.CalledProcessError, RuntimeError) as error:
            if self.handed:  # the queue may be full: later
                self.refused.append(job.stage)
                self.next_try = time.monotonic() + REFUSED_SECONDS
                return
            what = f"Slurm does not take {dvc.name_of(job.stage)} ({' '.join(str(error).split())[:200]})"
            raise MmsegError("execution.slurm", what, "correct it, or execution.needs") from None

    def ended(self) -> list[Ended]:
        """Ask submitit, which asks Slurm now and then."""
        found = [Ended(address, None, "Slurm did not take it yet", unbegun=True) for address in self.refused]
        self.refused.clear()
        for address, (handed, job) in list(self.handed.items()):
            if handed.done():
                del self.handed[address]
                found.append(replace(_ended(handed, job), machine=self._machine(job)))
                self._note()
        if not found:
            time.sleep(PAUSE_SECONDS)
        return found

    def news(self) -> Mapping[str, News]:
        """Where jobs began, which they say in a file of the shared folder."""
        return {address: News(self._machine(job)) for address, (_, job) in self.handed.items()}

    def _machine(self, job: Job) -> str:
        told = self._told(job)
        return str(read_json(told, todo="remove it")["machine"]) if told.is_file() else ""

    def stop(self, *, seconds: float) -> None:
        """Cancel all: what runs gets a signal to save, then Slurm's own time to do so."""
        for handed, _ in self.handed.values():
            _signal(handed, cluster=self.cluster)
        deadline = time.monotonic() + seconds
        for handed, _ in self.handed.values():
            while not handed.done(force_check=True) and time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS)
            handed.cancel(check=False)

    def close(self) -> None:
        """Nothing is held."""


def _ended(handed: Any, job: Job) -> Ended:
    import submitit

    try:
        code, why = handed.result()
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
        return Ended(job.stage, None, f"Slurm lost it ({' '.join(str(error).split())[:160]})")
    return Ended.by_code(job.stage, code, why)


def _signal(handed: Any, *, cluster: str) -> None:
    """Cancel what waits; SIGTERM to what runs, which its stage takes as a wish to save."""
    if cluster == "slurm":
        command = ["scancel", "--signal=TERM", str(handed.job_id)]  # to its step, which passes it on
        subprocess.run(command, check=False, capture_output=True)
        subprocess.run(["scancel", "--state=PENDING", str(handed.job_id)], check=False, capture_output=True)
    else:
        handed.cancel(check=False)
