"""The evidence of an ablation: what the grid asks for, what is there, and what is missing or cannot be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmseg_cli.ablation import costs, estimates, statistics
from mmseg_cli.ablation.estimates import Run
from mmseg_cli.data.labels import cityscapes_19
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence, summary
from mmseg_cli.evaluation.regions import REGION, SIZES
from mmseg_cli.files import content_of, read_json, sha256
from mmseg_cli.names import LADDER
from mmseg_cli.paths import Paths, run_name
from mmseg_cli.provenance import seconds, sittings

if TYPE_CHECKING:
    from mmseg_cli.params import Params

METRICS = "metrics.json"
CONFUSION = "confusion.npz"
CERTIFICATE = "certificate.json"
RUN_FILES = (METRICS, CONFUSION, CERTIFICATE)
COST = "cost.json"
REPRO = "run `mmseg ablate` (or `dvc repro`) for this preset"
LOOKING = ("validate_every", "checkpoint_every")  # keys of a stage that change no weight; no record has them
DECIDES_DATA = ("steps", "batch", "crop", "augment")  # keys of a stage that decide which data a step sees


@dataclass(frozen=True)
class Wanted:
    """What the parameters say of a variant.

    Attributes:
        network: the arguments of its network.
        rungs: the parameters of every rung that is trained, by stage.
        changes: what it changes of the preset's network and stages, by key; its block first.
        match: what its width or expansion was solved for; None where it has that of the preset.
    """

    network: dict[str, Any]
    rungs: dict[str, dict[str, Any]]
    changes: dict[str, Any]
    match: str | None


def wanted(params: Params) -> dict[str, Wanted]:
    """The rows of a preset's grid."""
    found = {}
    for name in params.ablate.variants:
        variant = params.variants[name]
        sections = {stage: params.section_of(name, stage) for stage in LADDER}
        changes = variant.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True, exclude={"match"})
        stages = {stage: changes.pop(stage, {}) for stage in LADDER}
        found[name] = Wanted(
            network=params.network_of(name),
            rungs={stage: section.model_dump(mode="json") for stage, section in sections.items() if section.steps},
            changes=changes | {f"{stage}.{key}": value for stage, own in stages.items() for key, value in _flat(own)},
            match=variant.match,
        )
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class Evidence:
    """All that tables and figures are computed from.

    Attributes:
        preset: its name.
        variants, seeds: the grid, in the table's order; the first variant is the baseline.
        wanted: what the parameters say of every variant.
        estimand: what intervals are about, see `mmseg_cli.ablation.statistics`.
        image_blocks: which images are alike, see `estimates.blocks_of`.
        names: of the images.
        runs: metrics.json of every (variant, seed).
        figures: what was counted, as figures with their jackknife, of every (variant, seed).
        files: SHA-256 of every file of the evidence, by its path below the evidence folder.
        certificates: certificate.json of every (variant, seed).
        cost: cost.json.
    """

    preset: str
    variants: list[str]
    seeds: list[int]
    wanted: dict[str, Wanted]
    estimand: str
    image_blocks: str
    names: list[str]
    runs: dict[tuple[str, int], dict[str, Any]]
    figures: dict[tuple[str, int], Run]
    files: dict[str, str]
    certificates: dict[tuple[str, int], dict[str, Any]]
    cost: dict[str, Any]

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return self.variants[0]

    @property
    def first(self) -> dict[str, Any]:
        """metrics.json of one run, for what all runs have in common."""
        return self.runs[self.baseline, self.seeds[0]]

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return self.figures[self.baseline, self.seeds[0]].classes

    @property
    def figure_names(self) -> list[str]:
        """The names of all figures that were counted."""
        return list(self.figures[self.baseline, self.seeds[0]].figures)

    def other_data(self, variant: str) -> list[str] | None:
        """The keys by which a variant saw other data than the baseline, in the rungs that both have.

        Returns:
            Such as `train.steps`; empty where both saw the same, by their logs; None where no log tells.
        """
        found: list[str] = []
        known = True
        for seed in self.seeds:
            base, own = (
                {rung["stage"]: rung for rung in self.runs[name, seed]["run"]["rungs"]}
                for name in (self.baseline, variant)
            )
            for stage in base.keys() & own.keys():
                one, two = (dict(_decide_data(rung[stage]["parameters"])) for rung in (base, own))
                keys = [key for key in one.keys() | two.keys() if one.get(key) != two.get(key)]
                found += [f"{stage}.{key}" for key in keys]
                known &= bool(keys) or _saw_the_same(base[stage]["data"], own[stage]["data"]) is not None
        return sorted(set(found)) if found or known else None

    def sharing(self, stage: str) -> list[list[str]]:
        """The variants by whose training of a pretraining rung they start from, at the first seed."""
        groups: dict[str, list[str]] = {}
        for variant in self.variants:
            for rung in self.runs[variant, self.seeds[0]]["run"]["rungs"][:-1]:
                if rung["stage"] == stage:
                    groups.setdefault(str(rung["fingerprint"]), []).append(variant)
        return list(groups.values())

    def code(self) -> dict[str, list[str]]:
        """The runs by the state of the code that trained them: commits, with a `+` where files differed from these."""
        found: dict[str, list[str]] = {}
        for (variant, seed), own in self.certificates.items():
            states = dict.fromkeys(_code(one) for one in sittings(own.get("training")))
            state = ", ".join(states) or "a state that is not known"
            found.setdefault(state, []).append(run_name(variant, seed))
        return found

    def labelled(self, figure: str) -> int:
        """Of how many classes a figure is the mean: those that the labels have."""
        estimate = self.figures[self.baseline, self.seeds[0]].figures[figure]
        return int((estimate.labels_K > 0).sum())

    def sample(self, variant: str, figure: str, *, class_: str | None = None) -> statistics.Sample:
        """A figure of all seeds, in percent; `class_` None is the mean over classes."""
        key = (variant, figure, class_)
        if key not in self._samples:  # the baseline's is in every difference
            self._samples[key] = estimates.sample(self._of(variant), figure, class_=class_, scale=100)
        return self._samples[key]

    @cached_property
    def _samples(self) -> dict[tuple[str, str, str | None], statistics.Sample]:
        return {}

    def mean(
        self, variant: str, figure: str, *, class_: str | None = None, estimand: str | None = None
    ) -> statistics.Interval:
        """The mean of a figure over seeds, in percent."""
        return statistics.of_mean(self.sample(variant, figure, class_=class_), estimand=estimand or self.estimand)

    def difference(
        self, variant: str, figure: str, *, class_: str | None = None, estimand: str | None = None
    ) -> statistics.Interval:
        """A figure's difference to the baseline's, in points of percent."""
        own, base = (self.sample(name, figure, class_=class_) for name in (variant, self.baseline))
        return statistics.of_difference(own, base, estimand=estimand or self.estimand)

    def differences(self, figure: str, *, class_: str | None = None) -> dict[str, statistics.Interval]:
        """The differences of all variants but the baseline to it."""
        return {name: self.difference(name, figure, class_=class_) for name in self.variants[1:]}

    def bootstrap(self, variant: str, figure: str) -> tuple[float, float]:
        """The crossed bootstrap's interval of a difference, in points of percent: a check for new images."""
        return estimates.bootstrap(self._of(variant), self._of(self.baseline), figure, scale=100)

    def _of(self, variant: str) -> list[Run]:
        return [self.figures[variant, seed] for seed in self.seeds]


def _code(sitting: Mapping[str, Any]) -> str:
    """The state of the code of a sitting, short."""
    commit, changes = sitting.get("commit"), sitting.get("changes")
    return f"{str(commit)[:10] if commit else 'no commit'}{f' + {changes[:10]}' if changes else ''}"


def collect(paths: Paths, *, wanted: dict[str, Wanted], seeds: list[int], estimand: str, image_blocks: str) -> Evidence:
    """Read the evidence of a grid; files of runs outside the grid are not looked at.

    Raises:
        MmsegError: names every missing run or file, or the file that cannot be trusted.
    """
    grid = [(variant, seed) for variant in wanted for seed in seeds]
    if missing := _missing(paths.evidence, grid):
        raise MmsegError(paths.evidence, f"missing {', '.join(missing)}", REPRO)
    files = [f"{run_name(*run)}/{name}" for run in grid for name in RUN_FILES] + [COST]
    hashes = {name: sha256(paths.evidence / name) for name in files}
    with content_of(paths.evidence / COST, todo=REPRO):
        cost = _cost(paths.evidence / COST, variants=list(wanted))
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    figures: dict[tuple[str, int], Run] = {}
    certificates: dict[tuple[str, int], dict[str, Any]] = {}
    names: list[str] = []
    for run in grid:
        folder = run_name(*run)
        file = paths.evidence / folder / METRICS
        with content_of(file, todo=REPRO):
            runs[run] = _run(file, variant=run[0], seed=run[1])
            if hashes[f"{folder}/{CONFUSION}"] != runs[run].get("confusion_sha256"):
                what = f"is not the file that {METRICS} was computed from"
                raise MmsegError(file.with_name(CONFUSION), what, REPRO)
            _require_wanted(file, runs[run], wanted[run[0]], cost["variants"][run[0]])
        with content_of(file.with_name(CERTIFICATE), todo=REPRO):
            own = _certificate(file.with_name(CERTIFICATE), runs[run], metrics=hashes[f"{folder}/{METRICS}"])
            certificates[run] = own
        counted = evidence.load(file.with_name(CONFUSION))
        if names and counted.names != names:
            raise MmsegError(file.with_name(CONFUSION), "is of other images than the other runs", REPRO)
        names = counted.names
        with content_of(file, todo=REPRO):
            figures[run] = _figures(file, runs[run], counted, image_blocks=image_blocks)
        if figures[run].labels != figures[grid[0]].labels:
            raise MmsegError(file.with_name(CONFUSION), "was counted against other labels than the other runs", REPRO)
    _require_comparable(paths, runs)
    return Evidence(
        preset=paths.preset,
        variants=list(wanted),
        seeds=seeds,
        wanted=wanted,
        estimand=estimand,
        image_blocks=image_blocks,
        names=names,
        runs=runs,
        figures=figures,
        files=hashes,
        certificates=certificates,
        cost=cost,
    )


def _missing(folder: Path, grid: list[tuple[str, int]]) -> list[str]:
    """What is not there: a run of which nothing is there as `mbconv-s1/`, else its files one by one."""
    found: list[str] = []
    for run in grid:
        gone = [name for file in RUN_FILES if not (folder / (name := f"{run_name(*run)}/{file}")).is_file()]
        found += [f"{run_name(*run)}/"] if len(gone) == len(RUN_FILES) else gone
    return found if (folder / COST).is_file() else [*found, COST]


# ------------------------------------------------------------------------------------------------ one file


def _cost(file: Path, *, variants: list[str]) -> dict[str, Any]:
    found = read_json(file, todo=REPRO)
    if not (isinstance(found, dict) and isinstance(found.get("variants"), dict) and "inference_height" in found):
        raise MmsegError(file, "holds no measurements, or was written before predictions were measured", REPRO)
    unmeasured = [variant for variant in variants if variant not in found["variants"]]
    if unmeasured:
        raise MmsegError(file, f"has no measurement of {', '.join(unmeasured)}", REPRO)
    kinds = ("step_seconds", "inference_seconds", "step_joules")
    rounds = {kind: {len(row[kind] or []) for row in found["variants"].values()} for kind in kinds}
    if any(len(counts) > 1 for counts in rounds.values()):
        raise MmsegError(file, "has more rounds of one variant than of another", REPRO)
    costs.compared(found, variants=variants)  # which fails on whatever the tables cannot be made of
    return found


def _run(file: Path, *, variant: str, seed: int) -> dict[str, Any]:
    """metrics.json of one run.

    Raises:
        MmsegError: it is none, or of another run.
    """
    found = read_json(file, todo=REPRO)
    parts = [found, found.get("class_iou"), found.get("run")] if isinstance(found, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise MmsegError(file, "does not hold a run, its class_iou and its figures", REPRO)
    of = (found["run"].get("variant"), found["run"].get("seed"))
    if of != (variant, seed):
        raise MmsegError(file, f"is of another run (variant {of[0]}, seed {of[1]})", REPRO)
    if not isinstance(found["run"].get("rungs"), list):
        raise MmsegError(file, "was written before runs recorded their rungs", REPRO)
    return dict(found)


def _certificate(file: Path, run: dict[str, Any], *, metrics: str) -> dict[str, Any]:
    found = read_json(file, todo=REPRO)
    if not isinstance(found, dict):
        raise MmsegError(file, "is no certificate", REPRO)
    for key, value in (
        ("metrics_sha256", metrics),
        ("confusion_sha256", run.get("confusion_sha256")),
        ("weights_sha256", run.get("weights_sha256")),
        ("fingerprint", run["run"].get("fingerprint")),
    ):
        if found.get(key) != value:
            raise MmsegError(file, f"has another {key} than {METRICS}", REPRO)
    seconds(found.get("training"))  # which fails on a training that is told in another way
    return found


def _figures(file: Path, run: dict[str, Any], counted: evidence.Evidence, *, image_blocks: str) -> Run:
    """The figures of what was counted, with their jackknife; each that metrics.json holds must be the same there.

    Raises:
        MmsegError: the two do not agree, so one of them is not what was measured.
    """
    if list(run["class_iou"]) != counted.classes:
        raise MmsegError(file, "class_iou has other classes than its confusion matrices", REPRO)
    kinds = {kind: counts.shape for kind, counts in counted.counts.items()}
    distances = [found["pixels"] for found in run.get("boundaries") or []]
    if len(distances) != kinds.get("boundaries", (0,))[0]:
        raise MmsegError(file, "has other boundaries than were counted", REPRO)
    blocks = estimates.blocks_of(counted.names, image_blocks)
    described = estimates.figures_of(kinds, distances=distances)
    found = estimates.of_run(counted.counts, described, classes=counted.classes, blocks_N=blocks)
    if run.get("images") != len(counted.names):
        what = f"says images {run.get('images')}, its confusion matrices are of {len(counted.names)}"
        raise MmsegError(file, what, REPRO)
    for name, said, value in _beside(run, counted):
        if not _agrees(said, value):
            raise MmsegError(file, f"says {name} {said}, what was counted gives {value}", REPRO)
    said_by_name = dict(_said(run, distances=distances))
    for name, estimate in found.figures.items():
        mean, by_class = said_by_name.get(name, (None, None))
        computed_F = estimate.official_F.tolist()
        pairs = [(name, mean, computed_F[0])]
        if by_class is not None:
            pairs += [
                (f"{name} of {class_}", by_class.get(class_), value)
                for class_, value in zip(counted.classes, computed_F[1:], strict=True)
            ]
        for key, said, computed in pairs:
            if not _agrees(said, computed):
                raise MmsegError(file, f"says {key} {said}, what was counted gives {computed}", REPRO)
    return found


def _beside(run: dict[str, Any], counted: evidence.Evidence) -> Iterator[tuple[str, Any, float]]:
    """What metrics.json says that is in no table: numbers of regions, and IoU by category where we know these."""
    if "sizes" in counted.counts:
        regions_3 = counted.counts["sizes"].total()[:, REGION.index("regions")].sum(axis=-1).tolist()
        for found, value in zip(run["sizes"], regions_3, strict=True):
            yield f"regions of {found['size']} objects", found["regions"], value
    space, _ = cityscapes_19()
    if (run["label_space"], counted.classes) == (space.name, list(space.classes)):
        computed = summary.of_confusion(counted.counts["confusion"].total(), space)
        by_name = {"mean": (run["mean_category_iou"], computed["mean_category_iou"])}
        by_name |= {name: (run["category_iou"][name], value) for name, value in computed["category_iou"].items()}
        for name, (said, value) in by_name.items():
            yield f"category_iou of {name}", said, math.nan if value is None else value


def _said(run: dict[str, Any], *, distances: list[int]) -> Iterator[tuple[str, tuple[Any, dict[str, Any] | None]]]:
    """What metrics.json says of every figure: its mean, and by class, by the name that `estimates` has for it."""
    yield "iou", (run.get("mean_iou"), run["class_iou"])
    yield "pixel_accuracy", (run.get("pixel_accuracy"), None)
    if run.get("augmented"):
        yield "iou_augmented", (run["augmented"].get("mean_iou"), run["augmented"].get("class_iou"))
    for pixels, found in zip(distances, run.get("boundaries") or [], strict=True):
        for figure in ("iou", "f1"):
            yield f"boundary_{figure}_{pixels}px", (found.get(f"mean_{figure}"), found.get(f"class_{figure}"))
    for size, found in zip(SIZES, run.get("sizes") or [], strict=False):
        for figure in ("recall", "found"):
            yield f"{figure}_{size}", (found.get(f"mean_{figure}"), found.get(f"class_{figure}"))
    for band, found in enumerate(run.get("rows") or []):
        yield f"iou_rows_{band}", (found.get("mean_iou"), found.get("class_iou"))
    for found in run.get("branches") or []:
        for kind in ("knocked_out", "head"):
            if found.get(kind):
                yield f"{kind}_{found['level']}", (found[kind].get("mean_iou"), found[kind].get("class_iou"))


def _agrees(said: Any, computed: float) -> bool:
    """Whether a figure of metrics.json is the computed one; a class without a figure is None there and NaN here."""
    if said is None or math.isnan(computed):
        return said is None and math.isnan(computed)
    return isinstance(said, int | float) and math.isclose(said, computed, rel_tol=0, abs_tol=1e-12)


# ------------------------------------------------------------------------------------------------ all of them


def _require_wanted(file: Path, run: dict[str, Any], want: Wanted, measured: dict[str, Any]) -> None:
    """Raise MmsegError unless a run is what the parameters say now, in its network and in every rung."""
    of = run["run"]
    if of.get("network") != want.network:
        raise MmsegError(file, "is of another network than the parameters say", REPRO)
    if measured.get("network") != want.network:
        raise MmsegError(file.parents[1] / COST, f"measured another network of {of['variant']} than it has now", REPRO)
    trained = {rung["stage"]: rung["parameters"] for rung in of["rungs"]}
    if list(trained) != list(want.rungs):
        what = f"was trained on {', '.join(trained)}, the parameters say {', '.join(want.rungs)}"
        raise MmsegError(file, what, REPRO)
    for stage, parameters in trained.items():
        said = dict(_flat({key: value for key, value in want.rungs[stage].items() if key not in LOOKING}))
        did = dict(_flat(parameters))
        differ = [key for key in {**said, **did} if said.get(key) != did.get(key)]
        if differ:
            key = differ[0]
            what = f"was trained with {stage}.{key} {did.get(key)}, the parameters say {said.get(key)}"
            raise MmsegError(file, what, REPRO)


def _decide_data(parameters: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parameters of a rung that decide which data a step sees, by dotted keys."""
    return _flat({key: parameters[key] for key in DECIDES_DATA})


def _saw_the_same(one: dict[str, str], other: dict[str, str]) -> bool | None:
    """Whether two logs of digests agree where both have a step; None where they never do, as of a lost history."""
    both = one.keys() & other.keys()
    return all(one[step] == other[step] for step in both) if both else None


def _counting(run: dict[str, Any]) -> list[Any]:
    """The limits by which boundaries, object sizes and row bands were counted."""
    keys = ("pixels", "from_pixels", "to_pixels", "from", "to", "level")
    kinds = ("boundaries", "sizes", "rows", "branches")
    return [[found.get(key) for key in keys] for kind in kinds for found in run.get(kind) or []]


def _require_comparable(paths: Paths, runs: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Raise MmsegError unless all runs share data, classes and protocol, and saw the same data at equal seeds."""
    first = next(iter(runs.values()))
    seen: dict[tuple[int, str, str], tuple[str, dict[str, str]]] = {}
    for (variant, seed), found in runs.items():
        file = paths.evidence / run_name(variant, seed) / METRICS
        with content_of(file, todo=REPRO):
            for key in ("dataset", "split", "images", "label_space", "protocol"):
                if found[key] != first[key]:
                    raise MmsegError(file, f"{key} is {found[key]}, of others {first[key]}", REPRO)
            if _counting(found) != _counting(first):
                raise MmsegError(
                    file, "has boundaries, object sizes or row bands of other limits than the others", REPRO
                )
            if found.get("images_also_in_train"):
                what = f"{found['images_also_in_train']} of its val images are in train as well"
                raise MmsegError(file, what, "evaluate on images that no run was trained on")
            for rung in found["run"]["rungs"]:
                same = repr([rung["data_manifest_sha256"], *(rung["parameters"][key] for key in DECIDES_DATA)])
                other, log = seen.setdefault((seed, rung["stage"], same), (variant, rung["data"]))
                if _saw_the_same(log, rung["data"]) is False:
                    what = f"saw other data in {rung['stage']} than {other} at the same seed"
                    raise MmsegError(file, what, REPRO)
    for stage in LADDER:
        manifests = {
            rung["data_manifest_sha256"]
            for found in runs.values()
            for rung in found["run"]["rungs"]
            if rung["stage"] == stage
        }
        if len(manifests) > 1:
            raise MmsegError(paths.evidence, f"holds runs whose {stage} had other prepared data", REPRO)
