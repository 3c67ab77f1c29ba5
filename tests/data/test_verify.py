"""Checks on single files: what is whole passes, and what is not is named with its reason."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trees
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmseg_cli.data import verify
from mmseg_cli.data.faults import Fault
from mmseg_cli.data.labels import IGNORE, camvid_11, lookup_table
from mmseg_cli.data.tree import File


@dataclass(frozen=True)
class Labels:
    table: np.ndarray | None = None
    label_modes: tuple[str, ...] = ("L",)
    colours: dict[int, int] | None = None


IDS = Labels(camvid_11()[1])
PALETTE = Labels(lookup_table({0: 1, 1: 0, 2: IGNORE}), ("P", "L"))
COLOURS = Labels(None, ("RGB", "RGBA", "P"), {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2, 0x000000: IGNORE})
FILE = File("labels/a.png", "/data/labels/a.png", 1, 0)
RNG = np.random.default_rng(7)
PHOTO_HWC = trees.photo(RNG, 24, 40)
IDS_HW = trees.regions(RNG, 24, 40, (0, 3, 8, 11))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = saved(Image.fromarray(PHOTO_HWC))
JPEG = saved(Image.fromarray(PHOTO_HWC), "JPEG", quality=95)
LABEL = saved(Image.fromarray(IDS_HW))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def chunks(content: bytes) -> list[tuple[bytes, int, int]]:
    """(kind, first byte, byte behind the last) of every chunk of a right PNG."""
    found, position = [], 8
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4])
        found.append((content[position + 4 : position + 8], position, end))
        position = end
    return found


def fault_of(found: object) -> Fault:
    if isinstance(found, list):
        (found,) = found
    assert isinstance(found, Fault), found
    assert found.where == FILE.where
    assert "\n" not in found.line()
    assert found.severity == "error"
    return found


def image_fault(content: bytes) -> Fault:
    return fault_of(verify.check_image(FILE, content))


def label_fault(content: bytes, labels: Labels = IDS) -> Fault:
    return fault_of(verify.check_label(FILE, content, labels))


# ------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_a_png_of_eight_bits_passes_with_its_pixels(mode):
    image = Image.fromarray(PHOTO_HWC).convert(mode)
    found = verify.check_image(FILE, saved(image))
    assert isinstance(found, Image.Image)
    np.testing.assert_array_equal(np.asarray(found.convert("RGB")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_passes_with_its_pixels(mode, progressive):
    content = saved(Image.fromarray(PHOTO_HWC).convert(mode), "JPEG", progressive=progressive, restart_marker_rows=1)
    found = verify.check_image(FILE, content)
    assert isinstance(found, Image.Image)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_other_formats_pass(kind):
    assert isinstance(verify.check_image(FILE, saved(Image.fromarray(PHOTO_HWC), kind)), Image.Image)


def test_the_content_decides_and_not_the_suffix():
    jpeg = File("a.JPEG", "/data/a.JPEG", 1, 0)
    found = verify.check_image(jpeg, PNG)
    assert isinstance(found, Image.Image)
    assert found.format == "PNG"


def test_a_camera_may_write_behind_the_end_and_a_thumbnail_into_the_head():
    """A thumbnail is a whole JPEG inside; the end of the picture must be looked for behind it."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    head = saved(Image.fromarray(PHOTO_HWC), "JPEG", exif=exif)
    thumbnail = b"\xff\xe5" + struct.pack(">H", len(JPEG) + 2) + JPEG
    content = head[:2] + thumbnail + head[2:]
    assert isinstance(verify.check_image(FILE, content + b"\0\0more\xff\xd9"), Image.Image)
    assert "without an end marker" in image_fault(content[:-2]).what
    assert isinstance(verify.check_image(FILE, PNG + b"more"), Image.Image)


def test_pixels_are_taken_as_they_lie_in_the_file():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    found = verify.check_image(FILE, saved(Image.fromarray(PHOTO_HWC), "JPEG", exif=exif))
    assert isinstance(found, Image.Image)
    assert found.size == (40, 24)


def test_a_palette_with_transparency_is_converted_without_a_word():
    image = Image.fromarray(PHOTO_HWC).convert("P")
    content = saved(image, transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = verify.check_image(FILE, content)
        assert isinstance(found, Image.Image)
        np.testing.assert_array_equal(np.asarray(found.convert("RGB")), np.asarray(image.convert("RGB")))


def test_empty_files():
    assert image_fault(b"").kind == label_fault(b"").kind == "empty-file"


@pytest.mark.parametrize("content", [b"\0", b"\0" * 5000, b"version https://git-lfs.github.com/spec/v1\n", b"%!PS"])
def test_what_is_no_image(content):
    assert image_fault(content).kind == "damaged"
    assert "not an image" in image_fault(content).what


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Image.fromarray(PHOTO_HWC).convert("1"), "1-bit"),
        (Image.fromarray(PHOTO_HWC[..., 0].astype(np.uint16) * 200), "16-bit"),
    ],
)
def test_other_depths_are_named(image, name):
    fault = image_fault(saved(image))
    assert fault.kind == "wrong-mode"
    assert name in fault.what


def test_floats_and_integers_of_a_tiff_are_named():
    assert "32-bit float" in image_fault(saved(Image.fromarray(PHOTO_HWC[..., 0].astype(np.float32)), "TIFF")).what
    assert "32-bit integer" in image_fault(saved(Image.fromarray(PHOTO_HWC[..., 0].astype(np.int32)), "TIFF")).what


def test_sixteen_bits_of_a_colour_png_are_named():
    """Pillow opens such a file as 8 bits and drops the rest without a word."""
    rows = b"".join(b"\0" + RNG.bytes(6 * 4) for _ in range(3))
    header = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    content = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(content)).mode == "RGB"
    assert image_fault(content).kind == "wrong-mode"
    assert "16-bit" in image_fault(content).what


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("position", range(0, len(PNG), 37))
def test_a_flipped_bit_of_a_png_is_found(position):
    content = bytearray(PNG)
    content[position] ^= 1 << (position % 8)
    assert image_fault(bytes(content)).kind == "damaged"


def test_a_damaged_chunk_is_named_with_its_place():
    content = saved(Image.fromarray(trees.photo(RNG, 200, 300)))
    for kind, begin, end in chunks(content):
        damaged = bytearray(content)
        damaged[end - 5] ^= 4
        expected = "a wrong checksum" if kind != b"IEND" else "no chunk"  # IEND has no content: its name is damaged
        assert expected in image_fault(bytes(damaged)).what
        assert f"at byte {begin}" in image_fault(bytes(damaged)).what


def test_damage_in_a_chunk_that_is_not_decoded_is_found_too():
    text = chunk(b"tEXt", b"Comment\0hello")
    content = PNG[:-12] + text + PNG[-12:]
    assert isinstance(verify.check_image(FILE, content), Image.Image)
    assert "the chunk tEXt" in image_fault(content.replace(b"hello", b"hallo")).what


@pytest.mark.parametrize("length", range(1, len(PNG), 23))
def test_a_png_cut_anywhere_is_found(length):
    assert image_fault(PNG[:length]).kind == "damaged"
    if length >= 8:
        assert "cut short" in image_fault(PNG[:length]).what


@pytest.mark.parametrize("length", [*range(1, len(JPEG), 23), len(JPEG) - 2, len(JPEG) - 1])
def test_a_jpeg_cut_anywhere_is_found(length):
    assert image_fault(JPEG[:length]).kind == "damaged"


def test_a_jpeg_whose_end_became_zeros_is_found():
    """What a disk that was full leaves behind."""
    assert "without an end marker" in image_fault(JPEG[:-400] + bytes(400)).what


def test_a_png_with_too_few_rows_is_found():
    """Every chunk is right, but the compressed rows end early."""
    rows = b"".join(b"\0" + bytes(40) for _ in range(10))
    header = struct.pack(">IIBBBBB", 40, 24, 8, 0, 0, 0, 0)
    content = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert label_fault(content).kind == "damaged"
    assert "fewer rows" in label_fault(content).what


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("size", [(40, 24), (3, 1), (700, 500)])
def test_a_picture_that_ends_in_black_is_whole(mode, size):
    assert isinstance(verify.check_image(FILE, saved(Image.new(mode, size))), Image.Image)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_bits_that_ends_in_class_zero_is_whole(bits):
    image = Image.fromarray(np.zeros((24, 41), np.uint8))
    image.putpalette([0, 0, 0, 1, 1, 1])
    assert isinstance(verify.check_label(FILE, saved(image, bits=bits), PALETTE), np.ndarray)


def test_bombs_are_refused_by_their_header():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    png = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    jpeg = bytearray(JPEG)
    start = JPEG.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 60000, 60000)
    bmp = bytearray(saved(Image.fromarray(PHOTO_HWC), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "claims 60000x60000 pixels" in image_fault(png).what
        assert "claims 60000x60000 pixels" in image_fault(bytes(jpeg)).what
    assert image_fault(bytes(bmp)).kind == "damaged"


# ------------------------------------------------------------------------------------------------------------- labels


def test_ids_are_mapped_by_the_table():
    label_HW = verify.check_label(FILE, LABEL, IDS)
    assert label_HW.dtype == np.uint8
    np.testing.assert_array_equal(label_HW, np.where(IDS_HW == 11, IGNORE, IDS_HW))


@pytest.mark.parametrize("bits", [2, 8])
def test_a_palette_is_read_by_index_where_the_dataset_has_one(bits):
    image = Image.fromarray(IDS_HW % 3)
    image.putpalette([9, 9, 9, 9, 9, 9, 1, 2, 3])  # two classes of one colour
    found = verify.check_label(FILE, saved(image, bits=bits), PALETTE)
    np.testing.assert_array_equal(found, np.array([1, 0, IGNORE])[IDS_HW % 3])


def test_a_palette_where_ids_are_expected():
    image = Image.fromarray(IDS_HW)
    image.putpalette(list(range(36)))
    fault = label_fault(saved(image))
    assert fault.kind == "wrong-mode"
    assert "palette (mode P), 8-bit grey (mode L) is expected" in fault.what


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
def test_another_mode_where_ids_are_expected(mode):
    fault = label_fault(saved(Image.fromarray(PHOTO_HWC).convert(mode)))
    assert fault.kind == "wrong-mode"
    assert "8-bit grey (mode L) is expected" in fault.what
    assert ("masks: colour" in fault.todo) == (mode in ("RGB", "RGBA"))


def test_sixteen_bits_where_ids_are_expected():
    fault = label_fault(saved(Image.fromarray(IDS_HW.astype(np.uint16))))
    assert fault.kind == "wrong-mode"
    assert "16-bit" in fault.what


def test_a_lossy_label_is_refused():
    fault = label_fault(saved(Image.fromarray(IDS_HW * 0), "JPEG"))
    assert (fault.kind, "JPEG" in fault.what) == ("wrong-mode", True)


def test_unknown_ids_are_named_with_their_number():
    ids_HW = IDS_HW.copy()
    ids_HW[5:7, 5:8], ids_HW[9, 9] = 77, 200
    fault = label_fault(saved(Image.fromarray(ids_HW)))
    assert fault.kind == "unknown-label"
    assert "value 77 in 6 pixels, 200 in 1 pixel: " in fault.what


def test_of_many_unknown_ids_the_frequent_ones_are_named():
    ids_HW = np.repeat(np.arange(100, 112, dtype=np.uint8), np.arange(1, 13))[None]
    assert "111 in 12 pixels, 110 in 11 pixels, 109 in 10 pixels, 108 in 9 pixels, 107 in 8 pixels and 7 more" in (
        label_fault(saved(Image.fromarray(ids_HW))).what
    )


def coloured(which_HW: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(colours, dtype=np.uint8)[which_HW]


THREE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("noise", [False, True])
def test_colours_are_mapped(mode, noise):
    which_HW = RNG.integers(0, 4, (24, 40)) if noise else IDS_HW % 4
    mask = Image.fromarray(coloured(which_HW, THREE))
    mask = mask.quantize(4) if mode == "P" else mask.convert(mode)
    assert mask.mode == mode
    found = verify.check_label(FILE, saved(mask), COLOURS)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.array([0, 1, 2, IGNORE])[which_HW])


def test_unknown_colours_are_named_with_their_number():
    mask_HWC = coloured(IDS_HW % 4, THREE)
    mask_HWC[3, 4:9], mask_HWC[20, 1] = (10, 11, 12), (255, 0, 1)
    fault = label_fault(saved(Image.fromarray(mask_HWC)), COLOURS)
    assert fault.kind == "unknown-label"
    assert "colour #0a0b0c (10, 11, 12) in 5 pixels, #ff0001 (255, 0, 1) in 1 pixel: " in fault.what


def test_ids_where_colours_are_expected():
    fault = label_fault(LABEL, COLOURS)
    assert fault.kind == "wrong-mode"
    assert "8-bit grey (mode L), RGB or RGB with alpha (mode RGBA) or palette (mode P) is expected" in fault.what


def test_grey_colours_may_be_saved_as_grey():
    labels = Labels(None, ("RGB", "L"), {0x000000: 0, 0xFFFFFF: 1, 0x808080: IGNORE})
    which_HW = IDS_HW % 3
    mask = Image.fromarray(np.array([0, 255, 128], dtype=np.uint8)[which_HW])
    np.testing.assert_array_equal(verify.check_label(FILE, saved(mask), labels), np.array([0, 1, IGNORE])[which_HW])


def test_a_mask_that_is_partly_transparent():
    mask = Image.fromarray(coloured(IDS_HW % 4, THREE)).convert("RGBA")
    mask.putpixel((3, 3), (255, 0, 0, 128))
    fault = label_fault(saved(mask), COLOURS)
    assert (fault.kind, "has 1 pixels that are not opaque" in fault.what) == ("wrong-mode", True)


def test_sizes_are_compared():
    image = File("images/a.png", "/data/images/a.png", 1, 0)
    assert verify.same_size(image, (24, 40), FILE, (24, 40)) is None
    fault = verify.same_size(image, (24, 40), FILE, (40, 24))
    assert (fault.kind, fault.where) == ("size-mismatch", FILE.where)
    assert "is 24x40, its image /data/images/a.png is 40x24" in fault.what


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def real_data() -> Path:
    place = os.environ.get("MMSEG_TEST_DATA")
    if not place or not (Path(place) / "cifar10-subset.tar").is_file():
        pytest.skip("needs real data: set MMSEG_TEST_DATA to a folder that holds cifar10-subset.tar")
    return Path(place)


def test_real_files_are_whole(real_data):
    paths = [*(real_data / "camvid" / "val").iterdir(), *(real_data / "imagenet-jpegs").iterdir()]
    contents = [path.read_bytes() for path in paths]
    with tarfile.open(real_data / "cifar10-subset.tar") as archive:
        for member in archive.getmembers()[:400]:
            if member.isfile():
                contents.append(archive.extractfile(member).read())
    assert len(contents) > 400
    assert not [found for content in contents if isinstance(found := verify.check_image(FILE, content), Fault)]
    for path in (real_data / "camvid" / "valannot").iterdir():
        assert isinstance(verify.check_label(FILE, path.read_bytes(), IDS), np.ndarray)


# --------------------------------------------------------------------------------------------------------------- fuzz

SEEDS = [
    LABEL,
    PNG,
    JPEG,
    saved(Image.fromarray(coloured(IDS_HW % 4, THREE)).quantize(4)),
    saved(Image.fromarray(IDS_HW), "TIFF", compression="tiff_lzw"),
    saved(Image.fromarray(IDS_HW), "GIF"),
    saved(Image.fromarray(PHOTO_HWC), "WEBP"),
    saved(Image.fromarray(IDS_HW), "BMP"),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A label file with bytes changed, cut or put in; often with the checksums of a PNG made right again."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "end"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if kind == "change":
            content[place : place + len(some)] = some
        elif kind == "cut":
            del content[place : place + draw(st.integers(1, 50))]
        elif kind == "insert":
            content[place:place] = some
        else:
            del content[place:]
    if draw(st.booleans()):
        position = 8
        while position + 12 <= len(content):
            end = position + 8 + int.from_bytes(content[position : position + 4])
            if end + 4 > len(content):
                break
            content[end : end + 4] = struct.pack(">I", zlib.crc32(content[position + 4 : end]))
            position = end + 4
    return bytes(content)


def nothing_but_faults(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for labels in (IDS, PALETTE, COLOURS):
            found = verify.check_label(FILE, content, labels)
            if isinstance(found, list):
                assert found
                assert all(isinstance(one, Fault) and one.where == FILE.where for one in found)
                assert all("\n" not in one.line() and len(one.line()) < 1000 for one in found)
            else:
                assert (found.dtype, found.ndim) == (np.uint8, 2)
                assert found.size <= verify.MAX_PIXELS
        assert isinstance(verify.check_image(FILE, content), Image.Image | Fault)


@given(mutated() | st.binary(max_size=200))
def test_damaged_label_files_give_nothing_but_faults(content):
    nothing_but_faults(content)


@pytest.mark.slow
@settings(max_examples=5000)
@given(mutated() | st.binary(max_size=200))
def test_many_damaged_label_files_give_nothing_but_faults(content):
    nothing_but_faults(content)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_fewer_bits_is_no_label_but_an_image(bits):
    """Pillow stretches its values over a byte: ids 0, 1, 2, 3 would be read as 0, 85, 170, 255."""
    content = _grey_png(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2**bits, bits)
    fault = label_fault(content)
    assert fault.kind == "wrong-mode"
    assert fault.what.startswith(f"is {bits}-bit grey")
    assert isinstance(verify.check_image(FILE, content), Image.Image)


def _grey_png(values_HW, bits):
    """A grey PNG of 2 or 4 bits, written by hand."""
    rows = b""
    for row in values_HW:
        packed = np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel())
        rows += b"\x00" + packed.tobytes()
    height, width = values_HW.shape
    head = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@pytest.mark.parametrize("how", ["half", "cut out", "zeros"])
def test_a_jpeg_that_is_filled_with_grey_is_damaged(how):
    buffer = io.BytesIO()
    Image.fromarray(textured(96, 128)).save(buffer, "JPEG", quality=90)
    content = buffer.getvalue()
    assert verify.jpeg_damage(content) is None
    third = len(content) // 3
    spoilt = {
        "half": content[: len(content) // 2] + b"\xff\xd9",
        "cut out": content[:third] + content[third + 2000 :],
        "zeros": content[:third] + bytes(2000) + content[third + 2000 :],
    }
    assert (verify.jpeg_damage(spoilt[how]) or "").startswith("is damaged (")


def test_a_few_stray_bytes_in_a_jpeg_do_no_harm():
    buffer = io.BytesIO()
    Image.fromarray(textured(96, 128)).save(buffer, "JPEG", quality=90)
    assert verify.jpeg_damage(buffer.getvalue()[:-2] + b"\x00\x01\x02\xff\xd9") is None


def textured(height, width):
    """A picture with a little noise, as photographs have."""
    return trees.photo(np.random.default_rng(0), height, width)


def test_an_interlaced_png_that_lacks_passes_is_damaged():
    """Its holes would become class 0, and no checksum is wrong."""
    values_HW = np.full((16, 16), 8, np.uint8)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    for count in (7, 6, 3):
        rows = b"".join(
            b"\x00" + row.tobytes()
            for first, column, down, across in passes[:count]
            for row in values_HW[first::down, column::across]
        )
        head = (16).to_bytes(4) + (16).to_bytes(4) + bytes([8, 0, 0, 0, 1])
        content = b"\x89PNG\r\n\x1a\n" + b"".join(
            len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
            for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        )
        label_HW = verify.check_label(FILE, content, IDS)
        if count == 7:
            assert np.asarray(label_HW).shape == (16, 16)
        else:
            assert [fault.kind for fault in label_HW] == ["damaged"]
