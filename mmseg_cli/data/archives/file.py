"""One file of a dataset, and what its name may look like. Nothing is opened here."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

MAX_NAME = 4096  # characters; the longest path that Linux takes
SHOWN = 200  # characters of a name in a message
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # turn the text of a message


@dataclass(frozen=True, slots=True)
class File:
    """One file of a dataset.

    Attributes:
        name: its path below the dataset's root, or inside its archive, with slashes.
        path: of the file on disk, or of the archive that holds it.
        size: bytes; uncompressed.
        stamp: time of change of `path` in nanoseconds: with size and name, whether it is still the same file.
        archive: how `path` holds it: "" (it is the file), "zip", "tar" or "tgz".
        offset: in `path`, of a tar member's first byte or of a zip member's local header.
        packed: bytes of a zip member in `path`.
        method: compression of a zip member.
        crc: CRC-32 of a zip member's content.
    """

    name: str
    path: str
    size: int
    stamp: int
    archive: str = ""
    offset: int = 0
    packed: int = 0
    method: int = 0
    crc: int = 0

    @property
    def where(self) -> str:
        """What a message calls it."""
        return f"{self.path}/{self.name}" if self.archive else self.path

    @property
    def stem(self) -> str:
        """The last part of the name without its suffix."""
        last = self.name.rsplit("/", 1)[-1]
        return last.rsplit(".", 1)[0] if "." in last else last

    @property
    def base(self) -> str:
        """The last part of the name."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def folder(self) -> str:
        """The name without its last part; empty at the root."""
        return self.name.rpartition("/")[0]


def plain(name: str) -> bool:
    """Whether a name can stand in a message and in a UTF-8 file: no control character, no half of a character."""
    if name.isascii():
        return name.isprintable()
    return not any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or one in _BIDI for one in name)


def shown(name: str) -> str:
    """A name for a message of one line: what is not plain is escaped, what is too long is cut."""
    text = name if plain(name) else "".join(one if plain(one) else ascii(one)[1:-1] for one in name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def hidden(name: str) -> bool:
    """Whether a part of a path is no part of a dataset: hidden, or what macOS adds to its archives."""
    return name.startswith(".") or name == "__MACOSX"


def bad_name(name: str) -> str | None:
    """What is wrong with an archive member's name, or None: it must stay inside the folder it would be unpacked to."""
    if not name or len(name) > MAX_NAME:
        return "has no name" if not name else "has a name that is too long"
    if not plain(name):
        return "has control characters or no UTF-8 in its name"
    if "\\" in name:
        return "has a backslash in its name"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in name.split("/"):
        return "leads out of the archive by '..'"
    return None
