"""Where a dataset lies below the root that a person gives: directly, or below the one folder that an archive adds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmseg_cli.data.archives.file import hidden
from mmseg_cli.data.tree import Tree, is_archive, open_tree
from mmseg_cli.errors import MmsegError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def subfolders(folder: Path) -> list[str]:
    """The sorted names of the folders directly in `folder`, empty ones too; hidden ones are left out. Never raises."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not hidden(entry.name) and entry.is_dir())
    except (OSError, ValueError):
        return []


def top_of(root: Path, wanted: str) -> Path:
    """`root`, or its only folder that holds the folder `wanted` where the root itself does not. Never raises."""
    names = subfolders(root)
    if wanted in names:
        return root
    tops = [name for name in names if wanted in subfolders(root / name)]
    return root / tops[0] if len(tops) == 1 else root


def prefix_of(tree: Tree, wanted: str) -> str:
    """What stands before the folder `wanted` in the tree's names: nothing, or the only top folder that holds it."""
    if tree.has(wanted):
        return ""
    tops = [name for name in tree.folders("") if tree.has(f"{name}/{wanted}")]
    return f"{tops[0]}/" if len(tops) == 1 else ""


def open_below(root: Path, wanted: str, *, folders: Sequence[str]) -> tuple[Tree, str]:
    """The files of a dataset in a folder or in one archive, and what stands before its folders in their names.

    Args:
        wanted: the folder by which the dataset's top is found.
        folders: the only folders to walk in a root that is a folder.

    Raises:
        MmsegError: the root cannot be read at all.
    """
    if root.is_dir():
        return open_tree(top_of(root, wanted), folders=folders), ""
    tree = open_tree(root)
    return tree, prefix_of(tree, wanted)


def tops_in_archive(root: Path) -> dict[str, list[str]]:
    """The folders of an archive's top, each with its own; of what is no archive, nothing. Never raises."""
    try:
        if not (is_archive(root.name) and root.is_file()):
            return {}
        tree = open_tree(root)
    except (MmsegError, OSError, ValueError):
        return {}
    return {name: tree.folders(name) for name in tree.folders("")}
