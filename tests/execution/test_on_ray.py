"""Stages on a Ray cluster of two nodes: a grid, lost nodes, failures, stopping, and clones without a shared folder."""

from __future__ import annotations

import os
import subprocess
import time

import pytest
import yaml

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import clone, drive, dvc, on_ray
from mmseg_cli.execution.jobs import State
from tests.execution.conftest import REPOSITORY, alive
from tests.execution.test_local import GRID, needs
from tests.execution.test_stage import until

ray = pytest.importorskip("ray")
pytest.importorskip("ray.cluster_utils")

from mmseg_cli.execution.on_ray import OnRay  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 8 * 2**30}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes; this process is the driver."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(REPOSITORY)
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def begun(project):
    params = project.params
    engine = OnRay(project.paths, params, jobs=None, address=None)
    return engine, drive.jobs_of(dvc.graph(project.paths), project.paths, params, gpus=engine.gpus())


def driven(project):
    engine, jobs = begun(project)
    try:
        drive.drive(jobs, engine, paths=project.paths, params=project.params, show=lambda status: None)
    finally:
        engine.close()
    return jobs


def test_a_grid_runs_and_dvc_finds_it_up_to_date(cluster, shell_project):
    fails = "echo 'mmseg: error: train.steps: too few: raise it' >&2; exit 2"
    project = shell_project({**GRID, "c": (fails, ["x"]), "after": ("true", ["c"])})
    jobs = driven(project)
    assert jobs.count(State.DONE) == 4
    assert jobs.of["c"].state is State.FAILED
    assert jobs.of["c"].why == f"train.steps: too few: raise it (on {os.uname().nodename})"
    assert jobs.of["after"].state is State.LEFT_OUT
    assert {job.machine for job in jobs if job.state is not State.LEFT_OUT} == {os.uname().nodename}
    assert set(dvc.graph(project.paths).to_run()) == {"c", "after"}
    assert "Running stage 'a'" in (project.root / ".work" / "execution" / "demo" / "a.log").read_text()


@pytest.mark.slow
def test_no_more_run_at_once_than_there_are_cpus(cluster, shell_project):
    watch = "touch {0}.runs; sleep 2; ls *.runs | wc -l > {0}.seen; sleep 1; rm {0}.runs"
    project = shell_project({name: (watch.format(name), []) for name in "abcd"})
    driven(project)
    assert [int((project.root / f"{name}.seen").read_text()) <= 2 for name in "abcd"] == [True] * 4


@pytest.mark.slow
def test_stopping_lets_stages_save_and_leaves_no_process(cluster, shell_project):
    saves = "trap 'echo saved > saved; exit 130' INT; touch began; while true; do sleep 0.05; done"
    project = shell_project({"a": (f'bash -c "{saves}"', []), "b": ("sleep 60", []), "c": ("sleep 60", [])})
    engine, jobs = begun(project)
    for job in jobs:
        jobs.begin(job)
        engine.submit(job)
    until((project.root / "began").is_file)
    engine.stop(seconds=30)
    engine.close()
    until((project.root / "saved").is_file)
    until(lambda: not [pid for pid in alive(str(project.root)) if pid != os.getpid()])


def test_what_no_node_has_is_said_before_anything_runs(cluster, shell_project):
    project = shell_project(GRID)
    needs(project, a="{gpus: 0, cpus: 64, memory_gib: 1}")
    engine, jobs = begun(project)
    with pytest.raises(
        MmsegError, match=r"execution.needs: a needs 64 CPUs, 0 GPUs and 1 GiB, no node has them \(1 CPU"
    ):
        engine.require(jobs.of["a"])
    engine.require(jobs.of["b"])
    engine.close()


def test_what_the_cluster_lost_is_handed_over_again_and_only_that(cluster, shell_project, monkeypatch):
    monkeypatch.setattr(on_ray, "STUCK_SECONDS", 2.0)
    project = shell_project({"a": ("true", [])})
    engine, jobs = begun(project)
    task, job = engine.task, jobs.of["a"]
    time.sleep(2.1)  # nothing was handed over in this time, and so nothing is stuck
    engine.task = ray.remote(lambda of, told: time.sleep(60))  # never says that it began
    for _ in range(2):
        engine.submit(job)
        assert engine.ended() == []
        ended = []
        until(lambda found=ended: found.extend(engine.ended()) or found)
        assert [(one.stage, one.unbegun) for one in ended] == [("a", True)]
    monkeypatch.setattr(on_ray, "STUCK_SECONDS", 120.0)
    engine.task = task
    engine.submit(job)
    ended = []
    until(lambda found=ended: found.extend(engine.ended()) or found)
    assert [one.code for one in ended] == [0]
    engine.close()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "--address: nobody answers at 127.0.0.1:1 ("),
        (
            "ray://127.0.0.1:1",
            "--address: 'ray://127.0.0.1:1' is not of the form HOST:PORT: give what `ray start --head`",
        ),
        ("here", "--address: 'here' is not of the form HOST:PORT"),
    ],
)
def test_an_address_where_no_cluster_is_is_one_line(shell_project, address, said):
    project = shell_project({"a": ("true", [])})
    with pytest.raises(MmsegError) as error:
        OnRay(project.paths, project.params, jobs=None, address=address)
    assert str(error.value).startswith(said)


LADDER = {
    "prepare": {
        "cmd": "mkdir -p data && cp source.txt data/manifest",
        "deps": ["source.txt"],
        "outs": [{"data": {"cache": False}}],
    },
    "train": {
        "cmd": "mkdir -p runs/train && cat data/manifest > runs/train/weights && pwd >> where-train",
        "deps": ["data/manifest"],
        "outs": ["runs/train"],
    },
    "evaluate": {
        "cmd": "mkdir -p runs/evaluate reports && cp runs/train/weights runs/evaluate/page"
        " && cp runs/train/weights reports/figures.json && pwd >> where-evaluate",
        "deps": ["runs/train", "data/manifest"],
        "outs": [{"runs/evaluate": {"cache": False}}, {"reports/figures.json": {"cache": False, "persist": True}}],
    },
    "ablate": {
        "cmd": "cp reports/figures.json reports/table.md",
        "deps": ["reports/figures.json"],
        "outs": [{"reports/table.md": {"cache": False, "persist": True}}],
    },
}


@pytest.fixture
def without_a_shared_folder(shell_project, tmp_path):
    """A project with an origin, a remote of DVC's, and machines that clone it into a folder of their own."""
    project = shell_project({})
    (project.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": LADDER}, sort_keys=False))
    (project.root / ".gitignore").write_text("/data\n/runs\n/.work\n/where-*\n")
    text = (project.root / "params.yaml").read_text().replace("clones: null", f"clones: {tmp_path / 'elsewhere'}")
    (project.root / "params.yaml").write_text(text)
    subprocess.run(["git", "init", "--quiet", "--bare", str(tmp_path / "origin")], check=True)
    project.dvc("remote", "add", "--default", "weights", str(tmp_path / "remote"))
    project.git("add", "-A")
    project.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "first")
    project.git("remote", "add", "origin", str(tmp_path / "origin"))
    return project


@pytest.mark.slow
def test_machines_without_a_shared_folder_have_clones(cluster, without_a_shared_folder, tmp_path):
    project = without_a_shared_folder
    project.git("push", "--quiet", "origin", "HEAD:main")
    (project.root / "source.txt").write_text("1")  # as committed
    jobs = driven(project)
    assert [(job.stage, job.state, job.why) for job in jobs] == [(name, State.DONE, "") for name in LADDER]
    (elsewhere,) = [folder for folder in (tmp_path / "elsewhere").iterdir() if folder.is_dir()]
    assert (elsewhere / "where-train").read_text().strip() == str(elsewhere)
    assert not (project.root / "where-train").exists()
    assert not (elsewhere / "reports" / "table.md").exists()  # tables are made here
    assert (project.root / "reports" / "table.md").read_text() == "1"
    assert (project.root / "runs" / "train" / "weights").read_text() == "1"  # through the remote
    assert (project.root / "runs" / "evaluate" / "page").read_text() == "1"
    assert dvc.graph(project.paths).to_run() == {}
    assert project.dvc("repro").count("didn't change, skipping") == 4
    assert "Running stage 'train'" in (project.root / ".work" / "execution" / "demo" / "train.log").read_text()


@pytest.mark.slow
def test_two_trainings_share_a_clone_and_a_half_made_one_is_made_again(cluster, without_a_shared_folder, tmp_path):
    project = without_a_shared_folder
    stages = yaml.safe_load((project.root / "dvc.yaml").read_text())["stages"]
    del stages["evaluate"], stages["ablate"]
    train = stages.pop("train")
    for name in ("one", "two"):
        command = f"mkdir -p runs/{name} && sleep 4 && cat data/manifest > runs/{name}/weights && pwd >> where-{name}"
        stages[name] = {**train, "cmd": command, "outs": [f"runs/{name}"]}
    (project.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    project.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--all", "--message", "two")
    project.git("push", "--quiet", "origin", "HEAD:main")
    half = clone.unpack_folder(clone.source_of(project.paths), str(tmp_path / "elsewhere")).with_suffix(".half")
    half.mkdir(parents=True)
    (half / "dvc.yaml").write_text("of a clone that was killed")
    jobs = driven(project)
    assert [(job.stage, job.state, job.why) for job in jobs if job.state is not State.DONE] == []
    (elsewhere,) = [folder for folder in (tmp_path / "elsewhere").iterdir() if folder.is_dir()]
    for name in ("one", "two"):
        assert (elsewhere / f"where-{name}").read_text().strip() == str(elsewhere)
        assert (project.root / "runs" / name / "weights").read_text() == "1"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda project: None, r"execution.clones: commit \w{12} is not in .*origin yet: push it"),
        (
            lambda project: (project.root / "dvc.yaml").write_text("stages: {}"),
            r"execution.clones: the code here has changes that no clone would have: commit and push them",
        ),
    ],
)
def test_what_no_clone_could_have_is_said(without_a_shared_folder, spoil, said):
    spoil(without_a_shared_folder)
    with pytest.raises(MmsegError, match=said):
        clone.source_of(without_a_shared_folder.paths)


def test_clones_need_a_remote(without_a_shared_folder):
    project = without_a_shared_folder
    project.dvc("remote", "remove", "weights")
    project.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--all", "--message", "none")
    project.git("push", "--quiet", "origin", "HEAD:main")
    with pytest.raises(MmsegError, match=r"execution.clones: .dvc/config names no default remote for the weights"):
        clone.source_of(project.paths)
