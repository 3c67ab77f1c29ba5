"""`mmseg cost`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mmseg_cli.cli.common import Preset, dataset_title, load, track, with_preset

if TYPE_CHECKING:
    from mmseg_cli.ablation.costs import Networks
    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths


def cost(
    preset: Preset = "demo",
    height: Annotated[
        int | None, typer.Option(min=32, help="Image height; the preset's cost.crop if left out.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=32, help="Image width; the preset's cost.crop if left out.")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 19,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure training and prediction of all rows in turn and write cost.json."),
    ] = False,
) -> None:
    """Print parameters, MACs and activation memory of every row's network and block; with --measure, time them.

    Rows are those of the grid, `ablate.variants`.
    """
    paths, params = load(preset)
    from mmseg_cli.ablation import costs
    from mmseg_cli.cli import screen

    networks = {variant: params.network_of(variant) for variant in params.ablate.variants}
    if measure:
        _measure(paths, params, networks)
        return
    size = (height or params.cost.crop[0], width or params.cost.crop[1])
    rows = costs.counted(networks, classes=classes, height=size[0], width=size[1])
    for title, part in (("network", 0), ("one block at the finest level", 1)):
        screen.table(
            f"{title}, {size[0]}x{size[1]} image",
            ("variant", "parameters", "MACs (G)", "activations (MiB)"),
            [
                (
                    name,
                    f"{row[part].parameters:,}",
                    f"{row[part].macs / 1e9:.3f}",
                    f"{row[part].activation_bytes / 2**20:.1f}",
                )
                for name, row in rows.items()
            ],
        )
    screen.panel(
        "cost",
        [("activations", "kept for the backward pass of one image in float32; counted, not measured")],
        next_command=with_preset(preset, "mmseg cost --measure"),
    )


def _measure(paths: Paths, params: Params, networks: Networks) -> None:
    from mmseg_cli.ablation import costs
    from mmseg_cli.cli import screen
    from mmseg_cli.data.store import open_store
    from mmseg_cli.files import require_writable, write_json

    require_writable(paths.evidence)
    section = params.datasets[params.evaluate.dataset]
    store = open_store(paths.store(params.evaluate.dataset), parameters=section.content())
    with track(paths, params, run="cost", section=params.cost.model_dump()) as tracker:
        with screen.Screen("cost", unit="measurements") as show:
            measured = costs.measure(
                networks,
                dataset=dataset_title(params),
                classes=len(store.space.classes),
                batch=params.cost.batch,
                height=params.cost.crop[0],
                width=params.cost.crop[1],
                inference=(params.cost.inference[0], params.cost.inference[1]),
                repeats=params.cost.repeats,
                warmup=params.cost.warmup,
                device=params.runtime.device,
                threads=params.runtime.threads,
                channels_last=params.runtime.channels_last,
                begin=lambda total: show.begin(total=total),
                advance=show.advance,
            )
        write_json(paths.evidence / "cost.json", measured)
        rows = costs.compared(measured, variants=list(networks))
        tracker.close(
            summary={f"step_seconds/{name}": row.step.median for name, row in rows.items()}
            | {f"inference_seconds/{name}": row.inference.median for name, row in rows.items()}
            | {f"step_joules/{name}": row.joules.median for name, row in rows.items() if row.joules is not None}
        )
    device, (height, width) = measured["environment"]["device"], params.cost.inference
    screen.table(
        f"a training step of {params.cost.batch} crops, and one image of {height}x{width}, on {device}",
        ("variant", "parameters", "MACs (G)", "s / step", "time ratio", "J / step", "peak MiB", "ms / image"),
        [
            (
                name,
                f"{row.parameters:,}",
                f"{row.macs / 1e9:.3f}",
                f"{row.step.median:.3f}",
                f"{row.step.ratio:.2f}",
                "–" if row.joules is None else f"{row.joules.median:.1f}",
                f"{row.peak_bytes / 2**20:.0f}",
                f"{1000 * row.inference.median:.1f}",
            )
            for name, row in rows.items()
        ],
    )
    shared = [f"{name} is {row['same_as']}" for name, row in measured["variants"].items() if row["same_as"]]
    screen.panel(
        "cost",
        [
            ("energy", measured["no_energy"] or "of the whole GPU, idle power included"),
            *((("the same network", ", ".join(shared)),) if shared else ()),
            ("file", str(paths.evidence / "cost.json")),
        ],
        next_command=with_preset(paths.preset, "mmseg ablate"),
    )
