"""Small raw datasets in every official layout, and hand-made evidence; all made by hand, none by the package."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

# Ids of the raw files. Cityscapes: road, building, sky, car, person; 3 is "out of roi", which is ignored.
CITYSCAPES_IDS = (7, 11, 23, 26, 24, 3)
VISTAS_LABELS = (  # (name, readable, colour, evaluate); two share a colour, as in v2.0
    ("construction--flat--road", "Road", (128, 64, 128), True),
    ("construction--structure--building", "Building", (70, 70, 70), True),
    ("nature--sky", "Sky", (70, 130, 180), True),
    ("object--vehicle--car", "Car", (0, 0, 142), True),
    ("object--vehicle--truck", "Truck", (0, 0, 142), True),
    ("void--unlabeled", "Unlabeled", (0, 0, 0), False),
)


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth image_HWC with a little noise, so that JPEG keeps it about as it is."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    phases = rng.uniform(0, 6, (3, 2))
    waves = [np.sin(3 * rows + a) + np.cos(5 * columns + b) for a, b in phases]
    image_HWC = 127 + 55 * np.stack(waves, axis=2) + rng.normal(0, 3, (height, width, 3))
    return image_HWC.clip(0, 255).astype(np.uint8)


def regions(rng: np.random.Generator, height: int, width: int, ids: tuple[int, ...]) -> np.ndarray:
    """A label_HW of a few rectangles, every id of `ids` somewhere."""
    label_HW = np.full((height, width), ids[0], dtype=np.uint8)
    for _ in range(4):
        top, left = int(rng.integers(0, height - 4)), int(rng.integers(0, width - 4))
        label_HW[top : top + height // 3, left : left + width // 3] = rng.choice(ids)
    label_HW[0, : len(ids)] = ids
    return label_HW


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def make_cityscapes(
    root: Path, *, train: int = 3, val: int = 2, height: int = 32, width: int | None = None, seed: int = 0
) -> Path:
    """leftImg8bit and gtFine; the last city's name has a hyphen."""
    rng = np.random.default_rng(seed)
    width = width or 2 * height
    for split, count, cities in (("train", train, ("aachen", "bad-honnef")), ("val", val, ("lindau",))):
        for number in range(count):
            city = cities[number % len(cities)]
            name = f"{city}_{number:06d}_000019"
            image = _folder(root / "leftImg8bit" / split / city) / f"{name}_leftImg8bit.png"
            label = _folder(root / "gtFine" / split / city)
            Image.fromarray(photo(rng, height, width)).save(image)
            label_HW = regions(rng, height, width, CITYSCAPES_IDS)
            Image.fromarray(label_HW).save(label / f"{name}_gtFine_labelIds.png")
            Image.fromarray(label_HW.astype(np.uint16)).save(label / f"{name}_gtFine_instanceIds.png")
    return root


def make_camvid(root: Path, *, train: int = 3, val: int = 2, test: int = 0, height: int = 36, seed: int = 0) -> Path:
    """train, trainannot, ...; ids 0 to 11."""
    rng = np.random.default_rng(seed)
    width = height * 4 // 3
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            Image.fromarray(photo(rng, height, width)).save(_folder(root / split) / f"{number:04d}.png")
            label_HW = regions(rng, height, width, (0, 1, 3, 8, 11))
            Image.fromarray(label_HW).save(_folder(root / f"{split}annot") / f"{number:04d}.png")
    return root


def make_mapillary(root: Path, *, train: int = 3, val: int = 2, height: int = 40, seed: int = 0) -> Path:
    """config.json, JPEG images and palette labels; the second image of a split is upright."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    labels = [
        {"name": name, "readable": readable, "color": list(colour), "instances": False, "evaluate": evaluate}
        for name, readable, colour, evaluate in VISTAS_LABELS
    ]
    (root / "config.json").write_text(json.dumps({"labels": labels, "version": "1.1"}))
    palette = [channel for _, _, colour, _ in VISTAS_LABELS for channel in colour]
    for split, count in (("training", train), ("validation", val)):
        for number in range(count):
            size = (height, height * 3 // 2) if number != 1 else (height * 3 // 2, height)
            stem = f"{split}-{number}"
            Image.fromarray(photo(rng, *size)).save(_folder(root / split / "images") / f"{stem}.jpg", quality=95)
            label = Image.fromarray(regions(rng, *size, tuple(range(len(VISTAS_LABELS)))))
            label.putpalette(palette)
            label.save(_folder(root / split / "labels") / f"{stem}.png")
    return root


def make_imagenet(root: Path, *, classes: int = 3, train: int = 4, val: int = 2, size: int = 40, seed: int = 0) -> Path:
    """train/<wnid> and val/<wnid> with JPEGs."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for index in range(classes):
            wnid = f"n{1000 + index:08d}"
            for number in range(count):
                picture = Image.fromarray(photo(rng, size, size + 8))
                picture.save(_folder(root / split / wnid) / f"{wnid}_{number}.JPEG", quality=95)
    return root


def make_coarse(root: Path, *, extra: int = 3, height: int = 32, seed: int = 0) -> Path:
    """train_extra, whose last frame is the known black one, and gtCoarse of every image of Cityscapes at `root`."""
    rng = np.random.default_rng(seed)
    for number in range(extra):
        name = f"troisdorf_000000_{73 if number == extra - 1 else number:06d}"
        folder = _folder(root / "leftImg8bit" / "train_extra" / "troisdorf")
        Image.fromarray(photo(rng, height, 2 * height)).save(folder / f"{name}_leftImg8bit.png")
    for image in sorted((root / "leftImg8bit").glob("*/*/*.png")):
        folder = _folder(root / "gtCoarse" / image.parent.relative_to(root / "leftImg8bit"))
        label = Image.fromarray(regions(rng, *Image.open(image).size[::-1], CITYSCAPES_IDS))
        label.save(folder / image.name.replace("_leftImg8bit", "_gtCoarse_labelIds"))
    return root


def zip_away(root: Path, archive: str, *folders: str) -> Path:
    """Move folders of `root` into an archive in it, with README and license.txt at its top, as official zips have."""
    with zipfile.ZipFile(root / archive, "w") as file:
        file.writestr("README", "read me")
        file.writestr("license.txt", "terms")
        for folder in folders:
            for path in sorted((root / folder).rglob("*")):
                file.write(path, str(path.relative_to(root)))
            shutil.rmtree(root / folder)
            if not any((root / folder).parent.iterdir()):
                (root / folder).parent.rmdir()
    return root / archive


def make_vistas_v2(root: Path, *, train: int = 2, val: int = 1, height: int = 40, seed: int = 0) -> Path:
    """Vistas v2.0: two configs, and labels of v1.2 and v2.0 beside the images of each split; v2.0 knows no truck."""
    make_mapillary(root, train=train, val=val, height=height, seed=seed)
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").rename(root / "config_v1.2.json")
    config["labels"] = [label for label in config["labels"] if label["readable"] != "Truck"]
    (root / "config_v2.0.json").write_text(json.dumps({**config, "version": "2.0"}))
    to_v2 = np.array([0, 1, 2, 3, 3, 4], dtype=np.uint8)
    for split in ("training", "validation"):
        (root / split / "v1.2").mkdir()
        (root / split / "labels").rename(root / split / "v1.2" / "labels")
        for path in sorted((root / split / "v1.2" / "labels").iterdir()):
            label = Image.fromarray(to_v2[np.asarray(Image.open(path))])
            label.putpalette([128, 64, 128] * 5)  # the colours say nothing
            label.save(_folder(root / split / "v2.0" / "labels") / path.name)
    return root


def make_ade20k(root: Path, *, train: int = 3, val: int = 2, height: int = 32, seed: int = 0) -> Path:
    """The SceneParsing layout without its top folder: images, annotations and objectInfo150.txt."""
    rng = np.random.default_rng(seed)
    names = ["wall", "building, edifice", "sky", *(f"thing {index}, other name" for index in range(4, 151))]
    rows = [f"{index}\t0.0066\t100\t10\t0\t{name} " for index, name in enumerate(names, start=1)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")
    for split, short, count in (("training", "train", train), ("validation", "val", val)):
        for number in range(1, count + 1):
            stem = f"ADE_{short}_{number:08d}"
            picture = Image.fromarray(photo(rng, height, height + 8))
            picture.save(_folder(root / "images" / split) / f"{stem}.jpg", quality=95)
            label_HW = regions(rng, height, height + 8, (0, 1, 2, 3, 150))
            Image.fromarray(label_HW).save(_folder(root / "annotations" / split) / f"{stem}.png")
    return root


# A dataset of one's own: ids and colours of its classes; id 9 and white are ignored.
OWN_CLASSES = (("road", 0, (128, 64, 128)), ("car", 3, (0, 0, 142)), ("sky", 7, (70, 130, 180)))
OWN_IGNORED = (9, (255, 255, 255))


def make_folder(
    root: Path, *, train: int = 3, val: int = 2, height: int = 32, colour: bool = False, seed: int = 0
) -> Path:
    """images/{train,val}, masks/{train,val} and classes.yaml; masks of ids, or of colours."""
    rng = np.random.default_rng(seed)
    lookup = np.zeros((256, 3), dtype=np.uint8)
    for _, own, shade in (*OWN_CLASSES, ("", *OWN_IGNORED)):
        lookup[own] = shade
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            stem = f"{split}{number}"
            picture = Image.fromarray(photo(rng, height, height + 8))
            picture.save(_folder(root / "images" / split) / f"{stem}.jpg", quality=95)
            label_HW = regions(rng, height, height + 8, (*(own for _, own, _ in OWN_CLASSES), OWN_IGNORED[0]))
            mask = Image.fromarray(lookup[label_HW] if colour else label_HW)
            mask.save(_folder(root / "masks" / split) / f"{stem}.png")
    key = "colour" if colour else "id"
    classes = [{"name": name, key: list(shade) if colour else own} for name, own, shade in OWN_CLASSES]
    ignore = [list(OWN_IGNORED[1])] if colour else OWN_IGNORED[0]
    (root / "classes.yaml").write_text(json.dumps({"name": "mine", "classes": classes, "ignore": ignore}))
    return root


def write_tar(path: Path, members: dict[str, bytes], *, mode: str = "w") -> Path:
    """A tar of files, in the order given; "w:gz" compresses it."""
    _folder(path.parent)
    path.write_bytes(tar_of(members, mode=mode))
    return path


def tar_of(members: dict[str, bytes], *, mode: str = "w") -> bytes:
    """The bytes of a tar of files, in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_ilsvrc(root: Path, *, classes: int = 3, train: int = 4, val: int = 6, size: int = 40, seed: int = 0) -> Path:
    """The three files of ILSVRC 2012 as downloaded. Validation image k is of class (k - 1) modulo `classes`, in the
    order of the wnids; the kit numbers the classes in the opposite order, and has a group with an id above 1000."""
    import scipy.io

    rng = np.random.default_rng(seed)

    def jpeg() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(photo(rng, size, size + 8)).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    wnids = [f"n{1000 + index:08d}" for index in range(classes)]
    inner = {f"{wnid}.tar": tar_of({f"{wnid}_{k}.JPEG": jpeg() for k in range(train)}) for wnid in reversed(wnids)}
    write_tar(root / "ILSVRC2012_img_train.tar", inner)
    write_tar(root / "ILSVRC2012_img_val.tar", {f"ILSVRC2012_val_{k + 1:08d}.JPEG": jpeg() for k in range(val)})
    ids = {wnid: classes - position for position, wnid in enumerate(wnids)}
    rows = sorted([(number, wnid) for wnid, number in ids.items()] + [(1001, "n00009999")])
    synsets = np.array(
        [(number, wnid, "words", "gloss", 0) for number, wnid in rows],
        dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")],
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{ids[wnids[k % classes]]}\n" for k in range(val))
    top = "ILSVRC2012_devkit_t12"
    kit = {
        f"{top}/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        f"{top}/data/meta.mat": meta.getvalue(),
        f"{top}/readme.txt": b"x",
    }
    write_tar(root / f"{top}.tar.gz", kit, mode="w:gz")
    return root


def snapshot(root: Path) -> dict[str, tuple[int, int, str]]:
    """Of every file and folder below `root`: time of change, mode and content."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
        )
        for path in [root, *sorted(root.rglob("*"))]
    }


def contents(root: Path) -> dict[str, bytes]:
    """The bytes of every file below `root`."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
