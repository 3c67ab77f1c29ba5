"""`mmseg bench data`: crops a second of our store against the usual decoders, and our loader against the usual one.

Pictures are generated with the detail and the noise of a photograph, written as files, and prepared by the real
`prepare`. Every contender decodes the same regions on one thread; they take turns, round by round (A B C A B C), so
that a machine that slows down slows all of them. A crop is checked to be equal before anything is timed.

Shapes: H, W = height, width of a crop; C = 3 colours.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mmseg_cli import runtime
from mmseg_cli.data import ingest, loader, sampling, transforms
from mmseg_cli.data.prepare import prepare
from mmseg_cli.data.records import jpeg
from mmseg_cli.data.sources import synthetic
from mmseg_cli.data.sources.scenes.render import render
from mmseg_cli.data.store import Split, open_store
from mmseg_cli.files import write_text

SIZE = (1024, 2048)
CROP = (512, 1024)
ZOOM = (0.5, 2.0)
COLOUR = 0.3
BATCH = 4
LENS_BLUR = (
    1.2  # pixels; with it and the noise a generated frame takes about 2.3 MB as PNG, as a street photograph does
)
NOISE = (0.5, 0.3)  # grey levels, of all colours together and of each
JPEG_QUALITY = 92
CLASSES = 19

Region = tuple[int, int, int, int]
Reader = Callable[[int, Region], NDArray[np.uint8]]  # (item, region) -> image_HWC


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


KINDS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "png": ("PNG", _as_png),
    "jpg": ("JPEG as it came", _as_jpeg),
    "jpeg": ("JPEG as prepare makes them smaller", partial(jpeg.encode, quality=ingest.JPEG_QUALITY)),
}


def write_pictures(root: Path, *, kind: str, images: int, seed: int) -> None:
    """Write generated street photographs of 2048x1024 in the `folder` layout.

    Args:
        root: a new folder.
        kind: one of KINDS, and the suffix of the files.
        images: for training; one more is written for validation.
    """
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
    names = "".join(f"  - class {index}\n" for index in range(CLASSES))
    write_text(root / "classes.yaml", f"classes:\n{names}")
    for number in range(images + 1):
        rng = synthetic.stream(seed, "frames-train", number)
        scene = render(rng, height=SIZE[0], width=SIZE[1])
        lens = Image.fromarray(scene.image_HWC).filter(ImageFilter.GaussianBlur(LENS_BLUR))
        noise_HWC = rng.normal(0, NOISE[0], (*SIZE, 1)) + rng.normal(0, NOISE[1], (*SIZE, 3))
        image_HWC = (np.asarray(lens) + noise_HWC).round().clip(0, 255).astype(np.uint8)
        label_HW = (scene.label_HW % CLASSES).astype(np.uint8)
        place = "train" if number < images else "val"
        content = KINDS[kind][1](Image.fromarray(image_HWC))
        (root / "images" / place / f"{number:04d}.{kind}").write_bytes(content)
        Image.fromarray(label_HW).save(root / "masks" / place / f"{number:04d}.png")


def _pillow(path: Path, region: Region) -> NDArray[np.uint8]:
    top, left, height, width = region
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").crop((left, top, left + width, top + height)))


def _opencv(path: Path, region: Region) -> NDArray[np.uint8]:
    import cv2

    top, left, height, width = region
    image_HWC = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert image_HWC is not None
    return np.ascontiguousarray(image_HWC[top : top + height, left : left + width]).astype(np.uint8, copy=False)


def _torchvision(path: Path, region: Region) -> NDArray[np.uint8]:
    from torchvision.io import ImageReadMode, decode_image, read_file

    top, left, height, width = region
    image_CHW = decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    crop_HWC = image_CHW[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous()
    return np.asarray(crop_HWC.numpy())


def crop_readers(paths: list[Path], split: Split) -> dict[str, Reader]:
    """All ways to read a crop that this machine has, ours first, then Pillow."""
    readers: dict[str, Reader] = {
        "mmseg store": split.image,
        "Pillow": lambda item, region: _pillow(paths[item], region),
        "torchvision": lambda item, region: _torchvision(paths[item], region),
    }
    if find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(1)
        readers["OpenCV"] = lambda item, region: _opencv(paths[item], region)
    return readers


class UsualLoader:
    """What one writes with Pillow and torchvision.transforms.v2: the same crops, changes and batches as ours."""

    def __init__(self, images: list[Path], labels: list[Path], *, seed: int) -> None:
        self._images, self._labels, self._seed = images, labels, seed

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        samples = []
        for position in range(BATCH):
            draw = sampling.draw(seed=self._seed, step=step, position=position, batch=BATCH, items=len(self._images))
            with Image.open(self._images[draw.item]) as opened:
                image = F.pil_to_tensor(opened.convert("RGB"))
            with Image.open(self._labels[draw.item]) as opened:
                label = F.pil_to_tensor(opened)
            region = transforms.zoomed_region(SIZE, CROP, zoom=ZOOM, scale=draw.scale, top=draw.top, left=draw.left)
            image = F.resized_crop(image, *region.box, list(CROP), antialias=True)
            label = F.resized_crop(label, *region.box, list(CROP), interpolation=InterpolationMode.NEAREST_EXACT)
            brightness, contrast, saturation = (1 + COLOUR * (2 * number - 1) for number in draw.colour)
            image = F.adjust_brightness(image, brightness)
            image = F.adjust_contrast(image, contrast)
            image = F.adjust_saturation(image, saturation)
            if draw.flip:
                image, label = F.horizontal_flip(image), F.horizontal_flip(label)
            samples.append((image, label[0]))
        image_BCHW, label_BHW = torch.utils.data.default_collate(samples)
        return image_BCHW, label_BHW


@dataclass(frozen=True)
class Timing:
    """One contender of one comparison.

    Attributes:
        rates: crops a second, one number a round.
        ratios: how many times as fast as Pillow in the same round.
    """

    rates: list[float]
    ratios: list[float]

    @property
    def rate(self) -> float:
        """Median crops a second."""
        return statistics.median(self.rates)

    @property
    def ratio(self) -> float:
        """Median of the ratios to Pillow."""
        return statistics.median(self.ratios)


def take_turns(
    contenders: Mapping[str, Callable[[int], object]],
    *,
    reference: str,
    rounds: int,
    calls: int,
    crops: int,
    advance: Callable[[], None],
) -> dict[str, Timing]:
    """Time every contender in turn, `rounds` times, after one call each that does not count.

    Args:
        contenders: called with 0, 1, 2, ...; all do the same work for the same number.
        reference: the contender that the ratios are to.
        calls: in a round.
        crops: that one call makes.
    """
    for call in contenders.values():
        call(0)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, call in contenders.items():
            begun = time.perf_counter()
            for index in range(number * calls, (number + 1) * calls):
                call(index)
            rates[name].append(calls * crops / (time.perf_counter() - begun))
        advance()
    return {
        name: Timing(own, [mine / other for mine, other in zip(own, rates[reference], strict=True)])
        for name, own in rates.items()
    }


def _regions(count: int, items: int, *, seed: int) -> list[tuple[int, Region]]:
    """Items and crops at random places."""
    rng = np.random.default_rng(seed)
    tops, lefts = rng.integers(0, SIZE[0] - CROP[0] + 1, count), rng.integers(0, SIZE[1] - CROP[1] + 1, count)
    return [(index % items, (int(tops[index]), int(lefts[index]), *CROP)) for index in range(count)]


def _one_crop(reader: Reader, regions: list[tuple[int, Region]], index: int) -> NDArray[np.uint8]:
    return reader(*regions[index])


def _compare_kind(
    work: Path, *, kind: str, images: int, rounds: int, calls: int, seed: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Both comparisons, crops and whole loaders, for PNG or JPEG sources."""
    root = work / kind
    write_pictures(root, kind=kind, images=images, seed=seed)
    made = prepare(
        "folder",
        root,
        work / f"{kind}-store",
        options={},
        parameters={},
        long_side=None,
        short_side=None,
        allow=(),
        check_only=False,
        threads=1,
        on_start=lambda total: None,
        advance=lambda: None,
    )
    assert made.folder is not None
    split = open_store(made.folder).split("train")
    paths = sorted((root / "images" / "train").iterdir())
    labels = sorted((root / "masks" / "train").iterdir())
    readers = crop_readers(paths, split)
    regions = _regions(rounds * calls, images, seed=seed)
    item, region = regions[0]
    expected_HWC = readers["Pillow"](item, region)
    for name, reader in readers.items():
        difference = np.abs(reader(item, region).astype(int) - expected_HWC).max()
        assert difference <= (0 if name == "mmseg store" or kind == "png" else 8), f"{name} reads another picture"
    compare = partial(take_turns, reference="Pillow", rounds=rounds, advance=advance)
    crops = compare(
        {name: partial(_one_crop, reader, regions) for name, reader in readers.items()}, calls=calls, crops=1
    )
    ours = loader.SegmentationCrops(
        split, seed=seed, batch=BATCH, crop=CROP, zoom=ZOOM, flip=True, colour=COLOUR, blur=0.0, class_uniform=0.0
    )
    usual = UsualLoader(paths, labels, seed=seed)
    loaders: dict[str, Callable[[int], object]] = {"mmseg loader": ours.__getitem__, "Pillow": usual.__getitem__}
    batches = compare(loaders, calls=max(1, calls // BATCH), crops=BATCH)
    files = sum(path.stat().st_size for path in paths)
    return {
        "bytes_per_file": files / images,
        "store_bytes_per_file_byte": split.image_bytes() / files,
        "crops": {name: vars(timing) for name, timing in crops.items()},
        "batches": {name: vars(timing) for name, timing in batches.items()},
    }


def run(work: Path, *, images: int, rounds: int, calls: int, seed: int, advance: Callable[[], None]) -> dict[str, Any]:
    """The whole benchmark, on one thread.

    Args:
        work: an empty folder for files and stores.
        images: pictures of each kind.
        rounds: how often the contenders take turns.
        calls: crops of each contender in a round.
        advance: called after each of the 6 x `rounds` rounds.

    Returns:
        The content of the JSON report.
    """
    torch.set_num_threads(1)
    kinds = {
        kind: _compare_kind(work, kind=kind, images=images, rounds=rounds, calls=calls, seed=seed, advance=advance)
        for kind in KINDS
    }
    settings = {"images": images, "rounds": rounds, "calls": calls, "seed": seed, "threads": 1}
    sizes = {"image": SIZE, "crop": CROP, "batch": BATCH, "zoom": ZOOM, "colour": COLOUR}
    return {"environment": runtime.environment(), "settings": settings | sizes, "kinds": kinds}


def _rows(part: Mapping[str, Mapping[str, list[float]]]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, timing in part.items():
        rates, ratios = timing["rates"], timing["ratios"]
        low, high = min(ratios), max(ratios)
        rows.append(
            (name, f"{statistics.median(rates):.1f}", f"{statistics.median(ratios):.1f}", f"{low:.1f} - {high:.1f}")
        )
    return rows


HEADINGS = ("reader", "crops/s", "times Pillow", "range over rounds")


def tables(result: dict[str, Any]) -> dict[str, list[tuple[str, str, str, str]]]:
    """The rows of each comparison by its title, under HEADINGS."""
    found = {}
    for kind, part in result["kinds"].items():
        each = f"{part['bytes_per_file'] / 1e6:.2f} MB each"
        share = f"the store takes {part['store_bytes_per_file_byte']:.2f}x their bytes"
        title = KINDS[kind][0]
        found[f"{title}: crops of 512x1024 from 2048x1024 ({each}; {share})"] = _rows(part["crops"])
        found[f"{title}: whole batches (read, zoom, flip, colour, collate; with labels)"] = _rows(part["batches"])
    return found


def markdown(result: dict[str, Any]) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    lines = [
        "# Reading data",
        "",
        f"One thread; {settings['rounds']} rounds in turn, of {settings['calls']} crops each, over",
        f"{settings['images']} generated pictures of each kind, seed {settings['seed']}. Files lie in the page cache.",
        f"Ratios are medians over the rounds, each to Pillow in the same round. Machine: {machine}.",
    ]
    for title, rows in tables(result).items():
        lines += ["", f"## {title}", "", "| " + " | ".join(HEADINGS) + " |", "|:--|--:|--:|--:|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
