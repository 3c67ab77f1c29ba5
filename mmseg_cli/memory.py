"""The memory of this machine, or of the container around this process where that has less. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        total: of the machine or the container.
        available: what a process may still take.
        contained: whether `total` is a container's limit.
    """

    total: int
    available: int
    contained: bool


def look(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """The memory as it is now."""
    total, available = _of_machine(proc)
    contained = False
    for limit, used in _limits(proc, cgroups):
        if limit < total:
            total, contained = limit, True
        available = min(available, max(limit - used, 0))
    return Memory(total, available, contained)


def _of_machine(proc: Path) -> tuple[int, int]:
    """Total and available bytes; where the system does not say what is available, all of it."""
    with contextlib.suppress(OSError, KeyError):
        text = (proc / "meminfo").read_text(encoding="utf-8")
        kib = {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total


def _limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of every control group that this process is in, of version 1 and 2; page cache is not used."""
    groups = [("", "/"), ("memory", "/")]
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                groups.append(("" if number == "0" else "memory", path))
    for kind, path in dict.fromkeys(groups):
        limit, usage = ("limit_in_bytes", "usage_in_bytes") if kind else ("max", "current")
        cache = r"^total_inactive_file (\d+)" if kind else r"^inactive_file (\d+)"
        names = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(names), -1, -1):  # in a container the inner path may not be there: look above as well
            folder = cgroups.joinpath(kind, *names[:depth])
            with contextlib.suppress(OSError, ValueError):
                most = int((folder / f"memory.{limit}").read_text())
                used = int((folder / f"memory.{usage}").read_text())
                with contextlib.suppress(OSError):
                    for given_back in re.findall(cache, (folder / "memory.stat").read_text(), re.MULTILINE):
                        used -= int(given_back)
                yield most, used
