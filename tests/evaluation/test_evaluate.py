from __future__ import annotations

import hashlib
import json
import shutil
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
from mmseg_cli.evaluation import metrics
from mmseg_cli.models import weights

RUN = Path("runs/demo/train/mmbconv-s0")
EVIDENCE = Path("reports/demo/evidence/mmbconv-s0")
OVERLAYS = Path("runs/demo/evaluate/mmbconv-s0")


def evaluate(*, overlays=2, workers=0, **changes):
    arguments = {
        "network": json.loads((RUN / "record.json").read_text())["network"],
        "metrics_file": EVIDENCE / "metrics.json",
        "confusion_file": EVIDENCE / "confusion.npz",
        "overlays_folder": OVERLAYS,
    } | changes
    return room.evaluate(
        changes.pop("run", RUN),
        changes.pop("store", open_store(Path("data/demo/cityscapes"))),
        **{key: value for key, value in arguments.items() if key not in ("run", "store")},
        overlays=overlays,
        device=torch.device("cpu"),
        workers=workers,
        advance=lambda: None,
    )


def test_the_evidence_says_what_the_network_does(trained):
    """Every figure again, from the network and the raw files, by other means."""
    figures = json.loads((EVIDENCE / "metrics.json").read_text())
    network, record = weights.load_network(RUN)
    space, _ = cityscapes_19()
    store = open_store(Path("data/demo/cityscapes"))
    matrices = []
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
    with np.load(EVIDENCE / "confusion.npz") as content:
        assert content["confusion"].dtype == np.int64
        np.testing.assert_array_equal(content["confusion"], matrices)
        assert content["classes"].tolist() == list(space.classes)
        assert content["names"].tolist() == store.names("val")
    total = sum(matrices)
    assert figures["mean_iou"] == pytest.approx(metrics.mean_iou(total), abs=1e-15)
    assert figures["pixel_accuracy"] == np.trace(total) / total.sum()
    for name, value in zip(space.classes, metrics.class_iou(total), strict=True):
        assert figures["class_iou"][name] == (None if np.isnan(value) else value)
    assert None in figures["class_iou"].values()
    assert set(figures["category_iou"]) == set(space.categories)
    kept = [value for value in figures["category_iou"].values() if value is not None]
    assert figures["mean_category_iou"] == pytest.approx(np.mean(kept), abs=1e-15)
    assert (figures["images"], figures["split"], figures["label_space"]) == (3, "val", "cityscapes-19")
    for key, path in (("weights_sha256", RUN / "model.safetensors"), ("confusion_sha256", EVIDENCE / "confusion.npz")):
        assert figures[key] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert figures["run"] == {
        key: record[key] for key in ("variant", "seed", "network", "ladder", "recipe", "fingerprint")
    }
    assert "NaN" not in (EVIDENCE / "metrics.json").read_text()


def test_training_and_evaluation_agree_on_the_figures(trained):
    record = json.loads((RUN / "record.json").read_text())
    figures = json.loads((EVIDENCE / "metrics.json").read_text())
    assert {key: figures[key] for key in record["figures"]} == record["figures"]


def test_the_same_evaluation_gives_the_same_bytes(trained):
    before = {folder: trees.contents(folder) for folder in (EVIDENCE, OVERLAYS)}
    evaluate(workers=2)
    assert {folder: trees.contents(folder) for folder in (EVIDENCE, OVERLAYS)} == before


def test_overlays_are_spread_over_the_split_and_show_truth_and_prediction(trained):
    names = open_store(Path("data/demo/cityscapes")).names("val")
    assert sorted(path.stem for path in OVERLAYS.iterdir()) == sorted([names[0], names[-1]])
    sheet_HWC = np.asarray(Image.open(OVERLAYS / f"{names[0]}.png"))
    assert sheet_HWC.shape == (32, 4 * 64 + 3 * room.GAP, 3)
    store = open_store(Path("data/demo/cityscapes"))
    np.testing.assert_array_equal(sheet_HWC[:, :64], store.split("val").image(0))
    label_HW = store.split("val").label(0)
    truth_HWC = sheet_HWC[:, 64 + room.GAP : 128 + room.GAP]
    for k in np.unique(label_HW):
        colour = (0, 0, 0) if k == IGNORE else store.space.colours[k]
        assert (truth_HWC[label_HW == k] == colour).all()
    prediction_HWC, errors_HWC = sheet_HWC[:, 136:200], sheet_HWC[:, 204:268]
    wrong_HW = (prediction_HWC != truth_HWC).any(axis=2) & (label_HW != IGNORE)
    assert wrong_HW.any()
    assert (errors_HWC[wrong_HW] == (220, 40, 40)).all()
    assert (errors_HWC[label_HW == IGNORE] == 0).all()
    grey_HWC = errors_HWC[~wrong_HW & (label_HW != IGNORE)]
    assert (grey_HWC == grey_HWC[:, :1]).all()


@pytest.mark.parametrize(("wanted", "drawn"), [(0, 0), (1, 1), (99, 3)])
def test_as_many_overlays_as_wanted_and_possible(trained, wanted, drawn):
    evaluate(overlays=wanted)
    assert len(list(OVERLAYS.iterdir())) == drawn


def test_labels_keep_their_native_size_when_the_images_shrink(trained, change_params, mmseg, raw):
    change_params(lambda p: p["datasets"]["cityscapes"].update(long_side=32))
    assert mmseg("prepare", "cityscapes", "--root", raw["cityscapes"], "--preset", "demo").code == 0
    store = open_store(Path("data/demo/cityscapes"))
    assert (store.split("val").size(0), store.split("val").label_size(0)) == ((16, 32), (32, 64))
    assert mmseg("evaluate", "--variant", "mmbconv").code == 0
    with np.load(EVIDENCE / "confusion.npz") as content:
        counted = content["confusion"].sum(axis=(1, 2))
    native = [int((store.split("val").label(position) != IGNORE).sum()) for position in range(3)]
    assert counted.tolist() == native
    assert min(native) > 16 * 32


def refused(**changes):
    before = {folder: trees.contents(folder) for folder in (EVIDENCE, OVERLAYS)}
    with pytest.raises(MmsegError) as caught:
        evaluate(**changes)
    assert caught.value.exit_code == 2
    assert {folder: trees.contents(folder) for folder in (EVIDENCE, OVERLAYS)} == before
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
