"""Any image file becomes the right RGB or one line."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from mmseg_cli.errors import MmsegError
from mmseg_cli.prediction.pictures import MAX_PIXELS, read_content, read_picture
from tests.prediction import made

TABLE = made.table()


def test_the_table_has_at_least_thirty_rows():
    assert len({row.file for row in TABLE}) == len(TABLE) >= 30


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.file)
@pytest.mark.filterwarnings("error")
def test_a_difficult_file_is_read_right_or_refused_in_one_line(row):
    if isinstance(row.expected, str):
        with pytest.raises(MmsegError) as caught:
            read_picture(row.content, row.file)
        text = str(caught.value)
        assert text.startswith(f"{row.file}: ")
        assert row.expected in text
        assert "\n" not in text
        return
    image_HWC = read_picture(row.content, row.file)
    assert (image_HWC.dtype, image_HWC.shape) == (np.uint8, row.expected.shape)
    assert np.abs(image_HWC.astype(int) - row.expected).max() <= row.tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_where_it_is_asked_for(orientation):
    """EXIF 2.32: what the first row and the first column of the file show."""
    content = made.turned(orientation)
    stands = {
        1: made.FOUR,
        2: made.FOUR[:, ::-1],
        3: made.FOUR[::-1, ::-1],
        4: made.FOUR[::-1],
        5: made.FOUR.transpose(1, 0, 2),
        6: made.FOUR[::-1].transpose(1, 0, 2),  # its left column becomes the top row, from below
        7: made.FOUR[::-1, ::-1].transpose(1, 0, 2),
        8: made.FOUR[:, ::-1].transpose(1, 0, 2),
    }
    assert np.array_equal(read_picture(content, "x"), stands[orientation])
    assert np.array_equal(read_picture(content, "x", upright=False), made.FOUR)


def test_a_damaged_orientation_leaves_the_picture_as_it_lies():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    content = made.saved(made.four(), "PNG", exif=exif)
    assert np.array_equal(read_picture(content, "x"), made.FOUR)


def test_sixteen_bits_of_every_kind_give_the_upper_eight():
    values = np.arange(0, 65536, 257, dtype=np.uint16)[None]
    content = made.png(values.shape[1], 1, 16, 0, [values.astype(">u2").tobytes()])
    assert np.array_equal(read_picture(content, "x")[0, :, 0], (values >> 8)[0])


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.filterwarnings("error")
def test_more_pixels_than_pillow_takes_for_granted(form):
    """9500x9500 is above its threshold of a warning."""
    side = 9500
    assert side * side > Image.MAX_IMAGE_PIXELS
    image_HWC = read_picture(made.saved(Image.new("L", (side, side), 120), form), "large")
    assert image_HWC.shape == (side, side, 3)
    assert image_HWC.min() == image_HWC.max() == 120


def test_the_limit_of_pillow_is_put_back():
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(MmsegError):
        read_picture(made.bomb(), "x")
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_bomb_costs_no_memory():
    """Its size is in the header, which is looked at first."""
    code = (
        "import resource; from tests.prediction import made; from mmseg_cli.prediction.pictures import read_picture\n"
        "content = made.bomb(2**14 + 1, 2**14)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_picture(content, 'x')\n"
        "except Exception as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    line, grown = done.stdout.strip().splitlines()
    assert f"the limit is {MAX_PIXELS // 10**6} million" in line
    assert int(grown) < 50_000  # KiB; the picture would be 786,000


def test_what_is_no_file_is_never_opened(tmp_path):
    for name, text in made.special(tmp_path).items():
        with pytest.raises(MmsegError, match=text):
            read_content(tmp_path / name)
    with pytest.raises(MmsegError, match="is a folder"):
        read_content(tmp_path)
    with pytest.raises(MmsegError, match="is not there: check its name"):
        read_content(tmp_path / "none.png")
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(MmsegError, match="is a link that leads nowhere"):
        read_content(loop)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(made.saved(made.four(), "PNG"))
    path.chmod(0)
    with pytest.raises(MmsegError, match="check its permissions"):
        read_content(path)


def test_a_file_that_may_not_be_read_by_anybody(tmp_path, monkeypatch):
    """The same for root, whom permissions do not stop."""
    path = tmp_path / "secret.png"
    path.write_bytes(b"x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mmseg_cli.prediction.pictures.os.open", refuse)
    with pytest.raises(MmsegError, match="cannot be read .Permission denied.: check its permissions"):
        read_content(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # a hole
    with pytest.raises(MmsegError, match="too many for a picture"):
        read_content(path)


def test_no_warning_of_a_palette_with_transparency():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_picture(made.palette(transparency=b"\x00\x80\xff\xff\xff"), "x")
