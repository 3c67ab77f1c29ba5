from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image

from mmseg_cli.data.labels import IGNORE, cityscapes_19
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evaluate as room
from mmseg_cli.evaluation import evidence, inference, metrics, on_torch, run_page, segmenter, summary
from mmseg_cli.evaluation.segmenter import PLAIN, Protocol
from mmseg_cli.models import weights
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.resizing import resize
from mmseg_cli.models.unet import build_network

RUN = Path("runs/demo/train/mmbconv-s0")
EVIDENCE = Path("reports/demo/evidence/mmbconv-s0")
PAGE = Path("runs/demo/evaluate/mmbconv-s0")


def evaluate(**changes):
    """As the command does it, but for the changes; what is warned of is returned too."""
    warnings = []
    arguments = {
        "run": RUN,
        "store": open_store(Path("data/demo/cityscapes")),
        "network": json.loads((RUN / "record.json").read_text())["network"],
        "metrics_file": EVIDENCE / "metrics.json",
        "confusion_file": EVIDENCE / "confusion.npz",
        "certificate_file": EVIDENCE / "certificate.json",
        "page_folder": PAGE,
        "title": "mmbconv-s0 of demo",
        "dataset": "cityscapes",
        "protocol": PLAIN,
        "augmented": None,
        "with_branches": False,
        "counting": room.Counting(boundaries=[1, 3], object_sizes=(16, 64), row_bands=4),
        "root": None,
        "project": Path(),
        "run_official": True,
        "examples": 1,
        "precision": "float32",
        "fold": False,
        "compile": False,
        "channels_last": True,
        "limit": None,
        "device": torch.device("cpu"),
        "workers": 0,
        "begin": lambda images: None,
        "advance": lambda: None,
        "note": lambda text: None,
        "warn": warnings.append,
    } | changes
    run, store = arguments.pop("run"), arguments.pop("store")
    return room.evaluate(run, store, **arguments), warnings


def planned(limit):
    """How the first image is predicted under a limit; None where it is too small for anything."""
    network, _ = weights.load_network(RUN)
    made = on_torch.segmenter(network, classes=19, device=torch.device("cpu"), limit=limit)
    try:
        return made.plan((32, 64), (32, 64))
    except MmsegError:
        return None


def figures():
    return json.loads((EVIDENCE / "metrics.json").read_text())


def test_the_evidence_says_what_the_network_does(trained):
    """Every figure again, from the network and the raw files, by other means."""
    found = figures()
    network, record = weights.load_network(RUN)
    space, _ = cityscapes_19()
    store = open_store(Path("data/demo/cityscapes"))
    matrices, predictions = [], []
    for position in range(3):
        image_HWC = store.split("val").image(position)
        label_HW = store.split("val").label(position)
        x_BCHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None].float()
        x_BCHW = (x_BCHW - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)) / torch.tensor(
            [58.395, 57.12, 57.375]
        ).view(3, 1, 1)
        with torch.no_grad():
            predicted_HW = network(x_BCHW).argmax(1)[0].numpy()
        matrix = np.zeros((19, 19), np.int64)
        for truth, prediction in zip(label_HW.ravel(), predicted_HW.ravel(), strict=True):
            if truth != IGNORE:
                matrix[truth, prediction] += 1
        matrices.append(matrix)
        predictions.append(predicted_HW.astype(np.uint8))
    counted = evidence.load(EVIDENCE / "confusion.npz")
    np.testing.assert_array_equal(counted.counts["confusion"].dense(), matrices)
    np.testing.assert_array_equal(counted.counts["rows"].dense().sum(1), matrices)
    assert set(counted.counts) == {"confusion", "boundaries", "sizes", "rows"}
    assert (counted.classes, counted.names) == (list(space.classes), store.names("val"))
    total = sum(matrices)
    assert found["mean_iou"] == pytest.approx(metrics.mean_iou(total), abs=1e-15)
    assert found["pixel_accuracy"] == np.trace(total) / total.sum()
    for name, value in zip(space.classes, metrics.class_iou(total), strict=True):
        assert found["class_iou"][name] == (None if np.isnan(value) else value)
    assert None in found["class_iou"].values()
    assert set(found["category_iou"]) == set(space.categories)
    kept = [value for value in found["category_iou"].values() if value is not None]
    assert found["mean_category_iou"] == pytest.approx(np.mean(kept), abs=1e-15)
    assert (found["images"], found["split"], found["label_space"]) == (3, "val", "cityscapes-19")
    for key, path in (("weights_sha256", RUN / "model.safetensors"), ("confusion_sha256", EVIDENCE / "confusion.npz")):
        assert found[key] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["run"] == {
        key: record[key] for key in ("variant", "seed", "network", "ladder", "rungs", "recipe", "fingerprint")
    }
    assert "NaN" not in (EVIDENCE / "metrics.json").read_text()
    for name, predicted_HW in zip(store.names("val"), predictions, strict=True):
        with Image.open(PAGE / "predictions" / f"{name}.png") as opened:
            np.testing.assert_array_equal(np.asarray(opened), np.array(space.ids)[predicted_HW])


def test_boundaries_sizes_and_rows_are_those_of_the_counts(trained):
    found, counts = figures(), evidence.load(EVIDENCE / "confusion.npz").counts
    assert [row["pixels"] for row in found["boundaries"]] == [1, 3]
    assert [(row["size"], row["from_pixels"], row["to_pixels"]) for row in found["sizes"]] == [
        ("small", 0, 16),
        ("medium", 16, 64),
        ("large", 64, None),
    ]
    regions_34K = counts["sizes"].total()
    for row, counts_4K in zip(found["sizes"], regions_34K, strict=True):
        assert row["regions"] == counts_4K[2].sum()
        with np.errstate(invalid="ignore"):
            assert row["mean_recall"] == pytest.approx(np.nanmean(counts_4K[1] / counts_4K[0]))
    assert sum(row["regions"] for row in found["sizes"]) > 5
    assert [(row["from"], row["to"]) for row in found["rows"]] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    for row, matrix in zip(found["rows"], counts["rows"].total(), strict=True):
        assert row["mean_iou"] == pytest.approx(metrics.mean_iou(matrix))
    # Wider boundaries forgive more.
    assert found["boundaries"][0]["mean_f1"] < found["boundaries"][1]["mean_f1"]


def test_training_and_evaluation_agree_on_the_figures(trained):
    record = json.loads((RUN / "record.json").read_text())
    figures = json.loads((EVIDENCE / "metrics.json").read_text())
    assert {key: figures[key] for key in record["figures"]} == record["figures"]


def test_the_same_evaluation_gives_the_same_bytes(trained):
    def content():
        found = {folder: trees.contents(folder) for folder in (EVIDENCE, PAGE)}
        return found, found[EVIDENCE].pop("certificate.json")  # which says when it was

    evaluate(with_branches=True)
    before, _ = content()
    evaluate(with_branches=True, workers=2)
    after, _ = content()
    assert after == before


def test_a_sheet_shows_image_truth_prediction_and_errors():
    colours = ((128, 64, 128), (0, 0, 142))
    label_HW = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    predicted_HW = np.array([[0, 0, 1], [1, 1, 1]], np.uint8)
    image_HWC = trees.photo(np.random.default_rng(0), 2, 3)
    sheet_HWC = np.asarray(run_page.sheet(image_HWC, predicted_HW, label_HW, colours))
    image, truth, prediction, errors = (sheet_HWC[:, start : start + 3] for start in range(0, 4 * 7, 7))
    np.testing.assert_array_equal(image, image_HWC)
    table = np.array([*colours, (0, 0, 0)], np.uint8)
    np.testing.assert_array_equal(truth, table[np.where(label_HW == IGNORE, 2, label_HW)])
    np.testing.assert_array_equal(prediction, table[predicted_HW])
    wrong_HW = (predicted_HW != label_HW) & (label_HW != IGNORE)
    assert (errors[wrong_HW] == (220, 40, 40)).all()
    assert (errors[label_HW == IGNORE] == 0).all()
    grey_HWC = errors[~wrong_HW & (label_HW != IGNORE)]
    assert (grey_HWC == grey_HWC[:, :1]).all()


@pytest.mark.parametrize(
    ("scores", "each", "expected"),
    [
        ([0.1, 0.9, 0.5, 0.3, 0.7], 1, [("best", 1), ("median", 2), ("worst", 0)]),
        ([0.1, 0.9, 0.5, 0.3, 0.7], 2, [("best", 1), ("best", 4), ("median", 2), ("worst", 0), ("worst", 3)]),
        ([0.4, float("nan")], 1, [("best", 0)]),
        ([0.4, 0.2], 5, [("best", 0), ("best", 1)]),
        ([0.4, 0.2, 0.3], 0, []),
        ([float("nan")], 2, []),
    ],
)
def test_the_best_the_median_and_the_worst_are_shown_once(scores, each, expected):
    assert run_page.chosen(scores, each=each) == expected


def test_the_page_shows_what_was_measured(trained):
    text = (PAGE / "index.md").read_text()
    found = figures()
    for value in (found["mean_iou"], found["pixel_accuracy"], found["boundaries"][1]["mean_f1"]):
        assert f"{100 * value:.2f}" in text
    assert found["dataset"] == "cityscapes"
    assert "- dataset: cityscapes\n" in text
    for name in open_store(Path("data/demo/cityscapes")).names("val"):
        assert name in text.replace("\\", "")  # of what markdown would take for its own
    assert "cityscapesscripts on the written PNGs against the labels of the store" in text
    assert len(list((PAGE / "images").iterdir())) == 3
    assert "<img" in (PAGE / "index.html").read_text()


# ------------------------------------------------------------------------------------------------------------ protocols


def test_augmentation_is_a_figure_of_its_own(trained):
    before = figures()
    result, _ = evaluate(augmented=Protocol(scales=(0.5, 1.0, 2.0), flip=True))
    after = figures()
    assert after["augmented"]["protocol"]["scales"] == [0.5, 1.0, 2.0]
    assert after["augmented"]["mean_iou"] == result.augmented != after["mean_iou"]
    assert before["augmented"] is None
    for key in ("mean_iou", "class_iou", "boundaries", "protocol"):
        assert after[key] == before[key]
    matrix = evidence.load(EVIDENCE / "confusion.npz").counts["augmented"].total()
    assert after["augmented"]["mean_iou"] == metrics.mean_iou(matrix)
    assert "scales 0.5, 1, 2, mirrored too" in (PAGE / "index.md").read_text()


def test_windows_that_only_the_limit_asks_for_are_told_and_written_down(trained, monkeypatch):
    monkeypatch.setattr(segmenter, "SMALLEST", 8)  # the images of the tests are small
    fits = {"limit": 2**16}
    while (plan := planned(**fits)) is None or plan.forced:  # until the whole image fits
        fits = {"limit": fits["limit"] + 2**14}
    _, warnings = evaluate(limit=fits["limit"] - 2**14)
    assert any("the limit of memory asks for windows of" in line for line in warnings)
    window = figures()["protocol"]["window"]
    assert window is not None
    assert max(window) < 64
    _, warnings = evaluate(protocol=Protocol(window=(32, 32)))
    assert warnings == []
    assert figures()["protocol"]["window"] == [32, 32]


def test_a_run_that_has_seen_val_is_told(trained, raw, mmseg, change_params):
    change_params(lambda p: p["datasets"]["cityscapes"].update(train_from=["train", "val"]))
    assert mmseg("prepare", "cityscapes", "--root", raw["cityscapes"], "--preset", "demo").code == 0
    done = mmseg("evaluate", "--variant", "mmbconv")
    assert done.code == 0, done.err
    assert "3 of 3 val images are in train as well" in done.err
    assert figures()["images_also_in_train"] == 3


# ------------------------------------------------------------------------------------------------------------- branches


@pytest.fixture
def supervised(trained):
    """A run whose network has three levels, and a head at the one between."""
    record = json.loads((RUN / "record.json").read_text())
    record["network"]["levels"] = 3
    record["rungs"][-1]["parameters"]["deep_supervision"] = 0.4
    torch.manual_seed(1)
    network = build_network(task="segmentation", num_classes=19, **record["network"])
    heads = DeepSupervision(network)
    for parameter in heads.parameters():
        parameter.data.normal_(0, 0.3)
    run = RUN.with_name("supervised-s0")
    weights.save_weights(network, run / "model.safetensors")
    weights.save_tensors(heads.auxiliary.state_dict(), run / "auxiliary.safetensors")
    record["weights_sha256"] = sha256(run / "model.safetensors")
    (run / "record.json").write_text(json.dumps(record))
    return run


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def counted():
    return evidence.load(EVIDENCE / "confusion.npz").counts


def test_branches_are_figures_of_their_own(trained):
    before = figures()
    calls = []
    result, warnings = evaluate(with_branches=True, begin=calls.append, advance=lambda: calls.append(1))
    assert (calls, warnings) == ([6, *[1] * 6], [])
    after, counts = figures(), counted()
    assert before.pop("branches") is None
    rows = after.pop("branches")
    assert rows == result.branches
    assert before.pop("confusion_sha256") != after.pop("confusion_sha256")
    assert before == after
    assert set(counts) == {"confusion", "boundaries", "sizes", "rows", "knocked_out_0", "knocked_out_1"}
    assert [(row["level"], row["stride"], row["head"]) for row in rows] == [(0, 2, None), (1, 4, None)]
    assert [row["missing"] for row in rows] == [
        {"head": "it is the network's own: mean_iou"},
        {"head": "the bottom of the encoder has none"},
    ]
    matrices = [counts[f"knocked_out_{level}"].dense() for level in (0, 1)]
    whole = counts["confusion"].dense()
    for row, matrix_NKK in zip(rows, matrices, strict=True):
        np.testing.assert_array_equal(matrix_NKK.sum(2), whole.sum(2))  # the same truth in every image
        assert row["knocked_out"]["mean_iou"] == metrics.mean_iou(matrix_NKK.sum(0))
        for value, name in zip(metrics.class_iou(matrix_NKK.sum(0)), row["knocked_out"]["class_iou"], strict=True):
            assert row["knocked_out"]["class_iou"][name] == (None if np.isnan(value) else value)
        assert (matrix_NKK != whole).any()
    assert (matrices[0] != matrices[1]).any()


def test_a_head_per_branch_is_counted_where_the_run_has_them(supervised):
    network = json.loads((supervised / "record.json").read_text())["network"]
    evaluate(run=supervised, network=network, with_branches=True)
    rows, counts = figures()["branches"], counted()
    assert {f"knocked_out_{level}" for level in range(3)} | {"head_1"} < set(counts)
    assert [(row["level"], row["stride"], row["head"] is None) for row in rows] == [
        (0, 2, True),
        (1, 4, False),
        (2, 8, True),
    ]
    assert [sorted(row["missing"]) for row in rows] == [["head"], [], ["head"]]
    assert rows[1]["head"]["mean_iou"] == metrics.mean_iou(counts["head_1"].total())
    whole, _ = weights.load_network(supervised)
    heads = DeepSupervision(whole)
    heads.auxiliary.load_state_dict(weights.read_weights(supervised / "auxiliary.safetensors"))
    heads.train()
    whole.eval()
    split = open_store(Path("data/demo/cityscapes")).split("val")
    for position in range(3):
        image_BCHW = torch.from_numpy(split.image(position).copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            _, logits_BKhw = heads(inference.normalise(image_BCHW, device=torch.device("cpu")))
            logits_BKHW = resize(logits_BKhw, image_BCHW.shape[-2:])
        matrix = metrics.confusion(split.label(position), logits_BKHW.argmax(1)[0].numpy().astype(np.uint8), classes=19)
        np.testing.assert_array_equal(counts["head_1"].image(position), matrix)
    certificate = json.loads((EVIDENCE / "certificate.json").read_text())
    assert certificate["auxiliary_sha256"] == sha256(supervised / "auxiliary.safetensors")
    assert certificate["training"] is None  # nobody wrote down who made this one
    (supervised / "auxiliary.safetensors").unlink()
    evaluate(run=supervised, network=network, with_branches=True)
    assert figures()["branches"][1]["missing"] == {"head": "the run has no auxiliary.safetensors"}


def test_branches_are_shown_where_they_are_asked_for(trained, mmseg, change_params):
    assert "without it" not in (PAGE / "index.md").read_text()
    change_params(lambda p: p["evaluate"].update(branches=True))
    done = mmseg("evaluate", "--variant", "mmbconv")
    assert done.code == 0, done.err
    found, text = figures(), (PAGE / "index.md").read_text()
    values = [row["knocked_out"]["mean_iou"] for row in found["branches"]]
    assert ", ".join(f"{level}: {100 * value:.2f}" for level, value in enumerate(values)) in done.out.replace(" %", "")
    for stride, value in zip((2, 4), values, strict=True):
        change = f"{100 * (value - found['mean_iou']):+.2f}".replace("-", "\N{MINUS SIGN}")
        assert f"| 1/{stride} | {100 * value:.2f} | {change} | – |" in text
    assert "which is not trained again" in text


def test_windows_of_branches_are_those_of_the_network(trained, monkeypatch):
    monkeypatch.setattr(segmenter, "SMALLEST", 8)
    fits = {"limit": 2**16}
    while (plan := planned(**fits)) is None or plan.forced:
        fits = {"limit": fits["limit"] + 2**14}
    _, warnings = evaluate(limit=fits["limit"] - 2**14, with_branches=True)
    assert len(warnings) == 1  # of the network itself
    assert figures()["branches"][0]["knocked_out"]["mean_iou"] is not None
    evaluate(protocol=Protocol(window=(32, 32)), with_branches=True, fold=True, precision="bfloat16")
    assert figures()["branches"][0]["knocked_out"]["mean_iou"] is not None


# ---------------------------------------------------------------------------------------------------------- certificate


def test_the_certificate_says_where_it_comes_from_and_of_what(trained):
    found = json.loads((EVIDENCE / "certificate.json").read_text())
    record = json.loads((RUN / "record.json").read_text())
    assert found["training"] == json.loads((RUN / "provenance.json").read_text())
    assert found["training"]["stage"] == "train"
    assert set(found["evaluation"]) >= {"began", "commit", "changes", "environment", "device"}
    assert found["evaluation"]["device"] == "cpu"
    hashes = {
        "weights_sha256": RUN / "model.safetensors",
        "confusion_sha256": EVIDENCE / "confusion.npz",
        "metrics_sha256": EVIDENCE / "metrics.json",
        "data_manifest_sha256": Path("data/demo/cityscapes/manifest.json"),
    }
    assert {key: found[key] for key in hashes} == {key: sha256(path) for key, path in hashes.items()}
    assert found["data_manifest_sha256"] == record["data_manifest_sha256"]
    assert found["fingerprint"] == record["fingerprint"] == figures()["run"]["fingerprint"]
    assert found["auxiliary_sha256"] is None
    assert set(found) == {"training", "evaluation", "fingerprint", "auxiliary_sha256", *hashes}
    order = [(EVIDENCE / name).stat().st_mtime_ns for name in ("confusion.npz", "metrics.json", "certificate.json")]
    assert order == sorted(order)


def test_the_code_of_the_project_is_in_the_certificate(trained):
    for command in (["init"], ["add", "params.yaml"], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-m", "c"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    evaluate()
    found = json.loads((EVIDENCE / "certificate.json").read_text())["evaluation"]
    assert (found["commit"], found["changes"]) == (head, None)


def test_a_damaged_provenance_is_told_before_anything_is_predicted(trained):
    (RUN / "provenance.json").write_text("{")
    assert "provenance.json: cannot be read" in refused()


# ------------------------------------------------------------------------------------------------ the official program


def test_the_benchmark_finds_the_same_in_the_files(trained, raw):
    result, _ = evaluate()
    assert figures()["official"]["largest_difference"] == 0
    assert figures()["official"]["against"] == "the labels of the store"
    assert figures()["instances"] is None
    assert "classes differ by at most 0" in result.official


def test_the_dataset_s_own_files_are_better_and_have_instances(trained, raw, mmseg, monkeypatch):
    root = raw["cityscapes"]
    monkeypatch.setenv("MMSEG_CITYSCAPES_ROOT", str(root))
    done = mmseg("evaluate", "--variant", "mmbconv")
    assert done.code == 0, done.err
    assert figures()["official"]["against"] == "the dataset's files"
    assert 0 <= figures()["instances"]["mean_iiou"] <= 1
    assert "iIoU" in done.out


def test_a_root_that_does_not_fit_is_told(trained, mmseg, raw_copy, change_params, monkeypatch):
    done = mmseg("evaluate", "--variant", "mmbconv", "--root", "data")
    assert (done.code, "does not hold the label files of val" in done.one_error()) == (2, True)
    root = raw_copy("cityscapes")
    next(root.glob("gtFine/val/*/*_labelIds.png")).unlink()
    monkeypatch.setenv("MMSEG_CITYSCAPES_ROOT", str(root))
    done = mmseg("evaluate", "--variant", "mmbconv")
    assert done.code == 0, done.err
    assert "not all label files of val are in gtFine/val" in done.err
    assert figures()["official"]["against"] == "the labels of the store"
    change_params(lambda p: p["evaluate"].update(official=False))
    done = mmseg("evaluate", "--variant", "mmbconv", "--root", root)
    assert "--root: is for the benchmark's program" in done.one_error()


def test_ctrl_c_leaves_what_was_there(trained):
    """In a process of its own, which is stopped while it predicts."""
    before = {folder: trees.contents(folder) for folder in (EVIDENCE, PAGE.parent)}
    script = (
        "import os, signal, sys\n"
        "from mmseg_cli.evaluation.segmenter import Segmenter\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test in the background ignores it
        "right = Segmenter.predict\n"
        "def predict(*a, **k):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return right(*a, **k)\n"
        "Segmenter.predict = predict\n"
        "sys.argv = ['mmseg', 'evaluate', '--variant', 'mmbconv']\n"
        "from mmseg_cli.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1].startswith("mmseg: error: ")
    assert "stopped by SIGINT, what was there before stays" in done.stderr.splitlines()[-1]
    assert {folder: trees.contents(folder) for folder in (EVIDENCE, PAGE.parent)} == before


def test_a_run_that_is_not_there_leaves_nothing(trained, mmseg):
    done = mmseg("evaluate", "--variant", "mmbconv", "--seed", 7)
    assert done.code == 2
    assert "mmbconv-s7/record.json: missing" in done.one_error()
    assert done.err.count("\n") == 1
    assert not EVIDENCE.with_name("mmbconv-s7").exists()


def test_a_network_that_gives_nan_has_no_figures(trained):
    class Broken(torch.nn.Module):
        def forward(self, x_BCHW):
            return x_BCHW.new_full((len(x_BCHW), 19, *x_BCHW.shape[2:]), math.nan)

    made = on_torch.segmenter(Broken(), classes=19, device=torch.device("cpu"))
    with pytest.raises(MmsegError, match="not finite"):
        made.predict(np.zeros((4, 4, 3), np.uint8))


def test_another_iou_than_the_benchmark_s_is_an_error(trained, monkeypatch):
    before = {folder: trees.contents(folder) for folder in (EVIDENCE, PAGE)}
    right = room.metrics.class_iou
    monkeypatch.setattr(summary.metrics, "class_iou", lambda matrix: right(matrix) * (1 + 1e-8))
    with pytest.raises(MmsegError, match="the benchmark's program gives .*: a class differs by"):
        evaluate()
    assert {folder: trees.contents(folder) for folder in (EVIDENCE, PAGE)} == before


def test_the_benchmark_knows_only_its_own_classes(trained):
    store = open_store(Path("data/demo/mapillary"))
    with pytest.raises(MmsegError, match=r"evaluate\.official"):
        evaluate(
            run=Path("runs/demo/pretrain_mapillary/mmbconv-s0"),
            store=store,
        )
    evaluate(run=Path("runs/demo/pretrain_mapillary/mmbconv-s0"), store=store, run_official=False)
    assert figures()["official"] is None
    assert figures()["label_space"] == store.space.name != "cityscapes-19"


def test_labels_keep_their_native_size_when_the_images_shrink(trained, change_params, mmseg, raw):
    change_params(lambda p: p["datasets"]["cityscapes"].update(long_side=32))
    assert mmseg("prepare", "cityscapes", "--root", raw["cityscapes"], "--preset", "demo").code == 0
    store = open_store(Path("data/demo/cityscapes"))
    assert (store.split("val").size(0), store.split("val").label_size(0)) == ((16, 32), (32, 64))
    assert mmseg("evaluate", "--variant", "mmbconv").code == 0
    counted = evidence.load(EVIDENCE / "confusion.npz").counts["confusion"].dense().sum(axis=(1, 2))
    native = [int((store.split("val").label(position) != IGNORE).sum()) for position in range(3)]
    assert counted.tolist() == native
    assert min(native) > 16 * 32


def refused(**changes):
    before = {folder: trees.contents(folder) for folder in (EVIDENCE, PAGE)}
    with pytest.raises(MmsegError) as caught:
        evaluate(**changes)
    assert caught.value.exit_code == 2
    assert {folder: trees.contents(folder) for folder in (EVIDENCE, PAGE)} == before
    return str(caught.value)


def test_another_architecture_is_refused(trained):
    network = json.loads((RUN / "record.json").read_text())["network"]
    said = refused(network={**network, "width": 99, "norm": "group"})
    assert "holds a network of another architecture (norm, width differ from the parameters)" in said


def test_a_run_of_another_stage_or_dataset_is_refused(trained):
    assert "is not a segmentation network" in refused(run=Path("runs/demo/pretrain_imagenet/mmbconv-s0"))
    assert "was trained on other classes" in refused(run=Path("runs/demo/pretrain_mapillary/mmbconv-s0"))


def test_damaged_weights_are_refused(trained):
    (RUN / "model.safetensors").write_bytes((RUN / "model.safetensors").read_bytes()[:-4])
    assert "model.safetensors: is damaged" in refused()
    shutil.copyfile("runs/demo/pretrain_mapillary/mmbconv-s0/model.safetensors", RUN / "model.safetensors")
    assert "is not the file that record.json names" in refused()
    record = json.loads((RUN / "record.json").read_text())
    record["weights_sha256"] = hashlib.sha256((RUN / "model.safetensors").read_bytes()).hexdigest()
    (RUN / "record.json").write_text(json.dumps(record))
    assert "is of another architecture" in refused()
    (RUN / "model.safetensors").unlink()
    assert "model.safetensors: missing" in refused()


def test_labels_that_are_all_ignored_have_no_figures(trained, raw_copy, mmseg):
    root = raw_copy("cityscapes")
    for path in root.glob("gtFine/val/*/*_labelIds.png"):
        Image.fromarray(np.zeros((32, 64), np.uint8)).save(path)
    assert mmseg("prepare", "cityscapes", "--root", root, "--preset", "demo").code == 0
    before = trees.contents(EVIDENCE)
    done = mmseg("evaluate", "--variant", "mmbconv")
    assert "every pixel of every label is ignored" in done.one_error()
    assert done.code == 2
    assert trees.contents(EVIDENCE) == before
