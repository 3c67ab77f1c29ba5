from __future__ import annotations

import difflib
import shutil
from pathlib import Path

import pytest

from mmseg_cli import paths as places
from mmseg_cli.ablation.pipeline import plan_grid, repro, write_grid
from mmseg_cli.errors import MmsegError
from mmseg_cli.params import load

REPOSITORY = Path(__file__).resolve().parents[2]
PRESETS = ["demo", *sorted(path.parent.name for path in REPOSITORY.glob("pipelines/*/params.yaml"))]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The repository's own parameters, of every preset."""
    shutil.copyfile(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    for path in REPOSITORY.glob("pipelines/*/params.yaml"):
        target = tmp_path / "pipelines" / path.parent.name
        target.mkdir(parents=True)
        shutil.copyfile(path, target / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(preset="demo", **wanted):
    paths = places.find(preset=preset)
    return paths, plan_grid(paths, load(paths.params), **({"blocks": None, "seeds": None} | wanted))


def changed_lines(old, new):
    return [line for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[:2] in ("+ ", "- ")]


@pytest.mark.parametrize("preset", PRESETS)
def test_only_the_wanted_line_changes(clone, preset):
    """Comments, nulls, numbers and layout stay as they were written."""
    paths, change = plan(preset, seeds=[3, 1, 4, 1 + 4])
    before = paths.params.read_text()
    assert len(change.lines) == 1
    assert change.lines[0].startswith("ablate.seeds: [")
    assert change.lines[0].endswith(" -> [3, 1, 4, 5]")
    lines = changed_lines(before, change.text)
    assert len(lines) == 2, lines
    assert lines[0].startswith("-   seeds: ")
    assert lines[1].startswith("+   seeds: [3, 1, 4, 5]")
    assert paths.params.read_text() == before
    assert write_grid(paths, change).ablate.seeds == [3, 1, 4, 5]
    assert paths.params.read_text() == change.text


def test_the_grid_that_is_already_there_changes_nothing(clone):
    params = load(Path("params.yaml"))
    assert plan()[1] is None
    assert plan(blocks=params.ablate.variants, seeds=params.ablate.seeds)[1] is None


def test_an_order_is_a_change(clone):
    paths, change = plan(blocks=["mmbconv", "residual"])
    assert change.lines == ["ablate.variants: [residual, mbconv, mmbconv] -> [mmbconv, residual]"]
    assert write_grid(paths, change).ablate.variants == ["mmbconv", "residual"]


def test_a_block_without_variant_gets_one(clone, change_params):
    def drop(p):
        del p["variants"]["mmbconv"]
        p["ablate"]["variants"].remove("mmbconv")

    change_params(drop)
    paths, change = plan(blocks=["residual", "mmbconv"])
    assert change.lines[0] == "variants.mmbconv: new, block mmbconv"
    written = write_grid(paths, change)
    assert written.network_of("mmbconv")["block"] == "mmbconv"
    assert written.ablate.variants == ["residual", "mmbconv"]
    assert "# the same width and depth at every level" in paths.params.read_text()


def test_a_misspelled_block_gets_the_nearest_name(clone):
    with pytest.raises(MmsegError, match=r"--blocks: unknown name 'mmbcnov': .*did you mean mmbconv\?"):
        plan(blocks=["residual", "mmbcnov"])


@pytest.mark.parametrize(("option", "value"), [("blocks", ["mbconv", "mbconv"]), ("seeds", [1, 1])])
def test_the_same_one_twice_is_refused(clone, option, value):
    with pytest.raises(MmsegError, match=f"--{option}: holds the same one twice"):
        plan(**{option: value})


def test_a_grid_that_cannot_be_read_back_is_not_kept(clone):
    paths, change = plan(seeds=[-1])
    before = paths.params.read_text()
    with pytest.raises(MmsegError, match="ablate.seeds.0"):
        write_grid(paths, change)
    assert paths.params.read_text() == before


def test_dvc_is_not_called_from_inside_dvc(clone, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "ablate")
    with pytest.raises(MmsegError, match="called inside a DVC stage: use `mmseg ablate --no-run` there"):
        repro(places.find(preset="demo"))
