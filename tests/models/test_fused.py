"""The GPU's kernels, run by Triton's interpreter on the CPU; and on a GPU, where there is one, as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmseg_cli.models import fused, lean
from mmseg_cli.models.layers import conv, norm
from mmseg_cli.models.resizing import enlarged_cross_entropy
from mmseg_cli.models.unet import build_network

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU and not INTERPRETED else "cpu"
here = pytest.mark.skipif(not (INTERPRETED or ON_GPU), reason="by the interpreter, or on a GPU")
CLASSES = 5


@pytest.mark.skipif(INTERPRETED or ON_GPU, reason="this is how the others get their interpreter")
@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_by_the_interpreter(marked: str) -> None:
    """Triton looks at the switch when the kernels are defined, hence a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-x", "-m", marked, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What ran fused; on the CPU the interpreter is asked as a GPU would be."""
    calls: list[str] = []
    run = fused.run

    def noted(x_BCHW, norm, act, between, conv):
        calls.append(type(act).__name__ + ("" if conv is None else f" conv{conv.groups > 1:d}") + " se" * len(between))
        return run(x_BCHW, norm, act, between, conv)

    monkeypatch.setattr(fused, "run", noted)
    if DEVICE == "cpu":
        serves = fused.serves

        class Cuda:
            is_cuda = True

            def __init__(self, x: Tensor) -> None:
                self.is_contiguous, self.dtype, self.shape, self.numel = x.is_contiguous, x.dtype, x.shape, x.numel

        monkeypatch.setattr(fused, "serves", lambda x_BCHW, act, between: serves(Cuda(x_BCHW), act, between))
    with fused.serving(torch.device(DEVICE)):
        yield calls


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.detach() - wanted.detach().double()).norm() / wanted.detach().double().norm().clamp(min=1e-12))


def trained(block: str, *, activation: str, plain: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The loss of one network on one batch, its gradients, and its running statistics."""
    torch.manual_seed(0)
    network = build_network(
        task="segmentation", num_classes=CLASSES, block=block, layout="uniform", width=16, depth=1, levels=3,
        stem_stride=4, expansion=3, se_ratio=0.25, norm="batch", activation=activation,
    )  # fmt: skip
    network.to(device=DEVICE, memory_format=torch.channels_last)
    images_BCHW = torch.rand(2, 3, 36, 52).to(device=DEVICE, memory_format=torch.channels_last)
    class_BHW = torch.randint(0, CLASSES, (2, 36, 52)).to(DEVICE)
    with lean.plain_path(on=plain):
        logits_BKhw = network(images_BCHW)
        share_BHW = torch.full(class_BHW.shape, 1 / class_BHW.numel(), device=DEVICE)
        loss = enlarged_cross_entropy(logits_BKhw, class_BHW, share_BHW)
        (2.0**12 * loss).backward()  # float16 ends at 6e-8
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return loss.detach(), gradients, [buffer.double() for buffer in network.buffers()]


@here
@pytest.mark.parametrize(
    ("block", "activation"),
    [
        ("mmbconv", "silu"),
        pytest.param("residual", "silu", marks=pytest.mark.slow),
        pytest.param("mbconv", "relu", marks=pytest.mark.slow),
        pytest.param("mmbconv-separable", "silu", marks=pytest.mark.slow),
    ],
)
def test_a_network_trains_as_on_the_plain_path(served: list[str], block: str, activation: str) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain = trained(block, activation=activation, plain=True)
        assert not served
        got = trained(block, activation=activation, plain=False)
    assert served
    assert block == "residual" or any("se" in call for call in served)
    assert relative(got[0], plain[0]) < 1e-6
    for ours, theirs in zip(got[1], plain[1], strict=True):
        assert ours.stride() == theirs.stride() or 1 in ours.shape
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max()) + 1e-4
    for ours, theirs in zip(got[2], plain[2], strict=True):
        assert relative(ours, theirs) < 1e-5


@here
@pytest.mark.parametrize(
    ("block", "activation"),
    [
        ("mmbconv", "silu"),
        ("mmbconv-grouped", "relu"),
        pytest.param("residual", "relu", marks=pytest.mark.slow),
        pytest.param("residual", "hardswish", marks=pytest.mark.slow),
    ],
)
def test_a_network_predicts_as_on_the_plain_path(served: list[str], block: str, activation: str) -> None:
    torch.manual_seed(0)
    network = build_network(
        task="segmentation", num_classes=CLASSES, block=block, layout="uniform", width=16, depth=1, levels=3,
        stem_stride=4, expansion=3, se_ratio=0.25, norm="batch", activation=activation,
    )  # fmt: skip
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    network.to(device=DEVICE, memory_format=torch.channels_last).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images_BCHW = torch.rand(2, 3, 36, 52).to(device=DEVICE, memory_format=torch.channels_last)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        with lean.plain_path():
            plain_BKHW = network(images_BCHW)
        assert not served
        logits_BKHW = network(images_BCHW)
    assert served
    assert any(call.startswith(("SiLU", "ReLU")) for call in served) == (activation != "hardswish")
    before_depthwise = any("conv1" in call and "se" not in call for call in served)
    assert before_depthwise == (block == "mmbconv")  # what a shuffle is part of is left to torch
    assert relative(logits_BKHW, plain_BKHW) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@here
@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [(16, 9, 13), (40, 1, 1), (33, 2, 70), pytest.param(48, 37, 5, marks=pytest.mark.slow)],
)
def test_depthwise_convolutions(channels: int, height: int, width: int) -> None:
    from mmseg_cli.models import kernels

    torch.manual_seed(0)
    x_BCHW, dy_BCHW = (
        torch.randn(3, channels, height, width).to(device=DEVICE, memory_format=torch.channels_last) for _ in range(2)
    )
    depthwise = conv(channels, channels, kernel_size=3, groups=channels).to(DEVICE)
    exact, x64_BCHW = depthwise.double(), x_BCHW.double().requires_grad_()
    wanted_BCHW = exact(x64_BCHW)
    wanted_BCHW.backward(dy_BCHW.double())
    kernel = exact.weight.detach().float()
    assert relative(kernels.depthwise(x_BCHW, kernel), wanted_BCHW) < 1e-6
    assert relative(kernels.depthwise(dy_BCHW, kernel, reflected=True), x64_BCHW.grad) < 1e-6
    assert relative(kernels.depthwise_weight(x_BCHW, dy_BCHW), exact.weight.grad) < 1e-6


@here
@pytest.mark.parametrize("programs", [3, pytest.param(4096, marks=pytest.mark.slow)])
def test_sums_of_few_long_chunks_and_of_many(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    from mmseg_cli.models import kernels

    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    torch.manual_seed(0)
    x_BCHW, dy_BCHW = (
        torch.randn(2, 16, 57, 83).to(device=DEVICE, memory_format=torch.channels_last) for _ in range(2)
    )
    count = kernels._chunks(2 * 57 * 83, 1, step=32)[1]
    assert count < 4 if programs == 3 else count > kernels.FINISHED
    x64_BCHW = x_BCHW.double().requires_grad_()
    layer = nn.BatchNorm2d(16).to(device=DEVICE, dtype=torch.float64)
    wanted_BCHW = layer(x64_BCHW).clamp(min=0)
    wanted_BCHW.backward(dy_BCHW.double())
    running = [torch.zeros(16, device=DEVICE), torch.ones(16, device=DEVICE)]
    weight_C, bias_C = layer.weight.detach().float(), layer.bias.detach().float()
    norm_4C = kernels.batch_norm(x_BCHW, weight_C, bias_C, *running, momentum=0.1, eps=layer.eps)
    assert relative(kernels.activated(x_BCHW, norm_4C, None, activation="relu"), wanted_BCHW) < 1e-6
    assert relative(kernels.pooled(x_BCHW, norm_4C, activation="relu"), wanted_BCHW.mean((2, 3))) < 1e-6
    dbias_C, dweight_C = kernels.gradient_sums(x_BCHW, dy_BCHW, norm_4C, gated=False, activation="relu").sum(1)
    assert relative(dbias_C, layer.bias.grad) < 1e-5
    assert relative(dweight_C, layer.weight.grad) < 1e-5
    dx_BCHW = kernels.norm_backward(x_BCHW, dy_BCHW, norm_4C, dbias_C, dweight_C, None, None, activation="relu")
    assert relative(dx_BCHW, x64_BCHW.grad) < 1e-5
    assert relative(running[1], layer.running_var) < 1e-5


@here
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("activation", ["silu", "relu", "none"])
def test_what_is_not_finite_shows(broken: float, activation: str) -> None:
    from mmseg_cli.models import kernels

    x_BCHW = torch.rand(2, 16, 5, 7).to(device=DEVICE, memory_format=torch.channels_last)
    x_BCHW[1, 3, 2, 2] = broken
    one_C = torch.ones(16, device=DEVICE)
    running = [torch.zeros(16, device=DEVICE), one_C.clone()]
    norm_4C = kernels.batch_norm(x_BCHW, one_C, one_C, *running, momentum=0.1, eps=1e-5)
    y_BCHW = kernels.activated(x_BCHW, norm_4C, None, activation=activation)
    assert y_BCHW[:, 3].isnan().any()
    assert running[1][3].isnan()
    assert y_BCHW[:, :3].isfinite().all()
    assert running[1][:3].isfinite().all()


@here
def test_statistics_of_maps_far_from_zero() -> None:
    """A mean of a thousand deviations: a difference of two sums of squares in float32 would be noise."""
    from mmseg_cli.models import kernels

    torch.manual_seed(0)
    x_BCHW = (torch.randn(4, 24, 33, 31) + 1000).to(device=DEVICE, memory_format=torch.channels_last)
    layer = norm("batch", 24).to(DEVICE)
    running = [torch.zeros(24, device=DEVICE), torch.ones(24, device=DEVICE)]
    norm_4C = kernels.batch_norm(x_BCHW, layer.weight, layer.bias, *running, momentum=0.25, eps=1e-5)
    exact = x_BCHW.double()
    mean_C, var_C = exact.mean((0, 2, 3)), exact.var((0, 2, 3), unbiased=False)
    assert relative(norm_4C[2], mean_C) < 1e-6
    assert relative(norm_4C[3], (var_C + 1e-5).rsqrt()) < 1e-5
    assert relative(running[0], 0.25 * mean_C) < 1e-6
    assert relative(running[1], 0.75 + 0.25 * exact.var((0, 2, 3))) < 1e-5


@here
@pytest.mark.parametrize("channels", [5, 128, 300])
def test_a_norm_by_the_statistics_it_keeps(channels: int) -> None:
    from mmseg_cli.models import kernels

    torch.manual_seed(0)
    weight_C, bias_C, mean_C, var_C = (torch.rand(channels, device=DEVICE) + 0.1 for _ in range(4))
    scale_C, shift_C, *rest = kernels.kept_norm(weight_C, bias_C, mean_C, var_C, eps=1e-3)
    x_C = torch.randn(channels, device=DEVICE)
    wanted_C = (x_C.double() - mean_C) / (var_C.double() + 1e-3).sqrt() * weight_C + bias_C
    assert relative(x_C * scale_C + shift_C, wanted_C) < 1e-6
    assert relative(rest[0], mean_C) < 1e-6
    assert relative(rest[1], (var_C.double() + 1e-3).rsqrt()) < 1e-6


@here
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_nearer_to_float32_than_the_plain_path(served: list[str], dtype: torch.dtype) -> None:
    exact = trained("mmbconv", activation="silu", plain=True)
    with torch.autocast("cuda", dtype=dtype):
        plain = trained("mmbconv", activation="silu", plain=True)
        got = trained("mmbconv", activation="silu", plain=False)
    assert served
    differ, plainly = (
        sum(relative(a, b) for a, b in zip(of[1], exact[1], strict=True)) / len(exact[1]) for of in (got, plain)
    )
    assert differ < 1.1 * plainly
    again = trained("mmbconv", activation="silu", plain=False)
    assert relative(again[0], exact[0]) < 1e-5


@here
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_the_same_bits_every_time(served: list[str]) -> None:
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        first, second = (trained("mmbconv", activation="silu", plain=False) for _ in range(2))
    assert served
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


@here
def test_images_beyond_32_bits_are_left_to_lean(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    x_BCHW = torch.zeros(3, 4, 5, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    for largest, fits in ((100, True), (99, False)):  # of one image
        monkeypatch.setattr(fused, "LARGEST", largest)
        assert fused.serves(x_BCHW, nn.SiLU(), []) is fits


def test_what_does_not_fit_is_left_to_lean() -> None:
    x_BCHW = torch.zeros(2, 4, 3, 3)
    with fused.serving(torch.device("cpu")):
        assert not fused.serves(x_BCHW, nn.SiLU(), [])
