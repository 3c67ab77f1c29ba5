"""The result of `mmseg bench accuracy`, read: the table, the figure and the page."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_cli.ablation.statistics import (
    BETTER,
    NO_EVIDENCE,
    NO_VERDICT,
    THIS_SET,
    WORSE,
    Interval,
    Sample,
    Verdict,
    of_difference,
    of_mean,
    summarise,
    verdicts,
)
from mmseg_cli.bench import peers

Row = dict[str, Any]


def best_of_ours(result: Row) -> str:
    """Our variant that did best on the held-out images, at its best learning rate."""
    best: str = max(result["ours"], key=lambda name: max(row["miou"] for row in result["trials"][name]))
    return best


def _sample(result: Row, name: str, point: int = -1) -> Sample:
    values = np.array([run_["points"][point]["miou"] for run_ in result["runs"][name]])
    return Sample(values, values[:, None])


@dataclass(frozen=True)
class Against:
    """The best of ours against another network, at the end of the time."""

    name: str
    difference: Interval
    verdict: Verdict


def differences(result: Row) -> list[Against]:
    """The best of ours minus every other network, judged together (Holm)."""
    best = best_of_ours(result)
    others = [name for name in result["runs"] if name != best]
    found = [of_difference(_sample(result, best), _sample(result, name), estimand=THIS_SET) for name in others]
    return [Against(*row) for row in zip(others, found, verdicts(found), strict=True)]


def title_of(name: str) -> str:
    """A network's name for people."""
    return f"{peers.PEERS[name].title} ({peers.PEERS[name].package})" if name in peers.PEERS else f"ours: {name}"


VERDICTS = {
    BETTER: "ours is better",
    WORSE: "ours is worse",
    NO_EVIDENCE: "no evidence of a difference",
    NO_VERDICT: NO_VERDICT,
}
EDGE = "*"  # behind a learning rate that is the lowest or the highest of those that were tried
HEADINGS = ("network", "learning rate", "layout", "step ms", "steps", "val mIoU %", "best of ours minus it", "verdict")


def rows(result: Row) -> list[tuple[str, ...]]:
    """One row a network, the best first, under HEADINGS."""
    against = {row.name: row for row in differences(result)}
    found = []
    for name, runs in result["runs"].items():
        chosen = max(result["trials"][name], key=lambda row: row["miou"])["learning_rate"]
        tried = result["settings"]["rates"]
        edge = EDGE if len(tried) > 1 and chosen in (min(tried), max(tried)) else ""
        summary = summarise(_sample(result, name).plain_S.tolist())
        spread = "" if summary.spread is None else f" ± {summary.spread:.2f}"
        row = against.get(name)
        difference, verdict = "best of ours, by the held-out images", ""
        if row is not None:
            inside = row.difference
            limits = "" if inside.low is None else f" [{inside.low:.2f}, {inside.high:.2f}]"
            difference, verdict = f"{inside.estimate:+.2f}{limits}", VERDICTS[row.verdict.word]
        cells = (
            title_of(name),
            f"{chosen:g}{edge}",
            result["layouts"][name],
            f"{1e3 * statistics.median(result['step_seconds'][name]):.0f}",
            str(runs[0]["steps"]),
            f"{summary.mean:.2f}{spread}",
            difference,
            verdict,
        )
        found.append((summary.mean, cells))
    return [cells for _, cells in sorted(found, key=lambda row: -row[0])]


def curve(result: Row, name: str) -> list[tuple[float, Interval]]:
    """(seconds, mean mIoU over the seeds with its interval) at every point that was judged."""
    settings, first = result["settings"], result["runs"][name][0]
    found = []
    for point, row in enumerate(first["points"]):
        at = row["step"] / first["steps"] * settings["seconds"]
        found.append((at, of_mean(_sample(result, name, point), estimand=THIS_SET)))
    return found


def figure(result: Row, path: Path) -> None:
    """Draw val mIoU over seconds, with 95 % intervals over the seeds, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for index, name in enumerate(result["runs"]):
        points = curve(result, name)
        ours = name in result["ours"]
        middle = [interval.estimate or 0.0 for _, interval in points]
        lower = [middle[at] if one.low is None else one.low for at, (_, one) in enumerate(points)]
        axes.errorbar(
            [at * (1 + 0.004 * index) for at, _ in points],  # side by side, or they hide each other
            middle,
            yerr=np.subtract(middle, lower),
            label=title_of(name),
            linestyle="-" if ours else "--",
            linewidth=2 if ours else 1,
            marker="o" if ours else ".",
            capsize=2,
        )
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("val mIoU (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(picture)


def trained_elsewhere(result: Row) -> str:
    """A sentence on the machines that trained, where they are not the one that steps were timed on; else nothing."""
    timed = {"environment": result["environment"]} | {key: result["settings"][key] for key in ("threads", "device")}
    makers = [run_.get("by", timed) for runs in result["runs"].values() for run_ in runs]
    if all(maker == timed for maker in makers):
        return ""
    counted = Counter(
        f"{maker['threads']} thread{'s' * (maker['threads'] != 1)} of {maker['environment']['processor']},"
        f" torch {maker['environment']['torch']}, device {maker['environment'].get('accelerator', maker['device'])}"
        for maker in makers
    )
    told = "; ".join(f"{number} by {maker}" for maker, number in sorted(counted.items()))
    return f"The {len(makers)} runs were trained for as many steps as that machine takes: {told}."


def markdown(result: Row, *, picture: str) -> str:
    """The report as markdown.

    Args:
        picture: the name of the figure's file, beside it.
    """
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    rates = ", ".join(f"{rate:g}" for rate in settings["rates"])
    recipe = settings["recipe"]
    held = "the last fifth by name" if settings["hold_out"] is None else f"those of {settings['hold_out']}"
    lines = [
        f"# What {settings['seconds']:g} seconds of training buy",
        "",
        f"{settings['dataset']}, from scratch: {settings['training_images']} training images, crops of"
        f" {recipe['crop'][0]}x{recipe['crop'][1]}, batches of {recipe['batch']}, {recipe['optimizer']},"
        f" {settings['seeds']} seeds.",
        f"Judged on the {settings['judged_images']} images of val, labels at their native size, with the last weights.",
        "Every network has the same loop, loss, schedule and crops in the same order. Its learning rate is the best of",
        f"{rates}, by one trial each of {settings['trial_seconds']:g} seconds in which {settings['held_out_images']}",
        f"training images are held out ({held}); one at the end of what was tried is marked {EDGE}: a better one may",
        "lie beyond. The best of ours is the one that did best there: val chose nothing here. What else the recipe has",
        "(weight decay, warm-up, augmentation) is the preset's, which was made for ours.",
        "",
        "Seconds are steps times the median time of a step with its data, measured with all networks in turns;",
        f"{settings['threads']} threads, device {settings['device']}, each in the memory layout that is faster for it.",
        "Judging is not in them. ± is the standard",
        "deviation over the seeds; differences are paired by seed, with their 95 % interval over seeds (Student's t),",
        f"and verdicts are after Holm's correction over all rows. Machine: {machine}.",
        *filter(None, [trained_elsewhere(result)]),
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|:--|--:|:--|--:|--:|--:|--:|:--|",
        *("| " + " | ".join(row) + " |" for row in rows(result)),
        "",
        f"![val mIoU over seconds]({picture})",
    ]
    return "\n".join(lines) + "\n"
