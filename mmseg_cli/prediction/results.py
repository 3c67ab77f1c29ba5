"""The results in a folder of predictions, and the files that they were made from.

    DIR/sources.json            the file behind each name, its bytes and its time when the command began
    DIR/labels/NAME.png         of an image
    DIR/labels/FILM/000000.png  of a frame
    DIR/overlays, probabilities the same

A picture is done where all of its results are there and not empty. Results of a file that has changed since, which its
size or time tells, are removed when the folder is opened, and made again. Names that stand for a whole film end in a
slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from mmseg_cli.data.archives.file import shown
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import read_json, write_json
from mmseg_cli.prediction.inputs import RESULTS

SOURCES = "sources.json"
LABELS, OVERLAYS, PROBABILITIES = RESULTS
SUFFIXES = {LABELS: ".png", OVERLAYS: ".png", PROBABILITIES: ".npz"}
FILM = ".mp4"  # of overlays
FRAME = re.compile(r"\d{6,}")  # the name of a film's frame


@dataclass(frozen=True)
class Source:
    """A file that results are made from.

    Attributes:
        file: absolute path.
        bytes, modified: its size and the time of its last change in ns; another of either means other results.
    """

    file: str
    bytes: int
    modified: int


def bring_up_to_date(folder: Path, sources: Mapping[str, str]) -> int:
    """Let the results be those of the files as they are now, as far as there are any, and write down which these are.

    Args:
        sources: the file behind each name; behind that of a film and a slash.

    Returns:
        How many pictures have lost their results, because their files have changed.

    Raises:
        MmsegError: a result is of another file than the one that now has its name.
    """
    recorded, now = _recorded(folder), _now(sources)
    before = _renamed(folder, recorded, now)
    removed = _remove_changed(folder, before, now)
    known = {**before, **now}
    if known != recorded or not (folder / SOURCES).exists():
        write_json(folder / SOURCES, {name: astuple(source) for name, source in known.items()})
    return removed


def whole(folder: Path, kinds: Iterable[str]) -> frozenset[str]:
    """The names whose results of all kinds are there, and not empty."""
    return frozenset.intersection(*(frozenset(_whole(folder, kind)) for kind in kinds))


def _recorded(folder: Path) -> dict[str, Source]:
    """What the results were made from, as commands before this one left it."""
    path = folder / SOURCES
    todo = "choose another --out, or remove the folder"
    content = read_json(path, todo=todo) if path.exists() else {}
    try:
        return {name: Source(str(file), int(size), int(modified)) for name, (file, size, modified) in content.items()}
    except (AttributeError, TypeError, ValueError):
        raise MmsegError(path, "is not one that `mmseg predict` wrote", todo) from None


def _now(sources: Mapping[str, str]) -> dict[str, Source]:
    """The files as they are now; those that cannot be looked at, which reading will say, are left out."""
    found = {}
    for name, file in sources.items():
        with suppress(OSError):
            status = Path(file).stat()
            found[name] = Source(file, status.st_size, status.st_mtime_ns)
    return found


def _renamed(folder: Path, before: Mapping[str, Source], now: Mapping[str, Source]) -> dict[str, Source]:
    """Give results their file's present name, which a neighbour of the same name without suffix has changed.

    Returns:
        `before`, by the present names.
    """
    known = dict(before)
    for name, source in now.items():
        old = _otherwise(name, source, known, now)
        if old is not None:
            for one in _results(folder, old):
                _move(folder, one, name + one.removeprefix(old))
            known[name] = known.pop(old)
    return known


def _remove_changed(folder: Path, before: Mapping[str, Source], now: Mapping[str, Source]) -> int:
    """Remove the results of files that have changed.

    Returns:
        How many pictures have lost their results.

    Raises:
        MmsegError: a result is of another file than the one that now has its name.
    """
    results = {name: _results(folder, name) for name in now}
    for name, source in now.items():
        other = _other(name, source, before)
        if other is not None and results[name]:
            place = f"{LABELS}/{name if name.endswith('/') else name + SUFFIXES[LABELS]}"
            what = f"{place} was made from {shown(other)}, not from {shown(source.file)}"
            raise MmsegError(folder, what, "choose another --out")
    changed = [name for name, source in now.items() if before.get(name, source) != source]
    for name in changed:
        for one in results[name]:
            _remove(folder, one)
        if name.endswith("/"):
            (folder / OVERLAYS / f"{name[:-1]}{FILM}").unlink(missing_ok=True)
    return sum(len(results[name]) for name in changed)


def _other(name: str, source: Source, before: Mapping[str, Source]) -> str | None:
    """Another file that this name, or one of a film's frames, stood for."""
    if name in before:
        return before[name].file if before[name].file != source.file else None
    if name.endswith("/"):
        frames = (old for old in before if old.startswith(name) and FRAME.fullmatch(old.removeprefix(name)))
        return next((before[frame].file for frame in frames), None)
    film = f"{Path(name).parent}/" if FRAME.fullmatch(Path(name).name) else ""
    return before[film].file if film in before else None


def _otherwise(name: str, source: Source, before: Mapping[str, Source], now: Mapping[str, Source]) -> str | None:
    """What this file was called before it got, or lost, a neighbour of the same name without suffix."""
    end = "/" if name.endswith("/") else ""
    stem, suffix = name.removesuffix("/"), Path(source.file).suffix
    for old in (stem.removesuffix(suffix) + end, f"{stem}{suffix}{end}"):
        if old not in now and old in before and before[old].file == source.file:
            return old
    return None


def _results(folder: Path, name: str) -> set[str]:
    """The pictures of which there is a result of any kind: of an image itself, of a film and a slash its frames."""
    if not name.endswith("/"):
        there = (folder / kind / f"{name}{suffix}" for kind, suffix in SUFFIXES.items())
        return {name} if any(path.is_file() for path in there) else set()
    found = (path for kind, suffix in SUFFIXES.items() for path in (folder / kind / name).glob(f"*{suffix}"))
    return {f"{name}{path.stem}" for path in found if FRAME.fullmatch(path.stem)}


def _whole(folder: Path, kind: str) -> set[str]:
    """The names whose results of a kind are there, and not empty."""
    place, suffix = folder / kind, SUFFIXES[kind]
    found = (path for path in place.rglob(f"*{suffix}") if path.is_file() and path.stat().st_size)
    return {path.relative_to(place).as_posix().removesuffix(suffix) for path in found}


def _move(folder: Path, old: str, new: str) -> None:
    """Give all results of a name another one; what is there already stays."""
    for kind, suffix in SUFFIXES.items():
        path, target = (folder / kind / f"{name}{suffix}" for name in (old, new))
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def _remove(folder: Path, name: str) -> None:
    """Remove all results of a name."""
    for kind, suffix in SUFFIXES.items():
        (folder / kind / f"{name}{suffix}").unlink(missing_ok=True)
