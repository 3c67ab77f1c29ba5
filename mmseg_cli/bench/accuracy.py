"""`mmseg bench accuracy`: what a deadline buys. Ours and other libraries' networks, from scratch, in equal time.

All train by the same loop on the same prepared data, with the same crops of the same seeds in the same order, the same
loss, optimizer and schedule; the labels are judged at their native size. The learning rate of each network is chosen
by equally many trials on a part of the training images that is held out; final runs train on all of them and are judged
on val, which no choice has seen.

Time is a number of steps: what a step takes is measured first, with its data, all networks in turns, and the budget is
divided by the median. So a machine that is busy for a while takes no steps from whoever trains just then, and a run can
be repeated.

Shapes: N = images, K = classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmseg_cli import runtime
from mmseg_cli.bench import peers
from mmseg_cli.bench.machine import environment_of
from mmseg_cli.data import loader
from mmseg_cli.data.store import Split, Store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import inference, metrics
from mmseg_cli.files import fingerprint, read_json, write_json
from mmseg_cli.params import Params, SegmentationStage
from mmseg_cli.processes import Processes
from mmseg_cli.training import parts
from mmseg_cli.training.loop import NotFinite, Step, fit

Row = dict[str, Any]

WARMUP, ROUNDS, STEPS_A_ROUND = 1, 7, 2  # of the measurement of a step
HELD_OUT = 0.2  # of the training images, the last by name, where no sequence is named


@dataclass(frozen=True)
class Part(Split):
    """Some items of a split, as a split.

    Attributes:
        kept: the items, by their positions in the whole.
    """

    kept: tuple[int, ...]

    @property
    def whole(self) -> Split:
        """The split that the items are of."""
        return _opened(self.folder, self.split)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"kept": self.kept}

    def __len__(self) -> int:
        return len(self.kept)

    def size(self, item: int) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.whole.size(self.kept[item])

    def label_size(self, item: int) -> tuple[int, int]:
        """(height, width) of the label."""
        return self.whole.label_size(self.kept[item])

    def class_pixels(self, item: int) -> dict[int, int]:
        """Pixels of each class that the item has."""
        return self.whole.class_pixels(self.kept[item])

    def image(self, item: int, region: Any = None) -> NDArray[np.uint8]:
        """image_HWC, RGB, whole or one region."""
        return self.whole.image(self.kept[item], region)

    def label(self, item: int, region: Any = None) -> NDArray[np.uint8]:
        """label_HW of train ids, whole or one region."""
        return self.whole.label(self.kept[item], region)

    def centroids(self, class_index: int) -> NDArray[np.int32]:
        """(M, 3) = (item, row, column) of the items that are kept, see `Split.centroids`."""
        own = {item: position for position, item in enumerate(self.kept)}
        rows = [(own[item], *place) for item, *place in self.whole.centroids(class_index).tolist() if item in own]
        return np.array(rows, dtype=np.int32).reshape(-1, 3)

    def classes_with_centroids(self) -> NDArray[np.intp]:
        """The classes that appear in the labels of the items that are kept."""
        return np.array([each for each in self.whole.classes_with_centroids() if len(self.centroids(int(each)))])


@lru_cache(maxsize=4)
def _opened(folder: Path, split: str) -> Split:
    return Split(folder, split)


@dataclass(frozen=True)
class Images:
    """What is trained and judged on.

    Attributes:
        train: the training images.
        judged: those that are judged.
        class_pixels: of the training images.
        classes: how many.
    """

    train: Split
    judged: Split
    class_pixels: Sequence[int]
    classes: int


def whole(store: Store) -> Images:
    """All training images, judged on val."""
    train = store.manifest["splits"]["train"]
    return Images(store.split("train"), store.split("val"), train["class_pixels"], len(store.space.classes))


def held_out(store: Store, prefix: str | None) -> Images:
    """The training images without those that are held out, and these.

    Args:
        prefix: of the names of those that are held out; None is the last fifth by name.

    Raises:
        MmsegError: nothing, or all, would be held out.
    """
    train = store.split("train")
    names = train.names()
    if prefix is None:
        order = sorted(range(len(names)), key=lambda item: names[item])
        out = set(order[round((1 - HELD_OUT) * len(order)) :])
    else:
        out = {item for item, name in enumerate(names) if name.startswith(prefix)}
    if not 0 < len(out) < len(names):
        what = f"holds out {len(out)} of {len(names)} training images"
        raise MmsegError("--hold-out", what, "name the beginning of a sequence's file names")
    kept = [item for item in range(len(names)) if item not in out]
    classes = len(store.space.classes)
    pixels = [0] * classes
    for item in kept:
        for index, count in train.class_pixels(item).items():
            if index < classes:
                pixels[index] += count
    left, judged = (Part(train.folder, train.split, tuple(items)) for items in (kept, sorted(out)))
    return Images(left, judged, pixels, classes)


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
        on_step: Callable[[Step], None],
        pauses: Callable[[int], bool] = lambda _step: False,
        on_pause: Callable[[int], None] = lambda _step: None,
    ) -> None:
        """Train `network`, in place, from the first step to the last."""
        changes = {"learning_rate": learning_rate, "steps": steps}
        section = self.section.model_copy(update=changes)
        here = Processes(device=self.device)
        machine = self.params.runtime
        state = parts.state(section, network, runtime=machine, processes=here)
        crops = parts.crops(section, images.train, classes=images.classes, seed=seed, processes=here)
        fit(
            state,
            loader.steps_loader(crops, start=0, stop=steps, workers=machine.workers, pinned=self.device.type == "cuda"),
            model=parts.callable_model(state.network, runtime=machine, processes=here),
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
    matrix_KK = inference.confusions(network, batches, classes=images.classes, device=device).sum(0)
    return 100 * metrics.mean_iou(matrix_KK)


Builders = Mapping[str, Callable[[], nn.Module]]


def step_seconds(
    builders: Builders, recipe: Recipe, images: Images, *, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of whole training steps, data included, of all networks in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in builders}
    for round_ in range(-WARMUP, ROUNDS):
        for name, build in builders.items():
            taken: list[Step] = []
            runtime.seed_everything(0)
            recipe.train(
                build(),
                images,
                learning_rate=1e-4,
                steps=1 + STEPS_A_ROUND,
                seed=0,
                on_step=taken.append,
            )
            if round_ >= 0:
                seconds[name] += [step.seconds for step in taken[1:]]
        advance()
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
) -> list[Row]:
    """Train a network and judge it at `points` equal parts of the way: rows of `step` and `miou` in percent.

    A training that breaks down has no rows after that, but 0 at its end.
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
            on_step=lambda _step: None,
            pauses=lambda step: step in judged_at,
            on_pause=on_pause,
        )
    except NotFinite as broken:
        rows.append({"step": steps, "miou": 0.0, "broken": str(broken)})
    return rows


@dataclass(frozen=True)
class Kept:
    """Results on disk, so that an interrupted command goes on: one small file for each.

    Attributes:
        folder: of this benchmark on this machine.
        settings: everything that a result depends on, besides what names it.
    """

    folder: Path
    settings: Row

    def get(self, what: Row, make: Callable[[], Any]) -> Any:
        """The result of `what`, made now if there is none."""
        path = self.folder / f"{fingerprint(self.settings | what)[:20]}.json"
        if path.is_file():
            return read_json(path, todo="remove it")["result"]
        result = make()
        write_json(path, what | {"result": result})
        return result


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
    device: torch.device,
    begin: Callable[[int], None],
    advance: Callable[[], None],
    note: Callable[[str], None],
) -> Row:
    """The whole benchmark; what is in `folder` of an interrupted call is gone on with.

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
        begin: called with the number of times that `advance` will be.
        advance: called after each part.
        note: called with a line worth keeping.

    Returns:
        The content of the JSON report.
    """
    section = params.section_of(variants[0], "train")
    assert isinstance(section, SegmentationStage)
    runtime.prepare_training(threads=params.runtime.threads)
    recipe, tuning, final = Recipe(section, params, device), held_out(store, hold_out), whole(store)
    networks = {variant: params.network_of(variant) for variant in variants}
    builders: dict[str, Callable[[], nn.Module]] = {}
    for variant in variants:
        builders[variant] = partial(peers.build_ours, network=networks[variant], classes=final.classes)
    for name in names:
        builders[name] = partial(peers.build_peer, name=name, classes=final.classes)
    environment = environment_of(device) | peers.versions(names)
    trained_by = section.model_dump(exclude={"learning_rate", "steps", "validate_every", "checkpoint_every"})
    common = {
        "environment": environment,
        "recipe": trained_by,
        "data": fingerprint(store.manifest["splits"]),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "hold_out": hold_out,
    }
    kept = Kept(folder, common)
    begin(ROUNDS + WARMUP + len(builders) * (len(rates) + seeds))

    measured = kept.get(
        {"what": "step", "networks": networks, "names": list(names)},
        lambda: step_seconds(builders, recipe, final, advance=advance),
    )
    step = {name: statistics.median(values) for name, values in measured.items()}
    trials: dict[str, list[Row]] = {name: [] for name in builders}
    for rate in rates:
        for name, build in builders.items():
            steps = max(1, int(trial_seconds / step[name]))
            what = {"what": "trial", "name": name, "network": networks.get(name), "rate": rate, "steps": steps}
            make = partial(one_run, build, recipe, tuning, learning_rate=rate, steps=steps, points=1, seed=0)
            miou = kept.get(what, make)[-1]["miou"]
            trials[name].append({"learning_rate": rate, "steps": steps, "miou": miou})
            note(f"{name}, learning rate {rate:g}: {miou:.2f} % on the held-out images after {steps} steps")
            advance()
    chosen = {name: max(rows, key=lambda row: row["miou"])["learning_rate"] for name, rows in trials.items()}
    runs: dict[str, list[Row]] = {name: [] for name in builders}
    for seed in range(seeds):
        for name, build in builders.items():
            steps = max(1, int(seconds / step[name]))
            what = {
                "what": "run",
                "name": name,
                "network": networks.get(name),
                "rate": chosen[name],
                "steps": steps,
                "points": points,
                "seed": seed,
            }
            make = partial(
                one_run, build, recipe, final, learning_rate=chosen[name], steps=steps, points=points, seed=seed
            )
            rows = kept.get(what, make)
            runs[name].append({"seed": seed, "steps": steps, "points": rows})
            note(f"{name}, seed {seed}: {rows[-1]['miou']:.2f} % on val after {steps} steps")
            advance()
    return {
        "environment": environment,
        "settings": {
            "preset": params.preset,
            "dataset": store.title,
            "training_images": len(final.train),
            "judged_images": len(final.judged),
            "held_out_images": len(tuning.judged),
            "hold_out": hold_out,
            "seconds": seconds,
            "trial_seconds": trial_seconds,
            "rates": list(rates),
            "seeds": seeds,
            "points": points,
            "recipe": trained_by,
            "threads": torch.get_num_threads(),
            "device": str(device),
        },
        "ours": list(variants),
        "step_seconds": measured,
        "trials": trials,
        "runs": runs,
    }
