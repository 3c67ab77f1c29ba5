"""`mmseg verify`: a report against its evidence, its weights, its trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmseg_cli.errors import MmsegError


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
    found = []
    for page in chosen:
        paths = verifying.preset_of(page, root=root)
        found.append(verifying.level_0(paths))
        if level and not found[-1].faults:
            loaded = params.load(paths.params)
            found.append(verifying.again(paths, loaded, train=level == 2, only=runs, say=typer.echo))
    for one in found:
        for note in one.notes if level == 0 else []:
            screen.warn(note)
        for fault in one.faults:
            typer.echo(f"fault: {fault}", err=True)
    wrong = sum(len(one.faults) for one in found)
    if wrong:
        what = f"{wrong} fault{'s' if wrong > 1 else ''} in {len(chosen)} report{'s' if len(chosen) > 1 else ''}"
        raise MmsegError("mmseg verify", what, "see the lines above; `mmseg ablate --no-run` writes the tables anew")
    lines = [(str(one.page.relative_to(root)), f"{one.files} files are as they should be") for one in found]
    screen.panel("verified", lines, next_command=None)
