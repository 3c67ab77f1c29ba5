"""The cost of every variant: counted (parameters, MACs, activations) and measured (time and memory of a step)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmseg_cli import runtime

if TYPE_CHECKING:
    from mmseg_cli.models.cost import Cost


def counted(
    networks: Mapping[str, dict[str, Any]], *, classes: int, height: int, width: int
) -> dict[str, tuple[Cost, Cost]]:
    """For every variant the cost of the whole network for one image, and of one block at the finest level.

    Args:
        networks: the arguments of `mmseg_cli.models.unet.UNet` by variant.
        classes: of the segmentation head.
        height, width: of the image in pixels.
    """
    import torch

    from mmseg_cli.models import cost
    from mmseg_cli.models.unet import build_network

    rows = {}
    for variant, arguments in networks.items():
        with torch.device("meta"):
            network = build_network(task="segmentation", num_classes=classes, **arguments)
        stride = arguments["stem_stride"]
        block = cost.block_cost(
            arguments["block"],
            width=arguments["width"],
            height=-(-height // stride),
            width_px=-(-width // stride),
            **{key: arguments[key] for key in ("expansion", "se_ratio", "norm", "activation")},
        )
        pair = cost.describe(network, (2, 3, height, width))  # batch norm needs two where a deep level has one pixel
        whole = cost.Cost(pair.parameters, pair.macs // 2, pair.activation_bytes // 2)
        rows[variant] = (whole, block)
    return rows


def measure(
    networks: Mapping[str, dict[str, Any]],
    *,
    dataset: str,
    classes: int,
    batch: int,
    height: int,
    width: int,
    repeats: int,
    warmup: int,
    device: str,
    threads: int | None,
    channels_last: bool,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Time one training step of every variant in turn (A B C A B C ...) and measure its peak memory.

    `dataset` and `classes` are those of the head; the other sizes are of the crops.

    Returns:
        The content of cost.json: the environment, and for every variant its counted cost, the raw seconds of each
        repeat and the peak bytes.
    """
    import torch

    from mmseg_cli.models import cost
    from mmseg_cli.models.unet import build_network

    runtime.limit_threads(threads)
    where = str(runtime.pick_device(device))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    rows: dict[str, Any] = {}
    for variant, (whole, _) in counted(networks, classes=classes, height=height, width=width).items():
        arguments = {"task": "segmentation", "num_classes": classes, **networks[variant]}
        peak = cost.peak_training_bytes(
            build_network,
            arguments,
            batch=batch,
            height=height,
            width=width,
            device=where,
            memory_format=layout,
        )
        rows[variant] = {"network": networks[variant], **asdict(whole), "peak_bytes": peak}
        advance()
    seconds = cost.step_seconds(
        {
            variant: build_network(task="segmentation", num_classes=classes, **arguments)
            for variant, arguments in networks.items()
        },
        batch=batch,
        height=height,
        width=width,
        repeats=repeats,
        warmup=warmup,
        device=where,
        memory_format=layout,
    )
    for variant, row in rows.items():
        row["step_seconds"] = seconds[variant]
        row["median_step_seconds"] = statistics.median(seconds[variant])
    accelerator = torch.cuda.get_device_name(where) if where.startswith("cuda") else None
    return {
        "environment": {**runtime.environment(), "threads": torch.get_num_threads(), "accelerator": accelerator},
        "dataset": dataset,
        "device": where,
        "batch": batch,
        "height": height,
        "width": width,
        "classes": classes,
        "variants": rows,
    }
