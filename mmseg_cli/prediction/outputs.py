"""What is written for each picture that was predicted, and what a half-done folder already holds.

    DIR/prediction.json         what made it: weights, protocol, classes with ids and colours
    DIR/sources.json            what the results were made from
    DIR/labels/NAME.png         one channel of 8 bits: the dataset's own label ids, or train ids
    DIR/overlays/NAME.png       the classes' colours over the image
    DIR/probabilities/NAME.npz  `probabilities` float16 KHW and `classes`, their names

The label is written last. What counts as done: :mod:`mmseg_cli.prediction.results`.
"""

from __future__ import annotations

import errno
import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation.segmenter import Predicted
from mmseg_cli.files import atomic, read_json, require_writable, write_json
from mmseg_cli.prediction import results
from mmseg_cli.prediction.inputs import ABOUT, RESULTS, Film
from mmseg_cli.prediction.model import Model
from mmseg_cli.prediction.results import FILM, LABELS, OVERLAYS, PROBABILITIES, SUFFIXES
from mmseg_cli.runtime import only_one

LOCK = ".lock"
ALPHA = 0.5  # of the class's colour over the image
TODO = "choose another --out, or repeat the command that made it"
CODECS = ("libx264", "mpeg4")  # the first that this PyAV has

_UNFINISHED = re.compile(r"\..*\.(png|npz|mp4)\.[a-z0-9_]{8}")  # what `atomic` leaves behind when it is killed

Colours = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Outputs:
    """A folder of predictions, which this process alone writes.

    Attributes:
        folder: DIR.
        space: the classes.
        values_K: what stands for each class in a label file.
        own_ids: whether that is the dataset's own id, else 0 to K - 1.
        overlay, probabilities: whether they are written too.
        done: names that are done.
        removed: how many were, but their files have changed since.
    """

    folder: Path
    space: LabelSpace
    values_K: NDArray[np.uint8]
    own_ids: bool
    overlay: bool
    probabilities: bool
    done: frozenset[str]
    removed: int

    def write(self, name: str, image_HWC: NDArray[np.uint8], predicted: Predicted) -> None:
        """Write what is asked for of one picture.

        Raises:
            MmsegError: the folder cannot be written (exit 2) or the disk is full (exit 4).
        """
        if self.overlay:
            picture = overlay(image_HWC, predicted.classes_HW, self.space.colours)
            with atomic(self.place(OVERLAYS, name)) as file:
                picture.save(file, "PNG", compress_level=1)  # three times as fast as the default, a tenth larger
        if self.probabilities:
            assert predicted.probabilities_KHW is not None  # they were asked for
            found_KHW = predicted.probabilities_KHW.astype(np.float16)
            with atomic(self.place(PROBABILITIES, name)) as file:
                np.savez_compressed(file, probabilities=found_KHW, classes=np.array(self.space.classes))
        with atomic(self.place(LABELS, name)) as file:
            Image.fromarray(self.values_K[predicted.classes_HW]).save(file, "PNG")

    @property
    def values(self) -> str:
        """What the labels hold, for people."""
        return "the dataset's own ids" if self.own_ids else f"train ids, 0 to {len(self.values_K) - 1}"

    def place(self, kind: str, name: str) -> Path:
        """Where a result of a name lies."""
        return self.folder / kind / f"{name}{SUFFIXES[kind]}"

    def write_film(self, film: Film) -> Path | None:
        """The overlays of a film as a film; None where there is none of its frames. One as new as they are stays."""
        target = self.folder / OVERLAYS / f"{film.name}{FILM}"
        frames = sorted((self.folder / OVERLAYS / film.name).glob("[0-9]*.png"), key=lambda path: int(path.stem))
        if not frames:
            return None
        newest = max(path.stat().st_mtime_ns for path in frames)
        if target.is_file() and target.stat().st_size and target.stat().st_mtime_ns >= newest:
            return target
        with atomic(target) as file:
            _encode(frames, file, film)
        return target


def overlay(image_HWC: NDArray[np.uint8], classes_HW: NDArray[np.uint8], colours: Colours) -> Image.Image:
    """The classes' colours, half transparent, over the image. Classes beyond the colours are black."""
    coloured = Image.fromarray(classes_HW)
    coloured.putpalette([value for colour in colours for value in colour])
    return Image.blend(Image.fromarray(image_HWC), coloured.convert("RGB"), ALPHA)


def label_values(space: LabelSpace, *, train_ids: bool) -> tuple[NDArray[np.uint8], bool]:
    """What stands for each class in a label file.

    Returns:
        values_K, and whether they are the dataset's own ids: those of a space that has none for some class, or one that
        8 bits do not hold, cannot be written.
    """
    own = not train_ids and all(0 <= value <= 255 for value in space.ids)
    return np.array(space.ids if own else range(len(space.classes)), dtype=np.uint8), own


def settings(model: Model, *, precision: str, own_ids: bool, overlay: bool, probabilities: bool) -> dict[str, Any]:
    """What must be equal for one folder to hold the results of two commands."""
    protocol = asdict(model.segmenter.protocol)
    if protocol["window"] is None:  # without windows nothing overlaps
        del protocol["overlap"], protocol["weights"]
    return {
        "weights": model.weights_sha256,
        "network": "onnx" if model.source.suffix == ".onnx" else "torch",
        "precision": precision,
        **{key.replace("weights", "window weights"): value for key, value in protocol.items()},
        "memory": None if model.limit is None else f"{model.limit / 2**30:g} GiB",
        "labels": "ids" if own_ids else "train ids",
        "overlays": overlay,
        "probabilities": probabilities,
    }


@contextmanager
def open_outputs(
    folder: Path,
    model: Model,
    *,
    precision: str,
    train_ids: bool,
    overlay: bool,
    probabilities: bool,
    sources: Mapping[str, str],
) -> Iterator[Outputs]:
    """Begin a folder of predictions, or go on with one that the same weights and settings began.

    Args:
        precision: of the network.
        train_ids: write 0 to K - 1 rather than the dataset's own ids.
        sources: the file behind each name; behind that of a film and a slash.

    Raises:
        MmsegError: it holds something else, another process is at work there, or it cannot be written.
    """
    values_K, own = label_values(model.space, train_ids=train_ids)
    wanted = settings(model, precision=precision, own_ids=own, overlay=overlay, probabilities=probabilities)
    require_writable(folder)
    with only_one(folder / LOCK):
        _require_same(folder, wanted)
        _tidy(folder)
        removed = results.bring_up_to_date(folder, sources)
        if not (folder / ABOUT).exists():
            write_json(folder / ABOUT, _about(model, wanted, values_K))
        kinds = [LABELS, *([OVERLAYS] if overlay else []), *([PROBABILITIES] if probabilities else [])]
        done = results.whole(folder, kinds)
        yield Outputs(folder, model.space, values_K, own, overlay, probabilities, done, removed)


def _require_same(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise MmsegError where the folder holds predictions that were made otherwise."""
    about = folder / ABOUT
    if not about.exists():
        for kind in RESULTS:
            place = folder / kind
            if place.exists() and not (place.is_dir() and not any(place.iterdir())):
                raise MmsegError(place, f"is there, but no {ABOUT} that says what it is", "choose another --out")
        return
    found = read_json(about, todo="choose another --out, or remove the folder")
    before = found.get("settings") if isinstance(found, dict) else None
    if not isinstance(before, dict):
        raise MmsegError(about, "is not one that `mmseg predict` wrote", "choose another --out")
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in wanted.items()}
    differing = [key for key in dict.fromkeys([*plain, *before]) if plain.get(key) != before.get(key)]
    if differing:
        listed = ", ".join(f"{key} {_text(before.get(key))}, now {_text(plain.get(key))}" for key in differing)
        raise MmsegError(folder, f"holds predictions made otherwise ({listed})", TODO)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else "no"
    if isinstance(value, list):
        return "x".join(map(str, value)) if value and all(isinstance(one, int) for one in value) else str(value)
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def _about(model: Model, wanted: dict[str, Any], values_K: NDArray[np.uint8]) -> dict[str, Any]:
    space = model.space
    return {
        "mmseg": importlib.metadata.version("mmseg-cli"),
        "model": str(model.source),
        "settings": wanted,
        "protocol": model.segmenter.protocol.text(),
        "label_space": space.name,
        "classes": [
            {"name": name, "label": int(label), "train_id": index, "id": own, "colour": list(colour)}
            for index, (name, label, own, colour) in enumerate(
                zip(space.classes, values_K, space.ids, space.colours, strict=True)
            )
        ],
    }


def _tidy(folder: Path) -> None:
    """Remove what a killed command left half written."""
    for kind in RESULTS:
        for path in (folder / kind).rglob(".*"):
            if _UNFINISHED.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()


def too_long(error: MmsegError) -> bool:
    """Whether a picture could not be written because of its own name."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENAMETOOLONG


def _encode(frames: Sequence[Path], file: Any, film: Film) -> None:
    """An mp4 of pictures; sides are cut to even numbers, which its colours need."""
    import av

    codec = next(name for name in CODECS if name in av.codecs_available)
    with Image.open(frames[0]) as first:
        width, height = max(2, first.width // 2 * 2), max(2, first.height // 2 * 2)
    frame: Any = av.VideoFrame
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=film.rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for path in frames:
            with Image.open(path) as picture:
                fitting = picture.convert("RGB").crop((0, 0, width, height))
            container.mux(stream.encode(frame.from_image(fitting)))
        container.mux(stream.encode(None))
