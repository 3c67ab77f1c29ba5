"""The machine that is planned for: its devices and their memory, in bytes. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.errors import MmsegError

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
USABLE = 0.9  # of a GPU's memory: the rest is the driver's, and what the allocator cannot join


@dataclass(frozen=True)
class Machine:
    """Equal devices, each with a memory of its own.

    Attributes:
        devices: how many there are.
        memory: bytes of each that training may take.
        name: for people.
    """

    devices: int
    memory: float
    name: str


def parse_bytes(text: str, *, option: str) -> int:
    """Bytes of `24GB` (10^9 each), `22.5GiB` (2^30 each), MB, MiB, TB or TiB.

    Raises:
        MmsegError: anything else, or less than a byte.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b)\s*", text, re.IGNORECASE)
    if found is None or found[2].upper() not in UNITS:
        raise MmsegError(option, f"{text!r} is not an amount of memory", "write for example 24GB or 22.5GiB")
    size = int(float(found[1]) * UNITS[found[2].upper()])
    if size < 1:
        raise MmsegError(option, f"{text!r} is no memory", "write for example 24GB or 22.5GiB")
    return size


def parse_gpus(text: str) -> Machine:
    """The machine `8x80GB`: eight devices of 80 GB, of which `USABLE` may be taken.

    Raises:
        MmsegError: anything else.
    """
    found = re.fullmatch(r"\s*([0-9]{1,6})\s*[xX*]\s*(.+)", text)
    if found is None or int(found[1]) < 1:
        raise MmsegError("--gpus", f"{text!r} is not a number of devices and their memory", "write for example 8x80GB")
    size = parse_bytes(found[2], option="--gpus")
    return Machine(int(found[1]), USABLE * size, f"{int(found[1])} x {found[2].strip()}")


def available_memory(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a process may still take on the CPU: what the machine has left, or its container if that is less."""
    try:
        text = (proc / "meminfo").read_text(encoding="utf-8")
        left = 1024 * next(int(kib) for kib in re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE))
    except (OSError, StopIteration):
        left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, min([left, *_left_in_groups(proc, cgroups)]))


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What is left of the limit of each control group that this process is in; page cache counts as left."""
    groups = {("", "/"), ("memory", "/")}
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                groups.add(("" if number == "0" else "memory", path))
    for kind, path in sorted(groups):
        limit, usage, cache = (
            ("limit_in_bytes", "usage_in_bytes", "total_inactive_file") if kind else ("max", "current", "inactive_file")
        )
        names = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(names), -1, -1):
            folder = cgroups.joinpath(kind, *names[:depth])
            with contextlib.suppress(OSError, ValueError):
                left = int((folder / f"memory.{limit}").read_text()) - int((folder / f"memory.{usage}").read_text())
                with contextlib.suppress(OSError):
                    stat = (folder / "memory.stat").read_text()
                    left += sum(int(number) for number in re.findall(rf"^{cache} (\d+)", stat, re.MULTILINE))
                yield left
