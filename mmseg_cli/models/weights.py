"""Networks on disk: `model.safetensors` beside a `record.json` that says how to build the network again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.files import atomic, read_json, sha256
from mmseg_cli.models.unet import build_network

WEIGHTS = "model.safetensors"
AUXILIARY = "auxiliary.safetensors"  # of a run with deep supervision: its heads, by level
RECORD = "record.json"


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Weights and buffers as safetensors."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def save_weights(network: nn.Module, path: Path) -> None:
    """Write all weights and buffers as safetensors, atomically."""
    save_tensors(network.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, atomically."""
    content = to_bytes(tensors)
    with atomic(path) as file:
        file.write(content)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        MmsegError: the file is missing, unreadable or damaged.
    """
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise MmsegError(path, "missing", "run the stage that writes it, or `dvc checkout`") from None
    except OSError as error:
        raise MmsegError(path, f"cannot be read ({error.strerror})", "check its permissions and its disk") from error
    except (SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise MmsegError(path, f"is damaged ({error})", "run the stage that writes it again") from error


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give the network all its weights.

    Raises:
        MmsegError: a weight is missing, left over or of another shape: the file is of another architecture.
    """
    own = network.state_dict()
    odd = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    odd += [name for name in tensors if name not in own]
    if odd:
        what = f"is of another architecture ({len(odd)} weights differ, the first is {odd[0]})"
        raise MmsegError(path, what, "use the parameters it was trained with")
    network.load_state_dict(tensors)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        MmsegError: the run is missing or its record is broken.
    """
    record = read_json(folder / RECORD, todo="run `dvc repro`, or the stage that makes this run")
    if not isinstance(record, dict) or "network" not in record:
        raise MmsegError(folder / RECORD, "is not the record of a run", "run the stage that makes it again")
    return record


def load_network(folder: Path, *, expected: dict[str, Any] | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run with its weights, on the CPU in evaluation mode, and the run's record.

    Args:
        folder: a run's folder.
        expected: the body's arguments that the caller believes in; None accepts any.

    Raises:
        MmsegError: the run is missing, damaged or of another architecture than `expected`.
    """
    record = read_record(folder)
    if expected is not None and record["network"] != expected:
        keys = sorted(key for key in expected if record["network"].get(key) != expected[key])
        what = f"holds a network of another architecture ({', '.join(keys)} differ from the parameters)"
        raise MmsegError(folder, what, "train it again, or restore the parameters")
    classes = len(record["label_space"]["classes"])
    network = build_network(task=record["task"], num_classes=classes, **record["network"])
    fill(network, recorded_weights(folder, record), folder / WEIGHTS)
    return network.eval(), record


def recorded_weights(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a run, which must be those that its record names.

    Raises:
        MmsegError: the file is missing, damaged or another one.
    """
    path = folder / WEIGHTS
    tensors = read_weights(path)
    if record.get("weights_sha256") != sha256(path):
        raise MmsegError(path, "is not the file that record.json names", "run the stage that makes it again")
    return tensors
