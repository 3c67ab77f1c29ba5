from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mmseg_cli import params
from mmseg_cli.errors import MmsegError

REPOSITORY = Path(__file__).resolve().parents[1]
PRESETS = [REPOSITORY / "params.yaml", *sorted(REPOSITORY.glob("pipelines/*/params.yaml"))]


def refused(path: Path) -> str:
    """The one-line message of a refused file."""
    with pytest.raises(MmsegError) as caught:
        params.load(path)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.parent.name)
def test_every_committed_preset_loads_and_names_itself(path):
    loaded = params.load(path)
    expected = "demo" if path.parent == REPOSITORY else path.parent.name
    assert loaded.preset == expected
    assert (REPOSITORY / loaded.params_file).resolve() == path.resolve()
    assert (path.parent / loaded.root).resolve() == REPOSITORY


@pytest.mark.parametrize(
    ("section", "key"),
    [(None, "trian"), ("train", "learning_rat"), ("network", "with"), ("runtime", "gpu"), ("ablate", "seed")],
)
def test_an_unknown_key_is_named_with_its_path(project, change_params, section, key):
    change_params(lambda p: (p if section is None else p[section]).update({key: 1}))
    path = key if section is None else f"{section}.{key}"
    assert f"unknown key {path}: " in refused(project / "params.yaml")


@pytest.mark.parametrize(("section", "key"), [(None, "train"), ("train", "steps"), ("network", "width")])
def test_a_missing_key_is_named_with_its_path(project, change_params, section, key):
    change_params(lambda p: (p if section is None else p[section]).pop(key))
    path = key if section is None else f"{section}.{key}"
    assert f"the key {path} is missing: " in refused(project / "params.yaml")


@pytest.mark.parametrize(
    ("section", "key", "value", "shown"),
    [
        ("train", "steps", "many", "'many'"),
        ("train", "steps", 1.5, "1.5"),
        ("train", "steps", True, "True"),
        ("train", "batch", 0, "0"),
        ("train", "learning_rate", "fast", "'fast'"),
        ("train", "learning_rate", -1, "-1"),
        ("train", "optimizer", "adam", "'adam'"),
        ("train", "label_smoothing", 1.5, "1.5"),
        ("network", "stem_stride", 3, "3"),
        ("runtime", "channels_last", "yes", "'yes'"),
        ("tracking", "uri", 5, "5"),
        ("train", "steps", None, "None"),
    ],
)
def test_a_wrong_value_is_shown_with_its_path(project, change_params, section, key, value, shown):
    change_params(lambda p: p[section].update({key: value}))
    message = refused(project / "params.yaml")
    assert f"{section}.{key}: " in message
    assert f"got {shown}" in message


def test_a_wrong_entry_of_a_list_is_named_by_its_position(project, change_params):
    change_params(lambda p: p["train"].update(crop=[32, -1]))
    assert "train.crop.1: " in refused(project / "params.yaml")


def test_several_faults_are_counted(project, change_params):
    change_params(lambda p: p["train"].update(steps="many", batch="few"))
    assert refused(project / "params.yaml").endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["ablate"].update(variants=["residual", "other"]), "ablate.variants: 'other' is not in variants"),
        (lambda p: p["ablate"].update(seeds=[0, 0]), "seeds holds the same one twice"),
        (lambda p: p["ablate"].update(variants=[]), "ablate.variants"),
        (lambda p: p["train"].update(dataset="kitti"), "train.dataset: 'kitti' is not in datasets"),
        (lambda p: p["train"].update(steps=0), "train.steps: must be at least 1"),
        (lambda p: p["train"]["augment"].update(scale=[2.0, 0.5]), "scale must be [smallest, largest]"),
        (lambda p: p["train"]["augment"].update(mixup=0.2), "unknown key train.augment.mixup"),
        (lambda p: p["execution"].update(retires=p["execution"].pop("retries")), "unknown key execution.retires"),
        (lambda p: p["execution"].update(clones="clones"), "execution.clones: 'clones' is another folder on each"),
        (lambda p: p["train"]["augment"].pop("class_uniform"), "the key train.augment.class_uniform is missing"),
        (lambda p: p["pretrain_imagenet"]["augment"].update(blur=0.5), "unknown key pretrain_imagenet.augment.blur"),
        (lambda p: p["pretrain_imagenet"].update(class_weights="none"), "unknown key pretrain_imagenet.class_weights"),
        (
            lambda p: p["pretrain_imagenet"]["augment"].update(rand_augment={"ops": 2, "magnitude": 31}),
            "pretrain_imagenet.augment.rand_augment.magnitude",
        ),
        (lambda p: p["datasets"]["cityscapes"].update(source="synthetic"), "`generate` goes with"),
        (lambda p: p["datasets"]["cityscapes"].update(long_side=9, short_side=9), "not both"),
        (lambda p: p["variants"].update({"a b": {"block": "mbconv"}}), "variants.a b"),
        (lambda p: p["variants"].update({"$(touch x)": {"block": "mbconv"}}), "variants.$(touch x)"),
    ],
)
def test_values_that_do_not_go_together_are_refused(project, change_params, change, said):
    change_params(change)
    assert said in refused(project / "params.yaml")


def test_a_misspelled_block_gets_the_nearest_name(project, change_params):
    change_params(lambda p: p["variants"]["mmbconv"].update(block="mmbcnov"))
    message = refused(project / "params.yaml")
    assert "variants.mmbconv.block: " in message
    assert "did you mean mmbconv?" in message


@pytest.mark.parametrize("spelling", ["1e-4", "1E-4", "1.0e-4", "+1e-4", ".1e-3", "0.0001", '"1e-4"', "1.e-4"])
def test_a_small_number_may_be_spelled_in_every_way(project, spelling):
    path = project / "params.yaml"
    text = path.read_text()
    changed = re.sub(r"(?m)^(train:(?:\n  .*)*?\n  learning_rate: )\S+", rf"\g<1>{spelling}", text)
    assert changed != text
    path.write_text(changed)
    assert params.load(path).train.learning_rate == 0.0001


SCALARS = [
    "1e-4",
    "1E-4",
    "1.0e-4",
    "+1e-4",
    ".1e-3",
    ".1e3",
    "1.e3",
    "1.",
    ".5",
    "0.0001",
    "no",
    "yes",
    "on",
    "off",
    "y",
    "n",
    "true",
    "True",
    "TRUE",
    "false",
    "010",
    "-010",
    "08",
    "0o10",
    "+0o7",
    "0o8",
    "0x1f",
    "-0x1f",
    "0b11",
    "1_000",
    "1_000.5",
    "1__0",
    "_1",
    "~",
    "null",
    "Null",
    "NULL",
    ".inf",
    "-.inf",
    ".nan",
    "+5",
    "+",
    "1e",
    "1:30",
    "1:30.5",
    "1:30:20",
    "a''b",
    "'1e-4'",
    '"no"',
]


def same(first: object, second: object) -> bool:
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    return type(first) is type(second) and first == second


@pytest.mark.parametrize("scalar", SCALARS)
def test_a_scalar_is_what_dvc_reads(tmp_path, scalar):
    path = tmp_path / "one.yaml"
    path.write_text(f"key: {scalar}\n")
    theirs = YAML(typ="safe").load(path.read_text())["key"]
    ours = params.read_yaml(path)["key"]
    assert same(ours, theirs), f"{ours!r} is not {theirs!r}"


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1}\nb: {<<: *a, x: 2}",
        "a: &a {x: 1}\nb:\n  x: 2\n  <<: *a",
        "a: &a {x: 1}\nc: &c {x: 5, y: 1}\nb:\n  <<: [*a, *c]",
        "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}",
        "a: [1, two, 3.0]\nb: {c: {d: null}}",
    ],
)
def test_anchors_and_merges_are_what_dvc_reads(tmp_path, text):
    path = tmp_path / "one.yaml"
    path.write_text(text)
    assert params.read_yaml(path) == YAML(typ="safe").load(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "line 2 (the key 'a' stands twice)"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4 (the key 'b' stands twice)"),
        ("a: [1", "not valid YAML, line "),
        ("a: b: c", "not valid YAML, line 1"),
        ("\tx: 1", "not valid YAML, line 1"),
        ("a: {{x}}", "a key that is not a name"),
        ("a: *nowhere", "not valid YAML, line 1"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML, line 1"),
        ("a: !!int x", "cannot be read"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, said):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert said in refused(path)


def test_a_file_of_another_kind_is_one_line(tmp_path):
    path = tmp_path / "params.yaml"
    for content in (b"", b"- 1\n- 2\n", b"just words", b"\xff\xfe\x00", b"a: \x00"):
        path.write_bytes(content)
        refused(path)
    refused(tmp_path / "absent.yaml")
    refused(tmp_path)


def test_a_variant_changes_only_what_it_names(project, change_params):
    change_params(lambda p: p["variants"].update(wide={"block": "mbconv", "width": 9, "expansion": 3}))
    loaded = params.load(project / "params.yaml")
    assert loaded.network_of("wide") == loaded.network.model_dump() | {"block": "mbconv", "width": 9, "expansion": 3.0}
    with pytest.raises(MmsegError, match="no such variant"):
        loaded.network_of("narrow")


# ----------------------------------------------------------------------------------------- variants of the recipe


def with_variant(project, change_params, **variant):
    """The parameters with one more variant."""
    change_params(lambda p: p["variants"].update(other=variant))
    return params.load(project / "params.yaml")


def changed_keys(before, after, prefix=""):
    """The dotted names of what differs between two sections."""
    found = set()
    for key in before:
        one, other = before[key], after[key]
        if isinstance(one, dict) and isinstance(other, dict):
            found |= changed_keys(one, other, f"{prefix}{key}.")
        elif one != other:
            found.add(f"{prefix}{key}")
    return found


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"learning_rate": "2e-3"}, {"learning_rate"}),
        ({"augment": {"flip": False}}, {"augment.flip"}),
        ({"augment": {"scale": [1, 1], "colour": 0}, "steps": 3}, {"augment.scale", "augment.colour", "steps"}),
        ({"lookahead": {"k": 5, "alpha": 0.5}}, {"lookahead"}),
        ({"loss": {"dice": 0.5}}, {"loss.dice"}),
        ({"loss": {"cross_entropy": 0, "lovasz": 1}}, {"loss.cross_entropy", "loss.lovasz"}),
        ({"clip_norm": None}, {"clip_norm"}),
        ({}, set()),
    ],
)
def test_a_variant_changes_the_keys_of_a_stage_that_it_names(project, change_params, change, differs):
    change_params(lambda p: p["train"].update(lookahead=None, clip_norm=1.0))
    loaded = with_variant(project, change_params, block="mbconv", train=change)
    own = loaded.section_of("other", "train")
    assert type(own) is type(loaded.train)
    assert changed_keys(loaded.train.model_dump(), own.model_dump()) == differs
    for stage in ("pretrain_imagenet", "pretrain_mapillary"):
        assert loaded.section_of("other", stage) == getattr(loaded, stage)
    for variant in ("residual", "mmbconv"):
        assert loaded.section_of(variant, "train") == loaded.train
    assert loaded.network_of("other") == loaded.network.model_dump() | {"block": "mbconv"}


def test_a_changed_stage_has_the_values_that_are_named(project, change_params):
    """A section within a section is merged, a list and a null are not."""
    change_params(lambda p: p["train"].update(lookahead={"k": 6, "alpha": 0.8}))
    train = {"augment": {"flip": False, "scale": [1, "1.5"]}, "lookahead": {"k": 5}, "learning_rate": "2e-3"}
    loaded = with_variant(project, change_params, block="mbconv", train=train, pretrain_imagenet={"steps": 7})
    own = loaded.section_of("other", "train")
    assert (own.augment.flip, own.augment.scale, own.learning_rate) == (False, [1.0, 1.5], 0.002)
    assert own.augment.colour == loaded.train.augment.colour
    assert own.lookahead.model_dump() == {"k": 5, "alpha": 0.8}
    assert loaded.section_of("other", "pretrain_imagenet").steps == 7
    without = with_variant(project, change_params, block="mbconv", train={"lookahead": None})
    assert without.section_of("other", "train").lookahead is None


@pytest.mark.parametrize(
    ("start", "left"),
    [
        (None, ["pretrain_imagenet", "pretrain_mapillary", "train"]),
        ("mapillary", ["pretrain_imagenet", "pretrain_mapillary", "train"]),
        ("imagenet", ["pretrain_imagenet", "train"]),
        ("scratch", ["train"]),
    ],
)
def test_start_leaves_out_the_rungs_after_it(project, change_params, start, left):
    loaded = with_variant(project, change_params, block="mbconv", start=start, pretrain_mapillary={"learning_rate": 1})
    stages = ("pretrain_imagenet", "pretrain_mapillary", "train")
    assert [stage for stage in stages if loaded.section_of("other", stage).steps] == left
    for stage in left:
        assert loaded.section_of("other", stage).steps == getattr(loaded, stage).steps


def test_a_class_of_one_s_own_takes_the_place_of_a_block(project, change_params):
    """Nothing of it is looked at: parameters are read without torch."""
    loaded = with_variant(project, change_params, **{"class": "blocks.deep_down.mine:Mine_2", "width": 9})
    changed = {"block": "blocks.deep_down.mine:Mine_2", "width": 9}
    assert loaded.network_of("other") == loaded.network.model_dump() | changed


@pytest.mark.parametrize("match", ["parameters", "macs", "time"])
def test_what_a_width_was_solved_for_decides_nothing(project, change_params, match):
    loaded = with_variant(project, change_params, block="mbconv", width=9, match=match)
    assert loaded.network_of("other") == loaded.network.model_dump() | {"block": "mbconv", "width": 9}
    assert loaded.section_of("other", "train") == loaded.train


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ({"train": {"learning_rat": 1}}, "variants.other.train.learning_rat: Extra inputs are not permitted"),
        ({"train": {"augment": {"mixup": 1}}}, "variants.other.train.augment.mixup: Extra inputs are not permitted"),
        ({"train": {"steps": "many"}}, "variants.other.train.steps: Input should be a valid integer"),
        ({"train": {"augment": {"flip": 1}}}, "variants.other.train.augment.flip: Input should be a valid boolean"),
        ({"train": {"augment": True}}, "variants.other.train.augment: Input should be a valid dictionary"),
        ({"train": {"lookahead": {"k": 5}}}, "variants.other.train.lookahead.alpha: Field required"),
        ({"train": {"crop": [32, -1]}}, "variants.other.train.crop.1: Input should be greater than or equal to 1"),
        ({"train": {"batch": 3}}, "variants.other.train: batch must be a multiple of norm_batch"),
        ({"train": {"loss": {"ohem": 1}}}, "variants.other.train.loss: ohem, ohem_threshold and ohem_min_share go"),
        ({"train": {"augment": {"scale": [2, 1]}}}, "variants.other.train.augment: scale must be [smallest, largest]"),
        ({"train": 5}, "variants.other.train: Input should be a valid dictionary, got 5"),
        ({"pretrain_imagenet": {"loss": {}}}, "variants.other.pretrain_imagenet.loss: Extra inputs are not permitted"),
        ({"train": {"dataset": "imagenet"}}, "variants.other.train.dataset: the rows of a table have the same data"),
        ({"train": {"dataset": "cityscapes"}}, "variants.other.train.dataset: the rows of a table have the same data"),
        (
            {"pretrain_mapillary": {"dataset": "kitti"}},
            "variants.other.pretrain_mapillary.dataset: the rows of",
        ),
        ({"start": "cityscapes"}, "variants.other.start: Input should be 'scratch', 'imagenet' or 'mapillary', got"),
        ({"match": "flops"}, "variants.other.match: Input should be 'parameters', 'macs' or 'time', got 'flops'"),
        ({"evaluate": {"fold": True}}, "unknown key variants.other.evaluate"),
        ({"block": None}, "variants.other: name a block, or the class of one of your own, and not both"),
        ({"class": "blocks.mine:Mine"}, "variants.other: name a block, or the class of one of your own, and not both"),
    ],
)
def test_a_variant_that_makes_no_sense_is_one_line(project, change_params, variant, said):
    change_params(lambda p: p["train"].update(lookahead=None))
    change_params(lambda p: p["variants"].update(other={"block": "mbconv"} | variant))
    assert said in refused(project / "params.yaml")


@pytest.mark.parametrize(
    "path",
    [
        *["mine", "blocks.mine", "blocks.mine:", ":Mine", "blocks/mine.py:Mine", "blocks.mine:Mine.Inner", "a b:C"],
        *["blocks..mine:Mine", "blocks.mine:Mine; rm", "1.mine:Mine", "blocks.mine:Mine:", "blocks.mine:Mine\n"],
        *["$(x):C", 5, ""],
    ],
)
def test_a_class_is_named_with_its_package_and_module(project, change_params, path):
    change_params(lambda p: p["variants"].update(other={"class": path}))
    assert "variants.other.class: " in refused(project / "params.yaml")


@pytest.mark.parametrize(
    ("start", "left_out", "said"),
    [
        ("mapillary", "pretrain_mapillary", "variants.other.start: pretrain_mapillary.steps is 0 in this preset"),
        ("mapillary", "pretrain_imagenet", "variants.other.start: pretrain_imagenet.steps is 0 in this preset"),
        ("imagenet", "pretrain_imagenet", "variants.other.start: pretrain_imagenet.steps is 0 in this preset"),
        ("imagenet", "pretrain_mapillary", None),
        ("scratch", "pretrain_imagenet", None),
    ],
)
def test_nothing_starts_from_a_rung_that_the_preset_leaves_out(project, change_params, start, left_out, said):
    change_params(lambda p: p[left_out].update(steps=0))
    change_params(lambda p: p["variants"].update(other={"block": "mbconv", "start": start}))
    if said is None:
        params.load(project / "params.yaml")
    else:
        assert said in refused(project / "params.yaml")


def test_a_variant_of_the_grid_or_not_is_checked(project, change_params):
    """A row that is not asked for today is asked for tomorrow."""
    change_params(lambda p: p["variants"].update(other={"block": "mbconv", "train": {"steps": -1}}))
    assert "variants.other.train.steps: " in refused(project / "params.yaml")


def test_a_variant_s_own_training_cannot_be_left_out(project, change_params):
    change_params(lambda p: p["variants"].update(other={"block": "mbconv", "train": {"steps": 0}}))
    assert "train.steps: must be at least 1, only pretraining can be left out" in refused(project / "params.yaml")


def test_a_variant_s_own_training_of_no_steps_is_named_with_its_path(project, change_params):
    change_params(lambda p: p["variants"].update(other={"block": "mbconv", "train": {"steps": 0}}))
    assert ": variants.other.train.steps: must be at least 1" in refused(project / "params.yaml")


@pytest.mark.parametrize("method", ["network_of", "section_of"])
def test_a_variant_that_is_not_there_is_one_line(project, method):
    loaded = params.load(project / "params.yaml")
    with pytest.raises(MmsegError, match=r"^variants\.none: no such variant: choose from residual, mbconv, mmbconv"):
        getattr(loaded, method)("none", *(["train"] if method == "section_of" else []))
