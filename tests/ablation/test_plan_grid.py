from __future__ import annotations

import difflib
import shutil
from pathlib import Path

import pytest

from mmseg_cli import paths as places
from mmseg_cli.ablation import axes
from mmseg_cli.ablation.pipeline import plan_grid, write_grid
from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import dvc
from mmseg_cli.names import LADDER
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
        ({"settings": ["network.match=time"]}, "--set network: unknown name 'match': use one of width, depth, "),
        ({"settings": ["network.start=scratch"]}, "--set network: unknown name 'start'"),
        ({"settings": ["network.class=blocks.mine:Mine"]}, "--set network: unknown name 'class'"),
        ({"settings": ["network.widht=8"]}, r"did you mean width\?"),
        (
            {"settings": ["train.steps=4", "network.width=4", "train.steps=5"]},
            "--set: train.steps is given twice: separate its values by commas",
        ),
        (
            {"settings": ["train.lookahead.k=5", "train.lookahead=null"]},
            "--set: train.lookahead.k is a part of train.lookahead, which is given as well: give one of the two",
        ),
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


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        ("train.lookahead={k: 5, alpha: 0.5}", {"-lookahead-k_5_alpha_0_5": {"k": 5, "alpha": 0.5}}),
        (
            "train.lookahead=null,{k: 5, alpha: 0.5}",
            {"": None, "-lookahead-k_5_alpha_0_5": {"k": 5, "alpha": 0.5}},
        ),
        ("train.lookahead.k=5,10", {"-k-5": {"k": 5, "alpha": 0.5}, "-k-10": {"k": 10, "alpha": 0.5}}),
    ],
)
def test_a_variant_may_have_set_the_key_to_null(clone, setting, rows):
    """Null is a value: what the preset has does not show through it."""
    paths, change = plan("paper", blocks=["mmbconv-no-lookahead"], settings=[setting])
    written = write_grid(paths, change)
    assert written.ablate.variants == [f"mmbconv-no-lookahead{name}" for name in rows]
    for name, lookahead in rows.items():
        section = written.section_of(f"mmbconv-no-lookahead{name}", "train")
        assert (section.lookahead and section.lookahead.model_dump()) == lookahead
        assert section.precise_bn == 0
    assert plan("paper", blocks=["mmbconv-no-lookahead"], settings=[setting])[1] is None


def test_a_mapping_is_the_whole_of_what_stands_there(clone):
    """A loss that is named alone is trained alone, and what the preset has by another spelling is no row of its own."""
    paths, change = plan(blocks=["mmbconv"], settings=["train.loss={cross_entropy: 1},{dice: 1}"])
    written = write_grid(paths, change)
    assert written.ablate.variants == ["mmbconv", "mmbconv-loss-dice_1"]
    assert written.section_of("mmbconv-loss-dice_1", "train").loss.coefficients() == {
        **dict.fromkeys(("cross_entropy", "ohem", "lovasz", "rmi"), 0),
        "dice": 1,
    }
    paths, change = plan(blocks=["mmbconv"], settings=["train.loss.dice=0,1"])
    written = write_grid(paths, change)
    assert written.ablate.variants == ["mmbconv", "mmbconv-dice-1"]
    assert written.section_of("mmbconv-dice-1", "train").loss.cross_entropy == 1


def test_a_part_of_a_mapping_is_refused(clone):
    with pytest.raises(MmsegError, match=r"flip off is not the whole of train.augment: .* --set train.augment.flip="):
        plan(blocks=["mmbconv"], settings=["train.augment={flip: false}"])


def test_a_further_change_of_a_solved_network_drops_what_was_solved_for(clone, change_params):
    solved = {"block": "mbconv", "match": "macs", "width": 22, "expansion": 2.0}
    change_params(lambda p: p["variants"].update({"mbconv-macs": solved}))
    paths, change = plan(
        blocks=["residual", "mbconv-macs"], layouts=["uniform", "pyramid"], settings=["train.power=0.9,1.0"]
    )
    written = write_grid(paths, change)
    found = {name: written.variants[name].match for name in written.ablate.variants}
    assert found["mbconv-macs"] == "macs"
    assert found["mbconv-macs-power-1_0"] == "macs"
    assert found["mbconv-macs-pyramid"] is None
    assert written.network_of("mbconv-macs-pyramid")["width"] == 22


def test_a_key_of_two_rungs_tells_them_apart(clone):
    paths, change = plan(
        blocks=["mmbconv"],
        settings=[f"{section}.augment.flip=true,false" for section in ("train", *LADDER[:2])],
    )
    written = write_grid(paths, change)
    assert written.ablate.variants == [
        f"mmbconv{train}{imagenet}{mapillary}"
        for train in ("", "-flip-off")
        for imagenet in ("", "-imagenet-flip-off")
        for mapillary in ("", "-mapillary-flip-off")
    ]
    row = "mmbconv-mapillary-flip-off"
    assert [written.section_of(row, section).augment.flip for section in LADDER] == [True, False, True]


def test_a_width_that_was_solved_anew_takes_the_old_one_s_place(clone, change_params):
    """With its comment, and those around it."""
    change_params(
        lambda p: (
            p["variants"].update({"mmbconv-params": {"block": "mmbconv", "match": "parameters", "width": 9}}),
            p["variants"].yaml_add_eol_comment("of equal size", "mmbconv-params"),
            p["ablate"].update(variants=["residual", "mmbconv", "mmbconv-params"]),
        )
    )
    paths = places.find(preset="demo")
    params = load(paths.params)
    entries = axes.rows(params, blocks=params.ablate.variants, layouts=None, starts=None, settings=[])
    assert plan_grid(paths, params, entries=entries, seeds=None) is None
    entries["mmbconv-params"] = axes.with_match(entries["mmbconv"], 11, 1.5, "parameters")
    change = plan_grid(paths, params, entries=entries, seeds=None)
    assert change.lines == [
        "variants.mmbconv-params: block mmbconv, match parameters, width 9"
        " -> block mmbconv, match parameters, width 11, expansion 1.5"
    ]
    before = paths.params.read_text()
    assert write_grid(paths, change).network_of("mmbconv-params")["width"] == 11
    assert "# of equal size" in before
    assert before.count("#") == paths.params.read_text().count("#")


def test_an_anchored_entry_is_replaced_alone(clone, change_params):
    text = Path("params.yaml").read_text()
    own = "  mmbconv: {block: mmbconv}\n"
    row = "  mmbconv-macs: &shared {block: mmbconv, match: macs, width: 9}\n  other: *shared\n"
    assert text.count(own) == 1
    Path("params.yaml").write_text(text.replace(own, own + row))
    paths = places.find(preset="demo")
    params = load(paths.params)
    entries = {"mmbconv-macs": axes.with_match({"block": "mmbconv"}, 11, 2, "macs")}
    written = write_grid(paths, plan_grid(paths, params, entries=entries, seeds=None))
    assert [written.variants[name].width for name in ("mmbconv-macs", "other")] == [11, 9]


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
    with pytest.raises(
        MmsegError, match=r"^the grid: variants.mmbconv-learnig_rate-0_5.train.learnig_rate: unknown key: correct it$"
    ):
        write_grid(paths, change)
    assert paths.params.read_text() == before


def test_a_grid_that_cannot_be_read_back_is_not_kept(clone):
    paths, change = plan(seeds=[-1])
    before = paths.params.read_text()
    with pytest.raises(MmsegError, match=r"^the grid: ablate.seeds.0: .*, got -1: correct it$"):
        write_grid(paths, change)
    assert paths.params.read_text() == before


def test_dvc_is_not_called_from_inside_dvc(clone, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "ablate")
    with pytest.raises(MmsegError, match="called inside a DVC stage: use `mmseg ablate --no-run` there"):
        dvc.repro(places.find(preset="demo"))
