"""What DVC runs again, what not, and that the code it watches is the code that runs.

The tests run in this order on one project; each leaves it up to date.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from mmseg_cli.execution import dvc
from mmseg_cli.paths import Paths
from tests.pipeline.tiny import IMPORTED, REPOSITORY, TinyProject

RUNGS = ("pretrain_imagenet", "pretrain_mapillary", "train", "evaluate")

# Not declared by any stage: what only talks to the person, and small helpers that decide no number.
EXEMPT = (
    "cli",
    "errors",
    "files",
    "names",
    "params",
    "paths",
    "runtime",
    "text",
    "provenance",
    "tracking",
    "mirror",
    "__main__",
)
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
ON_GPU = {"mmseg_cli/models/kernels.py"}  # what is imported there only


def _declared(stage: str) -> list[str]:
    body = STAGES[stage].get("do", STAGES[stage])
    return [dep for dep in body["deps"] if dep.startswith("mmseg_cli/")]


def test_declared_code_exists() -> None:
    assert not [dep for stage in STAGES for dep in _declared(stage) if not (REPOSITORY / dep).exists()]


@pytest.mark.parametrize("stage", ["pretrain_imagenet", "pretrain_mapillary", "train"])
def test_the_code_in_a_run_s_fingerprint_is_the_declared_code(stage: str) -> None:
    from mmseg_cli.training.stages import CODE

    assert sorted(f"mmseg_cli/{part}" for part in CODE) == sorted(_declared(stage))


def test_the_first_repro_runs_every_stage(done_project: TinyProject) -> None:
    grid = [f"{stage}@residual-0" for stage in RUNGS]
    datasets = [f"prepare@{name}" for name in ("imagenet", "mapillary", "cityscapes")]
    assert sorted(done_project.first_run) == sorted([*datasets, *grid, "cost", "ablate"])
    assert "over seeds 0.\n" in done_project.table()


def test_a_second_repro_runs_nothing(done_project: TinyProject) -> None:
    assert done_project.repro() == []


@pytest.mark.parametrize("stage", STAGES)
def test_declared_code_is_imported_code(done_project: TinyProject, stage: str) -> None:
    """By what the processes of the first repro have noted at their end."""
    used = {
        str(Path(file).relative_to(done_project.root))
        for noted in (done_project.root / IMPORTED).iterdir()
        if noted.name.partition("@")[0] == stage
        for name, file in json.loads(noted.read_text()).items()
        if not file.endswith("__init__.py") and name.split(".")[1] not in EXEMPT
    }
    assert used
    declared = _declared(stage)
    undeclared = {file for file in used if not any(file == dep or file.startswith(f"{dep}/") for dep in declared)}
    assert not undeclared
    unused = {dep for dep in declared if not any(file == dep or file.startswith(f"{dep}/") for file in used)}
    assert not unused - ON_GPU


def test_every_stage_is_an_mlflow_run_below_one_parent(done_project: TinyProject) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{done_project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mmseg")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id], max_results=100)}
    parent = runs.pop("demo/ablation")
    names = {stage.replace("@", "/").replace("-0", "-s0") for stage in done_project.first_run}
    assert set(runs) == {f"demo/{name}" for name in names}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    train = runs["demo/train/residual-s0"]
    assert train.data.tags["dvc.stage"] == "train@residual-0"
    assert train.data.params["train.learning_rate"] == "0.003"
    assert len(client.get_metric_history(train.info.run_id, "loss")) == 3
    assert "mean_iou" in train.data.metrics
    params = done_project.read_params()
    params["tracking"]["enabled"] = False  # no stage depends on it, and the tests below gain nothing from it
    done_project.write_params(params)
    assert done_project.repro() == []


def test_editing_the_table_code_reruns_ablate_only(done_project: TinyProject) -> None:
    page = done_project.root / "mmseg_cli" / "ablation" / "document.py"
    page.write_text(page.read_text().replace("# Ablation:", "# An ablation:"))
    assert done_project.repro() == ["ablate"]
    assert done_project.table().startswith("# An ablation: demo")


def test_ablate_writes_the_grid_and_runs_what_is_missing(done_project: TinyProject) -> None:
    done = done_project.run("mmseg", "ablate", "--blocks", "residual,mbconv")
    assert "ablate.variants: [residual] -> [residual, mbconv]" in done.stdout
    assert done_project.read_params()["ablate"]["variants"] == ["residual", "mbconv"]
    ran = re.findall(r"Running stage '([^']+)'", done.stdout)
    # The cost is measured for all variants in turn in one process, so it is one stage.
    assert sorted(ran) == sorted(["ablate", "cost", *(f"{stage}@mbconv-0" for stage in RUNGS)])
    assert "| mbconv" in done_project.table()
    assert "ablation of demo" in done.stdout


def of_both(*stages: str) -> set[str]:
    return {f"{stage}@{variant}-0" for stage in stages for variant in ("residual", "mbconv")}


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("train", {"learning_rate": 0.001}, of_both("train", "evaluate") | {"ablate"}),
        ("pretrain_mapillary", {"steps": 3}, of_both(*RUNGS[1:]) | {"ablate"}),
        ("evaluate", {"examples": 2}, of_both("evaluate") | {"ablate"}),
        ("cost", {"repeats": 3}, {"cost", "ablate"}),
        ("runtime", {"workers": 1}, {"cost", "ablate"}),  # it is measured on a machine as it is set
        ("execution", {"retries": 1}, set()),
        ("ablate", {"variants": ["residual"]}, {"cost", "ablate"}),
    ],
)
def test_what_a_change_puts_out_of_date(
    done_project: TinyProject, monkeypatch: pytest.MonkeyPatch, section: str, change: dict[str, object], expected: set
) -> None:
    """By DVC's own word; the slow tests below run some of it."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", done_project.environment["DVC_SITE_CACHE_DIR"])
    before = done_project.read_params()
    done_project.write_params({**before, section: before[section] | change})
    try:
        assert set(dvc.graph(Paths(done_project.root, "demo")).to_run()) == expected
    finally:
        done_project.write_params(before)


@pytest.mark.slow
def test_a_changed_learning_rate_reruns_train_evaluate_ablate(done_project: TinyProject) -> None:
    params = done_project.read_params()
    params["train"]["learning_rate"] = 0.001
    done_project.write_params(params)
    ran = done_project.repro()
    assert sorted(ran) == ["ablate", "evaluate@mbconv-0", "evaluate@residual-0", "train@mbconv-0", "train@residual-0"]


@pytest.mark.slow
def test_a_changed_variant_reruns_that_variant_only(done_project: TinyProject) -> None:
    params = done_project.read_params()
    params["variants"]["mbconv"]["expansion"] = 3
    done_project.write_params(params)
    ran = done_project.repro()
    assert sorted(ran) == sorted(["ablate", "cost", *(f"{stage}@mbconv-0" for stage in RUNGS)])


def test_a_stage_that_calls_ablate_is_refused(done_project: TinyProject) -> None:
    done_project.environment["DVC_STAGE"] = "ablate"
    try:
        done = done_project.run("mmseg", "ablate", check=False)
    finally:
        del done_project.environment["DVC_STAGE"]
    assert done.returncode == 2
    assert "mmseg ablate: called inside a DVC stage" in done.stderr


def test_missing_evidence_is_named(done_project: TinyProject) -> None:
    gone = done_project.root / "reports" / "demo" / "evidence" / "mbconv-s0" / "metrics.json"
    content = gone.read_bytes()
    table = done_project.table()
    gone.unlink()
    try:
        done = done_project.run("mmseg", "ablate", "--no-run", check=False)
    finally:
        gone.write_bytes(content)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "missing mbconv-s0/metrics.json: " in done.stderr
    assert done_project.table() == table


@pytest.mark.slow
def test_a_seed_comes_and_goes(done_project: TinyProject) -> None:
    done = done_project.run("mmseg", "ablate", "--seeds", "0,1")
    assert "ablate.seeds: [0] -> [0, 1]" in done.stdout
    ran = re.findall(r"Running stage '([^']+)'", done.stdout)
    assert sorted(ran) == sorted(
        ["ablate", *(f"{stage}@{block}-1" for stage in RUNGS for block in ("residual", "mbconv"))]
    )
    assert "over seeds 0, 1.\n" in done_project.table()
    params = done_project.read_params()
    params["ablate"]["seeds"] = [0]
    done_project.write_params(params)
    assert done_project.repro() == ["ablate"]
    assert "over seeds 0.\n" in done_project.table()
    with (done_project.root / "reports" / "demo" / "ablation.csv").open() as file:
        columns = next(csv.reader(file))
    assert "mean_iou_s0" in columns and "mean_iou_s1" not in columns


@pytest.mark.slow
def test_dropping_a_variant_removes_it_from_the_table(done_project: TinyProject) -> None:
    params = done_project.read_params()
    params["ablate"]["variants"] = ["residual"]
    done_project.write_params(params)
    assert sorted(done_project.repro()) == ["ablate", "cost"]
    assert "| mbconv" not in done_project.table()


@pytest.mark.slow
def test_axes_and_a_new_name_train_only_what_is_new(done_project: TinyProject) -> None:
    """Another start is another row; a row of another name keeps its runs; branches are knocked out for real."""
    before_that = done_project.read_params()
    params = done_project.read_params()
    params["variants"]["slim"] = params["variants"].pop("mbconv")
    params["ablate"]["variants"] = ["slim"]
    params["evaluate"]["branches"] = True
    done_project.write_params(params)
    runs = done_project.root / "runs" / "demo" / "train"
    before = json.loads((runs / "mbconv-s0" / "record.json").read_text())["weights_sha256"]
    done = done_project.run("mmseg", "ablate", "--starts", "mapillary,scratch", "--blocks", "slim")
    assert "variants.slim-scratch: new, " in done.stdout
    assert "ablate.variants: [slim] -> [slim, slim-scratch]" in done.stdout
    assert (done.stdout + done.stderr).count("the same training as mbconv-s0: taken over") == 3
    assert json.loads((runs / "slim-s0" / "record.json").read_text())["weights_sha256"] == before
    table = done_project.table()
    assert "ImageNet → Mapillary → generated cityscapes: `slim`; " in table
    assert "generated cityscapes from scratch: `slim-scratch`." in table
    assert "| slim-scratch" in table.split("## What each resolution contributes")[1]
    assert "figures/ladder.png" in table
    assert (done_project.root / "runs" / "demo" / "ablate" / "examples" / "index.md").is_file()
    done_project.run("mmseg", "verify")
    done_project.write_params(before_that)


def _wait_for(find: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if any(find.glob(pattern)):
            return
        assert process.poll() is None, "dvc ended before the first checkpoint"
        time.sleep(0.1)
    raise AssertionError(f"{pattern} never came")


def _trainers(project: TinyProject) -> list[int]:
    """Processes that train in this project."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == project.root:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"train" in words:
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_repro_goes_on(done_project: TinyProject, kill: signal.Signals) -> None:
    params = done_project.read_params()
    params["train"] |= {"steps": 300 + kill, "checkpoint_every": 5}
    done_project.write_params(params)
    shutil.rmtree(done_project.root / ".work" / "demo-train")  # the last checkpoints of runs that are done
    process = subprocess.Popen(
        ["dvc", "repro", "train@residual-0"],
        cwd=done_project.root,
        env=done_project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _wait_for(done_project.root / ".work", "demo-train/residual-s0-*/step-*/manifest.json", process)
    if kill == signal.SIGKILL:
        process.kill()  # DVC alone: its trainer must not outlive it
    else:
        os.killpg(process.pid, kill)  # as Ctrl-C does
    assert process.wait(timeout=60) != 0
    for _ in range(300):
        if not _trainers(done_project):
            break
        time.sleep(0.1)
    assert not _trainers(done_project)
    again = done_project.run("dvc", "repro", "train@residual-0")
    assert "going on after step" in again.stderr + again.stdout
    run = done_project.root / "runs" / "demo" / "train" / "residual-s0"
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, params["train"]["steps"] + 1))


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
def test_ending_ablate_ends_dvc_and_its_trainer(done_project: TinyProject) -> None:
    params = done_project.read_params()
    params["train"] |= {"steps": 5000, "checkpoint_every": 5}
    done_project.write_params(params)
    shutil.rmtree(done_project.root / ".work" / "demo-train")
    process = subprocess.Popen(
        ["mmseg", "ablate"],
        cwd=done_project.root,
        env=done_project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _wait_for(done_project.root / ".work", "demo-train/*/step-*/manifest.json", process)
    process.terminate()  # mmseg alone
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    for _ in range(300):
        if not _trainers(done_project):
            break
        time.sleep(0.1)
    assert not _trainers(done_project)
