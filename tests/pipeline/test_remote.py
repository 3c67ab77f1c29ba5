"""Results through a DVC remote, a folder or an S3 server: tables on a machine that has neither data nor runs."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.pipeline.tiny import TinyProject

pytestmark = pytest.mark.slow  # it runs a pipeline of its own
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3():
    """The address of an S3 server of moto's, with a bucket."""
    pytest.importorskip("moto.server")
    pytest.importorskip("dvc_s3")
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.1)
        boto3.client(
            "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        ).create_bucket(Bucket="results")
        yield address
    finally:
        server.terminate()
        server.wait()


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True, timeout=60)


def mmseg(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmseg_cli", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_laptop_builds_and_verifies_all_tables_from_a_clone_and_the_remote(
    done_project: TinyProject, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    source = Path(shutil.copytree(done_project.root, tmp_path / "source", symlinks=True))
    environment = {**done_project.environment, **KEYS, "PYTHONPATH": str(source)}

    def dvc(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["dvc", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    if kind == "folder":
        dvc(source, "remote", "add", "--default", "results", str(tmp_path / "remote"))
    else:
        dvc(source, "remote", "add", "--default", "results", "s3://results/mmseg")
        dvc(source, "remote", "modify", "results", "endpointurl", request.getfixturevalue("s3"))
    dvc(source, "push")
    (source / ".gitignore").write_text("/data\n/runs\n/.work\n/mlflow.db*\n/mlruns\n/mlartifacts\n")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", "results")

    laptop = tmp_path / "laptop"
    git(tmp_path, "clone", "--quiet", str(source), str(laptop))
    environment["PYTHONPATH"] = str(laptop)
    environment["DVC_SITE_CACHE_DIR"] = str(tmp_path / "site")
    shutil.rmtree(source / "data")
    shutil.rmtree(source / ".dvc" / "cache")  # nothing but the remote has the weights
    dvc(laptop, "pull", "--allow-missing")
    weights = Path("runs") / "demo" / "train" / "residual-s0" / "model.safetensors"
    assert (laptop / weights).read_bytes() == (source / weights).read_bytes()
    assert not (laptop / "data").exists()

    tables = {file: file.read_bytes() for file in (laptop / "reports" / "demo").glob("*.*")}
    for file in tables:
        if file.name.startswith(("ablation.", "claims", "details")):
            file.unlink()
    built = mmseg(laptop, environment, "ablate", "--no-run")
    assert built.returncode == 0, built.stderr
    for file, before in tables.items():
        assert file.read_bytes() == before, file
    verified = mmseg(laptop, environment, "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr

    Image.effect_noise((64, 48), 50).convert("RGB").save(laptop / "street.png")
    run = ("--run", "runs/demo/train/residual-s0")
    predicted = mmseg(laptop, environment, "predict", "street.png", *run, "--out", "out")
    assert predicted.returncode == 0, predicted.stderr
    assert list((laptop / "out").rglob("*.png"))
