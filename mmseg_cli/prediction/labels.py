"""`mmseg predict --as-labels`: what a teacher is sure of as label files, in a root that `mmseg prepare` reads.

The new root has the labels and links to all else, so that the dataset itself is only read. A student is judged on the
val of its teacher's data: a teacher that was trained on any of it is refused, and so are frames of val and of test.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.labels import IGNORE
from mmseg_cli.data.sources.cityscapes import ARCHIVES, CITIES, EXTRA_ARCHIVE, IMAGES, KNOWN_BAD
from mmseg_cli.data.sources.classes_file import FILE, read_classes
from mmseg_cli.data.sources.roots import IMAGE_SUFFIXES
from mmseg_cli.data.tree import open_tree
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import official
from mmseg_cli.files import atomic, fingerprint, fsync_folder, read_json, refusal, require_writable, write_json
from mmseg_cli.prediction.ahead import ahead
from mmseg_cli.prediction.frames import Frame, frames_of, identity, picture, require_sound, require_whole, work_folder
from mmseg_cli.prediction.model import Model
from mmseg_cli.prediction.origin import Origin, require_unseen

ABOUT = "labels.json"
OPTION = "--as-labels"
TEACHABLE = ("train", "train_extra")
COARSE = "gtCoarse"
LABELS = "labels"  # in the work folder, until all are there
LAYOUTS = "cityscapes/train_extra, cityscapes/train or folder/train"


class Show(Protocol):
    """What labelling tells while it works; the command line implements it."""

    def begin(self, *, title: str, total: int, done: int) -> None:
        """The number of images in all, and those done before."""

    def advance(self) -> None:
        """An image is done."""


@dataclass(frozen=True)
class Task:
    """What is to be labelled.

    Attributes:
        items: the images, and where below `folder` the label file of each goes.
        folder: of the labels, below the new root.
        own_ids: (256) from train ids to what a label file holds.
        unsure: what it holds where the teacher is not sure enough.
        links: what the new root needs besides, by its path below it.
        prepare: the command that reads the new root, behind `--root DIR`.
    """

    items: list[tuple[Frame, Path]]
    folder: Path
    own_ids: NDArray[np.uint8]
    unsure: int
    links: dict[str, Path]
    prepare: str


@dataclass(frozen=True)
class Labelled:
    """What was written. Shares are in [0, 1].

    Attributes:
        kept: share of pixels that got a label.
        kept_by_class: of the pixels that the teacher gave to a class; None where there are none.
        unchecked: rungs of the teacher whose data were not at hand.
        prepare: the command that reads the new root.
    """

    folder: Path
    images: int
    kept: float
    kept_by_class: dict[str, float | None]
    unchecked: list[str]
    prepare: str


def write_as_labels(
    model: Model, target: str, root: Path, out: Path, *, threshold: float, data: Path | None, show: Show
) -> Labelled:
    """Label a split with what a network is sure of, and leave the rest unlabelled.

    Interrupted, the same call goes on where it was; `labels.json` is written when all is done.

    Args:
        target: the layout and the split, such as `cityscapes/train_extra`.
        root: the dataset with the images; only read.
        out: the new root: labels, links to the rest of `root`, and labels.json.
        threshold: the least probability of a label that is written, in [0, 1].
        data: the store that the network was trained on; None looks for it.

    Raises:
        MmsegError: the network may not teach, the layout is of no use here, an image cannot be read, or `out` holds
            something else.
    """
    if not 0 <= threshold <= 1:
        raise MmsegError("--threshold", f"{threshold} is not a probability", "give a number from 0 to 1, such as 0.9")
    _require_apart(out, root)
    layout, _, split = target.partition("/")
    if layout == "cityscapes":
        task = _cityscapes(model, split, root)
    elif layout == "folder":
        task = _folder(model, split, root)
    else:
        raise MmsegError(OPTION, f"cannot write the labels of {target!r}", f"choose {LAYOUTS}")
    names = [frame.name for frame, _ in task.items] if layout == "cityscapes" else []  # folders name each split apart
    origin = require_unseen(model, names, data=data)
    frames = [frame for frame, _ in task.items]
    key = identity(model, frames, target=target, threshold=threshold, ids=task.own_ids.tolist())
    require_writable(out)
    for path, leads_to in task.links.items():
        _link(out / path, leads_to)
    about = _about(model, target, threshold, origin, images=len(frames), key=key)
    if not _is_done(task, out, about):
        with work_folder(out / ABOUT, key) as work:
            pixels_2K = _label(model, task, work, threshold=threshold, show=show)
            write_json(out / ABOUT, about | _shares(model, pixels_2K))
            _publish(work / LABELS, out / task.folder)
    about = read_json(out / ABOUT, todo="remove it")
    return Labelled(
        folder=out,
        images=len(frames),
        kept=about["kept"],
        kept_by_class=about["kept_by_class"],
        unchecked=origin.unchecked,
        prepare=f"mmseg prepare {layout} --root {shlex.quote(str(out))} {task.prepare}"
        f" --out {shlex.quote(f'data/{out.resolve().name}')}",  # not where the dataset itself is prepared
    )


def _about(model: Model, target: str, threshold: float, origin: Origin, *, images: int, key: str) -> dict[str, Any]:
    """What the labels are made by and from."""
    return {
        "target": target,
        "teacher": {
            "source": str(model.source),
            "weights_sha256": model.weights_sha256,
            **{name: model.record.get(name) for name in ("stage", "variant", "seed", "data_manifest_sha256")},
            "data": str(origin.store.folder),
            "data_not_at_hand": origin.unchecked,
        },
        "protocol": asdict(model.segmenter.protocol),
        "precision": model.precision,
        "limit_bytes": model.limit,
        "threshold": threshold,
        "images": images,
        "key": key,
    }


def _shares(model: Model, pixels_2K: NDArray[np.int64]) -> dict[str, Any]:
    """How much got a label."""
    given_K, kept_K = pixels_2K
    shares = zip(model.space.classes, given_K.tolist(), kept_K.tolist(), strict=True)
    return {
        "kept": int(kept_K.sum()) / max(1, int(given_K.sum())),
        "kept_by_class": {name: kept / given if given else None for name, given, kept in shares},
        "pixels_by_class": dict(zip(model.space.classes, kept_K.tolist(), strict=True)),
    }


# ----------------------------------------------------------------------------------------------------------- the loop


def _label(model: Model, task: Task, work: Path, *, threshold: float, show: Show) -> NDArray[np.int64]:
    """Write the label file of every image into the work folder; those that an interrupted call wrote are kept.

    Returns:
        (2, K): pixels that the teacher gave to each class, and how many of those were kept.
    """
    classes = len(model.space.classes)
    counted = {frame.name: work / "counts" / f"{fingerprint(frame.name)[:32]}.npy" for frame, _ in task.items}
    todo = [(frame, path) for frame, path in task.items if not counted[frame.name].is_file()]
    show.begin(title="labels", total=len(task.items), done=len(task.items) - len(todo))

    def image(item: tuple[Frame, Path]) -> NDArray[np.uint8]:
        return picture(item[0])

    for (frame, path), reading in ahead(image, todo):
        image_HWC = reading.result()
        predicted = model.segmenter.predict(image_HWC, confidence=True)
        require_whole(model, predicted, frame)
        assert predicted.confidence_HW is not None
        sure_HW = predicted.confidence_HW >= threshold
        label_HW = np.where(sure_HW, task.own_ids[predicted.classes_HW], np.uint8(task.unsure))
        official.write_png(work / LABELS / path, label_HW)
        pixels_2K = [
            np.bincount(part.ravel(), minlength=classes)
            for part in (predicted.classes_HW, predicted.classes_HW[sure_HW])
        ]
        with atomic(counted[frame.name]) as file:  # last: what is counted is written
            np.save(file, np.array(pixels_2K, dtype=np.int64))
        show.advance()
    total = np.zeros((2, classes), dtype=np.int64)
    for counts in counted.values():
        total += np.load(counts)
    return total


def _publish(made: Path, place: Path) -> None:
    """Put the finished labels where they belong; what was there before was refused."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made.replace(place)
        fsync_folder(place.parent)
    except OSError as error:
        raise refusal(place, error) from error


def _is_done(task: Task, out: Path, about: dict[str, Any]) -> bool:
    """Whether an earlier call wrote these very labels.

    Args:
        about: what labels.json says of them.

    Raises:
        MmsegError: others are there.
    """
    known = read_json(out / ABOUT, todo="remove it") if (out / ABOUT).exists() else None
    there = (out / task.folder).exists()
    if known is None and not there:
        return False
    if not isinstance(known, dict):
        raise MmsegError(out, f"holds labels, but no {ABOUT} that says what they are", "give another --out")
    if known.get("key") != about["key"]:
        weights = [each.get("weights_sha256") for each in (known.get("teacher", {}), about["teacher"])]
        differing = ["teacher"] if weights[0] != weights[1] else []
        differing += [
            name
            for name in ("target", "protocol", "precision", "limit_bytes", "threshold")
            if fingerprint(known.get(name)) != fingerprint(about[name])  # a tuple has become a list
        ]
        what = f"holds labels made otherwise ({', '.join(differing) or 'images'})"
        raise MmsegError(out, what, "give another --out, or remove it")
    return there


def _require_apart(out: Path, root: Path) -> None:
    place, dataset = out.resolve(), root.resolve()
    if place == dataset or dataset in place.parents or place in dataset.parents:
        raise MmsegError("--out", f"{out} lies in, or around, the dataset, which is only read", "give another place")
    if out.exists() and not out.is_dir():
        raise MmsegError("--out", f"{out} is a file", "name a folder")


def _link(path: Path, leads_to: Path) -> None:
    """Let the new root have something of the dataset."""
    target = leads_to.resolve()
    if path.is_symlink() and path.resolve() == target:
        return
    if path.is_symlink() or path.exists():
        raise MmsegError(path, f"is there, and is no link to {target}", "give another --out, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    except OSError as error:
        raise refusal(path, error) from error


# --------------------------------------------------------------------------------------------------------- the layouts


def _cityscapes(model: Model, split: str, root: Path) -> Task:
    """gtCoarse/<split>/<city>/<frame>_gtCoarse_labelIds.png, 0 where the teacher is not sure."""
    official.require_space(model.space, where=model.source)
    _require_split(split, TEACHABLE)
    archive = EXTRA_ARCHIVE if split == "train_extra" else ARCHIVES[IMAGES][0]
    tree = open_tree(root, folders=(IMAGES,), archives=(archive,))
    require_sound(tree)
    bad = KNOWN_BAD.get(split, {})
    frames = [frame for frame in frames_of(tree, split) if frame.name not in bad]
    if not frames:
        raise MmsegError(root, f"has no {IMAGES}/{split}, extracted or in {archive}", "put it there, or check --root")
    if held := [frame for frame in frames if frame.city in (*CITIES["val"], *CITIES["test"])]:
        what = f"a frame of {held[0].city}, a city of val or test"
        raise MmsegError(held[0].image.where, what, "label other frames")
    items = [(frame, Path(frame.city, f"{frame.name}_{COARSE}_labelIds.png")) for frame in frames]
    tops = (IMAGES, "gtFine", *ARCHIVES[IMAGES], *ARCHIVES["gtFine"])
    links = {top: root / top for top in tops if (root / top).exists()}
    options = "--train-from train --train-from train_extra" if split == "train_extra" else "--annotations coarse"
    options += " --train-from train" if split == "train" else ""
    return Task(
        items,
        folder=Path(COARSE, split),
        own_ids=official.own_ids(model.space),
        unsure=official.UNLABELED,
        links=links,
        prepare=f"{options} --allow outside-link",
    )


def _folder(model: Model, split: str, root: Path) -> Task:
    """masks/train of ids as classes.yaml has them, 255 where the teacher is not sure."""
    _require_split(split, ("train",))
    classes = read_classes(root / FILE)
    if classes.lists or classes.shares:
        what = "splits by lists or shares, and labels are written for a folder images/train"
        raise MmsegError(root / FILE, what, "sort the images into images/train and images/val")
    if classes.masks != "index":
        raise MmsegError(root / FILE, "has masks of colours, and labels are written as ids", "set masks: index")
    if classes.names != model.space.classes:
        raise MmsegError(root / FILE, f"has other classes than {model.source}", "name the classes of the teacher")
    tree = open_tree(root, folders=("images",))
    require_sound(tree)
    place = f"images/{split}/"
    items = []
    for file in tree.under(place, IMAGE_SUFFIXES):
        name = file.name[len(place) :].rsplit(".", 1)[0]
        items.append((Frame(name, file), Path(f"{name}{classes.mask_suffix}.png")))
    if not items:
        raise MmsegError(root / "images" / split, "holds no images", "put the images there, or check --root")
    if len({path for _, path in items}) < len(items):
        raise MmsegError(root / "images" / split, "has two images of one name", "rename one of them")
    links = {FILE: root / FILE, "images": root / "images"}
    links |= {
        f"masks/{other}": root / "masks" / other for other in ("val", "test") if (root / "masks" / other).is_dir()
    }
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[: len(classes.ids)] = classes.ids
    return Task(
        items,
        folder=Path("masks", split),
        own_ids=table,
        unsure=IGNORE,
        links=links,
        prepare="--allow outside-link",
    )


def _require_split(split: str, allowed: Sequence[str]) -> None:
    if split in ("val", "test"):
        raise MmsegError(OPTION, f"{split} is what networks are judged on", f"label {' or '.join(allowed)}")
    if split not in allowed:
        raise MmsegError(OPTION, f"no split {split!r} to label" if split else "names no split", f"choose {LAYOUTS}")
