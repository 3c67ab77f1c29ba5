"""Networks that are no networks: predictions that a test can tell from the image alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import trees
from PIL import Image

from mmseg_cli.data.labels import LabelSpace, cityscapes_19
from mmseg_cli.evaluation.segmenter import PLAIN, Predicted, Protocol
from mmseg_cli.prediction.model import Model


def classes_of(image_HWC: np.ndarray, classes: int = 19) -> np.ndarray:
    """What the fake predicts: the sum of the colours, modulo the number of classes."""
    return (image_HWC.astype(np.int64).sum(2) % classes).astype(np.uint8)


def confidence_of(image_HWC: np.ndarray) -> np.ndarray:
    """How sure it is of it: the first colour."""
    return (image_HWC[..., 0] / np.float32(255)).astype(np.float32)


class FakeSegmenter:
    """Predicts by :func:`classes_of`, and notes how often; interrupted after `stop_after` images."""

    def __init__(
        self,
        *,
        classes: int = 19,
        protocol: Protocol = PLAIN,
        stop_after: int | None = None,
        window: tuple[int, int] | None = None,
    ) -> None:
        self.classes, self.protocol, self.stop_after, self.window = classes, protocol, stop_after, window
        self.predicted = 0

    def predict(
        self,
        image_HWC: np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Predicted:
        assert size is None
        if self.predicted == self.stop_after:
            raise KeyboardInterrupt
        self.predicted += 1
        sure_HW = confidence_of(image_HWC) if confidence else None
        return Predicted(classes_of(image_HWC, self.classes), sure_HW, window=self.window)


def fake_model(
    source: Path,
    *,
    record: dict[str, Any] | None = None,
    space: LabelSpace | None = None,
    weights: str = "weights",
    **fake: Any,
) -> Model:
    """A model that predicts by :func:`classes_of`; equal `weights` have an equal hash."""
    space = space or cityscapes_19()[0]
    segmenter = FakeSegmenter(classes=len(space.classes), **fake)
    digest = hashlib.sha256(weights.encode()).hexdigest()
    return Model(segmenter, space, digest, source, record or {})  # type: ignore[arg-type]


class Quiet:
    """A screen that nobody looks at, and that remembers."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def begin(self, *, title: str, total: int, done: int) -> None:
        self.begun.append((title, total, done))

    def advance(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def make_test(root: Path, counts: dict[str, int], *, height: int = 32, width: int = 64) -> Path:
    """leftImg8bit/test with so many frames of each city."""
    rng = np.random.default_rng(11)
    for city, count in counts.items():
        folder = root / "leftImg8bit" / "test" / city
        folder.mkdir(parents=True)
        for number in range(count):
            picture = Image.fromarray(trees.photo(rng, height, width))
            picture.save(folder / f"{city}_{number:06d}_000019_leftImg8bit.png")
    return root
