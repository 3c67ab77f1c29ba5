"""`mmseg bench predict`: images a second of one network by torch as it is and in faster ways, and by onnxruntime.

What is timed is a whole prediction, from an RGB image to the class of every pixel, as `mmseg predict` makes it. All
take turns, round by round; before anything is timed, all are checked to give the same labels, but for rounding.

Shapes: H, W = height, width; C = 3 colours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmseg_cli import runtime
from mmseg_cli.bench.machine import environment_of
from mmseg_cli.bench.turns import cells, take_turns
from mmseg_cli.data.sources import synthetic
from mmseg_cli.data.sources.scenes.render import render
from mmseg_cli.errors import MmsegError, ran_out
from mmseg_cli.evaluation import inference, on_torch
from mmseg_cli.evaluation.segmenter import PLAIN, Arrays, Segmenter
from mmseg_cli.models.fold import fold_norms
from mmseg_cli.models.unet import build_network
from mmseg_cli.prediction import export
from mmseg_cli.prediction.model import Precision

REFERENCE, GRAPH, ONNX = "eager", "graph", "onnx"
WAYS = {  # what each contender is
    REFERENCE: "torch, as training leaves it",
    "folded": "torch, batch norms folded into convolutions",
    "compiled": "folded, and torch.compile",
    GRAPH: "by kernels of our own, launched at once by a CUDA graph: what `mmseg predict` does on a GPU",
    ONNX: "folded, ONNX, by onnxruntime on the CPU",
}
SAME, SAME_BFLOAT16 = 0.999, 0.95  # the share of pixels that must get the same label


def ways_of(device: torch.device, precision: Precision) -> tuple[str, ...]:
    """The keys of WAYS that a device has: graphs are a GPU's, and onnxruntime's are in float32."""
    without = set() if device.type == "cuda" and torch.version.cuda is not None else {GRAPH}
    if precision != "float32":
        without.add(ONNX)
    return tuple(way for way in WAYS if way not in without)


@dataclass(frozen=True)
class Contestant:
    """A network that is timed in all ways.

    Attributes:
        build: makes it, on the CPU; called when its turn comes, so that one network at a time takes memory.
        classes: that it tells apart.
        network: the arguments of its body, for the report.
    """

    build: Callable[[], nn.Module]
    classes: int
    network: Mapping[str, Any]


def untrained(network: Mapping[str, Any], *, classes: int) -> Contestant:
    """A network whose weights are drawn at random: speed does not depend on them."""

    def build() -> nn.Module:
        runtime.seed_everything(0)
        return build_network(task="segmentation", num_classes=classes, **network)

    return Contestant(build, classes, network)


def _by_onnx(network: nn.Module, *, classes: int, threads: int) -> Segmenter:
    """The network by onnxruntime, put together as `mmseg predict --model` does it."""
    export.require_extras(["onnx"])
    content = export.as_onnx(export.program(fold_norms(network)), {})
    return Segmenter(
        forward=export.opened("onnx", content, where=Path("network.onnx"), threads=threads),
        arrays=Arrays(),
        classes=classes,
        mean=inference.MEAN,
        std=inference.STD,
        protocol=PLAIN,
        bytes_per_pixel=0,
    )


def check_labels(
    found_HW: NDArray[np.uint8], expected_HW: NDArray[np.uint8], *, name: str, least: float = SAME
) -> float:
    """The share of pixels that two predictions give the same label.

    Raises:
        RuntimeError: it is below `least`, so that the two did not do the same work.
    """
    share = float((found_HW == expected_HW).mean())
    if share < least:
        raise RuntimeError(f"{name}: only {100 * share:.3f} % of the pixels get the label that {REFERENCE} gives")
    return share


def _compare(
    name: str,
    contestant: Contestant,
    image_HWC: NDArray[np.uint8],
    *,
    ways: Collection[str],
    precision: Precision,
    rounds: int,
    calls: int,
    threads: int,
    device: torch.device,
    advance: Callable[[], None],
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """One network in some ways."""
    network = contestant.build().eval()
    on_device = partial(
        on_torch.segmenter, network, classes=contestant.classes, device=device, precision=precision, graphs=False
    )
    makers: dict[str, Callable[[], Segmenter]] = {  # ONNX first: the others move the network
        ONNX: lambda: _by_onnx(network, classes=contestant.classes, threads=threads),
        REFERENCE: on_device,
        "folded": lambda: on_device(fold=True),
        "compiled": lambda: on_device(fold=True, compile=True),
        GRAPH: lambda: on_device(graphs=True),
    }
    ready: dict[str, Segmenter] = {}
    labels: dict[str, NDArray[np.uint8]] = {}
    left_out: dict[str, str] = {}
    for way, make in makers.items():
        if way not in ways:
            continue
        try:
            segmenter = make()
            with warnings.catch_warnings():
                if way == GRAPH:
                    warnings.simplefilter("error", UserWarning)  # without a graph, or our kernels, it is another way
                    segmenter.predict(image_HWC)  # it is captured at the second image
                labels[way] = segmenter.predict(image_HWC).classes_HW
            ready[way] = segmenter
        except Exception as error:
            # Whether torch.compile and our kernels work depends on the machine's compilers, whose failures have no
            # class of their own; and the packages for ONNX may not be installed.
            by_compiler = way == "compiled" or (way == GRAPH and isinstance(error, UserWarning))
            if ran_out(error) or not (by_compiler or (way == ONNX and isinstance(error, MmsegError))):
                raise
            left_out[way] = " ".join(str(error).split())[:160]
            warn(f"{name}: {way} is left out: {left_out[way]}")
    least = SAME if precision == "float32" else SAME_BFLOAT16
    agreement = {way: check_labels(labels[way], labels[REFERENCE], name=f"{name}, {way}", least=least) for way in ready}

    def once(segmenter: Segmenter, _: int) -> object:
        return segmenter.predict(image_HWC)

    timings = take_turns(
        {way: partial(once, ready[way]) for way in WAYS if way in ready},
        reference=REFERENCE,
        rounds=rounds,
        calls=calls,
        units=1,
        advance=advance,
    )
    torch._dynamo.reset()
    return {
        "network": dict(contestant.network),
        "classes": contestant.classes,
        "agreement": agreement,
        "left_out": left_out,
        "timings": {way: vars(timing) for way, timing in timings.items()},
    }


def run(
    contestants: Mapping[str, Contestant],
    *,
    ways: Collection[str],
    precision: Precision,
    size: tuple[int, int],
    rounds: int,
    calls: int,
    threads: int | None,
    device: torch.device,
    advance: Callable[[], None],
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """The whole benchmark, network after network.

    Args:
        contestants: the networks by name.
        ways: of `ways_of`; REFERENCE is always among them.
        precision: of all ways.
        size: (height, width) of the image, a generated street scene.
        rounds: how often the ways take turns.
        calls: images of each way in a round.
        threads: of torch and of onnxruntime; None is one per core.
        advance: called after each of the rounds of each network.
        warn: called with what is left out, and why.

    Returns:
        The content of the JSON report.

    Raises:
        MmsegError: a way that this device does not have.
    """
    runtime.limit_threads(threads)
    threads = torch.get_num_threads()
    image_HWC = render(synthetic.stream(0, "frames-val", 0), height=size[0], width=size[1]).image_HWC
    here = ways_of(device, precision)
    for way in ways:
        if way not in here:
            what = f"{way} is not to be had on {device} in {precision}"
            raise MmsegError("--ways", what, f"choose among {', '.join(here)}")
    compare = partial(
        _compare,
        ways={*ways, REFERENCE},
        precision=precision,
        rounds=rounds,
        calls=calls,
        threads=threads,
        device=device,
        advance=advance,
        warn=warn,
    )
    networks = {name: compare(name, contestant, image_HWC) for name, contestant in contestants.items()}
    environment = environment_of(device)
    if any("onnx" in network["timings"] for network in networks.values()):
        environment["onnxruntime"] = version("onnxruntime")
    settings = {
        "image": list(size),
        "rounds": rounds,
        "calls": calls,
        "threads": threads,
        "device": str(device),
        "precision": precision,
    }
    return {"environment": environment, "settings": settings, "networks": networks}


HEADINGS = ("way", "images/s", f"times {REFERENCE}", "range over rounds", "equal labels %")


def tables(result: dict[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """The rows of each network by its title, under HEADINGS."""
    height, width = result["settings"]["image"]
    return {
        f"{name}, {height}x{width}": [
            (way, *cells(timing, rate=".3g", ratio=".2f"), f"{100 * network['agreement'][way]:.3f}")
            for way, timing in network["timings"].items()
        ]
        for name, network in result["networks"].items()
    }


def markdown(result: dict[str, Any]) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    height, width = settings["image"]
    precision = settings.get("precision", "float32")  # which reports of before have not
    each = "image" if settings["calls"] == 1 else "images"
    timed = {way for network in result["networks"].values() for way in (*network["timings"], *network["left_out"])}
    lines = [
        "# Predicting",
        "",
        f"One image of {height}x{width} after the other, from RGB to the class of every pixel, whole, at one scale, in",
        f"{precision}; {settings['rounds']} rounds in turn, of {settings['calls']} {each} each after one that does not",
        f"count; {settings['threads']} threads, device {settings['device']}. Ratios are medians over the rounds, each",
        f"to `{REFERENCE}` in the same round. Machine: {machine}.",
        "",
        *(f"- `{way}`: {what}." for way, what in WAYS.items() if way in timed),
    ]
    for (title, rows), network in zip(tables(result).items(), result["networks"].values(), strict=True):
        lines += ["", f"## {title}", "", "| " + " | ".join(HEADINGS) + " |", "|:--|--:|--:|--:|--:|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        for way, why in network["left_out"].items():
            lines += ["", f"Left out: `{way}` ({why})."]
    return "\n".join(lines) + "\n"
