"""Every path of a project, once. A project is the folder that holds `params.yaml`, `dvc.yaml` and `pipelines/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.errors import MmsegError

DEMO = "demo"


@dataclass(frozen=True)
class Paths:
    """Where one preset's files lie below the project folder `root`."""

    root: Path
    preset: str

    @property
    def params(self) -> Path:
        """The preset's parameters: `params.yaml` for the demo, else `pipelines/<preset>/params.yaml`."""
        return self.pipeline.with_name("params.yaml")

    @property
    def pipeline(self) -> Path:
        """The preset's `dvc.yaml`."""
        folder = self.root if self.preset == DEMO else self.root / "pipelines" / self.preset
        return folder / "dvc.yaml"

    def store(self, dataset: str) -> Path:
        """The prepared data of one dataset."""
        return self.root / "data" / self.preset / dataset

    def raw(self, dataset: str, key: str) -> Path:
        """The generated raw tree of one dataset, in its official layout."""
        return self.root / ".work" / "synthetic" / f"{dataset}-{key}"

    def work(self, stage: str, run: str, key: str) -> Path:
        """Resumable state of one run of a stage; outside DVC's outs, which DVC deletes when a stage starts."""
        return self.root / ".work" / f"{self.preset}-{stage}" / f"{run}-{key}"

    def lock(self, stage: str, run: str) -> Path:
        """The lock of one run of a stage: one process at a time, whatever the parameters."""
        return self.root / ".work" / f"{self.preset}-{stage}" / f"{run}.lock"

    def run(self, stage: str, run: str) -> Path:
        """What a stage leaves of one run: weights, history and record, or pictures."""
        return self.root / "runs" / self.preset / stage / run

    @property
    def reports(self) -> Path:
        """Generated tables and charts, committed."""
        return self.root / "reports" / self.preset

    @property
    def evidence(self) -> Path:
        """The numbers that the tables are computed from, committed."""
        return self.reports / "evidence"


def run_name(variant: str, seed: int) -> str:
    """The name of one run of the grid, as in `mmbconv-s0`."""
    return f"{variant}-s{seed}"


def find(*, preset: str, root: Path | None = None, option: str = "--preset") -> Paths:
    """The paths of `preset` in the project folder, which is `root` or the current folder.

    Args:
        option: what an error calls the preset.

    Raises:
        MmsegError: this is no project folder, or it has no such preset.
    """
    root = (root or Path.cwd()).resolve()
    if not (root / "params.yaml").is_file():
        raise MmsegError(root, "no params.yaml here", "run mmseg in the project's folder (the clone)")
    if not preset or "/" in preset or preset.startswith("."):
        raise MmsegError(option, f"{preset!r} is not a name", "give the name of a folder in pipelines/, or demo")
    paths = Paths(root=root, preset=preset)
    if not paths.params.is_file():
        known = [DEMO, *sorted(file.parent.name for file in root.glob("pipelines/*/params.yaml"))]
        raise MmsegError(option, f"there is no {preset!r}", f"choose from {', '.join(known)}")
    return paths
