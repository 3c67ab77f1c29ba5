"""claims.md: every number and claim of the paper (arXiv 2402.04618), and what a preset's evidence says of it.

Each claim has one of four statuses, whose rules stand at the sheet's end (`RULES`). The paper's mIoU is of Cityscapes,
so on other data a claim about it is not attempted, and the sheet says no more than a direction there.

Rows are found by what they are (their network and rungs), never by their names: of a comparison, all pairs of rows that
differ in nothing else. Everything is computed from the evidence; no file is read.

What we could read of the paper: its abstract, the beginning of its introduction, and a review of it (themoonlight.io);
not the tables of its ablations. Each claim says where it is from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from mmseg_cli.ablation import costs, statistics
from mmseg_cli.ablation.grid import Evidence, Wanted
from mmseg_cli.ablation.rows import SIZE, Row, in_words, interval, matched_ratio, number, probability
from mmseg_cli.ablation.statistics import FEWEST_SEEDS, NO_VERDICT, Interval, Verdict
from mmseg_cli.ablation.tables import markdown_table
from mmseg_cli.names import LADDER

REPRODUCED, CONTRADICTED, NO_EVIDENCE = "reproduced", "contradicted", "no evidence either way"
NOT_ATTEMPTED = "not attempted"
NOTHING = "–"
MMBCONV, MBCONV, RESIDUAL = "mmbconv", "mbconv", "residual"
MARGIN = 1.0  # points of mIoU: what "marginally" means, and half of the widest interval that a number is held against
EQUAL = 0.1  # relative: how far what was solved for may be off in a pair of rows, for a width is a whole number
ROUNDED = 0.05  # points: the paper gives one decimal
VAL_SPACE, VAL_CITIES = "cityscapes-19", {"frankfurt": 267, "lindau": 59, "munster": 174}  # images of Cityscapes val

# ------------------------------------------------------------------------------------------------ what it takes

SEEDS = 3
PLANNED = "`mmseg plan paper --gpus 8x80GB`, 2026-11-27"
DATA = "ImageNet, Mapillary Vistas v1.2 and Cityscapes"
IMAGENET, MAPILLARY, TRAIN = LADDER
# GPU hours of one run by rung: the hours a run that PLANNED prints, times 8 devices. A slow test computes them again.
HOURS = {
    RESIDUAL: {IMAGENET: 54.1, MAPILLARY: 32.1, TRAIN: 6.4},
    MBCONV: {IMAGENET: 44.9, MAPILLARY: 26.6, TRAIN: 5.3},
    MMBCONV: {IMAGENET: 154.7, MAPILLARY: 91.1, TRAIN: 18.2},
}
# Of the rows `uniform` and `pyramid`, both of 5 levels: at the preset's 8, a pyramid of equal MACs would have billions
# of weights.
LAYOUT_HOURS = {
    "uniform": {IMAGENET: 54.0, MAPILLARY: 32.0, TRAIN: 6.4},
    "pyramid": {IMAGENET: 54.2, MAPILLARY: 31.0, TRAIN: 6.2},
}


def _ladder(*blocks: str) -> float:
    """GPU hours of one seed of each block, up the whole ladder."""
    return sum(sum(HOURS[block].values()) for block in blocks)


def _takes(hours: float, how: str, *, data: str = DATA) -> str:
    """What an attempt takes.

    Args:
        hours: of one seed.
        how: the command, or the rows.
        data: that must be at hand.
    """
    return f"{how}; {data}; about {round(SEEDS * hours, -1):,.0f} GPU hours for {SEEDS} seeds ({PLANNED})"


AT_SCALE = "`dvc repro pipelines/paper/dvc.yaml`"


def _last_rung_takes(row: str) -> str:
    """What a row of the paper's preset takes that differs from mmbconv in the last rung alone."""
    return _takes(_ladder(MMBCONV) + HOURS[MMBCONV][TRAIN], f"`mmbconv` and `{row}` of {AT_SCALE}")


VAL_TAKES = _takes(_ladder(MMBCONV), f"`mmbconv` of {AT_SCALE}")
TEST_TAKES = f"the runs for val, then `mmseg submit cityscapes` and an upload to the benchmark's server. {VAL_TAKES}"
COST_TAKES = (
    "minutes of one GPU and no training: `mmseg cost --preset paper --measure` (it reads the prepared Cityscapes, for"
    " the number of classes); this sheet is written once the rest of that preset's evidence is there"
)
COUNT_TAKES = "a grid with `mbconv` and `mmbconv`; `mmseg cost --preset paper` counts in seconds, without data"
STARTS = "`mmseg ablate --preset paper --blocks mmbconv --starts"
LAYOUT_TAKES = _takes(
    sum(sum(hours.values()) for hours in LAYOUT_HOURS.values()), f"`uniform` and `pyramid` of {AT_SCALE}"
)


# ------------------------------------------------------------------------------------------------ the sheet's parts


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        title: what it is about.
        claimed: the paper's number or word.
        source: where that is from, and what is not said there.
        ours: our number, with its interval; a dash where there is none.
        status: one of the four.
        why: the reason.
        attempt: what it would take; None where it was attempted.
        direction: what the verdict is on data that are not the claimed ones; None where there is none.
    """

    title: str
    claimed: str
    source: str
    ours: str
    status: str
    why: str
    attempt: str | None
    direction: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two rows that differ in nothing but what a claim is about.

    Attributes:
        title: of the claim.
        better: the row that it says is better.
        other: than this one.
        difference: better - other in mIoU, points of percent.
        verdict: after Holm over all comparisons of the sheet.
    """

    title: str
    better: str
    other: str
    difference: Interval
    verdict: Verdict


Fits = Callable[[Wanted, Wanted], bool]


@dataclass(frozen=True)
class Question:
    """A claim that one kind of row is better than another.

    Attributes:
        title, claimed, source, attempt: as in `Claim`.
        fits: whether two rows are such a pair, the better one first.
        margin: in points, where it is said to be better by no more than that; else None.
    """

    title: str
    claimed: str
    source: str
    attempt: str
    fits: Fits
    margin: float | None = None


# ------------------------------------------------------------------------------------------------ pairs of rows


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _networks(better: str, other: str) -> Fits:
    """Networks that differ in the block alone."""

    def fits(one: Wanted, two: Wanted) -> bool:
        blocks = (one.network["block"], two.network["block"])
        return blocks == (better, other) and _without(one.network, "block") == _without(two.network, "block")

    return fits


def _blocks(better: str, other: str) -> Fits:
    """Rows that differ in the block alone."""
    networks = _networks(better, other)
    return lambda one, two: networks(one, two) and one.rungs == two.rungs


def _layouts(one: Wanted, two: Wanted) -> bool:
    """Rows that differ in the layout alone, and where one is matched in what was solved for that."""
    layouts = (one.network["layout"], two.network["layout"])
    free = ("layout", *SIZE) if one.match or two.match else ("layout",)
    same = _without(one.network, *free) == _without(two.network, *free)
    return layouts == ("uniform", "pyramid") and same and one.rungs == two.rungs


def _rung(stage: str) -> Fits:
    """Rows that differ in one pretraining rung alone, which the first has."""
    return lambda one, two: (
        one.network == two.network and stage in one.rungs and _without(one.rungs, stage) == two.rungs
    )


def _recipe(*keys: str, better: Callable[[dict[str, Any]], bool]) -> Fits:
    """Rows that differ in these keys of the last rung alone; `better` tells the one that has what they are about."""

    def fits(one: Wanted, two: Wanted) -> bool:
        if one.network != two.network or _without(one.rungs, TRAIN) != _without(two.rungs, TRAIN):
            return False
        own, other = one.rungs[TRAIN], two.rungs[TRAIN]
        return better(own) and not better(other) and _without(own, *keys) == _without(other, *keys)

    return fits


def _augments(section: dict[str, Any]) -> bool:
    """Whether crops are changed at random in any way but their place."""
    augment = section["augment"]
    return augment["scale"] != [1, 1] or any(augment[key] for key in ("flip", "colour", "blur", "class_uniform"))


def _whole_batch(section: dict[str, Any]) -> bool:
    """Whether a batch-norm statistic is of the whole batch, as synchronised devices have it."""
    return bool(section["norm_batch"] == section["batch"])


def _pairs(evidence: Evidence, fits: Fits) -> list[tuple[str, str]]:
    """All pairs of rows that fit: mmbconv's first, then those that change least of the preset, then in table order."""
    wanted = evidence.wanted
    found = [
        (one, two)
        for one, two in permutations(evidence.variants, 2)
        if fits(wanted[one], wanted[two]) and _fair(evidence, one, two)
    ]
    return sorted(found, key=lambda pair: (_block(wanted[pair[0]]), sum(len(wanted[name].changes) for name in pair)))


def _fair(evidence: Evidence, *names: str) -> bool:
    """Whether two rows have the same size, or the same of what the size of one was solved for."""
    one, two = (evidence.wanted[name] for name in names)
    if all(one.network[key] == two.network[key] for key in SIZE):
        return True
    measured = costs.compared(evidence.cost, variants=names)
    first, second = (measured[name] for name in names)
    kinds = [kind for kind in (one.match, two.match) if kind]
    return all(abs(matched_ratio(kind, second, first) - 1) <= EQUAL for kind in kinds)


def _block(wanted: Wanted) -> bool:
    """False, which sorts first, for the paper's block."""
    return bool(wanted.network["block"] != MMBCONV)


def comparisons(evidence: Evidence) -> list[Comparison]:
    """Every pair of rows that a claim is about; of each claim, the pair that its status rests on comes first."""
    pairs = [(question.title, *pair) for question in QUESTIONS for pair in _pairs(evidence, question.fits)]
    differences = [
        statistics.of_difference(
            evidence.sample(better, "iou"), evidence.sample(other, "iou"), estimand=evidence.estimand
        )
        for _, better, other in pairs
    ]
    verdicts = statistics.verdicts(differences)
    return [
        Comparison(title, better, other, difference, verdict)
        for (title, better, other), difference, verdict in zip(pairs, differences, verdicts, strict=True)
    ]


# ------------------------------------------------------------------------------------------------ what is better

ABLATIONS = "its ablation's numbers are not in what we could read"
QUESTIONS = (
    Question(
        title="MBConv against residual blocks",
        claimed="only marginally better",
        source="this project's plan, which sums the paper up; not in what we could read, nor by how many points",
        attempt=_takes(_ladder(MBCONV, RESIDUAL), f"`mbconv` and `residual` of {AT_SCALE}"),
        fits=_blocks(MBCONV, RESIDUAL),
        margin=MARGIN,
    ),
    Question(
        title="MMBConv against MBConv",
        claimed="better",
        source=f'the abstract ("demonstrating the efficacy of our proposed modifications"); {ABLATIONS}',
        attempt=_takes(_ladder(MMBCONV, MBCONV), f"`mmbconv` and `mbconv` of {AT_SCALE}"),
        fits=_blocks(MMBCONV, MBCONV),
    ),
    Question(
        title="MMBConv against residual blocks",
        claimed="better",
        source=f"follows from the two claims above; {ABLATIONS}",
        attempt=_takes(_ladder(MMBCONV, RESIDUAL), f"`mmbconv` and `residual` of {AT_SCALE}"),
        fits=_blocks(MMBCONV, RESIDUAL),
    ),
    Question(
        title="Uniform against pyramid layout",
        claimed="better",
        source=(
            'the abstract: each branch "regardless of its resolution, should possess equivalent segmentation'
            f' capabilities"; {ABLATIONS}, nor whether the pyramid had the same width or the same cost'
        ),
        attempt=LAYOUT_TAKES,
        fits=_layouts,
    ),
    Question(
        title="Pretraining on ImageNet",
        claimed="helps",
        source="the paper trains on ImageNet first; that it helps is implied, by how much is not in what we could read",
        attempt=_takes(
            HOURS[MMBCONV][IMAGENET] + 2 * HOURS[MMBCONV][TRAIN],
            f"{STARTS} scratch,imagenet`",
            data="ImageNet and Cityscapes",
        ),
        fits=_rung(IMAGENET),
    ),
    Question(
        title="Pretraining on Mapillary Vistas",
        claimed="helps",
        source="the paper trains on Vistas next; that it helps is implied, by how much is not in what we could read",
        attempt=_takes(_ladder(MMBCONV) + HOURS[MMBCONV][TRAIN], f"{STARTS} imagenet,mapillary` (ImageNet is shared)"),
        fits=_rung(MAPILLARY),
    ),
    Question(
        title="Data augmentation",
        claimed="used",
        source="the paper trains with it; what it contributes is not in what we could read. On the last rung",
        attempt=_last_rung_takes("mmbconv-plain-crops"),
        fits=_recipe("augment", better=_augments),
    ),
    Question(
        title="Lookahead",
        claimed="used",
        source="a secondary source names it; what it contributes is not in what we could read. On the last rung",
        attempt=_last_rung_takes("mmbconv-no-lookahead"),
        fits=_recipe("lookahead", "precise_bn", better=lambda section: section["lookahead"] is not None),
    ),
    Question(
        title="Synchronised batch norm",
        claimed="used",
        source="the paper synchronises over GPUs; what it contributes is not in what we could read. On the last rung",
        attempt=_last_rung_takes("mmbconv-norm-8"),
        fits=_recipe("norm_batch", better=_whole_batch),
    ),
)


def _of_question(evidence: Evidence, question: Question, found: Sequence[Comparison]) -> Claim:
    """A claim that something is better, by the comparisons of the sheet."""
    own = [one for one in found if one.title == question.title]
    ours, why, status = NOTHING, "no two rows of this grid differ in that alone", NOT_ATTEMPTED
    direction = None
    if own:
        first, place = own[0], _dataset(evidence)
        ours = f"{interval(first.difference, sign='+')} on {place}"
        said = _in_words(first, margin=question.margin)
        if is_cityscapes_val(evidence):
            status, why = _status_of(first, margin=question.margin), said
        else:
            why, direction = f"{_elsewhere(evidence)}; direction on {place}: {said}", first.verdict.word
    attempt = question.attempt if status == NOT_ATTEMPTED else None
    return Claim(question.title, question.claimed, question.source, ours, status, why, attempt, direction)


def _status_of(found: Comparison, *, margin: float | None) -> str:
    """The status of a comparison on the claimed data; see `RULES`."""
    word, low, high = found.verdict.word, found.difference.low, found.difference.high
    if word == NO_VERDICT or low is None or high is None:
        return NO_EVIDENCE
    if margin is None:
        return {statistics.BETTER: REPRODUCED, statistics.WORSE: CONTRADICTED}.get(word, NO_EVIDENCE)
    if high < 0 or low > margin:
        return CONTRADICTED
    return REPRODUCED if -margin <= low and high <= margin else NO_EVIDENCE


def _in_words(found: Comparison, *, margin: float | None) -> str:
    """What may be said of a comparison."""
    word, low, high = found.verdict.word, found.difference.low, found.difference.high
    reason = found.difference.reason or f"fewer than {FEWEST_SEEDS} seeds"
    note = reason if word == NO_VERDICT else f"p {probability(found.verdict.adjusted_p)} after Holm"
    text = f"**{word}** (`{found.better}` against `{found.other}`; {note})"
    if margin is None or low is None or high is None:
        return text
    inside = -margin <= low and high <= margin
    return f"{text}; the interval {'lies within' if inside else 'reaches beyond'} ±{margin:g} point"


# ------------------------------------------------------------------------------------------------ data


def is_cityscapes_val(evidence: Evidence) -> bool:
    """Whether the evidence is of the very images that the paper's numbers are claimed for."""
    first = evidence.first
    cities = Counter(name.partition("_")[0] for name in evidence.names)
    kind = (first["label_space"], first["split"])
    return kind == (VAL_SPACE, "val") and cities == VAL_CITIES and not first["dataset"].startswith("generated ")


def _dataset(evidence: Evidence) -> str:
    return str(evidence.first["dataset"])


def _elsewhere(evidence: Evidence) -> str:
    return f"this is {_dataset(evidence)} ({len(evidence.names)} {evidence.first['split']} images), not Cityscapes val"


# ------------------------------------------------------------------------------------------------ the numbers


def _reached(limits: tuple[float, float] | None, claimed: float) -> str:
    """The status of a claimed mIoU by a prediction interval, both in percent."""
    if limits is None:
        return NO_EVIDENCE
    low, high = limits
    if high < claimed - ROUNDED or low > claimed + ROUNDED:
        return CONTRADICTED
    return REPRODUCED if high - low <= 2 * MARGIN else NO_EVIDENCE


def _any_of(statuses: Sequence[str]) -> str:
    """The status where the source leaves open what exactly was measured: one suffices, all must contradict."""
    if REPRODUCED in statuses:
        return REPRODUCED
    return CONTRADICTED if set(statuses) == {CONTRADICTED} else NO_EVIDENCE


VAL = 84.0


def _val(evidence: Evidence, rows: Sequence[Row]) -> Claim:
    """84.0 % on Cityscapes val."""
    whole = sorted((row for row in rows if _is_the_papers(row.wanted)), key=lambda row: len(row.wanted.changes))
    ours, status = NOTHING, NOT_ATTEMPTED
    if not is_cityscapes_val(evidence):
        why = _elsewhere(evidence)
    elif not whole:
        why = "no row of this grid is mmbconv in a uniform layout, trained on all three datasets"
    else:
        row = whole[0]
        ours, status = _held_against(evidence, row.variant, claimed=VAL)
        millions = f"{row.cost.parameters / 1e6:.1f} M parameters, where the source gives no sizes"
        why = f"`{row.variant}`, {len(evidence.seeds)} seeds; {millions}"
    return Claim(
        title="mIoU on Cityscapes val",
        claimed=f"{VAL:.1f} %",
        source="the abstract; not said there: the network's sizes, the seeds, how val was predicted (scales, flips)",
        ours=ours,
        status=status,
        why=why,
        attempt=VAL_TAKES if status == NOT_ATTEMPTED else None,
    )


def _held_against(evidence: Evidence, variant: str, *, claimed: float) -> tuple[str, str]:
    """Our mIoU in words by every protocol that was evaluated, and the status of the claimed one, in percent."""
    texts, statuses = [], []
    for name, figure in (("single scale", "iou"), ("augmented", "iou_augmented")):
        if figure in evidence.figure_names:
            values = evidence.sample(variant, figure).plain_S.tolist()
            limits = statistics.of_one_more(values)
            statuses.append(_reached(limits, claimed))
            one = "" if limits is None else f", one training in [{number(limits[0])}, {number(limits[1])}]"
            texts.append(f"{name} {number(statistics.summarise(values).mean)}{one}")
    return "; ".join(texts), _any_of(statuses)


def _is_the_papers(wanted: Wanted) -> bool:
    """Whether a row is what the paper describes."""
    kind = (wanted.network["block"], wanted.network["layout"])
    return kind == (MMBCONV, "uniform") and list(wanted.rungs) == list(LADDER)


def _test() -> Claim:
    """84.5 % on Cityscapes test."""
    return Claim(
        title="mIoU on Cityscapes test",
        claimed="84.5 %",
        source="the abstract (a summary at sciencestack.ai has 84.58); not said: whether val was trained on as well",
        ours=NOTHING,
        status=NOT_ATTEMPTED,
        why="the labels of test are with the benchmark's server; evidence is of val",
        attempt=TEST_TAKES,
    )


# ------------------------------------------------------------------------------------------------ the cost


def _about(low: float | None, high: float | None, increase: float) -> str:
    """The status of "about so much more" by an interval of the ratio."""
    if low is None or high is None:
        return NO_EVIDENCE
    least, most = 1 + increase / 2, 1 + 1.5 * increase
    if high < least or low > most:
        return CONTRADICTED
    return REPRODUCED if least <= low and high <= most else NO_EVIDENCE


OVER = "for 3x3 in place of 1x1 convolutions, so over plain MBConv and not over residual blocks"
UNSAID = "not said: the device, the batch and the image size"


@dataclass(frozen=True)
class Ratio:
    """How many times as much MMBConv takes as MBConv, of one kind of work; no limits where there is no interval."""

    work: str
    value: float
    low: float | None
    high: float | None

    def text(self) -> str:
        """In words."""
        if self.low is None or self.high is None:
            return f"{self.work} {self.value:.2f}x (no interval)"
        limits = "" if self.low == self.high else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.work} {self.value:.2f}x{limits}"


def _costs(evidence: Evidence) -> list[Claim]:
    """About +10 % memory and +30 % time over MBConv."""
    of_memory, of_time = [], []
    for better, other in _pairs(evidence, _networks(MMBCONV, MBCONV))[:1]:
        found = costs.compared(evidence.cost, variants=[other, better])[better]
        of_memory.append(Ratio("training step", found.memory_ratio, found.memory_ratio, found.memory_ratio))
        for work, timing in (("training step", found.step), ("prediction", found.inference)):
            of_time.append(Ratio(work, timing.ratio, timing.low, timing.high))
    memory = f'a review of the paper (themoonlight.io): "around 10%" {OVER}; {UNSAID}'
    time = f'the same review: "around 30%" {OVER}; {UNSAID}, and whether it is training or prediction'
    return [
        _more(evidence, of_memory, title="Memory of MMBConv over MBConv", increase=0.1, source=memory),
        _more(evidence, of_time, title="Time of MMBConv over MBConv", increase=0.3, source=time),
    ]


def _more(evidence: Evidence, ratios: Sequence[Ratio], *, title: str, increase: float, source: str) -> Claim:
    """A claim of "about so much more"."""
    cost, machine = evidence.cost, evidence.cost["environment"]
    sizes = f"a step of {cost['batch']} crops of {cost['height']}x{cost['width']}, float32"
    ours, why, status = NOTHING, "no two networks of this grid differ in that alone", NOT_ATTEMPTED
    if ratios:
        ours = f"{'; '.join(ratio.text() for ratio in ratios)} on {machine.get('accelerator') or machine['processor']}"
        word = _any_of([_about(ratio.low, ratio.high, increase) for ratio in ratios])
        here = f"({sizes}); by the same rule here: {word}"
        if machine.get("accelerator") is None:
            why = f"not measured on a GPU {here}"
        elif not is_cityscapes_val(evidence):
            why = f"{_elsewhere(evidence)} {here}"
        else:
            status, why = word, sizes
    attempt = COST_TAKES if status == NOT_ATTEMPTED else None
    return Claim(title, f"about +{100 * increase:.0f} %", source, ours, status, why, attempt)


def pointwise(network: dict[str, Any]) -> int:
    """How many weights MBConv's expanding and projecting 1x1 convolutions have in a network.

    A block maps C channels to `expansion` times as many and back; there are `depth` of them at every level, and as many
    on the way up at all levels but the deepest (`mmseg_cli.models.unet`, which a test compares).
    """
    total = 0
    for level in range(network["levels"]):
        channels = network["width"] * (2**level if network["layout"] == "pyramid" else 1)
        sides = 1 if level == network["levels"] - 1 else 2
        total += sides * network["depth"] * 2 * channels * max(1, round(channels * network["expansion"]))
    return total


def _weights(evidence: Evidence, rows: Sequence[Row]) -> Claim:
    """Nine times the weights in the convolutions that are changed."""
    parameters = {row.variant: row.cost.parameters for row in rows}
    ours, status, why = NOTHING, NOT_ATTEMPTED, "no two networks of this grid differ in that alone"
    for better, other in _pairs(evidence, _networks(MMBCONV, MBCONV))[:1]:
        before = pointwise(evidence.wanted[other].network)
        after = before + parameters[better] - parameters[other]
        status = REPRODUCED if after == 9 * before else CONTRADICTED
        ours = f"{after / before:.2f} times; the whole network {parameters[better] / parameters[other]:.2f} times"
        why = (
            f"counted: {before:,} weights in the 1x1 convolutions of `{other}`'s blocks, {after:,} in their place in"
            f" `{better}`'s; {parameters[other]:,} and {parameters[better]:,} parameters in all"
        )
    return Claim(
        title="Weights of the changed convolutions",
        claimed="9 times",
        source="the block's definition: 3x3 for every 1x1; squeeze-excite, which works on 1x1 maps, keeps its own",
        ours=ours,
        status=status,
        why=why,
        attempt=COUNT_TAKES if status == NOT_ATTEMPTED else None,
    )


# ------------------------------------------------------------------------------------------------ the sheet

RULES = (
    "**Data.** The paper's mIoU is of Cityscapes. Only evidence of its val split (500 images of Frankfurt, Lindau and"
    " Münster, 19 classes) can reproduce or contradict a claim about it; on other data the status is *not attempted*,"
    " and a direction is given. That pretraining saw the real ImageNet and Vistas is taken from the preset.",
    "**Better, helps**: *reproduced* where the verdict is better, *contradicted* where it is worse, by the p value"
    " after Holm over all comparisons below, at 0.05; else *no evidence either way*. With fewer than three seeds there"
    " is no verdict.",
    f"**Only marginally better**: *reproduced* where the 95 % interval of the difference lies within ±{MARGIN:g} point"
    f" and not wholly below 0; *contradicted* where it lies wholly below 0 or above +{MARGIN:g}; else *no evidence"
    f" either way*. The {MARGIN:g} point is ours. This interval is not adjusted for the number of comparisons.",
    "**A number of mIoU** is one of some training of the paper's, so it is held against the 95 % interval of one more"
    " training of ours on the same images (Student's t over at least three seeds, s·√(1 + 1/n)). *Contradicted* where"
    " the interval leaves out the number, which is rounded to 0.1; *reproduced* where it holds it and is no wider than"
    f" {2 * MARGIN:g} points; else *no evidence either way*.",
    "**About +x %** is taken as x/2 to 3x/2. *Reproduced* where the 95 % interval of the ratio lies within,"
    " *contradicted* where it lies outside, else *no evidence either way*. Attempted only on a GPU and in a preset of"
    " Cityscapes, as the source names neither device nor size. Memory is one measurement, without an interval.",
    "**Where the source leaves open what was measured** (single scale or augmented, training or prediction), one that"
    " reproduces the number suffices, and all must contradict it.",
    "**9 times** is counted, and exact or not.",
    "**GPU hours** are an order of magnitude: estimated from counted work at 40 TFLOP/s and traffic at 1 TB/s a GPU,"
    " which are cautious assumptions (steps of `mmbconv` on an H200 came to 250 TFLOP/s in all), without validation,"
    " evaluation, loading of data and communication.",
    "**Pairs.** All pairs of rows that differ in nothing else are compared; of layouts, also those where width and"
    f" expansion were solved for equal cost, if it is equal within {100 * EQUAL:g} %. The status rests on the first: of"
    " `mmbconv` where there is a choice, then of rows that change least of the preset.",
    "**Ours, not the paper's.** The source gives no widths, depths or schedules. What is contradicted is a claim for"
    " our network and recipe.",
)


def claims(evidence: Evidence, rows: Sequence[Row], *, compared: Sequence[Comparison] | None = None) -> list[Claim]:
    """All claims, in the sheet's order.

    Args:
        rows: of the main table.
        compared: `comparisons` of the evidence, where they are at hand.
    """
    found = comparisons(evidence) if compared is None else compared
    return [
        _val(evidence, rows),
        _test(),
        *_costs(evidence),
        _weights(evidence, rows),
        *(_of_question(evidence, question, found) for question in QUESTIONS),
    ]


def sheet(evidence: Evidence, rows: Sequence[Row]) -> str:
    """The whole of claims.md.

    Args:
        rows: of the main table.
    """
    compared = comparisons(evidence)
    found = claims(evidence, rows, compared=compared)
    summary = [
        [str(place), one.title, one.claimed, one.ours, one.status, one.direction or NOTHING]
        for place, one in enumerate(found, start=1)
    ]
    titles = ["", "claim", "claimed", "ours", "status", f"direction on {_dataset(evidence)}"]
    shown = len(titles) - is_cityscapes_val(evidence)  # where a claim is attempted, it has no direction
    seeds = ", ".join(map(str, evidence.seeds))
    data = f"{_dataset(evidence)}, {len(evidence.names)} {evidence.first['split']} images, seeds {seeds}"
    parts = [
        f"# The paper's claims: {evidence.preset}",
        '"Multi-Scale Semantic Segmentation with Modified MBConv Blocks" ([arXiv'
        f" 2402.04618](https://arxiv.org/abs/2402.04618)) beside the evidence of `{evidence.preset}`: {data}. We could"
        " read its abstract, the beginning of its introduction and a review, not the tables of its ablations.",
        markdown_table(titles[:shown], [line[:shown] for line in summary], text=shown),
        *(_section(place, one) for place, one in enumerate(found, start=1)),
        "## Comparisons",
        _comparison_table(evidence, compared),
        "## How a status is decided",
        "\n".join(f"- {rule}" for rule in RULES),
        f"Generated by `mmseg ablate --no-run --preset {evidence.preset}` from the files in [evidence/](evidence/); do"
        " not edit.",
    ]
    return "\n\n".join(parts) + "\n"


def _section(place: int, claim: Claim) -> str:
    lines = [
        f"## {place}. {claim.title}",
        "",
        f"- **Claimed**: {claim.claimed}. Source: {claim.source}.",
        f"- **Ours**: {claim.ours}",
        f"- **Status**: *{claim.status}*: {claim.why}.",
    ]
    return "\n".join(lines + ([f"- **To attempt it**: {claim.attempt}."] if claim.attempt else []))


def _comparison_table(evidence: Evidence, found: Sequence[Comparison]) -> str:
    if not found:
        return "No two rows of this grid differ in what a claim is about alone."
    body = [
        [
            one.title,
            f"`{one.better}` against `{one.other}`",
            interval(one.difference, sign="+"),
            probability(one.verdict.adjusted_p),
            one.verdict.word,
        ]
        for one in found
    ]
    table = markdown_table(["claim", "rows", "Δ mIoU [95 %]", "p (Holm)", "verdict"], body, text=2)
    names = dict.fromkeys(name for one in found for name in (one.better, one.other))
    rows = "; ".join(f"`{name}`: {in_words(evidence.wanted[name])}" for name in names)
    about = f"Points of percent, paired by seed and image, {evidence.estimand} (see [ablation.md](ablation.md))"
    return f"{table}\n\n{about}. {rows}."
