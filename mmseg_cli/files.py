"""Writing files so that a reader never sees half of one: temporary file, flush, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mmseg_cli.errors import MmsegError, ResourceError


def refusal(path: Path, error: OSError) -> MmsegError:
    """The user's error behind a failed write: no space (exit 4), or a place that cannot be written (exit 2)."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        todo = "raise it (ulimit -f)" if error.errno == errno.EFBIG else "free some and run the same command again"
        return ResourceError(path, no_space(path, error), todo)
    taken = error.errno in (errno.EISDIR, errno.EEXIST, errno.ENOTDIR)
    todo = "choose another place, something else is there" if taken else "check its permissions"
    return MmsegError(path, f"cannot be written ({error.strerror or error})", todo)


def no_space(path: Path, error: OSError) -> str:
    """What a full disk, quota or limit on file sizes has to say, in bytes."""
    if error.errno == errno.EFBIG:
        return f"is larger than the limit on file sizes ({resource.getrlimit(resource.RLIMIT_FSIZE)[0]:,} bytes)"
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return f"no space left on the disk ({shutil.disk_usage(there).free:,} bytes free)"


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(folder: Path) -> None:
    """Create `folder` where it is missing and raise MmsegError unless files can be made in it.

    Called before hours of work whose result goes there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise refusal(folder, error) from error


_asking = threading.Lock()


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it: one thread at a time."""
    with _asking:
        mask = os.umask(0o077)  # what another thread makes meanwhile is private rather than open to all
        os.umask(mask)
    return mask


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes `path`'s place only when the block ends well.

    Raises:
        MmsegError: the folder cannot be written (exit 2) or the disk is full (exit 4); `path` is untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise refusal(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` with `text`, atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` with `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, *, todo: str) -> Any:
    """The JSON in `path`; a missing or broken file is a MmsegError that says `todo`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MmsegError(path, "missing", todo) from None
    except (ValueError, OSError) as error:
        raise MmsegError(path, f"cannot be read ({error})", todo) from error


@contextmanager
def content_of(path: Path, *, todo: str) -> Iterator[None]:
    """Where what a file holds is worked with: whatever fails at it is a MmsegError that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise MmsegError(path, f"does not hold what it should ({why})", todo) from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON-like value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes `path`'s place only when the block ends well; what was there stays until then.

    Raises:
        MmsegError: the parent cannot be written (exit 2) or the disk is full (exit 4).
    """
    require_writable(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        fsync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise refusal(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
