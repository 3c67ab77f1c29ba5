"""`mmseg ablate`: write the wanted grid into the preset's parameters and let DVC run what is missing."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.ablation.axes import Entry
from mmseg_cli.errors import INTERRUPTED, Interrupted, MmsegError
from mmseg_cli.files import write_text
from mmseg_cli.params import Params, load
from mmseg_cli.paths import Paths


@dataclass(frozen=True)
class GridChange:
    """A changed grid: the lines that say what changed, and the new text of params.yaml."""

    lines: list[str]
    text: str


def plan_grid(
    paths: Paths, params: Params, *, entries: dict[str, Entry] | None, seeds: list[int] | None
) -> GridChange | None:
    """What params.yaml must become for the wanted grid; None where it already is so.

    A row that has no entry in `variants` gets one. Comments and layout of the file are kept.

    Args:
        entries: the rows, by name, in order; see `axes.rows`. None leaves them as they are.
        seeds: None leaves them as they are.

    Raises:
        MmsegError: a seed twice.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Writes null as it stands in the presets, not as nothing."""

    Representer.add_representer(type(None), lambda own, _: own.represent_scalar("tag:yaml.org,2002:null", "null"))
    variants = list(entries) if entries is not None else params.ablate.variants
    seeds = seeds if seeds is not None else params.ablate.seeds
    if len(set(seeds)) < len(seeds):
        raise MmsegError("--seeds", "holds the same one twice", "name each once")
    if variants == params.ablate.variants and seeds == params.ablate.seeds:
        return None
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes = True
    yaml.width = 1000
    content = yaml.load(paths.params.read_text(encoding="utf-8"))
    lines = []
    for name, entry in (entries or {}).items():
        if name not in params.variants:
            row = CommentedMap(entry)
            row.fa.set_flow_style()
            content["variants"][name] = row
            lines.append(f"variants.{name}: new, {', '.join(f'{key} {value}' for key, value in entry.items())}")
    for key, old, new in (
        ("variants", params.ablate.variants, variants),
        ("seeds", params.ablate.seeds, seeds),
    ):
        if old != new:
            lines.append(f"ablate.{key}: {_listed(old)} -> {_listed(new)}")
            content["ablate"][key][:] = new
    buffer = io.StringIO()
    yaml.dump(content, buffer)
    return GridChange(lines=lines, text=buffer.getvalue())


def _listed(values: list[str] | list[int]) -> str:
    return f"[{', '.join(map(str, values))}]"


def write_grid(paths: Paths, change: GridChange) -> Params:
    """Write the changed parameters, after checking that they can be read back, and return them."""
    before = paths.params.read_text(encoding="utf-8")
    write_text(paths.params, change.text)
    try:
        return load(paths.params)
    except MmsegError:
        write_text(paths.params, before)
        raise


def _program(name: str) -> str:
    """A program beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise MmsegError(name, "is not installed", f"run `pip install {name}`")
    return found


def repro(paths: Paths) -> None:
    """Run `dvc repro` on the preset's pipeline; its output goes to the screen.

    Raises:
        MmsegError: called inside a DVC stage, DVC is missing, or a stage failed.
        Interrupted: Ctrl-C.
    """
    if "DVC_STAGE" in os.environ:
        raise MmsegError("mmseg ablate", "called inside a DVC stage", "use `mmseg ablate --no-run` there")
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}
    pipeline = paths.pipeline.relative_to(paths.root)
    with subprocess.Popen([_program("dvc"), "repro", str(pipeline)], cwd=paths.root, env=environment) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # DVC and its stage got it as well; let them save and end
            process.wait()
            raise Interrupted(pipeline, signal.SIGINT, "stopped by SIGINT") from None
        except SystemExit:  # SIGTERM came to us alone; where the kernel can, DVC's end ends its stage, which saves
            process.terminate()
            raise
    if code < 0:
        raise Interrupted(pipeline, -code, f"dvc was ended by signal {-code}")
    if code >= INTERRUPTED + 1 and code != 255:
        raise Interrupted(pipeline, code - INTERRUPTED, "dvc was interrupted")
    if code:
        raise MmsegError(pipeline, f"dvc repro ended with exit code {code}", "see the lines above, then run this again")
