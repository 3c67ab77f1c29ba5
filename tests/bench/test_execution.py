"""`mmseg bench execution`: real calls of DVC in small projects; no time is asserted."""

import json

from mmseg_cli.bench import execution
from mmseg_cli.params import load
from tests.conftest import run_inside


def test_the_command_goes_to_its_report(project, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc-site"))
    monkeypatch.setattr(execution, "SIZES", (3,))
    monkeypatch.setattr(execution, "SLEEP_SECONDS", 0.01)
    ended = run_inside("bench", "execution", "--few", "2", "--rounds", "1", "--out", "there")
    assert ended.code == 0, ended.err
    result = json.loads((project / "there" / "execution.json").read_text())
    own = result["sizes"]["3"]
    assert all(value > 0 for key in ("alone", "driven", "graph") for value in own[key])
    assert own["handed"] > 0
    assert (project / "there" / "execution.md").read_text() == execution.markdown(result)


def test_the_rows_are_medians_and_ratios_of_the_same_round():
    own = {"alone": [1.0, 2.0, 4.0], "driven": [1.1, 2.0, 4.2], "graph": [3.0], "handed": 7.0}
    (row,) = execution.rows({"sizes": {"100": own}})
    assert row == ("100", "2.00", "2.00", "+5.0", "+0.0 to +10.0", "3.0", "7.0")
    assert len(row) == len(execution.HEADINGS)


def test_a_project_of_stages_is_as_large_as_asked_for(project, monkeypatch, tmp_path):
    from mmseg_cli.execution import dvc

    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc-site"))
    paths = execution.project(tmp_path / "made", stages=5, params=project / "params.yaml")
    assert len(dvc.graph(paths).to_run()) == 5
    assert load(paths.params).execution.needs_of("s1") == load(project / "params.yaml").execution.needs["other"]
