"""`mmseg prepare`: verify a dataset, map its labels and write the store. Nothing is ever written into the dataset.

One pass reads, verifies and encodes every item once, on all cores. Records collect beside the store, in
`.NAME.partial/`; they take its place only when the whole dataset proved to be right. An interrupted command goes on
from there, and ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from mmseg_cli import runtime
from mmseg_cli.data import faults, ingest, leaks, store, verify
from mmseg_cli.data.faults import Fault, FaultsFound
from mmseg_cli.data.labels import IGNORE
from mmseg_cli.data.records.writer import SplitWriter
from mmseg_cli.data.sources import ade20k, camvid, cityscapes, folder, imagenet, mapillary, synthetic
from mmseg_cli.data.sources.listing import Item, Listing
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import fingerprint, fsync_folder, new_folder, refusal, require_writable, sha256, write_json

SOURCES: dict[str, ModuleType] = {
    "imagenet": imagenet,
    "mapillary": mapillary,
    "cityscapes": cityscapes,
    "camvid": camvid,
    "ade20k": ade20k,
    "folder": folder,
}
GENERATOR = ("data/sources/scenes", "data/sources/synthetic.py", "data/sources/vistas_labels.py")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found and did.

    Attributes:
        folder: the store; None where the dataset was only checked.
        counts: items by split.
        bytes: of the store.
        faults: warnings.
        notes: what was found, such as the version of the dataset.
    """

    folder: Path | None
    dataset: str
    classes: int
    counts: dict[str, int]
    bytes: int
    faults: list[Fault]
    notes: list[str]


def root_variable(dataset: str) -> str:
    """The environment variable that names the root of a dataset."""
    return f"MMSEG_{dataset.upper().replace('-', '_')}_ROOT"


def find_root(dataset: str, root: Path | None, *, layout: str | None = None) -> Path:
    """The dataset's folder or archive: `root`, or the environment's MMSEG_<DATASET>_ROOT.

    Args:
        layout: one of SOURCES; None where the dataset is called like its layout.

    Raises:
        MmsegError: neither is given, it is missing, or it is the root of another dataset.
    """
    layout = layout or dataset
    where = str(root) if root is not None else os.environ.get(root_variable(dataset))
    if not where:
        raise MmsegError(dataset, "no root is known", f"give --root FOLDER or set {root_variable(dataset)}")
    try:
        path = Path(where).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise MmsegError(where[:200], f"cannot be looked at ({error})", f"give the root of {layout}") from error
    if not exists:
        raise MmsegError(path, "there is no such folder", f"give the root of {layout} as it was extracted")
    if not SOURCES[layout].looks_like(path):
        others = [name for name, module in SOURCES.items() if name != layout and module.looks_like(path)]
        what = f"looks like {others[0]}, not {layout}" if others else f"does not look like {layout}"
        todo = f"use `mmseg prepare {others[0]}`" if others else f"it must hold {SOURCES[layout].HINT}"
        raise MmsegError(path, what, todo)
    return path


def generated_root(dataset: str, *, raw: Callable[[str], Path], settings: dict[str, Any]) -> Path:
    """The generated raw tree of a dataset, written in its official layout unless it is there already.

    Args:
        raw: the tree's folder, from a key that stands for the settings and the generator's code.
        settings: the arguments of `mmseg_cli.data.sources.synthetic.write` behind the root.
    """
    root = raw(fingerprint([dataset, settings, runtime.code_hash(GENERATOR)])[:12])
    if not root.is_dir():
        with new_folder(root) as temporary:
            synthetic.write(dataset, temporary, **settings)
    return root


# -------------------------------------------------------------------------------------------------------- the items


@dataclass
class _Seen:
    """What is known of the items so far.

    Attributes:
        allow: kinds of faults that are only warnings.
        reused: files that stand in two splits because the user wants them there.
        failed: whether there is an error among the faults.
        present: the classes that occur in each split.
    """

    allow: Collection[str]
    reused: frozenset[str]
    failed: bool = False
    faults: list[Fault] = field(default_factory=list)
    prints: list[leaks.Print] = field(default_factory=list)
    sizes: dict[str, Counter[tuple[int, int]]] = field(default_factory=dict)
    present: dict[str, set[int]] = field(default_factory=dict)

    def blame(self, found: list[Fault]) -> None:
        """More faults; those of an allowed kind become warnings."""
        found = faults.allow(found, self.allow)
        self.faults += found
        self.failed = self.failed or bool(faults.errors(found))

    def add(self, split: str, item: Item, extra: dict[str, Any]) -> None:
        """One item whose image could be read, now or by an interrupted command."""
        height, width = extra["source"]
        self.sizes.setdefault(split, Counter())[height, width] += 1
        self.present.setdefault(split, set()).update(extra["classes"])
        if extra["damage"] is not None:
            self.blame([Fault("damaged-jpeg", item.image.where, extra["damage"], verify.TODO_COPY)])
        if split != "train" and item.image.where in self.reused:
            return
        image = bytes.fromhex(extra["image"])
        self.prints.append(
            leaks.Print(split, item.name, item.image.where, image, extra["look"], item.sequence, item.frame)
        )


def _reused(listing: Listing) -> frozenset[str]:
    """The image files of train that another split lists too, as with Cityscapes' `train_from: [train, val]`."""
    train = {item.image.where for item in listing.splits.get("train", [])}
    others = (item.image.where for split, items in listing.splits.items() if split != "train" for item in items)
    return frozenset(where for where in others if where in train)


def _ingest_split(
    split: str,
    listing: Listing,
    writer: SplitWriter | None,
    seen: _Seen,
    *,
    limits: ingest.Limits,
    threads: int,
    advance: Callable[[], None],
) -> None:
    """Ingest the items of one split; write what is right up to the first fault, then only verify."""
    items, done = listing.splits[split], 0
    if writer is not None:
        for item, row in zip(items, writer.done, strict=False):
            if row.identity != ingest.identity(item):
                break
            seen.add(split, item, row.extra)
            done += 1
            advance()
        writer.keep(done)

    def make(item: Item) -> ingest.Ingested:
        return ingest.ingest(item, listing, limits, encode=writer is not None and not seen.failed)

    rest = items[done:]
    for item, made in zip(rest, ingest.in_order(make, rest, threads=threads), strict=True):
        seen.blame(made.faults)
        if made.extra:
            seen.add(split, item, made.extra)
        if writer is not None and not seen.failed:
            assert made.record is not None
            writer.append(**made.record)
        runtime.failpoint("prepare:item")
        advance()


def _ingest_all(
    listing: Listing,
    staged: Path | None,
    seen: _Seen,
    *,
    long_side: int | None,
    short_side: int | None,
    threads: int,
    advance: Callable[[], None],
) -> None:
    """Ingest every split in turn, into the folder `staged` where it is given."""
    for split in listing.splits:
        writer = SplitWriter(staged, split) if staged is not None and not seen.failed else None
        limits = ingest.Limits(long_side=long_side, short_side=short_side, shrink_labels=split == "train")
        _ingest_split(split, listing, writer, seen, limits=limits, threads=threads, advance=advance)
        if writer is None:
            continue
        if seen.failed:
            writer.stop()
        else:
            writer.close(classes=len(listing.space.classes))
            runtime.failpoint("prepare:split")


def _size_warnings(root: Path, sizes: dict[str, Counter[tuple[int, int]]], expected: tuple[int, int]) -> list[Fault]:
    """A warning for each split that has images of another size than the official one."""
    found = []
    for split, counter in sizes.items():
        other = {size: count for size, count in counter.items() if size != expected}
        if other:
            height, width = max(other, key=lambda size: other[size])
            official = f"{expected[1]}x{expected[0]}"
            what = f"{split}: {sum(other.values())} images are not {official} (most {width}x{height})"
            found.append(Fault("image-size", str(root), what, "check that this is the dataset you mean", "warning"))
    return found


def _absent_classes(root: Path, listing: Listing, present: set[int]) -> list[Fault]:
    """A warning for classes that train never shows; of a dataset that a person described, not of an official one."""
    absent = [name for index, name in enumerate(listing.space.classes) if index not in present]
    if not absent or listing.dataset != "folder":
        return []
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    what = f"train never shows {', '.join(absent[:5])}{more}"
    todo = "check the ids and colours in classes.yaml"
    if IGNORE in present:
        todo += "; 255 in an index mask is always ignored"
    return [Fault("absent-class", str(root), what, todo, "warning")]


# --------------------------------------------------------------------------------------------------------- the store


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal of a write inside the block into the user's error."""
    try:
        yield
    except OSError as error:
        raise refusal(path, error) from error


@contextmanager
def _staging(out: Path, key: str) -> Iterator[Path]:
    """The folder beside `out` where its records collect; what an interrupted command with this `key` left is there.

    What a command that was killed while it published had moved aside, the older store or the journals, is put back.
    """
    partial = out.with_name(f".{out.name}.partial")
    require_writable(out.parent)
    with runtime.only_one(partial / "lock"):
        staged, journals = partial / key, partial / f"{key}-journals"
        with _writing(partial):
            old = partial / "old"
            if old.exists() and not out.exists():
                old.replace(out)
            for path in partial.iterdir():
                if path.is_dir() and path not in (staged, journals):
                    shutil.rmtree(path)
            staged.mkdir(exist_ok=True)
            for journal in journals.iterdir() if journals.is_dir() else []:
                journal.replace(staged / journal.name)
        yield staged
        if not any(staged.glob("*.records")):
            shutil.rmtree(partial, ignore_errors=True)


def _publish(staged: Path, out: Path) -> None:
    """Let the staged store take the place of `out`, and remove what is left of the staging."""
    partial = staged.parent
    runtime.failpoint("prepare:before_rename")
    with _writing(out):
        journals = partial / f"{staged.name}-journals"
        journals.mkdir(exist_ok=True)
        for journal in staged.glob("*.journal"):
            journal.replace(journals / journal.name)
        if out.exists():
            out.replace(partial / "old")
        runtime.failpoint("prepare:between_renames")
        staged.replace(out)
        fsync_folder(out.parent)
    runtime.failpoint("prepare:after_rename")
    shutil.rmtree(partial, ignore_errors=True)


def _require_place(out: Path, root: Path) -> None:
    """Raise MmsegError unless a store may be written to `out`: apart from the dataset, and over nothing but a store."""
    place, data = out.resolve(), root.resolve()
    if place == data or data in place.parents:
        raise MmsegError(out, "lies inside the dataset, which is never written to", "give another place with --out")
    if place in data.parents:
        raise MmsegError(out, f"holds the dataset {root}, which a store would replace", "give another place with --out")
    if not place.exists():
        return
    names = [path.name for path in place.iterdir()] if place.is_dir() else [place.name]
    ours = [name for name in names if name == store.MANIFEST or name.endswith((".records", ".index.npz"))]
    if len(ours) < len(names) or (names and store.MANIFEST not in names):
        other = sorted(set(names) - set(ours))[:1] or names
        raise MmsegError(out, f"is no store, it holds {other[0]}", "move it away, or give another place with --out")


def _key(dataset: str, listing: Listing, parameters: dict[str, Any]) -> str:
    """What decides the records: staged ones of another key are not gone on with."""
    table = None if listing.table is None else listing.table.tolist()
    colours = sorted((listing.colours or {}).items())
    meaning = [listing.task, listing.space.as_json(), table, colours, list(listing.label_modes)]
    return fingerprint([store.FORMAT, version("mmseg-cli"), dataset, parameters, meaning])[:16]


def _manifest(dataset: str, listing: Listing, folder: Path, *, parameters: dict[str, Any]) -> dict[str, Any]:
    """The content of manifest.json, from the finished files of the splits in `folder`."""
    classes = len(listing.space.classes)
    splits = {}
    for name in listing.splits:
        total = store.Split(folder, name).total_pixels(classes)
        splits[name] = {
            "count": len(listing.splits[name]),
            "records_sha256": sha256(folder / f"{name}.records"),
            "index_sha256": sha256(folder / f"{name}.index.npz"),
            "class_pixels": total[:classes].tolist(),
            "ignored_pixels": int(total[classes:].sum()),
        }
    return {
        "format": store.FORMAT,
        "code": f"mmseg {version('mmseg-cli')}",
        "dataset": dataset,
        "task": listing.task,
        "parameters": parameters,
        "label_space": listing.space.as_json(),
        "splits": splits,
    }


def prepare(
    dataset: str,
    root: Path,
    out: Path,
    *,
    options: dict[str, Any],
    parameters: dict[str, Any],
    long_side: int | None,
    short_side: int | None,
    allow: Collection[str],
    check_only: bool,
    threads: int,
    on_start: Callable[[int], None],
    advance: Callable[[], None],
) -> Prepared:
    """Verify the dataset at `root` and write its store to `out`, which is replaced only when all went well.

    Args:
        dataset: its layout, one of SOURCES.
        root: the dataset as it was downloaded; only read.
        out: the store's folder.
        options: the arguments of the layout's own `scan`.
        parameters: what decides the store's content, kept in the manifest and compared when the store is opened.
        long_side: limit of an image's longer side in pixels, or None.
        short_side: limit of an image's shorter side in pixels, or None.
        allow: kinds of faults that are only warnings, of `names.Allowable`.
        check_only: verify, and write nothing.
        threads: how many items are read at once.
        on_start: called with the number of items.
        advance: called after each item.

    Raises:
        FaultsFound: everything that is wrong with the dataset.
        MmsegError: nothing can be read at all, or the store cannot be written.
        ResourceError: the disk is full; what is written so far is kept for the next try.
    """
    for name in options:
        if name not in SOURCES[dataset].OPTIONS:
            raise MmsegError(name, f"is no option of {dataset}", "leave it out")
    if not check_only:
        _require_place(out, root)
        out = out.resolve()  # where `out` is a link, what it leads to is replaced
    listing: Listing = SOURCES[dataset].scan(root, **options)
    on_start(sum(len(items) for items in listing.splits.values()))
    if listing.task == "classification":
        allow = {*allow, "damaged-jpeg"}  # ILSVRC itself has some
    seen = _Seen(allow, _reused(listing))
    seen.blame(listing.faults)

    def ingest_all(staged: Path | None) -> None:
        _ingest_all(
            listing,
            staged,
            seen,
            long_side=long_side,
            short_side=short_side,
            threads=threads,
            advance=advance,
        )
        seen.blame(leaks.find(seen.prints, task=listing.task))
        if listing.expected_size is not None:
            seen.blame(_size_warnings(root, seen.sizes, listing.expected_size))
        seen.blame(_absent_classes(root, listing, seen.present.get("train", set())))

    written = 0
    if check_only:
        ingest_all(None)
    else:
        with _staging(out, _key(dataset, listing, parameters)) as staged:
            ingest_all(staged)
            if not seen.failed:
                write_json(staged / store.MANIFEST, _manifest(dataset, listing, staged, parameters=parameters))
                written = sum(path.stat().st_size for path in staged.iterdir() if path.suffix != ".journal")
                _publish(staged, out)
    if seen.failed:
        raise FaultsFound(seen.faults)
    counts = {split: len(items) for split, items in listing.splits.items()}
    classes = len(listing.space.classes)
    return Prepared(None if check_only else out, dataset, classes, counts, written, seen.faults, listing.notes)
