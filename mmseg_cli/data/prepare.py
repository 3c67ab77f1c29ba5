"""`mmseg prepare`: verify a dataset, map its labels and write the store. Nothing is ever written into the dataset."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli import runtime
from mmseg_cli.data import store, verify
from mmseg_cli.data.labels import IGNORE
from mmseg_cli.data.sources import camvid, cityscapes, imagenet, mapillary, synthetic
from mmseg_cli.data.sources.listing import Item, Listing
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import fingerprint, new_folder, sha256, write_json

SOURCES: dict[str, ModuleType] = {
    "imagenet": imagenet,
    "mapillary": mapillary,
    "cityscapes": cityscapes,
    "camvid": camvid,
}
GENERATOR = ("data/sources/scenes", "data/sources/synthetic.py", "data/sources/vistas_labels.py")
JPEG_QUALITY = 95  # of a JPEG that was made smaller; one that keeps its size keeps its bytes
JPEG_MODES = ("L", "RGB")  # stored as they are; CMYK and others are converted


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did, for the summary."""

    folder: Path
    dataset: str
    classes: int
    counts: dict[str, int]
    bytes: int
    warnings: list[str]


@dataclass(frozen=True)
class _Record:
    """One item, ready to be stored. Sizes are (height, width)."""

    name: str
    sha256: str
    image: bytes
    image_size: tuple[int, int]
    source_size: tuple[int, int]
    label: bytes
    label_size: tuple[int, int]
    class_pixels: NDArray[np.int64]


def root_variable(dataset: str) -> str:
    """The environment variable that names the root of a dataset."""
    return f"MMSEG_{dataset.upper()}_ROOT"


def find_root(dataset: str, root: Path | None) -> Path:
    """The dataset's folder: `root`, or the environment's MMSEG_<DATASET>_ROOT.

    Raises:
        MmsegError: neither is given, the folder is missing, or it is the root of another dataset.
    """
    where = str(root) if root is not None else os.environ.get(root_variable(dataset))
    if not where:
        raise MmsegError(dataset, "no root is known", f"give --root FOLDER or set {root_variable(dataset)}")
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise MmsegError(folder, "there is no such folder", f"give the root of {dataset} as it was extracted")
    if not SOURCES[dataset].looks_like(folder):
        others = [name for name, module in SOURCES.items() if module.looks_like(folder)]
        what = f"looks like {others[0]}, not {dataset}" if others else f"does not look like {dataset}"
        todo = f"use `mmseg prepare {others[0]}`" if others else "`mmseg prepare --help` lists the folders it must hold"
        raise MmsegError(folder, what, todo)
    return folder


def generated_root(dataset: str, *, raw: Callable[[str], Path], settings: dict[str, Any]) -> Path:
    """The generated raw tree of a dataset, written in its official layout unless it is there already.

    Args:
        raw: the tree's folder, from a key that stands for the settings and the generator's code.
        settings: the arguments of `mmseg_cli.data.sources.synthetic.write` behind the root.
    """
    root = raw(fingerprint([dataset, settings, runtime.code_hash(GENERATOR)])[:12])
    if not root.is_dir():
        with new_folder(root) as folder:
            synthetic.write(dataset, folder, **settings)
    return root


def _limited(size: tuple[int, int], *, long_side: int | None, short_side: int | None) -> tuple[int, int]:
    """(height, width) made smaller, never larger, until the given side fits."""
    limit, side = (long_side, max(size)) if long_side else (short_side, min(size))
    if limit is None or side <= limit:
        return size
    height, width = (max(1, round(length * limit / side)) for length in size)
    return height, width


def _encode_image(path: Path, content: bytes, image: Image.Image, size: tuple[int, int]) -> bytes:
    """The image as a record of `size`: a JPEG stays one, everything else is stored losslessly."""
    source = (image.height, image.width)
    if image.format != "JPEG":
        if size != source:
            image = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
        return store.pack(np.asarray(image.convert("RGB")))
    if size == source and image.mode in JPEG_MODES:
        return content
    buffer = io.BytesIO()
    smaller = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
    smaller.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _make_record(
    item: Item, listing: Listing, *, train: bool, long_side: int | None, short_side: int | None
) -> _Record:
    """Read, verify, map and encode one item. Labels of other splits than train keep their native size."""
    content = verify.read_bytes(item.image)
    digest = hashlib.sha256(content)
    image = verify.open_image(item.image)
    source = (image.height, image.width)
    size = _limited(source, long_side=long_side, short_side=short_side)
    encoded = _encode_image(item.image, content, image, size)
    if item.label is None or listing.table is None:
        target = item.target or 0
        pixels = np.bincount([target], minlength=max(len(listing.space.classes), IGNORE + 1))
        return _Record(item.name, digest.hexdigest(), encoded, size, source, b"", (target, 0), pixels)
    digest.update(verify.read_bytes(item.label))
    label_HW = verify.read_label(item.label, listing.table)
    verify.require_same_size(item.image, source, item.label, (label_HW.shape[0], label_HW.shape[1]))
    if train and size != source:  # Pillow's NEAREST takes pixel centres: "nearest-exact"
        label_HW = np.asarray(Image.fromarray(label_HW).resize((size[1], size[0]), Image.Resampling.NEAREST))
    pixels = np.bincount(label_HW.ravel(), minlength=IGNORE + 1)
    shape = (label_HW.shape[0], label_HW.shape[1])
    return _Record(item.name, digest.hexdigest(), encoded, size, source, store.pack(label_HW), shape, pixels)


def _in_order(make: Callable[[Item], _Record], items: list[Item], *, threads: int) -> Iterator[_Record]:
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


def _write_split(
    folder: Path, split: str, records: Iterator[_Record], *, classes: int, advance: Callable[[], None]
) -> tuple[dict[str, Any], Counter[tuple[int, int]]]:
    """Write one split; return its part of the manifest and how often each source size came."""
    writer = store.SplitWriter(folder, split)
    items: list[dict[str, Any]] = []
    total = np.zeros(max(classes, IGNORE + 1), dtype=np.int64)  # a classification may have more than 255 classes
    sizes: Counter[tuple[int, int]] = Counter()
    for record in records:
        writer.append(
            image=record.image, image_size=record.image_size, label=record.label, label_size=record.label_size
        )
        total += record.class_pixels
        sizes[record.source_size] += 1
        present = {int(index): int(record.class_pixels[index]) for index in np.flatnonzero(record.class_pixels)}
        items.append({"name": record.name, "sha256": record.sha256, "size": record.image_size, "class_pixels": present})
        advance()
    writer.close()
    part = {
        "count": len(items),
        "records_sha256": sha256(folder / f"{split}.records"),
        "index_sha256": sha256(folder / f"{split}.index.npz"),
        "class_pixels": total[:classes].tolist(),
        "ignored_pixels": int(total[IGNORE]) if classes <= IGNORE else 0,
        "items": items,
    }
    return part, sizes


def prepare(
    dataset: str,
    root: Path,
    out: Path,
    *,
    parameters: dict[str, Any],
    long_side: int | None,
    short_side: int | None,
    threads: int,
    on_start: Callable[[int], None],
    advance: Callable[[], None],
) -> Prepared:
    """Verify the dataset at `root` and write its store to `out`, which is replaced only when all went well.

    Args:
        dataset: one of SOURCES.
        root: the dataset as extracted; only read.
        out: the store's folder.
        parameters: the dataset's section of params.yaml, kept in the manifest and compared when the store is opened.
        long_side: limit of an image's longer side in pixels, or None.
        short_side: limit of an image's shorter side in pixels, or None.
        threads: how many items are read at once.
        on_start: called with the number of items.
        advance: called after each item.

    Raises:
        MmsegError: the first fault found, naming its file.
    """
    listing: Listing = SOURCES[dataset].scan(root)
    inside = out.resolve()
    if inside == root.resolve() or root.resolve() in inside.parents:
        raise MmsegError(out, "lies inside the dataset, which is never written to", "choose another folder")
    on_start(sum(len(items) for items in listing.splits.values()))
    warnings = list(listing.warnings)
    manifest: dict[str, Any] = {
        "format": store.FORMAT,
        "dataset": dataset,
        "task": listing.task,
        "parameters": parameters,
        "label_space": listing.space.as_json(),
        "splits": {},
    }
    with new_folder(out) as folder:
        for split, items in listing.splits.items():

            def make(item: Item, train: bool = split == "train") -> _Record:
                return _make_record(item, listing, train=train, long_side=long_side, short_side=short_side)

            records = _in_order(make, items, threads=threads)
            part, sizes = _write_split(folder, split, records, classes=len(listing.space.classes), advance=advance)
            manifest["splits"][split] = part
            other = {size: count for size, count in sizes.items() if listing.expected_size not in (None, size)}
            if other and listing.expected_size:
                height, width = max(other, key=lambda size: other[size])
                official = f"{listing.expected_size[1]}x{listing.expected_size[0]}"
                warnings.append(f"{split}: {sum(other.values())} images are not {official} (most {width}x{height})")
        write_json(folder / "manifest.json", manifest)
        written = sum(path.stat().st_size for path in folder.iterdir())
    counts = {split: len(items) for split, items in listing.splits.items()}
    return Prepared(out, dataset, len(listing.space.classes), counts, written, warnings)
