"""How far the training of a stage is, read from the files that it keeps while it runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.execution import dvc
from mmseg_cli.names import LADDER
from mmseg_cli.params import Params
from mmseg_cli.paths import Paths
from mmseg_cli.training.history import HISTORY

TAIL_BYTES = 4096  # of a history, which hold its last rows
SKEW_SECONDS = 5.0  # between the clocks of machines that share a folder


@dataclass(frozen=True)
class Progress:
    """The newest step of a training.

    Attributes:
        step: it has done.
        steps: of the whole training.
        loss: at that step.
    """

    step: int
    steps: int
    loss: float | None


def of(paths: Paths, params: Params, stage: str, *, since: float) -> Progress | None:
    """The progress of a stage of the ladder; None for others, and before the first step.

    Args:
        since: when this try began, in seconds since 1970: older files are of another one.
    """
    kind, run = dvc.kind_of(stage), dvc.run_of(stage)
    if kind not in LADDER or run is None:
        return None
    variant = run.rpartition("-s")[0]
    folder = paths.lock(kind, run).parent
    newest = max(folder.glob(f"{run}-*/{HISTORY}"), key=_changed, default=None)
    row = None if newest is None or _changed(newest) < since - SKEW_SECONDS else _last_step(newest)
    if row is None or variant not in params.variants:
        return None
    return Progress(row[0], params.section_of(variant, kind).steps, row[1])


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # finished since we looked
        return 0.0


def _last_step(path: Path) -> tuple[int, float | None] | None:
    """Number and loss of the last whole row of a step."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
            if "loss" in row:
                return int(row["step"]), row["loss"]
        except (ValueError, KeyError, TypeError):
            continue
    return None
