"""10,000 images through the whole loop: neither memory nor open files grow."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mmseg_cli.prediction.inputs import Input, Inputs, _read_file
from mmseg_cli.prediction.outputs import open_outputs
from mmseg_cli.prediction.predict import predict, sources
from tests.prediction import made

IMAGES, DIFFERENT = 10_000, 200
EVERY = 100  # images between two samples
LIMIT = 1024  # bytes an image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks for memory in /proc"),
]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(images, values) -> float:
    """By least squares, after the first quarter."""
    begin = len(images) // 4
    return float(np.polyfit(images[begin:], values[begin:], 1)[0])


def soak(model, folder: Path) -> tuple[float, list[int]]:
    """Bytes that an image adds, and how many files were open."""
    files = []
    for number in range(DIFFERENT):
        path = folder / f"{number}{('.png', '.jpg', '.webp', '.tif')[number % 4]}"
        made.noise(64, 64, number).save(path)
        files.append(path)
    (folder / "broken.png").write_bytes(made.halved(files[0].read_bytes()))
    files[DIFFERENT // 2] = folder / "broken.png"  # failures must not pile up either
    parts = [
        Input(f"{number // 1000}/{number}", str(path), partial(_read_file, path), str(path))
        for number, path in ((number, files[number % DIFFERENT]) for number in range(IMAGES))
    ]
    inputs = Inputs(tuple(parts))
    memory, opened, seen = [], [], []

    def advance() -> None:
        seen.append(None)
        if len(seen) % EVERY == 0:
            gc.collect()  # what waits for it is no leak
            memory.append(resident())
            opened.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208

    with open_outputs(
        folder / "out",
        model,
        precision="float32",
        train_ids=False,
        overlay=True,
        probabilities=False,
        sources=sources(inputs),
    ) as outputs:
        outcome = predict(model, inputs, outputs, begin=lambda total, done: None, advance=advance)
    assert (outcome.predicted, len(outcome.failures)) == (IMAGES - IMAGES // DIFFERENT, IMAGES // DIFFERENT)
    grown = slope(np.arange(1, len(memory) + 1) * EVERY, memory)
    curve = [value // 1024 for value in memory[:: len(memory) // 20]]
    print(f"\n{grown:.1f} bytes an image, {min(opened)} to {max(opened)} open files, KiB: {curve}")
    return grown, opened


def in_a_process_of_its_own(folder: Path, run: Path | None) -> None:
    """Soak and check where nothing but the command's own modules are: a process full of tests grows by itself."""
    code = (
        "import json, os, sys; from pathlib import Path\n"
        "os.fsync = lambda descriptor: None\n"  # waiting for the disk shows nothing
        "from mmseg_cli.prediction.model import load_model\n"
        "from tests.prediction import made, test_soak\n"
        "folder, *run = map(Path, sys.argv[1:])\n"
        "model = load_model(run[0], device='cpu', threads=1) if run else made.model()\n"
        "print(json.dumps(test_soak.soak(model, folder)))\n"
    )
    folder.mkdir()
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, folder, *([run] if run else [])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout.rsplit("\n", 2)[0])
    grown, opened = json.loads(done.stdout.splitlines()[-1])
    quarter = len(opened) // 4
    assert grown <= LIMIT
    assert min(opened[-quarter:]) == min(opened[:quarter])
    assert max(opened) - min(opened) <= 3  # at a sample one file may be read, another written and a folder open


def test_ten_thousand_images_by_numpy(tmp_path):
    in_a_process_of_its_own(tmp_path / "soak", None)


def test_ten_thousand_images_by_a_trained_network(trained, tmp_path):
    in_a_process_of_its_own(tmp_path / "soak", trained / "runs/demo/train/mmbconv-s0")
