"""`mmseg bench`: how fast this machine is, against the usual ways."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmseg_cli.cli.common import example, load
from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.bench.predict import Contestant

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure how fast this machine is, against the usual ways.",
    epilog=example("mmseg bench data", "mmseg bench predict --preset paper"),
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
