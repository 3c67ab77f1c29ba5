"""`mmseg ablate`: write the wanted grid into the preset's parameters, from which DVC sees what is missing."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmseg_cli.ablation.axes import Entry, entry_of
from mmseg_cli.errors import MmsegError
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
