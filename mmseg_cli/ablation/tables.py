"""Tables from evidence: the same numbers as markdown, as csv and on the screen."""

from __future__ import annotations

import io
import math
import statistics
from dataclasses import dataclass
from typing import Any

from mmseg_cli.ablation.grid import Evidence
from mmseg_cli.ablation.statistics import Summary, paired_difference, summarise


@dataclass(frozen=True)
class Row:
    """One variant. mIoU in percent, differences in points, time in seconds, memory in bytes."""

    variant: str
    block: str
    parameters: int
    macs: int
    step_seconds: float
    step_ratio: float
    peak_bytes: int
    mean_iou: Summary
    difference: Summary | None


def rows(evidence: Evidence) -> list[Row]:
    """One row a variant; time ratio and mIoU difference are to the first."""
    base = evidence.variants[0]
    base_iou = [100 * value for value in evidence.figure(base, "mean_iou")]
    cost = evidence.cost["variants"]
    out = []
    for variant in evidence.variants:
        measured = cost[variant]
        mean_iou = [100 * value for value in evidence.figure(variant, "mean_iou")]
        pairs = zip(measured["step_seconds"], cost[base]["step_seconds"], strict=True)
        out.append(
            Row(
                variant=variant,
                block=measured["network"]["block"],
                parameters=measured["parameters"],
                macs=measured["macs"],
                step_seconds=statistics.median(measured["step_seconds"]),
                step_ratio=statistics.median(own / other for own, other in pairs),
                peak_bytes=measured["peak_bytes"],
                mean_iou=summarise(mean_iou),
                difference=None if variant == base else paired_difference(mean_iou, base_iou),
            )
        )
    return out


def _spread(summary: Summary, *, sign: str = "") -> str:
    """`mean +- spread`; the spread of a single seed is a dash."""
    spread = "–" if summary.spread is None else f"{summary.spread:.2f}"
    return f"{summary.mean:{sign}.2f} ± {spread}"


HEADINGS = ("block", "params (M)", "MACs (G)", "s / step", "time ratio", "peak MiB", "mIoU % ± sd", "Δ mIoU ± sd")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of HEADINGS."""
    return (
        row.variant,
        f"{row.parameters / 1e6:.3f}",
        f"{row.macs / 1e9:.3f}",
        f"{row.step_seconds:.3f}",
        f"{row.step_ratio:.2f}",
        f"{row.peak_bytes / 2**20:.0f}",
        _spread(row.mean_iou),
        "baseline" if row.difference is None else _spread(row.difference, sign="+"),
    )


def _markdown(headings: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A table whose first column is text and whose others are numbers, padded to be read as plain text too."""
    widths = [max(len(line[column]) for line in [headings, *body]) for column in range(len(headings))]

    def line(texts: tuple[str, ...]) -> str:
        padded = [
            texts[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(texts[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headings), f"| {' | '.join(rule)} |", *(line(texts) for texts in body)])


def _per_class(evidence: Evidence) -> str:
    """Mean IoU over seeds by class; a class absent from truth and every prediction is left out."""
    names = list(evidence.runs[evidence.variants[0], evidence.seeds[0]]["class_iou"])
    body = []
    for name in names:
        texts = [name]
        for variant in evidence.variants:
            values = [evidence.runs[variant, seed]["class_iou"][name] for seed in evidence.seeds]
            kept = [100 * value for value in values if value is not None]
            texts.append(f"{statistics.fmean(kept):.2f}" if kept else "–")
        if any(text != "–" for text in texts[1:]):
            body.append(tuple(texts))
    return _markdown(("class", *evidence.variants), body)


def _ladder(evidence: Evidence) -> str:
    """One sentence on what the runs were trained on, and in which order."""
    names = {"pretrain_imagenet": "ImageNet", "pretrain_mapillary": "Mapillary", "train": evidence.cost["dataset"]}
    ladder = evidence.runs[evidence.variants[0], evidence.seeds[0]]["run"]["ladder"]
    if len(ladder) == 1:
        return f"{names['train']} from scratch."
    return f"{' → '.join(names[stage] for stage in ladder)}; each variant and seed has pretraining of its own."


def markdown(evidence: Evidence, *, preset: str, chart: str) -> str:
    """The whole ablation.md."""
    found = rows(evidence)
    cost = evidence.cost
    machine = cost["environment"]
    where = machine["accelerator"] or f"{machine['processor']}, {machine['threads']} threads"
    first = evidence.runs[evidence.variants[0], evidence.seeds[0]]
    seeds = ", ".join(map(str, evidence.seeds))
    few = (
        "With fewer than three seeds these differences support **no verdict**: run-to-run noise may be as large."
        if len(evidence.seeds) < 3
        else "The spread is over seeds alone; it is no confidence interval, and no verdict is drawn from it here."
    )
    repeats = len(cost["variants"][found[0].variant]["step_seconds"])
    step = f"batch {cost['batch']} of {cost['height']}x{cost['width']}"
    return f"""# Ablation of blocks: {preset}

{_markdown(HEADINGS, [cells(row) for row in found])}

![mIoU by block and by time]({chart})

- **mIoU**: last checkpoint, single scale, labels at native size, {first["images"]} val images, {first["label_space"]};
  mean ± sample standard deviation over seeds {seeds}.
- **Δ mIoU**: to `{evidence.variants[0]}`, paired by seed (equal seeds share the data order).
  {few}
- **Ladder**: {_ladder(evidence)}
- **Cost**: parameters; MACs of one {cost["height"]}x{cost["width"]} image; one training step of {step} with SGD:
  median of {repeats} interleaved repeats; time ratio to `{evidence.variants[0]}`,
  the median over repeats; peak memory on top of the empty process. Measured on {where}; torch {machine["torch"]}.

## IoU by class, mean over seeds, in percent

{_per_class(evidence)}

Generated by `mmseg ablate --no-run --preset {preset}` from the files in [evidence/](evidence/); do not edit.
"""


def csv(evidence: Evidence) -> str:
    """One line a variant with unrounded numbers, and one column for each seed's mIoU (in percent)."""
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for row in rows(evidence):
        line: dict[str, Any] = {
            "variant": row.variant,
            "block": row.block,
            "parameters": row.parameters,
            "macs": row.macs,
            "step_seconds": row.step_seconds,
            "step_ratio": row.step_ratio,
            "peak_bytes": row.peak_bytes,
            "mean_iou": row.mean_iou.mean,
            "mean_iou_sd": math.nan if row.mean_iou.spread is None else row.mean_iou.spread,
            "difference": math.nan if row.difference is None else row.difference.mean,
            "difference_sd": math.nan
            if row.difference is None or row.difference.spread is None
            else row.difference.spread,
        }
        values = evidence.figure(row.variant, "mean_iou")
        line |= {f"mean_iou_s{seed}": 100 * value for seed, value in zip(evidence.seeds, values, strict=True)}
        lines.append(line)
    buffer = io.StringIO()
    pd.DataFrame(lines).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()
