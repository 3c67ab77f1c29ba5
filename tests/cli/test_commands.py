from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trees
from rich.console import Console

from mmseg_cli.cli import screen
from mmseg_cli.evaluation import evidence


def test_the_whole_way_through_the_commands(project, change_params, raw, mmseg):
    """Prepare, both pretrainings, train, evaluate, cost and table of two variants, each by its command."""
    change_params(lambda p: p["ablate"].update(variants=["residual", "mmbconv"]))
    for name in ("imagenet", "mapillary", "cityscapes"):
        done = mmseg("prepare", name, "--root", raw[name], "--preset", "demo")
        assert done.code == 0, done.err
        if name != "imagenet":  # any tree of folders is one; the others have official counts
            assert f"{name}: train: " in done.err
        assert f"# data: {name}" in Path(f"reports/demo/data-{name}.md").read_text().lower()
        assert Path(f"reports/demo/data-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "next" in done.out
    for variant in ("residual", "mmbconv"):
        for seed in (0, 1):
            for command in (("pretrain", "imagenet"), ("pretrain", "mapillary"), ("train",), ("evaluate",)):
                done = mmseg(*command, "--variant", variant, "--seed", seed)
                assert done.code == 0, done.err
                assert f"{variant}-s{seed}" in done.out
    done = mmseg("cost", "--measure")
    assert done.code == 0, done.err
    cost = json.loads(Path("reports/demo/evidence/cost.json").read_text())
    assert list(cost["variants"]) == ["residual", "mmbconv"]
    assert all(len(row["step_seconds"]) == 2 for row in cost["variants"].values())
    done = mmseg("ablate", "--no-run")
    assert done.code == 0, done.err
    text = Path("reports/demo/ablation.md").read_text()
    for variant in cost["variants"]:
        figures = []
        for folder in (Path(f"reports/demo/evidence/{variant}-s{seed}") for seed in (0, 1)):
            labelled_K = evidence.load(folder / "confusion.npz").counts["confusion"].total().sum(axis=1) > 0
            by_class = json.loads((folder / "metrics.json").read_text())["class_iou"].values()
            figures.append(np.mean([iou for iou, own in zip(by_class, labelled_K, strict=True) if own]))
        assert f" {100 * sum(figures) / 2:.2f} [" in text
    assert f"({labelled_K.sum()} of 19 classes, those that these labels have; " in text
    assert "ImageNet → Mapillary → cityscapes. Every run that was pretrained has a pretraining of its own." in text


def test_the_counted_cost_needs_no_data_and_writes_nothing(project, mmseg):
    before = trees.snapshot(project)
    done = mmseg("cost", "--height", 64, "--width", 128, "--classes", 5)
    assert done.code == 0, done.err
    assert "64x128" in done.out
    for variant in ("residual", "mbconv", "mmbconv"):
        assert done.out.count(variant) >= 2
    assert trees.snapshot(project) == before


def test_a_dataset_can_be_prepared_outside_a_project(tmp_path, monkeypatch, raw, mmseg):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMSEG_CAMVID_ROOT", str(raw["camvid"]))
    done = mmseg("prepare", "camvid")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "data" / "camvid").iterdir()) == [
        "manifest.json",
        *(f"{split}.{kind}" for split in ("test", "train", "val") for kind in ("index.npz", "records")),
    ]


def test_debug_shows_the_traceback(tmp_path, monkeypatch, mmseg_process):
    done = mmseg_process("--debug", "train", cwd=tmp_path)
    assert done.code != 0
    assert "Traceback" in done.err
    assert "no params.yaml here" in done.err


def test_brackets_in_a_path_are_no_markup(project, raw, mmseg, monkeypatch):
    """Such a name is shown whole, and does not break the panel."""
    odd = project / "a[bold]" / "b[" / "c]"
    odd.mkdir(parents=True)
    monkeypatch.chdir(odd)
    done = mmseg("prepare", "camvid", "--root", raw["camvid"])
    assert done.code == 0, done.err
    assert "a[bold]/b[/c]" in done.out.replace("\n", "").replace("│", "").replace(" ", "")


def test_tables_show_their_cells_as_they_are(capsys):
    screen.table(None, ("a", "b"), [("[red]x[/red]", "[/y]")])
    screen.panel("t [x]", [("k", "[/v]")], next_command="mmseg [z]")
    out = capsys.readouterr().out
    for text in ("[red]x[/red]", "[/y]", "t [x]", "[/v]", "mmseg [z]"):
        assert text in out
    assert Console().is_terminal is False


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_a_project_is_the_current_folder(project, mmseg, monkeypatch, tmp_path, place):
    if place == "elsewhere":
        monkeypatch.chdir(tmp_path)
    done = mmseg("cost")
    assert done.code == (0 if place == "here" else 2)
    assert os.listdir(project) == ["params.yaml"]  # noqa: PTH208


@pytest.mark.slow
def test_prepare_goes_on_after_sigterm(project, tmp_path):
    root = tmp_path / "many"
    trees.make_cityscapes(root, train=60, val=2, height=256)
    command = [sys.executable, "-m", "mmseg_cli", "prepare", "cityscapes", "--root", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    data = Path("data")
    while not (data.is_dir() and any(data.glob(".cityscapes.*"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert [path.name for path in data.iterdir()] == [".cityscapes.partial"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert [path.name for path in data.iterdir()] == ["cityscapes"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 4),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 4),
        (OSError(errno.ENOENT, "No such file"), None),
        (ValueError("a bug"), None),
    ],
)
def test_what_the_machine_lacks_is_one_line_and_a_bug_is_none(error, code):
    from mmseg_cli.cli.app import _as_error

    known = _as_error(error)
    assert (known.exit_code if known else None) == code
