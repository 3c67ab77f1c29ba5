"""The three rungs of the ladder (ImageNet, Mapillary, Cityscapes): what each starts from, is defined by, and leaves."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mmseg_cli import runtime
from mmseg_cli.data.store import Store, open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import fingerprint, new_folder, read_json, require_writable, sha256, write_json, write_text
from mmseg_cli.models import weights
from mmseg_cli.models.own import own_code
from mmseg_cli.models.unet import build_network
from mmseg_cli.names import LADDER
from mmseg_cli.params import Params, Stage
from mmseg_cli.paths import Paths, run_name
from mmseg_cli.processes import joined
from mmseg_cli.provenance import PROVENANCE, SESSIONS
from mmseg_cli.training import checkpoint
from mmseg_cli.training.history import HISTORY
from mmseg_cli.training.run import DEFINITION, Ended, Log, Run, Screen, train
from mmseg_cli.training.transfer import Transfer, transfer

TASKS: dict[str, Literal["segmentation", "classification"]] = {
    "pretrain_imagenet": "classification",
    "pretrain_mapillary": "segmentation",
    "train": "segmentation",
}
NOT_DEFINING = ("validate_every", "checkpoint_every")  # how often one looks and saves changes no weight
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
    "models/auxiliary.py",
    "models/blocks.py",
    "models/fused.py",
    "models/graphs.py",
    "models/kernels.py",
    "models/layers.py",
    "models/lean.py",
    "models/norms.py",
    "models/own.py",
    "models/resizing.py",
    "models/unet.py",
    "models/weights.py",
    "processes.py",
    "training",
)


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
    before = _record_before(previous)
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
            for name in (weights.WEIGHTS, weights.AUXILIARY, PROVENANCE):
                if (previous / name).is_file():
                    shutil.copyfile(previous / name, folder / name)
        write_json(folder / weights.RECORD, record)
    return Trained(run, {}, "left out (steps: 0): what came before passes through")


def _record_before(previous: Path | None) -> dict[str, Any]:
    """The record of the rung before; of one without weights where there is none."""
    if previous is None:
        return {"weights": False, "ladder": [], "recipe": None, "network": {}}
    return weights.read_record(previous)


def _first_weights(
    network: nn.Module, previous: Path | None, before: dict[str, Any], *, screen: Screen
) -> Transfer | None:
    """Take over the body of the rung before, whose record is `before`, where it has one."""
    if previous is None or not before["weights"]:
        return None
    arrived = transfer(network, weights.recorded_weights(previous, before), previous / weights.WEIGHTS)
    screen.note(f"weights from {previous.parent.name}: {arrived.line()}")
    return arrived


def _parameters(section: Stage) -> dict[str, Any]:
    """The parameters of a rung that decide its weights."""
    return section.model_dump(exclude=set(NOT_DEFINING))


def _definition(
    section: Stage, store: Store, before: dict[str, Any], *, stage: str, network: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Everything that defines a run, by the names its user knows: a changed value never resumes another run's state."""
    return {
        **_flat(_parameters(section), f"{stage}."),
        **_flat(network, "network."),
        "seed": seed,
        f"dataset {section.dataset}": sha256(store.folder / "manifest.json"),
        "weights before": before["weights_sha256"] if before["weights"] else None,
        "code of mmseg": runtime.code_hash(CODE),
        **_own_code(network["block"]),
    }


def _own_code(block: str) -> dict[str, str]:
    """The code of a block of the user's own, by what it is called; empty for one of ours."""
    return {f"code of {name}": digest for name, digest in own_code(block).items()} if ":" in block else {}


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def finished(stage: str, *, params: Params, paths: Paths, variant: str, seed: int) -> Trained | None:
    """The run, if it stands there with the parameters, data, weights before it and code of now."""
    section = params.section_of(variant, stage)
    run, previous = _places(stage, paths=paths, name=run_name(variant, seed))
    if section.steps == 0:
        return None
    store = open_store(paths.store(section.dataset), parameters=params.datasets[section.dataset].content())
    body, before = params.network_of(variant), _record_before(previous)
    return _done(run, fingerprint(_definition(section, store, before, stage=stage, network=body, seed=seed)))


def _places(stage: str, *, paths: Paths, name: str) -> tuple[Path, Path | None]:
    """The folders of a run and of the rung before it."""
    rung = LADDER.index(stage)
    return paths.run(stage, name), paths.run(LADDER[rung - 1], name) if rung else None


def run_stage(
    stage: str, *, params: Params, paths: Paths, variant: str, seed: int, screen: Screen, log: Log
) -> Trained:
    """Train one rung for one variant and seed, or go on with it, and leave weights, history and record.

    Called in every process of a run; the first one writes, and talks to `screen` and `log`. The caller holds the run's
    lock.

    Args:
        stage: one of LADDER.
        log: receives metrics and the step they belong to.

    Raises:
        MmsegError: the rung before, the store or the parameters do not fit.
        Interrupted: a signal came; a checkpoint was saved.
        NumericalStop: the loss is not finite.
    """
    section = params.section_of(variant, stage)
    name = run_name(variant, seed)
    run, previous = _places(stage, paths=paths, name=name)
    require_writable(run.parent)
    place = runtime.place()
    if section.steps == 0 and (place is None or place.rank == 0):
        return _leave_out(stage, run, previous, variant=variant, seed=seed)
    if section.steps == 0:
        return Trained(run, {}, "left out")

    task = TASKS[stage]
    store = open_store(paths.store(section.dataset), parameters=params.datasets[section.dataset].content())
    if store.task != task:
        raise MmsegError(f"{stage}.dataset", f"{section.dataset} is for {store.task}", f"choose one for {task}")
    runtime.prepare_training(threads=params.runtime.threads, deterministic=params.runtime.deterministic)
    body, before = params.network_of(variant), _record_before(previous)
    definition = _definition(section, store, before, stage=stage, network=body, seed=seed)
    with joined(params.runtime.device) as processes:
        for rank, other in enumerate(processes.gather(definition)):
            if differ := checkpoint.differing(definition, other):
                what = f"is of a run with other {', '.join(differ)}"
                raise MmsegError(f"process {rank}", what, "start all with the same command, parameters and code")
        identity = fingerprint(definition)
        done = processes.from_first(_done(run, identity))
        if done is not None:
            return done
        runtime.seed_everything(seed)
        network = build_network(task=task, num_classes=len(store.space.classes), **body)
        arrived = _first_weights(network, previous, before, screen=screen)
        work = paths.work(stage, name, identity[:12])
        if processes.first:
            _adopt(work, steps=section.steps, key=identity[:12], screen=screen)
        of = Run(
            section=section,
            store=store,
            seed=seed,
            machine=params.runtime,
            processes=processes,
            definition=definition,
            work=work,
            run=run,
            root=paths.root,
            norm=body["norm"],
            screen=screen,
            log=log,
        )
        ended = train(of, network)
        data = sha256(store.folder / "manifest.json")
        if processes.first:
            rung = {
                "stage": stage,
                "dataset": section.dataset,
                "parameters": _parameters(section),
                "figures": ended.figures,
                "data": ended.data,
                "data_manifest_sha256": data,
                "fingerprint": identity,
            }
            record = {
                "stage": stage,
                "variant": variant,
                "seed": seed,
                "left_out": False,
                "weights": True,
                "ladder": [*before["ladder"], stage],
                "recipe": fingerprint([before["recipe"], stage, _parameters(section), data]),
                "task": task,
                "network": body,
                "label_space": store.manifest["label_space"],
                "rungs": [*_rungs_before(before), rung],
                "figures": ended.figures,
                "transfer": None if arrived is None else arrived.as_json(),
                "initial_weights_sha256": definition["weights before"],
                "data_manifest_sha256": data,
                "fingerprint": identity,
            }
            provenance = {"stage": stage, "sessions": ended.sessions, "before": _provenance_before(previous)}
            _write_run(run, network, ended=ended, record=record, provenance=provenance)
            # The last checkpoint stays: DVC has yet to save the run, and may fail at it.
            checkpoint.keep_last(of.work)
            (of.work / DEFINITION).unlink(missing_ok=True)
    steps, start = section.steps, ended.start
    return Trained(run, ended.figures, f"{steps - start} steps" + (f" after {start} before" if start else ""))


def _rungs_before(before: dict[str, Any]) -> list[dict[str, Any]]:
    """The rungs of the record before, the last of them with the digest of the weights that it left."""
    rungs = before.get("rungs", [])
    return [*rungs[:-1], *({**last, "weights_sha256": before["weights_sha256"]} for last in rungs[-1:])]


def _provenance_before(previous: Path | None) -> dict[str, Any] | None:
    """Where and when the rung before was trained; None where nothing was."""
    file = None if previous is None else previous / PROVENANCE
    return None if file is None or not file.is_file() else dict(read_json(file, todo="run the stage that makes it"))


def _adopt(work: Path, *, steps: int, key: str, screen: Screen) -> None:
    """Take over the last checkpoint of a training that is the same in all but the variant's name.

    Rows that differ after pretraining share it, and a renamed one is not trained again. What was left unfinished may be
    at work, and is not looked at.
    """
    if checkpoint.last_step(work) is not None:
        return
    for other in sorted(work.parent.glob(f"*-{key}")):
        if checkpoint.last_step(other) == steps and (other / HISTORY).is_file() and (other / SESSIONS).is_file():
            screen.note(f"the same training as {other.name.removesuffix(f'-{key}')}: taken over")
            with new_folder(work) as folder:
                for name in (HISTORY, SESSIONS):
                    shutil.copyfile(other / name, folder / name)
                last = checkpoint.folder_name(steps)
                shutil.copytree(other / last, folder / last)
            return


def _done(run: Path, identity: str) -> Trained | None:
    """The run, if it stands there finished."""
    if not ((run / weights.RECORD).is_file() and (run / weights.WEIGHTS).is_file()):
        return None
    done = weights.read_record(run)
    if done.get("fingerprint") != identity or done.get("weights_sha256") != sha256(run / weights.WEIGHTS):
        return None
    return Trained(run, done["figures"], "already trained with these parameters, nothing to do")


def _write_run(
    run: Path, network: nn.Module, *, ended: Ended, record: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Put weights, history and record in the place of what was there."""
    runtime.failpoint("finish:before")
    for left in run.parent.glob(f".{run.name}.*"):  # by a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    with new_folder(run) as folder:
        weights.save_weights(network, folder / weights.WEIGHTS)
        if ended.auxiliary is not None:
            weights.save_tensors(ended.auxiliary, folder / weights.AUXILIARY)
        write_text(folder / HISTORY, ended.history)
        write_json(folder / PROVENANCE, provenance)
        runtime.failpoint("finish:before_record")
        write_json(folder / weights.RECORD, {**record, "weights_sha256": sha256(folder / weights.WEIGHTS)})
    runtime.failpoint("finish:after")
