"""What spreads stages over machines looks like from here; `local`, `on_ray` and `on_slurm` are such engines."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mmseg_cli.execution.jobs import Job
from mmseg_cli.execution.progress import Progress
from mmseg_cli.execution.stage import LOST


@dataclass(frozen=True)
class Ended:
    """A stage that runs no more.

    Attributes:
        stage: its address.
        code: its exit code; None where its machine was lost, or whatever else kept it from one.
        why: a line; empty where it ended well.
        machine: that ran it; empty where that is not known.
        unbegun: whether it was never begun, so that it counts for nothing.
    """

    stage: str
    code: int | None
    why: str
    machine: str = ""
    unbegun: bool = False

    @classmethod
    def by_code(cls, stage: str, code: int, why: str, *, machine: str = "") -> Ended:
        """By the exit code of `mmseg_cli.execution.stage`, as subprocess has it: below 0 a signal ended it."""
        if code < 0:
            name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
            return cls(stage, None, f"its process was ended by {name}", machine)
        return cls(stage, None if code == LOST else code, why, machine)


@dataclass(frozen=True)
class News:
    """What an engine knows of a stage that runs.

    Attributes:
        machine: that runs it; empty while it waits for one.
        progress: of a training, where its files do not lie in the project's folder here.
    """

    machine: str
    progress: Progress | None = None


class Engine(Protocol):
    """Runs stages somewhere."""

    name: str

    def require(self, job: Job) -> None:
        """Raise MmsegError where no machine can ever give a stage what it needs."""

    def takes(self, job: Job) -> bool:
        """Whether a job can be handed over now: an engine with a queue of its own takes all."""

    def submit(self, job: Job) -> None:
        """Have a stage run by `mmseg_cli.execution.stage`; returns at once."""

    def ended(self) -> list[Ended]:
        """Those that ended since the last call; returns at once, or in a fraction of a second."""

    def news(self) -> Mapping[str, News]:
        """Of the stages that run, by address."""

    def stop(self, *, seconds: float) -> None:
        """Ask all that runs to save and end, wait so many seconds, and leave no process behind."""

    def close(self) -> None:
        """Nothing runs any more: let go of what the engine holds; called once, whatever happened."""
