"""One item of a dataset on its way into the store: read once, verified, mapped and encoded.

Shapes: H, W = height, width of a label; C = 3 colours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data import faults, leaks, verify
from mmseg_cli.data.faults import Fault
from mmseg_cli.data.records import jpeg
from mmseg_cli.data.records.tiles import pack
from mmseg_cli.data.records.writer import label_summary
from mmseg_cli.data.sources.listing import Item, Listing
from mmseg_cli.data.tree import File, read
from mmseg_cli.errors import MmsegError

JPEG_QUALITY = 95  # of a JPEG that was made smaller; one that keeps its size keeps its bytes
JPEG_MODES = ("L", "RGB")  # stored as they are; CMYK and others are converted


@dataclass(frozen=True)
class Limits:
    """How the items of one split are stored. Sides are pixels, None for no limit.

    Attributes:
        shrink_labels: labels shrink with their images (train); others keep their native size.
    """

    long_side: int | None
    short_side: int | None
    shrink_labels: bool


@dataclass
class Ingested:
    """What became of one item.

    Attributes:
        faults: what is wrong with it.
        extra: what the comparison of all items needs: `image` (SHA-256 of its bytes), `look` (perceptual hash),
            `source` (height, width), `classes` (train ids in its label), `damage` (of a JPEG's data, or None); empty
            where the image cannot be read.
        record: the arguments of `SplitWriter.append`; None where something is wrong, or nothing was to be encoded.
    """

    faults: list[Fault] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] | None = None


def identity(item: Item) -> str:
    """What tells, without reading, that an item's files are still those that were read."""
    files = [item.image] if item.label is None else [item.image, item.label]
    return "|".join([item.name, str(item.target), *(f"{file.name}:{file.size}:{file.stamp}" for file in files)])


def _limited(size: tuple[int, int], limits: Limits) -> tuple[int, int]:
    """(height, width) made smaller, never larger, until the given side fits."""
    limit, side = (limits.long_side, max(size)) if limits.long_side else (limits.short_side, min(size))
    if limit is None or side <= limit:
        return size
    height, width = (max(1, round(length * limit / side)) for length in size)
    return height, width


def _encode_image(content: bytes, image: Image.Image, size: tuple[int, int]) -> bytes:
    """The image as a record of `size`: a JPEG stays one, everything else is stored losslessly."""
    same = size == (image.height, image.width)
    is_jpeg = content.startswith(jpeg.START)
    if is_jpeg and same and image.mode in JPEG_MODES:
        return content
    image = image.convert("RGB")
    if not same:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    if not is_jpeg:
        return pack(np.asarray(image))
    return jpeg.encode(image, quality=JPEG_QUALITY)


def _content(file: File) -> bytes | Fault:
    try:
        return read(file)
    except MmsegError as error:
        kind = "archive" if file.archive else "unreadable"
        return Fault(kind, error.where, error.what, error.todo)


def _read_image(item: Item, made: Ingested) -> tuple[bytes, Image.Image] | None:
    content = _content(item.image)
    image = content if isinstance(content, Fault) else verify.check_image(item.image, content)
    if isinstance(content, Fault) or isinstance(image, Fault):
        made.faults.append(content if isinstance(content, Fault) else image)  # type: ignore[arg-type]
        return None
    return content, image


def _read_label(item: Item, listing: Listing, made: Ingested) -> tuple[bytes, NDArray[np.uint8]] | None:
    assert item.label is not None
    content = _content(item.label)
    if isinstance(content, Fault):
        made.faults.append(content)
        return None
    label_HW = verify.check_label(item.label, content, listing)
    if isinstance(label_HW, list):
        made.faults += label_HW
        return None
    return content, label_HW


def ingest(item: Item, listing: Listing, limits: Limits, *, encode: bool) -> Ingested:
    """Read, verify and map one item, and encode it or not; what is wrong is in the answer, nothing is raised."""
    made = Ingested()
    read_image = _read_image(item, made)
    read_label = None if item.label is None else _read_label(item, listing, made)
    if read_image is None:
        return made
    content, image = read_image
    source = (image.height, image.width)
    digest = hashlib.sha256(content)
    made.extra = {
        "image": digest.hexdigest(),
        "look": leaks.look(image),
        "source": source,
        "classes": [],
        "damage": verify.jpeg_damage(content),
    }
    if item.label is not None and read_label is not None:
        other = verify.same_size(item.image, source, item.label, (read_label[1].shape[0], read_label[1].shape[1]))
        made.faults += [other] if other else []
    if faults.errors(made.faults):
        return made
    if not encode:
        if read_label is not None:
            made.extra["classes"] = np.flatnonzero(np.bincount(read_label[1].ravel())).tolist()
        return made
    size = _limited(source, limits)
    if read_label is None:
        target = item.target or 0
        pixels = np.bincount([target]).astype(np.int64)
        label, label_size, centroids = b"", (target, 0), np.empty((0, 3), np.int32)
    else:
        label_content, label_HW = read_label
        digest.update(label_content)
        if limits.shrink_labels and size != source:  # Pillow's NEAREST takes pixel centres: "nearest-exact"
            label_HW = np.asarray(Image.fromarray(label_HW).resize((size[1], size[0]), Image.Resampling.NEAREST))
        pixels, centroids = label_summary(label_HW)
        label, label_size = pack(label_HW), (label_HW.shape[0], label_HW.shape[1])
    made.extra["classes"] = np.flatnonzero(pixels).tolist()
    made.record = {
        "name": item.name,
        "sha256": digest.digest(),
        "image": _encode_image(content, image, size),
        "image_size": size,
        "label": label,
        "label_size": label_size,
        "class_pixels": pixels,
        "centroids": centroids,
        "identity": identity(item),
        "extra": made.extra,
    }
    return made


def in_order(make: Callable[[Item], Ingested], items: list[Item], *, threads: int) -> Iterator[Ingested]:
    """`make` of every item on a few threads, in the items' order, with a bounded number in memory."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(items)
        futures = [pool.submit(make, item) for item in islice(waiting, 4 * threads)]
        try:
            while futures:
                yield futures.pop(0).result()
                futures += [pool.submit(make, item) for item in islice(waiting, 1)]
        finally:
            for future in futures:
                future.cancel()
