"""What several commands share: how a preset is loaded and mirrored, and how help and hints are worded."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmseg_cli.errors import INTERRUPTED, MmsegError
from mmseg_cli.names import LARGEST_SEED

if TYPE_CHECKING:
    from pathlib import Path

    from mmseg_cli.params import Params
    from mmseg_cli.paths import Paths
    from mmseg_cli.tracking import Tracker

Preset = Annotated[str, typer.Option(help="The parameters to use: demo (params.yaml) or a folder of pipelines/.")]
VariantOption = Annotated[
    str | None, typer.Option(help="A name of the preset's `variants`; the first of the grid if left out.")
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, max=LARGEST_SEED, help="Initialisation and data order; the first of the grid if left out."),
]


class Commands(TyperGroup):
    """A group whose help has the whole first sentence of every command, where click cuts it to one line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the section of commands."""
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(limit=500)) for name, each in found.items() if each])


def group(**settings: Any) -> typer.Typer:
    """An app or a group of commands, whose help is click's: Rich takes longer to import than all else that help needs.

    Args:
        settings: more of `typer.Typer`.
    """
    return typer.Typer(cls=Commands, rich_markup_mode=None, no_args_is_help=True, **settings)


def example(*lines: str) -> str:
    """The epilog of a command's help: each line as it is to be typed."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


def load(preset: str, *, option: str = "--preset") -> tuple[Paths, Params]:
    """The paths and the parameters of a preset, whose own account of where it lies must be right.

    Args:
        option: what an error calls the preset.
    """
    from mmseg_cli import params, paths

    where = paths.find(preset=preset, option=option)
    loaded = params.load(where.params)
    folder = where.params.parent
    for key, value, right in (
        ("preset", loaded.preset, preset),
        ("root", (folder / loaded.root).resolve(), where.root),
        ("params_file", (where.root / loaded.params_file).resolve(), where.params),
    ):
        if value != right:
            raise MmsegError(where.params, f"{key} leads to {value}", f"make it lead to {right}, which DVC reads")
    return where, loaded


def grid_point(params: Params, variant: str | None, seed: int | None) -> tuple[str, int]:
    """The variant and the seed of a run; the first of the grid where none is given."""
    from mmseg_cli.names import unknown_name

    name = params.ablate.variants[0] if variant is None else variant
    if name not in params.variants:
        raise unknown_name("--variant", name, list(params.variants))
    return name, params.ablate.seeds[0] if seed is None else seed


@contextmanager
def resumable(where: Path, kept: str) -> Iterator[None]:
    """What a signal ends inside the block says what is left; the same command goes on with it.

    Args:
        kept: in words, such as "what was predicted is kept".

    Raises:
        Interrupted: exit code 128 + the signal's number.
    """
    from mmseg_cli.runtime import interrupted

    try:
        yield
    except KeyboardInterrupt:
        raise interrupted(where, signal.SIGINT, kept) from None
    except SystemExit as end:  # of the other signals, see `app.main`
        if isinstance(end.code, int) and end.code > INTERRUPTED:
            raise interrupted(where, end.code - INTERRUPTED, kept) from None
        raise


def dataset_title(params: Params) -> str:
    """The dataset of the evaluation, as its preset calls it."""
    generated = params.datasets[params.evaluate.dataset].source == "synthetic"
    return ("generated " if generated else "") + params.evaluate.dataset


def percent(value: float) -> str:
    """A share as the panels show it."""
    return f"{100 * value:.2f} %"


def with_preset(preset: str, command: str) -> str:
    """A command to run next, for the same preset."""
    return command if preset == "demo" else f"{command} --preset {preset}"


def track(paths: Paths, params: Params, *, run: str, section: dict[str, object]) -> Tracker:
    """The MLflow mirror of one command."""
    from mmseg_cli import tracking
    from mmseg_cli.cli import screen

    return tracking.start(
        enabled=params.tracking.enabled,
        uri=params.tracking.uri,
        root=paths.root,
        experiment=params.tracking.experiment,
        run_name=f"{paths.preset}/{run}",
        parent=f"{paths.preset}/ablation",
        params=section,
        tags={"mmseg.preset": paths.preset, "mmseg.stage": run.split("/")[0]},
        resume_key=f"{paths.root}/{paths.preset}/{run}",
        warn=screen.warn,
    )
