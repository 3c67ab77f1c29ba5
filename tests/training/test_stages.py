from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import trees
from safetensors.torch import load_file
from screens import Screen

from mmseg_cli import paths as places
from mmseg_cli import runtime
from mmseg_cli.cli import train as cli
from mmseg_cli.data import loader
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import Interrupted, MmsegError, NumericalStop
from mmseg_cli.evaluation.inference import confusions
from mmseg_cli.evaluation.metrics import mean_iou
from mmseg_cli.models.weights import load_network
from mmseg_cli.names import BLOCK_NAMES
from mmseg_cli.params import load
from mmseg_cli.processes import Processes
from mmseg_cli.training import run
from mmseg_cli.training.stages import run_stage

PINNED_LOSSES = [2.945385, 2.909969, 2.848060, 2.653410, 2.585169, 2.681248]


def stage(name="train", *, variant="mmbconv", seed=0, screen=None, log=None):
    return run_stage(
        name,
        params=load(Path("params.yaml")),
        paths=places.find(preset="demo"),
        variant=variant,
        seed=seed,
        screen=screen or Screen(),
        log=log or (lambda metrics, step: None),
    )


@pytest.fixture
def rung(prepared, change_params):
    """A project whose train stage can run alone: six steps from scratch, a checkpoint every two."""

    def change(p):
        for name in ("pretrain_imagenet", "pretrain_mapillary"):
            p[name]["steps"] = 0
        p["train"].update(steps=6, checkpoint_every=2, validate_every=3)

    change_params(change)
    stage("pretrain_imagenet")
    stage("pretrain_mapillary")
    return prepared


RUN = Path("runs/demo/train/mmbconv-s0")
RUNGS = ("pretrain_imagenet", "pretrain_mapillary", "train")


def read(file):
    return json.loads(Path(file).read_text())


def rungs(record=RUN / "record.json"):
    """What a record says of every rung."""
    return read(record)["rungs"]


def sittings(run=RUN):
    """From which step to which a run was trained, each time."""
    return [(one["from_step"], one["to_step"]) for one in read(run / "provenance.json")["sessions"]]


def digest_of(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def outcome():
    """Weights and history of the run."""
    return (RUN / "model.safetensors").read_bytes(), (RUN / "history.jsonl").read_text()


def rows():
    return [json.loads(line) for line in (RUN / "history.jsonl").read_text().splitlines()]


def work_folders():
    return sorted(path for path in Path(".work").glob("*train*/*") if path.is_dir())


def checkpoints():
    return sorted(path.name for work in work_folders() for path in work.glob("step-*"))


def forget():
    """Remove the run and its resumable state."""
    shutil.rmtree("runs/demo/train")
    for work in work_folders():
        shutil.rmtree(work)


@pytest.fixture
def uninterrupted(rung):
    """Weights and history of a run without interruption; the project is as before it."""
    stage()
    result = outcome()
    forget()
    return result


def test_a_run_leaves_weights_history_and_record(rung):
    logged = []
    screen = Screen()
    trained = stage(screen=screen, log=lambda metrics, step: logged.append((step, dict(metrics))))
    assert trained.folder.samefile(RUN)
    assert sorted(path.name for path in RUN.iterdir()) == [
        "history.jsonl",
        "model.safetensors",
        "provenance.json",
        "record.json",
    ]
    assert screen.begun == (6, 0)
    assert [step.number for step in screen.steps] == [1, 2, 3, 4, 5, 6]
    losses = [row for row in rows() if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    validations = [row for row in rows() if "mean_iou" in row]
    assert [row["step"] for row in validations] == [3, 6]
    assert {key: validations[-1][key] for key in trained.figures} == trained.figures
    assert 0 <= trained.figures["mean_iou"] <= 1
    record = json.loads((RUN / "record.json").read_text())
    assert record["figures"] == trained.figures
    assert record["weights_sha256"] == hashlib.sha256((RUN / "model.safetensors").read_bytes()).hexdigest()
    manifest = Path("data/demo/cityscapes/manifest.json").read_bytes()
    assert record["data_manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert (record["variant"], record["seed"], record["ladder"], record["transfer"]) == ("mmbconv", 0, ["train"], None)
    assert [step for step, metrics in logged if "loss" in metrics] == [1, 2, 3, 4, 5, 6]
    assert [step for step, metrics in logged if "mean_iou" in metrics] == [3, 6]
    assert checkpoints() == ["step-000000006"]  # in case that DVC cannot save the run


def test_the_same_run_gives_the_same_bytes_and_another_seed_others(rung, uninterrupted):
    stage()
    assert outcome() == uninterrupted
    stage("pretrain_imagenet", seed=1)
    stage("pretrain_mapillary", seed=1)
    stage(seed=1)
    other = Path("runs/demo/train/mmbconv-s1")
    assert (other / "model.safetensors").read_bytes() != uninterrupted[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(rung, uninterrupted, number, step):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}, saved after step {step} of 6") as caught:
        stage(screen=Screen(at={step: lambda: os.kill(os.getpid(), number)}))
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert not RUN.exists()
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (6, step)
    assert outcome() == uninterrupted
    assert checkpoints() == ["step-000000006"]


class PowerCut(BaseException):
    """Ends a run without any handler of ours."""


def cut_after(step):
    def cut():
        raise PowerCut

    with pytest.raises(PowerCut):
        stage(screen=Screen(at={step: cut}))


@pytest.mark.parametrize(("step", "kept"), [(1, 0), (3, 2), (6, 4)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(rung, uninterrupted, step, kept):
    cut_after(step)
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (6, kept)
    assert outcome() == uninterrupted


def test_a_damaged_checkpoint_is_named_and_the_result_is_the_same(rung, uninterrupted):
    cut_after(5)
    (work,) = work_folders()
    weights = work / "step-000000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (6, 3)
    assert len(screen.warnings) == 1
    assert "step-000000004" in screen.warnings[0]
    assert "going on from step-000000003" in screen.warnings[0]
    assert outcome() == uninterrupted


def test_a_half_written_history_line_is_left_out(rung, uninterrupted):
    cut_after(5)
    (work,) = work_folders()
    with (work / "history.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    stage()
    assert outcome() == uninterrupted


def test_a_changed_parameter_does_not_go_on_with_another_run(rung, change_params):
    cut_after(3)
    change_params(lambda p: p["train"].update(learning_rate=0.1))
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (6, 0)
    (told,) = [line for line in screen.lines if "not used" in line]
    assert "holds 2 steps of a run with other train.learning_rate: not used" in told


def test_how_often_one_looks_and_saves_does_not_define_a_run(rung, uninterrupted, change_params):
    cut_after(5)
    change_params(lambda p: p["train"].update(validate_every=2, checkpoint_every=1))
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (6, 4)
    assert outcome()[0] == uninterrupted[0]


def test_a_run_that_dvc_lost_comes_back_from_its_last_checkpoint(rung, uninterrupted):
    stage()
    shutil.rmtree("runs/demo/train")
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (6, 6)
    assert outcome() == uninterrupted


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(rung, change_params):
    cut_after(5)
    (work,) = work_folders()
    change_params(lambda p: p["train"].update(learning_rate=0.1, weight_decay=0.5))
    cut_after(3)
    other = max(folder for folder in work_folders() if folder != work)
    shutil.rmtree(other)
    shutil.copytree(work, other)
    before = trees.contents(other)
    with pytest.raises(MmsegError, match=r"of a run with other train.learning_rate, train.weight_decay: ") as caught:
        stage()
    assert caught.value.exit_code == 2
    assert trees.contents(other) == before


def test_what_is_done_is_not_done_again(rung, change_params):
    stage()
    before = outcome()
    screen = Screen()
    assert "already trained" in stage(screen=screen).note
    assert screen.begun is None
    (RUN / "model.safetensors").write_bytes(b"damaged")
    stage()
    assert outcome() == before
    change_params(lambda p: p["train"].update(learning_rate=0.1))
    assert "already trained" not in stage().note


def test_a_finished_run_is_told_and_is_no_run_of_the_tracker(rung, change_params, mmseg, monkeypatch):
    stage()
    before = trees.contents(Path("runs"))
    monkeypatch.setattr(cli, "track", None)
    for devices in (1, 2):
        done = mmseg("train", "--variant", "mmbconv", "--seed", 0, "--devices", devices)
        assert done.code == 0, done.err
        assert "already trained with these parameters" in done.out
    assert trees.contents(Path("runs")) == before


def test_the_tracker_gets_some_steps_of_a_long_run_and_the_history_all(rung, monkeypatch):
    monkeypatch.setattr(run, "MIRRORED", 2)
    logged = []
    stage(log=lambda metrics, step: logged.append((step, "loss" in metrics)))
    assert logged == [(3, True), (3, False), (6, True), (6, False)]
    assert [row["step"] for row in rows() if "loss" in row] == [1, 2, 3, 4, 5, 6]


def test_processes_with_another_definition_are_refused(rung, monkeypatch):
    """As where one machine of several was given another command."""
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, value | {"seed": 1}])
    with pytest.raises(MmsegError, match=r"process 1: is of a run with other seed: start all with the same command"):
        stage()


def test_a_lock_names_a_process_of_another_machine(tmp_path, monkeypatch):
    lock = tmp_path / "run.lock"
    lock.write_text("4711 node-7\n")
    for error, what in (
        (BlockingIOError(), "process 4711 on node-7 is already at work"),
        (OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), "its file system cannot lock (No locks available)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(runtime.fcntl, "flock", Mock(side_effect=error))
            with pytest.raises(MmsegError, match=re.escape(what)), runtime.only_one(lock):
                raise AssertionError
    assert lock.read_text() == "4711 node-7\n"


def test_two_processes_do_not_share_a_run(rung, mmseg_process):
    lock = Path(".work/demo-train/mmbconv-s0.lock")
    code = (
        "import sys, pathlib; from mmseg_cli.runtime import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        for more in ((), ("--devices", "2")):
            done = mmseg_process("train", "--variant", "mmbconv", "--seed", 0, *more)
            assert done.code == 2
            assert done.err.count("\n") == 1
            assert f"process {holder.pid} is already at work on this run" in done.err
        assert not RUN.exists()
        holder.kill()
    assert mmseg_process("train", "--variant", "mmbconv", "--seed", 0).code == 0  # the lock went with its process


EVERYTHING = {
    "batch": 4,
    "norm_batch": 2,
    "precision": "bfloat16",
    "lookahead": {"k": 2, "alpha": 0.5},
    "ema": {"decay": 0.9},
    "precise_bn": 2,
    "stochastic_depth": 0.2,
    "deep_supervision": 0.4,
    "loss": {
        "cross_entropy": 1,
        "ohem": 0.5,
        "ohem_threshold": 0.7,
        "ohem_min_share": 0.1,
        "dice": 0.5,
        "lovasz": 0.5,
        "rmi": 0.5,
    },
}


@pytest.fixture
def everything(rung, change_params):
    """The same project with every part of a recipe in use."""

    def change(p):
        p["network"].update(levels=3)
        p["train"].update(EVERYTHING)
        p["train"]["augment"].update(blur=0.5, class_uniform=0.5, uniform_last=3)

    change_params(change)
    return rung


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_deterministic_run_gives_the_same_bits_twice(everything, change_params, threads):
    change_params(lambda p: p["runtime"].update(deterministic=True, threads=threads))
    try:
        stage()
        first = outcome()
        assert torch.are_deterministic_algorithms_enabled()
        forget()
        stage()
        assert outcome() == first
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_on_a_gpu_a_deterministic_run_ends_the_same_wherever_it_is_cut(everything, change_params, precision):
    change_params(lambda p: p["runtime"].update(device="cuda", deterministic=True))
    change_params(lambda p: p["train"].update(precision=precision))
    try:
        stage()
        first = outcome()
        forget()
        with pytest.raises(Interrupted):
            stage(screen=Screen(at={3: lambda: os.kill(os.getpid(), signal.SIGTERM)}))
        stage()
        assert outcome() == first
    finally:
        torch.use_deterministic_algorithms(False)


def test_recomputing_activations_changes_no_bit(everything, change_params):
    stage()
    first = outcome()
    forget()
    change_params(lambda p: p["runtime"].update(recompute=True))
    stage()
    assert outcome() == first


def test_the_averaged_weights_are_the_run_s(everything, change_params):
    """The figures in the record are of the very weights that are left, and auxiliary heads are not left."""
    stage()
    record = json.loads((RUN / "record.json").read_text())
    left = load_file(RUN / "model.safetensors")
    assert not [name for name in left if "auxiliary" in name]
    (work,) = work_folders()
    fast = load_file(work / "step-000000006" / "model.safetensors")
    assert [name for name in fast if "auxiliary" in name]
    assert not torch.equal(left["head.classifier.weight"], fast["network.head.classifier.weight"])
    params = load(Path("params.yaml"))
    network, _ = load_network(RUN, expected=params.network_of("mmbconv"))
    store = open_store(Path("data/demo/cityscapes"))
    images = loader.items_loader(loader.WholeImages(store.split("val")), workers=0)
    matrix = confusions(network, images, classes=19, device=torch.device("cpu")).sum(0)
    assert mean_iou(matrix) == pytest.approx(record["figures"]["mean_iou"], abs=1e-12)


def test_group_norm_may_be_split_further(everything, change_params):
    """Where no batch norm looks at its neighbours, fewer samples at once change the last bits only."""
    change_params(lambda p: p["network"].update(norm="group"))
    change_params(lambda p: p["train"].update(stochastic_depth=0, precision="float32"))
    stage()
    whole = [row["loss"] for row in rows() if "loss" in row]
    forget()
    change_params(lambda p: p["runtime"].update(micro_batch=1))
    stage()
    assert [row["loss"] for row in rows() if "loss" in row] == pytest.approx(whole, rel=1e-4)


def test_batch_norm_s_samples_are_kept_or_refused(everything, change_params):
    change_params(lambda p: p["runtime"].update(micro_batch=1))
    with pytest.raises(MmsegError, match=r"runtime\.micro_batch: 1 is not the 2 samples that norm_batch 2 leaves"):
        stage()


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_network_trains_as_the_plain_one(everything, change_params, recompute):
    change_params(lambda p: p["train"].update(precision="float32", stochastic_depth=0))
    change_params(lambda p: p["runtime"].update(recompute=recompute))
    stage()
    plain = [row["loss"] for row in rows() if "loss" in row]
    forget()
    change_params(lambda p: p["runtime"].update(compile=True))
    stage()
    assert [row["loss"] for row in rows() if "loss" in row] == pytest.approx(plain, rel=1e-3)


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_old_one(rung, change_params):
    stage()
    before = outcome()
    change_params(lambda p: p["train"].update(learning_rate=1e30, optimizer="sgd", warmup_steps=0))
    with pytest.raises(NumericalStop, match="the (loss|gradient's norm) is (nan|inf) at step") as caught:
        stage()
    assert caught.value.exit_code == 3
    assert outcome() == before


# ------------------------------------------------------------------------------------------------------- the ladder


def test_the_ladder_hands_the_body_on(trained):
    """ImageNet to Mapillary to Cityscapes: each rung starts from the one before and says so."""
    shas, ladder = [None], []
    for name, classes in (("pretrain_imagenet", 3), ("pretrain_mapillary", 5), ("train", 19)):
        run = Path("runs/demo") / name / "mmbconv-s0"
        record = json.loads((run / "record.json").read_text())
        ladder.append(name)
        assert record["ladder"] == ladder
        assert len(record["label_space"]["classes"]) == classes
        assert record["initial_weights_sha256"] == shas[-1]
        shas.append(hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest())
        if len(ladder) == 1:
            assert record["transfer"] is None
            assert set(record["figures"]) == {"top1", "top5"}
        else:
            assert record["transfer"]["body_share"] == 1
            assert record["transfer"]["new"]
            assert all(name.startswith("head.") for name in record["transfer"]["new"] + record["transfer"]["dropped"])


def test_a_rung_that_is_left_out_passes_the_weights_on(prepared, change_params):
    change_params(lambda p: p["pretrain_mapillary"].update(steps=0))
    stage("pretrain_imagenet")
    assert "left out" in stage("pretrain_mapillary").note
    before, passed = (Path("runs/demo") / name / "mmbconv-s0" for name in ("pretrain_imagenet", "pretrain_mapillary"))
    assert (before / "model.safetensors").read_bytes() == (passed / "model.safetensors").read_bytes()
    record = json.loads((passed / "record.json").read_text())
    assert (record["left_out"], record["weights"], record["ladder"]) == (True, True, ["pretrain_imagenet"])
    stage()
    assert json.loads((RUN / "record.json").read_text())["ladder"] == ["pretrain_imagenet", "train"]


def test_all_rungs_left_out_is_training_from_scratch(rung):
    passed = Path("runs/demo/pretrain_mapillary/mmbconv-s0")
    assert [path.name for path in passed.iterdir()] == ["record.json"]
    screen = Screen()
    stage(screen=screen)
    assert not [line for line in screen.lines if "weights from" in line]
    assert json.loads((RUN / "record.json").read_text())["initial_weights_sha256"] is None


def test_another_body_from_the_rung_before_is_refused(trained, change_params):
    change_params(lambda p: p["network"].update(width=8))
    before = outcome()
    with pytest.raises(MmsegError, match="is of another architecture"):
        stage()
    assert outcome() == before


def test_a_missing_rung_says_what_to_run(prepared):
    with pytest.raises(MmsegError, match=r"record.json: missing: run `dvc repro`"):
        stage()


def test_a_dataset_for_another_task_is_refused(prepared, change_params):
    change_params(lambda p: p["pretrain_imagenet"].update(dataset="cityscapes"))
    with pytest.raises(MmsegError, match="pretrain_imagenet.dataset: cityscapes is for segmentation"):
        stage("pretrain_imagenet")


def test_a_record_tells_every_rung(trained):
    """Enough to say what a result rests on when the folders of the rungs before are long gone."""
    params, told = load(Path("params.yaml")), rungs()
    assert [rung["stage"] for rung in told] == list(RUNGS)
    for rung in told:
        folder = Path("runs/demo") / rung["stage"] / "mmbconv-s0"
        own, section = read(folder / "record.json"), getattr(params, rung["stage"])
        manifest = Path("data/demo") / section.dataset / "manifest.json"
        assert rung["dataset"] == section.dataset
        assert rung["data_manifest_sha256"] == digest_of(manifest)
        assert rung["parameters"] == section.model_dump(exclude={"validate_every", "checkpoint_every"})
        assert rung["figures"] == own["figures"]
        assert rung["fingerprint"] == own["fingerprint"]
        assert list(rung["data"]) == ["1", "2", "3", "4"]
        assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in rung["data"].values())
        if rung["stage"] != "train":
            assert rung["weights_sha256"] == digest_of(folder / "model.safetensors")
    assert "weights_sha256" not in told[-1]  # it is the record's own
    assert rungs("runs/demo/pretrain_mapillary/mmbconv-s0/record.json")[0] == told[0]


# ------------------------------------------------------------------------------------------------ where it comes from


def test_provenance_tells_code_environment_and_time_of_every_rung(trained):
    told = read(RUN / "provenance.json")
    for name in reversed(RUNGS):
        assert told["stage"] == name
        (session,) = told["sessions"]
        assert (session["from_step"], session["to_step"]) == (0, 4)
        assert session["seconds"] > 0
        assert datetime.fromisoformat(session["began"]).utcoffset() == timedelta(0)
        assert session["environment"] == runtime.environment()
        assert (session["device"], session["accelerator"], session["processes"]) == ("cpu", None, 1)
        assert (session["commit"], session["changes"]) == (None, None)  # this project is not under git
        told = told["before"]
    assert told is None


def git(*arguments):
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_provenance_names_the_commit_and_that_parameters_were_changed(rung, change_params):
    git("init", "--quiet")
    git("add", "params.yaml")
    git("commit", "--quiet", "--message", "one")
    cut_after(3)
    git("commit", "--quiet", "--allow-empty", "--message", "two")
    change_params(lambda p: p["train"].update(checkpoint_every=3))  # which defines nothing
    stage()
    first, second = read(RUN / "provenance.json")["sessions"]
    assert (first["commit"], first["changes"]) == (git("rev-parse", "HEAD~1"), None)
    assert second["commit"] == git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{64}", second["changes"])


def test_a_resumed_run_has_sessions_that_join(rung, uninterrupted):
    with pytest.raises(Interrupted):
        stage(screen=Screen(at={1: lambda: os.kill(os.getpid(), signal.SIGTERM)}))
    cut_after(5)
    stage()
    assert outcome() == uninterrupted
    assert sittings() == [(0, 1), (1, 4), (4, 6)]
    first, *_, last = read(RUN / "provenance.json")["sessions"]
    assert first["began"] <= last["began"]
    before = (RUN / "provenance.json").read_bytes()
    shutil.rmtree("runs/demo/train")
    stage()  # from the last checkpoint: no step is done, so there is no session to tell
    assert (RUN / "provenance.json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"from_step": 0}]', "\udcff"])
def test_damaged_sessions_cost_no_training(rung, uninterrupted, content):
    cut_after(5)
    (work,) = work_folders()
    (work / "sessions.json").write_text(content, errors="surrogateescape")
    screen = Screen()
    stage(screen=screen)
    assert screen.begun == (6, 4)
    assert outcome() == uninterrupted
    assert sittings() == [(4, 6)]


def test_a_run_that_begins_again_forgets_its_sessions(rung):
    cut_after(5)
    (work,) = work_folders()
    for checkpoint in work.glob("step-*"):
        shutil.rmtree(checkpoint)
    stage()
    assert sittings() == [(0, 6)]


# ------------------------------------------------------------------------------------- rows that share what they share


def go_up_to(last, *, variant, screen=None, seed=0):
    """The rungs up to one of them; gives that one's folder."""
    for name in RUNGS[: RUNGS.index(last) + 1]:
        folder = stage(name, variant=variant, screen=screen, seed=seed).folder
    return folder


def test_a_renamed_variant_is_not_trained_again(rung, change_params):
    stage()
    before, record, provenance = outcome(), read(RUN / "record.json"), read(RUN / "provenance.json")
    change_params(lambda p: p["variants"].update(renamed={"block": "mmbconv", "match": "macs"}))
    screen = Screen()
    folder = go_up_to("train", variant="renamed", screen=screen)
    assert "the same training as mmbconv-s0: taken over" in screen.lines
    assert screen.begun == (6, 6)
    assert not screen.warnings
    assert ((folder / "model.safetensors").read_bytes(), (folder / "history.jsonl").read_text()) == before
    assert read(folder / "record.json") == record | {"variant": "renamed"}
    assert read(folder / "provenance.json") == provenance
    assert outcome() == before
    screen = Screen()
    assert "already trained" in stage(variant="renamed", screen=screen).note
    assert not screen.lines


def test_a_variant_that_differs_in_the_last_rung_shares_the_ones_before(trained, change_params):
    change_params(lambda p: p["variants"].update(faster={"block": "mmbconv", "train": {"learning_rate": 0.05}}))
    before = outcome()
    for name in RUNGS[:2]:
        screen = Screen()
        stage(name, variant="faster", screen=screen)
        assert "the same training as mmbconv-s0: taken over" in screen.lines
        assert screen.steps == []
    screen = Screen()
    folder = stage(variant="faster", screen=screen).folder
    assert len(screen.steps) == 4
    assert not [line for line in screen.lines if "taken over" in line]
    assert rungs(folder / "record.json")[:2] == rungs()[:2]
    ours, theirs = rungs(folder / "record.json")[2], rungs()[2]
    assert {key for key in ours if ours[key] != theirs[key]} == {"parameters", "figures", "fingerprint"}
    assert ours["parameters"] == theirs["parameters"] | {"learning_rate": 0.05}
    assert (folder / "model.safetensors").read_bytes() != before[0]


@pytest.mark.parametrize("lacking", ["steps", "history.jsonl", "sessions.json"])
def test_what_is_unfinished_is_not_taken_over(rung, change_params, lacking):
    if lacking == "steps":
        cut_after(5)
    else:
        stage()
        (work_folders()[0] / lacking).unlink()
    change_params(lambda p: p["variants"].update(renamed={"block": "mmbconv"}))
    screen = Screen()
    go_up_to("train", variant="renamed", screen=screen)
    assert screen.begun == (6, 0)
    assert not [line for line in screen.lines if "taken over" in line]


def test_what_is_taken_over_and_damaged_is_trained_again_aloud(rung, uninterrupted, change_params):
    stage()
    weights = work_folders()[0] / "step-000000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    change_params(lambda p: p["variants"].update(renamed={"block": "mmbconv"}))
    screen = Screen()
    folder = go_up_to("train", variant="renamed", screen=screen)
    assert screen.begun == (6, 0)
    assert "starting from the beginning" in screen.warnings[0]
    assert (folder / "model.safetensors").read_bytes() == uninterrupted[0]
    assert sittings(folder) == [(0, 6)]


@pytest.mark.parametrize(
    ("start", "ladder"),
    [("scratch", ["train"]), ("imagenet", ["pretrain_imagenet", "train"]), ("mapillary", list(RUNGS))],
)
def test_a_variant_may_start_further_up(prepared, change_params, start, ladder):
    """What it starts from is of the variant alone: the preset, and other rows, keep their ladder."""
    change_params(lambda p: p["variants"].update(late={"block": "mmbconv", "start": start}))
    screen = Screen()
    folder = go_up_to("train", variant="late", screen=screen)
    assert len(screen.steps) == 4 * len(ladder)
    record, provenance = read(folder / "record.json"), read(folder / "provenance.json")
    assert record["ladder"] == [rung["stage"] for rung in record["rungs"]] == ladder
    told = []
    while provenance is not None:
        told.insert(0, provenance["stage"])
        provenance = provenance["before"]
    assert told == ladder
    for name in RUNGS[:2]:
        left_out = Path("runs/demo") / name / "late-s0"
        assert read(left_out / "record.json")["left_out"] == (name not in ladder)
        passed = {"imagenet": {"model.safetensors", "provenance.json", "record.json"}, "scratch": {"record.json"}}
        if name not in ladder:
            assert {file.name for file in left_out.iterdir()} == passed[start]
    if start == "scratch":
        assert record["initial_weights_sha256"] is None
        assert not [line for line in screen.lines if "weights from" in line]
    else:
        before = Path("runs/demo") / ladder[-2] / "late-s0" / "model.safetensors"
        assert record["initial_weights_sha256"] == digest_of(before)
        assert record["rungs"][-2]["weights_sha256"] == digest_of(before)


def test_auxiliary_heads_are_left_of_the_runs_that_have_them(rung, change_params):
    """They are no part of the network; whoever wants to go on with the training finds them."""

    def change(p):
        p["network"].update(levels=4)
        p["variants"]["supervised"] = {"block": "mmbconv", "train": {"deep_supervision": 0.4}}

    change_params(change)
    folder = go_up_to("train", variant="supervised")
    heads = load_file(folder / "auxiliary.safetensors")
    assert sorted(heads) == [f"level{level}.classifier.{kind}" for level in (1, 2) for kind in ("bias", "weight")]
    (work,) = work_folders()
    saved = load_file(work / "step-000000006" / "model.safetensors")
    assert all(torch.equal(tensor, saved[f"auxiliary.{name}"]) for name, tensor in heads.items())
    assert not [name for name in load_file(folder / "model.safetensors") if "auxiliary" in name]
    assert not (go_up_to("train", variant="mmbconv") / "auxiliary.safetensors").exists()
    change_params(lambda p: p["variants"]["supervised"]["train"].update(deep_supervision=0))
    assert not (go_up_to("train", variant="supervised") / "auxiliary.safetensors").exists()


OWN = """
from torch import nn
from blocks.helper import RATE

class Mine(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=RATE, dilation=RATE)

    def forward(self, x):
        return x + self.conv(x)
"""


def test_the_code_of_a_block_of_one_s_own_defines_its_runs(rung, change_params, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    change_params(lambda p: p["variants"].update(mine={"class": "blocks.mine:Mine"}))
    Path("blocks").mkdir()

    def trained_with(**modules):
        for name, text in modules.items():
            Path(f"blocks/{name}.py").write_text(text)
        for name in [name for name in sys.modules if name.partition(".")[0] == "blocks"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        screen = Screen()
        folder = go_up_to("train", variant="mine", screen=screen)
        return len(screen.steps), (folder / "model.safetensors").read_bytes()

    try:
        steps, first = trained_with(mine=OWN, helper="RATE = 1\n", other="")
        assert steps == 6
        assert read("runs/demo/train/mine-s0/record.json")["network"]["block"] == "blocks.mine:Mine"
        assert trained_with(other="# of another row\n") == (0, first)
        steps, second = trained_with(helper="RATE = 2\n")
        assert steps == 6
        assert first != second
        assert trained_with(mine=OWN + "\n") == (6, second)
        assert trained_with(mine=OWN, helper="RATE = 1\n") == (0, first)  # it is in the work folder still
        assert len(work_folders()) == 3
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "blocks"]:
            del sys.modules[name]


# ------------------------------------------------------------------------------------------------ what is pinned


def test_two_blocks_see_the_same_data_in_the_same_order(prepared, monkeypatch, change_params):
    """On every rung, with all that is drawn at random switched on."""

    def change(p):
        p["pretrain_imagenet"]["augment"].update(rand_augment={"ops": 2, "magnitude": 9}, mixup=0.2, cutmix=1.0)
        for name in ("pretrain_mapillary", "train"):
            p[name]["augment"].update(blur=0.5, class_uniform=0.5)

    change_params(change)
    real, seen = loader.steps_loader, {}

    def listening(batches, **arguments):
        for batch in real(batches, **arguments):
            content = b"".join(part.contiguous().numpy().tobytes() for part in batch)
            seen.setdefault(key, []).append(hashlib.sha256(content).hexdigest())
            yield batch

    monkeypatch.setattr(loader, "steps_loader", listening)
    logged = {}
    for key in (("residual", 0), ("mmbconv", 0), ("mmbconv", 1)):
        for name in RUNGS:
            logged[*key, name] = stage(name, variant=key[0], seed=key[1]).folder / "record.json"
    logged = {key: list(rungs(file)[-1]["data"].values()) for key, file in logged.items()}
    assert len(seen["residual", 0]) == 12
    assert len(set(seen["residual", 0])) == 12
    assert seen["residual", 0] == seen["mmbconv", 0]
    assert not set(seen["mmbconv", 0]) & set(seen["mmbconv", 1])
    for name in RUNGS:  # what is in the record says the same, without a look at the data
        assert len(set(logged["residual", 0, name])) == 4
        assert logged["residual", 0, name] == logged["mmbconv", 0, name]
        assert not set(logged["mmbconv", 0, name]) & set(logged["mmbconv", 1, name])


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_logged_is_a_digest_of_the_batch_that_the_step_saw(rung, change_params, monkeypatch, batch):
    """Of every sample its image and its labels, whatever the order in which processes have them."""
    change_params(lambda p: p["train"].update(batch=batch, norm_batch=batch, crop=[64, 32]))
    real, expected = loader.steps_loader, {}

    def listening(batches, **arguments):
        for number, (image_BCHW, label_BHW) in enumerate(real(batches, **arguments), start=1):
            samples = []
            for image_CHW, label_HW in zip(image_BCHW.numpy(), label_BHW.numpy(), strict=True):
                content = image_CHW.transpose(1, 2, 0).tobytes() + label_HW.tobytes()
                samples.append(hashlib.blake2b(content, digest_size=8).digest())
            expected[str(number)] = hashlib.blake2b(b"".join(sorted(samples)), digest_size=8).hexdigest()
            yield image_BCHW, label_BHW

    monkeypatch.setattr(loader, "steps_loader", listening)
    stage()
    assert rungs()[-1]["data"] == expected
    assert list(expected) == ["1", "2", "3", "4", "5", "6"]
    assert {str(row["step"]): row["data"] for row in rows() if "data" in row} == expected


def test_every_block_sees_the_same_data(rung, change_params):
    """The row of any block, with its own width, rate and schedule: a comparison is of the blocks alone."""

    def change(p):
        for name in BLOCK_NAMES:
            p["variants"][name] = {"block": name}
        p["variants"]["tuned"] = {"block": "mbconv", "width": 5, "norm": "group", "train": {"learning_rate": 0.05}}
        p["train"].update(steps=3)
        p["train"]["augment"].update(blur=0.5, class_uniform=0.5)

    change_params(change)
    seen = {}
    for variant in (*BLOCK_NAMES, "tuned"):
        stage("pretrain_imagenet", variant=variant)
        stage("pretrain_mapillary", variant=variant)
        seen[variant] = rungs(stage(variant=variant).folder / "record.json")[-1]["data"]
    assert list(seen["residual"]) == ["1", "2", "3"]
    assert all(data == seen["residual"] for data in seen.values())


@pytest.mark.parametrize(("logged", "steps"), [(1, ["1"]), (2, ["1", "4"]), (4, ["1", "3", "5"]), (5, ["1", "3", "5"])])
def test_some_steps_are_logged_of_a_long_run(rung, monkeypatch, logged, steps):
    """Evenly, from the first on, and the same ones whatever happened on the way."""
    monkeypatch.setattr(run, "LOGGED", logged)
    cut_after(5)
    stage()
    assert list(rungs()[-1]["data"]) == steps


@pytest.mark.parametrize("steps", [1, 2, 31, 32, 33, 64, 65, 1000, 90_000])
def test_the_log_stays_small(steps):
    every = -(-steps // run.LOGGED)
    logged = [step for step in range(1, steps + 1) if run._logged(step, every=every)]
    assert logged[0] == 1
    assert min(steps, run.LOGGED // 2) <= len(logged) <= run.LOGGED


def test_the_first_losses_are_pinned(rung, change_params):
    """Another value here means that something about training has changed: data, network, loss or optimizer."""
    change_params(lambda p: p["train"].update(learning_rate=0.05))
    stage()
    losses = [row["loss"] for row in rows() if "loss" in row]
    np.testing.assert_allclose(losses, PINNED_LOSSES, rtol=1e-3)


def test_the_number_of_workers_and_the_memory_format_change_no_choice(rung, uninterrupted, change_params):
    change_params(lambda p: p["runtime"].update(workers=2))
    stage()
    assert outcome() == uninterrupted
    assert [row["data"] for row in rows() if "data" in row] == list(rungs()[-1]["data"].values())  # all six equal
    forget()
    change_params(lambda p: p["runtime"].update(channels_last=False))
    stage()
    losses = [json.loads(line) for line in uninterrupted[1].splitlines()]
    for row, expected in zip(rows(), losses, strict=True):
        if "loss" in row:
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)


# ------------------------------------------------------------------------------------- the command as a whole process


def test_a_terminated_process_ends_with_143_and_is_resumed(rung, change_params, mmseg_process):
    """The whole command and its data loaders, with a signal to all of them from outside somewhere in the middle."""
    change_params(lambda p: p["train"].update(steps=40, checkpoint_every=1000))
    change_params(lambda p: p["runtime"].update(workers=2))
    command = [sys.executable, "-m", "mmseg_cli", "train", "--variant", "mmbconv", "--seed", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        give_up = time.monotonic() + 60
        while not any(path.stat().st_size for path in Path(".work").glob("*train*/*/history.jsonl")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < give_up
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1].startswith("mmseg: error: ")
    assert "stopped by SIGTERM, saved after step" in err
    assert "Traceback" not in err
    assert not RUN.exists()
    done = mmseg_process("train", "--variant", "mmbconv", "--seed", 0)
    assert done.code == 0, done.err
    assert "going on after step" in done.err
    interrupted = load_file(RUN / "model.safetensors")
    forget()
    stage()
    for name, tensor in load_file(RUN / "model.safetensors").items():
        assert torch.equal(tensor, interrupted[name]), name


def test_a_killed_trainer_leaves_no_data_loader_that_holds_its_lock(rung, change_params):
    change_params(lambda p: p["train"].update(steps=5000))
    change_params(lambda p: p["runtime"].update(workers=2))
    command = [sys.executable, "-m", "mmseg_cli", "train", "--variant", "mmbconv", "--seed", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + 60
        while not any(path.stat().st_size for path in Path(".work").glob("*train*/*/history.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.kill()
        process.wait()
    time.sleep(0.2)  # the kernel tells the loaders
    with runtime.only_one(Path(".work/demo-train/mmbconv-s0.lock")):
        pass


def test_the_second_interrupt_means_now():
    with runtime.StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
