"""`mmseg doctor`: will this machine run the preset? One table, and exit code 2 where something will fail."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmseg_cli.cli.common import load, with_preset
from mmseg_cli.errors import BAD_INPUT, MmsegError

if TYPE_CHECKING:
    from mmseg_cli.doctor import Finding
    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths


def doctor(
    preset: Annotated[
        str | None, typer.Option(help="The preset to look at: demo, the default, or a folder of pipelines/.")
    ] = None,
    json_report: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all findings as JSON; - is the screen.")
    ] = None,
) -> None:
    """Tell whether this machine will run the preset: packages, devices, memory, disk, DVC, MLflow and datasets.

    Ends with 2 where something will fail, with 0 where all is well or there are only warnings. In a folder that is no
    project only the machine is looked at; that is a problem where a preset is named.
    """
    from mmseg_cli import doctor as room
    from mmseg_cli.files import require_writable

    if json_report not in (None, "-"):
        place = Path(json_report).resolve()
        if place.is_dir():
            raise MmsegError("--json", f"{json_report} is a folder", "name a file")
        require_writable(place.parent)
    asked = room.ask(Path.cwd())
    paths, params, findings = _project(preset)
    findings += room.examine(asked, root=Path.cwd(), paths=paths, params=params)
    _tell(findings, preset=preset or "demo", project=paths is not None, where=json_report)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(BAD_INPUT)


def _project(preset: str | None) -> tuple[Paths | None, Params | None, list[Finding]]:
    """What can be read of the project and its preset, and what is wrong with them."""
    from mmseg_cli.doctor import Finding
    from mmseg_cli.paths import DEMO, Paths, find

    root = Path.cwd().resolve()
    if not (root / "params.yaml").is_file():
        found, fix = f"{root} is no project, only the machine is looked at", "run this in the clone"
        return None, None, [Finding("project", found, "warning" if preset is None else "problem", fix)]
    name = preset or DEMO
    try:
        paths, params = load(name)
        return paths, params, [Finding("project", f"{root}, preset {name}")]
    except MmsegError as error:
        found, fix = f"{error.where}: {error.what}", error.todo
    except Exception as error:  # pydantic or PyYAML is missing or broken
        found, fix = f"cannot be read ({type(error).__name__}: {error})", "`pip install -e .` in the clone"
    try:
        paths = find(preset=name)
    except MmsegError:
        paths = Paths(root=root, preset=DEMO)
    return paths, None, [Finding("project", found, "problem", fix)]


def _tell(findings: list[Finding], *, preset: str, project: bool, where: str | None) -> None:
    """The table and, where asked for, all as JSON; "-" is the screen, with nothing else."""
    from mmseg_cli.cli import screen
    from mmseg_cli.files import write_text

    numbers = {level: sum(finding.level == level for finding in findings) for level in ("problem", "warning")}
    if where is not None:
        content = {
            "preset": preset if project else None,
            "problems": numbers["problem"],
            "warnings": numbers["warning"],
            "findings": [asdict(finding) for finding in findings],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        if where == "-":
            sys.stdout.write(text)
            return
        place = Path(where).resolve()
        if place.exists() and not place.is_file():
            place.write_text(text, encoding="utf-8")  # a device or a pipe
        else:
            write_text(place, text)
    rows = [(finding.check, finding.found, finding.level, finding.fix) for finding in findings]
    screen.listing(f"doctor: {preset if project else 'this machine'}", ("check", "found", "", "what to do"), rows)
    found = ", ".join(f"{number} {level}{'' if number == 1 else 's'}" for level, number in numbers.items())
    screen.panel(
        "doctor", [("found", found)], next_command=_next(findings, preset=preset) if project else _fix(findings)
    )


def _fix(findings: list[Finding]) -> str | None:
    """The first command that mends a problem."""
    for finding in findings:
        if finding.level == "problem" and (command := re.search(r"`([^`]+)`", finding.fix)):
            return command[1]
    return None


def _next(findings: list[Finding], *, preset: str) -> str:
    """What to run now: what mends the first problem, doctor again where no command mends it, or the pipeline."""
    if any(finding.level == "problem" for finding in findings):
        return _fix(findings) or with_preset(preset, "mmseg doctor")
    return "dvc repro" if preset == "demo" else f"dvc repro pipelines/{preset}/dvc.yaml"
