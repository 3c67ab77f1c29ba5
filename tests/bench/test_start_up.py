"""`mmseg bench start-up`: real commands in a project that it makes, of a preset with evidence made for the test."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from mmseg_cli import provenance
from mmseg_cli.bench import start_up
from mmseg_cli.errors import MmsegError
from mmseg_cli.params import load
from mmseg_cli.paths import DEMO, find
from tests import evidence
from tests.conftest import REPOSITORY, run_inside


@pytest.fixture
def project(tmp_path):
    """A project whose demo has evidence of two variants; a hundred runs of it are few."""
    shipped = find(preset=DEMO, root=REPOSITORY)
    paths = find(preset=DEMO, root=start_up._project(tmp_path / "project", shipped, start_up.SHIPPED))
    text = paths.params.read_text()
    paths.params.write_text(text.replace("variants: [residual, mbconv, mmbconv]", "variants: [residual, mbconv]"))
    evidence.make(paths, load(paths.params))
    return paths


@pytest.mark.slow
def test_all_commands_are_run_and_nothing_is_trained(project, tmp_path, monkeypatch):
    monkeypatch.setattr(start_up, "RUNS", 4)
    monkeypatch.setattr(start_up, "STAGES", 16)
    before = {file: file.read_bytes() for file in project.root.rglob("*") if file.is_file()}
    rounds = []
    params = load(project.params)
    assert len(params.ablate.variants) == 2
    work = tmp_path / "work"
    result = start_up.run(project, params, work, rounds=1, advance=lambda: rounds.append(1))
    assert rounds == [1]
    result = json.loads(json.dumps(result))
    assert list(result["commands"]) == list(start_up.LIMITS)
    assert all(len(own["seconds"]) == 1 and own["seconds"][0] > 0 for own in result["commands"].values())
    assert result["settings"]["stages"][start_up.STAGES_PRESET] >= 16
    table = (work / start_up.RUNS_PRESET / "reports" / start_up.RUNS_PRESET / "ablation.md").read_text()
    assert "residual" in table
    assert "mbconv" in table
    assert not list(work.rglob("*.safetensors"))
    assert before == {file: file.read_bytes() for file in project.root.rglob("*") if file.is_file()}
    page = start_up.markdown(result)
    assert page.count("\n| ") == 1 + len(start_up.LIMITS)
    assert "<= 0.2" in page


def test_what_a_user_can_mend_is_one_line(project):
    where = project.evidence / "mbconv-s0" / "metrics.json"
    where.write_text("{")
    with pytest.raises(MmsegError, match=r"a copy of this project: .*metrics.json: .*: mend it here") as told:
        start_up._called(project.root, str(Path(sys.executable).with_name("mmseg")), "ablate", "--no-run")
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_stages_recorded_as_done_are_noticed_when_they_are_not(project):
    stages = start_up.record_as_done(project)
    assert stages > 3
    (project.root / "blocks" / "new.py").write_text("")
    with pytest.raises(RuntimeError, match="dvc status"):
        start_up._called(project.root, sys.executable, "-m", "dvc", "status", "--quiet", str(project.pipeline))


def test_a_preset_without_evidence_is_one_line(project, tmp_path):
    params = load(project.params)
    shutil.rmtree(project.evidence / "mbconv-s1")
    with pytest.raises(MmsegError, match="mbconv-s1: no evidence of this run"):
        start_up.run(project, params, tmp_path / "work", rounds=1, advance=lambda: None)


def test_the_command_writes_its_report(monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    found = {"environment": {"processor": "one"}, "commands": {start_up.PYTHON: {"seconds": [0.02], "aim": None}}}
    found["settings"] = {"preset": "demo", "rounds": 1, "tracking": True}
    found["settings"]["stages"] = {DEMO: 17, start_up.STAGES_PRESET: 105}
    monkeypatch.setattr(start_up, "run", lambda *given, **options: found)
    ended = run_inside("bench", "start-up", "--rounds", "1", "--out", str(tmp_path))
    assert ended.code == 0, ended.err
    assert "bench start-up" in ended.out
    of_this = {"code": provenance.code_state(REPOSITORY)}
    assert json.loads((tmp_path / "start-up.json").read_text()) == found | of_this
    assert (tmp_path / "start-up.md").read_text() == start_up.markdown(found)
