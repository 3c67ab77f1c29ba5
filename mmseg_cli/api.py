"""The Python door: a trained network in three lines.

    from mmseg_cli import load

    network = load("runs/demo/train/mmbconv-s0")        # or "mmbconv-s0.onnx"
    prediction = network.predict("street.png")

``prediction.classes_HW`` holds the class of every pixel, ``network.classes`` their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation.segmenter import Protocol
from mmseg_cli.prediction.model import Model, load_model
from mmseg_cli.prediction.outputs import overlay
from mmseg_cli.prediction.pictures import as_rgb, read_content, read_picture

Picture = str | PathLike[str] | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, repr=False)
class Prediction:
    """The prediction of one image.

    Attributes:
        image_HWC: the image as the network saw it, RGB.
        classes_HW: 0 to K - 1, in the order of `Network.classes`.
        confidence_HW: the probability of that class, in [0, 1].
        probabilities_KHW: of every class; None unless they were asked for.
        window: (height, width) of the windows that the memory asked for, which change the result a little; None where
            it sufficed.
        space: the classes, their colours and the dataset's own ids.
    """

    image_HWC: NDArray[np.uint8]
    classes_HW: NDArray[np.uint8]
    confidence_HW: NDArray[np.float32]
    probabilities_KHW: NDArray[np.float32] | None
    window: tuple[int, int] | None
    space: LabelSpace

    def __repr__(self) -> str:
        height, width = self.classes_HW.shape
        return (
            f"<prediction of {height}x{width} pixels, {len(np.unique(self.classes_HW))} classes of {self.space.name}>"
        )

    @property
    def ids_HW(self) -> NDArray[np.int64]:
        """The dataset's own label ids; -1 where a class has none."""
        return np.array(self.space.ids)[self.classes_HW]

    def overlay(self) -> Image.Image:
        """The classes' colours over the image."""
        return overlay(self.image_HWC, self.classes_HW, self.space.colours)


class Network:
    """A trained network that is ready to predict; made by :func:`load`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __repr__(self) -> str:
        protocol = self._model.segmenter.protocol.text()
        return f"<{self._model.source}: {len(self.classes)} classes of {self.space.name}, {protocol}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes."""
        return self._model.space.classes

    @property
    def space(self) -> LabelSpace:
        """The classes, their colours and the dataset's own ids."""
        return self._model.space

    def predict(self, image: Picture, *, probabilities: bool = False) -> Prediction:
        """Predict one image at its own size.

        Args:
            image: a file of any usual kind, or a Pillow image, both turned as EXIF says; or an array, image_HWC of RGB
                or image_HW of grey, uint8.
            probabilities: give those of all classes too, which takes 4 K bytes a pixel.

        Raises:
            MmsegError: the file is missing or damaged, or this is no image.
            ResourceError: the memory does not suffice.
        """
        image_HWC = _as_rgb(image)
        found = self._model.segmenter.predict(image_HWC, confidence=True, probabilities=probabilities)
        assert found.confidence_HW is not None
        return Prediction(
            image_HWC, found.classes_HW, found.confidence_HW, found.probabilities_KHW, found.window, self.space
        )


def load(
    source: str | PathLike[str],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    device: str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    memory_gib: float | None = None,
) -> Network:
    """Load a trained network.

    Args:
        source: the folder of a run, such as `runs/demo/train/mmbconv-s0`, or a `.onnx` file of `mmseg export`, which
            needs onnxruntime and no torch.
        scales, flip: test-time augmentation, see `mmseg_cli.evaluation.segmenter.Protocol`.
        window: (height, width) in pixels; None is the whole image, or what the memory allows.
        device: `auto`, `cpu`, `cuda`, `cuda:1`; of a run.
        precision: of a run.
        memory_gib: working memory in GiB; None is half of what is free.

    Raises:
        MmsegError: there is no such network, or it is damaged.
    """
    if memory_gib is not None and (isinstance(memory_gib, bool) or not isinstance(memory_gib, int | float)):
        raise MmsegError("load", f"memory_gib {memory_gib!r} is not a number", "give GiB, such as 4 or 0.5")
    return Network(
        load_model(
            Path(source),
            protocol=_protocol(scales, flip, window),
            device=device,
            precision=precision,
            limit=None if memory_gib is None else int(memory_gib * 2**30),
        )
    )


def _protocol(scales: Sequence[float], flip: bool, window: tuple[int, int] | None) -> Protocol:
    try:
        if isinstance(window, str) or not isinstance(flip, bool | np.bool_):
            raise TypeError
        pair = None if window is None else (int(window[0]), int(window[1]))
        return Protocol(scales=tuple(float(scale) for scale in scales), flip=bool(flip), window=pair)
    except (TypeError, ValueError, IndexError):
        what = f"scales {scales!r}, flip {flip!r} or window {window!r} is of another kind"
        raise MmsegError("load", what, "give for example scales=[0.5, 1], flip=True, window=(512, 1024)") from None


def _as_rgb(image: Picture) -> NDArray[np.uint8]:
    """image_HWC of what the user has."""
    if isinstance(image, Image.Image):
        return as_rgb(image, "image")
    if isinstance(image, np.ndarray):
        image_HWC = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or not image_HWC.size:
            what = f"an array of {image.dtype} and shape {image.shape} is no image"
            raise MmsegError("image", what, "give uint8, height x width x 3 (RGB) or height x width (grey)")
        return np.ascontiguousarray(image_HWC)
    try:
        path = Path(image)
    except TypeError:
        what = f"{type(image).__name__} is no image"
        raise MmsegError("image", what, "give a file's name, a Pillow image or an array") from None
    return read_picture(read_content(path), str(image))
