"""The frames of a split of Cityscapes as they lie on disk or in the official zips, and what is written for each."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data import faults
from mmseg_cli.data.sources.cityscapes import FRAME, IMAGE_END, IMAGES
from mmseg_cli.data.tree import File, Tree, read
from mmseg_cli.errors import MmsegError, ResourceError
from mmseg_cli.evaluation.segmenter import Predicted
from mmseg_cli.files import fingerprint, read_json, refusal, require_writable, write_json
from mmseg_cli.prediction.model import Model
from mmseg_cli.prediction.pictures import read_picture
from mmseg_cli.runtime import only_one

KEY = "key.json"


@dataclass(frozen=True)
class Frame:
    """One image of a split: `<city>_<sequence>_<frame>`."""

    name: str
    image: File

    @property
    def city(self) -> str:
        """The first part of its name."""
        return self.name.rsplit("_", 2)[0]


def require_sound(tree: Tree) -> None:
    """Raise FaultsFound where an archive or a file of the tree cannot be read; links that lead outside do no harm."""
    found = faults.allow(tree.faults, ("outside-link", "duplicate-case"))
    if faults.errors(found):
        raise faults.FaultsFound(found)


def frames_of(tree: Tree, split: str) -> list[Frame]:
    """The frames of a split, by name.

    Raises:
        MmsegError: a file is not called as a frame, or lies in another city's folder, or two have one name.
    """
    frames: dict[str, Frame] = {}
    for file in tree.under(f"{IMAGES}/{split}", (IMAGE_END.lower(),)):
        frame = Frame(file.base[: -len(IMAGE_END)], file)
        place = f"{IMAGES}/{split}/{frame.city}"
        if not FRAME.fullmatch(frame.name) or file.folder != place:
            what = "is not where a frame lies"
            raise MmsegError(file.where, what, f"it must be {IMAGES}/{split}/<city>/<city>_<seq>_<frame>{IMAGE_END}")
        if frame.name in frames:
            raise MmsegError(file.where, "is there twice", "remove one of the two")
        frames[frame.name] = frame
    return [frames[name] for name in sorted(frames)]


def picture(frame: Frame) -> NDArray[np.uint8]:
    """image_HWC of a frame, RGB, as `mmseg prepare` reads it: not turned by EXIF."""
    return read_picture(read(frame.image), frame.image.where, upright=False)


def identity(model: Model, frames: Sequence[Frame], **more: Any) -> str:
    """What decides the predictions of some frames: weights, protocol, arithmetic, and the files as they lie there."""
    stamps = [[frame.name, frame.image.size, frame.image.stamp, frame.image.crc] for frame in frames]
    how = [asdict(model.segmenter.protocol), model.limit, model.precision, model.fold]
    return fingerprint([model.weights_sha256, how, fingerprint(stamps), more])


def require_whole(model: Model, predicted: Predicted, frame: Frame) -> None:
    """Raise ResourceError where an image did not fit into the memory that happens to be free, so that windows were
    taken which nobody asked for: the next run of the command might predict it otherwise."""
    if predicted.window is not None and model.limit is None:
        tall, wide = predicted.window
        what = f"half of the free memory suffices only for windows of {tall}x{wide}"
        raise ResourceError(frame.image.where, what, "say how much to take with --memory, or give a --window")


@contextmanager
def work_folder(out: Path, key: str) -> Iterator[Path]:
    """The folder beside `out` where results collect: those of an interrupted command of the same `key` are there.

    It is removed when the block ends well.

    Raises:
        MmsegError: another process is at work there, or it cannot be written.
    """
    folder = out.with_name(f".{out.name}.partial")
    require_writable(folder.parent)
    with only_one(folder / "lock"):
        known = read_json(folder / KEY, todo="remove it") if (folder / KEY).exists() else None
        if known != key:
            try:
                for path in folder.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
            except OSError as error:
                raise refusal(folder, error) from error
            write_json(folder / KEY, key)
        try:
            yield folder
        except BaseException:
            if not any(path.is_dir() and any(path.iterdir()) for path in folder.iterdir()):  # nothing to go on with
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def same(ours: float, theirs: float, *, within: float) -> bool:
    """Whether two figures agree; both may be undefined."""
    return (math.isnan(ours) and math.isnan(theirs)) or abs(ours - theirs) <= within
