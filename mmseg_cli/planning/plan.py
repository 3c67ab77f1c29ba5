"""A whole preset's cost: every stage and variant on one machine, measured or estimated, with what it leaves on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mmseg_cli import energy, runtime
from mmseg_cli import memory as memory_now
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import fingerprint
from mmseg_cli.names import LADDER
from mmseg_cli.params import Dataset, Params
from mmseg_cli.paths import Paths
from mmseg_cli.planning import choose
from mmseg_cli.planning.choose import Ask, Case, Need, Row, Setting
from mmseg_cli.planning.counts import Counts
from mmseg_cli.planning.machine import USABLE, Machine
from mmseg_cli.planning.measure import Measurer
from mmseg_cli.training import checkpoint
from mmseg_cli.training.stages import NOT_DEFINING, TASKS

KNOWN_CLASSES = {"imagenet": 1000, "camvid": 11, "cityscapes": 19, "ade20k": 150}
CURES = (80 * 10**9, 141 * 10**9)  # bytes of the devices that are proposed where nothing here suffices
KEPT = checkpoint.KEPT + 1  # the last ones and the best


@dataclass(frozen=True)
class Disk:
    """Bytes that one stage writes.

    Attributes:
        checkpoint: one of the largest variant's.
        running: the checkpoints of a run of that variant, with one more while it is saved.
        left: of all runs: the last checkpoint, the weights, and DVC's copy of these.
    """

    stage: str
    checkpoint: int
    running: int
    left: int


@dataclass(frozen=True)
class Plan:
    """The answer.

    Attributes:
        rows: of every stage and variant.
        faster: the same with a setting for each stage, where that saves time; else empty.
        seeds: of the grid.
        disk: by stage.
        data: bytes of each prepared dataset, None where it is not prepared.
        cures: for each stage that does not fit, the devices that would do (their bytes, the setting).
        no_energy: why there is no energy, where there is none.
    """

    machine: Machine
    rows: list[Row]
    faster: list[Row]
    seeds: int
    disk: list[Disk]
    data: dict[str, int | None]
    cures: dict[str, tuple[int, Setting] | None]
    no_energy: str | None

    @cached_property
    def shared(self) -> dict[tuple[str, str], str]:
        """See the function `shared`; these rungs cost nothing."""
        return shared([row.case for row in self.rows])

    @property
    def setting(self) -> Setting | None:
        """The one setting of all stages, if they share one."""
        first = self.rows[0].setting
        return first if all(row.setting == first for row in self.rows) else None

    @property
    def estimated(self) -> bool:
        """Whether nothing was measured."""
        return all(row.need.how == "estimated" for row in self.rows)

    def same_as(self, row: Row) -> str | None:
        """The variant before it that a row's rung is taken over from; None where it is trained."""
        return self.shared.get((row.case.stage, row.case.variant))

    def _trained(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if self.same_as(row) is None]

    @property
    def hours(self) -> float:
        """Wall time of the whole grid, one run after the other."""
        return self.seeds * sum(row.hours for row in self._trained(self.rows))

    @property
    def faster_hours(self) -> float:
        """The same with a setting for each stage; 0 where that saves no time."""
        return self.seeds * sum(row.hours for row in self._trained(self.faster))

    @property
    def device_hours(self) -> float:
        """Wall time of the whole grid times the devices."""
        return self.seeds * sum(row.hours * row.setting.devices for row in self._trained(self.rows))

    @property
    def kilowatt_hours(self) -> float | None:
        """Of the whole grid, where the devices tell."""
        each = [row.kilowatt_hours for row in self._trained(self.rows)]
        return None if None in each else self.seeds * sum(value for value in each if value is not None)

    def worst(self) -> Row | None:
        """Of the first stage that does not fit, the row that needs most."""
        lacking = [row for row in self.rows if not row.fits]
        own = [row for row in lacking if row.case.stage == lacking[0].case.stage]
        return max(own, key=lambda row: row.need.bytes, default=None)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values; bytes, seconds, hours and kilowatt hours."""
        return {
            "machine": asdict(self.machine),
            "estimated": self.estimated,
            "setting": None if self.setting is None else asdict(self.setting),
            "faster": [_row_as_json(row) for row in self.faster],
            "stages": [_row_as_json(row) | {"same_as": self.same_as(row)} for row in self.rows],
            "seeds": self.seeds,
            "hours": self.hours,
            "device_hours": self.device_hours,
            "kilowatt_hours": self.kilowatt_hours,
            "disk": [asdict(each) for each in self.disk],
            "data": self.data,
            "cures": {
                stage: None if found is None else {"device_bytes": found[0], **asdict(found[1])}
                for stage, found in self.cures.items()
            },
        }


def _row_as_json(row: Row) -> dict[str, Any]:
    section = row.case.section
    return {
        "stage": row.case.stage,
        "variant": row.case.variant,
        "how": row.need.how,
        **asdict(row.setting),
        "micro": row.micro,
        "parts": row.parts,
        "batch": section.batch,
        "norm_batch": section.norm_batch,
        "peak_bytes": row.need.bytes,
        "fits": row.fits,
        "step_seconds": row.step_seconds,
        "steps": section.steps,
        "images": row.images,
        "hours": row.hours,
        "watts": row.need.watts,
        "kilowatt_hours": row.kilowatt_hours,
    }


def cases(params: Params, paths: Paths) -> list[Case]:
    """Every stage that is trained, with every variant of the grid.

    Raises:
        MmsegError: the number of classes of a dataset is not known yet.
    """
    found = []
    for stage in LADDER:
        for variant in params.ablate.variants:
            section = params.section_of(variant, stage)
            if section.steps == 0:
                continue
            data, store = params.datasets[section.dataset], paths.store(section.dataset)
            classes = count_classes(section.dataset, data, store=store)
            found.append(Case(stage, variant, section, TASKS[stage], classes, params.network_of(variant)))
    return found


def shared(cases: Sequence[Case]) -> dict[tuple[str, str], str]:
    """The rungs that are the same training as that of a variant before them, by (stage, variant): which one.

    Variants that differ in a later rung only share the earlier ones, which are trained once and taken over.
    """
    ladders: dict[str, list[Any]] = {}
    first: dict[str, str] = {}
    found = {}
    for case in cases:
        ladder = ladders.setdefault(case.variant, [case.network])
        ladder.append([case.stage, case.section.model_dump(exclude=set(NOT_DEFINING))])
        before = first.setdefault(fingerprint(ladder), case.variant)
        if before != case.variant:
            found[case.stage, case.variant] = before
    return found


def count_classes(name: str, dataset: Dataset, *, store: Path) -> int:
    """The classes of a dataset: those of its store, or those that its layout is known for.

    Raises:
        MmsegError: it is not prepared, and its layout has any number.
    """
    if (store / "manifest.json").is_file():
        return len(open_store(store).space.classes)
    layout = dataset.layout or name
    if layout == "imagenet" and dataset.generate is not None:
        return dataset.generate.classes
    if layout == "mapillary":
        return int((dataset.target or "vistas-65").rsplit("-", 1)[1])
    if layout in KNOWN_CLASSES:
        return KNOWN_CLASSES[layout]
    raise MmsegError(
        f"datasets.{name}", "how many classes it has is not known yet", f"run `mmseg prepare {name}` first"
    )


def estimate(params: Params, paths: Paths, *, machine: Machine, teraflops: float) -> Plan:
    """Plan for another machine from counts alone; `teraflops` is what each of its devices achieves."""
    wanted = cases(params, paths)
    counts = {(case.stage, case.variant): Counts(case, alone=machine.devices == 1) for case in wanted}
    ask = _estimator(counts, flops=teraflops * 1e12)
    chosen = _choose(wanted, machine=machine, ask=ask)
    return _plan(params, paths, machine=machine, chosen=chosen, counts=counts, no_energy="not estimated")


def measured(
    params: Params,
    paths: Paths,
    *,
    memory: int | None,
    seconds: float,
    begin: Callable[[int], None],
    done: Callable[[str], None],
) -> Plan:
    """Plan for the device at hand, on which steps are run.

    Args:
        memory: bytes of a device that may be taken; None is what is free.
        seconds: for the measurements of one stage, about.
        begin: called with the number of cases.
        done: called with the name of each when it begins to be measured.

    Raises:
        MmsegError: the device is none that can be measured.
        ResourceError: not even the smallest step can be run.
    """
    wanted = cases(params, paths)
    device, machine, room = here(params.runtime.device, memory=memory)
    counts = {(case.stage, case.variant): Counts(case, alone=machine.devices == 1) for case in wanted}
    begin(len(wanted))
    seen: set[str] = set()

    def advance(name: str) -> None:
        if name not in seen:
            seen.add(name)
            done(name)

    each = seconds / len(params.ablate.variants)
    with Measurer(counts, runtime=params.runtime, device=device, room=room, seconds=each, advance=advance) as measurer:
        chosen = _choose(wanted, machine=machine, ask=measurer.need)
    no_energy = energy.why_not(device.type)
    return _plan(params, paths, machine=machine, chosen=chosen, counts=counts, no_energy=no_energy)


def here(name: str, *, memory: int | None) -> tuple[torch.device, Machine, float]:
    """The device `name`, the machine at hand with `memory` of each device if given, and the bytes free for measuring.

    Raises:
        MmsegError: the device is not here, or is none that can be measured.
    """
    device = runtime.pick_device(name)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(index).total_memory
        free, _ = torch.cuda.mem_get_info(index)
        there = 1 if ":" in name else torch.cuda.device_count()
        usable = min(USABLE * total, free) if memory is None else memory  # others may use the GPU as well
        return device, Machine(there, usable, torch.cuda.get_device_name(index)), free
    if device.type != "cpu":
        raise MmsegError("runtime.device", f"{device} cannot be measured", "set it to cpu, or give --gpus")
    room = memory_now.look().available
    return device, Machine(1, room if memory is None else memory, runtime.processor()), room


def _choose(wanted: list[Case], *, machine: Machine, ask: Ask) -> tuple[list[Row], list[Row]]:
    """The rows of the plan, and those with a setting for each stage where these save a twentieth of the time."""
    rows = choose.choose(wanted, machine=machine, ask=ask)
    shared = all(row.setting == rows[0].setting for row in rows)
    most = {choose.most_devices(case.section.norm_batch, machine.devices) for case in wanted}
    if not shared or most == {rows[0].setting.devices}:
        return rows, []
    apart = choose.separately(wanted, machine=machine, ask=ask)
    return rows, apart if sum(row.hours for row in apart) < 0.95 * sum(row.hours for row in rows) else []


def _estimator(counts: dict[tuple[str, str], Counts], *, flops: float) -> Ask:
    def ask(case: Case, recompute: bool, micro: int) -> Need:
        return counts[case.stage, case.variant].estimate(recompute=recompute, micro=micro, flops=flops)

    return ask


def _plan(
    params: Params,
    paths: Paths,
    *,
    machine: Machine,
    chosen: tuple[list[Row], list[Row]],
    counts: dict[tuple[str, str], Counts],
    no_energy: str,
) -> Plan:
    """The plan of the rows that were chosen; `no_energy` is said where a device does not tell its power."""
    rows, faster = chosen
    seeds = len(params.ablate.seeds)
    stages = list(dict.fromkeys(row.case.stage for row in rows))
    own = {stage: [row.case for row in rows if row.case.stage == stage] for stage in stages}
    ask = _estimator(counts, flops=1.0)
    lacking = [stage for stage in stages if not all(row.fits for row in rows if row.case.stage == stage)]
    data = {row.case.section.dataset: paths.store(row.case.section.dataset) for row in rows}
    return Plan(
        machine=machine,
        rows=rows,
        faster=faster,
        seeds=seeds,
        disk=[_disk(stage, [counts[case.stage, case.variant] for case in own[stage]], seeds=seeds) for stage in stages],
        data={name: _folder_bytes(folder) for name, folder in data.items()},
        cures={stage: _cure(own[stage], ask=ask) for stage in lacking},
        no_energy=None if all(row.need.watts is not None for row in rows) else no_energy,
    )


def _cure(own: Sequence[Case], *, ask: Ask) -> tuple[int, Setting] | None:
    for size in CURES:
        setting = choose.cure(own, memory=USABLE * size, ask=ask)
        if setting is not None:
            return size, setting
    return None


def _disk(stage: str, counts: Sequence[Counts], *, seeds: int) -> Disk:
    storages = [each.storage() for each in counts]
    largest = max(storage.checkpoint for storage in storages)
    left = seeds * sum(storage.checkpoint + 2 * storage.weights for storage in storages)
    return Disk(stage, largest, (KEPT + 1) * largest, left)


def _folder_bytes(folder: Path) -> int | None:
    """Bytes of a prepared dataset."""
    if not (folder / "manifest.json").is_file():
        return None
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
