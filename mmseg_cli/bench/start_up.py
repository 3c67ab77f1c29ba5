"""`mmseg bench start-up`: what one waits for where nothing is to be computed.

Everything happens in projects of its own in a temporary folder: one as it is shipped, one with the evidence of a preset
copied under further seeds, one of many stages; stages are recorded as done by `dvc commit`. Nothing is trained, and the
user's project is only read. The commands take turns, each as a process of its own.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmseg_cli import runtime
from mmseg_cli.ablation import grid
from mmseg_cli.bench.turns import take_turns, uncounted
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import read_json, sha256, write_json, write_text
from mmseg_cli.params import Params
from mmseg_cli.paths import DEMO, Paths, find, run_name

RUNS = 100
STAGES = 100
LADDER_STAGES = 4  # of a run: two of pretraining, training, evaluation
RUNS_PRESET, STAGES_PRESET = "runs-100", "stages-100"
PARTS = ("mmseg_cli", "blocks", "dvc.yaml", "params.yaml")  # of a project: what its stages depend on
SHIPPED = (*PARTS, "pipelines")  # and the other presets, whose stages DVC reads whichever it is asked for
PYTHON = "python -c pass"
LIMITS = {  # seconds, by command: what we mean to keep on two cores
    PYTHON: None,
    "mmseg --help": 0.2,
    f"mmseg ablate --no-run, {RUNS} runs": 2.0,
    "dvc repro, demo": 1.5,
    f"dvc repro, {STAGES} stages": 3.0,
}
# Variables by which a command would do otherwise, or compile all of its code each time.
NOT_A_USER_S = ("MLFLOW_", "PYTHONDONTWRITEBYTECODE")
ERROR = "mmseg: error: "  # before what a user can mend
HEADINGS = ("command", "seconds", "range over rounds", "we aim at")


def run(source: Paths, params: Params, work: Path, *, rounds: int, advance: Callable[[], None]) -> dict[str, Any]:
    """The whole benchmark.

    Args:
        source: the preset whose evidence is copied, with the parameters `params`.
        work: an empty folder.
        rounds: how often the commands take turns.
        advance: called after each round.

    Returns:
        The content of the JSON report.

    Raises:
        MmsegError: the preset has no evidence.
    """
    shipped = _project(work / "shipped", source, SHIPPED)
    with_runs, with_stages = (_project(work / name, source, PARTS) for name in (RUNS_PRESET, STAGES_PRESET))
    seeds = list(range(math.ceil(RUNS / len(params.ablate.variants))))
    copy_evidence(source, params, _new_preset(with_runs, source, RUNS_PRESET, seeds=seeds), seeds=seeds)
    seeds = list(range(math.ceil(STAGES / LADDER_STAGES / len(params.ablate.variants))))
    large = _new_preset(with_stages, source, STAGES_PRESET, seeds=seeds)
    stages = {DEMO: record_as_done(find(preset=DEMO, root=shipped)), STAGES_PRESET: record_as_done(large)}
    here = Path(sys.executable)
    mmseg, dvc = (str(here.with_name(name)) for name in ("mmseg", "dvc"))
    commands = (
        partial(_called, shipped, str(here), "-c", "pass"),
        partial(_called, shipped, mmseg, "--help"),
        partial(_called, with_runs, mmseg, "ablate", "--no-run", "--preset", RUNS_PRESET),
        partial(_called, shipped, dvc, "repro"),
        partial(_called, with_stages, dvc, "repro", str(large.pipeline)),
    )
    contenders = {name: uncounted(command) for name, command in zip(LIMITS, commands, strict=True)}
    timings = take_turns(contenders, reference=PYTHON, rounds=rounds, calls=1, units=1, advance=advance)
    return {
        "environment": runtime.environment(),
        "settings": {"preset": source.preset, "rounds": rounds, "stages": stages, "tracking": params.tracking.enabled},
        "commands": {
            name: {"seconds": [1 / rate for rate in timing.rates], "aim": LIMITS[name]}
            for name, timing in timings.items()
        },
    }


def _project(root: Path, source: Paths, parts: Sequence[str]) -> Path:
    """A new project of some parts of the source's, under Git and DVC."""
    root.mkdir(parents=True)
    for part in parts:
        if (source.root / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source.root / part, root / part, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source.root / part, root / part)
    _called(root, "git", "init", "--quiet")
    _called(root, sys.executable, "-m", "dvc", "init", "--quiet")
    return root


def _new_preset(project: Path, source: Paths, name: str, *, seeds: list[int]) -> Paths:
    """A preset of `project` that is the source's but for its name and its seeds."""
    from ruamel.yaml import YAML

    yaml = YAML()
    content = yaml.load(source.params.read_text(encoding="utf-8"))
    folder = project / "pipelines" / name
    content.update(preset=name, root="../..", params_file=f"pipelines/{name}/params.yaml")
    content["ablate"]["seeds"] = seeds
    folder.mkdir(parents=True)
    yaml.dump(content, folder / "params.yaml")
    (folder / "dvc.yaml").symlink_to(Path("../../dvc.yaml"))
    return find(preset=name, root=project)


def copy_evidence(source: Paths, params: Params, target: Paths, *, seeds: list[int]) -> None:
    """A grid's evidence under further seeds, in turn from those that are there; it fits together as the tables ask.

    Args:
        source: where it is, of the grid of `params`.
        seeds: of the new grid.
    """
    for variant in params.ablate.variants:
        for seed in seeds:
            old = source.evidence / run_name(variant, params.ablate.seeds[seed % len(params.ablate.seeds)])
            new = target.evidence / run_name(variant, seed)
            if not (old / grid.CERTIFICATE).is_file():
                raise MmsegError(old, "no evidence of this run", f"{grid.REPRO}, or name another one")
            shutil.copytree(old, new)
            metrics = read_json(new / grid.METRICS, todo=grid.REPRO)
            metrics["run"]["seed"] = seed
            write_json(new / grid.METRICS, metrics)
            certificate = read_json(new / grid.CERTIFICATE, todo=grid.REPRO)
            certificate["metrics_sha256"] = sha256(new / grid.METRICS)
            write_json(new / grid.CERTIFICATE, certificate)
    shutil.copy(source.evidence / grid.COST, target.evidence / grid.COST)


def record_as_done(paths: Paths) -> int:
    """Make what a preset's stages would leave, as far as it is missing, and have DVC record it as theirs.

    Returns:
        How many stages it has.
    """
    from dvc.repo import Repo

    with Repo(str(paths.root)) as repo:
        stages = list(repo.stage.collect(str(paths.pipeline)))
        outs = [Path(out.fs_path) for stage in stages for out in stage.outs]
    for out in outs:
        if not out.exists():
            write_text(out if out.suffix else out / "manifest.json", "{}\n")
    _called(paths.root, sys.executable, "-m", "dvc", "commit", "--quiet", "--force", str(paths.pipeline))
    _called(paths.root, sys.executable, "-m", "dvc", "status", "--quiet", str(paths.pipeline))  # fails if any would run
    return len(stages)


def _called(project: Path, *command: str) -> None:
    """Run a command in the project, as a user of nothing but that project would.

    Raises:
        MmsegError: it has something to say that a user can mend.
        RuntimeError: it failed otherwise.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(NOT_A_USER_S)}
    ended = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        for line in ended.stderr.splitlines():
            if line.startswith(ERROR):
                raise MmsegError("a copy of this project", line.removeprefix(ERROR), "mend it here, then measure again")
        raise RuntimeError(f"{' '.join(command)}: {ended.stdout}{ended.stderr}")


def rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The rows of the table under HEADINGS."""
    found = []
    for name, own in result["commands"].items():
        seconds, aim = own["seconds"], own["aim"]
        low, high = min(seconds), max(seconds)
        goal = "" if aim is None else f"<= {aim:.1f}"
        found.append((name, f"{statistics.median(seconds):.2f}", f"{low:.2f} - {high:.2f}", goal))
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The report as markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    settings = result["settings"]
    small, large = settings["stages"][DEMO], settings["stages"][STAGES_PRESET]
    lines = [
        "# Starting up",
        "",
        "What one waits for where nothing is to be computed: wall-clock seconds of whole commands, each a process of",
        f"its own, in turn over {settings['rounds']} rounds, after one that does not count. The files lie in the page",
        f"cache. The {RUNS} runs are {settings['preset']}'s evidence under further seeds, without data at hand, so no",
        f"example pictures are drawn; tracking is {'on' if settings['tracking'] else 'off'}. All stages are recorded",
        f"as done, with all the code that they depend on: demo's {small}, beside the other presets, which DVC",
        f"reads as well, and {large} in a project of their own. Machine: {machine}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|:--|--:|--:|--:|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows(result))]) + "\n"
