"""The stages that are to run, and what has become of each: which are ready, which cannot run any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from mmseg_cli.execution import dvc
from mmseg_cli.params import Needs


class State(StrEnum):
    """What has become of a stage."""

    WAITING = "waiting"
    RUNNING = "running"
    SAVING = "saving"  # its grid is being stopped
    STOPPED = "stopped"  # its grid was
    DONE = "done"
    FAILED = "failed"
    LEFT_OUT = "left out"  # it comes after one that failed


@dataclass
class Job:
    """One stage.

    Attributes:
        stage: its address, as `dvc repro` takes it.
        before: the stages to wait for.
        inputs: all stages that it directly comes after, those included that were done before.
        machine: that runs it, or ran it last.
        tries: how often it was begun.
        in_vain: how many of the last tries were lost without a step gained.
        step: the highest training step that was seen; 0 for a stage without steps.
        step_before: the same when a try was lost last.
        first_step: where that try was first seen.
        first_seen: when that was.
        steps: of the whole training, if it is one.
        loss: at `step`.
        began: the newest try, in seconds since 1970; when it was handed over, until a machine is known to run it.
        ended: the last one.
        why: a line on why it failed, or was tried again.
        log: the file with what it printed.
    """

    stage: str
    before: frozenset[str]
    inputs: frozenset[str]
    needs: Needs
    log: str
    state: State = State.WAITING
    machine: str = ""
    tries: int = 0
    in_vain: int = 0
    step: int = 0
    step_before: int = 0
    first_step: int | None = None
    first_seen: float = 0.0
    steps: int | None = None
    loss: float | None = None
    began: float | None = None
    ended: float | None = None
    why: str = ""

    def seconds_left(self, *, now: float) -> float | None:
        """An estimate, by the steps of this try; None before it has made some, and for a stage without steps."""
        if self.steps is None or self.first_step is None or self.step <= self.first_step:
            return None
        return (now - self.first_seen) * (self.steps - self.step) / (self.step - self.first_step)

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        sets = {"before": sorted(self.before), "inputs": sorted(self.inputs)}
        return asdict(self) | sets | {"needs": self.needs.model_dump()}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Job:
        """From JSON."""
        sets = {key: frozenset(told[key]) for key in ("before", "inputs")}
        return cls(**{**told, **sets, "needs": Needs.model_validate(told["needs"]), "state": State(told["state"])})


@dataclass
class Jobs:
    """All stages of a grid that are to run, by address, in DVC's order."""

    retries: int
    of: dict[str, Job] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.of.values())

    def ready(self) -> list[Job]:
        """Stages that wait for nothing but a machine."""
        return [
            job
            for job in self
            if job.state is State.WAITING and all(self.of[one].state is State.DONE for one in job.before)
        ]

    def count(self, *states: State) -> int:
        """How many are in one of these states."""
        return sum(job.state in states for job in self)

    @property
    def finished(self) -> bool:
        """Whether nothing is left that may still run."""
        return not self.count(State.WAITING, State.RUNNING)

    def begin(self, job: Job, *, clock: Callable[[], float] = time.time) -> None:
        """A machine has been asked to run it."""
        job.state, job.machine, job.began, job.ended = State.RUNNING, "", clock(), None
        job.tries += 1
        job.first_step = None

    def reached(
        self,
        job: Job,
        *,
        step: int,
        steps: int | None,
        loss: float | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """A training has been seen at a step."""
        if job.first_step is None:
            job.first_step, job.first_seen = step, clock()
        job.step, job.steps, job.loss = max(step, job.step), steps, loss

    def done(self, job: Job, *, clock: Callable[[], float] = time.time) -> None:
        """It ended well."""
        job.state, job.ended, job.why = State.DONE, clock(), ""

    def lost(self, job: Job, why: str, *, clock: Callable[[], float] = time.time) -> None:
        """Its machine was lost, or a signal stopped it: it is tried again, unless that has been in vain too often."""
        job.in_vain = 0 if job.step > job.step_before else job.in_vain + 1
        job.step_before = job.step
        if job.in_vain > self.retries:
            self.fail(job, f"{why}, {job.in_vain} times in a row without a step gained", clock=clock)
        else:
            job.state, job.ended, job.why = State.WAITING, clock(), why

    def again(self, job: Job, why: str, *, clock: Callable[[], float] = time.time) -> None:
        """It was never begun, through no fault of its own, and is to be."""
        job.state, job.ended, job.why = State.WAITING, clock(), why

    def stopping(self) -> None:
        """All that runs is asked to save and end; what no machine has yet has nothing to save."""
        for job in self:
            if job.state is State.RUNNING:
                job.state = State.SAVING if job.machine else State.STOPPED

    def stopped(self, *, clock: Callable[[], float] = time.time) -> None:
        """Nothing runs any more."""
        for job in self:
            if job.state in (State.RUNNING, State.SAVING):
                job.state, job.ended, job.why = State.STOPPED, clock(), ""

    def fail(self, job: Job, why: str, *, clock: Callable[[], float] = time.time) -> None:
        """It failed: what comes after it is left out, and nothing else."""
        job.state, job.ended, job.why = State.FAILED, clock(), why
        self._leave_out(job.stage)

    def _leave_out(self, stage: str) -> None:
        for other in self:
            if other.state is State.WAITING and stage in other.before:
                other.state, other.why = State.LEFT_OUT, f"comes after {dvc.name_of(stage)}"
                self._leave_out(other.stage)
