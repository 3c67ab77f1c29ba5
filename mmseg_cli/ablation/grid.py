"""The evidence of an ablation: what the grid asks for, what is there, and what exactly is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence, metrics
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
    """

    variants: list[str]
    seeds: list[int]
    runs: dict[tuple[str, int], dict[str, Any]]
    cost: dict[str, Any]

    def figure(self, variant: str, key: str) -> list[float]:
        """One figure of metrics.json for every seed."""
        return [float(self.runs[variant, seed][key]) for seed in self.seeds]


def _agrees(said: Any, recomputed: float) -> bool:
    """Whether a figure of metrics.json is the recomputed one; a class without a figure is None there and NaN here."""
    if said is None or math.isnan(recomputed):
        return said is None and math.isnan(recomputed)
    return isinstance(said, int | float) and math.isclose(said, recomputed, rel_tol=0, abs_tol=1e-12)


def _checked_run(folder: Path, *, variant: str, seed: int) -> dict[str, Any]:
    """metrics.json of one run; each of its figures that a table shows is recomputed from its confusion matrices.

    Raises:
        MmsegError: the two do not agree, so one of them is not what was measured, or they are of another run.
    """
    found = read_json(folder / METRICS, todo=REPRO)
    parts = [found, found.get("class_iou"), found.get("run")] if isinstance(found, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise MmsegError(folder / METRICS, "does not hold a run, its class_iou and its figures", REPRO)
    of = (found["run"].get("variant"), found["run"].get("seed"))
    if of != (variant, seed):
        raise MmsegError(folder / METRICS, f"is of another run (variant {of[0]}, seed {of[1]})", REPRO)
    confusion_file = folder / CONFUSION
    if sha256(confusion_file) != found.get("confusion_sha256"):
        raise MmsegError(confusion_file, f"is not the file that {METRICS} was computed from", REPRO)
    counted = evidence.load(confusion_file)
    matrix = counted.counts["confusion"].total()
    if list(found["class_iou"]) != counted.classes:
        raise MmsegError(folder / METRICS, "class_iou has other classes than its confusion matrices", REPRO)
    figures = [
        ("mean_iou", found.get("mean_iou"), metrics.mean_iou(matrix)),
        ("pixel_accuracy", found.get("pixel_accuracy"), metrics.pixel_accuracy(matrix)),
        ("images", found.get("images"), len(counted.names)),
        *(
            (f"class_iou of {name}", found["class_iou"][name], value)
            for name, value in zip(counted.classes, metrics.class_iou(matrix).tolist(), strict=True)
        ),
    ]
    for name, said, recomputed in figures:
        if not _agrees(said, recomputed):
            what = f"says {name} {said}, its confusion matrices give {recomputed}"
            raise MmsegError(folder / METRICS, what, REPRO)
    return dict(found)


def _require_comparable(paths: Paths, runs: dict[tuple[str, int], dict[str, Any]], cost: dict[str, Any]) -> None:
    """Raise MmsegError unless all runs share recipe, data and classes, and their networks are those of cost.json."""
    first = next(iter(runs.values()))
    for (variant, seed), found in runs.items():
        file = paths.evidence / run_name(variant, seed) / METRICS
        for key in ("split", "images", "label_space", "protocol"):
            if found.get(key) != first.get(key):
                raise MmsegError(file, f"{key} is {found.get(key)}, of others {first.get(key)}", REPRO)
        if found.get("images_also_in_train"):
            what = f"{found['images_also_in_train']} of its val images are in train as well"
            raise MmsegError(file, what, "evaluate on images that no run was trained on")
        for key in ("recipe", "ladder"):
            if found["run"].get(key) != first["run"].get(key):
                raise MmsegError(file, f"was trained by another {key} than the other runs", REPRO)
        if found["run"].get("network") != cost["variants"][variant].get("network"):
            raise MmsegError(file, f"is of another network than {COST} measured", REPRO)


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
    runs = {(name, seed): _checked_run(folder, variant=name, seed=seed) for (name, seed), folder in folders.items()}
    cost = read_json(paths.evidence / COST, todo=REPRO)
    if not isinstance(cost, dict) or not isinstance(cost.get("variants"), dict) or "dataset" not in cost:
        raise MmsegError(paths.evidence / COST, "holds no measurements", REPRO)
    unmeasured = [variant for variant in variants if variant not in cost["variants"]]
    if unmeasured:
        raise MmsegError(paths.evidence / COST, f"has no measurement of {', '.join(unmeasured)}", REPRO)
    _require_comparable(paths, runs, cost)
    return Evidence(variants=variants, seeds=seeds, runs=runs, cost=cost)
