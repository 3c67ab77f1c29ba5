from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import trees

from mmseg_cli import errors, files
from mmseg_cli.errors import Interrupted, MmsegError, NumericalStop, ResourceError


def test_atomic_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "one.txt"
    files.write_text(path, "first")
    files.write_text(path, "second ä")
    assert path.read_text(encoding="utf-8") == "second ä"
    assert [entry.name for entry in path.parent.iterdir()] == ["one.txt"]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
    path = tmp_path / "one.txt"
    files.write_text(path, "old and longer")
    with path.open() as reader:
        files.write_text(path, "new")
        assert reader.read() == "old and longer"
    assert path.read_text() == "new"


def test_atomic_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "one", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o640


def test_a_failure_while_writing_keeps_the_old_content(tmp_path):
    path = tmp_path / "one.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.atomic(path) as file:
        file.write(b"half of the new")
        1 / 0  # noqa: B018
    assert trees.contents(tmp_path) == {"one.txt": b"old"}


def test_a_killed_writer_keeps_the_old_content(tmp_path):
    path = tmp_path / "one.txt"
    files.write_text(path, "old")
    code = (
        "import os, sys; from pathlib import Path; from mmseg_cli.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as file:\n file.write(b'new'); file.flush(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
    assert path.read_text() == "old"


WRITERS = [
    pytest.param(lambda path: files.write_text(path / "x", "new"), id="write_text"),
    pytest.param(lambda path: files.write_json(path / "x", {}), id="write_json"),
    pytest.param(files.require_writable, id="require_writable"),
    pytest.param(lambda path: files.new_folder(path / "x").__enter__(), id="new_folder"),
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path, write):
    """A file where a folder is needed stops every user, root as well."""
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(MmsegError, match="cannot be written") as caught:
        write(tmp_path / "taken")
    assert caught.value.exit_code == 2
    assert str(tmp_path / "taken") in str(caught.value)
    assert trees.contents(tmp_path) == {"taken": b"a file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
@pytest.mark.parametrize("write", WRITERS)
def test_a_read_only_folder_is_the_users_error(tmp_path, write):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    with pytest.raises(MmsegError, match="cannot be written") as caught:
        write(locked)
    assert caught.value.exit_code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_lack_of_resources():
    try:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        refused = files.refusal(Path("reports/x.json"), error)
    assert isinstance(refused, ResourceError)
    assert refused.exit_code == 4
    assert str(refused).startswith("reports/x.json: no space left on the disk (")
    assert " bytes free): " in str(refused)


def test_new_folder_replaces_the_whole_folder(tmp_path):
    path = tmp_path / "store"
    for content in ("first", "second"):
        with files.new_folder(path) as folder:
            (folder / content).write_text(content)
    assert trees.contents(tmp_path) == {"store/second": b"second"}


def test_new_folder_keeps_the_old_one_when_the_block_fails(tmp_path):
    path = tmp_path / "store"
    with files.new_folder(path) as folder:
        (folder / "old").write_text("old")
    for error in (ZeroDivisionError, KeyboardInterrupt, MmsegError("a", "b", "c")):
        with pytest.raises(error if isinstance(error, type) else MmsegError), files.new_folder(path) as folder:
            (folder / "new").write_text("half")
            raise error
    assert trees.contents(tmp_path) == {"store/old": b"old"}


def test_read_json_says_what_to_do(tmp_path):
    path = tmp_path / "one.json"
    with pytest.raises(MmsegError, match="one.json: missing: ask for it"):
        files.read_json(path, todo="ask for it")
    for content in (b"{", b"\xff", b""):
        path.write_bytes(content)
        with pytest.raises(MmsegError, match="cannot be read .*: ask for it"):
            files.read_json(path, todo="ask for it")
    files.write_json(path, {"a": [1, "ä"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, "ä"]}


def test_fingerprint_knows_values_but_not_the_order_of_keys():
    assert files.fingerprint({"a": 1, "b": [1, 2]}) == files.fingerprint({"b": [1, 2], "a": 1})
    assert len({files.fingerprint(value) for value in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, [1, 2], [2, 1])}) == 6


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MmsegError("w", "x", "t"), 2),
        (NumericalStop("w", "x", "t"), 3),
        (ResourceError("w", "x", "t"), 4),
        (Interrupted("w", 15, "x"), 143),
    ],
)
def test_an_error_crosses_process_borders_whole(error, code):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.exit_code) == (type(error), str(error), code)
    assert errors.INTERRUPTED == 128
