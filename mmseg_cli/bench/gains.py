"""`mmseg bench gains`: what each way of training faster gains, for each block, against torch's operations one by one.

The ways build on each other, so that each row's gain over the row before is its own; the last rows are tried on top of
all and are what a user can turn on. All take turns, round by round, on the same images; before anything is timed, the
loss after some steps is checked to be the plain way's.

Shape suffixes: B batch, C channels, H, W height and width; h, w those before resizing; K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_cli import runtime
from mmseg_cli.ablation.costs import versus
from mmseg_cli.bench import peers, turns
from mmseg_cli.bench.machine import environment_of, matrix_peak
from mmseg_cli.bench.turns import take_turns, uncounted
from mmseg_cli.errors import MmsegError
from mmseg_cli.models import cost, lean
from mmseg_cli.models.unet import DecoderLevel, recompute_blocks, training_callable

CHECKED_STEPS = 3
SAME, SAME_TF32, SAME_BFLOAT16 = 1e-4, 3e-3, 0.03  # by which losses may differ from the plain way's, relative
PLAIN, OURS, GRAPH = "plain", "ours", "graph"
BUILT_UP = {  # each with all before it
    PLAIN: "torch's operations one by one, channels_last",
    "optimizer": "and torch's fused optimizer in place of its default",
    "loss": "and logits enlarged image by image in the loss",
    "decoder": "and the decoder's joining convolution in two parts, resizing backwards by matrices",
    OURS: "and norms and activations computed again instead of kept: what training does on a CPU",
}
ON_TOP = {  # each on top of ours alone
    "bfloat16": "ours by automatic mixed precision",
    "recompute": "ours with runtime.recompute",
    "compile": "ours with runtime.compile",
    GRAPH: "ours by kernels of our own, launched at once by CUDA graphs: what training does on a GPU",
}
WAYS = BUILT_UP | ON_TOP


def _uses(way: str, part: str) -> bool:
    """Whether a way of WAYS has what came in with `part`."""
    if part in ON_TOP:
        return way == part
    return way in ON_TOP or list(BUILT_UP).index(part) <= list(BUILT_UP).index(way)


def _plain_cross_entropy(logits_BKhw: Tensor, class_BHW: Tensor) -> Tensor:
    size = list(class_BHW.shape[-2:])
    return F.cross_entropy(F.interpolate(logits_BKhw, size=size, mode="bilinear", align_corners=False), class_BHW)


def _plain_decoder(self: DecoderLevel, coarser_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
    size = list(skip_BCHW.shape[-2:])
    upsampled_BCHW = F.interpolate(coarser_BCHW, size=size, mode="bilinear", align_corners=False)
    return self._run_blocks(self.fuse(torch.cat([skip_BCHW, upsampled_BCHW], dim=1)))


@contextmanager
def _as(way: str) -> Iterator[None]:
    """Inside the block our modules run in this way."""
    with ExitStack() as stack:
        if not _uses(way, OURS):
            stack.enter_context(lean.plain_path())
        if not _uses(way, "decoder"):
            stack.enter_context(patch.object(DecoderLevel, "forward", _plain_decoder))
        yield


def _loss(way: str) -> Callable[[Tensor, Tensor], Tensor]:
    return cost.mean_cross_entropy if _uses(way, "loss") else _plain_cross_entropy


def step_of(way: str, network: nn.Module, work: cost.Work) -> Callable[[], Tensor]:
    """A function that trains `network` by one step in one way, and gives the loss."""
    own = replace(work, autocast=torch.bfloat16 if _uses(way, "bfloat16") else work.autocast, loss=_loss(way))
    own.place(network)
    network.train()
    recompute_blocks(network, on=_uses(way, "recompute"))
    model: Any = torch.compile(network) if _uses(way, "compile") else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=_uses(way, "optimizer") or None)
    images_BCHW = own.images()
    if _uses(way, GRAPH):
        with _as(way):
            model = training_callable(network, images_BCHW, autocast=own.autocast)
    class_BHW = torch.arange(work.width, device=work.device).expand(work.batch, work.height, -1) % 2

    def step() -> Tensor:
        with _as(way):
            optimizer.zero_grad(set_to_none=True)
            loss = own.loss(own.run(model, images_BCHW).float(), class_BHW)
            torch.autograd.backward(loss)
        optimizer.step()
        own.wait()
        return loss.detach()

    return step


def _check(losses: Mapping[str, list[float]], *, same: float) -> dict[str, float]:
    """The largest relative difference of each way's losses from the plain way's.

    Args:
        same: by how much they may differ; those of bfloat16 by SAME_BFLOAT16.

    Raises:
        RuntimeError: a way trains something else.
    """
    found = {}
    for name, values in losses.items():
        differ = max(abs(own - plain) / abs(plain) for own, plain in zip(values, losses[PLAIN], strict=True))
        if not differ <= (SAME_BFLOAT16 if name == "bfloat16" else same):
            raise RuntimeError(f"{name}: its losses differ from the plain way's by {differ:.2g}, relative")
        found[name] = differ
    return found


def _block(
    network: Mapping[str, Any],
    ways: Sequence[str],
    *,
    classes: int,
    work: cost.Work,
    rounds: int,
    advance: Callable[[], None],
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """All ways of one block."""
    steps: dict[str, Callable[[], Tensor]] = {}
    losses: dict[str, list[float]] = {}
    kept: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for name in ways:
        runtime.seed_everything(0)
        made = peers.build_ours(network=network, classes=classes)
        try:
            with _as(name):
                kept[name] = 0 if name == "compile" else _kept_bytes(made, name, work)
            step = step_of(name, made, work)
            losses[name] = [float(step()) for _ in range(CHECKED_STEPS)]
            steps[name] = step
        except Exception as error:  # of a compiler, which has no class of its own
            if name != "compile":
                raise
            left_out[name] = " ".join(str(error).split())[:160]
            warn(f"{network['block']}: {name} is left out: {left_out[name]}")
    same = SAME_TF32 if torch.device(work.device).type == "cuda" else SAME
    differ = _check(losses, same=same if work.autocast is None else SAME_BFLOAT16)
    timings = take_turns(
        {name: uncounted(step) for name, step in steps.items()},
        reference=PLAIN,
        rounds=rounds,
        calls=None,
        units=work.batch,
        advance=advance,
    )
    torch._dynamo.reset()
    return {
        "ways": {
            name: {"images_per_second": timing.rates, "kept_bytes": kept[name], "loss_differs": differ[name]}
            for name, timing in timings.items()
        },
        "left_out": left_out,
        "macs": cost.macs(peers.build_ours(network=network, classes=classes), (2, 3, work.height, work.width)) // 2,
    }


def _kept_bytes(network: nn.Module, way: str, work: cost.Work) -> int:
    """Bytes that autograd keeps for backward, counted: of the network and of its loss."""
    recompute_blocks(network, on=_uses(way, "recompute"))
    return cost.activation_bytes(_WithLoss(network, _loss(way)), (work.batch, 3, work.height, work.width))


class _WithLoss(nn.Module):
    def __init__(self, network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, x_BCHW: Tensor) -> Tensor:
        target_BHW = torch.zeros((len(x_BCHW), *x_BCHW.shape[2:]), dtype=torch.long, device=x_BCHW.device)
        return self.loss(self.network(x_BCHW), target_BHW)


def run(
    blocks: Sequence[str],
    ways: Sequence[str],
    *,
    network: Mapping[str, Any],
    size: tuple[int, int],
    batch: int,
    classes: int,
    rounds: int,
    threads: int | None,
    device: torch.device,
    precision: str,
    advance: Callable[[], None],
    warn: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """The whole benchmark, block after block.

    Args:
        blocks: names of `names.BLOCK_NAMES`.
        ways: keys of WAYS; `plain` is always among them.
        network: ours, whose block is changed.
        size: (height, width) of the images.
        batch: images of a step.
        precision: float32, or bfloat16 by automatic mixed precision, of all ways.
        advance: called after each round of each block.
        warn: called with what is left out, and why.

    Yields:
        The content of the JSON report, after each block.

    Raises:
        MmsegError: a way that this device does not have.
    """
    runtime.prepare_training(threads=threads)
    low = torch.bfloat16 if precision == "bfloat16" else None
    work = cost.Work(batch, size[0], size[1], str(device), low)
    wanted = [name for name in WAYS if name in {*ways, PLAIN}]
    if GRAPH in wanted and device.type != "cuda":
        raise MmsegError("--ways", f"{GRAPH} needs a GPU", "leave it out, or give --device cuda")
    peak = matrix_peak(device, low or torch.float32)
    environment = environment_of(device)
    settings = {"network": dict(network)} | turns.settings_of(work, classes=classes, rounds=rounds)
    found: dict[str, Any] = {}
    for block in blocks:
        body = {**network, "block": block}
        found[block] = _block(body, wanted, classes=classes, work=work, rounds=rounds, advance=advance, warn=warn)
        yield {"environment": environment, "settings": settings, "matrix_peak": peak, "blocks": found}


MFU = "MFU %"
HEADINGS = ("way", "images/s", f"times {PLAIN}", "95 %", MFU, "kept MB/image", "loss differs by")


def headings(result: dict[str, Any]) -> tuple[str, ...]:
    """Those of HEADINGS that a report has: those of before have no MFU."""
    return tuple(heading for heading in HEADINGS if heading != MFU or "matrix_peak" in result)


def tables(result: dict[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """The rows of each block under `headings`."""
    found = {}
    for block, parts in result["blocks"].items():
        plain = parts["ways"][PLAIN]["images_per_second"]
        rows: list[tuple[str, ...]] = []
        for name, row in parts["ways"].items():
            rate, timing = median(row["images_per_second"]), versus(row["images_per_second"], plain)
            kept = row["kept_bytes"] / result["settings"]["batch"] / 1e6
            cells = {
                "way": name,
                "images/s": f"{rate:.3g}",
                f"times {PLAIN}": f"{timing.ratio:.2f}",
                "95 %": "-" if timing.low is None else f"{timing.low:.2f} - {timing.high:.2f}",
                "kept MB/image": f"{kept:.1f}" if kept else "-",
                "loss differs by": f"{row['loss_differs']:.1e}",
            }
            if "matrix_peak" in result:
                flops = cost.TRAINING_FLOPS * parts["macs"] * rate
                cells[MFU] = f"{100 * flops / median(result['matrix_peak']):.1f}"
            rows.append(tuple(cells[heading] for heading in headings(result)))
        found[block] = rows
    return found


def _of_peak(result: dict[str, Any]) -> list[str]:
    if "matrix_peak" not in result:
        return []
    peak = f"{median(result['matrix_peak']) / 1e12:.3g} TFLOP/s"
    precision = result["settings"]["precision"]
    return [
        "MFU: a step's operations, six for each multiply-accumulate, as a share of the device's peak,",
        f"{peak} in products of large matrices in {precision}.",
    ]


def markdown(result: dict[str, Any]) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    height, width = settings["size"]
    blocks = result["blocks"].values()
    network = ", ".join(f"{key} {value}" for key, value in settings["network"].items() if key != "block")
    lines = [
        "# What each way of training gains",
        "",
        f"A training step on {settings['batch']} images of {height}x{width}: forward, cross entropy of",
        f"{settings['classes']} classes at the images' size, backward, AdamW. {settings['threads']} threads, device",
        f"{settings['device']}, {settings['precision']}; all ways in turns{turns.told(settings)},",
        f"{settings['rounds']} rounds; ratios are medians over the rounds with their 95 % interval. The ways up to",
        "`ours` build on each other, the last ones on `ours`. Kept is what autograd keeps for backward, counted, in",
        f"float32. The last column compares the losses of the first {CHECKED_STEPS} steps with the plain way's,",
        f"relative. The network: {network}.",
        *_of_peak(result),
        f"Machine: {machine}.",
        "",
        *(f"- `{name}`: {what}." for name, what in WAYS.items() if any(name in parts["ways"] for parts in blocks)),
    ]
    heads = headings(result)
    for block, rows in tables(result).items():
        rule = "|:--" + "|--:" * (len(heads) - 1) + "|"
        lines += ["", f"## {block}", "", "| " + " | ".join(heads) + " |", rule]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        for name, why in result["blocks"][block]["left_out"].items():
            lines += ["", f"Left out: `{name}` ({why})."]
    return "\n".join(lines) + "\n"
