"""`mmseg compare`: does a small preset predict the ranking of a full one?"""

from __future__ import annotations

from typing import Annotated

import typer

from mmseg_cli.cli.common import load


def compare(
    small: Annotated[str, typer.Argument(help="The quick preset: demo (params.yaml) or a folder of pipelines/.")],
    full: Annotated[str, typer.Argument(help="The preset that it stands for.")],
) -> None:
    """Say whether a small preset ranks variants as a full one does, from the evidence of both.

    Both means of every variant that is in both grids; from six variants on, the rank correlation with its interval.
    """
    from mmseg_cli.ablation import compare as comparing

    comparing.require_two(small, full)
    from mmseg_cli.ablation import report
    from mmseg_cli.cli import screen

    collected = [report.collect(*load(preset, option=option)) for preset, option in ((small, "SMALL"), (full, "FULL"))]
    found = comparing.compare(*collected)
    screen.table(None, comparing.headings(found), [comparing.cells(row) for row in found.rows])
    screen.panel(f"{small} and {full}", comparing.lines(found), next_command=None)
