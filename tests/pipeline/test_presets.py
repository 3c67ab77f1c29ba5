"""The committed presets: each loads, belongs to the one pipeline, and the paper's has the size that it claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmseg_cli import params as parameters
from mmseg_cli import paths as places
from tests.pipeline.tiny import REPOSITORY

PRESETS = ["demo", *sorted(path.parent.name for path in REPOSITORY.glob("pipelines/*/params.yaml"))]
HRNET_V2_W48 = {"parameters": 65.8e6, "macs": 696e9}  # at 1024x2048 (arXiv 1909.11065)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_itself_and_the_one_pipeline(preset: str) -> None:
    paths = places.find(preset=preset, root=REPOSITORY)
    params = parameters.load(paths.params)
    assert {"demo", "camvid-small", "camvid", "paper"} <= set(PRESETS)
    assert params.preset == preset
    assert (REPOSITORY / params.params_file).resolve() == paths.params
    assert (paths.params.parent / params.root).resolve() == REPOSITORY
    assert paths.pipeline.resolve() == REPOSITORY / "dvc.yaml"


def test_dvc_reads_every_preset() -> None:
    dvc = Path(sys.executable).with_name("dvc")
    command = [str(dvc), "stage", "list", "--all", "--name-only"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    for preset in set(PRESETS) - {"demo"}:
        assert f"pipelines/{preset}/dvc.yaml:train@mmbconv-0" in listed
    assert "train@mmbconv-0" in listed


def test_every_command_of_the_paper_preset_can_be_shown_before_anything_is_there() -> None:
    """`--force`, because DVC looks for what earlier stages have yet to make (treeverse/dvc#9021)."""
    dvc = Path(sys.executable).with_name("dvc")
    command = [str(dvc), "repro", "--dry", "--force", "pipelines/paper/dvc.yaml"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    grid = 10 * 3  # variants x seeds
    assert shown.count("> exec mmseg prepare ") == 3
    for stage in ("pretrain imagenet", "pretrain mapillary", "train", "evaluate"):
        assert shown.count(f"> exec mmseg {stage} --preset paper ") == grid


def test_the_paper_preset_costs_about_what_hrnet_does() -> None:
    from mmseg_cli.ablation import costs

    params = parameters.load(REPOSITORY / "pipelines" / "paper" / "params.yaml")
    networks = {"mmbconv": params.network_of("mmbconv")}
    whole, _ = costs.counted(networks, classes=19, height=1024, width=2048)["mmbconv"]
    for name, target in HRNET_V2_W48.items():
        assert target / 1.5 <= getattr(whole, name) <= target * 1.5
