from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from mmseg_cli import paths as places
from mmseg_cli.ablation import report, verify
from mmseg_cli.params import load
from tests import evidence as made
from tests.conftest import edit, make_project


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project with a report, and a dvc.lock as `dvc repro` would have left it."""
    root = make_project(tmp_path_factory.mktemp("verify") / "project")
    edit(
        root / "params.yaml",
        lambda p: p["ablate"].update(variants=["residual", "mbconv", "mmbconv"], seeds=[0, 1, 2]),
    )
    found = places.find(preset="demo", root=root)
    params = load(found.params)
    made.make(found, params, skill={"mmbconv": 0.85})
    report.build(found, params)
    (found.reports / "data-cityscapes.md").write_text("# a data card\n\n| split | images |\n| train | 48 |\n")
    lock(found)
    return root


@pytest.fixture
def paths(built, tmp_path, monkeypatch):
    """A copy of it, which is the current folder."""
    root = shutil.copytree(built, tmp_path / "project")
    monkeypatch.chdir(root)
    return places.find(preset="demo")


def lock(paths) -> None:
    """dvc.lock with the hashes of what is there; of stages as in dvc.yaml."""

    def outs(*files: Path) -> list[dict[str, str]]:
        return [
            {"path": str(file.relative_to(paths.root)), "hash": "md5", "md5": verify.dvc_hash(file)} for file in files
        ]

    runs = {path.name: path for path in sorted(paths.evidence.iterdir()) if path.is_dir()}
    stages = {f"evaluate@{name}": {"outs": outs(*sorted(folder.iterdir()))} for name, folder in runs.items()}
    stages["cost"] = {"outs": outs(paths.evidence / "cost.json")}
    stages["prepare@cityscapes"] = {"outs": outs(paths.reports / "data-cityscapes.md")}
    page = sorted(path for path in paths.reports.iterdir() if path.name not in ("evidence", "data-cityscapes.md"))
    stages["ablate"] = {"outs": outs(*page)}
    (paths.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def test_what_was_just_written_is_as_it_should_be(paths, mmseg):
    found = verify.level_0(paths)
    assert (found.faults, found.notes) == ([], [])
    assert found.files > 20
    done = mmseg("verify")
    assert (done.code, done.err) == (0, "")
    assert "reports/demo/ablation.md" in done.out


def test_dvc_s_own_hashes(paths, tmp_path):
    """Of a file, and of a folder, as a real DVC computes them."""
    folder = tmp_path / "other"
    (folder / "out" / "b").mkdir(parents=True)
    for name in ("out/a.txt", "out/b/c.txt", "out/B.txt", "file.txt"):
        (folder / name).write_text(name)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "add", "-q", "out", "file.txt"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    for name in ("out", "file.txt"):
        said = yaml.safe_load((folder / f"{name}.dvc").read_text())["outs"][0]["md5"]
        assert verify.dvc_hash(folder / name) == said


@pytest.mark.parametrize("seed", range(50))
def test_any_digit_that_is_changed_anywhere_is_caught(paths, seed):
    """50 random edits: a digit of a table, csv, LaTeX, certificate, metrics file, cost or data card."""
    rng = random.Random(seed)
    files = [path for path in paths.reports.rglob("*") if path.suffix in (".md", ".csv", ".tex", ".json")]
    file = rng.choice(sorted(files))
    text = file.read_text()
    place = rng.choice([match.start() for match in re.finditer(r"\d", text)])
    other = rng.choice([digit for digit in "0123456789" if digit != text[place]])
    file.write_text(text[:place] + other + text[place + 1 :])
    faults = verify.level_0(paths).faults
    assert faults, f"{file}: {text[max(0, place - 30) : place + 30]!r} with {other}"
    assert all("\n" not in fault for fault in faults)


def test_a_fault_says_where_it_is(paths, mmseg):
    page = paths.reports / "ablation.md"
    text = page.read_text()
    shown = re.search(r"\d+\.\d\d \[", text).group()
    page.write_text(text.replace(shown, "99.99 [", 1))
    done = mmseg("verify", "reports/demo/ablation.md")
    assert done.code == 2
    assert "fault: reports/demo/ablation.md: line 5 holds" in done.err
    assert "99.99" in done.err
    assert done.one_error().startswith("mmseg: error: mmseg verify: 1 fault in 1 report: ")


@pytest.mark.parametrize(
    "harm",
    [
        lambda paths: (paths.reports / "figures" / "pareto.png").write_bytes(b"another"),
        lambda paths: (paths.reports / "figures" / "pareto.png").unlink(),
        lambda paths: (paths.reports / "figures" / "more.png").write_bytes(b"more"),
        lambda paths: (paths.reports / "certificates" / "other.json").write_text("{}"),
        lambda paths: (paths.reports / "certificates" / "mbconv.json").unlink(),
        lambda paths: (paths.reports / "ablation.csv").unlink(),
        lambda paths: (paths.reports / "data-cityscapes.md").unlink(),
        lambda paths: (paths.evidence / "mbconv-s1" / "metrics.json").unlink(),
    ],
)
def test_what_is_missing_or_too_much_is_a_fault(paths, harm):
    harm(paths)
    assert verify.level_0(paths).faults


def test_a_forger_who_writes_the_tables_anew_is_caught_by_the_lock(paths):
    cost = json.loads((paths.evidence / "cost.json").read_text())
    cost["variants"]["mmbconv"]["step_seconds"] = [0.05, 0.05, 0.05]
    (paths.evidence / "cost.json").write_text(json.dumps(cost))
    report.build(paths, load(paths.params))
    faults = verify.level_0(paths).faults
    assert [fault for fault in faults if "cost.json: is not what its stage wrote" in fault]


def test_without_a_lock_this_is_said(paths, mmseg):
    (paths.root / "dvc.lock").unlink()
    done = mmseg("verify")
    assert done.code == 0
    assert "dvc.lock is missing" in done.err


def test_runs_and_stages_outside_the_grid_are_not_looked_at(paths, change_params):
    change_params(lambda p: p["ablate"].update(variants=["residual", "mbconv"]))
    report.build(paths, load(paths.params))
    for file in (paths.evidence / "mmbconv-s0").iterdir():
        file.unlink()
    lock_file = yaml.safe_load((paths.root / "dvc.lock").read_text())
    (paths.root / "dvc.lock").write_text(yaml.safe_dump(lock_file))
    assert not [fault for fault in verify.level_0(paths).faults if "mmbconv" in fault]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reports/demo/nothing.md"], "missing"),
        (["params.yaml"], "is no report of this project"),
        (["--only", "mbconv-s0"], "is for levels 1 and 2"),
        (["--level", "1", "--only", "mbconv-s9"], "is no run of demo"),
    ],
)
def test_wrong_questions(paths, mmseg, arguments, said):
    done = mmseg("verify", *arguments)
    assert done.code == 2
    assert said in done.one_error()


def test_hashes_are_of_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x\r\ny")
    assert verify.dvc_hash(tmp_path / "a") == hashlib.md5(b"x\r\ny").hexdigest()
