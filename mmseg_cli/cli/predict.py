"""`mmseg predict`: images, folders, films and standard input by a trained network."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmseg_cli.cli.common import resumable
from mmseg_cli.cli.labels import teach
from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.evaluation.segmenter import Protocol
    from mmseg_cli.prediction.outputs import Outputs
    from mmseg_cli.prediction.predict import Outcome

NETWORK, WRITTEN, PROTOCOL, MACHINE = "The network", "What is written", "How it predicts", "The machine"
TEACHING = "Labels for training"


def network_source(run: Path | None, model: Path | None) -> Path:
    """The one of --run and --model that was given.

    Raises:
        MmsegError: both were, or none.
    """
    if run is not None and model is not None:
        raise MmsegError("--model", "stands beside --run", "give one of the two")
    source = model if run is None else run
    if source is None:
        raise MmsegError("--run", "is missing", "name the folder of a run, or an ONNX file with --model")
    if run is not None and run.suffix == ".onnx":
        raise MmsegError("--run", f"{run} is an ONNX file", "give it as --model")
    if model is not None and model.suffix != ".onnx":
        raise MmsegError("--model", f"{model} is no .onnx file", "give the folder of a run as --run")
    return source


def protocol_of(scales: str, flip: bool, window: str | None, overlap: float | None) -> Protocol:
    """The protocol that the options describe.

    Raises:
        MmsegError: one of them cannot be understood.
    """
    from mmseg_cli.evaluation.segmenter import PLAIN, SMALLEST, Protocol

    try:
        numbers = tuple(float(part) for part in scales.split(","))
    except ValueError:
        raise MmsegError("--scales", f"{scales!r} is not a list of numbers", "write for example 0.5,1,2") from None
    size = None
    if window is not None:
        found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", window.strip().lower())
        if found is None:
            raise MmsegError("--window", f"{window!r} is not HEIGHTxWIDTH", "write for example 512x1024")
        size = int(found[1]), int(found[2])
        if min(size) < SMALLEST:
            raise MmsegError(
                "--window", f"{window} is too small to see anything in", f"give {SMALLEST}x{SMALLEST} or more"
            )
    elif overlap is not None:
        raise MmsegError("--overlap", "is of windows, and there are none", "add --window, or leave it out")
    try:
        return Protocol(numbers, flip, size, PLAIN.overlap if overlap is None else overlap)
    except MmsegError as error:
        raise MmsegError(f"--{error.where}", error.what, error.todo) from None


def predict(
    out: Annotated[
        Path,
        typer.Option(help="Folder of the results; the same command goes on with one that is half done."),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="An image, a folder of images, a quoted pattern such as 'photos/**/*.jpg', a film, or - for one image"
            " on standard input.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="The folder of a trained run, such as runs/demo/train/mbconv-s0.", rich_help_panel=NETWORK),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="An ONNX file of `mmseg export`; needs onnxruntime and no torch.", rich_help_panel=NETWORK),
    ] = None,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay", help="Also the classes' colours over the image; of a film an mp4 too.", rich_help_panel=WRITTEN
        ),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Also the probabilities of all classes, as .npz of float16.",
            rich_help_panel=WRITTEN,
        ),
    ] = False,
    classes: Annotated[
        Literal["ids", "train"],
        typer.Option(
            help="What labels hold: the dataset's own ids, or the classes' numbers 0 to K-1.", rich_help_panel=WRITTEN
        ),
    ] = "ids",
    as_labels: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT/SPLIT",
            help="Label a split of a dataset with what the network is sure of, in place of inputs:"
            " cityscapes/train_extra, cityscapes/train or folder/train. --out becomes a root for `mmseg prepare`.",
            rich_help_panel=TEACHING,
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="The dataset with the images; only read.", rich_help_panel=TEACHING)
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="The least probability of a label, the rest stays unlabelled; 0.9 if left out.",
            rich_help_panel=TEACHING,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The store that the network was trained on, where it is in none of data/.", rich_help_panel=TEACHING
        ),
    ] = None,
    scales: Annotated[str, typer.Option(help="Average over these sizes of the image.", rich_help_panel=PROTOCOL)] = "1",
    flip: Annotated[
        bool, typer.Option("--flip", help="Average over the image and its mirror image.", rich_help_panel=PROTOCOL)
    ] = False,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Predict in windows of this size; else the whole image.", rich_help_panel=PROTOCOL
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Share of a window that the next one covers too; 0.25 if left out.", rich_help_panel=PROTOCOL
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1; of a run.", rich_help_panel=MACHINE)] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="bfloat16 is faster on GPUs, and not quite equal; of a run.", rich_help_panel=MACHINE),
    ] = "float32",
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="Working memory; what does not fit is predicted in windows. Half of what is free if left out.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Windows that are predicted together; 1 on a CPU and 8 on a GPU if left out.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU; one a core if left out.", rich_help_panel=MACHINE)
    ] = None,
) -> None:
    """Predict the class of every pixel of images and films: DIR/labels/NAME.png, and more by option.

    What cannot be read is listed at the end and does not stop the others. Alpha is left out, grey of 16 bits loses its
    lower 8, EXIF orientation is applied.
    """
    source = network_source(run, model)
    protocol = protocol_of(scales, flip, window, overlap)
    if model is not None and (precision != "float32" or device not in ("auto", "cpu")):
        option = "--precision" if precision != "float32" else "--device"
        raise MmsegError(option, "an ONNX file runs on the CPU in float32", "leave it out, or give a run with --run")
    if memory is not None and memory <= 0:
        raise MmsegError("--memory", f"{memory:g} GiB is nothing", "give a number above 0, such as 4")
    if out.exists() and not out.is_dir():
        raise MmsegError(out, "is not a folder", "choose another --out")
    limit = None if memory is None else int(memory * 2**30)
    if as_labels is not None:
        teach(
            as_labels,
            source=source,
            root=root,
            out=out,
            threshold=threshold,
            data=data,
            protocol=protocol,
            device=device,
            precision=precision,
            limit=limit,
            at_once=batch,
            threads=threads,
            without={
                "INPUT": inputs,
                "--overlay": overlay,
                "--probabilities": probabilities,
                "--classes train": classes == "train",
            },
        )
        return
    for option, value in (("--root", root), ("--threshold", threshold), ("--data", data)):
        if value is not None:
            raise MmsegError(option, "goes with --as-labels", "leave it out, or add --as-labels")
    if not inputs:
        raise MmsegError("INPUT", "is missing", "name images, folders or films, or label a split with --as-labels")
    from mmseg_cli.cli import screen
    from mmseg_cli.prediction import predict as room
    from mmseg_cli.prediction.inputs import RESULTS, find
    from mmseg_cli.prediction.model import load_model
    from mmseg_cli.prediction.outputs import open_outputs

    warnings.filterwarnings("ignore", module="PIL")  # of what does no harm, such as damaged EXIF data
    found = find(inputs, without=[out / kind for kind in RESULTS])
    loaded = load_model(
        source,
        protocol=protocol,
        device=device,
        precision=precision,
        limit=limit,
        at_once=batch,
        threads=threads,
    )
    with (
        resumable(out, "what was predicted is kept"),
        screen.Screen("predict", unit="images") as show,
        open_outputs(
            out,
            loaded,
            precision=precision,
            train_ids=classes == "train",
            overlay=overlay,
            probabilities=probabilities,
            sources=room.sources(found),
        ) as outputs,
    ):
        outcome = room.predict(
            loaded,
            found,
            outputs,
            begin=lambda total, done: show.begin(total=total, done=done),
            advance=show.advance,
        )
    words = loaded.segmenter.protocol.text() + ("" if precision == "float32" else f", {precision}")
    _tell(outcome, outputs, source=source, asked=classes, protocol=words)


def _tell(outcome: Outcome, outputs: Outputs, *, source: Path, asked: str, protocol: str) -> None:
    """The panel, a line for each failure, and the error where there are some."""
    from mmseg_cli.cli import screen

    images = f"{outcome.predicted} predicted"
    images += f", {outcome.before} done before" if outcome.before else ""
    images += f", {len(outcome.failures)} failed" if outcome.failures else ""
    if outcome.smallest is not None:
        tall, wide = outcome.smallest
        protocol += f", but {outcome.windows} in windows of {tall}x{wide} or more"
        screen.warn(
            f"{outcome.windows} of the images did not fit into the memory: predicted in windows, which see less around"
            " a pixel, so that labels differ from those of whole images (give more --memory, or a --window of your own)"
        )
    lines = [
        ("network", str(source)),
        ("images", images),
        ("protocol", protocol),
        ("labels", f"{outputs.folder}/labels: {outputs.values}"),
    ]
    if asked == "ids" and not outputs.own_ids:
        lines.append(("note", f"not all ids of {outputs.space.name} are numbers from 0 to 255"))
    if outputs.removed:
        lines.append(("note", f"removed first, as their files had changed: the results of {outputs.removed}"))
    for kind, written in (("overlays", outputs.overlay), ("probabilities", outputs.probabilities)):
        lines += [(kind, f"{outputs.folder}/{kind}")] if written else []
    lines += [("film", str(path)) for path in outcome.films]
    screen.panel(f"predicted {outputs.space.name}", lines, next_command=None)
    for line in outcome.failures:
        screen.warn(line)
    if outcome.failures:
        count = len(outcome.failures)
        total = count + outcome.predicted + outcome.before
        what = f"{count} of {total} inputs {'was' if count == 1 else 'were'} not predicted (see above)"
        raise MmsegError(outputs.folder, what, "mend or leave them out and run the same command again")
