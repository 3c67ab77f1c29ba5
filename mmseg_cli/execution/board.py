"""What a person sees of a grid that runs: a line of numbers, a row for each stage, a plain line for each change."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from mmseg_cli.execution import dvc
from mmseg_cli.execution.drive import Status
from mmseg_cli.execution.jobs import Job, State

HEADINGS = ("stage", "machine", "state", "step", "left", "loss", "")
STATES = (State.RUNNING, State.SAVING, State.STOPPED, State.FAILED, State.WAITING, State.LEFT_OUT, State.DONE)

QUEUED = "queued"
IN_WORDS = (State.WAITING, QUEUED, *(state for state in State if state is not State.WAITING))


def duration(seconds: float) -> str:
    """As in `45 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def summary(status: Status) -> str:
    """How many stages are in which state, and for how long the grid has run."""
    counts = Counter(_where(job) for job in status.jobs)
    states = ", ".join(f"{counts[state]} {state}" for state in IN_WORDS if counts[state] or state is State.DONE)
    return f"{len(status.jobs)} stages by {status.engine}: {states}; {duration(status.written - status.began)}"


def _step(job: Job) -> str:
    return "" if job.steps is None else f"{job.step}/{job.steps}"


def _where(job: Job) -> str:
    """Its state; one that an engine has, and no machine yet, is queued."""
    return QUEUED if job.state is State.RUNNING and not job.machine else job.state


def _state(job: Job) -> str:
    if _where(job) == QUEUED:
        return QUEUED
    again = f", try {job.tries}" if job.tries > 1 and job.state is State.RUNNING else ""
    return f"{job.state}{again}"


def rows(status: Status, *, limit: int | None = None) -> list[tuple[str, ...]]:
    """Cells under HEADINGS, in the order of STATES.

    Args:
        limit: the most rows; a last one then says how many more there are.
    """
    jobs = [job for state in STATES for job in status.jobs if job.state is state]
    shown = jobs if limit is None or len(jobs) <= limit else jobs[: max(1, limit - 1)]
    found: list[tuple[str, ...]] = []
    for job in shown:
        running = job.state is State.RUNNING
        left = job.seconds_left(now=status.written) if running else None
        loss = "" if job.loss is None or not running else f"{job.loss:.3f}"
        cells = (dvc.name_of(job.stage), job.machine, _state(job), _step(job) if running else "")
        found.append((*cells, "" if left is None else duration(left), loss, job.why))
    if len(shown) < len(jobs):
        found.append((f"and {len(jobs) - len(shown)} more", *[""] * (len(HEADINGS) - 1)))
    return found


class Changes:
    """Plain lines for what has changed since they were last asked for, and how far the trainings are now and then."""

    def __init__(self, *, every_seconds: float = 60.0) -> None:
        self.every_seconds = every_seconds
        self._seen: dict[str, tuple[State, int, str]] = {}
        self._told = time.monotonic()

    def lines(self, status: Status) -> Iterator[str]:
        """One for each stage that began, ended, failed, is tried again or saves, one for all that a failure leaves out;
        sometimes one for each that trains.
        """
        left_out, failed = [], []
        for job in status.jobs:
            before = self._seen.get(job.stage, (State.WAITING, 0, ""))
            now = (job.state, job.tries, job.machine)
            self._seen[job.stage] = now
            if now == before or (job.state is State.RUNNING and not job.machine):
                continue
            if job.state is State.FAILED:
                failed.append(dvc.name_of(job.stage))
            if job.state is State.LEFT_OUT:
                left_out.append(dvc.name_of(job.stage))
            else:
                yield f"{dvc.name_of(job.stage)}: {_told(job, seconds=status.written - (job.began or 0))}"
        if left_out:
            more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
            yield f"{left_out[0]}{more}: left out, after {', '.join(failed)}"
        if time.monotonic() - self._told >= self.every_seconds:
            self._told = time.monotonic()
            for job in status.jobs:
                if job.state is State.RUNNING and job.steps is not None:
                    left = job.seconds_left(now=status.written)
                    loss = "" if job.loss is None else f", loss {job.loss:.3f}"
                    until = "" if left is None else f", {duration(left)} left"
                    yield f"{dvc.name_of(job.stage)}: step {_step(job)}{loss}{until}"
            yield summary(status)


def _told(job: Job, *, seconds: float) -> str:
    where = f" on {job.machine}" if job.machine else ""
    match job.state:
        case State.RUNNING:
            return f"runs{where}" + (f", try {job.tries}, after: {job.why}" if job.tries > 1 else "")
        case State.DONE:
            return f"done{where} in {duration(seconds)}"
        case State.FAILED:
            return f"failed{where}: {job.why}"
        case State.WAITING:
            return f"to be tried again: {job.why}"
        case State.SAVING:
            return f"saves{where}; a Ctrl-C now does not wait for it"
        case _:
            return str(job.state)
