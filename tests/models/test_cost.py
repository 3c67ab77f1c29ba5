"""Costs: pinned numbers beside their hand formulas, hand-counted activations, and the two measurements."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models import cost
from mmseg_cli.models.blocks import build_block
from mmseg_cli.models.cost import (
    Cost,
    Work,
    activation_bytes,
    block_cost,
    describe,
    macs,
    parameters,
    peak_training_bytes,
    step_seconds,
)
from mmseg_cli.models.unet import build_network
from mmseg_cli.names import BLOCK_NAMES

# One block: W channels, HIDDEN = 2 W, squeeze-excite to R = W / 4, on a map of 8x8 = PIXELS.
W, HIDDEN, R, PIXELS = 16, 32, 4, 64
SE_WEIGHTS = 2 * HIDDEN * R
SE_BIASES = R + HIDDEN
NORM_WEIGHTS = 2  # of a channel: a scale and a shift
# A convolution between the W and the HIDDEN channels, in either direction, has so many weights and no bias.
FULL = W * HIDDEN
GROUPED = 8 * (W // 8) * (HIDDEN // 8)  # 8 divides both: eight small ones side by side, for each place of the kernel
COLUMN_AND_ROW = 3 * (W * W + W * HIDDEN)  # the fewer channels, W, are those between the two

# The convolutions of the inverted-residual family, each with the channels of the norm behind it.
INVERTED = {
    "mbconv": [(FULL, HIDDEN), (9 * HIDDEN, HIDDEN), (FULL, W)],
    "mmbconv": [(9 * FULL, HIDDEN), (9 * HIDDEN, HIDDEN), (9 * FULL, W)],
    "mmbconv-expand": [(9 * FULL, HIDDEN), (9 * HIDDEN, HIDDEN), (FULL, W)],
    "mmbconv-project": [(FULL, HIDDEN), (9 * HIDDEN, HIDDEN), (9 * FULL, W)],
    "mmbconv-grouped": [(9 * GROUPED, HIDDEN), (9 * HIDDEN, HIDDEN), (9 * GROUPED, W)],
    "mmbconv-separable": [(COLUMN_AND_ROW, HIDDEN), (9 * HIDDEN, HIDDEN), (COLUMN_AND_ROW, W)],
    "mbconv-k7": [(FULL, HIDDEN), (49 * HIDDEN, HIDDEN), (FULL, W)],
    "fused-mbconv": [(9 * FULL, HIDDEN), (FULL, W)],
}
HAND_PARAMETERS = {"residual": 2 * 9 * W * W + 2 * NORM_WEIGHTS * W} | {
    name: sum(weights + NORM_WEIGHTS * channels for weights, channels in layers) + SE_WEIGHTS + SE_BIASES
    for name, layers in INVERTED.items()
}
HAND_MACS_PER_PIXEL = {"residual": 2 * 9 * W * W} | {
    name: sum(weights for weights, _ in layers) for name, layers in INVERTED.items()
}
HAND_MACS_PER_MAP = {"residual": 0} | dict.fromkeys(INVERTED, SE_WEIGHTS)

PINNED_BLOCKS = {
    "residual": (4_672, 294_912),
    "mbconv": (1_764, 84_224),
    "mmbconv": (9_956, 608_512),
    "mmbconv-expand": (5_860, 346_368),
    "mmbconv-project": (5_860, 346_368),
    "mmbconv-grouped": (1_892, 92_416),
    "mmbconv-separable": (5_348, 313_600),
    "mbconv-k7": (3_044, 166_144),
    "fused-mbconv": (5_508, 327_936),
}
# The uniform network of the same blocks at a 64x96 image.
PINNED_NETWORKS = {
    "residual": (41_995, 21_430_272),
    "mbconv": (21_639, 8_063_488),
    "mmbconv": (78_983, 41_290_240),
    "mmbconv-expand": (50_311, 24_676_864),
    "mmbconv-project": (50_311, 24_676_864),
    "mmbconv-grouped": (22_535, 8_582_656),
    "mmbconv-separable": (46_727, 22_600_192),
    "mbconv-k7": (30_599, 13_255_168),
    "fused-mbconv": (47_847, 23_508_736),
}


def network_arguments(block: str) -> dict[str, object]:
    return {
        "task": "segmentation",
        "num_classes": 11,
        "block": block,
        "layout": "uniform",
        "width": W,
        "depth": 1,
        "levels": 4,
        "stem_stride": 2,
        "expansion": 2,
        "se_ratio": 0.25,
        "norm": "batch",
        "activation": "relu",
    }


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_block_costs_are_pinned(name: str) -> None:
    got = block_cost(name, width=W, height=8, width_px=8, expansion=2, se_ratio=0.25, norm="batch", activation="relu")
    assert (got.parameters, got.macs) == PINNED_BLOCKS[name]
    assert got.parameters == HAND_PARAMETERS[name]
    assert got.macs == PIXELS * HAND_MACS_PER_PIXEL[name] + HAND_MACS_PER_MAP[name]


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_network_costs_are_pinned(name: str) -> None:
    with torch.device("meta"):
        network = build_network(**network_arguments(name))
    got = describe(network, (1, 3, 64, 96))
    assert (got.parameters, got.macs) == PINNED_NETWORKS[name]

    stem, down, half, head = 3 * 9 * W, 9 * W * W, W * W, 11 * W  # half: what joins the skip, or the coarser feature
    norm = 2 * W
    assert got.parameters == (stem + norm) + 7 * HAND_PARAMETERS[name] + 3 * (down + norm + 2 * half + norm) + head + 11

    pixels = [32 * 48 // 4**level for level in range(4)]
    blocks = [2, 2, 2, 1]  # encoder and decoder, but one bottom
    by_hand = (stem + head) * pixels[0] + sum(down * n for n in pixels[1:])
    by_hand += sum(half * n for n in pixels[:3]) + sum(half * n for n in pixels[1:])  # the latter before upsampling
    for count, n in zip(blocks, pixels, strict=True):
        by_hand += count * (HAND_MACS_PER_PIXEL[name] * n + HAND_MACS_PER_MAP[name])
    assert got.macs == by_hand


def test_wider_kernels_keep_the_activations_of_mbconv() -> None:
    # What the paper's "+10 % memory" is made of is weights and working memory: the kept maps are the same.
    with torch.device("meta"):
        kept = {
            name: activation_bytes(build_network(**network_arguments(name)), (2, 3, 64, 96)) for name in BLOCK_NAMES
        }
    # The shuffle of the grouped row is made again from what is kept.
    names = ("mbconv", "mmbconv", "mmbconv-expand", "mmbconv-project", "mmbconv-grouped", "mbconv-k7")
    assert {kept[name] for name in names} == {kept["mbconv"]}
    assert kept["mbconv"] > kept["residual"]
    # One map of W channels at each level: 2 images, float32.
    maps = [4 * 2 * W * 32 * 48 // 4**level for level in range(4)]
    every_block = sum(count * one for count, one in zip([2, 2, 2, 1], maps, strict=True))
    # Of a block its input, its output, and the inputs of its norms: HIDDEN, HIDDEN and W channels. Around the blocks
    # the image and the norms' inputs behind the stem, three times down and three times joined. Of every norm a mean
    # and a deviation.
    norms = 2 * 4 * (7 * W + 7 * (2 * HIDDEN + W))
    assert kept["mbconv"] == 4 * 2 * 3 * 64 * 96 + 7 * every_block + sum(maps) + sum(maps[:3]) + norms
    hidden = 2 * every_block  # one map of HIDDEN channels in all blocks
    assert kept["mmbconv-separable"] == kept["mbconv"] + hidden  # W channels behind each of two columns
    # Without a depthwise convolution no input of its norm; a mean and a deviation.
    assert kept["fused-mbconv"] == kept["mbconv"] - hidden - 7 * 2 * 4 * HIDDEN


@pytest.mark.parametrize("width", [16, 24, 32, 48, 64])
def test_grouping_answers_the_ninefold_weights(width: int) -> None:
    """In eight groups a 3x3 has 9/8 of the weights of a full 1x1, so the block costs little more than MBConv."""

    def dense(name: str) -> int:
        block = build_block(name, width, width, expansion=2, se_ratio=0, norm="batch", activation="relu")
        return block.expand.conv.weight.numel() + block.project.weight.numel()

    assert dense("mmbconv-grouped") * 8 == dense("mbconv") * 9 == dense("mmbconv")


def test_activations_against_a_hand_count() -> None:
    images, maps = 3 * 8 * 8 * 4, 4 * 8 * 8 * 4  # bytes of the input and of one map of four channels
    conv = nn.Conv2d(3, 4, 3, padding=1)
    assert activation_bytes(nn.Sequential(conv, nn.ReLU()), (1, 3, 8, 8)) == images + maps == 1792
    # Batch norm keeps its input and, per channel, a mean and a deviation; ReLU keeps its output.
    with_norm = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU())
    assert activation_bytes(with_norm, (1, 3, 8, 8)) == images + 2 * maps + 2 * 4 * 4 == 2848


def test_a_storage_that_two_operations_keep_counts_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x_BCHW: Tensor) -> Tensor:
            return self.one(x_BCHW) + self.two(x_BCHW)

    assert activation_bytes(Twice(), (1, 3, 8, 8)) == 3 * 8 * 8 * 4


def test_activations_grow_with_the_batch_but_weights_do_not_count() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 4096, 1), nn.Conv2d(4096, 1, 1))
    one, two = (activation_bytes(wide, (batch, 3, 2, 2)) for batch in (1, 2))
    assert two == 2 * one == 2 * (3 + 4096) * 4 * 4


def test_counting_leaves_the_module_as_it_was() -> None:
    network = build_network(**network_arguments("mmbconv"))
    network.head.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    describe(network, (2, 3, 32, 32))
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_large_image_costs_no_time() -> None:
    start = time.perf_counter()
    with torch.device("meta"):
        network = build_network(**{**network_arguments("mmbconv"), "width": 256})
    got = describe(network, (8, 3, 1024, 2048))
    assert isinstance(got, Cost)
    assert got.activation_bytes > 9 * 10**10
    assert time.perf_counter() - start < 10


def test_counts_do_not_depend_on_where_the_weights_lie() -> None:
    size = (1, 3, 32, 48)
    with torch.device("meta"):
        on_meta = build_network(**network_arguments("mbconv"))
    assert describe(build_network(**network_arguments("mbconv")), size) == describe(on_meta, size)


def test_a_linear_layer_and_shared_weights() -> None:
    linear = nn.Linear(5, 5)
    assert parameters(nn.Sequential(linear, linear)) == 30
    assert macs(nn.Sequential(linear, linear), (2, 5)) == 2 * 2 * 25


def test_a_misspelled_block_is_a_one_line_error() -> None:
    with pytest.raises(MmsegError, match="did you mean mmbconv"):
        block_cost("mmbcomv", width=W, height=8, width_px=8, expansion=2, se_ratio=0, norm="batch", activation="relu")


class Recorder(nn.Module):
    """Notes its name in a common list at every call."""

    def __init__(self, name: str, calls: list[str], *, dense: bool) -> None:
        super().__init__()
        self.name, self.calls, self.dense = name, calls, dense
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.calls.append(self.name)
        assert self.training
        assert x_BCHW.is_contiguous(memory_format=torch.channels_last)
        logits_BKHW = self.conv(x_BCHW)
        return logits_BKHW if self.dense else logits_BKHW.mean((2, 3))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_steps_are_measured_in_turns_and_train(autocast: torch.dtype | None) -> None:
    calls: list[str] = []
    networks = {name: Recorder(name, calls, dense=name != "c") for name in "abc"}
    before = {name: network.conv.weight.clone() for name, network in networks.items()}
    seconds = step_seconds(networks, work=Work(2, 4, 6, "cpu", autocast=autocast), repeats=2, warmup=1)
    assert calls == list("abc") * 3
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(sample > 0 for samples in seconds.values() for sample in samples)
    assert not any(torch.equal(before[name], network.conv.weight) for name, network in networks.items())


def test_peak_memory_on_the_cpu_holds_at_least_the_activations() -> None:
    arguments = network_arguments("mbconv")
    got = peak_training_bytes(build_network, arguments, work=Work(4, 128, 192, "cpu"))
    kept = activation_bytes(build_network(**arguments), (4, 3, 128, 192))
    assert kept < got < 4 * kept


def test_peak_memory_refuses_bad_arguments_before_it_starts_a_process() -> None:
    with pytest.raises(MmsegError, match="levels: 0 is too small"):
        peak_training_bytes(build_network, {**network_arguments("mbconv"), "levels": 0}, work=Work(1, 8, 8, "cpu"))


def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_proc_status_bytes", lambda field: None)
    before = cost.restart_peak(torch.device("cpu"))
    assert before > 10**7
    held = torch.ones(before // 4 + 5 * 10**6)  # more than was ever resident
    assert cost.peak_bytes(torch.device("cpu")) - before > 10**7
    del held


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_measurements_on_cuda() -> None:
    arguments = network_arguments("mmbconv")
    work = Work(4, 128, 192, "cuda")
    got = peak_training_bytes(build_network, arguments, work=work)
    assert activation_bytes(build_network(**arguments), (4, 3, 128, 192)) * 0.8 < got
    seconds = step_seconds({"a": build_network(**arguments)}, work=work, repeats=2, warmup=1)
    assert len(seconds["a"]) == 2


def test_a_block_counts_the_same_alone_and_described() -> None:
    block = build_block("mmbconv", W, W, expansion=2, se_ratio=0.25, norm="group", activation="silu")
    assert describe(block, (1, W, 8, 8)) == block_cost(
        "mmbconv", width=W, height=8, width_px=8, expansion=2, se_ratio=0.25, norm="group", activation="silu"
    )
