"""The commands about data: generate, prepare and inspect."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from typer.core import TyperCommand

from mmseg_cli.cli.common import load, resumable, track
from mmseg_cli.errors import MmsegError
from mmseg_cli.names import Allowable

if TYPE_CHECKING:
    from mmseg_cli.data.faults import Fault
    from mmseg_cli.data.prepare import Prepared
    from mmseg_cli.params import Dataset
    from mmseg_cli.paths import Paths

Generated = Literal["imagenet", "mapillary", "cityscapes"]
SHOWN = 40  # findings on the screen, about; the JSON has them all
SHOWN_OF_A_KIND = 5  # at least, where there are so many


def generate(
    dataset: Annotated[Generated, typer.Argument(help="Whose official layout is written.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    train: Annotated[int, typer.Option(min=1, help="Training images (per class for imagenet).")] = 20,
    val: Annotated[int, typer.Option(min=1, help="Validation images (per class for imagenet).")] = 5,
    height: Annotated[int, typer.Option(min=32, help="Height of an image in pixels.")] = 256,
    classes: Annotated[int, typer.Option(min=2, help="Classes of imagenet.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal files.")] = 0,
) -> None:
    """Write a generated dataset of street scenes in an official layout, for trying things without a download."""
    from mmseg_cli.cli import screen
    from mmseg_cli.data.sources import synthetic
    from mmseg_cli.files import new_folder

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MmsegError(out, "exists and is not an empty folder", "choose another folder or remove it")
    with new_folder(out) as folder:  # interrupted, it leaves nothing that looks whole
        synthetic.write(dataset, folder, train=train, val=val, height=height, classes=classes, seed=seed)
    panel = [("dataset", f"generated {dataset} in {out}")]
    screen.panel("generated", panel, next_command=f"mmseg prepare {dataset} --root {out}")


class PrepareCommand(TyperCommand):
    """`mmseg prepare`, whose help ends with what every layout's root must hold; read only when help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual help, then the layouts."""
        super().format_help(ctx, formatter)
        from mmseg_cli.data.prepare import SOURCES

        formatter.write("\nLayouts, and what --root must hold:\n")
        for name, module in SOURCES.items():
            formatter.write(f"  {name + ':':12} {module.HINT}\n")
        formatter.write(f"\n{SOURCES['folder'].HELP.strip()}\n")


def _section_from(options: dict[str, Any]) -> Dataset:
    """A dataset's section out of the command's options, checked as params.yaml is."""
    from pydantic import ValidationError

    from mmseg_cli.params import Dataset

    try:
        return Dataset.model_validate({key: value for key, value in options.items() if value})
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"][:1]).replace("_", "-")
        what = fault["msg"].removeprefix("Value error, ")
        raise MmsegError(f"--{key}" if key else "prepare", what, "see `mmseg prepare --help`") from None


def _preset_section(
    preset: str, dataset: str, root: Path | None, given: list[str]
) -> tuple[Paths, Dataset, Path | None, Any]:
    """The paths, the dataset's section, its root and the MLflow mirror of a preset."""
    from mmseg_cli.data import prepare as room

    paths, params = load(preset)
    if dataset not in params.datasets:
        known = ", ".join(params.datasets)
        raise MmsegError(paths.params, f"has no datasets.{dataset}", f"add it, or choose from {known}")
    if given:
        option = "--" + given[0].replace("_", "-")
        raise MmsegError(option, f"stands in {paths.params}", f"set datasets.{dataset}.{given[0]} there")
    section = params.datasets[dataset]
    if section.source == "synthetic":
        if root is not None:
            todo = "leave out --root, or leave out --preset to prepare your own data"
            raise MmsegError("--root", f"the preset {preset} generates this dataset", todo)
        assert section.generate is not None  # the section's own rule
        settings = section.generate.model_dump()
        root = room.generated_root(dataset, raw=lambda key: paths.raw(dataset, key), settings=settings)
    return paths, section, root, track(paths, params, run=f"prepare/{dataset}", section=section.model_dump())


def _require_report_place(where: str, *, root: Path, store: Path) -> None:
    """Raise MmsegError unless the JSON may be written to `where`; called before hours of work."""
    from mmseg_cli.files import require_writable

    place = Path(where).resolve()
    for folder, what in ((root, "the dataset"), (store, "the store")):
        if folder.resolve() in (place, *place.parents):
            raise MmsegError("--json", f"{where} lies in {what}", "name a file elsewhere")
    if place.is_dir():
        raise MmsegError("--json", f"{where} is a folder", "name a file")
    if place.exists() and not place.is_file():
        return  # a device or a pipe, written to as it is
    require_writable(place.parent)


def _tell(faults: list[Fault], *, dataset: str, root: Path, made: Prepared | None, where: str | None) -> None:
    """The findings on the screen and, where asked for, all as JSON; "-" is the screen, with nothing else."""
    from mmseg_cli.files import write_text

    if where != "-":
        _show(faults, dataset=dataset)
    if where is None:
        return
    content = {
        "dataset": dataset,
        "root": str(root),
        "items": None if made is None else made.counts,
        "notes": [] if made is None else made.notes,
        "errors": sum(fault.severity == "error" for fault in faults),
        "warnings": sum(fault.severity == "warning" for fault in faults),
        "faults": [asdict(fault) for fault in faults],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    place = Path(where).resolve()
    if where == "-":
        sys.stdout.write(text)
    elif place.exists() and not place.is_file():
        place.write_text(text, encoding="utf-8")
    else:
        write_text(place, text)


def _show(faults: list[Fault], *, dataset: str) -> None:
    """The findings on the screen, errors first: some of each kind, and how many more of it there are."""
    from mmseg_cli.cli import screen

    groups: dict[tuple[str, str], list[Fault]] = {}
    for fault in sorted(faults, key=lambda fault: fault.severity):
        groups.setdefault((fault.severity, fault.kind), []).append(fault)
    each = max(SHOWN_OF_A_KIND, SHOWN // max(1, len(groups)))
    rest = [(*key, len(group) - each) for key, group in groups.items() if len(group) > each]
    shown = [fault for group in groups.values() for fault in group[:each]]
    if any(fault.severity == "error" for fault in faults):
        rows: list[tuple[str, ...]] = [(fault.severity, fault.kind, fault.where, fault.what) for fault in shown]
        rows += [(severity, kind, f"and {count} more", "") for severity, kind, count in rest]
        number = f"{len(faults)} findings" if len(faults) > 1 else "1 finding"
        screen.listing(f"{dataset}: {number}", ("", "kind", "where", "what"), rows)
        return
    for fault in shown:
        screen.warn(f"{dataset}: {fault.where}: {fault.what}: {fault.todo}")
    for _, kind, count in rest:
        screen.warn(f"{dataset}: and {count} more of the kind {kind}; --json FILE writes them all")


def prepare(
    dataset: Annotated[
        str, typer.Argument(help="The layout of the dataset; with --preset a name of the preset's `datasets`.")
    ],
    root: Annotated[
        Path | None,
        typer.Option(help="The dataset as it was downloaded; else the environment's MMSEG_<DATASET>_ROOT."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Prepare for this preset, into data/PRESET/DATASET; else into data/DATASET.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The store's folder, without --preset; a store that is there is replaced.")
    ] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Verify every file and write nothing.")] = False,
    json_report: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all findings as JSON; - is the screen.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Only warn of this kind of fault: {', '.join(get_args(Allowable))}; may be given several times."
        ),
    ] = None,
    long_side: Annotated[int | None, typer.Option(min=1, help="Shrink larger images until it fits.")] = None,
    short_side: Annotated[int | None, typer.Option(min=1, help="Shrink larger images until it fits.")] = None,
    annotations: Annotated[str | None, typer.Option(help="cityscapes: fine or coarse.")] = None,
    train_from: Annotated[
        list[str] | None, typer.Option(help="cityscapes: train, train_extra, val; may be given several times.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="mapillary: vistas-65, vistas-116 or cityscapes-19.")] = None,
    label_map: Annotated[
        str | None, typer.Option(help="mapillary to cityscapes-19: conservative, by-name or mseg.")
    ] = None,
) -> None:
    """Verify a dataset, map its labels and write the store that training reads. The dataset itself is only read.

    All faults are listed before the command ends. Interrupted, the same command goes on where it was.
    """
    from mmseg_cli.cli import screen
    from mmseg_cli.data import prepare as room
    from mmseg_cli.data.faults import FaultsFound
    from mmseg_cli.data.overview import card
    from mmseg_cli.names import unknown_name

    options = {
        "long_side": long_side,
        "short_side": short_side,
        "annotations": annotations,
        "train_from": train_from,
        "target": target,
        "label_map": label_map,
        "allow": allow,
    }
    paths: Paths | None = None
    tracker = None
    if preset is None:
        if dataset not in room.SOURCES:
            raise unknown_name("dataset", dataset, room.SOURCES)
        section, store = _section_from(options), out or Path("data") / dataset
    else:
        given = [key for key, value in {**options, "out": out}.items() if value]
        paths, section, root, tracker = _preset_section(preset, dataset, root, given)
        store = paths.store(dataset)
    layout = section.layout or dataset
    root = room.find_root(dataset, root, layout=layout)
    if json_report not in (None, "-"):
        _require_report_place(json_report, root=root, store=store)
    replaced = store.exists()
    try:
        with (
            resumable(root, "what was read is kept"),
            screen.Screen(f"{'check' if check_only else 'prepare'} {dataset}", unit="items") as show,
        ):
            made = room.prepare(
                layout,
                root,
                store,
                options=section.options(),
                parameters=section.content(),
                long_side=section.long_side,
                short_side=section.short_side,
                allow=section.allow,
                check_only=check_only,
                threads=os.cpu_count() or 1,
                on_start=lambda total: show.begin(total=total),
                advance=show.advance,
            )
    except FaultsFound as found:
        _tell(found.faults, dataset=dataset, root=root, made=None, where=json_report)
        raise
    generated = section.source == "synthetic"  # generated data are never of the official number and size
    faults = [fault for fault in made.faults if not (generated and fault.kind in ("count", "image-size"))]
    _tell(faults, dataset=dataset, root=root, made=made, where=json_report)
    if tracker is not None:
        tracker.close(summary={f"items_{split}": count for split, count in made.counts.items()})
    lines = [
        ("items", ", ".join(f"{split} {count}" for split, count in made.counts.items())),
        ("classes", str(made.classes)),
        *(("found", note) for note in made.notes),
    ]
    if made.folder is not None and paths is not None:
        written = card.write_for(made, root=root, reports=paths.reports, faults=faults)
        lines.append(("data card", str(written)))
    if json_report == "-":
        return
    if made.folder is None:
        screen.panel(f"checked {dataset}: no errors", lines, next_command=None)
        return
    instead = ", in place of the store that was there" if replaced else ""
    lines.append(("store", f"{made.folder} ({made.bytes / 2**20:.1f} MiB){instead}"))
    screen.panel(f"prepared {dataset}", lines, next_command=f"mmseg inspect {os.path.relpath(made.folder)}")


def inspect(
    store: Annotated[Path, typer.Argument(help="The folder that prepare wrote, such as data/demo/cityscapes.")],
    out: Annotated[
        Path | None, typer.Option(help="The picture (.png); else STORE-overlays.png beside the store.")
    ] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Images on the picture, at most.")] = None,
    split: Annotated[str | None, typer.Option(help="Whose images are shown; else those of train.")] = None,
) -> None:
    """Look at prepared data: counts, class balance and weights, and a contact sheet of the labels over the images."""
    from mmseg_cli.cli.inspect import inspect as run

    run(store, out, items, split)
