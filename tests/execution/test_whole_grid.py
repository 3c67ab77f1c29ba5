"""A tiny grid by each engine, against the serial run: weights, tables, locks; and with a node killed ten times."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.execution.conftest import alive
from tests.execution.test_stage import until
from tests.pipeline.tiny import TinyProject

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 8 * 2**30}
COSTS = ("seconds", "ratio", "bytes", "joules")  # in a column's name: it is measured
COUNTED = ("confusion.npz", "metrics.json", ".png", "data-cityscapes.md")  # of reports: no time is in them
TRAINED_LONG = 1200  # steps, each some ten milliseconds


def made(root: Path, *, steps: int | None = None) -> TinyProject:
    """Three variants and two seeds, threads pinned."""
    project = TinyProject(root)
    params = project.read_params()
    params["variants"]["mmbconv"] = {"block": "mmbconv"}
    params["ablate"] |= {"variants": ["residual", "mbconv", "mmbconv"], "seeds": [0, 1]}
    params["runtime"] |= {"threads": 1, "device": "cpu"}
    if steps is not None:
        params["ablate"] |= {"variants": ["mbconv"], "seeds": [0]}
        params["train"] |= {"steps": steps, "checkpoint_every": 20}
    project.write_params(params)
    return project


def ablate(project: TinyProject, *arguments: str, output: Path | None = None) -> subprocess.Popen[str]:
    """`mmseg ablate`; what it prints goes to a pipe, or into a file."""
    with output.open("w") if output else contextlib.nullcontext(subprocess.PIPE) as target:
        return subprocess.Popen(
            [sys.executable, "-m", "mmseg_cli", "ablate", *arguments],
            cwd=project.root,
            env=project.environment,
            stdout=target,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def weights(project: TinyProject) -> dict[str, str]:
    files = sorted((project.root / "runs").rglob("*.safetensors"))
    return {str(file.relative_to(project.root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def table(project: TinyProject, name: str) -> list[dict[str, str]]:
    """A table without the columns that are measured."""
    with (project.root / "reports" / "demo" / name).open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not any(cost in key for cost in COSTS)} for row in rows]


def untimed(certificate: Path) -> str:
    """A certificate without its times and environment."""

    def cut(value: object) -> object:
        if isinstance(value, dict):
            return {key: cut(one) for key, one in value.items() if key not in ("began", "seconds", "environment")}
        return list(map(cut, value)) if isinstance(value, list) else value

    return json.dumps(cut(json.loads(certificate.read_text())))


def hash_of(file: dict[str, str]) -> str | None:
    """What a lock has of a file; None where times or the machine are in it: records, costs, tables, certificates."""
    timed = file["path"].startswith(("runs/", "reports/")) and not file["path"].endswith(COUNTED)
    return None if timed else file["md5"]


def entries(project: TinyProject) -> dict[str, object]:
    """dvc.lock: each stage's command and parameters, what it read and what it made."""
    locked = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
    return {
        name: {key: entry[key] for key in ("cmd", "params") if key in entry}
        | {key: [(file["path"], hash_of(file)) for file in entry[key]] for key in ("deps", "outs")}
        for name, entry in locked.items()
    }


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    project = made(tmp_path_factory.mktemp("serial") / "project")
    project.repro()
    return project


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_grid_is_the_serial_run_s(serial, cluster, tmp_path, engine):
    project = made(tmp_path / "project")
    more = ["--jobs", "2"] if engine == "local" else ["--address", cluster.address]
    told, _ = ablate(project, "--executor", engine, *more).communicate(timeout=900)
    assert "ablation of demo" in told, told
    assert len(weights(serial)) == 18
    assert weights(project) == weights(serial)
    for name in ("ablation.csv", "details.csv"):
        assert table(project, name) == table(serial, name)
        assert table(project, name)
    evidence = sorted(file.relative_to(serial.root) for file in (serial.root / "reports/demo/evidence").glob("*-s?/*"))
    assert len(evidence) == 6 * 3
    for file in evidence:
        if file.name == "certificate.json":
            assert untimed(project.root / file) == untimed(serial.root / file)
        else:
            assert (project.root / file).read_bytes() == (serial.root / file).read_bytes()
    assert entries(project) == entries(serial)
    assert project.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert project.repro() == []
    assert not alive(str(project.root))


def test_runs_are_grouped_in_mlflow_as_in_a_serial_run(serial, tmp_path):
    from mlflow.tracking import MlflowClient

    project = made(tmp_path / "project")
    ablate(project, "--executor", "local", "--jobs", "2").communicate(timeout=900)
    found = []
    for one in (serial, project):
        client = MlflowClient(f"sqlite:///{one.root / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("mmseg")
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        names = {run.info.run_id: run.info.run_name for run in runs}
        found.append(
            sorted((run.info.run_name, names.get(run.data.tags.get("mlflow.parentRunId", ""), "")) for run in runs)
        )
    assert found[0] == found[1]
    assert len(found[0]) > 20


def inside(root: Path) -> list[int]:
    """The processes whose folder is `root`: DVC, a stage, what watches it."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and (folder / "cwd").readlink() == root:
                found.append(int(folder.name))
    return found


def test_a_node_killed_ten_times_ends_with_the_bytes_of_a_quiet_run(tmp_path):
    from ray.cluster_utils import Cluster

    quiet = made(tmp_path / "quiet" / "project", steps=TRAINED_LONG)
    quiet.repro()
    project = made(tmp_path / "killed" / "project", steps=TRAINED_LONG)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    node = cluster.add_node(**NODE)  # the only one that has room for a stage
    output = tmp_path / "output"
    driver = ablate(project, "--executor", "ray", "--address", cluster.address, output=output)
    try:
        for _ in range(10):
            before = _step(project)
            until(lambda before=before: _step(project) > before + 25 or driver.poll() is not None, seconds=240)
            assert driver.poll() is None, output.read_text()
            cluster.remove_node(node, allow_graceful=False)
            for pid in set(inside(project.root)) - {driver.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # all that the machine had, before it can save anything
            node = cluster.add_node(**NODE)
        assert driver.wait(timeout=900) == 0, output.read_text()
    finally:
        driver.kill()
        cluster.shutdown()
    told = output.read_text()
    assert "ablation of demo" in told, told
    assert "state-dump" not in told  # Ray's own last words
    assert len(re.findall(r"train@mbconv-0: runs on \S+, try \d+, after: its (machine|process) was ", told)) == 10
    log = project.root / ".work" / "execution" / "demo" / "train@mbconv-0.log"
    assert log.read_text().count("going on after step") == 10
    assert weights(project) == weights(quiet)
    record = json.loads((project.root / "runs" / "demo" / "train" / "mbconv-s0" / "provenance.json").read_text())
    assert len(record["sessions"]) == 11


def _step(project: TinyProject) -> int:
    """The last step that the training has written down."""
    files = list((project.root / ".work" / "demo-train").glob("mbconv-s0-*/history.jsonl"))
    if not files:
        return 0
    lines = [line for line in files[0].read_text().splitlines() if line.endswith("}")]
    return json.loads(lines[-1])["step"] if lines else 0
