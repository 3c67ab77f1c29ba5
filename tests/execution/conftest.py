"""A project whose stages are a line of shell, with the real DVC: what becomes of stages, without training."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmseg_cli.params import Params, load
from mmseg_cli.paths import Paths

REPOSITORY = Path(__file__).parents[2]


class ShellProject:
    """A project folder with DVC stages of ours: name -> (command, names of the stages before)."""

    def __init__(self, root: Path, stages: dict[str, tuple[str, list[str]]]) -> None:
        root.mkdir(parents=True)
        self.root, self.paths = root, Paths(root, "demo")
        shutil.copyfile(REPOSITORY / "params.yaml", root / "params.yaml")
        (root / "source.txt").write_text("1")
        written = {
            name: {
                "cmd": f"{command} && touch {name}.out",
                "deps": ["source.txt", *[f"{other}.out" for other in before]],
                "outs": [{f"{name}.out": {"cache": False}}],
            }
            for name, (command, before) in stages.items()
        }
        (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": written}, sort_keys=False))
        self.git("init", "--quiet")
        self.dvc("init", "--quiet")

    @property
    def params(self) -> Params:
        return load(self.root / "params.yaml")

    def git(self, *words: str) -> str:
        return subprocess.run(["git", *words], cwd=self.root, capture_output=True, text=True, check=True).stdout

    def dvc(self, *words: str) -> str:
        dvc = Path(sys.executable).with_name("dvc")
        return subprocess.run([dvc, *words], cwd=self.root, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def shell_project(tmp_path, monkeypatch):
    """`shell_project({"one": ("true", [])})`: a project of such stages, which is the current folder."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc-site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def make(stages):
        project = ShellProject(tmp_path / "project", stages)
        monkeypatch.chdir(project.root)
        return project

    return make


def alive(text: str) -> list[int]:
    """The processes with `text` in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text in words and state != "Z":
                found.append(int(folder.name))
    return found
