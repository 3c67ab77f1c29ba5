"""The Cityscapes benchmark's own program, cityscapesscripts, on label files as they lie on disk.

Its module is loaded as a copy of our own: it reads its settings from the environment when it is imported and keeps
state in globals, ends the process where something is wrong, and asks numpy for a function that is gone. All of that is
changed in the copy alone, so that nothing of it reaches other code, or another call. What it computes is not touched.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import IGNORE, LabelSpace, cityscapes_19
from mmseg_cli.data.store import Split
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import atomic

SPACE = "cityscapes-19"  # the label space that the program scores
PROGRAM = "cityscapesscripts"
MODULE = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
UNLABELED = 0  # the benchmark's id of pixels that are not counted
LABEL_END = "_gtFine_labelIds.png"
# As the program finds the instances of a label file: it replaces the one by the other anywhere in the path.
LABEL_IDS, INSTANCE_IDS = "labelIds", "instanceIds"


@dataclass(frozen=True)
class Official:
    """What the benchmark's program found. Ratios are in [0, 1]; NaN for what is in neither truth nor prediction.

    Attributes:
        class_iou: of the classes that are scored.
        category_iou: of the categories that hold such classes.
        class_iiou: pixels weighted by the size of their instance, of the classes that have instances; None where the
            instances were not asked for.
        images: how many pairs were compared.
    """

    class_iou: dict[str, float]
    mean_iou: float
    category_iou: dict[str, float]
    mean_category_iou: float
    class_iiou: dict[str, float] | None
    mean_iiou: float | None
    category_iiou: dict[str, float] | None
    mean_category_iiou: float | None
    images: int


class _Refused(Exception):
    """What the program says instead of ending the process."""


class _Numpy:
    """numpy, with the function that the program calls and numpy 2.4 took away."""

    def in1d(self, array: NDArray[Any], values: Any, *, invert: bool = False) -> NDArray[np.bool_]:
        return np.isin(array, values, invert=invert).ravel()

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _program() -> ModuleType:
    """A copy of the program, which nobody else has, with the settings it has in an empty environment."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.loader is None:
        raise MmsegError(PROGRAM, "is not installed", "pip install cityscapesscripts")
    module = importlib.util.module_from_spec(spec)
    held = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("CITYSCAPES_")}
    try:
        spec.loader.exec_module(module)
    finally:
        os.environ.update(held)

    def refuse(message: object) -> None:
        raise _Refused(" ".join(str(message).split()))

    names: dict[str, Any] = vars(module)
    names["printError"] = refuse
    names["CSUPPORT"] = False  # the compiled loop does not look whether an id is inside its matrix
    if not hasattr(np, "in1d"):
        names["np"] = _Numpy()
    return module


def evaluate_pngs(predictions: Sequence[Path], labels: Sequence[Path], *, instances: bool) -> Official:
    """Let the benchmark's program compare label files, pair by pair.

    Args:
        predictions: PNG files of labelIds (not of train ids, which the program takes and scores near 0).
        labels: the ground truth's labelIds files, in the same order.
        instances: score the instances too; :func:`have_instances` must hold.

    Raises:
        MmsegError: the program refuses a file, or the lists.
    """
    if not predictions:
        raise MmsegError(PROGRAM, "no images to compare", "give at least one prediction")
    module = _program()
    at: list[tuple[str, str]] = []
    module.evaluatePair = _noting(module.evaluatePair, at)  # type: ignore[attr-defined]
    settings = SimpleNamespace(**vars(module.args))
    settings.quiet, settings.JSONOutput, settings.evalPixelAccuracy = True, False, False
    settings.evalInstLevelScore = instances
    try:
        result = module.evaluateImgLists([str(path) for path in predictions], [str(path) for path in labels], settings)
    except _Refused as error:
        where = at[-1][1 if str(error).startswith("Unknown label") else 0] if at else PROGRAM
        raise MmsegError(where, f"{PROGRAM} says: {error}", "give it PNG files of labelIds that fit together") from None
    except IndexError:
        what = f"holds an id that is none of the labelIds of {PROGRAM}"
        raise MmsegError(at[-1][0], what, "write labelIds, 0 to 33, never train ids or 255") from None
    except (KeyError, TypeError, ValueError) as error:
        where = at[-1][1] if at else PROGRAM
        raise MmsegError(where, f"{PROGRAM} cannot compare it ({error!r})", "check the label files") from error
    return _official(result, module.labels, instances=instances, images=len(predictions))


def _noting(evaluate_pair: Callable[..., int], at: list[tuple[str, str]]) -> Callable[..., int]:
    """The program's own function, which says what it is about first."""

    def noted(prediction: str, label: str, *arguments: Any) -> int:
        at.append((prediction, label))
        return evaluate_pair(prediction, label, *arguments)

    return noted


def _official(result: Mapping[str, Any], labels: Sequence[Any], *, instances: bool, images: int) -> Official:
    scored = [label for label in labels if not label.ignoreInEval]
    classes = [label.name for label in sorted(scored, key=lambda label: label.trainId)]
    categories = list(dict.fromkeys(label.category for label in scored))
    things = [label.name for label in scored if label.hasInstances]
    groups = list(dict.fromkeys(label.category for label in scored if label.hasInstances))

    def of(scores: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
        return {name: float(scores[name]) for name in names}

    return Official(
        class_iou=of(result["classScores"], classes),
        mean_iou=float(result["averageScoreClasses"]),
        category_iou=of(result["categoryScores"], categories),
        mean_category_iou=float(result["averageScoreCategories"]),
        class_iiou=of(result["classInstScores"], things) if instances else None,
        mean_iiou=float(result["averageScoreInstClasses"]) if instances else None,
        category_iiou=of(result["categoryInstScores"], groups) if instances else None,
        mean_category_iiou=float(result["averageScoreInstCategories"]) if instances else None,
        images=images,
    )


def differences(theirs_by_name: Mapping[str, float], ours_by_name: Mapping[str, float | None]) -> float:
    """The largest absolute difference between the program's IoU and ours of any class or category; infinite where one
    of the two has one that the other does not. NaN or None is one in neither truth nor prediction."""
    if ours_by_name.keys() != theirs_by_name.keys():
        return math.inf
    largest = 0.0
    for name, theirs in theirs_by_name.items():
        value = ours_by_name[name]
        ours = math.nan if value is None else value
        if math.isnan(theirs) != math.isnan(ours):
            return math.inf
        if not math.isnan(theirs):
            largest = max(largest, abs(theirs - ours))
    return largest


def predictions_found(names: Sequence[str], frames: Sequence[str]) -> dict[str, str]:
    """Which of the files `names` the program takes as the prediction of each frame, by its own rule.

    Args:
        names: of files, such as `berlin_000000_000019_predictions.png`.
        frames: `<city>_<sequence>_<frame>`.

    Raises:
        MmsegError: a frame has no prediction or several.
    """
    module = _program()
    settings = SimpleNamespace(predictionPath="predictions", predictionWalk=[("", list(names))])
    found = {}
    for frame in frames:
        try:
            found[frame] = str(module.getPrediction(settings, f"{frame}{LABEL_END}"))
        except _Refused as error:
            raise MmsegError(frame, f"{PROGRAM} says: {error}", "write one prediction a frame") from None
    return found


# ---------------------------------------------------------------------------------------------------- the ground truth


def have_instances(labels: Sequence[Path]) -> bool:
    """Whether every label file has its instanceIds file where the program looks for it: beside it."""
    return all(Path(str(label).replace(LABEL_IDS, INSTANCE_IDS)).is_file() for label in labels)


def labels_of(root: Path, names: Sequence[str]) -> list[Path] | None:
    """The extracted `gtFine/val` label files of a dataset, in the order of the frames; None unless all are there.

    Args:
        root: the dataset's.
        names: of the frames, as a store's val has them: `<city>_<sequence>_<frame>`.
    """
    folder = root / "gtFine" / "val"
    paths = [folder / name.rsplit("_", 2)[0] / f"{name}{LABEL_END}" for name in names]
    return paths if all(path.is_file() for path in paths) else None


def own_ids(space: LabelSpace) -> NDArray[np.uint8]:
    """The table of 256 entries from train ids to the dataset's own ids; whatever is no train id becomes unlabeled.

    Raises:
        MmsegError: the label space has no ids of its own that fit a byte.
    """
    if not all(0 <= own <= 255 for own in space.ids):
        raise MmsegError(space.name, "its classes have no ids of their own", "choose a dataset whose labels are ids")
    table = np.full(256, UNLABELED, dtype=np.uint8)
    table[: len(space.ids)] = space.ids
    return table


def written_ids(space: LabelSpace) -> NDArray[np.uint8]:
    """The table from train ids to what predictions are written as: the dataset's own ids, or train ids without such."""
    return own_ids(space) if all(0 <= own <= 255 for own in space.ids) else np.arange(256, dtype=np.uint8)


def read_png(path: Path, space: LabelSpace) -> NDArray[np.uint8]:
    """predicted_HW of train ids from a PNG that was written by `written_ids`; 255 for what is no class.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be read, or holds no ids.
    """
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[written_ids(space)[: len(space.classes)]] = np.arange(len(space.classes))
    with Image.open(path) as opened:
        if opened.mode != "L":
            raise ValueError(f"is {opened.mode}, not ids")
        ids_HW = np.asarray(opened)
    predicted_HW: NDArray[np.uint8] = table[ids_HW]
    return predicted_HW


def write_png(path: Path, label_HW: NDArray[np.uint8]) -> None:
    """Write ids as an 8-bit PNG of one channel, atomically."""
    with atomic(path) as file:
        Image.fromarray(label_HW).save(file, "PNG")


def write_labels(split: Split, space: LabelSpace, folder: Path) -> list[Path]:
    """Write a split's labels as the benchmark's files, where the dataset itself is not at hand: no instances.

    Args:
        folder: where they go, such as a temporary one.

    Returns:
        The files, in the order of the split.

    Raises:
        MmsegError: the label space is not the benchmark's, or the folder cannot be written.
    """
    require_space(space)
    table = own_ids(space)
    paths = []
    for item, name in enumerate(split.names()):
        paths.append(folder / f"{name}{LABEL_END}")
        write_png(paths[-1], table[split.label(item)])
    return paths


def require_space(space: LabelSpace, *, where: str | Path = PROGRAM) -> None:
    """Raise MmsegError unless these are the benchmark's classes with the benchmark's ids."""
    theirs, _ = cityscapes_19()
    if (space.classes, space.ids) != (theirs.classes, theirs.ids):
        what = f"has the classes of {space.name}, and the benchmark scores those of {SPACE}"
        raise MmsegError(where, what, "take a run that was trained on Cityscapes")
