from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmseg_cli.data.records import jpeg

HEIGHT, WIDTH = 83, 150  # in no multiple of a block

SAVED = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "progressive": {"progressive": True, "subsampling": "4:2:0"},
    "a marker a row": {"subsampling": "4:4:4", "restart_marker_rows": 1},
    "a marker a row, subsampled": {"subsampling": "4:2:0", "restart_marker_rows": 1},
    "a marker in two rows": {"subsampling": "4:2:0", "restart_marker_rows": 2},
    "markers that fit": {"subsampling": "4:2:0", "restart_marker_blocks": 5},
    "a marker a block": {"subsampling": "4:2:2", "restart_marker_blocks": 1},
    "markers that do not fit": {"subsampling": "4:4:4", "restart_marker_blocks": 7},
    "as RGB": {"keep_rgb": True, "restart_marker_rows": 1},
    "comments": {"comment": b"\xff\xd9 \xff\xd0", "exif": b"Exif\0\0" + bytes(range(256)), "restart_marker_rows": 1},
}


def photo(height=HEIGHT, width=WIDTH, channels=3):
    """Smooth shapes with noise: all frequencies, strong colours."""
    rng = np.random.default_rng(height * 1000 + width)
    rows, columns = np.mgrid[:height, :width]
    phases = rng.uniform(0, 6, channels)
    image = 128 + 100 * np.sin(rows[..., None] / 9 + columns[..., None] / 13 + phases)
    image = (image + rng.normal(0, 25, (height, width, channels))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(image if channels > 1 else image[..., 0])


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 88, **options})
    return buffer.getvalue()


def pillows(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    """Each of the two decoders in turn."""
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    elif jpeg.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


def spans(length):
    return st.integers(0, length - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(first + 1, length)))


@pytest.fixture(scope="module")
def files():
    made = {name: saved(photo(), **options) for name, options in SAVED.items()}
    made["grey"] = saved(photo(channels=1))
    made["grey, a marker a row"] = saved(photo(channels=1), restart_marker_rows=1)
    made["CMYK"] = saved(photo().convert("CMYK"))
    made["ours"] = jpeg.encode(photo(HEIGHT, 384), quality=90)
    return {name: (content, pillows(content)) for name, content in made.items()}


NAMES = [*SAVED, "grey", "grey, a marker a row", "CMYK", "ours"]


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_is_pillows(files, decoder, name):
    content, expected_HWC = files[name]
    np.testing.assert_array_equal(jpeg.decode(content), expected_HWC)


@pytest.mark.parametrize("name", NAMES)
def test_every_pair_of_rows_and_of_columns_is_pillows(files, decoder, name):
    content, expected_HWC = files[name]
    height, width = expected_HWC.shape[:2]
    for first in range(0, height, 5):
        for last in range(first + 1, height + 1, 11):
            np.testing.assert_array_equal(jpeg.decode(content, rows=(first, last)), expected_HWC[first:last])
    for first in range(0, width, 7):
        last = min(width, first + 9)
        np.testing.assert_array_equal(jpeg.decode(content, columns=(first, last)), expected_HWC[:, first:last])


@given(rows=spans(HEIGHT), columns=spans(WIDTH), name=st.sampled_from([name for name in NAMES if name != "ours"]))
def test_a_part_is_the_slice_of_the_whole(files, rows, columns, name):
    content, expected_HWC = files[name]
    part_HWC = jpeg.decode(content, rows=rows, columns=columns)
    np.testing.assert_array_equal(part_HWC, expected_HWC[slice(*rows), slice(*columns)])


def check_random_picture(data):
    """One random small picture with random settings, one random part of it."""
    height, width = data.draw(st.integers(1, 70), "height"), data.draw(st.integers(1, 70), "width")
    options = {"subsampling": data.draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]), "subsampling")}
    markers = data.draw(st.sampled_from(["", "restart_marker_rows", "restart_marker_blocks"]), "markers")
    if markers:
        options[markers] = data.draw(st.integers(1, 12), "interval")
    rows, columns = data.draw(spans(height), "rows"), data.draw(spans(width), "columns")
    content = saved(photo(height, width), **options)
    part_HWC = jpeg.decode(content, rows=rows, columns=columns)
    np.testing.assert_array_equal(part_HWC, pillows(content)[slice(*rows), slice(*columns)])


@settings(max_examples=200)
@given(st.data())
def test_a_part_of_any_picture_is_pillows(data):
    check_random_picture(data)


@pytest.mark.slow
@settings(max_examples=5000)
@given(st.data())
def test_a_part_of_many_pictures_is_pillows(data):
    check_random_picture(data)


@pytest.mark.parametrize(
    ("name", "at_most"),
    [("a marker a row", 0.4), ("a marker a row, subsampled", 0.7), ("ours", 0.15), ("markers that fit", 0.6)],
)
def test_markers_leave_out_what_a_crop_does_not_need(files, monkeypatch, name, at_most):
    """Not a matter of time: the share of the picture that reaches the decoder at all."""
    content, expected_HWC = files[name]
    decoded = []
    monkeypatch.setattr(jpeg, "_pixels", lambda part, *, strict: decoded.append(pillows(part)) or decoded[-1])
    jpeg.decode(content, rows=(34, 46), columns=(2, 20))
    assert decoded[0].size <= at_most * expected_HWC.size


def test_rows_below_are_left_out_without_markers(files, monkeypatch):
    decoded = []
    monkeypatch.setattr(jpeg, "_pixels", lambda part, *, strict: decoded.append(pillows(part)) or decoded[-1])
    jpeg.decode(files["4:4:4"][0], rows=(3, 14))
    assert decoded[0].shape == (16, WIDTH, 3)


@pytest.mark.parametrize("width", [8, 64, 128, 127, 384, 1032, 2048])
def test_encoding_keeps_the_picture_and_puts_markers_where_they_fit(width):
    content = jpeg.encode(photo(24, width), quality=95)
    np.testing.assert_array_equal(pillows(content), pillows(saved(photo(24, width), quality=95, subsampling=0)))
    interval = int.from_bytes(content[content.index(b"\xff\xdd") + 4 :][:2], "big")
    across = -(-width // 8)
    assert across % interval == 0
    assert 8 <= interval <= 16 or interval == across


@pytest.mark.parametrize("part", [{}, {"rows": (0, 8)}, {"rows": (70, 80), "columns": (4, 5)}])
@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"no picture", b"\xff\xd8\xff\xd9", b"\xff\xd8" * 400])
def test_no_jpeg_is_an_os_error(decoder, content, part):
    with pytest.raises(OSError):
        jpeg.decode(content, **part)


@pytest.mark.parametrize("name", ["4:2:0", "a marker a row", "grey", "progressive"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_a_file_that_was_cut_short_is_an_os_error(files, decoder, name, share):
    content = files[name][0]
    cut = content[: int(len(content) * share)]
    for part in ({}, {"rows": (75, 83)}, {"rows": (0, 83), "columns": (140, 150)}):
        with pytest.raises(OSError):
            jpeg.decode(cut, **part)


@given(position=st.integers(0, 700), value=st.integers(0, 255))
def test_a_damaged_head_gives_pixels_or_an_os_error(files, position, value):
    content = bytearray(files["a marker a row"][0])
    content[position] = value
    try:
        part_HWC = jpeg.decode(bytes(content), rows=(20, 40), columns=(5, 50))
    except OSError:
        return
    assert part_HWC.ndim == 3
