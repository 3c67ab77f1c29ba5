"""`mmseg bench execution`: what the driver of a grid costs beside DVC, with stages that only sleep.

Projects of 100 and 500 stages are made in a temporary folder, of which a few are out of date. Those are run by `dvc
repro --single-item`, one call after the other, and by the local engine with one job at a time, in turn. And all stages
are handed to an engine that runs nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmseg_cli import runtime
from mmseg_cli.execution import drive, dvc
from mmseg_cli.execution.engine import Ended, News
from mmseg_cli.execution.jobs import Job
from mmseg_cli.execution.local import Local
from mmseg_cli.files import write_text
from mmseg_cli.params import Params
from mmseg_cli.paths import DEMO, Paths

SIZES = (100, 500)  # stages of a project
SLEEP_SECONDS = 0.2  # of a stage
AIM_PERCENT = 5.0  # the most that the driver is to take, of what DVC takes for each stage
AIM_SECONDS = 10.0  # to read a graph of 500 stages and hand all of them over
HEADINGS = ("stages", "DVC alone, s a stage", "driven, s a stage", "more %", "range", "graph, s", "all handed over, s")


@dataclass
class Nobody:
    """An engine that runs nothing: a stage has ended as soon as it is handed over."""

    name: str = "nobody"
    handed: list[Job] = field(default_factory=list)

    def require(self, job: Job) -> None:
        """Everything can be had."""

    def takes(self, job: Job) -> bool:
        """All at once."""
        return True

    def submit(self, job: Job) -> None:
        """Note it."""
        self.handed.append(job)

    def ended(self) -> list[Ended]:
        """All that was handed over since."""
        found, self.handed = [Ended(job.stage, 0, "") for job in self.handed], []
        return found

    def news(self) -> Mapping[str, News]:
        """Nothing runs."""
        return {}

    def stop(self, *, seconds: float) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is held."""


def project(root: Path, *, stages: int, params: Path) -> Paths:
    """A project of so many stages, each with a source of its own, all out of date.

    Args:
        root: a folder that is not there yet.
        params: any preset's, which the driver reads what stages need from.
    """
    root.mkdir(parents=True)
    write_text(root / "params.yaml", params.read_text(encoding="utf-8"))
    lines = ["stages:"]
    for number in range(stages):
        command = f"sleep {SLEEP_SECONDS} && cp in{number} out{number}"
        lines += [f"  s{number}:", f"    cmd: {command}", f"    deps: [in{number}]"]
        lines += [f"    outs: [{{out{number}: {{cache: false}}}}]"]
        write_text(root / f"in{number}", "0")
    write_text(root / "dvc.yaml", "\n".join(lines) + "\n")
    _run(root, "git", "init", "--quiet")
    _run(root, dvc.program("dvc"), "init", "--quiet")
    return Paths(root, DEMO)


def _run(root: Path, *command: str) -> None:
    subprocess.run(command, cwd=root, env=dvc.environment(), check=True, capture_output=True)


def _outdate(paths: Paths, few: int, text: str) -> list[str]:
    """Change what a few stages depend on; their names."""
    for number in range(few):
        (paths.root / f"in{number}").write_text(text)
    return [f"s{number}" for number in range(few)]


def run(
    work: Path, params: Params, params_file: Path, *, few: int, rounds: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """The whole benchmark.

    Args:
        work: an empty folder.
        params: that the driver goes by, read from `params_file`.
        few: stages that are out of date in each turn.
        rounds: how often the two ways take turns.
        advance: called after each part, `1 + rounds` times for each of SIZES.

    Returns:
        The content of the JSON report.
    """
    sizes = {}
    for stages in SIZES:
        paths = project(work / str(stages), stages=stages, params=params_file)
        begun = time.perf_counter()
        jobs = drive.jobs_of(dvc.graph(paths), paths, params, gpus=0)
        drive.drive(jobs, Nobody(), paths=paths, params=params, show=lambda status: None)
        handed = time.perf_counter() - begun
        for number in range(stages):
            (paths.root / f"out{number}").write_text("0")
        _run(paths.root, dvc.program("dvc"), "commit", "--force", "--quiet")
        advance()
        alone, driven, graphs = [], [], []
        for round_ in range(rounds):
            names = _outdate(paths, few, f"alone {round_}")
            begun = time.perf_counter()
            for name in names:
                _run(paths.root, dvc.program("dvc"), "repro", "--single-item", name)
            alone.append((time.perf_counter() - begun) / few)
            _outdate(paths, few, f"driven {round_}")
            begun = time.perf_counter()
            graph = dvc.graph(paths)
            graphs.append(time.perf_counter() - begun)
            jobs = drive.jobs_of(graph, paths, params, gpus=0)
            assert len(jobs.of) == few
            begun = time.perf_counter()
            with closing(Local(paths.root, jobs=1, gpus=[])) as engine:
                drive.drive(jobs, engine, paths=paths, params=params, show=lambda status: None)
            driven.append((time.perf_counter() - begun) / few)
            advance()
        sizes[str(stages)] = {"alone": alone, "driven": driven, "graph": graphs, "handed": handed}
    return {
        "environment": runtime.environment(),
        "settings": {"few": few, "rounds": rounds, "sleep_seconds": SLEEP_SECONDS},
        "sizes": sizes,
    }


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a size, under HEADINGS."""
    found: list[tuple[str, ...]] = []
    for stages, own in result["sizes"].items():
        more = [100 * (driven / alone - 1) for driven, alone in zip(own["driven"], own["alone"], strict=True)]
        found.append(
            (
                stages,
                f"{statistics.median(own['alone']):.2f}",
                f"{statistics.median(own['driven']):.2f}",
                f"{statistics.median(more):+.1f}",
                f"{min(more):+.1f} to {max(more):+.1f}",
                f"{statistics.median(own['graph']):.1f}",
                f"{own['handed']:.1f}",
            )
        )
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    lines = [
        "# Driving a grid",
        "",
        f"Stages that sleep {settings['sleep_seconds']} s, in a project of so many; {settings['few']} of them are",
        "out of date and are run by one call of `dvc repro --single-item` after the other, or by the local engine of",
        f"`mmseg ablate` one at a time, in turn over {settings['rounds']} rounds. Seconds are wall-clock, the sleep",
        f"included; we aim at {AIM_PERCENT:g} % more. The graph is what DVC is asked for once, before, however many",
        "stages are to run. All handed over: it is read and all stages given to an engine that runs nothing; we aim at",
        f"{AIM_SECONDS:g} s. Machine: {machine}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|--:|--:|--:|--:|:--|--:|--:|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows(result))]) + "\n"
