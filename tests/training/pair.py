"""One of several processes that train together, for tests: `python pair.py SCENARIOS.json`, with torchrun's variables.

Importing torch takes longer than all else here, so one process goes through many scenarios, each a dict:
    out: where the first process puts the run's folder.
    cut: the step after which a signal comes; training then goes on at once.
    fresh: whether to begin with no resumable state and no run.
    runtime, stage: parameters that differ, of `runtime` and of the train stage.
    validate: instead of training, validate a fixed network on `[images, batch]` each; `out` is a file of the matrices.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import torch

from mmseg_cli import paths as places
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import Interrupted
from mmseg_cli.params import load
from mmseg_cli.processes import joined
from mmseg_cli.training import parts
from mmseg_cli.training.stages import run_stage

RUN = Path("runs/demo/train/mmbconv-s0")


class Screen:
    def __init__(self, cut: int | None) -> None:
        self.cut = cut

    def begin(self, *, total: int, done: int) -> None:
        pass

    def step(self, step) -> None:
        if step.number == self.cut:
            os.kill(os.getpid(), signal.SIGTERM)

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        raise AssertionError(text)


def train(scenario: dict, *, cut: int | None) -> None:
    params = load(Path("params.yaml"))
    params = params.model_copy(
        update={
            "runtime": params.runtime.model_copy(update=scenario.get("runtime", {})),
            "train": type(params.train).model_validate(params.train.model_dump() | scenario.get("stage", {})),
        }
    )
    run_stage(
        "train",
        params=params,
        paths=places.find(preset="demo"),
        variant="mmbconv",
        seed=0,
        screen=Screen(cut),
        log=lambda metrics, step: None,
    )


def matrices(cases: list[list[int]], processes) -> list[list[list[int]]]:
    """The confusion matrices of a fixed network, by the validation of training, for sets of any number of images."""
    store = open_store(Path("data/demo/cityscapes"))
    kind = type(store.split("val"))
    real = {name: getattr(kind, name) for name in ("size", "label_size", "image", "label")}
    seen: list[list[list[int]]] = []
    parts.metrics.require_pixels = lambda matrix, where: seen.append(matrix.tolist())
    section = load(Path("params.yaml")).train
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 19, 3, padding=1)
    for name, method in real.items():
        setattr(kind, name, lambda self, item, *a, method=method: method(self, item % 3, *a))
    for count, batch in cases:
        kind.__len__ = lambda self, count=count: count
        validate = parts.validator(section, store, processes=processes, workers=0, batch=batch)
        assert validate(network, lambda: False) is not None
    return seen


def main() -> None:
    warnings.simplefilter("error", UserWarning)
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    for number, scenario in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        os.environ["MASTER_PORT"] = str(port + 2 * number)
        if "validate" in scenario:
            with joined("cpu") as processes:
                found = matrices(scenario["validate"], processes)
            if rank == 0:
                Path(scenario["out"]).write_text(json.dumps(found))
            continue
        if rank == 0 and scenario.get("fresh", True):
            for old in (*Path("runs/demo/train").glob("*"), *Path(".work/demo-train").glob("*")):
                shutil.rmtree(old, ignore_errors=True)  # not the folders: the other process may begin already
        cut = scenario.get("cut")
        if cut is not None:
            try:
                train(scenario, cut=cut)
            except Interrupted as error:
                assert error.exit_code == 128 + signal.SIGTERM
            else:
                raise AssertionError("no signal came")
            os.environ["MASTER_PORT"] = str(port + 2 * number + 1)
        train(scenario, cut=None)
        if rank == 0:
            shutil.copytree(RUN, scenario["out"])


if __name__ == "__main__":
    main()
