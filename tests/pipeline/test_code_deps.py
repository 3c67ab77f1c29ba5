"""The code that a stage declares in dvc.yaml is the code that its command imports."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipeline.tiny import REPOSITORY, TinyProject

# Not declared by any stage: what only talks to the person, and small helpers that decide no number.
EXEMPT = ("cli", "errors", "files", "names", "params", "paths", "runtime", "tracking", "mirror", "__main__")
ITEMS = {"${preset}": "demo", "${key}": "cityscapes", "${item.variant}": "mbconv", "${item.seed}": "0"}
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]

IMPORTED = """
import json, sys
from pathlib import Path
sys.argv = ["mmseg", *sys.argv[1:]]
from mmseg_cli.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
names = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("mmseg_cli")}
Path("imported.json").write_text(json.dumps(names))
"""


def _declared(stage: str) -> list[str]:
    body = STAGES[stage].get("do", STAGES[stage])
    return [dep for dep in body["deps"] if dep.startswith("mmseg_cli/")]


@pytest.mark.parametrize("stage", STAGES)
def test_declared_code_is_imported_code(done_project: TinyProject, stage: str) -> None:
    command = STAGES[stage].get("do", STAGES[stage])["cmd"]
    for name, value in ITEMS.items():
        command = command.replace(name, value)
    words = shlex.split(command)
    assert words[:2] == ["exec", "mmseg"]
    reports, aside = done_project.root / "reports", done_project.root / ".work" / "reports"
    shutil.copytree(reports, aside)
    done_project.run(sys.executable, "-c", IMPORTED, *words[2:])
    shutil.rmtree(reports)  # measured times are never the same twice, and DVC would notice
    aside.rename(reports)
    imported = json.loads((done_project.root / "imported.json").read_text())
    used = {
        str(Path(file).relative_to(done_project.root))
        for name, file in imported.items()
        if not file.endswith("__init__.py") and name.split(".")[1] not in EXEMPT
    }
    declared = _declared(stage)
    undeclared = {file for file in used if not any(file == dep or file.startswith(f"{dep}/") for dep in declared)}
    assert not undeclared
    unused = {dep for dep in declared if not any(file == dep or file.startswith(f"{dep}/") for file in used)}
    assert not unused


def test_declared_code_exists() -> None:
    assert not [dep for stage in STAGES for dep in _declared(stage) if not (REPOSITORY / dep).exists()]


@pytest.mark.parametrize("stage", ["pretrain_imagenet", "pretrain_mapillary", "train"])
def test_the_code_in_a_run_s_fingerprint_is_the_declared_code(stage: str) -> None:
    from mmseg_cli.training.stages import CODE

    assert sorted(f"mmseg_cli/{part}" for part in CODE) == sorted(_declared(stage))
