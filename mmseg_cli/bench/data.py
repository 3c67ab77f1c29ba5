"""`mmseg bench data`: crops a second of our store against the usual decoders, and our loader against the usual one.

Pictures are generated with the detail and the noise of a photograph, written as files, and prepared by the real
`prepare`. Every contender decodes the same regions on one thread; they take turns, round by round (A B C A B C), so
that a machine that slows down slows all of them. Before anything is timed, a crop of every reader and a batch of both
loaders are checked to be the same picture.

Shapes: H, W = height, width of a crop; C = 3 colours.
"""

from __future__ import annotations

import io
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
from mmseg_cli.bench.turns import cells, take_turns
from mmseg_cli.data import ingest, loader, sampling, transforms
from mmseg_cli.data.prepare import Prepared, prepare
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
# Pixels; with it and the noise a generated frame takes about 2.3 MB as PNG, as a street photograph does.
LENS_BLUR = 1.2
NOISE = (0.5, 0.3)  # grey levels, of all colours together and of each
JPEG_QUALITY = 92
CLASSES = 19
DECODER_SPREAD = 8  # grey levels by which two JPEG decoders may differ in a pixel
ALIKE = 3.0  # mean difference, in grey levels, of one picture in two encodings or of colours rounded at other steps

Region = tuple[int, int, int, int]
Reader = Callable[[int, Region], NDArray[np.uint8]]  # (item, region) -> image_HWC
Batch = tuple[torch.Tensor, torch.Tensor]  # (image_BCHW, label_BHW)


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


@dataclass(frozen=True)
class Kind:
    """One kind of source files.

    Attributes:
        title: its name in the report.
        encode: makes the file that `prepare` reads.
        usual: makes the file that all others read; None where it is the same file.
    """

    title: str
    encode: Callable[[Image.Image], bytes]
    usual: Callable[[Image.Image], bytes] | None


KINDS = {  # by the suffix of the files
    "png": Kind("PNG", _as_png, None),
    "jpg": Kind("JPEG as it came", _as_jpeg, None),
    "jpeg": Kind("JPEG as prepare makes them smaller", partial(jpeg.encode, quality=ingest.JPEG_QUALITY), _as_jpeg),
}


def prepared_quietly(
    dataset: str,
    root: Path,
    out: Path,
    *,
    options: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
) -> Prepared:
    """Prepare a generated dataset by the real `prepare`, on one thread, telling nobody; arguments as there."""
    return prepare(
        dataset,
        root,
        out,
        options=options or {},
        parameters=parameters or {},
        long_side=None,
        short_side=None,
        allow=(),
        check_only=False,
        threads=1,
        on_start=lambda total: None,
        advance=lambda: None,
    )


def write_pictures(root: Path, *, kind: str, images: int, seed: int) -> list[Path]:
    """Write generated street photographs of SIZE in the `folder` layout.

    Args:
        root: a new folder.
        kind: one of KINDS, and the suffix of the files.
        images: for training; one more is written for validation.

    Returns:
        The training pictures as the other readers have them.
    """
    made, usual = KINDS[kind], root.with_name(f"{root.name}-usual")
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
        if made.usual:
            (usual / split).mkdir(parents=True)
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
        image, name = Image.fromarray(image_HWC), f"{number:04d}.{kind}"
        (root / "images" / place / name).write_bytes(made.encode(image))
        if made.usual:
            (usual / place / name).write_bytes(made.usual(image))
        Image.fromarray(label_HW).save(root / "masks" / place / f"{number:04d}.png")
    return sorted((usual if made.usual else root / "images").joinpath("train").iterdir())


def _pillow_crop(path: Path, region: Region) -> Image.Image:
    """A crop in RGB; only it is converted, and only where the file has other colours."""
    top, left, height, width = region
    with Image.open(path) as image:
        crop = image.crop((left, top, left + width, top + height))
    return crop if crop.mode == "RGB" else crop.convert("RGB")


def _pillow(path: Path, region: Region) -> NDArray[np.uint8]:
    return np.asarray(_pillow_crop(path, region))


def _opencv(path: Path, region: Region) -> NDArray[np.uint8]:
    import cv2

    top, left, height, width = region
    image_HWC = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image_HWC is None:
        raise RuntimeError(f"{path}: OpenCV cannot read it")
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

    def __getitem__(self, step: int) -> Batch:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        samples = []
        for position in range(BATCH):
            draw = sampling.draw(seed=self._seed, step=step, position=position, batch=BATCH, items=len(self._images))
            region = transforms.zoomed_region(SIZE, CROP, zoom=ZOOM, scale=draw.scale, top=draw.top, left=draw.left)
            image = F.pil_to_tensor(_pillow_crop(self._images[draw.item], region.box))
            left, top = region.left, region.top
            with Image.open(self._labels[draw.item]) as opened:
                label = F.pil_to_tensor(opened.crop((left, top, left + region.width, top + region.height)))
            image = F.resize(image, list(CROP), antialias=True)
            label = F.resize(label, list(CROP), interpolation=InterpolationMode.NEAREST_EXACT)
            brightness, contrast, saturation = (1 + COLOUR * (2 * number - 1) for number in draw.colour)
            image = F.adjust_brightness(image, brightness)
            image = F.adjust_contrast(image, contrast)
            image = F.adjust_saturation(image, saturation)
            if draw.flip:
                image, label = F.horizontal_flip(image), F.horizontal_flip(label)
            samples.append((image, label[0]))
        image_BCHW, label_BHW = torch.utils.data.default_collate(samples)
        return image_BCHW, label_BHW


def _regions(count: int, items: int, *, seed: int) -> list[tuple[int, Region]]:
    """Items and crops at random places."""
    rng = np.random.default_rng(seed)
    tops, lefts = rng.integers(0, SIZE[0] - CROP[0] + 1, count), rng.integers(0, SIZE[1] - CROP[1] + 1, count)
    return [(index % items, (int(tops[index]), int(lefts[index]), *CROP)) for index in range(count)]


def check_readers(readers: Mapping[str, Reader], *, kind: str, item: int, region: Region) -> None:
    """All readers read the same crop: PNG and ours to the bit; JPEG decoders, and two encodings, nearly.

    Raises:
        RuntimeError: one does not.
    """
    expected_HWC = readers["Pillow"](item, region).astype(int)
    for name, reader in readers.items():
        image_HWC = reader(item, region)
        if image_HWC.shape != expected_HWC.shape:
            raise RuntimeError(f"{kind}: {name} reads {image_HWC.shape} and not {expected_HWC.shape}")
        differences = np.abs(image_HWC - expected_HWC)
        if KINDS[kind].usual:
            same = bool(differences.mean() < ALIKE)
        else:
            exact = kind == "png" or name == "mmseg store"
            same = bool(differences.max() <= (0 if exact else DECODER_SPREAD))
        if not same:
            raise RuntimeError(f"{kind}: {name} reads another picture than Pillow")


def check_batches(ours: Batch, usual: Batch, *, kind: str) -> None:
    """Both loaders made the same batch, (image_BCHW, label_BHW): equal labels, images equal but for rounding.

    Raises:
        RuntimeError: they did not.
    """
    if not torch.equal(ours[1], usual[1]):
        raise RuntimeError(f"{kind}: the loaders make different labels")
    if ours[0].shape != usual[0].shape or (ours[0].float() - usual[0].float()).abs().mean() >= ALIKE:
        raise RuntimeError(f"{kind}: the loaders make different images")


def _one_crop(reader: Reader, regions: list[tuple[int, Region]], index: int) -> NDArray[np.uint8]:
    return reader(*regions[index])


def _compare_kind(
    work: Path, *, kind: str, images: int, rounds: int, calls: int, seed: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Both comparisons, crops and whole loaders, for one of KINDS."""
    root = work / kind
    paths = write_pictures(root, kind=kind, images=images, seed=seed)
    made = prepared_quietly("folder", root, work / f"{kind}-store")
    assert made.folder is not None
    split = open_store(made.folder).split("train")
    labels = sorted((root / "masks" / "train").iterdir())
    readers = crop_readers(paths, split)
    regions = _regions(rounds * calls, images, seed=seed)
    item, region = regions[0]
    check_readers(readers, kind=kind, item=item, region=region)
    compare = partial(take_turns, reference="Pillow", rounds=rounds, advance=advance)
    crops = compare(
        {name: partial(_one_crop, reader, regions) for name, reader in readers.items()}, calls=calls, units=1
    )
    ours = loader.SegmentationCrops(
        split, seed=seed, batch=BATCH, crop=CROP, zoom=ZOOM, flip=True, colour=COLOUR, blur=0.0, class_uniform=0.0
    )
    usual = UsualLoader(paths, labels, seed=seed)
    check_batches(ours[0], usual[0], kind=kind)
    loaders: dict[str, Callable[[int], object]] = {"mmseg loader": ours.__getitem__, "Pillow": usual.__getitem__}
    batches = compare(loaders, calls=max(1, calls // BATCH), units=BATCH)
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
        calls: crops of each contender in a round; loaders make as many in whole batches, at least one.
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
    return [(name, *cells(timing)) for name, timing in part.items()]


HEADINGS = ("reader", "crops/s", "times Pillow", "range over rounds")


def tables(result: dict[str, Any]) -> dict[str, list[tuple[str, str, str, str]]]:
    """The rows of each comparison by its title, under HEADINGS."""
    settings = result["settings"]
    (height, width), (crop_height, crop_width) = settings["image"], settings["crop"]
    what = f"{crop_width}x{crop_height} from {width}x{height}"
    found = {}
    for kind, part in result["kinds"].items():
        each = f"{part['bytes_per_file'] / 1e6:.2f} MB each"
        share = f"the store takes {part['store_bytes_per_file_byte']:.2f}x their bytes"
        title = KINDS[kind].title
        found[f"{title}, crops: {what} ({each}; {share})"] = _rows(part["crops"])
        found[f"{title}, loaders: whole batches of {settings['batch']} crops with labels"] = _rows(part["batches"])
    return found


def markdown(result: dict[str, Any]) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    lines = [
        "# Reading data",
        "",
        f"One thread; {settings['rounds']} rounds in turn, of {settings['calls']} crops each, over",
        f"{settings['images']} generated pictures of each kind, seed {settings['seed']}. Files and store lie in the",
        "page cache: what is measured is decoding, not the disk. Ratios are medians over the rounds, each to Pillow in",
        f"the same round. Machine: {machine}.",
        "",
        "There are two comparisons for each kind of file. **Crops**: only reading a random region of an image as RGB;",
        "the store decodes what the region needs, the others decode the whole file and cut it out. **Loaders**: what",
        "training waits for: read image and label, zoom, flip, change the colours and collate; `mmseg loader` against",
        "the usual one of Pillow and torchvision.transforms.v2. Both make the same crops from the same numbers.",
        "",
        f"- {KINDS['png'].title}: all read the same picture; the store holds it without loss.",
        f"- {KINDS['jpg'].title}: ordinary JPEG (4:2:0, quality {JPEG_QUALITY}); the store holds the very same bytes.",
        f"- {KINDS['jpeg'].title}: the store holds our encoding (4:4:4, quality {ingest.JPEG_QUALITY}, with restart",
        "  markers); the others read the same pictures as ordinary JPEG as above.",
    ]
    for title, rows in tables(result).items():
        lines += ["", f"## {title}", "", "| " + " | ".join(HEADINGS) + " |", "|:--|--:|--:|--:|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
