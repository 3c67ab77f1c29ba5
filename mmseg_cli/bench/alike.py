"""`mmseg bench alike`: many real trainings of one block; how often does a table call them different all the same?

A tiny network on a tiny generated data set, prepared, trained and predicted as everywhere else, in a project folder of
its own. Trainings differ in their seed alone. Disjoint groups of them play a baseline and its variants, and are judged
as `mmseg ablate` judges: every verdict is a false alarm. `mmseg bench calibration` has known truths and many trials;
this has the noise of real trainings. Unlike in an ablation no two of them share their data order, for two trainings of
one block that did would be one and the same.

Shapes: N = trainings, B = images, K = classes, G = tables, V = variants of a table with the baseline, S = seeds of a
variant, D = V - 1: differences to the baseline, X = tables of several divisions.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from scipy import stats

from mmseg_cli import params, runtime
from mmseg_cli.ablation import estimates, statistics
from mmseg_cli.ablation.statistics import BETTER, ESTIMANDS, FEWEST_SEEDS, LEVEL, WORSE, Sample
from mmseg_cli.bench.calibration_trials import holm
from mmseg_cli.bench.data import prepared_quietly
from mmseg_cli.data import loader, prepare
from mmseg_cli.data.store import Store, open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import inference
from mmseg_cli.evaluation.evidence import Collector
from mmseg_cli.files import write_text
from mmseg_cli.models import weights
from mmseg_cli.names import LADDER
from mmseg_cli.paths import DEMO, Paths
from mmseg_cli.training.loop import Step
from mmseg_cli.training.stages import run_stage

Row = dict[str, Any]
Array = NDArray[np.float64]
Ints = NDArray[np.int64]

SEEDS = (2, 3, 5)  # of a variant; reported whatever else is asked for
VARIANTS = (2, 3)  # of a table, with the baseline
DIVISIONS = 1000  # of the same trainings, at random
TOGETHER = 50  # divisions that are judged at once
DATASET = "cityscapes"  # the layout of the generated streets
AT_ONCE = 8  # images that are predicted together


@dataclass(frozen=True)
class Size:
    """How much is trained; by default less than two seconds of one core.

    Attributes:
        steps: of a training.
        train: images to train on.
        val: images that are judged.
        height: of an image in pixels, which is twice as wide.
    """

    steps: int = 60
    train: int = 24
    val: int = 40
    height: int = 64


def preset(block: str, size: Size) -> dict[str, Any]:
    """The content of the project's params.yaml; `evaluate`, `cost` and `ablate` are only there because they must be."""
    crop = [size.height * 3 // 4, size.height * 3 // 2]
    stage = {
        "dataset": DATASET,
        "steps": size.steps,
        "batch": 4,
        "norm_batch": 4,
        "crop": crop,
        "precision": "float32",
        "optimizer": "adamw",
        "learning_rate": 0.02,
        "weight_decay": 0.01,
        "lookahead": None,
        "ema": None,
        "precise_bn": 0,
        "warmup_steps": min(5, size.steps),
        "schedule": "poly",
        "power": 0.9,
        "label_smoothing": 0,
        "clip_norm": None,
        "stochastic_depth": 0,
        "validate_every": size.steps,
        "checkpoint_every": size.steps,
    }
    changes = {"scale": [0.8, 1.25], "flip": True, "colour": 0.2}
    segmentation = stage | {
        "loss": {"cross_entropy": 1},
        "class_weights": "none",
        "deep_supervision": 0,
        "augment": {**changes, "blur": 0, "class_uniform": 0, "uniform_last": 0},
    }
    generate = {"train": size.train, "val": size.val, "height": size.height, "seed": 3}
    return {
        "preset": DEMO,
        "root": ".",
        "params_file": "params.yaml",
        "datasets": {DATASET: {"source": "synthetic", "generate": generate}},
        "network": {
            "layout": "uniform",
            "width": 8,
            "depth": 1,
            "levels": 3,
            "stem_stride": 2,
            "expansion": 2,
            "se_ratio": 0.25,
            "norm": "batch",
            "activation": "silu",
        },
        "variants": {block: {"block": block}},
        "pretrain_imagenet": stage
        | {"steps": 0, "augment": {**changes, "scale": [0.5, 1], "rand_augment": None, "mixup": 0, "cutmix": 0}},
        "pretrain_mapillary": segmentation | {"steps": 0},
        "train": segmentation,
        "evaluate": {
            "dataset": DATASET,
            "precision": "float32",
            "fold": False,
            "window": None,
            "overlap": 0.25,
            "weights": "gaussian",
            "memory_gib": None,
            "augmented": None,
            "branches": False,
            "boundaries": [1],
            "object_sizes": [16, 144],
            "row_bands": 1,
            "official": False,
            "examples": 1,
        },
        "cost": {"batch": 4, "crop": crop, "inference": crop, "repeats": 1, "warmup": 0},
        "ablate": {"variants": [block], "seeds": [0], "estimand": statistics.NEW_IMAGES, "image_blocks": "image"},
        "runtime": {
            "device": "cpu",
            "devices": 1,
            "workers": 0,
            "threads": 1,
            "channels_last": True,
            "micro_batch": None,
            "recompute": False,
            "compile": False,
            "deterministic": False,
            "validation_batch": AT_ONCE,
        },
        "execution": {
            "needs": {"other": {"gpus": 0, "cpus": 1, "memory_gib": 1}},
            "retries": 0,
            "clones": None,
            "save_minutes": 1,
            "slurm": {},
        },
        "tracking": {"enabled": False, "uri": None, "experiment": "alike"},
    }


# ------------------------------------------------------------------------------------------------ training


class _Quiet:
    """The screen of one training among many."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn

    def begin(self, *, total: int, done: int) -> None:
        """Nothing: trainings are counted, not steps."""

    def step(self, step: Step) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


def require_enough(trainings: int, seeds: int) -> None:
    """Raise MmsegError unless there are a baseline and a variant of that many seeds, at least two."""
    if seeds < 2:
        raise MmsegError("--seeds", "is one, which tells nothing of its noise", "give at least 2")
    if trainings < 2 * seeds:
        what = f"{trainings} do not make a baseline and a variant of {seeds} seeds"
        raise MmsegError("--trainings", what, f"give at least {2 * seeds}")


def run(
    project: Path,
    *,
    block: str,
    trainings: int,
    seeds: int,
    size: Size,
    advance: Callable[[], None],
    warn: Callable[[str], None],
) -> Row:
    """Train, on one thread, and predict.

    Args:
        project: a folder for data and weights. What an interrupted call with the same block and size left there is gone
            on with.
        block: one of `names.BLOCK_NAMES`.
        trainings: how many; their seeds are 0, 1, ...
        seeds: of a variant, reported beside SEEDS.
        size: how much.
        advance: called after each training.
        warn: called with a line to worry about.

    Returns:
        The content of the JSON report. `runs` holds for every training mIoU in percent, on all images and without each.

    Raises:
        MmsegError: there are too few trainings.
        Interrupted: a signal came in a training; a checkpoint was saved.
    """
    require_enough(trainings, seeds)
    write_text(project / "params.yaml", yaml.safe_dump(preset(block, size), sort_keys=False))
    loaded, where = params.load(project / "params.yaml"), Paths(root=project.resolve(), preset=DEMO)
    screen, rows = _Quiet(warn), []
    with runtime.only_one(project / ".work" / "lock"):
        store = _data(loaded, where)
        for seed in range(trainings):
            for stage in LADDER:
                trained = run_stage(
                    stage,
                    params=loaded,
                    paths=where,
                    variant=block,
                    seed=seed,
                    screen=screen,
                    log=lambda metrics, step: None,
                )
            one = judged_on(store, trained.folder)
            rows.append({"seed": seed, "miou": float(one.plain_S[0]), "without": one.without_SB[0].tolist()})
            advance()
    pixels = np.array(store.manifest["splits"]["val"]["class_pixels"])
    return {
        "environment": runtime.environment() | {"scipy": importlib.metadata.version("scipy")},
        "settings": {"block": block, "trainings": trainings, "seeds": seeds, "threads": 1, **vars(size)},
        "largest_class": {
            "name": store.space.classes[int(pixels.argmax())],
            "miou": 100 * float(pixels.max() / pixels.sum()) / int((pixels > 0).sum()),
        },
        "runs": rows,
    }


def _data(loaded: params.Params, where: Paths) -> Store:
    """The generated streets, prepared."""
    section = loaded.datasets[DATASET]
    assert section.generate is not None  # the preset's own
    settings = section.generate.model_dump()
    root = prepare.generated_root(DATASET, raw=lambda key: where.raw(DATASET, key), settings=settings)
    options, parameters = section.options(), section.content()
    prepared_quietly(DATASET, root, where.store(DATASET), options=options, parameters=parameters)
    return open_store(where.store(DATASET), parameters=parameters)


def judged_on(store: Store, folder: Path) -> Sample:
    """mIoU of one run on val, in percent, on all images and without each: what an ablation computes of its evidence."""
    network, _ = weights.load_network(folder)
    split, classes = store.split("val"), store.space.classes
    batches = loader.items_loader(loader.WholeImages(split, batch=AT_ONCE), workers=0)
    collector = Collector()
    for matrix in inference.confusions(network, batches, classes=len(classes), device=torch.device("cpu")):
        collector.add({"confusion": matrix})
    figure = estimates.iou("iou", "confusion")
    blocks_N = estimates.blocks_of(split.names(), "image")
    found = estimates.of_run(collector.counts(), [figure], classes=list(classes), blocks_N=blocks_N)
    return estimates.sample([found], figure.name, scale=100)


# ------------------------------------------------------------------------------------------------ judging


def groups(trainings: int, *, variants: int, seeds: int) -> Ints:
    """(G, V, S): which training stands where; none stands twice, and those that are left over stand nowhere."""
    tables = trainings // (variants * seeds)
    return np.arange(tables * variants * seeds).reshape(tables, variants, seeds)


@dataclass(frozen=True)
class Alarms:
    """What tables of trainings that are alike said.

    Attributes:
        estimand: of statistics.ESTIMANDS.
        seeds: of a variant.
        variants: of a table, with the baseline.
        tables: how many, of disjoint trainings.
        false: those with a verdict; of two seeds, for which there is no verdict, with a p below 0.05.
        interval: the exact 95 % interval (Clopper and Pearson 1934) of the probability of a false one.
        redivided: the share of false ones over DIVISIONS random divisions of the same trainings into tables.
        uniform: p of a Kolmogorov-Smirnov test that the p values of the tables are uniform; None with several variants,
            whose p values share a baseline.
    """

    estimand: str
    seeds: int
    variants: int
    tables: int
    false: int
    interval: tuple[float, float]
    redivided: float
    uniform: float | None


def clopper_pearson(count: int, of: int) -> tuple[float, float]:
    """The exact 95 % interval of a probability, of `count` successes in `of` trials."""
    found = stats.binomtest(count, of).proportion_ci(confidence_level=LEVEL, method="exact")
    return float(found.low), float(found.high)


def _values(result: Row) -> tuple[Array, Array]:
    """(N) and (N, B): mIoU of every training on all images, and without each."""
    runs = result["runs"]
    return np.array([row["miou"] for row in runs]), np.array([row["without"] for row in runs])


def alarms(result: Row, *, estimand: str, seeds: int, variants: int) -> Alarms | None:
    """Judge disjoint groups of the trainings of a result; None where they are too few for a table."""
    plain_N, without_NB = _values(result)
    places_GVS = groups(len(plain_N), variants=variants, seeds=seeds)
    if not len(places_GVS):
        return None
    false, p_values = 0, []
    for base, *others in places_GVS:
        baseline = Sample(plain_N[base], without_NB[base])
        family = [
            statistics.of_difference(Sample(plain_N[other], without_NB[other]), baseline, estimand=estimand)
            for other in others
        ]
        words = [verdict.word for verdict in statistics.verdicts(family)]
        own = [1.0 if interval.p is None else interval.p for interval in family]
        if seeds < FEWEST_SEEDS:
            false += bool((holm(np.array([own])) < 1 - LEVEL).any())
        else:
            false += not {BETTER, WORSE}.isdisjoint(words)
        p_values += own
    return Alarms(
        estimand=estimand,
        seeds=seeds,
        variants=variants,
        tables=len(places_GVS),
        false=false,
        interval=clopper_pearson(false, len(places_GVS)),
        redivided=_redivided(plain_N, without_NB, places_GVS, estimand=estimand),
        uniform=float(stats.kstest(p_values, "uniform").pvalue) if variants == 2 else None,
    )


def _redivided(plain_N: Array, without_NB: Array, places_GVS: Ints, *, estimand: str) -> float:
    """The share of tables with a p below 0.05 after Holm, over DIVISIONS random divisions."""
    rng, found = np.random.default_rng(0), []
    for _ in range(DIVISIONS // TOGETHER):
        order_XN = rng.permuted(np.tile(np.arange(len(plain_N)), (TOGETHER, 1)), axis=1)
        places_XVS = order_XN[:, places_GVS].reshape(-1, *places_GVS.shape[1:])
        plain_XVS, without_XVSB = plain_N[places_XVS], without_NB[places_XVS]
        plain_XDS, without_XDSB = plain_XVS[:, 1:] - plain_XVS[:, :1], without_XVSB[:, 1:] - without_XVSB[:, :1]
        squared_XD, df_XD = statistics.mean_squares(plain_XDS, without_XDSB).error(estimand)
        p_XD = statistics.p_value(plain_XDS.mean(axis=-1), squared_XD, df_XD)
        found.append(float((holm(p_XD) < 1 - LEVEL).any(axis=1).mean()))
    return statistics.summarise(found).mean


# ------------------------------------------------------------------------------------------------ report

HEADINGS = ("question", "seeds", "tables", "false alarms", "95 %, exact", "redivided", "p values uniform: p")
TITLES = {2: "One variant against a baseline", 3: "Two variants against a baseline, Holm over both"}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cells(found: Alarms) -> tuple[str, ...]:
    low, high = map(_percent, found.interval)
    return (
        found.estimand,
        str(found.seeds),
        str(found.tables),
        f"{found.false} ({_percent(found.false / found.tables)})",
        f"{low} - {high}",
        _percent(found.redivided),
        "–" if found.uniform is None else f"{found.uniform:.2f}",
    )


def tables(result: Row) -> dict[str, list[tuple[str, ...]]]:
    """The rows of each table by its title, under HEADINGS; computed from `runs`."""
    counts = sorted({*SEEDS, result["settings"]["seeds"]})
    return {
        TITLES[variants]: [
            _cells(found)
            for estimand in ESTIMANDS
            for seeds in counts
            if (found := alarms(result, estimand=estimand, seeds=seeds, variants=variants)) is not None
        ]
        for variants in VARIANTS
    }


def residual_share(result: Row) -> float:
    """The share of the variance of mIoU between trainings that is of training and image together."""
    plain_N, without_NB = _values(result)
    squares = statistics.mean_squares(plain_N, without_NB)
    return float(squares.residual / squares.seeds)


def in_words(values: Sequence[float]) -> str:
    """mIoU of trainings, in percent."""
    found = statistics.summarise(values)
    return f"{found.mean:.2f} % (sd {found.spread:.2f}, from {min(values):.2f} to {max(values):.2f})"


def markdown(result: Row) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings, largest = result["settings"], result["largest_class"]
    lines = [
        "# Trainings that are alike",
        "",
        f"{settings['trainings']} trainings of `{settings['block']}` that differ in their seed alone: "
        f"{settings['steps']} steps on {settings['train']} generated streets of",
        f"{settings['height']}x{2 * settings['height']}, judged on {settings['val']} others. mIoU: "
        f"{in_words([row['miou'] for row in result['runs']])}; of a network that",
        f"says {largest['name']} everywhere: {largest['miou']:.2f} %. Of its variance between trainings "
        f"{_percent(residual_share(result))} is",
        "of training and image together: what would be less on more images.",
        f"Machine: {machine}.",
        "",
        "Disjoint groups of trainings play a baseline and its variants, and every table is judged as `mmseg ablate`",
        "judges, each image a block of its own. There is nothing to be found: 5 % of the tables may have a verdict.",
        "Unlike in an ablation no two trainings saw the same data in the same order.",
        "",
        "- *false alarms*: tables with a verdict. Two seeds get none: with a p below 0.05.",
        "- *95 %, exact*: the binomial interval of Clopper and Pearson.",
        f"- *redivided*: the share of false alarms over {DIVISIONS} random divisions of the same trainings. It varies",
        "  less, and has no interval, for the divisions share their trainings.",
        "- *p values uniform*: p of a Kolmogorov-Smirnov test of the tables' p values. They are to be uniform for",
        "  this-set; for new-images they may be larger, as images suit no variant better here.",
    ]
    for title, rows in tables(result).items():
        if rows:
            lines += [
                "",
                f"## {title}",
                "",
                "| " + " | ".join(HEADINGS) + " |",
                "|:--" + "|--:" * (len(HEADINGS) - 1) + "|",
            ]
            lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
