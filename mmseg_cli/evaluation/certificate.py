"""The certificate of a run: who made its weights and its figures, when, where and by which code, and of which files.

It decides no number, and holds what metrics.json must not, because the same evaluation gives the same metrics.json: the
time, the machine and the state of the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmseg_cli.data.store import Store
from mmseg_cli.files import read_json, sha256, write_json
from mmseg_cli.models import weights
from mmseg_cli.provenance import PROVENANCE


def training_of(run: Path) -> dict[str, Any] | None:
    """Where and when a run and the rungs before it were trained; None where it does not say.

    Raises:
        MmsegError: what it says is damaged.
    """
    file = run / PROVENANCE
    return dict(read_json(file, todo="run the stage that makes it again")) if file.is_file() else None


def write(
    file: Path,
    *,
    training: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any],
    run: Path,
    store: Store,
    metrics: Mapping[str, Any],
    metrics_file: Path,
) -> None:
    """Write the certificate, atomically, after all that it certifies.

    Args:
        training: as `training_of` found it.
        evaluation: as `mmseg_cli.provenance.about` found it when the evaluation began.
        run: the folder of the trained run.
        store: that was evaluated.
        metrics: what is in `metrics_file`.

    Raises:
        MmsegError: a file cannot be written (exit 2), or the disk is full (exit 4).
    """
    heads = run / weights.AUXILIARY
    write_json(
        file,
        {
            "training": training,
            "evaluation": evaluation,
            "fingerprint": metrics["run"]["fingerprint"],
            "weights_sha256": metrics["weights_sha256"],
            "auxiliary_sha256": sha256(heads) if heads.is_file() else None,
            "data_manifest_sha256": sha256(store.folder / "manifest.json"),
            "confusion_sha256": metrics["confusion_sha256"],
            "metrics_sha256": sha256(metrics_file),
        },
    )
