"""Tar archives, listed and read in place; compressed ones only while they are small.

The formats are POSIX.1-2017 ustar and pax, and GNU's long names. Headers are parsed here and not by `tarfile`, which
allocates what a header claims and remembers every member. Only headers are read: data is passed over.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from functools import lru_cache

from mmseg_cli.data.archives.file import File
from mmseg_cli.data.archives.members import CHUNK, MAX_MEMBER_BYTES, TODO_COPY, Members, opened, take
from mmseg_cli.data.faults import Fault
from mmseg_cli.errors import MmsegError

MAX_TGZ_BYTES = 1 << 26  # of a compressed tar, uncompressed: it is held in memory
MAX_GZIP_MEMBERS = 1000  # of one compressed tar: empty ones cost time and give nothing
MAX_EXTENDED_BYTES = 1 << 16  # of a long name or of a pax header
MAX_PADDING = 1 << 24  # zeros behind the end mark: writers fill a block of up to some megabytes

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_FILES, _FOLDER = b"0\x007", b"5"
_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"xX", b"g"
_EXTENSIONS = _GNU_NAME + _GNU_LINK + _PAX + _PAX_GLOBAL
_NO_DATA = b"123456"  # links, devices and folders; a size there, if any, is of something else
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file, which cannot be read in place",
    b"M": "the rest of a file of another archive",
}

_Fetch = Callable[[int, int], bytes]  # (offset, size) -> bytes, fewer at the end


class _Damaged(Exception):
    """The archive cannot be listed any further; the message says why."""


def list_tar(
    path: str, *, offset: int = 0, size: int | None = None, prefix: str = ""
) -> tuple[list[File], list[Fault]]:
    """The files in an uncompressed tar archive, which may lie inside another file.

    Args:
        path: the file on disk.
        offset: of the archive in it, in bytes.
        size: of the archive; None = up to the end of the file.
        prefix: in front of every name, such as "train/n01440764/".

    Returns:
        The harmless members in the archive's order, and a fault for each other one, or for the archive.
    """
    members = Members(path, prefix)
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            state = os.fstat(descriptor)
            end = state.st_size if size is None else min(offset + size, state.st_size)
            _list(members, lambda at, length: take(descriptor, at, length), offset, end, state.st_mtime_ns, "tar")
        finally:
            os.close(descriptor)
    except _Damaged as error:
        members.broken(str(error))
    except OSError as error:
        members.broken(f"cannot be read ({error.strerror})", "check its permissions")
    return members.close()


def list_tgz(path: str) -> tuple[list[File], list[Fault]]:
    """The files in a tar archive compressed by gzip, of at most MAX_TGZ_BYTES; see list_tar."""
    members = Members(path)
    try:
        stamp = os.stat(path).st_mtime_ns  # noqa: PTH116
        content = _unzipped(path, stamp)
        _list(members, lambda at, length: content[at : at + length], 0, len(content), stamp, "tgz")
    except _Damaged as error:
        members.broken(str(error))
    except OSError as error:
        members.broken(f"cannot be read ({error.strerror})", "check its permissions")
    return members.close()


def read_tar(file: File) -> bytes:
    """The content of a tar member.

    Raises:
        MmsegError: the archive changed, is cut short or cannot be read.
    """
    with opened(file) as descriptor:
        if file.archive == "tgz":
            try:
                content = _unzipped(file.path, file.stamp)[file.offset : file.offset + file.size]
            except _Damaged as error:
                raise MmsegError(file.where, str(error), TODO_COPY) from error
        else:
            content = take(descriptor, file.offset, file.size)
    if len(content) != file.size:
        raise MmsegError(file.where, "is cut short", TODO_COPY)
    return content


@lru_cache(maxsize=2)
def _unzipped(path: str, stamp: int) -> bytes:
    """All of a gzip file; `stamp` tells the cache that it changed."""
    parts: list[bytes] = []
    room = MAX_TGZ_BYTES + 1
    inflater, count = zlib.decompressobj(31), 1
    with open(path, "rb") as file:  # noqa: PTH123
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TGZ_BYTES:
            raise _Damaged(f"has {size} bytes, more than {MAX_TGZ_BYTES}, too much for a compressed tar: unpack it")
        magic = file.read(2)
        if magic != b"\x1f\x8b":
            raise _Damaged(f"is not a .tar.gz archive (it starts with {magic!r})")
        packed = magic
        try:
            while packed or (packed := file.read(1 << 18)):
                if inflater.eof:  # gzip files may follow each other, and zeros may follow
                    if not packed.strip(b"\0"):
                        packed = b""
                        continue
                    inflater, count = zlib.decompressobj(31), count + 1
                    if count > MAX_GZIP_MEMBERS:
                        raise _Damaged(f"is made of more than {MAX_GZIP_MEMBERS} gzip files: unpack it")
                parts.append(inflater.decompress(packed, min(room, CHUNK)))
                room -= len(parts[-1])
                if not room:
                    raise _Damaged(f"holds more than {MAX_TGZ_BYTES} bytes, too much for a compressed tar: unpack it")
                packed = inflater.unconsumed_tail or inflater.unused_data
        except zlib.error as error:
            raise _Damaged(f"is damaged ({error})") from error
    if not inflater.eof:
        raise _Damaged("is cut short")
    return b"".join(parts)


def _list(members: Members, fetch: _Fetch, start: int, end: int, stamp: int, archive: str) -> None:
    """Walk the headers between `start` and `end`."""
    at = start
    extended: dict[str, str] = {}
    while True:
        header = fetch(at, min(_BLOCK, max(0, end - at)))
        if header == _ZEROS and not extended:
            _check_end(fetch, at, end)
            return
        if len(header) < _BLOCK or not _sum_is_right(header):
            if at == start:
                raise _Damaged(f"is not a tar archive (it starts with {header[:4]!r})")
            what = "is cut short" if len(header) < _BLOCK else "is damaged"
            raise _Damaged(f"{what} (no header at byte {at})")
        kind = header[156:157]
        size = _number(header[124:136])
        at += _BLOCK
        if kind in _EXTENSIONS:
            if size is None or at + size > end:
                raise _Damaged(f"is damaged or cut short (the extended header at byte {at - _BLOCK})")
            extended |= _extension(kind, size, fetch, at)
            at += _whole_blocks(size)
            continue
        if members.full():
            return
        name = extended.get("path") or _name(header)
        wrong = extended.get("wrong") or _wrong(kind)
        if "size" in extended:
            size = int(extended["size"]) if re.fullmatch("[0-9]{1,19}", extended["size"]) else None
        length = 0 if kind in _NO_DATA else size
        if length is None or size is None or at + length > end:
            # Where the next header lies is unknown.
            members.refuse(name, wrong or f"claims {size} bytes, more than the archive has (cut short?)")
            return
        if wrong is None and length > MAX_MEMBER_BYTES and not name.lower().endswith(".tar"):
            wrong = f"claims {size} bytes, more than any image has"
        folder = kind == _FOLDER or (kind in _FILES and name.endswith("/"))
        clean = members.admit(name, wrong, folder=folder)
        if clean is not None:
            members.add(File(clean, members.path, size, stamp, archive, offset=at))
        at += _whole_blocks(length)
        extended = {}


def _check_end(fetch: _Fetch, at: int, end: int) -> None:
    """Only zeros may follow the end mark: a hole in the middle of an archive looks like its end, too."""
    if end - at > MAX_PADDING or fetch(at, end - at).strip(b"\0"):
        raise _Damaged(f"has {end - at} bytes behind its end mark (a hole at byte {at}?)")


def _extension(kind: bytes, size: int, fetch: _Fetch, at: int) -> dict[str, str]:
    """What a header that belongs to the next member says of it: "path" and "size", or what is "wrong"."""
    if kind not in _PAX + _GNU_NAME:
        return {}  # the target of a link, or a remark on the whole archive
    if size > MAX_EXTENDED_BYTES:
        return {"wrong": f"has an extended header of {size} bytes"}
    content = fetch(at, size)
    if kind == _GNU_NAME:
        return {"path": _text(content.rstrip(b"\0"))}
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        match = re.match(rb"([0-9]{1,9}) ([^=]+)=", content)
        length = int(match[1]) if match else 0
        if match is None or length <= match.end() or content[length - 1 : length] != b"\n":
            return {"wrong": "has a damaged extended header"}
        key, value = _text(match[2]), _text(content[match.end() : length - 1])
        if key.startswith("GNU.sparse") or key == "SCHILY.realsize":
            return {"wrong": f"is {_KINDS[b'S']}"}
        if key in ("path", "size"):
            found[key] = value
        content = content[length:]
    return found


def _wrong(kind: bytes) -> str | None:
    if kind in _FILES + _FOLDER:
        return None
    return f"is {_KINDS[kind]}" if kind in _KINDS else f"is of the unknown kind {kind!r}"


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(raw: bytes) -> str:
    """UTF-8; what is none is refused later, as a name."""
    return raw.decode("utf-8", "surrogateescape")


def _number(raw: bytes) -> int | None:
    """Octal digits, or GNU's binary numbers; None for a negative one and for anything else."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.split(b"\0", 1)[0].strip(b" ")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _sum_is_right(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
