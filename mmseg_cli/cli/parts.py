"""The progress of a command whose work has several parts."""

from __future__ import annotations

from types import TracebackType

from mmseg_cli.cli.screen import Screen


class Parts:
    """One bar after the other, each with its part's title. Used as a context manager."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._screen: Screen | None = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen is not None:
            self._screen.__exit__(kind, error, trace)
            self._screen = None

    def begin(self, *, title: str, total: int, done: int) -> None:
        """A part begins: the number of images in all, and those done before."""
        self.__exit__(None, None, None)
        self._screen = Screen(f"{self._command}: {title}", unit="images").__enter__()
        self._screen.begin(total=total, done=done)

    def advance(self) -> None:
        """An image is done."""
        if self._screen is not None:
            self._screen.advance()

    def note(self, text: str) -> None:
        """A line worth keeping."""
        if self._screen is not None:
            self._screen.note(text)
