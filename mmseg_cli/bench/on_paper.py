"""A preset on 8 and on 64 GPUs, on paper: what each step computes and sends, against what links carry.

Nothing here is measured; every assumption is a constant with its reason, and stands in the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmseg_cli.bench import peers
from mmseg_cli.models import cost

Row = dict[str, Any]

SUSTAINED = 250e12  # operations a second in bfloat16, as mmbconv of the preset paper on an H200 (docs/decisions.md)
CROPS_A_CORE = 80.0  # crops of 512x1024 that a core makes a second of PNG sources: `mmseg bench data` on an EPYC
OVERLAPPED = 2 / 3  # of a step is backward, during which gradients are already sent


@dataclass(frozen=True)
class Link:
    """What connects the GPUs.

    Attributes:
        title: for people.
        bandwidth: bytes a second that an all-reduce reaches, as "bus bandwidth" of nccl-tests: rings pass through every
            GPU and leave a machine once, so all its network cards together bound them, not a GPU's share of these.
        latency: seconds of a small collective.
    """

    title: str
    bandwidth: float
    latency: float


# Four fifths of what the wires carry, as NCCL's maintainers tell of it (nccl-tests, issue 212).
NVLINK = Link("NVLink, one machine", 360e9, 15e-6)
INFINIBAND = Link("machines of 8, 400 Gb/s a GPU", 8 * 40e9, 40e-6)
ETHERNET = Link("machines of 8, 100 Gb/s each", 10e9, 80e-6)


def count(preset: str, network: Mapping[str, Any], *, classes: int, batch: int, size: tuple[int, int]) -> Row:
    """What the page is computed from: counts of one of our networks and of its step."""
    with torch.device("meta"):
        made = peers.build_ours(network=network, classes=classes)
    norms = [module.num_features for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    return {
        "preset": preset,
        "block": network["block"],
        "parameters": cost.parameters(made),
        "macs": peers.macs_of(network, size=size, classes=classes),
        "norms": len(norms),
        "norm_channels": sum(norms),
        "batch": batch,
        "size": list(size),
    }


def _step(counted: Row, *, gpus: int, batch: int, link: Link) -> dict[str, float]:
    """Seconds of a step by what takes them, and the share of it that computes."""
    compute = 2 * 3 * counted["macs"] * batch / gpus / SUSTAINED
    ring = 2 * (gpus - 1) / gpus
    gradients = ring * 4 * counted["parameters"] / link.bandwidth
    # Each norm meets twice: its statistics, gathered from all, and the sums of its backward pass.
    sent = 4 * counted["norm_channels"] * (2 * (gpus - 1) + 2 * ring)
    norms = 2 * counted["norms"] * link.latency + sent / link.bandwidth
    waited = max(0.0, gradients - OVERLAPPED * compute) + norms
    return {
        "compute": compute,
        "gradients": gradients,
        "norms": norms,
        "efficiency": compute / (compute + waited),
        "crops": batch / gpus / (compute + waited),
    }


def _cases(counted: Row) -> list[tuple[int, int, Link]]:
    """(GPUs, global batch, link)."""
    batch = counted["batch"]
    grown = max(batch, 64)
    return [(8, batch, NVLINK), (batch, batch, INFINIBAND), (64, grown, INFINIBAND), (64, grown, ETHERNET)]


HEADINGS = (
    "GPUs",
    "link",
    "batch",
    "compute ms",
    "gradients ms",
    "norms ms",
    "efficiency %",
    "crops/s a GPU",
    "cores for them",
)


def rows(counted: Row) -> list[tuple[str, ...]]:
    """One row a case, under HEADINGS."""
    found = []
    for gpus, batch, link in _cases(counted):
        step = _step(counted, gpus=gpus, batch=batch, link=link)
        found.append(
            (
                str(gpus),
                link.title,
                str(batch),
                *(f"{1e3 * step[key]:.1f}" for key in ("compute", "gradients", "norms")),
                f"{100 * step['efficiency']:.0f}",
                f"{step['crops']:.1f}",
                f"{step['crops'] / CROPS_A_CORE:.1f}",
            )
        )
    return found


def text(counted: Row) -> list[str]:
    """What the rows rest on, and what would break first."""
    height, width = counted["size"]
    batch = counted["batch"]
    late = []
    for gpus, images, link in _cases(counted):
        step = _step(counted, gpus=gpus, batch=images, link=link)
        if step["gradients"] > OVERLAPPED * step["compute"]:
            late.append(f"{gpus} GPUs by {link.title}")
    links = "; ".join(
        f"{link.title}: {link.bandwidth / 1e9:g} GB/s, {1e6 * link.latency:.0f} µs a meeting"
        for link in (NVLINK, INFINIBAND, ETHERNET)
    )
    return [
        f"Counted: {counted['block']} of the preset {counted['preset']}, {counted['parameters'] / 1e6:.1f} M",
        f"parameters, {counted['macs'] / 1e9:.0f} GMACs for a crop of {height}x{width}, {counted['norms']} norms that",
        f"all processes share. Assumed: {SUSTAINED / 1e12:.0f} TFLOP/s sustained by a GPU; gradients in float32 by a",
        f"ring, sent during the backward pass; each norm meets twice a step, and nothing hides that; {links};",
        f"{CROPS_A_CORE:g} crops a second of a core.",
        "",
        f"What breaks first is the batch: {batch} images are one for each of {batch} GPUs, and 64 need a larger batch,",
        "which is another recipe (learning rate, steps, statistics). Next come the norms: their meetings are short and",
        "many, so it is the latency of the link that counts, not its bandwidth. Gradients do not fit behind the",
        f"backward pass on: {', '.join(late) or 'none of these'}. Validation and checkpoints are not in this.",
    ]
