"""`mmseg submit cityscapes`: val against the benchmark's own program, then the zip that its test server takes.

Both go the same way: an image is read, predicted by one protocol and written as a PNG of labelIds. The test frames
follow only when the program finds on val's files what was counted on the way.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import cityscapes_19
from mmseg_cli.data.sources.cityscapes import ARCHIVES, IMAGES, OFFICIAL_SIZE
from mmseg_cli.data.tree import Tree, open_tree, read
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import metrics, official
from mmseg_cli.files import atomic, fsync_folder, refusal
from mmseg_cli.prediction.ahead import ahead
from mmseg_cli.prediction.frames import (
    Frame,
    frames_of,
    identity,
    picture,
    require_sound,
    require_whole,
    same,
    work_folder,
)
from mmseg_cli.prediction.model import Model
from mmseg_cli.prediction.origin import origin

TEST_COUNTS = {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398}
PREDICTION_END = "_predictions.png"
TOLERANCE = 1e-9  # between our mIoU and the benchmark's
WRITTEN = (1980, 1, 1, 0, 0, 0)  # the time of every member, so that equal predictions make an equal zip
CLASSES = 19


@dataclass(frozen=True)
class Checked:
    """Val by the same way, and what both count. Ratios are in [0, 1]."""

    images: int
    mean_iou: float
    official_mean_iou: float
    difference: float

    def line(self) -> str:
        """Both figures on one line."""
        return (
            f"mIoU on val {100 * self.mean_iou:.2f} %, by cityscapesscripts {100 * self.official_mean_iou:.2f} %,"
            f" classes differ by at most {self.difference:g}"
        )


@dataclass(frozen=True)
class Submitted:
    """What was written: `cities` has the number of frames by city."""

    zip: Path
    frames: int
    cities: dict[str, int]
    bytes: int
    val: Checked | None


@dataclass(frozen=True)
class Dataset:
    """The parts of Cityscapes that a submission needs; `labels` are those of val, in the order of its frames."""

    test: list[Frame]
    val: list[Frame]
    tree: Tree


class Show(Protocol):
    """What a submission tells while it works; the command line implements it."""

    def begin(self, *, title: str, total: int, done: int) -> None:
        """A part of the work begins."""

    def advance(self) -> None:
        """An image is done."""

    def note(self, text: str) -> None:
        """A line worth keeping."""


def open_dataset(root: Path, *, incomplete: bool, skip_val: bool) -> Dataset:
    """Find the frames of test, and those of val with their labels, extracted or in the official zips.

    Args:
        incomplete: take whatever frames there are.
        skip_val: val is not looked at.

    Raises:
        MmsegError: the frames of test are not those of the benchmark, or val is not whole.
    """
    archives = (ARCHIVES[IMAGES][0], *(() if skip_val else ARCHIVES["gtFine"]))
    tree = open_tree(root, folders=(IMAGES,) if skip_val else (IMAGES, "gtFine"), archives=archives)
    require_sound(tree)
    test = frames_of(tree, "test")
    if not test:
        what = f"has no {IMAGES}/test, extracted or in {ARCHIVES[IMAGES][0]}"
        raise MmsegError(root, what, "put the test images there, or check --root")
    cities = dict(sorted(Counter(frame.city for frame in test).items()))
    if cities != TEST_COUNTS and not incomplete:
        raise MmsegError(root / IMAGES / "test", _other_counts(cities), "complete it, or try it out with --incomplete")
    val = [] if skip_val else _val(root, tree)
    return Dataset(test, val, tree)


def _other_counts(cities: dict[str, int]) -> str:
    total, wanted = sum(cities.values()), sum(TEST_COUNTS.values())
    differ = [
        f"{city} {cities.get(city, 0)} of {TEST_COUNTS.get(city, 0)}"
        for city in sorted({*cities, *TEST_COUNTS})
        if cities.get(city, 0) != TEST_COUNTS.get(city, 0)
    ]
    return f"{total} frames, and the server wants {wanted} ({', '.join(differ[:6])})"


def _val(root: Path, tree: Tree) -> list[Frame]:
    frames = frames_of(tree, "val")
    todo = "put val and gtFine there, or go without the check with --skip-val"
    if not frames:
        raise MmsegError(root, f"has no {IMAGES}/val to hold against the benchmark's program", todo)
    if missing := [frame for frame in frames if tree.get(_label_name(frame)) is None]:
        what = f"{len(missing)} of {len(frames)} frames of val have no label file ({_label_name(missing[0])})"
        raise MmsegError(root, what, todo)
    return frames


def _label_name(frame: Frame) -> str:
    return f"gtFine/val/{frame.city}/{frame.name}{official.LABEL_END}"


def prediction_name(frame: str) -> str:
    """The file of a frame in the zip. The server's program looks for `<city>_<seq>_<frame>*.png`, in any folder."""
    return f"{frame}{PREDICTION_END}"


def submit(model: Model, dataset: Dataset, out: Path, *, incomplete: bool, skip_val: bool, show: Show) -> Submitted:
    """Check the way on val, predict the frames of test, and write and re-read the zip.

    What is predicted is kept beside `out` until the zip is right: the same command goes on with it.

    Args:
        incomplete: images may have another size than the benchmark's.
        skip_val: leave the check on val out.

    Raises:
        MmsegError: the classes are not the benchmark's, our figure on val is not the program's, an image cannot be
            read or has another size, or the zip is not as it should be.
    """
    official.require_space(model.space, where=model.source)
    with work_folder(out, identity(model, dataset.test)) as work:
        val = None
        if not skip_val:
            val = check_val(model, dataset, work / f"val-{identity(model, dataset.val)[:12]}", show=show)
            show.note(val.line())
            if not same(val.mean_iou, val.official_mean_iou, within=TOLERANCE) or val.difference > TOLERANCE:
                what = (
                    f"mIoU on val is {100 * val.mean_iou:.9f} % as counted and {100 * val.official_mean_iou:.9f} % by"
                    f" the benchmark's program, and the largest difference of a class is {val.difference:g}"
                )
                raise MmsegError(out, what, f"nothing was written; remove {work} and run the command again")
        written = _predict(model, dataset.test, work / "test", title="test", incomplete=incomplete, show=show)
        sizes = {
            frame.name: size if incomplete else OFFICIAL_SIZE for frame, size in zip(dataset.test, written, strict=True)
        }
        made = work / "submission.zip"
        write_zip(made, {name: work / "test" / prediction_name(name) for name in sizes})
        check_zip(made, sizes, counts=None if incomplete else TEST_COUNTS, show=show)
        try:
            made.replace(out)  # only now: what was there before stays until this one is right
            fsync_folder(out.parent)
        except OSError as error:
            raise refusal(out, error) from error
    cities = dict(sorted(Counter(frame.city for frame in dataset.test).items()))
    return Submitted(out, len(sizes), cities, out.stat().st_size, val)


# ------------------------------------------------------------------------------------------------------ the one way


def _predict(
    model: Model,
    frames: Sequence[Frame],
    folder: Path,
    *,
    title: str,
    incomplete: bool,
    show: Show,
    count: Callable[[Frame, NDArray[np.uint8]], None] | None = None,
) -> list[tuple[int, int]]:
    """Predict frames into `<frame>_predictions.png`; those that are there are kept.

    Args:
        count: called with every frame that is predicted now, and its train ids, before its file is written.

    Returns:
        (height, width) of every frame's file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(folder, error) from error
    table = official.own_ids(model.space)
    todo = [frame for frame in frames if not (folder / prediction_name(frame.name)).is_file()]
    show.begin(title=title, total=len(frames), done=len(frames) - len(todo))
    for frame, reading in ahead(picture, todo):
        image_HWC = reading.result()
        size = (image_HWC.shape[0], image_HWC.shape[1])
        if size != OFFICIAL_SIZE and not incomplete:
            what = f"is {size[1]}x{size[0]}, the benchmark's images are {OFFICIAL_SIZE[1]}x{OFFICIAL_SIZE[0]}"
            raise MmsegError(frame.image.where, what, "use the images as downloaded, or try it out with --incomplete")
        predicted = model.segmenter.predict(image_HWC)
        require_whole(model, predicted, frame)
        classes_HW = predicted.classes_HW
        if count is not None:
            count(frame, classes_HW)
        official.write_png(folder / prediction_name(frame.name), table[classes_HW])
        show.advance()
    return [_size(folder / prediction_name(frame.name)) for frame in frames]


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def check_val(model: Model, dataset: Dataset, folder: Path, *, show: Show) -> Checked:
    """Predict val, and compare what was counted on the way with what the benchmark's program finds in the files."""
    labels = _labels(dataset, folder / "labels")
    label_of = {frame.name: path for frame, path in zip(dataset.val, labels, strict=True)}
    _, table = cityscapes_19()

    def count(frame: Frame, classes_HW: NDArray[np.uint8]) -> None:
        with Image.open(label_of[frame.name]) as image:
            truth_HW = table[np.asarray(image)].astype(np.uint8)
        if truth_HW.shape != classes_HW.shape:
            what = f"its label file is {truth_HW.shape[1]}x{truth_HW.shape[0]}"
            raise MmsegError(frame.image.where, what, "use the label files as downloaded")
        matrix = metrics.confusion(truth_HW, classes_HW, classes=CLASSES)
        with atomic(folder / f"{frame.name}.npy") as file:
            np.save(file, matrix)

    _predict(model, dataset.val, folder, title="val", incomplete=True, show=show, count=count)
    total = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for frame in dataset.val:
        total += np.load(folder / f"{frame.name}.npy")
    metrics.require_pixels(total, str(labels[0].parent))
    predictions = [folder / prediction_name(frame.name) for frame in dataset.val]
    show.note(f"cityscapesscripts compares {len(labels)} images")
    theirs = official.evaluate_pngs(predictions, labels, instances=False)
    ours = dict(zip(model.space.classes, metrics.class_iou(total).tolist(), strict=True))
    return Checked(
        images=len(labels),
        mean_iou=metrics.mean_iou(total),
        official_mean_iou=theirs.mean_iou,
        difference=official.differences(theirs.class_iou, ours),
    )


def _labels(dataset: Dataset, folder: Path) -> list[Path]:
    """The label files of val where the benchmark's program can read them: those of an archive are put into `folder`."""
    paths = []
    for frame in dataset.val:
        label = dataset.tree.files[_label_name(frame)]
        if not label.archive:
            paths.append(Path(label.path))
            continue
        paths.append(folder / label.base)
        if not paths[-1].is_file():
            with atomic(paths[-1]) as file:
                file.write(read(label))
    return paths


# ---------------------------------------------------------------------------------------------------------- the zip


def write_zip(path: Path, files: dict[str, Path]) -> None:
    """Write the predictions of frames as a flat zip, atomically; PNGs are packed already and stored as they are."""
    with atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for frame in sorted(files):
            archive.writestr(zipfile.ZipInfo(prediction_name(frame), WRITTEN), files[frame].read_bytes())


def check_zip(
    path: Path, sizes: dict[str, tuple[int, int]], *, counts: dict[str, int] | None, show: Show | None = None
) -> None:
    """Read a submission as the server will: one file a frame by the benchmark's own rule, and every file right.

    Args:
        sizes: (height, width) that is wanted of each frame.
        counts: the number of frames that is wanted of each city; None takes any.

    Raises:
        MmsegError: names the first entry that is wrong.
    """
    todo = f"remove {path.parent} and run the command again"
    if show is not None:
        show.begin(title="check the zip", total=len(sizes), done=0)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            official.predictions_found(names, sorted(sizes))
            wanted = {prediction_name(frame) for frame in sizes}
            if len(names) != len(wanted) or set(names) != wanted:
                odd = [*sorted(set(names) ^ wanted), *(name for name, count in Counter(names).items() if count > 1)]
                raise MmsegError(path, f"holds {len(names)} files for {len(sizes)} frames, such as {odd[0]}", todo)
            cities = dict(Counter(name.rsplit("_", 3)[0] for name in names))
            if counts is not None and cities != counts:
                raise MmsegError(path, f"holds {_other_counts(cities)}", todo)
            for frame in sorted(sizes):
                name = prediction_name(frame)
                if (wrong := _wrong(archive.read(name), sizes[frame])) is not None:
                    raise MmsegError(path, f"{name} {wrong}", todo)
                if show is not None:
                    show.advance()
    except (OSError, SyntaxError, zipfile.BadZipFile) as error:
        raise MmsegError(path, f"cannot be read back ({error})", todo) from error


def _wrong(content: bytes, size: tuple[int, int]) -> str | None:
    """What is wrong with a prediction, or None."""
    space, _ = cityscapes_19()
    with Image.open(io.BytesIO(content)) as image:
        if image.format != "PNG" or image.mode != "L":
            return f"is a {image.format} of mode {image.mode}, an 8-bit PNG of one channel is wanted"
        if (image.height, image.width) != size:
            return f"is {image.width}x{image.height}, {size[1]}x{size[0]} is wanted"
        values = np.flatnonzero(np.bincount(np.asarray(image).ravel(), minlength=256)).tolist()
    if odd := [value for value in values if value not in space.ids]:
        return f"holds {odd[:5]}, which are no labelIds of the 19 classes"
    return None


def about_val(model: Model, *, data: Path | None = None) -> str | None:
    """What a reader of the figure on val must know of the run: whether it was trained on val, or that nobody knows.

    Args:
        data: the run's store, where the user names it.
    """
    if data is not None:
        seen = origin(model, data=data).seen_val
    else:
        try:
            seen = origin(model).seen_val
        except MmsegError as error:
            return f"whether the run was trained on val is unknown: {error.what}"
    if not seen:
        return None
    return f"the run was trained on {len(seen)} frames of val: its figure on val says nothing about new images"
