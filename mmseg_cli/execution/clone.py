"""The project on machines that share no folder with the driver: a clone each, and DVC's remote between them.

The driver sends what a stage comes after: DVC's record of it (its entries of dvc.lock) and those of its files that DVC
does not cache; weights are pulled from the remote. The machine pushes what the stage made and sends the same back.
Prepared data do not travel: each machine prepares its own, from the dataset's root that it knows.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import dvc, stage
from mmseg_cli.files import fingerprint, write_text
from mmseg_cli.params import read_yaml
from mmseg_cli.paths import Paths
from mmseg_cli.runtime import only_one_after
from mmseg_cli.tracking import without_credentials

CODE = ("mmseg_cli", "blocks", "dvc.yaml", "pyproject.toml", ".dvc/config")  # has to be in the clone's commit
NO_QUESTIONS = {"GIT_TERMINAL_PROMPT": "0"}
TRAVELLING = ("runs/", "reports/")  # of what DVC does not cache; prepared data are too large
SMALL_KINDS = ("prepare", "ablate")  # run on the driver's machine: data for it, and tables from all runs
WAIT_SECONDS = 1800.0  # for DVC to let go of the project


@dataclass(frozen=True)
class Source:
    """Where clones come from.

    Attributes:
        url: of the driver's origin.
        commit: that is checked out.
        driver: machine and folder of the driver: others have clones of their own, as their parameters may differ.
    """

    url: str
    commit: str
    driver: str


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


def environment(root: Path) -> dict[str, str]:
    """Of what is called in a clone: its own code is run there, whatever is installed."""
    first = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return dvc.environment() | {"PYTHONPATH": first}


def _run(command: Sequence[str], *, cwd: Path, where: str) -> str:
    """What a program printed.

    Raises:
        MmsegError: it failed.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(cwd) | NO_QUESTIONS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=stage.as_child,
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no word"]
        program, said = Path(command[0]).name, without_credentials(lines[-1].removeprefix("ERROR: ").strip())
        what = f"`{' '.join([program, *command[1:3]])}` failed ({said})"
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
    pipeline = str(paths.pipeline.relative_to(paths.root))
    if git("status", "--porcelain", "--", *[one for one in (*CODE, pipeline) if (paths.root / one).exists()]):
        raise MmsegError(key, "the code here has changes that no clone would have", "commit and push them")
    url, commit = git("remote", "get-url", "origin"), git("rev-parse", "HEAD")
    if not git("branch", "--remotes", "--contains", commit):
        raise MmsegError(key, f"commit {commit[:12]} is not in {without_credentials(url)} yet", "push it")
    config = ConfigParser()
    config.read(paths.root / ".dvc" / "config")
    default = config.get("core", "remote", fallback=None)
    if f"'remote \"{default}\"'" not in config.sections():
        what = ".dvc/config names no default remote for the weights to travel by"
        raise MmsegError(key, what, "run `dvc remote add --default`, commit and push")
    return Source(url, commit, f"{platform.node()}:{paths.root}")


def _locked(path: Path) -> dict[str, Any]:
    """The entries of a dvc.lock."""
    return dict((read_yaml(path) or {}).get("stages", {})) if path.is_file() else {}


def merge(paths: Paths, entries: dict[str, Any]) -> None:
    """Put entries into the preset's dvc.lock, while DVC does not write it."""
    from ruamel.yaml import YAML

    file = paths.pipeline.with_name("dvc.lock")
    with only_one_after(paths.root / ".dvc" / "tmp" / "lock", seconds=WAIT_SECONDS):  # DVC's own
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


def _unpacked(paths: Paths, parcel: Parcel) -> None:
    """Lay the files of a parcel out, in place of those that were there."""
    uncached = _uncached(paths)
    with tarfile.open(fileobj=io.BytesIO(parcel.files)) as archive:
        sent = {Path(name) for name in archive.getnames()}
        for name, entry in parcel.entries.items():
            for out in entry.get("outs", []):
                folder = paths.root / out["path"]
                if Path(out["path"]) in sent and uncached[dvc.kind_of(name)].fullmatch(out["path"]) and folder.is_dir():
                    shutil.rmtree(folder)  # files of another time would stay beside the new ones
        archive.extractall(paths.root, filter="data")


def _of(entries: dict[str, Any], stages: Iterable[str]) -> dict[str, Any]:
    return {name: entries[name] for name in map(dvc.name_of, stages) if name in entries}


def parcel_for(paths: Paths, address: str, *, before: Iterable[str], source: Source, folder: str) -> Parcel:
    """What a machine needs to run a stage: see the head of this module.

    Args:
        before: the stages that it directly comes after, also those that were done before.
    """
    before = tuple(before)
    entries = _locked(paths.pipeline.with_name("dvc.lock"))
    params = paths.params.read_text(encoding="utf-8")
    mine = _of(entries, (*before, address))
    return Parcel(source, folder, paths.preset, params, before, mine, _packed(paths, before, mine))


def unpack_folder(source: Source, folder: str) -> Path:
    """Where the clone of a source lies on a machine."""
    return Path(folder).expanduser() / f"mmseg-{fingerprint([source.url, source.commit, source.driver])[:12]}"


def unpack(parcel: Parcel) -> Paths:
    """A clone on this machine with all that the parcel's stage needs.

    Raises:
        MmsegError: git or DVC fails, or data cannot be prepared here.
    """
    source, root = parcel.source, unpack_folder(parcel.source, parcel.folder)
    paths = Paths(root, parcel.preset)
    with only_one_after(root.with_suffix(".lock"), seconds=math.inf):  # another job may prepare data for hours
        if not root.is_dir():
            half = root.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)  # of a job that was killed
            _run(["git", "clone", "--quiet", source.url, str(half)], cwd=root.parent, where=str(root))
            _run(["git", "checkout", "--quiet", "--detach", source.commit], cwd=half, where=str(root))
            half.rename(root)
        if not paths.params.is_file() or paths.params.read_text(encoding="utf-8") != parcel.params:
            write_text(paths.params, parcel.params)
        prepared = [address for address in parcel.before if dvc.kind_of(address) == "prepare"]
        own = [dvc.name_of(address) for address in prepared if _is_here(paths, address)]  # its bytes are this machine's
        merge(paths, {name: entry for name, entry in parcel.entries.items() if name not in own})
        _unpacked(paths, parcel)
        for address in prepared:
            where = f"{dvc.name_of(address)} in {root}"
            # Asked first: others may read the data, and to make them DVC wants them for itself, before it looks.
            changed = _run([*dvc.patient(), "status", "--json", address], cwd=root, where=where)
            if json.loads(changed or "{}"):
                _run([*dvc.patient(), "repro", "--single-item", address], cwd=root, where=where)
        pull(paths, [one for one in parcel.before if one not in prepared and dvc.name_of(one) in parcel.entries])
    return paths


def _is_here(paths: Paths, address: str) -> bool:
    """Whether all outputs of a stage lie in the folder."""
    outs = _locked(paths.pipeline.with_name("dvc.lock")).get(dvc.name_of(address), {}).get("outs", [])
    return bool(outs) and all((paths.root / out["path"]).exists() for out in outs)


def pull_all(paths: Paths) -> None:
    """Lay out what earlier jobs left in the remote, as far as it is there: a driver may have ended before it did."""
    command = [*dvc.patient(), "pull", "--allow-missing", str(paths.pipeline.relative_to(paths.root))]
    subprocess.run(
        command, cwd=paths.root, env=dvc.environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )


def pull(paths: Paths, stages: Sequence[str]) -> None:
    """Fetch what DVC has cached of stages from the remote, and lay it out.

    Raises:
        MmsegError: it is not there, or the remote cannot be reached.
    """
    cached = [stage for stage in stages if _has_cached(paths, stage)]
    if cached:
        command = [*dvc.patient(), "pull", "--force", *cached]
        _run(command, cwd=paths.root, where=f"the DVC remote of {paths.root}")


def _has_cached(paths: Paths, address: str) -> bool:
    entry = _locked(paths.pipeline.with_name("dvc.lock")).get(dvc.name_of(address), {})
    uncached = _uncached(paths)[dvc.kind_of(address)]
    return any(not uncached.fullmatch(out["path"]) for out in entry.get("outs", []))


def pack(paths: Paths, parcel: Parcel, address: str) -> Parcel:
    """What a stage made, after what DVC has cached of it was pushed to the remote.

    Raises:
        MmsegError: the remote does not take it.
    """
    if _has_cached(paths, address):
        command = [*dvc.patient(), "push", address]
        _run(command, cwd=paths.root, where=f"the DVC remote of {paths.root}")
    entries = _of(_locked(paths.pipeline.with_name("dvc.lock")), [address])
    files = _packed(paths, [address], entries)
    return Parcel(parcel.source, parcel.folder, parcel.preset, parcel.params, (), entries, files)


def receive(paths: Paths, parcel: Parcel) -> None:
    """Take over, on the driver's machine, what a stage made elsewhere."""
    _unpacked(paths, parcel)
    merge(paths, parcel.entries)
