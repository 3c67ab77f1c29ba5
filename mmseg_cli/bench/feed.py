"""`mmseg bench feed`: does the loader keep the device busy? A preset's training, fed by its loader and from memory.

The very loop, recipe and crops of the preset's training, on generated street photographs of Cityscapes' size. Turn by
turn its steps get what the loader makes, and one batch that lies in memory already: what the device can do. The first
steps of the loader's turns do not count, for which it had batches ready.

Shapes: none.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmseg_cli import runtime
from mmseg_cli.bench.data import CLASSES, prepared_quietly, write_pictures
from mmseg_cli.bench.machine import environment_of
from mmseg_cli.data import loader, sampling
from mmseg_cli.data.store import open_store
from mmseg_cli.models.unet import build_network
from mmseg_cli.params import Params, SegmentationStage
from mmseg_cli.processes import Processes
from mmseg_cli.training import parts
from mmseg_cli.training.loop import Step, fit

FED, MEMORY = "fed by the loader", "from memory"
ENDLESS = 2**31  # steps
SETTLING = 5  # steps of each turn that do not count in any case


def run(
    params: Params,
    *,
    variant: str,
    images: int,
    steps: int,
    rounds: int,
    workers: int,
    device: torch.device,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """The whole benchmark.

    Args:
        variant: of the preset.
        images: generated photographs that the crops are cut from.
        steps: that count in each turn.
        rounds: turns of each.
        workers: processes that read and change the crops; 0 is this one.
        advance: called after each turn.

    Returns:
        The content of the JSON report.
    """
    runtime.prepare_training(threads=params.runtime.threads)
    section = params.section_of(variant, "train")
    assert isinstance(section, SegmentationStage)
    body = params.network_of(variant)
    micro = sampling.at_once(
        batch=section.batch,
        norm_batch=section.norm_batch,
        norm=body["norm"],
        chosen=params.runtime.micro_batch,
        world=1,
    )
    here = Processes(device=device)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "raw", kind="png", images=images, seed=0)
        prepared_quietly("folder", Path(folder) / "raw", Path(folder) / "store")
        split = open_store(Path(folder) / "store").split("train")
        crops = parts.crops(section, split, classes=CLASSES, seed=0, processes=here)
        every = loader.steps_loader(crops, start=0, stop=ENDLESS, workers=workers, pinned=device.type == "cuda")
        skipped = SETTLING + (every.prefetch_factor or 0) * workers
        runtime.seed_everything(0)
        network = build_network(task="segmentation", num_classes=CLASSES, **body)
        state = parts.state(section, network, runtime=params.runtime, processes=here)
        turn = partial(
            _turn,
            state=state,
            model=parts.callable_model(
                section, state.network, runtime=params.runtime, processes=here, micro_batch=micro
            ),
            objective=parts.objective(section, class_pixels=[1] * CLASSES, device=device),
            section=section,
            processes=here,
            channels_last=params.runtime.channels_last,
            micro_batch=micro,
        )
        batches = iter(every)
        held = next(batches)
        turn(itertools.repeat(held, SETTLING))
        found: dict[str, list[dict[str, float]]] = {FED: [], MEMORY: []}
        for _ in range(rounds):
            for name, given, uncounted in (
                (MEMORY, itertools.repeat(held, SETTLING + steps), SETTLING),
                (FED, itertools.islice(batches, skipped + steps), skipped),
            ):
                counted = turn(given)[uncounted:]
                seconds = sum(step.seconds for step in counted)
                found[name].append(
                    {
                        "crops_per_second": section.batch * len(counted) / seconds,
                        "waited": sum(step.waited for step in counted) / seconds,
                    }
                )
                advance()
    return {
        "environment": environment_of(device),
        "settings": {
            "preset": params.preset,
            "variant": variant,
            "batch": section.batch,
            "crop": list(section.crop),
            "precision": section.precision,
            "images": images,
            "steps": steps,
            "rounds": rounds,
            "workers": workers,
            "device": str(device),
        },
        "turns": found,
    }


def _turn(batches: Iterable[tuple[Tensor, Tensor]], *, section: SegmentationStage, **given: Any) -> list[Step]:
    """Steps of the preset's training on some batches."""
    done: list[Step] = []
    fit(
        batches=batches,
        learning_rate=lambda _step: section.learning_rate,  # a schedule would end
        start=0,
        precision=section.precision,
        clip_norm=section.clip_norm,
        seed=0,
        log_data=lambda _step: False,
        on_step=done.append,
        **given,
    )
    return done


HEADINGS = ("steps", "crops/s", "of the device's own %", "range over rounds", "host waits for data %")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table under HEADINGS."""
    own = [turn["crops_per_second"] for turn in result["turns"][MEMORY]]
    found: list[tuple[str, ...]] = []
    for name, turns in result["turns"].items():
        rates = [turn["crops_per_second"] for turn in turns]
        shares = [100 * rate / mine for rate, mine in zip(rates, own, strict=True)]
        waited = 100 * statistics.median(turn["waited"] for turn in turns)
        middle, ends = statistics.median(shares), f"{min(shares):.1f} - {max(shares):.1f}"
        found.append((name, f"{statistics.median(rates):.1f}", f"{middle:.1f}", ends, f"{waited:.1f}"))
    return found


def markdown(result: dict[str, Any]) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    height, width = settings["crop"]
    lines = [
        "# Feeding the device",
        "",
        f"Training of preset {settings['preset']}, {settings['variant']}, as `mmseg train` runs it, in",
        f"{settings['precision']}: {settings['batch']} crops of {height}x{width} a step, from {settings['images']}",
        f"generated photographs in the page cache; {settings['workers']} workers, device {settings['device']}. In",
        f"turns the steps get what the loader makes, and one batch from memory; {settings['rounds']} rounds of",
        f"{settings['steps']} steps, after those for which batches were ready. A share below 100 % is time in which",
        f"the device had nothing to do. Machine: {machine}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|:--" + "|--:" * (len(HEADINGS) - 1) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows(result)]
    return "\n".join(lines) + "\n"
