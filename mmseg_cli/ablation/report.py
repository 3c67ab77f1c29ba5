"""`mmseg ablate --no-run`: tables and chart from the evidence alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.ablation import figures, grid, tables
from mmseg_cli.files import atomic, require_writable, write_text
from mmseg_cli.paths import Paths

NAME = "ablation"


@dataclass(frozen=True)
class Report:
    """The files written, and the table for the screen."""

    markdown: Path
    csv: Path
    chart: Path
    rows: list[tables.Row]


def build(paths: Paths, *, variants: list[str], seeds: list[int]) -> Report:
    """Write ablation.md, ablation.csv and ablation.png; nothing is written unless all evidence is there.

    Args:
        variants: the rows; the first is the baseline.
        seeds: every one must have been evaluated for every variant.

    Raises:
        MmsegError: names what is missing, what cannot be trusted, or the folder that cannot be written.
    """
    require_writable(paths.reports)
    evidence = grid.collect(paths, variants=variants, seeds=seeds)
    markdown, csv, chart = (paths.reports / f"{NAME}.{suffix}" for suffix in ("md", "csv", "png"))
    picture = figures.chart(evidence, title=f"{paths.preset}: {len(seeds)} seeds")
    table = tables.csv(evidence)
    text = tables.markdown(evidence, preset=paths.preset, chart=chart.name)
    with atomic(chart) as file:
        file.write(picture)
    write_text(csv, table)
    write_text(markdown, text)
    return Report(markdown=markdown, csv=csv, chart=chart, rows=tables.rows(evidence))
