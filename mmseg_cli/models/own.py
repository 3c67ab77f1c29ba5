"""A block of the user's own, in a file outside the package: `variants.mine: {class: blocks.mine:Mine}`.

The class is called as ``Class(in_channels, out_channels, **settings)``; of the settings ``expansion``, ``se_ratio``,
``norm`` and ``activation`` it gets those that its constructor names. It maps ``x_BCHW`` to ``(B, out_channels, H, W)``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
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
    """SHA-256 of the class's file and of what it has imported of its own package, by module.

    Raises:
        MmsegError: as :func:`build_own_block`.
    """
    own_class(path)
    package = path.partition(":")[0].partition(".")[0]
    modules = {name: module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == package}
    files = {name: getattr(module, "__file__", None) for name, module in modules.items()}
    return {name: sha256(Path(file)) for name, file in files.items() if file is not None}


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
