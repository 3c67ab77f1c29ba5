"""`mmseg submit cityscapes`: val by the same way first, then the zip for the benchmark's test server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmseg_cli.cli.common import example, group, percent, resumable
from mmseg_cli.cli.predict import protocol_of
from mmseg_cli.errors import MmsegError

submit_app = group(
    help="Write what a benchmark's test server takes.",
    epilog=example("mmseg submit cityscapes --run runs/paper/train/mmbconv-s0 --root /datasets/cityscapes"),
)
LOUD = "this is no submission: --incomplete takes whatever frames there are, of any size"


@submit_app.command(
    "cityscapes",
    epilog=example("mmseg submit cityscapes --run runs/paper/train/mmbconv-s0 --root /datasets/cityscapes"),
)
def cityscapes(
    run: Annotated[Path, typer.Option(help="The folder of a trained run, such as runs/paper/train/mmbconv-s0.")],
    root: Annotated[
        Path,
        typer.Option(
            help="Cityscapes as downloaded: leftImg8bit with test and val, and gtFine; extracted or the zips."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The zip; one that is there is replaced when the new one is right.")] = Path(
        "submission.zip"
    ),
    scales: Annotated[str, typer.Option(help="Average over these sizes of the image.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average over the image and its mirror image.")] = False,
    window: Annotated[
        str | None, typer.Option(metavar="HxW", help="Predict in windows of this size; else the whole image.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Share of a window that the next one covers too; 0.25 if left out.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Working memory; half of what is free if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    data: Annotated[
        Path | None, typer.Option(help="The store that the run was trained on, where it is in none of data/.")
    ] = None,
    skip_val: Annotated[bool, typer.Option("--skip-val", help="Do not check val first.")] = False,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Take other frames and sizes than the server's, to try it out.")
    ] = False,
) -> None:
    """Check val against cityscapesscripts, predict the test frames, and write and re-read the zip for the test server.

    Interrupted, the same command goes on where it was.
    """
    from mmseg_cli.cli import screen
    from mmseg_cli.cli.parts import Parts
    from mmseg_cli.evaluation import official
    from mmseg_cli.prediction import submission
    from mmseg_cli.prediction.model import load_model

    if out.suffix != ".zip" or out.is_dir():
        raise MmsegError("--out", f"{out} is not the name of a zip", "let it end in .zip")
    if memory is not None and memory <= 0:
        raise MmsegError("--memory", f"{memory:g} GiB is nothing", "give a number above 0, such as 4")
    if run.suffix == ".onnx":
        raise MmsegError("--run", f"{run} is an ONNX file", "give the folder of the run that it was exported from")
    wanted = protocol_of(scales, flip, window, overlap)
    dataset = submission.open_dataset(root, incomplete=incomplete, skip_val=skip_val)
    if incomplete:
        screen.warn(LOUD)
    if skip_val:
        screen.warn("val is not checked: nothing says whether these labels are read as they were meant")
    # Batch norms as they are: the figure on val is then that of `mmseg evaluate` by the same protocol.
    limit = None if memory is None else int(memory * 2**30)
    model = load_model(run, protocol=wanted, device=device, fold=False, limit=limit)
    official.require_space(model.space, where=run)
    about = submission.about_val(model, data=data)
    if about is not None:
        screen.warn(about)
    with resumable(out, "what was predicted is kept"), Parts("submit") as show:
        made = submission.submit(model, dataset, out, incomplete=incomplete, skip_val=skip_val, show=show)
    val = made.val
    lines = [
        ("zip", f"{made.zip} ({made.bytes / 2**20:.1f} MiB), read again and right"),
        ("frames", f"{made.frames} ({', '.join(f'{city} {count}' for city, count in made.cities.items())})"),
        ("protocol", wanted.text()),
    ]
    if val is not None:
        lines += [
            ("mIoU on val", f"{percent(val.mean_iou)} ({val.images} images)"),
            ("official", f"{percent(val.official_mean_iou)}, classes differ by at most {val.difference:g}"),
        ]
    if about is not None:
        lines.append(("note", about))
    if incomplete:
        lines.append(("note", LOUD))
    upload = f"upload {made.zip} as pixel-level semantic labeling at https://cityscapes-dataset.com/submit"
    screen.panel("submission to Cityscapes", lines, next_command=None if incomplete else upload)
