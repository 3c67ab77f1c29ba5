"""Zip archives, listed and read in place.

The format is PKWARE's APPNOTE.TXT 6.3: a central directory at the end tells where each member's local header lies. Only
what that directory lists exists. It is parsed here and not by `zipfile`, which keeps several times the memory for
each member, shares one file position between threads and forked processes, and repairs what should be refused.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib

from mmseg_cli.data.archives.file import File, bad_name
from mmseg_cli.data.archives.members import (
    CHUNK,
    FREE_MEMBER_BYTES,
    FREE_TOTAL_BYTES,
    MAX_MEMBER_BYTES,
    MAX_RATIO,
    TODO_COPY,
    TODO_OFFICIAL,
    Members,
    opened,
    take,
)
from mmseg_cli.data.faults import Fault
from mmseg_cli.errors import MmsegError

MAX_DIRECTORY_BYTES = 1 << 29  # of the central directory: four million members of 128 bytes

_LOCAL = struct.Struct("<4s5H3L2H")  # signature need flags method time date crc packed size name extra
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # ... made need flags method time date crc packed size name extra comment
_END = struct.Struct("<4s4H2LH")  # signature disk start-disk here members bytes offset comment
_END_64 = struct.Struct("<4sQ2H2L4Q")  # signature size made need disk start-disk here members bytes offset
_LOCATOR_64 = struct.Struct("<4sLQL")  # signature disk offset disks
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF  # "the value stands in the zip64 field"
_STORED, _DEFLATED = 0, 8
_METHODS = {6: "implode", 9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES"}
_LINKS = {stat.S_IFLNK: "a symbolic link", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a FIFO"}
_ENCRYPTED, _PATCH, _MASKED, _UTF8 = 1, 1 << 5, 1 << 13, 1 << 11


class _Damaged(Exception):
    """The archive cannot be listed; the message says why."""


def list_zip(path: str) -> tuple[list[File], list[Fault]]:
    """The files in a zip archive.

    Returns:
        The harmless members, and a fault for each other one, or for the archive.
    """
    members = Members(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            state = os.fstat(descriptor)
            magic = take(descriptor, 0, 4)
            if magic not in (b"PK\3\4", b"PK\5\6"):
                what = "is one part of several" if magic == b"PK\7\x08" else "is not a zip archive"
                raise _Damaged(f"{what} (it starts with {magic!r})")
            count, start, size = _directory(descriptor, state.st_size)
            _members(members, take(descriptor, start, size), count=count, start=start, stamp=state.st_mtime_ns)
        finally:
            os.close(descriptor)
        _refuse_overlaps(members)
        total = sum(file.size for file in members.files.values())
        if total > max(FREE_TOTAL_BYTES, MAX_RATIO * state.st_size):
            members.files.clear()
            members.broken(f"claims to hold {total} bytes in {state.st_size}", TODO_OFFICIAL)
    except _Damaged as error:
        members.broken(str(error))
    except OSError as error:
        members.broken(f"cannot be read ({error.strerror})", "check its permissions")
    return members.close()


def read_zip(file: File) -> bytes:
    """The content of a zip member.

    Raises:
        MmsegError: the archive changed or cannot be read, or the member is damaged.
    """
    with opened(file) as descriptor:
        header = take(descriptor, file.offset, _LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
            raise MmsegError(file.where, "is damaged (no header where the archive says)", TODO_COPY)
        _, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL.unpack(header)
        name = _name(take(descriptor, file.offset + _LOCAL.size, name_size), flags)
        if _clean(name) != file.name or method != file.method or flags & _ENCRYPTED:
            raise MmsegError(file.where, "its header and the archive's directory contradict each other", TODO_COPY)
        start = file.offset + _LOCAL.size + name_size + extra_size
        content = take(descriptor, start, file.size) if file.method == _STORED else _inflate(descriptor, file, start)
    if len(content) != file.size:
        more = "more" if len(content) > file.size else "fewer"
        raise MmsegError(file.where, f"is damaged (it has {more} than the {file.size} bytes announced)", TODO_COPY)
    if zlib.crc32(content) != file.crc:
        raise MmsegError(file.where, "is damaged (its checksum is wrong)", TODO_COPY)
    return content


def _inflate(descriptor: int, file: File, start: int) -> bytes:
    """Decompress, but never more than one byte above the announced size."""
    inflater = zlib.decompressobj(-15)
    buffer = io.BytesIO()  # its value is its buffer and no copy of it
    room = file.size + 1
    done = 0
    try:
        while done < file.packed and room and not inflater.eof:
            packed = take(descriptor, start + done, min(CHUNK, file.packed - done))
            if not packed:
                break
            done += len(packed)
            while room and packed and not inflater.eof:
                # Step by step, because the output buffer would take the announced size at once.
                room -= buffer.write(inflater.decompress(packed, min(room, CHUNK)))
                packed = inflater.unconsumed_tail
    except zlib.error as error:
        raise MmsegError(file.where, f"is damaged ({error})", TODO_COPY) from error
    if not inflater.eof and room:
        raise MmsegError(file.where, "is damaged (its compressed bytes are cut short)", TODO_COPY)
    return buffer.getvalue()


def _directory(descriptor: int, size: int) -> tuple[int, int, int]:
    """(members, offset, bytes) of the central directory; the members are known modulo 2**16 in some archives."""
    tail_start = max(0, size - _END.size - _MAX_16)
    tail = take(descriptor, tail_start, size - tail_start)
    at = tail.rfind(b"PK\5\6")
    while at >= 0 and (len(tail) - at < _END.size or at + _END.size + _END.unpack_from(tail, at)[7] != len(tail)):
        at = tail.rfind(b"PK\5\6", 0, at)  # those bytes in a comment or in data
    if at < 0:
        raise _Damaged("has no directory at its end (cut short?)")
    end = tail_start + at
    _, disk, start_disk, here, count, length, start, _ = _END.unpack_from(tail, at)
    locator = take(descriptor, end - _LOCATOR_64.size, _LOCATOR_64.size) if end >= _LOCATOR_64.size else b""
    if locator.startswith(b"PK\6\7"):
        _, _, end, disks = _LOCATOR_64.unpack(locator)
        record = take(descriptor, end, _END_64.size) if end < size else b""
        if disks > 1:
            raise _Damaged("is one part of several")
        if len(record) < _END_64.size or not record.startswith(b"PK\6\6"):
            raise _Damaged("is damaged (its zip64 end record is missing)")
        _, _, _, _, disk, start_disk, here, count, length, start = _END_64.unpack(record)
    if disk or start_disk or here != count:
        raise _Damaged("is one part of several")
    if start + length != end:
        raise _Damaged("is damaged (its directory is not where it says)")
    if length > MAX_DIRECTORY_BYTES:
        raise _Damaged(f"has a directory of {length} bytes, more than {MAX_DIRECTORY_BYTES}")
    return count, start, length


def _members(members: Members, directory: bytes, *, count: int, start: int, stamp: int) -> None:
    at = found = 0
    while at < len(directory):
        if len(directory) - at < _CENTRAL.size or directory[at : at + 4] != b"PK\1\2":
            raise _Damaged(f"is damaged (its directory, at byte {start + at})")
        if members.full():
            return
        (
            _,
            _,
            _,
            flags,
            method,
            _,
            _,
            crc,
            packed,
            size,
            name_size,
            extra_size,
            comment_size,
            disk,
            _,
            mode,
            offset,
        ) = _CENTRAL.unpack_from(directory, at)
        at += _CENTRAL.size
        name = _name(directory[at : at + name_size], flags)
        extra = directory[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        found += 1
        wrong = None
        if _MAX_32 in (packed, size, offset):
            try:
                size, packed, offset = _zip64(extra, size, packed, offset)
            except (struct.error, ValueError):
                wrong = "is damaged (its zip64 field)"
        wrong = wrong or _wrong(flags, method, packed, size, mode >> 16)
        if wrong is None and disk not in (0, _MAX_16):
            wrong = "lies in another part of the archive"
        if wrong is None and offset + _LOCAL.size + name_size + packed > start:
            wrong = "would lie outside the archive's data (cut short?)"
        clean = members.admit(name, wrong, folder=name.endswith("/") or stat.S_ISDIR(mode >> 16))
        if clean is not None:
            members.add(
                File(clean, members.path, size, stamp, "zip", offset=offset, packed=packed, method=method, crc=crc)
            )
    if at != len(directory) or (found - count) % (1 << 16):
        members.broken(f"is damaged (its directory lists {found} members and announces {count})")


def _wrong(flags: int, method: int, packed: int, size: int, mode: int) -> str | None:
    """What is wrong with a member's fields."""
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"is {_LINKS.get(kind, 'no file')}"
    if flags & (_ENCRYPTED | _MASKED | _PATCH):
        return "is encrypted" if not flags & _PATCH else "is a patch"
    if method not in (_STORED, _DEFLATED):
        return f"is compressed by {_METHODS.get(method, f'method {method}')}, which cannot be read in place"
    if size > MAX_MEMBER_BYTES or packed > MAX_MEMBER_BYTES:
        return f"claims {max(size, packed)} bytes, more than any image has"
    if size > FREE_MEMBER_BYTES and size > MAX_RATIO * packed:
        return f"claims {size} bytes out of {packed}, more than {MAX_RATIO} times"
    if method == _STORED and packed != size:
        return "is damaged (stored, but of two sizes)"
    return None


def _refuse_overlaps(members: Members) -> None:
    """No two members may share bytes: a bomb of megabytes holds petabytes by that."""
    end = 0
    for file in sorted(members.files.values(), key=lambda file: file.offset):
        if file.offset < end:
            members.drop(file, "overlaps another member")
        else:
            end = file.offset + _LOCAL.size + len(file.name) + file.packed


def _zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The values that do not fit into 32 bits, from the extra field 1."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == 1:
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            values = [next(wide, None) if value == _MAX_32 else value for value in (size, packed, offset)]
            if None in values:
                break
            return values[0] or 0, values[1] or 0, values[2] or 0
        at += 4 + length
    raise ValueError("no zip64 field")


def _name(raw: bytes, flags: int) -> str:
    """UTF-8, also where the flag for it is missing; else the format's old code page."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape") if flags & _UTF8 else raw.decode("cp437")


def _clean(name: str) -> str:
    return "" if bad_name(name) else "/".join(part for part in name.split("/") if part not in ("", "."))
