"""Batch norm over processes against one process's on all images; and running a norm without leaving a trace."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models.norms import SyncBatchNorm, frozen_statistics, synchronise
from mmseg_cli.models.unet import build_network, recompute_blocks

CHANNELS, HEIGHT, WIDTH, CLASSES = 5, 6, 7, 3
COUNTS = (1, 3, 2)  # images of each process
STEPS = 2

# What differs from the usual layer and the usual input.
CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "cumulative": {"momentum": None},
    "no weights": {"affine": False},
    "no running statistics": {"track_running_stats": False},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16 throughout": {"dtype": torch.bfloat16, "weights": torch.bfloat16},
    "channels last": {"memory_format": torch.channels_last},
    "bfloat16 channels last": {"dtype": torch.bfloat16, "memory_format": torch.channels_last},
    "far from zero": {"shift": 1000.0},
    "an empty process": {"counts": (0, 3, 2)},
    "one value in a process": {"counts": (1, 3, 2), "height": 1, "width": 1},
}


def layer(kind: type[nn.BatchNorm2d], case: dict[str, Any]) -> nn.BatchNorm2d:
    weights = torch.float64 if case.get("dtype") == torch.float64 else case.get("weights", torch.float32)
    names = ("momentum", "affine", "track_running_stats")
    made = kind(CHANNELS, eps=1e-3, dtype=weights, **{name: case[name] for name in names if name in case})
    if made.affine:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            made.weight.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
            made.bias.copy_(torch.randn(CHANNELS, generator=generator))
    return made


def images(case: dict[str, Any], step: int, world: int) -> list[tuple[Tensor, Tensor]]:
    """The input of each process, and what its output is multiplied with to make a loss."""
    generator = torch.Generator().manual_seed(100 + step)
    pairs = []
    for rank, count in enumerate(case.get("counts", COUNTS)[:world]):
        size = (count, CHANNELS, case.get("height", HEIGHT), case.get("width", WIDTH))
        x_BCHW = torch.randn(size, generator=generator) * (rank + 1) + rank + case.get("shift", 0.0)
        pairs.append((x_BCHW.to(case.get("dtype", torch.float32)), torch.randn(size, generator=generator)))
    memory_format = case.get("memory_format", torch.contiguous_format)
    return [(x.to(memory_format=memory_format), w) for x, w in pairs]


def run(norm: nn.Module, x_BCHW: Tensor, weights_BCHW: Tensor) -> dict[str, Tensor]:
    leaf_BCHW = x_BCHW.clone().requires_grad_()
    norm.zero_grad()
    y_BCHW = norm(leaf_BCHW)
    assert y_BCHW.dtype == x_BCHW.dtype
    if x_BCHW.numel():
        assert y_BCHW.stride() == x_BCHW.stride()
    torch.autograd.backward((y_BCHW * weights_BCHW).sum())
    seen = {"y": y_BCHW.detach(), "dx": leaf_BCHW.grad}
    seen |= {f"d{name}": parameter.grad.clone() for name, parameter in norm.named_parameters()}
    return seen | {name: buffer.clone() for name, buffer in norm.named_buffers()}


def small_network() -> nn.Module:
    torch.manual_seed(3)
    return build_network(
        task="segmentation",
        num_classes=CLASSES,
        block="mbconv",
        layout="uniform",
        width=8,
        depth=1,
        levels=2,
        stem_stride=2,
        expansion=2,
        se_ratio=0.25,
        norm="batch",
        activation="silu",
    )


def network_images(world: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(count, 3, 16, 24, generator=generator) for count in COUNTS[:world]]


def network_step(network: nn.Module, x_BCHW: Tensor, *, autocast: bool) -> dict[str, Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits_BKHW = network(x_BCHW)
    torch.autograd.backward((logits_BKHW.float() ** 2).sum())
    seen = {"y": logits_BKHW.detach()}
    seen |= {f"d{name}": parameter.grad.clone() for name, parameter in network.named_parameters()}
    return seen | {name: buffer.clone() for name, buffer in network.named_buffers()}


def one_process(rank: int, folder: str) -> None:
    """Runs in each of three processes: everything that the tests below look at, of all three and of the first two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    two = dist.new_group([0, 1])
    own = [dist.new_group([other]) for other in range(3)][rank]
    of_three = observe(rank, 3, None)
    of_three["group of one"] = run(shared(layer(SyncBatchNorm, {}), own), *images({}, 0, 3)[rank])
    seen = {3: of_three, 2: observe(rank, 2, two) if rank < 2 else {}}
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def shared(network: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    for module in network.modules():
        if isinstance(module, SyncBatchNorm):
            module.process_group = group
    return network


def observe(rank: int, world: int, group: dist.ProcessGroup | None) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, case in CASES.items():
        norm = shared(layer(SyncBatchNorm, case), group)
        seen[name] = [run(norm, *images(case, step, world)[rank]) for step in range(STEPS)]
        seen[name].append(run(norm.eval(), *images(case, STEPS, world)[rank]))
    x_BCHW = network_images(world)[rank]
    for autocast in (False, True):
        for recompute in (False, True):
            network = shared(synchronise(small_network()), group)
            recompute_blocks(network, on=recompute)
            seen[f"network {autocast=} {recompute=}"] = network_step(network, x_BCHW, autocast=autocast)
    try:
        shared(layer(SyncBatchNorm, {}), group)(torch.zeros(int(rank == 0), CHANNELS, 1, 1))
    except ValueError as error:
        seen["a single value"] = str(error)
    with torch.device("meta"):
        seen["meta"] = SyncBatchNorm(CHANNELS)(torch.empty(2, CHANNELS, 3, 3)).shape
    return seen


@pytest.fixture(scope="module")
def all_seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_process, args=(str(folder),), nprocs=3)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.fixture(params=[2, 3])
def seen(request: pytest.FixtureRequest, all_seen: list[dict[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each process of two, or of three, saw."""
    return [rank[request.param] for rank in all_seen[: request.param]]


def assert_close(got: Tensor, expected: Tensor, *, tolerance: float, what: str) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process_on_all_images(seen: list[dict[str, Any]], name: str) -> None:
    case, world = CASES[name], len(seen)
    norm = layer(nn.BatchNorm2d, case)
    dtype = case.get("dtype", torch.float32)
    # bfloat16 is a matter of rounding the output; float64 shows that nothing is merely nearly right.
    exact = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for step in range(STEPS + 1):
        norm.train(step < STEPS)
        pairs = images(case, step, world)
        if step == STEPS and norm.running_mean is None:
            break  # evaluation without running statistics looks at each process's own images, as torch's does
        whole = run(norm, torch.cat([x for x, _ in pairs]), torch.cat([w for _, w in pairs]))
        parts = [rank[name][step] for rank in seen]
        # The outputs lie around 1, far from zero the inputs lie around 1000: float32 leaves 1e-4 of a deviation.
        tolerance = 20 * exact if "shift" in case else exact
        for key, expected in whole.items():
            what = f"{name}, step {step}, {key}"
            if key in ("y", "dx"):
                assert_close(torch.cat([part[key] for part in parts]), expected, tolerance=tolerance, what=what)
            elif key.startswith("d"):
                got = torch.stack([part[key] for part in parts]).sum(0)
                assert_close(got, expected, tolerance=5 * tolerance, what=what)  # sums of a hundred terms or more
            else:
                assert_close(parts[0][key], expected, tolerance=exact, what=what)


@pytest.mark.parametrize("name", CASES)
def test_every_process_has_the_same_buffers_to_the_bit(seen: list[dict[str, Any]], name: str) -> None:
    for first, *others in zip(*(rank[name] for rank in seen), strict=True):
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert all(torch.equal(first[key], other[key]) for other in others if key in first)


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputation_changes_nothing_in_a_synchronised_network(seen: list[dict[str, Any]], autocast: bool) -> None:
    for rank in seen:
        kept = rank[f"network {autocast=} recompute=False"]
        recomputed = rank[f"network {autocast=} recompute=True"]
        assert kept.keys() == recomputed.keys()
        assert [key for key in kept if not torch.equal(kept[key], recomputed[key])] == []


def test_a_synchronised_network_equals_one_process(seen: list[dict[str, Any]]) -> None:
    parts = [rank["network autocast=False recompute=True"] for rank in seen]
    network = small_network()
    whole = network_step(network, torch.cat(network_images(len(seen))), autocast=False)
    assert [key for key in parts[0] if key not in whole] == []  # the keys stayed
    for key, expected in whole.items():
        if key == "y":
            assert_close(torch.cat([part[key] for part in parts]), expected, tolerance=1e-5, what=key)
        elif key.startswith("d"):
            got = torch.stack([part[key] for part in parts]).sum(0)
            assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-5, key
        else:
            assert_close(parts[0][key], expected, tolerance=1e-5, what=key)


def test_a_group_of_one_is_plain(all_seen: list[dict[int, dict[str, Any]]]) -> None:
    for rank, pair in zip(all_seen, images({}, 0, 3), strict=True):
        plain = run(layer(nn.BatchNorm2d, {}), *pair)
        for key, expected in plain.items():
            assert_close(rank[3]["group of one"][key], expected, tolerance=1e-6, what=key)


def test_a_single_value_and_the_meta_device(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["a single value"] == "Expected more than 1 value per channel when training, got 1 in all processes"
        assert rank["meta"] == (2, CHANNELS, 3, 3)


@pytest.mark.parametrize("name", ["usual", "cumulative", "bfloat16"])
def test_without_a_group_it_is_plain(name: str) -> None:
    norms = [layer(kind, CASES[name]) for kind in (nn.BatchNorm2d, SyncBatchNorm)]
    assert norms[0].state_dict().keys() == norms[1].state_dict().keys()
    for training in (True, False):
        plain, ours = (run(norm.train(training), *images(CASES[name], 0, 2)[1]) for norm in norms)
        assert all(torch.equal(plain[key], ours[key]) for key in plain)


def test_synchronise_shares_weights_and_keeps_keys_modes_and_other_layers() -> None:
    network = small_network()
    network.body.encoder["level0"].block0.expand.norm.eval()
    network.body.stem.conv0.norm.momentum = None
    network.again = network.body.stem.conv0.norm  # the same layer under a second name
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    keys = list(network.state_dict())
    assert synchronise(network) is network
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert list(network.state_dict()) == keys
    assert not any(type(module) is nn.BatchNorm2d for module in network.modules())
    assert not network.body.encoder["level0"].block0.expand.norm.training
    assert network.body.stem.conv0.norm.training
    assert network.body.stem.conv0.norm.momentum is None
    assert network.again is network.body.stem.conv0.norm
    twice = [id(module) for module in network.modules()]
    assert [id(module) for module in synchronise(network).modules()] == twice
    copy.deepcopy(network)


def test_synchronise_a_norm_itself_and_group_norm() -> None:
    norm = nn.BatchNorm2d(4, eps=0.5, affine=False)
    ours = synchronise(norm)
    assert isinstance(ours, SyncBatchNorm)
    assert (ours.eps, ours.running_mean) == (0.5, norm.running_mean)
    group = nn.GroupNorm(2, 4)
    assert synchronise(group) is group


def test_synchronise_refuses_what_it_does_not_know() -> None:
    class WithMore(nn.BatchNorm2d):
        pass

    with pytest.raises(MmsegError, match=r"^0.1: a WithMore cannot share its statistics between processes"):
        synchronise(nn.Sequential(nn.Sequential(nn.BatchNorm2d(2), WithMore(2))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_synchronise_takes_torchs_on_cuda() -> None:
    network = small_network().cuda()
    before = dict(network.named_parameters())
    synchronise(network)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    assert all(before[name] is parameter for name, parameter in network.named_parameters())


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, SyncBatchNorm])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_statistics_leave_no_trace(kind: type[nn.BatchNorm2d], momentum: float | None) -> None:
    network = nn.Sequential(kind(CHANNELS, momentum=momentum), nn.ReLU())
    x_BCHW = torch.randn(2, CHANNELS, 3, 3)
    expected_BCHW = network(x_BCHW)
    before = {name: (buffer, buffer.clone()) for name, buffer in network.named_buffers()}
    context = frozen_statistics(network)
    for _ in range(2):
        with context:
            assert torch.equal(network(x_BCHW), expected_BCHW)
            assert network[0].num_batches_tracked == 2  # into the copy
    with pytest.raises(KeyError), context:
        raise KeyError
    for name, buffer in network.named_buffers():
        own, value = before[name]
        assert buffer is own
        assert torch.equal(buffer, value)
