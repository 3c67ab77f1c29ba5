"""`mmseg bench`: how fast this machine is, against the usual ways; and whether verdicts keep what they promise."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmseg_cli.cli.common import example, load, resumable
from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.bench.predict import Contestant

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure how fast this machine is, against the usual ways, and whether verdicts keep what they promise.",
    epilog=example("mmseg bench data", "mmseg bench predict --preset paper", "mmseg bench calibration"),
)


def _report_folder(out: Path | None) -> Path:
    """Where a benchmark's report goes: a folder that the user names, else this machine's."""
    from mmseg_cli import runtime
    from mmseg_cli.files import require_writable

    machine = re.sub(r"[^a-z0-9]+", "-", f"{runtime.processor()} {os.cpu_count()} cores".lower()).strip("-")
    folder = out or Path("reports") / "bench" / machine
    require_writable(folder)
    return folder


@bench_app.command(epilog=example("mmseg bench data", "mmseg bench data --images 16 --rounds 9"))
def data(
    images: Annotated[int, typer.Option(min=1, help="Generated pictures of each kind, 2048x1024.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often the contenders take turns.")] = 7,
    calls: Annotated[int, typer.Option(min=1, help="Crops of each contender in a round.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures and the crops.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of data.md and data.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """Crops a second of the store and of the whole loader, against Pillow, torchvision and OpenCV, on one core."""
    import tempfile

    from mmseg_cli.bench import data as room
    from mmseg_cli.cli import screen
    from mmseg_cli.files import write_json, write_text

    folder = _report_folder(out)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work,
        screen.Screen("bench data", unit="rounds") as show,
    ):
        show.begin(total=2 * len(room.KINDS) * rounds)
        result = room.run(Path(work), images=images, rounds=rounds, calls=calls, seed=seed, advance=show.advance)
    write_json(folder / "data.json", result)
    write_text(folder / "data.md", room.markdown(result))
    for title, rows in room.tables(result).items():
        screen.table(title, room.HEADINGS, rows)
    screen.panel("bench data", [("report", f"{folder}/data.md, data.json")], next_command=None)


@bench_app.command(
    epilog=example(
        "mmseg bench predict --preset paper --variants residual,mmbconv",
        "mmseg bench predict --run runs/demo/train/mmbconv-s0 --height 512 --width 1024",
    )
)
def predict(
    run: Annotated[
        Path | None, typer.Option(help="The folder of a trained run; else the variants of --preset, untrained.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Whose variants, their weights drawn at random; demo if left out.")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Variants of the preset, separated by commas; else those of its grid.")
    ] = None,
    height: Annotated[int, typer.Option(min=32, help="Of the image, in pixels.")] = 1024,
    width: Annotated[int, typer.Option(min=32, help="Of the image, in pixels.")] = 2048,
    classes: Annotated[int | None, typer.Option(min=1, help="Classes of an untrained network; 19 if left out.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the contenders take turns.")] = 5,
    calls: Annotated[int, typer.Option(min=1, help="Images of each contender in a round.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each; else one per core.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; onnxruntime takes part on the CPU.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of predict.md and predict.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """Images a second of a network as it is, folded, compiled, and by onnxruntime, which all give the same labels."""
    from mmseg_cli import runtime
    from mmseg_cli.bench import predict as room
    from mmseg_cli.cli import screen
    from mmseg_cli.files import write_json, write_text

    if run is None:
        contestants = _of_preset(preset or "demo", variants, classes=classes or 19)
    else:
        for option, value in (("--preset", preset), ("--variants", variants), ("--classes", classes)):
            if value is not None:
                raise MmsegError(option, "stands beside --run, which is one network", "leave out one of the two")
        contestants = _of_run(run)
    folder = _report_folder(out)
    where = runtime.pick_device(device, where="--device")
    with screen.Screen("bench predict", unit="rounds") as show:
        show.begin(total=len(contestants) * rounds)
        result = room.run(
            contestants,
            size=(height, width),
            rounds=rounds,
            calls=calls,
            threads=threads,
            device=where,
            advance=show.advance,
            warn=show.warn,
        )
    write_json(folder / "predict.json", result)
    write_text(folder / "predict.md", room.markdown(result))
    for title, rows in room.tables(result).items():
        screen.table(title, room.HEADINGS, rows)
    screen.panel("bench predict", [("report", f"{folder}/predict.md, predict.json")], next_command=None)


@bench_app.command(epilog=example("mmseg bench calibration", "mmseg bench calibration --trials 200 --out /tmp/report"))
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
    from mmseg_cli.files import write_json, write_text

    folder = _report_folder(out)
    size = Size(trials=trials, bootstrap_trials=min(trials, Size.bootstrap_trials), seed=seed)
    calls = room.plan(size)
    with screen.Screen("bench calibration", unit="parts") as show:
        show.begin(total=len(calls))
        result = room.run(calls, size, advance=show.advance)
    write_json(folder / "calibration.json", result)
    write_text(folder / "calibration.md", room.markdown(result))
    for title, rows in room.tables(result).items():
        if rows:
            screen.table(title, room.headings(result), rows)
    panel = [("report", f"{folder}/calibration.md, calibration.json")]
    screen.panel("bench calibration", panel, next_command="mmseg bench alike")


@bench_app.command(epilog=example("mmseg bench alike", "mmseg bench alike --trainings 60 --seeds 5 --block residual"))
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
    from mmseg_cli.files import write_json, write_text
    from mmseg_cli.names import BLOCK_NAMES, unknown_name

    if block not in BLOCK_NAMES:
        raise unknown_name("--block", block, BLOCK_NAMES)
    room.require_enough(trainings, seeds)
    folder = _report_folder(out)
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
    write_json(folder / "alike.json", result)
    write_text(folder / "alike.md", room.markdown(result))
    shutil.rmtree(project, ignore_errors=True)
    for title, rows in room.tables(result).items():
        if rows:
            screen.table(title, room.HEADINGS, rows)
    miou = room.in_words([row["miou"] for row in result["runs"]])
    screen.panel("bench alike", [("mIoU", miou), ("report", f"{folder}/alike.md, alike.json")], next_command=None)


def _of_run(run: Path) -> dict[str, Contestant]:
    """One trained network."""
    from mmseg_cli.bench.predict import Contestant
    from mmseg_cli.models import weights
    from mmseg_cli.prediction.model import require_run

    require_run(run)
    network, record = weights.load_network(run)
    if record["task"] != "segmentation":
        raise MmsegError(run, "is not a segmentation network", "give a run of the train stage")
    classes = len(record["label_space"]["classes"])
    return {f"{run.resolve().name}, trained": Contestant(lambda: network, classes, record["network"])}


def _of_preset(preset: str, variants: str | None, *, classes: int) -> dict[str, Contestant]:
    """The variants of a preset, with weights drawn at random."""
    from mmseg_cli.bench.predict import untrained

    _, params = load(preset)
    names = params.ablate.variants
    if variants is not None:
        names = [part.strip() for part in variants.split(",") if part.strip()]
    if not names:
        raise MmsegError("--variants", "is empty", "name at least one, separated by commas")
    networks = {name: params.network_of(name) for name in dict.fromkeys(names)}
    return {f"{name} of {preset}": untrained(network, classes=classes) for name, network in networks.items()}
