"""The benchmark's own program behind our wrapper: equal figures, one line for whatever it refuses, and no traces."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import stores
import trees
from PIL import Image

from mmseg_cli.data.labels import IGNORE, cityscapes_19
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import metrics, official

SPACE, TABLE = cityscapes_19()
PAIRS = 200


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Random prediction and label files of ids with instances beside them, and their confusion matrices; classes are
    absent from some, and predicted where the truth has none."""
    from cityscapesscripts.helpers.labels import labels

    folder = tmp_path_factory.mktemp("pairs")
    every_id = [label.id for label in labels if label.id >= 0]
    things = [label.id for label in labels if label.hasInstances]
    rng = np.random.default_rng(3)
    predictions, truths, matrices = [], [], []
    for number in range(PAIRS):
        height, width = (int(side) for side in rng.integers(8, 40, 2))
        present = rng.choice(every_id, size=int(rng.integers(1, 12)), replace=False)
        answered = rng.choice(SPACE.ids, size=int(rng.integers(1, 12)), replace=False)
        truth_HW = rng.choice(present, size=(height, width)).astype(np.uint8)
        predicted_HW = rng.choice(answered, size=(height, width)).astype(np.uint8)
        right = (rng.random(truth_HW.shape) < 0.5) & np.isin(truth_HW, SPACE.ids)
        predicted_HW[right] = truth_HW[right]
        instances_HW = truth_HW.astype(np.uint16)
        thing = np.isin(truth_HW, things)
        instances_HW[thing] = instances_HW[thing] * 1000 + rng.integers(1, 4, size=int(thing.sum()))
        predictions.append(save(folder / f"{number}_prediction.png", predicted_HW))
        truths.append(save(folder / f"{number}_gtFine_labelIds.png", truth_HW))
        save(folder / f"{number}_gtFine_instanceIds.png", instances_HW)
        matrices.append(
            metrics.confusion(TABLE[truth_HW].astype(np.uint8), TABLE[predicted_HW].astype(np.uint8), classes=19)
        )
    return predictions, truths, matrices


def ours(matrix):
    return dict(zip(SPACE.classes, metrics.class_iou(matrix).tolist(), strict=True))


def test_ours_is_theirs_to_the_last_bit(pairs):
    predictions, truths, matrices = pairs
    absent = 0
    for prediction, truth, matrix in zip(predictions, truths, matrices, strict=True):
        found = official.evaluate_pngs([prediction], [truth], instances=False)
        assert official.differences(found.class_iou, ours(matrix)) == 0.0
        absent += sum(math.isnan(value) for value in found.class_iou.values())
        if matrix.any():
            assert abs(found.mean_iou - metrics.mean_iou(matrix)) < 1e-12
    assert absent > PAIRS  # the NaN pattern was compared
    whole = official.evaluate_pngs(predictions, truths, instances=False)
    assert whole.images == PAIRS
    assert official.differences(whole.class_iou, ours(sum(matrices))) == 0.0
    for name, value in metrics.category_iou(sum(matrices), SPACE.categories).items():
        assert abs(whole.category_iou[name] - value) < 1e-12
    assert whole.class_iiou is whole.mean_iiou is whole.category_iiou is whole.mean_category_iiou is None


def test_instances_are_weighted_by_their_size(pairs):
    """iIoU of cars by the benchmark's definition, in plain Python."""
    predictions, truths, _ = (part[:20] for part in pairs)
    found = official.evaluate_pngs(predictions, truths, instances=True)
    assert list(found.class_iiou) == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert list(found.category_iiou) == ["human", "vehicle"]
    hits = misses = wrong = 0.0
    for prediction, truth in zip(predictions, truths, strict=True):
        predicted, label = np.asarray(Image.open(prediction)), np.asarray(Image.open(truth))
        instances = np.asarray(Image.open(str(truth).replace("labelIds", "instanceIds")))
        for instance in np.unique(instances[instances // 1000 == 26]):
            mask = instances == instance
            weight = 12794.0202738185 / mask.sum()  # the mean size of a car, as the program has it
            hits += weight * (predicted[mask] == 26).sum()
            misses += weight * (predicted[mask] != 26).sum()
        wrong += ((predicted == 26) & np.isin(label, [own for own in SPACE.ids if own != 26])).sum()
    assert abs(found.class_iiou["car"] - hits / (hits + misses + wrong)) < 1e-12
    values = [value for value in found.class_iiou.values() if not math.isnan(value)]
    assert abs(found.mean_iiou - sum(values) / len(values)) < 1e-12


def test_a_difference_is_seen(pairs):
    predictions, truths, matrices = (part[:3] for part in pairs)
    found = official.evaluate_pngs(predictions, truths, instances=False)
    values = ours(sum(matrices))
    present = next(name for name, value in values.items() if not math.isnan(value))
    assert official.differences(found.class_iou, values | {present: values[present] + 0.25}) == 0.25
    assert official.differences(found.class_iou, values | {present: math.nan}) == math.inf
    assert official.differences(found.class_iou, values | {present: None}) == math.inf
    assert official.differences(found.class_iou, {name: values[name] for name in SPACE.classes[:18]}) == math.inf
    absent = replace(found, class_iou=found.class_iou | {present: math.nan})
    assert official.differences(absent.class_iou, values | {present: None}) == 0.0
    assert official.differences(absent.class_iou, values) == math.inf


# ------------------------------------------------------------------------------------------------------ what it refuses


def refused(predictions, truths, *, instances=False):
    with pytest.raises(MmsegError) as caught:
        official.evaluate_pngs(predictions, truths, instances=instances)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_whatever_it_refuses_is_one_line(tmp_path, capfd):
    road = np.full((4, 6), 7, dtype=np.uint8)
    truth = save(tmp_path / "a_gtFine_labelIds.png", road)
    good = save(tmp_path / "good.png", road)
    for value in (255, 34, 200):  # ids that do not exist
        bad = save(tmp_path / f"{value}.png", np.full((4, 6), value, dtype=np.uint8))
        line = refused([good, bad], [truth, truth])
        assert line.startswith(f"{bad}: holds an id that is none of the labelIds")
    missing = tmp_path / "missing.png"
    assert f"Unable to load {missing}" in refused([missing], [truth])
    assert f"Unable to load {missing}" in refused([good], [missing])
    wide = save(tmp_path / "wide.png", np.full((4, 7), 7, dtype=np.uint8))
    assert "Image widths of" in refused([wide], [truth])
    tall = save(tmp_path / "tall.png", np.full((5, 6), 7, dtype=np.uint8))
    assert "Image heights of" in refused([tall], [truth])
    colours = save(tmp_path / "colours.png", np.full((4, 6, 3), 7, dtype=np.uint8))
    assert "multiple channels" in refused([colours], [truth])
    odd = save(tmp_path / "odd_gtFine_labelIds.png", np.full((4, 6), 40, dtype=np.uint8))
    assert refused([good], [odd]).startswith(f"{odd}: cityscapesscripts says: Unknown label with id 40")
    assert "not of equal size" in refused([good, good], [truth])
    assert "no images" in refused([], [])
    assert "Unable to load" in refused([good], [truth], instances=True)  # no instanceIds beside it
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:40])
    assert f"Unable to load {broken}" in refused([broken], [truth])
    assert capfd.readouterr() == ("", "")


def test_instances_lie_beside_the_labels(tmp_path):
    trees.make_cityscapes(tmp_path, val=2)
    labels = sorted((tmp_path / "gtFine" / "val").rglob("*_labelIds.png"))
    assert official.have_instances(labels)
    next((tmp_path / "gtFine" / "val").rglob("*_instanceIds.png")).unlink()
    assert not official.have_instances(labels)


# ------------------------------------------------------------------------------------------------------------ no traces


def test_no_call_leaves_traces(pairs, monkeypatch, tmp_path, capfd):
    """The program's module, numpy, the environment and the screen stay as they were; a second call gives the same."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as program

    def state():
        known = {name: value for name, value in vars(program).items() if not name.startswith("__")}
        return known, dict(vars(program.args)), hasattr(np, "in1d")

    monkeypatch.setenv("CITYSCAPES_EXPORT_DIR", str(tmp_path / "is-not-there"))  # refused at import
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "elsewhere"))
    before, environment = state(), dict(os.environ)
    predictions, truths, _ = (part[:5] for part in pairs)
    first = official.evaluate_pngs(predictions, truths, instances=True)
    official.evaluate_pngs(predictions[:2], truths[:2], instances=False)
    refused(predictions[:1], [tmp_path / "none.png"])
    again = official.evaluate_pngs(predictions, truths, instances=True)
    assert str(asdict(again)) == str(asdict(first))  # NaN equals NaN in text
    assert state() == before
    assert dict(os.environ) == environment
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_the_wrapper_does_not_import_the_program_for_others():
    code = (
        "import sys; from mmseg_cli.evaluation import official; official._program();"
        "print(any(name.endswith('evalPixelLevelSemanticLabeling') for name in sys.modules), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --------------------------------------------------------------------------------------------------------- ground truth


def test_labels_of_a_dataset_are_found_by_the_names_of_its_store(tmp_path):
    trees.make_cityscapes(tmp_path, val=2)
    names = ["lindau_000001_000019", "lindau_000000_000019"]
    found = official.labels_of(tmp_path, names)
    assert [path.name for path in found] == [f"{name}_gtFine_labelIds.png" for name in names]
    assert official.labels_of(tmp_path, [*names, "lindau_000009_000019"]) is None
    assert official.labels_of(tmp_path / "elsewhere", names) is None
    folder = tmp_path / "gtFine" / "val"
    (folder / "lindau").rename(folder / "bad-honnef")
    assert official.labels_of(tmp_path, names) is None


def make_store(folder, labels):
    return stores.make_segmentation(
        folder, {"train": labels, "val": labels}, names=list(SPACE.classes), label_space=SPACE.as_json()
    )


def test_labels_of_a_store_are_what_the_program_reads(tmp_path):
    """Written from train ids, they score as the dataset's own would."""
    rng = np.random.default_rng(5)
    labels = [rng.choice([*range(19), IGNORE], size=(12, 20)).astype(np.uint8) for _ in range(3)]
    store = make_store(tmp_path / "store", labels)
    paths = official.write_labels(store.split("val"), store.space, tmp_path / "labels")
    for path, label_HW in zip(paths, labels, strict=True):
        written = Image.open(path)
        assert written.mode == "L"
        written_HW = np.asarray(written)
        assert (written_HW[label_HW == IGNORE] == 0).all()
        np.testing.assert_array_equal(TABLE[written_HW], label_HW)
    predictions, total = [], np.zeros((19, 19), dtype=np.int64)
    for number, label_HW in enumerate(labels):
        predicted_HW = rng.integers(0, 19, label_HW.shape).astype(np.uint8)
        predictions.append(tmp_path / f"{number}.png")
        official.write_png(predictions[-1], official.own_ids(store.space)[predicted_HW])
        total += metrics.confusion(label_HW, predicted_HW, classes=19)
    found = official.evaluate_pngs(predictions, paths, instances=official.have_instances(paths))
    assert official.differences(found.class_iou, ours(total)) == 0.0


def test_other_classes_are_refused(tmp_path):
    store = stores.make_segmentation(
        tmp_path / "store", {"val": [np.zeros((8, 8), dtype=np.uint8)]}, names=["road", "car"]
    )
    with pytest.raises(MmsegError, match="has the classes of toy-2"):
        official.write_labels(store.split("val"), store.space, tmp_path / "labels")
    with pytest.raises(MmsegError, match="no ids of their own"):
        official.own_ids(replace(SPACE, ids=(-1, *SPACE.ids[1:])))


def test_the_program_finds_predictions_by_the_names_we_give():
    frames = ["berlin_000000_000019", "bad-honnef_000001_000019"]
    names = [f"{frame}_predictions.png" for frame in frames]
    assert official.predictions_found(names, frames) == dict(zip(frames, names, strict=True))
    with pytest.raises(MmsegError, match="Found no prediction"):
        official.predictions_found(names[:1], frames)
    with pytest.raises(MmsegError, match="Found multiple predictions"):
        official.predictions_found([*names, "berlin_000000_000019.png"], frames)
