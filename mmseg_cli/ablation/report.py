"""`mmseg ablate --no-run`: every table, chart and certificate, from the evidence alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.ablation import certificates, claims, document, figures, formats, grid, rows
from mmseg_cli.ablation.grid import Evidence
from mmseg_cli.files import atomic, new_folder, require_writable, write_text
from mmseg_cli.params import Params
from mmseg_cli.paths import Paths

PAGE = "ablation.md"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        folder: where.
        evidence: what it was computed from.
        rows: of the main table.
    """

    folder: Path
    evidence: Evidence
    rows: list[rows.Row]


def collect(paths: Paths, params: Params) -> Evidence:
    """The evidence of a preset's grid.

    Raises:
        MmsegError: names what is missing, or what cannot be trusted.
    """
    section = params.ablate
    return grid.collect(
        paths,
        wanted=grid.wanted(params),
        seeds=section.seeds,
        estimand=section.estimand,
        image_blocks=section.image_blocks,
    )


def texts(evidence: Evidence, found: list[rows.Row], *, drawn: list[str]) -> dict[str, str]:
    """Every text file of the report, by its path in the reports folder.

    Args:
        drawn: the names of the charts.
    """
    of_rows = {f"{certificates.FOLDER}/{row.variant}.json": certificates.certificate(evidence, row) for row in found}
    return {
        PAGE: document.text(evidence, found, figures=drawn),
        "ablation.csv": formats.csv(evidence, found),
        "ablation.tex": formats.latex(evidence, found),
        "details.csv": formats.details_csv(evidence),
        "claims.md": claims.sheet(evidence, found),
        **{name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in of_rows.items()},
    }


def build(paths: Paths, params: Params) -> Report:
    """Write the report; nothing is written unless all evidence is there.

    Raises:
        MmsegError: names what is missing, what cannot be trusted, or the folder that cannot be written.
    """
    require_writable(paths.reports)
    evidence = collect(paths, params)
    found = rows.rows(evidence)
    pictures = figures.draw(evidence, found)
    written = texts(evidence, found, drawn=list(pictures))
    _replace_folder(paths.reports / document.FIGURES, pictures)
    inside = {name: text for name, text in written.items() if name.startswith(f"{certificates.FOLDER}/")}
    _replace_folder(
        paths.reports / certificates.FOLDER, {Path(name).name: text.encode() for name, text in inside.items()}
    )
    for name, text in written.items():
        if name not in inside and name != PAGE:
            write_text(paths.reports / name, text)
    write_text(paths.reports / PAGE, written[PAGE])  # last: what it links to is there
    return Report(paths.reports, evidence, found)


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """A folder that holds these files and no others."""
    with new_folder(folder) as fresh:
        for name, content in files.items():
            with atomic(fresh / name) as file:
                file.write(content)
