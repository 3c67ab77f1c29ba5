"""What a person sees: progress with a terminal, plain lines without one, and a panel at the end of each command."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mmseg_cli.training.loop import Step

EVERY_SECONDS = 10.0  # between two plain lines
SMOOTHING = 0.9  # of the shown loss and speed


def warn(text: str) -> None:
    """A yellow line on stderr."""
    Console(stderr=True).print(f"mmseg: warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def panel(title: str, lines: Iterable[tuple[str, str]], *, next_command: str | None) -> None:
    """The summary at the end of a command: what there is, where it is, and what to run next."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, text in lines:
        grid.add_row(name, Text(text))  # a path may hold brackets, which are no markup
    if next_command:
        grid.add_row("next", Text(next_command, style="cyan"))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(Panel(grid, title=Text(title), title_align="left", expand=False))


def table(title: str | None, headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on stdout; the first column is text, the others numbers. Cells that are too wide are folded, not cut."""
    shown = Table(title=title, title_justify="left")
    for position, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if position else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 1000).print(shown)


def text_table(title: str, headings: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table of texts, whose long cells are folded rather than cut."""
    shown = Table(title=title, title_justify="left")
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def listing(title: str, headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """The same on stdout."""
    Console(width=None if sys.stdout.isatty() else 160).print(text_table(title, headings, rows))


class Screen:
    """Progress of one command on stderr. Used as a context manager."""

    def __init__(self, title: str, *, unit: str) -> None:
        self._title, self._unit = title, unit
        self._console = Console(stderr=True, soft_wrap=True)
        self._live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._total = self._done = self._first = 0
        self._started = self._printed = time.monotonic()
        self._loss: float | None = None
        self._speed = self._wait = 0.0

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError) if error is not None else nullcontext():  # where the terminal has gone, that is no news
            self._progress.stop()

    def begin(self, *, total: int, done: int = 0) -> None:
        """The number of units in all, and those done before."""
        self._total, self._done, self._first = total, done, done
        self._started = self._printed = time.monotonic()
        self._task = self._progress.add_task(self._title, total=total, completed=done, detail="")
        unit = self._unit.removesuffix("s") if total == 1 else self._unit
        self._plain(f"{total} {unit}" + (f", {done} done before" if done else ""))

    def advance(self, detail: str = "") -> None:
        """One unit more."""
        self._done += 1
        if self._task is not None:
            self._progress.update(self._task, completed=self._done, detail=detail)
        now = time.monotonic()
        if now - self._printed >= EVERY_SECONDS or (self._done == self._total and detail):
            self._printed = now
            share = (self._done - self._first) / (now - self._started or 1)
            left = (self._total - self._done) / share if share else 0
            self._plain(f"{self._done}/{self._total} {self._unit}, {left:.0f} s left{', ' if detail else ''}{detail}")

    def step(self, step: Step) -> None:
        """One optimizer step: shows smoothed loss, speed and the share of time spent waiting for data."""
        new = (step.loss, step.images / step.seconds, step.waited / step.seconds)
        if self._loss is None:
            self._loss, self._speed, self._wait = new
        old = (self._loss, self._speed, self._wait)
        self._loss, self._speed, self._wait = (
            SMOOTHING * before + (1 - SMOOTHING) * now for before, now in zip(old, new, strict=True)
        )
        self.advance(f"loss {self._loss:.3f}, {self._speed:.1f} images/s, {100 * self._wait:.0f} % waiting for data")

    def note(self, text: str) -> None:
        """A line worth keeping."""
        self._console.print(f"{self._title}: {text}", markup=False, highlight=False)

    def warn(self, text: str) -> None:
        """A line to worry about."""
        self._console.print(f"mmseg: warning: {text}", style="yellow", markup=False, highlight=False)

    def _plain(self, text: str) -> None:
        if not self._live:
            self.note(text)


class Silence:
    """The screen of a process that is not the first of several."""

    def begin(self, *, total: int, done: int = 0) -> None:
        """Nothing."""

    def step(self, step: Step) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing: the first process says the same."""
