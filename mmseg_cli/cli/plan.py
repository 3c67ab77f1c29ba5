"""`mmseg plan`: what a preset costs on this machine, or on another one, and how to run it there unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmseg_cli.cli.common import load
from mmseg_cli.errors import MmsegError, ResourceError

if TYPE_CHECKING:
    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths
    from mmseg_cli.planning.choose import Row, Setting
    from mmseg_cli.planning.plan import Plan

GIB = 2**30
TFLOPS = 40.0  # what one GPU achieves in training, not its peak


def plan(
    preset: Annotated[str, typer.Argument(help="demo (params.yaml) or a folder of pipelines/.")] = "demo",
    gpus: Annotated[
        str | None,
        typer.Option(metavar="NxMEMORY", help="Estimate for other devices, such as 8x80GB; measures nothing."),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(help=f"With --gpus: 10^12 operations a second that each achieves; {TFLOPS:g} if left out."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of the device at hand that may be taken, such as 24GB; what there is if left out."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(min=1, help="Time for measuring a stage, about; larger steps are scaled from smaller crops."),
    ] = 30.0,
    json_report: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the plan as JSON.")] = None,
) -> None:
    """Print what every stage of a preset costs on this machine, and the runtime settings that make it fit.

    One training step of each variant is measured. Devices, recomputation and, without batch norm, the samples at once
    are chosen; batch, norm_batch, crop and precision are the experiment and stay. Ends with 4 where a stage fits under
    no setting.
    """
    from mmseg_cli.planning.machine import parse_bytes, parse_gpus

    machine = None if gpus is None else parse_gpus(gpus)
    size = None if memory is None else parse_bytes(memory, option="--memory")
    if machine is not None and size is not None:
        raise MmsegError("--memory", "is of the device at hand", "leave it out, --gpus names its own")
    if machine is None and tflops is not None:
        raise MmsegError("--tflops", "is for an estimate, the device at hand is measured", "give --gpus as well")
    if tflops is not None and not 0 < tflops < 1e6:
        raise MmsegError("--tflops", f"{tflops} is not possible", f"give a number such as {TFLOPS:g}")
    paths, params = load(preset, option="PRESET")
    target = None if json_report is None else _writable(json_report)
    from mmseg_cli.cli import screen
    from mmseg_cli.planning import plan as planning

    speed = TFLOPS if tflops is None else tflops
    if machine is not None:
        made = planning.estimate(params, paths, machine=machine, teraflops=speed)
    else:
        with screen.Screen("plan", unit="cases measured") as show:
            made = planning.measured(
                params,
                paths,
                memory=size,
                seconds=seconds,
                begin=lambda total: show.begin(total=total),
                done=show.advance,
            )
    if target is not None:
        from mmseg_cli.files import write_json

        write_json(
            target, {"preset": preset, **({"assumed_tflops": speed} if made.estimated else {}), **made.as_json()}
        )
    _show(made, params=params, paths=paths, speed=speed)
    worst = made.worst()
    if worst is not None:
        raise _too_large(made, worst)


def _writable(name: str) -> Path:
    """The file to write, looked at before minutes of work."""
    from mmseg_cli.files import require_writable

    target = Path(name).resolve()
    if target.is_dir():
        raise MmsegError("--json", f"{name} is a folder", "name a file")
    require_writable(target.parent)
    return target


def _show(made: Plan, *, params: Params, paths: Paths, speed: float) -> None:
    """A table for each stage, one for the disk, and the sum."""
    from mmseg_cli.cli import screen

    energy = made.no_energy is None
    for stage in dict.fromkeys(row.case.stage for row in made.rows):
        rows = [row for row in made.rows if row.case.stage == stage]
        section = rows[0].case.section
        kind = " (estimate, nothing was measured)" if made.estimated else ""
        screen.table(
            f"{stage}{kind}: {section.steps:,} steps x {section.batch} crops of {section.crop[0]}x{section.crop[1]}"
            f" = {rows[0].images:,} images",
            (
                "variant",
                "how",
                "devices",
                "at once x parts",
                "recompute",
                "peak GiB",
                "fits",
                "s / step",
                "hours a run",
                "hours in all",
                *(("kWh in all",) if energy else ()),
            ),
            [_cells(row, same_as=made.same_as(row), seeds=made.seeds, energy=energy) for row in rows],
        )
    screen.table(
        "disk",
        ("stage", "one checkpoint", "while a run goes", "left by all runs"),
        [(disk.stage, *(_size(size) for size in (disk.checkpoint, disk.running, disk.left))) for disk in made.disk],
    )
    variants, total = len(params.ablate.variants), f"{_hours(made.hours)} one run after the other"
    devices = max(row.setting.devices for row in made.rows)
    if devices > 1:
        total += f"; {made.device_hours:,.1f} device-hours"
    kilowatts = made.kilowatt_hours
    lines = [
        ("machine", _machine(made)),
        ("runtime", _settings(made.rows)),
        ("whole grid", f"{variants} variants x {made.seeds} seeds: {total}"),
        (
            "energy",
            f"{_short(kilowatts)} kWh, of the GPUs alone" if kilowatts is not None else made.no_energy or "unknown",
        ),
        (
            "prepared data",
            ", ".join(f"{name} {'not prepared' if size is None else _size(size)}" for name, size in made.data.items()),
        ),
        (
            "disk",
            "3 checkpoints of a run and one more while it is saved; left are its last, its weights, and DVC's copy",
        ),
        ("not included", "validation, evaluation, loading of data, communication between devices"),
        ("how", _how(made, params=params, speed=speed)),
    ]
    if made.faster:
        lines.append(("faster", f"{_hours(made.faster_hours)} with a setting for each stage, which changes no result:"))
        lines.append(("", _settings(made.faster)))
    for stage, cure in made.cures.items():
        lines.append((f"{stage} fits on", "no number of devices" if cure is None else f"{_cure(*cure)}, by estimate"))
    screen.panel(f"plan of {paths.preset}", lines, next_command=_next(made, params=params, paths=paths))


def _cells(row: Row, *, same_as: str | None, seeds: int, energy: bool) -> list[str]:
    cells = [
        row.case.variant,
        row.need.how,
        str(row.setting.devices),
        f"{row.micro} x {row.parts}",
        "yes" if row.setting.recompute else "no",
        f"{row.need.bytes / GIB:,.2f}",
        "yes" if row.fits else "no",
        f"{row.step_seconds:,.3f}",
        _short(row.hours),
        _short(seeds * row.hours) if same_as is None else f"{same_as}'s",  # which is trained once, for both
    ]
    if energy:
        cells.append(_short(seeds * (row.kilowatt_hours or 0)) if same_as is None else "0")
    return cells


def _short(number: float) -> str:
    return f"{number:.4f}" if number < 1 else f"{number:,.2f}" if number < 1000 else f"{number:,.0f}"


def _size(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def _hours(hours: float) -> str:
    text = f"{_short(hours)} hours"
    return text if hours < 48 else f"{text} ({hours / 24:,.0f} days)"


def _machine(made: Plan) -> str:
    machine = made.machine
    number = "" if made.estimated else f"{machine.devices} x " if machine.devices > 1 else ""
    return f"{number}{machine.name}; {machine.memory / GIB:.2f} GiB of each may be taken"


def _setting(setting: Setting) -> str:
    micro = "" if setting.micro_batch is None else f", runtime.micro_batch: {setting.micro_batch}"
    recompute = "true" if setting.recompute else "false"
    return f"runtime.devices: {setting.devices}, runtime.recompute: {recompute}{micro}"


def _settings(rows: list[Row]) -> str:
    """The settings, for each stage where they differ."""
    own = {row.case.stage: row.setting for row in rows}
    if len(set(own.values())) == 1:
        return _setting(rows[0].setting)
    return "\n".join(f"{stage}: {_setting(setting)}" for stage, setting in own.items())


def _cure(size: int, setting: Setting) -> str:
    number = f"{setting.devices} device{'' if setting.devices == 1 else 's'} of {size / 1e9:.0f} GB"
    return f"{number} with runtime.recompute: true" if setting.recompute else number


def _how(made: Plan, *, params: Params, speed: float) -> str:
    """What the numbers rest on."""
    from mmseg_cli.planning import counts

    low = any(row.case.section.precision != "float32" for row in made.rows)
    if made.estimated:
        text = (
            f"time: counted MACs at {speed:g} TFLOP/s a device (an assumption, set it with --tflops), plus counted"
            f" activations moved {counts.TRAFFIC} times at {counts.BANDWIDTH / 1e12:g} TB/s; memory: counted"
            f" activations that are kept, {100 * counts.WORKING:.0f} % of all that are made and"
            f" {counts.WORKSPACE / GIB:g} GiB for work in progress"
        )
        return text + (f"; mixed precision keeps {counts.LOW_PRECISION:g} of float32's" if low else "")
    text = "the training loop's own steps on noise, on one device"
    if any("scaled" in row.need.how for row in made.rows):
        text += "; scaled: from smaller steps (samples x height x width), time by MACs, memory by counted activations"
    if any(row.need.how.startswith("roughly") for row in made.rows):
        text += "; roughly: from less than a hundredth of the work, times may be many times too long (--seconds helps)"
    return text + ("; without runtime.compile" if params.runtime.compile else "")


def _next(made: Plan, *, params: Params, paths: Paths) -> str:
    """What to do with the plan."""
    repro = "dvc repro" if paths.preset == "demo" else f"dvc repro pipelines/{paths.preset}/dvc.yaml"
    if made.worst() is not None:
        devices = [cure[1].devices for cure in made.cures.values() if cure is not None]
        sizes = [cure[0] for cure in made.cures.values() if cure is not None]
        if not devices:
            return f"mmseg plan {paths.preset} --gpus 8x80GB"
        return f"mmseg plan {paths.preset} --gpus {max(devices)}x{max(sizes) / 1e9:.0f}GB"
    file = paths.params.relative_to(paths.root)
    if made.setting is None:
        stages = "dvc repro STAGE" if paths.preset == "demo" else f"{repro}:STAGE"
        return f"for each stage set its runtime in {file}, then `{stages}`"
    machine, chosen = params.runtime, made.setting
    wanted = {"devices": chosen.devices, "recompute": chosen.recompute, "micro_batch": chosen.micro_batch}
    text = {True: "true", False: "false", None: "null"}
    changes = [
        f"runtime.{key}: {text[value] if value is None or isinstance(value, bool) else value}"
        for key, value in wanted.items()
        if (made.machine.devices if (now := getattr(machine, key)) == "auto" else now) != value
    ]
    if not changes:
        return repro
    return f"set {', '.join(changes)} in {file}, then `{repro}`"


def _too_large(made: Plan, row: Row) -> ResourceError:
    """The one line for what does not fit."""
    section, devices = row.case.section, row.setting.devices
    others = [stage for stage in made.cures if stage != row.case.stage]
    what = (
        f"needs {row.need.bytes / GIB:,.2f} GiB of the {made.machine.memory / GIB:,.2f} GiB of a device, with"
        f" {row.micro} of norm_batch {section.norm_batch} at once on {devices} device{'' if devices == 1 else 's'} and"
        " recomputation"
    )
    if others:
        what += f" ({' and '.join(others)} lack{'s' if len(others) == 1 else ''} memory too)"
    cure = made.cures[row.case.stage]
    if cure is None:
        return ResourceError(
            f"{row.case.stage} ({row.case.variant})",
            what,
            "no devices suffice; a smaller norm_batch or crop is another experiment",
        )
    return ResourceError(f"{row.case.stage} ({row.case.variant})", what, f"use {_cure(*cure)}, by estimate")
