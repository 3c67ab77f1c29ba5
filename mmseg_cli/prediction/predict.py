"""The loop of `mmseg predict`: reads one picture ahead, predicts, writes behind; goes on after what cannot be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.errors import MmsegError, ResourceError, ran_out
from mmseg_cli.evaluation.segmenter import Predicted
from mmseg_cli.prediction.ahead import ahead
from mmseg_cli.prediction.inputs import Film, Input, Inputs
from mmseg_cli.prediction.model import Model
from mmseg_cli.prediction.outputs import Outputs, too_long
from mmseg_cli.runtime import failpoint

Image = NDArray[np.uint8]


@dataclass
class Outcome:
    """How a command ended.

    Attributes:
        predicted: pictures of this command.
        before: those that were done before.
        windows: pictures that were predicted in windows because the memory did not suffice for the whole.
        smallest: (height, width) of the smallest of these windows.
        failures: one line for each picture that could not be read or predicted.
        films: overlays of films that were written.
    """

    predicted: int = 0
    before: int = 0
    windows: int = 0
    smallest: tuple[int, int] | None = None
    failures: list[str] = field(default_factory=list)
    films: list[Path] = field(default_factory=list)


def sources(inputs: Inputs) -> dict[str, str]:
    """The file behind each name, behind that of a whole film and a slash; none for standard input."""
    return {
        f"{part.name}/" if isinstance(part, Film) else part.name: part.source for part in inputs.parts if part.source
    }


def predict(
    model: Model,
    inputs: Inputs,
    outputs: Outputs,
    *,
    begin: Callable[[int, int], None],
    advance: Callable[[], None],
) -> Outcome:
    """Predict all inputs that are not done, and write them.

    Args:
        begin: told how many pictures there are, and how many were done before.
        advance: called after each.

    Raises:
        MmsegError: something cannot be written. What cannot be read or predicted is a failure of the outcome.
    """
    outcome = Outcome()
    done, left = _left(inputs, outputs)
    outcome.before = done
    begin(inputs.count, done)
    with ThreadPoolExecutor(1) as writer:
        behind: tuple[Input, Future[None]] | None = None

        def finish() -> None:
            """Wait for the picture that is being written."""
            nonlocal behind
            if behind is None:
                return
            (one, future), behind = behind, None
            try:
                future.result()
                outcome.predicted += 1
            except MmsegError as error:
                if not too_long(error):
                    raise
                outcome.failures.append(f"{one.where}: its name is too long for that of a result: shorten it")
            advance()

        for one, reading in ahead(lambda one: one.read(), left, count=1):
            try:
                image_HWC = reading.result()
                predicted = model.segmenter.predict(image_HWC, probabilities=outputs.probabilities)
                if predicted.window is not None:
                    outcome.windows += 1
                    outcome.smallest = min(outcome.smallest or predicted.window, predicted.window, key=math.prod)
            except Exception as error:
                outcome.failures.append(_failure(one, error))  # a line: the error would keep the image
                advance()
                continue
            finally:
                del reading
            finish()
            behind = one, writer.submit(_write, outputs, one, image_HWC, predicted)
            del image_HWC, predicted
        finish()
    if outputs.overlay:
        outcome.films = [path for film in inputs.films if (path := outputs.write_film(film)) is not None]
    return outcome


def _write(outputs: Outputs, one: Input, image_HWC: Image, predicted: Predicted) -> None:
    outputs.write(one.name, image_HWC, predicted)
    failpoint("predicted")


def _left(inputs: Inputs, outputs: Outputs) -> tuple[int, Iterator[Input]]:
    """How many pictures are done, and the others."""
    done, parts = 0, list[Input | Film]()
    for part in inputs.parts:
        if isinstance(part, Film):
            there = sum(f"{part.name}/{number:06d}" in outputs.done for number in range(part.frames))
            done += there
            if there < part.frames:
                parts.append(part)
        elif part.source and part.name in outputs.done:
            done += 1
        else:
            parts.append(part)
    left = (one for one in Inputs(tuple(parts)) if not (one.source and one.name in outputs.done))
    return done, left


def _failure(one: Input, error: Exception) -> str:
    """The line of a picture that could not be read or predicted; what is no fault of the picture's is raised."""
    if isinstance(error, ResourceError):
        return f"{one.where}: {error.what}: {error.todo} with --memory"
    if isinstance(error, MmsegError):
        return str(error)
    if ran_out(error):
        return f"{one.where}: the memory does not suffice for it: set a smaller --memory"
    raise error
