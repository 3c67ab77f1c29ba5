"""Archives read in place: hostile ones are named and do no harm, whole ones give no fault, and no bytes break us."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trees
from hypothesis import given, settings
from hypothesis import strategies as st
from made_archives import Entry, deflate, make_tar, make_zip, octal, tar_block, tar_header, tar_info, zeros

from mmseg_cli.data.archives import members as archives
from mmseg_cli.data.archives import tars, zips
from mmseg_cli.data.tree import list_tar, open_tree, read
from mmseg_cli.errors import MmsegError

GOOD = {"good/a.png": b"first", "good/b.png": b"second"}
NOISE = random.Random(0).randbytes(3 << 20)
A, B = Entry(b"good/a.png", b"first"), Entry(b"good/b.png", b"second", method=8)
TAR_A, TAR_B = ("good/a.png", b"first"), ("good/b.png", b"second")
END = bytes(1024)


@dataclass(frozen=True)
class Hostile:
    """One archive, what its one line must contain, and which of GOOD's members are still listed."""

    title: str
    suffix: str
    build: Callable[[], bytes]
    where: str  # behind the archive's path
    what: str
    kept: tuple[str, ...] = ("good/a.png", "good/b.png")
    when: str = "listed"
    kind: str = "archive"
    caps: dict[str, int] = field(default_factory=dict)
    memory: int = 48 << 20  # bytes that it may not make us take; the bombs claim or hold more


def in_zip(title: str, entry: Entry, what: str, *, where: str | None = None, when: str = "listed") -> Hostile:
    """A zip of A, the entry, B."""
    where = f"/{entry.name.decode()}" if where is None else where
    return Hostile(title, ".zip", lambda: make_zip(A, entry, B), where, what, when=when)


def in_tar(title: str, member: tuple[str, bytes] | tarfile.TarInfo | bytes, what: str, *, where: str) -> Hostile:
    """A tar of TAR_A, the member (raw bytes where no library writes it), TAR_B."""
    if isinstance(member, bytes):
        return Hostile(title, ".tar", lambda: make_tar(TAR_A)[:1024] + member + make_tar(TAR_B), where, what)
    return Hostile(title, ".tar", lambda: make_tar(TAR_A, member, TAR_B), where, what)


def after_a(title: str, rest: bytes, what: str, *, where: str) -> Hostile:
    """A tar of TAR_A and raw bytes behind which no member can be found."""
    return Hostile(title, ".tar", lambda: make_tar(TAR_A)[:1024] + rest + END, where, what, kept=("good/a.png",))


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def overlapping() -> bytes:
    """The second member's header lies inside the first one's stored data, as in bombs that quote."""
    inner = make_zip(B)[: -22 - 46 - len(B.name)]
    outer = Entry(b"good/a.png", inner)
    return make_zip(
        outer, Entry(b"good/b.png", b"second", method=8, offset=30 + len(outer.name), body=deflate(b"second"))
    )


def pax(*records: bytes) -> bytes:
    """A pax header before a member of 3 bytes named `harmless`."""
    content = b"".join(records)
    member = tar_header(b"harmless", size=octal(3)) + tar_block(b"abc")
    return tar_header(b"pax", kind=b"x", size=octal(len(content))) + tar_block(content) + member


TWO = {"MAX_MEMBERS": 2}
OUT, LINK, CONTROL, ABSOLUTE = "leads out of the archive", "symbolic link", "control characters", "an absolute path"
TWICE, DEVICE, DAMAGED = "the second of its name", "is a device", "is damaged"
HOSTILE = [
    # -- zip: names
    in_zip("escape", Entry(b"../x"), OUT),
    in_zip("escape inside", Entry(b"a/../../x"), OUT),
    in_zip("escape of a folder", Entry(b"../x/", b""), OUT),
    in_zip("absolute", Entry(b"/etc/x"), ABSOLUTE, where="//etc/x"),
    in_zip("drive", Entry(b"C:/x"), ABSOLUTE),
    in_zip("drive with backslash", Entry(b"C:\\x"), "backslash"),
    in_zip("backslashes", Entry(b"..\\..\\x"), "backslash"),
    in_zip("NUL", Entry(b"a.png\0.exe"), CONTROL, where="/a.png\\x00.exe"),
    in_zip("line break", Entry(b"a\nmmseg: done.png"), CONTROL, where="/a\\nmmseg: done.png"),
    in_zip("terminal escape", Entry(b"a\x1b[2J.png"), CONTROL, where="/a\\x1b[2J.png"),
    in_zip("text turned round", Entry("a\u202egnp.exe".encode()), CONTROL, where="/a\\u202egnp.exe"),
    in_zip("no UTF-8", Entry(b"a\xff.png"), CONTROL, where="/a\\udcff.png"),
    in_zip("endless name", Entry(b"n" * 5000), "too long", where=f"/{'n' * 200}..."),
    in_zip("no name", Entry(b""), "no name", where="/"),
    in_zip("only a dot", Entry(b"./."), "no name"),
    in_zip("duplicate", Entry(b"good/a.png", b"other"), TWICE),
    in_zip("duplicate by dots", Entry(b"./good//a.png", b"other"), TWICE),
    in_zip("file and folder", Entry(b"good", b"x"), "a file and a folder"),
    Hostile(
        "case", ".zip", lambda: make_zip(A, B, Entry(b"good/A.png", b"x")), "/good/a.png", "by case only",
        kind="duplicate-case", kept=("good/A.png", "good/a.png", "good/b.png"),
    ),
    # -- zip: what is no file
    in_zip("link", Entry(b"link", b"/etc/passwd", mode=stat.S_IFLNK | 0o777), LINK),
    in_zip("character device", Entry(b"dev", b"", mode=stat.S_IFCHR | 0o666), DEVICE),
    in_zip("block device", Entry(b"dev", b"", mode=stat.S_IFBLK | 0o666), DEVICE),
    in_zip("FIFO", Entry(b"fifo", b"", mode=stat.S_IFIFO | 0o666), "is a FIFO"),
    in_zip("socket", Entry(b"socket", b"", mode=stat.S_IFSOCK | 0o666), "is no file"),
    # -- zip: bombs
    in_zip("huge claim", Entry(b"bomb", b"x", size=3 << 30, method=8), "claims 3221225472 bytes"),
    in_zip("large claim", Entry(b"bomb", b"x", size=321 << 20, method=8), "claims 336592896 bytes"),
    in_zip("ratio", Entry(b"bomb", b"", size=100 << 20, body=zeros(100), method=8), "more than 200 times"),
    in_zip("more than it says", Entry(b"bomb", b"", size=10, body=zeros(200), method=8),
           "more than the 10 bytes announced", when="read"),
    in_zip("less than it says", Entry(b"bomb", b"abc", size=60 << 20, method=8),
           "fewer than the 62914560 bytes announced", when="read"),
    Hostile(
        "many small bombs", ".zip",
        lambda: make_zip(*(Entry(b"%d" % n, size=60 << 20, body=zeros(60), method=8) for n in range(20))),
        "", "claims to hold 1258291200 bytes", kept=(),
    ),
    Hostile("too many", ".zip", lambda: make_zip(A, B, Entry(b"c")), "", "more than 2 members", caps=TWO),
    Hostile("same bytes", ".zip", lambda: make_zip(A, B, Entry(b"c", offset=0)), "/c", "overlaps"),
    Hostile("quoted", ".zip", overlapping, "/good/b.png", "overlaps", kept=()),
    # -- zip: compression and encryption
    in_zip("encrypted", Entry(b"secret", flags=0x801), "is encrypted"),
    in_zip("strongly encrypted", Entry(b"secret", method=99, flags=0x801), "is encrypted"),
    in_zip("masked directory", Entry(b"secret", flags=0x2801), "is encrypted"),
    in_zip("bzip2", Entry(b"c", method=12), "compressed by bzip2"),
    in_zip("deflate64", Entry(b"c", method=9), "compressed by deflate64"),
    in_zip("Zstandard", Entry(b"c", method=93), "compressed by Zstandard"),
    in_zip("unknown method", Entry(b"c", method=77), "compressed by method 77"),
    # -- zip: damage
    in_zip("checksum", Entry(b"c", crc=1), "checksum", when="read"),
    in_zip("checksum, compressed", Entry(b"c", crc=1, method=8), "checksum", when="read"),
    in_zip("no deflate", Entry(b"c", b"abc", body=b"\xff" * 20, method=8), "invalid", when="read"),
    in_zip("deflate cut", Entry(b"c", NOISE[:99], body=deflate(NOISE[:99])[:50], method=8), "cut short", when="read"),
    in_zip("other header", Entry(b"c", local_name=b"d"), "contradict", when="read"),
    in_zip("header encrypted", Entry(b"c", local_flags=0x801), "contradict", when="read"),
    Hostile("header elsewhere", ".zip", lambda: make_zip(A, B, Entry(b"c", offset=96, size=4, packed=4)), "/c",
            "no header", when="read"),
    in_zip("header behind the end", Entry(b"c", offset=1 << 20), "outside the archive's data"),
    in_zip("data behind the end", Entry(b"c", packed=1 << 20, size=1 << 20), "outside the archive's data"),
    in_zip("two sizes", Entry(b"c", size=3), "two sizes"),
    in_zip("no zip64 field", Entry(b"c", size=0xFFFFFFFF), "zip64"),
    in_zip("short zip64 field", Entry(b"c", size=0xFFFFFFFF, extra=b"\1\0\4\0abcd"), "zip64"),
    in_zip("other disk", Entry(b"c", disk=3), "another part"),
    Hostile("several disks", ".zip", lambda: make_zip(A, disk=1), "", "one part of several", kept=()),
    Hostile("first of several", ".zip", lambda: b"PK\7\x08" + make_zip(A), "", "one part of several", kept=()),
    Hostile("directory elsewhere", ".zip", lambda: make_zip(A, shift=5), "", "not where it says", kept=()),
    Hostile("bytes between", ".zip", lambda: make_zip(A, between=b"zz", shift=-2), "", "not where it says", kept=()),
    Hostile("directory damaged", ".zip", lambda: make_zip(A).replace(b"PK\1\2", b"PK\1\1"), "", "at byte 45", kept=()),
    Hostile("wrong count", ".zip", lambda: make_zip(A, B, count=3), "", "lists 2 members and announces 3"),
    Hostile("cut", ".zip", lambda: make_zip(A, B)[:-30], "", "cut short", kept=()),
    Hostile("cut by a byte", ".zip", lambda: make_zip(A, B)[:-1], "", "cut short", kept=()),
    Hostile("garbage behind", ".zip", lambda: make_zip(A, B) + b"garbage", "", "no directory at its end", kept=()),
    Hostile("program in front", ".zip", lambda: b"MZ" + make_zip(A), "", "not a zip archive", kept=()),
    Hostile("error page", ".zip", lambda: b"<!DOCTYPE html><p>Log in", "", "not a zip archive", kept=()),
    Hostile("a tar", ".zip", lambda: make_tar(TAR_A), "", "not a zip archive", kept=()),
    Hostile("empty", ".zip", lambda: b"", "", "not a zip archive", kept=()),
    # -- tar: names
    in_tar("escape", ("../x", b"x"), OUT, where="/../x"),
    in_tar("escape inside", ("a/../../x", b"x"), OUT, where="/a/../../x"),
    in_tar("absolute", ("/etc/x", b"x"), ABSOLUTE, where="//etc/x"),
    in_tar("drive", ("C:\\x", b"x"), "backslash", where="/C:\\x"),
    in_tar("control", ("a\x07.png", b"x"), CONTROL, where="/a\\x07.png"),
    in_tar("no UTF-8", ("a\udcff.png", b"x"), CONTROL, where="/a\\udcff.png"),
    in_tar("long name escapes", ("../" + "x/" * 90, b"x"), OUT, where="/../x"),
    in_tar("pax name escapes", pax(b"14 path=../xy\n"), OUT, where="/../xy"),
    in_tar("pax NUL", pax(b"12 path=a\0b\n"), CONTROL, where="/a\\x00b"),
    in_tar("duplicate", ("./good/a.png", b"other"), TWICE, where="/./good/a.png"),
    in_tar("file and folder", ("good", b"x"), "a file and a folder", where="/good"),
    Hostile(
        "case", ".tar", lambda: make_tar(TAR_A, TAR_B, ("GOOD/c.png", b"x")), "/good", "by case only",
        kind="duplicate-case", kept=("GOOD/c.png", "good/a.png", "good/b.png"),
    ),
    # -- tar: what is no file
    in_tar("link", tar_info("link", tarfile.SYMTYPE, link="/etc/passwd"), LINK, where="/link"),
    in_tar("hard link", tar_info("link", tarfile.LNKTYPE, link="../../x"), "hard link", where="/link"),
    in_tar("hard link with a size", tar_header(b"link", kind=b"1", size=octal(7 << 30)), "hard link", where="/link"),
    in_tar("character device", tar_info("dev", tarfile.CHRTYPE), DEVICE, where="/dev"),
    in_tar("block device", tar_info("dev", tarfile.BLKTYPE), DEVICE, where="/dev"),
    in_tar("FIFO", tar_info("fifo", tarfile.FIFOTYPE), "is a FIFO", where="/fifo"),
    in_tar("sparse", tar_header(b"sparse", kind=b"S"), "sparse", where="/sparse"),
    in_tar("pax sparse", pax(b"22 GNU.sparse.major=1\n"), "sparse", where="/harmless"),
    in_tar("rest of a file", tar_header(b"rest", kind=b"M"), "another archive", where="/rest"),
    in_tar("unknown kind", tar_header(b"what", kind=b"Z"), "unknown kind", where="/what"),
    # -- tar: bombs and damage
    after_a("huge claim", tar_header(b"huge", size=octal(7 << 30)), "claims 7516192768 bytes", where="/huge"),
    after_a("binary claim", tar_header(b"huge", size=b"\x80" + b"\xff" * 11), "claims", where="/huge"),
    after_a("negative size", tar_header(b"less", size=b"\xff" * 12), "claims", where="/less"),
    after_a("pax size", pax(b"12 size=-51\n"), "claims", where="/harmless"),
    in_tar("huge pax header", tar_header(b"p", kind=b"x", size=octal(1 << 20)) + bytes(1 << 20) + tar_header(b"next"),
           "extended header of 1048576 bytes", where="/next"),
    in_tar("pax without length", pax(b"path=a\n"), "damaged extended header", where="/harmless"),
    in_tar("pax beyond itself", pax(b"99 path=a\n"), "damaged extended header", where="/harmless"),
    in_tar("pax of length 0", pax(b"0 path=a\n"), "damaged extended header", where="/harmless"),
    after_a("pax header cut", tar_header(b"p", kind=b"x", size=octal(7 << 30)), "header at byte 1024", where=""),
    Hostile("too many", ".tar", lambda: make_tar(TAR_A, TAR_B, ("c", b"x")), "", "more than 2 members", caps=TWO),
    Hostile("cut in data", ".tar", lambda: make_tar(TAR_A, TAR_B, ("c", b"x" * 9000))[:5000], "/c", "cut short"),
    Hostile("cut at a header", ".tar", lambda: make_tar(TAR_A, TAR_B)[:2048], "", "no header at byte 2048"),
    Hostile("damaged header", ".tar", lambda: flipped(make_tar(TAR_A, TAR_B), 1030), "", "at byte 1024",
            kept=("good/a.png",)),
    Hostile("hole", ".tar", lambda: make_tar(TAR_A, TAR_B)[:2048] + bytes(1024) + make_tar(("c", b"x")), "", "a hole"),
    Hostile("a zip", ".tar", lambda: make_zip(A), "", "not a tar archive", kept=()),
    Hostile("compressed", ".tar", lambda: gzip.compress(make_tar(TAR_A)), "", "not a tar archive", kept=()),
    Hostile("empty", ".tar", lambda: b"", "", "not a tar archive", kept=()),
    # -- compressed tar
    Hostile("bomb", ".tar.gz", lambda: gzip.compress(make_tar(TAR_A, ("z", bytes(80 << 20)))), "",
            "more than 67108864 bytes", kept=(), memory=200 << 20),
    Hostile("cut", ".tar.gz", lambda: gzip.compress(make_tar(TAR_A))[:-9], "", "cut short", kept=()),
    Hostile("checksum", ".tgz", lambda: flipped(gzip.compress(make_tar(TAR_A)), -7), "", DAMAGED, kept=()),
    Hostile("many empty gzip files", ".tgz", lambda: gzip.compress(b"") * 2000 + gzip.compress(make_tar(TAR_A)), "",
            "more than 1000 gzip files", kept=()),
    Hostile("packed bytes", ".tgz", lambda: gzip.compress(make_tar(TAR_A)) + bytes(4000), "",
            "more than 2000", kept=(), caps={"MAX_TGZ_BYTES": 2000}),
    Hostile("plain tar", ".tgz", lambda: make_tar(TAR_A), "", "not a .tar.gz archive", kept=()),
    Hostile("no tar", ".tgz", lambda: gzip.compress(b"text"), "", "not a tar archive", kept=()),
    Hostile("escape", ".tgz", lambda: gzip.compress(make_tar(TAR_A, ("../x", b"x"), TAR_B)), "/../x", OUT),
]  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: f"{case.suffix[1:]}: {case.title}")
def test_hostile(case: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "deep" / "er"
    deep.mkdir(parents=True)
    path = deep / f"data{case.suffix}"
    path.write_bytes(case.build())
    monkeypatch.chdir(deep)
    for module in (archives, zips, tars):
        for name, value in case.caps.items():
            monkeypatch.setattr(module, name, value, raising=False)
    before = trees.snapshot(tmp_path)
    tars._unzipped.cache_clear()

    tracemalloc.start()
    tree = open_tree(path)
    lines = [(fault.where, fault.line()) for fault in tree.faults]
    kinds = [fault.kind for fault in tree.faults]
    listed = set()
    for file in tree.files.values():
        try:
            assert len(read(file)) == file.size
            listed.add(file.name)
        except MmsegError as error:
            assert case.when == "read"
            lines.append((error.where, str(error)))
            kinds.append("archive")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(lines) == 1, lines
    where, line = lines[0]
    assert where.startswith(f"{path}{case.where}") if case.where else where == str(path)
    assert case.what in line and "\n" not in line and line.isprintable()
    assert kinds == [case.kind]
    assert listed >= set(case.kept)
    assert peak < case.memory
    assert trees.snapshot(tmp_path) == before


def test_members_of_a_hostile_archive_are_intact(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip(A, Entry(b"../x"), Entry(b"/y"), B))
    tree = open_tree(tmp_path / "a.zip")
    assert {name: read(file) for name, file in tree.files.items()} == GOOD
    assert [fault.kind for fault in tree.faults] == ["archive", "archive"]


@pytest.mark.parametrize("method", [0, 8])
def test_a_large_member_is_held_once(method: int, tmp_path: Path) -> None:
    content = bytes(60 << 20)
    (tmp_path / "a.zip").write_bytes(make_zip(Entry(b"a.json", content, method=method)))
    (file,) = open_tree(tmp_path / "a.zip").files.values()
    tracemalloc.start()
    assert read(file) == content
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 90 << 20


def test_faults_of_one_archive_are_capped(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip(*(Entry(b"../%d" % number) for number in range(1000))))
    faults = open_tree(tmp_path / "a.zip").faults
    assert len(faults) == archives.MAX_FAULTS + 1
    assert any("900 more" in fault.what for fault in faults)


# ---------------------------------------------------------------------------------------------- archives without fault

WHOLE = {
    "leftImg8bit/train/aachen/a.png": NOISE,  # larger than a compressed chunk would be
    "leftImg8bit/train/aachen/b.json": b'{"label": "road"}' * 90_000,
    "license.txt": b"",
    f"{'long/' * 40}{'n' * 120}.png": b"long",
    "gtFine/K\u00f6ln \u6771\u4eac.png": b"not ASCII",
}


def zip_by_library(path: Path, **options: bool) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("leftImg8bit/", b"")
        for name, content in WHOLE.items():
            method = zipfile.ZIP_DEFLATED if name.endswith("json") else zipfile.ZIP_STORED
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with file.open(info, "w", force_zip64=options.get("zip64", False)) as member:
                member.write(content)
        file.writestr("__MACOSX/leftImg8bit/._a.png", b"left out")
        file.writestr("leftImg8bit/.DS_Store", b"left out")
        file.comment = b"a comment with PK\5\6 in it" if options.get("comment") else b""


def zip_by_stream(path: Path) -> None:
    """Written where one cannot seek: sizes stand in data descriptors."""

    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    stream = Stream()
    zip_by_library(stream)  # type: ignore[arg-type]
    path.write_bytes(stream.getvalue())


def zip_with_many(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in WHOLE.items():
            file.writestr(name, content)
        for number in range(1 << 16):
            file.writestr(f".{number}", b"")


def tar_by_library(path: Path, *, format: int, mode: str = "w") -> None:
    with tarfile.open(path, mode, format=format) as file:
        folder = tarfile.TarInfo("./leftImg8bit")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, content in WHOLE.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime = len(content), 1e9 + 0.5
            file.addfile(info, io.BytesIO(content))


LEGIT = {
    "stored and deflated.zip": zip_by_library,
    "zip64.zip": lambda path: zip_by_library(path, zip64=True),
    "comment.zip": lambda path: zip_by_library(path, comment=True),
    "data descriptors.zip": zip_by_stream,
    "65,541 members.zip": zip_with_many,
    "GNU.tar": lambda path: tar_by_library(path, format=tarfile.GNU_FORMAT),
    "pax.tar": lambda path: tar_by_library(path, format=tarfile.PAX_FORMAT),
    "gzip.tar.gz": lambda path: tar_by_library(path, format=tarfile.PAX_FORMAT, mode="w:gz"),
    "UPPER.TGZ": lambda path: tar_by_library(path, format=tarfile.GNU_FORMAT, mode="w:gz"),
}


@pytest.mark.parametrize("name", LEGIT)
def test_a_whole_archive_has_no_fault(name: str, tmp_path: Path) -> None:
    LEGIT[name](tmp_path / name)
    tree = open_tree(tmp_path / name)
    assert tree.faults == []
    assert {name: read(file) for name, file in tree.files.items()} == WHOLE
    assert list(tree.files) == sorted(WHOLE)
    assert tree.notes == [f"read in place: {name}"]


def test_an_empty_archive_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip())
    (tmp_path / "a.tar").write_bytes(make_tar())
    for name in ("a.zip", "a.tar"):
        tree = open_tree(tmp_path / name)
        assert (tree.files, tree.faults) == ({}, [])


def test_zip_whose_count_overflowed_as_old_writers_leave_it(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip(*(Entry(b"%d" % number, b"") for number in range(300)), count=300))
    content = (tmp_path / "a.zip").read_bytes()
    assert len(open_tree(tmp_path / "a.zip").files) == 300
    (tmp_path / "a.zip").write_bytes(content[:-12] + b"\0\0" + content[-10:])
    assert open_tree(tmp_path / "a.zip").faults  # 300 is not 0 modulo 2**16


def test_a_folder_of_a_tar_has_no_data_whatever_its_size(tmp_path: Path) -> None:
    folder = tar_header(b"good/", kind=b"5", size=octal(4096))
    (tmp_path / "a.tar").write_bytes(folder + make_tar(TAR_A, TAR_B))
    tree = open_tree(tmp_path / "a.tar")
    assert tree.faults == []
    assert {name: read(file) for name, file in tree.files.items()} == GOOD


def test_a_tar_inside_a_tar_is_read_in_place(tmp_path: Path) -> None:
    inner = make_tar(("n1_0.JPEG", b"zero"), ("n1_1.JPEG", b"one" * 999))
    (tmp_path / "train.tar").write_bytes(make_tar(("n1.tar", inner), ("n2.tar", make_tar(("../n2_0.JPEG", b"two")))))
    outer = open_tree(tmp_path / "train.tar")
    assert outer.faults == []
    first, second = outer.files.values()
    files, faults = list_tar(first.path, offset=first.offset, size=first.size, prefix="train/n1/")
    assert faults == []
    assert {file.name: read(file) for file in files} == {
        "train/n1/n1_0.JPEG": b"zero",
        "train/n1/n1_1.JPEG": b"one" * 999,
    }
    files, faults = list_tar(second.path, offset=second.offset, size=second.size, prefix="train/n2/")
    assert files == []
    assert [fault.where for fault in faults] == [f"{tmp_path}/train.tar/train/n2/../n2_0.JPEG"]


def test_a_tar_inside_a_tar_ends_where_the_outer_says(tmp_path: Path) -> None:
    inner = make_tar(("a.JPEG", b"a"), ("b.JPEG", b"b" * 5000))
    (tmp_path / "train.tar").write_bytes(make_tar(("n1.tar", inner[:2048]), ("n2.tar", inner)))
    file = open_tree(tmp_path / "train.tar").files["n1.tar"]
    files, faults = list_tar(file.path, offset=file.offset, size=file.size, prefix="n1/")
    assert [found.name for found in files] == ["n1/a.JPEG"]
    assert len(faults) == 1 and "cut short" in faults[0].what


def test_listing_a_tar_passes_over_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.tar"
    with path.open("wb") as file:  # 28 GiB, of which the disk holds some blocks
        for number in range(4):
            file.write(tar_header(b"n%d.tar" % number, size=octal(7 << 30)))
            file.seek(7 << 30, os.SEEK_CUR)
        file.write(END)
    fetched: list[int] = []
    take = tars.take

    def counting(descriptor: int, offset: int, size: int) -> bytes:
        fetched.append(size)
        return take(descriptor, offset, size)

    monkeypatch.setattr(tars, "take", counting)
    tree = open_tree(path)
    assert tree.faults == [] and len(tree.files) == 4
    assert sum(fetched) < 10_000
    with pytest.raises(MmsegError, match="more than any image has"):
        read(tree.files["n0.tar"])


# -------------------------------------------------------------------------------------------------- any bytes at all


def bases() -> list[tuple[str, bytes]]:
    tar = make_tar(TAR_A, (f"{'long/' * 30}a.png", b"x" * 700), TAR_B)
    pax_tar = make_tar(TAR_A, (f"{'long/' * 30}\u00e4.png", b"x" * 700), format=tarfile.PAX_FORMAT)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open("a.png", "w", force_zip64=True) as member:
        member.write(b"abc")
    zip64 = make_zip(Entry(b"c", size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=b"\1\0\x10\0" + b"\7\0\0\0\0\0\0\0" * 2))
    return [
        (".zip", make_zip(A, B, Entry(b"f/", b""))),
        (".zip", file.getvalue()),
        (".zip", zip64),
        (".tar", tar),
        (".tar", pax_tar),
        (".tgz", gzip.compress(tar)),
    ]


BASES = bases()


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A suffix, and random bytes or an archive with some bytes flipped, cut or put in."""
    suffix, content = draw(st.sampled_from(BASES))
    if draw(st.integers(0, 9)) == 0:
        magic = draw(st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08"]))
        return suffix, magic + draw(st.binary(max_size=2000))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        change = draw(st.sampled_from(["flip", "number", "cut", "insert", "end"]))
        if change == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        elif change == "number":
            extreme = draw(st.sampled_from([b"\0", b"\xff", b"\x80", b"\x7f"])) * draw(st.sampled_from([1, 2, 4, 8]))
            content = content[:at] + extreme + content[at + len(extreme) :]
        elif change == "cut":
            content = content[:at] + content[at + draw(st.integers(1, 600)) :]
        elif change == "insert":
            content = content[:at] + draw(st.binary(max_size=40)) + content[at:]
        elif change == "end":
            content = content[:at]
    return suffix, content


def lists_and_reads(folder: Path, suffix: str, content: bytes) -> None:
    """Only MmsegError comes out, and what is read is as long as listed."""
    path = folder / f"fuzz{suffix}"
    path.write_bytes(content)
    tars._unzipped.cache_clear()
    tree = open_tree(path)
    for fault in tree.faults:
        assert fault.line().isprintable()
    for file in tree.files.values():
        try:
            assert len(read(file)) == file.size
        except MmsegError as error:
            assert str(error).isprintable()
    names = list(tree.files)
    assert not any(name.startswith("/") or ".." in name.split("/") or "\\" in name for name in names)


@given(mutated())
@settings(max_examples=100)
def test_no_bytes_break_the_reader(folder: Path, made: tuple[str, bytes]) -> None:
    lists_and_reads(folder, *made)


@pytest.mark.slow
@given(mutated())
@settings(max_examples=5000)
def test_no_bytes_break_the_reader_long(folder: Path, made: tuple[str, bytes]) -> None:
    lists_and_reads(folder, *made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


part = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)
member_names = st.lists(part, min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(member_names, st.binary(max_size=300), max_size=6), st.booleans())
@settings(max_examples=100)
def test_agrees_with_the_libraries(folder: Path, content: dict[str, bytes], packed: bool) -> None:
    names = {name for name in content if not any(other.startswith(f"{name}/") for other in content)}
    whole = {name: content[name] for name in names}
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, data in whole.items():
            file.writestr(name, data)
    (folder / "a.tar").write_bytes(
        make_tar(*whole.items(), format=tarfile.PAX_FORMAT if packed else tarfile.GNU_FORMAT)
    )
    for name in ("a.zip", "a.tar"):
        tree = open_tree(folder / name)
        assert [fault for fault in tree.faults if fault.kind != "duplicate-case"] == []
        assert {name: read(file) for name, file in tree.files.items()} == whole
