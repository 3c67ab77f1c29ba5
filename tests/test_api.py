"""The Python door: `from mmseg_cli import load`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmseg_cli
from mmseg_cli import load
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import inference
from mmseg_cli.models import weights

RUN = Path("runs/demo/train/mmbconv-s0")


def picture(height=30, width=50):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_three_lines_predict_an_image(trained):
    image_HWC = picture()
    prediction = load(RUN).predict(image_HWC, probabilities=True)
    network, record = weights.load_network(RUN)
    batch = (torch.from_numpy(image_HWC).permute(2, 0, 1)[None], torch.zeros(1, 30, 50, dtype=torch.uint8))
    ((_, expected_HW, _),) = inference.segment(network, [batch], device=torch.device("cpu"))
    assert (prediction.classes_HW == expected_HW).mean() > 0.999  # batch norms are folded
    np.testing.assert_array_equal(prediction.probabilities_KHW.argmax(0), prediction.classes_HW)
    np.testing.assert_array_equal(prediction.probabilities_KHW.max(0), prediction.confidence_HW)
    ids = np.array(record["label_space"]["ids"])
    np.testing.assert_array_equal(prediction.ids_HW, ids[prediction.classes_HW])
    assert load(RUN).classes == tuple(record["label_space"]["classes"])
    assert prediction.overlay().size == (50, 30)


def test_a_file_a_picture_and_an_array_are_the_same_image(trained, tmp_path):
    image_HWC = picture()
    path = tmp_path / "a.png"
    Image.fromarray(image_HWC).save(path)
    network = load(RUN)
    expected = network.predict(image_HWC).classes_HW
    for same in (path, str(path), Image.fromarray(image_HWC)):
        np.testing.assert_array_equal(network.predict(same).classes_HW, expected)
    grey = network.predict(image_HWC[..., 0]).image_HWC
    np.testing.assert_array_equal(grey, np.repeat(image_HWC[..., :1], 3, axis=2))
    assert network.predict(image_HWC).probabilities_KHW is None


def test_a_picture_that_pillow_opened_is_what_its_file_is(trained, tmp_path):
    """Turned by EXIF, and 16 bits are not clipped."""
    network = load(RUN)
    turned = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    deep = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name in ("turned.png", "deep.png"):
        from_file = network.predict(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            np.testing.assert_array_equal(network.predict(opened).image_HWC, from_file.image_HWC)
    assert network.predict(tmp_path / "turned.png").classes_HW.shape == (50, 30)
    with pytest.raises(MmsegError, match="floating point"):
        network.predict(Image.new("F", (4, 4)))


def test_windows_that_the_memory_asks_for_are_told(trained):
    large = picture(400, 600)
    assert load(RUN).predict(large).window is None
    window = load(RUN, memory_gib=0.03).predict(large).window
    assert window is not None
    assert max(window) < 600
    for nothing in (0, -1):
        with pytest.raises(MmsegError, match="memory"):
            load(RUN, memory_gib=nothing)


def test_an_onnx_file_takes_no_gpu(tmp_path):
    for odd in ({"device": "cuda"}, {"precision": "bfloat16"}):
        with pytest.raises(MmsegError, match="runs on the CPU in float32"):
            load(tmp_path / "net.onnx", **odd)


def test_the_protocol_is_what_was_asked_for(trained):
    image_HWC = picture()
    plain = load(RUN).predict(image_HWC).confidence_HW
    augmented = load(RUN, scales=[0.5, 1], flip=True, window=(16, 16)).predict(image_HWC).confidence_HW
    assert np.abs(plain - augmented).max() > 0
    for odd in (
        {"scales": []},
        {"scales": 2},
        {"window": "64x64"},
        {"window": (1, "x")},
        {"precision": "fp16"},
        {"flip": "no"},
        {"memory_gib": "4"},
    ):
        with pytest.raises(MmsegError, match=next(iter(odd))):
            load(RUN, **odd)
    assert (
        repr(load(RUN, flip=True)) == f"<{RUN}: 19 classes of cityscapes-19, single scale, mirrored too, whole images>"
    )
    assert repr(load(RUN).predict(image_HWC)).startswith("<prediction of 30x50 pixels")


@pytest.mark.parametrize(
    "odd",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        Path("missing.png"),
        5,
    ],
    ids=["floats", "four-channels", "empty", "a-batch", "missing", "number"],
)
def test_what_is_no_image_is_one_line(trained, odd):
    with pytest.raises(MmsegError) as caught:
        load(RUN).predict(odd)
    assert "\n" not in str(caught.value)


def test_what_is_no_network_is_one_line(trained):
    for where, words in (
        ("nowhere", "there is no such folder"),
        ("runs/demo/train", "is no run, but holds mmbconv-s0: give one of them"),
        ("data", "has no record.json"),
        ("params.yaml", "neither the folder of a run nor a .onnx file"),
        ("runs/demo/pretrain_imagenet/mmbconv-s0", "is not a segmentation network"),
    ):
        with pytest.raises(MmsegError, match=words):
            load(where)


def test_the_door_itself_loads_nothing():
    """Importing the package, and asking for the door, imports no torch."""
    code = "import sys, mmseg_cli; assert 'numpy' not in sys.modules; mmseg_cli.load; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        mmseg_cli.nothing  # noqa: B018
    assert mmseg_cli.__all__ == ["load"]
    assert (Path(mmseg_cli.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_a_user_s_script_is_typed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from mmseg_cli import load\n"
        'network = load("runs/x")\n'
        'prediction = network.predict("a.png")\n'
        "reveal_type(prediction.classes_HW)\n"
        "network.predict(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", script],  # with the cache that `make lint` has filled
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(mmseg_cli.__file__).parents[1],
    )
    assert "ndarray[tuple[Any, ...], dtype[unsignedinteger[_8Bit]]]" in done.stdout
    assert done.stdout.count("error:") == 1
    assert 'Argument 1 to "predict"' in done.stdout
