"""`mmseg ablate`: the grid, what is missing of it, and its tables; and how many seeds a question takes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from mmseg_cli.cli.common import Preset, load, track, with_preset
from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.ablation.axes import Entry
    from mmseg_cli.ablation.report import Report
    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths

T = TypeVar("T")


def ablate(
    blocks: Annotated[
        str | None,
        typer.Option(help="Variants, blocks, or blocks.module:Class, separated by commas; the first is the baseline."),
    ] = None,
    layouts: Annotated[str | None, typer.Option(help="An axis of the grid: uniform,pyramid.")] = None,
    starts: Annotated[
        str | None, typer.Option(help="An axis: what training starts from, of scratch,imagenet,mapillary.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE,...", help="An axis: any parameter of network or a stage; may be repeated."
        ),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            help="Add rows whose width is solved for the baseline's parameters,macs,time; one or several of these."
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas.")] = None,
    preset: Preset = "demo",
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Only build the tables from the evidence that is there.")
    ] = False,
    executor: Annotated[
        Literal["local", "ray", "slurm"] | None,
        typer.Option(
            help="Run stages side by side: on this machine, a Ray cluster or Slurm. See docs/many-machines.md."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Of --executor: the most stages at once; local: one for each GPU if left out."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of --executor ray: the cluster's; else the one found here.")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Only show how far the grid of an --executor is.")] = False,
    power: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="POINTS", help="Only say how many seeds it takes to see a gap of so many points."
        ),
    ] = None,
) -> None:
    """Run what is missing of the grid (through DVC), then write and print the ablation table.

    A changed grid is shown, and written into the preset's params.yaml. What was trained before is not trained again.
    """
    paths, params = load(preset)
    axes_given = any(value for value in (blocks, layouts, starts, set_, match, seeds))
    only = {"--no-run": no_run, "--power": power is not None, "--status": status}
    for option, given in only.items():
        if given and axes_given:
            raise MmsegError(option, "is about params.yaml's grid", "leave out the options that change the grid")
    alone = [option for option, given in {**only, "--executor": executor is not None}.items() if given]
    if len(alone) > 1:
        raise MmsegError(" and ".join(alone), "do not go together", "give one of them")
    if executor is None and (jobs is not None or address is not None):
        option = "--jobs" if jobs is not None else "--address"
        raise MmsegError(option, "is of an executor", "name one, as in `mmseg ablate --executor local --jobs 2`")
    if status:
        from mmseg_cli.cli import execution

        execution.status(paths)
        return
    if power is not None:
        if not math.isfinite(power):
            raise MmsegError("--power", f"{power} is no gap in points", "give a number, such as 0.5")
        _tell_power(paths, params, gap=power)
        return
    from mmseg_cli.ablation import report, rows

    if no_run:
        with track(paths, params, run="ablate", section=params.ablate.model_dump()) as tracker:
            built = report.build(paths, params)
            means = {row.variant: row.mean.estimate for row in built.rows}
            tracker.close(summary={f"mean_iou/{name}": value for name, value in means.items() if value is not None})
        examples = _drawn(paths, params, built)
    else:
        from mmseg_cli.cli import execution

        execution.require_free(paths)
        params = _with_grid(
            paths, params, blocks=blocks, layouts=layouts, starts=starts, settings=set_ or [], match=match, seeds=seeds
        )
        if executor is None:
            from mmseg_cli.execution import dvc

            dvc.repro(paths)
        else:
            execution.run(paths, params, executor=executor, jobs=jobs, address=address)
        evidence = report.collect(paths, params)  # the stage `ablate` has built the files of it
        built = report.Report(paths.reports, evidence, rows.rows(evidence))
        examples = _found(paths)
    _show(paths, params, built, examples=examples)


def _with_grid(
    paths: Paths,
    params: Params,
    *,
    blocks: str | None,
    layouts: str | None,
    starts: str | None,
    settings: list[str],
    match: str | None,
    seeds: str | None,
) -> Params:
    """The parameters with the wanted grid, which is written into params.yaml and shown."""
    from mmseg_cli.ablation import axes, pipeline

    names = _listed(blocks, str, "--blocks")
    kinds = _listed(match, str, "--match")
    numbers = _listed(seeds, int, "--seeds")
    entries: dict[str, Entry] | None = None
    if names or layouts or starts or settings or kinds:
        entries = axes.rows(
            params,
            blocks=names or (axes.blocks_of(params) if layouts or starts or settings else params.ablate.variants),
            layouts=_listed(layouts, str, "--layouts"),
            starts=_listed(starts, str, "--starts"),
            settings=[axes.setting(text) for text in settings],
        )
    change = pipeline.plan_grid(paths, params, entries=entries, seeds=numbers)
    if kinds and entries is not None:
        if change is not None:
            pipeline.checked_grid(change)  # before anything is solved for
        entries = _matched(paths, params, entries, kinds)
        change = pipeline.plan_grid(paths, params, entries=entries, seeds=numbers)
    if change is None:
        return params
    _require_own_blocks(pipeline.checked_grid(change))
    written = pipeline.write_grid(paths, change)
    for line in change.lines:
        typer.echo(f"{paths.params.relative_to(paths.root)}: {line}")
    return written


def _require_own_blocks(params: Params) -> None:
    """Raise MmsegError where a block of the user's own in the grid cannot be made: nothing is to be written of it."""
    networks = [params.network_of(name) for name in params.ablate.variants if params.variants[name].class_]
    if networks:
        from mmseg_cli.models.unet import build_network  # needs torch

        for network in networks:
            build_network(task="segmentation", num_classes=2, **network)


def _listed(text: str | None, convert: Callable[[str], T], option: str) -> list[T] | None:
    if text is None:
        return None
    try:
        values = [convert(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise MmsegError(option, f"{text!r} is not a list of numbers", "write for example --seeds 0,1,2") from None
    if not values:
        raise MmsegError(option, "is empty", "name at least one, separated by commas")
    return values


def _drawn(paths: Paths, params: Params, built: Report) -> str:
    """Draw the examples, and say where they are or why there are none."""
    from mmseg_cli.ablation import examples

    drawn = examples.write(
        paths=paths,
        variants=built.evidence.variants,
        seeds=built.evidence.seeds,
        dataset=params.evaluate.dataset,
    )
    return str(drawn.files[0].relative_to(paths.root)) if drawn.files else f"none: {drawn.reason}"


def _found(paths: Paths) -> str:
    """Where the examples are that were drawn before."""
    from mmseg_cli.ablation import examples

    index = paths.run("ablate", examples.FOLDER) / examples.INDEX
    return str(index.relative_to(paths.root)) if index.is_file() else "none: `mmseg ablate --no-run` says why"


def _show(paths: Paths, params: Params, built: Report, *, examples: str) -> None:
    from mmseg_cli.ablation import rows
    from mmseg_cli.cli import screen

    screen.table(None, rows.headings(built.evidence), [rows.cells(row) for row in built.rows])
    folder = built.folder.relative_to(paths.root)
    screen.panel(
        f"ablation of {paths.preset}",
        [
            ("page", f"{folder}/ablation.md"),
            ("numbers", f"{folder}/ablation.csv, details.csv, ablation.tex, claims.md, certificates/"),
            ("examples", examples),
            ("verify", f"mmseg verify {folder}/ablation.md"),
            ("browse", _browse(params)),
        ],
        next_command=with_preset(paths.preset, "mmseg ablate --power 1"),
    )


def _browse(params: Params) -> str:
    """How to look at the MLflow mirror."""
    from mmseg_cli.tracking import without_credentials

    if not params.tracking.enabled:
        return "tracking is off"
    uri = params.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    uri = without_credentials(uri)
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def _tell_power(paths: Paths, params: Params, *, gap: float) -> None:
    """How many seeds it takes to see a gap, by the noise of the grid that is there."""
    from mmseg_cli.ablation import pilot, report
    from mmseg_cli.cli import screen

    evidence = report.collect(paths, params)
    answers = pilot.answers(evidence, gap=gap)
    points = f"{gap:g} point{'' if gap == 1 else 's'}"
    screen.table(
        f"to see a true gap of {points} of mIoU in 80 of 100 ablations ({evidence.estimand})",
        pilot.HEADINGS,
        [pilot.cells(answer) for answer in answers],
    )
    lines = [
        ("pilot", f"{len(evidence.seeds)} seeds, {len(evidence.names)} images, baseline {evidence.baseline}"),
        ("test", f"two-sided, 5 % shared by {len(answers)} comparisons (the first step of Holm)"),
        ("power now", "of these seeds; under 3 there is no verdict, so it is 0"),
        ("cautious", "with as much noise as 80 % confidence allows: few seeds know it badly"),
        ("hours", "of one device like the pilot's, for the further seeds of the variant and the baseline"),
        *((f"none, {variant}", reason) for variant, reason in pilot.reasons(answers)),
    ]
    screen.panel(f"power of {paths.preset}", lines, next_command=None)


def _matched(paths: Paths, params: Params, entries: dict[str, Entry], kinds: list[str]) -> dict[str, Entry]:
    """The rows, and for each but the baseline one more for every kind, with a width solved for the baseline's.

    Raises:
        MmsegError: a kind that is not known, no row to solve for, or a row's name that stands for something else.
    """
    from mmseg_cli.ablation import axes, match
    from mmseg_cli.data.store import open_store
    from mmseg_cli.names import unknown_name

    for kind in kinds:
        if kind not in axes.MATCHES:
            raise unknown_name("--match", kind, axes.MATCHES)
    baseline, *others = entries
    others = [name for name in others if "match" not in entries[name]]
    if not others:
        raise MmsegError("--match", "there is no row beside the baseline to solve for", "name at least two in --blocks")
    wanted = [(kind, name, axes.matched_name(params, name, kind)) for kind in kinds for name in others]
    dataset = params.evaluate.dataset
    if not paths.store(dataset).is_dir():
        todo = f"run `mmseg prepare {dataset} --preset {paths.preset}`: its number of classes is needed"
        raise MmsegError("--match", f"{dataset} is not prepared yet", todo)
    store = open_store(paths.store(dataset), parameters=params.datasets[dataset].content())
    for kind, name, matched in wanted:
        if kind == "time" and axes.solved_before(params, matched, entries[name], baseline=baseline):
            entries[matched] = axes.entry_of(params, matched)
            network = axes.network_of(params, entries[matched])
            typer.echo(
                f"{matched}: kept: width {network['width']}, expansion {network['expansion']:g}, solved before;"
                " take it out of ablate.variants to measure anew"
            )
            continue
        found = match.solve(
            baseline=axes.network_of(params, entries[baseline]),
            variant=axes.network_of(params, entries[name]),
            quantity=kind,  # type: ignore[arg-type]
            classes=len(store.space.classes),
            batch=params.cost.batch,
            height=params.cost.crop[0],
            width=params.cost.crop[1],
            repeats=params.cost.repeats,
            warmup=params.cost.warmup,
            device=params.runtime.device,
            threads=params.runtime.threads,
            channels_last=params.runtime.channels_last,
        )
        entries[matched] = axes.with_match(entries[name], found.width, found.expansion, kind)
        where = "" if found.device is None else f", measured on {found.device}"
        typer.echo(
            f"{name}: {kind} of {baseline} at width {found.width}, expansion {found.expansion:g}:"
            f" {100 * found.difference:+.2f} %{where}"
        )
    return entries
