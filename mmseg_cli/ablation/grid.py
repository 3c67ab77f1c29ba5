"""The evidence of an ablation: what the grid asks for, what is there, and what exactly is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import metrics
from mmseg_cli.files import read_json, sha256
from mmseg_cli.paths import Paths, run_name

METRICS = "metrics.json"
CONFUSION = "confusion.npz"
COST = "cost.json"
REPRO = "run `mmseg ablate` (or `dvc repro`) for this preset"


@dataclass(frozen=True)
class Evidence:
    """All that a table is computed from.

    Attributes:
        variants, seeds: the grid, in the table's order; the first variant is the baseline.
        runs: metrics.json of every (variant, seed).
        cost: cost.json.
        files: the evidence files that were read, for the table's footnotes.
    """

    variants: list[str]
    seeds: list[int]
    runs: dict[tuple[str, int], dict[str, Any]]
    cost: dict[str, Any]
    files: list[Path]

    def figure(self, variant: str, key: str) -> list[float]:
        """One figure of metrics.json for every seed."""
        return [float(self.runs[variant, seed][key]) for seed in self.seeds]


def _checked_run(folder: Path) -> dict[str, Any]:
    """metrics.json of one run, recomputed from its confusion matrices.

    Raises:
        MmsegError: the two do not agree, so one of them is not what was measured.
    """
    found: dict[str, Any] = read_json(folder / METRICS, todo=REPRO)
    confusion_file = folder / CONFUSION
    if sha256(confusion_file) != found.get("confusion_sha256"):
        raise MmsegError(confusion_file, f"is not the file that {METRICS} was computed from", REPRO)
    with np.load(confusion_file) as content:
        recomputed = metrics.mean_iou(content["confusion"].sum(0))
    if not math.isclose(recomputed, found["mean_iou"], rel_tol=0, abs_tol=1e-12):
        what = f"says mIoU {found['mean_iou']}, its confusion matrices give {recomputed}"
        raise MmsegError(folder / METRICS, what, REPRO)
    return found


def collect(paths: Paths, *, variants: list[str], seeds: list[int]) -> Evidence:
    """Read the evidence of a grid; files of runs outside the grid are not looked at.

    Raises:
        MmsegError: names every missing run and file, or the file that cannot be trusted.
    """
    folders = {(variant, seed): paths.evidence / run_name(variant, seed) for variant in variants for seed in seeds}
    wanted = [folder / file for folder in folders.values() for file in (METRICS, CONFUSION)]
    wanted.append(paths.evidence / COST)
    missing = [str(path.relative_to(paths.evidence)) for path in wanted if not path.is_file()]
    if missing:
        raise MmsegError(paths.evidence, f"missing {', '.join(missing)}", REPRO)
    runs = {key: _checked_run(folder) for key, folder in folders.items()}
    cost = read_json(paths.evidence / COST, todo=REPRO)
    unmeasured = [variant for variant in variants if variant not in cost["variants"]]
    if unmeasured:
        raise MmsegError(paths.evidence / COST, f"has no measurement of {', '.join(unmeasured)}", REPRO)
    return Evidence(variants=variants, seeds=seeds, runs=runs, cost=cost, files=wanted)
