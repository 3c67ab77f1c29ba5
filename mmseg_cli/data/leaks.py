"""Images that lie twice in a dataset, and images of two splits that are one scene: what a model must not be judged on.

Equal bytes are found by their hash, altered copies by a perceptual hash, and frames of one video by their names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmseg_cli.data.faults import Fault

FLAT = -1  # the look of an image without structure, which resembles nothing
# Bits of a look that may differ between two images that look alike. Measured on photographs: 0 to 4 between an image
# and its copy at 0.7 of the size, 8 % brighter and as JPEG of quality 75; 8 and more between different images.
NEAR = 4
MAX_NAMED = 100  # files of a kind of fault that are named one by one
MAX_SEQUENCES = 20  # sequences that are named one by one
MAX_EXAMPLES = 3  # pairs of files that look alike in one warning

_SMALL = 64  # pixels of the shorter side that are enough for a look
_FLAT_SPREAD = 2.0  # grey values; the standard deviation below which an image is flat
_CUTS = (0, 11, 22, 33, 43, 53, 63)  # where the bands of a look begin and end: NEAR + 2 of them
_KEPT = 16  # of the closest pairs, while the others are counted
_CHUNK = 1 << 22  # pairs compared at once

_TODO_COPY = "remove one of them, or allow it with --allow"
_TODO_LEAK = "leak risk: let no split that judges a model share scenes with the one that trains it"


@dataclass(frozen=True, slots=True)
class Print:
    """What is kept of an image to compare it with all others.

    Attributes:
        split: where it is used.
        name: of the item.
        where: its file, as a message calls it.
        sha256: of the image file's bytes, as 32 bytes.
        look: its perceptual hash, see `look`.
        sequence: the video that it is a frame of, or None.
        frame: its number in the video, or None.
    """

    split: str
    name: str
    where: str
    sha256: bytes
    look: int
    sequence: str | None = None
    frame: int | None = None


def look(image: Image.Image) -> int:
    """The perceptual hash of a decoded image: 63 bits, few of which differ between an image and an altered copy.

    It is imagehash's pHash (Zauner 2010): signs of the lowest frequencies of the discrete cosine transform, without
    the first, which is the mean and says nothing. Colour, size and compression hardly change it. An image of smooth
    gradients alone, which no photograph is, is not known again.

    Returns:
        0 to 2^63 - 1, or FLAT.
    """
    import imagehash  # late: it loads scipy, which only this function needs

    factor = min(image.size) // _SMALL
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    small = (image.reduce(factor) if factor > 1 else image).convert("L")
    if float(np.asarray(small, dtype=np.float32).std()) < _FLAT_SPREAD:
        return FLAT
    bits = np.packbits(imagehash.phash(small).hash)
    return int.from_bytes(bits.tobytes()) & ((1 << 63) - 1)


def find(prints: Sequence[Print], *, task: Literal["segmentation", "classification"] | str) -> list[Fault]:
    """Compare all images with each other.

    Args:
        prints: of all images, split by split, `train` first.
        task: in a classification, equal images are warnings, since ImageNet itself has some.

    Returns:
        `duplicate-content` and `shared-content` (errors, or warnings in a classification) by file, and `near-split`
        (warnings) by pair of splits and by video. Time grows about as the number of images; memory stays below about
        100 bytes an image beside the prints.
    """
    severity: Literal["error", "warning"] = "warning" if task == "classification" else "error"
    members: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(prints):
        members[one.split].append(index)
    faults, shared = _equal(prints, severity=severity)
    for first, second in combinations(members, 2):
        faults += _look_alikes(prints, members[first], members[second], shared)
    return faults + _videos(prints)


# ------------------------------------------------------------------------------------------------------ equal content


def _equal(prints: Sequence[Print], *, severity: Literal["error", "warning"]) -> tuple[list[Fault], set[int]]:
    """The faults of images with equal bytes, and the indices of those that lie in two splits."""
    keys = np.frombuffer(b"".join(one.sha256[:8] for one in prints), dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index in sorted({int(order[place + step]) for place in again for step in (0, 1)}):
        groups[prints[index].sha256].append(index)
    duplicate: list[tuple[int, int]] = []
    across: list[tuple[int, int]] = []
    shared: set[int] = set()
    for group in groups.values():
        firsts: dict[str, int] = {}
        for index in group:
            first = firsts.setdefault(prints[index].split, index)
            if first != index:
                duplicate.append((first, index))
        origin, *others = firsts.values()
        across += [(origin, other) for other in others]
        if others:
            shared.update(group)
    faults = [
        *_named(prints, duplicate, kind="duplicate-content", severity=severity),
        *_named(prints, across, kind="shared-content", severity=severity),
    ]
    return faults, shared


def _named(
    prints: Sequence[Print], pairs: list[tuple[int, int]], *, kind: str, severity: Literal["error", "warning"]
) -> Iterator[Fault]:
    """A fault for each pair of equal images, as far as they are named, and one with the number of the others."""
    todo = f"{_TODO_COPY} {kind}" if severity == "error" else "remove one of them"
    pairs = sorted(pairs, key=lambda pair: pair[1])
    for first, second in pairs[:MAX_NAMED]:
        one, other = prints[first], prints[second]
        what = f"is the same image as {one.where}"
        if kind == "shared-content":
            what = f"is in {other.split}, and the same image is in {one.split} as {one.where}"
        yield Fault(kind, other.where, what, todo, severity)
    if len(pairs) > MAX_NAMED:
        other = prints[pairs[MAX_NAMED][1]]
        yield Fault(kind, other.where, f"is one of {len(pairs) - MAX_NAMED} more of this kind", todo, severity)


# -------------------------------------------------------------------------------------------------------- look-alikes


def _look_alikes(prints: Sequence[Print], first: list[int], second: list[int], shared: set[int]) -> list[Fault]:
    """At most one warning: how many images of the second split look like one of the first, and which are closest."""
    ours, our_looks, _ = _looks(prints, first, shared)
    theirs, their_looks, their_counts = _looks(prints, second, shared)
    near = np.zeros(their_looks.size, dtype=bool)
    best: list[tuple[int, int, int]] = []  # distance, index of the second's image, index of the first's
    for a, b, distance in near_pairs(our_looks, their_looks):
        near[b] = True
        closest = np.lexsort((a, b, distance))[:_KEPT]
        best += zip(distance[closest].tolist(), theirs[b[closest]].tolist(), ours[a[closest]].tolist(), strict=True)
        best = sorted(set(best))[:_KEPT]
    if not best:
        return []
    examples = {other: (bits, other, one) for bits, other, one in reversed(best)}  # the closest of each
    (bits, other, one), *more = sorted(examples.values())[:MAX_EXAMPLES]
    listed = "".join(f"; so does {prints[b].where} like {prints[a].where}" for _, b, a in more)
    what = (
        f"looks like {prints[one].where} ({bits} of 63 bits differ){listed}: {int(their_counts[near].sum())} of"
        f" {len(second)} images of {prints[other].split} look like one of {prints[one].split}"
    )
    return [Fault("near-split", prints[other].where, what, _TODO_LEAK, "warning")]


def _looks(
    prints: Sequence[Print], members: list[int], left_out: set[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The distinct looks of some images: the first image that has each, the looks, and how many images have it."""
    indices = np.array([index for index in members if index not in left_out], dtype=np.int64)
    looks = np.fromiter((prints[index].look for index in indices), dtype=np.int64, count=indices.size)
    indices, looks = indices[looks != FLAT], looks[looks != FLAT]
    distinct, firsts, counts = np.unique(looks, return_index=True, return_counts=True)
    return indices[firsts], distinct, counts


def near_pairs(
    first: NDArray[np.int64], second: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    """All pairs of looks that differ in at most NEAR bits, chunk by chunk; a pair may come more than once.

    NEAR bits lie in at most as many bands, so two bands at least are equal in such a pair. For each two bands the looks
    are sorted by those bits, and only looks that agree in them are compared (Manku et al. 2007).

    Yields:
        Indices into `first`, indices into `second`, and how many bits differ.
    """
    bands = [((1 << (end - start)) - 1) << start for start, end in pairwise(_CUTS)]
    for band, other_band in combinations(bands, 2):
        mask = np.int64(band | other_band)
        order = np.argsort(first & mask, kind="stable")
        keys = (first & mask)[order]
        low = np.searchsorted(keys, second & mask, side="left")
        high = np.searchsorted(keys, second & mask, side="right")
        for a, b in _joined(low, high):
            distance = np.bitwise_count(first[order[a]] ^ second[b])
            near = distance <= NEAR
            if near.any():
                yield order[a[near]], b[near], distance[near]


def _joined(low: NDArray[Any], high: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The pairs (a, b) with low[b] <= a < high[b], at most about _CHUNK at once."""
    wanted = np.flatnonzero(high > low)
    ends = np.cumsum(high[wanted] - low[wanted])
    begin, done = 0, 0
    while begin < wanted.size:
        end = max(int(np.searchsorted(ends, done + _CHUNK, side="right")), begin + 1)
        chosen = wanted[begin:end]
        counts = high[chosen] - low[chosen]
        b = np.repeat(chosen, counts)
        a = np.arange(b.size) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low[chosen], counts)
        yield a, b
        begin, done = end, int(ends[end - 1])


# ------------------------------------------------------------------------------------------------------------- videos


def _videos(prints: Sequence[Print]) -> list[Fault]:
    """A warning for each video that has frames in two splits, with its nearest frames."""
    videos: dict[str, dict[str, list[Print]]] = defaultdict(lambda: defaultdict(list))
    for one in prints:
        if one.sequence is not None:
            videos[one.sequence][one.split].append(one)
    found = [
        (name, by_split[first], by_split[second])
        for name, by_split in sorted(videos.items())
        for first, second in combinations(by_split, 2)
    ]
    faults = [_video(name, first, second) for name, first, second in found[:MAX_SEQUENCES]]
    if len(found) > MAX_SEQUENCES:
        where = found[MAX_SEQUENCES][2][0].where
        more = f"is a frame of one of {len(found) - MAX_SEQUENCES} more sequences that are in two splits"
        faults.append(Fault("near-split", where, more, _TODO_LEAK, "warning"))
    return faults


def _video(name: str, first: list[Print], second: list[Print]) -> Fault:
    one, other, apart = _nearest(first, second)
    frames = "frame" if apart == 1 else "frames"
    distance = (
        f"is {apart} {frames} from {one.where}" if apart is not None else f"is from the same video as {one.where}"
    )
    what = f"{distance}: the sequence {name} has {len(first)} images in {one.split} and {len(second)} in {other.split}"
    return Fault("near-split", other.where, what, _TODO_LEAK, "warning")


def _nearest(first: list[Print], second: list[Print]) -> tuple[Print, Print, int | None]:
    """The two frames, one of each side, with the smallest distance; None where they are not numbered."""
    ours, theirs = ([one for one in side if one.frame is not None] for side in (first, second))
    if not ours or not theirs:
        return first[0], second[0], None
    ours = sorted(ours, key=lambda one: (one.frame or 0, one.name))
    numbers = np.array([one.frame for one in ours])
    wanted = np.array([one.frame for one in theirs])
    right = np.searchsorted(numbers, wanted).clip(max=numbers.size - 1)
    left = (right - 1).clip(min=0)
    nearest = np.where(np.abs(numbers[left] - wanted) <= np.abs(numbers[right] - wanted), left, right)
    best = int(np.argmin(np.abs(numbers[nearest] - wanted)))
    one, other = ours[int(nearest[best])], theirs[best]
    return one, other, abs((one.frame or 0) - (other.frame or 0))
