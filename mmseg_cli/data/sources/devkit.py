"""The ILSVRC 2012 development kit: which class each validation image has."""

from __future__ import annotations

import io
import math
from typing import Any

from mmseg_cli.data.tree import File, read
from mmseg_cli.errors import MmsegError

NAME = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"  # an id a line, in the order of the images' numbers
META = "data/meta.mat"  # the id and the WordNet id of each class, and of the groups above them
LEAVES = 1000  # ids up to this are classes, those above it are groups of classes
MAX_META_BYTES = 1 << 22  # the kit's has about one megabyte
MAX_SYNSETS = 100_000  # WordNet has about that many nouns; the kit lists 1860
TODO = "copy it from the development kit again"


def validation_classes(ground_truth: File, meta: File) -> list[str]:
    """The WordNet id of each validation image: the first is that of ILSVRC2012_val_00000001.

    The kit's ids are not in the order of the WordNet ids, so the position in a sorted list of classes is not the id.

    Raises:
        MmsegError: a file cannot be read, or does not hold what it should.
    """
    wnids = _wnids(meta)
    classes: list[str] = []
    for number, line in enumerate(read(ground_truth).split(b"\n"), start=1):
        text = line.strip().decode("ascii", "replace")
        if not text:
            continue
        wnid = wnids.get(int(text)) if text.isdecimal() and len(text) <= len(str(LEAVES)) else None
        if wnid is None:
            raise MmsegError(ground_truth.where, f"line {number} is no class of {META}: {text[:40]!r}", TODO)
        classes.append(wnid)
    return classes


def _wnids(meta: File) -> dict[int, str]:
    """The WordNet id of each leaf's id."""
    import scipy.io

    if meta.size > MAX_META_BYTES:
        raise MmsegError(meta.where, f"not the kit's list of classes ({meta.size} bytes)", TODO)
    content = read(meta)
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(io.BytesIO(content))}
        if math.prod(shapes["synsets"]) > MAX_SYNSETS:
            raise ValueError("too many classes")
        synsets: Any = scipy.io.loadmat(
            io.BytesIO(content), squeeze_me=True, struct_as_record=True, variable_names=["synsets"]
        )["synsets"]
        ids, names = synsets["ILSVRC2012_ID"].reshape(-1), synsets["WNID"].reshape(-1)
        wnids = {int(number): str(name) for number, name in zip(ids, names, strict=True) if int(number) <= LEAVES}
    except MemoryError:
        raise
    except Exception as error:  # the reader of Matlab's files raises nearly everything where bytes are damaged
        raise MmsegError(meta.where, f"not the kit's list of classes ({type(error).__name__})", TODO) from error
    if not wnids:
        raise MmsegError(meta.where, "lists no classes", TODO)
    return wnids
