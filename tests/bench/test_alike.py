"""`mmseg bench alike`: real trainings, tiny; no rate is asserted of so few."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from mmseg_cli.ablation import statistics
from mmseg_cli.ablation.statistics import ESTIMANDS, THIS_SET
from mmseg_cli.bench import alike
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.models.weights import read_record
from mmseg_cli.params import load
from mmseg_cli.training import stages
from tests.conftest import run_inside

TINY = alike.Size(steps=2, train=4, val=5, height=48)


def trained(project, *, trainings=6, advance=lambda: None):
    warned = []
    found = alike.run(
        project, block="mmbconv", trainings=trainings, seeds=3, size=TINY, advance=advance, warn=warned.append
    )
    assert warned == []
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tmp_path_factory.mktemp("alike") / "project"


@pytest.fixture(scope="module")
def result(project):
    advanced = []
    found = trained(project, advance=lambda: advanced.append(1))
    assert len(advanced) == 6
    return json.loads(json.dumps(found))


def noise(trainings, *, blocks=12, seed=0):
    """The runs of a result whose mIoU is noise: of trainings, and of trainings on images."""
    rng = np.random.default_rng(seed)
    cells_NB = 30 + rng.standard_normal((trainings, 1)) + rng.standard_normal((trainings, blocks))
    plain_N = cells_NB.mean(axis=1)
    without_NB = (blocks * plain_N[:, None] - cells_NB) / (blocks - 1)
    rows = zip(plain_N, without_NB, strict=True)
    return {"runs": [{"seed": n, "miou": float(p), "without": list(w)} for n, (p, w) in enumerate(rows)]}


# ------------------------------------------------------------------------------------------------ training


def test_every_training_is_a_real_run_and_is_judged_as_it_judged_itself(project, result):
    assert [row["seed"] for row in result["runs"]] == list(range(6))
    assert len({row["miou"] for row in result["runs"]}) == 6  # they do differ
    store = open_store(
        project / "data/demo/cityscapes", parameters=load(project / "params.yaml").datasets["cityscapes"].content()
    )
    for row in result["runs"]:
        record = read_record(project / f"runs/demo/train/mmbconv-s{row['seed']}")
        assert (record["seed"], record["rungs"][0]["parameters"]["steps"]) == (row["seed"], 2)
        assert row["miou"] == pytest.approx(100 * record["figures"]["mean_iou"], abs=1e-9)
        assert len(row["without"]) == len(store.split("val")) == 5
    assert not (project / "mlflow.db").exists()
    assert 0 < result["largest_class"]["miou"] < 10


def test_the_same_call_again_trains_nothing(project, result, monkeypatch):
    monkeypatch.setattr(stages, "train", None)
    assert trained(project)["runs"] == result["runs"]


def test_too_few_trainings_are_refused(tmp_path):
    with pytest.raises(MmsegError, match="5 do not make a baseline and a variant of 3 seeds"):
        trained(tmp_path, trainings=5)
    with pytest.raises(MmsegError, match="--seeds: is one"):
        alike.require_enough(6, 1)


def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch, result):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(alike, "Size", lambda: TINY)
    command = ("bench", "alike", "--trainings", 4, "--seeds", 2, "--out", "report")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests' own caller may have it ignored
    monkeypatch.setenv("MMSEG_FAILPOINT", "finish:before:2=int")
    monkeypatch.setattr("mmseg_cli.runtime._passed", {})
    stopped = run_inside(*command)
    assert stopped.code == 130, stopped.err
    assert "trainings that are done are kept: run the same command again to go on" in stopped.one_error()
    monkeypatch.setenv("MMSEG_FAILPOINT", "step:1=int")
    stopped = run_inside(*command)
    assert stopped.code == 130, stopped.err
    assert "saved after step 1 of 2: run the same command again to go on" in stopped.one_error()
    assert sorted(path.name for path in Path("report").iterdir()) == []
    monkeypatch.delenv("MMSEG_FAILPOINT")
    signal.signal(signal.SIGINT, before)
    done = run_inside(*command)
    assert done.code == 0, done.err
    assert "One variant against a baseline" in done.out
    assert sorted(path.name for path in Path("report").iterdir()) == ["alike.json", "alike.md"]
    found = json.loads(Path("report/alike.json").read_text())
    assert found["runs"] == result["runs"][:4]
    assert Path("report/alike.md").read_text() == alike.markdown(found)
    assert list(Path(".work").iterdir()) == []


def test_a_block_that_is_none_is_named():
    done = run_inside("bench", "alike", "--block", "mmbcon")
    assert done.code == 2
    assert "--block: " in done.one_error()
    assert "mmbconv" in done.one_error()


# ------------------------------------------------------------------------------------------------ judging


@pytest.mark.parametrize(("variants", "seeds", "tables"), [(2, 3, 20), (3, 3, 13), (2, 5, 12), (2, 7, 8), (2, 61, 0)])
def test_groups_are_disjoint(variants, seeds, tables):
    places_GVS = alike.groups(120, variants=variants, seeds=seeds)
    assert places_GVS.shape == (tables, variants, seeds)
    assert len(set(places_GVS.ravel())) == places_GVS.size
    assert not places_GVS.size or (places_GVS.min(), places_GVS.max()) == (0, places_GVS.size - 1)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        (0, 20, 0, 0.1684),  # 1 - 0.025 ** (1 / 20)
        (1, 20, 0.0013, 0.2487),
        (4, 20, 0.0573, 0.4366),
        (10, 100, 0.0490, 0.1762),
        (20, 20, 0.8316, 1),
    ],
)
def test_clopper_pearson_by_the_textbook(count, of, low, high):
    assert alike.clopper_pearson(count, of) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("estimand", ESTIMANDS)
@pytest.mark.parametrize("variants", alike.VARIANTS)
def test_tables_are_judged_one_by_one_as_an_ablation_judges(estimand, variants):
    result = noise(60, seed=3)
    for row in result["runs"][3:6]:  # the first variant is another one
        row["miou"] += 20
        row["without"] = [value + 20 for value in row["without"]]
    found = alike.alarms(result, estimand=estimand, seeds=3, variants=variants)
    samples = [
        statistics.Sample(np.array([row["miou"] for row in rows]), np.array([row["without"] for row in rows]))
        for rows in (result["runs"][first : first + 3] for first in range(0, 60, 3))
    ]
    expected = 0
    for first in range(0, found.tables * variants, variants):
        base, *others = samples[first : first + variants]
        family = [statistics.of_difference(other, base, estimand=estimand) for other in others]
        words = [verdict.word for verdict in statistics.verdicts(family)]
        assert (words[0] == "better") >= (first == 0)
        expected += any(word in ("better", "worse") for word in words)
    assert (found.tables, found.false) == (60 // (3 * variants), expected)
    assert found.interval == alike.clopper_pearson(expected, found.tables)
    assert (found.uniform is None) == (variants == 3)


def test_of_two_seeds_it_is_the_raw_t_test():
    result = noise(40, seed=4)
    found = alike.alarms(result, estimand=THIS_SET, seeds=2, variants=2)
    values = np.array([row["miou"] for row in result["runs"]]).reshape(10, 2, 2)
    differences = values[:, 1] - values[:, 0]
    t = differences.mean(axis=1) / (differences.std(axis=1, ddof=1) / np.sqrt(2))
    assert (found.tables, found.false) == (10, int((np.abs(t) > 12.7062).sum()))


def test_normal_noise_gives_false_alarms_as_promised():
    """A wide net: 1000 divisions of 120 trainings into 20 tables."""
    found = alike.alarms(noise(120, seed=5), estimand=THIS_SET, seeds=3, variants=2)
    assert found.redivided == pytest.approx(0.05, abs=0.02)
    assert 0.001 < found.uniform <= 1


def test_the_part_of_training_and_image_together_is_told_apart():
    assert alike.residual_share(noise(2000)) == pytest.approx(1 / 13, rel=0.1)  # of 1 + 1 / 12


def test_the_report_is_computed_from_the_trainings(result):
    tables = alike.tables(result)
    assert [len(rows) for rows in tables.values()] == [4, 2]  # of 6: two seeds and three; two seeds
    assert all(len(row) == len(alike.HEADINGS) for rows in tables.values() for row in rows)
    text = alike.markdown(result)
    assert "6 trainings of `mmbconv` that differ in their seed alone: 2 steps on 4 generated streets of" in text
    assert "48x96, judged on 5 others." in text
    assert "| this-set | 3 | 1 |" in text
    result = json.loads(json.dumps(result))
    result["settings"]["seeds"] = 4  # too many for a table
    assert alike.tables(result) == tables
    result["runs"][0]["miou"] += 1
    assert alike.markdown(result) != text
