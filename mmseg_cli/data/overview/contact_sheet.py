"""One picture that shows a split's labels: images under their labels' colours, with names and a legend.

Shapes: H, W = height, width of an image; C = 3 colours; K = classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmseg_cli.data.labels import IGNORE, LabelSpace
from mmseg_cli.data.overview.summary import occurrences
from mmseg_cli.data.store import Split, Store
from mmseg_cli.errors import MmsegError
from mmseg_cli.text import printable, shortened

WIDTH = 2400  # pixels of the sheet at most
MARGIN = 24
GAP = 14
TEXT, SMALL, TITLE = 17, 15, 26  # font sizes
LINE = 24  # pixels from one line of text to the next
INK, PALE, PAPER = (30, 30, 30), (150, 150, 150), (255, 255, 255)
ALPHA = 0.5  # of the label's colour over the image
VISIBLE = 0.002  # share of an image from which a class can be seen in it
SEGMENTATION_COLUMNS, CLASSIFICATION_COLUMNS = 4, 10

STRIPED = "ignored (striped)"  # the last entry of a legend

Colour = tuple[int, int, int]


# ------------------------------------------------------------------------------------------------- choosing the items


def _farthest(candidates: NDArray[np.int64], taken: Sequence[int], length: int) -> int:
    """The candidate that lies farthest from all items taken; the one in the middle where none is."""
    if not taken:
        return int(candidates[np.argmin(np.abs(candidates - (length - 1) / 2))])
    distance = np.abs(candidates[:, None] - np.array(taken)[None]).min(axis=1)
    return int(candidates[np.argmax(distance)])


def cover(split: Split, *, items: int, classes: int) -> list[int]:
    """Items of a segmentation split that show as many classes as they can, and lie spread over it. In order.

    Greedy cover: each step takes the item that shows most classes not shown yet and, of several, the one farthest
    from those taken. A class counts as shown where it covers VISIBLE of the image, or half of the most it ever does.
    """
    length = len(split)
    item, index, pixels = occurrences(split, classes=classes)
    area = np.array([max(1, math.prod(split.label_size(position))) for position in range(length)])
    share = pixels / area[item]
    best_K = np.zeros(classes)
    np.maximum.at(best_K, index, share)
    seen = share >= np.minimum(VISIBLE, best_K[index] / 2)
    item, index = item[seen], index[seen]
    shown_K = np.zeros(classes, dtype=bool)
    taken: list[int] = []
    free = np.ones(length, dtype=bool)
    while len(taken) < min(items, length):
        gain = np.bincount(item[~shown_K[index]], minlength=length)
        candidates = np.flatnonzero((gain == gain[free].max()) & free)
        choice = _farthest(candidates, taken, length)
        taken.append(choice)
        free[choice] = False
        shown_K[index[item == choice]] = True
    return sorted(taken)


def one_of_each(split: Split, *, items: int) -> list[int]:
    """Items of a classification split: as many classes as there is room for, spread over them; then more of each.

    In the order of the classes; the first of a class is the one in its middle.
    """
    targets_N = np.array([split.target(position) for position in range(len(split))], dtype=np.int64)
    order = np.argsort(targets_N, kind="stable")
    present, starts, counts = np.unique(targets_N[order], return_index=True, return_counts=True)
    if items <= len(present):
        picked = np.linspace(0, len(present) - 1, items).round().astype(int)
        return [int(order[starts[k] + counts[k] // 2]) for k in picked]
    place_N = np.arange(len(order)) - np.repeat(starts, counts)
    turn_N = np.abs(2 * (place_N - np.repeat(counts // 2, counts)) + 0.5)  # 0.5 at the middle, then to both sides
    rank_N = np.empty(len(order), dtype=np.int64)
    rank_N[np.lexsort((turn_N, targets_N[order]))] = place_N
    chosen = np.lexsort((targets_N[order], rank_N))[:items]
    return [int(order[position]) for position in np.sort(chosen)]


# ------------------------------------------------------------------------------------------------------------ drawing


def distinct(colours: Sequence[Colour]) -> tuple[Colour, ...]:
    """The colours, where two classes share one the later is made lighter or darker until it has its own."""
    used: set[Colour] = set()
    found = []
    for colour in colours:
        towards = 255 if sum(colour) < 384 else 0
        new, step = colour, 0
        while new in used and step < 12:
            step += 1
            part = step / 13
            red, green, blue = (round(value + part * (towards - value)) for value in colour)
            new = (red, green, blue)
        used.add(new)
        found.append(new)
    return tuple(found)


def overlay(image_HWC: NDArray[np.uint8], label_HW: NDArray[np.uint8], colours: Sequence[Colour]) -> Image.Image:
    """The image under its label's colours, with outlines; ignored pixels are dark grey with stripes.

    Both have the same size.
    """
    table = np.zeros((256, 3), dtype=np.float32)
    table[: len(colours)] = colours
    mixed_HWC = (1 - ALPHA) * image_HWC + ALPHA * table[label_HW]
    edge_HW = np.zeros(label_HW.shape, dtype=bool)
    edge_HW[1:] |= label_HW[1:] != label_HW[:-1]
    edge_HW[:, 1:] |= label_HW[:, 1:] != label_HW[:, :-1]
    mixed_HWC[edge_HW] = table[label_HW[edge_HW]]
    ignored_HW = label_HW == IGNORE
    grey_HW = image_HWC.mean(axis=2) * 0.35
    height, width = label_HW.shape
    grey_HW[(np.arange(height)[:, None] + np.arange(width)) % 12 < 2] += 70
    mixed_HWC[ignored_HW] = grey_HW[ignored_HW][:, None]
    return Image.fromarray(mixed_HWC.clip(0, 255).astype(np.uint8))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most alphabets."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def elided(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, its middle left out until it is at most `width` pixels wide."""
    longest = len(text)
    while longest > 1 and font.getlength(shortened(text, longest)) > width:
        longest -= 1
    return shortened(text, longest)


@dataclass(frozen=True)
class _Cell:
    """One picture and the line below it."""

    picture: Image.Image
    caption: str
    classes: frozenset[int] = frozenset()


def _fitted(height: int, width: int, box: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a picture inside a box of (width, height); a small one is made larger, six times at most."""
    scale = min(box[0] / width, box[1] / height, 6.0)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _segmentation_cell(
    split: Split, item: int, *, name: str, box: tuple[int, int], colours: Sequence[Colour], classes: int
) -> _Cell:
    image_HWC, label_HW = split.image(item), split.label(item)
    size = _fitted(label_HW.shape[0], label_HW.shape[1], box)
    picture = Image.fromarray(image_HWC).resize(size, Image.Resampling.LANCZOS)
    small_HW = np.asarray(Image.fromarray(label_HW).resize(size, Image.Resampling.NEAREST))
    present = frozenset(k for k in split.class_pixels(item) if k < classes)
    return _Cell(overlay(np.asarray(picture), small_HW, colours), name, present)


def _classification_cell(split: Split, item: int, *, box: tuple[int, int], space: LabelSpace) -> _Cell:
    picture = Image.fromarray(split.image(item))
    small = picture.resize(_fitted(picture.height, picture.width, box), Image.Resampling.LANCZOS)
    return _Cell(small, space.classes[split.target(item)])


def _legend(
    sheet: ImageDraw.ImageDraw, *, top: int, width: int, space: LabelSpace, colours: Sequence[Colour], shown: set[int]
) -> int:
    """Draw swatches and names in columns; a class in none of the pictures is hollow and pale. Returns the bottom."""
    font = _font(TEXT)
    entries: list[tuple[str, Colour | None, Colour]] = [
        (name, colours[k] if k in shown else None, INK if k in shown else PALE) for k, name in enumerate(space.classes)
    ]
    entries.append((STRIPED, None, INK))
    widest = max(font.getlength(printable(name)) for name, _, _ in entries)
    columns = max(1, min((width - 2 * MARGIN) // min(int(widest) + 52, 300), len(entries)))
    column = min(int(widest) + 52, (width - 2 * MARGIN) // columns)
    rows = math.ceil(len(entries) / columns)
    for position, (name, colour, ink) in enumerate(entries):
        x = MARGIN + position // rows * column
        y = top + position % rows * LINE
        place = (x, y + 3, x + 24, y + 19)
        if name == STRIPED:
            sheet.rectangle(place, fill=(45, 45, 45))
            for left in (x, x + 8):
                sheet.line((left, y + 19, left + 16, y + 3), fill=(115, 115, 115), width=2)
        sheet.rectangle(place, fill=colour, outline=(110, 110, 110))
        sheet.text((x + 32, y + 1), elided(name, font, column - 44), font=font, fill=ink)
    return top + rows * LINE


def _assembled(
    cells: list[_Cell],
    *,
    title: str,
    box: tuple[int, int],
    columns: int,
    legend: tuple[LabelSpace, Sequence[Colour]] | None,
) -> Image.Image:
    """The grid of cells below a title, and the legend below the grid."""
    small = _font(SMALL)
    columns = min(columns, len(cells))
    width = max(2 * MARGIN + columns * box[0] + (columns - 1) * GAP, 900)
    rows = math.ceil(len(cells) / columns)
    below = 3 * LINE + (len(legend[0].classes) + 1) * LINE if legend else 0
    sheet = Image.new("RGB", (width, 2 * MARGIN + 48 + rows * (box[1] + 30 + GAP) + below), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), elided(title, _font(TITLE), width - 2 * MARGIN), font=_font(TITLE), fill=INK)
    bottom = MARGIN + 42
    for first in range(0, len(cells), columns):
        row = cells[first : first + columns]
        tall = max(cell.picture.height for cell in row)
        for column, cell in enumerate(row):
            x = MARGIN + column * (box[0] + GAP)
            sheet.paste(cell.picture, (x, bottom))
            draw.text((x, bottom + tall + 4), elided(cell.caption, small, box[0]), font=small, fill=INK)
        bottom += tall + 30 + GAP
    if legend is not None:
        shown = set().union(*(cell.classes for cell in cells))
        bottom = _legend(draw, top=bottom + 4, width=width, space=legend[0], colours=legend[1], shown=shown)
        missing = len(legend[0].classes) - len(shown)
        if missing:
            text = f"Hollow: {missing} of {len(legend[0].classes)} classes are in none of these pictures."
            draw.text((MARGIN, bottom + 8), text, font=small, fill=INK)
            bottom += LINE + 8
    return sheet.crop((0, 0, width, bottom + MARGIN // 2))


def draw(store: Store, *, split: str, items: int) -> Image.Image:
    """The contact sheet of one split, at most WIDTH pixels wide: overlays, or pictures under their classes' names.

    Args:
        items: how many pictures at most.

    Raises:
        MmsegError: the store has no such split, it is empty, or an item is damaged.
    """
    part = store.split(split)
    if not len(part):
        raise MmsegError(store.folder, f"its split {split!r} is empty", "choose another split")
    space = store.space
    segmentation = store.task == "segmentation"
    classes = len(space.classes)
    chosen = cover(part, items=items, classes=classes) if segmentation else one_of_each(part, items=items)
    columns = min(SEGMENTATION_COLUMNS if segmentation else CLASSIFICATION_COLUMNS, len(chosen))
    across = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    across = min(across, 800 if segmentation else 224)
    shapes = [part.label_size(item) if segmentation else part.size(item) for item in chosen]
    box = (across, max(1, round(across * float(np.median([min(height / width, 1.5) for height, width in shapes])))))
    title = f"{store.folder.resolve().name}, {split}: {len(chosen)} of {len(part)} images, {space.name}"
    if not segmentation:
        cells = [_classification_cell(part, item, box=box, space=space) for item in chosen]
        return _assembled(cells, title=title, box=box, columns=columns, legend=None)
    colours = distinct(space.colours)
    cells = [
        _segmentation_cell(part, item, name=part.name(item), box=box, colours=colours, classes=classes)
        for item in chosen
    ]
    return _assembled(cells, title=title, box=box, columns=columns, legend=(space, colours))
