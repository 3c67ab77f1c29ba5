from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mmseg_cli import doctor, params, paths
from mmseg_cli.data.store import FORMAT
from mmseg_cli.doctor import GIB, Asked, Finding, _Ended, _later

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
CPU = {"version": "2.14.1", "threads": 2, "built_for": None, "available": False, "gpus": []}
GPU = {"name": "H100", "free": 70 * GIB, "total": 80 * GIB, "bfloat16": True}
WELL = ({"torch": CPU, "torchvision": {"version": "0.29.1"}}, _Ended(0, "", ""))


@pytest.fixture(scope="module", autouse=True)
def seen():
    """Every finding that a test of this file made; each problem says what to do."""
    findings: list[Finding] = []
    make = Finding.__init__

    def note(self, *args, **kwargs):
        make(self, *args, **kwargs)
        findings.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finding, "__init__", note)
        yield findings
    assert all(finding.fix for finding in findings if finding.level == "problem")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """No settings of git and dvc from outside, and this environment's programs on PATH."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # other tests are at work
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(SCRIPTS), os.environ["PATH"]]))
    for name in (*doctor.THREAD_SETTINGS, "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def whole(home, project, raw, monkeypatch):
    """A project for git and dvc, whose datasets' roots are known."""
    subprocess.run(["git", "init", "--quiet"], check=True)
    shutil.copytree(REPOSITORY / ".dvc", project / ".dvc", ignore=lambda *_: ["cache", "tmp"])
    shutil.copy(REPOSITORY / "dvc.yaml", project)
    for name in ("imagenet", "mapillary", "cityscapes"):
        monkeypatch.setenv(f"MMSEG_{name.upper()}_ROOT", str(raw[name]))
    return project


@pytest.fixture
def quick(monkeypatch):
    """torch and dvc are taken to be well, which saves seconds."""
    monkeypatch.setattr(doctor, "ask_torch", lambda: WELL)
    monkeypatch.setattr(doctor, "ask_dvc", lambda root: _Ended(0, "DVC version: 3.67.1 (pip)", ""))


def load() -> tuple[paths.Paths, params.Params]:
    return paths.find(preset="demo"), params.load(Path("params.yaml"))


def problems(findings) -> list[Finding]:
    return [finding for finding in findings if finding.level == "problem"]


def warnings(findings) -> list[Finding]:
    return [finding for finding in findings if finding.level == "warning"]


def only(findings) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


# ------------------------------------------------------------------------------------------------- the command


def files(folder: Path) -> dict[str, bytes]:
    """What lies in the folder, what dvc itself keeps aside."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.parts[:2] != (".dvc", "tmp")}


def test_a_healthy_project_is_well_and_stays_as_it_was(whole, mmseg):
    """For real: torch, torchvision and dvc in processes of their own."""
    before = files(whole)
    done = mmseg("doctor", "--json", whole.parent / "report.json")
    report = json.loads((whole.parent / "report.json").read_text())
    assert (done.code, done.err, report["problems"]) == (0, "", 0), report
    rows = {row["check"]: row for row in report["findings"]}
    for check in ("torch", "torchvision", "CPU", "dvc", "git", "DVC locks", "mmseg", "disk", "file locks"):
        assert rows[check]["level"] == "ok", rows[check]
        assert check in done.out
    for name in ("imagenet", "mapillary", "cityscapes"):
        assert rows[f"data {name}"]["found"].startswith("not prepared yet, its root is ")
    assert "next   dvc repro" in done.out
    assert files(whole) == before


def test_neither_torch_nor_mlflow_nor_dvc_is_imported_here(whole, mmseg_process, tmp_path):
    """A torch that kills its process is a finding."""
    (tmp_path / "poison").mkdir()
    for name in ("mlflow", "dvc", "torchvision"):
        (tmp_path / "poison" / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    (tmp_path / "poison" / "torch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    done = mmseg_process("doctor", "--json", "-", env={"PYTHONPATH": str(tmp_path / "poison")})
    report = json.loads(done.out)
    assert done.code == 2
    assert {row["check"] for row in report["findings"] if row["level"] == "problem"} == {"torch", "dvc"}
    assert "Traceback" not in done.err


def says(out, text):
    """Whether a cell of the table says this, on however many lines: long paths have cells wrapped."""
    rows = [line.split("│") for line in out.splitlines()]
    widest = max(map(len, rows))
    columns = zip(*(row for row in rows if len(row) == widest), strict=True)
    return any(text in " ".join(" ".join(column).split()) for column in columns)


def test_a_broken_preset_is_a_problem(whole, quick, mmseg):
    Path("params.yaml").write_text("preset: [")
    done = mmseg("doctor")
    assert (done.code, done.err) == (2, "")
    assert says(done.out, "not valid YAML, line 1")
    assert "a repository, which keeps dvc.lock" in done.out  # the rest is looked at all the same
    assert "next   mmseg doctor" in done.out


def test_an_unknown_preset_is_a_problem(whole, quick, mmseg):
    done = mmseg("doctor", "--preset", "papre")
    assert done.code == 2
    assert "there is no 'papre'" in done.out


def test_outside_a_project_only_the_machine_is_looked_at(home, quick, mmseg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    done = mmseg("doctor")
    assert done.code == 0
    assert says(done.out, "only the machine is looked at")
    assert "torchvision" in done.out
    assert "MLflow" not in done.out
    assert mmseg("doctor", "--preset", "demo").code == 2
    assert files(tmp_path) == before


def test_a_place_for_the_json_that_is_none_is_told_first(whole, mmseg):
    done = mmseg("doctor", "--json", ".")
    assert done.code == 2
    assert "--json: . is a folder" in done.one_error()


def test_the_first_command_that_mends_a_problem_comes_next(whole, quick, mmseg, monkeypatch):
    monkeypatch.delenv("MMSEG_CITYSCAPES_ROOT")
    done = mmseg("doctor")
    assert done.code == 2
    assert "1 problem, " in done.out
    assert "next   export MMSEG_CITYSCAPES_ROOT=DIR" in done.out


def test_a_check_that_raises_is_a_warning():
    def check() -> list[Finding]:
        raise ValueError("not\nso")

    assert doctor.guarded("x", check) == [Finding("x", "could not be checked (ValueError: not so)", "warning")]


def test_no_check_hides_another(whole, quick, monkeypatch):
    for name in ("python", "dependencies", "conflicts", "memory", "file_limits", "disk", "git", "datasets", "dvc"):
        monkeypatch.setattr(doctor, name, lambda *_, **__: 1 / 0)
    broken = _later(lambda: 1 / 0)
    asked = Asked(torch=broken, driver=broken, dvc=broken)
    where, read = load()
    found = doctor.examine(asked, root=whole, paths=where, params=read)
    assert len([finding for finding in found if "ZeroDivisionError" in finding.found]) == 10
    assert not problems(found)


# ------------------------------------------------------------------------------------------ Python and packages


def test_an_old_python():
    assert "3.11" in only(doctor.python((3, 10, 4))).fix
    assert only(doctor.python((3, 11, 0))).level == "ok"


def _distribution(folder: Path, name: str, version: str, **files: str) -> None:
    """What an installer leaves of a package; files by name, "__" standing for a dot."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, text in files.items():
        (info / file.replace("__", ".")).write_text(textwrap.dedent(text))


def test_missing_and_old_packages(tmp_path, monkeypatch):
    _distribution(tmp_path / "site", "mmseg-old", "1.4")
    needs = ["mmseg-old>=2,<3", "mmseg-gone", 'mmseg-extra; extra == "dev"', "pillow"]
    monkeypatch.setattr(doctor, "requirements", lambda: needs)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    missing, old = problems(doctor.dependencies())
    assert (missing.found, missing.fix) == ("missing: mmseg-gone", "`pip install mmseg-gone`")
    assert "mmseg-old 1.4" in old.found
    assert old.fix == "`pip install --upgrade 'mmseg-old<3,>=2'`"


def test_what_is_needed_is_known():
    assert {"torch>=2.10", "typer>=0.16"} <= set(doctor.requirements())
    assert not problems(doctor.dependencies())


def test_another_distribution_with_our_name(tmp_path, monkeypatch):
    site = tmp_path / "site"
    entry = "[console_scripts]\nmmseg = mmseg.main:main\n"
    _distribution(site, "other-seg", "1.0", entry_points__txt=entry, top_level__txt="x\n")
    _distribution(site, "mmsegmentation", "1.2.2", top_level__txt="mmseg\n")
    (site / "mmseg").mkdir()
    (site / "mmseg" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(site))
    command, package = doctor.conflicts(tmp_path)
    assert (command.level, package.level) == ("problem", "warning")
    assert "other-seg also installs a command mmseg" in command.found
    assert "mmsegmentation" in package.found


def test_another_copy_of_mmseg(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert only(doctor.conflicts(tmp_path)).level == "ok"
    (tmp_path / "mmseg_cli").mkdir()
    assert "pip install -e ." in only(doctor.conflicts(tmp_path)).fix
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert [finding.level for finding in doctor.conflicts(tmp_path)] == ["warning", "warning"]


def test_settings_of_threads_are_told(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "OMP_NUM_THREADS=1" in only(doctor.thread_settings()).found


# ------------------------------------------------------------------------------------------- torch and devices


def _torch(folder: Path, monkeypatch) -> None:
    """A torch that costs no seconds to import, found first."""
    folder.mkdir()
    (folder / "torch.py").write_text(
        textwrap.dedent("""
            __version__ = "2.14.1"
            def get_num_threads(): return 2
            class cuda:
                is_available = staticmethod(lambda: False)
            class version:
                cuda = None
            def tensor(values): return values
            ops = None
        """)
    )
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("place", ["at import", "when called"])
def test_a_torchvision_that_does_not_match_torch(tmp_path, monkeypatch, place):
    error = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    _torch(tmp_path / "site", monkeypatch)
    package = tmp_path / "site" / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(error if place == "at import" else "__version__ = '0.28'\n")
    (package / "ops.py").write_text(f"def nms(boxes, scores, threshold):\n    {error}")
    said, ended = doctor.ask_torch()
    problem = only(problems(doctor.torch_and_devices(said, ended, None, None)))
    assert problem.check == "torchvision"
    assert "does not match torch" in problem.found
    assert "pip install --upgrade --force-reinstall torch torchvision" in problem.fix


def test_the_known_mismatch_of_the_real_ones(tmp_path, monkeypatch):
    """torchvision without its library of operators, which is what a torch of another version makes of it."""
    real = Path(str(importlib.metadata.distribution("torchvision").locate_file("torchvision")))
    (tmp_path / "torchvision").mkdir()
    for path in real.iterdir():
        if not path.name.startswith("_C"):
            (tmp_path / "torchvision" / path.name).symlink_to(path)
    monkeypatch.syspath_prepend(str(tmp_path))
    said, ended = doctor.ask_torch()
    problem = only(problems(doctor.torch_and_devices(said, ended, None, None)))
    assert "does not match torch" in problem.found
    assert "operator torchvision::nms does not exist" in problem.found


@pytest.mark.parametrize(
    ("code", "level"), [("raise ImportError('libcudart')", "problem"), ("import time; time.sleep(60)", "warning")]
)
def test_a_torch_that_cannot_be_imported_or_hangs(tmp_path, monkeypatch, code, level):
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = doctor.ask_torch(seconds=60 if level == "problem" else 1)
    assert only(doctor.torch_and_devices(*answer, None, None)).level == level


def test_gpus_and_what_is_asked_of_them(project, change_params):
    def found(**changes):
        gpus = changes.pop("gpus", [GPU])
        torch = {**CPU, "built_for": "13.0", "available": bool(gpus), "gpus": gpus, **changes}
        return doctor.gpus(torch, driver="H100, 570.1", params=load()[1])

    assert not problems(found())
    assert "70.0 of 80.0 GiB free, bfloat16" in found()[0].found
    assert found(gpus=[], built_for=None)[0].fix == doctor.PAIR
    assert "CUDA_VISIBLE_DEVICES" in only(warnings(found(gpus=[]))).fix
    broken = {**GPU, "error": "AcceleratorError: no kernel image is available"}
    change_params(lambda p: p["runtime"].update(device="cpu"))
    assert only(warnings(found(gpus=[broken])))
    change_params(lambda p: p["runtime"].update(device="auto"))
    assert only(problems(found(gpus=[broken])))
    change_params(lambda p: p["runtime"].update(device="cuda"))
    assert "none is usable" in only(problems(found(gpus=[]))).found


def test_a_gpu_that_others_use(project, change_params):
    change_params(lambda p: p["runtime"].update(device="auto"))
    torch = {**CPU, "available": True, "gpus": [{**GPU, "free": 2**30}]}
    assert "nvidia-smi" in only(warnings(doctor.gpus(torch, driver=None, params=load()[1]))).fix
    torch["gpus"] = [{**GPU, "error": "OutOfMemoryError: CUDA out of memory"}]
    assert "nvidia-smi" in only(problems(doctor.gpus(torch, driver=None, params=load()[1]))).fix


@pytest.mark.parametrize(
    ("runtime", "gpus", "found", "fix"),
    [
        (
            {"devices": "auto"},
            3,
            "pretrain_imagenet: norm_batch: 2 samples cannot be shared equally by 3",
            "use 1, 2 devices",
        ),
        (
            {"devices": 3},
            3,
            "pretrain_imagenet: norm_batch: 2 samples cannot be shared equally by 3",
            "use 1, 2 devices",
        ),
        ({"device": "cuda:1", "devices": 2}, 2, "runtime.device: cuda:1 is one device", "auto, cuda or cpu"),
        ({"device": "cuda:7"}, 2, "runtime.device: cuda:7, but 2 are usable", "auto"),
        ({"device": "cuda:x"}, 2, "runtime.device: cuda:x, but 2 are usable", "auto"),
        ({"micro_batch": 3}, 1, "pretrain_imagenet: runtime.micro_batch: 3 is not the", "set it to null"),
    ],
)
def test_what_training_will_refuse_is_a_problem(project, change_params, runtime, gpus, found, fix):
    change_params(lambda p: p["runtime"].update({"device": "auto", "devices": 1} | runtime))
    torch = {**CPU, "built_for": "13.0", "available": True, "gpus": [GPU] * gpus}
    problem = only(problems(doctor.gpus(torch, driver=None, params=load()[1])))
    assert found in problem.found
    assert fix in problem.fix


def test_more_processes_than_devices(project, change_params, monkeypatch):
    change_params(lambda p: p["runtime"].update(devices=4, device="auto"))
    torch = {**CPU, "built_for": "13.0", "available": True, "gpus": [GPU, GPU]}
    problem = only(problems(doctor.gpus(torch, driver=None, params=load()[1])))
    assert "use 2 or fewer" in problem.fix
    change_params(lambda p: p["runtime"].update(devices=2, device="cpu"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert "CPU cores" in only(warnings(doctor.gpus(CPU, driver=None, params=load()[1]))).found  # slow, but it works


def test_a_gpu_without_the_preset_s_precision(project, change_params):
    change_params(lambda p: p["train"].update(precision="bfloat16"))
    change_params(lambda p: p["runtime"].update(device="auto"))
    torch = {**CPU, "available": True, "gpus": [{**GPU, "bfloat16": False}]}
    assert "no bfloat16" in only(warnings(doctor.gpus(torch, driver=None, params=load()[1]))).found


def test_more_threads_than_cores(project, change_params):
    change_params(lambda p: p["runtime"].update(threads=10_000))
    assert "runtime.threads" in only(warnings(doctor.processor(CPU, load()[1]))).fix


# ------------------------------------------------------------------------------------------------ memory and disk


def _machine(folder: Path, groups: str, files: dict[str, str]) -> dict[str, Path]:
    files = {
        "proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {32 * 2**20} kB\n",
        "proc/self/cgroup": groups,
        **files,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {"proc": folder / "proc", "cgroups": folder / "cgroups"}


@pytest.mark.parametrize(
    ("groups", "files", "found"),
    [
        ("0::/\n", {}, "32.0 of 64.0 GiB available"),
        (
            "0::/box/job\n",
            {"box/memory.max": f"{8 * GIB}\n", "box/memory.current": f"{6 * GIB}\n"}
            | {"box/memory.stat": f"anon 5\ninactive_file {GIB}\n", "box/job/memory.max": "max\n"}
            | {"box/job/memory.current": "5\n"},
            "3.0 of 8.0 GiB available (the container's limit)",
        ),
        (
            "4:cpu,memory:/inner\n0::/\n",
            {"memory/memory.limit_in_bytes": f"{16 * GIB}", "memory/memory.usage_in_bytes": f"{GIB}"},
            "15.0 of 16.0 GiB available (the container's limit)",
        ),
        (
            "4:memory:/\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"},
            "32.0 of 64.0 GiB available",
        ),
    ],
    ids=["none", "v2", "v1", "v1 without limit"],
)
def test_memory_of_machine_and_container(tmp_path, groups, files, found):
    where = _machine(tmp_path, groups, {f"cgroups/{name}": text for name, text in files.items()})
    finding = only(doctor.memory(workers=0, **where))
    assert finding.found == found
    assert finding.level == ("warning" if found.startswith("3.0") else "ok")


def test_little_shared_memory_for_workers(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=64 * 2**20))
    finding = only([row for row in doctor.memory(workers=2) if row.check == "shared memory"])
    assert finding.level == "warning"
    assert "--shm-size" in finding.fix


@pytest.mark.parametrize(("free", "level"), [(50, "ok"), (3, "warning"), (0.5, "problem")])
def test_little_disk(project, monkeypatch, free, level):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(free * GIB)))
    finding = only(doctor.disk(doctor.places(project, load()[0])))
    assert finding.level == level
    assert ".work, runs, data, reports, DVC's cache" in finding.found


def test_folders_that_cannot_be_written(project):
    Path("runs").write_text("a file in its place")
    Path("data").symlink_to("/nowhere/at/all")
    found = problems(doctor.disk(doctor.places(project, load()[0])))
    assert [row.found.split(": ")[-1] for row in found] == ["not a folder", "a link that leads nowhere"]


def test_the_cache_is_looked_for_where_dvc_puts_it(home, project, tmp_path):
    config = project / ".dvc" / "config"
    config.parent.mkdir()
    assert doctor.cache_folder(project) == project / ".dvc" / "cache"
    config.write_text(
        "[core]\n    analytics = false\n[cache]\n    dir = ../../elsewhere\n['remote \"x\"']\n    url = /y\n"
    )
    assert doctor.cache_folder(project).resolve() == tmp_path / "elsewhere"
    (project / ".dvc" / "config.local").write_text("[cache]\n    type = symlink\n    dir = /big/cache\n")
    assert doctor.cache_folder(project) == Path("/big/cache")


def test_what_resumable_state_takes(tmp_path, monkeypatch):
    assert doctor.resumable(tmp_path / ".work") == []
    state = tmp_path / ".work" / "demo-train" / "mbconv-s0-abc" / "step"
    state.parent.mkdir(parents=True)
    with state.open("wb") as file:
        file.truncate(3 * GIB)
    finding = only(doctor.resumable(tmp_path / ".work"))
    assert "3.00 GiB" in finding.found
    assert "rm -r .work/<preset>-<stage>/<run>-<key>" in finding.fix


def test_few_open_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        finding = only(doctor.file_limits())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (finding.level, finding.found) == ("warning", "512 open files")
    assert "ulimit -n" in finding.fix


@pytest.mark.parametrize("kind", ["works", "refused", "pretended"])
def test_file_locks(tmp_path, monkeypatch, kind):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if kind != "works":
        monkeypatch.setattr(fcntl, "flock", refuse if kind == "refused" else lambda *_: None)
    finding = only(doctor.file_locks(tmp_path))
    assert finding.level == ("ok" if kind == "works" else "problem")
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------- DVC and git


def _program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_machine_that_others_use(home, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1e4, 0, 0))
    found = only(warnings(doctor.processor(CPU, None)))
    assert "busy: 10000.0 processes" in found.found and "OMP_WAIT_POLICY=PASSIVE" in found.fix
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9, 9))
    assert not warnings(doctor.processor(CPU, None))


def test_programs_of_this_environment(home):
    assert only(doctor.programs()).level == "ok"


def test_an_environment_that_is_not_activated(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [row.level for row in doctor.programs()] == ["warning", "warning"]  # `mmseg ablate` finds both
    _program(tmp_path, "dvc", "#!/bin/sh\n")
    assert [row.level for row in doctor.programs()] == ["warning", "problem"]  # that dvc finds no mmseg


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#!/other/bin/python\nfrom mmseg_cli.cli.app import main\n", "another environment"),
        ("#!/other/bin/python\nfrom mmseg.main import main\n", "another program"),
    ],
)
def test_another_mmseg_comes_first_on_path(home, tmp_path, monkeypatch, text, found):
    _program(tmp_path / "other", "mmseg", text)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "other"), os.environ["PATH"]]))
    problem = only(problems(doctor.programs()))
    assert found in problem.found


def test_programs_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert [row.check for row in problems(doctor.programs())] == ["dvc", "mmseg"]


def test_settings_of_dvc_that_cannot_be_read(whole):
    Path(".dvc/config").write_text("[core\n")
    problem = only(doctor.dvc(doctor.ask_dvc(whole), root=whole))
    assert problem.level == "problem"
    assert problem.fix == "mend .dvc/config"


def test_a_project_without_dvc(whole):
    shutil.rmtree(".dvc")
    assert "no DVC project" in only(problems(doctor.dvc(_Ended(0, "", ""), root=whole))).found


def test_a_project_without_git(whole):
    assert only(doctor.git(load()[0])).level == "ok"
    shutil.rmtree(".git")
    assert "git init" in only(problems(doctor.git(load()[0]))).fix


def test_without_the_program_git(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(problems(doctor.git(load()[0]))).found == "is not installed"


def test_an_ignored_lock(whole):
    Path(".gitignore").write_text("*.tmp\ndvc.lock\n")
    problem = only(problems(doctor.git(load()[0])))
    assert "dvc.lock is ignored (.gitignore:2:dvc.lock)" in problem.found


def test_locks_of_dvc(tmp_path):
    assert only(doctor.dvc_locks(tmp_path)).level == "ok"
    rwlock = tmp_path / "rwlock"
    owner = {"pid": os.getpid(), "cmd": "dvc repro"}
    rwlock.write_text(json.dumps({"write": {"/a": owner}, "read": {"/b": [owner, owner]}}))
    assert f"process {os.getpid()} (dvc repro)" in only(doctor.dvc_locks(tmp_path)).found
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    rwlock.write_text(json.dumps({"read": {"/b": [{"pid": gone.pid, "cmd": "dvc repro"}]}}))
    assert only(doctor.dvc_locks(tmp_path)).level == "ok"  # which dvc removes by itself
    with (tmp_path / "lock").open("w") as held:
        held.write("   4711\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert only(warnings(doctor.dvc_locks(tmp_path))).found == "process 4711 holds the project"
    rwlock.write_text("{")
    assert "rm " in only(problems(doctor.dvc_locks(tmp_path))).fix


# ---------------------------------------------------------------------------------------------------------- MLflow


@pytest.fixture
def mirror(project, change_params):
    """What is found of the MLflow mirror at an address."""

    def look(uri: str | None) -> Finding:
        change_params(lambda p: p["tracking"].update(enabled=True, uri=uri))
        return only(doctor.ask_tracking(*load()))

    return look


def test_the_mirror_switched_off_and_not_made_yet(project, mirror):
    assert "switched off" in only(doctor.ask_tracking(*load())).found
    assert mirror(None).level == "ok"
    assert mirror("postgresql://me:secret@host/db").level == "ok"
    assert "secret" not in mirror("postgresql://me:secret@host/db").found
    assert mirror("mlruns").level == "warning"
    assert not Path("mlflow.db").exists()


def test_databases_of_the_mirror(project, mirror):
    with sqlite3.connect("mlflow.db") as connection:
        connection.execute("CREATE TABLE a (b)")
        connection.executemany("INSERT INTO a VALUES (?)", [(f"{number:0200}",) for number in range(2000)])
    connection.close()
    assert mirror(None).found.endswith("is whole")
    content = bytearray(Path("mlflow.db").read_bytes())
    content[8192:12288] = b"\xff" * 4096
    Path("half.db").write_bytes(content)
    assert mirror("sqlite:///half.db").level == "warning"
    Path("none.db").write_text("no database at all, but text of some length" * 50)
    assert "not a database" in mirror(f"sqlite:///{project}/none.db").found
    Path("folder.db").mkdir()
    assert mirror("sqlite:///folder.db").level == "warning"
    assert mirror("sqlite:////proc/none/mlflow.db").level == "warning"


def test_servers_of_the_mirror(mirror, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        code = 404

        def do_GET(self):
            self.send_response(self.code)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://me:secret@127.0.0.1:{http.server_port}"
        well = mirror(address)
        Handler.code = 502
        ill = mirror(address)
        http.shutdown()
    assert (well.level, ill.level) == ("ok", "warning")
    gone = mirror(address)
    assert gone.level == "warning"
    assert "refused" in gone.found
    assert "secret" not in well.found + ill.found + gone.found


def test_a_server_that_hangs(mirror, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(doctor, "SERVER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        finding = mirror(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert finding.level == "warning"
    assert time.monotonic() - begun < 5


# -------------------------------------------------------------------------------------------------------- datasets


def _data(name: str = "cityscapes") -> Finding:
    return only([row for row in doctor.datasets(*load()) if row.check == f"data {name}"])


def test_roots_of_datasets(whole, raw, change_params, monkeypatch, tmp_path):
    assert not problems(doctor.datasets(*load()))
    assert "`dvc repro`" in _data().fix
    monkeypatch.setenv("MMSEG_CITYSCAPES_ROOT", str(raw["imagenet"]))
    assert "looks like imagenet" in only(problems([_data()])).found
    monkeypatch.setenv("MMSEG_CITYSCAPES_ROOT", str(tmp_path / "gone"))
    assert "no such folder" in only(problems([_data()])).found
    monkeypatch.delenv("MMSEG_CITYSCAPES_ROOT")
    assert "MMSEG_CITYSCAPES_ROOT is not set" in only(problems([_data()])).found
    monkeypatch.delenv("MMSEG_IMAGENET_ROOT")
    change_params(lambda p: p["pretrain_imagenet"].update(steps=0))
    assert _data("imagenet").level == "warning"  # no stage needs it, but DVC prepares it
    generate = {"train": 1, "val": 1, "height": 64}
    change_params(lambda p: p["datasets"].update(cityscapes={"source": "synthetic", "generate": generate}))
    assert _data().level == "ok"


def test_a_prepared_store(whole, monkeypatch):
    manifest = Path("data/demo/cityscapes/manifest.json")
    manifest.parent.mkdir(parents=True)
    content = {"format": FORMAT, "task": "segmentation", "label_space": {}, "splits": {}}
    section = load()[1].datasets["cityscapes"]
    monkeypatch.delenv("MMSEG_CITYSCAPES_ROOT")
    manifest.write_text(json.dumps({**content, "parameters": section.content()}))
    assert _data().found == f"prepared in {manifest.parent.resolve()}"
    manifest.write_text(json.dumps({**content, "parameters": {**section.content(), "long_side": 1}}))
    assert "made by other parameters (long_side differ)" in only(problems([_data()])).found


def test_a_preset_without_its_pipeline(project):
    assert "take it" in only(problems(doctor.pipeline(load()[0]))).fix
    fix = only(problems(doctor.pipeline(paths.Paths(root=project, preset="mine")))).fix
    assert fix == "`ln -sfn ../../dvc.yaml pipelines/mine/dvc.yaml`"


def test_stores_that_are_of_no_use(whole, monkeypatch):
    manifest = Path("data/demo/cityscapes/manifest.json")
    manifest.parent.mkdir(parents=True)
    assert (_data().level, "holds no manifest" in _data().found) == ("ok", True)
    manifest.write_text("{")
    assert "cannot be read" in _data().found
    monkeypatch.delenv("MMSEG_CITYSCAPES_ROOT")
    assert only(problems([_data()]))
