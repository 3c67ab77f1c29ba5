"""What a run was trained on: its store, found by the hash in its record, and whether that trains on frames of val."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_cli.data.store import MANIFEST, Split, Store, open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import sha256
from mmseg_cli.prediction.model import Model

KEY = "data_manifest_sha256"
STORES = (f"data/*/{MANIFEST}", f"data/*/*/{MANIFEST}")
RUNS = "runs/*/*/*/record.json"
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Origin:
    """The data of a run.

    Attributes:
        store: that it was trained on last.
        seen_val: frames of the store's val that it, or a rung before it, was trained on.
        unchecked: rungs before it whose data are not at hand.
    """

    store: Store
    seen_val: list[str]
    unchecked: list[str]


def projects(source: Path) -> list[Path]:
    """The folders whose stores and runs are looked at: the current one, and those around a run."""
    here = source.resolve()
    return list(dict.fromkeys([Path.cwd(), *list(here.parents)[:4]]))


def find_store(manifest_sha256: str, *, below: Iterable[Path]) -> Store | None:
    """The store with that manifest among `data/*` and `data/*/*` of some folders."""
    for folder in below:
        for pattern in STORES:
            for path in sorted(folder.glob(pattern)):
                if sha256(path) == manifest_sha256:
                    return open_store(path.parent)
    return None


def origin(model: Model, *, data: Path | None = None) -> Origin:
    """What a network was trained on.

    Args:
        data: the store, where the user names it; else it is looked for by its hash.

    Raises:
        MmsegError: the store cannot be found, or the one that is named is another one.
    """
    wanted = model.record.get(KEY)
    if not isinstance(wanted, str):
        raise MmsegError(model.source, "does not say what it was trained on", "give the folder of its run")
    folders = projects(model.source)
    if data is not None:
        store = open_store(data)
        if sha256(data / MANIFEST) != wanted:
            todo = f"give the store whose manifest.json has the SHA-256 {wanted[:12]}..., or prepare it again"
            raise MmsegError("--data", f"{data} is not the store that {model.source} was trained on", todo)
    else:
        found = find_store(wanted, below=folders)
        if found is None:
            what = f"what it was trained on is not at hand (no data/*/{MANIFEST} has the SHA-256 {wanted[:12]}...)"
            raise MmsegError(model.source, what, "name its store with --data STORE, or prepare it again")
        store = found
    if "val" not in store.manifest["splits"]:
        raise MmsegError(store.folder, "has no val, so what the network is judged on is unknown", "prepare it again")
    judged = store.split("val")
    seen = _of_val(store, judged)
    unchecked: list[str] = []
    for stage, before in rungs_before(model.record, folders):
        if before is None:
            unchecked.append(stage)
        elif before.task == "segmentation":  # of classification, no item is a frame
            seen |= _of_val(before, judged)
    return Origin(store, sorted(seen), unchecked)


def _of_val(store: Store, judged: Split) -> set[str]:
    """The items of `judged` that a store trains on: by their names, or by the bytes of image and label."""
    train = store.split("train")
    apart = store.manifest.get("dataset") == "folder"  # which names the images of each split on their own
    val = set() if apart else set(judged.names())
    content = {judged.sha256(item) for item in range(len(judged))}
    return {name for item, name in enumerate(train.names()) if name in val or train.sha256(item) in content}


def rungs_before(record: dict[str, Any], folders: list[Path]) -> Iterator[tuple[str, Store | None]]:
    """The rungs that a run's first weights come from, latest first, and their stores where they are at hand."""
    ladder = list(record.get("ladder", []))[:-1]
    weights = record.get("initial_weights_sha256")
    while weights and ladder:
        stage = ladder.pop()
        before = _record_of(weights, folders)
        if before is None:
            yield stage, None
            return
        yield stage, find_store(before[KEY], below=folders)
        weights = before.get("initial_weights_sha256")


def _record_of(weights_sha256: str, folders: list[Path]) -> dict[str, Any] | None:
    """The record of the run that has these weights; a rung that was left out has those, and the data, of the one before
    it."""
    for folder in folders:
        for path in sorted(folder.glob(RUNS)):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if not isinstance(record, dict) or record.get("weights_sha256") != weights_sha256:
                continue
            if isinstance(record.get(KEY), str):
                return record
    return None


def some(names: list[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def require_unseen(model: Model, frames: Iterable[str], *, data: Path | None = None) -> Origin:
    """Raise MmsegError unless a network may teach: one that was trained on val passes on what it knows of val, and a
    student would be judged on it.

    Args:
        frames: names of those that it shall label.
        data: see :func:`origin`.
    """
    found = origin(model, data=data)
    if found.seen_val:
        what = f"was trained on {len(found.seen_val)} frames of val ({some(found.seen_val)})"
        raise MmsegError(model.source, what, "take a teacher that never saw the split its students are judged on")
    val = set(found.store.names("val"))
    if shared := sorted(val.intersection(frames)):
        what = f"{len(shared)} frames to be labelled are in val ({some(shared)}), which students are judged on"
        raise MmsegError("--as-labels", what, "label other frames")
    return found
