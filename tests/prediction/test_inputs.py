"""What there is to predict, and under which names."""

from __future__ import annotations

import io
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mmseg_cli.errors import MmsegError
from mmseg_cli.prediction.inputs import find
from tests.prediction import made


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(*names, content=None):
    content = made.saved(made.four(), "PNG") if content is None else content
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def names(*given, **more):
    return [one.name for one in find(given, **more)]


def refused(*given, **more):
    with pytest.raises(MmsegError) as caught:
        list(find(given, **more))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_image_has_its_name_without_suffix():
    write("photos/a.b.png")
    (only,) = find(["photos/a.b.png"])
    assert (only.name, only.where, only.source) == ("a.b", "photos/a.b.png", str(Path("photos/a.b.png").absolute()))
    assert np.array_equal(only.read(), made.FOUR)


def test_an_image_may_have_any_suffix_when_it_is_named():
    write("photo", "photo.dat")
    assert names("photo", "photo.dat") == ["photo", "photo.dat"]


def test_a_folder_is_searched_wholly_and_sorted():
    write("in/b.PNG", "in/a.jpg", "in/sub/deep/c.tif", "in/sub/a.webp", "in/notes.txt", "in/film.mp4")
    assert names("in") == names("in/") == ["a", "b", "sub/a", "sub/deep/c"]


def test_hidden_files_and_folders_are_left_out():
    write("in/a.png", "in/.b.png", "in/.git/c.png", "in/__MACOSX/a.png")
    assert names("in") == ["a"]


def test_links_are_followed_but_not_in_a_circle():
    write("in/a.png", "elsewhere/b.png")
    Path("in/again").symlink_to(Path("in").absolute())
    Path("in/other").symlink_to(Path("elsewhere").absolute())
    Path("in/nowhere.png").symlink_to("missing")
    found = list(find(["in"]))
    assert [one.name for one in found] == ["a", "nowhere", "other/b"]
    with pytest.raises(MmsegError, match="in/nowhere.png: is a link that leads nowhere"):
        found[1].read()


def test_links_that_multiply_come_to_an_end():
    """Each folder holds two links to the next one: 2 to the 12 ways to the image."""
    write("in/12/a.png")
    for number in range(12):
        Path(f"in/{number}").mkdir(exist_ok=True)
        for way in ("x", "y"):
            Path(f"in/{number}/{way}").symlink_to(Path(f"in/{number + 1}").absolute())
    assert 1 <= len(names("in")) <= 16


def test_a_folder_named_like_an_image_is_searched():
    write("in/a.png/b.png")
    assert names("in") == ["a.png/b"]


def test_a_folder_that_may_not_be_listed_is_a_failure_of_its_own(monkeypatch):
    write("in/a.png", "in/closed/b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list(find(["in"]))
    assert [one.name for one in found] == ["a", "closed"]
    with pytest.raises(MmsegError, match="in/closed: cannot be read .Permission denied.: check its permissions"):
        found[1].read()


def test_results_inside_the_input_are_not_predicted():
    write("in/a.png", "in/out/labels/a.png", "in/out/overlays/a.png")
    results = [Path("in/out", kind) for kind in ("labels", "overlays", "probabilities")]
    assert names("in", without=results) == names("in/**/*.png", without=results) == ["a"]
    assert "holds no images" in refused("in/out", without=results)


def test_a_pattern_keeps_what_lies_below_its_fixed_part():
    write("in/x/a.png", "in/y/a.png", "in/y/b.txt", "in/c.png")
    assert names("in/*/a.png") == ["x/a", "y/a"]
    assert names("in/**/*.png") == ["c", "x/a", "y/a"]
    assert names(f"{Path.cwd()}/in/*/a.*") == ["x/a", "y/a"]
    assert names("in/[xy]") == ["x/a", "y/a"]  # folders
    assert names("i?/c.png") == ["in/c"]


def test_a_file_whose_name_looks_like_a_pattern():
    write("photo[1].png")
    assert names("photo[1].png") == ["photo[1]"]


def test_mixed_inputs_keep_their_order_and_come_once():
    write("in/a.png", "in/b.png", "z.png")
    assert names("z.png", "in", "in/a.png", "in/*.png") == ["z", "a", "b"]


def test_equal_names_keep_their_suffix():
    write("in/a.png", "in/a.jpg", "in/b.png")
    assert names("in") == ["a.jpg", "a.png", "b"]


def test_two_files_for_one_place_are_refused():
    write("left/a.png", "right/a.png")
    assert refused("left", "right") == (
        "right/a.png: would be written to the same place as left/a.png (a.png): predict them with an --out each,"
        " or give the folder around both"
    )
    write("in/a.png.jpg", "in/a.png", "in/a.tif")
    assert "would be written to the same place" in refused("in")


def test_nothing_found_is_one_line():
    Path("in").mkdir()
    assert refused("in").startswith("in: holds no images (.png, .jpg, ")
    assert refused("*.png").startswith("*.png: matches no image or film (.png, ")
    assert refused("a.png") == "a.png: is not there: check its name"
    assert refused("a\nb.png") == r"a\nb.png: is not there: check its name"


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(made.saved(made.four(), "PNG"))))
    write("stdin.png")
    first, second = find(["-", "stdin.png"])
    assert (first.name, first.source, second.name) == ("stdin", "", "stdin.png")
    assert np.array_equal(first.read(), made.FOUR)


def test_standard_input_of_a_terminal_is_refused(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert refused("-").startswith("-: nothing is piped in: ")


# ----------------------------------------------------------------------------------------------------------- films

av = pytest.importorskip("av", reason="films need PyAV")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_film_gives_its_frames(tmp_path, suffix):
    """mkv does not say how many there are."""
    made.film(tmp_path / f"film{suffix}", frames=5)
    found = find([f"film{suffix}"])
    assert found.count == 5
    assert found.films[0].rate == Fraction(10)
    frames = list(found)
    assert [one.name for one in frames] == [f"film/{number:06d}" for number in range(5)]
    assert frames[3].where == f"film{suffix}, frame 3"
    assert [int(one.read().mean((0, 1)).argmax()) for one in frames] == [0, 1, 2, 0, 1]
    assert frames[0].read().shape == (48, 64, 3)


def test_a_film_that_is_cut_short_ends_with_a_failure(tmp_path):
    content = made.film(tmp_path / "whole.mp4", frames=60, movflags="faststart").read_bytes()
    write("cut.mp4", content=content[: len(content) * 3 // 4])
    *good, last = find(["cut.mp4"])
    assert 1 <= len(good) < 60
    with pytest.raises(MmsegError, match="cut.mp4: is damaged or cut short, so that frames are missing: "):
        last.read()


def test_what_is_no_film_is_a_failure(tmp_path):
    write("text.mp4", content=b"no film")
    os.mkfifo("pipe.mp4")
    first, second = find(["text.mp4", "pipe.mp4"])
    with pytest.raises(MmsegError, match="text.mp4: is not a film that can be read"):
        first.read()
    with pytest.raises(MmsegError, match="pipe.mp4: is a named pipe"):
        second.read()


def test_a_film_on_its_side_is_turned(tmp_path):
    """The matrix of a track's header (ISO 14496-12, 8.3.2): a quarter to the right, as telephones write it."""
    content = made.film(tmp_path / "film.mp4", frames=2).read_bytes()
    one, minus = (65536).to_bytes(4), (-65536 % 2**32).to_bytes(4)
    nil, w = bytes(4), (1 << 30).to_bytes(4)
    upright = one + nil * 3 + one + nil * 3 + w
    aside = nil + one + nil + minus + nil * 4 + w
    begin = content.index(b"tkhd")
    place = content.index(upright, begin)
    write("aside.mp4", content=content[:place] + aside + content[place + len(aside) :])
    frames = list(find(["aside.mp4"]))
    assert frames[0].read().shape == (64, 48, 3)


def test_a_film_and_an_image_of_one_name_stand_side_by_side(tmp_path):
    made.film(tmp_path / "a.mp4", frames=2)
    write("a.png")
    assert names("a.mp4", "a.png") == ["a/000000", "a/000001", "a"]
    write("in/a/000001.png")
    assert "would be written to the same place as a frame of the film a" in refused("a.mp4", "in")


def test_films_need_a_package_that_the_line_names(tmp_path, monkeypatch):
    write("film.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert refused("film.mp4") == ("film.mp4: films need PyAV, which is not installed: pip install 'mmseg-cli[video]'")
