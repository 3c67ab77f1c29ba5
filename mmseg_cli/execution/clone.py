"""The project on machines that share no folder with the driver: a clone each, and DVC's remote between them.

The driver sends what a stage comes after: DVC's record of it (its entries of dvc.lock) and those of its files that DVC
does not cache; weights are pulled from the remote. The machine pushes what the stage made and sends the same back.
Prepared data do not travel: each machine prepares its own, from the dataset's root that it knows.
"""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import dvc
from mmseg_cli.files import fingerprint, write_text
from mmseg_cli.params import read_yaml
from mmseg_cli.paths import Paths
from mmseg_cli.runtime import is_held, only_one

CODE = ("mmseg_cli", "blocks", "dvc.yaml", "pyproject.toml", ".dvc/config")  # has to be in the clone's commit
TRAVELLING = ("runs/", "reports/")  # of what DVC does not cache; prepared data are too large
SMALL_KINDS = ("prepare", "ablate")  # run on the driver's machine: data for it, and tables from all runs
WAIT_SECONDS = 1800.0  # for another job of the machine that makes the clone, or prepares data


@dataclass(frozen=True)
class Source:
    """Where clones come from.

    Attributes:
        url: of the driver's origin.
        commit: that is checked out.
    """

    url: str
    commit: str


@dataclass(frozen=True)
class Parcel:
    """What travels with a stage, there and back; nothing in it is of one machine.

    Attributes:
        source: of the clone.
        folder: for clones, on any machine.
        preset: whose grid it is.
        params: the preset's parameters, which need not be committed.
        before: stages that the work needs the results of.
        entries: of dvc.lock.
        files: uncached ones, as a tar.
    """

    source: Source
    folder: str
    preset: str
    params: str
    before: tuple[str, ...]
    entries: dict[str, Any]
    files: bytes


def _run(command: Sequence[str], *, cwd: Path, where: str) -> str:
    """What a program printed.

    Raises:
        MmsegError: it failed.
    """
    done = subprocess.run(command, cwd=cwd, env=dvc.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no word"]
        what = f"`{' '.join(command[:3])}` failed ({lines[-1].removeprefix('ERROR: ').strip()})"
        raise MmsegError(where, what, "mend that and run this again")
    return done.stdout


def source_of(paths: Paths) -> Source:
    """Where clones of this project come from.

    Raises:
        MmsegError: its code is not committed and pushed, or DVC has no remote.
    """

    def git(*words: str) -> str:
        return _run(["git", *words], cwd=paths.root, where=str(paths.root)).strip()

    key = "execution.clones"
    if git("status", "--porcelain", "--", *[one for one in CODE if (paths.root / one).exists()]):
        raise MmsegError(key, "the code here has changes that no clone would have", "commit and push them")
    url, commit = git("remote", "get-url", "origin"), git("rev-parse", "HEAD")
    if not git("branch", "--remotes", "--contains", commit):
        raise MmsegError(key, f"commit {commit[:12]} is not in {url} yet", "push it")
    if not _run([dvc.program("dvc"), "remote", "list"], cwd=paths.root, where=key).strip():
        raise MmsegError(key, "DVC has no remote for the weights to travel by", "run `dvc remote add --default`")
    return Source(url, commit)


def _locked(path: Path) -> dict[str, Any]:
    """The entries of a dvc.lock."""
    return dict((read_yaml(path) or {}).get("stages", {})) if path.is_file() else {}


@contextmanager
def _waiting(lock: Path) -> Iterator[None]:
    """Hold a lock, after others have let it go."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with only_one(lock):
                yield
            return
        except MmsegError:
            if not is_held(lock) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def merge(paths: Paths, entries: dict[str, Any]) -> None:
    """Put entries into the preset's dvc.lock, while DVC does not write it."""
    from ruamel.yaml import YAML

    file = paths.pipeline.with_name("dvc.lock")
    with _waiting(paths.root / ".dvc" / "tmp" / "lock"):  # DVC's own
        before = _locked(file)
        if all(before.get(name) == entry for name, entry in entries.items()):
            return
        yaml, text = YAML(), io.StringIO()
        yaml.default_flow_style = False
        yaml.dump({"schema": "2.0", "stages": before | entries}, text)
        write_text(file, text.getvalue())


def _uncached(paths: Paths) -> dict[str, re.Pattern[str]]:
    """For each kind of stage a pattern of its outputs that DVC does not cache and that travel."""
    found = {}
    for kind, body in read_yaml(paths.root / "dvc.yaml")["stages"].items():
        body = body.get("do", body)
        patterns = []
        for out in [*body.get("outs", []), *body.get("metrics", [])]:
            for path, settings in out.items() if isinstance(out, dict) else ():
                if settings.get("cache") is False and path.startswith(TRAVELLING):
                    parts = re.split(r"\$\{[^}]*\}", path)
                    patterns.append("[^/]+".join(map(re.escape, parts)))
        found[kind] = re.compile("|".join(patterns) or r"(?!)")
    return found


def _packed(paths: Paths, stages: Iterable[str], entries: dict[str, Any]) -> bytes:
    """The uncached outputs of stages that there are, as a tar."""
    uncached, buffer = _uncached(paths), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for stage in stages:
            for out in entries.get(dvc.name_of(stage), {}).get("outs", []):
                path = paths.root / out["path"]
                if uncached[dvc.kind_of(stage)].fullmatch(out["path"]) and path.exists():
                    archive.add(path, arcname=out["path"])
    return buffer.getvalue()


def _unpacked(paths: Paths, files: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(paths.root, filter="data")


def _of(entries: dict[str, Any], stages: Iterable[str]) -> dict[str, Any]:
    return {name: entries[name] for name in map(dvc.name_of, stages) if name in entries}


def parcel_for(paths: Paths, stage: str, *, before: Iterable[str], source: Source, folder: str) -> Parcel:
    """What a machine needs to run a stage: see the head of this module.

    Args:
        before: the stages that it directly comes after, also those that were done before.
    """
    before = tuple(before)
    entries = _locked(paths.pipeline.with_name("dvc.lock"))
    params = paths.params.read_text(encoding="utf-8")
    mine = _of(entries, (*before, stage))
    return Parcel(source, folder, paths.preset, params, before, mine, _packed(paths, before, mine))


def unpack(parcel: Parcel) -> Paths:
    """A clone on this machine with all that the parcel's stage needs.

    Raises:
        MmsegError: git or DVC fails, or data cannot be prepared here.
    """
    root = Path(parcel.folder).expanduser() / f"mmseg-{fingerprint([parcel.source.url, parcel.source.commit])[:12]}"
    paths = Paths(root, parcel.preset)
    with _waiting(root.with_suffix(".lock")):
        if not (root / "dvc.yaml").is_file():
            root.parent.mkdir(parents=True, exist_ok=True)
            where = str(root)
            _run(["git", "clone", "--quiet", parcel.source.url, str(root)], cwd=root.parent, where=where)
            _run(["git", "checkout", "--quiet", "--detach", parcel.source.commit], cwd=root, where=where)
        if paths.params.read_text(encoding="utf-8") != parcel.params:
            write_text(paths.params, parcel.params)
        merge(paths, parcel.entries)
        _unpacked(paths, parcel.files)
        pulled = []
        for stage in parcel.before:
            if dvc.kind_of(stage) == "prepare":
                command = [*dvc.patient(), "repro", "--single-item", stage]
                _run(command, cwd=root, where=f"{dvc.name_of(stage)} in {root}")
            elif parcel.entries.get(dvc.name_of(stage)):
                pulled.append(stage)
        pull(paths, pulled)
    return paths


def pull(paths: Paths, stages: Sequence[str]) -> None:
    """Fetch what DVC has cached of stages from the remote, and lay it out.

    Raises:
        MmsegError: it is not there, or the remote cannot be reached.
    """
    cached = [stage for stage in stages if _has_cached(paths, stage)]
    if cached:
        command = [*dvc.patient(), "pull", "--force", *cached]
        _run(command, cwd=paths.root, where=f"the DVC remote of {paths.root}")


def _has_cached(paths: Paths, stage: str) -> bool:
    entry = _locked(paths.pipeline.with_name("dvc.lock")).get(dvc.name_of(stage), {})
    uncached = _uncached(paths)[dvc.kind_of(stage)]
    return any(not uncached.fullmatch(out["path"]) for out in entry.get("outs", []))


def pack(paths: Paths, parcel: Parcel, stage: str) -> Parcel:
    """What a stage made, after what DVC has cached of it was pushed to the remote.

    Raises:
        MmsegError: the remote does not take it.
    """
    if _has_cached(paths, stage):
        command = [*dvc.patient(), "push", stage]
        _run(command, cwd=paths.root, where=f"the DVC remote of {paths.root}")
    entries = _of(_locked(paths.pipeline.with_name("dvc.lock")), [stage])
    files = _packed(paths, [stage], entries)
    return Parcel(parcel.source, parcel.folder, parcel.preset, parcel.params, (), entries, files)


def receive(paths: Paths, parcel: Parcel) -> None:
    """Take over, on the driver's machine, what a stage made elsewhere."""
    _unpacked(paths, parcel.files)
    merge(paths, parcel.entries)
