"""The command line: parses, calls one function with explicit keywords, and prints what it returns."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mmseg_cli.cli import data, doctor, evaluate, export, plan, predict, train
from mmseg_cli.cli.bench import bench_app
from mmseg_cli.cli.common import Preset, dataset_title, example, load, track, with_preset
from mmseg_cli.cli.submit import submit_app
from mmseg_cli.errors import INTERRUPTED, Interrupted, MmsegError, ResourceError, ran_out

if TYPE_CHECKING:
    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths

T = TypeVar("T")

app = typer.Typer(
    name="mmseg",
    help="Does a change to a segmentation network really help, and what does it cost?",
    epilog="Start with `make demo`, or `dvc repro`; then read reports/demo/ablation.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"mmseg {version('mmseg-cli')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["MMSEG_DEBUG"] = "1"
    from mmseg_cli.runtime import die_with_parent

    die_with_parent()


app.command(epilog=example("mmseg generate cityscapes --out /tmp/streets --train 20 --val 5"))(data.generate)
app.command(
    cls=data.PrepareCommand,
    epilog=example(
        "mmseg prepare cityscapes --root /datasets/cityscapes", "mmseg prepare folder --root my --check-only"
    ),
)(data.prepare)
app.command(epilog=example("mmseg inspect data/demo/cityscapes"))(data.inspect)
app.command(epilog=example("mmseg doctor --preset paper"))(doctor.doctor)
app.command(epilog=example("mmseg plan paper", "mmseg plan paper --gpus 8x80GB"))(plan.plan)
app.add_typer(bench_app, name="bench")
app.command(epilog=example("mmseg pretrain imagenet --variant mmbconv --seed 0", "mmseg pretrain mapillary"))(
    train.pretrain
)
app.command(epilog=example("mmseg train --preset camvid-small --variant mbconv", "mmseg train --devices 8"))(
    train.train
)
app.command(epilog=example("mmseg evaluate --preset camvid-small --variant mbconv --seed 1"))(evaluate.evaluate)
app.command(
    epilog=example(
        "mmseg predict photos --run runs/demo/train/mmbconv-s0 --out predictions --overlay",
        "mmseg predict film.mp4 --model net.onnx --out predictions --scales 0.5,1,2 --flip",
        "mmseg predict --as-labels cityscapes/train_extra --root DIR --run RUN --out labelled",
    )
)(predict.predict)
app.add_typer(submit_app, name="submit")
app.command(
    epilog=example(
        "mmseg export --run runs/demo/train/mmbconv-s0",
        "mmseg export --run runs/demo/train/mmbconv-s0 --format onnx --format torch --out net.onnx --images photos",
    )
)(export.export)


@app.command(epilog=example("mmseg cost", "mmseg cost --preset paper --height 1024 --width 2048"))
def cost(
    preset: Preset = "demo",
    height: Annotated[
        int | None, typer.Option(min=32, help="Image height; the preset's cost.crop if left out.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=32, help="Image width; the preset's cost.crop if left out.")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 19,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a training step of every variant and write cost.json.")
    ] = False,
) -> None:
    """Print parameters, MACs and activation memory of every variant's network and block; with --measure, time them."""
    paths, params = load(preset)
    from mmseg_cli.ablation import costs
    from mmseg_cli.cli import screen

    networks = {variant: params.network_of(variant) for variant in params.ablate.variants}
    if measure:
        _measure_cost(paths, params, networks)
        return
    size = (height or params.cost.crop[0], width or params.cost.crop[1])
    rows = costs.counted(networks, classes=classes, height=size[0], width=size[1])
    for title, part in (("network", 0), ("one block at the finest level", 1)):
        screen.table(
            f"{title}, {size[0]}x{size[1]} image",
            ("variant", "parameters", "MACs (G)", "activations (MiB)"),
            [
                (
                    name,
                    f"{row[part].parameters:,}",
                    f"{row[part].macs / 1e9:.3f}",
                    f"{row[part].activation_bytes / 2**20:.1f}",
                )
                for name, row in rows.items()
            ],
        )
    screen.panel(
        "cost",
        [("activations", "kept for the backward pass of one image in float32; counted, not measured")],
        next_command=with_preset(preset, "mmseg cost --measure"),
    )


def _measure_cost(paths: Paths, params: Params, networks: dict[str, dict[str, object]]) -> None:
    from mmseg_cli.ablation import costs
    from mmseg_cli.cli import screen
    from mmseg_cli.data.store import open_store
    from mmseg_cli.files import require_writable, write_json

    require_writable(paths.evidence)
    section = params.datasets[params.evaluate.dataset]
    store = open_store(paths.store(params.evaluate.dataset), parameters=section.content())
    with track(paths, params, run="cost", section=params.cost.model_dump()) as tracker:
        with screen.Screen("cost", unit="variants") as show:
            show.begin(total=len(networks))
            measured = costs.measure(
                networks,
                dataset=dataset_title(params),
                classes=len(store.space.classes),
                batch=params.cost.batch,
                height=params.cost.crop[0],
                width=params.cost.crop[1],
                repeats=params.cost.repeats,
                warmup=params.cost.warmup,
                device=params.runtime.device,
                threads=params.runtime.threads,
                channels_last=params.runtime.channels_last,
                advance=show.advance,
            )
        write_json(paths.evidence / "cost.json", measured)
        rows = measured["variants"]
        tracker.close(summary={f"step_seconds/{name}": row["median_step_seconds"] for name, row in rows.items()})
    screen.table(
        f"one training step of {params.cost.batch} crops on {measured['device']}",
        ("variant", "parameters", "MACs (G)", "s / step", "peak MiB"),
        [
            (
                name,
                f"{row['parameters']:,}",
                f"{row['macs'] / 1e9:.3f}",
                f"{row['median_step_seconds']:.3f}",
                f"{row['peak_bytes'] / 2**20:.0f}",
            )
            for name, row in rows.items()
        ],
    )
    screen.panel(
        "cost", [("file", str(paths.evidence / "cost.json"))], next_command=with_preset(paths.preset, "mmseg ablate")
    )


def _browse(params: Params) -> str | None:
    """How to look at the MLflow mirror."""
    from mmseg_cli.tracking import without_credentials

    if not params.tracking.enabled:
        return None
    uri = params.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    uri = without_credentials(uri)
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def _listed(text: str | None, convert: Callable[[str], T], option: str) -> list[T] | None:
    if text is None:
        return None
    try:
        values = [convert(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise MmsegError(option, f"{text!r} is not a list of numbers", "write for example --seeds 0,1,2") from None
    if not values:
        raise MmsegError(option, "is empty", "name at least one, separated by commas")
    return values


@app.command(epilog=example("mmseg ablate --blocks residual,mbconv,mmbconv --seeds 0,1", "mmseg ablate --no-run"))
def ablate(
    blocks: Annotated[
        str | None, typer.Option(help="Variants or blocks, separated by commas; the first is the baseline.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas.")] = None,
    preset: Preset = "demo",
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Only build the tables from the evidence that is there.")
    ] = False,
) -> None:
    """Run what is missing of the grid (through `dvc repro`), then write and print the ablation table.

    A changed grid is shown, and written into the preset's params.yaml.
    """
    paths, params = load(preset)
    from mmseg_cli.ablation import report, tables
    from mmseg_cli.cli import screen

    if no_run:
        if blocks is not None or seeds is not None:
            raise MmsegError("--no-run", "builds the table of params.yaml's grid", "leave out --blocks and --seeds")
        with track(paths, params, run="ablate", section=params.ablate.model_dump()) as tracker:
            built = report.build(paths, variants=params.ablate.variants, seeds=params.ablate.seeds)
            tracker.close(summary={f"mean_iou/{row.variant}": row.mean_iou.mean for row in built.rows})
    else:
        from mmseg_cli.ablation import pipeline

        names = _listed(blocks, str, "--blocks")
        numbers = _listed(seeds, int, "--seeds")
        change = pipeline.plan_grid(paths, params, blocks=names, seeds=numbers)
        if change is not None:
            for line in change.lines:
                typer.echo(f"{paths.params.relative_to(paths.root)}: {line}")
            params = pipeline.write_grid(paths, change)
        pipeline.repro(paths)
        built = report.build(paths, variants=params.ablate.variants, seeds=params.ablate.seeds)
    screen.table(None, tables.HEADINGS, [tables.cells(row) for row in built.rows])
    folder = built.markdown.parent.relative_to(paths.root)
    screen.panel(
        f"ablation of {paths.preset}",
        [("table", f"{folder}/{built.markdown.name}, {built.csv.name}"), ("chart", f"{folder}/{built.chart.name}")],
        next_command=_browse(params),
    )


def _as_error(error: Exception) -> MmsegError | None:
    """The user's error behind an exception that the machine raised; None where it is a bug of ours."""
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        what = f"a process that reads data was ended ({' '.join(str(error).split())[:160]})"
        return ResourceError("memory", what, "set fewer runtime.workers, or give the container more shared memory")
    if ran_out(error):
        todo = (
            "set runtime.recompute: true or more runtime.devices, which change no result; a smaller batch, norm_batch"
            " or crop does. `mmseg plan` says what fits"
        )
        return ResourceError("memory", "does not suffice for this step", todo)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        from mmseg_cli.files import no_space

        where = Path(error.filename or ".")
        return ResourceError(where, no_space(where, error), "free some and run the same command again")
    return None


# What torch says in a process when another one has gone.
GONE = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore")


def _lost_contact(error: Exception) -> MmsegError | None:
    """The error of one of several processes whose exchange with the others failed: most likely it has its own line."""
    from mmseg_cli.runtime import place

    where = place()
    if where is None or not isinstance(error, RuntimeError) or not any(word in str(error) for word in GONE):
        return None
    what = f"lost the other processes ({' '.join(str(error).split())[:200]})"
    lost = MmsegError(f"process {where.rank}", what, "see what they say, and run the same command again to go on")
    lost.exit_code = 1
    return lost


def _tell(known: MmsegError, *, secondary: bool) -> None:
    """Print the one line, or hand it to the launcher of several processes.

    Args:
        secondary: another process most likely knows better why.
    """
    line = f"mmseg: error: {known}"
    if "MMSEG_ERRORS" in os.environ:
        from mmseg_cli.training.launch import tell

        if tell(line, secondary=secondary):
            return
    with contextlib.suppress(OSError):  # the terminal has gone
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _end_on_signals(came: list[signal.Signals]) -> None:
    """End on SIGTERM, SIGHUP and SIGUSR1 as on Ctrl-C: what is half written is removed on the way out.

    Args:
        came: to which those that come are added.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(INTERRUPTED + number)

    from mmseg_cli.runtime import SENT_TO_ALL

    for number in SENT_TO_ALL:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup, or in a script's background
            signal.signal(number, end)


def _stopped(error: BaseException, came: list[signal.Signals]) -> Interrupted | None:
    """The error of a command that a signal ended, if it did and the command had no more to say."""
    number = came[-1] if came else signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
    if number is None:
        return None
    ended = isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and error.code == INTERRUPTED + number
    )
    hung_up = isinstance(error, OSError) and error.errno == errno.EIO  # of the terminal that has gone, on the way out
    if not ended and not hung_up:
        return None
    return Interrupted(" ".join(["mmseg", *sys.argv[1:2]]), number, f"stopped by {number.name}")


def _require_values(words: Sequence[str]) -> None:
    """Raise MmsegError for an empty argument, as of a shell's variable that is not set: a path would be this folder."""
    for before, word in pairwise(["", *words]):
        name, equals, value = word.partition("=")
        if not word:
            where = f"the argument after {before}" if before else "the first argument"
            raise MmsegError(where, "is empty", "give a value, or leave it out")
        if equals and name.startswith("--") and not value:
            raise MmsegError(name, "is empty", "give a value, or leave it out")


def main() -> None:
    """The entry point: one line for an error that the user can mend, and its exit code."""
    main_thread = threading.current_thread() is threading.main_thread()
    came: list[signal.Signals] = []
    try:
        if main_thread:
            _end_on_signals(came)
        _require_values(sys.argv[1:])
        app()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        stopped = _stopped(error, came)
        known = stopped or (error if isinstance(error, MmsegError) else None)
        if known is None and isinstance(error, Exception):
            known = _as_error(error) or _lost_contact(error)
        if known is None:
            raise
        if main_thread and "MMSEG_ERRORS" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, while this process ends already
        if os.environ.get("MMSEG_DEBUG"):
            traceback.print_exc()
        _tell(known, secondary=known.exit_code == 1 or stopped is not None)
        sys.exit(known.exit_code)
