"""`mmseg predict --as-labels`: what a network is sure of, as labels that `mmseg prepare` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from mmseg_cli.cli.common import percent, resumable
from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.evaluation.segmenter import Protocol

THRESHOLD = 0.9


def teach(
    target: str,
    *,
    source: Path,
    root: Path | None,
    out: Path,
    threshold: float | None,
    data: Path | None,
    protocol: Protocol,
    device: str,
    precision: Literal["float32", "bfloat16"],
    limit: int | None,
    at_once: int | None,
    threads: int | None,
    without: Mapping[str, object],
) -> None:
    """Label a split by a trained network, and say how much of it got a label and what to run next.

    Args:
        target: the layout and the split, such as `cityscapes/train_extra`.
        source: the teacher's run.
        root: the dataset with the images.
        out: the new root.
        threshold: the least probability of a label that is written; None is THRESHOLD.
        data: the store that the teacher was trained on; None looks for it.
        protocol, device, precision, limit, at_once, threads: see `mmseg_cli.prediction.model.load_model`.
        without: what else was asked for, by name, that does not go together with this.

    Raises:
        MmsegError: an option is missing or one too many, or whatever
            :func:`mmseg_cli.prediction.labels.write_as_labels` refuses.
    """
    for name, value in without.items():
        if value:
            raise MmsegError(name, "does not go with --as-labels", "leave one of the two out")
    if root is None:
        raise MmsegError("--root", "missing, and --as-labels labels the images of a dataset", "name the dataset")
    least = THRESHOLD if threshold is None else threshold
    from mmseg_cli.cli import screen
    from mmseg_cli.cli.parts import Parts
    from mmseg_cli.prediction.labels import write_as_labels
    from mmseg_cli.prediction.model import load_model

    model = load_model(
        source,
        protocol=protocol,
        device=device,
        precision=precision,
        limit=limit,
        at_once=at_once,
        threads=threads,
    )
    with resumable(out, "what was labelled is kept"), Parts("predict") as show:
        made = write_as_labels(model, target, root, out, threshold=least, data=data, show=show)
    if made.unchecked:
        rungs = ", ".join(made.unchecked)
        screen.warn(f"{rungs}: its data are not at hand, so whether the teacher saw val there is unknown")
    shares = [(name, "-" if share is None else percent(share)) for name, share in made.kept_by_class.items()]
    screen.table("pixels that were kept", ("class", "share"), shares)
    lines = [
        ("labels", f"{made.images} images in {made.folder}, and labels.json"),
        ("kept", f"{percent(made.kept)} of the pixels, those of a probability of {least:g} or more"),
    ]
    screen.panel(f"labels of {target}", lines, next_command=None)
    typer.echo(f"next: {made.prepare}")  # on one line, to be copied
