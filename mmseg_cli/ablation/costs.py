"""The cost of every variant: counted (parameters, MACs, activations), measured (time, memory, energy), and compared.

What is measured is written raw, one number a round; whatever is derived from it is computed here when a table needs it.
Reading cost.json (`compared`) needs no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mmseg_cli import energy, provenance, runtime
from mmseg_cli.ablation.statistics import LEVEL

if TYPE_CHECKING:
    from mmseg_cli.models.cost import Cost

Networks = Mapping[str, dict[str, Any]]  # the arguments of `mmseg_cli.models.unet.UNet` by variant
JOULE_SECONDS = 3.0  # of steps in a row, to read their energy: the ends of a run are known to a tenth of a second


def counted(networks: Networks, *, classes: int, height: int, width: int) -> dict[str, tuple[Cost, Cost]]:
    """For every variant the cost of the whole network for one image, and of one block at the finest level.

    Args:
        networks: by variant.
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


def first_of_each(networks: Networks) -> dict[str, str]:
    """For every variant the first one with the very same network, which may be itself."""
    firsts: list[str] = []
    found = {}
    for variant, network in networks.items():
        same = next((first for first in firsts if networks[first] == network), None)
        if same is None:
            firsts.append(variant)
        found[variant] = same or variant
    return found


def measure(
    networks: Networks,
    *,
    dataset: str,
    classes: int,
    batch: int,
    height: int,
    width: int,
    inference: tuple[int, int],
    repeats: int,
    warmup: int,
    device: str,
    threads: int | None,
    channels_last: bool,
    begin: Callable[[int], None],
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Measure all variants in turn (A B C A B C ...) on one device, in float32.

    One training step of `batch` crops, with SGD: its time, its peak memory, and its energy where the device tells it.
    The prediction of one image (batch 1, evaluation mode, batch norms not folded): its time. See
    `mmseg_cli.models.cost` for what exactly. It is the cost of the network: auxiliary heads, other losses and what else
    a variant changes of its training are not in it. So variants that have the very same network are measured once.

    Args:
        networks: by variant.
        dataset: whose classes the head has, as the tables call it.
        classes: of the head.
        batch, height, width: of a training step; one image of that size is what MACs and activations are counted for.
        inference: (height, width) of the image that is predicted.
        repeats: measured rounds of each kind.
        warmup: rounds before them.
        device, threads, channels_last: as in the parameters' section `runtime`.
        begin: called with the number of measurements.
        advance: called after each of them.

    Returns:
        The content of cost.json: the environment, sizes, `no_energy` (why there is none, in words, else None), and for
        every variant its network, the variant that was measured in its place (`same_as`, else None), what was counted,
        peak bytes, and the raw seconds and joules (None where there are none) of each round.
    """
    import torch

    from mmseg_cli.models import cost
    from mmseg_cli.models.unet import build_network

    runtime.prepare_training(threads=threads)
    chosen = runtime.pick_device(device)
    meter = energy.meter(chosen)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    step = cost.Work(batch=batch, height=height, width=width, device=str(chosen), memory_format=layout)
    image = cost.Work(batch=1, height=inference[0], width=inference[1], device=str(chosen), memory_format=layout)
    firsts = first_of_each(networks)
    distinct = {
        variant: {"task": "segmentation", "num_classes": classes, **networks[variant]}
        for variant, first in firsts.items()
        if variant == first
    }
    begin(len(distinct) + 2 * (warmup + repeats) + (0 if meter is None else repeats))

    counts = counted({name: networks[name] for name in distinct}, classes=classes, height=height, width=width)
    peaks = {}
    for variant, arguments in distinct.items():
        peaks[variant] = cost.peak_training_bytes(build_network, arguments, work=step)
        advance()
    built = {variant: build_network(**arguments) for variant, arguments in distinct.items()}
    rounds: dict[str, Any] = {"repeats": repeats, "warmup": warmup, "advance": advance}
    step_seconds = cost.step_seconds(built, work=step, **rounds)
    joules = meter and cost.step_joules(built, work=step, meter=meter, seconds=JOULE_SECONDS, **rounds)
    with runtime.algorithms_untried():  # as evaluation does
        inference_seconds = cost.inference_seconds(built, work=image, **rounds)

    on_cuda = chosen.type == "cuda"
    return {
        "environment": {
            **runtime.environment(),
            "threads": torch.get_num_threads(),
            "device": str(chosen),
            "accelerator": provenance.accelerator(str(chosen)),
            "memory_format": str(layout).removeprefix("torch."),
            "precision": "float32",
            "training_tf32": torch.backends.cudnn.allow_tf32 if on_cuda else None,
            "optimizer": "SGD with momentum",
        },
        "dataset": dataset,
        "classes": classes,
        "batch": batch,
        "height": height,
        "width": width,
        "inference_height": inference[0],
        "inference_width": inference[1],
        "repeats": repeats,
        "warmup": warmup,
        "no_energy": energy.why_not(chosen.type) if meter is None else None,
        "variants": {
            variant: {
                "network": networks[variant],
                "same_as": None if variant == first else first,
                **asdict(counts[first][0]),
                "peak_bytes": peaks[first],
                "step_seconds": step_seconds[first],
                "inference_seconds": inference_seconds[first],
                "step_joules": joules[first] if joules else None,
            }
            for variant, first in firsts.items()
        },
    }


# ------------------------------------------------------------------------------------------------ derived


@dataclass(frozen=True)
class Timing:
    """A quantity that was measured in rounds, and how many times as much it is as the baseline's.

    Attributes:
        median: over the rounds, in seconds or joules.
        ratio: the median of the ratios to the baseline within each round.
        low, high: the 95 % interval of that median; None with fewer than six rounds, and for the baseline itself (and
            what was measured as the same network), whose ratio is 1. It is about the noise of measuring on this device
            at that time, and says nothing of another device.
    """

    median: float
    ratio: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Measured:
    """The cost of one variant, and its ratios to the baseline.

    Attributes:
        parameters: of the network.
        macs: of one image of the size of a training crop.
        peak_bytes: of a training step.
        memory_ratio: of these.
        step: seconds of a training step.
        images_per_second: that are trained.
        inference: seconds from one image to its logits.
        joules: of a training step; None where the device does not tell.
    """

    parameters: int
    macs: int
    peak_bytes: int
    memory_ratio: float
    step: Timing
    images_per_second: float
    inference: Timing
    joules: Timing | None


def compared(cost: Mapping[str, Any], *, variants: Sequence[str]) -> dict[str, Measured]:
    """What the tables say of the cost of some variants.

    Args:
        cost: the content of cost.json.
        variants: some that it holds; the first is the baseline.

    Raises:
        ValueError: two variants have other numbers of rounds.
    """
    base = cost["variants"][variants[0]]

    def timing(row: Mapping[str, Any], key: str) -> Timing:
        return versus(row[key], base[key])

    found = {}
    for variant in variants:
        row = cost["variants"][variant]
        step = timing(row, "step_seconds")
        found[variant] = Measured(
            parameters=row["parameters"],
            macs=row["macs"],
            peak_bytes=row["peak_bytes"],
            memory_ratio=row["peak_bytes"] / base["peak_bytes"],
            step=step,
            images_per_second=cost["batch"] / step.median,
            inference=timing(row, "inference_seconds"),
            joules=None if row["step_joules"] is None else timing(row, "step_joules"),
        )
    return found


def versus(own: Sequence[float], baseline: Sequence[float]) -> Timing:
    """One series of measurements against another that was taken in turn with it, or against itself.

    Raises:
        ValueError: the two have other numbers of rounds, or none.
    """
    ratios = sorted(mine / other for mine, other in zip(own, baseline, strict=True))
    place = None if list(own) == list(baseline) else _place(len(ratios))
    low, high = (None, None) if place is None else (ratios[place], ratios[-1 - place])
    return Timing(statistics.median(own), statistics.median(ratios), low, high)


FEWEST_ROUNDS = 6  # for an interval of a median


def _place(count: int) -> int | None:
    """Which of `count` sorted values, from 0, is the lower limit of the median; the upper one is as far from the end.

    Each value is below the true median with probability 1/2, whatever the distribution, so the number below it is
    binomial (Thompson 1936, Annals of Mathematical Statistics 7:122). The interval is the shortest that misses with
    probability 1 - LEVEL at most; None where even smallest and largest miss more often. Rounds that follow each other
    are taken as independent.
    """
    below, place = 0.0, None
    for number in range(count // 2):
        below += math.comb(count, number) / 2**count  # P(at most `number` values are below the median)
        if 2 * below > 1 - LEVEL:
            break
        place = number
    return place
