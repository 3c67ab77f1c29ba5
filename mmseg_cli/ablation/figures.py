"""The chart of an ablation: mIoU of every seed by block, and against the time of a training step."""

from __future__ import annotations

import io

from mmseg_cli.ablation.grid import Evidence
from mmseg_cli.ablation.tables import rows

# Okabe and Ito's palette, told apart by colour-blind readers as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def chart(evidence: Evidence, *, title: str) -> bytes:
    """A PNG of two panels; the same evidence gives the same bytes on the same library versions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    by_block, by_time = figure.subplots(1, 2, sharey=True)
    for position, row in enumerate(rows(evidence)):
        colour = COLOURS[position % len(COLOURS)]
        values = [100 * value for value in evidence.figure(row.variant, "mean_iou")]
        by_block.scatter([position] * len(values), values, color=colour, alpha=0.6, s=36, edgecolors="none")
        by_block.hlines(row.mean_iou.mean, position - 0.28, position + 0.28, color=colour, linewidth=2.5)
        by_time.scatter([1000 * row.step_seconds], [row.mean_iou.mean], color=colour, s=60, label=row.variant)
        by_time.vlines(1000 * row.step_seconds, min(values), max(values), color=colour, linewidth=1.5)
    by_block.set_xticks(range(len(evidence.variants)), evidence.variants, rotation=15)
    by_block.set_xlim(-0.6, len(evidence.variants) - 0.4)
    by_block.set_ylabel("mIoU (%)")
    by_block.set_title("each seed, and the mean", fontsize=10)
    by_time.set_xlabel("training step (ms)")
    by_time.set_title("mean, and smallest to largest seed", fontsize=10)
    by_time.margins(x=0.2)
    by_time.legend(frameon=False, fontsize=9)
    for axes in (by_block, by_time):
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
