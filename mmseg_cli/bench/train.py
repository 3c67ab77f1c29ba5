"""`mmseg bench train`: our network against those of other libraries, each pair at equal multiply-accumulates.

A step is a whole one: forward, cross entropy at the images' size, backward, SGD with momentum. An inference is one
image from normalised pixels to logits of its size. Ours and the peer take turns, round by round; each runs in the
memory layout that was faster for it in a short trial, in training and in inference apart. Ours and, where torch.fx can
follow them, the peers' networks have their batch norms folded into the convolutions for inference; on a GPU ours does
what `mmseg predict` does there.

Shapes: B = batch, C = 3 colours, H, W = height, width.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mmseg_cli import runtime
from mmseg_cli.ablation.costs import versus
from mmseg_cli.bench import peers, turns
from mmseg_cli.bench.machine import environment_of, matrix_peak
from mmseg_cli.bench.turns import take_turns, uncounted
from mmseg_cli.errors import MmsegError, NotCaptured, ran_out
from mmseg_cli.models import cost
from mmseg_cli.models.fold import fold_norms
from mmseg_cli.models.unet import predicts_by_graph

OURS = "ours"
CHANNELS_LAST = "channels_last"
LAYOUTS = {CHANNELS_LAST: torch.channels_last, "contiguous": torch.contiguous_format}
TRIALS = 2  # calls of each layout, after one that does not count


@dataclass(frozen=True)
class Contender:
    """A network in its own best way.

    Attributes:
        make: builds it; at a module's top level.
        arguments: of `make`.
        loss: see `mmseg_cli.models.cost.Work`.
        fold: makes what inference runs, from a network in evaluation mode.
    """

    make: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    fold: Callable[[nn.Module], nn.Module]

    def build(self) -> nn.Module:
        """Make the network."""
        return self.make(**self.arguments)


def _by_fx(network: nn.Module) -> nn.Module:
    """A peer with its batch norms folded, as far as torch.fx can follow its code; else as it is."""
    from torch.fx.experimental.optimization import fuse

    inner = network.network if isinstance(network, peers._Out) else network
    try:
        folded = fuse(copy.deepcopy(inner).eval())
    except Exception:  # of tracing, which fails in as many ways as there are networks
        return network.eval()
    if isinstance(network, peers._Out):
        return peers._Out(folded).eval()
    made: nn.Module = folded
    return made


def has_norms(network: nn.Module) -> bool:
    """Whether a batch norm is left."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _training(contender: Contender, work: cost.Work) -> Callable[[], None]:
    step = cost.training_step(contender.build(), work=work)

    def run() -> None:
        step()
        work.wait()

    return run


def _inference(contender: Contender, work: cost.Work) -> Callable[[], None]:
    network = contender.build().eval()
    if not predicts_by_graph(network, torch.device(work.device)):
        network = contender.fold(network)
    with torch.inference_mode(), cost.true_float32():
        predict = work.prediction(network)

    def run() -> None:
        with torch.inference_mode(), cost.true_float32():
            predict()
        work.wait()

    return run


def _in_best_layout(
    prepare: Callable[[Contender, cost.Work], Callable[[], None]], contender: Contender, work: cost.Work
) -> tuple[str, Callable[[], None]]:
    """The faster of the two layouts, by its name, and the call in it."""
    best: tuple[float, str, Callable[[], None]] | None = None
    # A GPU's convolutions in low precision know one layout.
    low_on_gpu = torch.device(work.device).type == "cuda" and work.autocast is not None
    for name, layout in {CHANNELS_LAST: LAYOUTS[CHANNELS_LAST]}.items() if low_on_gpu else LAYOUTS.items():
        call = prepare(contender, replace(work, memory_format=layout, loss=contender.loss))
        call()
        seconds = []
        for _ in range(TRIALS):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        if best is None or min(seconds) < best[0]:
            best = (min(seconds), name, call)
    assert best is not None
    return best[1], best[2]


def _pair(
    contenders: Mapping[str, Contender],
    peer: str,
    *,
    work: cost.Work,
    rounds: int,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """A peer and ours: counts, peak memory, and rates of training and of inference in turns."""
    found: dict[str, Any] = {}
    for name, contender in contenders.items():
        network = contender.build()
        counted = cost.describe(network, (2, 3, work.height, work.width))
        found[name] = {
            "parameters": counted.parameters,
            "macs": counted.macs // 2,
            "folded": not has_norms(contender.fold(network.eval())),
        }
    single = replace(work, batch=1)
    for what, prepare, on in (("training", _training, work), ("inference", _inference, single)):
        ready = {name: _in_best_layout(prepare, contender, on) for name, contender in contenders.items()}
        timings = take_turns(
            {name: uncounted(call) for name, (_, call) in ready.items()},
            reference=peer,
            rounds=rounds,
            calls=None,
            units=on.batch,
            advance=advance,
        )
        for name, timing in timings.items():
            found[name][what] = {"layout": ready[name][0], "images_per_second": timing.rates}
        del ready
    for name, contender in contenders.items():
        layout = LAYOUTS[found[name]["training"]["layout"]]
        own = replace(work, memory_format=layout, loss=contender.loss)
        found[name]["peak_bytes"] = cost.peak_training_bytes(contender.make, contender.arguments, work=own)
        advance()
    return found


def run(
    names: Sequence[str],
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
    """The whole benchmark, peer after peer.

    Args:
        names: keys of `peers.PEERS`.
        network: ours, whose width follows each peer's multiply-accumulates.
        size: (height, width) of the images.
        batch: images of a training step.
        rounds: how often ours and a peer take turns.
        threads: of torch; None is one per core.
        precision: float32 or bfloat16.
        advance: called after each round, and after each measurement of memory.
        warn: called with what is left out, and why.

    Yields:
        The content of the JSON report, after each peer.

    Raises:
        NotCaptured: ours cannot be captured as a CUDA graph.
    """
    runtime.prepare_training(threads=threads)
    low = torch.bfloat16 if precision == "bfloat16" else None
    work = cost.Work(batch, size[0], size[1], str(device), low)
    peak = matrix_peak(device, low or torch.float32)
    settings = turns.settings_of(work, classes=classes, rounds=rounds)
    pairs: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            theirs = Contender(peers.build_peer, {"name": name, "classes": classes}, F.cross_entropy, _by_fx)
            macs = cost.macs(theirs.build(), (2, 3, *size)) // 2
            ours = peers.at_equal_macs(network, macs, size=size, classes=classes)
            own = Contender(
                peers.build_ours, {"network": ours, "classes": classes}, cost.mean_cross_entropy, fold_norms
            )
            pairs[name] = {"network": ours} | _pair(
                {OURS: own, name: theirs}, name, work=work, rounds=rounds, advance=advance
            )
        except NotCaptured:  # after which torch may not draw on a GPU any more
            raise
        except (MmsegError, RuntimeError, MemoryError) as error:
            ours_says = isinstance(error, MmsegError)
            if not ours_says and not ran_out(error):
                raise
            left_out[name] = str(error) if ours_says else f"{name}: not enough memory"
            warn(f"left out: {left_out[name]}")
        yield {
            "environment": environment_of(device) | peers.versions(pairs),
            "settings": settings,
            "matrix_peak": peak,
            "pairs": pairs,
            "left_out": left_out,
        }


HEADINGS = (
    "network", "parameters M", "GMACs", "training images/s", "TFLOP/s", "MFU %", "peak MB/image", "bytes/kMAC",
    "inference images/s",
)  # fmt: skip
RATIOS = ("ours against", "kind", "MACs", "training", "interval", "inference", "interval", "peak memory")


def _speeds(result: dict[str, Any], title: str, row: dict[str, Any]) -> tuple[str, ...]:
    """A network's row under HEADINGS."""
    settings, peak = result["settings"], statistics.median(result["matrix_peak"])
    rate = statistics.median(row["training"]["images_per_second"])
    flops = cost.TRAINING_FLOPS * row["macs"] * rate
    memory = row["peak_bytes"] / settings["batch"]
    return (
        title,
        f"{row['parameters'] / 1e6:.2f}",
        f"{row['macs'] / 1e9:.3f}",
        f"{rate:.3g}",
        f"{flops / 1e12:.3f}",
        f"{100 * flops / peak:.1f}",
        f"{memory / 1e6:.0f}",
        f"{1e3 * memory / row['macs']:.1f}",
        f"{statistics.median(row['inference']['images_per_second']):.3g}",
    )


def tables(result: dict[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """Rows under RATIOS, and under HEADINGS, by their titles."""
    ratios, speeds = [], []
    for name, pair in result["pairs"].items():
        peer, ours, theirs = peers.PEERS[name], pair[OURS], pair[name]
        cells = []
        for what in ("training", "inference"):
            timing = versus(ours[what]["images_per_second"], theirs[what]["images_per_second"])
            cells += [f"{timing.ratio:.2f}", "-" if timing.low is None else f"{timing.low:.2f} - {timing.high:.2f}"]
        memory = f"{ours['peak_bytes'] / theirs['peak_bytes']:.2f}"
        macs = f"{ours['macs'] / theirs['macs']:.2f}"
        ratios.append((peer.title, peer.kind, macs, *cells, memory))
        speeds.append(_speeds(result, f"{peer.title} ({peer.package})", theirs))
        speeds.append(_speeds(result, f"ours, width {pair['network']['width']}", ours))
    return {"Ours as a multiple of each peer": ratios, "Each network": speeds}


def headings(title: str) -> tuple[str, ...]:
    """The headings of a table of `tables`."""
    return HEADINGS if title == "Each network" else RATIOS


def markdown(result: dict[str, Any]) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    height, width = settings["size"]
    pairs = result["pairs"].values()
    ours = dict(next(iter(pairs))["network"]) if pairs else {}
    ours.pop("width", None)
    lines = [
        "# Training and inference against other libraries",
        "",
        "Our network against those of other libraries, each pair at equal multiply-accumulates: the width of ours is",
        f"the multiple of {peers.WIDTH_STEP} that comes nearest. {settings['precision']}, images of {height}x{width},",
        f"{settings['classes']} classes, {settings['threads']} threads, device {settings['device']}. A training step",
        f"is forward, cross entropy at the images' size, backward and SGD on {settings['batch']} images; inference is",
        "of one image, to logits of its size, with batch norms folded into convolutions where that can be done. Each",
        "network runs in the memory layout (channels_last or contiguous) that was faster for it, on a GPU in bfloat16",
        "in channels_last. There ours trains and predicts by CUDA graphs, as `mmseg train` and `mmseg predict` do (its",
        "kernels see to batch norms in place of folding), and theirs as its code does. Ours",
        f"and the peer take turns{turns.told(settings)}, {settings['rounds']} rounds; ratios are medians over the",
        "rounds with their 95 % interval, above 1 where ours is faster, or takes more memory.",
        "",
        f"Ours: {', '.join(f'{key} {value}' for key, value in ours.items())}.",
        "",
        f"Peak of this device, by products of large matrices: {statistics.median(result['matrix_peak']) / 1e12:.3f}"
        " TFLOP/s. A training step counts as three forward passes of two operations for each multiply-accumulate;",
        "MFU is their share of that peak. Memory is the peak of a training step above what the process took before.",
        f"Machine: {machine}.",
    ]
    for title, rows in tables(result).items():
        heads = headings(title)
        lines += ["", f"## {title}", "", "| " + " | ".join(heads) + " |", "|:--" + "|--:" * (len(heads) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    unfolded = [peers.PEERS[name].title for name, pair in result["pairs"].items() if not pair[name]["folded"]]
    if unfolded:
        lines += ["", f"Batch norms are left in inference in: {', '.join(unfolded)}."]
    for name, why in result["left_out"].items():
        lines += ["", f"Left out: {name} ({why})."]
    return "\n".join(lines) + "\n"
