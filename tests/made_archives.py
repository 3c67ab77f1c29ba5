"""Zip and tar archives made byte by byte, so that a test can make them lie; independent of the package."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zlib
from dataclasses import dataclass


@dataclass
class Entry:
    """A zip member. What is None is set truly."""

    name: bytes
    content: bytes = b"content"
    method: int = 0
    flags: int = 0x800
    mode: int = stat.S_IFREG | 0o644
    size: int | None = None
    packed: int | None = None
    crc: int | None = None
    offset: int | None = None
    disk: int = 0
    extra: bytes = b""
    local_name: bytes | None = None
    local_flags: int | None = None
    body: bytes | None = None


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def zeros(mebibytes: int) -> bytes:
    """That much of nothing, deflated: without making it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * mebibytes + packer.flush()


def make_zip(
    *entries: Entry, count: int | None = None, shift: int = 0, disk: int = 0, comment: bytes = b"", between: bytes = b""
) -> bytes:
    """Local headers, data, central directory, end record. `shift` is added to the directory's offset."""
    data, directory = b"", b""
    for entry in entries:
        body = entry.body
        if body is None:
            body = deflate(entry.content) if entry.method == 8 else entry.content
        size = len(entry.content) if entry.size is None else entry.size
        packed = len(body) if entry.packed is None else entry.packed
        crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
        offset = len(data) if entry.offset is None else entry.offset
        local_name = entry.name if entry.local_name is None else entry.local_name
        local_flags = entry.flags if entry.local_flags is None else entry.local_flags
        fields = (entry.method, 0, 33, crc, packed & 0xFFFFFFFF, size & 0xFFFFFFFF)
        data += struct.pack("<4s5H3L2H", b"PK\3\4", 20, local_flags, *fields, len(local_name), 0) + local_name + body
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 3 << 8 | 20, 20, entry.flags, *fields,
            len(entry.name), len(entry.extra), 0, entry.disk, 0, entry.mode << 16, offset,
        )  # fmt: skip
        directory += entry.name + entry.extra
    count = len(entries) if count is None else count
    end = (b"PK\5\6", disk, disk, count, count, len(directory), len(data) + len(between) + shift, len(comment))
    return data + between + directory + struct.pack("<4s4H2LH", *end) + comment


def make_tar(*members: tuple[str, bytes | None] | tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of (name, content) pairs, None being a folder, or of headers without data."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = None if isinstance(member, tarfile.TarInfo) else member[1]
            if content is not None:
                info.size = len(content)
            elif not isinstance(member, tarfile.TarInfo):
                info.type = tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(content or b""))
    return file.getvalue()


def tar_info(name: str, kind: bytes, *, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def tar_header(name: bytes, *, kind: bytes = b"0", size: bytes = b"%011o\0" % 0) -> bytes:
    """One block with a right checksum, whatever it says."""
    header = bytearray(512)
    header[: len(name)] = name
    header[124 : 124 + len(size)] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def tar_block(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def octal(size: int) -> bytes:
    return b"%011o\0" % size
