"""Recomputation changes memory and nothing else; stochastic depth; deep supervision."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from mmseg_cli.errors import MmsegError
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.blocks import InvertedResidual, build_block
from mmseg_cli.models.cost import activation_bytes
from mmseg_cli.models.unet import (
    ClassificationNetwork,
    SegmentationNetwork,
    build_network,
    recompute_blocks,
    set_stochastic_depth,
)
from mmseg_cli.names import BLOCK_NAMES

CLASSES = 5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks of this size are slower with more of them, on a busy machine by much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(**changes: object) -> SegmentationNetwork | ClassificationNetwork:
    settings: dict[str, object] = {
        "task": "segmentation",
        "num_classes": CLASSES,
        "block": "mbconv",
        "layout": "uniform",
        "width": 8,
        "depth": 2,
        "levels": 3,
        "stem_stride": 2,
        "expansion": 2,
        "se_ratio": 0.25,
        "norm": "batch",
        "activation": "silu",
    }
    torch.manual_seed(0)
    return build_network(**{**settings, **changes})


class Custom(nn.Module):
    """A block such as a user may write: it draws, its branch keeps state of its own, and it knows no drop_path."""

    def __init__(self, *, seen: list[str] | None = None) -> None:
        super().__init__()
        self.conv = parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.norm = nn.BatchNorm2d(8)
        self.seen = [] if seen is None else seen

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.seen.append("forward")
        return x_BCHW + nn.functional.dropout(self.norm(self.conv(x_BCHW)).relu(), 0.5, self.training)


def step(network: nn.Module, *, autocast: bool = False, seed: int = 1) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of one training step."""
    torch.manual_seed(seed)
    network.train().zero_grad()
    x_BCHW = torch.randn(3, 3, 40, 56)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = network(x_BCHW)
    outs = out if isinstance(out, list) else [out]
    torch.autograd.backward(sum((logits_BKHW.float() ** 2).mean() for logits_BKHW in outs))
    seen = {f"out{index}": logits_BKHW.detach() for index, logits_BKHW in enumerate(outs)}
    seen |= {f"d{name}": parameter.grad.clone() for name, parameter in network.named_parameters()}
    return seen | {name: buffer.clone() for name, buffer in network.named_buffers()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [key for key in one if not torch.equal(one[key], other[key])]


def kept_bytes(network: nn.Module) -> int:
    """Bytes that autograd keeps of one real forward pass, weights left out, each storage once."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network.train()(torch.randn(2, 3, 64, 64))
    for parameter in network.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    del out
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("block", BLOCK_NAMES)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.6])
def test_recomputation_changes_no_bit(block: str, norm: str, autocast: bool, rate: float) -> None:
    steps = []
    for recompute in (False, True):
        network = make(block=block, norm=norm)
        set_stochastic_depth(network, rate)
        recompute_blocks(network, recompute)
        step(network, autocast=autocast)
        steps.append(step(copy.deepcopy(network), autocast=autocast, seed=2))
    assert differing(*steps) == []
    tracked = [value for key, value in steps[1].items() if key.endswith("num_batches_tracked")]
    assert all(value == 2 for value in tracked)  # one for each step, not for each run
    assert len(tracked) > 10 or norm == "group"


def test_recomputation_in_other_wrappings() -> None:
    for wrap in (lambda: make(task="classification"), lambda: DeepSupervision(make())):
        steps = []
        for recompute in (False, True):
            network = wrap()
            recompute_blocks(network, on=recompute)
            steps.append(step(network))
        assert differing(*steps) == []


def test_a_users_block_is_recomputed_with_its_draws_and_its_state() -> None:
    steps, calls = [], []
    for recompute in (False, True):
        network = make()
        seen: list[str] = []
        network.body.encoder["level1"].block1 = Custom(seen=seen)
        network.body.decoder["level0"].block0 = Custom(seen=seen)
        recompute_blocks(network, recompute)
        steps.append(step(network))
        calls.append(len(seen))
    assert calls == [2, 4]
    assert differing(*steps) == []


def test_recomputation_needs_training_and_gradients_and_can_be_turned_off() -> None:
    network, seen = make(), []
    network.body.encoder["level0"].block0 = Custom(seen=seen)
    x_BCHW = torch.randn(2, 3, 32, 32)
    recompute_blocks(network)
    assert [level.recompute for level in [*network.body.encoder.values(), *network.body.decoder.values()]] == [True] * 5
    network.eval()(x_BCHW).sum().backward()
    with torch.no_grad():
        network.train()(x_BCHW)
    assert len(seen) == 2
    recompute_blocks(network, False)
    network(x_BCHW).sum().backward()
    assert len(seen) == 3


def test_only_blocks_are_recomputed() -> None:
    network = make()
    calls: dict[str, int] = {}

    def count(name: str) -> object:
        return lambda *_: calls.__setitem__(name, calls.get(name, 0) + 1)

    inside = [name for name, _ in network.named_modules() if "block" in name and name.endswith("depthwise.conv")]
    outside = ["body.stem.conv0.conv", "body.encoder.level1.down.conv", "head.classifier"]
    for name in inside + outside:
        network.get_submodule(name).register_forward_hook(count(name))
    recompute_blocks(network)
    step(network)
    assert calls == dict.fromkeys(inside, 2) | dict.fromkeys(outside, 1)
    assert network.body.decoder["level0"].fuse.norm.num_batches_tracked == 1  # its convolution runs in two parts


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_recomputation_keeps_less(block: str) -> None:
    network = make(block=block)
    kept, counted = kept_bytes(network), activation_bytes(network, (2, 3, 64, 64))
    recompute_blocks(network)
    less, counted_less = kept_bytes(network), activation_bytes(network, (2, 3, 64, 64))
    assert less < 0.6 * kept
    assert counted_less < 0.6 * counted  # the cost model sees it, too


def test_backward_twice() -> None:
    network = make()
    recompute_blocks(network)
    x_BCHW = torch.randn(2, 3, 32, 32)
    loss = network.train()(x_BCHW).square().sum()
    gradients = [torch.autograd.grad(loss, list(network.parameters()), retain_graph=True) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert network.body.encoder["level0"].block0.project_norm.num_batches_tracked == 1


def drop_paths(network: nn.Module) -> list[nn.Module]:
    return [module.drop_path for module in network.modules() if hasattr(module, "drop_path")]


def test_stochastic_depth_rises_with_depth_and_has_no_keys() -> None:
    network = make()
    keys = list(network.state_dict())
    set_stochastic_depth(network, 0.45)
    first, *others = drop_paths(network)
    assert isinstance(first, nn.Identity)
    assert [path.p for path in others] == pytest.approx([0.05 * index for index in range(1, 10)])
    assert all(path.mode == "row" for path in others)
    # In the order in which they run: encoder from fine to coarse, then decoder from coarse to fine.
    assert network.body.encoder["level0"].block1.drop_path.p == pytest.approx(0.05)
    assert network.body.decoder["level1"].block0.drop_path.p == pytest.approx(0.3)
    assert network.body.decoder["level0"].block1.drop_path.p == pytest.approx(0.45)
    assert list(network.state_dict()) == keys
    set_stochastic_depth(network, 0)
    assert all(type(path) is nn.Identity for path in drop_paths(network))


def test_a_single_block_gets_the_rate() -> None:
    network = make(depth=1, levels=1)
    set_stochastic_depth(network, 0.25)
    assert drop_paths(network)[0].p == 0.25


@pytest.mark.parametrize("block", ["residual", "mbconv"])
def test_stochastic_depth_skips_whole_branches_and_keeps_their_expectation(block: str) -> None:
    torch.manual_seed(0)
    made = build_block(block, 8, 8, expansion=2, se_ratio=0.25, norm="group", activation="relu")
    network = make(depth=1, levels=1)
    network.body.encoder["level0"].block0 = made
    x_BCHW = torch.rand(1, 8, 6, 6) + 10 * (block == "residual")  # so far up that the last ReLU does nothing
    with torch.no_grad():
        expected_BCHW = made(x_BCHW)
        set_stochastic_depth(network, 0.25)
        many_BCHW = made.train()(x_BCHW.expand(4000, -1, -1, -1))
        branch_BCHW = (many_BCHW - x_BCHW).flatten(1)
        skipped = (branch_BCHW == 0).all(1)
        assert 0.22 < skipped.double().mean() < 0.28
        whole = (expected_BCHW - x_BCHW).flatten() / 0.75
        torch.testing.assert_close(branch_BCHW[~skipped], whole.expand(int((~skipped).sum()), -1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(many_BCHW.mean(0), expected_BCHW[0], rtol=0, atol=0.05 * float(whole.abs().max()))
        torch.testing.assert_close(made.eval()(x_BCHW), expected_BCHW, rtol=0, atol=0)


def test_without_a_skip_nothing_is_dropped() -> None:
    made = build_block("mbconv", 8, 4, expansion=2, se_ratio=0, norm="group", activation="relu")
    assert isinstance(made, InvertedResidual)
    made.drop_path = nn.Dropout(1.0)
    assert made(torch.rand(2, 8, 5, 5)).abs().sum() > 0


def test_the_seed_decides_what_is_skipped_and_evaluation_skips_nothing() -> None:
    network = make()
    x_BCHW = torch.randn(2, 3, 32, 32)
    plain_BKHW = network.eval()(x_BCHW)
    set_stochastic_depth(network, 0.7)
    assert torch.equal(network.eval()(x_BCHW), plain_BKHW)
    network.train()
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(network(x_BCHW))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_that_is_no_probability(rate: float) -> None:
    with pytest.raises(MmsegError, match=r"^stochastic_depth: .* is not a probability below 1: use"):
        set_stochastic_depth(make(), rate)


def test_a_users_block_without_drop_path_is_named_and_nothing_changed() -> None:
    network = make()
    network.body.decoder["level0"].block1 = Custom()
    set_stochastic_depth(network, 0)
    with pytest.raises(MmsegError, match=r"^stochastic_depth: the block Custom has no drop_path: give it"):
        set_stochastic_depth(network, 0.1)
    assert all(type(path) is nn.Identity for path in drop_paths(network))


def test_torchvision_is_imported_only_for_stochastic_depth() -> None:
    code = "import sys; import mmseg_cli.models.auxiliary; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("layout", ["uniform", "pyramid"])
def test_deep_supervision_gives_logits_of_every_decoder_level(layout: str) -> None:
    network = make(levels=4, depth=1, layout=layout)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    supervised = DeepSupervision(network)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())
    assert list(supervised.auxiliary) == ["level1", "level2"]  # level0 is the network's own, level3 the bottom
    assert {key for key in supervised.state_dict() if not key.startswith("network.")} == {
        f"auxiliary.level{level}.classifier.{kind}" for level in (1, 2) for kind in ("weight", "bias")
    }
    x_BCHW = torch.randn(2, 3, 37, 53)
    outs = supervised(x_BCHW)
    sizes = [(19, 27), (10, 14), (5, 7)]
    assert [tuple(logits_BKhw.shape) for logits_BKhw in outs] == [(2, CLASSES, *size) for size in sizes]
    copy.deepcopy(supervised)
    supervised.eval()
    assert supervised(x_BCHW).shape == (2, CLASSES, 37, 53)
    assert torch.equal(supervised(x_BCHW), network(x_BCHW))


def test_deep_supervision_runs_the_body_once() -> None:
    supervised, calls = DeepSupervision(make()), []
    supervised.network.body.register_forward_hook(lambda *_: calls.append(1))
    supervised(torch.randn(1, 3, 32, 32))
    assert calls == [1]


def test_every_auxiliary_head_reaches_its_own_level_and_those_below() -> None:
    supervised = DeepSupervision(make(levels=4, depth=1))
    body = supervised.network.body
    for index, level in enumerate(("level0", "level1", "level2")):
        supervised.zero_grad(set_to_none=True)
        supervised(torch.randn(2, 3, 64, 64))[index].square().sum().backward()
        own = supervised.network.head if index == 0 else supervised.auxiliary[level]
        assert own.classifier.weight.grad.abs().sum() > 0
        for name, decode in body.decoder.items():
            gradients = [parameter.grad for parameter in decode.parameters()]
            if name >= level:
                assert all(gradient is not None for gradient in gradients), (level, name)
                assert sum(gradient.abs().sum() for gradient in gradients) > 0
            else:
                assert all(gradient is None for gradient in gradients), (level, name)


def test_auxiliary_heads_are_initialised_as_the_classifier() -> None:
    classifier = DeepSupervision(make(width=128, depth=1, num_classes=200)).auxiliary["level1"].classifier
    torch.testing.assert_close(classifier.weight.std(), torch.tensor(0.01), rtol=0.05, atol=0)
    assert (classifier.bias == 0).all()


def test_auxiliary_heads_lie_where_the_network_does() -> None:
    network = make().double()
    assert {parameter.dtype for parameter in DeepSupervision(network).parameters()} == {torch.float64}
    with torch.device("meta"):
        network = make()
    assert {parameter.device.type for parameter in DeepSupervision(network).parameters()} == {"meta"}


@pytest.mark.parametrize("levels", [1, 2])
def test_deep_supervision_needs_a_coarser_decoder_level(levels: int) -> None:
    message = f"^deep_supervision: the decoder of a network of {levels} levels? has no coarser level to read: use 3"
    with pytest.raises(MmsegError, match=message):
        DeepSupervision(make(levels=levels))
