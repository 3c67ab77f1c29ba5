from __future__ import annotations

from pathlib import Path

import evidence as made
import pytest
import trees

from mmseg_cli import paths as places
from mmseg_cli.ablation import examples, match, report
from mmseg_cli.execution import dvc
from mmseg_cli.params import load


@pytest.fixture
def ran(monkeypatch):
    """The calls of `dvc repro`, which leaves made evidence of the grid in params.yaml."""
    calls = []

    def repro(paths):
        calls.append(load(paths.params).ablate.variants)
        made.make(paths, load(paths.params))

    monkeypatch.setattr(dvc, "repro", repro)
    return calls


@pytest.fixture
def solved(monkeypatch):
    """What is solved for, each at the next width."""
    calls = []

    def solve(**wanted):
        calls.append((wanted["quantity"], wanted["baseline"]["block"], wanted["variant"]["block"]))
        found = {"quantity": wanted["quantity"], "baseline_value": 1.0, "value": 1.01, "difference": 0.01}
        return match.Match(width=20 + len(calls), expansion=2, device=None, **found)

    monkeypatch.setattr(match, "solve", solve)
    return calls


def rows():
    return load(Path("params.yaml")).variants


def test_what_the_stage_has_built_is_only_shown(project, ran, mmseg, monkeypatch):
    """`dvc repro` has written the files and drawn the examples; they are DVC's."""

    def fail(*_, **__):
        raise AssertionError("a second time")

    monkeypatch.setattr(report, "build", fail)
    monkeypatch.setattr(examples, "write", fail)
    done = mmseg("ablate", "--blocks", "residual,mbconv", "--seeds", "0,1")
    assert done.code == 0, done.err
    assert ran == [["residual", "mbconv"]]
    assert "params.yaml: ablate.variants: [residual, mbconv, mmbconv] -> [residual, mbconv]" in done.out
    assert "none: `mmseg ablate --no-run` says why" in done.out
    index = Path("runs/demo/ablate/examples/index.md")
    index.parent.mkdir(parents=True)
    index.write_text("drawn before")
    done = mmseg("ablate")
    assert str(index) in done.out
    assert not Path("reports/demo/ablation.md").exists()


def test_the_stage_builds_and_draws(project, ran, mmseg):
    paths = places.find(preset="demo")
    made.make(paths, load(paths.params))
    done = mmseg("ablate", "--no-run")
    assert done.code == 0, done.err
    assert ran == []
    assert Path("reports/demo/ablation.md").is_file()
    assert "none: " in done.out and "says why" not in done.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--blocks", "mmbconv", "--set", "train.lr=1"), "the grid: variants.mmbconv-lr-1.train.lr: unknown key: corr"),
        (("--set", "network.width=wide", "--match", "macs"), "the grid: variants.residual-width-wide.width: Input "),
        (
            ("--seeds", "99999999999999999999"),
            "the grid: ablate.seeds.0: Input should be less than or equal to 4294967295",
        ),
        (("--blocks", "blocks.nothing:X"), "blocks.nothing:X: blocks.nothing cannot be imported (ModuleNotFoundError"),
        (("--seeds", "-1"), "the grid: ablate.seeds.0: Input should be greater than or equal to 0, got -1: correct it"),
        (("--blocks", "mmbconv", "--match", "parameters"), "--match: there is no row beside the baseline to solve for"),
        (("--match", "mcas"), "--match: unknown name 'mcas'"),
    ],
)
def test_nothing_is_shown_of_a_grid_that_makes_no_sense(project, ran, solved, mmseg, given, said):
    before = trees.contents(project)
    done = mmseg("ablate", *given)
    assert done.code == 2
    assert said in done.one_error()
    assert (done.out, ran, solved) == ("", [], [])
    assert trees.contents(project) == before


def test_a_matched_row_s_name_may_be_taken(project, ran, solved, mmseg, change_params):
    change_params(lambda p: p["variants"].update({"mbconv-params": {"block": "mbconv", "depth": 2}}))
    done = mmseg("ablate", "--match", "parameters")
    assert "variants.mbconv-params: stands in variants for something else than match parameters" in done.one_error()
    assert (done.out, solved) == ("", [])


def test_a_match_needs_the_prepared_data(project, ran, mmseg):
    done = mmseg("ablate", "--blocks", "residual,mbconv", "--match", "macs")
    assert done.code == 2
    assert "--match: cityscapes is not prepared yet: run `mmseg prepare cityscapes --preset demo`" in done.one_error()
    assert ran == []


def test_parameters_are_solved_anew(prepared, ran, solved, mmseg):
    """The row that is written is the one that was shown."""
    asked = ("ablate", "--blocks", "residual,mbconv", "--match", "parameters")
    assert "variants.mbconv-params: new, block mbconv, match parameters, width 21" in mmseg(*asked).out
    done = mmseg(*asked)
    assert "mbconv: parameters of residual at width 22, expansion 2: +1.00 %" in done.out
    old, new = (f"block mbconv, match parameters, width {width}, expansion 2" for width in ("21", "22"))
    assert f"variants.mbconv-params: {old}" in done.out and f" -> {new}" in done.out
    assert rows()["mbconv-params"].width == 22
    assert ran == 2 * [["residual", "mbconv", "mbconv-params"]]


def test_a_row_of_equal_time_is_kept(prepared, ran, solved, mmseg):
    """Noise alone would change it, and have it trained again; another baseline or recipe is another question."""
    asked = ("ablate", "--blocks", "residual,mbconv", "--match", "time")
    mmseg(*asked)
    before = Path("params.yaml").read_text()
    for again in (asked, ("ablate", "--match", "time")):
        done = mmseg(*again)
        assert "mbconv-time: kept: width 21, expansion 2, solved before; take it out of ablate.variants" in done.out
        assert Path("params.yaml").read_text() == before
    assert solved == [("time", "residual", "mbconv")]
    mmseg("ablate", "--blocks", "mmbconv,mbconv", "--match", "time")
    assert solved[1:] == [("time", "mmbconv", "mbconv")]
    assert rows()["mbconv-time"].width == 22
    mmseg("ablate", "--blocks", "mmbconv,mbconv")  # it is no longer known what the width was solved for
    mmseg("ablate", "--blocks", "mmbconv,mbconv", "--match", "time")
    assert len(solved) == 3
    assert ran[-1] == ["mmbconv", "mbconv", "mbconv-time"]


def test_the_baseline_may_be_a_matched_row(prepared, ran, solved, mmseg, change_params):
    """It is the first row of the table, whatever it is."""
    change_params(lambda p: p["variants"].update({"even": {"block": "mbconv", "match": "macs", "width": 5}}))
    mmseg("ablate", "--blocks", "even,residual", "--match", "macs")
    assert solved == [("macs", "mbconv", "residual")]
    assert ran == [["even", "residual", "residual-macs"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "2"], "--jobs: is of an executor: name one, as in `mmseg ablate --executor local --jobs 2`"),
        (["--address", "here:1"], "--address: is of an executor"),
        (
            ["--executor", "local", "--address", "here:1"],
            "--address: is of a Ray cluster: leave it out, or use --executor",
        ),
        (["--executor", "local", "--no-run"], "--no-run and --executor: do not go together: give one of them"),
        (["--status", "--power", "2"], "--power and --status: do not go together"),
        (["--status", "--seeds", "0"], "--status: is about params.yaml's grid"),
        (["--status"], "--status: no grid of demo has been run by an executor here: start it by"),
    ],
)
def test_options_of_executors_that_make_no_sense_are_one_line(project, mmseg, arguments, said):
    ended = mmseg("ablate", *arguments)
    assert ended.code == 2
    assert said in ended.one_error()


def test_an_engine_that_is_not_installed_is_said(project, mmseg, monkeypatch):
    import sys

    from mmseg_cli.execution import dvc as called

    graph = called.Graph({"train@a-0": frozenset()}, frozenset(["train@a-0"]))
    monkeypatch.setattr(called, "graph", lambda paths: graph)
    for name, extra in (("ray", "ray"), ("submitit", "slurm")):
        monkeypatch.setitem(sys.modules, name, None)
        ended = mmseg("ablate", "--executor", extra)
        assert ended.code == 2
        assert f"--executor {extra}: {name} is not installed: run `pip install mmseg-cli[{extra}]`" in ended.one_error()
