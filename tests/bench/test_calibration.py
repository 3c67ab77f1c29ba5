from __future__ import annotations

import json
from functools import partial

import pytest

from mmseg_cli.bench import calibration, calibration_trials
from tests.conftest import run_inside

TINY = calibration_trials.Size(trials=40, bootstrap_trials=10, replicates=40, populations=3)


@pytest.fixture(scope="module")
def result():
    calls = calibration.plan(
        TINY,
        counts_of_seeds=(2, 3),
        counts_of_blocks=(8,),
        noises=("seeds 1 : images 1", "no image noise"),
        shapes=("normal", "exponential"),
        few_blocks=(3,),
    )
    done = []
    found = calibration.run(calls, TINY, advance=lambda: done.append(1))
    assert len(done) == len(calls)
    return found


def test_the_result_is_plain_and_says_how_it_came_about(result):
    assert json.loads(json.dumps(result))["rows"] == result["rows"]
    assert result["settings"]["trials"] == 40
    assert {"numpy", "scipy", "python"} <= set(result["environment"])
    worlds = [row["world"] for row in result["rows"]]
    assert {world: worlds.count(world) for world in worlds} == {"linear": 16, "confusion": 4, "alike": 4}
    for row in result["rows"]:
        shares = {name: value for name, value in row.items() if name.startswith(("coverage", "false", "power"))}
        assert shares
        assert all(0 <= value <= 1 for value in shares.values())


def test_the_report_tells_every_group_and_what_is_outside(result):
    text = calibration.markdown(result)
    assert "40 simulated ablations of each of 24 configurations, seed 0" in text
    for group in (
        "normal",
        "normal, 3 images",
        "exponential, of runs",
        "exponential, of differences",
        "mIoU of the confusion world",
    ):
        assert f"| {group} |" in text
    assert calibration.headings(result) == ("noise", "2 seeds", "3 seeds")
    for rows in calibration.tables(result).values():
        assert all(len(row) == 3 for row in rows)
    changed = json.loads(json.dumps(result))
    row = next(row for row in changed["rows"] if row["seeds"] == 3 and row["world"] == "linear")
    row["coverage this-set"], row["power new-images 0.8"], row["false new-images"] = 0.5, 0.3, 0.4
    certain = [miss for miss in calibration.missed(changed) if miss.beyond_chance]
    told = [(miss.kind, miss.value) for miss in certain if miss.row is row]
    assert told == [("coverage", 0.5), ("false verdicts", 0.4), ("power where theory says 80 %", 0.3)]
    where = "seeds 1 : images 1; 3 seeds, 8 images"
    assert f"- normal; new-images; false verdicts: 40.0 % ({where})" in calibration.markdown(changed)
    row["seeds"] = 2  # is told, and not judged
    assert not [miss for miss in calibration.missed(changed) if miss.row is row]


def test_the_command_writes_both_reports(tmp_path, monkeypatch):
    few = partial(
        calibration.plan,
        counts_of_seeds=(3,),
        counts_of_blocks=(8,),
        noises=("no image noise",),
        shapes=("normal",),
        few_blocks=(),
    )
    monkeypatch.setattr(calibration, "plan", few)
    tiny = partial(calibration_trials.Size, replicates=20, populations=2)
    tiny.bootstrap_trials = 5
    monkeypatch.setattr(calibration_trials, "Size", tiny)
    done = run_inside("bench", "calibration", "--trials", 20, "--seed", 1, "--out", tmp_path / "report")
    assert done.code == 0, done.err
    assert "coverage of the 95 % interval, new-images" in done.out
    result = json.loads((tmp_path / "report" / "calibration.json").read_text())
    assert (tmp_path / "report" / "calibration.md").read_text() == calibration.markdown(result)
    assert (result["settings"]["trials"], result["settings"]["bootstrap_trials"], result["settings"]["seed"]) == (
        20,
        5,
        1,
    )
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["calibration.json", "calibration.md"]
