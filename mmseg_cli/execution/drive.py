"""Run what is missing of a grid: hand ready stages to an engine, see what becomes of them, keep a status on disk."""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import dvc, progress
from mmseg_cli.execution.engine import Ended, Engine
from mmseg_cli.execution.jobs import Job, Jobs
from mmseg_cli.files import read_json, write_json
from mmseg_cli.names import LADDER, unknown_name
from mmseg_cli.params import Needs, Params
from mmseg_cli.paths import Paths
from mmseg_cli.runtime import deaf_to

LOOK_SECONDS = 2.0  # between two looks at how far the trainings are
MINUTE = 60.0
SCHEDULERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # send one several times; a second Ctrl-C means now
KINDS = ("other", "prepare", *LADDER, "evaluate", "cost", "ablate")  # of stages of every preset, and what others need


def folder(paths: Paths) -> Path:
    """Where the preset's grid keeps its status, its lock and the logs of its stages."""
    return paths.root / ".work" / "execution" / paths.preset


def lock(paths: Paths) -> Path:
    """Held while a grid runs: a second one would run the same stages."""
    return folder(paths) / "lock"


def status_file(paths: Paths) -> Path:
    """The status, for `mmseg ablate --status`."""
    return folder(paths) / "status.json"


def log_of(paths: Paths, stage: str) -> Path:
    """What a stage printed."""
    return folder(paths) / f"{dvc.name_of(stage)}.log"


def needs_of(params: Params, stage: str, *, gpus: int | None) -> Needs:
    """What a stage needs, with `gpus: auto` made a number.

    Args:
        gpus: how many there are at hand; None where that is not known before.
    """
    needs = params.execution.needs_of(dvc.kind_of(stage))
    if needs.gpus != "auto":
        return needs
    device, devices = params.runtime.device, params.runtime.devices
    on_gpu = device.startswith("cuda") or (device == "auto" and (gpus is None or gpus > 0))
    return needs.model_copy(update={"gpus": (1 if devices == "auto" else devices) if on_gpu else 0})


def jobs_of(graph: dvc.Graph, paths: Paths, params: Params, *, gpus: int | None) -> Jobs:
    """The stages of a graph that DVC would run, as jobs; see `needs_of` for `gpus`.

    Raises:
        MmsegError: execution.needs speaks of a kind of stage that there is not.
    """
    kinds = {*KINDS, *map(dvc.kind_of, graph.before)}
    for kind in params.execution.needs:
        if kind not in kinds:
            raise unknown_name("execution.needs", kind, sorted(kinds))
    jobs = Jobs(retries=params.execution.retries)
    for stage, before in graph.to_run().items():
        needs = needs_of(params, stage, gpus=gpus)
        jobs.of[stage] = Job(stage, before, graph.before[stage], needs, str(log_of(paths, stage)))
    return jobs


@dataclass(frozen=True)
class Status:
    """A grid as its driver last wrote it down.

    Attributes:
        engine: its name.
        machine: of the driver.
        began: seconds since 1970.
        written: likewise.
        jobs: all of them.
    """

    engine: str
    machine: str
    began: float
    written: float
    jobs: list[Job]

    def write(self, path: Path) -> None:
        """Replace the file."""
        told: dict[str, Any] = {"engine": self.engine, "machine": self.machine, "began": self.began}
        write_json(path, told | {"written": self.written, "jobs": [job.told() for job in self.jobs]})

    @classmethod
    def read(cls, path: Path) -> Status:
        """From the file.

        Raises:
            MmsegError: it holds something else.
        """
        told = read_json(path, todo="remove it")
        try:
            return cls(**{**told, "jobs": [Job.of(job) for job in told["jobs"]]})
        except (KeyError, TypeError, ValueError):
            raise MmsegError(path, "is no status of a grid", "remove it") from None


Show = Callable[[Status], None]  # is given the status after each change, and every LOOK_SECONDS


def drive(jobs: Jobs, engine: Engine, *, paths: Paths, params: Params, show: Show) -> None:
    """Run all jobs to their end; a job that fails leaves out what comes after it, and nothing else.

    Whatever ends this (Ctrl-C, SIGTERM, an error) lets what runs save, and leaves no process behind; a second Ctrl-C
    does not wait for it.
    """
    status = Status(engine.name, platform.node(), time.time(), time.time(), list(jobs))
    looked = 0.0
    changed = False
    try:
        while not jobs.finished:
            changed |= _submit(jobs, engine)
            if changed or time.monotonic() - looked > LOOK_SECONDS:  # while what was handed over begins
                looked = time.monotonic()
                _look(jobs, engine, paths=paths, params=params)
                status = _tell(status, paths, show)
                changed = False
            for ended in engine.ended():
                job = jobs.of[ended.stage]
                _note_progress(jobs, job, progress.of(paths, params, job.stage, since=job.began or 0.0))
                _settle(jobs, ended)
                changed = True
    except BaseException:
        try:
            with deaf_to(*SCHEDULERS):
                jobs.stopping()
                try:
                    _tell_if_possible(status, paths, show)
                finally:
                    engine.stop(seconds=MINUTE * params.execution.save_minutes)
        finally:
            jobs.stopped()
            _tell_if_possible(status, paths, show)
        raise
    _tell(status, paths, show)


def _tell(status: Status, paths: Paths, show: Show) -> Status:
    now = replace(status, written=time.time())
    now.write(status_file(paths))
    show(now)
    return now


def _tell_if_possible(status: Status, paths: Paths, show: Show) -> None:
    """The same while all is stopped: a closed terminal or a full disk may be why, and must not keep it from being."""
    with suppress(OSError, SystemExit):  # rich makes the latter of a closed pipe
        _tell(status, paths, show)


def _submit(jobs: Jobs, engine: Engine) -> bool:
    """Hand over what is ready; whether there was any."""
    handed = False
    for job in jobs.ready():
        if engine.takes(job):
            jobs.begin(job)
            engine.submit(job)
            handed = True
    return handed


def _settle(jobs: Jobs, ended: Ended) -> None:
    """What becomes of a job that ended."""
    job = jobs.of[ended.stage]
    job.machine = ended.machine or job.machine
    if ended.code == 0:
        jobs.done(job)
    elif ended.unbegun:
        job.tries -= 1
        jobs.again(job, ended.why)
    elif ended.code is None or dvc.is_interruption(ended.code):
        jobs.lost(job, ended.why)
    else:
        jobs.fail(job, ended.why)


def _look(jobs: Jobs, engine: Engine, *, paths: Paths, params: Params) -> None:
    """Note where jobs run and how far they are."""
    for stage, news in engine.news().items():
        job = jobs.of[stage]
        if news.machine and not job.machine:
            job.began = time.time()  # until now it was in the engine's queue
        job.machine = news.machine or job.machine
        _note_progress(jobs, job, news.progress or progress.of(paths, params, stage, since=job.began or 0.0))


def _note_progress(jobs: Jobs, job: Job, found: progress.Progress | None) -> None:
    if found is not None:
        jobs.reached(job, step=found.step, steps=found.steps, loss=found.loss)
