"""What the evaluation page of a run shows: its figures, and the best, median and worst images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.labels import IGNORE, LabelSpace
from mmseg_cli.data.store import Split
from mmseg_cli.evaluation import page, summary
from mmseg_cli.evaluation.evidence import Counts

KINDS: tuple[page.Kind, ...] = ("best", "median", "worst")
NOTES = (
    "IoU of a class: pixels that truth and prediction share, over those of either, in all images together; a class in"
    " neither is left out.",
    "Boundary IoU (Cheng et al. 2021) looks only at pixels within a distance of a class's border; boundary F1 at"
    " contours that have a counterpart within that distance. Ignored pixels belong to no class.",
    "Object sizes are connected regions of the truth by their area. A false positive belongs to none of them, so there"
    " is recall and no IoU; found are regions at least half of which are right.",
    "Row bands are of equal height from the top (far) to the bottom (near); a false positive lies in a row, so there is"
    " IoU.",
)
OF_BRANCHES = (
    "Without a resolution: the trained network, whose decoder gets in place of that level's feature the mean of it over"
    " all images, and which is not trained again. Its head alone: the classifier that deep supervision put there.",
)


def content(
    figures: dict[str, Any],
    confusion: Counts,
    split: Split,
    space: LabelSpace,
    *,
    title: str,
    dataset: str,
    protocol: str,
    augmented: str | None,
    official: str | None,
    read_prediction: Callable[[str], NDArray[np.uint8]],
    each: int,
) -> page.PageContent:
    """The page of a run.

    Args:
        figures: as in metrics.json.
        confusion: of every image.
        protocol, augmented: in words.
        official: a line on what the benchmark's program found.
        read_prediction: predicted_HW of an image by its name.
        each: how many of the best, median and worst images.
    """
    names, image_iou = split.names(), summary.image_iou(confusion)
    examples = [
        page.Example(
            kind=kind,
            name=names[item],
            mean_iou=image_iou[item],
            picture=sheet(split.image(item), read_prediction(names[item]), split.label(item), space.colours),
        )
        for kind, item in chosen(image_iou, each=each)
    ]
    instances = figures["instances"] or {}
    return page.PageContent(
        title=title,
        dataset=dataset,
        space=space,
        images=len(split),
        protocol=protocol,
        mean_iou=figures["mean_iou"],
        pixel_accuracy=figures["pixel_accuracy"],
        confusion_KK=confusion.total(),
        class_iou=figures["class_iou"],
        boundary={row["pixels"]: (row["mean_iou"], row["mean_f1"]) for row in figures["boundaries"]},
        sizes={
            row["size"]: page.SizeFigures(
                from_pixels=row["from_pixels"],
                to_pixels=row["to_pixels"],
                regions=row["regions"],
                recall=row["mean_recall"],
                found=row["mean_found"],
            )
            for row in figures["sizes"]
        },
        rows=[(row["from"], row["to"], row["mean_iou"]) for row in figures["rows"]],
        category_iou=figures.get("category_iou"),
        mean_category_iou=figures.get("mean_category_iou"),
        instance_iou=instances.get("class_iiou"),
        mean_instance_iou=instances.get("mean_iiou"),
        official=official,
        augmented=augmented and f"{100 * figures['augmented']['mean_iou']:.2f} % ({augmented})",
        branches=[
            page.BranchFigures(
                stride=row["stride"],
                without=row["knocked_out"] and row["knocked_out"]["mean_iou"],
                head=row["head"] and row["head"]["mean_iou"],
            )
            for row in figures["branches"] or ()
        ],
        notes=NOTES + (OF_BRANCHES if figures["branches"] else ()),
        examples=examples,
    )


def chosen(image_iou: Sequence[float], *, each: int) -> list[tuple[page.Kind, int]]:
    """The best, median and worst images by their own mIoU, `each` of each, none twice: (kind, position)."""
    ranked = [item for item in np.argsort(image_iou, kind="stable")[::-1].tolist() if not math.isnan(image_iou[item])]
    middle = max(0, (len(ranked) - each) // 2)
    wanted: dict[page.Kind, list[int]] = {
        "best": ranked[:each],
        "worst": ranked[::-1][:each],
        "median": ranked[middle : middle + each],
    }
    taken: dict[int, page.Kind] = {}
    for kind, items in wanted.items():
        for item in items:
            taken.setdefault(item, kind)
    return [(kind, item) for kind in KINDS for item, of in taken.items() if of == kind]


def sheet(
    image_HWC: NDArray[np.uint8],
    predicted_HW: NDArray[np.uint8],
    label_HW: NDArray[np.uint8],
    colours: tuple[tuple[int, int, int], ...],
) -> Image.Image:
    """Image, truth, prediction and errors (red on grey; ignored pixels black) side by side, at the label's size."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colours)] = colours
    size = (label_HW.shape[1], label_HW.shape[0])
    picture = Image.fromarray(image_HWC).resize(size, Image.Resampling.BILINEAR)
    errors_HWC = np.repeat(np.asarray(picture.convert("L"))[..., None], 3, axis=2)
    errors_HWC[(predicted_HW != label_HW)] = (220, 40, 40)
    errors_HWC[label_HW == IGNORE] = 0
    parts = [picture, *(Image.fromarray(part) for part in (table[label_HW], table[predicted_HW], errors_HWC))]
    whole = Image.new("RGB", (4 * size[0] + 3 * page.GAP, size[1]), "white")
    for position, part in enumerate(parts):
        whole.paste(part, (position * (size[0] + page.GAP), 0))
    return whole
