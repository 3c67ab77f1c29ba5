"""A block of the user's own, in a file outside the package: `variants.mine: {class: blocks.mine:Mine}`.

The class is called as ``Class(in_channels, out_channels, **settings)``; of the settings ``expansion``, ``se_ratio``,
``norm`` and ``activation`` it gets those that its constructor names. It maps ``x_BCHW`` to ``(B, out_channels, H, W)``.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.files import sha256

WRITE = "write it as package.module:Class, such as blocks.mine:Mine"


def build_own_block(path: str, in_channels: int, out_channels: int, *, settings: Mapping[str, Any]) -> nn.Module:
    """Make the user's block ``path`` (``package.module:Class``), found from the current folder or installed.

    Args:
        settings: of all blocks; the constructor gets those that it names.

    Raises:
        MmsegError: there is no such module or class, it is no ``nn.Module``, or it cannot be made with these channels.
    """
    block = own_class(path)
    named = inspect.signature(block).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values())
    taken = {key: value for key, value in settings.items() if takes_all or key in named}
    try:
        made = block(in_channels, out_channels, **taken)
        with torch.no_grad():
            y_BCHW = made.eval()(torch.zeros(2, in_channels, 8, 8))
        made.train()
    except MmsegError:
        raise
    except Exception as error:
        what = f"cannot be made, or run, from {in_channels} to {out_channels} channels ({_in_one_line(error)})"
        todo = "mend it: Class(in_channels, out_channels, *, ...), which maps BCHW to BCHW"
        raise MmsegError(path, what, todo) from error
    if getattr(y_BCHW, "shape", None) != (2, out_channels, 8, 8):
        what = f"maps (2, {in_channels}, 8, 8) to {tuple(getattr(y_BCHW, 'shape', ()))}"
        raise MmsegError(path, what, f"a block keeps the size: give (2, {out_channels}, 8, 8)")
    return made


def own_class(path: str) -> type[nn.Module]:
    """The class that ``package.module:Class`` names.

    Raises:
        MmsegError: as :func:`build_own_block`.
    """
    module_name, _, class_name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not look in the project's folder
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        what = f"{module_name} cannot be imported ({_in_one_line(error)})"
        raise MmsegError(path, what, f"mend that file, or {WRITE}") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise MmsegError(path, f"{module_name} has no {class_name}", WRITE)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise MmsegError(path, "is no torch.nn.Module", "derive it from nn.Module")
    return found


def own_code(path: str) -> dict[str, str]:
    """SHA-256 of the class's file and of all files of its own package that it imports, directly or not, by module.

    They are found in the text, not in what happens to be imported: another block of the package is not its code, and
    what a constructor imports later is.

    Raises:
        MmsegError: as :func:`build_own_block`.
    """
    own_class(path)
    found: dict[str, str] = {}
    waiting = _with_packages(path.partition(":")[0])
    while waiting:
        name = waiting.pop()
        file = None if name in found else _file(name)
        if file is not None:
            found[name] = sha256(file)
            waiting += [other for other in _imports(name, file) if other.partition(".")[0] == name.partition(".")[0]]
    return dict(sorted(found.items()))


def _file(module: str) -> Path | None:
    """The file of a module; None where there is no such module, or it has no file, as a plain folder has."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # its parent is a module and no package
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin is not None else None


def _imports(module: str, file: Path) -> Iterator[str]:
    """All that may be a module of what a file imports, anywhere in it, and the packages that these lie in."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes()) if file.suffix == ".py" else ast.Module([], [])):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        yield from (each for name in names for each in _with_packages(name))


def _with_packages(module: str) -> list[str]:
    """A module and the packages that it lies in, which are imported before it."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
