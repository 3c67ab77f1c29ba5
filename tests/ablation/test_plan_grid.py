from __future__ import annotations

import difflib
import shutil
from pathlib import Path

import pytest

from mmseg_cli import paths as places
from mmseg_cli.ablation import axes
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


def plan(preset="demo", *, blocks=None, seeds=None, **wanted):
    """The change for some blocks, seeds, and axes of `axes.rows`."""
    paths = places.find(preset=preset)
    params = load(paths.params)
    entries = None
    if blocks or wanted:
        given = {"layouts": None, "starts": None, "settings": []} | wanted
        given["settings"] = [axes.setting(text) for text in given["settings"]]
        entries = axes.rows(params, blocks=blocks or axes.blocks_of(params), **given)
    return paths, plan_grid(paths, params, entries=entries, seeds=seeds)


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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seeds": [1, 1]}, "--seeds: holds the same one twice"),
        ({"blocks": ["mbconv", "mbconv"]}, "the grid: has the row mbconv twice"),
        ({"layouts": ["uniform", "uniform"]}, "has the row residual twice"),
        ({"layouts": ["unifrom"]}, r"--layouts: unknown name 'unifrom': .*did you mean uniform\?"),
        ({"starts": ["imagnet"]}, r"--starts: unknown name 'imagnet': .*did you mean imagenet\?"),
        ({"settings": ["learning_rate=1"]}, "--set: 'learning_rate=1' is no key with values"),
        ({"settings": ["train.learning_rate"]}, "is no key with values"),
        ({"settings": ["trian.learning_rate=1"]}, r"--set: unknown name 'trian': .*did you mean train\?"),
        ({"settings": ["train.learning_rate="]}, "are not YAML"),
        ({"settings": ["train.augment={flip: [}"]}, "are not YAML"),
        ({"settings": ["network.layout=pyramid"]}, "has an option of its own: use --layouts"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(clone, given, said):
    with pytest.raises(MmsegError, match=said):
        plan(**given)


def test_the_rows_of_all_axes(clone):
    """Names say what differs from the preset, and nothing that does not."""
    paths, change = plan(
        blocks=["residual", "mmbconv"],
        layouts=["uniform", "pyramid"],
        starts=["mapillary", "scratch"],
        settings=["train.learning_rate=0.01,0.02"],
        seeds=[0, 1, 2],
    )
    written = write_grid(paths, change)
    assert written.ablate.variants == [
        f"{block}{layout}{start}{rate}"
        for block in ("residual", "mmbconv")
        for layout in ("", "-pyramid")
        for start in ("", "-scratch")
        for rate in ("", "-learning_rate-0_02")
    ]
    row = "mmbconv-pyramid-scratch-learning_rate-0_02"
    assert written.network_of(row) == written.network_of("mmbconv") | {"layout": "pyramid"}
    assert written.section_of(row, "train").learning_rate == 0.02
    assert written.section_of(row, "pretrain_imagenet").steps == 0
    assert written.section_of("mmbconv", "train") == written.train
    assert f"  {row}: {{block: mmbconv, layout: pyramid, start: scratch, train: {{learning_rate: 0.02}}}}" in (
        paths.params.read_text()
    )
    assert (
        plan(
            blocks=["residual", "mmbconv"],
            layouts=["uniform", "pyramid"],
            starts=["mapillary", "scratch"],
            settings=["train.learning_rate=0.01,0.02"],
        )[1]
        is None
    )  # it is there now


def test_values_may_be_nested_or_nothing(clone):
    paths, change = plan(
        blocks=["mmbconv"],
        settings=["train.lookahead=null,{k: 5, alpha: 0.5}", "train.augment.flip=true,false", "network.width=16,24"],
    )
    written = write_grid(paths, change)
    assert written.ablate.variants[0] == "mmbconv"
    assert len(written.ablate.variants) == 8
    row = "mmbconv-lookahead-k_5_alpha_0_5-flip-off-width-24"
    section = written.section_of(row, "train")
    assert (section.lookahead.k, section.augment.flip, section.augment.colour) == (5, False, 0.3)
    assert written.network_of(row)["width"] == 24


def test_an_axis_alone_takes_the_blocks_of_the_grid(clone):
    paths, change = plan(layouts=["pyramid", "uniform"])
    assert write_grid(paths, change).ablate.variants == [
        name for block in ("residual", "mbconv", "mmbconv") for name in (f"{block}-pyramid", block)
    ]


def test_a_block_of_one_s_own_is_named_after_its_class(clone):
    paths, change = plan(blocks=["residual", "blocks.mine:DilatedBlock"])
    written = write_grid(paths, change)
    assert written.ablate.variants == ["residual", "dilated-block"]
    assert written.network_of("dilated-block")["block"] == "blocks.mine:DilatedBlock"
    assert plan(blocks=["residual", "blocks.mine:DilatedBlock"])[1] is None


def test_a_row_s_name_that_stands_for_something_else_is_refused(clone, change_params):
    change_params(lambda p: p["variants"].update({"mmbconv-pyramid": {"block": "mmbconv", "depth": 2}}))
    with pytest.raises(MmsegError, match=r"variants.mmbconv-pyramid: stands in variants for something else"):
        plan(blocks=["mmbconv"], layouts=["pyramid"])


def test_a_wrong_key_is_named_when_the_grid_is_written(clone):
    paths, change = plan(blocks=["mmbconv"], settings=["train.learnig_rate=0.5"])
    before = paths.params.read_text()
    with pytest.raises(MmsegError, match=r"variants.mmbconv-learnig_rate-0_5.train.learnig_rate"):
        write_grid(paths, change)
    assert paths.params.read_text() == before


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
