"""`mmseg evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmseg_cli.cli.common import (
    Preset,
    SeedOption,
    VariantOption,
    dataset_title,
    grid_point,
    load,
    percent,
    resumable,
    track,
    with_preset,
)
from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.evaluation.segmenter import Protocol
    from mmseg_cli.params import Evaluate


def evaluate(
    preset: Preset = "demo",
    variant: VariantOption = None,
    seed: SeedOption = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="The dataset as downloaded, for its own label files and instances (iIoU); else the environment's"
            " MMSEG_<DATASET>_ROOT, else the labels of the store."
        ),
    ] = None,
) -> None:
    """Evaluate a trained run on val: metrics.json, the counts of every image, a certificate, a page with pictures.

    mIoU by class and category, boundaries, object sizes, row bands; against the benchmark's own program.
    """
    paths, params = load(preset)
    name, seed = grid_point(params, variant, seed)
    from mmseg_cli import runtime
    from mmseg_cli.cli import screen
    from mmseg_cli.paths import run_name

    run, section = run_name(name, seed), params.evaluate
    settings = {"variant": name, "seed": seed, "evaluate": section.model_dump()}
    with track(paths, params, run=f"evaluate/{run}", section=settings) as tracker:
        from mmseg_cli.data.store import open_store
        from mmseg_cli.evaluation.evaluate import Counting
        from mmseg_cli.evaluation.evaluate import evaluate as run_evaluation

        store = open_store(paths.store(section.dataset), parameters=params.datasets[section.dataset].content())
        runtime.limit_threads(params.runtime.threads)
        if params.runtime.deterministic:
            runtime.be_deterministic()
        protocol, augmented = _protocols(section)
        medium, large = section.object_sizes
        with (
            screen.Screen(f"evaluate/{run}", unit="images") as show,
            resumable(paths.evidence / run, "what was there before stays"),
        ):
            result = run_evaluation(
                paths.run("train", run),
                store,
                network=params.network_of(name),
                metrics_file=paths.evidence / run / "metrics.json",
                confusion_file=paths.evidence / run / "confusion.npz",
                certificate_file=paths.evidence / run / "certificate.json",
                page_folder=paths.run("evaluate", run),
                title=f"{run} of {paths.preset}",
                dataset=dataset_title(params),
                protocol=protocol,
                augmented=augmented,
                with_branches=section.branches,
                counting=Counting(section.boundaries, (medium, large), section.row_bands),
                root=_root(root, section.dataset, official=section.official, names=store.names("val")),
                project=paths.root,
                run_official=section.official,
                examples=section.examples,
                precision=section.precision,
                fold=section.fold,
                compile=params.runtime.compile,
                channels_last=params.runtime.channels_last,
                limit=None if section.memory_gib is None else int(section.memory_gib * 2**30),
                device=runtime.pick_device(params.runtime.device),
                workers=params.runtime.workers,
                begin=lambda images: show.begin(total=images),
                advance=show.advance,
                note=show.note,
                warn=show.warn,
            )
        of_levels = _of_levels(result.branches or [])
        tracker.close(
            summary={"mean_iou": result.mean_iou, "pixel_accuracy": result.pixel_accuracy}
            | ({} if result.augmented is None else {"augmented_mean_iou": result.augmented})
            | {f"{what}/{level}": value for what, found in of_levels.items() for level, value in found.items()}
            | {f"iou/{key}": value for key, value in result.class_iou.items() if value == value}
        )
    lines = [("mIoU", percent(result.mean_iou)), ("pixel accuracy", percent(result.pixel_accuracy))]
    if result.augmented is not None and augmented is not None:
        lines.append(("augmented", f"{percent(result.augmented)} ({augmented.text()})"))
    for words, what in (("without a level", "knocked_out"), ("a level's head", "head")):
        if of_levels[what]:
            found = (f"{level}: {percent(value)}" for level, value in of_levels[what].items())
            lines.append((words, ", ".join(found)))
    if result.mean_iiou is not None:
        lines.append(("iIoU", percent(result.mean_iiou)))
    if result.official is not None:
        lines.append(("official", result.official))
    lines += [("metrics", str(result.metrics_file)), ("page", str(result.page))]
    screen.panel(f"evaluate/{run}", lines, next_command=with_preset(preset, "mmseg ablate"))


def _of_levels(branches: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """mIoU without each level, and of each level's head, where they were measured."""
    return {
        what: {
            row["level"]: row[what]["mean_iou"] for row in branches if row[what] and row[what]["mean_iou"] is not None
        }
        for what in ("knocked_out", "head")
    }


def _protocols(section: Evaluate) -> tuple[Protocol, Protocol | None]:
    """How images are predicted for the figures, and for the one with test-time augmentation."""
    from mmseg_cli.evaluation.segmenter import Protocol

    window = None if section.window is None else (section.window[0], section.window[1])
    plain = Protocol(window=window, overlap=section.overlap, weights=section.weights)
    if section.augmented is None:
        return plain, None
    scales, flip = tuple(section.augmented.scales), section.augmented.flip
    return plain, Protocol(scales=scales, flip=flip, window=window, overlap=section.overlap, weights=section.weights)


def _root(root: Path | None, dataset: str, *, official: bool, names: list[str]) -> Path | None:
    """The dataset as it was downloaded, where somebody says where it is; it must hold the labels of `names`."""
    if root is None:
        named = os.environ.get(f"MMSEG_{dataset.upper().replace('-', '_')}_ROOT")
        return Path(named) if named else None
    if not official:
        raise MmsegError("--root", "is for the benchmark's program, which does not run", "set evaluate.official: true")
    from mmseg_cli.evaluation.official import labels_of

    if labels_of(root, names) is None:
        what = "does not hold the label files of val that the store was made of, in gtFine/val"
        raise MmsegError(root, what, "give that dataset with gtFine extracted, or leave out --root")
    return root
