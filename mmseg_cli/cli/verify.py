"""`mmseg verify`: a report against its evidence, its weights, its trainings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmseg_cli.errors import MmsegError

if TYPE_CHECKING:
    from mmseg_cli.ablation.verify import Verified

TODO = (  # by the level of the faults
    "take evidence and dvc.lock from version control; tables are written by `mmseg ablate --no-run --preset NAME`",
    "`mmseg evaluate` counts anew what these weights give",
    "do not build on these runs before it is known why they cannot be made again",
)


def verify(
    pages: Annotated[
        list[Path] | None, typer.Argument(help="ablation.md of reports; all of the project if left out.")
    ] = None,
    level: Annotated[
        int,
        typer.Option(
            min=0,
            max=2,
            help="0: compute every number again from the evidence. 1: evaluate the weights again. 2: train again.",
        ),
    ] = 0,
    only: Annotated[
        str | None, typer.Option(help="Runs to do again at levels 1 and 2, such as mmbconv-s0, separated by commas.")
    ] = None,
) -> None:
    """Check that every number of a report follows from its evidence; and, if asked, that this can be made again.

    Ends with 2 and a line for each fault. Level 0 needs neither data, weights nor a GPU.
    """
    from mmseg_cli import params
    from mmseg_cli.ablation import verify as verifying
    from mmseg_cli.cli import screen

    root = Path.cwd()
    chosen = pages or verifying.pages(root)
    if not chosen:
        raise MmsegError(root, "has no reports/*/ablation.md", "run mmseg in the project's folder, or name a table")
    if only is not None and level == 0:
        raise MmsegError("--only", "is for levels 1 and 2", "leave it out, or give --level 1")
    runs = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    lines = []
    faults = worst = 0
    for page in chosen:
        paths = verifying.preset_of(page, root=root)
        found = [verifying.level_0(paths)]
        _tell(found[0])
        if level and not found[0].faults:
            loaded = params.load(paths.params)
            found.append(verifying.again(paths, loaded, train=level == 2, only=runs, say=typer.echo))
            _tell(found[1])
        faults += sum(len(one.faults) for one in found)
        worst = max([worst, *(one.level for one in found if one.faults)])
        lines.append((str(found[0].page.relative_to(root)), "; ".join(one.done for one in found)))
    if faults:
        what = f"{faults} fault{'s' if faults > 1 else ''} in {len(chosen)} report{'s' if len(chosen) > 1 else ''}"
        raise MmsegError("mmseg verify", what, f"see the lines above; {TODO[worst]}")
    screen.panel("verified", lines, next_command=None)


def _tell(found: Verified) -> None:
    """Notes and faults, as soon as a report was looked at."""
    from mmseg_cli.cli import screen

    for note in found.notes:
        screen.warn(note)
    for fault in found.faults:
        typer.echo(f"fault: {fault}", err=True)
