"""The committed tables are what their committed evidence gives; one that was edited by hand fails here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from mmseg_cli import paths
from mmseg_cli.ablation import document, verify
from mmseg_cli.bench import accuracy_report

REPOSITORY = Path(__file__).parents[1]
COMMITTED = sorted(path.parent.name for path in REPOSITORY.glob("reports/*/ablation.md"))


def test_the_demo_and_camvid_are_reported() -> None:
    assert {"demo", "camvid-small"} <= set(COMMITTED)


@pytest.mark.parametrize("preset", COMMITTED)
def test_the_committed_report_follows_from_the_committed_evidence(preset: str) -> None:
    found = verify.level_0(paths.find(preset=preset, root=REPOSITORY))
    assert found.faults == []
    assert set(found.notes) <= {verify.OTHER_DIGITS}


@pytest.mark.parametrize("preset", COMMITTED)
def test_committed_reports_hold_numbers_and_charts_only(preset: str) -> None:
    files = [path for path in (REPOSITORY / "reports" / preset).rglob("*") if path.is_file()]
    pictures = {path.name for path in files if path.suffix in (".png", ".jpg", ".jpeg", ".svg")}
    cards = {path.with_suffix(".png").name for path in files if path.name.startswith("data-")}
    assert pictures <= cards | set(document.CAPTIONS)
    assert "pareto.png" in pictures
    assert {path.suffix for path in files} <= {".md", ".csv", ".tex", ".png", ".json", ".npz", ".gitignore", ""}


BENCHMARKS = sorted(REPOSITORY.glob("reports/bench/*/*.json"))
PAGES = {  # the modules that write pages, where not called as these
    "growth": "growth_report",
    "start-up": "start_up",
    "predict-bfloat16": "predict",
}


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_committed_benchmark_s_tables_follow_from_its_raw_times(file: Path) -> None:
    result, page = json.loads(file.read_text()), file.with_suffix(".md").read_text()
    if file.stem.startswith("accuracy-"):
        assert page == accuracy_report.markdown(result, picture=f"{file.stem}.png")
        return
    bench = importlib.import_module(f"mmseg_cli.bench.{PAGES.get(file.stem, file.stem)}")
    assert page == bench.markdown(result)
