"""`mmseg pretrain` and `mmseg train`: one process, several of this machine, or one of several that torchrun started."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmseg_cli.cli.common import Preset, SeedOption, VariantOption, grid_point, load, percent, track, with_preset
from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths
    from mmseg_cli.training.stages import Trained

DevicesOption = Annotated[
    str | None,
    typer.Option(help="Processes that train together, `auto` for one on each GPU; runtime.devices if left out."),
]
COMMANDS = {
    "pretrain_imagenet": ("pretrain", "imagenet"),
    "pretrain_mapillary": ("pretrain", "mapillary"),
    "train": ("train",),
}


def _train(
    stage: str, *, preset: str, variant: str | None, seed: int | None, devices: str | None, next_command: str
) -> None:
    """One rung of the ladder; the three commands differ only in its name."""
    paths, params = load(preset)
    name, seed = grid_point(params, variant, seed)
    from mmseg_cli import runtime
    from mmseg_cli.paths import run_name

    place = runtime.place()
    lock = paths.lock(stage, run_name(name, seed))
    section = params.section_of(name, stage)
    wanted = _devices(devices, params) if section.steps else 1  # left out: there is nothing to share
    if place is None:
        with runtime.only_one(lock):  # who comes second ends here, before anything is loaded
            done = _finished(stage, paths=paths, params=params, variant=name, seed=seed)
        if done is not None:
            _tell(done, stage=stage, paths=paths, variant=name, seed=seed, next_command=next_command)
            return
    if place is None and wanted != 1:
        from mmseg_cli.data import sampling
        from mmseg_cli.training import launch

        device = params.runtime.device
        processes = launch.count(wanted, device=device, gpus=launch.gpus(device))
        sampling.at_once(  # or refused, before they start
            batch=section.batch,
            norm_batch=section.norm_batch,
            norm=params.network_of(name)["norm"],
            chosen=params.runtime.micro_batch,
            world=processes,
        )
        if processes > 1:
            again = [*COMMANDS[stage], "--preset", preset, "--variant", name, "--seed", str(seed)]
            code, line = launch.launch(again, processes=processes)
            sys.stderr.write(line)
            if code:
                raise typer.Exit(code)
            return
    if place is not None and place.rank > 0:
        _train_beside(stage, paths=paths, params=params, variant=name, seed=seed)
        return
    with runtime.only_one(lock):
        _train_and_tell(stage, paths=paths, params=params, variant=name, seed=seed, next_command=next_command)


def _finished(stage: str, *, paths: Paths, params: Params, variant: str, seed: int) -> Trained | None:
    from mmseg_cli.paths import run_name

    if not paths.run(stage, run_name(variant, seed)).is_dir():
        return None
    from mmseg_cli.training import stages

    return stages.finished(stage, params=params, paths=paths, variant=variant, seed=seed)


def _devices(option: str | None, params: Params) -> int | str:
    if option is None:
        return params.runtime.devices
    if option != "auto" and not (option.isdigit() and int(option) > 0):
        raise MmsegError("--devices", f"{option!r} is not a number of processes", "give 1, 2, ... or auto")
    return option if option == "auto" else int(option)


def _train_beside(stage: str, *, paths: Paths, params: Params, variant: str, seed: int) -> None:
    """Train in a process that is not the first of several: it writes nothing and says nothing."""
    from mmseg_cli.cli.screen import Silence
    from mmseg_cli.training.stages import run_stage

    run_stage(
        stage,
        params=params,
        paths=paths,
        variant=variant,
        seed=seed,
        screen=Silence(),
        log=lambda metrics, step: None,
    )


def _train_and_tell(stage: str, *, paths: Paths, params: Params, variant: str, seed: int, next_command: str) -> None:
    """Train in the only process, or the first of several."""
    from mmseg_cli.cli import screen
    from mmseg_cli.paths import run_name

    run = f"{stage}/{run_name(variant, seed)}"
    section = params.section_of(variant, stage).model_dump()
    settings = {"network": params.network_of(variant), stage: section, "seed": seed}
    with track(paths, params, run=run, section={"variant": variant, **settings}) as tracker:
        from mmseg_cli.training.stages import run_stage

        with screen.Screen(run, unit="steps") as show:
            trained = run_stage(
                stage, params=params, paths=paths, variant=variant, seed=seed, screen=show, log=tracker.log
            )
        tracker.close(summary=trained.figures)
    _tell(trained, stage=stage, paths=paths, variant=variant, seed=seed, next_command=next_command)


def _tell(trained: Trained, *, stage: str, paths: Paths, variant: str, seed: int, next_command: str) -> None:
    from mmseg_cli.cli import screen
    from mmseg_cli.paths import run_name

    figures = [(key.replace("_", " "), percent(value)) for key, value in trained.figures.items()]
    screen.panel(
        f"{stage}/{run_name(variant, seed)}",
        [*figures, ("run", str(trained.folder)), ("how", trained.note)],
        next_command=with_preset(paths.preset, f"{next_command} --variant {variant} --seed {seed}"),
    )


def pretrain(
    rung: Annotated[Literal["imagenet", "mapillary"], typer.Argument(help="The rung of the pretraining ladder.")],
    preset: Preset = "demo",
    variant: VariantOption = None,
    seed: SeedOption = None,
    devices: DevicesOption = None,
) -> None:
    """Pretrain encoder and decoder: ImageNet classification first, then Mapillary segmentation.

    The same command goes on with an interrupted run.
    """
    after = {"imagenet": "mmseg pretrain mapillary", "mapillary": "mmseg train"}[rung]
    _train(f"pretrain_{rung}", preset=preset, variant=variant, seed=seed, devices=devices, next_command=after)


def train(
    preset: Preset = "demo", variant: VariantOption = None, seed: SeedOption = None, devices: DevicesOption = None
) -> None:
    """Train segmentation, from the pretrained weights where the preset has them.

    The same command goes on with an interrupted run. On several machines: `torchrun --nnodes ... -m mmseg_cli train`.
    """
    _train("train", preset=preset, variant=variant, seed=seed, devices=devices, next_command="mmseg evaluate")
