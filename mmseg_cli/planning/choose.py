"""How a machine works on a preset without changing what it computes: devices, recomputation, samples at once.

Pure functions; what a step needs is asked for through a function, be that a measurement or an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmseg_cli.data import sampling
from mmseg_cli.params import Stage
from mmseg_cli.planning.machine import Machine


@dataclass(frozen=True)
class Case:
    """One stage of the ladder with one variant's network.

    Attributes:
        stage: its name in the parameters.
        variant: its name in the parameters.
        section: the stage's parameters.
        task: of the network.
        classes: of its head.
        network: the body's arguments.
    """

    stage: str
    variant: str
    section: Stage
    task: str
    classes: int
    network: dict[str, Any]

    @property
    def bound(self) -> bool:
        """Whether the samples at once are those of a batch norm, and so belong to the experiment."""
        return bool(self.network["norm"] == "batch")


@dataclass(frozen=True)
class Need:
    """What one micro-step takes on one device.

    Attributes:
        bytes: peak memory.
        seconds: forward, backward and update.
        watts: of the device in the meantime, where it tells.
        how: "measured", "scaled from ...", "roughly scaled from ..." or "estimated".
    """

    bytes: float
    seconds: float
    watts: float | None
    how: str


Ask = Callable[[Case, bool, int], Need]  # (case, recompute, samples at once)


@dataclass(frozen=True)
class Setting:
    """The part of `runtime` that is chosen; `micro_batch` as it stands there."""

    devices: int
    recompute: bool
    micro_batch: int | None


@dataclass(frozen=True)
class Row:
    """A case under a setting: what it needs, and for how long.

    Attributes:
        micro: samples at once on a device.
        parts: micro-steps of a device in one step.
        fits: whether a device's memory suffices.
    """

    case: Case
    setting: Setting
    micro: int
    parts: int
    need: Need
    fits: bool

    @property
    def step_seconds(self) -> float:
        """Wall time of one optimizer step."""
        return self.parts * self.need.seconds

    @property
    def images(self) -> int:
        """Images that one run is trained on."""
        return self.case.section.steps * self.case.section.batch

    @property
    def hours(self) -> float:
        """Wall time of one run."""
        return self.case.section.steps * self.step_seconds / 3600

    @property
    def kilowatt_hours(self) -> float | None:
        """Of all its devices in one run."""
        watts = self.need.watts
        return None if watts is None else watts * self.hours * self.setting.devices / 1000


def most_devices(norm_batch: int, there: int) -> int:
    """The largest number of devices, of those there, that shares `norm_batch` equally."""
    return max(count for count in range(1, min(norm_batch, there) + 1) if norm_batch % count == 0)


def samples(case: Case, setting: Setting) -> int:
    """Samples at once on a device."""
    return sampling.at_once(
        batch=case.section.batch,
        norm_batch=case.section.norm_batch,
        norm=case.network["norm"],
        chosen=setting.micro_batch,
        world=setting.devices,
    )


def row(case: Case, setting: Setting, *, machine: Machine, ask: Ask) -> Row:
    """One case under a setting."""
    micro = samples(case, setting)
    parts = -(-(case.section.batch // setting.devices) // micro)
    need = ask(case, setting.recompute, micro)
    return Row(case, setting, micro, parts, need, need.bytes <= machine.memory)


def choose(cases: Sequence[Case], *, machine: Machine, ask: Ask) -> list[Row]:
    """A row for every case: under one setting for all where one fits, as `runtime` is one section.

    The most devices that share every `norm_batch` equally; then no recomputation before recomputation; and where no
    network has a batch norm, the most samples at once that fit. Where nothing fits them all, as `separately`.
    """
    devices = most_devices(math.gcd(*(case.section.norm_batch for case in cases)), machine.devices)
    free = not any(case.bound for case in cases)
    return _first_that_fits(cases, devices=devices, free=free, machine=machine, ask=ask) or separately(
        cases, machine=machine, ask=ask
    )


def separately(cases: Sequence[Case], *, machine: Machine, ask: Ask) -> list[Row]:
    """A row for every case, each stage under the best setting of its own; where none fits, under what needs least."""
    free = not any(case.bound for case in cases)
    rows: list[Row] = []
    for stage in dict.fromkeys(case.stage for case in cases):
        own = [case for case in cases if case.stage == stage]
        devices = most_devices(own[0].section.norm_batch, machine.devices)
        least = Setting(devices, recompute=True, micro_batch=1 if free else None)
        found = _first_that_fits(own, devices=devices, free=free, machine=machine, ask=ask)
        rows += found or [row(case, least, machine=machine, ask=ask) for case in own]
    return rows


def _first_that_fits(
    cases: Sequence[Case], *, devices: int, free: bool, machine: Machine, ask: Ask
) -> list[Row] | None:
    for setting in _settings(cases, devices=devices, free=free):
        if all(row(case, setting, machine=machine, ask=ask).fits for case in cases):
            return [row(case, setting, machine=machine, ask=ask) for case in cases]
    return None


def _settings(cases: Sequence[Case], *, devices: int, free: bool) -> list[Setting]:
    """All settings on so many devices, the best first."""
    micros: list[int | None] = [None]
    if free:
        size = max(case.section.norm_batch for case in cases) // devices
        micros += [2**power for power in reversed(range(size.bit_length())) if 2**power < size]
    return [Setting(devices, recompute, micro) for recompute in (False, True) for micro in micros]


def cure(cases: Sequence[Case], *, memory: float, ask: Ask) -> Setting | None:
    """The fewest devices of `memory` usable bytes on which all cases of one stage fit, or None."""
    norm_batch = cases[0].section.norm_batch
    free = not any(case.bound for case in cases)
    for devices in (count for count in range(1, norm_batch + 1) if norm_batch % count == 0):
        for recompute in (False, True):
            setting = Setting(devices, recompute, 1 if free else None)
            needs = [ask(case, recompute, samples(case, setting)) for case in cases]
            if all(need.bytes <= memory for need in needs):
                return setting
    return None
