"""docs/own-block.md, run as it stands: the block is written, named, counted, trained, and stands in the table."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.tiny import REPOSITORY, TinyProject

PAGE = (REPOSITORY / "docs" / "own-block.md").read_text()
BLOCKS = [textwrap.dedent(found).strip("\n") + "\n" for found in re.findall(r"(?m)(?:^(?: {4}.*)?\n)+", f"{PAGE}\n")]
(CODE,) = (block for block in BLOCKS if "class Mine" in block)
(PARAMETERS,) = (block for block in BLOCKS if "variants:" in block)
COMMANDS = [
    shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines() if line.startswith("mmseg ")
]
RUN = Path("runs/demo/train/mine-s0")


def command(name: str) -> list[str]:
    """The page's command of that name."""
    (found,) = (words for words in COMMANDS if words[1] == name)
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A tiny project in which a reader has done what the page says, up to its first command."""
    made = TinyProject(tmp_path_factory.mktemp("own-block") / "project")
    file = made.root / re.search(r"`(blocks/\w+\.py)`", PAGE)[1]  # type: ignore[index]
    file.write_text(CODE)
    params = made.read_params()
    params["variants"] |= yaml.safe_load(PARAMETERS)["variants"]
    params["tracking"]["enabled"] = False
    made.write_params(params)
    return made


def record(project: TinyProject, run: Path = RUN) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project.root / run / "record.json").read_text())
    return content


def test_the_page_has_what_this_test_runs() -> None:
    assert [words[1] for words in COMMANDS] == ["ablate", "cost", "pretrain", "train"]
    assert len(CODE.splitlines()) < 25
    assert len(PARAMETERS.splitlines()) == 2


@pytest.mark.slow
def test_the_block_stands_in_the_table(project: TinyProject) -> None:
    words = command("ablate")
    assert words[-2:] == ["--seeds", "0,1,2"]
    project.run(*words[:-1], "0")  # three seeds take three times as long
    assert project.read_params()["ablate"]["variants"] == ["residual", "mine"]
    assert re.search(r"(?m)^\|\W*mine\b", project.table()), project.table()
    assert project.repro() == []
    told = record(project)
    assert told["network"]["block"] == "blocks.mine:Mine"
    assert told["ladder"] == ["pretrain_imagenet", "pretrain_mapillary", "train"]
    other = record(project, RUN.with_name("residual-s0"))
    assert [rung["data"] for rung in told["rungs"]] == [rung["data"] for rung in other["rungs"]]


@pytest.mark.slow
def test_the_block_is_counted(project: TinyProject) -> None:
    assert len(re.findall(r"(?m)^\W*mine\b.*\d", project.run(*command("cost")).stdout)) == 2  # network and block


@pytest.mark.parametrize("name", ["pretrain", "train"])
@pytest.mark.slow
def test_its_stages_run_by_hand(project: TinyProject, name: str) -> None:
    """What the pipeline has done is done: the page's commands find it."""
    assert "already trained" in project.run(*command(name)).stdout


@pytest.mark.slow
def test_only_the_changed_block_is_trained_again(project: TinyProject) -> None:
    runs = [Path("runs/demo/pretrain_imagenet") / f"{variant}-s0" for variant in ("mine", "residual")]
    stages = ["pretrain_imagenet@mine-0", "pretrain_imagenet@residual-0"]
    before = [record(project, run) for run in runs]
    file = project.root / "blocks" / "mine.py"
    file.write_text(CODE.replace("padding=2, dilation=2", "padding=3, dilation=3"))
    done = project.run("dvc", "repro", *stages).stdout
    assert sorted(re.findall(r"Running stage '([^']+)'", done)) == stages
    mine, residual = (record(project, run) for run in runs)
    assert mine["weights_sha256"] != before[0]["weights_sha256"]
    assert residual == before[1]
    assert done.count("0 steps after 2 before") == 1
