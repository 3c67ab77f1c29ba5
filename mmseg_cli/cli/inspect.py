"""`mmseg inspect`: a store's numbers on the screen, and its labels as a picture."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmseg_cli.cli import screen
from mmseg_cli.data.overview import card, contact_sheet
from mmseg_cli.data.overview.summary import Summary, percent, summarise
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import atomic, require_writable
from mmseg_cli.text import printable, shortened

BAR = 20  # characters of a whole bar
NAME = 30  # characters of a class's name
WHOLE, ENDS = 150, 20  # classes up to which all are listed; of more, so many of each end
ITEMS = {"segmentation": 12, "classification": 60}


def default_out(store: Path) -> Path:
    """Beside the store, and named like it."""
    folder = store if store.name not in ("", "..") else store.resolve()
    return folder.with_name(f"{folder.name}-overlays.png")


def _bar(share: float, low: float) -> str:
    """A bar of `share` on a log axis that begins at `low`."""
    if share <= 0:
        return ""
    eighths = round(8 * BAR * max(math.log(share / low) / math.log(1 / low), 0.01))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _classes(summary: Summary) -> None:
    """The table of classes, from the most frequent to the rarest."""
    first, segmentation = summary.first, summary.task == "segmentation"
    order = [int(k) for k in summary.by_share()]
    shares = first.shares[first.shares > 0]
    low = 10.0 ** math.floor(math.log10(float(shares.min())) - 0.05) if len(shares) else 0.1
    title = (
        f"classes of {first.name}; bars: share on a log axis from {100 * low:.10f}".rstrip("0").rstrip(".")
        + " % to 100 %"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("class", no_wrap=True)
    headings = [summary.unit, "share %", *(["images"] if segmentation else []), "weight"]
    headings += [f"{split.name} %" for split in summary.others]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=BAR)
    skipped = len(order) - 2 * ENDS if len(order) > WHOLE else 0
    for position, k in enumerate(order):
        if skipped and ENDS <= position < len(order) - ENDS:
            if position == ENDS:
                table.add_row(f"... {skipped} more ...")
            continue
        share = float(first.shares[k])
        cells = [f"{first.class_pixels[k]:,}", percent(share) if share else "absent"]
        cells += [f"{first.class_images[k]:,}"] if segmentation else []
        cells.append(f"{summary.weights[k]:.2f}")
        cells += [percent(float(split.shares[k])) if split.class_pixels[k] else "absent" for split in summary.others]
        name = Text(shortened(summary.space.classes[k], NAME))
        table.add_row(name, *cells, _bar(share, low), style=None if share else "red")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _splits(summary: Summary) -> None:
    rows = []
    for split in summary.splits:
        row = [printable(split.name), f"{split.count:,}", str(split.sizes or "-")]
        row.append(f"{int(split.class_pixels.sum()):,}")
        rows.append([*row, f"{percent(split.ignored_share)} %"] if summary.task == "segmentation" else row)
    headings = ["split", "items", "width x height: smallest / median / largest", f"labelled {summary.unit}"]
    screen.table(None, headings + (["ignored"] if summary.task == "segmentation" else []), rows)


def inspect(store: Path, out: Path | None, items: int | None, split: str | None = None) -> Path:
    """Print a store's numbers and write its contact sheet.

    Args:
        store: the store's folder.
        out: the picture; None puts it beside the store.
        items: how many images it shows at most; None leaves the choice to the task.
        split: whose images are shown; None is the training split.

    Returns:
        The picture.

    Raises:
        MmsegError: this is no store, it is damaged, or the picture cannot be written.
    """
    if not store.is_dir():
        raise MmsegError(store, "is not the folder of a store", "give a folder that `mmseg prepare` wrote")
    opened = open_store(store)
    out = default_out(store) if out is None else out
    if out.suffix.lower() != ".png":
        raise MmsegError(out, "is not a name for a picture", "let it end with .png")
    if store.resolve() in out.resolve().parents:
        raise MmsegError(out, "lies inside the store, which stays as it was made", "choose another place")
    if out.is_dir():
        raise MmsegError(out, "is a folder", "give the name of a picture")
    require_writable(out.parent)
    summary = summarise(opened)
    number = items if items is not None else ITEMS[opened.task]
    picture = contact_sheet.draw(opened, split=split or summary.first.name, items=number)
    with atomic(out) as file:
        picture.save(file, "PNG", compress_level=1)  # three times as fast as the default, a tenth larger
    _splits(summary)
    _classes(summary)
    lines = []
    for line in card.balance_lines(summary):
        head, _, rest = line.partition(": ")
        lines.append((head, printable(rest)))
    name = f"{summary.dataset}, {summary.task}, {summary.space.name}"
    screen.panel(f"inspected {name}", [*lines, ("picture", str(out))], next_command=None)
    return out
