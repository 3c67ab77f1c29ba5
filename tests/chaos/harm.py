"""What the chaos tests share: a recipe with everything that has to resume, ways to run it, and ways to look at it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from screens import Screen

from mmseg_cli import paths as places
from mmseg_cli.params import load
from mmseg_cli.training import checkpoint
from mmseg_cli.training.stages import run_stage
from tests.pipeline.tiny import REPOSITORY, TinyProject, tiny_params

STEPS, EVERY, VALIDATE = 40, 5, 15
VARIANT = "mbconv"
RUN = Path(f"runs/demo/train/{VARIANT}-s0")
COMMAND = ("train", "--variant", VARIANT, "--seed", "0")
EVERYTHING = {
    "steps": STEPS,
    "checkpoint_every": EVERY,
    "validate_every": VALIDATE,
    "warmup_steps": 2,
    "batch": 4,
    "norm_batch": 2,
    "crop": [32, 32],
    "optimizer": "adamw",
    "lookahead": {"k": 3, "alpha": 0.5},
    "ema": {"decay": 0.9},
    "precise_bn": 2,
    "stochastic_depth": 0.2,
    "deep_supervision": 0.4,
}


def set_everything(params):
    """Let the train stage run alone, from scratch, with all that keeps a state from step to step."""
    for name in ("pretrain_imagenet", "pretrain_mapillary"):
        params[name]["steps"] = 0
    params["network"].update(width=4, depth=1, levels=3, stem_stride=2)
    params["train"].update(EVERYTHING)
    params["train"]["augment"].update(class_uniform=0.5, blur=0.5, uniform_last=5)
    params["runtime"].update(device="cpu", threads=1)
    params["tracking"]["enabled"] = False


def stage(name="train", *, screen=None):
    """One rung of the current project, in this process."""
    return run_stage(
        name,
        params=load(Path("params.yaml")),
        paths=places.find(preset="demo"),
        variant=VARIANT,
        seed=0,
        screen=screen or Screen(),
        log=lambda metrics, step: None,
    )


class PowerCut(BaseException):
    """Ends a run without any handler of ours."""


def cut_after(step):
    """A run that ends after a step without a word."""

    def cut():
        raise PowerCut

    try:
        stage(screen=Screen(at={step: cut}))
    except PowerCut:
        return
    raise AssertionError("it went on")


def outcome(root=Path()):
    """SHA-256 of the final weights, and the history."""
    run = root / RUN
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(), (run / "history.jsonl").read_text()


def checkpoints(root=Path()):
    """All checkpoint folders of the train stage, oldest first."""
    return sorted((root / ".work" / "demo-train").glob(f"{VARIANT}-s0-*/step-*"))


def last_step(root=Path()):
    """The step of the newest one; 0 where there is none."""
    folders = checkpoints(root)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def unreadable(folders):
    """What is wrong with these checkpoints, each taken alone; the definition is its own."""
    faults = []
    for folder in folders:
        with tempfile.TemporaryDirectory() as place:
            shutil.copytree(folder, Path(place) / folder.name)
            try:
                definition = json.loads((folder / "training.json").read_bytes())["definition"]
            except (OSError, ValueError) as error:
                faults.append(f"{folder}: {error}")
                continue
            step = checkpoint.load_checkpoint(
                Path(place), definition=definition, try_on=lambda saved: None, warn=faults.append
            )
            if step != int(folder.name.removeprefix("step-")):
                faults.append(f"{folder}: not used")
    return faults


def forget(root=Path()):
    """Remove the run, its resumable state, and what DVC knows of it."""
    for path in (root / RUN, root / ".work" / "demo-train", root / ".dvc" / "cache"):
        shutil.rmtree(path, ignore_errors=True)
    (root / "dvc.lock").unlink(missing_ok=True)


def environment(root, **changes):
    """Variables for `mmseg` in a process of its own, which runs the package below `root`."""
    return {**os.environ, "PYTHONPATH": str(root), **changes}


def members(group):
    """Living processes of a process group, and the words of their commands."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state not in "ZX":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
    return found


def wait_until(condition, *, seconds=120, what="it never came"):
    """Look again and again; a time limit only so that a fault ends."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class Start:
    """`mmseg train` or `dvc repro` in a process group of its own, with its output in a file."""

    def __init__(self, root, *, through_dvc=False, failpoint=None, variables=None, **more):
        command = ["dvc", "repro", "-s", f"train@{VARIANT}-0"] if through_dvc else [sys.executable, "-m", "mmseg_cli"]
        if not through_dvc:
            command += COMMAND
        changes = {} if failpoint is None else {"MMSEG_FAILPOINT": failpoint}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.root, self.before = root, last_step(root)
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env={**(variables or environment(REPOSITORY)), **changes},
            stdout=self._file,
            stderr=self._file,
            start_new_session=True,
            **more,
        )

    def trains(self):
        """Whether it has done a step that no checkpoint before it had."""
        for history in (self.root / ".work" / "demo-train").glob(f"{VARIANT}-s0-*/history.jsonl"):
            try:
                last = history.read_text().splitlines()[-1:]
                if last and json.loads(last[0])["step"] > self.before:
                    return True
            except (OSError, ValueError):
                continue
        return False

    def ended(self):
        return self.process.poll() is not None

    def kill(self, whom):
        """SIGKILL for the whole `group`, its `leader`, or the `trainer` alone."""
        trainers = [pid for pid, words in members(self.process.pid).items() if b"train" in words]
        try:
            if whom == "leader":
                self.process.kill()
            elif whom == "trainer" and trainers:
                os.kill(trainers[0], signal.SIGKILL)
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self):
        """The exit code and all output, when the whole group has ended."""
        code = self.process.wait(timeout=300)
        wait_until(lambda: not members(self.process.pid), what="a trainer was left behind")
        self._file.seek(0)
        text = self._file.read().decode()
        self._file.close()
        return code, text


class ChaosProject(TinyProject):
    """The tiny project with the real pipeline, ready for its train stage; and what an uninterrupted run gives."""

    def __init__(self, root):
        super().__init__(root)
        params = tiny_params()
        set_everything(params)
        params["ablate"] = {"variants": [VARIANT], "seeds": [0]}
        self.write_params(params)
        self.run("mmseg", "prepare", "cityscapes", "--preset", "demo")
        for rung in ("imagenet", "mapillary"):
            self.run("mmseg", "pretrain", rung)
        begun = time.monotonic()
        whole = self.start()
        wait_until(lambda: whole.trains() or whole.ended())
        self.seconds_to_start = time.monotonic() - begun
        code, text = whole.wait()
        assert code == 0, text
        self.seconds_to_train = time.monotonic() - begun - self.seconds_to_start
        self.expected = outcome(root)
        forget(root)

    def start(self, *, through_dvc=False, failpoint=None):
        return Start(self.root, through_dvc=through_dvc, failpoint=failpoint, variables=self.environment)
