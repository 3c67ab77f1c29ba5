"""The evaluation page of a run: one HTML file that needs nothing else, and the same in markdown with its pictures.

Ratios are in [0, 1]; None and NaN, for what is not defined, are shown as a dash.

Shapes: K = classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.evaluation import page_blocks, page_figures
from mmseg_cli.evaluation.page_blocks import (
    Block,
    Figure,
    Heading,
    Headline,
    Legend,
    Points,
    Section,
    Sheet,
    Table,
    Text,
)
from mmseg_cli.files import atomic, write_text

HTML, MARKDOWN = "index.html", "index.md"
PANELS = ("image", "truth", "prediction", "errors")
GAP = 4  # pixels between the panels of a sheet
CONFUSIONS = 12  # pairs of classes that are listed

Kind = Literal["best", "median", "worst"]


@dataclass(frozen=True)
class Example:
    """One image of the split.

    Attributes:
        kind: where it stands among all images by mIoU.
        name: of the image.
        mean_iou: of this image alone.
        picture: PANELS side by side, all of one size, with GAP pixels between; RGB uint8.
    """

    kind: Kind
    name: str
    mean_iou: float | None
    picture: Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class SizeFigures:
    """What was found of the true regions of one size: means over the classes.

    Attributes:
        from_pixels, to_pixels: area of such regions, from (inclusive) and to (exclusive); None = no end.
        regions: how many the truth has.
        recall: share of their pixels.
        found: share of the regions that count as found.
    """

    from_pixels: int
    to_pixels: int | None
    regions: int
    recall: float | None
    found: float | None


@dataclass(frozen=True)
class BranchFigures:
    """What one resolution of the network contributes.

    Attributes:
        stride: pixels of the network's input, across, behind one of this resolution's.
        without: mIoU with its feature replaced by its mean.
        head: mIoU of the head at this resolution.
    """

    stride: int
    without: float | None
    head: float | None


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """All that the page shows.

    Attributes:
        title: of the page, such as "mmbconv-s0 of demo".
        dataset, space, images: what was evaluated: its name, label space and number of images.
        protocol: how images became predictions, in one line.
        confusion_KK: rows = truth, columns = prediction; pixels.
        class_iou: by class; None where it is in neither truth nor prediction.
        boundary: by distance in pixels, mean (IoU, F1).
        sizes: by size, from small to large.
        rows: (from, to, mIoU) of bands of rows as shares of the height, from the top.
        category_iou, mean_category_iou: by category; None where the label space has none.
        instance_iou, mean_instance_iou: iIoU by class that has instances; None where it was not measured.
        official: a line on what the benchmark's program found.
        augmented: mIoU with test-time augmentation, and which: "25.02 % (scales 0.5, 1, 2; flip)".
        branches: of every resolution of the network, finest first; empty where they were not measured.
        notes: how figures are defined, a sentence each.
        examples: in the order to show.
    """

    title: str
    dataset: str
    space: LabelSpace
    images: int
    protocol: str
    mean_iou: float | None
    pixel_accuracy: float | None
    confusion_KK: NDArray[np.int64]
    class_iou: Mapping[str, float | None]
    boundary: Mapping[int, tuple[float | None, float | None]]
    sizes: Mapping[str, SizeFigures]
    rows: Sequence[tuple[float, float, float | None]]
    category_iou: Mapping[str, float | None] | None = None
    mean_category_iou: float | None = None
    instance_iou: Mapping[str, float | None] | None = None
    mean_instance_iou: float | None = None
    official: str | None = None
    augmented: str | None = None
    branches: Sequence[BranchFigures] = ()
    notes: Sequence[str] = ()
    examples: Sequence[Example] = ()


def write_page(folder: Path, content: PageContent) -> None:
    """Write `index.html`, `index.md` and, for the latter, `figures/*.png` and `images/*.png` into `folder`.

    The HTML holds its style and pictures and loads nothing. The same content gives the same bytes on the same library
    versions.

    Raises:
        ValueError: the confusion matrix is not of the label space's classes, or a picture not four panels.
        MmsegError: a file cannot be written (exit 2), or the disk is full (exit 4).
    """
    if content.confusion_KK.shape != (len(content.space.classes),) * 2:
        shape = content.confusion_KK.shape
        raise ValueError(f"a confusion matrix of {shape} for {len(content.space.classes)} classes")
    facts = [
        ("dataset", content.dataset),
        ("label space", f"{content.space.name}, {_count(len(content.space.classes), 'class', 'classes')}"),
        ("images", f"{content.images:,}"),
        ("protocol", content.protocol),
    ]
    sections = _sections(content)
    footer = f"The same in markdown: {MARKDOWN}, with drawings in figures and full-size pictures in images beside it."
    pages = {
        HTML: page_blocks.as_html(content.title, facts, sections, footer=footer),
        MARKDOWN: page_blocks.as_markdown(content.title, facts, sections),
    }
    for name, picture in page_blocks.files(sections).items():
        with atomic(folder / name) as file:
            file.write(picture)
    for name, text in pages.items():
        write_text(folder / name, text)


def panels(picture: Image.Image | NDArray[np.uint8]) -> list[Image.Image]:
    """The four panels of a sheet.

    Raises:
        ValueError: its width is not that of four panels and three gaps.
    """
    sheet = _image(picture)
    width, rest = divmod(sheet.width - (len(PANELS) - 1) * GAP, len(PANELS))
    if rest or width < 1:
        raise ValueError(f"a sheet of {sheet.width} pixels is not {len(PANELS)} panels with {GAP} pixels between")
    lefts = [position * (width + GAP) for position in range(len(PANELS))]
    return [sheet.crop((left, 0, left + width, sheet.height)) for left in lefts]


def _image(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    return (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGB")


# ------------------------------------------------------------------------------------------------------------ numbers


def percent(value: float | None) -> str:
    """A share in percent with two decimals, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _with_unit(value: float | None) -> str:
    return percent(value) if percent(value) == "–" else f"{percent(value)} %"


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


# ----------------------------------------------------------------------------------------------------------- sections


def _sections(content: PageContent) -> list[Section]:
    found = [
        Section("summary", "Summary", _summary(content)),
        Section("classes", "Classes", _classes(content)),
        Section("scale", "Boundaries, sizes, rows", _scale(content)),
        Section("branches", "Resolutions", _branches(content)),
        Section("confusion", "Confusions", _confusion(content)),
        Section("examples", "Examples", _examples(content)),
        Section("notes", "Definitions", [Points(content.notes)] if content.notes else []),
    ]
    return [section for section in found if section.blocks]


def _summary(content: PageContent) -> list[Block]:
    names = content.space.classes
    counted = [name for name in names if _known(content.class_iou.get(name))]
    absent = [name for name in names if name not in counted]
    over = f"mean IoU over {_count(len(counted), 'class', 'classes')}"
    if absent:
        over = f"mean IoU over {len(counted)} of {len(names)} classes"
    tiles = [
        ("mIoU", _with_unit(content.mean_iou), over),
        ("pixel accuracy", _with_unit(content.pixel_accuracy), f"of {int(content.confusion_KK.sum()):,} pixels"),
    ]
    if content.category_iou is not None:
        counting = sum(map(_known, content.category_iou.values()))
        note = f"mean over {_count(counting, 'category', 'categories')}"
        tiles.append(("category IoU", _with_unit(content.mean_category_iou), note))
    if content.instance_iou is not None:
        counting = sum(map(_known, content.instance_iou.values()))
        note = f"mean over {_count(counting, 'class', 'classes')} with instances"
        tiles.append(("iIoU", _with_unit(content.mean_instance_iou), note))
    blocks: list[Block] = [Headline(tiles)]
    remarks = [f"mIoU with test-time augmentation: {content.augmented}"] if content.augmented else []
    remarks += [content.official] if content.official else []
    if absent:
        remarks.append(f"In neither truth nor prediction, and not counted: {_listed(absent)}.")
    return [*blocks, Points(remarks)] if remarks else blocks


def _listed(names: Sequence[str], *, most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _classes(content: PageContent) -> list[Block]:
    space, confusion_KK = content.space, content.confusion_KK
    true_K, predicted_K, hits_K = confusion_KK.sum(1), confusion_KK.sum(0), np.diag(confusion_KK)
    total = max(1, int(confusion_KK.sum()))
    ranked = sorted(
        (
            (value, name)
            for name in space.classes
            if (value := content.class_iou.get(name)) is not None and _known(value)
        ),
        key=lambda pair: -pair[0],
    )
    blocks: list[Block] = []
    if ranked:
        (high, best), (low, worst) = ranked[0], ranked[-1]
        blocks.append(
            Figure(
                "figures/classes.png",
                f"Bars of IoU by class: from {best} with {percent(high)} % to {worst} with {percent(low)} %",
                "IoU by class in the class's colour, from the highest to the lowest, and its share of the true pixels.",
                page_figures.classes(content.class_iou, confusion_KK, space),
            )
        )
    headings = ["class", "id", "IoU", "recall", "precision", "share of pixels"]
    if content.instance_iou is not None:
        headings.insert(3, "iIoU")
    rows = []
    for k, name in enumerate(space.classes):
        row = [name, str(k), percent(content.class_iou.get(name)), _ratio(hits_K[k], true_K[k])]
        row += [_ratio(hits_K[k], predicted_K[k]), _ratio(true_K[k], total)]
        if content.instance_iou is not None:
            row.insert(3, percent(content.instance_iou.get(name)))
        rows.append(row)
    caption = "By class (%); id: train id"
    blocks.append(Table(caption, headings, rows, colours=space.colours))
    if content.category_iou is not None:
        rows = [[name, percent(value)] for name, value in content.category_iou.items()]
        blocks.append(Table("By category (%)", ["category", "IoU"], rows))
    return blocks


def _ratio(part: Any, whole: Any) -> str:
    return percent(int(part) / int(whole) if whole else None)


def _scale(content: PageContent) -> list[Block]:
    if not (content.boundary or content.sizes or content.rows):
        return []
    drawing = page_figures.scale(
        boundary=content.boundary,
        sizes={name: (size.recall, size.found) for name, size in content.sizes.items()},
        rows=content.rows,
    )
    alt = "Three charts: boundary IoU and F1 over the distance, recall by size of the true region, mIoU by rows"
    caption = "Means over the classes. Far objects are small and mostly high in the image, near ones large and low."
    blocks: list[Block] = [Figure("figures/scale.png", alt, caption, drawing)]
    if content.boundary:
        rows = [
            [f"{distance} px", percent(iou), percent(f1)] for distance, (iou, f1) in sorted(content.boundary.items())
        ]
        blocks.append(Table("Boundary IoU and F1 (%)", ["distance", "IoU", "F1"], rows))
    if content.sizes:
        rows = [
            [name, _area(size), f"{size.regions:,}", percent(size.recall), percent(size.found)]
            for name, size in content.sizes.items()
        ]
        headings = ["size", "area (px)", "regions", "recall (%)", "found (%)"]
        blocks.append(Table("Regions of the truth by size", headings, rows))
    if content.rows:
        rows = [[page_figures.span(start, end), percent(value)] for start, end, value in content.rows]
        blocks.append(Table("mIoU by rows, top first (%)", ["rows", "mIoU"], rows))
    return blocks


def _branches(content: PageContent) -> list[Block]:
    if not content.branches:
        return []
    rows = [
        [f"1/{found.stride}", percent(found.without), _change(found.without, content.mean_iou), percent(found.head)]
        for found in content.branches
    ]
    headings = ["resolution", "without it", "change", "its head alone"]
    return [Table("mIoU by resolution of the network (%)", headings, rows)]


def _change(value: float | None, whole: float | None) -> str:
    """Points of percent, signed, or a dash."""
    if value is None or whole is None or math.isnan(value - whole):
        return percent(None)
    return f"{100 * (value - whole):+.2f}".replace("-", "\N{MINUS SIGN}")


def _area(size: SizeFigures) -> str:
    if size.to_pixels is None:
        return f"from {size.from_pixels:,}"
    return f"{size.from_pixels:,} to {size.to_pixels - 1:,}" if size.from_pixels else f"below {size.to_pixels:,}"


def _confusion(content: PageContent) -> list[Block]:
    if not content.confusion_KK.any():
        return []
    shown = page_figures.present(content.confusion_KK)
    left_out = len(content.space.classes) - len(shown)
    caption = "Each row is a class of the truth: the share of its pixels by predicted class, in percent."
    if left_out:
        caption += f" {_count(left_out, 'class', 'classes')} in neither truth nor prediction left out."
    if len(shown) > page_figures.NAMED:
        caption += " Rows and columns are train ids; the table of classes names them."
    drawing = page_figures.confusion(content.confusion_KK, content.space)
    alt = f"Confusion matrix of {_count(len(shown), 'class', 'classes')}, as shares of the truth"
    blocks: list[Block] = [Figure("figures/confusion.png", alt, caption, drawing)]
    names, shares_KK = content.space.classes, page_figures.row_shares(content.confusion_KK)
    pairs = [(int(k), int(j)) for k, j in np.argwhere(content.confusion_KK) if k != j]
    pairs.sort(key=lambda pair: -shares_KK[pair])
    if pairs:
        rows = [
            [names[k], names[j], percent(float(shares_KK[k, j])), f"{content.confusion_KK[k, j]:,}"]
            for k, j in pairs[:CONFUSIONS]
        ]
        headings = ["truth", "predicted as", "share of the truth (%)", "pixels"]
        blocks.append(Table("The most frequent confusions", headings, rows, texts=2))
    return blocks


def _examples(content: PageContent) -> list[Block]:
    if not content.examples:
        return []
    text = "By the mIoU of each image alone. Errors are red on the grey image; pixels without a label are black."
    entries = list(zip(content.space.classes, content.space.colours, strict=True))
    blocks: list[Block] = [Text(text), Legend(f"Colours of the {len(entries)} classes", entries)]
    kinds: dict[Kind, int] = {}
    for example in content.examples:
        number = kinds[example.kind] = kinds.get(example.kind, 0) + 1
        if number == 1:
            blocks.append(Heading(example.kind.capitalize()))
        caption = f"{example.name}, mIoU {_with_unit(example.mean_iou)}"
        named = list(zip(PANELS, panels(example.picture), strict=True))
        blocks.append(Sheet(f"images/{example.kind}-{number}.png", caption, named, _image(example.picture)))
    return blocks
