"""The names a user may give to the parts of a network, importable without torch.

Commands that build no network still check names, so these tables hold nothing but text. The classes behind
:data:`BLOCK_NAMES` are in :data:`mmseg_cli.models.blocks.BLOCKS`; a test keeps the two equal.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

from mmseg_cli.errors import MmsegError

BLOCK_NAMES: tuple[str, ...] = (
    "residual",
    "mbconv",
    "mmbconv",
    "mmbconv-expand",
    "mmbconv-project",
    "mmbconv-grouped",
    "mmbconv-separable",
    "mbconv-k7",
    "fused-mbconv",
)
LARGEST_SEED = 2**32 - 1  # what every library takes
LAYOUT_NAMES: tuple[str, ...] = ("uniform", "pyramid")
NORM_NAMES: tuple[str, ...] = ("batch", "group")
ACTIVATION_NAMES: tuple[str, ...] = ("relu", "silu", "hardswish", "gelu")
LADDER: tuple[str, ...] = ("pretrain_imagenet", "pretrain_mapillary", "train")  # the stages that train, in order
LOSS_NAMES: tuple[str, ...] = ("cross_entropy", "ohem", "dice", "lovasz", "rmi")
# Faults of a dataset that leave a usable store, so that a person who knows better may turn them into warnings.
Allowable = Literal["damaged-jpeg", "duplicate-case", "duplicate-content", "outside-link", "shared-content"]


def unknown_name(where: str, name: str, known: Iterable[str]) -> MmsegError:
    """Make the error for a name that is not in a table; the caller raises it.

    Args:
        where: what is being named, such as ``block``.
        name: the unknown name.
        known: every name that would be right.

    Returns:
        An error that lists the known names and, where one is near, suggests it.
    """
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    todo = f"use one of {', '.join(known)}"
    if nearest:
        todo += f" (did you mean {nearest[0]}?)"
    return MmsegError(where, f"unknown name {name!r}", todo)
