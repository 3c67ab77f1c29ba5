"""The three rungs of the ladder (ImageNet, Mapillary, Cityscapes): builds the parts from a preset and runs the loop.

This is the border where parameters become explicit arguments; no module below sees a parameters object.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mmseg_cli import runtime
from mmseg_cli.data import loader
from mmseg_cli.data.store import Store, open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import inference, metrics
from mmseg_cli.files import fingerprint, new_folder, require_writable, sha256, write_json, write_text
from mmseg_cli.models import weights
from mmseg_cli.models.unet import build_network
from mmseg_cli.params import ClassificationStage, Params, SegmentationStage, Stage
from mmseg_cli.paths import Paths, run_name
from mmseg_cli.training import checkpoint, losses, schedule
from mmseg_cli.training.loop import Step, fit
from mmseg_cli.training.optim import build_optimizer
from mmseg_cli.training.transfer import Transfer, transfer

LADDER = ("pretrain_imagenet", "pretrain_mapillary", "train")
TASKS: dict[str, Literal["segmentation", "classification"]] = {
    "pretrain_imagenet": "classification",
    "pretrain_mapillary": "segmentation",
    "train": "segmentation",
}
HISTORY = "history.jsonl"
CODE = (  # decides the weights of a run: what dvc.yaml lists for these stages
    "data/balance.py",
    "data/labels.py",
    "data/loader.py",
    "data/records",
    "data/sampling.py",
    "data/store.py",
    "data/transforms.py",
    "evaluation/inference.py",
    "evaluation/metrics.py",
    "models/blocks.py",
    "models/layers.py",
    "models/unet.py",
    "models/weights.py",
    "training",
)


class Screen(Protocol):
    """What training tells a person; the command line implements it."""

    def begin(self, *, total: int, done: int) -> None:
        """The number of steps in all, and those done before."""

    def step(self, step: Step) -> None:
        """One optimizer step."""

    def note(self, text: str) -> None:
        """A line worth keeping."""

    def warn(self, text: str) -> None:
        """A line to worry about."""


class Log(Protocol):
    """A sink of metrics."""

    def __call__(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Receive the metrics of a step."""


@dataclass(frozen=True)
class Trained:
    """The end of one run of a rung.

    Attributes:
        folder: weights, history and record.
        figures: the validation figures, in [0, 1]; empty for a rung that was left out.
        note: one line on how it came about.
    """

    folder: Path
    figures: dict[str, float]
    note: str


def _leave_out(stage: str, run: Path, previous: Path | None, *, variant: str, seed: int) -> Trained:
    """A rung with `steps: 0`: the weights before it, if any, pass through."""
    before = (
        weights.read_record(previous)
        if previous is not None
        else {"weights": False, "ladder": [], "recipe": None, "network": {}}
    )
    record = {
        **before,
        "stage": stage,
        "variant": variant,
        "seed": seed,
        "left_out": True,
        "fingerprint": fingerprint([stage, "left out", before.get("fingerprint")]),
    }
    with new_folder(run) as folder:
        if previous is not None and before["weights"]:
            shutil.copyfile(previous / weights.WEIGHTS, folder / weights.WEIGHTS)
        write_json(folder / weights.RECORD, record)
    return Trained(run, {}, "left out by the preset (steps: 0): what came before passes through")


def _crops(
    section: Stage, store: Store, *, seed: int, rank: int = 0, world: int = 1
) -> loader.SegmentationCrops | loader.ClassificationCrops:
    """The training batches of a rung as a function of the step; `rank` of `world` processes gets its part of each."""
    common: dict[str, Any] = {
        "split": store.split("train"),
        "seed": seed,
        "batch": section.batch,
        "crop": (section.crop[0], section.crop[1]),
        "rank": rank,
        "world": world,
    }
    match section:
        case ClassificationStage(augment=augment):
            strong = augment.rand_augment
            return loader.ClassificationCrops(
                area=(augment.scale[0], augment.scale[1]),
                flip=augment.flip,
                colour=augment.colour,
                rand_augment=None if strong is None else (strong.ops, strong.magnitude),
                mixup=augment.mixup,
                cutmix=augment.cutmix,
                classes=len(store.space.classes),
                **common,
            )
        case SegmentationStage(augment=zoomed):
            return loader.SegmentationCrops(
                zoom=(zoomed.scale[0], zoomed.scale[1]),
                flip=zoomed.flip,
                colour=zoomed.colour,
                blur=zoomed.blur,
                class_uniform=zoomed.class_uniform,
                **common,
            )
    raise TypeError(f"no crops for {type(section).__name__}")


def _loss(section: Stage, store: Store, *, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a rung as a function of (logits, target)."""
    if not isinstance(section, SegmentationStage):
        return partial(losses.cross_entropy, label_smoothing=section.label_smoothing)
    weight_K = None
    if section.class_weights == "inverse-log":
        weight_K = losses.inverse_log_weights(store.manifest["splits"]["train"]["class_pixels"]).to(device)
    return partial(losses.pixel_cross_entropy, label_smoothing=section.label_smoothing, weight_K=weight_K)


def _validator(
    section: Stage, store: Store, *, task: str, device: torch.device, workers: int
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that gives a network's figures on the whole val split."""
    split = store.split("val")
    if task == "classification":
        pictures = loader.CentreCrops(split, batch=section.batch, crop=(section.crop[0], section.crop[1]))
        return lambda network: inference.top_k_accuracy(
            network, loader.items_loader(pictures, workers=workers), device=device
        )

    def mean_iou(network: nn.Module) -> dict[str, float]:
        images = loader.items_loader(loader.WholeImages(split), workers=workers)
        matrix = inference.confusions(network, images, classes=len(store.space.classes), device=device).sum(0)
        metrics.require_pixels(matrix, str(store.folder))
        return {"mean_iou": metrics.mean_iou(matrix), "pixel_accuracy": metrics.pixel_accuracy(matrix)}

    return mean_iou


def _read_history(path: Path, *, up_to: int) -> list[dict[str, Any]]:
    """The rows of an interrupted run that its checkpoint has seen."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a killed process may be half written
        if row["step"] <= up_to:
            rows.append(row)
    return rows


@dataclass(frozen=True)
class _Start:
    """A network with its first weights, and where they came from.

    Attributes:
        ladder: the rungs that were trained before.
        recipe: the fingerprint of their parameters and data, the network and the seed aside.
        source: SHA-256 of the file that the body came from, None from scratch.
    """

    network: nn.Module
    ladder: list[str]
    recipe: str | None
    source: str | None
    transfer: Transfer | None


def _first_weights(network: nn.Module, previous: Path | None, *, screen: Screen) -> _Start:
    """Take over the body of the rung before, where there is one."""
    if previous is None:
        return _Start(network, [], None, None, None)
    before = weights.read_record(previous)
    if not before["weights"]:
        return _Start(network, before["ladder"], before["recipe"], None, None)
    file = previous / weights.WEIGHTS
    arrived = transfer(network, weights.recorded_weights(previous, before), file)
    screen.note(f"weights from {previous.parent.name}: {arrived.line()}")
    return _Start(network, before["ladder"], before["recipe"], before["weights_sha256"], arrived)


def _identity(
    section: Stage, store: Store, *, stage: str, network: dict[str, Any], seed: int, source: str | None
) -> str:
    """The fingerprint of everything that defines a run: a changed value never resumes another run's state."""
    return fingerprint(
        {
            "stage": stage,
            "parameters": section.model_dump(),
            "network": network,
            "seed": seed,
            "data": sha256(store.folder / "manifest.json"),
            "initial_weights": source,
            "code": runtime.code_hash(CODE),
        }
    )


class _History:
    """The rows of history.jsonl: kept in the work folder line by line, so that a killed run loses none it has saved."""

    def __init__(self, path: Path, *, up_to: int) -> None:
        self.rows = _read_history(path, up_to=up_to)
        write_text(path, self.text())
        self._file = path.open("a", encoding="utf-8")

    def text(self) -> str:
        """All rows as JSON lines."""
        return "".join(json.dumps(row) + "\n" for row in self.rows)

    def add(self, row: Mapping[str, float], *, step: int) -> None:
        """Keep one row."""
        self.rows.append({"step": step, **row})
        self._file.write(json.dumps(self.rows[-1]) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; the rows stay."""
        self._file.close()


def _train_steps(
    section: Stage,
    store: Store,
    network: nn.Module,
    *,
    task: str,
    seed: int,
    work: Path,
    run: Path,
    device: torch.device,
    workers: int,
    channels_last: bool,
    screen: Screen,
    log: Log,
) -> tuple[_History, int]:
    """Train in place from the newest checkpoint in `work`, or from the start, to the last step.

    Returns:
        The history of all steps, whose last row holds the final figures, and the step that training went on from.
    """
    network.to(device)
    optimizer = build_optimizer(
        network, name=section.optimizer, learning_rate=section.learning_rate, weight_decay=section.weight_decay
    )
    validate = _validator(section, store, task=task, device=device, workers=workers)
    crops = _crops(section, store, seed=seed)
    with runtime.StopRequest().listening() as stop:
        start = checkpoint.resume(work, network=network, optimizer=optimizer, warn=screen.warn)
        history = _History(work / HISTORY, up_to=start)
        if start:
            screen.note(f"going on after step {start} of {section.steps}")
        screen.begin(total=section.steps, done=start)

        def on_step(step: Step) -> None:
            screen.step(step)
            row = {"loss": step.loss, "learning_rate": step.learning_rate}
            history.add(row, step=step.number)
            speed = {"images_per_second": step.images / step.seconds, "data_wait": step.waited / step.seconds}
            log(row | speed, step=step.number)
            last = step.number == section.steps
            if step.number % section.validate_every == 0 or last:
                figures = validate(network)
                history.add(figures, step=step.number)
                log(figures, step=step.number)
                text = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
                screen.note(f"step {step.number}: {text}")
            if step.number % section.checkpoint_every == 0 or last or stop.signal_number is not None:
                checkpoint.save(work, step=step.number, network=network, optimizer=optimizer)
                stop.raise_if_set(run, f"saved after step {step.number} of {section.steps}")

        fit(
            network,
            loader.steps_loader(crops, start=start, stop=section.steps, workers=workers),
            optimizer=optimizer,
            loss=_loss(section, store, device=device),
            learning_rate=partial(
                schedule.learning_rate,
                base=section.learning_rate,
                steps=section.steps,
                schedule=section.schedule,
                power=section.power,
                warmup_steps=section.warmup_steps,
            ),
            start=start,
            device=device,
            channels_last=channels_last,
            clip_norm=section.clip_norm,
            on_step=on_step,
        )
        history.close()
    return history, start


def run_stage(
    stage: str, *, params: Params, paths: Paths, variant: str, seed: int, screen: Screen, log: Log
) -> Trained:
    """Train one rung for one variant and seed, or go on with it, and leave weights, history and record.

    Args:
        stage: one of LADDER.
        log: receives metrics and the step they belong to.

    Raises:
        MmsegError: the rung before, the store or the parameters do not fit.
        Interrupted: a signal came; a checkpoint was saved.
        NumericalStop: the loss is not finite.
    """
    section: Stage = getattr(params, stage)
    name = run_name(variant, seed)
    run = paths.run(stage, name)
    rung = LADDER.index(stage)
    previous = paths.run(LADDER[rung - 1], name) if rung else None
    require_writable(run.parent)
    if section.steps == 0:
        return _leave_out(stage, run, previous, variant=variant, seed=seed)

    task = TASKS[stage]
    store = open_store(paths.store(section.dataset), parameters=params.datasets[section.dataset].content())
    if store.task != task:
        raise MmsegError(f"{stage}.dataset", f"{section.dataset} is for {store.task}", f"choose one for {task}")
    runtime.limit_threads(params.runtime.threads)
    runtime.seed_everything(seed)
    body = params.network_of(variant)
    network = build_network(task=task, num_classes=len(store.space.classes), **body)
    first = _first_weights(network, previous, screen=screen)
    identity = _identity(section, store, stage=stage, network=body, seed=seed, source=first.source)
    if (run / weights.RECORD).is_file() and (run / weights.WEIGHTS).is_file():
        done = weights.read_record(run)
        if done.get("fingerprint") == identity and done.get("weights_sha256") == sha256(run / weights.WEIGHTS):
            return Trained(run, done["figures"], "already trained with these parameters, nothing to do")

    work = paths.work(f"{paths.preset}-{stage}", name, identity[:12])
    with runtime.only_one(work):
        history, start = _train_steps(
            section,
            store,
            network,
            task=task,
            seed=seed,
            work=work,
            run=run,
            device=runtime.pick_device(params.runtime.device),
            workers=params.runtime.workers,
            channels_last=params.runtime.channels_last,
            screen=screen,
            log=log,
        )
        figures = {key: value for key, value in history.rows[-1].items() if key != "step"}
        with new_folder(run) as folder:
            weights.save_weights(network, folder / weights.WEIGHTS)
            write_text(folder / HISTORY, history.text())
            data = sha256(store.folder / "manifest.json")
            record = {
                "stage": stage,
                "variant": variant,
                "seed": seed,
                "left_out": False,
                "weights": True,
                "ladder": [*first.ladder, stage],
                "recipe": fingerprint([first.recipe, stage, section.model_dump(), data]),
                "task": task,
                "network": body,
                "label_space": store.manifest["label_space"],
                "figures": figures,
                "transfer": None if first.transfer is None else first.transfer.as_json(),
                "initial_weights_sha256": first.source,
                "data_manifest_sha256": data,
                "weights_sha256": sha256(folder / weights.WEIGHTS),
                "fingerprint": identity,
            }
            write_json(folder / weights.RECORD, record)
        shutil.rmtree(work, ignore_errors=True)
    return Trained(run, figures, f"{section.steps - start} steps" + (f" after {start} before" if start else ""))
