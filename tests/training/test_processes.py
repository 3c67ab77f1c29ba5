"""Several processes on one training: real ones, that talk over gloo."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_stages import Screen, stage

from mmseg_cli import runtime
from mmseg_cli.data.loader import CentreCrops, items_loader
from mmseg_cli.data.store import open_store
from mmseg_cli.evaluation import inference
from mmseg_cli.params import load
from mmseg_cli.processes import Processes, joined
from mmseg_cli.runtime import place

PAIR = Path(__file__).with_name("pair.py")
# All that is saved is in use: both averages, mixed sampling, auxiliary heads, random depth, two parts a step.
RECIPE = {
    "batch": 4,
    "norm_batch": 2,
    "lookahead": {"k": 3, "alpha": 0.5},
    "ema": {"decay": 0.9},
    "precise_bn": 2,
    "stochastic_depth": 0.2,
    "deep_supervision": 0.4,
    "clip_norm": 1.0,
    "loss": {"cross_entropy": 1, "ohem": 0.5, "ohem_threshold": 0.7, "ohem_min_share": 0.1},
    "steps": 8,
    "checkpoint_every": 3,
    "validate_every": 5,
}


def free_port():
    """The first of some ports below those that the system gives to connections, gloo's own among them."""
    while True:
        port = random.randrange(20000, 30000, 50)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def together(tmp_path, scenarios, *, world=2, timeout=500):
    """Run the scenarios in `world` processes and give each one's run folder."""
    for number, scenario in enumerate(scenarios):
        scenario["out"] = str(tmp_path / f"out-{number}")
    (tmp_path / "scenarios.json").write_text(json.dumps(scenarios))
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = [
        subprocess.Popen(
            [sys.executable, PAIR, tmp_path / "scenarios.json"],
            env={**os.environ, **{k: str(v) for k, v in common.items()}, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, errors
    return [Path(scenario["out"]) for scenario in scenarios]


@pytest.fixture
def project_with_recipe(prepared, change_params):
    def change(p):
        p["network"].update(levels=3)
        for name in ("pretrain_imagenet", "pretrain_mapillary"):
            p[name]["steps"] = 0
        p["train"].update(RECIPE)
        p["train"]["augment"].update(blur=0.5, class_uniform=0.5, uniform_last=3)

    change_params(change)
    stage("pretrain_imagenet")
    stage("pretrain_mapillary")
    return prepared


def rows(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_does_and_resume_to_the_bit(project_with_recipe, tmp_path, change_params):
    """Losses of 20 steps equal those of one process; a run that was cut ends with the bytes of one that was not."""
    plain = {"lookahead": None, "ema": None, "precise_bn": 0, "stochastic_depth": 0, "steps": 20, "validate_every": 10}
    scenarios = [
        {"stage": plain},
        {"stage": plain | {"norm_batch": 4}},
        {},
        {"cut": 4, "runtime": {"workers": 2}},
        {"runtime": {"recompute": True}},
    ]
    folders = together(tmp_path, scenarios)
    for folder, norm_batch in zip(folders, (2, 4), strict=False):
        screen = Screen()
        alone = one_process(plain | {"norm_batch": norm_batch}, screen, change_params)
        assert len(screen.steps) == 20
        assert [row["loss"] for row in rows(folder) if "loss" in row] == pytest.approx(
            [step.loss for step in screen.steps], rel=1e-5, abs=1e-5
        )
        both, one = (json.loads((run / "record.json").read_text())["rungs"][-1]["data"] for run in (folder, alone))
        assert both == one  # what all saw together, whoever saw which of it
        assert len(set(both.values())) == 20
        ours, theirs = load_file(folder / "model.safetensors"), load_file(alone / "model.safetensors")
        assert ours.keys() == theirs.keys()
        for name in ours:
            # What a norm cancels has no gradient but rounding, which AdamW makes steps of.
            if not name.endswith(("level2.block0.project_norm.bias", "decoder.level1.fuse.norm.running_mean")):
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4, msg=name)
    whole, resumed, recomputed = folders[2:]
    for other in (resumed, recomputed):
        assert (other / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert (other / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()


def one_process(changes, screen, change_params):
    """Train alone with changed parameters of the stage, and give the run's folder."""
    shutil.rmtree(".work/demo-train", ignore_errors=True)
    shutil.rmtree("runs/demo/train", ignore_errors=True)
    change_params(lambda p: p["train"].update(RECIPE | changes))
    return stage(screen=screen).folder


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_sixteen_ways_to_be_cut(project_with_recipe, tmp_path, world):
    """4 cut points x 0 or 2 workers, at each number of processes."""
    scenarios = [{}] + [{"cut": cut, "runtime": {"workers": workers}} for cut in (1, 3, 5, 7) for workers in (0, 2)]
    whole, *others = together(tmp_path, scenarios, world=world)
    assert len(others) == 8
    for other in others:
        assert (other / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert (other / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()


@pytest.mark.slow
def test_devices_starts_processes_that_end_as_one(project_with_recipe, mmseg_process):
    done = mmseg_process("train", "--variant", "mmbconv", "--seed", 0, "--devices", 2)
    assert done.code == 0, done.err
    assert "a batch of 4 is 2 x 2 x 1 " in done.err
    assert done.out.count("─ train/mmbconv-s0 ─") == 1
    assert "Warning" not in done.err
    assert Path("runs/demo/train/mmbconv-s0/model.safetensors").is_file()


@pytest.fixture
def a_long_run(project_with_recipe, change_params):
    change_params(lambda p: p["train"].update(steps=30, checkpoint_every=1000, validate_every=1000))
    change_params(lambda p: p["runtime"].update(workers=2, devices=2))


TRAIN = ("train", "--variant", "mmbconv", "--seed", 0)
RUN = Path("runs/demo/train/mmbconv-s0")


def started(**environment):
    """The command in a session of its own, some steps on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mmseg_cli", *map(str, TRAIN)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    give_up = time.monotonic() + 120
    while not any(len(path.read_text().splitlines()) > 3 for path in Path(".work").glob("*train*/*/history.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return process


def children(process):
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def test_a_signal_to_the_launcher_stops_all(a_long_run):
    stopped_by(signal.SIGTERM)


def stopped_by(number):
    with started() as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert err.count("mmseg: error: ") == 1
    assert f"stopped by {number.name}, saved after step" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_after_a_signal_to_the_launcher_they_go_on(a_long_run, mmseg_process, number):
    stopped_by(number)
    done = mmseg_process(*TRAIN)
    assert done.code == 0, done.err
    assert "going on after step" in done.err
    resumed = (RUN / "model.safetensors").read_bytes()
    shutil.rmtree("runs/demo/train")
    for work in Path(".work/demo-train").glob("*/"):
        shutil.rmtree(work)
    assert mmseg_process(*TRAIN).code == 0
    assert (RUN / "model.safetensors").read_bytes() == resumed


@pytest.mark.slow
def test_killing_one_of_them_ends_all_with_4(a_long_run):
    with started() as process:
        os.kill(children(process)[-1], signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert err.count("mmseg: error: ") == 1
    assert "was ended by SIGKILL, as a machine out of memory does" in err


@pytest.mark.slow
def test_killing_the_launcher_leaves_no_trainer(a_long_run):
    with started() as process:
        trainers = children(process)
        assert len(trainers) == 2
        process.kill()
        process.communicate()
        give_up = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in trainers):
            assert time.monotonic() < give_up
            time.sleep(0.1)
    assert list(Path(".work").glob("*train*/*/step-*")), "they saved what they had"


@pytest.mark.slow
@pytest.mark.parametrize("action", ["full", pytest.param("memory", marks=pytest.mark.slow)])
def test_what_the_machine_lacks_is_one_line_of_all(project_with_recipe, mmseg_process, action):
    done = mmseg_process(*TRAIN, "--devices", 2, env={"MMSEG_FAILPOINT": f"step:3={action}"})
    assert done.code == 4
    assert done.err.count("mmseg: error: ") == 1
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("0", "--devices: '0' is not a number of processes"),
        ("two", "--devices: 'two' is not a number of processes"),
        ("3", "norm_batch: 2 samples cannot be shared equally by 3 processes: use 1, 2 devices"),
    ],
)
def test_a_wrong_number_of_devices_is_one_line(project_with_recipe, mmseg_process, devices, message):
    done = mmseg_process("train", "--variant", "mmbconv", "--seed", 0, "--devices", devices)
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1, done.err
    assert message in done.err


# ------------------------------------------------------------------------------------------------------- validation


CASES = [[count, batch] for count in (1, 2, 3, 5, 7, 12, 13, 14, 15, 16, 21) for batch in (1, 2, 3, 4, 6)]


def test_two_processes_validate_to_the_matrix_of_one(prepared, tmp_path):
    """Every image counts once, for any number of them: 55 matrices that two processes add up equal those of one."""
    both, alone = (
        json.loads(together(tmp_path, [{"validate": CASES}], world=world)[0].read_text()) for world in (2, 1)
    )
    assert len(both) == len(CASES)
    assert all(sum(map(sum, matrix)) > 0 for matrix in both)
    assert len({json.dumps(matrix) for matrix in both}) == 11  # another one for every number of images
    assert both == alone


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_classification_counts_every_picture_once(prepared, batch):
    split = open_store(Path("data/demo/imagenet")).split("val")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    pictures = CentreCrops(split, batch=batch, crop=(32, 32))

    def counts(rank, world):
        batches = items_loader(pictures, workers=0, rank=rank, world=world)
        return inference.top_k_counts(network, batches, device=torch.device("cpu"))

    whole = counts(0, 1)
    assert whole[0] == len(split)
    for world in (2, 3, 7):
        assert (sum(counts(rank, world) for rank in range(world)) == whole).all()


# ----------------------------------------------------------------------------------------------------- one process


def test_alone_there_is_nobody_to_ask(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert place() is None
    with joined("cpu") as processes:
        assert processes == Processes(device=torch.device("cpu"))
        assert processes.first
        assert processes.total(torch.tensor([3])).tolist() == [3]
        assert processes.gather("x") == ["x"]
        assert processes.from_first(7) == 7


def test_one_process_takes_the_gpu_that_is_named(monkeypatch):
    """For what goes to the current one: the event after which a step's numbers are there."""
    taken = []
    monkeypatch.setattr(runtime, "place", lambda: None)
    monkeypatch.setattr(runtime, "pick_device", lambda name, local_rank: torch.device(name))
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    with joined("cuda:1") as processes:
        assert processes.device == torch.device("cuda:1")
    with joined("cpu"):
        pass
    assert taken == [torch.device("cuda:1")]


def test_presets_name_a_norm_batch_that_divides_their_batch():
    for path in sorted(Path(__file__).parents[2].glob("pipelines/*/params.yaml")):
        for name in ("pretrain_imagenet", "pretrain_mapillary", "train"):
            section = getattr(load(path), name)
            assert section.batch % section.norm_batch == 0
