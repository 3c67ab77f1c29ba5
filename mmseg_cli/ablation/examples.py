"""Where two variants differ most: the images with the largest gain and loss, drawn from the predictions on disk.

The pictures show images of the dataset, whose terms may forbid to publish them. So they go into the run folder, which
git ignores, and never into reports/.

An image's mIoU is the mean over the classes that are in its truth: the same ones for every variant.

Works without torch. Shapes: N = images, S = seeds, K = classes; H, W = height, width of a label; C = 3 colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmseg_cli.ablation.grid import CONFUSION
from mmseg_cli.ablation.tables import markdown_table
from mmseg_cli.data.labels import IGNORE, LabelSpace
from mmseg_cli.data.overview.contact_sheet import distinct, elided
from mmseg_cli.data.store import Split, Store, open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence, metrics, official
from mmseg_cli.evaluation.evidence import Counts
from mmseg_cli.files import atomic, new_folder, write_text
from mmseg_cli.paths import Paths, run_name
from mmseg_cli.text import printable

FOLDER = "examples"
INDEX = "index.md"
EACH = 3  # images of the largest gain, and of the largest loss
PREDICTIONS = "predictions"  # as `mmseg_cli.evaluation.evaluate`, which needs torch, names the folder

LARGEST = 640  # pixels of a panel, at most; a small image is made larger by a whole number
LEAST = 360  # pixels of a panel's width, for its caption
MARGIN, GAP = 20, 12
TITLE, TEXT = 20, 15  # font sizes
LINE = 21  # pixels from one line of text to the next
INK, SOFT, PAPER, EDGE = (28, 31, 36), (91, 97, 105), (255, 255, 255), (120, 120, 120)
ONLY_VARIANT, ONLY_BASELINE = (0, 158, 115), (213, 94, 0)  # green and red that colour-blind readers can tell apart

NO_DIFFERENCE = (174, 174, 174)  # of the legend: what the grey image is on average

Kind = Literal["gain", "loss"]
Ids_HW = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """What was drawn.

    Attributes:
        files: `index.md`, then the pictures; empty where there are none.
        reason: why there are none, in words; else None.
    """

    files: list[Path]
    reason: str | None


@dataclass(frozen=True)
class Choice:
    """An image on which a variant and the baseline differ. mIoU of this image alone, in [0, 1].

    Attributes:
        kind, rank: such as the second (2) largest gain.
        position: of the image in the evidence.
        means: of the baseline and of the variant, over seeds.
        seed: whose predictions are shown: the one whose difference is nearest to the mean difference.
        shown: of the baseline and of the variant, of that seed.
    """

    variant: str
    kind: Kind
    rank: int
    position: int
    means: tuple[float, float]
    seed: int
    shown: tuple[float, float]

    @property
    def file(self) -> str:
        """Its place below the folder of examples."""
        return f"{self.variant}/{self.kind}-{self.rank}.png"


class _Unavailable(Exception):
    """What is missing, in words."""


def write(*, paths: Paths, variants: Sequence[str], seeds: Sequence[int], dataset: str, each: int = EACH) -> Examples:
    """Draw the images where each variant differs most from the baseline, and list them in `index.md`.

    They take the place of those that were drawn before. Where something is missing, such as the store or a prediction,
    or is not what was counted, nothing is drawn and nothing is changed.

    Args:
        paths: of the preset; the pictures go to its run folder `ablate/examples`.
        variants: the rows of the grid; the first is the baseline.
        seeds: of the grid.
        dataset: of the store that was evaluated.
        each: how many of the largest gain, and of the largest loss, for each variant.

    Raises:
        MmsegError: what was counted cannot be read, or the folder cannot be written.
    """
    if len(variants) < 2:
        return Examples([], "there is no variant to compare with the baseline")
    place = paths.run("ablate", FOLDER)
    try:
        first = _counted(paths, variants[0], seeds[0])
        store = _store(paths.store(dataset), classes=first.classes)  # a laptop has none: then nothing else is read
        runs = {(variant, seed): _counted(paths, variant, seed) for variant in variants for seed in seeds}
        images = {run: image_iou(counted.counts["confusion"]) for run, counted in runs.items()}
        found = [
            one
            for variant in variants[1:]
            for one in choices(images, variant=variant, baseline=variants[0], seeds=seeds, each=each)
        ]
        if not found:
            raise _Unavailable("no image tells the variants apart")
        source = _Source(paths, store, store.split("val"), runs, variants[0])
        source.require(found)
        with new_folder(place) as folder:
            for one in found:
                with atomic(folder / one.file) as file:
                    source.picture(one, each=each).save(file, "PNG")
            write_text(folder / INDEX, _index(found, first.names, baseline=variants[0], seeds=seeds))
    except _Unavailable as missing:
        return Examples([], str(missing))
    return Examples([place / INDEX, *(place / one.file for one in found)], None)


def _counted(paths: Paths, variant: str, seed: int) -> evidence.Evidence:
    return evidence.load(paths.evidence / run_name(variant, seed) / CONFUSION)


# ------------------------------------------------------------------------------------------------ choosing


def image_iou(confusion: Counts) -> Floats:
    """(N): the mean IoU of every image alone, over the classes that are in its truth; NaN where all is ignored."""
    classes = confusion.shape[0]
    image = np.repeat(np.arange(len(confusion)), np.diff(confusion.starts)) * classes
    true, predicted = np.divmod(confusion.cells.astype(np.int64), classes)

    def added(place: NDArray[np.int64], values: NDArray[np.int64]) -> Floats:
        sums = np.zeros(len(confusion) * classes)
        np.add.at(sums, place, values)  # exact: far below 2**53
        return sums.reshape(len(confusion), classes)

    values = confusion.values.astype(np.int64)
    hits_NK = added(image + true, np.where(true == predicted, values, 0))
    true_NK, predicted_NK = added(image + true, values), added(image + predicted, values)
    union_NK = true_NK + predicted_NK - hits_NK
    iou_NK = np.divide(hits_NK, union_NK, out=np.zeros_like(hits_NK), where=union_NK > 0)
    there_NK = true_NK > 0
    count_N = there_NK.sum(axis=1)
    sum_N = iou_NK.sum(axis=1, where=there_NK)
    mean_N: Floats = np.divide(sum_N, count_N, out=np.full(len(confusion), np.nan), where=count_N > 0)
    return mean_N


def choices(
    images: Mapping[tuple[str, int], Floats], *, variant: str, baseline: str, seeds: Sequence[int], each: int
) -> list[Choice]:
    """The images of the largest gain, then those of the largest loss, of a variant against the baseline.

    A gain is above 0 and a loss below, so there may be fewer than `each`; of equal ones the earlier image comes first.

    Args:
        images: (N) mIoU of every image, of every (variant, seed).
    """
    of_baseline_SN, of_variant_SN = (np.stack([images[name, seed] for seed in seeds]) for name in (baseline, variant))
    differences_SN = of_variant_SN - of_baseline_SN
    mean_N = differences_SN.mean(axis=0)
    found = []
    kinds: tuple[tuple[Kind, Floats], ...] = (("gain", mean_N), ("loss", -mean_N))
    for kind, size_N in kinds:
        order = [int(place) for place in np.argsort(-size_N, kind="stable") if size_N[place] > 0]
        for rank, place in enumerate(order[:each], start=1):
            shown = int(np.abs(differences_SN[:, place] - mean_N[place]).argmin())
            found.append(
                Choice(
                    variant=variant,
                    kind=kind,
                    rank=rank,
                    position=place,
                    means=(float(of_baseline_SN[:, place].mean()), float(of_variant_SN[:, place].mean())),
                    seed=seeds[shown],
                    shown=(float(of_baseline_SN[shown, place]), float(of_variant_SN[shown, place])),
                )
            )
    return found


# ------------------------------------------------------------------------------------------------ reading


def _store(folder: Path, *, classes: list[str]) -> Store:
    try:
        store = open_store(folder)
        if store.task != "segmentation" or list(store.space.classes) != classes:
            raise _Unavailable(f"{folder} has other classes than were counted")
        store.names("val")
    except MmsegError as error:
        raise _Unavailable(f"{error.where}: {error.what}") from error
    return store


@dataclass(frozen=True)
class _Source:
    """Where images, labels and predictions come from."""

    paths: Paths
    store: Store
    split: Split
    runs: Mapping[tuple[str, int], evidence.Evidence]
    baseline: str

    def prediction_file(self, variant: str, seed: int, name: str) -> Path:
        return self.paths.run("evaluate", run_name(variant, seed)) / PREDICTIONS / f"{name}.png"

    def name(self, one: Choice) -> str:
        return self.runs[self.baseline, one.seed].names[one.position]

    def require(self, found: Sequence[Choice]) -> None:
        """Raise _Unavailable unless all that will be drawn is there."""
        known = set(self.split.names())
        for one in found:
            name = self.name(one)
            if name not in known:
                raise _Unavailable(f"{self.store.folder} has no image {printable(name)} in val")
            for variant in (self.baseline, one.variant):
                path = self.prediction_file(variant, one.seed, name)
                if not path.is_file():
                    raise _Unavailable(f"{path}: missing")

    def prediction(self, variant: str, one: Choice, truth_HW: Ids_HW) -> Ids_HW:
        """predicted_HW, which must be the one that was counted."""
        path = self.prediction_file(variant, one.seed, self.name(one))
        space = self.store.space
        counted_KK = self.runs[variant, one.seed].counts["confusion"].image(one.position)
        try:
            predicted_HW = official.read_png(path, space)
            same = np.array_equal(metrics.confusion(truth_HW, predicted_HW, classes=len(space.classes)), counted_KK)
        except (OSError, SyntaxError) as error:
            raise _Unavailable(f"{path}: cannot be read ({error})") from error
        except ValueError:
            same = False
        if not same:
            raise _Unavailable(f"{path}: is not the prediction that was counted")
        return predicted_HW

    def picture(self, one: Choice, *, each: int) -> Image.Image:
        """The picture of one example."""
        name = self.name(one)
        item = self.split.names().index(name)
        try:
            image_HWC, truth_HW = self.split.image(item), self.split.label(item)
        except MmsegError as error:
            raise _Unavailable(f"{error.where}: {error.what}") from error
        return sheet(
            one,
            name=name,
            baseline=self.baseline,
            seeds=[seed for variant, seed in self.runs if variant == self.baseline],
            each=each,
            image_HWC=image_HWC,
            truth_HW=truth_HW,
            of_baseline_HW=self.prediction(self.baseline, one, truth_HW),
            of_variant_HW=self.prediction(one.variant, one, truth_HW),
            space=self.store.space,
        )


# ------------------------------------------------------------------------------------------------ drawing


def differing(
    truth_HW: Ids_HW, of_baseline_HW: Ids_HW, of_variant_HW: Ids_HW
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(H, W) where only the variant is right, and where only the baseline is; nowhere that the truth is ignored."""
    known = truth_HW != IGNORE
    baseline, variant = known & (of_baseline_HW == truth_HW), known & (of_variant_HW == truth_HW)
    return variant & ~baseline, baseline & ~variant


def sheet(
    one: Choice,
    *,
    name: str,
    baseline: str,
    seeds: Sequence[int],
    each: int,
    image_HWC: NDArray[np.uint8],
    truth_HW: Ids_HW,
    of_baseline_HW: Ids_HW,
    of_variant_HW: Ids_HW,
    space: LabelSpace,
) -> Image.Image:
    """A caption, then image, truth and legend, below them both predictions and where they differ.

    Args:
        one: the example.
        name: of the image.
        baseline: its name.
        seeds: that its means are over.
        each: how many of its kind there are at most.
        image_HWC: RGB; it may be of another size than the label.
        truth_HW: train ids, 255 = ignore.
        of_baseline_HW, of_variant_HW: train ids.
        space: the classes.
    """
    colours = distinct(space.colours)
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colours)] = colours
    size = _fitted(truth_HW.shape[1], truth_HW.shape[0])
    photo = Image.fromarray(image_HWC).resize((truth_HW.shape[1], truth_HW.shape[0]), Image.Resampling.BILINEAR)
    only_variant_HW, only_baseline_HW = differing(truth_HW, of_baseline_HW, of_variant_HW)
    differences_HWC = np.repeat((110 + np.asarray(photo.convert("L")) / 2).astype(np.uint8)[..., None], 3, axis=2)
    differences_HWC[only_variant_HW] = ONLY_VARIANT
    differences_HWC[only_baseline_HW] = ONLY_BASELINE
    differences_HWC[truth_HW == IGNORE] = 0
    panels = [
        ("image", Image.fromarray(image_HWC).resize(size, Image.Resampling.LANCZOS)),
        ("truth (black: ignored)", _enlarged(table[truth_HW], size)),
        (baseline, _enlarged(table[of_baseline_HW], size)),
        (one.variant, _enlarged(table[of_variant_HW], size)),
        ("where they differ", _enlarged(differences_HWC, size)),
    ]
    column, tall = max(size[0], LEAST), max(size[1], 5 * LINE)
    lines = _caption(one, name=name, baseline=baseline, seeds=seeds, each=each)
    known = max(1, int((truth_HW != IGNORE).sum()))
    shares = [100 * float(where_HW.sum()) / known for where_HW in (only_variant_HW, only_baseline_HW)]
    lines.append(
        f"Only {one.variant} is right in {shares[0]:.2f} % of its pixels, only {baseline} in {shares[1]:.2f} %."
    )

    width, top = 2 * MARGIN + 3 * column + 2 * GAP, MARGIN + 34 + LINE * len(lines[1:])
    whole = Image.new("RGB", (width, top + 2 * (LINE + tall + GAP) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(whole)
    title, text = _font(TITLE), _font(TEXT)
    draw.text((MARGIN, MARGIN - 6), elided(lines[0], title, width - 2 * MARGIN), font=title, fill=INK)
    for number, line in enumerate(lines[1:]):
        place = (MARGIN, MARGIN + 26 + LINE * number)
        draw.text(place, elided(line, text, width - 2 * MARGIN), font=text, fill=SOFT)
    for cell, (label, picture) in zip((0, 1, 3, 4, 5), panels, strict=True):
        x, y = MARGIN + cell % 3 * (column + GAP), top + cell // 3 * (LINE + tall + GAP)
        draw.text((x, y), elided(label, text, column), font=text, fill=INK)
        whole.paste(picture, (x, y + LINE))
    shown = np.concatenate([ids_HW.ravel() for ids_HW in (truth_HW, of_baseline_HW, of_variant_HW)])
    pixels_K = np.bincount(shown, minlength=256)[: len(colours)]
    order = [int(k) for k in np.argsort(-pixels_K, kind="stable") if pixels_K[k]]
    entries = [
        ("variant alone right", ONLY_VARIANT),
        ("baseline alone right", ONLY_BASELINE),
        ("both or neither", NO_DIFFERENCE),
        *((space.classes[k], colours[k]) for k in order),
    ]
    place = (MARGIN + 2 * (column + GAP), top + LINE)
    _legend(draw, entries, place=place, size=(column, tall))
    return whole


def _caption(one: Choice, *, name: str, baseline: str, seeds: Sequence[int], each: int) -> list[str]:
    def compared(pair: tuple[float, float]) -> str:
        before, after = (100 * value for value in pair)
        return f"{baseline} {before:.2f} %, {one.variant} {after:.2f} % ({after - before:+.2f})"

    many = f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}, the only one"
    return [
        f"{one.variant} against {baseline}: {one.kind} {one.rank} of the {each} largest",
        printable(name),
        f"mIoU of this image, {many}: {compared(one.means)}",
        f"Shown is seed {one.seed}: {compared(one.shown)}",
    ]


def _fitted(width: int, height: int) -> tuple[int, int]:
    """(width, height) of a panel: as large as there is room for, a small image by a whole number."""
    scale = LARGEST / max(width, height)
    scale = math.floor(scale) if scale >= 1 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _enlarged(picture_HWC: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(picture_HWC).resize(size, Image.Resampling.NEAREST)


def _legend(
    draw: ImageDraw.ImageDraw,
    entries: Sequence[tuple[str, tuple[int, int, int]]],
    *,
    place: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Swatches and names in as many columns as they need, at most three; what finds no room is counted."""
    font = _font(TEXT)
    lines = max(1, size[1] // LINE)
    columns = min(3, math.ceil(len(entries) / lines))
    room = columns * lines
    left_out = len(entries) - room + 1 if len(entries) > room else 0
    wide = size[0] // columns
    for position, (name, colour) in enumerate(entries[: room - 1] if left_out else entries):
        x, y = place[0] + position // lines * wide, place[1] + position % lines * LINE
        draw.rectangle((x, y + 2, x + 15, y + 16), fill=colour, outline=EDGE)
        draw.text((x + 23, y), elided(name, font, wide - 30), font=font, fill=INK)
    if left_out:
        x, y = place[0] + (columns - 1) * wide, place[1] + (lines - 1) * LINE
        draw.text((x + 23, y), f"and {left_out} more", font=font, fill=SOFT)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most alphabets."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


# ------------------------------------------------------------------------------------------------ the list


def _index(found: Sequence[Choice], names: Sequence[str], *, baseline: str, seeds: Sequence[int]) -> str:
    """The markdown that lists the pictures."""

    def percent(value: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.2f}"

    body = [
        [
            f"[{one.variant}, {one.kind} {one.rank}]({one.file})",
            _cell(names[one.position]),
            percent(one.means[0]),
            percent(one.means[1]),
            percent(one.means[1] - one.means[0], "+"),
            str(one.seed),
        ]
        for one in found
    ]
    titles = ["picture", "image", baseline, "variant", "Δ", "seed shown"]
    return "\n".join(
        [
            f"# Images where variants differ most from {baseline}",
            "",
            f"mIoU of each image alone in percent, over the classes in its truth; mean over seeds {_listed(seeds)}.",
            "The pictures show images of the dataset: its terms hold for them, and git ignores this folder.",
            "",
            markdown_table(titles, body, text=2),
            "",
        ]
    )


def _cell(text: str) -> str:
    """A name inside a table of markdown."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|")


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
