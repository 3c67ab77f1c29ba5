from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mmseg_cli import paths as places
from mmseg_cli.ablation import grid, report
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence as counted
from mmseg_cli.params import load
from mmseg_cli.paths import run_name
from tests import evidence as made


@pytest.fixture
def paths(project, change_params):
    """A project with the evidence of two variants and two seeds."""
    change_params(lambda p: p["ablate"].update(variants=["residual", "mbconv"], seeds=[0, 1]))
    found = places.find(preset="demo")
    made.make(found, load(found.params))
    return found


def collect(paths):
    return report.collect(paths, load(paths.params))


def refused(paths) -> str:
    with pytest.raises(MmsegError) as caught:
        collect(paths)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_evidence_is_read(paths):
    evidence = collect(paths)
    for (variant, seed), run in evidence.runs.items():
        said = json.loads((paths.evidence / run_name(variant, seed) / "metrics.json").read_text())
        place = evidence.seeds.index(seed)
        assert run == said
        assert evidence.sample(variant, "iou").plain_S[place] == pytest.approx(100 * said["mean_iou"], abs=1e-12)
    assert evidence.baseline == "residual"
    assert evidence.classes == list(made.SPACE.classes)
    difference = evidence.difference("mbconv", "iou")
    by_hand = np.mean(
        [100 * (evidence.runs["mbconv", s]["mean_iou"] - evidence.runs["residual", s]["mean_iou"]) for s in (0, 1)]
    )
    assert difference.estimate == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (["mbconv-s1/metrics.json"], ["mbconv-s1/metrics.json"]),
        (
            ["mbconv-s1/confusion.npz", "residual-s0/metrics.json"],
            ["residual-s0/metrics.json", "mbconv-s1/confusion.npz"],
        ),
        (["mbconv-s0/certificate.json"], ["mbconv-s0/certificate.json"]),
        (["cost.json"], ["cost.json"]),
        (["residual-s1/metrics.json", "residual-s1/confusion.npz", "residual-s1/certificate.json"], ["residual-s1/"]),
    ],
)
def test_exactly_what_is_missing_is_named(paths, gone, named):
    for name in gone:
        (paths.evidence / name).unlink()
    listed = refused(paths).removeprefix(f"{paths.evidence}: missing ").split(":")[0].split(", ")
    assert listed == named


def test_a_larger_grid_lacks_exactly_its_new_runs(paths, change_params):
    change_params(lambda p: p["ablate"].update(seeds=[0, 1, 7]))
    listed = refused(paths).removeprefix(f"{paths.evidence}: missing ").split(":")[0].split(", ")
    assert listed == ["residual-s7/", "mbconv-s7/"]


def test_runs_outside_the_grid_are_not_looked_at(paths, change_params):
    change_params(lambda p: p["ablate"].update(seeds=[0]))
    (paths.evidence / "mbconv-s1" / "metrics.json").write_text("broken")
    shutil.rmtree(paths.evidence / "residual-s1")
    assert set(collect(paths).runs) == {("residual", 0), ("mbconv", 0)}


def change(figures, key, value):
    figures[key] = value


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda f: change(f, "mean_iou", f["mean_iou"] + 1e-6), "says iou"),
        (lambda f: change(f["class_iou"], "road", f["class_iou"]["road"] + 1e-6), "iou of road"),
        (lambda f: change(f["class_iou"], "sky", None), "iou of sky"),
        (lambda f: f["class_iou"].pop("sky"), "class_iou"),
        (lambda f: change(f, "pixel_accuracy", 0.99), "pixel_accuracy"),
        (lambda f: change(f, "images", 500), "images"),
        (lambda f: change(f["boundaries"][1], "mean_f1", 0.1), "boundary_f1_3px"),
        (lambda f: change(f["boundaries"][0]["class_iou"], "car", 0.1), "boundary_iou_1px of car"),
        (lambda f: change(f["boundaries"][0], "pixels", 2), "of other limits than the others"),
        (lambda f: f["boundaries"].pop(), "other boundaries than were counted"),
        (lambda f: change(f["sizes"][2], "mean_found", 0.1), "found_large"),
        (lambda f: change(f["rows"][0], "mean_iou", 0.1), "iou_rows_0"),
        (lambda f: change(f, "confusion_sha256", "0" * 64), "is not the file that metrics.json was computed from"),
        (lambda f: f.pop("mean_iou"), "says iou None"),
        (lambda f: f.pop("class_iou"), "does not hold a run"),
        (lambda f: change(f, "mean_iou", "0.6"), "says iou 0.6"),
        (lambda f: change(f["run"], "seed", 5), "is of another run"),
        (lambda f: change(f["run"], "variant", "residual"), "is of another run"),
        (lambda f: f.pop("run"), "does not hold a run"),
        (lambda f: change(f["run"], "network", {"block": "residual"}), "is of another network than the parameters say"),
        (lambda f: f["run"].pop("rungs"), "before runs recorded their rungs"),
        (
            lambda f: f["run"]["rungs"].pop(0),
            "was trained on pretrain_mapillary, train, the parameters say pretrain_imagenet",
        ),
        (lambda f: change(f["run"]["rungs"][2]["parameters"], "batch", 64), "train.batch 64, the parameters say 2"),
        (lambda f: change(f["run"]["rungs"][2]["parameters"]["augment"], "flip", False), "train.augment.flip False"),
        (
            lambda f: change(f["run"]["rungs"][2], "data", {"1": "00"}),
            "saw other data in train than residual at the same seed",
        ),
        (
            lambda f: change(f["run"]["rungs"][1], "data_manifest_sha256", "0"),
            "pretrain_mapillary had other prepared data",
        ),
        (lambda f: change(f, "label_space", "toy-5"), "label_space is toy-5"),
        (lambda f: change(f["protocol"], "fold", True), "protocol is"),
        (lambda f: change(f, "images_also_in_train", 3), "3 of its val images are in train"),
    ],
)
def test_tampered_metrics_are_refused(paths, tamper, said):
    """Even where the certificate was forged as well."""
    path = paths.evidence / "mbconv-s1" / "metrics.json"
    figures = json.loads(path.read_text())
    tamper(figures)
    path.write_text(json.dumps(figures))
    certificate = json.loads(path.with_name("certificate.json").read_text())
    certificate |= {"metrics_sha256": grid.sha256(path), "confusion_sha256": figures["confusion_sha256"]}
    path.with_name("certificate.json").write_text(json.dumps(certificate))
    message = refused(paths)
    assert message.startswith(str(paths.evidence))
    assert said in message


@pytest.mark.parametrize("key", ["metrics_sha256", "confusion_sha256", "weights_sha256", "fingerprint"])
def test_a_certificate_of_something_else_is_refused(paths, key):
    path = paths.evidence / "mbconv-s1" / "certificate.json"
    content = json.loads(path.read_text()) | {key: "0" * 64}
    path.write_text(json.dumps(content))
    assert refused(paths).startswith(f"{path}: has another {key} than metrics.json: ")


@pytest.mark.parametrize("content", ["[]", "3", "null", "", "{"])
@pytest.mark.parametrize("name", ["metrics.json", "certificate.json"])
def test_files_of_another_form_are_refused(paths, name, content):
    path = paths.evidence / "mbconv-s1" / name
    path.write_text(content)
    assert refused(paths).startswith(f"{path}: ")


def test_a_tampered_confusion_file_is_refused(paths):
    path = paths.evidence / "mbconv-s1" / "confusion.npz"
    with np.load(path) as content:
        parts = dict(content)
    parts["confusion.values"][0] += 1
    np.savez_compressed(path, **parts)
    assert refused(paths).startswith(f"{path}: is not the file that metrics.json was computed from: ")


def test_runs_of_other_images_are_refused(paths):
    params = load(paths.params)
    counts = made.confusions(images=12, skill=0.8, noise=0.01, seed=5)
    made.write_run(paths, params, variant="mbconv", seed=1, counts=counts, names=[f"other{n}" for n in range(12)])
    assert "mbconv-s1/confusion.npz: is of other images than the other runs" in refused(paths)


def test_the_run_of_another_place_is_refused(paths):
    """A copied folder is whole in itself, but it is not this run."""
    shutil.rmtree(paths.evidence / "mbconv-s1")
    shutil.copytree(paths.evidence / "mbconv-s0", paths.evidence / "mbconv-s1")
    assert refused(paths).startswith(str(paths.evidence / "mbconv-s1"))


def test_a_changed_parameter_makes_the_evidence_stale(paths, change_params):
    change_params(lambda p: p["train"].update(learning_rate=0.5))
    assert "was trained with train.learning_rate 0.01, the parameters say 0.5" in refused(paths)


def test_how_often_one_looks_makes_nothing_stale(paths, change_params):
    change_params(lambda p: p["train"].update(validate_every=1, checkpoint_every=1))
    collect(paths)


def test_what_the_grid_leaves_out_of_a_comparison_is_what_training_leaves_out_of_its_definition():
    from mmseg_cli.training import stages

    assert grid.LOOKING == stages.NOT_DEFINING


def test_variants_may_differ_in_what_they_declare(paths, change_params):
    def vary(p):
        p["variants"]["hot"] = {"block": "residual", "start": "scratch", "train": {"learning_rate": 0.5, "batch": 4}}
        p["ablate"]["variants"] = ["residual", "hot"]

    change_params(vary)
    made.make(paths, load(paths.params))
    evidence = collect(paths)
    assert evidence.wanted["hot"].changes == {
        "block": "residual",
        "start": "scratch",
        "train.learning_rate": 0.5,
        "train.batch": 4,
    }
    assert list(evidence.wanted["hot"].rungs) == ["train"]


def test_a_variant_without_measured_cost_is_named(paths):
    made.write_cost(paths, load(paths.params), ["residual"])
    assert refused(paths).startswith(f"{paths.evidence / 'cost.json'}: has no measurement of mbconv: ")


def test_the_cost_of_another_network_is_refused(paths):
    path = paths.evidence / "cost.json"
    cost = json.loads(path.read_text())
    cost["variants"]["mbconv"]["network"]["width"] = 99
    path.write_text(json.dumps(cost))
    assert refused(paths).startswith(f"{path}: measured another network of mbconv than it has now: ")


def test_a_round_that_was_taken_out_of_the_costs_is_seen(paths):
    path = paths.evidence / "cost.json"
    cost = json.loads(path.read_text())
    cost["variants"]["mbconv"]["step_seconds"].pop()
    path.write_text(json.dumps(cost))
    assert refused(paths).startswith(f"{path}: has more rounds of one variant than of another: ")


def test_a_run_whose_history_lost_rows_is_compared_on_the_others(paths):
    path = paths.evidence / "mbconv-s1" / "metrics.json"
    found = json.loads(path.read_text())
    found["run"]["rungs"][2]["data"] = {}
    made.rewrite(path, found)
    assert collect(paths).other_data("mbconv") is None


def test_rows_that_see_other_data_are_told_by_what_decides_it(paths, change_params):
    """Their logs agree at all steps that both have: a crop does not depend on how many steps are to come."""

    def vary(p):
        p["variants"] |= {
            "long": {"block": "mbconv", "train": {"steps": 2 * p["train"]["steps"]}},
            "plain": {"block": "mbconv", "pretrain_imagenet": {"augment": {"flip": False}}},
            "scratch": {"block": "mbconv", "start": "scratch"},
            "hot": {"block": "mbconv", "train": {"learning_rate": 0.5}},
        }
        p["ablate"]["variants"] = ["mbconv", "long", "plain", "scratch", "hot"]

    change_params(vary)
    made.make(paths, load(paths.params))
    evidence = collect(paths)
    assert evidence.other_data("long") == ["train.steps"]
    assert evidence.other_data("plain") == ["pretrain_imagenet.augment.flip"]
    assert evidence.other_data("scratch") == []
    assert evidence.other_data("hot") == []


def test_runs_counted_against_other_labels_are_refused(paths):
    file = paths.evidence / "mbconv-s1"
    figures = json.loads((file / "metrics.json").read_text())
    found = counted.load(file / "confusion.npz")
    for counts in found.counts.values():
        counts.values[:] *= 2
    made.forge(paths, load(paths.params), found, figures, variant="mbconv", seed=1)
    assert refused(paths).startswith(f"{file / 'confusion.npz'}: was counted against other labels than the other runs")


def test_classes_that_only_a_prediction_has_are_in_no_difference(paths):
    """The labels have no `car`; one run predicts it somewhere, which the benchmark's rule counts as 0 in that run."""
    params = load(paths.params)
    for variant, seed in (("residual", 0), ("residual", 1), ("mbconv", 0), ("mbconv", 1)):
        matrices = np.zeros((12, 4, 4), dtype=np.int64)
        matrices[:, range(3), range(3)] = 90 + 3 * (variant == "mbconv") + np.arange(12)[:, None] + seed
        matrices[:, 0, 1] = 210 - matrices[:, 0, 0]
        matrices[:, 1, 0], matrices[:, 2, 0] = 210 - matrices[:, 1, 1], 210 - matrices[:, 2, 2]
        if (variant, seed) == ("mbconv", 1):
            matrices[3, 0, 1] -= 1
            matrices[3, 0, 3] += 1
        counts = made.confusions(images=12, skill=0.8, noise=0.0, seed=seed) | {"confusion": made.collected(matrices)}
        made.write_run(paths, params, variant=variant, seed=seed, counts=counts)
    evidence = collect(paths)
    assert evidence.labelled("iou") == 3
    stray = evidence.runs["mbconv", 1]
    assert stray["class_iou"]["car"] == 0
    assert evidence.runs["mbconv", 0]["class_iou"]["car"] is None
    found = evidence.sample("mbconv", "iou").plain_S
    assert found[1] == pytest.approx(100 * stray["mean_iou"] * 4 / 3)
    assert abs(found[1] - found[0]) < 1
    assert evidence.difference("mbconv", "iou", class_="car").estimate is None


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda f: change(f["sizes"][0], "regions", 7), "says regions of small objects 7"),
        (lambda f: change(f, "boundaries", [{}, {}]), "does not hold what it should (KeyError: 'pixels')"),
        (lambda f: change(f, "sizes", []), "does not hold what it should"),
        (lambda f: f["run"]["rungs"][0].pop("parameters"), "does not hold what it should (KeyError: 'parameters')"),
        (lambda f: f["run"]["rungs"][0].pop("data"), "does not hold what it should (KeyError: 'data')"),
        (lambda f: f["run"].update(rungs=[3, 4, 5]), "does not hold what it should (TypeError"),
        (lambda f: f.pop("protocol"), "does not hold what it should (KeyError: 'protocol')"),
    ],
)
def test_what_is_in_no_table_or_in_another_form_is_refused(paths, tamper, said):
    path = paths.evidence / "mbconv-s1" / "metrics.json"
    figures = json.loads(path.read_text())
    tamper(figures)
    made.rewrite(path, figures)
    message = refused(paths)
    assert message.startswith(f"{path}: {said}")


@pytest.mark.parametrize("training", [{"stage": "train"}, {"stage": "train", "sessions": [{}]}, [3], 3])
def test_a_training_that_is_told_in_another_form_is_refused(paths, training):
    path = paths.evidence / "mbconv-s1" / "certificate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": training}))
    assert refused(paths).startswith(f"{path}: does not hold what it should (")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda cost: change(cost["variants"], "residual", 3),
        lambda cost: cost["variants"]["mbconv"].pop("step_joules"),
        lambda cost: change(cost["variants"]["mbconv"], "peak_bytes", "many"),
        lambda cost: change(cost["variants"]["residual"], "peak_bytes", 0),
        lambda cost: [change(row, "step_seconds", []) for row in cost["variants"].values()],
    ],
)
def test_costs_that_give_no_table_are_refused(paths, tamper):
    path = paths.evidence / "cost.json"
    cost = json.loads(path.read_text())
    tamper(cost)
    path.write_text(json.dumps(cost))
    assert refused(paths).startswith(f"{path}: does not hold what it should (")


@pytest.mark.parametrize("content", ["[]", "{}", "", '{"variants": []}'])
def test_costs_of_another_form_are_refused(paths, content):
    path = paths.evidence / "cost.json"
    path.write_text(content)
    assert refused(paths).startswith(f"{path}: ")
