"""`mmseg doctor`: will this machine run the preset? Looked at before hours are lost.

Each check is a function that returns findings. A check that raises becomes a warning, so that none hides the others.
What may break or hang (torch, torchvision, dvc, nvidia-smi, the tracking server) is asked in processes and threads of
its own, all at once; neither torch nor mlflow nor dvc is imported here. Nothing is changed: what is tried out is a
temporary file, removed at once.

Levels: `problem` will fail or harm, `warning` may, `ok` is well or only said.
"""

from __future__ import annotations

import configparser
import contextlib
import errno
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import mmseg_cli
from mmseg_cli import memory as ram
from mmseg_cli import runtime
from mmseg_cli.errors import MmsegError
from mmseg_cli.names import LADDER

if TYPE_CHECKING:
    from mmseg_cli.params import Params, Stage
    from mmseg_cli.paths import Paths

T = TypeVar("T")
Level = Literal["ok", "warning", "problem"]

DISTRIBUTION: Final = "mmseg-cli"
OLDEST_PYTHON: Final = (3, 11)
GIB: Final = 2**30
LOW_MEMORY: Final = 4 * GIB
LOW_SHARED: Final = 1 * GIB
BUSY_SHARE: Final = 0.5  # of the cores; torch's threads wait for each other and lose most where one is kept waiting
LOW_DISK: Final = 5 * GIB
LOW_GPU_SHARE: Final = 0.5  # of its memory that a GPU has free
BUSY: Final = "end what else uses it (nvidia-smi shows it), or choose others with CUDA_VISIBLE_DEVICES"
NO_DISK: Final = 1 * GIB
FEW_FILES: Final = 1024
SERVER_SECONDS: Final = 5.0
PROGRAM_SECONDS: Final = 60.0  # a first import of torch from a network disk takes long
LONGEST: Final = PROGRAM_SECONDS + 10  # that anything is waited for
QUICK_SECONDS: Final = 2.0  # for what could go on for ever: sizes below .work, a large database
MARK: Final = "mmseg-doctor:"  # begins the lines of the child process, whatever else libraries print
MISMATCH: Final = "operator torchvision::nms does not exist"
THREAD_SETTINGS: Final = ("LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PAIR: Final = "`pip install --upgrade --force-reinstall torch torchvision`, both unpinned, takes a matching pair"


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        check: what was looked at.
        found: what there is.
        fix: what to do about it, a command in backticks; empty where there is nothing to do.
    """

    check: str
    found: str
    level: Level = "ok"
    fix: str = ""


def examine(asked: Asked, *, root: Path, paths: Paths | None, params: Params | None) -> list[Finding]:
    """All findings.

    Args:
        asked: what `ask` began before.
        root: the folder in question.
        paths: of the preset; None where the folder is no project, of which only the machine is looked at then.
        params: the preset's; None where they cannot be read.
    """
    mirror = _later(lambda: [] if paths is None or params is None else ask_tracking(paths, params))
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", python),
        ("dependencies", dependencies),
        ("conflicts", lambda: conflicts(root)),
        ("threads", thread_settings),
        ("memory", lambda: memory(workers=0 if params is None else params.runtime.workers)),
        ("file limits", file_limits),
        ("file locks", lambda: file_locks(root)),
        ("disk", lambda: disk(places(root, paths))),
        ("programs", programs),
    ]
    if paths is not None:
        checks.append(("resumable state", lambda: resumable(paths.root / ".work")))
        checks.append(("pipeline", lambda: pipeline(paths)))
        checks.append(("git", lambda: git(paths)))
        checks.append(("DVC locks", lambda: dvc_locks(paths.root / ".dvc" / "tmp")))
    if paths is not None and params is not None:
        checks.append(("datasets", lambda: datasets(paths, params)))
    checks.append(("dvc", lambda: dvc(asked.dvc.result(LONGEST), root=None if paths is None else paths.root)))
    checks.append(("MLflow", lambda: mirror.result(LONGEST)))
    checks.append(
        ("torch", lambda: torch_and_devices(*asked.torch.result(LONGEST), asked.driver.result(LONGEST), params))
    )
    return [finding for name, check in checks for finding in guarded(name, check)]


def guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds; one that raises is a warning."""
    try:
        return check()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return [Finding(name, f"could not be checked ({text[:200]})", "warning")]


# ------------------------------------------------------------------------------------------- what may break or hang


@dataclass(frozen=True)
class _Ended:
    """How a program ended: its code and what it said; code None where it did not end in time or did not start."""

    code: int | None
    out: str
    err: str

    def last_line(self) -> str:
        """What it complained about."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip()[:300] if lines else f"ended with code {self.code} and said nothing"


@dataclass(frozen=True)
class Asked:
    """What is being found out meanwhile."""

    torch: Future[tuple[dict[str, Any], _Ended]]
    driver: Future[str | None]
    dvc: Future[_Ended | None]


def ask(root: Path) -> Asked:
    """Begin with what takes longest, and needs no parameters."""
    return Asked(torch=_later(ask_torch), driver=_later(ask_driver), dvc=_later(lambda: ask_dvc(root)))


def _later(work: Callable[[], T]) -> Future[T]:
    """The result of `work`, done in a thread that nobody has to wait for at the end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _run(*command: str, cwd: Path | None = None, seconds: float = PROGRAM_SECONDS) -> _Ended:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        out = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        return _Ended(None, out, f"no answer within {seconds:.0f} s")
    except OSError as error:
        return _Ended(None, "", f"cannot be started ({error.strerror})")
    return _Ended(done.returncode, done.stdout, done.stderr)


def ask_torch(seconds: float = PROGRAM_SECONDS) -> tuple[dict[str, Any], _Ended]:
    """What torch and torchvision say in a process of their own, which they may take down."""
    ended = _run(*_child(whole=False), seconds=seconds)
    said: dict[str, Any] = {}
    for line in ended.out.splitlines():
        if line.startswith(MARK):
            with contextlib.suppress(ValueError):
                said |= json.loads(line.removeprefix(MARK))
    return said, ended


def _child(*, whole: bool) -> list[str]:
    """The command of a process that runs `look_at_torch`, and finds modules where this one does."""
    code = (
        "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
        f"from mmseg_cli.doctor import look_at_torch; look_at_torch(whole={whole})"
    )
    return [sys.executable, "-c", code, json.dumps(sys.path)]


def ask_driver() -> str | None:
    """The GPUs and the driver as nvidia-smi names them; None without it, or where it finds none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    ended = _run(program, "--query-gpu=name,driver_version", "--format=csv,noheader", seconds=10)
    return "; ".join(ended.out.strip().splitlines()) if ended.code == 0 and ended.out.strip() else None


def ask_dvc(root: Path) -> _Ended | None:
    """How `dvc version` ends in the folder; None without dvc."""
    program = beside("dvc") or shutil.which("dvc")
    return None if program is None else _run(program, "version", cwd=root)


def ask_tracking(paths: Paths, params: Params) -> list[Finding]:
    """Whether the MLflow mirror can be written. Nothing here is a problem: training goes on without it."""
    from mmseg_cli.tracking import without_credentials

    check = "MLflow"
    if not params.tracking.enabled:
        return [Finding(check, "switched off (tracking.enabled)")]
    uri = params.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    shown = without_credentials(uri)
    scheme = urllib.parse.urlsplit(uri).scheme
    if not uri:
        return database(check, paths.root / "mlflow.db")
    if scheme == "sqlite":
        return database(check, paths.root / urllib.parse.unquote(uri.partition("///")[2].partition("?")[0]))
    if scheme in ("http", "https"):
        return server(check, shown)
    if scheme in ("", "file"):
        return [Finding(check, f"{shown} is a folder", "warning", "MLflow no longer takes one: sqlite:///mlflow.db")]
    return [Finding(check, f"{shown} is not looked at")]


# ------------------------------------------------------------------------------------------ Python and its packages


def python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> list[Finding]:
    """The interpreter's version."""
    found = f"{'.'.join(map(str, version))} in {sys.prefix}"
    if version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return [Finding("python", found, "problem", f"install Python {oldest} or newer, and mmseg into it")]
    return [Finding("python", found)]


def requirements() -> list[str]:
    """What must be installed: by the installed package's own account and, in a clone, by its present pyproject.toml."""
    known: list[str] = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        known += importlib.metadata.requires(DISTRIBUTION) or []
    with contextlib.suppress(OSError, ValueError):
        project = tomllib.loads((_package().parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == DISTRIBUTION:
            known += project["dependencies"]
    return list(dict.fromkeys(known))


def dependencies() -> list[Finding]:
    """Whether what mmseg needs is there, and new enough; extras are nobody's duty."""
    from packaging.requirements import Requirement

    check, wanted = "dependencies", requirements()
    if not wanted:
        return [Finding(check, f"{DISTRIBUTION} is not installed", "warning", "`pip install -e .` in the clone")]
    missing, old, names = [], [], set()
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        names.add(requirement.name.lower())
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            old.append((requirement, version))
    findings = []
    if missing := list(dict.fromkeys(missing)):
        names_missing = " ".join(missing)
        findings.append(Finding(check, f"missing: {names_missing}", "problem", f"`pip install {names_missing}`"))
    for requirement, version in old:
        fix = f"`pip install --upgrade {shlex.quote(f'{requirement.name}{requirement.specifier}')}`"
        found = f"{requirement.name} {version}, where {requirement.specifier} is needed"
        findings.append(Finding(check, found, "problem", fix))
    return findings or [Finding(check, f"all {len(names)} are there, and new enough")]


def _package() -> Path:
    """The folder of the package that runs."""
    return Path(mmseg_cli.__file__).resolve().parent


def conflicts(root: Path) -> list[Finding]:
    """Other packages that take mmseg's name, and another copy of mmseg in its place."""
    check, findings = "conflicts", []
    others = sorted(
        {
            entry.dist.name
            for entry in importlib.metadata.entry_points(group="console_scripts", name="mmseg")
            if entry.dist is not None and re.sub(r"[-_.]+", "-", entry.dist.name).lower() != DISTRIBUTION
        }
    )
    for other in others:
        fix = f"`pip uninstall {other}`, then install mmseg again; or use an environment of its own"
        findings.append(Finding(check, f"{other} also installs a command mmseg", "problem", fix))
    package = importlib.util.find_spec("mmseg")
    if package is not None and package.origin is not None:  # a mere folder of that name is none
        owners = sorted(set(importlib.metadata.packages_distributions().get("mmseg", [])) - {*others, DISTRIBUTION})
        found = f"a package mmseg is there, of {', '.join(owners) or 'an unknown distribution'}"
        if owners or not others:
            todo = "it is another program (OpenMMLab's has that name); better use an environment of its own"
            findings.append(Finding(check, found, "warning", todo))
    own = _package()
    installed = _installed_package()
    for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        copy = Path(entry).resolve() / "mmseg_cli"
        if copy.is_dir() and copy != installed:
            findings.append(
                Finding(check, f"PYTHONPATH brings mmseg_cli from {entry}", "warning", "`unset PYTHONPATH`")
            )
    clone = root / "mmseg_cli"
    if clone.is_dir() and clone.resolve() != own:
        fix = "`pip install -e .` here, since DVC watches this folder's code"
        findings.append(Finding(check, f"the mmseg that runs is that of {own.parent}", "warning", fix))
    return findings or [Finding(check, f"none; mmseg is that of {own.parent}")]


def _installed_package() -> Path | None:
    """Where the installed mmseg_cli lies, be it editable; None where it is not installed."""
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    record = distribution.read_text("direct_url.json")
    if record is not None:
        direct = json.loads(record)
        if direct.get("dir_info", {}).get("editable"):
            return Path(urllib.parse.unquote(urllib.parse.urlsplit(direct["url"]).path)).resolve() / "mmseg_cli"
    return Path(str(distribution.locate_file("mmseg_cli"))).resolve()


def thread_settings() -> list[Finding]:
    """Variables that change how libraries are loaded or how many threads they take."""
    found = [f"{name}={os.environ[name]}" for name in THREAD_SETTINGS if os.environ.get(name)]
    return [Finding("threads", f"{', '.join(found)} in the environment", "ok", "intended?")] if found else []


# ----------------------------------------------------------------------------------------------- torch and devices


def look_at_torch(*, whole: bool) -> None:
    """Run in the child process: say what torch and torchvision are like, a marked line of JSON each.

    Args:
        whole: import all of torchvision and report what goes wrong. Else only the part that breaks when it does not
            match torch is loaded, which halves the time; other trouble is left to a second process with `whole`.
    """
    try:
        import torch
    except BaseException as error:
        _say({"torch": {"error": _short(error)}})
        return
    if not whole:
        _say({"torch": _devices(torch)})
    try:
        if not whole:
            for part in ("datasets", "io", "models", "ops", "transforms", "utils"):
                sys.modules[f"torchvision.{part}"] = ModuleType(f"torchvision.{part}")
        import torchvision

        if whole:
            import torchvision.ops

        nms = torchvision.ops.nms if whole else torch.ops.torchvision.nms
        kept = nms(torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8]]), torch.tensor([0.5, 0.9]), 0.5).tolist()
        if kept != [1]:
            raise RuntimeError(f"torchvision.ops.nms keeps {kept} of two equal boxes")
        _say({"torchvision": {"version": torchvision.__version__}})
    except BaseException as error:
        if whole or MISMATCH in str(error):
            _say({"torchvision": {"error": _short(error)}})
            return
        os.execv(sys.executable, _child(whole=True))


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(value)}\n")
    sys.stdout.flush()


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _devices(torch: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "built_for": torch.version.cuda or getattr(torch.version, "hip", None),
        "available": torch.cuda.is_available(),
        "gpus": [],
    }
    for index in range(torch.cuda.device_count() if said["available"] else 0):
        gpu: dict[str, Any] = {"name": f"GPU {index}"}
        try:
            gpu["name"] = torch.cuda.get_device_name(index)
            gpu["free"], gpu["total"] = torch.cuda.mem_get_info(index)
            with torch.cuda.device(index):
                gpu["bfloat16"] = bool(torch.cuda.is_bf16_supported(including_emulation=False))
            torch.ones(4, device=f"cuda:{index}").mul(2).sum().item()
        except Exception as error:
            gpu["error"] = _short(error)
        said["gpus"].append(gpu)
    return said


def torch_and_devices(said: dict[str, Any], ended: _Ended, driver: str | None, params: Params | None) -> list[Finding]:
    """What the child process said of torch, torchvision and the devices."""
    torch = said.get("torch")
    if torch is None or "error" in torch:
        reason = torch["error"] if torch else ended.last_line()
        if ended.code is None:
            return [Finding("torch", f"could not be checked ({reason})", "warning")]
        return [Finding("torch", f"cannot be imported: {reason}", "problem", PAIR)]
    return [
        Finding("torch", f"{torch['version']}, built for {_built_for(torch)}"),
        *torchvision(said.get("torchvision"), ended),
        *processor(torch, params),
        *gpus(torch, driver=driver, params=params),
    ]


def _built_for(torch: dict[str, Any]) -> str:
    return f"CUDA {torch['built_for']}" if torch["built_for"] else "the CPU"


def torchvision(said: dict[str, Any] | None, ended: _Ended) -> list[Finding]:
    """Whether torchvision goes with torch."""
    if said is not None and "version" in said:
        return [Finding("torchvision", f"{said['version']}, its operators work")]
    reason = said["error"] if said else ended.last_line()
    if said is None and ended.code is None:
        return [Finding("torchvision", f"could not be checked ({reason})", "warning")]
    if MISMATCH in reason:
        return [Finding("torchvision", f"does not match torch: {reason}", "problem", PAIR)]
    return [Finding("torchvision", f"does not work: {reason}", "problem", PAIR)]


def processor(torch: dict[str, Any], params: Params | None) -> list[Finding]:
    """The CPU, whether more threads are asked of it than it has cores, and whether others use them."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    found = f"{runtime.processor()}, {cores} cores, {torch['threads']} threads"
    wanted = getattr(params.runtime, "threads", None) if params is not None else None
    if wanted is not None and wanted > cores:
        fix = f"set runtime.threads to {cores} or less, or null"
        return [Finding("CPU", f"{found}; runtime.threads: {wanted}", "warning", fix)]
    load = os.getloadavg()[0]
    if load >= BUSY_SHARE * cores:
        fix = "let that end first; beside other work, train with OMP_WAIT_POLICY=PASSIVE in the environment"
        return [Finding("CPU", f"{found}; busy: {load:.1f} processes ran in the last minute", "warning", fix)]
    return [Finding("CPU", found)]


def gpus(torch: dict[str, Any], *, driver: str | None, params: Params | None) -> list[Finding]:
    """The GPUs, and whether they can do what the preset asks of them."""
    check = "GPU"
    device = "auto" if params is None else params.runtime.device
    chosen = device.startswith("cuda") or (device == "auto" and torch["available"])
    findings = []
    for index, gpu in enumerate(torch["gpus"]):
        name = f"{index}: {gpu['name']}"
        if "error" in gpu:
            used = chosen and device in ("auto", "cuda", f"cuda:{index}")
            full = any(words in gpu["error"] for words in ("out of memory", "busy"))
            fix = BUSY if full else "install a torch that is built for it, or set runtime.device: cpu"
            findings.append(Finding(check, f"{name}: {gpu['error']}", "problem" if used else "warning", fix))
            continue
        free = f"{gpu['free'] / GIB:.1f} of {gpu['total'] / GIB:.1f} GiB free"
        kind = "bfloat16" if gpu["bfloat16"] else "no bfloat16"
        if chosen and gpu["free"] < LOW_GPU_SHARE * gpu["total"]:
            findings.append(Finding(check, f"{name}, {free}", "warning", BUSY))
        elif chosen and not gpu["bfloat16"] and _wants_bfloat16(params):
            fix = "set precision: float16 or float32"
            findings.append(Finding(check, f"{name}, {free}, {kind}, which the preset wants", "warning", fix))
        else:
            findings.append(Finding(check, f"{name}, {free}, {kind}"))
    if driver is not None and not torch["gpus"]:
        why = "sees none" if torch["built_for"] else "is built for the CPU alone"
        fix = PAIR if not torch["built_for"] else "update the driver, or look at CUDA_VISIBLE_DEVICES"
        findings.append(Finding(check, f"nvidia-smi names {driver}, but torch {why}", "warning", fix))
    elif driver is not None:
        findings.append(Finding(check, f"driver: {driver}"))
    names = ["cuda", *(f"cuda:{index}" for index in range(len(torch["gpus"])))] if torch["gpus"] else []
    if device.startswith("cuda") and device not in names:
        there = f"{len(torch['gpus'])} are usable" if torch["gpus"] else "none is usable"
        findings.append(Finding(check, f"runtime.device: {device}, but {there}", "problem", "set it to auto"))
    findings += _processes(torch, chosen=chosen, params=params)
    return findings or [Finding(check, "none; the CPU is used")]


def _wants_bfloat16(params: Params | None) -> bool:
    if params is None:
        return False
    return any(stage.precision == "bfloat16" for stage in _trained(params))


def _trained(params: Params) -> list[Stage]:
    """The sections of all rungs that any row of the grid trains."""
    sections = [params.section_of(variant, name) for name in LADDER for variant in params.ablate.variants]
    return [section for section in sections if section.steps]


def _processes(torch: dict[str, Any], *, chosen: bool, params: Params | None) -> list[Finding]:
    """Whether there is a device for each process that the preset asks for, and each can have its share of samples."""
    if params is None:
        return []
    from mmseg_cli.training import launch

    check, asked = "processes", params.runtime.devices
    gpus, cores = len(torch["gpus"]) if chosen else None, os.cpu_count() or 1
    try:
        count = launch.count(asked, device=params.runtime.device, gpus=gpus)
        _share(params, count)
    except MmsegError as error:
        return [Finding(check, f"{error.where}: {error.what}", "problem", error.todo)]
    if gpus is None and count > cores:  # they can share a CPU, if slowly
        fix = f"set runtime.devices to {cores} or auto"
        return [Finding(check, f"runtime.devices: {asked}, but {cores} CPU cores", "warning", fix)]
    there = f"{cores} CPU cores" if gpus is None else f"{gpus} GPUs"
    return [Finding(check, f"{count}, for {there}")] if count > 1 else []


def _share(params: Params, count: int) -> None:
    """Share the samples of every stage among `count` processes, as training does."""
    from mmseg_cli.data import sampling

    for name in LADDER:
        for variant in params.ablate.variants:
            stage = params.section_of(variant, name)
            if not stage.steps:
                continue
            try:
                sampling.at_once(
                    batch=stage.batch,
                    norm_batch=stage.norm_batch,
                    norm=params.network_of(variant)["norm"],
                    chosen=params.runtime.micro_batch,
                    world=count,
                )
            except MmsegError as error:
                raise MmsegError(f"{name}: {error.where}", error.what, error.todo) from error


# ------------------------------------------------------------------------------------------------ memory and disk


def memory(*, workers: int, proc: Path = ram.PROC, cgroups: Path = ram.CGROUPS) -> list[Finding]:
    """Memory in all and available, by the machine and by the container; shared memory where workers use it."""
    now = ram.look(proc=proc, cgroups=cgroups)
    source = " (the container's limit)" if now.contained else ""
    found = f"{now.available / GIB:.1f} of {now.total / GIB:.1f} GiB available{source}"
    low = now.available < LOW_MEMORY
    fix = "end other programs, or set a smaller batch or fewer workers" if low else ""
    findings = [Finding("memory", found, "warning" if low else "ok", fix)]
    shared = Path("/dev/shm")
    if workers and shared.is_dir():
        free = shutil.disk_usage(shared).free
        found = f"{free / GIB:.1f} GiB free in {shared}, for {workers} DataLoader workers"
        if free < LOW_SHARED:
            fix = "give the container more (`docker run --shm-size=8g`), or set runtime.workers: 0"
            findings.append(Finding("shared memory", found, "warning", fix))
        else:
            findings.append(Finding("shared memory", found))
    return findings


def places(root: Path, paths: Paths | None) -> dict[str, Path]:
    """The folders that are written to, by the names that they have on the screen."""
    if paths is None:
        return {"this folder": root}
    folders = {name: root / name for name in (".work", "runs", "data", "reports")}
    return folders | {"DVC's cache": cache_folder(root)}


def cache_folder(root: Path) -> Path:
    """Where DVC keeps what stages made; by its settings, the nearest of which counts."""
    folder = root / ".dvc" / "cache"
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dvc" / "config"
    for file in (settings, root / ".dvc" / "config", root / ".dvc" / "config.local"):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read_string(file.read_text(encoding="utf-8"))
            if chosen := parser.get("cache", "dir", fallback=None):
                folder = file.parent / Path(chosen.strip("\"'")).expanduser()
    return folder


def disk(folders: dict[str, Path]) -> list[Finding]:
    """Whether the folders can be written to, and what is free on each of their disks."""
    findings, disks = [], dict[int, list[tuple[str, Path]]]()
    for name, folder in folders.items():
        place = _existing(folder)
        reason = _refusal(place)
        if reason is not None:
            fix = f"make {place} a folder that you may write to"
            findings.append(Finding("disk", f"{name}: {place}: {reason}", "problem", fix))
            continue
        disks.setdefault(place.stat().st_dev, []).append((name, place))
    for together in disks.values():
        names, place = ", ".join(name for name, _ in together), together[0][1]
        usage = shutil.disk_usage(place)
        found = f"{names}: {usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free, writable"
        level: Level = "problem" if usage.free < NO_DISK else "warning" if usage.free < LOW_DISK else "ok"
        fix = "" if level == "ok" else f"free some on the disk of {place}, or link the folder to a larger one"
        findings.append(Finding("disk", found, level, fix))
    return findings


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there; a link that leads nowhere is there."""
    while not folder.exists() and not folder.is_symlink() and folder != folder.parent:
        folder = folder.parent
    return folder


def _refusal(place: Path) -> str | None:
    """Why no file can be made in a folder; tries it."""
    if not place.is_dir():
        return "a link that leads nowhere" if place.is_symlink() else "not a folder"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
            file.write(b"mmseg")
            file.flush()
    except OSError as error:
        return f"not writable ({error.strerror})"
    return None


def resumable(work: Path) -> list[Finding]:
    """How much the state of begun and ended runs takes."""
    if not work.is_dir():
        return []
    size, until, more = 0, time.monotonic() + QUICK_SECONDS, ""
    for folder, _, names in os.walk(work):
        for name in names:
            with contextlib.suppress(OSError):
                size += (Path(folder) / name).lstat().st_size
        if time.monotonic() > until:
            more = "more than "
            break
    fix = f"remove what you do not need: rm -r {work.name}/<preset>-<stage>/<run>-<key>" if size > GIB else ""
    return [Finding("resumable state", f"{more}{size / GIB:.2f} GiB in {work}", "ok", fix)]


def file_limits() -> list[Finding]:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    if unlimited or soft >= FEW_FILES:
        return [Finding("file limits", "no limit" if unlimited else f"{soft} open files")]
    most = FEW_FILES if hard == resource.RLIM_INFINITY else min(hard, 4 * FEW_FILES)
    return [Finding("file limits", f"{soft} open files", "warning", f"`ulimit -n {most}`")]


def file_locks(root: Path) -> list[Finding]:
    """Whether a lock that one process holds keeps another one out; some network disks only pretend it."""
    check = "file locks"
    fix = "move the project to a local disk, or mount this one with locks"
    work = root / ".work"
    place = work if work.is_dir() else root
    if _refusal(place) is not None:
        return []  # said by the disk's check
    with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as first, Path(first.name).open("rb") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return [Finding(check, f"do not work in {place} ({error.strerror})", "problem", fix)]
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return [Finding(check, "work")]
            return [Finding(check, f"do not work in {place} ({error.strerror})", "problem", fix)]
    return [Finding(check, f"keep nobody out in {place}", "problem", fix)]


# ------------------------------------------------------------------------------------------------------ DVC and git


def beside(name: str) -> str | None:
    """A program of this Python's own environment."""
    path = Path(sys.executable).with_name(name)
    return str(path) if path.is_file() else None


def programs() -> list[Finding]:
    """Whether `dvc` and `mmseg` are this environment's, also for a stage that DVC starts."""
    findings = []
    dvc_there, mmseg_there = shutil.which("dvc"), shutil.which("mmseg")
    scripts = Path(sys.executable).parent
    activate = f"`. {shlex.quote(str(scripts / 'activate'))}`" if (scripts / "activate").is_file() else ""
    on_path = activate or f"`export PATH={shlex.quote(str(scripts))}:$PATH`"
    if dvc_there is None and beside("dvc") is None:
        findings.append(Finding("dvc", "is not installed", "problem", "`pip install dvc`"))
    elif dvc_there is None:
        fix = f"{on_path}; `mmseg ablate` works without"
        findings.append(Finding("dvc", f"{scripts / 'dvc'} is not on PATH", "warning", fix))
    elif beside("dvc") is not None and not _same(dvc_there, str(scripts / "dvc")):
        findings.append(Finding("dvc", f"on PATH is {dvc_there}, not {scripts / 'dvc'}", "warning", on_path))
    if mmseg_there is None and beside("mmseg") is None:
        found = "the command is not installed, which DVC's stages call"
        findings.append(Finding("mmseg", found, "problem", "`pip install -e .` in the clone"))
    elif mmseg_there is None:
        level: Level = "problem" if dvc_there is not None else "warning"  # a stage of that dvc does not find it
        findings.append(Finding("mmseg", f"{scripts / 'mmseg'} is not on PATH", level, on_path))
    elif (why := _foreign(mmseg_there, scripts)) is not None:
        findings.append(Finding("mmseg", f"on PATH is {mmseg_there}, {why}", "problem", on_path))
    else:
        findings.append(Finding("mmseg", mmseg_there))
    return findings


def _same(first: str, second: str) -> bool:
    return Path(first).resolve() == Path(second).resolve()


def _foreign(program: str, scripts: Path) -> str | None:
    """Why a command mmseg is not this environment's; None where it is."""
    if Path(program).parent.name == "shims":  # of pyenv or asdf, which choose when they are called
        return None
    with Path(program).open("rb") as file:
        text = file.read(8192).decode(errors="replace")
    if "mmseg_cli" not in text:
        return "which is another program"
    own = Path(program).resolve().parent == scripts.resolve() or f"{scripts}/" in text
    return None if own else "which is of another environment"


def dvc(ended: _Ended | None, *, root: Path | None) -> list[Finding]:
    """Whether dvc runs, and the folder is a project of it.

    Args:
        ended: how `dvc version` ended; None without dvc, which `programs` says.
        root: the project's folder; None looks at the program alone.
    """
    if ended is None:
        return []
    check = "dvc"
    if root is not None and not any((folder / ".dvc").is_dir() for folder in (root, *root.parents)):
        return [Finding(check, f"{root} is no DVC project", "problem", "`dvc init`, or work in the clone")]
    if ended.code is None:
        return [Finding(check, f"could not be checked ({ended.last_line()})", "warning")]
    if ended.code != 0:
        reason = ended.last_line()
        fix = "mend .dvc/config" if "config" in reason else "`pip install --upgrade --force-reinstall dvc`"
        return [Finding(check, f"`dvc version` fails: {reason}", "problem", fix)]
    version = re.search(r"^DVC version: (\S+)", ended.out, re.MULTILINE)
    return [Finding(check, f"{version[1] if version else '?'}{' works' if root is None else ' works here'}")]


def pipeline(paths: Paths) -> list[Finding]:
    """Whether the preset has its dvc.yaml."""
    file = paths.pipeline
    if file.is_file():
        return []
    fix = "take it from the clone"
    if file.parent != paths.root:
        fix = f"`ln -sfn ../../dvc.yaml {shlex.quote(str(file.relative_to(paths.root)))}`"
    return [Finding("pipeline", f"there is no {file}", "problem", fix)]


def git(paths: Paths) -> list[Finding]:
    """Whether the project is a git repository that keeps dvc.lock, without which DVC does not run."""
    check = "git"
    if shutil.which("git") is None:
        return [Finding(check, "is not installed", "problem", "install git, which DVC needs")]
    inside = _run("git", "rev-parse", "--is-inside-work-tree", cwd=paths.root, seconds=10)
    if inside.code != 0:
        reason, fix = inside.last_line(), "`git init`, or work in the clone"
        if "dubious ownership" in inside.err:
            reason = "refuses the folder, which is another user's"
            fix = f"`git config --global --add safe.directory {shlex.quote(str(paths.root))}`"
        return [Finding(check, reason, "problem", fix)]
    lock = paths.pipeline.with_name("dvc.lock").relative_to(paths.root)
    ignored = _run("git", "check-ignore", "--verbose", "--no-index", str(lock), cwd=paths.root, seconds=10)
    if ignored.code == 0:
        rule = ignored.out.split("\t")[0]
        return [Finding(check, f"{lock} is ignored ({rule}), which DVC refuses", "problem", "remove that rule")]
    return [Finding(check, f"a repository, which keeps {lock}")]


def dvc_locks(folder: Path) -> list[Finding]:
    """Whether another dvc is at work, or one that was killed left its mark.

    Args:
        folder: `.dvc/tmp`.
    """
    findings, rwlock = [], folder / "rwlock"
    with contextlib.suppress(FileNotFoundError), (folder / "lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().decode(errors="replace").split()
            found = f"process {holder[0] if holder else '?'} holds the project"
            findings.append(Finding("DVC locks", found, "warning", "wait for that dvc to end"))
    try:
        held = json.loads(rwlock.read_text(encoding="utf-8"))
        owners = [*held.get("write", {}).values(), *(one for many in held.get("read", {}).values() for one in many)]
        holders = {int(owner["pid"]): str(owner["cmd"]) for owner in owners}
    except FileNotFoundError:
        holders = {}
    except (ValueError, KeyError, TypeError, AttributeError):
        fix = f"`rm {shlex.quote(str(rwlock))}`"
        return [*findings, Finding("DVC locks", f"{rwlock} is damaged, which stops DVC", "problem", fix)]
    for number, command in holders.items():
        if not _lives(number):
            continue
        todo = "wait for it to end"
        if not _is_dvc(number):
            todo = f"another program has that number now: `rm {shlex.quote(str(rwlock))}`"
        findings.append(Finding("DVC locks", f"held by process {number} ({command})", "warning", todo))
    return findings or [Finding("DVC locks", "free")]


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _is_dvc(number: int) -> bool:
    """Whether a process may be dvc, as far as the system tells."""
    try:
        return b"dvc" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return True


# ---------------------------------------------------------------------------------------------------------- MLflow


def database(check: str, path: Path) -> list[Finding]:
    """Whether a database of MLflow is whole and can be written."""
    todo = f"move {path} away, a new one is made; or set tracking.enabled: false"
    if not path.exists():
        reason = _refusal(_existing(path.parent))
        if reason is not None:
            return [Finding(check, f"{path.parent}: {reason}", "warning", "set tracking.uri to another place")]
        return [Finding(check, f"{path}, made by the first run")]
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return [Finding(check, f"{path} is not a file", "warning", todo)]
        with path.open("r+b"):
            pass
    except OSError as error:
        return [Finding(check, f"{path} cannot be written ({error.strerror})", "warning", "mend its permissions")]
    until = time.monotonic() + QUICK_SECONDS
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True, timeout=1)
        ) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.set_progress_handler(lambda: time.monotonic() > until, 10_000)
            answer = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return [Finding(check, f"{path} opens, and is too large to be read whole here")]
        return [Finding(check, f"{path}: {error}", "warning", "see whether another program holds it")]
    except sqlite3.DatabaseError as error:
        return [Finding(check, f"{path}: {error}", "warning", todo)]
    if answer != "ok":
        return [Finding(check, f"{path} is damaged: {answer}", "warning", todo)]
    return [Finding(check, f"{path} is whole")]


def server(check: str, address: str) -> list[Finding]:
    """Whether a tracking server answers at all; what it says without a login is its own affair.

    Args:
        address: without user and password.
    """
    begun = time.monotonic()

    def ask() -> int:
        try:
            with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=SERVER_SECONDS) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as answer:
            return answer.code

    todo = "check tracking.uri and the network; training goes on without the mirror"
    try:
        code = _later(ask).result(timeout=SERVER_SECONDS)
    except TimeoutError:
        return [Finding(check, f"{address}: no answer within {SERVER_SECONDS:.0f} s", "warning", todo)]
    except Exception as error:
        reason = getattr(error, "reason", error)
        return [Finding(check, f"{address}: {' '.join(str(reason).split())[:200]}", "warning", todo)]
    if code >= 500:
        return [Finding(check, f"{address} answers with code {code}", "warning", todo)]
    return [Finding(check, f"{address} answers in {time.monotonic() - begun:.1f} s")]


# -------------------------------------------------------------------------------------------------------- datasets


def datasets(paths: Paths, params: Params) -> list[Finding]:
    """Whether the data of every dataset is prepared, or is there to be prepared."""
    used = {params.evaluate.dataset, *(stage.dataset for stage in _trained(params))}
    return [_dataset(name, paths=paths, params=params, used=name in used) for name in params.datasets]


def _dataset(name: str, *, paths: Paths, params: Params, used: bool) -> Finding:
    from mmseg_cli.data.store import open_store

    check, section, store = f"data {name}", params.datasets[name], paths.store(name)
    stale = ""
    try:
        open_store(store, parameters=section.content())
        return Finding(check, f"prepared in {store}")
    except MmsegError as error:
        if store.exists():
            stale = f"; the store {error.what}" if error.what != "missing" else f"; {store} holds no manifest"
    from mmseg_cli.data import prepare  # takes a second to import

    command = f"mmseg prepare {name} --preset {paths.preset}"
    if section.source == "synthetic":
        return Finding(check, f"generated when it is prepared{stale}", "ok", "`dvc repro`")
    variable = prepare.root_variable(name)
    try:
        root = prepare.find_root(name, None, layout=section.layout)
        return Finding(check, f"not prepared yet, its root is {root}{stale}", "ok", "`dvc repro`")
    except MmsegError as error:
        unknown = not os.environ.get(variable)
        what = f"not prepared, and {variable} is not set" if unknown else f"{error.where}: {error.what}"
        todo = f"`export {variable}=DIR`, or `{command} --root DIR`"
        todo = todo if unknown else f"{error.todo}; {todo}"
    if used:
        return Finding(check, what + stale, "problem", todo)
    todo = f"take it out of `datasets` (its stage: a dataset you have), or {todo}"
    return Finding(check, f"{what}{stale}; no stage trains on it, but `dvc repro` prepares it", "warning", todo)
