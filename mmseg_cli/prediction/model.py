"""A trained network as a user names it: the folder of a run, or an ONNX file that `mmseg export` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mmseg_cli import memory
from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation.segmenter import PLAIN, Arrays, Protocol, Segmenter, normalisation
from mmseg_cli.names import unknown_name

LISTED = 6  # runs that a message names
SHARE = 0.5  # of the memory that is free: what a prediction takes where nobody sets a limit

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Model:
    """A network that is ready to predict.

    Attributes:
        segmenter: predicts.
        space: the classes.
        weights_sha256: of the run's model.safetensors; an ONNX file names that of its run.
        source: what was loaded.
        record: record.json of the run; of an ONNX file what it keeps of it.
        limit: bytes of working memory that the user allows; None where half of what is free is taken.
        precision, fold: what else a prediction depends on.
    """

    segmenter: Segmenter
    space: LabelSpace
    weights_sha256: str
    source: Path
    record: dict[str, Any]
    limit: int | None = None
    precision: Precision = "float32"
    fold: bool = True


def load_model(
    source: Path,
    *,
    protocol: Protocol = PLAIN,
    device: str = "auto",
    precision: Precision = "float32",
    fold: bool = True,
    compile: bool = False,
    limit: int | None = None,
    at_once: int | None = None,
    threads: int | None = None,
) -> Model:
    """Load a network. torch is imported for a run only.

    Args:
        source: the folder of a run of segmentation, or a `.onnx` file.
        device: see `mmseg_cli.runtime.pick_device`; an ONNX file runs on the CPU, in float32.
        limit: bytes of working memory; half of what is free where None.
        threads: of the CPU; None is one per core.
        precision, fold, compile, at_once: see `mmseg_cli.evaluation.on_torch.segmenter`.

    Raises:
        MmsegError: there is no such network, or it is damaged or of another task.
    """
    if precision not in get_args(Precision):
        raise unknown_name("precision", precision, get_args(Precision))
    if limit is not None and limit < 1:
        raise MmsegError("memory", f"{limit / 2**30:g} GiB is nothing", "allow more than 0")
    if source.suffix == ".onnx":
        if device not in ("auto", "cpu") or precision != "float32":
            raise MmsegError(source, f"runs on the CPU in float32, not on {device} in {precision}", "leave both out")
        return _of_onnx(source, protocol=protocol, limit=limit, at_once=at_once, threads=threads)
    require_run(source)
    return _of_run(
        source,
        protocol=protocol,
        device=device,
        precision=precision,
        fold=fold,
        compile=compile,
        limit=limit,
        at_once=at_once,
        threads=threads,
    )


def require_run(source: Path) -> None:
    """Raise MmsegError unless this is the folder of a run, and name the runs that are in it instead."""
    example = "runs/demo/train/mmbconv-s0"
    if source.is_file():
        raise MmsegError(source, "is neither the folder of a run nor a .onnx file", f"give a folder such as {example}")
    if not source.is_dir():
        raise MmsegError(source, "there is no such folder", f"give that of a run, such as {example}")
    if not (source / "record.json").is_file():
        inside = sorted(path.parent.name for path in source.glob("*/record.json"))
        if not inside:
            raise MmsegError(source, "is no run (it has no record.json)", f"give a folder such as {example}")
        listed = ", ".join(inside[:LISTED]) + (f" and {len(inside) - LISTED} more" if len(inside) > LISTED else "")
        raise MmsegError(source, f"is no run, but holds {listed}", f"give one of them, as in {source}/{inside[0]}")


def _of_onnx(source: Path, *, protocol: Protocol, limit: int | None, at_once: int | None, threads: int | None) -> Model:
    from mmseg_cli.prediction.onnx import open_onnx

    forward, about = open_onnx(source, threads=threads)
    space = LabelSpace.from_json(about["label_space"])
    mean, std = normalisation(about["mean"], about["std"])
    segmenter = Segmenter(
        forward=forward,
        arrays=Arrays(),
        classes=len(space.classes),
        mean=mean,
        std=std,
        protocol=protocol,
        bytes_per_pixel=about["bytes_per_pixel"],
        limit=int(SHARE * memory.look().available) if limit is None else limit,
        at_once=at_once or 1,
    )
    return Model(segmenter, space, about["weights_sha256"], source, about["run"], limit)


def _of_run(
    source: Path,
    *,
    protocol: Protocol,
    device: str,
    precision: Precision,
    fold: bool,
    compile: bool,
    limit: int | None,
    at_once: int | None,
    threads: int | None,
) -> Model:
    from mmseg_cli import runtime
    from mmseg_cli.evaluation import on_torch
    from mmseg_cli.models import weights

    network, record = weights.load_network(source)
    if record["task"] != "segmentation":
        raise MmsegError(source, "is not a segmentation network", "give a run of the train stage")
    runtime.limit_threads(threads)
    where = runtime.pick_device(device, where="device")
    space = LabelSpace.from_json(record["label_space"])
    segmenter = on_torch.segmenter(
        network,
        classes=len(space.classes),
        protocol=protocol,
        device=where,
        precision=precision,
        fold=fold,
        compile=compile,
        limit=int(SHARE * on_torch.free_memory(where)) if limit is None else limit,
        at_once=at_once,
    )
    return Model(segmenter, space, record["weights_sha256"], source, record, limit, precision, fold)
