"""`mmseg evaluate`: one trained run on a validation split, as evidence that tables are computed from, and a page."""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mmseg_cli import provenance
from mmseg_cli.data import loader
from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.data.store import Split, Store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import (
    boundary,
    branches,
    certificate,
    evidence,
    metrics,
    official,
    on_torch,
    page,
    regions,
    run_page,
    summary,
)
from mmseg_cli.evaluation.evidence import Collector, Counts, Evidence
from mmseg_cli.evaluation.segmenter import Protocol, Segmenter
from mmseg_cli.files import new_folder, require_writable, sha256, write_json
from mmseg_cli.models import weights
from mmseg_cli.models.unet import SegmentationNetwork

PREDICTIONS = "predictions"  # in the page's folder: a PNG for each image
TOLERANCE = 1e-9  # between our IoU and the benchmark's
RUN_KEYS = ("variant", "seed", "network", "ladder", "rungs", "recipe", "fingerprint")

Precision = Literal["float32", "bfloat16"]
Label_HW = NDArray[np.uint8]


@dataclass(frozen=True)
class Counting:
    """What is counted in every image.

    Attributes:
        boundaries: distances in pixels.
        object_sizes: areas in pixels where medium and large regions begin.
        row_bands: bands from the top of the image to its bottom.
    """

    boundaries: list[int]
    object_sizes: tuple[int, int]
    row_bands: int

    def of(self, label_HW: Label_HW, predicted_HW: Label_HW, *, classes: int) -> dict[str, NDArray[np.int64]]:
        """All counts of one image, by kind."""
        rows_RKK = regions.band_confusions(label_HW, predicted_HW, classes=classes, bands=self.row_bands)
        return {
            "confusion": rows_RKK.sum(0),
            "boundaries": boundary.boundary_counts(label_HW, predicted_HW, classes=classes, distances=self.boundaries),
            "sizes": regions.size_counts(label_HW, predicted_HW, classes=classes, limits=self.object_sizes),
            "rows": rows_RKK,
        }


@dataclass(frozen=True)
class Evaluation:
    """What was measured and where it lies. Ratios are in [0, 1].

    Attributes:
        augmented: mIoU with test-time augmentation; None where it was not asked for.
        branches: of every level, as in metrics.json; None where they were not asked for.
        mean_iiou: the benchmark's instance-weighted IoU; None where it was not computed.
        official: what the benchmark's program said of ours; None where it did not run.
    """

    metrics_file: Path
    certificate_file: Path
    page: Path
    images: int
    mean_iou: float
    pixel_accuracy: float
    class_iou: dict[str, float]
    augmented: float | None
    branches: list[dict[str, Any]] | None
    mean_iiou: float | None
    official: str | None


def evaluate(
    run: Path,
    store: Store,
    *,
    network: dict[str, Any],
    metrics_file: Path,
    confusion_file: Path,
    certificate_file: Path,
    page_folder: Path,
    title: str,
    dataset: str,
    protocol: Protocol,
    augmented: Protocol | None,
    with_branches: bool,
    counting: Counting,
    root: Path | None,
    project: Path,
    run_official: bool,
    examples: int,
    precision: Precision,
    fold: bool,
    compile: bool,
    channels_last: bool,
    limit: int | None,
    device: torch.device,
    workers: int,
    begin: Callable[[int], None],
    advance: Callable[[], None],
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> Evaluation:
    """Evaluate a run's last weights on the store's val split, labels at native size.

    Writes a folder with a page and the predictions, what was counted in every image, metrics.json, and last of all the
    certificate.

    Args:
        run: the folder of the trained run.
        network: the body's arguments by the preset; the run's must be the same.
        title: of the page.
        dataset: what the store is of, in words.
        protocol: of all figures but `augmented`'s, which are of another prediction, with test-time augmentation.
        with_branches: measure as well, by `protocol`, the network without each of its resolutions, and the heads of
            deep supervision. See `mmseg_cli.evaluation.branches`.
        root: the dataset as it was downloaded, whose own label files are better than the store's, and which may have
            instances; None where it is not at hand. See `official.labels_of`.
        project: the folder whose code and parameters are running, for the certificate.
        run_official: hold our IoU against that of the benchmark's own program on the PNGs that were written.
        examples: of each of the best, median and worst images, on the page.
        precision, fold, compile, channels_last, limit: see `mmseg_cli.evaluation.on_torch.segmenter`.
        begin: told how many images will be gone through, once all that is asked for can be done: those of val, twice
            with branches, whose means come first.
        advance: called after each image.
        note: called with a line on what goes on.
        warn: called with a line that a reader must know.

    Raises:
        MmsegError: the run is of another architecture or label space, a place cannot be written, or the benchmark's
            program finds another IoU.
        ResourceError: the limit does not suffice.
    """
    evaluation = provenance.about(project, device=str(device))
    trained, record = weights.load_network(run, expected=network)
    training = certificate.training_of(run)
    if record["task"] != "segmentation":
        raise MmsegError(run, "is not a segmentation network", "evaluate a run of the train stage")
    if record["label_space"] != store.manifest["label_space"]:
        raise MmsegError(run, "was trained on other classes than the store's", "evaluate it on its own dataset")
    space, split, names = store.space, store.split("val"), store.names("val")
    if run_official:
        official.require_space(space, where="evaluate.official")
    # Once for all: what is derived from it shares its weights.
    folded = on_torch.folded(trained, device=device, by_graph=not compile) if fold else trained
    whole = cast(SegmentationNetwork, folded)
    heads = branches.heads_of(run, whole) if with_branches else {}
    make = partial(
        on_torch.segmenter,
        classes=len(space.classes),
        device=device,
        precision=precision,
        channels_last=channels_last,
    )
    segmenters = {
        kind: make(whole, protocol=wanted, compile=compile, limit=limit)
        for kind, wanted in (("plain", protocol), ("augmented", augmented))
        if wanted is not None
    }
    labels = None
    if run_official and root is not None:
        labels = official.labels_of(root, names)
        if labels is None:
            what = f"{root}: not all label files of val are in gtFine/val, extracted"
            warn(f"{what}: the labels of the store are taken, and there is no iIoU")
    windows = _windows(segmenters, split, warn=warn)
    seen = len(set(store.names("train")) & set(names))
    if seen:
        warn(f"{seen} of {len(names)} val images are in train as well: these figures say nothing about new images")
    for folder in {metrics_file.parent, certificate_file.parent, page_folder.parent}:
        require_writable(folder)
    begin(len(split) * (2 if with_branches else 1))
    for left in page_folder.parent.glob(f".{page_folder.name}.*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with new_folder(page_folder) as folder:
        if with_branches:
            go_through = partial(_go_through, split, workers=workers, advance=advance)
            segmenters |= branches.segmenters(
                whole, heads, plain=segmenters["plain"], make=make, compile=compile, go_through=go_through
            )
        counts = _count(
            segmenters, split, space, counting, pictures=folder / PREDICTIONS, workers=workers, advance=advance
        )
        metrics.require_pixels(counts["confusion"].total(), str(store.folder))
        figures = summary.of_counts(counts, space, distances=counting.boundaries, limits=counting.object_sizes)
        figures["augmented"] = None
        if augmented is not None:
            figures["augmented"] = {
                **summary.of_confusion(counts["augmented"].total(), space),
                "protocol": {**asdict(augmented), "window": windows["augmented"]},
            }
        figures["branches"] = None
        if with_branches:
            strides = [record["network"]["stem_stride"] * 2**level for level in range(record["network"]["levels"])]
            missing = branches.missing(record, heads)
            figures["branches"] = summary.of_branches(counts, space, strides=strides, missing=missing)
        figures["official"] = figures["instances"] = None
        if run_official:
            note(f"{official.PROGRAM} compares {len(split)} images")
            of_program, truth = _by_the_benchmark(split, space, pictures=folder / PREDICTIONS, labels=labels)
            figures["official"] = _compared(of_program, figures, truth=truth)
            figures["instances"] = _instances(of_program)
        figures["protocol"] = {
            **asdict(protocol),
            "window": windows["plain"],
            "precision": precision,
            "fold": fold,
            "device": device.type,
        }
        page.write_page(
            folder,
            run_page.content(
                figures,
                counts["confusion"],
                split,
                space,
                title=title,
                dataset=dataset,
                protocol=f"{protocol.text()}, {precision}",
                augmented=None if augmented is None else augmented.text(),
                official=figures["official"] and _official_line(figures["official"]),
                read_prediction=lambda name: official.read_png(_picture(folder / PREDICTIONS, name), space),
                each=examples,
            ),
        )
    evidence.save(confusion_file, Evidence(list(space.classes), names, counts))
    found = {
        **figures,
        "images": len(split),
        "images_also_in_train": seen,
        "dataset": dataset,
        "split": "val",
        "label_space": space.name,
        "weights_sha256": sha256(run / weights.WEIGHTS),
        "confusion_sha256": sha256(confusion_file),
        "run": {key: record[key] for key in RUN_KEYS},
    }
    write_json(metrics_file, found)
    certificate.write(
        certificate_file,
        training=training,
        evaluation=evaluation,
        run=run,
        store=store,
        metrics=found,
        metrics_file=metrics_file,
    )
    return Evaluation(
        metrics_file=metrics_file,
        certificate_file=certificate_file,
        page=page_folder / "index.html",
        images=len(split),
        mean_iou=figures["mean_iou"],
        pixel_accuracy=figures["pixel_accuracy"],
        class_iou={name: math.nan if value is None else value for name, value in figures["class_iou"].items()},
        augmented=figures["augmented"] and figures["augmented"]["mean_iou"],
        branches=figures["branches"],
        mean_iiou=figures["instances"] and figures["instances"]["mean_iiou"],
        official=figures["official"] and _official_line(figures["official"]),
    )


# ------------------------------------------------------------------------------------------------- predicting, counting


def _windows(
    segmenters: Mapping[str, Segmenter], split: Split, *, warn: Callable[[str], None]
) -> dict[str, tuple[int, int] | None]:
    """The windows that each protocol takes, or the smallest that the limit asks for."""
    sizes = {(split.size(item), split.label_size(item)) for item in range(len(split))}
    windows = {}
    for kind, segmenter in segmenters.items():
        plans = [segmenter.plan(*both) for both in sizes]
        forced = [plan.window for plan in plans if plan.forced and plan.window is not None]
        windows[kind] = segmenter.protocol.window
        if forced:
            tall, wide = windows[kind] = min(forced, key=math.prod)
            warn(f"the limit of memory asks for windows of {tall}x{wide}: not what whole images would give ({kind})")
    return windows


def _go_through(split: Split, segmenter: Segmenter, *, workers: int, advance: Callable[[], None]) -> None:
    """Predict every image as for its counts, for what else is to be seen in the network."""
    for image_HWC, label_HW in _images(split, workers=workers):
        segmenter.predict(image_HWC, size=_size(label_HW))
        advance()


def _count(
    segmenters: Mapping[str, Segmenter],
    split: Split,
    space: LabelSpace,
    counting: Counting,
    *,
    pictures: Path,
    workers: int,
    advance: Callable[[], None],
) -> dict[str, Counts]:
    """Predict every image, write the predictions, and count. Counting, which torch needs no part in, goes on beside
    the network."""
    collector = Collector()
    names = split.names()
    at_once = torch.get_num_threads()

    def finish(name: str, label_HW: Label_HW, predicted: dict[str, Label_HW]) -> dict[str, NDArray[np.int64]]:
        official.write_png(_picture(pictures, name), official.written_ids(space)[predicted["plain"]])
        counts = counting.of(label_HW, predicted["plain"], classes=len(space.classes))
        others = {kind: classes_HW for kind, classes_HW in predicted.items() if kind != "plain"}
        confusion = partial(metrics.confusion, label_HW, classes=len(space.classes))
        return counts | {kind: confusion(classes_HW) for kind, classes_HW in others.items()}

    waiting: deque[Future[dict[str, NDArray[np.int64]]]] = deque()
    pool = ThreadPoolExecutor(at_once)
    try:
        for name, (image_HWC, label_HW) in zip(names, _images(split, workers=workers), strict=True):
            size = _size(label_HW)
            predicted = {kind: each.predict(image_HWC, size=size).classes_HW for kind, each in segmenters.items()}
            waiting.append(pool.submit(finish, name, label_HW, predicted))
            while len(waiting) > 2 * at_once:
                collector.add(waiting.popleft().result())
                advance()
        while waiting:
            collector.add(waiting.popleft().result())
            advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return collector.counts()


def _images(split: Split, *, workers: int) -> Iterator[tuple[NDArray[np.uint8], Label_HW]]:
    """image_HWC and label_HW of every item, in order."""
    for image_1CHW, label_1HW in loader.items_loader(loader.WholeImages(split), workers=workers):
        yield image_1CHW[0].permute(1, 2, 0).numpy(), label_1HW[0].numpy()


def _size(label_HW: Label_HW) -> tuple[int, int]:
    return label_HW.shape[0], label_HW.shape[1]


def _picture(folder: Path, name: str) -> Path:
    return folder / f"{name}.png"


# ----------------------------------------------------------------------------------------- the benchmark's own program


def _by_the_benchmark(
    split: Split, space: LabelSpace, *, pictures: Path, labels: list[Path] | None
) -> tuple[official.Official, str]:
    """What the benchmark's program finds in the PNGs that were written, and what it held them against."""
    names = split.names()
    predictions = [_picture(pictures, name) for name in names]
    if labels is not None:
        instances = official.have_instances(labels)
        return official.evaluate_pngs(predictions, labels, instances=instances), "the dataset's files"
    with TemporaryDirectory(dir=pictures.parent, prefix=".truth-") as folder:
        files = official.write_labels(split, space, Path(folder))
        return official.evaluate_pngs(predictions, files, instances=False), "the labels of the store"


def _compared(found: official.Official, figures: Mapping[str, Any], *, truth: str) -> dict[str, Any]:
    """Raises MmsegError where the benchmark's program found another IoU than we did."""
    difference = max(
        official.differences(found.class_iou, figures["class_iou"]),
        official.differences(found.category_iou, figures["category_iou"]),
    )
    if not difference <= TOLERANCE:
        what = f"the benchmark's program gives {found.mean_iou:.10f} against {truth}: a class differs by {difference:g}"
        raise MmsegError("mean_iou", what, "prepare the dataset again; if it stays, trust neither, and report it")
    return {
        "program": official.PROGRAM,
        "against": truth,
        "mean_iou": found.mean_iou,
        "mean_category_iou": found.mean_category_iou,
        "largest_difference": difference,
    }


def _official_line(compared: dict[str, Any]) -> str:
    return (
        f"{compared['program']} on the written PNGs against {compared['against']}: "
        f"{100 * compared['mean_iou']:.2f} %, classes differ by at most {compared['largest_difference']:g}"
    )


def _instances(found: official.Official) -> dict[str, Any] | None:
    """The benchmark's iIoU, where the dataset's instances are at hand."""
    if found.class_iiou is None or found.category_iiou is None:
        return None
    return {
        "mean_iiou": summary.or_none(found.mean_iiou),
        "class_iiou": {name: summary.or_none(value) for name, value in found.class_iiou.items()},
        "mean_category_iiou": summary.or_none(found.mean_category_iiou),
        "category_iiou": {name: summary.or_none(value) for name, value in found.category_iiou.items()},
    }
