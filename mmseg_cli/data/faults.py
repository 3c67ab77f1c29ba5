"""What can be wrong with a dataset. Faults are collected and listed; only when all are known does a command end.

An error keeps a dataset from being stored, a warning does not. Some kinds leave a usable store, and may be allowed:
`mmseg_cli.names.Allowable`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from mmseg_cli.errors import MmsegError

KINDS = (
    "absent-class",  # a class that train never shows
    "archive",  # an archive that is damaged, or holds what no dataset holds
    "config",  # a file that describes the dataset is missing or wrong
    "count",  # not the official number of images
    "damaged",  # cut short, a wrong checksum, not an image
    "damaged-jpeg",  # decodes, with grey or shifted parts
    "duplicate-case",  # names that differ by case only
    "duplicate-content",  # one image twice in a split
    "empty-file",
    "empty-split",
    "image-size",  # not the official size
    "left-out",  # known to be bad, and left out by name
    "missing-partner",  # an image without label, or a label without image
    "near-split",  # images of two splits that look alike, or frames of one video
    "outside-link",  # a link that leads out of the dataset
    "shared-content",  # one image in two splits
    "size-mismatch",  # image and label of different sizes
    "unknown-label",  # a label value that the dataset does not define
    "unreadable",  # the system refuses to read it
    "wrong-mode",  # colours where ids are expected, 16 bits, a palette
    "wrong-place",  # a file of another city, split or class
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        kind: one of KINDS.
        where: the file, as a path; a member of an archive stands behind the archive's path and a slash.
        what: what is wrong with it, in a few words.
        todo: what the user can do about it.
        severity: an error keeps the dataset from being stored.
    """

    kind: str
    where: str
    what: str
    todo: str
    severity: Literal["error", "warning"] = "error"

    def line(self) -> str:
        """The fault on one line."""
        return f"{self.where}: {self.what}: {self.todo}"


def allow(faults: Iterable[Fault], kinds: Collection[str]) -> list[Fault]:
    """The faults, those of an allowed kind as warnings."""
    return [replace(fault, severity="warning") if fault.kind in kinds else fault for fault in faults]


def errors(faults: Iterable[Fault]) -> list[Fault]:
    """The faults that keep a dataset from being stored."""
    return [fault for fault in faults if fault.severity == "error"]


class FaultsFound(MmsegError):
    """A dataset has errors; the message is the first one's line, and says how many more there are.

    Args:
        faults: all that was found, warnings too; at least one error.
    """

    def __init__(self, faults: list[Fault]) -> None:
        found = errors(faults)
        more = f" (and {len(found) - 1} more faults)" if len(found) > 1 else ""
        super().__init__(found[0].where, found[0].what, f"{found[0].todo}{more}")
        self.faults = faults
