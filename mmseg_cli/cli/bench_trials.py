"""The commands of `mmseg bench` that train or simulate: do verdicts keep their promise, what does a deadline buy?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmseg_cli.cli.bench import CAMVID, begin_report, peers_of, publish, variants_of
from mmseg_cli.cli.common import load, resumable
from mmseg_cli.errors import MmsegError


def calibration(
    trials: Annotated[int, typer.Option(min=10, help="Simulated ablations of each configuration.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of calibration.md and calibration.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """Do intervals and verdicts keep what they promise? Simulated ablations whose truth is known, judged as real ones.

    Coverage, false verdicts and power, next to the textbook's interval and three bootstraps. See docs/statistics.md.
    """
    from mmseg_cli.bench import calibration as room
    from mmseg_cli.bench.calibration_trials import Size
    from mmseg_cli.cli import screen

    report = begin_report(out)
    size = Size(trials=trials, bootstrap_trials=min(trials, Size.bootstrap_trials), seed=seed)
    calls = room.plan(size)
    with screen.Screen("bench calibration", unit="parts") as show:
        show.begin(total=len(calls))
        result = room.run(calls, size, advance=show.advance)
    tables = [(title, room.headings(result), rows) for title, rows in room.tables(result).items()]
    publish("calibration", report, result, room.markdown(result), tables, next_command="mmseg bench alike")


def alike(
    trainings: Annotated[int, typer.Option(min=1, help="Tiny trainings, each with a seed of its own.")] = 240,
    seeds: Annotated[int, typer.Option(min=1, help="Of a variant; 2, 3 and 5 are reported as well.")] = 3,
    block: Annotated[str, typer.Option(help="The block that all of them have.")] = "mmbconv",
    out: Annotated[
        Path | None, typer.Option(help="Folder of alike.md and alike.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """How often are real trainings called different that only differ in their seed? One block, many tiny trainings.

    Two seconds a training, on one thread. The same command goes on with what was interrupted. See docs/statistics.md.
    """
    import shutil

    from mmseg_cli.bench import alike as room
    from mmseg_cli.cli import screen
    from mmseg_cli.names import BLOCK_NAMES, unknown_name

    if block not in BLOCK_NAMES:
        raise unknown_name("--block", block, BLOCK_NAMES)
    room.require_enough(trainings, seeds)
    report = begin_report(out)
    project = Path(".work") / f"bench-alike-{block}"
    with (
        resumable(project, "trainings that are done are kept"),
        screen.Screen("bench alike", unit="trainings") as show,
    ):
        show.begin(total=trainings)
        result = room.run(
            project,
            block=block,
            trainings=trainings,
            seeds=seeds,
            size=room.Size(),
            advance=show.advance,
            warn=show.warn,
        )
    says = [("mIoU", room.in_words([row["miou"] for row in result["runs"]]))]
    tables = [(title, room.HEADINGS, rows) for title, rows in room.tables(result).items()]
    publish("alike", report, result, room.markdown(result), tables, says=says)
    shutil.rmtree(project, ignore_errors=True)


def accuracy(
    seconds: Annotated[float, typer.Option(min=0.1, help="Of training of each final run.")] = 150,
    chosen: Annotated[
        str | None,
        typer.Option("--peers", help="Networks of other libraries, separated by commas, or none; all if left out."),
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Ours, of the preset, separated by commas; else those of its grid.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Whose data, recipe and variants.")] = CAMVID,
    seeds: Annotated[int, typer.Option(min=1, help="Final runs of each network.")] = 3,
    learning_rates: Annotated[
        str, typer.Option(help="What each network tries, separated by commas.")
    ] = "0.001,0.003,0.01,0.03",
    trial_seconds: Annotated[float, typer.Option(min=0.1, help="Of training of each trial of a learning rate.")] = 75,
    hold_out: Annotated[
        str | None,
        typer.Option(help="Beginning of the names that trials are judged on; else the last fifth of all."),
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="At how many equal parts of a final run val is judged.")] = 3,
    budgets: Annotated[
        Path | None,
        typer.Option(
            help="An earlier accuracy-SECONDS.json: its learning rates, and as many steps as its machine takes."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder of finished runs, which processes and machines may share; else one in .work/."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of accuracy-SECONDS.md, .json, .png; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """What a deadline buys: ours and other libraries' networks from scratch in equal time, on the preset's data.

    The same recipe, crops and seeds for all; the learning rate is chosen for each by equally many trials. The same
    command goes on with what was interrupted, run by run. Prepare the preset's data before.

    With --budgets nothing is timed or tried: what one machine would train in longer time, others can train for it.
    """
    from mmseg_cli import runtime
    from mmseg_cli.bench import accuracy as room
    from mmseg_cli.bench import accuracy_report as page
    from mmseg_cli.cli import screen
    from mmseg_cli.data.store import open_store

    if budgets is not None and hold_out is not None:
        raise MmsegError("--hold-out", "is for trials, of which --budgets has none", "leave one of them out")
    paths, params = load(preset)
    ours = variants_of(params, variants)
    names = peers_of(chosen)
    section = params.section_of(ours[0], "train")
    store = open_store(paths.store(section.dataset), parameters=params.datasets[section.dataset].content())
    report = begin_report(out)
    work = keep or paths.root / ".work" / f"bench-accuracy-{preset}"
    where = runtime.pick_device(device, where="--device")
    stem = f"accuracy-{seconds:g}s"
    with (
        resumable(work, "runs that are done are kept"),
        screen.Screen("bench accuracy", unit="runs") as show,
    ):
        result = room.run(
            work,
            params=params,
            store=store,
            variants=ours,
            names=names,
            seconds=seconds,
            trial_seconds=trial_seconds,
            rates=_numbers("--learning-rates", learning_rates),
            seeds=seeds,
            points=points,
            hold_out=hold_out,
            report=budgets,
            device=where,
            begin=lambda total: show.begin(total=total),
            advance=show.advance,
            note=show.note,
        )
    page.figure(result, report.folder / f"{stem}.png")
    tables = [(f"{seconds:g} seconds of training", page.HEADINGS, page.rows(result))]
    publish(stem, report, result, page.markdown(result, picture=f"{stem}.png"), tables)


def _numbers(option: str, text: str) -> list[float]:
    """Positive numbers, separated by commas, each once."""
    try:
        numbers = list(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise MmsegError(option, f"{text!r} is no list of numbers above 0", "write them like 0.001,0.003")
    return numbers
