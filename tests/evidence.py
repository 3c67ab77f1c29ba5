"""Made evidence: a preset's grid on disk as `mmseg evaluate` and `mmseg cost` leave it, from counts that are drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_cli.ablation import grid
from mmseg_cli.data.labels import LabelSpace, cityscapes_19
from mmseg_cli.evaluation import evidence, summary
from mmseg_cli.files import sha256, write_json
from mmseg_cli.params import Params
from mmseg_cli.paths import Paths, run_name

SPACE = LabelSpace(
    name="toy-4",
    classes=("road", "building", "sky", "car"),
    colours=((1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)),
    ids=(0, 1, 2, 3),
    categories=("flat", "construction", "sky", "vehicle"),
)
PIXELS = np.array([4000, 3000, 2000, 300])  # of every class in an image


def confusions(*, images: int, skill: float, noise: float, seed: int) -> dict[str, evidence.Counts]:
    """Counts of every kind for one run: `skill` is the share of right pixels, `noise` the spread of a training."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(10_000)  # the images are as difficult for every run
    right = np.clip(skill + noise * rng.standard_normal(), 0.05, 0.98)
    collector = evidence.Collector()
    for _ in range(images):
        share = np.clip(right + 0.05 * shared.standard_normal(), 0.02, 0.99)
        pixels = shared.poisson(PIXELS)
        rows = np.stack([_one(rng, (pixels // 2).astype(np.int64), share) for _ in range(2)])
        hits = rows.sum(0).diagonal()
        sizes = np.zeros((3, 4, 4), dtype=np.int64)
        sizes[:, 0] = rows.sum((0, 2)) // 3
        sizes[:, 1] = np.minimum(hits // 3, sizes[:, 0])
        sizes[:, 2], sizes[:, 3] = 4, rng.integers(0, 5, (3, 4))
        edge = rng.integers(50, 100, (2, 6, 4))
        edge[:, 0] = (edge[:, 1] * share).astype(np.int64)
        edge[:, 2], edge[:, 4] = (edge[:, 3] * share).astype(np.int64), (edge[:, 5] * share).astype(np.int64)
        collector.add({"confusion": rows.sum(0), "boundaries": edge, "sizes": sizes, "rows": rows})
    return collector.counts()


def collected(matrices: np.ndarray) -> evidence.Counts:
    """(N, ...): counts of every image, as they are kept."""
    collector = evidence.Collector()
    for matrix in matrices:
        collector.add({"it": matrix})
    return collector.counts()["it"]


def _one(rng: np.random.Generator, pixels: np.ndarray, share: float) -> np.ndarray:
    matrix = np.zeros((4, 4), dtype=np.int64)
    for class_, count in enumerate(pixels.tolist()):
        wrong = (1 - share) / 3
        matrix[class_] = rng.multinomial(count, [share if other == class_ else wrong for other in range(4)])
    return matrix


def write_run(
    paths: Paths,
    params: Params,
    *,
    variant: str,
    seed: int,
    counts: dict[str, evidence.Counts],
    names: list[str] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """The three files of one run, which say that it was trained as the parameters say."""
    folder = paths.evidence / run_name(variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    images = len(counts["confusion"])
    names = names or [f"city_{image:06d}_000019" for image in range(images)]
    evidence.save(folder / grid.CONFUSION, evidence.Evidence(list(SPACE.classes), names, counts))
    want = grid.wanted(params)[variant]
    rungs = [
        {
            "stage": stage,
            "dataset": parameters["dataset"],
            "parameters": {key: value for key, value in parameters.items() if key not in grid.LOOKING},
            "figures": {"top1": 0.5 + 0.01 * seed} if stage == "pretrain_imagenet" else {"mean_iou": 0.5},
            "data": {"1": _digest("data", stage, seed)[:16]},
            "data_manifest_sha256": _digest("manifest", stage),
            "fingerprint": _digest(variant, seed, stage),
        }
        for stage, parameters in want.rungs.items()
    ]
    found = {
        **summary.of_counts(counts, SPACE, distances=[1, 3], limits=(64, 576)),
        "augmented": None,
        "official": None,
        "instances": None,
        "protocol": {"scales": [1.0], "flip": False, "window": None, "precision": "float32", "fold": False},
        "images": images,
        "images_also_in_train": 0,
        "dataset": "toy",
        "split": "val",
        "label_space": SPACE.name,
        "weights_sha256": _digest("weights", variant, seed),
        "confusion_sha256": sha256(folder / grid.CONFUSION),
        "run": {
            "variant": variant,
            "seed": seed,
            "network": want.network,
            "ladder": list(want.rungs),
            "rungs": rungs,
            "recipe": _digest("recipe"),
            "fingerprint": _digest(variant, seed),
        },
    }
    write_json(folder / grid.METRICS, found)
    write_json(
        folder / grid.CERTIFICATE,
        {
            "training": training,
            "evaluation": None,
            "weights_sha256": found["weights_sha256"],
            "confusion_sha256": found["confusion_sha256"],
            "metrics_sha256": sha256(folder / grid.METRICS),
            "fingerprint": found["run"]["fingerprint"],
            "data_manifest_sha256": _digest("manifest", "val"),
        },
    )


def rewrite(file: Path, found: dict[str, Any]) -> None:
    """Another content of a metrics.json, and its digest in the certificate beside it."""
    write_json(file, found)
    certificate = json.loads(file.with_name(grid.CERTIFICATE).read_text())
    write_json(file.with_name(grid.CERTIFICATE), certificate | {"metrics_sha256": sha256(file)})


def forge(
    paths: Paths, params: Params, found: evidence.Evidence, figures: dict[str, Any], *, variant: str, seed: int
) -> None:
    """Changed counts of a run with all figures and digests that follow from them."""
    folder = paths.evidence / run_name(variant, seed)
    evidence.save(folder / grid.CONFUSION, found)
    space = LabelSpace(figures["label_space"], tuple(found.classes), (), (), None)
    if space.name == "cityscapes-19":
        space, _ = cityscapes_19()
    distances = [one["pixels"] for one in figures["boundaries"]]
    limits = (figures["sizes"][0]["to_pixels"], figures["sizes"][1]["to_pixels"])
    figures |= summary.of_counts(found.counts, space, distances=distances, limits=limits)
    figures["confusion_sha256"] = sha256(folder / grid.CONFUSION)
    write_json(folder / grid.METRICS, figures)
    certificate = json.loads((folder / grid.CERTIFICATE).read_text())
    certificate |= {
        "metrics_sha256": sha256(folder / grid.METRICS),
        "confusion_sha256": figures["confusion_sha256"],
    }
    write_json(folder / grid.CERTIFICATE, certificate)


def write_cost(paths: Paths, params: Params, variants: list[str] | None = None) -> None:
    """cost.json: the second variant takes twice as much of everything as the first, and so on."""
    names = params.ablate.variants if variants is None else variants
    rows = {
        name: {
            "network": params.network_of(name),
            "same_as": None,
            "parameters": 1000 * (place + 1),
            "macs": 2_000_000 * (place + 1),
            "activation_bytes": 4096,
            "peak_bytes": (place + 1) * 2**20,
            "step_seconds": [0.1 * (place + 1), 0.2 * (place + 1), 0.4 * (place + 1)],
            "inference_seconds": [0.01 * (place + 1), 0.02 * (place + 1), 0.04 * (place + 1)],
            "step_joules": None,
        }
        for place, name in enumerate(names)
    }
    write_json(
        paths.evidence / grid.COST,
        {
            "environment": {"processor": "a processor", "threads": 2, "accelerator": None, "torch": "2.x"},
            "dataset": "toy",
            "classes": 4,
            "batch": 4,
            "height": 32,
            "width": 64,
            "inference_height": 64,
            "inference_width": 128,
            "repeats": 3,
            "warmup": 1,
            "no_energy": "not measured: only NVIDIA's GPUs tell",
            "variants": rows,
        },
    )


def make(
    paths: Paths, params: Params, *, skill: Mapping[str, float] | None = None, noise: float = 0.01, images: int = 12
) -> None:
    """The evidence of the preset's whole grid; `skill` of a variant is 0.8 unless it is given."""
    paths.evidence.mkdir(parents=True, exist_ok=True)
    for place, variant in enumerate(params.ablate.variants):
        for seed in params.ablate.seeds:
            counts = confusions(
                images=images, skill=(skill or {}).get(variant, 0.8), noise=noise, seed=1000 * place + seed
            )
            write_run(paths, params, variant=variant, seed=seed, counts=counts)
    write_cost(paths, params)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
