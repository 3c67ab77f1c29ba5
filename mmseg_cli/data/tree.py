"""The files of a dataset as they lie on disk: in folders, or in zip and tar archives that are read in place.

Nothing is ever extracted or written. Links are followed; one that leads out of the dataset is a fault, and so is a
name that another one equals but for case.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from mmseg_cli.data.archives.file import File, hidden, plain, shown
from mmseg_cli.data.archives.members import opened, take
from mmseg_cli.data.archives.tars import list_tar, list_tgz, read_tar
from mmseg_cli.data.archives.zips import list_zip, read_zip
from mmseg_cli.data.faults import Fault
from mmseg_cli.errors import MmsegError

__all__ = ["File", "Tree", "list_tar", "open_tree", "read"]

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_VISITS = 16  # of one folder through different links: what folders of links to folders of links could multiply
AFTER_SLASH = "0"  # the character behind "/": names below a folder lie between `folder/` and `folder0`


@dataclass(frozen=True)
class Tree:
    """The files of a dataset.

    Attributes:
        root: what messages call it: the folder or the archive that the user gave.
        files: by name (slashes, relative to the root), sorted; hidden files and folders are left out.
        faults: links that lead outside, names that differ by case only, archives, what cannot be read.
        notes: what a reader should know, such as archives read in place.
    """

    root: str
    files: dict[str, File]
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self.files)

    def _range(self, folder: str) -> tuple[int, int, str]:
        folder = folder.strip("/")
        if not folder:
            return 0, len(self._names), ""
        return bisect_left(self._names, f"{folder}/"), bisect_left(self._names, folder + AFTER_SLASH), f"{folder}/"

    def under(self, folder: str, suffixes: tuple[str, ...] = ()) -> list[File]:
        """All files anywhere below `folder` ("" is the root), sorted by name.

        Args:
            folder: with slashes, relative to the root.
            suffixes: in lower case, any of which the lower-case name must end with; none = all files.
        """
        start, stop, _ = self._range(folder)
        names = self._names[start:stop]
        return [self.files[name] for name in names if not suffixes or name.lower().endswith(suffixes)]

    def folders(self, folder: str) -> list[str]:
        """The sorted names of the direct subfolders of `folder` that hold files."""
        position, stop, prefix = self._range(folder)
        found = []
        while position < stop:
            name, slash, _ = self._names[position][len(prefix) :].partition("/")
            if slash:
                found.append(name)
            # Files sort among the folders; all of a folder's names are passed at once.
            position = bisect_left(self._names, prefix + name + AFTER_SLASH) if slash else position + 1
        return sorted(found)

    def has(self, folder: str) -> bool:
        """Whether some file lies below `folder`."""
        start, stop, _ = self._range(folder)
        return start < stop

    def get(self, name: str) -> File | None:
        """The file of that name, or None."""
        return self.files.get(name)


def is_archive(name: str) -> bool:
    """Whether a file's name is that of an archive that can be read in place."""
    return name.lower().endswith(SUFFIXES)


def open_tree(root: Path, *, folders: Sequence[str] = (), archives: Sequence[str] = ()) -> Tree:
    """List a dataset.

    Args:
        root: a folder, or one archive (.zip, .tar, and small .tar.gz or .tgz).
        folders: of a root folder, the only top folders to walk (none = all); files directly in it are always listed.
        archives: patterns such as `*_trainvaltest.zip` of archives directly in the root folder to read in place. Where
            a folder of a top folder also exists extracted, the archive's members of it are left out.

    Raises:
        MmsegError: the root is missing, or neither a folder nor an archive. All else is a fault of the tree.
    """
    path = os.fspath(root)
    if not os.path.exists(path):  # noqa: PTH110 - a Path would hide a name that is no path
        raise MmsegError(shown(path), "no such folder or archive", "check --root")
    if os.path.isdir(path):  # noqa: PTH112
        files, faults = _walk(path, folders)
        notes = _add_archives(files, faults, archives)
    elif is_archive(path) and os.path.isfile(path):  # noqa: PTH113
        listed, faults = _list_archive(path)
        files = {file.name: file for file in listed}
        notes = [f"read in place: {os.path.basename(path)}"]  # noqa: PTH119
    else:
        what = f"neither a folder nor an archive ({', '.join(SUFFIXES)})"
        raise MmsegError(shown(path), what, "unpack it and give the folder")
    files = dict(sorted(files.items()))
    faults += _same_but_case(files.values())
    return Tree(root=path, files=files, faults=sorted(faults, key=lambda fault: fault.where), notes=notes)


def read(file: File) -> bytes:
    """The whole content of a file, by any thread of any process.

    Raises:
        MmsegError: it cannot be read, is not as long as when it was listed, or its archive's checksum is wrong.
    """
    if file.archive:
        return read_zip(file) if file.archive == "zip" else read_tar(file)
    with opened(file) as descriptor:
        content = take(descriptor, 0, file.size)
    if len(content) != file.size:
        raise MmsegError(file.where, "became shorter while it was read", "run the command again")
    return content


def _list_archive(path: str) -> tuple[list[File], list[Fault]]:
    lower = path.lower()
    if lower.endswith(".zip"):
        return list_zip(path)
    return list_tar(path) if lower.endswith(".tar") else list_tgz(path)


def _unreadable(path: str, what: str, todo: str = "remove or repair it") -> Fault:
    return Fault("unreadable", shown(path), what, todo)


def _walk(root: str, folders: Sequence[str]) -> tuple[dict[str, File], list[Fault]]:
    """All files below a folder. Strings and scandir: a Path per file would take minutes for a million files."""
    real_root = os.path.realpath(root)
    files: dict[str, File] = {}
    faults: list[Fault] = []
    visits: Counter[tuple[int, int]] = Counter()
    # (path, name with a slash, whether it lies outside the root, the folders above it)
    todo: list[tuple[str, str, bool, frozenset[tuple[int, int]]]] = [(root, "", False, frozenset())]
    while todo:
        path, prefix, outside, above = todo.pop()
        try:
            state = os.stat(path)  # noqa: PTH116
            this = (state.st_dev, state.st_ino)
            visits[this] += 1
            if this in above or visits[this] > MAX_VISITS:
                what = "leads back to a folder around it" if this in above else "leads to a folder with many links"
                faults.append(_unreadable(path, f"a link that {what}", "remove the link"))
                continue
            with os.scandir(path) as entries:
                for entry in entries:
                    if hidden(entry.name):
                        continue
                    try:
                        if folders and not prefix and entry.name not in folders and entry.is_dir():
                            continue
                        fault = _look(entry, real_root, outside)
                        if fault is not None:
                            faults.append(fault)
                            if fault.kind != "outside-link":
                                continue
                        if entry.is_dir():
                            below = outside or fault is not None
                            todo.append((entry.path, f"{prefix}{entry.name}/", below, above | {this}))
                        else:
                            state = entry.stat()
                            name = prefix + entry.name
                            files[name] = File(name, entry.path, state.st_size, state.st_mtime_ns)
                    except OSError as error:
                        faults.append(_unreadable(entry.path, f"cannot be read ({error.strerror})"))
        except OSError as error:
            faults.append(_unreadable(path, f"cannot be read ({error.strerror})", "check its permissions"))
    return files, faults


def _look(entry: os.DirEntry[str], real_root: str, outside: bool) -> Fault | None:
    """What is wrong with an entry of a folder."""
    if not plain(entry.name):
        return _unreadable(entry.path, "has control characters or no UTF-8 in its name", "rename it")
    link = entry.is_symlink()
    if not link and (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
        return None
    if link and not os.path.exists(entry.path):  # noqa: PTH110
        return _unreadable(entry.path, "a link that leads nowhere", "repair or remove the link")
    mode = entry.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return _unreadable(entry.path, "neither a file nor a folder", "remove it")
    target = os.path.realpath(entry.path)
    if outside or target == real_root or target.startswith(real_root.rstrip("/") + "/"):
        return None
    return Fault(
        "outside-link",
        entry.path,
        f"a link that leads out of the dataset, to {shown(target)}",
        "put the file there itself, or allow outside-link",
    )


def _add_archives(files: dict[str, File], faults: list[Fault], patterns: Sequence[str]) -> list[str]:
    """Add the members of the root folder's archives that match; what is extracted wins. Returns the notes."""
    notes: list[str] = []
    names = sorted(name for name in files if "/" not in name and is_archive(name))
    extracted = {_part(name) for name in files}
    for archive in (name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)):
        listed, found = _list_archive(files[archive].path)
        faults += found
        left_out: Counter[str] = Counter()
        twice = 0
        for file in listed:
            part = _part(file.name)
            if part in extracted:
                left_out[part] += 1
            elif file.name in files:
                twice += "/" in file.name  # every official archive has its own README
            else:
                files[file.name] = file
        notes.append(f"read in place: {archive}")
        notes += [
            f"{archive}: {count} files of {part} left out, because it is extracted"
            for part, count in sorted(left_out.items())
            if files.get(part) is None
        ]
        if twice:
            notes.append(f"{archive}: {twice} files left out, because an archive before it has them")
    return notes


def _part(name: str) -> str:
    """What is extracted or not as one: a folder of a top folder, such as `leftImg8bit/train_extra`, or a top folder."""
    return "/".join(name.split("/")[:-1][:2]) or name


def _same_but_case(files: Iterable[File]) -> list[Fault]:
    """A fault for each file and folder whose name equals another one's beside it but for case."""
    beside: dict[str, dict[str, str]] = {}  # of each folder, its subfolders' names and what to call them
    inside: dict[str, list[File]] = {}
    for file in files:
        folder = file.folder
        inside.setdefault(folder, []).append(file)
        while folder and folder not in beside.setdefault(folder.rpartition("/")[0], {}):
            above = folder.rpartition("/")[0]
            beside[above][folder] = file.where.removesuffix(file.name) + folder
            folder = above
    faults: list[Fault] = []
    for folder in sorted(inside.keys() | beside.keys()):
        seen: dict[str, str] = {}
        here = list(beside.get(folder, {}).items())
        for name, where in here + [(file.name, file.where) for file in inside.get(folder, [])]:
            base = name.rpartition("/")[2]
            other = seen.setdefault(base.lower(), base)  # casefold() would take straße for strasse
            if other != base:
                faults.append(
                    Fault("duplicate-case", where, f"differs from {other} by case only", "rename one of them")
                )
    return faults
