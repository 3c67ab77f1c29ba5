"""A preset's parameters, typed. `params.yaml` is the only place where numbers live; an unknown key is an error.

Durations are optimizer steps, batch sizes are global (over all devices), sizes are [height, width] in pixels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mmseg_cli.errors import MmsegError
from mmseg_cli.names import BLOCK_NAMES, LADDER, LARGEST_SEED, LOSS_NAMES, Allowable, unknown_name

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_-]*$"  # names reach a shell and file names
CLASS = r"blocks(\.[A-Za-z_][A-Za-z0-9_]*)+:[A-Za-z_][A-Za-z0-9_]*"  # in the folder that the pipeline depends on


def _number(value: Any) -> Any:
    """Take a number that was written as a string, as in "1e-4"; anything else is left to the type check."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Real = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Coefficient = Annotated[Real, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME)]
Size = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Layout = Literal["imagenet", "mapillary", "cityscapes", "camvid", "ade20k", "folder"]


def _block(name: str) -> str:
    if name not in BLOCK_NAMES:
        error = unknown_name("block", name, BLOCK_NAMES)
        raise ValueError(f"{error.what}: {error.todo}")
    return name


def _class(path: str) -> str:
    if not re.fullmatch(CLASS, path):
        raise ValueError(f"{path!r} is not of the form blocks.module:Class; the pipeline depends on the folder blocks")
    return path


Block = Annotated[str, AfterValidator(_block)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no silent conversions, no later changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Generate(Section):
    """How a generated dataset is made (`source: synthetic`). For imagenet, `train` and `val` count for each class."""

    train: Positive
    val: Positive
    height: Annotated[int, Field(ge=32)]
    seed: int = 0
    classes: Positive = 10


class Dataset(Section):
    """One dataset: where it comes from, which of its labels are learned, and how it is stored.

    `layout` names the reader of a dataset whose own name is another. `long_side` and `short_side` limit the size of
    images once, when they are prepared; None keeps it. `annotations` and `train_from` are for Cityscapes, `target` and
    `label_map` for Mapillary Vistas; None is the layout's own default. `allow` turns kinds of faults into warnings.
    """

    layout: Layout | None = None
    source: Literal["disk", "synthetic"] = "disk"
    generate: Generate | None = None
    long_side: Positive | None = None
    short_side: Positive | None = None
    annotations: Literal["fine", "coarse"] | None = None
    train_from: Annotated[list[Literal["train", "train_extra", "val"]], Field(min_length=1)] | None = None
    target: Literal["vistas-65", "vistas-116", "cityscapes-19"] | None = None
    label_map: Literal["conservative", "by-name", "mseg"] | None = None
    allow: list[Allowable] = []

    @model_validator(mode="after")
    def _complete(self) -> Dataset:
        if (self.source == "synthetic") != (self.generate is not None):
            raise ValueError("`generate` goes with `source: synthetic`, and only with it")
        if self.long_side and self.short_side:
            raise ValueError("set long_side or short_side, not both")
        if self.target == "cityscapes-19" and self.label_map is None:
            raise ValueError("target cityscapes-19 needs a label_map: conservative, by-name or mseg")
        if self.label_map is not None and self.target != "cityscapes-19":
            raise ValueError("label_map goes with target cityscapes-19 only")
        return self

    def options(self) -> dict[str, Any]:
        """What the section says to its layout's reader, by the reader's own names."""
        keys = ("annotations", "train_from", "target", "label_map")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    def content(self) -> dict[str, Any]:
        """What decides the content of the prepared store."""
        return self.model_dump(exclude={"allow"})


class Network(Section):
    """The U-Net's body; the meaning of each key is documented in `mmseg_cli.models.unet`."""

    layout: Literal["uniform", "pyramid"]
    width: Positive
    depth: Positive
    levels: Positive
    stem_stride: Literal[1, 2, 4]
    expansion: Annotated[Real, Field(gt=0)]
    se_ratio: Fraction
    norm: Literal["batch", "group"]
    activation: Literal["relu", "silu", "hardswish", "gelu"]


class Variant(Section):
    """A row of the ablation: a block, and what else differs from the preset's `network` and stages.

    `class` names a block of the user's own, `blocks.module:Class`, in place of `block`. `start` is what training
    starts from: nothing (`scratch`), the ImageNet rung alone, or the whole ladder up to Mapillary Vistas; None is the
    preset's own. `pretrain_imagenet`, `pretrain_mapillary` and `train` hold the keys of these sections that differ.
    `match` says what a width or an expansion was solved for; it decides nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    block: Block | None = None
    class_: Annotated[str, AfterValidator(_class)] | None = Field(default=None, alias="class")
    start: Literal["scratch", "imagenet", "mapillary"] | None = None
    match: Literal["parameters", "macs", "time"] | None = None
    layout: Literal["uniform", "pyramid"] | None = None
    width: Positive | None = None
    depth: Positive | None = None
    levels: Positive | None = None
    stem_stride: Literal[1, 2, 4] | None = None
    expansion: Annotated[Real, Field(gt=0)] | None = None
    se_ratio: Fraction | None = None
    norm: Literal["batch", "group"] | None = None
    activation: Literal["relu", "silu", "hardswish", "gelu"] | None = None
    pretrain_imagenet: dict[str, Any] = {}
    pretrain_mapillary: dict[str, Any] = {}
    train: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_block(self) -> Variant:
        if (self.block is None) == (self.class_ is None):
            raise ValueError("name a block, or the class of one of your own, and not both")
        return self

    def network(self) -> dict[str, Any]:
        """What it changes of the preset's network, its block included."""
        own = {key: value for key in Network.model_fields if (value := getattr(self, key)) is not None}
        return own | {"block": self.block or self.class_}

    def changes(self, stage: str) -> dict[str, Any]:
        """What it changes of a stage's section."""
        left_out = {"scratch": ("pretrain_imagenet", "pretrain_mapillary"), "imagenet": ("pretrain_mapillary",)}
        changed: dict[str, Any] = getattr(self, stage)
        return changed | ({"steps": 0} if self.start and stage in left_out.get(self.start, ()) else {})

    def rungs(self) -> tuple[str, ...]:
        """The pretraining rungs that `start` asks for."""
        return {"imagenet": LADDER[:1], "mapillary": LADDER[:2]}.get(self.start or "", ())


class Augment(Section):
    """Random changes that both kinds of training sample have: half of the crops are mirrored, and `colour` is the
    strength of brightness, contrast and saturation jitter. What `scale` means, each kind says itself."""

    scale: Annotated[list[Annotated[Real, Field(gt=0)]], Field(min_length=2, max_length=2)]
    flip: bool
    colour: Fraction

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must be [smallest, largest]")
        return self


class SegmentationAugment(Augment):
    """`scale` is the zoom of a crop, `blur` the share of blurred crops, `class_uniform` the share of crops that are
    centred on a uniformly drawn class (Zhu et al. 2019), and `uniform_last` the number of last steps without them."""

    blur: Fraction
    class_uniform: Fraction
    uniform_last: Annotated[int, Field(ge=0)]


class RandAugment(Section):
    """`ops` random changes of a picture, each of strength `magnitude` out of 30."""

    ops: Positive
    magnitude: Annotated[int, Field(ge=0, le=30)]


class ClassificationAugment(Augment):
    """`scale` is a crop's share of the picture's area. `mixup` and `cutmix` are the alpha of the Beta distribution that
    the share of each of two pictures is drawn from, 0 for none; with both, each pair draws one of the two."""

    rand_augment: RandAugment | None
    mixup: Annotated[Real, Field(ge=0)]
    cutmix: Annotated[Real, Field(ge=0)]


class Lookahead(Section):
    """The Lookahead optimizer around another one (arXiv 1907.08610): every `k` steps the slow weights go the share
    `alpha` of the way to the fast ones, which start again from there."""

    k: Positive
    alpha: Annotated[Real, Field(gt=0, le=1)]


class Ema(Section):
    """An exponential moving average of the weights, evaluated in their place (Polyak and Juditsky 1992)."""

    decay: Annotated[Real, Field(gt=0, lt=1)]


class Loss(Section):
    """The coefficients of a segmentation's losses; what is left out is 0. See `mmseg_cli.training.losses`.

    `ohem_threshold` and `ohem_min_share` go with `ohem`: which pixels are hard, and the share that is kept at least.
    """

    cross_entropy: Coefficient = 0
    ohem: Coefficient = 0
    dice: Coefficient = 0
    lovasz: Coefficient = 0
    rmi: Coefficient = 0
    ohem_threshold: Fraction | None = None
    ohem_min_share: Fraction | None = None

    @model_validator(mode="after")
    def _complete(self) -> Loss:
        if not any(self.coefficients().values()):
            raise ValueError("give at least one loss a coefficient above 0")
        complete = self.ohem_threshold is not None and self.ohem_min_share is not None
        if bool(self.ohem) != complete:
            raise ValueError("ohem, ohem_threshold and ohem_min_share go together")
        return self

    def coefficients(self) -> dict[str, float]:
        """The coefficient of each loss, by name."""
        return {name: getattr(self, name) for name in LOSS_NAMES}


class Stage(Section):
    """One rung of the ladder. `steps: 0` leaves it out: the weights before it pass through.

    `norm_batch` is the number of samples behind one batch-norm statistic, over all processes; `batch / norm_batch`
    parts are accumulated before an update. `precision` is the type of automatic mixed precision. `precise_bn` is the
    number of norm batches that the statistics of averaged weights (`lookahead`, `ema`) are estimated from.

    Nothing here has a default: what decides a result stands in the preset, where DVC sees it.
    """

    dataset: Name
    steps: Annotated[int, Field(ge=0)]
    batch: Positive
    norm_batch: Positive
    crop: Size
    precision: Literal["float32", "bfloat16", "float16"]
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[Real, Field(gt=0)]
    weight_decay: Annotated[Real, Field(ge=0)]
    lookahead: Lookahead | None
    ema: Ema | None
    precise_bn: Annotated[int, Field(ge=0)]
    stochastic_depth: Annotated[Real, Field(ge=0, lt=1)]
    warmup_steps: Annotated[int, Field(ge=0)]
    schedule: Literal["poly", "cosine", "constant"]
    power: Annotated[Real, Field(gt=0)]
    label_smoothing: Fraction
    clip_norm: Annotated[Real, Field(gt=0)] | None
    validate_every: Positive
    checkpoint_every: Positive

    @model_validator(mode="after")
    def _whole_parts(self) -> Self:
        if self.batch % self.norm_batch:
            raise ValueError("batch must be a multiple of norm_batch")
        return self


class ClassificationStage(Stage):
    """A rung that learns the class of a picture."""

    augment: ClassificationAugment


class SegmentationStage(Stage):
    """A rung that learns the class of every pixel. `deep_supervision` is the coefficient of the mean loss of auxiliary
    heads at every decoder level, 0 for none."""

    loss: Loss
    class_weights: Literal["none", "inverse-log"]
    deep_supervision: Coefficient
    augment: SegmentationAugment


Scale = Annotated[Real, Field(gt=0, le=16)]


class Augmented(Section):
    """Test-time augmentation: probabilities averaged over `scales` and, with `flip`, mirrored images."""

    scales: Annotated[list[Scale], Field(min_length=1)]
    flip: bool


class Evaluate(Section):
    """What is evaluated, how, and what is counted. The figures of the tables are single scale.

    `window` is the [height, width] of the windows that images are predicted in, null for whole images; windows overlap
    by `overlap` at least, and weigh `gaussian` or `flat`. `memory_gib` limits what a prediction takes: where the whole
    image does not fit, it is predicted in windows that do, and the report says so. `fold` folds batch norms into
    convolutions. `augmented` adds a figure with test-time augmentation, `branches` those of the network without each of
    its resolutions, and of the heads of deep supervision (`mmseg_cli.evaluation.branches`).

    `boundaries` are distances in pixels, `object_sizes` the areas in pixels where medium and large begin, `row_bands`
    the number of bands from the top of the image to its bottom. `official` runs the benchmark's own program on the
    PNGs that were written. `examples` pictures of each of the best, median and worst images are shown.
    """

    dataset: Name
    precision: Literal["float32", "bfloat16"]
    fold: bool
    window: Size | None
    overlap: Annotated[Real, Field(ge=0, lt=1)]
    weights: Literal["flat", "gaussian"]
    memory_gib: Annotated[Real, Field(gt=0)] | None
    augmented: Augmented | None
    branches: bool
    boundaries: Annotated[list[Positive], Field(min_length=1)]
    object_sizes: Size
    row_bands: Positive
    official: bool
    examples: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.object_sizes[0] >= self.object_sizes[1]:
            raise ValueError("object_sizes must be [where medium begins, where large begins]")
        if sorted(set(self.boundaries)) != self.boundaries:
            raise ValueError("boundaries must rise")
        return self


class CostSection(Section):
    """The measured cost: one training step of `batch` crops, and the prediction of one image of the size `inference`,
    each timed in turn for all variants, `repeats` times after `warmup` rounds."""

    batch: Positive
    crop: Size
    inference: Size
    repeats: Positive
    warmup: Annotated[int, Field(ge=0)]


class Ablate(Section):
    """The grid: every variant is trained with every seed; the first variant is the baseline.

    `estimand` is what intervals and verdicts are about: `this-set`, these very validation images, or `new-images`,
    others like them. `image_blocks` says which of them are alike: `image`, none; `prefix`, those whose names begin
    alike up to the first underscore, as in a city of Cityscapes or a drive of CamVid. See
    `mmseg_cli.ablation.statistics`.
    """

    variants: Annotated[list[Name], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]], Field(min_length=1)]
    estimand: Literal["this-set", "new-images"]
    image_blocks: Literal["image", "prefix"]

    @model_validator(mode="after")
    def _distinct(self) -> Ablate:
        for key in ("variants", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} holds the same one twice")
        return self


class Runtime(Section):
    """The machine. None of these changes what is computed, except for the last bits of a sum, and for what stochastic
    depth draws where `devices` or `micro_batch` differ.

    `devices` processes train together, `auto` being one for each GPU. `micro_batch` is the number of samples that a
    process works on at once where no batch norm fixes it; None is all of `norm_batch`'s share. `recompute` is
    activation checkpointing: the inside of each block is computed a second time instead of kept. `deterministic` gives
    equal bits on the same machine type and thread count. `validation_batch` images of equal size are validated at once.
    """

    device: str
    devices: Positive | Literal["auto"]
    workers: Annotated[int, Field(ge=0)]
    threads: Positive | None
    channels_last: bool
    micro_batch: Positive | None
    recompute: bool
    compile: bool
    deterministic: bool
    validation_batch: Positive


class Needs(Section):
    """What one stage takes of a machine while it runs; `alone` is a machine on which nothing else of the grid runs.

    `gpus: auto` is one where `runtime.device` means a GPU, as many as `runtime.devices` says, else none.
    """

    gpus: Annotated[int, Field(ge=0)] | Literal["auto"]
    cpus: Positive
    memory_gib: Annotated[Real, Field(gt=0)]
    alone: bool = False


class Execution(Section):
    """How `mmseg ablate --executor` spreads the stages. None of it changes what is computed.

    `needs` are those of a kind of stage, such as `train`; kinds that are not named have those of `other`. A stage whose
    machine was lost, or that was stopped by a signal, is tried again `retries` times without a step gained in between.
    `clones` is a folder of each machine for clones of the project, where machines share no folder; `save_minutes` is
    what a stage gets to save when it is stopped. `slurm` are further parameters of submitit, such as `partition`.
    """

    needs: dict[Name, Needs]
    retries: Annotated[int, Field(ge=0)]
    clones: str | None
    save_minutes: Positive
    slurm: dict[Name, str | int | bool]

    @field_validator("clones")
    @classmethod
    def _is_the_same_everywhere(cls, folder: str | None) -> str | None:
        if folder is not None and not folder.startswith(("/", "~")):
            raise ValueError(f"{folder!r} is another folder on each machine: begin it with / or ~")
        return folder

    @model_validator(mode="after")
    def _has_other(self) -> Execution:
        if "other" not in self.needs:
            raise ValueError("needs.other is missing: what stages need that are not named")
        return self

    def needs_of(self, kind: str) -> Needs:
        """What a stage needs, by its kind: its name up to the `@`."""
        return self.needs.get(kind, self.needs["other"])


class Tracking(Section):
    """The MLflow mirror. `uri: null` is MLFLOW_TRACKING_URI or the project's own `mlflow.db`."""

    enabled: bool
    uri: str | None
    experiment: str


class Params(Section):
    """A whole preset."""

    preset: Name
    root: str
    params_file: str
    datasets: dict[Name, Dataset]
    network: Network
    variants: dict[Name, Variant]
    pretrain_imagenet: ClassificationStage
    pretrain_mapillary: SegmentationStage
    train: SegmentationStage
    evaluate: Evaluate
    cost: CostSection
    ablate: Ablate
    runtime: Runtime
    execution: Execution
    tracking: Tracking

    @model_validator(mode="after")
    def _known_names(self) -> Params:
        for variant in self.ablate.variants:
            if variant not in self.variants:
                raise ValueError(f"ablate.variants: {variant!r} is not in variants")
        for name, chosen in self.datasets.items():
            if chosen.layout is None and name not in get_args(Layout):
                raise ValueError(f"datasets.{name}.layout: name one of {', '.join(get_args(Layout))}")
        for section in (*LADDER, "evaluate"):
            dataset = getattr(self, section).dataset
            if dataset not in self.datasets:
                raise ValueError(f"{section}.dataset: {dataset!r} is not in datasets")
        for variant in self.variants:
            for stage in LADDER:
                self._require_section(variant, stage)
        return self

    def _require_section(self, variant: str, stage: str) -> None:
        """Raise ValueError where a variant makes nothing sensible of a stage."""
        try:
            section = self.section_of(variant, stage)
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(str(part) for part in ("variants", variant, stage, *fault["loc"]))
            raise ValueError(f"{key}: {fault['msg'].removeprefix('Value error, ')}") from None
        if "dataset" in self.variants[variant].changes(stage):
            raise ValueError(f"variants.{variant}.{stage}.dataset: the rows of a table have the same data, remove it")
        if stage == "train" and section.steps == 0:
            key = f"variants.{variant}.train" if "steps" in self.variants[variant].train else "train"
            raise ValueError(f"{key}.steps: must be at least 1, only pretraining can be left out")
        if self.variants[variant].start and stage in self.variants[variant].rungs() and section.steps == 0:
            raise ValueError(f"variants.{variant}.start: {stage}.steps is 0 in this preset, there is no such rung")

    def network_of(self, variant: str) -> dict[str, Any]:
        """The explicit arguments of `mmseg_cli.models.unet.UNet` for one variant: `network`, then what it changes.

        Raises:
            MmsegError: `variant` is not in `variants`.
        """
        return self.network.model_dump() | self._variant(variant).network()

    def section_of(self, variant: str, stage: str) -> Stage:
        """The parameters of one rung for one variant: the stage's own section, then what the variant changes of it.

        Raises:
            MmsegError: `variant` is not in `variants`.
        """
        section: Stage = getattr(self, stage)
        changes = self._variant(variant).changes(stage)
        return type(section).model_validate(_merged(section.model_dump(), changes)) if changes else section

    def _variant(self, variant: str) -> Variant:
        if variant not in self.variants:
            raise MmsegError(f"variants.{variant}", "no such variant", f"choose from {', '.join(self.variants)}")
        return self.variants[variant]


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested values with some of them changed."""
    out = dict(values)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML with the scalar rules of YAML 1.2 as DVC's reader (ruamel.yaml) has them: `1e-4` is a number, `no` is a
    string, `1_000` is a thousand, a key that stands twice is an error. Two readers of one file must agree."""


_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$", "-+0123456789"),
    ("float", r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)$", "-+0123456789"),
    ("float", r"^[-+]?\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?$", "-+."),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^<<$", "<"),
):
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0 if text.lstrip("+-")[:2] in ("0b", "0o", "0x") else 10)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    own: set[Any] = set()
    for key_node, _ in node.value:  # before merging: a key beside `<<` replaces the merged one
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | None):
            raise yaml.constructor.ConstructorError(None, None, "a key that is not a name", key_node.start_mark)
        if key in own:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        own.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key_node, deep=True): loader.construct_object(value_node, deep=True)
        for key_node, value_node in node.value
    }


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, by the same scalar rules as DVC.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Yaml12Loader)


def read_yaml(path: Path) -> Any:
    """The value in a YAML file, by the same scalar rules as DVC.

    Raises:
        MmsegError: the file is missing or is not YAML; the message gives the line.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MmsegError(path, "missing", "give the path of an existing file") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else "somewhere"
        raise MmsegError(path, f"not valid YAML, {line} ({error.problem})", "mend that line") from error
    except RecursionError:
        raise MmsegError(path, "is nested too deep", "mend the file") from None
    except (yaml.YAMLError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:  # as in `!!bool x`
        raise MmsegError(path, f"cannot be read ({' '.join(str(error).split())})", "mend the file") from error


def load(path: Path) -> Params:
    """Read and check a preset's parameters.

    Raises:
        MmsegError: names the file and the key's path of the first fault.
    """
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise MmsegError(path, "holds no sections", "compare it with the demo's params.yaml")
    try:
        return Params.model_validate(value)
    except ValidationError as error:
        # A misspelt key is an unknown one and a missing one: what is there is told.
        fault = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in fault["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if fault["type"] == "extra_forbidden":
            raise MmsegError(path, f"unknown key {key}", f"correct or remove it{more}") from None
        if fault["type"] == "missing":
            raise MmsegError(path, f"the key {key} is missing", f"add it{more}") from None
        got = "" if fault["type"] == "value_error" else f", got {fault['input']!r}"
        message = fault["msg"].removeprefix("Value error, ")
        where = f"{key}: " if key else ""
        raise MmsegError(path, f"{where}{message}{got}", f"correct the value{more}") from None
