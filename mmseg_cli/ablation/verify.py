"""`mmseg verify`: does a report follow from its evidence, the evidence from the weights, the weights from training?

- Level 0 computes every number of a report again from the committed evidence, and holds what is not computed (charts,
  data cards, the evidence itself) against what dvc.lock says that its stage wrote. Neither data nor weights are needed.
- Level 1 evaluates the weights again.
- Level 2 trains again. The same seed on the same kind of machine must give the same weights; elsewhere the last bits
  differ, and the new mIoU is inside the prediction interval of the runs that there are, or not.

Levels 1 and 2 run the same commands as the pipeline, in a project folder of their own below `.work/verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_cli.ablation import certificates, document, grid, report, rows, statistics
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence as counted
from mmseg_cli.files import read_json, sha256
from mmseg_cli.names import LADDER
from mmseg_cli.params import Params, load, read_yaml
from mmseg_cli.paths import Paths, find, run_name

PAGES = "reports/*/ablation.md"
COMMANDS = {"pretrain_imagenet": ["pretrain", "imagenet"], "pretrain_mapillary": ["pretrain", "mapillary"]}


@dataclass(frozen=True)
class Verified:
    """A report that was looked at.

    Attributes:
        page: its ablation.md.
        files: how many were computed again, or held against dvc.lock.
        faults: one line each; none where all is as it should be.
        notes: what was found beside, one line each.
    """

    page: Path
    files: int
    faults: list[str]
    notes: list[str]


def pages(root: Path) -> list[Path]:
    """The ablation.md of every report of a project."""
    return sorted(root.glob(PAGES))


def preset_of(page: Path, *, root: Path) -> Paths:
    """The preset that a table is of.

    Raises:
        MmsegError: the file is missing, or is no report of this project.
    """
    where = page.resolve()
    if not where.is_file():
        raise MmsegError(page, "missing", "name the ablation.md of a report")
    if where.name != report.PAGE or where.parents[1] != root / "reports":
        raise MmsegError(page, "is no report of this project", f"name a reports/<preset>/{report.PAGE}, in its folder")
    return find(preset=where.parent.name, root=root)


# ------------------------------------------------------------------------------------------------ level 0


def level_0(paths: Paths) -> Verified:
    """Compute a report again from its evidence; needs neither data nor weights."""
    page = paths.reports / report.PAGE
    try:
        params = load(paths.params)
        evidence = report.collect(paths, params)
    except MmsegError as error:
        return Verified(page, 0, [_below(paths.root, f"{error.where}: {error.what}")], [])
    drawn = [name for name in document.CAPTIONS if (paths.reports / document.FIGURES / name).is_file()]
    texts = report.texts(evidence, rows.rows(evidence), drawn=drawn)
    faults = [fault for name, text in texts.items() if (fault := _differs(paths.reports / name, text))]
    for file in sorted((paths.reports / certificates.FOLDER).glob("*")):
        if f"{certificates.FOLDER}/{file.name}" not in texts:
            faults.append(f"{file}: is of no row of the table")
    locked, notes = _locked(paths)
    own = [paths.evidence / name for name in evidence.files]
    for path, wanted in locked.items():
        if path.is_relative_to(paths.evidence) and path not in own:
            continue  # of a run outside the grid
        if str(path.relative_to(paths.reports)) in texts or path.name == certificates.FOLDER:
            continue
        if not path.exists():
            faults.append(f"{path}: missing")
        elif dvc_hash(path) != wanted:
            faults.append(f"{path}: is not what its stage wrote, by dvc.lock")
    faults = [_below(paths.root, fault) for fault in faults]
    return Verified(page, len(texts) + len(locked), faults, notes)


def _below(root: Path, text: str) -> str:
    """Paths as they are below the project folder."""
    return text.replace(f"{root}{os.sep}", "")


def _differs(file: Path, text: str) -> str | None:
    """In one line, where a file is not the text; None where it is."""
    try:
        found = file.read_bytes().decode(errors="replace")
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror})"
    if found == text:
        return None
    ours, theirs = text.split("\n"), found.split("\n")
    for number, (right, line) in enumerate(zip(ours, theirs, strict=False), start=1):
        if right != line:
            at = next((place for place, (a, b) in enumerate(zip(right, line, strict=False)) if a != b), 0)
            part = slice(max(0, at - 20), at + 20)
            return f"{file}: line {number} holds {line[part]!r} where the evidence gives {right[part]!r}"
    return f"{file}: has {len(theirs)} lines where the evidence gives {len(ours)}"


def _locked(paths: Paths) -> tuple[dict[Path, str], list[str]]:
    """The DVC hash of everything below the reports folder that a stage wrote, and what is to be said of it."""
    lock = paths.pipeline.with_name("dvc.lock")
    if not lock.is_file():
        return {}, [
            f"{lock.relative_to(paths.root)} is missing: charts, data cards and evidence are not held against it"
        ]
    found = read_yaml(lock)
    stages = found.get("stages") if isinstance(found, dict) else None
    if not isinstance(stages, dict):
        return {}, [f"{lock} holds no stages"]
    # A stage of several parameters; of stages that left the grid, the outs are not looked at.
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    below = {(paths.root / out["path"]): str(out.get("md5")) for out in outs}
    return {path: md5 for path, md5 in below.items() if path.is_relative_to(paths.reports)}, []


def dvc_hash(path: Path) -> str:
    """The hash by which DVC knows a file or a folder (of the sorted list of its files' hashes)."""
    if path.is_file():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = [{"md5": dvc_hash(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listed.sort(key=lambda entry: tuple(entry["relpath"].split("/")))
    text = json.dumps(listed, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


# ------------------------------------------------------------------------------------------------ levels 1 and 2


def again(paths: Paths, params: Params, *, train: bool, only: list[str] | None, say: Callable[[str], None]) -> Verified:
    """Evaluate the runs of a report again (level 1), after training them again (level 2).

    Args:
        train: level 2.
        only: names of runs, such as `mmbconv-s0`; None is all.
        say: called with a line on each run.

    Raises:
        MmsegError: a run of that name is not in the grid, weights or data are not at hand, or a command failed.
    """
    evidence = report.collect(paths, params)
    grid_runs = {run_name(variant, seed): (variant, seed) for variant in evidence.variants for seed in evidence.seeds}
    for name in only or []:
        if name not in grid_runs:
            raise MmsegError("--only", f"{name} is no run of {paths.preset}", f"choose of {', '.join(grid_runs)}")
    project = _project(paths)
    faults: list[str] = []
    notes: list[str] = []
    chosen = only or list(grid_runs)
    for name in chosen:
        variant, seed = grid_runs[name]
        arguments = ["--preset", paths.preset, "--variant", variant, "--seed", str(seed)]
        if train:
            for stage in LADDER:
                _run([*COMMANDS.get(stage, ["train"]), *arguments], project)
        else:
            _borrow(paths, project, name, evidence.runs[variant, seed]["weights_sha256"])
        _run(["evaluate", *arguments], project)
        fault, line = _compared(evidence, Paths(project, paths.preset), variant=variant, seed=seed, trained=train)
        say(f"{name}: {line}")
        notes.append(f"{name}: {line}")
        if fault:
            faults.append(f"{name}: {line}")
    return Verified(paths.reports / report.PAGE, len(chosen), faults, notes)


def _project(paths: Paths) -> Path:
    """A project folder of its own with the parameters, the user's blocks and the prepared data of this one."""
    project = paths.root / ".work" / "verify"
    project.mkdir(parents=True, exist_ok=True)
    for name in ("data", "blocks"):
        link = project / name
        if not link.is_symlink() and (paths.root / name).exists():
            link.symlink_to(paths.root / name, target_is_directory=True)
    shutil.copyfile(paths.root / "params.yaml", project / "params.yaml")
    own = project / paths.params.relative_to(paths.root)
    own.parent.mkdir(parents=True, exist_ok=True)
    if own != project / "params.yaml":
        shutil.copyfile(paths.params, own)
    return project


def _borrow(paths: Paths, project: Path, name: str, weights_sha256: str) -> None:
    """Put a run's weights into the project, after a look at whether they are the report's."""
    run = paths.run("train", name)
    weights = run / "model.safetensors"
    if not weights.is_file():
        raise MmsegError(weights, "missing", "run `dvc checkout` or `dvc pull`, or verify at level 0 or 2")
    if sha256(weights) != weights_sha256:
        raise MmsegError(weights, "are other weights than the report's", "run `dvc checkout`, or `mmseg ablate`")
    target = Paths(project, paths.preset).run("train", name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run, target)


def _run(arguments: list[str], project: Path) -> None:
    """Run one of our own commands in the project."""
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    command = [sys.executable, "-m", "mmseg_cli", *arguments]
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MmsegError(" ".join(["mmseg", *arguments]), f"ended with {done.returncode} ({last})", "see that line")


def _compared(evidence: grid.Evidence, new: Paths, *, variant: str, seed: int, trained: bool) -> tuple[bool, str]:
    """Whether a run that was made again is at fault, and what is to be said of it."""
    folder = new.evidence / run_name(variant, seed)
    metrics: dict[str, Any] = read_json(folder / grid.METRICS, todo="run this again")
    before = evidence.runs[variant, seed]
    same_weights = metrics["weights_sha256"] == before["weights_sha256"]
    if metrics["confusion_sha256"] == before["confusion_sha256"]:
        return False, f"the same {'weights and ' if trained and same_weights else ''}counts, to the bit"
    ours, theirs = 100 * metrics["mean_iou"], 100 * before["mean_iou"]
    if not trained:
        moved = _moved(counted.load(folder / grid.CONFUSION), evidence, variant=variant, seed=seed)
        tiny = abs(ours - theirs) < 0.005
        return not tiny, f"{ours:.4f} % where the report has {theirs:.4f} %; {moved}"
    if same_weights:
        return True, f"the same weights, but {ours:.4f} % where the report has {theirs:.4f} %"
    own = [100 * evidence.runs[variant, other]["mean_iou"] for other in evidence.seeds]
    limits = statistics.of_one_more(own)
    if limits is None:
        return False, f"other weights, {ours:.2f} % where the report has {theirs:.2f} %; so few seeds give no interval"
    low, high = limits
    inside = low <= ours <= high
    where = "inside" if inside else "outside"
    machine = _machine(evidence.certificates[variant, seed])
    return (
        not inside,
        f"other weights ({machine}), {ours:.2f} % where the report has {theirs:.2f} %: {where} the prediction interval"
        f" [{low:.2f}, {high:.2f}]",
    )


def _moved(found: counted.Evidence, evidence: grid.Evidence, *, variant: str, seed: int) -> str:
    """How far counts have moved: as another machine's last bits may do."""
    total = found.counts["confusion"].total()
    hits = evidence.figures[variant, seed].figures["pixel_accuracy"].sums_BPK[:, 0].sum()
    return f"{abs(int(total.trace()) - int(hits)):,} of {int(total.sum()):,} pixels differ in being right"


def _machine(certificate: dict[str, Any]) -> str:
    sittings = list(certificates.sittings(certificate.get("training")))
    if not sittings:
        return "where the report's were trained is not known"
    last = sittings[-1]
    return f"the report's are of {last.get('accelerator') or last['environment']['processor']}"
