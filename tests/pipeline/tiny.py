"""A tiny project with the real pipeline, code of its own and generated data, for tests that call DVC for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
IMPORTED = Path(".work", "imported")  # of a project that notes them: a file for each stage

# Python runs a module of this name, if it finds one, in every process.
SITECUSTOMIZE = f"""
import atexit, json, os, sys

def note():
    if os.path.basename(sys.argv[0]) == "mmseg" and "DVC_STAGE" in os.environ:
        os.makedirs("{IMPORTED}", exist_ok=True)
        with open(os.path.join("{IMPORTED}", os.environ["DVC_STAGE"]), "w") as file:
            json.dump({{name: one.__file__ for name, one in sys.modules.items() if name.startswith("mmseg_cli")}}, file)

atexit.register(note)
"""


def tiny_params() -> dict[str, Any]:
    """The demo's parameters, with everything as small as it can be."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["datasets"]["imagenet"] |= {
        "generate": {"train": 4, "val": 2, "height": 32, "seed": 1, "classes": 3},
        "short_side": None,
    }
    params["datasets"]["mapillary"] |= {"generate": {"train": 3, "val": 2, "height": 48, "seed": 2}}
    params["datasets"]["cityscapes"] |= {"generate": {"train": 4, "val": 2, "height": 48, "seed": 3}}
    params["network"] |= {"width": 4, "levels": 2}
    params["pretrain_imagenet"] |= {"steps": 2, "batch": 4, "norm_batch": 4, "crop": [32, 32]}
    params["pretrain_mapillary"] |= {"steps": 2, "batch": 2, "norm_batch": 2, "crop": [32, 32]}
    params["train"] |= {"steps": 3, "batch": 2, "norm_batch": 2, "crop": [32, 64], "learning_rate": 0.003}
    params["evaluate"] |= {"examples": 1}
    params["cost"] |= {"batch": 2, "crop": [32, 64], "repeats": 2, "warmup": 1}
    params["ablate"] |= {"variants": ["residual", "mbconv"], "seeds": [0]}
    params["variants"] = {"residual": {"block": "residual"}, "mbconv": {"block": "mbconv"}}
    return params


class TinyProject:
    """A project folder; `environment` makes its own copy of the package the one that runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        shutil.copytree(REPOSITORY / "mmseg_cli", root / "mmseg_cli", ignore=shutil.ignore_patterns("__pycache__"))
        # The folder that the stages depend on, without the blocks that somebody may have there.
        (root / "blocks").mkdir()
        shutil.copy(REPOSITORY / "blocks" / "README.md", root / "blocks")
        shutil.copy(REPOSITORY / "dvc.yaml", root)
        shutil.copy(REPOSITORY / ".dvcignore", root)
        self.write_params(tiny_params())
        scripts = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
            "PYTHONPATH": str(root),
            "DVC_SITE_CACHE_DIR": str(root.parent / "dvc-site"),
            "DVC_NO_ANALYTICS": "1",
        }
        for name in ("DVC_STAGE", "MLFLOW_TRACKING_URI"):
            self.environment.pop(name, None)
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")

    def note_imports(self) -> None:
        """Have every stage that runs write down, under IMPORTED, which files of the package it imported."""
        (self.root / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def read_params(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def write_params(self, params: dict[str, Any]) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and return the names of the stages that ran."""
        return re.findall(r"Running stage '([^']+)'", self.run("dvc", "repro", *arguments).stdout)

    def table(self) -> str:
        return (self.root / "reports" / "demo" / "ablation.md").read_text()
