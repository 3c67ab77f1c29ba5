from __future__ import annotations

import csv
import io
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import trees
from scipy import stats

from mmseg_cli import paths as places
from mmseg_cli.ablation import pilot, report, rows
from mmseg_cli.ablation.statistics import NEW_IMAGES, THIS_SET
from mmseg_cli.errors import MmsegError
from mmseg_cli.params import load
from tests import evidence as made

VARIANTS = ["residual", "mbconv", "mmbconv"]
SKILL = {"residual": 0.75, "mbconv": 0.76, "mmbconv": 0.85}


@pytest.fixture(autouse=True)
def _few_charts(request, monkeypatch):
    """They take most of the time; tests that look at them say so in their names."""
    if not request.node.name.endswith("_and_charts"):
        monkeypatch.setattr(report.figures, "draw", lambda evidence, rows: {})


@pytest.fixture
def paths(project, change_params):
    change_params(lambda p: p["ablate"].update(variants=VARIANTS, seeds=[0, 1, 2]))
    found = places.find(preset="demo")
    made.make(found, load(found.params), skill=SKILL, noise=0.01)
    return found


def build(paths):
    return report.build(paths, load(paths.params))


def table(text, heading):
    """The cells of the markdown table whose first heading is `heading`."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} "))
    found = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return [found[0], *found[2:]]


def matrices(paths, variant, seed):
    """(N, 4, 4) by a loop over the file's entries."""
    with np.load(paths.evidence / f"{variant}-s{seed}" / "confusion.npz") as content:
        lengths, cells, values = (content[f"confusion.{key}"] for key in ("lengths", "cells", "values"))
    out, place = np.zeros((len(lengths), 16)), 0
    for image, length in enumerate(lengths):
        for _ in range(length):
            out[image, cells[place]] = values[place]
            place += 1
    return out.reshape(-1, 4, 4)


def mean_iou(matrix):
    return 100 * np.mean([matrix[k, k] / (matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]) for k in range(4)])


def by_hand(paths, variant, baseline):
    """d_s and the pseudo-values of the difference, by loops and from the definitions alone."""
    plain, pseudo = [], []
    for seed in (0, 1, 2):
        own, base = matrices(paths, variant, seed), matrices(paths, baseline, seed)
        whole = mean_iou(own.sum(0)) - mean_iou(base.sum(0))
        images = len(own)
        rest = [mean_iou(own.sum(0) - own[image]) - mean_iou(base.sum(0) - base[image]) for image in range(images)]
        plain.append(whole)
        pseudo.append([images * whole - (images - 1) * value for value in rest])
    return np.array(plain), np.array(pseudo)


def test_miou_interval_and_holm_equal_an_independent_computation(paths):
    """The numbers of the table from the files, by the textbook's formulas and scipy.stats."""
    evidence = build(paths).evidence
    p_values = {}
    for variant in VARIANTS[1:]:
        d_S, p_SN = by_hand(paths, variant, "residual")
        seeds, images = p_SN.shape
        found = evidence.difference(variant, "iou", estimand=THIS_SET)
        test = stats.ttest_1samp(d_S, 0)
        low, high = test.confidence_interval(0.95)
        assert (found.estimate, found.low, found.high) == pytest.approx((d_S.mean(), low, high), abs=1e-8)
        assert found.p == pytest.approx(test.pvalue, abs=1e-10)

        of_seeds, of_images = images * d_S.var(ddof=1), seeds * p_SN.mean(0).var(ddof=1)
        rest = p_SN - p_SN.mean(0)[None] - p_SN.mean(1)[:, None] + p_SN.mean()
        residual = (rest**2).sum() / ((seeds - 1) * (images - 1))
        assert of_images > residual, "the example is to have noise of images"
        squares = of_seeds + of_images - residual
        bound = of_seeds * (seeds - 1) / stats.chi2.ppf(0.2, seeds - 1)  # Satterthwaite's, at the seeds' upper bound
        df = (bound + of_images - residual) ** 2 / (
            bound**2 / (seeds - 1) + of_images**2 / (images - 1) + residual**2 / ((seeds - 1) * (images - 1))
        )
        df = max(df, min(seeds - 1, images - 1))
        error = math.sqrt(squares / (seeds * images))
        half = stats.t.ppf(0.975, df) * error
        found = evidence.difference(variant, "iou", estimand=NEW_IMAGES)
        assert (found.low, found.high) == pytest.approx((d_S.mean() - half, d_S.mean() + half), abs=1e-8)
        assert found.df == pytest.approx(df, rel=1e-9)
        p_values[variant] = 2 * stats.t.sf(abs(d_S.mean()) / error, df)
        assert found.p == pytest.approx(p_values[variant], rel=1e-8)
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    holm = [min(1, (len(ordered) - rank) * p) for rank, (_, p) in enumerate(ordered)]
    holm = np.maximum.accumulate(holm)
    verdicts = {row.variant: row.verdict for row in rows.rows(evidence) if row.verdict}
    for (variant, _), adjusted in zip(ordered, holm, strict=True):
        assert verdicts[variant].adjusted_p == pytest.approx(adjusted, rel=1e-8)
        assert verdicts[variant].word == ("better" if adjusted < 0.05 else "no evidence")
    assert verdicts["mmbconv"].word == "better"


def test_the_page_shows_numbers_and_charts(paths):
    built = build(paths)
    text = (paths.reports / "ablation.md").read_text()
    main = table(text, "variant")
    assert main[0] == rows.headings(built.evidence)
    assert [row[0] for row in main[1:]] == [f"[{name}](certificates/{name}.json)" for name in VARIANTS]
    assert [row[1:5] for row in main[1:]] == [
        ["0.001", "0.002", "1.00", "1.00"],
        ["0.002", "0.004", "2.00", "2.00"],
        ["0.003", "0.006", "3.00", "3.00"],
    ]
    for row, shown in zip(built.rows, main[1:], strict=True):
        assert shown[5] == f"{row.mean.estimate:.2f} [{row.mean.low:.2f}, {row.mean.high:.2f}]"
    assert main[1][6:] == ["baseline", "", ""]
    assert main[3][8] == "better"
    assert [row[0] for row in table(text, "class")[1:]] == list(made.SPACE.classes)
    assert "seeds 0, 1, 2." in text
    assert "12 val images, toy-4" in text
    assert "a processor, 2 threads, torch 2.x" in text
    assert "about +30 % time and +10 % memory" in text
    for name in ("pareto.png", "classes.png", "anatomy.png"):
        assert f"(figures/{name})" in text
        assert (paths.reports / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_csv_and_latex_hold_the_table(paths):
    built = build(paths)
    lines = list(csv.DictReader(io.StringIO((paths.reports / "ablation.csv").read_text())))
    assert [line["variant"] for line in lines] == VARIANTS
    for row, line in zip(built.rows, lines, strict=True):
        assert float(line["mean_iou"]) == row.mean.estimate
        assert line["mean_iou_low"] == str(row.mean.low)
        assert [float(line[f"mean_iou_s{seed}"]) for seed in (0, 1, 2)] == [
            pytest.approx(mean_iou(matrices(paths, row.variant, seed).sum(0)), abs=1e-9) for seed in (0, 1, 2)
        ]
    assert (lines[0]["difference"], lines[0]["verdict"]) == ("", "")
    latex = (paths.reports / "ablation.tex").read_text()
    assert latex.count(r"\\") == 4
    assert r"mIoU \%" in latex
    assert all(len(line.split("&")) == 9 for line in latex.splitlines() if line.endswith(r"\\"))
    details = list(csv.DictReader(io.StringIO((paths.reports / "details.csv").read_text())))
    assert {line["variant"] for line in details} == set(VARIANTS)
    assert {"iou", "boundary_f1_3px", "recall_small", "iou_rows_1"} <= {line["figure"] for line in details}


def test_a_certificate_holds_what_its_row_rests_on(paths):
    built = build(paths)
    content = json.loads((paths.reports / "certificates" / "mmbconv.json").read_text())
    assert content["numbers"]["difference"]["estimate"] == built.rows[2].difference.estimate
    assert content["numbers"]["verdict"] == "better"
    assert content["cost"]["sha256"] == built.evidence.files["cost.json"]
    assert [run["seed"] for run in content["runs"]] == [0, 1, 2]
    for run in content["runs"]:
        assert run["files"]["confusion.npz"] == built.evidence.files[f"mmbconv-s{run['seed']}/confusion.npz"]
    assert content["method"]["estimand"] == "new-images"


def test_fewer_than_three_seeds_draw_no_verdict(paths, change_params):
    change_params(lambda p: p["ablate"].update(seeds=[0, 1]))
    built = build(paths)
    assert [row.verdict.word for row in built.rows[1:]] == ["no verdict"] * 2
    text = (paths.reports / "ablation.md").read_text()
    assert "**no verdict**: the noise between two trainings cannot be told" in text
    assert "▲" not in table(text, "class")[1][2]
    change_params(lambda p: p["ablate"].update(seeds=[1]))
    built = build(paths)
    assert (built.rows[1].difference.low, built.rows[1].verdict.word) == (None, "no verdict")
    assert "Not given: one seed tells nothing of its noise" in (paths.reports / "ablation.md").read_text()


def test_images_of_one_drive_tell_nothing_of_new_ones(paths, change_params):
    change_params(lambda p: p["ablate"].update(image_blocks="prefix"))
    built = build(paths)
    assert built.rows[2].difference.low is None
    assert built.rows[2].verdict.word == "no verdict"
    text = (paths.reports / "ablation.md").read_text()
    assert "The images are of one city or drive" in text
    assert "Not given: one block of images tells nothing of others" in text
    assert table(text.split("## Is the interval right?")[1], "variant")[1][3] == "–"  # no bootstrap of one block
    change_params(lambda p: p["ablate"].update(estimand="this-set"))
    assert build(paths).rows[2].verdict.word == "better"


def test_rows_that_saw_other_data_are_named(paths, change_params):
    def vary(p):
        p["variants"]["calm"] = {"block": "mbconv", "train": {"augment": {"flip": False}}}
        p["ablate"]["variants"] = ["residual", "mbconv", "calm"]

    change_params(vary)
    params = load(paths.params)
    made.make(paths, params)
    build(paths)
    text = (paths.reports / "ablation.md").read_text()
    assert "by a log of digests; not `calm` (other train.augment.flip). The verdict" in text
    for seed in (0, 1, 2):
        file = paths.evidence / f"mbconv-s{seed}" / "metrics.json"
        found = json.loads(file.read_text())
        found["run"]["rungs"][2]["data"] = {}
        made.rewrite(file, found)
    build(paths)
    assert "; of `mbconv` no log tells." in (paths.reports / "ablation.md").read_text()


def share(paths, one, other, *, rung):
    """Let the runs of two rows start from the same training of a rung."""
    for seed in (0, 1, 2):
        theirs = json.loads((paths.evidence / f"{one}-s{seed}" / "metrics.json").read_text())
        file = paths.evidence / f"{other}-s{seed}" / "metrics.json"
        found = json.loads(file.read_text())
        found["run"]["rungs"][rung]["fingerprint"] = theirs["run"]["rungs"][rung]["fingerprint"]
        made.rewrite(file, found)


def test_shared_pretraining_is_said(paths, change_params):
    build(paths)
    assert "Every run that was pretrained has a pretraining of its own." in (paths.reports / "ablation.md").read_text()
    share(paths, "mbconv", "mmbconv", rung=1)
    build(paths)
    said = "Pretraining is shared at equal seeds on Mapillary by `mbconv`, `mmbconv`:"
    assert said in (paths.reports / "ablation.md").read_text()


def test_a_rung_that_rows_of_other_ladders_share_is_said(paths, change_params):
    """A row that stops at ImageNet starts from the same weights as Mapillary's rung of the others."""

    def vary(p):
        p["variants"]["imagenet"] = {"block": "mbconv", "start": "imagenet"}
        p["variants"]["scratch"] = {"block": "mbconv", "start": "scratch"}
        p["ablate"]["variants"] = ["mbconv", "imagenet", "scratch"]

    change_params(vary)
    made.make(paths, load(paths.params))
    share(paths, "mbconv", "imagenet", rung=0)
    build(paths)
    text = (paths.reports / "ablation.md").read_text()
    assert "Pretraining is shared at equal seeds on ImageNet by `mbconv`, `imagenet`: its noise" in text


def test_rows_of_another_size_are_named(paths, change_params):
    def vary(p):
        p["variants"]["narrow"] = {"block": "mbconv", "width": 4}
        p["variants"]["solved"] = {"block": "mbconv", "width": 6, "expansion": 1.5, "match": "macs"}
        p["ablate"]["variants"] = ["residual", "narrow"]

    change_params(vary)
    made.make(paths, load(paths.params))
    build(paths)
    text = (paths.reports / "ablation.md").read_text()
    assert "**Widths**: `narrow` has width 4 of its own; the others have the preset's, as in the paper. Rows of" in text
    change_params(lambda p: p["ablate"].update(variants=["residual", "narrow", "solved"]))
    made.make(paths, load(paths.params))
    build(paths)
    text = (paths.reports / "ablation.md").read_text()
    assert "`solved` has the baseline's MACs to +200.0 %; `narrow` has width 4 of its own; the others have" in text


def test_the_state_of_the_code_is_said(paths):
    params = load(paths.params)
    build(paths)
    assert "**Code**: all runs of a state that is not known." in (paths.reports / "ablation.md").read_text()
    for place, variant in enumerate(VARIANTS):
        for seed in (0, 1, 2):
            changes = "ab" * 32 if (variant, seed) == ("mmbconv", 2) else None
            session = {"commit": "12" * 20, "changes": changes, "seconds": 3600.0, "processes": 1}
            counts = made.confusions(images=12, skill=SKILL[variant], noise=0.01, seed=1000 * place + seed)
            training = {"stage": "train", "sessions": [session], "before": None}
            made.write_run(paths, params, variant=variant, seed=seed, counts=counts, training=training)
    build(paths)
    text = (paths.reports / "ablation.md").read_text()
    assert "**Code**: runs of several states, 8 of 1212121212, 1 of 1212121212 + ababababab; the certificates" in text
    (answer, _) = pilot.answers(report.collect(paths, params), gap=2.0)
    assert answer.seconds == 3600.0  # the made sittings are equal, so they count as one that both share


def test_p_values_of_two_seeds_are_in_no_file(paths, change_params):
    build(paths)
    three = list(csv.DictReader(io.StringIO((paths.reports / "details.csv").read_text())))
    assert any(line["this_set_p_unadjusted"] for line in three)
    change_params(lambda p: p["ablate"].update(seeds=[0, 1]))
    build(paths)
    for name in ("ablation.csv", "details.csv"):
        lines = list(csv.DictReader(io.StringIO((paths.reports / name).read_text())))
        keys = [key for key in lines[0] if key.startswith("p_") or "_p_" in key]
        assert keys
        assert not any(line[key] for line in lines for key in keys), name


def test_one_row_alone_is_a_table_too(paths, change_params):
    change_params(lambda p: p["ablate"].update(variants=["mbconv"]))
    build(paths)
    text = (paths.reports / "ablation.md").read_text()
    assert len(table(text, "variant")) == 2
    assert "residual" not in text.split("## Cost")[0]
    assert sorted(path.name for path in (paths.reports / "certificates").iterdir()) == ["mbconv.json"]


def test_the_first_variant_is_the_baseline(paths, change_params):
    before = build(paths).rows[2].difference
    change_params(lambda p: p["ablate"].update(variants=["mmbconv", "residual"]))
    after = build(paths).rows[1].difference
    assert after.estimate == pytest.approx(-before.estimate)
    assert (after.low, after.high) == pytest.approx((-before.high, -before.low))


def test_the_same_evidence_gives_the_same_bytes_of_tables_and_charts(paths):
    before = trees.contents(paths.evidence)
    build(paths)
    first = trees.contents(paths.reports)
    build(paths)
    assert trees.contents(paths.reports) == first
    assert trees.contents(paths.evidence) == before


def test_nothing_is_written_when_something_is_missing(paths, change_params):
    build(paths)
    before = trees.contents(paths.reports)
    change_params(lambda p: p["ablate"].update(seeds=[0, 5]))
    with pytest.raises(MmsegError, match="missing residual-s5/, "):
        build(paths)
    assert trees.contents(paths.reports) == before


def test_power_by_the_pilot_that_is_there(paths, change_params, mmseg):
    answers = pilot.answers(report.collect(paths, load(paths.params)), gap=2.0)
    assert [answer.variant for answer in answers] == ["mbconv", "mmbconv"]
    for answer in answers:
        assert answer.need.seeds is None or answer.need.seeds >= 3
        assert answer.cautious.seeds is None or answer.need.seeds <= answer.cautious.seeds
    gaps = [0.5, 1.0, 2.0, 4.0]
    needed = [pilot.answers(report.collect(paths, load(paths.params)), gap=gap)[1].need.seeds for gap in gaps]
    assert all(a is None or b <= a for a, b in pairwise(needed))
    done = mmseg("ablate", "--power", "2")
    assert (done.code, done.err) == (0, "")
    assert "seeds, cautious" in done.out
    change_params(lambda p: p["ablate"].update(seeds=[0]))
    done = mmseg("ablate", "--power", "2")
    assert done.code == 2
    assert "has one seed, which tells nothing of its noise" in done.one_error()
    change_params(lambda p: p["ablate"].update(seeds=[0, 1], variants=["mbconv"]))
    assert "has a single row" in mmseg("ablate", "--power", "2").one_error()


def test_power_where_images_are_of_one_drive(paths, change_params, mmseg):
    change_params(lambda p: p["ablate"].update(image_blocks="prefix"))
    done = mmseg("ablate", "--power", "2")
    assert done.code == 0, done.err
    assert "one block of images tells nothing of others" in done.out
    assert "is no gap in points" in mmseg("ablate", "--power", "inf").one_error()
