"""Resumable state: one folder a step with a SHA-256 manifest written last; the last two are kept.

A folder `step-000120/` holds `model.safetensors` (weights and buffers), `optimizer.pt` (plain types only) and
`manifest.json`. Sampling and schedule are functions of the step, so there is no other state.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.files import atomic, new_folder, read_json, sha256, write_json
from mmseg_cli.models import weights

OPTIMIZER = "optimizer.pt"
MANIFEST = "manifest.json"
KEPT = 2


def _folders(work: Path) -> list[Path]:
    """Checkpoints of a work folder, oldest first."""
    return sorted(work.glob("step-*"))


def save(work: Path, *, step: int, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint after `step` steps and remove all but the last two.

    Raises:
        ResourceError: the disk is full; the checkpoints before are untouched.
    """
    buffer = io.BytesIO()  # torch.save writes a path's stem into the file, a buffer's not
    torch.save(optimizer.state_dict(), buffer)
    with new_folder(work / f"step-{step:09d}") as folder:
        weights.save_weights(network, folder / weights.WEIGHTS)
        with atomic(folder / OPTIMIZER) as file:
            file.write(buffer.getbuffer())
        hashes = {name: sha256(folder / name) for name in (weights.WEIGHTS, OPTIMIZER)}
        write_json(folder / MANIFEST, {"step": step, "sha256": hashes})
    for old in _folders(work)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _restore(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load one checkpoint; raise MmsegError when anything about it is damaged."""
    manifest = read_json(folder / MANIFEST, todo="it will be left out")
    for name, expected in manifest["sha256"].items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise MmsegError(folder / name, "is damaged", "it will be left out")
    tensors = weights.read_weights(folder / weights.WEIGHTS)
    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)  # read all before anything changes
    weights.fill(network, tensors, folder / weights.WEIGHTS)
    optimizer.load_state_dict(state)
    return int(manifest["step"])


def resume(work: Path, *, network: nn.Module, optimizer: torch.optim.Optimizer, warn: Callable[[str], None]) -> int:
    """Load the newest intact checkpoint in place and return its step, or 0 where there is none.

    A damaged one is left out aloud, and the one before it is used.
    """
    for folder in reversed(_folders(work)):
        try:
            return _restore(folder, network, optimizer)
        except Exception as error:  # whatever is wrong with it, the one before may be right
            warn(f"checkpoint {folder} cannot be used ({error}); going on from the one before it")
    return 0
