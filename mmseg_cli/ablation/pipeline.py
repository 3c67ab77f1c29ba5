"""`mmseg ablate`: write the wanted grid into the preset's parameters and let DVC run what is missing."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.ablation.axes import Entry, entry_of
from mmseg_cli.errors import INTERRUPTED, Interrupted, MmsegError
from mmseg_cli.files import write_text
from mmseg_cli.params import Params, load
from mmseg_cli.paths import Paths

LAST_SIGNAL = 64  # DVC has codes of its own above: 253 outside a repository, 255 for a failed stage


@dataclass(frozen=True)
class GridChange:
    """A changed grid: the lines that say what changed, and the new text of params.yaml."""

    lines: list[str]
    text: str


def plan_grid(
    paths: Paths, params: Params, *, entries: dict[str, Entry] | None, seeds: list[int] | None
) -> GridChange | None:
    """What params.yaml must become for the wanted grid; None where it already is so.

    A row that has no entry in `variants` gets one, and an entry that differs, such as a width that was solved for
    anew, is replaced. Comments and layout of the file are kept.

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
    changed = {
        name: entry
        for name, entry in (entries or {}).items()
        if name not in params.variants or entry_of(params, name) != entry
    }
    if not changed and variants == params.ablate.variants and seeds == params.ablate.seeds:
        return None
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes = True
    yaml.width = 1000
    content = yaml.load(paths.params.read_text(encoding="utf-8"))
    lines = []
    for name, entry in changed.items():
        row = content["variants"].get(name)
        if row is None or row.merge or row.anchor.value is not None:  # others may share what is anchored
            row = content["variants"][name] = CommentedMap()
            row.fa.set_flow_style()
        for key in [key for key in row if key not in entry]:
            del row[key]
        row.update(entry)
        before = f"{_told(entry_of(params, name))} ->" if name in params.variants else "new,"
        lines.append(f"variants.{name}: {before} {_told(entry)}")
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


def _told(entry: Entry) -> str:
    return ", ".join(f"{key} {value}" for key, value in entry.items())


def _listed(values: list[str] | list[int]) -> str:
    return f"[{', '.join(map(str, values))}]"


def checked_grid(change: GridChange) -> Params:
    """The changed parameters, which nothing has been written of.

    Raises:
        MmsegError: they make no sense; it speaks of the grid, as the file does not hold the fault.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        write_text(file, change.text)
        try:
            return load(file)
        except MmsegError as error:
            what = error.what.replace("Extra inputs are not permitted", "unknown key")
            raise MmsegError("the grid", what, "correct it") from None


def write_grid(paths: Paths, change: GridChange) -> Params:
    """Write the changed parameters, if they make sense, and return them.

    Raises:
        MmsegError: as `checked_grid`, or the file cannot be written.
    """
    params = checked_grid(change)
    write_text(paths.params, change.text)
    return params


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
    if INTERRUPTED < code <= INTERRUPTED + LAST_SIGNAL:
        raise Interrupted(pipeline, code - INTERRUPTED, "dvc was interrupted")
    if code:
        raise MmsegError(pipeline, f"dvc repro ended with exit code {code}", "see the lines above, then run this again")
