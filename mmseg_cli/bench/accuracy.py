"""`mmseg bench accuracy`: what a deadline buys. Ours and other libraries' networks, from scratch, in equal time.

All train by the same loop on the same prepared data, with the same crops of the same seeds in the same order, the same
loss, optimizer and schedule; the labels are judged at their native size. The learning rate of each network is chosen
by equally many trials on a part of the training images that is held out; final runs train on all of them and are judged
on val, which no choice of this benchmark has seen. What the recipe has besides was chosen for ours before.

Time is a number of steps: what a step takes is measured first, with its data, all networks in turns, and the budget is
divided by the median, in the memory layout that is faster for the network. So a machine that is busy for a while takes
no steps from whoever trains just then, and a run can be repeated.

Shapes: N = images, K = classes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmseg_cli import runtime
from mmseg_cli.bench import peers
from mmseg_cli.bench.held_out import Images, held_out, whole
from mmseg_cli.bench.machine import environment_of
from mmseg_cli.bench.train import CHANNELS_LAST, LAYOUTS
from mmseg_cli.data import loader
from mmseg_cli.data.store import Store
from mmseg_cli.errors import Held, MmsegError
from mmseg_cli.evaluation import inference, metrics
from mmseg_cli.files import fingerprint, read_json, write_json
from mmseg_cli.params import Params, SegmentationStage
from mmseg_cli.processes import Processes
from mmseg_cli.training import parts
from mmseg_cli.training.loop import NotFinite, Step, fit
from mmseg_cli.training.stages import CODE

Row = dict[str, Any]

FINDING = ("hold_out", "held_out_images", "trial_seconds", "rates", "threads", "device")
BENCH = ("bench/accuracy.py", "bench/held_out.py", "bench/peers.py")  # decides results as well
WARMUP, ROUNDS, STEPS_A_ROUND = 1, 7, 2  # of the measurement of a step


def recipe_of(params: Params, variants: Sequence[str]) -> SegmentationStage:
    """The training stage of a preset, as far as any network can be trained by it.

    Raises:
        MmsegError: the variants have other ones, or it has what only our networks and training have.
    """
    section = params.section_of(variants[0], "train")
    assert isinstance(section, SegmentationStage)
    if any(params.section_of(variant, "train") != section for variant in variants):
        what = "the variants are trained by different recipes"
        raise MmsegError("--variants", what, "name some that differ in their networks alone")
    ours = {
        "train.deep_supervision": section.deep_supervision,
        "train.stochastic_depth": section.stochastic_depth,
        "train.lookahead": section.lookahead,
        "train.ema": section.ema,
        "train.precise_bn": section.precise_bn,
        "train.norm_batch": section.norm_batch != section.batch,
        "runtime.workers": params.runtime.workers,  # they would have the data of the steps that are timed ready
    }
    for key, value in ours.items():
        if value:
            what = f"of preset {params.preset} is not for every network here"
            raise MmsegError(key, what, "give --preset one without it")
    return section


@dataclass(frozen=True)
class Recipe:
    """How every network is trained: the preset's training stage, on this machine."""

    section: SegmentationStage
    params: Params
    device: torch.device

    def train(
        self,
        network: nn.Module,
        images: Images,
        *,
        learning_rate: float,
        steps: int,
        seed: int,
        channels_last: bool,
        on_step: Callable[[Step], None],
        pauses: Callable[[int], bool] = lambda _step: False,
        on_pause: Callable[[int], None] = lambda _step: None,
    ) -> None:
        """Train `network`, in place, from the first step to the last."""
        changes = {"learning_rate": learning_rate, "steps": steps}
        section = self.section.model_copy(update=changes)
        here = Processes(device=self.device)
        machine = self.params.runtime.model_copy(update={"channels_last": channels_last})
        state = parts.state(section, network, runtime=machine, processes=here)
        crops = parts.crops(section, images.train, classes=images.classes, seed=seed, processes=here)
        fit(
            state,
            loader.steps_loader(crops, start=0, stop=steps, workers=machine.workers, pinned=self.device.type == "cuda"),
            model=parts.callable_model(
                section, state.network, runtime=machine, processes=here, micro_batch=section.batch
            ),
            processes=here,
            objective=parts.objective(section, class_pixels=images.class_pixels, device=self.device),
            learning_rate=parts.learning_rate(section),
            start=0,
            micro_batch=section.batch,
            precision=section.precision,
            channels_last=machine.channels_last,
            clip_norm=section.clip_norm,
            seed=seed,
            log_data=lambda _step: False,
            on_step=on_step,
            pauses=pauses,
            on_pause=on_pause,
        )


def judge(network: nn.Module, images: Images, *, device: torch.device) -> float:
    """Mean IoU in percent, over the pixels of all judged images, at the labels' native size."""
    batches = loader.items_loader(loader.WholeImages(images.judged), workers=0)
    with runtime.algorithms_untried():
        matrix_KK = inference.confusions(network, batches, classes=images.classes, device=device).sum(0)
    return 100 * metrics.mean_iou(matrix_KK)


Builders = Mapping[str, Callable[[], nn.Module]]


def step_seconds(builders: Builders, recipe: Recipe, images: Images) -> dict[str, dict[str, list[float]]]:
    """Seconds of whole training steps, data included, of all networks in turns, in each of LAYOUTS.

    Each step is waited for, so that its time is all of it on a GPU too.
    """
    seconds: dict[str, dict[str, list[float]]] = {name: {layout: [] for layout in LAYOUTS} for name in builders}
    for round_ in range(-WARMUP, ROUNDS):
        for name, build in builders.items():
            for layout in LAYOUTS:
                taken: list[Step] = []
                runtime.seed_everything(0)
                recipe.train(
                    build(),
                    images,
                    learning_rate=1e-4,
                    steps=1 + STEPS_A_ROUND,
                    seed=0,
                    channels_last=layout == CHANNELS_LAST,
                    on_step=taken.append,
                    pauses=lambda _step: True,
                )
                if round_ >= 0:
                    seconds[name][layout] += [step.seconds for step in taken[1:]]
    return seconds


def one_run(
    build: Callable[[], nn.Module],
    recipe: Recipe,
    images: Images,
    *,
    learning_rate: float,
    steps: int,
    points: int,
    seed: int,
    channels_last: bool,
) -> list[Row]:
    """Train a network and judge it at `points` equal parts of the way: rows of `step` and `miou` in percent.

    A training that breaks down has 0 at all that follow.
    """
    judged_at = sorted({max(1, round(steps * (point + 1) / points)) for point in range(points)})
    rows: list[Row] = []
    runtime.seed_everything(seed)
    network = build()

    def on_pause(step: int) -> None:
        rows.append({"step": step, "miou": judge(network, images, device=recipe.device)})

    try:
        recipe.train(
            network,
            images,
            learning_rate=learning_rate,
            steps=steps,
            seed=seed,
            channels_last=channels_last,
            on_step=lambda _step: None,
            pauses=lambda step: step in judged_at,
            on_pause=on_pause,
        )
    except NotFinite as broken:
        rows += [{"step": step, "miou": 0.0, "broken": str(broken)} for step in judged_at[len(rows) :]]
    return rows


@dataclass(frozen=True)
class Kept:
    """Results on disk, so that an interrupted command goes on: one small file for each.

    Attributes:
        folder: of this benchmark; processes and machines may share it, and each result is made by one of them.
        settings: everything that a result depends on, besides what names it.
        by: what makes results here, which is written into them: the environment, the threads, the device.
    """

    folder: Path
    settings: Row
    by: Row

    def _path(self, what: Row) -> Path:
        return self.folder / f"{fingerprint(self.settings | what)[:20]}.json"

    def _lock(self, what: Row) -> Path:
        return self._path(what).with_suffix(".lock")

    def get(self, what: Row, make: Callable[[], Any]) -> Row | None:
        """`result` of `what`, made now if there is none, and `by` whom it was made; None while another makes it."""
        path, lock = self._path(what), self._lock(what)
        if not path.is_file():
            try:
                with runtime.only_one(lock):
                    if not path.is_file():  # made since we looked
                        write_json(path, what | {"by": self.by, "result": make()})
            except Held:
                return None
            lock.unlink(missing_ok=True)
        found: Row = read_json(path, todo="remove it")
        return found


@dataclass(frozen=True)
class Budgets:
    """What of each network a final run needs to know, and where that was found out.

    Attributes:
        layouts: of memory, one of LAYOUTS.
        step_seconds: of steps in that layout.
        trials: rows of `learning_rate`, `steps` and `miou` in percent, on the held-out images.
        environment: in which steps were timed and rates were tried.
        settings: of a report, about that: FINDING.
    """

    layouts: dict[str, str]
    step_seconds: dict[str, list[float]]
    trials: dict[str, list[Row]]
    environment: Row
    settings: Row

    def steps(self, name: str, *, seconds: float) -> int:
        """The steps that a network takes in so many seconds."""
        return max(1, int(seconds / statistics.median(self.step_seconds[name])))

    def rate(self, name: str) -> float:
        """The learning rate of the best trial."""
        best: float = max(self.trials[name], key=lambda row: row["miou"])["learning_rate"]
        return best


def budgets_of(report: Path, names: Iterable[str], *, wanted: Row) -> Budgets:
    """What an earlier report found out.

    Args:
        report: an `accuracy-SECONDS.json`.
        names: the networks that are asked for.
        wanted: settings of the report that must be these.

    Raises:
        MmsegError: it is no such file, lacks a network, or was made with other settings.
    """
    todo = "name the accuracy-SECONDS.json of an earlier call with the same preset and options"
    found = read_json(report, todo=todo)
    try:
        settings, environment = found["settings"], found["environment"]
        about = {key: settings[key] for key in FINDING}
        budgets = Budgets(found["layouts"], found["step_seconds"], found["trials"], environment, about)
        differing = [key for key, value in wanted.items() if settings[key] != value]
        missing = [name for name in names if name not in budgets.trials]
    except (KeyError, TypeError):
        raise MmsegError(report, "is no report of `mmseg bench accuracy`", todo) from None
    if missing:
        raise MmsegError(report, f"has no {', '.join(missing)}", "leave them out, or name another report")
    if differing:
        raise MmsegError(report, f"was made with another {', '.join(differing)}", todo)
    return budgets


def run(
    folder: Path,
    *,
    params: Params,
    store: Store,
    variants: Sequence[str],
    names: Sequence[str],
    seconds: float,
    trial_seconds: float,
    rates: Sequence[float],
    seeds: int,
    points: int,
    hold_out: str | None,
    report: Path | None,
    device: torch.device,
    begin: Callable[[int], None],
    advance: Callable[[], None],
    note: Callable[[str], None],
) -> Row:
    """The whole benchmark; what is in `folder` of an interrupted call is gone on with.

    Several processes may work in one folder: each makes what no other has made or is making.

    Args:
        params: of the preset, whose `train` section is everybody's recipe.
        store: its prepared data.
        variants: ours.
        names: of `peers.PEERS`.
        seconds: of a final run.
        trial_seconds: of a trial of a learning rate.
        rates: learning rates that each network tries.
        seeds: final runs of each network.
        points: at how many equal parts of a final run it is judged.
        hold_out: see `held_out`.
        report: an earlier one, whose steps a second, layouts and learning rates are taken; None to find them out.
        begin: called with the number of times that `advance` will be.
        advance: called after each part.
        note: called with a line worth keeping.

    Returns:
        The content of the JSON report.

    Raises:
        MmsegError: all that is left is being made by other processes; or see `recipe_of`, `held_out`, `budgets_of`.
    """
    section = recipe_of(params, variants)
    runtime.prepare_training(threads=params.runtime.threads)
    recipe, final = Recipe(section, params, device), whole(store)
    networks = {variant: params.network_of(variant) for variant in variants}
    builders: dict[str, Callable[[], nn.Module]] = {}
    for variant in variants:
        builders[variant] = partial(peers.build_ours, network=networks[variant], classes=final.classes)
    for name in names:
        builders[name] = partial(peers.build_peer, name=name, classes=final.classes)
    for build in builders.values():
        with torch.device("meta"):
            build()  # what cannot be built is told before anything is trained
    trained_by = section.model_dump(exclude={"learning_rate", "steps", "validate_every", "checkpoint_every"})
    by: Row = {
        "environment": environment_of(device) | peers.versions(names),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    machine = params.runtime.model_dump(mode="json")
    common = {
        "recipe": trained_by,
        "data": fingerprint(store.manifest["splits"]),
        "code": runtime.code_hash((*CODE, *BENCH)),
    }
    about = {
        "preset": params.preset,
        "dataset": store.title,
        "training_images": len(final.train),
        "judged_images": len(final.judged),
        "recipe": json.loads(json.dumps(trained_by)),  # as a report has it
    }

    def trained(kept: Kept, what: str, name: str, images: Images, **how: Any) -> Row | None:
        """The row of a training, made here if nobody has made it; None while another process does."""
        of = {"what": what, "name": name, "network": networks.get(name)} | how
        found = kept.get(of, partial(one_run, builders[name], recipe, images, **how))
        if found is None:
            return None
        advance()
        return {"seed": how["seed"], "steps": how["steps"], "points": found["result"], "by": found["by"]}

    def found_out(tuning: Images) -> Budgets:
        """Time the steps and try the rates, on this machine."""
        kept = Kept(folder, common | by | {"hold_out": hold_out, "runtime": machine}, by)
        step = {"what": "step", "networks": networks, "names": list(names)}
        timed = kept.get(step, lambda: step_seconds(builders, recipe, final))
        if timed is None:
            raise _elsewhere(1, "all need its measurement of steps")
        measured = timed["result"]
        advance()
        layouts = {name: min(found, key=lambda one: statistics.median(found[one])) for name, found in measured.items()}
        times = {name: found[layouts[name]] for name, found in measured.items()}
        finding = {
            "hold_out": hold_out,
            "held_out_images": len(tuning.judged),
            "trial_seconds": trial_seconds,
            "rates": list(rates),
            "threads": by["threads"],
            "device": by["device"],
        }
        budgets = Budgets(layouts, times, {name: [] for name in builders}, by["environment"], finding)
        for rate in rates:
            for name in builders:
                steps, last = budgets.steps(name, seconds=trial_seconds), layouts[name] == CHANNELS_LAST
                how = {"learning_rate": rate, "steps": steps, "points": 1, "seed": 0, "channels_last": last}
                row = trained(kept, "trial", name, tuning, **how)
                if row is None:
                    raise _elsewhere(1, "learning rates are chosen by all trials")
                miou = row["points"][-1]["miou"]
                budgets.trials[name].append({"learning_rate": rate, "steps": steps, "miou": miou})
                note(f"{name}, learning rate {rate:g}: {miou:.2f} % on the held-out images after {steps} steps")
        return budgets

    if report is None:
        tuning = held_out(store, hold_out)
        begin(1 + len(builders) * (len(rates) + seeds))
        budgets = found_out(tuning)
        kept = Kept(folder, common | by | {"runtime": machine}, by)
    else:
        budgets = budgets_of(report, builders, wanted=about)
        begin(len(builders) * seeds)
        kept = Kept(folder, common, by)  # whoever makes it: it is a number of steps
    runs: dict[str, list[Row]] = {name: [] for name in builders}
    missing = 0
    for seed in range(seeds):
        for name in builders:
            how = {
                "learning_rate": budgets.rate(name),
                "steps": budgets.steps(name, seconds=seconds),
                "points": points,
                "seed": seed,
                "channels_last": budgets.layouts[name] == CHANNELS_LAST,
            }
            row = trained(kept, "run", name, final, **how)
            if row is None:
                missing += 1
                continue
            runs[name].append(row)
            note(f"{name}, seed {seed}: {row['points'][-1]['miou']:.2f} % on val after {row['steps']} steps")
    if missing:
        raise _elsewhere(missing, "the report needs all")
    return {
        "environment": budgets.environment,
        "settings": about | budgets.settings | {"seconds": seconds, "seeds": seeds, "points": points},
        "ours": list(variants),
        "layouts": {name: budgets.layouts[name] for name in builders},
        "step_seconds": {name: budgets.step_seconds[name] for name in builders},
        "trials": {name: budgets.trials[name] for name in builders},
        "runs": runs,
    }


def _elsewhere(number: int, why: str) -> MmsegError:
    runs = "1 run was" if number == 1 else f"{number} runs were"
    return MmsegError(
        "bench accuracy", f"{runs} left to other processes that train, and {why}", "run it again after them"
    )
