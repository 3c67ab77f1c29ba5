"""`mmseg bench`: how fast this machine is, against the usual ways; and whether verdicts keep what they promise."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from mmseg_cli.cli.common import example, group, load
from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.bench.predict import Contestant
    from mmseg_cli.params import Params
    from mmseg_cli.prediction.model import Precision

CAMVID = "camvid-small"  # the preset that two cores train in minutes

bench_app = group(
    help="Measure how fast this machine is, against the usual ways, and whether verdicts keep what they promise.",
    epilog=example("mmseg bench data", "mmseg bench train", "mmseg bench accuracy", "mmseg bench calibration"),
)


class Report(NamedTuple):
    """Where a report goes, and the code that is there when measuring begins: of a long one, later is another's."""

    folder: Path
    code: dict[str, str | None]


def begin_report(out: Path | None, device: str = "cpu") -> Report:
    """A benchmark's report, before it measures: in a folder that the user names, else this machine's, by its processor
    or GPU.
    """
    from mmseg_cli import provenance, runtime
    from mmseg_cli.files import require_writable

    machine = f"{provenance.accelerator(device) or runtime.processor()} {os.cpu_count()} cores"
    machine = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    folder = out or Path("reports") / "bench" / machine
    require_writable(folder)
    return Report(folder, provenance.code_state(Path()))


def write(stem: str, report: Report, result: dict[str, Any], page: str) -> None:
    """Write a benchmark's result, with the commit that it is of, and its page."""
    from mmseg_cli.files import write_json, write_text

    write_json(report.folder / f"{stem}.json", result | {"code": report.code})
    write_text(report.folder / f"{stem}.md", page)


def publish(
    stem: str,
    report: Report,
    result: dict[str, Any],
    page: str,
    tables: Iterable[tuple[str, Iterable[str], Collection[Iterable[str]]]],
    *,
    says: Iterable[tuple[str, str]] = (),
    next_command: str | None = None,
) -> None:
    """Write a benchmark's result and its page, and show its tables.

    Args:
        stem: of both files' names.
        tables: titles, headings and rows; one without rows is not shown.
        says: further lines for the end.
    """
    from mmseg_cli.cli import screen

    write(stem, report, result, page)
    for title, headings, rows in tables:
        if rows:
            screen.table(title, headings, rows)
    files = ("report", f"{report.folder}/{stem}.md, {stem}.json")
    screen.panel(f"bench {stem}", [*says, files], next_command=next_command)


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

    report = begin_report(out)
    with (
        tempfile.TemporaryDirectory(dir=report.folder, prefix=".work-") as work,
        screen.Screen("bench data", unit="rounds") as show,
    ):
        show.begin(total=2 * len(room.KINDS) * rounds)
        result = room.run(Path(work), images=images, rounds=rounds, calls=calls, seed=seed, advance=show.advance)
    tables = [(title, room.HEADINGS, rows) for title, rows in room.tables(result).items()]
    publish("data", report, result, room.markdown(result), tables)


@bench_app.command(
    epilog=example(
        "mmseg bench predict --preset paper --variants residual,mmbconv",
        "mmseg bench predict --run runs/demo/train/mmbconv-s0 --height 512 --width 1024",
        "mmseg bench predict --preset paper --device cuda --precision bfloat16 --calls 20",
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
    ways: Annotated[str | None, typer.Option(help="Separated by commas; all that the device has if left out.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; onnxruntime takes part on the CPU.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 by automatic mixed precision.")] = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of predict.md and predict.json (predict-bfloat16 in that); else reports/bench/MACHINE."
        ),
    ] = None,
) -> None:
    """Images a second of a network as it is and in faster ways, which give the same labels but for rounding."""
    from mmseg_cli import runtime
    from mmseg_cli.bench import predict as room
    from mmseg_cli.cli import screen

    if run is None:
        contestants = _of_preset(preset or "demo", variants, classes=classes or 19)
    else:
        for option, value in (("--preset", preset), ("--variants", variants), ("--classes", classes)):
            if value is not None:
                raise MmsegError(option, "stands beside --run, which is one network", "leave out one of the two")
        contestants = _of_run(run)
    _known_precision(precision)
    where = runtime.pick_device(device, where="--device")
    kind = cast("Precision", precision)
    wanted = room.ways_of(where, kind) if ways is None else _chosen("--ways", ways, room.WAYS)
    report = begin_report(out, str(where))
    with screen.Screen("bench predict", unit="rounds") as show:
        show.begin(total=len(contestants) * rounds)
        result = room.run(
            contestants,
            ways=wanted,
            precision=kind,
            size=(height, width),
            rounds=rounds,
            calls=calls,
            threads=threads,
            device=where,
            advance=show.advance,
            warn=show.warn,
        )
    tables = [(title, room.HEADINGS, rows) for title, rows in room.tables(result).items()]
    stem = "predict" if precision == "float32" else f"predict-{precision}"
    publish(stem, report, result, room.markdown(result), tables)


@bench_app.command(epilog=example("mmseg bench train", "mmseg bench train --peers torchvision-lraspp --batch 8"))
def train(
    chosen: Annotated[
        str | None, typer.Option("--peers", help="Networks of other libraries, separated by commas; all if left out.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Whose network ours is, with another width for each peer.")] = CAMVID,
    variant: Annotated[str, typer.Option(help="Ours, of the preset.")] = "mmbconv",
    height: Annotated[int, typer.Option(min=32, help="Of the images, in pixels.")] = 256,
    width: Annotated[int, typer.Option(min=32, help="Of the images, in pixels.")] = 384,
    batch: Annotated[int, typer.Option(min=2, help="Images of a training step.")] = 4,
    classes: Annotated[int, typer.Option(min=2, help="That the networks tell apart.")] = 11,
    rounds: Annotated[int, typer.Option(min=1, help="How often ours and a peer take turns.")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; else one per core.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 by automatic mixed precision.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="Folder of train.md and train.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """Training and inference of our network against other libraries' at equal multiply-accumulates, and their memory.

    Needs the packages of `pip install 'mmseg-cli[bench]'`; a network whose package is missing is left out.
    """
    from mmseg_cli import runtime
    from mmseg_cli.bench import train as room
    from mmseg_cli.cli import screen

    _known_precision(precision)
    names = peers_of(chosen)
    _, params = load(preset)
    network = params.network_of(variant)
    where = runtime.pick_device(device, where="--device")
    report = begin_report(out, str(where))
    with screen.Screen("bench train", unit="rounds") as show:
        show.begin(total=len(names) * (2 * rounds + 2))
        for result in room.run(
            names,
            network=network,
            size=(height, width),
            batch=batch,
            classes=classes,
            rounds=rounds,
            threads=threads,
            device=where,
            precision=precision,
            advance=show.advance,
            warn=show.warn,
        ):
            write("train", report, result, room.markdown(result))  # what is stopped leaves what it has
    tables = [(title, room.headings(title), rows) for title, rows in room.tables(result).items()]
    publish("train", report, result, room.markdown(result), tables, next_command="mmseg bench accuracy")


@bench_app.command(
    epilog=example("mmseg bench gains", "mmseg bench gains --blocks mmbconv --ways ours,compile --device cuda")
)
def gains(
    blocks: Annotated[str | None, typer.Option(help="Separated by commas; all of ours if left out.")] = None,
    ways: Annotated[
        str | None,
        typer.Option(help="Separated by commas; all but compile if left out, which takes minutes on a CPU."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Whose network it is, with each block in turn.")] = CAMVID,
    height: Annotated[int, typer.Option(min=32, help="Of the images, in pixels.")] = 256,
    width: Annotated[int, typer.Option(min=32, help="Of the images, in pixels.")] = 384,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 4,
    classes: Annotated[int, typer.Option(min=2, help="That the network tells apart.")] = 11,
    rounds: Annotated[int, typer.Option(min=1, help="How often the ways take turns.")] = 9,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; else one per core.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 by automatic mixed precision.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="Folder of gains.md and gains.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """What each way of training faster gains, for each block, against torch's operations one by one.

    The ways are checked to train the same before they are timed.
    """
    from mmseg_cli import runtime
    from mmseg_cli.bench import gains as room
    from mmseg_cli.cli import screen
    from mmseg_cli.names import BLOCK_NAMES

    _known_precision(precision)
    chosen = _chosen("--blocks", blocks, BLOCK_NAMES)
    where = runtime.pick_device(device, where="--device")
    usual = [way for way in room.WAYS if way != "compile" and (way != room.GRAPH or where.type == "cuda")]
    wanted = usual if ways is None else _chosen("--ways", ways, room.WAYS)
    _, params = load(preset)
    report = begin_report(out, str(where))
    with screen.Screen("bench gains", unit="rounds") as show:
        show.begin(total=len(chosen) * rounds)
        for result in room.run(
            chosen,
            wanted,
            network=params.network.model_dump(),
            size=(height, width),
            batch=batch,
            classes=classes,
            rounds=rounds,
            threads=threads,
            device=where,
            precision=precision,
            advance=show.advance,
            warn=show.warn,
        ):
            write("gains", report, result, room.markdown(result))  # what is stopped leaves what it has
    tables = [(title, room.headings(result), rows) for title, rows in room.tables(result).items()]
    publish("gains", report, result, room.markdown(result), tables, next_command="mmseg bench train")


@bench_app.command(epilog=example("mmseg bench feed", "mmseg bench feed --preset paper --device cuda --workers 15"))
def feed(
    preset: Annotated[str, typer.Option(help="Whose training it is.")] = CAMVID,
    variant: Annotated[str, typer.Option(help="Of the preset.")] = "mmbconv",
    workers: Annotated[int | None, typer.Option(min=0, help="That read crops; else the cores but one.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Generated photographs that crops are cut from.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="That count in each turn.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of feed.md and feed.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """Does the loader keep the device busy? A preset's training, fed by its loader and from memory, in turns."""
    from mmseg_cli import runtime
    from mmseg_cli.bench import feed as room
    from mmseg_cli.cli import screen

    _, params = load(preset)
    params.network_of(variant)
    where = runtime.pick_device(device, where="--device")
    report = begin_report(out, str(where))
    with screen.Screen("bench feed", unit="turns") as show:
        show.begin(total=2 * rounds)
        result = room.run(
            params,
            variant=variant,
            images=images,
            steps=steps,
            rounds=rounds,
            workers=max(0, (os.cpu_count() or 1) - 1) if workers is None else workers,
            device=where,
            advance=show.advance,
        )
    publish("feed", report, result, room.markdown(result), [("", room.HEADINGS, room.rows(result))])


@bench_app.command(epilog=example("mmseg bench growth", "mmseg bench growth --rounds 3 --out /tmp/report"))
def growth(
    preset: Annotated[str, typer.Option(help="Whose network is turned.")] = CAMVID,
    variant: Annotated[str, typer.Option(help="Of the preset.")] = "mmbconv",
    large: Annotated[str, typer.Option(help="The preset that is put on many GPUs, on paper.")] = "paper",
    rounds: Annotated[int, typer.Option(min=1, help="How often all settings of one thing take turns.")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; else one per core.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of growth.md, .json and .png; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """How time and memory grow with crop, width, depth, batch, images and processes, and what MMBConv costs by width.

    With fitted exponents, a roofline, and a preset on 8 and 64 GPUs on paper.
    """
    from mmseg_cli import runtime
    from mmseg_cli.bench import growth as room
    from mmseg_cli.bench import growth_report as page
    from mmseg_cli.bench import on_paper
    from mmseg_cli.cli import screen

    _, params = load(preset)
    _, larger = load(large, option="--large")
    section = larger.section_of(variant, "train")
    crop = (section.crop[0], section.crop[1])
    counted = on_paper.count(large, larger.network_of(variant), classes=19, batch=section.batch, size=crop)
    where = runtime.pick_device(device, where="--device")
    report = begin_report(out, str(where))
    with screen.Screen("bench growth", unit="rounds") as show:
        result = room.run(
            room.Plan(rounds=rounds),
            network=params.network_of(variant),
            classes=11,
            on_paper=counted,
            device=where,
            threads=threads,
            begin=lambda total: show.begin(total=total),
            advance=show.advance,
        )
    page.figure(result, report.folder / "growth.png")
    tables = [(title, *rest) for title, rest in page.tables(result).items()]
    publish("growth", report, result, page.markdown(result), tables, next_command=f"mmseg plan {large}")


@bench_app.command("start-up", epilog=example("mmseg bench start-up", "mmseg bench start-up --preset demo"))
def start_up(
    preset: Annotated[str, typer.Option(help="Whose evidence is copied into a large grid; it is only read.")] = CAMVID,
    rounds: Annotated[int, typer.Option(min=1, help="How often the commands take turns.")] = 7,
    out: Annotated[
        Path | None, typer.Option(help="Folder of start-up.md and start-up.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """What one waits for where nothing is to be computed: --help, the tables of 100 runs, a `dvc repro` of nothing."""
    import tempfile

    from mmseg_cli.bench import start_up as room
    from mmseg_cli.cli import screen

    paths, params = load(preset)
    report = begin_report(out)
    with (
        # A mirror may still write when the last command has ended.
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work,
        screen.Screen("bench start-up", unit="rounds") as show,
    ):
        show.begin(total=rounds)
        result = room.run(paths, params, Path(work), rounds=rounds, advance=show.advance)
    publish("start-up", report, result, room.markdown(result), [("seconds", room.HEADINGS, room.rows(result))])


@bench_app.command(epilog=example("mmseg bench execution", "mmseg bench execution --few 4 --rounds 1"))
def execution(
    few: Annotated[int, typer.Option(min=1, max=100, help="Stages that are out of date in each turn.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="How often the two ways take turns.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Folder of execution.md and execution.json; else reports/bench/MACHINE.")
    ] = None,
) -> None:
    """What `mmseg ablate --executor` costs beside DVC, with stages that only sleep, in projects of 100 and 500."""
    import tempfile

    from mmseg_cli.bench import execution as room
    from mmseg_cli.cli import screen

    paths, params = load("demo")
    report = begin_report(out)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work,
        screen.Screen("bench execution", unit="parts") as show,
    ):
        show.begin(total=len(room.SIZES) * (1 + rounds))
        result = room.run(Path(work), params, paths.params, few=few, rounds=rounds, advance=show.advance)
    publish("execution", report, result, room.markdown(result), [("seconds", room.HEADINGS, room.rows(result))])


def peers_of(chosen: str | None) -> list[str]:
    """The peers that an option names; all where it is left out, none where it says so."""
    from mmseg_cli.bench.peers import PEERS

    return [] if chosen == "none" else _chosen("--peers", chosen, PEERS)


def variants_of(params: Params, chosen: str | None) -> list[str]:
    """The variants that an option names; those of the preset's grid where it is left out."""
    return _named("--variants", chosen) if chosen is not None else list(dict.fromkeys(params.ablate.variants))


def _known_precision(name: str) -> None:
    from mmseg_cli.names import unknown_name

    if name not in ("float32", "bfloat16"):
        raise unknown_name("--precision", name, ("float32", "bfloat16"))


def _chosen(option: str, text: str | None, known: Collection[str]) -> list[str]:
    """The names in an option, which must be known; all that are where it is left out."""
    from mmseg_cli.names import unknown_name

    if text is None:
        return list(known)
    for name in _named(option, text):
        if name not in known:
            raise unknown_name(option, name, known)
    return _named(option, text)


def _named(option: str, text: str) -> list[str]:
    """The names in an option, each once."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise MmsegError(option, "is empty", "name at least one, separated by commas")
    return names


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
    names = variants_of(params, variants)
    networks = {name: params.network_of(name) for name in names}
    return {f"{name} of {preset}, untrained": untrained(network, classes=classes) for name, network in networks.items()}
