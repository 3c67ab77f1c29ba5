"""`mmseg ablate --executor` and `--status`: the grid on an engine, and what a person sees of it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console
from rich.live import Live

from mmseg_cli.cli import screen
from mmseg_cli.errors import INTERRUPTED, Interrupted, MmsegError
from mmseg_cli.execution import board, drive, dvc
from mmseg_cli.execution.jobs import Jobs, State
from mmseg_cli.runtime import is_held, only_one

if TYPE_CHECKING:
    from mmseg_cli.execution.engine import Engine
    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths

Executor = Literal["local", "ray", "slurm"]
ENDED = (State.DONE, State.FAILED, State.LEFT_OUT)
OTHER_LINES = 6  # of a terminal, beside the rows of the live table


class Show:
    """A live table in a terminal, else a line for each change; both on stderr. Used as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=not sys.stderr.isatty())
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._changes = board.Changes()

    def __enter__(self) -> Show:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, status: drive.Status) -> None:
        """Show a status."""
        if self._live is not None:
            rows = board.rows(status, limit=max(4, self._console.height - OTHER_LINES))
            self._live.update(screen.text_table(board.summary(status), board.HEADINGS, rows), refresh=True)
            return
        for line in self._changes.lines(status):
            self._console.print(line, markup=False, highlight=False)


def run(paths: Paths, params: Params, *, executor: Executor, jobs: int | None, address: str | None) -> None:
    """Run what is missing of the grid, and say at the end what failed.

    Raises:
        MmsegError: a stage failed, another process runs this grid, or the engine cannot be had.
        Interrupted: Ctrl-C or SIGTERM; what ran has saved.
    """
    dvc.require_outside_stage()
    if executor != "ray" and address:
        raise MmsegError("--address", "is of a Ray cluster", "leave it out, or use --executor ray")
    if ":" in params.runtime.device:
        what = f"{params.runtime.device} is one device, and every stage gets its own"
        raise MmsegError("runtime.device", what, "set it to auto, cuda or cpu")
    with only_one(drive.lock(paths)):
        try:
            wanted = _drive(paths, params, executor=executor, jobs=jobs, address=address)
        except KeyboardInterrupt:
            raise _stopped(paths, 2) from None
        except SystemExit as end:
            if isinstance(end.code, int) and end.code > INTERRUPTED:
                raise _stopped(paths, end.code - INTERRUPTED) from None
            raise
    _require_all_done(paths, wanted)


def _stopped(paths: Paths, number: int) -> Interrupted:
    return Interrupted(paths.pipeline.relative_to(paths.root), number, "stopped, what ran is kept up to its last save")


def _drive(paths: Paths, params: Params, *, executor: Executor, jobs: int | None, address: str | None) -> Jobs:
    if executor == "ray" and params.execution.clones is not None:
        from mmseg_cli.execution import clone

        clone.pull_all(paths)
    graph = dvc.graph(paths)
    if not graph.to_run():
        typer.echo("nothing to run: all stages are up to date", err=True)
        return Jobs(retries=0)
    engine, gpus = _engine(paths, params, executor=executor, jobs=jobs, address=address)
    try:
        wanted = drive.jobs_of(graph, paths, params, gpus=gpus)
        for job in wanted:
            engine.require(job)
        with Show() as show:
            drive.drive(wanted, engine, paths=paths, params=params, show=show)
    finally:
        engine.close()
    return wanted


def _engine(
    paths: Paths, params: Params, *, executor: Executor, jobs: int | None, address: str | None
) -> tuple[Engine, int | None]:
    """The engine, and how many GPUs it has, where that is known."""
    if executor == "ray":
        from mmseg_cli.execution.on_ray import OnRay

        cluster = OnRay(paths, params, jobs=jobs, address=address)
        return cluster, cluster.gpus()
    if executor == "slurm":
        from mmseg_cli.execution.on_slurm import OnSlurm

        return OnSlurm(paths, params, jobs=jobs), None
    from mmseg_cli.execution.local import Local, gpus_here

    gpus = gpus_here() if params.runtime.device != "cpu" else []
    return Local(paths.root, jobs=jobs or max(1, len(gpus)), gpus=gpus), len(gpus)


def _require_all_done(paths: Paths, jobs: Jobs) -> None:
    """Raise MmsegError where a stage failed, after a line for each."""
    failed = [job for job in jobs if job.state is State.FAILED]
    for job in failed:
        log = Path(job.log).relative_to(paths.root)
        typer.echo(f"{dvc.name_of(job.stage)} failed: {job.why} (log: {log})", err=True)
    if failed:
        left_out = jobs.count(State.LEFT_OUT)
        what = f"{len(failed)} of {len(jobs.of)} stages failed, {left_out} that come after them were left out"
        raise MmsegError(paths.pipeline.relative_to(paths.root), what, "mend what is said above, and run this again")


def require_free(paths: Paths) -> None:
    """Raise Held where a grid of the preset runs: its stages read the parameters that a command may change."""
    if is_held(drive.lock(paths)):
        with only_one(drive.lock(paths)):
            pass


def status(paths: Paths) -> None:
    """Print the status of the preset's grid, as its driver last wrote it down.

    Raises:
        MmsegError: there is none.
    """
    file = drive.status_file(paths)
    if not file.is_file():
        todo = f"start it by `mmseg ablate --executor local --preset {paths.preset}`"
        raise MmsegError("--status", f"no grid of {paths.preset} has been run by an executor here", todo)
    found = drive.Status.read(file)
    driven = is_held(drive.lock(paths))
    here = found.machine == platform.node()  # or the lock may be one that this machine cannot see
    if not driven and here and found.engine != "slurm":  # whose jobs outlive a driver that was killed
        Jobs(retries=0, of={job.stage: job for job in found.jobs}).stopped()
    screen.listing(board.summary(found), board.HEADINGS, board.rows(found))
    if not driven and any(job.state not in ENDED for job in found.jobs):
        typer.echo(f"nobody runs it now: its driver on {found.machine} has ended; the same command goes on with it")
