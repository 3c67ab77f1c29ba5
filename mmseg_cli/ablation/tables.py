"""The markdown tables of an ablation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from mmseg_cli.ablation import costs, statistics
from mmseg_cli.ablation.grid import Evidence
from mmseg_cli.ablation.rows import Judged, Row, cells, headings, interval, judged, number, ratio
from mmseg_cli.ablation.statistics import NEW_IMAGES, THIS_SET, Interval

MARKS = {statistics.BETTER: " ▲", statistics.WORSE: " ▼"}


def markdown_table(titles: Sequence[str], body: Iterable[Sequence[str]], *, text: int = 1) -> str:
    """A table padded to be read as plain text too; the first `text` columns are words, the others numbers."""
    lines = [list(titles), *(list(line) for line in body)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(titles))]

    def line(texts: Sequence[str]) -> str:
        padded = [
            word.ljust(width) if column < text else word.rjust(width)
            for column, (word, width) in enumerate(zip(texts, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rules = ["-" * (width - 1) for width in widths]
    rule = [f":{dashes}" if column < text else f"{dashes}:" for column, dashes in enumerate(rules)]
    return "\n".join([line(lines[0]), f"| {' | '.join(rule)} |", *map(line, lines[1:])])


def main_table(evidence: Evidence, found: Sequence[Row], *, certificates: str) -> str:
    """The table that is read first; each row's name links to its certificate."""
    body = [[f"[{row.variant}]({certificates}/{row.variant}.json)", *cells(row)[1:]] for row in found]
    return markdown_table(headings(evidence), body)


# ------------------------------------------------------------------------------------------------ further tables


def cost_table(found: Sequence[Row]) -> str:
    """What was measured, absolute and as ratios to the baseline with their 95 % intervals."""
    energy = any(row.cost.joules is not None for row in found)
    titles = ["variant", "s / step", "ratio", "images / s", "peak MiB", "ratio", "ms / image", "ratio"]
    body = []
    for row in found:
        step, inference, joules = row.cost.step, row.cost.inference, row.cost.joules
        line = [
            row.variant,
            f"{step.median:.3f}",
            _with_interval(step),
            f"{row.cost.images_per_second:.1f}",
            f"{row.cost.peak_bytes / 2**20:.0f}",
            ratio(row.cost.memory_ratio),
            f"{1000 * inference.median:.1f}",
            _with_interval(inference),
        ]
        if energy:
            line += ["–", "–"] if joules is None else [f"{joules.median:.2f}", _with_interval(joules)]
        body.append(line)
    return markdown_table([*titles, *(["J / step", "ratio"] if energy else [])], body)


def _with_interval(sample: costs.Timing) -> str:
    if sample.low is None or sample.high is None:
        return ratio(sample.ratio)
    return f"{sample.ratio:.2f} [{sample.low:.2f}, {sample.high:.2f}]"


def class_table(evidence: Evidence) -> str:
    """IoU of every class: the baseline's, and the differences to it, judged together."""
    return _differences_table(evidence, "class", [(name, "iou", name) for name in evidence.classes])


def anatomy(evidence: Evidence) -> list[tuple[str, str]]:
    """The figures that say where in an image a difference lies, as (title, name)."""
    found = []
    for name in evidence.figure_names:
        kind, _, rest = name.partition("_")
        if name.startswith(("boundary_iou_", "boundary_f1_")):
            measure = "boundary IoU" if "_iou_" in name else "boundary F1"
            found.append((f"{measure}, {name.rsplit('_', 1)[1].removesuffix('px')} px", name))
        elif kind in ("recall", "found"):
            what = {"recall": "pixels found of", "found": "objects found of"}[kind]
            found.append((f"{what} {rest} objects", name))
        elif name.startswith("iou_rows_"):
            band, bands = int(name.rsplit("_", 1)[1]), len(evidence.first["rows"])
            place = " (top)" if band == 0 else " (bottom)" if band == bands - 1 else ""
            found.append((f"mIoU in rows, band {band + 1} of {bands}{place}", name))
    return found


def anatomy_table(evidence: Evidence) -> str:
    """Boundaries, object sizes and row bands: the baseline's figures, and the differences to them, judged together."""
    return _differences_table(evidence, "figure", [(title, name, None) for title, name in anatomy(evidence)])


def _marked(one: Judged) -> str:
    return interval(one.interval, sign="+") + MARKS.get(one.verdict.word, "")


def _differences_table(evidence: Evidence, title: str, lines: list[tuple[str, str, str | None]]) -> str:
    """The baseline's figure, then each variant's difference with interval and mark; Holm is over the whole table."""
    found = judged(evidence, [(figure, class_) for _, figure, class_ in lines])
    body = [
        [
            label,
            number(evidence.mean(evidence.baseline, figure, class_=class_).estimate),
            *map(_marked, found[figure, class_].values()),
        ]
        for label, figure, class_ in lines
        if (figure, class_) in found
    ]
    return markdown_table([title, evidence.baseline, *(f"Δ {name}" for name in evidence.variants[1:])], body)


def check_table(evidence: Evidence, found: Sequence[Row]) -> str:
    """The difference in mIoU by both estimands, and by the crossed bootstrap."""
    body = []
    for row in found[1:]:
        difference = evidence.difference(row.variant, "iou", estimand=NEW_IMAGES)
        drawn = "–"
        if difference.blocks > 1 and difference.seeds > 1:
            low, high = evidence.bootstrap(row.variant, "iou")
            drawn = f"[{low:+.2f}, {high:+.2f}]"
        body.append(
            [
                row.variant,
                interval(evidence.difference(row.variant, "iou", estimand=THIS_SET), sign="+"),
                interval(difference, sign="+") if difference.low is not None else f"– ({difference.reason})",
                drawn,
                number(difference.spread),
                *(number(math.sqrt(part)) if part is not None else "–" for part in _components(difference)),
            ]
        )
    titles = ["variant", "this set", "new images", "crossed bootstrap", "sd of Δ", "sd seed", "sd image", "sd rest"]
    return markdown_table(titles, body)


def _components(found: Interval) -> tuple[float | None, float | None, float | None]:
    return found.seed_variance, found.image_variance, found.residual_variance


def classification(evidence: Evidence) -> dict[str, list[float]]:
    """Top-1 accuracy of the ImageNet rung in percent, for every seed, of the variants that have it."""
    found: dict[str, list[float]] = {}
    for variant in evidence.variants:
        for seed in evidence.seeds:
            for rung in evidence.runs[variant, seed]["run"]["rungs"]:
                if rung["stage"] == "pretrain_imagenet" and rung["figures"].get("top1") is not None:
                    found.setdefault(variant, []).append(100 * rung["figures"]["top1"])
    return {variant: values for variant, values in found.items() if len(values) == len(evidence.seeds)}


def classification_table(evidence: Evidence) -> str | None:
    """Does a block help segmentation more than classification? None unless two variants were classified.

    The gain in top-1 and the gain in mIoU are of different scales: what can be compared is their sign and their size
    against their own intervals.
    """
    import numpy as np

    found = {name: np.array(values) for name, values in classification(evidence).items()}
    if evidence.baseline not in found or len(found) < 2:
        return None

    def one(values: Any) -> statistics.Sample:
        return statistics.Sample(values, values[:, None])

    body = []
    for variant, values in found.items():
        compared = ["baseline", "baseline"]
        if variant != evidence.baseline:
            gain = statistics.of_difference(one(values), one(found[evidence.baseline]), estimand=THIS_SET)
            of_iou = evidence.difference(variant, "iou", estimand=THIS_SET)
            compared = [interval(gain, sign="+"), interval(of_iou, sign="+")]
        body.append([variant, number(float(values.mean())), *compared])
    return markdown_table(["variant", "top-1 %", "Δ top-1", "Δ mIoU"], body)


def branches_table(evidence: Evidence) -> str | None:
    """What each resolution's branch contributes; None where it was not measured.

    mIoU that is lost where a branch is knocked out of the trained network, and mIoU of the branch's own head.
    """
    levels = sorted({name.rsplit("_", 1)[1] for name in evidence.figure_names if name.startswith("knocked_out_")})
    if not levels:
        return None
    body = []
    for variant in evidence.variants:
        whole = evidence.sample(variant, "iou")
        for level in levels:
            lost = statistics.of_difference(
                evidence.sample(variant, f"knocked_out_{level}"), whole, estimand=evidence.estimand
            )
            head = f"head_{level}"
            own = evidence.mean(variant, head) if head in evidence.figure_names else None
            body.append([variant, f"level {level}", interval(lost, sign="+"), "–" if own is None else interval(own)])
    return markdown_table(["variant", "branch", "Δ mIoU without it", "mIoU of its head"], body, text=2)
