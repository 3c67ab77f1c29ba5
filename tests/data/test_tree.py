"""The files of a folder: what is listed, which links are followed, what is named, and reading by many at once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st
from made_archives import make_tar

from mmseg_cli.data import tree as tree_module
from mmseg_cli.data.faults import allow, errors
from mmseg_cli.data.tree import File, Tree, open_tree, read
from mmseg_cli.errors import MmsegError


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def found(tree: Tree) -> list[tuple[str, str]]:
    return [(fault.kind, os.path.relpath(fault.where, tree.root)) for fault in tree.faults]


NAMES = ("a/b/c.png", "a/b/d.PNG", "a/b.png", "a-b/e.png", "a.txt", "f/g.jpg")


def test_lists_files_by_sorted_name(tmp_path: Path) -> None:
    root = fill(tmp_path, *NAMES, ".git/x", "a/.DS_Store", "__MACOSX/a/b.png")
    tree = open_tree(root)
    assert tree.root == str(root)
    assert list(tree.files) == sorted(NAMES)
    assert (tree.faults, tree.notes) == ([], [])
    file = tree.files["a/b/d.PNG"]
    state = (root / "a/b/d.PNG").stat()
    assert (file.name, file.path, file.size) == ("a/b/d.PNG", str(root / "a/b/d.PNG"), 9)
    assert (file.stamp, file.archive) == (state.st_mtime_ns, "")
    assert (file.where, file.stem, file.base, file.folder) == (file.path, "d", "d.PNG", "a/b")
    assert {name: read(file) for name, file in tree.files.items()} == {name: name.encode() for name in NAMES}


def test_under_folders_has_get(tmp_path: Path) -> None:
    tree = open_tree(fill(tmp_path, *NAMES))
    assert [file.name for file in tree.under("a")] == ["a/b.png", "a/b/c.png", "a/b/d.PNG"]
    assert [file.name for file in tree.under("a/")] == ["a/b.png", "a/b/c.png", "a/b/d.PNG"]
    assert [file.name for file in tree.under("", (".jpg", ".txt"))] == ["a.txt", "f/g.jpg"]
    assert [file.name for file in tree.under("a/b", (".png",))] == ["a/b/c.png", "a/b/d.PNG"]
    assert tree.under("nothing") == []
    assert tree.folders("") == ["a", "a-b", "f"]
    assert tree.folders("a") == ["b"]
    assert tree.folders("a/b") == []
    assert tree.has("a/b") and tree.has("") and not tree.has("a/b.png") and not tree.has("a/c")
    assert tree.get("a.txt") == tree.files["a.txt"] and tree.get("a") is None


parts = st.text("ab-./0", min_size=1, max_size=8).map(lambda text: "/".join(filter(None, text.split("/")))).filter(bool)


@given(st.sets(parts, max_size=12), parts)
def test_methods_agree_with_their_plain_meaning(names: set[str], folder: str) -> None:
    tree = Tree("root", {name: File(name, name, 0, 0) for name in sorted(names)})
    for where in (folder, ""):
        prefix = f"{where}/" if where else ""
        below = sorted(name for name in names if name.startswith(prefix))
        assert [file.name for file in tree.under(where)] == below
        assert tree.has(where) == bool(below)
        assert tree.folders(where) == sorted({rest.split("/")[0] for n in below if "/" in (rest := n[len(prefix) :])})


def test_only_the_named_top_folders_are_walked(tmp_path: Path) -> None:
    root = fill(tmp_path, *NAMES)
    (root / "f" / "dangling").symlink_to("nothing")
    (root / "out").symlink_to("/usr")
    tree = open_tree(root, folders=("a", "missing"))
    assert list(tree.files) == ["a.txt", "a/b.png", "a/b/c.png", "a/b/d.PNG"]
    assert tree.faults == []


def test_links_inside_are_followed(tmp_path: Path) -> None:
    root = fill(tmp_path / "real", "a/x.png")
    (root / "b").symlink_to("a")
    (root / "c.png").symlink_to(root / "a" / "x.png")
    (tmp_path / "link").symlink_to("real")
    for way in (root, tmp_path / "link"):
        tree = open_tree(way)
        assert (list(tree.files), tree.faults) == (["a/x.png", "b/x.png", "c.png"], [])
        assert read(tree.files["b/x.png"]) == read(tree.files["c.png"]) == b"a/x.png"


def test_links_that_lead_outside_are_named_and_followed(tmp_path: Path) -> None:
    fill(tmp_path, "outside/a.png", "outside/deep/b.png", "real-too/c.png")
    root = fill(tmp_path / "real", "x.png")
    (root / "folder").symlink_to("../outside")
    (tmp_path / "outside" / "more").symlink_to("../real-too")
    (root / "file.png").symlink_to(tmp_path / "real-too" / "c.png")  # a folder whose name begins like the root's
    tree = open_tree(root)
    assert found(tree) == [("outside-link", "file.png"), ("outside-link", "folder")]
    assert list(tree.files) == ["file.png", "folder/a.png", "folder/deep/b.png", "folder/more/c.png", "x.png"]
    assert read(tree.files["folder/a.png"]) == b"outside/a.png"
    assert errors(allow(tree.faults, ["outside-link"])) == []


@pytest.mark.parametrize("make", ["self", "parent", "pair", "many"])
def test_loops_of_links_end(make: str, tmp_path: Path) -> None:
    root = fill(tmp_path, "a/x.png", "b/y.png")
    if make == "self":
        (root / "a" / "loop").symlink_to("loop")
    elif make == "parent":
        (root / "a" / "loop").symlink_to("..")
    elif make == "pair":
        (root / "a" / "b").symlink_to("../b")
        (root / "b" / "a").symlink_to("../a")
    else:  # every folder links twice to the next: 2**30 paths
        for number in range(30):
            (root / f"n{number}").mkdir()
        for number in range(29):
            for way in "lr":
                (root / f"n{number}" / way).symlink_to(f"../n{number + 1}")
    tree = open_tree(root)
    assert {"a/x.png", "b/y.png"} <= tree.files.keys()
    assert tree.faults and {fault.kind for fault in tree.faults} == {"unreadable"}
    assert len(tree.faults) < 1000


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    root = fill(tmp_path, "ok.png")
    (root / "dangling.png").symlink_to("nothing.png")
    os.mkfifo(root / "fifo.png")
    (root / "null.png").symlink_to("/dev/null")
    (root / "line\nbreak.png").write_bytes(b"")
    (root / os.fsdecode(b"latin\xff.png")).write_bytes(b"")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "s.png"))
    server.close()
    tree = open_tree(root)
    assert list(tree.files) == ["ok.png"]
    assert [kind for kind, _ in found(tree)] == ["unreadable"] * 6
    assert sorted(name for _, name in found(tree)) == sorted(
        ["dangling.png", "fifo.png", "null.png", "s.png", "line\\nbreak.png", "latin\\udcff.png"]
    )
    assert all(fault.line().isprintable() for fault in tree.faults)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, "a/x.png", "closed/y.png")
    scandir = os.scandir

    def closed(path: str):
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(tree_module.os, "scandir", closed)
    tree = open_tree(root)
    assert list(tree.files) == ["a/x.png"]
    assert found(tree) == [("unreadable", "closed")]
    assert "Permission denied" in tree.faults[0].what


def test_names_that_differ_by_case_are_named_once(tmp_path: Path) -> None:
    tree = open_tree(
        fill(tmp_path, "a/x.png", "a/X.PNG", "Train/y.png", "train/y.png", "train/z.png", "c/x.png", "d/X.png")
    )
    assert found(tree) == [("duplicate-case", "a/x.png"), ("duplicate-case", "train")]
    assert "X.PNG" in tree.faults[0].what and "Train" in tree.faults[1].what


def test_other_letters_are_no_other_case(tmp_path: Path) -> None:
    assert found(open_tree(fill(tmp_path, "stra\u00dfe.png", "strasse.png"))) == []


def test_listing_writes_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path, *NAMES)
    before = trees.snapshot(root)
    for file in open_tree(root).files.values():
        read(file)
    assert trees.snapshot(root) == before


@pytest.mark.parametrize("name", ["missing", "a.rar", "a.txt"])
def test_a_root_that_is_none(name: str, tmp_path: Path) -> None:
    fill(tmp_path, "a.rar", "a.txt")
    with pytest.raises(MmsegError, match=name):
        open_tree(tmp_path / name)


# ----------------------------------------------------------------------------------------------- archives in the root


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, f"{path.name}: {name}")


def test_archives_of_the_root_are_read_in_place(tmp_path: Path) -> None:
    zipped(tmp_path / "images_all.zip", "images/train/a.png", "README")
    zipped(tmp_path / "labels_all.zip", "labels/train/a.png", "README")
    zipped(tmp_path / "other.zip", "other/a.png")
    tree = open_tree(tmp_path, archives=("*_all.zip",))
    assert [name for name in tree.files if not name.endswith(".zip")] == [
        "README",
        "images/train/a.png",
        "labels/train/a.png",
    ]
    assert read(tree.files["labels/train/a.png"]) == b"labels_all.zip: labels/train/a.png"
    assert tree.files["labels/train/a.png"].where == f"{tmp_path}/labels_all.zip/labels/train/a.png"
    assert tree.notes == ["read in place: images_all.zip", "read in place: labels_all.zip"]
    assert tree.faults == []


def test_what_is_extracted_wins(tmp_path: Path) -> None:
    fill(tmp_path, "images/train/a.png")
    zipped(
        tmp_path / "all.zip",
        *(f"{name}.png" for name in ("images/train/a", "images/train/z", "images/val/b", "labels/train/a")),
    )
    tree = open_tree(tmp_path, archives=("all.zip",))
    assert [name for name in tree.files if "/" in name] == [
        "images/train/a.png",
        "images/val/b.png",
        "labels/train/a.png",
    ]
    assert read(tree.files["images/train/a.png"]) == b"images/train/a.png"
    assert tree.notes == [
        "read in place: all.zip",
        "all.zip: 2 files of images/train left out, because it is extracted",
    ]


def test_two_archives_may_share_a_top_folder(tmp_path: Path) -> None:
    zipped(tmp_path / "a_1.zip", "images/train/a.png", "images/train/b.png")
    zipped(tmp_path / "a_2.zip", "images/train/b.png", "images/val/c.png")
    tree = open_tree(tmp_path, archives=("a_*.zip",))
    assert len(tree.under("images")) == 3
    assert read(tree.files["images/train/b.png"]).startswith(b"a_1.zip")
    assert tree.notes[-1] == "a_2.zip: 1 files left out, because an archive before it has them"


def test_a_broken_archive_of_the_root_is_a_fault(tmp_path: Path) -> None:
    fill(tmp_path, "images.zip", "labels/a.png")
    tree = open_tree(tmp_path, archives=("*.zip",))
    assert found(tree) == [("archive", "images.zip")]
    assert tree.has("labels")


# ------------------------------------------------------------------------------------------------------------- reading


def many(tmp_path: Path, kind: str) -> Tree:
    content = {f"a/{number:03d}.png": bytes([number]) * (1000 + 313 * number) for number in range(100)}
    if kind == "folder":
        for name, data in content.items():
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_bytes(data)
        return open_tree(tmp_path / "data")
    path = tmp_path / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in content.items():
                file.writestr(name, data)
    else:
        path.write_bytes(make_tar(*content.items()))
    return open_tree(path)


def right(file: File) -> bool:
    number = int(file.stem)
    return read(file) == bytes([number]) * (1000 + 313 * number)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_many_threads_read_at_once(kind: str, tmp_path: Path) -> None:
    files = list(many(tmp_path, kind).files.values())
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(right, files * 10))


def _read_in_child(files: list[File], answers: multiprocessing.SimpleQueue) -> None:
    answers.put(sum(right(file) for file in files * 5))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_forked_processes_read_what_their_parent_opened(kind: str, tmp_path: Path) -> None:
    files = list(many(tmp_path, kind).files.values())
    assert right(files[0])
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [context.Process(target=_read_in_child, args=(files, answers)) for _ in range(3)]
    for child in children:
        child.start()
    assert sum(right(file) for file in files * 5) == 500
    assert [answers.get() for _ in children] == [500, 500, 500]
    for child in children:
        child.join()


def test_a_file_travels_to_another_process(tmp_path: Path) -> None:
    file = next(iter(many(tmp_path, "zip").files.values()))
    assert right(pickle.loads(pickle.dumps(file)))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    files = list(many(tmp_path, "zip").files.values())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for file in files:
        read(file)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("change", ["longer", "shorter", "gone", "folder"])
def test_a_file_that_changed_since_it_was_listed(change: str, tmp_path: Path) -> None:
    file = open_tree(fill(tmp_path, "a.png")).files["a.png"]
    path = tmp_path / "a.png"
    if change == "longer":
        path.write_bytes(b"longer than before")
    elif change == "shorter":
        path.write_bytes(b"")
    else:
        path.unlink()
        if change == "folder":
            path.mkdir()
    with pytest.raises(MmsegError, match="changed|cannot be read") as error:
        read(file)
    assert error.value.where == str(path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("change", ["replaced", "cut", "gone"])
def test_an_archive_that_changed_since_it_was_listed(kind: str, change: str, tmp_path: Path) -> None:
    tree = many(tmp_path, kind)
    file = tree.files["a/099.png"]
    path = Path(tree.root)
    if change == "replaced":
        shutil.copyfile(path, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    elif change == "cut":
        os.truncate(path, 5000)
    else:
        path.unlink()
    with pytest.raises(MmsegError, match="changed|cannot be read") as error:
        read(file)
    assert error.value.where == f"{path}/a/099.png"


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MmsegError, match="more than any image has"):
        read(open_tree(tmp_path).files["a.png"])
