"""What a numerical stop leaves behind, so that it can be seen again: the batch, the weights before it, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save

from mmseg_cli.files import atomic, new_folder, write_json
from mmseg_cli.models import weights
from mmseg_cli.training.loop import NotFinite
from mmseg_cli.training.state import State

BATCH = "batch.safetensors"
FACTS = "facts.json"


def write(folder: Path, *, state: State, error: NotFinite, names: list[str], definition: dict[str, Any]) -> None:
    """Write `model.safetensors` (before the update), `batch.safetensors` (images, target) and `facts.json`.

    Args:
        names: of the items of the batch, in its order.
        definition: of the run.

    Raises:
        ResourceError: the disk is full.
    """
    with new_folder(folder) as new:
        weights.save_weights(state.network, new / weights.WEIGHTS)
        with atomic(new / BATCH) as file:
            file.write(save({"images": error.images.contiguous(), "target": error.target.contiguous()}))
        facts = {"step": error.step, "what": error.what, "items": names, "loss_is_of_this_part": error.here}
        write_json(new / FACTS, {**facts, "definition": definition})
