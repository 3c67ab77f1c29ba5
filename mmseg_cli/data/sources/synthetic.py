"""Writes generated pictures in the official folder layouts of ImageNet, Mapillary Vistas and Cityscapes.

The trees are read back by the same readers as the real data sets. Every picture is drawn from its own random stream,
keyed by the seed, its kind and its number: picture k does not depend on how many there are, and the same arguments
give the same bytes with the same library versions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmseg_cli.data.sources.scenes.canvas import TABLE, Kind, Scene
from mmseg_cli.data.sources.scenes.render import render
from mmseg_cli.data.sources.scenes.subjects import SUBJECTS, render_subject
from mmseg_cli.data.sources.vistas_labels import VISTAS_LABELS
from mmseg_cli.errors import MmsegError

TRAIN_CITIES = ("aachen", "bochum", "bremen", "cologne", "darmstadt", "dusseldorf", "hamburg", "hanover", "jena")
VAL_CITIES = ("frankfurt", "lindau", "munster")
STREAMS = ("imagenet-train", "imagenet-val", "vistas-training", "vistas-validation", "frames-train", "frames-val")
KEY_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
GREY_SHARE = 0.05
PORTRAIT_SHARE = 0.25


def stream(seed: int, kind: str, index: int) -> np.random.Generator:
    """The random stream of one picture.

    Args:
        seed: of the data set, 0 or more.
        kind: one of ``STREAMS``.
        index: number of the picture within its kind, 0 or more.
    """
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS.index(kind) << 40 | index]))


def write_imagenet(root: Path, *, classes: int, train_per_class: int, val_per_class: int, size: int, seed: int) -> None:
    """Write single-thing pictures in the ILSVRC layout.

    ``root/train/<wnid>/<wnid>_<n>.JPEG`` and ``root/val/<wnid>/ILSVRC2012_val_<8 digits>.JPEG``; about one picture in
    twenty is grayscale.

    Args:
        root: a new or empty folder.
        classes: how many things to tell apart.
        train_per_class: training pictures of each.
        val_per_class: validation pictures of each.
        size: pixels; the sides vary around it.
        seed: 0 or more.

    Raises:
        MmsegError: ``root`` is not empty, or there are fewer than ``classes`` things.
    """
    if classes > len(SUBJECTS):
        raise MmsegError("classes", f"{classes} asked for, {len(SUBJECTS)} exist", f"ask for at most {len(SUBJECTS)}")
    _start(root)
    for subject in range(classes):
        wnid = f"n{subject + 1:08d}"
        for split, count in (("train", train_per_class), ("val", val_per_class)):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                # The class goes into the key by a fixed stride, so that more pictures of one change no other.
                picture = _imagenet_picture(stream(seed, f"imagenet-{split}", subject << 24 | number), subject, size)
                serial = number * classes + subject + 1
                name = f"{wnid}_{number + 1}" if split == "train" else f"ILSVRC2012_val_{serial:08d}"
                picture.save(folder / f"{name}.JPEG", format="JPEG", quality=92)


def _imagenet_picture(rng: np.random.Generator, subject: int, size: int) -> Image.Image:
    area, aspect = float(rng.uniform(0.85, 1.3)), float(np.exp(rng.uniform(-0.35, 0.35)))
    height, width = max(8, round(size * area / aspect**0.5)), max(8, round(size * area * aspect**0.5))
    grey = float(rng.random()) < GREY_SHARE
    picture = Image.fromarray(render_subject(rng, subject, height=height, width=width))
    return picture.convert("L") if grey else picture


def write_mapillary(root: Path, *, training: int, validation: int, seed: int, height: int) -> None:
    """Write street scenes in the layout of Mapillary Vistas v1.2.

    ``root/config.json`` holds the 66 labels; ``root/<split>`` holds ``images/*.jpg``, ``labels/*.png`` (palette,
    pixel = index) and ``instances/*.png`` (16 bit, index * 256 + instance). About one picture in four is upright.

    Args:
        root: a new or empty folder.
        training: pictures to write.
        validation: pictures to write.
        seed: 0 or more.
        height: nominal shorter side in pixels; sizes vary around it.

    Raises:
        MmsegError: ``root`` is not empty.
    """
    _start(root)
    (root / "config.json").write_text(json.dumps(vistas_config(), indent=2) + "\n", encoding="utf-8")
    for split, count in (("training", training), ("validation", validation)):
        for part in ("images", "labels", "instances"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            rng = stream(seed, f"vistas-{split}", number)
            stem = "".join(KEY_LETTERS[int(k)] for k in rng.integers(0, len(KEY_LETTERS), 22))
            scene = _vistas_scene(rng, height, upright=_is_upright(number, rng))
            label_HW = _vistas_indices()[scene.label_HW]
            Image.fromarray(scene.image_HWC).save(root / split / "images" / f"{stem}.jpg", quality=93)
            _palette_image(label_HW).save(root / split / "labels" / f"{stem}.png")
            things = np.asarray([label.instances for label in VISTAS_LABELS])
            instance_HW = label_HW.astype(np.uint16) * 256
            instance_HW += _numbered(scene.object_HW, np.where(things[label_HW], label_HW, 255), limit=256)
            Image.fromarray(instance_HW).save(root / split / "instances" / f"{stem}.png")


def vistas_config() -> dict[str, object]:
    """The content of the data set's ``config.json``."""
    labels = [
        {
            "color": list(label.color),
            "instances": label.instances,
            "readable": label.readable,
            "name": label.name,
            "evaluate": label.name != "void--unlabeled",
        }
        for label in VISTAS_LABELS
    ]
    return {
        "labels": labels,
        "version": "1.2",
        "mapping": "public",
        "folder_structure": "{split}/{content}/{key:.22}.{extension}",
    }


def _is_upright(number: int, rng: np.random.Generator) -> bool:
    # The second picture always is one, so that the smallest set has both; the draw keeps the stream the same length.
    drawn = float(rng.random()) < PORTRAIT_SHARE
    return number == 1 or (number > 1 and drawn)


def _vistas_scene(rng: np.random.Generator, height: int, *, upright: bool) -> Scene:
    short = max(32, round(height * float(rng.uniform(0.85, 1.25))))
    long = round(short * float(rng.choice((4 / 3, 1.5, 16 / 9))))
    rows, columns = (long, short) if upright else (short, long)
    return render(rng, height=rows, width=columns, bonnet=float(rng.random()) < 0.2)


@cache
def _vistas_indices() -> NDArray[np.uint8]:
    return np.asarray([TABLE[kind].vistas_index for kind in Kind], dtype=np.uint8)


def _palette_image(label_HW: NDArray[np.uint8]) -> Image.Image:
    image = Image.frombytes("P", (label_HW.shape[1], label_HW.shape[0]), label_HW.tobytes())
    image.putpalette([part for label in VISTAS_LABELS for part in label.color])
    return image


def _numbered(
    object_HW: NDArray[np.int32], class_HW: NDArray[np.int64] | NDArray[np.uint8], *, limit: int
) -> NDArray[np.uint16]:
    """Numbers objects from 0 within each class; class 255 gets 0, as do objects from ``limit`` on."""
    numbers = np.zeros(int(object_HW.max()) + 1, dtype=np.uint16)
    used: dict[int, int] = {}
    objects, first = np.unique(object_HW, return_index=True)
    for item, position in zip(objects.tolist(), first.tolist(), strict=True):
        group = int(class_HW.flat[position])
        if group != 255:
            numbers[item] = used.get(group, 0) % limit
            used[group] = used.get(group, 0) + 1
    return np.where(class_HW == 255, np.uint16(0), numbers[object_HW])


def write_cityscapes(
    root: Path,
    *,
    train: int,
    val: int,
    height: int,
    seed: int,
    cities: tuple[Sequence[str], Sequence[str]] = (TRAIN_CITIES, VAL_CITIES),
) -> None:
    """Write street scenes in the layout of Cityscapes.

    ``root/leftImg8bit/<split>/<city>/<city>_<6 digits>_<6 digits>_leftImg8bit.png`` and beside it, under ``gtFine``,
    ``_gtFine_labelIds.png``, ``_gtFine_instanceIds.png`` (16 bit) and ``_gtFine_color.png``. The frames carry what
    real ones do: the car's bonnet (id 1) and an empty frame (id 3).

    Args:
        root: a new or empty folder.
        train: frames to write.
        val: frames to write.
        height: rows; a frame is twice as wide.
        seed: 0 or more.
        cities: the cities of the training and the validation frames, filled in turn.

    Raises:
        MmsegError: ``root`` is not empty.
    """
    _start(root)
    for split, count, names in (("train", train, cities[0]), ("val", val, cities[1])):
        for number in range(count):
            city = names[number % len(names)]
            scene = _frame(stream(seed, f"frames-{split}", number), height)
            stem = f"{city}_{number // len(names):06d}_{19:06d}"
            _write_frame(root, f"{split}/{city}", stem, scene)


def _frame(rng: np.random.Generator, height: int) -> Scene:
    return render(rng, height=height, width=2 * height, bonnet=True, border=max(1, height // 128))


def _write_frame(root: Path, part: str, stem: str, scene: Scene) -> None:
    ids, things, colours = _cityscapes_tables()
    label_HW = ids[scene.label_HW]
    thing_HW = things[label_HW]
    number_HW = _numbered(scene.object_HW, np.where(thing_HW, label_HW, 255), limit=1000)
    plain_HW = label_HW.astype(np.uint16)
    instance_HW = np.where(thing_HW, plain_HW * 1000 + number_HW, plain_HW).astype(np.uint16)
    images, truths = root / "leftImg8bit" / part, root / "gtFine" / part
    images.mkdir(parents=True, exist_ok=True)
    truths.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image_HWC).save(images / f"{stem}_leftImg8bit.png", compress_level=4)
    Image.fromarray(label_HW).save(truths / f"{stem}_gtFine_labelIds.png")
    Image.fromarray(instance_HW).save(truths / f"{stem}_gtFine_instanceIds.png")
    Image.fromarray(colours[label_HW]).save(truths / f"{stem}_gtFine_color.png")


@cache
def _cityscapes_tables() -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]:
    """Kind to official id; and by id: whether it has instances, and its RGB colour."""
    from cityscapesscripts.helpers.labels import labels

    ids = np.asarray([TABLE[kind].cityscapes_id for kind in Kind], dtype=np.uint8)
    things, colours = np.zeros(256, dtype=np.bool_), np.zeros((256, 3), dtype=np.uint8)
    for label in labels:
        if label.id >= 0:
            things[label.id], colours[label.id] = label.hasInstances, label.color
    return ids, things, colours


def _start(root: Path) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise MmsegError(root, "exists and is not an empty folder", "choose another folder or remove it")
    root.mkdir(parents=True, exist_ok=True)


def contact_sheet(path: Path, *, seed: int = 0) -> None:
    """Draw a PNG, 1400 pixels wide, that shows what the three generated sets look like.

    Args:
        path: of the PNG; its folder must exist.
        seed: of the shown pictures, 0 or more.
    """
    sheet = Image.new("RGB", (1400, 1088), (250, 249, 246))
    ids, _, colours = _cityscapes_tables()
    y = _caption(sheet, 14, "Street frames in the Cityscapes layout, beside their labels")
    for number in range(4):
        scene = _frame(stream(seed, "frames-train", number), 168)
        spot = (20 + 686 * (number % 2), y + 178 * (number // 2))
        _pair(sheet, spot, scene, colours[ids[scene.label_HW]])
    y = _caption(sheet, y + 2 * 178 + 6, "Street scenes in the Mapillary Vistas layout (66 labels, some upright)")
    palette, x = np.asarray([label.color for label in VISTAS_LABELS], dtype=np.uint8), 20
    for number, width in enumerate((301, 170, 185)):
        scene = render(stream(seed, "vistas-training", number), height=226, width=width)
        _pair(sheet, (x, y), scene, palette[_vistas_indices()[scene.label_HW]])
        x += 2 * width + 22
    y = _caption(sheet, y + 236, "Single things in the ImageNet layout, one class a column")
    for subject in range(14):
        for row in range(4):
            picture = render_subject(stream(seed, "imagenet-train", subject << 24 | row), subject, height=90, width=92)
            sheet.paste(_coarse(picture), (20 + 97 * subject, y + 95 * row))
    sheet.save(path, optimize=True)


def _pair(sheet: Image.Image, spot: tuple[int, int], scene: Scene, colour_HWC: NDArray[np.uint8]) -> None:
    sheet.paste(_coarse(scene.image_HWC), spot)
    sheet.paste(Image.fromarray(colour_HWC), (spot[0] + scene.image_HWC.shape[1] + 2, spot[1]))


def _coarse(image_HWC: NDArray[np.uint8]) -> Image.Image:
    # Sensor noise hardly compresses; without the lowest bits the sheet is half as large and looks the same.
    return Image.fromarray(image_HWC & np.uint8(0xF8) | np.uint8(4))


def _caption(sheet: Image.Image, y: int, text: str) -> int:
    ImageDraw.Draw(sheet).text((20, y), text, fill=(50, 50, 56), font=ImageFont.load_default(17))
    return y + 28


def write(dataset: str, root: Path, *, train: int, val: int, height: int, classes: int, seed: int) -> None:
    """Write the layout of ``dataset``: imagenet, mapillary or cityscapes.

    Args:
        dataset: whose layout.
        root: a new or empty folder.
        train: training pictures, of each class for imagenet.
        val: validation pictures, of each class for imagenet.
        height: of a picture in pixels; it varies for imagenet and mapillary.
        classes: of imagenet.
        seed: 0 or more.

    Raises:
        MmsegError: ``root`` is not empty, too many classes are asked for, or the layout cannot be generated.
    """
    if dataset == "imagenet":
        write_imagenet(root, classes=classes, train_per_class=train, val_per_class=val, size=height, seed=seed)
    elif dataset == "mapillary":
        write_mapillary(root, training=train, validation=val, seed=seed, height=height)
    elif dataset == "cityscapes":
        write_cityscapes(root, train=train, val=val, height=height, seed=seed)
    else:
        raise MmsegError(dataset, "cannot be generated", "set its source to disk, or use another dataset")
