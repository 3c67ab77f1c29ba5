from __future__ import annotations

import csv
import io

import pytest
import trees

from mmseg_cli import paths as places
from mmseg_cli.ablation import figures, grid, report, tables
from mmseg_cli.errors import MmsegError

# IoU of every class is right / (200 - right): 80 -> 2/3, 100 -> 1, 50 -> 1/3, 120 is not possible.
TABLE = {("residual", 0): 80, ("residual", 1): 50, ("mbconv", 0): 100, ("mbconv", 1): 80}
VARIANTS = ["residual", "mbconv"]


@pytest.fixture
def paths(project):
    found = places.find(preset="demo")
    trees.make_evidence(found.evidence, TABLE)
    return found


def table(text, heading):
    """The cells of the markdown table whose first heading is `heading`."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} "))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_the_tables_show_what_can_be_computed_by_hand(paths):
    built = report.build(paths, variants=VARIANTS, seeds=[0, 1])
    text = built.markdown.read_text()
    assert table(text, "block") == [
        list(tables.HEADINGS),
        ["residual", "0.001", "0.002", "0.200", "1.00", "1", "50.00 ± 23.57", "baseline"],
        ["mbconv", "0.002", "0.004", "0.400", "2.00", "2", "83.33 ± 23.57", "+33.33 ± 0.00"],
    ]
    assert table(text, "class") == [
        ["class", "residual", "mbconv"],
        ["road", "50.00", "83.33"],
        ["building", "50.00", "83.33"],
    ]  # sky is in no image and no prediction
    assert "seeds 0, 1." in text
    assert "**no verdict**" in text
    assert "2 val images, toy-3" in text
    assert "toy from scratch." in text
    assert "a processor, 2 threads; torch 2.x" in text
    assert f"![mIoU by block and by time]({built.chart.name})" in text
    rows = list(csv.DictReader(io.StringIO(built.csv.read_text())))
    assert [row["variant"] for row in rows] == VARIANTS
    assert float(rows[1]["mean_iou"]) == pytest.approx(250 / 3, abs=1e-9)
    assert float(rows[1]["difference"]) == pytest.approx(100 / 3, abs=1e-9)
    assert float(rows[1]["difference_sd"]) == pytest.approx(0, abs=1e-9)
    assert float(rows[0]["mean_iou_sd"]) == pytest.approx(100 / 3 / 2**0.5, abs=1e-9)
    assert (rows[0]["difference"], rows[0]["difference_sd"]) == ("", "")
    assert [float(rows[0][f"mean_iou_s{seed}"]) for seed in (0, 1)] == pytest.approx([200 / 3, 100 / 3])
    assert [(int(row["parameters"]), int(row["macs"])) for row in rows] == [(1000, 2_000_000), (2000, 4_000_000)]


def test_a_dropped_seed_leaves_the_table(paths):
    report.build(paths, variants=VARIANTS, seeds=[0, 1])
    built = report.build(paths, variants=VARIANTS, seeds=[1])
    text = built.markdown.read_text()
    assert [row[6:] for row in table(text, "block")[1:]] == [["33.33 ± –", "baseline"], ["66.67 ± –", "+33.33 ± –"]]
    assert "seeds 1." in text
    heading = built.csv.read_text().splitlines()[0]
    assert "mean_iou_s1" in heading
    assert "mean_iou_s0" not in heading


def test_a_dropped_variant_leaves_the_table(paths):
    built = report.build(paths, variants=["mbconv"], seeds=[0, 1])
    assert len(table(built.markdown.read_text(), "block")) == 2
    assert "residual" not in built.markdown.read_text() + built.csv.read_text()


def test_the_first_variant_is_the_baseline(paths):
    rows = report.build(paths, variants=["mbconv", "residual"], seeds=[0, 1]).rows
    assert rows[0].difference is None
    assert rows[1].difference.mean == pytest.approx(-100 / 3)
    assert (rows[0].step_ratio, rows[1].step_ratio) == (1.0, 0.5)


def test_three_seeds_still_draw_no_verdict(paths):
    trees.make_evidence(paths.evidence, TABLE | {("residual", 2): 60, ("mbconv", 2): 70})
    text = report.build(paths, variants=VARIANTS, seeds=[0, 1, 2]).markdown.read_text()
    assert "no confidence interval" in text
    assert "**no verdict**" not in text


def test_the_same_evidence_gives_the_same_bytes(paths):
    before = trees.contents(paths.evidence)
    folders = []
    for _ in range(2):
        built = report.build(paths, variants=VARIANTS, seeds=[0, 1])
        folders.append([path.read_bytes() for path in (built.markdown, built.csv, built.chart)])
    assert folders[0] == folders[1]
    assert trees.contents(paths.evidence) == before


def test_the_chart_is_a_picture_of_this_evidence(paths):
    evidence = grid.collect(paths, variants=VARIANTS, seeds=[0, 1])
    chart = figures.chart(evidence, title="demo")
    assert chart.startswith(b"\x89PNG")
    fewer = grid.collect(paths, variants=VARIANTS, seeds=[0])
    assert figures.chart(fewer, title="demo") != chart
    assert figures.chart(evidence, title="other") != chart


def test_nothing_is_written_when_something_is_missing(paths):
    report.build(paths, variants=VARIANTS, seeds=[0, 1])
    before = trees.contents(paths.reports)
    with pytest.raises(MmsegError, match="missing mbconv-s2/metrics.json"):
        report.build(paths, variants=["mbconv"], seeds=[0, 2])
    assert trees.contents(paths.reports) == before
