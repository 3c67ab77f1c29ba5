"""ImageNet (ILSVRC 2012), or any tree with one folder a class: `train/<class>/*` and `val/<class>/*`.

The official tars are read in place: ILSVRC2012_img_train.tar holds a tar a class, ILSVRC2012_img_val.tar is flat and
its labels come from the development kit. What is extracted wins over a tar, for each split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mmseg_cli.data.faults import Fault
from mmseg_cli.data.labels import folder_classes
from mmseg_cli.data.sources import devkit
from mmseg_cli.data.sources.listing import Item, Listing, count_warnings
from mmseg_cli.data.sources.roots import IMAGE_SUFFIXES, open_below, subfolders, top_of, tops_in_archive
from mmseg_cli.data.tree import File, Tree, list_tar, open_tree
from mmseg_cli.errors import MmsegError

OPTIONS: tuple[str, ...] = ()
HINT = (
    "train/<class>/ and val/<class>/ of images, also in one archive; or ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as downloaded"
)
OFFICIAL_COUNTS = {"train": 1281167, "val": 50000}
OFFICIAL_CLASSES = 1000
TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
KIT = f"{devkit.NAME}.tar.gz"
SUFFIXES = (*IMAGE_SUFFIXES, ".jfif", ".jpe", ".gif", ".ppm", ".pgm")
TEXT = (".txt", ".md", ".xml", ".json", ".csv")  # beside images, and no images
CITYSCAPES = re.compile(r"(.+_)?(leftImg8bit|gtFine|gtCoarse)([_.].*)?\.(png|json|zip)")  # its folders look like ours
NAMED = 5  # classes in one message
WNID = re.compile(r"n[0-9]{8}")
VALIDATION = re.compile(r"ILSVRC2012_val_([0-9]{8})\.[A-Za-z]+")
COPY = "check that everything was copied"


@dataclass(frozen=True)
class _Split:
    """The images of a split: by class, and those that lie in no class's folder."""

    classes: dict[str, list[File]] = field(default_factory=dict)
    flat: list[File] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)  # classes of the official tar that were not extracted
    skipped: list[File] = field(default_factory=list)  # files of other suffixes


def looks_like(root: Path) -> bool:
    """Whether `root`, a folder or an archive, holds the tars, or classes below `train` and no other annotations."""
    if any((root / name).is_file() for name in TARS.values()):
        return True
    if CITYSCAPES.fullmatch(root.name):
        return False
    top = top_of(root, "train")
    names = subfolders(top)
    if "train" in names:
        if any(CITYSCAPES.fullmatch(name) for folder in subfolders(top / "train")[:1] for name in _names(top, folder)):
            return False
        return "trainannot" not in names and bool(subfolders(top / "train") or any((top / "train").glob("n*.tar")))
    tops = tops_in_archive(root)
    below = [found for found in tops.values() if "train" in found and "trainannot" not in found]
    return ("trainannot" not in tops and bool(tops.get("train"))) or len(below) == 1


def _names(top: Path, folder: str) -> list[str]:
    """The names in a folder of train; never raises."""
    try:
        return [path.name for path in (top / "train" / folder).iterdir()]
    except OSError:
        return []


def scan(root: Path) -> Listing:
    """List train and val; the classes are those of train in the order of their names.

    Raises:
        MmsegError: the root cannot be read at all.
    """
    folders = ("train", "val", devkit.NAME)
    tars = any((root / name).is_file() for name in TARS.values())
    tree, prefix = (open_tree(root, folders=folders), "") if tars else open_below(root, "train", folders=folders)
    train, val = (_found(tree, prefix, split) for split in ("train", "val"))
    faults = [*tree.faults, *train.faults, *val.faults]
    if train.flat:
        faults += _misplaced(tree, prefix, "train", train)
    elif not train.classes and not train.faults:
        faults.append(_missing(tree, prefix, "train"))
    if val.flat:
        faults += _label_flat(tree, prefix, val, known=train.classes)
    elif not val.classes and not val.faults:
        faults.append(_missing(tree, prefix, "val"))
    names = sorted(train.classes)
    space = folder_classes("imagenet", names)
    index = {name: position for position, name in enumerate(names)}
    for name in sorted(val.classes.keys() - index.keys() - train.missing) if names else []:
        where = _place(tree, prefix, val.classes[name], f"val/{name}")
        faults.append(
            Fault("wrong-place", where, f"the class {name} is not in train", "remove it or add its training images")
        )
    if val.classes:
        faults += _without_val(tree, prefix, [name for name in names if name not in val.classes], len(names))
    splits = {
        split: [
            Item(_named(file, name, f"{prefix}{split}/"), file, target=index[name])
            for name in names
            for file in found.classes.get(name, [])
        ]
        for split, found in (("train", train), ("val", val))
    }
    if len(names) == OFFICIAL_CLASSES and all(WNID.fullmatch(name) for name in names):
        faults += count_warnings(tree.root, splits, OFFICIAL_COUNTS)
    notes = [*tree.notes, *train.notes, *val.notes]
    return Listing("imagenet", "classification", space, None, splits, faults=faults, notes=notes)


def _without_val(tree: Tree, prefix: str, lacking: list[str], classes: int) -> list[Fault]:
    """A warning that classes of train have no image in val, which then says nothing about them."""
    if not lacking:
        return []
    more = ", ..." if len(lacking) > NAMED else ""
    what = f"{len(lacking)} of {classes} classes have no image in val: {', '.join(lacking[:NAMED])}{more}"
    return [Fault("count", f"{tree.root}/{prefix}val", what, "check that nothing is missing", "warning")]


def _left_out(where: str, skipped: Iterable[File]) -> list[Fault]:
    """One warning for all the files of a split that are neither images nor text."""
    suffixes = [f".{file.base.rpartition('.')[2].lower()}" if "." in file.base else "none" for file in skipped]
    if not suffixes:
        return []
    kinds = sorted(set(suffixes))
    shown = ", ".join(kinds[:NAMED]) + (", ..." if len(kinds) > NAMED else "")
    what = f"{len(suffixes)} files with other suffixes ({shown}) are not read"
    return [Fault("left-out", where, what, f"convert them if they are images ({', '.join(SUFFIXES)})", "warning")]


def _named(file: File, name: str, folder: str) -> str:
    """The item's name: its class, and its path below the class; the same whether it lies in a folder or in a tar."""
    return f"{name}/{file.name.removeprefix(folder).removeprefix(f'{name}/')}"


def _place(tree: Tree, prefix: str, files: list[File], folder: str) -> str:
    """What a message calls a class: its folder, or the tar that holds its images."""
    inside = any(file.name.startswith(f"{prefix}{folder}/") for file in files) or not files
    return f"{tree.root}/{prefix}{folder}" if inside else files[0].path


def _missing(tree: Tree, prefix: str, split: str) -> Fault:
    needed = f"{TARS[split]} and {KIT}" if split == "val" else TARS[split]
    return Fault(
        "empty-split",
        f"{tree.root}/{prefix}{split}",
        f"the split {split!r} is empty",
        f"add {split}/<class>/ with images, or put {needed} into {tree.root}",
    )


def _misplaced(tree: Tree, prefix: str, split: str, found: _Split) -> list[Fault]:
    """The faults of images without a class: one for each, or one for all where there are no classes at all."""
    if found.classes:
        what, todo = "lies in no class's folder", "move it into the folder of its class"
        return [Fault("wrong-place", file.where, what, todo) for file in found.flat]
    what = f"holds {len(found.flat)} images and no folder of a class"
    return [Fault("wrong-place", f"{tree.root}/{prefix}{split}", what, "put each class into a folder of its own")]


def _found(tree: Tree, prefix: str, split: str) -> _Split:
    """One split as it lies there: class folders, a tar a class, images without a folder, or the official tar."""
    found = _Split()
    folder = f"{prefix}{split}"
    files = tree.under(folder)
    others: set[str] = set()
    tars: list[File] = []
    for file in files:
        name, slash, _ = file.name[len(folder) + 1 :].partition("/")
        if not slash and _is_class_tar(file):
            tars.append(file)
        elif not file.name.lower().endswith(SUFFIXES):
            others.add(name if slash else "")
            if not file.name.lower().endswith(TEXT) and (slash or "." in name):
                found.skipped.append(file)
        elif not slash:
            found.flat.append(file)
        else:
            found.classes.setdefault(name, []).append(file)
    _add_tars(found, [file for file in tars if file.stem not in found.classes])
    if not (found.classes or found.flat):
        official = tree.get(TARS[split])
        if official is not None and not official.archive:
            return _official_tar(official, split)
    elif tree.get(TARS[split]) is not None:
        found.notes.append(f"{TARS[split]} is left out, because {split}/ is extracted")
        if split == "train":
            _check_extracted(found, tree)
    found.faults.extend(_left_out(f"{tree.root}/{folder}", found.skipped))
    known = {fault.where for fault in tree.faults}
    others |= set(subfolders(Path(tree.root) / split))  # a tree lists files only; a folder without any is seen on disk
    for name in sorted(others - found.classes.keys() - {""}):
        where, todo = f"{tree.root}/{folder}/{name}", f"add images ({', '.join(SUFFIXES)}) or remove the folder"
        if where not in known:
            found.faults.append(Fault("empty-split", where, "this class has no images", todo))
    for name, images in found.classes.items():
        if WNID.fullmatch(name):
            found.faults.extend(_of_another_class(name, images))
    return found


def _check_extracted(found: _Split, tree: Tree) -> None:
    """A fault where train/ lacks classes of the official tar beside it, of which only headers are read."""
    tar = tree.files[TARS["train"]]
    classes = {file.stem for file in list_tar(tar.path)[0] if _is_class_tar(file)} if not tar.archive else set()
    if missing := classes - found.classes.keys():
        found.missing.update(missing)
        what = f"holds {len(classes) - len(missing)} of the {len(classes)} classes of {TARS['train']}"
        todo = "finish the extraction, or move train/ or the tar away"
        found.faults.append(Fault("empty-split", f"{tree.root}/train", what, todo))


def _of_another_class(name: str, images: list[File]) -> list[Fault]:
    """A fault for each file whose name begins with the WordNet id of another class than its folder's."""
    return [
        Fault("wrong-place", file.where, f"is an image of {wnid}, not of {name}", f"move it to the folder {wnid}")
        for file in images
        if (wnid := file.base.split("_", 1)[0]) != name and "_" in file.base and WNID.fullmatch(wnid)
    ]


def _is_class_tar(file: File) -> bool:
    """Whether a file is the tar of a class that can be read where it lies: on disk, or in another tar."""
    return file.base.endswith(".tar") and WNID.fullmatch(file.stem) is not None and file.archive in ("", "tar")


def _add_tars(found: _Split, tars: list[File]) -> None:
    """Add the classes that lie there as a tar of their own, in the order of their names."""
    for tar in sorted(tars, key=lambda file: file.stem):
        images, faults = list_tar(tar.path, offset=tar.offset, size=tar.size, prefix=f"{tar.stem}/")
        found.faults.extend(faults)
        images = _images(images, found.skipped)
        if images:
            found.classes[tar.stem] = images
        elif not faults:
            found.faults.append(Fault("empty-split", tar.where, "this class has no images", COPY))


def _images(files: list[File], skipped: list[File]) -> list[File]:
    """The images in the order of their names; what is neither an image nor text is added to `skipped`."""
    skipped += [file for file in files if not file.base.lower().endswith((*SUFFIXES, *TEXT))]
    return sorted((file for file in files if file.base.lower().endswith(SUFFIXES)), key=lambda file: file.name)


def _official_tar(tar: File, split: str) -> _Split:
    """The images in the official tar of a split, read where they lie."""
    members, faults = list_tar(tar.path, offset=tar.offset, size=tar.size)
    found = _Split(faults=faults, notes=[f"read in place: {TARS[split]}"])
    if split == "val":
        found.flat.extend(_images(members, found.skipped))
    else:
        _add_tars(found, [file for file in members if _is_class_tar(file)])
        for name, images in found.classes.items():
            found.faults.extend(_of_another_class(name, images))
    found.faults.extend(_left_out(tar.where, found.skipped))
    if not (found.classes or found.flat or found.faults):
        found.faults.append(Fault("archive", tar.where, f"holds no images of {split}", COPY))
    return found


def _label_flat(tree: Tree, prefix: str, val: _Split, *, known: dict[str, list[File]]) -> list[Fault]:
    """Sort the validation images that lie in no class's folder into their classes, by the development kit."""
    if not any(VALIDATION.fullmatch(file.base) for file in val.flat):
        return _misplaced(tree, prefix, "val", val)
    try:
        classes = _kit(tree, prefix, val)
    except MmsegError as error:
        return [Fault("config", error.where, error.what, error.todo)]
    sorted_already = {file.base for images in val.classes.values() for file in images}
    faults: list[Fault] = []
    for file in val.flat:
        match = VALIDATION.fullmatch(file.base)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(classes):
            what = "is no validation image of the development kit"
            faults.append(Fault("wrong-place", file.where, what, "remove it, or use the kit of the same year"))
        elif file.base in sorted_already:
            what = "also lies in the folder of a class"
            faults.append(Fault("wrong-place", file.where, what, "remove one of the two"))
        else:
            val.classes.setdefault(classes[number - 1], []).append(file)
    return faults


def _kit(tree: Tree, prefix: str, val: _Split) -> list[str]:
    """The classes of the validation images, from the kit in the root or beside the images.

    Raises:
        MmsegError: the kit is missing, or is not the kit.
    """
    folder, archive = f"{prefix}{devkit.NAME}", tree.get(KIT)
    kit, place = tree, f"{tree.root}/{devkit.NAME}"
    if not tree.has(folder) and archive is not None and not archive.archive:
        kit, folder, place = open_tree(Path(archive.path)), devkit.NAME, archive.path
        val.notes.append(f"read in place: {KIT}")
        if kit.faults:
            raise MmsegError(kit.faults[0].where, kit.faults[0].what, kit.faults[0].todo)
    elif not tree.has(folder):
        where = f"{tree.root}/{KIT}"
        raise MmsegError(where, "missing, and it holds the labels of val", f"put it into {tree.root}")
    ground_truth, meta = (kit.get(f"{folder}/{name}") for name in (devkit.GROUND_TRUTH, devkit.META))
    if ground_truth is None or meta is None:
        missing = devkit.GROUND_TRUTH if ground_truth is None else devkit.META
        raise MmsegError(f"{place}/{missing}", "missing", devkit.TODO)
    return devkit.validation_classes(ground_truth, meta)
