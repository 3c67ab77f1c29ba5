"""Does a change to a segmentation network really help, and what does it cost? `load` is the door for Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmseg_cli.api import load as load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    """`load`, imported when it is asked for: the command line must start without it."""
    if name == "load":
        from mmseg_cli.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
