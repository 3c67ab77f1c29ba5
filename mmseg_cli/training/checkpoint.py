"""Resumable state: one folder a checkpoint, with a SHA-256 manifest written last; the last two and the best are kept.

A folder `step-000000120/` holds `model.safetensors` (weights and buffers), `training.safetensors` and `training.json`
(the tensors and the plain values of everything else) and `manifest.json`. Reading one runs no code and cannot take more
memory than its size: there is no pickle and nothing compressed. Sampling and schedule are functions of the step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from mmseg_cli import runtime
from mmseg_cli.errors import MmsegError, ResourceError, ran_out
from mmseg_cli.files import atomic, new_folder, sha256, write_json
from mmseg_cli.models.weights import WEIGHTS, to_bytes

TENSORS = "training.safetensors"
VALUES = "training.json"
MANIFEST = "manifest.json"
KEPT = 2
# Bytes of JSON in a file, or in the header of a safetensors file. Room for some thousand tensors; read, it takes many
# times as much memory.
LARGEST_JSON = 2**20


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        step: the number of steps done.
        network: weights and buffers by name.
        training: the state of everything else, as it was saved.
        world: how many processes made it.
    """

    step: int
    network: dict[str, Tensor]
    training: dict[str, Any]
    world: int = 1


def _taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with its tensors moved to `tensors`; keeps the types of keys and tells tuples from lists."""
    match value:
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        case dict():
            return {"dict": [[key, _taken_apart(item, tensors)] for key, item in value.items()]}
        case list():
            return {"list": [_taken_apart(item, tensors) for item in value]}
        case tuple():
            return {"tuple": [_taken_apart(item, tensors) for item in value]}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{type(value).__name__} cannot be saved")


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_taken_apart`."""
    match value:
        case {"tensor": str(name), **rest} if not rest:
            return tensors[name]
        case {"dict": list(items), **rest} if not rest:
            return {key: _put_together(item, tensors) for key, item in items}
        case {"list": list(items), **rest} if not rest:
            return [_put_together(item, tensors) for item in items]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_put_together(item, tensors) for item in items)
        case None | bool() | int() | float() | str():
            return value
    raise ValueError("unknown structure")


def _folders(work: Path) -> list[Path]:
    """Checkpoints of a work folder, oldest first."""
    return sorted(work.glob("step-*"))


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:09d}"


def last_step(work: Path) -> int | None:
    """The step of the newest checkpoint, whole or not."""
    folders = _folders(work)
    return _step(folders[-1]) if folders else None


def save_checkpoint(
    work: Path,
    *,
    step: int,
    definition: Mapping[str, Any],
    network: Mapping[str, Tensor],
    training: Mapping[str, Any],
    best_step: int | None,
    world: int = 1,
) -> None:
    """Write a checkpoint after `step` steps, and remove all but the last two and that of `best_step`.

    Args:
        definition: everything that defines the run, by name; see `load_checkpoint`.
        network: weights and buffers.
        training: nested dicts, lists and tuples of tensors and plain values.
        world: how many processes train together.

    Raises:
        ResourceError: the disk is full; the checkpoints before are untouched.
    """
    tensors: dict[str, Tensor] = {}
    values = {"definition": dict(definition), "training": _taken_apart(dict(training), tensors), "world": world}
    contents = {
        WEIGHTS: to_bytes(network),
        TENSORS: save(tensors),
        VALUES: json.dumps(values, separators=(",", ":")).encode(),
    }
    for name, content in contents.items():
        described = len(content) if name == VALUES else int.from_bytes(content[:8], "little")
        if described > LARGEST_JSON:
            raise MmsegError(name, f"takes {described:,} bytes to describe", f"no checkpoint may take {LARGEST_JSON:,}")
    target = work / folder_name(step)
    try:
        with new_folder(target) as folder:
            for name, content in contents.items():
                with atomic(folder / name) as file:
                    file.write(content)
                runtime.failpoint("save:between_files")
            runtime.failpoint("save:before_manifest")
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
            write_json(folder / MANIFEST, {"step": step, "sha256": hashes})
            runtime.failpoint("save:before_replace")
    except ResourceError as error:
        size = sum(map(len, contents.values()))
        what = f"{error.what}, a checkpoint takes {size:,}"
        raise ResourceError(target, what, error.todo) from error
    runtime.failpoint("save:after_replace")
    keep = {folder_name(best_step)} if best_step is not None else set()
    for old in _folders(work)[:-KEPT]:
        if old.name not in keep:
            _remove(old)
    runtime.failpoint("save:after_remove")


def _remove(folder: Path) -> None:
    """Remove a checkpoint, never leaving half of one under its name."""
    going = folder.with_name(f".{folder.name}.going")
    shutil.rmtree(going, ignore_errors=True)
    try:
        folder.rename(going)
    except OSError:
        return  # it stays; nothing depends on its being gone
    shutil.rmtree(going, ignore_errors=True)


def remove_leftovers(work: Path) -> None:
    """Remove what killed saves have left. The caller holds the run's lock, so nobody is at work on them."""
    for left in work.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def _require_file(path: Path) -> None:
    """A pipe would be waited for, a device read without end."""
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path.name} is missing")


def _read_json(path: Path) -> Any:
    _require_file(path)
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path.name} is too large")
    return json.loads(path.read_bytes())


def _read_tensors(path: Path) -> dict[str, Tensor]:
    content = path.read_bytes()
    if int.from_bytes(content[:8], "little") > LARGEST_JSON:  # the size of safetensors' own JSON
        raise ValueError(f"{path.name} has too large a header")
    return load(content)


def _read(folder: Path) -> tuple[Saved, dict[str, Any]]:
    """The content of a checkpoint and the definition of its run; any exception means that it is damaged."""
    manifest = _read_json(folder / MANIFEST)
    names = (WEIGHTS, TENSORS, VALUES)
    step = _step(folder)
    if set(manifest["sha256"]) != set(names) or repr(manifest["step"]) != repr(step):
        raise ValueError(f"{MANIFEST} is not a checkpoint's")
    for name in names:
        _require_file(folder / name)
        if sha256(folder / name) != manifest["sha256"][name]:
            raise ValueError(f"{name} has changed since it was written")
    values = _read_json(folder / VALUES)
    training = _put_together(values["training"], _read_tensors(folder / TENSORS))
    definition, world = values["definition"], values["world"]
    if not (isinstance(training, dict) and isinstance(definition, dict) and isinstance(world, int)):
        raise ValueError(f"{VALUES} is not a checkpoint's")
    return Saved(step, _read_tensors(folder / WEIGHTS), training, world), definition


def load_checkpoint(
    work: Path,
    *,
    definition: Mapping[str, Any],
    try_on: Callable[[Saved], None],
    warn: Callable[[str], None],
) -> int:
    """Hand the newest intact checkpoint to `try_on` and return its step, or 0 where there is none.

    A damaged one is left out aloud and renamed `damaged-...`, and the one before it is used.

    Args:
        definition: must equal that of the run that was saved.
        try_on: takes over what was saved; an exception from it means that the checkpoint does not fit.

    Raises:
        MmsegError: the newest intact checkpoint is of a run that is defined otherwise, and the keys that differ are
            named; or there are intact ones, and `try_on` took none of them.
        ResourceError: one cannot be read now.
    """
    left_out: dict[Path, str] = {}
    misfit: MmsegError | None = None
    for folder in reversed(_folders(work)):
        try:
            saved, other = _read(folder)
        except (Exception, RecursionError) as error:  # whatever is wrong with it, the one before may be right
            _refuse_passing(folder, error)
            left_out[folder] = f"checkpoint {folder} cannot be used ({_in_one_line(error)})"
            continue
        differ = differing(definition, other)
        if differ:
            what = f"is of a run with other {', '.join(differ)}"
            raise MmsegError(folder, what, f"restore them to go on, or remove {work} to start again")
        try:
            try_on(saved)
        except (KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            _refuse_passing(folder, error)
            what = f"does not fit ({_in_one_line(error)})"
            left_out[folder] = f"checkpoint {folder} {what}"
            todo = f"go back to the versions that it was made with, or remove {work} to start again"
            misfit = misfit or MmsegError(folder, what, todo)
            continue
        for bad, line in left_out.items():
            warn(f"{line}; going on from {folder.name}")
            _set_aside(bad)
        return saved.step
    if misfit is not None:
        raise misfit
    for bad, line in left_out.items():
        warn(f"{line}; there is no intact one before it, starting from the beginning")
        _set_aside(bad)
    return 0


def _refuse_passing(folder: Path, error: BaseException) -> None:
    """A lack of memory, or a disk that does not answer, says nothing about a checkpoint: all stay as they are."""
    if ran_out(error):
        raise error
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        todo = "run the same command again when the disk answers, or remove it to go on from the one before"
        raise ResourceError(folder, f"cannot be read ({error.strerror or error})", todo) from error


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two definitions differ."""
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def _set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it does not count as one of those that are kept."""
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        folder.rename(aside)


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}..."


def keep_last(work: Path) -> None:
    """Remove all checkpoints but the last: what is enough to make the results again."""
    for old in _folders(work)[:-1]:
        _remove(old)


def like(value: Any, parameter: Tensor) -> Any:
    """A tensor of optimizer state laid out in memory as its parameter is; others as they are."""
    if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value
