"""What a user can get wrong: exit code 2, one line that names it, no traceback, and nothing that was there is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from mmseg_cli import paths as places
from mmseg_cli.params import load
from tests import evidence as made

IMAGE = "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png"
LABEL = "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png"
PREPARE = ("prepare", "cityscapes", "--preset", "demo", "--root")
EVALUATE = ("evaluate", "--variant", "mmbconv")
TRAIN = ("train", "--variant", "mmbconv")


class Case:
    """A trained project that a function spoils; it returns the command and what its error must say."""

    def __init__(self, raw, raw_copy, change_params, monkeypatch, tmp_path):
        self.raw, self.copy, self.change, self.monkeypatch, self.tmp = (
            raw,
            raw_copy,
            change_params,
            monkeypatch,
            tmp_path,
        )


def unknown_key(case):
    case.change(lambda p: p["train"].update(learnrate=1))
    return TRAIN, "params.yaml: unknown key train.learnrate: "


def broken_yaml(case):
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "\n  train: [\n")
    return TRAIN, "params.yaml: not valid YAML, line "


def a_preset_under_another_name(case):
    case.change(lambda p: p.update(preset="mine"))
    return TRAIN, "params.yaml: preset leads to mine: "


def a_preset_that_names_other_parameters(case):
    case.change(lambda p: p.update(params_file="pipelines/camvid/params.yaml"))
    return TRAIN, "params.yaml: params_file leads to "


def misspelled_block(case):
    case.change(lambda p: p["variants"]["mmbconv"].update(block="mmbcon"))
    return TRAIN, "did you mean mmbconv?"


def misspelled_block_on_the_command_line(case):
    return ("ablate", "--blocks", "residual,mmbcon"), "--blocks: unknown name 'mmbcon': "


def misspelled_variant(case):
    return ("train", "--variant", "mmbcon"), "--variant: unknown name 'mmbcon': "


def seeds_that_are_no_numbers(case):
    return ("ablate", "--seeds", "0,one"), "--seeds: '0,one' is not a list of numbers: "


def no_seeds(case):
    return ("ablate", "--seeds", ","), "--seeds: is empty: "


def another_grid_without_running_it(case):
    return ("ablate", "--no-run", "--seeds", "5"), "--no-run: "


def unknown_preset(case):
    return ("train", "--preset", "dmeo"), "--preset: there is no 'dmeo': choose from demo"


def preset_outside(case):
    return ("train", "--preset", "../demo"), "--preset: '../demo' is not a name: "


def wrong_folder(case):
    case.monkeypatch.chdir(case.tmp)
    return TRAIN, f"{case.tmp}: no params.yaml here: "


def no_root(case):
    return PREPARE[:-1], "cityscapes: no root is known: give --root FOLDER or set MMSEG_CITYSCAPES_ROOT"


def missing_root(case):
    return (*PREPARE, case.tmp / "absent"), f"{case.tmp / 'absent'}: there is no such folder: "


def root_of_another_dataset(case):
    return (*PREPARE, case.raw["mapillary"]), "looks like mapillary, not cityscapes: use `mmseg prepare mapillary`"


def dataset_that_the_preset_lacks(case):
    return ("prepare", "camvid", "--preset", "demo", "--root", case.raw["camvid"]), "has no datasets.camvid: "


def image_without_label(case):
    root = case.copy("cityscapes")
    (root / LABEL).unlink()
    return (*PREPARE, root), f"{root / IMAGE}: has no label file: "


def label_without_image(case):
    root = case.copy("cityscapes")
    (root / IMAGE).unlink()
    return (*PREPARE, root), f"{root / LABEL}: has no image: "


def label_of_another_size(case):
    root = case.copy("cityscapes")
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(root / LABEL)
    return (*PREPARE, root), f"{root / LABEL}: is 32x32, its image "


def label_value_outside_the_table(case):
    root = case.copy("cityscapes")
    Image.fromarray(np.full((32, 64), 99, np.uint8)).save(root / LABEL)
    return (*PREPARE, root), f"{root / LABEL}: label value 99 in 2048 pixels: not in the dataset's table: "


def truncated_png(case):
    root = case.copy("cityscapes")
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:1000])
    return (*PREPARE, root), f"{root / IMAGE}: is cut short in the chunk IDAT at byte 33: "


def report_over_the_dataset(case):
    root = case.copy("cityscapes")
    return ("prepare", "cityscapes", "--root", root, "--check-only", "--json", root / IMAGE), "--json: "


def report_in_a_place_that_is_taken(case):
    command = ("prepare", "cityscapes", "--root", case.raw["cityscapes"], "--json", "params.yaml/x.json")
    return command, "choose another place"


def a_target_without_its_map(case):
    command = ("prepare", "mapillary", "--root", case.raw["mapillary"], "--target", "cityscapes-19")
    return command, "needs a label_map: conservative, by-name or mseg"


def a_root_of_nobody(case):
    return ("prepare", "cityscapes", "--root", "~nobody-of-that-name/x"), "cannot be looked at"


def a_store_over_something_else(case):
    Path("data/cityscapes").mkdir(parents=True)
    Path("data/cityscapes/notes.txt").write_text("mine")
    return ("prepare", "cityscapes", "--root", case.raw["cityscapes"]), "is no store, it holds notes.txt"


def empty_split(case):
    root = case.copy("cityscapes")
    shutil.rmtree(root / "leftImg8bit" / "val")
    shutil.rmtree(root / "gtFine" / "val")
    return (*PREPARE, root), "the split 'val' is empty: "


def store_inside_the_dataset(case):
    case.monkeypatch.chdir(case.copy("cityscapes"))
    return ("prepare", "cityscapes", "--root", "."), "lies inside the dataset"


def no_store(case):
    shutil.rmtree("data/demo/cityscapes")
    return TRAIN, "manifest.json: missing: run `mmseg prepare`"


def store_made_by_other_parameters(case):
    case.change(lambda p: p["datasets"]["cityscapes"].update(long_side=48))
    return TRAIN, "was made by other parameters (long_side differ): run `mmseg prepare`"


def store_made_by_other_parameters_evaluated(case):
    case.change(lambda p: p["datasets"]["cityscapes"].update(long_side=48))
    return EVALUATE, "was made by other parameters (long_side differ): "


def damaged_store(case):
    Path("data/demo/cityscapes/val.records").write_bytes(bytes(4096))
    return EVALUATE, 'val.records: item 0 ("'


def checkpoint_of_another_architecture(case):
    case.change(lambda p: p["network"].update(width=8))
    return EVALUATE, "holds a network of another architecture (width differ from the parameters): "


def pretraining_of_another_architecture(case):
    case.change(lambda p: p["network"].update(width=8))
    return TRAIN, "model.safetensors: is of another architecture ("


def damaged_weights(case):
    Path("runs/demo/train/mmbconv-s0/model.safetensors").write_bytes(b"x" * 100)
    return EVALUATE, "model.safetensors: is damaged ("


def unreadable_weights(case):
    path = Path("runs/demo/train/mmbconv-s0/model.safetensors")
    path.unlink()
    path.mkdir()  # who runs as root may read everything else
    return EVALUATE, "model.safetensors: cannot be read (Is a directory): check"


def an_empty_argument(case):
    return ("predict", "--root", "", "--out", "out", "photos"), "the argument after --root: is empty: give a value"


def an_empty_value(case):
    return ("predict", "photos", "--run", "runs/demo/train/mmbconv-s0", "--out="), "--out: is empty: "


def no_run(case):
    return ("evaluate", "--variant", "residual"), "record.json: missing: run `dvc repro`"


def no_such_device(case):
    case.change(lambda p: p["runtime"].update(device="gpu0"))
    case.change(lambda p: p["train"].update(learning_rate=0.5))
    return TRAIN, "runtime.device: 'gpu0' is not usable here ("


def missing_evidence(case):
    return ("ablate", "--no-run"), "missing residual-s0/, residual-s1/, "


def reports_not_writable(case):
    shutil.rmtree("reports")
    Path("reports").write_text("a file, where a folder is needed")
    return EVALUATE, "reports/demo/evidence/mmbconv-s0: cannot be written ("


def reports_not_writable_for_the_table(case):
    shutil.rmtree("reports/demo")
    Path("reports/demo").write_text("a file, where a folder is needed")
    return ("ablate", "--no-run"), "reports/demo: cannot be written ("


def reports_not_writable_for_the_cost(case):
    shutil.rmtree("reports/demo")
    Path("reports/demo").write_text("a file, where a folder is needed")
    return ("cost", "--measure"), "reports/demo/evidence: cannot be written ("


def runs_not_writable(case):
    shutil.rmtree("runs/demo/train")
    Path("runs/demo/train").write_text("a file, where a folder is needed")
    return TRAIN, "runs/demo/train: cannot be written ("


def data_not_writable(case):
    shutil.rmtree("data")
    Path("data").write_text("a file, where a folder is needed")
    return (*PREPARE, case.raw["cityscapes"]), "data/demo: cannot be written ("


def generated_over_something(case):
    return ("generate", "cityscapes", "--out", "data"), "data: "


CASES = [
    value for value in list(globals().values()) if callable(value) and getattr(value, "__module__", "") == __name__
]
CASES.remove(Case)


@pytest.mark.parametrize("spoil", CASES, ids=lambda spoil: spoil.__name__)
def test_one_line_and_nothing_lost(trained, raw, raw_copy, change_params, monkeypatch, tmp_path, mmseg, spoil):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command, said = spoil(Case(raw, raw_copy, change_params, monkeypatch, elsewhere))
    before = trees.contents(tmp_path)
    done = mmseg(*command)
    assert done.code == 2, done.err
    assert said in done.one_error()
    after = trees.contents(tmp_path)
    assert {name: content for name, content in after.items() if name in before} == before
    left = {name for name in set(after) - set(before) if "/.work/" not in name and ".partial/" not in name}
    assert not left


def test_the_same_in_a_process_of_its_own(trained, change_params, mmseg_process):
    """The entry point itself: one line, exit code 2, nothing on stdout."""
    change_params(lambda p: p["train"].update(learnrate=1))
    done = mmseg_process("train")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [done.one_error()]


def test_a_tampered_table_is_refused(trained, mmseg, change_params):
    """One figure of the evidence made better by hand."""
    change_params(lambda p: p["ablate"].update(variants=["mmbconv"], seeds=[0]))
    path = trained / "reports/demo/evidence/mmbconv-s0/metrics.json"
    figures = json.loads(path.read_text())
    paths = places.find(preset="demo")
    made.write_cost(paths, load(paths.params))
    assert mmseg("ablate", "--no-run").code == 0
    before = trees.contents(trained / "reports")
    path.write_text(json.dumps({**figures, "mean_iou": figures["mean_iou"] + 0.01}))
    done = mmseg("ablate", "--no-run")
    assert done.code == 2
    assert done.one_error().startswith(
        f"mmseg: error: {path.with_name('certificate.json')}: has another metrics_sha256"
    )
    path.write_text(json.dumps(figures))
    for name, content in before.items():
        if name.startswith("demo/ablation"):
            assert (trained / "reports" / name).read_bytes() == content


def test_a_loss_that_is_no_number_ends_with_3(trained, mmseg, change_params):
    change_params(lambda p: p["train"].update(learning_rate=1e30, optimizer="sgd", warmup_steps=0))
    before = trees.contents(trained / "runs")
    done = mmseg("train", "--variant", "mmbconv")
    assert done.code == 3
    assert "the loss is" in done.one_error()
    assert trees.contents(trained / "runs") == before
