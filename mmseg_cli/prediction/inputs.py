"""What there is to predict: images, folders of them, patterns, films, and one image on standard input.

Names, under which results are written:

- an image that is given itself: its name without suffix;
- an image in a folder: its path below that folder without suffix; folders are searched wholly, hidden files left out;
- what matches a pattern: its path below the part of the pattern that has no wildcard;
- `-`: `stdin`;
- frame k of a film: `<film>/<k>`, from 000000 on.

Where names without suffix are equal (`a.png`, `a.jpg`), all of them keep it; where even those are, it is an error.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.archives.file import hidden, shown
from mmseg_cli.errors import MmsegError
from mmseg_cli.prediction.pictures import MAX_BYTES, TODO, read_content, read_picture, require_file, unreadable

STDIN = "-"
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp")
FILMS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv")
INSTALL = "pip install 'mmseg-cli[video]'"
ABOUT = "prediction.json"  # says that these folders beside it are results of an earlier command, which are not searched
RESULTS = ("labels", "overlays", "probabilities")
MAX_VISITS = 16  # of one folder through different links
RATE = Fraction(25)  # frames a second of a film that does not say

Read = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class Input:
    """One picture to predict.

    Attributes:
        name: relative path without suffix, under which results are written.
        where: what messages call it.
        read: gives image_HWC, RGB; MmsegError where it cannot be read.
        source: absolute path of its file; empty for standard input, which is never the same twice.
    """

    name: str
    where: str
    read: Read
    source: str


@dataclass(frozen=True)
class Film:
    """A film to predict, frame by frame.

    Attributes:
        name: the folder of its frames.
        where: what messages call it.
        source: absolute path.
        frames: how many there are, as the container says; a damaged film has fewer.
        rate: frames a second.
    """

    name: str
    where: str
    source: str
    frames: int
    rate: Fraction

    def inputs(self) -> Iterator[Input]:
        """Its frames in order. Each must be read, if at all, before the film is closed: while the iterator lives."""
        import av

        number, damage = 0, ""
        try:
            with av.open(self.source) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for packet in container.demux(stream):
                    if (
                        packet.is_corrupt
                    ):  # so ffmpeg marks the last one of a film that is cut short; it would show half
                        damage = "is damaged or cut short, so that frames are missing"
                        continue
                    for frame in packet.decode():
                        yield Input(
                            self._name(number), f"{self.where}, frame {number}", partial(_of_frame, frame), self.source
                        )
                        number += 1
        except av.FFmpegError as error:
            damage = f"cannot be decoded from frame {number} on ({_reason(error)})"
        if damage:
            broken = MmsegError(self.where, damage, TODO)
            yield Input(self._name(number), self.where, partial(_fail, broken), self.source)

    def _name(self, number: int) -> str:
        return f"{self.name}/{number:06d}"


@dataclass(frozen=True)
class Inputs:
    """All there is to predict, in the order in which it was named; a folder's images by name."""

    parts: tuple[Input | Film, ...]

    def __iter__(self) -> Iterator[Input]:
        for part in self.parts:
            if isinstance(part, Film):
                yield from part.inputs()
            else:
                yield part

    @property
    def count(self) -> int:
        """How many pictures that are."""
        return sum(part.frames if isinstance(part, Film) else 1 for part in self.parts)

    @property
    def films(self) -> list[Film]:
        """The films among them."""
        return [part for part in self.parts if isinstance(part, Film)]


@dataclass(frozen=True)
class _Found:
    """A file under the name that it has below what the user named; `error` where it cannot even be looked at."""

    path: str
    name: str
    error: MmsegError | None = None

    @property
    def film(self) -> bool:
        return self.error is None and self.path.lower().endswith(FILMS)


def find(given: Sequence[str], *, without: Iterable[Path] = ()) -> Inputs:
    """Look for what there is to predict.

    Args:
        given: images, folders, patterns, films, and `-`.
        without: folders that are not searched: those of the results.

    Raises:
        MmsegError: one of them is not there, holds or matches no image, or two would be written to one place.
    """
    left_out = {os.path.realpath(folder) for folder in without}
    found: list[_Found] = []
    for one in given:
        found += _of(one, left_out)
    unique = list({(item.name, os.path.realpath(item.path)): item for item in found}.values())
    names = _distinct(unique)
    return Inputs(tuple(_part(item, name) for item, name in zip(unique, names, strict=True)))


def _of(given: str, left_out: set[str]) -> list[_Found]:
    """The files behind one argument."""
    if given == STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise MmsegError(STDIN, "nothing is piped in", "give an image: cat image.png | mmseg predict - ...")
        return [_Found(STDIN, "stdin")]
    if os.path.isdir(given):  # noqa: PTH112 - a Path would drop what a name ends with
        found = _walk(given, left_out)
        if not found:
            what = f"holds no images ({', '.join(IMAGES)})"
            raise MmsegError(shown(given), what, "check the folder; a film is given itself")
        return found
    if os.path.lexists(given):
        return [_Found(given, os.path.basename(given))]  # noqa: PTH119
    if not glob.has_magic(given):
        raise unreadable(Path(given), FileNotFoundError(2, "No such file or directory"))
    found = _matches(given, left_out)
    if not found:
        raise MmsegError(shown(given), f"matches no image or film ({', '.join(IMAGES + FILMS)})", "check the pattern")
    return found


def _matches(pattern: str, left_out: set[str]) -> list[_Found]:
    """The images and films that match a pattern, and the images in folders that do."""
    parts = pattern.split("/")
    fixed = next(position for position, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")
    found = []
    for path in sorted(glob.iglob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        name = "/".join(part for part in os.path.relpath(path, base).split("/") if part not in ("..", "."))
        if os.path.isdir(path):  # noqa: PTH112
            below = _walk(path, left_out)
            found += [_Found(one.path, f"{name}/{one.name}" if name else one.name, one.error) for one in below]
        elif path.lower().endswith(IMAGES + FILMS) and not _inside(path, left_out):
            found.append(_Found(path, name))
    return sorted(found, key=lambda one: one.name)


def _inside(path: str, folders: set[str]) -> bool:
    real = os.path.realpath(path)
    return any(real.startswith(f"{folder}/") for folder in folders)


def _walk(root: str, left_out: set[str]) -> list[_Found]:
    """The images anywhere below a folder, by name. Links are followed, but never in a circle."""
    found: list[_Found] = []
    visits: Counter[tuple[int, int]] = Counter()
    todo: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
    while todo:
        folder, prefix, above = todo.pop()
        if os.path.realpath(folder) in left_out or _inside(folder, left_out):
            continue
        try:
            state = os.stat(folder)  # noqa: PTH116
            this = (state.st_dev, state.st_ino)
            visits[this] += 1
            if this in above or visits[this] > MAX_VISITS:
                continue
            with os.scandir(folder) as listed:
                entries = list(listed)
            results = RESULTS if any(entry.name == ABOUT for entry in entries) else ()
            for entry in entries:
                if hidden(entry.name) or entry.name in results:
                    continue
                if entry.is_dir():
                    todo.append((entry.path, f"{prefix}{entry.name}/", above | {this}))
                elif entry.name.lower().endswith(IMAGES):
                    found.append(_Found(entry.path, prefix + entry.name))
        except OSError as error:
            found.append(_Found(folder, prefix.rstrip("/") or ".", unreadable(Path(folder), error)))
    return sorted(found, key=lambda one: one.name)


# ----------------------------------------------------------------------------------------------------------- names


def _stem(item: _Found) -> str:
    return item.name if item.path == STDIN or item.error is not None else os.path.splitext(item.name)[0]  # noqa: PTH122


def _distinct(found: list[_Found]) -> list[str]:
    """The name of each, with its suffix where it needs that."""
    stems = Counter(map(_place, ((_stem(item), item.film) for item in found)))
    names = [item.name if stems[_place((_stem(item), item.film))] > 1 else _stem(item) for item in found]
    films = {name for name, item in zip(names, found, strict=True) if item.film}
    taken: dict[str, _Found] = {}
    for name, item in zip(names, found, strict=True):
        other = taken.setdefault(_place((name, item.film)), item)
        above, _, last = name.rpartition("/")
        if other is not item or (above in films and not item.film and re.fullmatch(r"\d{6,}", last)):
            rival = shown(other.path) if other is not item else f"a frame of the film {shown(above)}"
            what = f"would be written to the same place as {rival} ({shown(name)})"
            raise MmsegError(shown(item.path), what, "predict them with an --out each, or give the folder around both")
    return names


def _place(named: tuple[str, bool]) -> str:
    """Where results of a name lie: those of a film in a folder, which may stand beside an image of its name."""
    name, film = named
    return f"{name}/" if film else name


def _part(item: _Found, name: str) -> Input | Film:
    """The input that a file is."""
    source = "" if item.path == STDIN else os.path.abspath(item.path)  # noqa: PTH100 - links stay as they are
    where = shown(item.path)
    if item.error is not None:
        return Input(name, where, partial(_fail, item.error), source)
    if item.film:
        try:
            return _film(Path(item.path), name, source)
        except MmsegError as error:
            if error.todo == INSTALL:
                raise
            return Input(name, where, partial(_fail, error), source)
    return Input(name, where, _read_stdin if item.path == STDIN else partial(_read_file, Path(item.path)), source)


def _fail(error: MmsegError) -> NoReturn:
    raise error.with_traceback(None)


def _read_file(path: Path) -> NDArray[np.uint8]:
    return read_picture(read_content(path), shown(os.fspath(path)))


def _read_stdin() -> NDArray[np.uint8]:
    return read_picture(sys.stdin.buffer.read(MAX_BYTES), "stdin")


# ----------------------------------------------------------------------------------------------------------- films


def _reason(error: Exception) -> str:
    return shown(" ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__)


def _film(path: Path, name: str, source: str) -> Film:
    """A film, which is opened to count its frames."""
    try:
        import av
    except ImportError:
        raise MmsegError(shown(os.fspath(path)), "films need PyAV, which is not installed", INSTALL) from None
    where = shown(os.fspath(path))
    require_file(path)
    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise MmsegError(where, "has no pictures, only sound or data", TODO)
            stream = container.streams.video[0]
            count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)  # not decoded
            return Film(name, where, source, count, stream.average_rate or RATE)
    except av.FFmpegError as error:
        raise MmsegError(where, f"is not a film that can be read ({_reason(error)})", TODO) from error


def _of_frame(frame: Any) -> NDArray[np.uint8]:
    """image_HWC of a frame, turned as a player would: telephones film on their side."""
    image_HWC: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4  # degrees, counterclockwise
    return np.ascontiguousarray(np.rot90(image_HWC, quarters)) if quarters else image_HWC
