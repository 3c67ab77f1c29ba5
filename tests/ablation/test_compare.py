from __future__ import annotations

import itertools
import math
import random
import shutil
from pathlib import Path

import pytest
import trees

from mmseg_cli import paths as places
from mmseg_cli.ablation import compare
from mmseg_cli.errors import MmsegError
from mmseg_cli.params import load
from tests import evidence as made
from tests.ablation.test_claims import evidence_of
from tests.conftest import edit

BLOCKS = ["residual", "mbconv", "mmbconv", "mmbconv-expand", "mmbconv-project", "mbconv-k7", "fused-mbconv"]


def of(means, *, name, variants=None):
    """Evidence of a preset whose variants reach these means, with three seeds."""
    variants = variants or {block: {"block": block} for block in means}
    seeds = {variant: [mean - 0.1, mean, mean + 0.1] for variant, mean in means.items()}
    return evidence_of(variants, seeds, name=name)


def ranked(order, *, name):
    """Evidence in which variants are as good as their places say."""
    return of({block: 50.0 + place for block, place in zip(BLOCKS, order, strict=False)}, name=name)


# ------------------------------------------------------------------------------------------------ rankings


def test_an_agreement_by_hand():
    """Ranks 1 2 3 4 5 6 against 1 2 3 4 6 5: sum of squares 2, one of 15 pairs turned."""
    found = compare.agreement([1, 2, 3, 4, 5, 6], [10, 20, 30, 40, 60, 50])
    rho = 1 - 6 * 2 / (6 * 35)
    assert found.spearman == pytest.approx(rho)
    assert (found.alike, found.pairs) == (14, 15)
    assert found.kendall == pytest.approx(13 / 15)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 3)
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)), abs=1e-6
    )


@pytest.mark.parametrize(("sign", "alike"), [(1, 15), (-1, 0)])
def test_equal_and_opposite_ranks_have_no_interval(sign, alike):
    found = compare.agreement([1, 2, 3, 4, 5, 6], [sign * value for value in (3, 5, 8, 9, 11, 40)])
    assert (found.spearman, found.kendall) == (pytest.approx(sign), pytest.approx(sign))
    assert (found.low, found.high, found.alike) == (None, None, alike)


def test_ties():
    found = compare.agreement([1, 1, 2, 3, 4, 5], [1, 1, 2, 3, 4, 5])
    assert (found.alike, found.pairs) == (15, 15)
    found = compare.agreement([1, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])
    assert found.alike == 14
    assert found.spearman < 1
    assert compare.agreement([1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]) is None
    assert compare.ranks_of([0.5, 0.7, 0.5, 0.9]) == [3.5, 2, 3.5, 1]


@pytest.mark.slow
def test_the_interval_covers_a_true_correlation():
    """Bonett and Wright's own setting: normal pairs, whose Spearman correlation is 6 / pi asin(r / 2)."""
    rng = random.Random(0)
    for truth in (0.0, 0.5, 0.8):
        expected = 6 / math.pi * math.asin(truth / 2)
        inside = 0
        for _ in range(2000):
            pairs = [(x := rng.gauss(0, 1), truth * x + math.sqrt(1 - truth**2) * rng.gauss(0, 1)) for _ in range(9)]
            found = compare.agreement([x for x, _ in pairs], [y for _, y in pairs])
            inside += found.low is None or found.low <= expected <= found.high
        assert inside / 2000 > 0.92, truth


# ------------------------------------------------------------------------------------------------ two presets


def test_the_rows_of_both_grids_are_ranked():
    found = compare.compare(ranked([1, 3, 2, 5, 4, 7], name="small"), ranked([1, 2, 3, 4, 5, 6], name="full"))
    assert [row.variant for row in found.rows] == BLOCKS[5::-1]  # the best of the full preset first
    assert [row.full_rank for row in found.rows] == [1, 2, 3, 4, 5, 6]
    assert [row.small_rank for row in found.rows] == [1, 3, 2, 5, 4, 6]
    assert [row.small.estimate for row in found.rows] == pytest.approx([57, 54, 55, 52, 53, 51])
    assert all(row.full.low < row.full.estimate < row.full.high for row in found.rows)
    assert found.agreement == compare.agreement([1, 3, 2, 5, 4, 7], [1, 2, 3, 4, 5, 6])
    assert (found.left_out, found.reason) == ({}, None)
    said = dict(compare.lines(found))
    assert said["variants"].startswith("6 in both grids, by name")
    assert said["pairs"] == "13 of 15 (87 %) have the same order in both"
    assert said["Spearman"].startswith("+0.89; 95 % interval ")
    assert "noise" in said["beware"]
    assert compare.headings(found)[1].startswith("small: ")
    assert len(compare.cells(found.rows[0])) == len(compare.headings(found))


@pytest.mark.parametrize("count", [1, 5])
def test_too_few_variants_have_a_table_and_no_correlation(count):
    found = compare.compare(ranked(range(count), name="small"), ranked(range(count), name="full"))
    assert len(found.rows) == count
    assert found.agreement is None
    assert found.reason == f"too few variants: {count} in both, a correlation takes 6"
    said = dict(compare.lines(found))
    assert said["agreement"] == found.reason
    assert "Spearman" not in said


def test_equal_means_have_no_correlation():
    found = compare.compare(ranked([1] * 6, name="small"), ranked(range(6), name="full"))
    assert (found.agreement, found.reason) == (None, "all means of a preset are the same")


def test_what_is_in_one_grid_or_another_row_is_left_out():
    small = of(
        {"residual": 50, "mine": 51, "quick": 52, "matched": 53},
        name="small",
        variants={
            "residual": {"block": "residual"},
            "mine": {"block": "mbconv"},
            "quick": {"block": "mmbconv"},
            "matched": {"block": "mmbconv", "width": 5, "expansion": 2.5, "match": "macs"},
        },
    )
    full = of(
        {"residual": 60, "mine": 61, "slow": 62, "matched": 63},
        name="full",
        variants={
            "residual": {"block": "residual"},
            "mine": {"block": "mbconv", "layout": "pyramid"},
            "slow": {"block": "mmbconv"},
            "matched": {"block": "mmbconv", "width": 12, "expansion": 3.5, "match": "macs"},
        },
    )
    found = compare.compare(small, full)
    assert [row.variant for row in found.rows] == ["matched", "residual"]
    assert found.left_out == {
        "mine": "changes other things in either preset",
        "quick": "only in small",
        "slow": "only in full",
    }
    assert dict(compare.lines(found))["left out"].startswith("mine (changes other things in either preset); quick")


def test_a_match_of_another_kind_is_another_row():
    variants = {"a": {"block": "mmbconv", "width": 5, "match": "macs"}}
    other = {"a": {"block": "mmbconv", "width": 5, "match": "parameters"}}
    with pytest.raises(MmsegError, match="has no variant in common"):
        compare.compare(of({"a": 50}, name="small", variants=variants), of({"a": 50}, name="full", variants=other))


def test_an_undefined_mean_is_left_out():
    small = of({"residual": 50, "mbconv": math.nan}, name="small")
    found = compare.compare(small, of({"residual": 50, "mbconv": 51}, name="full"))
    assert found.left_out == {"mbconv": "its mIoU is not defined in every run"}


def test_nothing_in_common_and_one_preset_are_errors():
    small, full = of({"residual": 50}, name="small"), of({"mbconv": 50}, name="full")
    with pytest.raises(MmsegError, match="^small: has no variant in common with full: "):
        compare.compare(small, full)
    with pytest.raises(MmsegError, match="small is given twice"):
        compare.compare(small, small)


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def presets(project):
    """The demo and a preset `other`, both with evidence of six variants and two seeds."""
    folder = project / "pipelines" / "other"
    folder.mkdir(parents=True)
    shutil.copyfile(project / "params.yaml", folder / "params.yaml")
    edit(
        folder / "params.yaml",
        lambda p: p.update(preset="other", root="../..", params_file="pipelines/other/params.yaml"),
    )
    for name, step in (("demo", 0.02), ("other", -0.02)):
        paths = places.find(preset=name)
        edit(paths.params, six)
        skill = {block: 0.8 + step * place for place, block in enumerate(BLOCKS[:6])}
        made.make(paths, load(paths.params), skill=skill, noise=0.001)
    return project


def six(content):
    content["variants"] = {block: {"block": block} for block in BLOCKS[:6]}
    content["ablate"].update(variants=BLOCKS[:6], seeds=[0, 1])


def test_the_command_prints_both_means_and_the_correlation(presets, mmseg):
    done = mmseg("compare", "demo", "other")
    assert done.code == 0, done.err
    for block in BLOCKS[:6]:
        assert block in done.out
    assert "demo: mIoU % [95 %]" in done.out
    assert "-1.00; no interval" in done.out
    assert "0 of 15 (0 %)" in done.out


def test_the_command_reads_and_writes_nothing_else(presets, mmseg):
    before = trees.contents(presets)
    assert mmseg("compare", "demo", "other").code == 0
    assert trees.contents(presets) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("demo", "demo"), "demo is given twice"),
        (("demo", "nothing"), "there is no 'nothing'"),
    ],
    ids=itertools.count(),
)
def test_the_command_has_one_line_for_an_error(presets, mmseg, args, said):
    done = mmseg("compare", *args)
    assert done.code == 2
    assert said in done.one_error()


def test_missing_evidence_is_named(presets, mmseg):
    shutil.rmtree(Path("reports") / "other" / "evidence" / "mbconv-s1")
    done = mmseg("compare", "demo", "other")
    assert done.code == 2
    assert "missing mbconv-s1/:" in done.one_error()
