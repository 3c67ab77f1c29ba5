"""What zip and tar archives have in common: the caps on what they may hold, and the list of their members.

An archive is not trusted. Nothing is ever unpacked to a disk, no header's number is ever allocated, and a member that
no dataset holds (a path that escapes, a link, a device, a bomb, a second one of its name) is a fault that names it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmseg_cli.data.archives.file import File, bad_name, hidden, shown
from mmseg_cli.data.faults import Fault
from mmseg_cli.errors import MmsegError

MAX_MEMBERS = 4_000_000  # ImageNet with its annotations has two million
MAX_MEMBER_BYTES = 320 << 20  # of one file that is read whole, uncompressed: 89 megapixels are 268 MB
MAX_RATIO = 200  # of uncompressed to compressed bytes; images hardly shrink
FREE_MEMBER_BYTES = 1 << 26  # up to here a member may have any ratio: JSON and plain colours shrink a lot
FREE_TOTAL_BYTES = 1 << 30  # the same for all members together
MAX_FAULTS = 100  # of one archive, each on its line; the rest is counted
CHUNK = 1 << 23  # bytes asked for at once: most images in one call

TODO_COPY = "copy it again from where it came"
TODO_OFFICIAL = "get the official archive, or unpack it yourself and give the folder"


def take(descriptor: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset`; fewer where the file ends. Never asks for more than CHUNK bytes at once."""
    content = os.pread(descriptor, min(size, CHUNK), offset)
    if len(content) == size or not content:
        return content
    buffer = io.BytesIO()  # its value is its buffer and no copy of it
    done = buffer.write(content)
    while done < size and (part := os.pread(descriptor, min(size - done, CHUNK), offset + done)):
        done += buffer.write(part)
    return buffer.getvalue()


@contextmanager
def opened(file: File) -> Iterator[int]:
    """A descriptor of the file on disk behind `file`, for `os.pread`.

    It lives for one read. So it has no place that threads or forked processes could share, and costs microseconds.

    Raises:
        MmsegError: it cannot be opened or read, changed since it was listed, or `file` is too large to be read whole.
    """
    if file.size > MAX_MEMBER_BYTES:
        raise MmsegError(file.where, f"{file.size} bytes are more than any image has", "remove it")
    try:
        descriptor = os.open(file.path, os.O_RDONLY)
        try:
            state = os.fstat(descriptor)
            if state.st_mtime_ns != file.stamp if file.archive else state.st_size != file.size:
                raise MmsegError(file.where, "changed after it was listed", "run the command again")
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        todo = "check the disk and its permissions"
        raise MmsegError(file.where, f"cannot be read ({error.strerror or error})", todo) from error


class Members:
    """The members of one archive, as far as they are harmless, and a fault for each that is not.

    Args:
        path: the archive on disk.
        prefix: in front of every name: "train/n01440764/" for an archive inside an archive.
    """

    def __init__(self, path: str, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self.files: dict[str, File] = {}
        self.faults: list[Fault] = []
        self._folders: set[str] = set()
        self._refused = 0
        self._seen = 0

    def broken(self, what: str, todo: str = TODO_COPY) -> None:
        """The archive itself is at fault."""
        self.faults.append(Fault("archive", f"{self.path}/{self.prefix}".rstrip("/"), what, todo))

    def refuse(self, name: str, what: str) -> None:
        """A member is at fault; it is not listed."""
        self._refused += 1
        if self._refused <= MAX_FAULTS:
            where = f"{self.path}/{self.prefix}{shown(name)}"
            self.faults.append(Fault("archive", where, what, TODO_OFFICIAL))

    def full(self) -> bool:
        """Count one more member; at the cap, say so once. The caller then stops."""
        self._seen += 1
        if self._seen > MAX_MEMBERS:
            self.broken(f"has more than {MAX_MEMBERS} members", TODO_OFFICIAL)
        return self._seen > MAX_MEMBERS

    def admit(self, name: str, wrong: str | None, *, folder: bool = False) -> str | None:
        """The name to list a member by; None where it is refused, a folder, or hidden.

        Args:
            name: as the archive has it.
            wrong: what else is wrong with the member.
            folder: whether it is a folder's entry.
        """
        wrong = bad_name(name) or wrong
        parts = [part for part in name.split("/") if part not in ("", ".")]
        clean = self.prefix + "/".join(parts)
        if wrong is None and not folder and (not parts or clean in self.files):
            wrong = "is the second of its name" if parts else "has no name"
        if wrong is not None:
            self.refuse(name, wrong)
        if wrong is not None or folder or any(hidden(part) for part in parts):
            return None
        return clean

    def add(self, file: File) -> None:
        """List a member that was admitted."""
        self.files[file.name] = file
        folder = file.folder
        while folder and folder not in self._folders:
            self._folders.add(folder)
            folder = folder.rpartition("/")[0]

    def drop(self, file: File, what: str) -> None:
        """Take a member back from the list."""
        del self.files[file.name]
        self.refuse(file.name.removeprefix(self.prefix), what)

    def close(self) -> tuple[list[File], list[Fault]]:
        """The files in the order of the archive, and all faults."""
        for name in self._folders & self.files.keys():
            self.drop(self.files[name], "is a file and a folder at once")
        if self._refused > MAX_FAULTS:
            self.broken(f"holds {self._refused - MAX_FAULTS} more members at fault", TODO_OFFICIAL)
        return list(self.files.values()), self.faults
