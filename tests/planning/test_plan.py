"""`mmseg plan` on tiny projects: measured, scaled, estimated."""

from __future__ import annotations

import json
import os
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from mmseg_cli import energy, params
from mmseg_cli.models import cost
from mmseg_cli.models.unet import build_network
from mmseg_cli.paths import Paths
from mmseg_cli.planning import measure
from mmseg_cli.planning import plan as planning
from mmseg_cli.planning.choose import Case, choose
from mmseg_cli.planning.counts import TRAFFIC, WORKING, WORKSPACE, Counts
from mmseg_cli.planning.machine import Machine, parse_gpus

LADDER = ("pretrain_imagenet", "pretrain_mapillary", "train")
VARIANTS = ("residual", "mbconv", "mmbconv")


def tiny_case(**changes) -> Case:
    loaded = params.load(Path("params.yaml"))
    return Case("train", "mbconv", loaded.train, "segmentation", 19, loaded.network_of("mbconv") | changes)


@pytest.fixture
def unmeasurable(monkeypatch):
    """Any real step fails."""

    def fail(*_args, **_kwargs):
        raise AssertionError("a step was run")

    monkeypatch.setattr(measure, "fit", fail)
    monkeypatch.setattr(measure, "measure", fail)


@pytest.mark.slow
def test_the_whole_grid_is_measured(project, mmseg):
    done = mmseg("plan", "demo", "--seconds", 9, "--json", "plan.json")
    assert done.code == 0, done.err
    for stage in LADDER:
        assert re.search(rf"^{stage}: 4 steps x 2 crops of 32x32 = 8 images", done.out, re.MULTILINE)
    for variant in VARIANTS:
        assert len(re.findall(rf"│ {variant} +│ +measured │", done.out)) == 3
    assert "not prepared" in done.out
    assert "not included" in done.out
    told = json.loads(Path("plan.json").read_text())
    assert [(row["stage"], row["variant"]) for row in told["stages"]] == [(s, v) for s in LADDER for v in VARIANTS]
    for row in told["stages"]:
        assert row["how"] == "measured"
        assert row["fits"]
        assert (row["micro"], row["parts"], row["devices"], row["recompute"]) == (2, 1, 1, False)
        assert 0 < row["peak_bytes"] < 1e9
        assert row["hours"] == pytest.approx(4 * row["step_seconds"] / 3600)
        assert row["kilowatt_hours"] is None
    assert told["hours"] == pytest.approx(2 * sum(row["hours"] for row in told["stages"]))
    assert told["data"] == {"imagenet": None, "mapillary": None, "cityscapes": None}


def test_too_little_memory_ends_with_4_after_the_tables(project, mmseg, change_params):
    change_params(lambda p: p["pretrain_imagenet"].update(steps=0))
    change_params(lambda p: p["pretrain_mapillary"].update(steps=0))
    change_params(lambda p: p["ablate"].update(variants=["mbconv"]))
    done = mmseg("plan", "--memory", "1MB", "--seconds", 5)
    assert done.code == 4
    assert "pretrain_imagenet" not in done.out
    assert re.search(r"│ mbconv +│ .* yes │ .* no │", done.out)
    line = done.one_error()
    assert line.startswith("mmseg: error: train (mbconv): needs ")
    assert "with 2 of norm_batch 2 at once on 1 device" in line
    assert "use 1 device of 80 GB, by estimate" in line
    assert "mmseg plan demo --gpus 1x80GB" in done.out


def test_an_estimate_runs_no_step(project, mmseg, unmeasurable, change_params):
    change_params(lambda p: p["ablate"].update(variants=["mbconv"]))
    done = mmseg("plan", "--gpus", "2x8GB", "--tflops", 20, "--json", "plan.json")
    assert done.code == 0, done.err
    assert "estimate, nothing was measured" in done.out
    assert "20 TFLOP/s a device (an assumption" in done.out
    assert "set runtime.devices: 2 in params.yaml, then `dvc repro`" in " ".join(done.out.replace("│", " ").split())
    told = json.loads(Path("plan.json").read_text())
    assert told["assumed_tflops"] == 20
    assert told["setting"] == {"devices": 2, "recompute": False, "micro_batch": None}
    assert {row["how"] for row in told["stages"]} == {"estimated"}


def test_an_estimate_by_hand(project):
    case = tiny_case()
    with torch.device("meta"):
        network = build_network(task="segmentation", num_classes=19, **case.network)
    parameters, macs = cost.parameters(network), cost.macs(network, (1, 3, 32, 32))
    counts = Counts(case, alone=True)
    need = counts.estimate(recompute=False, micro=4, flops=1e9)
    traffic = TRAFFIC * counts.made((32, 32)) / 1e12  # at 1 TB/s
    assert need.seconds == pytest.approx(4 * (2 * 3 * macs / 1e9 + traffic))
    # float32 weights, gradients, AdamW's two, and one more for the update
    state = 4 * parameters * 5
    gradient = 4 * 19 * 16 * 16  # of the loss, at the head's size: half of the image's; nothing is kept at the latter
    kept = cost.activation_bytes(network, (2, 3, 32, 32)) / 2
    assert counts.kept((32, 32), recompute=False) == kept + gradient
    sample = counts.kept((32, 32), recompute=False) + WORKING * counts.made((32, 32))
    assert need.bytes == pytest.approx(state + WORKSPACE + 4 * sample)
    again = counts.estimate(recompute=True, micro=4, flops=1e9)
    assert again.seconds == pytest.approx(4 * (2 * 4 * macs / 1e9 + traffic * (TRAFFIC + 2) / TRAFFIC))
    assert again.bytes < need.bytes


def test_several_processes_keep_what_one_makes_again(project):
    case = tiny_case()
    one, several = (Counts(case, alone=alone) for alone in (True, False))
    kept, more = (counts.kept((32, 32), recompute=False) for counts in (one, several))
    assert more > 1.5 * kept
    assert one.made((32, 32)) == several.made((32, 32)) == more
    times = [counts.estimate(recompute=False, micro=4, flops=1e9).seconds for counts in (one, several)]
    assert times[0] == times[1]
    assert (
        one.estimate(recompute=False, micro=4, flops=1e9).bytes
        < several.estimate(recompute=False, micro=4, flops=1e9).bytes
    )


def test_the_recipe_s_copies_count(project, change_params):
    plain = Counts(tiny_case(), alone=True).storage()
    change_params(
        lambda p: p["train"].update(
            optimizer="sgd", lookahead={"k": 5, "alpha": 0.5}, ema={"decay": 0.9}, deep_supervision=0
        )
    )
    averaged = Counts(tiny_case(), alone=True)
    assert averaged.copies == 3
    assert averaged.storage().weights == plain.weights
    assert averaged.storage().checkpoint - plain.checkpoint == averaged.parameter_bytes
    change_params(lambda p: p["network"].update(levels=3))
    before = Counts(tiny_case(), alone=True)
    change_params(lambda p: p["train"].update(deep_supervision=0.4))
    after = Counts(tiny_case(), alone=True)
    assert after.parameter_bytes > before.parameter_bytes
    assert after.storage().weights == before.storage().weights
    assert after.kept((32, 32), recompute=False) > before.kept((32, 32), recompute=False)


@pytest.mark.slow
def test_what_is_measured_is_what_a_direct_measurement_gives(project, monkeypatch):
    case = tiny_case(width=16)
    case = Case(case.stage, case.variant, case.section.model_copy(update={"crop": [128, 128]}), *list_of(case))
    direct = cost.peak_training_bytes(
        build_network,
        {"task": "segmentation", "num_classes": 19, **case.network},
        work=cost.Work(batch=4, height=128, width=128, device="cpu"),
    )
    machine = params.load(Path("params.yaml")).runtime
    with measure.Measurer(
        {("train", "mbconv"): Counts(case, alone=True)},
        runtime=machine,
        device=torch.device("cpu"),
        room=4e9,
        seconds=30,
        advance=lambda name: None,
    ) as measurer:
        need = measurer.need(case, False, 4)
        assert need.how == "measured"
        assert direct / 2 < need.bytes < 2 * direct
        less = measurer.need(case, True, 4)
        assert less.bytes < need.bytes
        # From smaller steps alone: as if the memory did not allow more.
        measurer._points.clear()
        measurer._room = 4 * Counts(case, alone=True).kept((128, 128), recompute=False)
        scaled = measurer.need(case, False, 4)
        assert scaled.how.startswith("scaled from ")
        with monkeypatch.context() as patch:
            patch.setattr(measure, "FAR", 1.0)
            assert measurer.need(case, False, 4).how == f"roughly {scaled.how}"
        assert direct / 2 < scaled.bytes < 2 * direct


def list_of(case: Case) -> tuple:
    return case.task, case.classes, case.network


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--gpus", "eight"), "--gpus: 'eight' is not a number of devices and their memory: write for example 8x80GB"),
        (("--gpus", "8x80"), "--gpus: '80' is not an amount of memory: "),
        (("--memory", "lots"), "--memory: 'lots' is not an amount of memory: write for example 24GB"),
        (("--memory", "24GB", "--gpus", "1x8GB"), "--memory: is of the device at hand: "),
        (("--tflops", "40"), "--tflops: is for an estimate"),
        (("--gpus", "1x8GB", "--tflops", "0"), "--tflops: 0.0 is not possible"),
        (("--gpus", "1x8GB", "--json", "."), "--json: . is a folder"),
        (("papre",), "there is no 'papre'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(project, mmseg, args, error):
    done = mmseg("plan", *args)
    assert done.code == 2
    assert error in done.one_error()
    assert done.out == ""


def test_unknown_classes_ask_for_the_data(project, mmseg, change_params):
    change_params(lambda p: p["datasets"].update(mine={"layout": "folder", "source": "disk"}))
    change_params(lambda p: p["train"].update(dataset="mine"))
    done = mmseg("plan", "--gpus", "1x8GB")
    assert done.code == 2
    assert "datasets.mine: " in done.one_error()


def test_classes_of_layouts_and_of_stores(prepared):
    loaded = params.load(Path("params.yaml"))
    stores = Paths(root=prepared, preset="demo")
    classes = {case.stage: case.classes for case in planning.cases(loaded, stores)}
    assert classes["train"] == 19
    assert classes["pretrain_imagenet"] < 1000  # the store's own
    made = planning.estimate(loaded, stores, machine=Machine(1, 8e9, "made up"), teraflops=1)
    assert all(size and size > 1000 for size in made.data.values())
    vistas = loaded.datasets["mapillary"].model_copy(update={"target": "vistas-116"})
    assert planning.count_classes("mapillary", vistas, store=Path("none")) == 116


def test_stages_that_need_settings_of_their_own(project, mmseg, change_params):
    change_params(lambda p: p["ablate"].update(variants=["residual"]))
    change_params(lambda p: p["pretrain_imagenet"].update(batch=16, norm_batch=16))
    change_params(lambda p: p["pretrain_mapillary"].update(batch=16, norm_batch=16))
    change_params(lambda p: p["train"].update(batch=12, norm_batch=12))
    done = mmseg("plan", "--gpus", "8x80GB")
    assert done.code == 0, done.err
    assert "faster" in done.out
    assert "pretrain_imagenet: runtime.devices: 8" in done.out
    assert "train: runtime.devices: 6" in done.out


def test_rungs_that_variants_share_count_once(project, change_params):
    def change(values):
        values["variants"] = {
            "mbconv": {"block": "mbconv"},
            "slow": {"block": "mbconv", "train": {"learning_rate": 0.001}},
            "wide": {"block": "mbconv", "width": 8},
            "fresh": {"block": "mbconv", "start": "scratch"},
        }
        values["ablate"]["variants"] = list(values["variants"])

    change_params(change)
    loaded = params.load(project / "params.yaml")
    made = planning.estimate(loaded, Paths(root=project, preset="demo"), machine=parse_gpus("1x80GB"), teraflops=1)
    assert made.shared == {("pretrain_imagenet", "slow"): "mbconv", ("pretrain_mapillary", "slow"): "mbconv"}
    hours = {(row.case.stage, row.case.variant): row.hours for row in made.rows}
    assert made.hours == pytest.approx(made.seeds * sum(hours[key] for key in hours.keys() - made.shared.keys()))
    told = {(row["stage"], row["variant"]): row["same_as"] for row in made.as_json()["stages"]}
    assert told["pretrain_mapillary", "slow"] == "mbconv" and told["train", "slow"] is None


def test_crops_are_halved():
    assert measure.smaller((512, 1024)) == [(512, 1024), (256, 512), (128, 256), (64, 128), (32, 64), (32, 32)]
    assert measure.smaller((224, 224)) == [(224, 224), (128, 128), (64, 64), (32, 32)]
    assert measure.smaller((32, 32)) == [(32, 32)]


def test_choosing_from_an_estimate_refuses_what_cannot_be_kept(project):
    case = tiny_case()
    counts = Counts(case, alone=True)
    rows = choose(
        [case],
        machine=Machine(1, WORKSPACE, "made up"),
        ask=lambda case, recompute, micro: counts.estimate(recompute=recompute, micro=micro, flops=1),
    )
    assert [(row.fits, row.micro) for row in rows] == [(False, 2)]


def test_energy_through_nvml(monkeypatch):
    asked = []
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 5000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    read = energy._meter(lambda: "GPU-1")
    assert read is not None
    assert (read(), asked) == (5.0, ["GPU-1"])
    assert energy.why_not("cuda") == "not measured: this GPU does not tell"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy._meter(lambda: "GPU-1") is None
    assert "nvidia-ml-py is not installed" in energy.why_not("cuda")
    assert energy.meter(torch.device("cpu")) is None


def test_help_needs_no_torch(tmp_path, mmseg_process):
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = mmseg_process("plan", "--help", env={"PYTHONPATH": path})
    assert (done.code, done.err) == (0, "")
