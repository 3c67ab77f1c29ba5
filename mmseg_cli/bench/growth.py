"""`mmseg bench growth`: how the time and the memory of training grow with what a user can turn, and what would break.

One thing is turned at a time, all settings of it in turns, round by round. Two blocks are measured over the width, each
in its own best way, for what the second costs more than the first: beside the roofline and beside the paper's figures.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmseg_cli import runtime
from mmseg_cli.bench import peers, roofline
from mmseg_cli.bench.data import prepared_quietly
from mmseg_cli.bench.machine import bandwidth, environment_of, matrix_peak
from mmseg_cli.data import loader, prepare
from mmseg_cli.data.store import open_store
from mmseg_cli.models import cost
from mmseg_cli.models.norms import synchronise
from mmseg_cli.params import Generate
from mmseg_cli.processes import joined

Row = dict[str, Any]
FIRST, SECOND = "mbconv", "mmbconv"  # the two blocks of the curve


@dataclass(frozen=True)
class Plan:
    """What is turned.

    Attributes:
        heights: of crops, in pixels, half as wide again.
        widths: channels.
        depths: blocks a level.
        batches: images of a step.
        curve: widths at which the two blocks are compared.
        items: images of generated datasets.
        height, width, depth, batch: what stays while another is turned.
        rounds: how often all settings of one thing take turns.
    """

    heights: Sequence[int] = (64, 96, 128, 192, 256)
    widths: Sequence[int] = (16, 32, 64, 128)
    depths: Sequence[int] = (1, 2, 4, 8)
    batches: Sequence[int] = (2, 4, 8, 16)
    curve: Sequence[int] = (16, 24, 32, 48, 64, 96, 128)
    items: Sequence[int] = (16, 64, 256, 1024)
    height: int = 128
    width: int = 32
    depth: int = 1
    batch: int = 4
    rounds: int = 7


@dataclass(frozen=True)
class Setting:
    """One network on one kind of batch."""

    network: Mapping[str, Any]
    height: int
    batch: int
    classes: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a crop."""
        return self.height, self.height * 3 // 2

    def work(self, device: torch.device) -> cost.Work:
        """What a step works on."""
        return cost.Work(self.batch, *self.size, str(device))

    @property
    def arguments(self) -> Row:
        """Of `peers.build_ours`."""
        return {"network": dict(self.network), "classes": self.classes}


def settings_of(plan: Plan, network: Mapping[str, Any], *, classes: int) -> dict[str, dict[int, Setting]]:
    """What is turned -> its values -> the setting."""

    def setting(*, height: int = plan.height, batch: int = plan.batch, **changes: int) -> Setting:
        base = {**network, "width": plan.width, "depth": plan.depth}
        return Setting({**base, **changes}, height, batch, classes)

    return {
        "crop height": {value: setting(height=value) for value in plan.heights},
        "width": {value: setting(width=value) for value in plan.widths},
        "depth": {value: setting(depth=value) for value in plan.depths},
        "batch": {value: setting(batch=value) for value in plan.batches},
    }


def _in_turns(
    settings: Mapping[Any, Setting], *, device: torch.device, rounds: int, advance: Callable[[], None]
) -> dict[Any, Row]:
    """Seconds of steps in turns, peak bytes and counts of each setting."""
    steps: dict[Any, Callable[[], None]] = {}
    for key, setting in settings.items():
        steps[key] = cost.training_step(peers.build_ours(**setting.arguments), work=setting.work(device))
        steps[key]()
    seconds: dict[Any, list[float]] = {key: [] for key in settings}
    for _ in range(rounds):
        for key, step in steps.items():
            work = settings[key].work(device)
            step()  # does not count: others may have taken the place of its kernels since its last turn
            work.wait()
            begun = time.perf_counter()
            step()
            work.wait()
            seconds[key].append(time.perf_counter() - begun)
        advance()
    steps.clear()
    found = {}
    for key, setting in settings.items():
        peak = cost.peak_training_bytes(peers.build_ours, setting.arguments, work=setting.work(device))
        macs = peers.macs_of(setting.network, size=setting.size, classes=setting.classes) * setting.batch
        found[key] = {"seconds": seconds[key], "peak_bytes": peak, "macs": macs}
    advance()
    return found


def _data(items: Sequence[int], *, advance: Callable[[], None]) -> dict[int, Row]:
    """Generated datasets of several sizes: seconds to prepare them, to open them, and for a batch of crops."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in items:
            root = Path(folder) / str(count)
            generate = Generate(train=count, val=1, height=64).model_dump()
            source = prepare.generated_root("cityscapes", raw=(root / "raw").joinpath, settings=generate)
            begun = time.perf_counter()
            prepared_quietly("cityscapes", source, root / "store")
            prepared = time.perf_counter() - begun
            begun = time.perf_counter()
            crops = loader.SegmentationCrops(
                split=open_store(root / "store").split("train"),
                seed=0,
                batch=4,
                crop=(48, 96),
                zoom=(0.8, 1.25),
                flip=True,
                colour=0.2,
                blur=0.0,
                class_uniform=0.0,
            )
            crops[0]
            opened = time.perf_counter() - begun
            seconds = []
            for step in range(1, 41):
                begun = time.perf_counter()
                crops[step]
                seconds.append(time.perf_counter() - begun)
            found[count] = {"prepare_seconds": prepared, "open_seconds": opened, "seconds": seconds}
            advance()
    return found


def _together(network: nn.Module) -> nn.Module:
    """The network whose gradients are averaged over the processes, as training has it."""
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def _one_process(rank: int, world: int, port: int, setting: Setting, rounds: int) -> list[float]:
    """One of `world` processes that share a batch: seconds of its steps, gradients and norms exchanged."""
    local = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in local.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    seconds = []
    with joined("cpu") as processes:
        network = peers.build_ours(**setting.arguments)
        model: nn.Module = network
        if world > 1:
            model = _together(synchronise(network))
        share = Setting(setting.network, setting.height, setting.batch // world, setting.classes)
        step = cost.training_step(model, work=share.work(processes.device))
        for number in range(rounds + 1):
            processes.meet()
            begun = time.perf_counter()
            step()
            processes.meet()
            if number:
                seconds.append(time.perf_counter() - begun)
    return seconds


def _processes(setting: Setting, *, rounds: int, advance: Callable[[], None]) -> dict[int, Row]:
    """One to as many processes as there are cores, at most one for two images, one thread each, the same batch."""
    found = {}
    world = 1
    while world <= min(setting.batch // 2, os.cpu_count() or 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with ProcessPoolExecutor(max_workers=world, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_one_process, rank, world, port, setting, rounds) for rank in range(world)]
            found[world] = {"seconds": jobs[0].result()}
        advance()
        world *= 2
    return found


def run(
    plan: Plan,
    *,
    network: Mapping[str, Any],
    classes: int,
    on_paper: Row,
    device: torch.device,
    threads: int | None,
    begin: Callable[[int], None],
    advance: Callable[[], None],
) -> Row:
    """The whole benchmark.

    Args:
        plan: what is turned.
        network: ours, of which the block, the width and the depth are turned.
        on_paper: of `on_paper.count`.
        begin: called with the number of times that `advance` will be.
        advance: called after each round, and after each other measurement.

    Returns:
        The content of the JSON report.
    """
    runtime.prepare_training(threads=threads)
    turned = settings_of(plan, network, classes=classes)
    begin((len(turned) + 1) * (plan.rounds + 1) + len(plan.items) + 2)
    peak, stream = matrix_peak(device, torch.float32), bandwidth(device)
    can = roofline.Device(statistics.median(peak), statistics.median(stream))
    axes = {
        name: _in_turns(values, device=device, rounds=plan.rounds, advance=advance) for name, values in turned.items()
    }
    both = {
        (block, width): Setting(
            {**network, "block": block, "width": width, "depth": plan.depth}, plan.height, plan.batch, classes
        )
        for width in plan.curve
        for block in (FIRST, SECOND)
    }
    curve: list[Row] = []
    measured = _in_turns(both, device=device, rounds=plan.rounds, advance=advance)
    for (block, width), row in measured.items():
        setting = both[block, width]
        ideal = roofline.step_seconds(
            setting.network, classes=classes, batch=setting.batch, size=setting.size, device=can
        )
        curve.append({"block": block, "width": width, "roofline_seconds": ideal, **row})
    base = Setting({**network, "width": plan.width, "depth": plan.depth}, plan.height, plan.batch, classes)
    return {
        "environment": environment_of(device),
        "on_paper": on_paper,
        "settings": {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in vars(plan).items()},
            "network": dict(network),
            "classes": classes,
            "threads": torch.get_num_threads(),
            "device": str(device),
        },
        "matrix_peak": peak,
        "bandwidth": stream,
        "axes": {name: {str(key): row for key, row in rows.items()} for name, rows in axes.items()},
        "curve": curve,
        "data": {str(key): row for key, row in _data(plan.items, advance=advance).items()},
        "processes": {str(key): row for key, row in _processes(base, rounds=plan.rounds, advance=advance).items()},
    }
