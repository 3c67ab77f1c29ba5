"""`mmseg verify`: does a report follow from its evidence, the evidence from the weights, the weights from training?

- Level 0 computes every number of a report again from the committed evidence, and holds what is not computed (charts,
  data cards, the evidence itself) against what dvc.lock says that its stage wrote. Neither data nor weights are needed.
- Level 1 evaluates the weights again.
- Level 2 trains again. The same seed on the same kind of machine must give the same weights; elsewhere the last bits
  differ, and the new mIoU is inside the prediction interval of the runs that there are, or not.

Levels 1 and 2 run the same commands as the pipeline, each in a project folder of its own: `.work/verify/level-1` and
`level-2`. A run that was compared is removed there, so an interrupted level 2 goes on, and a finished one begins again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_cli.ablation import certificates, costs, document, grid, report, rows, statistics
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence as counted
from mmseg_cli.files import content_of, read_json, refusal, sha256, write_text
from mmseg_cli.names import LADDER
from mmseg_cli.params import Params, load, read_yaml
from mmseg_cli.paths import Paths, find, run_name
from mmseg_cli.provenance import PROVENANCE, sittings

COMMANDS = {"pretrain_imagenet": ["pretrain", "imagenet"], "pretrain_mapillary": ["pretrain", "mapillary"]}
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")
LAST_DIGITS = 1e-9  # relative; and absolute, for a limit near 0 is the difference of two numbers that are not
OTHER_DIGITS = "last digits differ, as with another scipy; all else is equal, and dvc.lock has these very files"
TINY = 0.005  # points of mIoU: less is not seen in a table
FEW = 1e-3  # the share of counts that another machine's last bits may move
KEY = "?" * 12  # stands for the key of any work folder


@dataclass(frozen=True)
class Verified:
    """A report that was looked at.

    Attributes:
        page: its ablation.md.
        level: at which.
        count: how many files were computed again or held against dvc.lock (level 0), or runs were made again.
        faults: one line each; none where all is as it should be.
        notes: what was found beside, one line each.
        unjudged: of how many runs that were made again it could not be told whether they are as they should be.
    """

    page: Path
    level: int
    count: int
    faults: list[str]
    notes: list[str]
    unjudged: int = 0

    @property
    def done(self) -> str:
        """What was done, in words, of a report without faults."""
        what, one = ("file" if self.level == 0 else "run"), self.count == 1
        words = (
            f"{'is' if one else 'are'} as {'it' if one else 'they'} should be",
            f"{'was' if one else 'were'} evaluated again",
            f"{'was' if one else 'were'} trained again",
        )[self.level]
        unjudged = f", of which {self.unjudged} could not be judged" if self.unjudged else ""
        return f"{self.count} {what}{'' if one else 's'} {words}{unjudged}"


def pages(root: Path) -> list[Path]:
    """The ablation.md of every report of a project, also where it is gone but its evidence or its lock is there."""
    every = Paths(root, "*")
    looked_for = (every.reports / report.PAGE, every.evidence)
    folders = {file.parent for path in looked_for for file in root.glob(str(path.relative_to(root)))}
    for lock in (root / "dvc.lock", *root.glob("pipelines/*/dvc.lock")):
        if lock.is_file():
            written = re.findall(
                rf"path: (reports/[^/\s]+)/{report.PAGE}$", lock.read_text(errors="replace"), re.MULTILINE
            )
            folders |= {root / name for name in written}
    return sorted(folder / report.PAGE for folder in folders)


def preset_of(page: Path, *, root: Path) -> Paths:
    """The preset that a table is of.

    Args:
        page: an ablation.md, or the folder that it is in.

    Raises:
        MmsegError: it is no report of this project.
    """
    where = page.resolve()
    where = where / report.PAGE if where.is_dir() else where
    if where.name != report.PAGE or where.parents[1] != root / "reports":
        raise MmsegError(page, "is no report of this project", f"name a reports/<preset>/{report.PAGE}, in its folder")
    return find(preset=where.parent.name, root=root)


# ------------------------------------------------------------------------------------------------ level 0


def level_0(paths: Paths) -> Verified:
    """Compute a report again from its evidence; needs neither data nor weights."""
    page = paths.reports / report.PAGE
    drawn = [name for name in document.CAPTIONS if (paths.reports / document.FIGURES / name).is_file()]
    try:
        evidence = report.collect(paths, load(paths.params))
        with content_of(paths.evidence, todo=grid.REPRO):
            texts = report.texts(evidence, rows.rows(evidence), drawn=drawn)
        locked, notes = _locked(paths)
    except MmsegError as error:
        return Verified(page, 0, 0, [_below(paths.root, f"{error.where}: {error.what}")], [])
    faults = []
    for name, text in texts.items():
        file = paths.reports / name
        if fault := _differs(file, text):
            if _recorded(file, locked) and but_for_last_digits(file.read_bytes().decode(errors="replace"), text):
                notes = [*notes, *([] if OTHER_DIGITS in notes else [OTHER_DIGITS])]
            else:
                faults.append(fault)
    for file in sorted((paths.reports / certificates.FOLDER).glob("*")):
        if f"{certificates.FOLDER}/{file.name}" not in texts:
            faults.append(f"{file}: is of no row of the table")
    computed = {paths.reports / name for name in (*texts, certificates.FOLDER)}
    own = {paths.evidence / name for name in evidence.files}  # others are of runs outside the grid
    held = {path: md5 for path, md5 in locked.items() if path in own or paths.evidence not in path.parents}
    held = {path: md5 for path, md5 in held.items() if path not in computed}
    for path, wanted in held.items():
        if not path.exists():
            faults.append(f"{path}: missing")
        elif dvc_hash(path) != wanted:
            faults.append(f"{path}: is not what its stage wrote, by dvc.lock")
    beside = {path for path in paths.reports.iterdir() if path != paths.evidence} - computed
    if locked and not own & held.keys():
        faults.append(f"{_lock(paths)}: knows no file of this evidence")
    for path in sorted((own | beside) - held.keys()) if held else []:
        notes = [*notes, f"{path}: dvc.lock does not know it, so it was held against nothing"]
    faults, notes = ([_below(paths.root, line) for line in lines] for lines in (faults, notes))
    return Verified(page, 0, len(texts) + len(held), faults, notes)


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


def but_for_last_digits(found: str, text: str) -> bool:
    """Whether two texts are equal but for the last digits of fractions.

    Student's t of scipy 1.14, 1.16 and 1.17 differ by up to 3e-11, relative, and unrounded numbers show that.
    """
    if NUMBER.split(found) != NUMBER.split(text):
        return False
    return all(_agree(one, other) for one, other in zip(NUMBER.findall(found), NUMBER.findall(text), strict=True))


def _agree(one: str, other: str) -> bool:
    """Whether two numbers are the same but for last digits, which integers do not have."""
    if one == other or one.lstrip("+-").isdigit() or other.lstrip("+-").isdigit():
        return one == other
    return math.isclose(float(one), float(other), rel_tol=LAST_DIGITS, abs_tol=LAST_DIGITS)


def _recorded(file: Path, locked: dict[Path, str]) -> bool:
    """Whether dvc.lock has the very bytes of a file, or of the folder that it lies in."""
    return file.is_file() and any(path in locked and dvc_hash(path) == locked[path] for path in (file, file.parent))


def _lock(paths: Paths) -> Path:
    return paths.pipeline.with_name("dvc.lock")


def _locked(paths: Paths) -> tuple[dict[Path, str], list[str]]:
    """The DVC hash of everything below the reports folder that a stage wrote, and what is to be said of it."""
    lock = _lock(paths)
    if not lock.is_file():
        return {}, [
            f"{lock.relative_to(paths.root)} is missing: charts, data cards and evidence are not held against it"
        ]
    with content_of(lock, todo="run `dvc repro`"):
        # A stage of several parameters; of stages that left the grid, the outs are not looked at.
        outs = [out for stage in read_yaml(lock)["stages"].values() for out in stage.get("outs", [])]
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
    """Evaluate the runs of a report again (level 1), after training them again (level 2), and count their networks.

    Args:
        train: level 2.
        only: names of runs, such as `mmbconv-s0`; None is all.
        say: called with a line on each run.

    Raises:
        MmsegError: a run of that name is not in the grid, weights or data are not at hand, a command failed, or it took
            over a training instead of doing it.
    """
    evidence = report.collect(paths, params)
    grid_runs = {run_name(variant, seed): (variant, seed) for variant in evidence.variants for seed in evidence.seeds}
    for name in only or []:
        if name not in grid_runs:
            raise MmsegError("--only", f"{name} is no run of {paths.preset}", f"choose of {', '.join(grid_runs)}")
    level = 2 if train else 1
    project = _project(paths, level=level)
    new = Paths(project, paths.preset)
    faults = [_below(paths.root, fault) for fault in _miscounted(paths, evidence)]
    unjudged = 0
    chosen = only or list(grid_runs)
    for name in chosen:
        variant, seed = grid_runs[name]
        arguments = ["--preset", paths.preset, "--variant", variant, "--seed", str(seed)]
        if train:
            for stage in LADDER:
                _run([*COMMANDS.get(stage, ["train"]), *arguments], project)
            _require_trained(new, name, before=evidence.certificates[variant, seed].get("training"))
        else:
            _borrow(paths, project, name, evidence.runs[variant, seed]["weights_sha256"])
        _run(["evaluate", *arguments], project)
        found = compared(
            evidence,
            new,
            old=paths,
            variant=variant,
            seed=seed,
            trained=train,
            deterministic=params.runtime.deterministic,
        )
        _remove(new, name)
        say(f"{name}: {found.line}")
        unjudged += not found.judged
        if found.fault:
            faults.append(f"{name}: {found.line}")
    return Verified(paths.reports / report.PAGE, level, len(chosen), faults, [], unjudged)


def _miscounted(paths: Paths, evidence: grid.Evidence) -> list[str]:
    """Parameters and multiply-accumulates in cost.json that the networks do not have."""
    cost = evidence.cost
    size = {"height": cost["height"], "width": cost["width"]}
    networks = {variant: evidence.wanted[variant].network for variant in evidence.variants}
    faults = []
    for variant, (counted_, _) in costs.counted(networks, classes=cost["classes"], **size).items():
        for key in ("parameters", "macs"):
            said, counted_now = cost["variants"][variant][key], getattr(counted_, key)
            if said != counted_now:
                faults.append(f"{paths.evidence / grid.COST}: says {key} {said} of {variant}, which has {counted_now}")
    return faults


def _project(paths: Paths, *, level: int) -> Path:
    """A project folder of its own with the parameters, the user's blocks and the prepared data of this one."""
    project = paths.root / ".work" / "verify" / f"level-{level}"
    project.mkdir(parents=True, exist_ok=True)
    for name in ("data", "blocks"):
        link = project / name
        if not link.is_symlink() and (paths.root / name).exists():
            link.symlink_to(paths.root / name, target_is_directory=True)
    shutil.copyfile(paths.root / "params.yaml", project / "params.yaml")  # what makes it a project
    write_text(project / paths.params.relative_to(paths.root), without_tracking(paths.params))
    return project


def without_tracking(file: Path) -> str:
    """A preset's parameters with tracking switched off, as JSON: that is YAML in which every string has its quotes, so
    it is read back as it was."""
    params = read_yaml(file)
    return json.dumps({**params, "tracking": {**params["tracking"], "enabled": False}}, indent=1, ensure_ascii=False)


def _require_trained(new: Paths, name: str, *, before: dict[str, Any] | None) -> None:
    """Raise MmsegError unless a run was trained in this project, in sittings that are none of the report's."""
    run = new.run("train", name)
    training = read_json(run / PROVENANCE, todo=f"remove {new.root} and run this again")
    new_ones, reported = list(sittings(training)), list(sittings(before))
    if not new_ones or any(one in reported for one in new_ones):
        what = "was not trained again: a finished training was taken over"
        raise MmsegError(run, what, f"remove {new.root} and run this again")


def _remove(new: Paths, name: str) -> None:
    """Remove all of a run that was compared: nothing may take it over."""
    folders = [*new.root.glob(str(new.run("*", name).relative_to(new.root))), new.evidence / name]
    for stage in LADDER:
        work = new.work(stage, name, KEY)
        folders += work.parent.glob(work.name)
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise refusal(folder, error) from error


def _borrow(paths: Paths, project: Path, name: str, weights_sha256: str) -> None:
    """Put a run's weights into the project, after a look at whether they are the report's."""
    run = paths.run("train", name)
    weights = run / "model.safetensors"
    if not weights.is_file():
        todo = "run `dvc checkout`, `dvc pull` where a remote has them, or `dvc repro`; or verify at level 0 or 2"
        raise MmsegError(weights, "missing, as weights are not in git", todo)
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


@dataclass(frozen=True)
class Outcome:
    """What came of making a run again.

    Attributes:
        line: in words.
        fault: whether it is not as it should be.
        judged: whether that could be told.
    """

    line: str
    fault: bool
    judged: bool = True


def compared(
    evidence: grid.Evidence,
    new: Paths,
    *,
    old: Paths,
    variant: str,
    seed: int,
    trained: bool,
    deterministic: bool,
) -> Outcome:
    """Hold a run that was made again against the report's.

    Args:
        evidence: the report's.
        new: where it was made again.
        old: where the report is.
        trained: it was trained again, not evaluated alone.
        deterministic: the run had algorithms with equal bits on a GPU too; a CPU's always are.
    """
    folder = run_name(variant, seed)
    metrics: dict[str, Any] = read_json(new.evidence / folder / grid.METRICS, todo="run this again")
    before = evidence.runs[variant, seed]
    ours, theirs = 100 * metrics["mean_iou"], 100 * before["mean_iou"]
    if trained and metrics["weights_sha256"] != before["weights_sha256"]:
        training = read_json(new.run("train", folder) / PROVENANCE, todo="run this again")
        reported = evidence.certificates[variant, seed].get("training")
        said = f"{ours:.2f} % where the report has {theirs:.2f} %"
        if _same_machine(training, reported) and (deterministic or not _on_gpu(training)):
            return Outcome(f"other weights on the same kind of machine ({_machine(reported)}), {said}", fault=True)
        own = [100 * evidence.runs[variant, other]["mean_iou"] for other in evidence.seeds]
        return _foreseen(ours, own, said=f"other weights ({_machine(reported)}), {said}")
    if keys := _differing(metrics["run"], before["run"]):
        what = f"the same weights, but another {', '.join(keys)} of their training than the report says"
        return Outcome(what, fault=True)
    if metrics["confusion_sha256"] == before["confusion_sha256"]:
        return Outcome(f"the same {'weights and ' if trained else ''}counts, to the bit", fault=False)
    said = f"{ours:.4f} % where the report has {theirs:.4f} %"
    kind, share = _most_moved(*(paths.evidence / folder / grid.CONFUSION for paths in (new, old)))
    line = f"{said}; {100 * share:.4f} % of what was counted as {kind} moved"
    if trained:
        return Outcome(f"the same weights, but {line}", fault=True)
    return Outcome(line, fault=abs(ours - theirs) >= TINY or share > FEW)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What two runs do not have in common, such as `pretrain_imagenet.figures`; other code may give the same run."""
    parts = {"": ({**one, "rungs": len(one["rungs"])}, {**other, "rungs": len(other["rungs"])})}
    parts |= {f"{mine['stage']}.": (mine, his) for mine, his in zip(one["rungs"], other["rungs"], strict=False)}
    return [
        f"{prefix}{key}"
        for prefix, (mine, his) in parts.items()
        for key in sorted(mine.keys() | his.keys())
        if key != "fingerprint" and mine.get(key) != his.get(key)
    ]


def _foreseen(value: float, own: list[float], *, said: str) -> Outcome:
    """Whether one training more is inside of what the others foresee."""
    limits = statistics.of_one_more(own)
    if limits is None:
        return Outcome(f"{said}; so few seeds give no interval to judge that by", fault=False, judged=False)
    inside = limits[0] <= value <= limits[1]
    where = "inside" if inside else "outside"
    return Outcome(f"{said}: {where} the prediction interval [{limits[0]:.2f}, {limits[1]:.2f}]", fault=not inside)


def _most_moved(*files: Path) -> tuple[str, float]:
    """The kind of counts of which the largest share is other in one file than in the other, image by image."""
    one, other = (counted.load(file) for file in files)
    if one.names != other.names or {kind: found.shape for kind, found in one.counts.items()} != {
        kind: found.shape for kind, found in other.counts.items()
    }:
        return "images or kinds", 1.0
    shares = {}
    for kind, counts in one.counts.items():
        pairs = [(counts.image(place), other.counts[kind].image(place)) for place in range(len(counts))]
        moved = sum(int(abs(mine - theirs).sum()) for mine, theirs in pairs)
        shares[kind] = moved / max(1, sum(int(mine.sum()) + int(theirs.sum()) for mine, theirs in pairs))
    return max(shares.items(), key=lambda item: item[1])


def _machines(training: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The kinds of machine of a training's sittings: libraries, processor, cores, device, and threads where known."""
    found: list[dict[str, Any]] = []
    for one in sittings(training):
        kind = {**one.get("environment", {}), **{key: one.get(key) for key in ("accelerator", "processes", "threads")}}
        kind["device"] = str(one.get("device")).partition(":")[0]  # which of several GPUs is no kind
        if kind not in found:
            found.append(kind)
    return found


def _same_machine(training: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether all sittings of two trainings were on one kind of machine, which is known."""
    kinds = _machines(training)
    return len(kinds) == 1 and kinds == _machines(other)


def _on_gpu(training: dict[str, Any] | None) -> bool:
    return any(kind["device"] != "cpu" for kind in _machines(training))


def _machine(training: dict[str, Any] | None) -> str:
    """On what the report's run was trained, in words."""
    kinds = _machines(training)
    if not kinds:
        return "where the report's were trained is not known"
    return f"the report's are of {kinds[-1]['accelerator'] or kinds[-1].get('processor')}"
