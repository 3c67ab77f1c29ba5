from __future__ import annotations

import subprocess
import sys
import textwrap
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mmseg_cli.errors import MmsegError, ResourceError
from mmseg_cli.evaluation import inference, on_torch
from mmseg_cli.evaluation.on_torch import segmenter
from mmseg_cli.evaluation.segmenter import PLAIN, Arrays, Plan, Protocol, Segmenter
from mmseg_cli.evaluation.windows import taps, windows
from mmseg_cli.models.unet import build_network

CPU = torch.device("cpu")
CLASSES = 5
SIZES = st.tuples(st.integers(1, 47), st.integers(1, 53))
SCALES = st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.3, 2.0]), min_size=1, max_size=3).map(tuple)
PROTOCOLS = st.builds(
    Protocol,
    scales=SCALES,
    flip=st.booleans(),
    window=st.none() | st.tuples(st.integers(6, 60), st.integers(6, 60)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.8]),
    weights=st.sampled_from(["flat", "gaussian"]),
)
EXAMPLES = settings(max_examples=60)


class Pointwise(nn.Module):
    """Each pixel's classes from its own colour."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv2d(3, CLASSES, 1)

    def forward(self, x_BCHW):
        return self.layer(x_BCHW)


class Mirrored(nn.Module):
    """Looks left and right alike: mirrored images give mirrored classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        weight = torch.randn(CLASSES, 3, 3, 3)
        self.weight = nn.Parameter(weight + weight.flip(-1))

    def forward(self, x_BCHW):
        return F.conv2d(x_BCHW, self.weight, padding=1)


def unet(block="mmbconv"):
    torch.manual_seed(0)
    return build_network(
        task="segmentation",
        num_classes=CLASSES,
        block=block,
        layout="uniform",
        width=4,
        depth=1,
        levels=3,
        stem_stride=2,
        expansion=2,
        se_ratio=0.25,
        norm="batch",
        activation="silu",
    ).eval()


UNET, POINTWISE, MIRRORED = unet(), Pointwise(), Mirrored()


def image(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def probabilities(network, image_HWC, protocol=PLAIN, **options):
    made = segmenter(network, classes=CLASSES, protocol=protocol, device=CPU, **options)
    return made.predict(image_HWC, probabilities=True).probabilities_KHW


def by_hand(network, image_HWC, protocol):
    """Whole images, by torch's own resizing."""
    x_BCHW = inference.normalise(torch.from_numpy(image_HWC).permute(2, 0, 1)[None], device=CPU)
    size, views = image_HWC.shape[:2], []
    for scale in protocol.scales:
        scaled = [max(1, round(length * scale)) for length in size]
        seen = F.interpolate(x_BCHW, size=scaled, mode="bilinear", align_corners=False)
        views.append(network(seen).softmax(1))
        if protocol.flip:
            views.append(network(seen.flip(-1)).softmax(1).flip(-1))
    resized = [F.interpolate(view, size=size, mode="bilinear", align_corners=False) for view in views]
    return torch.stack(resized).mean(0)[0].detach().numpy()


# ------------------------------------------------------------------------------------------------------- one view


@pytest.mark.parametrize("size", [(32, 64), (31, 67), (1, 1), (1, 50), (65, 3)])
def test_a_plain_prediction_is_what_training_validates_to_the_bit(size):
    image_HWC = image(size)
    for label in (size, (40, 70)):
        batch = (torch.from_numpy(image_HWC).permute(2, 0, 1)[None], torch.zeros(1, *label, dtype=torch.uint8))
        ((_, expected_HW, _),) = inference.segment(UNET, [batch], device=CPU)
        made = segmenter(UNET, classes=CLASSES, device=CPU).predict(image_HWC, size=label)
        np.testing.assert_array_equal(made.classes_HW, expected_HW)
        assert made.confidence_HW is None
        assert made.probabilities_KHW is None


@EXAMPLES
@given(size=SIZES, seed=st.integers(0, 99))
def test_scale_one_is_the_plain_prediction_to_the_bit(size, seed):
    """As a mean of one view, of two equal ones, and of the windows of an image that is no larger than one."""
    image_HWC = image(size, seed)
    plain = probabilities(UNET, image_HWC)
    np.testing.assert_array_equal(probabilities(UNET, image_HWC, Protocol(scales=(1.0, 1.0))), plain)
    np.testing.assert_array_equal(probabilities(UNET, image_HWC, Protocol(window=size, weights="flat")), plain)
    made = segmenter(UNET, classes=CLASSES, device=CPU)
    ((_, averaged_KHW),) = made._averaged(image_HWC, size, Plan(None, size[0], 1, forced=False))
    np.testing.assert_array_equal(averaged_KHW.numpy(), plain)


@settings(max_examples=25)
@given(size=SIZES, seed=st.integers(0, 99), protocol=PROTOCOLS)
def test_whatever_is_asked_for_agrees(size, seed, protocol):
    image_HWC = image(size, seed)
    made = segmenter(UNET, classes=CLASSES, protocol=protocol, device=CPU)
    all_three = made.predict(image_HWC, confidence=True, probabilities=True)
    np.testing.assert_allclose(all_three.probabilities_KHW.sum(0), 1, atol=2e-6)
    np.testing.assert_array_equal(all_three.probabilities_KHW.max(0), all_three.confidence_HW)
    chosen = np.take_along_axis(all_three.probabilities_KHW, all_three.classes_HW[None].astype(int), 0)[0]
    np.testing.assert_array_equal(chosen, all_three.confidence_HW)
    np.testing.assert_array_equal(made.predict(image_HWC, confidence=True).classes_HW, all_three.classes_HW)


# --------------------------------------------------------------------------------------------------- several views


@EXAMPLES
@given(size=SIZES, seed=st.integers(0, 99))
def test_mirroring_twice_changes_nothing(size, seed):
    image_HWC = image(size, seed)
    once = probabilities(UNET, image_HWC, Protocol(flip=True))
    twice = probabilities(UNET, np.ascontiguousarray(image_HWC[:, ::-1]), Protocol(flip=True))[..., ::-1]
    np.testing.assert_allclose(twice, once, atol=2e-6)


@EXAMPLES
@given(size=SIZES, seed=st.integers(0, 99))
def test_a_network_that_sees_no_left_and_right_gains_nothing_from_mirroring(size, seed):
    image_HWC = image(size, seed)
    np.testing.assert_allclose(
        probabilities(MIRRORED, image_HWC, Protocol(flip=True)), probabilities(MIRRORED, image_HWC), atol=1e-5
    )


@EXAMPLES
@given(size=SIZES, seed=st.integers(0, 99), scales=SCALES, flip=st.booleans())
def test_several_views_are_the_mean_of_their_probabilities(size, seed, scales, flip):
    image_HWC, protocol = image(size, seed), Protocol(scales=scales, flip=flip)
    made = probabilities(UNET, image_HWC, protocol)
    if protocol.averages:
        np.testing.assert_allclose(made, by_hand(UNET, image_HWC, protocol), atol=2e-5)
    else:  # of one view the logits are resized
        x_BCHW = inference.normalise(torch.from_numpy(image_HWC).permute(2, 0, 1)[None], device=CPU)
        scaled = [max(1, round(length * scales[0])) for length in size]
        logits = UNET(F.interpolate(x_BCHW, size=scaled, mode="bilinear", align_corners=False))
        resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        np.testing.assert_allclose(made, resized.softmax(1)[0].detach().numpy(), atol=2e-5)


# --------------------------------------------------------------------------------------------------------- windows


@EXAMPLES
@given(size=SIZES, seed=st.integers(0, 99), protocol=PROTOCOLS)
def test_windows_of_a_pointwise_network_are_the_whole_image(size, seed, protocol):
    image_HWC = image(size, seed)
    whole = Protocol(scales=(*protocol.scales, 1.0), flip=protocol.flip)
    in_windows = Protocol(
        scales=whole.scales,
        flip=whole.flip,
        window=protocol.window or (7, 9),
        overlap=protocol.overlap,
        weights=protocol.weights,
    )
    np.testing.assert_allclose(
        probabilities(POINTWISE, image_HWC, in_windows), probabilities(POINTWISE, image_HWC, whole), atol=2e-6
    )


@EXAMPLES
@given(
    source=st.integers(1, 70),
    target=st.integers(1, 70),
    window=st.integers(1, 80),
    overlap=st.sampled_from([0.0, 0.3, 0.5, 0.95]),
    weights=st.sampled_from(["flat", "gaussian"]),
)
def test_windows_cover_an_axis_and_their_weights_sum_to_one(source, target, window, overlap, weights):
    total = np.zeros(target)
    found = windows(source, target, window=window, overlap=overlap, weights=weights)
    for part in found:
        assert 0 <= part.start <= part.start + part.length <= source
        assert part.length == min(window, source)
        total[part.first : part.last] += part.low_weight + part.high_weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    if source == target and window < source:
        overlaps = [a.start + a.length - b.start for a, b in pairwise(found)]
        assert min(overlaps) >= int(window * overlap) or window * (1 - overlap) < 1


@given(source=st.integers(1, 90), target=st.integers(1, 90))
def test_resizing_is_torch_s(source, target):
    x = np.random.default_rng(source).random(source).astype(np.float32)
    along = taps(source, target)
    ours = x[along.low] * (1 - along.share) + x[along.high] * along.share
    theirs = F.interpolate(torch.from_numpy(x)[None, None], size=target, mode="linear", align_corners=False)[0, 0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)


def test_windows_are_put_together_as_by_hand():
    image_HWC = image((20, 30))
    made = probabilities(UNET, image_HWC, Protocol(window=(20, 20), overlap=0.5, weights="flat"))
    left, right = probabilities(UNET, image_HWC[:, :20]), probabilities(UNET, image_HWC[:, 10:])
    np.testing.assert_allclose(made[:, :, :10], left[:, :, :10], atol=1e-6)
    np.testing.assert_allclose(made[:, :, 20:], right[:, :, 10:], atol=1e-6)
    np.testing.assert_allclose(made[:, :, 10:20], (left[:, :, 10:] + right[:, :, :10]) / 2, atol=1e-6)


@pytest.mark.parametrize("at_once", [2, 3, 50])
def test_windows_go_through_the_network_together(at_once):
    seen = []

    class Watched(Pointwise):
        def forward(self, x_BCHW):
            seen.append(len(x_BCHW))
            return super().forward(x_BCHW)

    protocol = Protocol(window=(8, 8), overlap=0)
    image_HWC = image((24, 32))
    together = probabilities(Watched(), image_HWC, protocol, at_once=at_once)
    counted = [count for count in seen if count]
    np.testing.assert_allclose(together, probabilities(POINTWISE, image_HWC, protocol), atol=1e-6)
    assert max(counted) == min(at_once, 12)


def test_numpy_predicts_what_torch_does():
    """The same protocol where only onnxruntime is at hand."""

    def forward(x_BCHW):
        with torch.inference_mode():
            return UNET(torch.from_numpy(x_BCHW)).numpy()

    for protocol in (PLAIN, Protocol(scales=(0.5, 1.5), flip=True, window=(16, 24))):
        on_numpy = Segmenter(
            forward=forward,
            arrays=Arrays(),
            classes=CLASSES,
            mean=inference.MEAN,
            std=inference.STD,
            protocol=protocol,
            bytes_per_pixel=0,
        )
        for size in ((33, 47), (50, 60)):
            made = on_numpy.predict(image((33, 47)), size=size, probabilities=True)
            theirs = segmenter(UNET, classes=CLASSES, protocol=protocol, device=CPU).predict(
                image((33, 47)), size=size, probabilities=True
            )
            np.testing.assert_allclose(made.probabilities_KHW, theirs.probabilities_KHW, atol=1e-5)
            assert made.classes_HW.dtype == np.uint8


def test_bfloat16_and_folding_stay_near():
    image_HWC = image((32, 48))
    plain = probabilities(UNET, image_HWC)
    np.testing.assert_allclose(probabilities(UNET, image_HWC, fold=True), plain, atol=1e-5)
    low = probabilities(UNET, image_HWC, precision="bfloat16")
    assert 0 < np.abs(low - plain).max() < 0.02


def test_the_image_is_left_as_it_was():
    image_HWC = image((20, 20))
    image_HWC.flags.writeable = False
    before = image_HWC.copy()
    probabilities(UNET, image_HWC, Protocol(scales=(1.0, 2.0), flip=True))
    np.testing.assert_array_equal(image_HWC, before)


# ---------------------------------------------------------------------------------------------------------- memory


def test_a_limit_asks_for_windows_only_where_it_must():
    made = segmenter(UNET, classes=CLASSES, device=CPU, limit=2**21)
    assert made.plan((16, 16), (16, 16)).window is None
    forced = made.plan((256, 512), (256, 512))
    assert forced.forced
    assert forced.window is not None
    image_HWC = image((256, 512))
    by_limit = made.predict(image_HWC, probabilities=True).probabilities_KHW
    np.testing.assert_allclose(by_limit, probabilities(UNET, image_HWC, Protocol(window=forced.window)), atol=1e-6)


def test_rows_at_a_time_are_the_same_prediction():
    image_HWC, protocol = image((90, 40)), Protocol(scales=(0.7, 1.0), flip=True, window=(32, 32))
    made = segmenter(UNET, classes=CLASSES, protocol=protocol, device=CPU)
    whole = made.predict(image_HWC, probabilities=True).probabilities_KHW
    for rows in (1, 7, 89):
        plan = Plan((32, 32), rows, 1, forced=False)
        bands = [band_KHW for _, band_KHW in made._averaged(image_HWC, (90, 40), plan)]
        assert len(bands) == -(-90 // rows)
        np.testing.assert_allclose(torch.cat(bands, 1).numpy(), whole, atol=1e-6)


def test_too_small_a_limit_is_refused_with_what_would_do():
    with pytest.raises(ResourceError, match="allow at least") as caught:
        segmenter(UNET, classes=CLASSES, device=CPU, limit=10_000).predict(image((64, 64)))
    assert caught.value.exit_code == 4
    needed = int(str(caught.value).split("allow at least ")[1].split(" ")[0])
    segmenter(UNET, classes=CLASSES, device=CPU, limit=max(1, needed) * 2**20).predict(image((64, 64)))
    with pytest.raises(ResourceError, match="window of 64x64"):
        wanted = Protocol(window=(64, 64))
        segmenter(UNET, classes=CLASSES, protocol=wanted, device=CPU, limit=500_000).predict(image((64, 64)))


LARGE = r"""
import re, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from mmseg_cli.evaluation.on_torch import segmenter
from mmseg_cli.evaluation.segmenter import Protocol
from mmseg_cli.models.unet import build_network
torch.set_num_threads(1)
network = build_network(task="segmentation", num_classes=int(sys.argv[2]), block="mbconv", layout="uniform", width=4,
    depth=1, levels=2, stem_stride=4, expansion=1, se_ratio=0.25, norm="batch", activation="silu")
limit = int(sys.argv[1]) * 2**20
made = segmenter(network, classes=int(sys.argv[2]), device=torch.device("cpu"), limit=limit,
    protocol=Protocol(scales=(0.5, 1.0, 2.0), flip=True))
made.predict(np.zeros((64, 64, 3), np.uint8))
image_HWC = np.zeros((1024, 2048, 3), np.uint8)
image_HWC += 1
def bytes_of(name):
    return 1024 * int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = bytes_of("VmRSS")
print(made.plan((1024, 2048), (1024, 2048)), file=sys.stderr)
made.predict(image_HWC)
print((bytes_of("VmHWM") - before) / limit)
"""


@pytest.mark.parametrize(("mebibytes", "classes"), [(128, 4), pytest.param(512, 19, marks=pytest.mark.slow)])
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_a_large_image_at_three_scales_stays_within_the_limit(mebibytes, classes):
    command = [sys.executable, "-c", textwrap.dedent(LARGE), str(mebibytes), str(classes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "forced=True" in done.stderr
    assert 0.2 < float(done.stdout) < 1.0


WHOLE = LARGE.replace("limit = int(sys.argv[1]) * 2**20", "limit = 2**30").replace(
    "    protocol=Protocol(scales=(0.5, 1.0, 2.0), flip=True))",
    """)
size = (1024, 2048)
limit = next(n for n in range(2**26, 2**30, 2**22) if replace(made, limit=n).plan(size, size).window is None)
made = replace(made, limit=limit)""",
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_a_whole_image_is_predicted_whole_as_soon_as_it_fits():
    """The least limit under which the plain prediction is whole is kept, and not much more than is needed."""
    command = [sys.executable, "-c", textwrap.dedent(WHOLE), "0", "19"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "window=None" in done.stderr
    assert 0.5 < float(done.stdout) < 1.0


@pytest.mark.parametrize(
    ("changes", "folded"),
    [({}, False), ({"graphs": False}, True), ({"compile": True}, True)],
)
def test_norms_are_folded_where_no_graph_sees_to_them(monkeypatch, changes, folded):
    calls = []
    monkeypatch.setattr(on_torch, "predicts_by_graph", lambda network, device: True)
    monkeypatch.setattr(on_torch, "fold_norms", lambda network: calls.append("folded") or network)
    monkeypatch.setattr(torch, "compile", lambda network: network)
    on_torch.segmenter(UNET, classes=CLASSES, device=CPU, fold=True, **changes)
    assert bool(calls) == folded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("protocol", [PLAIN, Protocol(scales=(0.5, 1.0), flip=True, window=(32, 32))])
def test_a_gpu_predicts_what_the_cpu_does(protocol):
    image_HWC = image((60, 80))
    on_gpu = segmenter(UNET, classes=CLASSES, device=torch.device("cuda"), protocol=protocol, limit=2**30)
    for _ in range(3):  # one by one, captured, replayed
        made = on_gpu.predict(image_HWC, size=(50, 70), confidence=True, probabilities=True)
    on_cpu = segmenter(UNET.cpu(), classes=CLASSES, device=CPU, protocol=protocol)
    expected = on_cpu.predict(image_HWC, size=(50, 70), confidence=True, probabilities=True)
    np.testing.assert_allclose(made.probabilities_KHW, expected.probabilities_KHW, atol=1e-4)
    np.testing.assert_allclose(made.confidence_HW, expected.confidence_HW, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- protocols


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (0.0,)}, "0: not above 0"),
        ({"scales": (17.0,)}, "at most 16"),
        ({"window": (0, 5)}, "window"),
        ({"overlap": 1.0}, "overlap"),
    ],
)
def test_what_is_no_protocol_is_refused(values, words):
    with pytest.raises(MmsegError, match=words):
        Protocol(**values)


def test_a_protocol_says_what_it_is():
    assert PLAIN.text() == "single scale, whole images"
    wanted = Protocol(scales=(0.5, 1.0), flip=True, window=(32, 64), overlap=0.25, weights="flat")
    assert wanted.text() == "scales 0.5, 1, mirrored too, flat windows of 32x64, overlap 0.25"
