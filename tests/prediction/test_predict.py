"""`mmseg predict`: what is written, how it goes on, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.prediction import model as models
from mmseg_cli.prediction.outputs import overlay
from tests.prediction import made

RUN = "runs/demo/train/mmbconv-s0"


class Counted:
    """Loads the network of `made`, counts its images and may fail at some."""

    def __init__(self):
        self.images, self.fail, self.options, self.space = 0, {}, {}, made.SPACE

    def __call__(self, source, *, protocol, limit, **options):
        self.options = {"source": source, "limit": limit, **options}
        model = made.model(source, protocol=protocol, space=self.space, limit=limit)

        def forward(x_BCHW):
            self.images += 1
            if self.images in self.fail:
                raise self.fail[self.images]
            return x_BCHW

        object.__setattr__(model.segmenter, "forward", forward)
        return model


@pytest.fixture
def network(monkeypatch, tmp_path) -> Counted:
    """Stands in for what is loaded; the current folder is no project."""
    monkeypatch.chdir(tmp_path)
    network = Counted()
    monkeypatch.setattr(models, "load_model", network)
    return network


@pytest.fixture
def photos(network) -> Path:
    """red.png, sub/green.jpg, sub/deep/blue.tif."""
    for name, colour in (("red.png", made.RED), ("sub/green.jpg", made.GREEN), ("sub/deep/blue.tif", made.BLUE)):
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.plain(colour, size=(24, 16)).save(path)
    return Path("photos")


GIVEN = ("--model", "net.onnx", "--out", "out")


def label(name, out="out"):
    with Image.open(Path(out, "labels", f"{name}.png")) as image:
        assert image.mode == "L"
        return np.asarray(image)


# ----------------------------------------------------------------------------------------------------- what is written


def test_a_folder_is_mirrored(photos, mmseg):
    done = mmseg("predict", photos, *GIVEN)
    assert done.code == 0, done.err
    assert "predict: 3 images" in done.err
    assert "3 predicted" in done.out
    assert "the dataset's own ids" in done.out
    assert {path: set(np.unique(label(path))) for path in ("red", "sub/green", "sub/deep/blue")} == {
        "red": {7},
        "sub/green": {8},
        "sub/deep/blue": {26},
    }
    assert label("red").shape == (16, 24)
    assert sorted(path.name for path in Path("out").iterdir()) == [".lock", "labels", "prediction.json", "sources.json"]
    assert len([path for path in Path("out").rglob("*") if path.is_file()]) == 6


def test_all_that_can_be_written(photos, mmseg):
    done = mmseg("predict", photos, *GIVEN, "--overlay", "--probabilities", "--classes", "train")
    assert done.code == 0, done.err
    assert "train ids, 0 to 2" in done.out
    assert set(np.unique(label("sub/deep/blue"))) == {2}
    with Image.open("out/overlays/sub/green.png") as image:
        assert (image.mode, image.size) == ("RGB", (24, 16))
        assert np.abs(np.asarray(image).astype(int) - (0, 252, 0)).max() <= 2
    found = np.load("out/probabilities/red.npz")
    assert list(found["classes"]) == ["red", "green", "blue"]
    assert (found["probabilities"].dtype, found["probabilities"].shape) == (np.float16, (3, 16, 24))
    expected = np.exp([1, 0, 0]) / np.exp([1, 0, 0]).sum()
    assert np.allclose(found["probabilities"][:, 3, 3], expected, atol=1e-3)


def test_prediction_json_says_what_made_it(photos, mmseg):
    assert mmseg("predict", photos, *GIVEN, "--scales", "0.5,1", "--window", "32x48", "--overlap", "0.5").code == 0
    about = json.loads(Path("out/prediction.json").read_text())
    assert about["settings"] == {
        "weights": "ab" * 32,
        "network": "onnx",
        "precision": "float32",
        "scales": [0.5, 1.0],
        "flip": False,
        "window": [32, 48],
        "overlap": 0.5,
        "window weights": "gaussian",
        "memory": None,
        "labels": "ids",
        "overlays": False,
        "probabilities": False,
    }
    assert about["classes"][2] == {"name": "blue", "label": 26, "train_id": 2, "id": 26, "colour": [0, 0, 250]}
    assert (about["label_space"], about["model"]) == ("toy-3", "net.onnx")
    assert "windows of 32x48" in about["protocol"]
    assert about["mmseg"]


@pytest.mark.parametrize("ids", [(7, -1, 3), (7, 256, 3)])
def test_ids_that_eight_bits_do_not_hold_become_train_ids(photos, mmseg, network, ids):
    network.space = LabelSpace("odd-3", made.SPACE.classes, made.SPACE.colours, ids)
    done = mmseg("predict", photos, *GIVEN)
    assert done.code == 0
    assert "not all ids of odd-3 are numbers from 0 to 255" in done.out
    assert set(np.unique(label("red"))) == {0}
    assert json.loads(Path("out/prediction.json").read_text())["settings"]["labels"] == "train ids"


def test_overlays_are_half_of_each():
    image_HWC = np.array([[[200, 100, 0], [0, 0, 0]]], dtype=np.uint8)
    picture = overlay(image_HWC, np.array([[0, 2]], dtype=np.uint8), made.SPACE.colours)
    assert np.asarray(picture).tolist() == [[[225, 50, 0], [0, 0, 125]]]


def test_the_options_reach_the_network(photos, mmseg, network):
    assert mmseg("predict", photos, *GIVEN, "--memory", "0.5", "--batch", 3, "--threads", 1).code == 0
    assert network.options["limit"] == 2**29
    assert (network.options["at_once"], network.options["threads"]) == (3, 1)
    assert mmseg("predict", photos, "--model", "net.onnx", "--out", "other").code == 0
    assert network.options["limit"] is None


def test_images_are_turned_upright(network, mmseg):
    Path("photo.png").write_bytes(made.turned(8))
    assert mmseg("predict", "photo.png", *GIVEN).code == 0
    assert label("photo").tolist() == [[8, 7, 7], [7, 26, 7]]  # green white black / red blue black


# ----------------------------------------------------------------------------------------------------- difficult files


def test_bad_files_are_reported_at_the_end_and_the_others_written(network, mmseg):
    """The whole table of difficult inputs and what is no file, in one folder."""
    rows = made.lay_out(Path("in"))
    expected = {row.file: row.expected for row in rows} | made.special(Path("in"))
    bad = {name: text for name, text in expected.items() if isinstance(text, str)}
    good = {name: image_HWC for name, image_HWC in expected.items() if not isinstance(image_HWC, str)}
    done = mmseg("predict", "in", *GIVEN, "--overlay")
    assert done.code == 2
    assert done.one_error() == (
        f"mmseg: error: out: {len(bad)} of {len(expected)} inputs were not predicted (see above):"
        " mend or leave them out and run the same command again"
    )
    lines = [line for line in done.err.splitlines() if line.startswith("mmseg: warning: ")]
    assert len(lines) == len(bad)
    for name, text in bad.items():
        (line,) = [line for line in lines if f" in/{name}: " in line]
        assert text in line
    written = {path.relative_to("out/labels").as_posix() for path in Path("out/labels").rglob("*.png")}
    assert len(written) == len(good)
    for name, image_HWC in good.items():
        stem = name.rsplit(".", 1)[0]
        found = label(name if f"{name}.png" in written else stem)
        assert found.shape == image_HWC.shape[:2]
        if name not in ("exif6.jpg", "cmyk.jpg"):
            lowest = made.SPACE.ids
            assert np.array_equal(found, np.array(lowest)[image_HWC.argmax(2)]), name


def test_mended_files_are_predicted_by_the_same_command(photos, mmseg, network):
    whole = (photos / "red.png").read_bytes()
    (photos / "red.png").write_bytes(whole[:50])
    done = mmseg("predict", photos, *GIVEN)
    assert done.code == 2
    assert "1 of 3 inputs was not predicted" in done.one_error()
    (photos / "red.png").write_bytes(whole)
    done = mmseg("predict", photos, *GIVEN)
    assert done.code == 0
    assert "3 images, 2 done before" in done.err
    assert "1 predicted, 2 done before" in done.out
    assert network.images == 3


def test_too_little_memory_for_one_image_does_not_end_the_others(photos, mmseg, network):
    network.fail = {2: RuntimeError("CUDA out of memory. Tried to allocate 5 GiB")}
    done = mmseg("predict", photos, *GIVEN)
    assert done.code == 2
    assert "sub/deep/blue.tif: the memory does not suffice for it: set a smaller --memory" in done.err
    assert sorted(path.stem for path in Path("out/labels").rglob("*.png")) == ["green", "red"]


def test_a_limit_that_is_too_small_says_so(photos, mmseg):
    made.plain(made.RED, size=(640, 480)).save(photos / "large.png")
    done = mmseg("predict", photos, *GIVEN, "--memory", 0.00001)
    assert done.code == 2
    assert "photos/large.png: 0.0 MiB do not suffice" in done.err
    assert "with --memory" in done.err
    done = mmseg("predict", photos, "--model", "net.onnx", "--out", "wide", "--memory", 0.005)
    assert done.code == 0
    assert "whole images, but 1 in windows of " in done.out
    assert "1 of the images did not fit into the memory: predicted in windows" in done.err


def test_an_error_of_ours_is_not_taken_for_one_of_the_image(photos, mmseg, network):
    network.fail = {2: KeyError("a bug")}
    with pytest.raises(KeyError):
        mmseg("predict", photos, *GIVEN)


def test_a_name_that_is_too_long_for_a_result(network, mmseg):
    Path("in").mkdir()
    for name in ("a", "b" * 248):
        made.four().save(Path("in", f"{name}.png"))
    done = mmseg("predict", "in", *GIVEN)
    assert done.code == 2
    assert "its name is too long for that of a result: shorten it" in done.err
    assert label("a").shape == (3, 2)


# ----------------------------------------------------------------------------------------------------------- resuming


def test_a_second_time_it_predicts_nothing(photos, mmseg, network):
    assert mmseg("predict", photos, *GIVEN).code == 0
    before = trees.contents(Path("out"))
    done = mmseg("predict", photos, *GIVEN)
    assert (done.code, network.images) == (0, 3)
    assert "3 images, 3 done before" in done.err
    assert trees.contents(Path("out")) == before


def replaced(path, colour, *, seconds):
    """Another picture in the place of one, written as much later or earlier."""
    stat = Path(path).stat()
    made.plain(colour, size=(24, 16)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + seconds * 10**9))


@pytest.mark.parametrize("seconds", [10**6, -(10**6)])
def test_a_file_that_was_replaced_is_predicted_anew(photos, mmseg, network, seconds):
    """By a newer file, by an older one (`cp -p`), and by one of tomorrow."""
    assert mmseg("predict", photos, *GIVEN, "--overlay").code == 0
    assert label("red")[0, 0] == 7
    replaced(photos / "red.png", made.BLUE, seconds=seconds)
    network.fail = {4: KeyboardInterrupt()}
    assert mmseg("predict", photos, *GIVEN, "--overlay").code == 130
    assert not Path("out/labels/red.png").exists()  # nor is it taken for done
    done = mmseg("predict", photos, *GIVEN, "--overlay")
    assert (done.code, network.images, label("red")[0, 0]) == (0, 5, 26)
    replaced(photos / "sub/green.jpg", made.GREEN, seconds=seconds)
    done = mmseg("predict", photos, *GIVEN, "--overlay")
    assert "1 predicted, 2 done before" in done.out
    assert "removed first, as their files had changed: the results of 1" in done.out
    assert "3 images, 3 done before" in mmseg("predict", photos, *GIVEN, "--overlay").err


@pytest.mark.parametrize("harm", ["gone", "empty", "a broken link"])
@pytest.mark.parametrize("result", ["labels/red.png", "overlays/red.png", "probabilities/red.npz"])
def test_what_is_not_whole_is_not_done(photos, mmseg, network, result, harm):
    assert mmseg("predict", photos, *GIVEN, "--overlay", "--probabilities").code == 0
    before = trees.contents(Path("out"))
    path = Path("out", result)
    path.unlink()
    if harm == "empty":
        path.touch()
    elif harm == "a broken link":
        path.symlink_to("nowhere")
    done = mmseg("predict", photos, *GIVEN, "--overlay", "--probabilities")
    assert (done.code, network.images) == (0, 4), done.err
    assert "1 predicted, 2 done before" in done.out
    assert trees.contents(Path("out")) == before


def test_a_file_that_gets_a_neighbour_of_its_name_is_not_mixed_up_with_it(photos, mmseg, network):
    assert mmseg("predict", photos, *GIVEN).code == 0
    made.plain(made.BLUE, size=(24, 16)).save(photos / "red.jpg")
    assert mmseg("predict", photos, *GIVEN).code == 0
    assert sorted(path.name for path in Path("out/labels").glob("*.png")) == ["red.jpg.png", "red.png.png"]
    assert [label(name)[0, 0] for name in ("red.png", "red.jpg")] == [7, 26]
    assert mmseg("predict", photos / "red.png", *GIVEN).code == 0  # it has no neighbour here
    assert [label(name)[0, 0] for name in ("red", "red.jpg")] == [7, 26]
    assert mmseg("predict", photos, *GIVEN).code == 0
    assert network.images == 4  # results are renamed
    (photos / "red.png").unlink()
    replaced(photos / "red.jpg", made.GREEN, seconds=5)
    assert mmseg("predict", photos, *GIVEN).code == 0
    assert label("red")[0, 0] == 8
    assert not Path("out/labels/red.jpg.png").exists()


def test_another_file_is_not_taken_for_done_where_a_result_is_missing(photos, mmseg):
    given = (*GIVEN, "--overlay")
    assert mmseg("predict", photos / "red.png", *given).code == 0
    Path("out/overlays/red.png").unlink()
    Path("other").mkdir()
    made.plain(made.BLUE).save("other/red.png")
    before = trees.contents(Path("out"))
    assert "out: labels/red.png was made from " in mmseg("predict", "other/red.png", *given).one_error()
    assert trees.contents(Path("out")) == before


def test_a_film_that_was_replaced_leaves_nothing_of_the_other(network, mmseg):
    pytest.importorskip("av", reason="films need PyAV")
    made.film(Path("film.mp4"), frames=6, size=(65, 48))
    given = ("predict", "film.mp4", *GIVEN, "--overlay")
    assert mmseg(*given).code == 0
    film = Path("out/overlays/film.mp4")
    before = film.read_bytes()
    Path("out/labels/film/000005.png").unlink()  # half of a frame, which no command takes for done
    made.film(Path("film.mp4"), frames=3, size=(65, 48))
    done = mmseg(*given)
    assert done.code == 0, done.err
    assert "3 predicted" in done.out
    assert "had changed: the results of 6" in done.out
    for kind in ("labels", "overlays"):
        assert len(list(Path("out", kind, "film").iterdir())) == 3
    shorter = film.read_bytes()
    assert shorter != before
    film.write_bytes(b"")
    assert mmseg(*given).code == 0
    assert film.read_bytes() == shorter


def test_a_film_and_a_folder_of_its_name_are_kept_apart(network, mmseg):
    pytest.importorskip("av", reason="films need PyAV")
    for name in ("a", "000001"):
        made.plain(made.RED, size=(24, 16)).save(Path(".", f"{name}.png"))
    Path("shots/film").mkdir(parents=True)
    Path("a.png").rename("shots/film/a.png")
    made.film(Path("film.mp4"), frames=3, size=(65, 48))
    assert mmseg("predict", "shots", *GIVEN).code == 0
    assert mmseg("predict", "film.mp4", *GIVEN).code == 0
    os.utime("film.mp4", (0, 0))
    assert mmseg("predict", "film.mp4", *GIVEN).code == 0
    assert label("film/a")[0, 0] == 7  # not one of the frames
    Path("000001.png").rename("shots/film/000001.png")
    assert "labels/film/000001.png was made from" in mmseg("predict", "shots", *GIVEN).one_error()
    Path("other").mkdir()
    made.film(Path("other/film.mp4"), frames=3, size=(65, 48))
    Path("out/labels/film/000000.png").unlink()
    assert "labels/film/ was made from" in mmseg("predict", "other/film.mp4", *GIVEN).one_error()


def test_results_inside_the_input_folder_are_not_predicted(photos, mmseg, network):
    for place in ("photos/out", "photos"):
        for _ in range(2):
            done = mmseg("predict", "photos", "--model", "net.onnx", "--out", place, "--overlay")
            assert done.code == 0, done.err
            assert "predict: 3 images" in done.err
    assert network.images == 6


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--flip"], "flip no, now yes"),
        (["--scales", "0.5,1"], "scales [1.0], now [0.5, 1.0]"),
        (["--window", "32x32"], "window no, now 32x32"),
        (["--memory", "2"], "memory no, now 2 GiB"),
        (["--classes", "train"], "labels ids, now train ids"),
        (["--overlay"], "overlays no, now yes"),
        (["--probabilities"], "probabilities no, now yes"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_other_settings_are_refused(photos, mmseg, more, words):
    assert mmseg("predict", photos, *GIVEN).code == 0
    before = trees.snapshot(Path("out"))
    done = mmseg("predict", photos, *GIVEN, *more)
    assert done.code == 2
    line = done.one_error()
    assert line.startswith("mmseg: error: out: holds predictions made otherwise (")
    assert words in line
    assert line.endswith(": choose another --out, or repeat the command that made it")
    after = trees.snapshot(Path("out"))
    assert {name: row[2] for name, row in after.items()} == {name: row[2] for name, row in before.items()}


def test_other_weights_are_refused(photos, mmseg, monkeypatch):
    assert mmseg("predict", photos, *GIVEN).code == 0
    about = json.loads(Path("out/prediction.json").read_text())
    about["settings"]["weights"] = "cd" * 32
    Path("out/prediction.json").write_text(json.dumps(about))
    assert "(weights cdcdcdcdcdcd..., now abababababab...)" in mmseg("predict", photos, *GIVEN).one_error()


def test_another_file_of_the_same_name_is_not_taken_for_done(photos, mmseg):
    assert mmseg("predict", photos / "red.png", *GIVEN).code == 0
    Path("other").mkdir()
    made.plain(made.BLUE).save("other/red.png")
    line = mmseg("predict", "other/red.png", *GIVEN).one_error()
    assert f"out: labels/red.png was made from {Path.cwd()}/photos/red.png, not from {Path.cwd()}/other/red.png" in line
    assert mmseg("predict", photos, *GIVEN).code == 0  # more of the same


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_folder_of_something_else_is_left_alone(photos, mmseg, content):
    Path("out/labels").mkdir(parents=True)
    Path("out/labels/mine.png").write_bytes(b"x")
    line = mmseg("predict", photos, *GIVEN).one_error()
    assert "out/labels: is there, but no prediction.json that says what it is: choose another --out" in line
    Path("out/prediction.json").write_text(content)
    assert "choose another --out" in mmseg("predict", photos, *GIVEN).one_error()
    assert Path("out/labels/mine.png").read_bytes() == b"x"


def test_what_a_killed_command_left_is_removed(photos, mmseg):
    assert mmseg("predict", photos, *GIVEN).code == 0
    left = Path("out/labels/sub/.green.png.abcd1234")
    left.write_bytes(b"half")
    kept = Path("out/labels/sub/.green.png")
    kept.write_bytes(b"x")
    assert mmseg("predict", photos, *GIVEN).code == 0
    assert (left.exists(), kept.exists()) == (False, True)


def test_a_disk_that_is_full_ends_the_command(photos, mmseg, monkeypatch):
    from mmseg_cli.prediction import outputs

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.Image.Image, "save", full)
    done = mmseg("predict", photos, *GIVEN)
    assert done.code == 4
    assert "no space left on the disk" in done.one_error()
    assert not list(Path("out/labels").rglob("*.png*"))


def test_ctrl_c_keeps_what_is_done(photos, mmseg, network):
    network.fail = {2: KeyboardInterrupt()}
    done = mmseg("predict", photos, *GIVEN)
    assert done.code == 130
    assert "stopped by SIGINT, what was predicted is kept: run the same command again to go on" in done.one_error()
    done = mmseg("predict", photos, *GIVEN)
    assert done.code == 0
    assert "3 images, 1 done before" in done.err


# -------------------------------------------------------------------------------------------------------------- films


def test_a_film_is_predicted_frame_by_frame_and_resumed(network, mmseg):
    av = pytest.importorskip("av", reason="films need PyAV")
    made.film(Path("film.mp4"), frames=6, size=(65, 48))
    network.fail = {5: KeyboardInterrupt()}
    assert mmseg("predict", "film.mp4", *GIVEN, "--overlay").code == 130
    assert not Path("out/overlays/film.mp4").exists()
    done = mmseg("predict", "film.mp4", *GIVEN, "--overlay")
    assert done.code == 0, done.err
    assert "6 images, 4 done before" in done.err
    assert [int(label(f"film/{number:06d}")[20, 20]) for number in range(6)] == [7, 8, 26] * 2
    assert len(list(Path("out/overlays/film").iterdir())) == 6
    assert "out/overlays/film.mp4" in done.out
    with av.open("out/overlays/film.mp4") as container:
        stream = container.streams.video[0]
        shades = [frame.to_ndarray(format="rgb24").mean((0, 1)) for frame in container.decode(stream)]
        assert (stream.width, stream.height, stream.average_rate) == (64, 48, 10)
    assert [int(np.argmax(shade)) for shade in shades] == [0, 1, 2] * 2
    again = mmseg("predict", "film.mp4", *GIVEN, "--overlay")
    assert "6 images, 6 done before" in again.err
    assert network.images == 7


# ------------------------------------------------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "out"], "--run: is missing: name the folder of a run, or an ONNX file with --model"),
        (["--out", "out", "--run", "r", "--model", "m.onnx"], "--model: stands beside --run"),
        (["--out", "out", "--run", "m.onnx"], "--run: m.onnx is an ONNX file: give it as --model"),
        (["--out", "out", "--model", "runs/x"], "--model: runs/x is no .onnx file"),
        ([*GIVEN, "--scales", "1,a"], "--scales: '1,a' is not a list of numbers: write for example 0.5,1,2"),
        ([*GIVEN, "--scales", "nan"], "--scales: nan: not above 0 and at most 16: give"),
        ([*GIVEN, "--window", "512"], "--window: '512' is not HEIGHTxWIDTH: write for example 512x1024"),
        ([*GIVEN, "--window", "31x500"], "--window: 31x500 is too small to see anything in: give 32x32 or more"),
        ([*GIVEN, "--window", "32x32", "--overlap", "1"], "--overlap: 1.0 is not a share"),
        ([*GIVEN, "--overlap", "0.5"], "--overlap: is of windows, and there are none"),
        ([*GIVEN, "--precision", "bfloat16"], "--precision: an ONNX file runs on the CPU in float32"),
        ([*GIVEN, "--device", "cuda"], "--device: an ONNX file runs on the CPU in float32"),
        ([*GIVEN, "--memory", "-1"], "--memory: -1 GiB is nothing"),
        (["--model", "net.onnx", "--out", "photos/red.png"], "photos/red.png: is not a folder: choose another --out"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-2:]),
)
def test_wrong_options_are_one_line_and_write_nothing(photos, mmseg, options, words):
    before = trees.snapshot(Path())
    done = mmseg("predict", photos, *options)
    assert done.code == 2
    assert words in done.one_error()
    assert trees.snapshot(Path()) == before


@pytest.mark.parametrize("given", ["none.png", "empty", "*.none"])
def test_nothing_to_predict_is_one_line(network, mmseg, given):
    Path("empty").mkdir()
    done = mmseg("predict", given, *GIVEN)
    assert done.code == 2
    assert given in done.one_error()
    assert not Path("out").exists()


# ------------------------------------------------------------------------------------------ a network that was trained


def command(*args, **more):
    return subprocess.run(
        [sys.executable, "-m", "mmseg_cli", "predict", *map(str, args)], capture_output=True, timeout=120, **more
    )


@pytest.fixture
def street(trained) -> Path:
    """Four noisy pictures in a project with a trained run."""
    Path("in/sub").mkdir(parents=True)
    for number in range(4):
        made.noise(40, 50 + number, number).save(Path("in", "sub" * (number % 2), f"{number}.png"))
    return trained


@pytest.mark.slow
def test_killed_half_way_it_goes_on_to_the_same_bytes(street):
    """Twice killed by SIGKILL, once ended by SIGTERM."""
    given = ("in", "--run", RUN, "--overlay", "--probabilities", "--threads", 1)
    assert command(*given, "--out", "whole").returncode == 0
    for harm, code in (("predicted:1", -9), ("predicted:2=term", 143), ("predicted:1=kill", -9)):
        done = command(*given, "--out", "parts", env={**os.environ, "MMSEG_FAILPOINT": harm})
        assert done.returncode == code, done.stderr
        if code == 143:
            assert b"parts: stopped by SIGTERM, what was predicted is kept: run the same command again" in done.stderr
    done = command(*given, "--out", "parts")
    assert done.returncode == 0, done.stderr
    assert b"done before" in done.stderr
    assert trees.contents(Path("parts")) == trees.contents(Path("whole"))


def test_standard_input_of_a_command_outside_a_project(street, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = Path(RUN).absolute()
    for shade in (3, 200):  # another image each time: it is never done before
        content = made.saved(made.plain((shade, shade, 9), size=(33, 17)), "PNG")
        done = command("-", "--run", run, "--out", "out", "--overlay", cwd=elsewhere, input=content)
        assert done.returncode == 0, done.stderr
        assert label("stdin", elsewhere / "out").shape == (17, 33)
        with Image.open(elsewhere / "out/overlays/stdin.png") as image:
            assert abs(int(np.asarray(image)[..., 0].mean()) - shade / 2) < 130
    done = command("-", "--run", run, "--out", "other", cwd=elsewhere, input=b"")
    assert done.returncode == 2
    assert b"stdin: is empty (0 bytes)" in done.stderr


def test_the_smallest_and_the_longest_picture_pass_a_real_network(street, mmseg):
    Path("odd").mkdir()
    for width, height in ((1, 1), (5000, 1), (1, 700), (3, 2)):
        made.plain(made.RED, size=(width, height)).save(f"odd/{width}x{height}.png")
    done = mmseg("predict", "odd", "--run", RUN, "--out", "out", "--scales", "0.5,1", "--flip")
    assert done.code == 0, done.err
    assert label("5000x1").shape == (1, 5000)
    assert label("1x1").shape == (1, 1)


def test_two_commands_do_not_share_a_folder(street, mmseg):
    from mmseg_cli.runtime import only_one

    with only_one(Path("out/.lock")):
        done = mmseg("predict", "in", "--run", RUN, "--out", "out")
    assert done.code == 2
    assert f"process {os.getpid()} is already at work" in done.one_error()


def test_the_label_is_written_last(network, mmseg, monkeypatch):
    """Where a label exists, so do the others."""
    from mmseg_cli.prediction import outputs

    made.four().save("a.png")
    real = outputs.np.savez_compressed

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.np, "savez_compressed", full)
    assert mmseg("predict", "a.png", *GIVEN, "--overlay", "--probabilities").code == 4
    assert not Path("out/labels").exists() or not list(Path("out/labels").iterdir())
    monkeypatch.setattr(outputs.np, "savez_compressed", real)
    assert mmseg("predict", "a.png", *GIVEN, "--overlay", "--probabilities").code == 0
    assert Path("out/labels/a.png").exists()


def without_torch(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """The command with the network of `made`, in a process that has no torch; its last line is its peak of memory."""
    code = (
        "import resource, sys; sys.modules['torch'] = None\n"
        "from tests.prediction import made\n"
        "from mmseg_cli.prediction import model\n"
        "def load(source, protocol, limit, **_): return made.model(source, protocol=protocol, limit=limit)\n"
        "model.load_model = load\n"
        "from mmseg_cli.cli.app import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    repository = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, "predict", *map(str, args), *GIVEN],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository)},
        timeout=280,
    )


def test_nothing_imports_torch_before_the_network(tmp_path):
    """An ONNX file is predicted on machines without it."""
    made.four().save(tmp_path / "a.png")
    done = without_torch(tmp_path, "a.png")
    assert done.returncode == 0, done.stderr
    assert label("a", tmp_path / "out").tolist() == [[7, 8], [26, 7], [7, 7]]


@pytest.mark.slow
def test_a_picture_of_144_megapixels(tmp_path, monkeypatch):
    """12000x12000 in windows: above the number of pixels at which Pillow warns."""
    large = made.Image.new("RGB", (12000, 12000), (90, 120, 60))
    large.save(tmp_path / "large.png", compress_level=1)
    del large
    done = without_torch(tmp_path, "large.png", "--memory", 1, "--overlay")
    assert done.returncode == 0, done.stderr
    assert "1 in windows" in done.stdout
    warnings = [line for line in done.stderr.splitlines() if "arning" in line]
    assert [line[:40] for line in warnings] == ["mmseg: warning: 1 of the images did not "]  # and none of Pillow's
    assert int(done.stdout.split()[-1]) < 4 * 2**20  # KiB: the picture three times over, and the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    found = label("large", tmp_path / "out")
    assert (found.shape, set(np.unique(found))) == ((12000, 12000), {8})
