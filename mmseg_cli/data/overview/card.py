"""The data card of a prepared dataset: what it holds, in numbers and one chart, without photographs, dates or paths."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmseg_cli.data.faults import Fault
from mmseg_cli.data.overview.summary import Summary, percent, summarise
from mmseg_cli.data.store import MANIFEST, Store, open_store
from mmseg_cli.files import atomic, require_writable, sha256, write_text
from mmseg_cli.text import printable, shortened

if TYPE_CHECKING:
    from mmseg_cli.data.prepare import Prepared

WHOLE = 150  # classes up to which all are shown
ENDS = 20  # classes shown of each end where there are more
PANEL = 50  # classes below each other in the chart
SHOWN = 30  # warnings that are listed
# Okabe and Ito's palette, told apart by colour-blind readers as well.
COLOURS = ("#56B4E9", "#D55E00", "#009E73", "#CC79A7")
MISSING = "#B00020"


def _text(value: object) -> str:
    """A text for a cell or line of markdown: one line, with its special characters escaped."""
    return re.sub(r"([\\`*|<\[\]])", r"\\\1", printable(str(value)))


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, texts: int = 1) -> list[str]:
    """A markdown table whose first `texts` columns are flush left and the others right."""
    rule = [":---" if column < texts else "---:" for column in range(len(headings))]
    return [_row(headings), _row(rule), *map(_row, rows)]


def _class_groups(summary: Summary) -> list[tuple[str, list[int]]]:
    """The classes to show, from the most frequent to the rarest: all, or both ends of a long list."""
    order = [int(k) for k in summary.by_share()]
    if len(order) <= WHOLE:
        return [("", order)]
    return [(f"the {ENDS} most frequent", order[:ENDS]), (f"the {ENDS} rarest", order[-ENDS:])]


# -------------------------------------------------------------------------------------------------------------- chart


def chart(summary: Summary, *, title: str) -> bytes:
    """A PNG of each class's share in every split, on a log axis; the same store gives the same bytes on the same
    library versions.

    A bar is the training split, a dot another split, a cross a class that a split lacks.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _class_groups(summary)
    if len(groups) == 1:
        order = groups[0][1]
        panels = int(np.ceil(len(order) / PANEL))
        rows = int(np.ceil(len(order) / panels))
        groups = [("", order[start : start + rows]) for start in range(0, len(order), rows)]
    longest = max(len(classes) for _, classes in groups)
    figure = Figure(
        figsize=(max(8.0, 5.2 * len(groups)), max(3.2, 1.5 + 0.24 * longest)), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    positive = np.concatenate([split.shares[split.class_pixels > 0] for split in summary.splits])
    low, high = 1e-4, 1.0
    if len(positive):
        low, high = (
            float(10.0**power)
            for power in (np.floor(np.log10(positive.min()) - 0.05), np.ceil(np.log10(positive.max())))
        )
    for axes, (name, classes) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        _draw_shares(axes, summary, classes, low=low)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(longest - 0.4, -0.6)
        axes.set_yticks(range(len(classes)), [_plain(summary.space.classes[k]) for k in classes], fontsize=8)
        axes.set_xlabel(f"share of the labelled {summary.unit}", fontsize=9)
        axes.set_title(name, fontsize=10)
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = [name for split in summary.splits for name in (split.name, f"absent from {split.name}") if name in handles]
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(_plain(title, longest=90), fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_shares(axes: Any, summary: Summary, classes: Sequence[int], *, low: float) -> None:
    """The bars, dots and crosses of some classes, one below the other; `low` is where the axis begins."""
    for number, split in enumerate(summary.splits):
        shares = split.shares[classes]
        places = np.arange(len(classes))
        has = shares > 0
        colour = COLOURS[0] if number == 0 else COLOURS[1 + (number - 1) % (len(COLOURS) - 1)]
        if number == 0:
            axes.barh(places[has], shares[has] - low, left=low, height=0.72, color=colour, label=split.name)
        else:
            axes.scatter(shares[has], places[has], s=20, color=colour, label=split.name, zorder=3)
        if not has.all():
            lacking = places[~has] + 0.16 * (number % 3 - 1)  # so that crosses of several splits are all seen
            style = {"s": 26, "marker": "x", "color": colour if number else MISSING, "zorder": 4, "clip_on": False}
            axes.scatter([low] * len(lacking), lacking, label=f"absent from {split.name}", **style)


def _plain(text: str, *, longest: int = 30) -> str:
    """A text that matplotlib draws as it is: printable, no mathematics, not too long."""
    return shortened(text, longest).replace("$", r"\$")


# ----------------------------------------------------------------------------------------------------------- markdown


def _relative(text: str, root: Path | None) -> str:
    """The text with paths below the dataset's root as seen from there."""
    if root is None:
        return text
    names = {str(path).rstrip("/") for path in (root, root.absolute(), root.resolve())} - {"", "."}
    for name in sorted(names, key=len, reverse=True):
        here = r"(?<![\w./-])" + re.escape(name)
        text = re.sub(here + r"/(?=\S)", "", text)
        text = re.sub(here + r"/?(?![\w./-])", "the dataset", text)
    return text


def _split_table(summary: Summary, official: Mapping[str, int]) -> list[str]:
    rows = []
    for split in summary.splits:
        row = [_text(split.name), f"{split.count:,}"]
        if official:
            row.append(f"{official[split.name]:,}" if split.name in official else "-")
        row += [str(split.sizes or "-"), f"{int(split.class_pixels.sum()):,}"]
        rows.append([*row, f"{percent(split.ignored_share)} %"] if summary.task == "segmentation" else row)
    headings = ["split", "items", *(["official"] if official else []), "width x height", f"labelled {summary.unit}"]
    return _table(headings + (["ignored"] if summary.task == "segmentation" else []), rows)


def _class_table(summary: Summary, classes: Sequence[int]) -> list[str]:
    segmentation = summary.task == "segmentation"
    first = summary.first
    rows = []
    for k in classes:
        own = str(summary.space.ids[k]) if summary.space.ids[k] >= 0 else "-"
        row = [_text(summary.space.classes[k]), own, f"{first.class_pixels[k]:,}", percent(float(first.shares[k]))]
        if segmentation:
            row.append(f"{first.class_images[k]:,}")
        row.append(f"{summary.weights[k]:.2f}")
        row += [percent(float(split.shares[k])) if split.class_pixels[k] else "absent" for split in summary.others]
        rows.append(row)
    headings = ["class", "id", f"{first.name} {summary.unit}", "share %"]
    headings += ["images", "weight"] if segmentation else ["weight"]
    return _table([*headings, *(f"{split.name} share %" for split in summary.others)], rows)


def balance_lines(summary: Summary) -> list[str]:
    """What a person should know of the balance, one sentence each: rarest, worst-balanced and absent classes."""
    first, names = summary.first, summary.space.classes
    lines = []
    rare = summary.rarest()
    if rare and first.class_pixels.min() == first.class_pixels.max():
        lines.append(f"Even: all classes are equally frequent in {first.name}.")
    elif rare:
        listed = ", ".join(f"{names[k]} ({percent(float(first.shares[k]))} %)" for k in rare)
        lines.append(f"Rarest in {first.name}: {listed}.")
    worst = [
        f"{names[entry.index]} ({percent(entry.train_share)} % of {first.name}, {percent(entry.share)} % of "
        f"{entry.split}: x{entry.ratio:.1f})"
        for entry in summary.worst_balanced()
    ]
    if worst:
        lines.append(f"Worst-balanced between the splits: {', '.join(worst)}.")
    nowhere = summary.nowhere()
    if nowhere:
        lines.append(f"IN NO SPLIT: {_some(summary, nowhere)}.")
    for split, absent in summary.absent().items():
        rest = [k for k in absent if k not in nowhere]
        if rest:
            lines.append(f"ABSENT FROM {split}: {_some(summary, rest)}.")
    return lines


def _some(summary: Summary, classes: Sequence[int]) -> str:
    more = f" and {len(classes) - ENDS} more" if len(classes) > ENDS else ""
    return summary.names(classes[:ENDS]) + more


def _verification(summary: Summary, faults: Sequence[Fault], root: Path | None) -> list[str]:
    files = sum(split.count for split in summary.splits) * (2 if summary.task == "segmentation" else 1)
    lines = [f"{files:,} files were read whole and verified; no errors."]
    warnings = [fault for fault in faults if fault.kind != "left-out"]
    if warnings:
        kinds = Counter(fault.kind for fault in warnings)
        lines[0] += f" Warnings: {', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}."
        lines.append("")
    else:
        lines[0] += " No warnings."
    for fault in warnings[:SHOWN]:
        lines.append(f"- **{fault.kind}**: {_text(_relative(f'{fault.where}: {fault.what}', root))}")
    if len(warnings) > SHOWN:
        lines.append(f"- and {len(warnings) - SHOWN} more")
    left_out = [fault for fault in faults if fault.kind == "left-out"]
    if left_out:
        lines += ["", "Left out:", ""]
        lines += [f"- {_text(_relative(f'{fault.where}: {fault.what}', root))}" for fault in left_out[:SHOWN]]
        lines += [f"- and {len(left_out) - SHOWN} more"] if len(left_out) > SHOWN else []
    return lines


def _bytes(store: Store, splits: Sequence[str]) -> int:
    """The size of the store's own files, whatever else lies beside them."""
    names = [MANIFEST, *(f"{split}.{kind}" for split in splits for kind in ("records", "index.npz"))]
    return sum((store.folder / name).stat().st_size for name in names)


def _parameters(parameters: Mapping[str, Any]) -> str:
    """The parameters that are set."""
    given = {key: value for key, value in parameters.items() if value is not None and key != "generate"}
    return ", ".join(f"{key} {value}" for key, value in given.items()) or "none"


def text(
    store: Store,
    summary: Summary,
    *,
    name: str,
    chart_name: str,
    faults: Sequence[Fault] = (),
    notes: Sequence[str] = (),
    official: Mapping[str, int] | None = None,
    root: Path | None = None,
) -> str:
    """The card in markdown; see `write` for the arguments. The same store and findings give the same text."""
    manifest = store.manifest
    splits = [split.name for split in summary.splits]
    facts = [
        ("dataset", summary.dataset),
        ("task", summary.task),
        ("label space", f"{summary.space.name}, {len(summary.space.classes)} classes"),
        ("parameters", _parameters(manifest["parameters"])),
        *(("found", _relative(note, root)) for note in notes),
        ("store", f"{_bytes(store, splits):,} bytes, format {manifest['format']}"),
        ("manifest", f"sha256 {sha256(store.folder / MANIFEST)}"),
        ("code", manifest.get("code", "unknown")),
    ]
    lines = [f"# Data: {_text(name)}", "", *_table(["", ""], [(key, _text(value)) for key, value in facts], texts=2)]
    lines += ["", "## Splits", "", *_split_table(summary, official or {}), ""]
    lines.append("Sizes are those of the stored images: smallest / median / largest.")
    lines += ["", "## Verification", "", *_verification(summary, faults, root)]
    lines += ["", "## Classes", "", f"![share of each class in every split]({chart_name})", ""]
    lines += [f"- {_text(line)}" for line in balance_lines(summary)]
    for heading, classes in _class_groups(summary):
        lines += ["", *([f"### {heading.capitalize()}", ""] if heading else []), *_class_table(summary, classes)]
    lines += ["", "id: the dataset's own number of the class."]
    lines.append(f"weight: 1 / ln(1.02 + share), from {summary.first.name} (ENet's inverse-log class weight).")
    return "\n".join(lines) + "\n"


def write(
    store: Store,
    *,
    markdown: Path,
    chart_file: Path,
    name: str,
    faults: Sequence[Fault] = (),
    notes: Sequence[str] = (),
    official: Mapping[str, int] | None = None,
    root: Path | None = None,
) -> None:
    """Write a store's data card and its chart, each atomically.

    Args:
        name: what the card calls the dataset.
        faults: the warnings of its verification.
        notes: what was found, such as the version of the dataset.
        official: the official number of items of each split, where there is one.
        root: the dataset's folder, which paths in `faults` and `notes` are shown relative to.

    Raises:
        MmsegError: the store cannot be read, or a file cannot be written (exit 2, or 4 where the disk is full).
    """
    for folder in {markdown.parent, chart_file.parent}:
        require_writable(folder)
    summary = summarise(store)
    link = os.path.relpath(chart_file, markdown.parent).replace(os.sep, "/")
    content = text(store, summary, name=name, chart_name=link, faults=faults, notes=notes, official=official, root=root)
    picture = chart(summary, title=f"{name}: share of each class ({summary.space.name})")
    with atomic(chart_file) as file:
        file.write(picture)
    write_text(markdown, content)


def _official(store: Store, dataset: str) -> Mapping[str, int]:
    """The official counts of a layout; nothing where the store holds another choice of items or classes, or generated
    ones."""
    parameters = store.manifest["parameters"]
    if parameters.get("source") == "synthetic" or any(parameters.get(key) for key in ("annotations", "train_from")):
        return {}
    module = importlib.import_module(f"mmseg_cli.data.sources.{dataset}")
    if len(store.space.classes) != getattr(module, "OFFICIAL_CLASSES", len(store.space.classes)):
        return {}
    counts: Mapping[str, int] = getattr(module, "OFFICIAL_COUNTS", {})
    return counts


def write_for(made: Prepared, *, root: Path, reports: Path, faults: Sequence[Fault]) -> Path:
    """Write `data-<name>.md` and `.png` of what `prepare` made into `reports`; the name is that of the store's folder.

    Args:
        root: the dataset's folder or archive.
        faults: the warnings to list.

    Returns:
        The card.
    """
    assert made.folder is not None  # not a mere check
    store, name = open_store(made.folder), made.folder.name
    markdown = reports / f"data-{name}.md"
    write(
        store,
        markdown=markdown,
        chart_file=markdown.with_suffix(".png"),
        name=name,
        faults=faults,
        notes=made.notes,
        official=_official(store, made.dataset),
        root=root,
    )
    return markdown
