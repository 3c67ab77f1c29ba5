"""The committed tables are what their committed evidence gives; one that was edited by hand fails here."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

from mmseg_cli import params, paths
from mmseg_cli.ablation import report

REPOSITORY = Path(__file__).parents[1]
COMMITTED = sorted(path.parent.name for path in REPOSITORY.glob("reports/*/ablation.md"))


def test_demo_and_real_photographs_are_reported() -> None:
    assert {"demo", "camvid-small"} <= set(COMMITTED)


@pytest.mark.parametrize("preset", COMMITTED)
def test_the_committed_tables_follow_from_the_committed_evidence(preset: str, tmp_path: Path) -> None:
    ablate = params.load(paths.find(preset=preset, root=REPOSITORY).params).ablate
    shutil.copytree(REPOSITORY / "reports" / preset / "evidence", tmp_path / "reports" / preset / "evidence")
    built = report.build(paths.Paths(root=tmp_path, preset=preset), variants=ablate.variants, seeds=ablate.seeds)
    for file in (built.markdown, built.csv):
        assert file.read_text() == (REPOSITORY / "reports" / preset / file.name).read_text()
    assert built.chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("preset", COMMITTED)
def test_committed_reports_hold_numbers_and_charts_only(preset: str) -> None:
    files = [path for path in (REPOSITORY / "reports" / preset).rglob("*") if path.is_file()]
    pictures = {path.name for path in files if path.suffix in (".png", ".jpg", ".jpeg", ".svg")}
    charts = {
        path.with_suffix(".png").name for path in files if path.suffix == ".md"
    }  # of the table and the data cards
    assert pictures == charts >= {"ablation.png"}
    assert {path.suffix for path in files} <= {".md", ".csv", ".png", ".json", ".npz", ".gitignore", ""}


BENCHMARKS = sorted(path for name in ("data", "predict") for path in REPOSITORY.glob(f"reports/bench/*/{name}.json"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_committed_benchmark_s_tables_follow_from_its_raw_times(file: Path) -> None:
    bench = importlib.import_module(f"mmseg_cli.bench.{file.stem}")
    assert file.with_suffix(".md").read_text() == bench.markdown(json.loads(file.read_text()))
