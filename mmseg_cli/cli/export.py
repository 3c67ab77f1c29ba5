"""`mmseg export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths
    from mmseg_cli.prediction.card import Recipe
    from mmseg_cli.prediction.export import Format, Parity


def export(
    run: Annotated[Path, typer.Option(help="The folder of a run, such as runs/demo/train/mmbconv-s0.")],
    out: Annotated[
        Path | None, typer.Option(help="The file (.onnx or .pt2); else RUN's name in the current folder.")
    ] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(
            help="onnx, or torch for torch.export's .pt2; may be given several times. Else by --out, or onnx."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of images to check the files on; else images of val of the run's store."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; else one per core.")] = None,
) -> None:
    """Write a trained network as ONNX or torch.export, of any image size, with a model card beside it.

    The files are held against the network on real images first: below 99.9 % equal labels, nothing is written.
    """
    from mmseg_cli.prediction import export as room

    files = _files(run, out, _formats(format or []))
    card = next(iter(files.values())).with_suffix(room.CARD)
    room.require_extras(list(files))
    from mmseg_cli import runtime
    from mmseg_cli.cli import screen
    from mmseg_cli.files import write_text
    from mmseg_cli.models import weights
    from mmseg_cli.prediction.model import require_run

    require_run(run)
    network, record = weights.load_network(run)
    if record["task"] != "segmentation":
        raise MmsegError(run, "is not a segmentation network", "give a run of the train stage")
    if out is None:  # a name that nobody chose
        for suffix in (*room.FORMATS.values(), room.CARD):
            room.require_own(Path(f"{run.resolve().name}{suffix}"), record)
    runtime.limit_threads(threads)
    checked_on = room.pictures_for(run, record, images)
    if not checked_on.real:
        screen.warn(f"the data of {run} are not at hand: checked on generated scenes; name real ones with --images")
    before = [str(path) for path in (*files.values(), card) if path.exists()]
    work = f"making {' and '.join(files)}, checked on {len(checked_on.images)} images before it is written"
    screen.Screen("export", unit="images").note(work)
    found = room.export(network, record, files=files, checked_on=checked_on, threads=threads)
    write_text(card, _card(run, record, network, files=files, found=found, checked_on=checked_on.source))
    lines: list[tuple[str, str]] = []
    for form, path in files.items():
        parity = found[form]
        labels = f"{100 * parity.agreement:.4f} % equal labels ({100 * parity.worst:.3f} % of the worst image)"
        size = f"{path.stat().st_size / 2**20:.1f} MiB"
        lines.append((form, f"{path} ({size}): {labels}, logits differ by at most {parity.difference:.2g}"))
    lines += [("checked on", f"{checked_on.source}, against torch"), ("model card", str(card))]
    if before:
        lines.append(("replaced", ", ".join(before)))
    command = f"mmseg predict IMAGES --model {files['onnx']} --out predictions" if "onnx" in files else None
    screen.panel(f"exported {run.resolve().name}", lines, next_command=command)


def _formats(names: list[str]) -> list[Format]:
    from mmseg_cli.names import unknown_name
    from mmseg_cli.prediction.export import FORMATS

    for name in names:
        if name not in FORMATS:
            raise unknown_name("--format", name, FORMATS)
    return [form for form in FORMATS if form in names]


def _files(run: Path, out: Path | None, formats: list[Format]) -> dict[Format, Path]:
    """What to write, by format."""
    from mmseg_cli.prediction.export import FORMATS

    of = {suffix: form for form, suffix in FORMATS.items()}
    if out is None:
        forms = formats or ["onnx"]
        files = {form: Path(run.resolve().name + FORMATS[form]) for form in forms}  # a name may hold a dot
    elif out.suffix not in of:
        raise MmsegError("--out", f"{out} is not a name for it", f"let it end with {' or '.join(of)}")
    else:
        forms = formats or [of[out.suffix]]
        if of[out.suffix] not in forms:
            raise MmsegError("--out", f"{out} is of another format than --format", f"end it with {FORMATS[forms[0]]}")
        files = {form: out.with_suffix(FORMATS[form]) for form in forms}
    for path in files.values():
        if path.is_dir():
            raise MmsegError(path, "is a folder", "give another name with --out")
    return files


def _card(
    run: Path,
    record: dict[str, Any],
    network: Any,
    *,
    files: Mapping[Format, Path],
    found: Mapping[Format, Parity],
    checked_on: str,
) -> str:
    from mmseg_cli.models import cost
    from mmseg_cli.prediction import card

    return card.text(
        name=run.resolve().name,
        record=record,
        files={
            form: card.Checked(path.name, found[form].difference, found[form].agreement) for form, path in files.items()
        },
        checked_on=checked_on,
        parameters=cost.parameters(network),
        macs=cost.macs(network, (1, 3, *card.COST_SIZE)),
        rungs=card.rungs(run, record),
        figures=card.measured(run, record["weights_sha256"]),
        recipe=_recipe(run, record),
    )


def _recipe(run: Path, record: dict[str, Any]) -> Recipe | None:
    """The parameters of the run's preset, if they are of its network."""
    from mmseg_cli import params, paths
    from mmseg_cli.prediction.card import Recipe, project

    where = project(run)
    if where is None:
        return None
    try:
        where = paths.find(preset=where.preset, root=where.root)
        loaded = params.load(where.params)
        if loaded.network_of(record["variant"]) != record["network"]:
            return None
        rungs = {stage: loaded.section_of(record["variant"], stage) for stage in record["ladder"]}
    except MmsegError:
        return None
    sections = {stage: _flat(section.model_dump()) for stage, section in rungs.items()}
    file = str(where.params.relative_to(where.root))
    return Recipe(sections, file, certain=_made_by(where, loaded, record))


def _made_by(where: Paths, loaded: Params, record: dict[str, Any]) -> bool:
    """Whether a run stands there with these parameters, data and code."""
    from mmseg_cli.training import stages

    try:
        done = stages.finished(
            record["stage"], params=loaded, paths=where, variant=record["variant"], seed=record["seed"]
        )
    except MmsegError:
        return False
    return done is not None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
