"""Images that lie twice, altered copies and frames of one video in two splits."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from mmseg_cli.data import leaks
from mmseg_cli.data.leaks import Print


def textured(seed: int) -> np.ndarray:
    """An image_HWC with patches of every size, as photographs have; `trees.photo` is too smooth to be known again."""
    rng = np.random.default_rng(seed)
    total_HWC = np.zeros((120, 200, 3))
    for cells in (3, 5, 9, 17):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total_HWC += np.asarray(grid.resize((200, 120), Image.Resampling.BICUBIC), dtype=float) * 3 / cells
    return (total_HWC / total_HWC.max() * 235).astype(np.uint8)


PICTURES = [textured(seed) for seed in range(40)]
LOOKS = [leaks.look(Image.fromarray(picture)) for picture in PICTURES]


def printed(split: str, name: str, *, content: bytes | None = None, look: int | None = None, **video: object) -> Print:
    """The print of an image that resembles no other, except where it is told."""
    key = (content or f"{split}/{name}".encode()) + b"!"
    digest = hashlib.sha256(key).digest()
    mine = int.from_bytes(digest[:8]) >> 1
    return Print(split, name, f"/data/{split}/{name}.png", digest, mine if look is None else look, **video)


def found(prints: list[Print], *, task: str = "segmentation") -> list[tuple[str, str, str]]:
    return [(fault.kind, fault.where, fault.severity) for fault in leaks.find(prints, task=task)]


def texts(prints: list[Print]) -> list[str]:
    return [fault.line() for fault in leaks.find(prints, task="segmentation")]


# --------------------------------------------------------------------------------------------------------------- look


def bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(buffer)


ALTERATIONS = {
    "encoded again": as_jpeg,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 5 // 4, image.height * 5 // 4), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.08),
    "grey": lambda image: image.convert("L"),
    "with alpha": lambda image: image.convert("RGBA"),
}


@pytest.mark.parametrize("alter", ALTERATIONS.values(), ids=ALTERATIONS)
def test_an_altered_copy_looks_like_its_original_and_not_like_others(alter):
    for position, picture in enumerate(PICTURES[:12]):
        altered = leaks.look(alter(Image.fromarray(picture)))
        assert bits(altered, LOOKS[position]) <= leaks.NEAR
        assert all(bits(altered, other) > leaks.NEAR for other in LOOKS[:position] + LOOKS[position + 1 :])


def test_the_smooth_pictures_of_the_tests_do_not_look_alike():
    for size in [(32, 64), (36, 48), (40, 60)]:
        rng = np.random.default_rng(0)
        looks = np.array([leaks.look(Image.fromarray(trees.photo(rng, *size))) for _ in range(150)])
        apart = np.bitwise_count(looks[:, None] ^ looks[None])[np.triu_indices(150, 1)]
        assert apart.min() > leaks.NEAR


def test_a_look_is_a_number_of_63_bits():
    assert all(0 <= one < 2**63 for one in LOOKS)
    assert len(set(LOOKS)) == len(LOOKS)


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (64, 64), (200, 130)])
def test_an_image_without_structure_resembles_nothing(size):
    assert leaks.look(Image.new("RGB", size, (20, 90, 30))) == leaks.FLAT
    assert found([printed("train", "a", look=leaks.FLAT), printed("val", "b", look=leaks.FLAT)]) == []


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_and_any_shape_has_a_look(mode):
    for size in [(9, 700), (700, 9), (33, 65)]:
        noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        assert leaks.look(Image.fromarray(noise).convert(mode)) >= 0


# ------------------------------------------------------------------------------------------------------ equal content


def test_images_that_differ_give_nothing():
    assert found([]) == []
    assert found([printed("train", "a")]) == []
    assert found([printed(split, str(number)) for split in ("train", "val") for number in range(200)]) == []


def test_one_image_twice_in_a_split():
    prints = [printed("train", "a", content=b"x"), printed("train", "b"), printed("train", "c", content=b"x")]
    assert found(prints) == [("duplicate-content", "/data/train/c.png", "error")]
    assert "is the same image as /data/train/a.png" in texts(prints)[0]
    assert found(prints, task="classification") == [("duplicate-content", "/data/train/c.png", "warning")]


def test_one_image_in_two_splits():
    """It is named as shared, and not as a look-alike as well."""
    prints = [printed("train", "a", content=b"x"), printed("train", "b"), printed("val", "c", content=b"x")]
    assert found(prints) == [("shared-content", "/data/val/c.png", "error")]
    assert "is in val, and the same image is in train as /data/train/a.png" in texts(prints)[0]
    assert found(prints, task="classification") == [("shared-content", "/data/val/c.png", "warning")]


def test_one_image_many_times_in_three_splits():
    names = [("train", "a"), ("train", "b"), ("val", "c"), ("val", "d"), ("test", "e")]
    assert found([printed(split, name, content=b"x") for split, name in names]) == [
        ("duplicate-content", "/data/train/b.png", "error"),
        ("duplicate-content", "/data/val/d.png", "error"),
        ("shared-content", "/data/val/c.png", "error"),
        ("shared-content", "/data/test/e.png", "error"),
    ]


def test_a_hundred_equal_images_are_named_and_the_rest_is_counted():
    prints = [printed("train", f"{number:03d}", content=b"x") for number in range(140)]
    faults = leaks.find(prints, task="segmentation")
    assert [fault.where for fault in faults[:-1]] == [f"/data/train/{number:03d}.png" for number in range(1, 101)]
    assert "one of 39 more" in faults[-1].what
    assert {fault.kind for fault in faults} == {"duplicate-content"}


def test_hashes_that_begin_alike_are_told_apart():
    one, other = bytes(32), bytes(31) + b"\1"
    assert found([Print("train", "a", "/a", one, 5), Print("train", "b", "/b", other, 5)]) == []


# -------------------------------------------------------------------------------------------------------- look-alikes


def flipped(look: int, *places: int) -> int:
    for place in places:
        look ^= 1 << place
    return look


def test_look_alikes_are_one_warning_with_the_closest():
    look = LOOKS[0]
    prints = [
        printed("train", "a", look=look),
        printed("train", "other"),
        printed("val", "far", look=flipped(look, 0, 12, 30, 50)),
        printed("val", "close", look=flipped(look, 62)),
        printed("val", "none", look=flipped(look, 0, 12, 30, 50, 60)),
        printed("val", "more"),
    ]
    (fault,) = leaks.find(prints, task="segmentation")
    assert (fault.kind, fault.severity, fault.where) == ("near-split", "warning", "/data/val/close.png")
    assert "looks like /data/train/a.png (1 of 63 bits differ)" in fault.what
    assert "2 of 4 images of val look like one of train" in fault.what
    assert "/data/val/far.png" in fault.what
    assert "leak risk" in fault.todo


def test_a_thousand_look_alikes_are_one_warning_with_three_examples():
    prints = [printed("train", f"t{number}", look=LOOKS[0]) for number in range(30)]
    prints += [printed("val", f"v{n}", look=flipped(LOOKS[0], n % 60)) for n in range(1000)]
    (fault,) = leaks.find(prints, task="segmentation")
    assert "1000 of 1000 images of val look like one of train" in fault.what
    assert fault.what.count("/data/val/") == 2  # and `where` is the third
    assert len(fault.line()) < 500


def test_look_alikes_of_one_split_are_left_alone():
    assert found([printed("train", f"{number}", look=LOOKS[0]) for number in range(5)]) == []


def test_each_pair_of_splits_has_its_own_warning():
    prints = [printed(split, "a", look=LOOKS[3]) for split in ("train", "val", "test")]
    assert [where for _, where, _ in found(prints)] == ["/data/val/a.png", "/data/test/a.png", "/data/test/a.png"]


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 62), max_size=6)), min_size=1, max_size=12),
)
def test_the_index_finds_what_comparing_all_with_all_finds(ours, changes):
    theirs = [flipped(ours[which % len(ours)], *places) for which, places in changes]
    first, second = np.unique(ours), np.unique(theirs)
    indexed = {
        (int(a), int(b), int(distance))
        for chunk in leaks.near_pairs(first, second)
        for a, b, distance in zip(*chunk, strict=True)
    }
    assert indexed == {
        (a, b, bits(int(one), int(other)))
        for a, one in enumerate(first)
        for b, other in enumerate(second)
        if bits(int(one), int(other)) <= leaks.NEAR
    }


def test_many_images_are_not_compared_one_with_one(monkeypatch):
    """200,000 looks against 20,000: of four billion pairs less than a thousandth is looked at."""
    compared = 0
    joined = leaks._joined

    def counted(low, high):
        nonlocal compared
        for a, b in joined(low, high):
            compared += a.size
            assert a.size <= 2 * leaks._CHUNK
            yield a, b

    monkeypatch.setattr(leaks, "_joined", counted)
    rng = np.random.default_rng(0)
    first = np.unique(rng.integers(0, 2**63, 200_000))
    second = np.unique(np.append(rng.integers(0, 2**63, 20_000), first[777] ^ 0b1011))
    pairs = {
        (int(a), int(b)) for one, other, _ in leaks.near_pairs(first, second) for a, b in zip(one, other, strict=True)
    }
    assert pairs == {(777, int(np.flatnonzero(second == first[777] ^ 0b1011)[0]))}
    assert compared < first.size * second.size / 1000


def test_many_equal_looks_are_compared_once(monkeypatch):
    """A thousand black frames with a little noise in each split must not be a million pairs."""
    monkeypatch.setattr(leaks, "_CHUNK", 64)
    prints = [printed(split, str(number), look=LOOKS[1]) for split in ("train", "val") for number in range(20_000)]
    (fault,) = leaks.find(prints, task="segmentation")
    assert "20000 of 20000 images" in fault.what


# ------------------------------------------------------------------------------------------------------------- videos


def frame(split: str, sequence: str, number: int | None) -> Print:
    return printed(split, f"{sequence}_{number}", sequence=sequence, frame=number)


def test_a_video_in_two_splits_is_named_with_its_nearest_frames():
    prints = [frame("train", "drive", number) for number in (100, 200, 300)]
    prints += [frame("val", "drive", number) for number in (900, 321, 500)] + [frame("val", "walk", 1)]
    (fault,) = leaks.find(prints, task="segmentation")
    assert (fault.kind, fault.severity, fault.where) == ("near-split", "warning", "/data/val/drive_321.png")
    assert "is 21 frames from /data/train/drive_300.png" in fault.what
    assert "the sequence drive has 3 images in train and 3 in val" in fault.what


@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=9, unique=True),
    st.lists(st.integers(0, 999), min_size=1, max_size=9, unique=True),
)
def test_the_nearest_frames_are_nearest(ours, theirs):
    prints = [frame("train", "drive", number) for number in ours] + [frame("val", "drive", number) for number in theirs]
    (fault,) = leaks.find(prints, task="segmentation")
    assert f"is {min(abs(a - b) for a in ours for b in theirs)} frame" in fault.what


def test_frames_without_numbers_are_named_too():
    assert "is from the same video as" in texts([frame("train", "drive", None), frame("val", "drive", None)])[0]


def test_videos_of_one_split_each_are_left_alone():
    """The naming of Cityscapes: the cities of the splits differ."""
    prints = [
        frame(split, f"{city}_{number:06d}", 19)
        for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau"))
        for number in range(9)
    ]
    assert found(prints) == []


def test_twenty_videos_are_named_and_the_rest_is_counted():
    prints = [frame(split, f"drive{number:02d}", 1) for split in ("train", "val") for number in range(30)]
    faults = leaks.find(prints, task="segmentation")
    assert len(faults) == 21
    assert "one of 10 more sequences" in faults[-1].what


# ---------------------------------------------------------------------------------------------------------- real data


def of_files(split: str, paths: list[Path], *, video: bool) -> list[Print]:
    prints = []
    for path in paths:
        content = path.read_bytes()
        sequence, _, number = path.stem.rpartition("_")
        place = {"sequence": sequence, "frame": int(number.lstrip("f"))} if video else {}
        look = leaks.look(Image.open(io.BytesIO(content)))
        prints.append(Print(split, path.stem, str(path), hashlib.sha256(content).digest(), look, **place))
    return prints


def test_the_leak_of_camvid_is_reported(camvid_root):
    prints = [
        one
        for split in ("train", "val")
        for one in of_files(split, sorted((camvid_root / split).iterdir()), video=True)
    ]
    (fault,) = leaks.find(prints, task="segmentation")
    assert (fault.kind, fault.severity) == ("near-split", "warning")
    assert fault.where == str(camvid_root / "val" / "0016E5_08159.jpg")
    assert "31 frames from" in fault.what
    assert "the sequence 0016E5 has 204 images in train and 101 in val" in fault.what


@pytest.fixture(scope="module")
def real_data() -> Path:
    place = os.environ.get("MMSEG_TEST_DATA")
    if not place or not (Path(place) / "cifar10-subset.tar").is_file():
        pytest.skip("needs real data: set MMSEG_TEST_DATA to a folder that holds cifar10-subset.tar")
    return Path(place)


def test_real_photographs_do_not_look_alike(real_data):
    prints: list[Print] = []
    with tarfile.open(real_data / "cifar10-subset.tar") as archive:
        for member in archive:
            if member.isfile():
                content = archive.extractfile(member).read()
                look = leaks.look(Image.open(io.BytesIO(content)))
                split = "train" if "train/" in member.name else "val"
                prints.append(Print(split, member.name, member.name, hashlib.sha256(content).digest(), look))
    assert len(prints) == 4800
    layout = real_data / "cityscapes-layout" / "leftImg8bit"
    for split in ("train", "val"):
        prints += of_files(split, sorted((layout / split).rglob("*.png")), video=False)
    assert leaks.find(prints, task="segmentation") == []


def test_altered_copies_of_real_photographs_are_found(real_data, tmp_path):
    paths = sorted((real_data / "imagenet-jpegs").iterdir())
    prints = of_files("train", paths, video=False)
    for path in paths:
        image = Image.open(path).convert("RGB")
        image = image.resize((image.width * 7 // 10, image.height * 7 // 10), Image.Resampling.LANCZOS)
        ImageEnhance.Brightness(image).enhance(1.08).save(tmp_path / f"{path.stem}.jpg", quality=75)
    prints += of_files("val", sorted(tmp_path.iterdir()), video=False)
    (fault,) = leaks.find(prints, task="segmentation")
    assert f"{len(paths)} of {len(paths)} images of val look like one of train" in fault.what
