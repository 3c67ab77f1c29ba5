from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import trees

from mmseg_cli import paths as places
from mmseg_cli.ablation import grid
from mmseg_cli.errors import MmsegError

TABLE = {("residual", 0): 80, ("residual", 1): 70, ("mbconv", 0): 90, ("mbconv", 1): 60}
GRID = {"variants": ["residual", "mbconv"], "seeds": [0, 1]}


@pytest.fixture
def paths(project):
    found = places.find(preset="demo")
    trees.make_evidence(found.evidence, TABLE)
    return found


def refused(paths, **changes) -> str:
    with pytest.raises(MmsegError) as caught:
        grid.collect(paths, **(GRID | changes))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_evidence_is_read(paths):
    evidence = grid.collect(paths, **GRID)
    assert evidence.figure("residual", "mean_iou") == pytest.approx([80 / 120, 70 / 130], abs=1e-15)
    assert evidence.figure("mbconv", "mean_iou") == pytest.approx([90 / 110, 60 / 140], abs=1e-15)


@pytest.mark.parametrize(
    "gone",
    [
        ["mbconv-s1/metrics.json"],
        ["mbconv-s1/confusion.npz", "residual-s0/metrics.json"],
        ["cost.json"],
        ["residual-s1/metrics.json", "residual-s1/confusion.npz"],
    ],
)
def test_exactly_what_is_missing_is_named(paths, gone):
    for name in gone:
        (paths.evidence / name).unlink()
    listed = refused(paths).removeprefix(f"{paths.evidence}: missing ").split(":")[0].split(", ")
    assert sorted(listed) == sorted(gone)


def test_a_larger_grid_lacks_exactly_its_new_runs(paths):
    listed = refused(paths, seeds=[0, 1, 7]).removeprefix(f"{paths.evidence}: missing ").split(":")[0].split(", ")
    expected = [f"{variant}-s7/{name}" for variant in GRID["variants"] for name in ("metrics.json", "confusion.npz")]
    assert listed == expected


def test_runs_outside_the_grid_are_not_looked_at(paths):
    (paths.evidence / "mbconv-s1" / "metrics.json").write_text("broken")
    shutil.rmtree(paths.evidence / "residual-s1")
    assert set(grid.collect(paths, variants=["residual", "mbconv"], seeds=[0]).runs) == {("residual", 0), ("mbconv", 0)}


def change(figures, key, value):
    figures[key] = value


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda f: change(f, "mean_iou", f["mean_iou"] + 1e-6), "says mean_iou"),
        (lambda f: change(f["class_iou"], "road", f["class_iou"]["road"] + 1e-6), "class_iou"),
        (lambda f: change(f["class_iou"], "sky", 0.5), "class_iou"),
        (lambda f: change(f["class_iou"], "road", None), "class_iou"),
        (lambda f: f["class_iou"].pop("sky"), "class_iou"),
        (lambda f: change(f, "pixel_accuracy", 0.99), "pixel_accuracy"),
        (lambda f: change(f, "images", 500), "images"),
        (lambda f: change(f, "confusion_sha256", "0" * 64), "is not the file that metrics.json was computed from"),
        (lambda f: f.pop("mean_iou"), "mean_iou"),
        (lambda f: f.pop("class_iou"), "class_iou"),
        (lambda f: change(f, "mean_iou", "0.6"), "mean_iou"),
        (lambda f: change(f["run"], "seed", 5), "mbconv-s1"),
        (lambda f: change(f["run"], "variant", "residual"), "mbconv-s1"),
        (lambda f: f.pop("run"), "mbconv-s1"),
        (lambda f: change(f["run"], "recipe", "0" * 64), "was trained by another recipe"),
        (lambda f: change(f["run"], "ladder", ["pretrain_imagenet", "train"]), "was trained by another ladder"),
        (lambda f: change(f["run"], "network", {"block": "residual"}), "is of another network than cost.json measured"),
        (lambda f: change(f, "label_space", "toy-4"), "label_space is toy-4"),
    ],
)
def test_tampered_metrics_are_refused(paths, tamper, said):
    path = paths.evidence / "mbconv-s1" / "metrics.json"
    figures = json.loads(path.read_text())
    tamper(figures)
    path.write_text(json.dumps(figures))
    message = refused(paths)
    assert message.startswith(str(path.parent))
    assert said in message


@pytest.mark.parametrize("content", ["[]", "3", "null", "", "{"])
def test_metrics_of_another_form_are_refused(paths, content):
    path = paths.evidence / "mbconv-s1" / "metrics.json"
    path.write_text(content)
    assert refused(paths).startswith(f"{path}: ")


def test_a_tampered_confusion_file_is_refused(paths):
    path = paths.evidence / "mbconv-s1" / "confusion.npz"
    with np.load(path) as content:
        parts = dict(content)
    parts["confusion.values"][0] += 1
    np.savez_compressed(path, **parts)
    assert refused(paths).startswith(f"{path}: is not the file that metrics.json was computed from: ")


def test_the_run_of_another_place_is_refused(paths):
    """A copied folder is whole in itself, but it is not this run."""
    shutil.rmtree(paths.evidence / "mbconv-s1")
    shutil.copytree(paths.evidence / "mbconv-s0", paths.evidence / "mbconv-s1")
    assert refused(paths).startswith(str(paths.evidence / "mbconv-s1"))


def test_a_variant_without_measured_cost_is_named(paths):
    path = paths.evidence / "cost.json"
    cost = json.loads(path.read_text())
    del cost["variants"]["mbconv"]
    path.write_text(json.dumps(cost))
    assert refused(paths).startswith(f"{path}: has no measurement of mbconv: ")


@pytest.mark.parametrize("content", ["[]", "{}", "", '{"variants": []}'])
def test_costs_of_another_form_are_refused(paths, content):
    path = paths.evidence / "cost.json"
    path.write_text(content)
    assert refused(paths).startswith(f"{path}: ")
