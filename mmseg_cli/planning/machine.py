"""The machine that is planned for: its devices and their memory, in bytes. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmseg_cli.errors import MmsegError

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
USABLE = 0.9  # of a GPU's memory: the rest is the driver's and the CUDA context's


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
