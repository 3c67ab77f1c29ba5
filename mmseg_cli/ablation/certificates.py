"""The certificate of a row: its numbers in full, how they were computed, and every file and run they rest on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mmseg_cli.ablation.grid import COST, RUN_FILES, Evidence
from mmseg_cli.ablation.rows import Row
from mmseg_cli.ablation.statistics import LEVEL, Interval
from mmseg_cli.paths import run_name
from mmseg_cli.provenance import sittings

FOLDER = "certificates"


def certificate(evidence: Evidence, row: Row) -> dict[str, Any]:
    """What a row's cells are, in full, and where they come from.

    Returns:
        Plain values for JSON; the same evidence gives the same.
    """
    return {
        "preset": evidence.preset,
        "variant": row.variant,
        "baseline": evidence.baseline,
        "seeds": evidence.seeds,
        "changes": row.wanted.changes,
        "matched": row.wanted.match,
        "network": row.wanted.network,
        "stages": row.wanted.rungs,
        "numbers": {
            "mean_iou": _interval(row.mean),
            "mean_iou_by_seed": evidence.sample(row.variant, "iou").plain_S.tolist(),
            "mean_iou_augmented": _interval(row.augmented),
            "difference": _interval(row.difference),
            "p_holm": None if row.verdict is None else row.verdict.adjusted_p,
            "verdict": None if row.verdict is None else row.verdict.word,
            "cost": asdict(row.cost),
        },
        "method": {
            "unit": "percent, and points of percent",
            "level": LEVEL,
            "estimand": evidence.estimand,
            "image_blocks": evidence.image_blocks,
            "images": len(evidence.names),
            "checkpoint": "last",
            "protocol": evidence.first["protocol"],
            "interval": "variance components over seeds and image blocks, Student's t, Satterthwaite's degrees of"
            " freedom",
            "p": "two-sided, of the same t; Holm over the rows of the table",
        },
        "cost": {"file": COST, "sha256": evidence.files[COST], "environment": evidence.cost["environment"]},
        "runs": [_run(evidence, row.variant, seed) for seed in evidence.seeds],
    }


def _interval(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _run(evidence: Evidence, variant: str, seed: int) -> dict[str, Any]:
    run, own = evidence.runs[variant, seed], evidence.certificates[variant, seed]
    folder = run_name(variant, seed)
    return {
        "seed": seed,
        "fingerprint": run["run"]["fingerprint"],
        "weights_sha256": run["weights_sha256"],
        "data": {rung["stage"]: rung["data_manifest_sha256"] for rung in run["run"]["rungs"]},
        "files": {name: evidence.files[f"{folder}/{name}"] for name in RUN_FILES},
        "trained": list(sittings(own.get("training"))),
        "evaluated": own.get("evaluation"),
    }
