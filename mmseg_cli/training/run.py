"""One run of a rung, from where it was to its last step: resume, train, validate, save, stop when asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from torch import Tensor, nn

from mmseg_cli import runtime
from mmseg_cli.data import loader, sampling
from mmseg_cli.data.store import Store
from mmseg_cli.errors import NumericalStop
from mmseg_cli.files import read_json, write_json
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.params import Runtime, Stage
from mmseg_cli.processes import Processes
from mmseg_cli.provenance import Sessions, about
from mmseg_cli.training import checkpoint, nonfinite, parts
from mmseg_cli.training.averaging import estimate_statistics, evaluated_with, take_over
from mmseg_cli.training.history import HISTORY, History
from mmseg_cli.training.loop import NotFinite, Step, fit
from mmseg_cli.training.state import State

DEFINITION = "definition.json"
LOGGED = 32  # steps of a run whose data are digested, evenly: what two runs saw can be compared
MIRRORED = 5000  # steps of a run that the tracker gets, evenly; the history has all


class Screen(Protocol):
    """What training tells a person; the command line implements it."""

    def begin(self, *, total: int, done: int) -> None:
        """The number of steps in all, and those done before."""

    def step(self, step: Step) -> None:
        """One optimizer step."""

    def note(self, text: str) -> None:
        """A line worth keeping."""

    def warn(self, text: str) -> None:
        """A line to worry about."""


class Log(Protocol):
    """A sink of metrics."""

    def __call__(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Receive the metrics of a step."""


@dataclass(frozen=True)
class Run:
    """One run of a rung: what is trained, with what, where, and who is told. The functions below are its phases."""

    section: Stage
    store: Store
    seed: int
    machine: Runtime
    processes: Processes
    definition: dict[str, Any]
    work: Path
    run: Path
    root: Path
    norm: str
    screen: Screen
    log: Log


@dataclass(frozen=True)
class Ended:
    """A run after its last step; in all processes but the first, figures, history and data are empty.

    Attributes:
        figures: of the last validation.
        history: of all steps, as JSON lines.
        data: digests of what the logged steps saw, by step.
        start: the step that training went on from.
        sessions: where and when it was trained, see `mmseg_cli.provenance`.
        auxiliary: the weights of the auxiliary heads; None where the recipe has none.
    """

    figures: dict[str, float]
    history: str
    data: dict[str, str]
    start: int
    sessions: list[dict[str, Any]]
    auxiliary: dict[str, Tensor] | None


def train(of: Run, network: nn.Module) -> Ended:
    """Train in place from the newest checkpoint in the work folder, or from the start, to the last step."""
    section, processes, machine = of.section, of.processes, of.machine
    state = parts.state(section, network, runtime=machine, processes=processes)
    validate = parts.validator(
        section, of.store, processes=processes, workers=machine.workers, batch=machine.validation_batch
    )
    split, classes = of.store.split("train"), len(of.store.space.classes)
    crops = parts.crops(section, split, classes=classes, seed=of.seed, processes=processes)
    class_pixels = of.store.manifest["splits"]["train"].get("class_pixels", [])  # of a segmentation
    micro = sampling.at_once(
        batch=section.batch,
        norm_batch=section.norm_batch,
        norm=of.norm,
        chosen=machine.micro_batch,
        world=processes.world,
    )
    with runtime.StopRequest().listening() as stop:
        start = _resume(of, state)
        history = History(of.work / HISTORY, up_to=start) if processes.first else None
        sessions = _sessions(of, start=start) if processes.first else None
        _say_where(of, start=start, micro=micro, history=history)

        mirrored = -(-section.steps // MIRRORED)
        saved = start

        def save(step: int) -> None:
            nonlocal saved
            if history is not None and sessions is not None and saved != step:
                history.secure()
                checkpoint.save_checkpoint(
                    of.work,
                    step=step,
                    definition=of.definition,
                    network=state.network.state_dict(),
                    training=state.training(),
                    world=processes.world,
                    best_step=history.best_step(),
                )
                sessions.reached(step)
            saved = step

        def validate_at(step: int) -> None:
            averaged = state.averaged()
            statistics = _statistics_batches(of) if section.precise_bn else None
            judged = evaluated_with(state.network, averaged, statistics, seed=of.seed) if averaged else nullcontext()
            with judged, runtime.algorithms_untried():
                figures = validate(network, lambda: stop.signal_number is not None)
            if figures is not None and history is not None:
                history.add(figures, step=step)
                of.log(figures, step=step)
                of.screen.note(f"step {step}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()))

        asked = 0  # the signal that any process got

        def is_asked() -> bool:
            nonlocal asked
            asked = processes.largest(stop.signal_number or 0)
            return bool(asked)

        def stop_now(step: int) -> NoReturn:
            save(step)
            processes.meet()  # a launcher kills whoever goes on for long after the others ended
            raise runtime.interrupted(of.run, asked, f"saved after step {step} of {section.steps}")

        def on_step(step: Step) -> None:
            if history is not None:
                of.screen.step(step)
                row = {"loss": step.loss, "learning_rate": step.learning_rate, "gradient_norm": step.gradient_norm}
                history.add(row, step=step.number, data=step.data)
                if step.number % mirrored == 0 or step.number == section.steps:
                    speed = {"images_per_second": step.images / step.seconds, "data_wait": step.waited / step.seconds}
                    of.log(row | speed, step=step.number)

        def validated(step: int) -> bool:
            return step % section.validate_every == 0 or step == section.steps

        def pauses(step: int) -> bool:
            return is_asked() or validated(step) or step % section.checkpoint_every == 0

        def on_pause(step: int) -> None:
            if asked and not validated(step):
                stop_now(step)
            save(step)  # before a validation, which may take long: what is cut short is validated again
            if validated(step):
                validate_at(step)
                if is_asked():
                    stop_now(step)

        due = start > 0 and validated(start)
        if processes.from_first(due and (history is None or history.figures(start) is None)):
            validate_at(start)  # it was cut short
            if is_asked():
                stop_now(start)
        try:
            fit(
                state,
                loader.steps_loader(
                    crops,
                    start=start,
                    stop=section.steps,
                    workers=machine.workers,
                    pinned=processes.device.type == "cuda",
                ),
                model=parts.callable_model(
                    section, state.network, runtime=machine, processes=processes, micro_batch=micro
                ),
                processes=processes,
                objective=parts.objective(section, class_pixels=class_pixels, device=processes.device),
                learning_rate=parts.learning_rate(section),
                start=start,
                micro_batch=micro,
                precision=section.precision,
                channels_last=machine.channels_last,
                clip_norm=section.clip_norm,
                seed=of.seed,
                log_data=partial(_logged, every=-(-section.steps // LOGGED)),
                on_step=on_step,
                pauses=pauses,
                on_pause=on_pause,
            )
        except NotFinite as error:
            raise _numerical_stop(of, state, error, items=crops.items(error.step - 1)) from error
        finally:
            if history is not None:
                history.close()
    averaged = state.averaged()
    if averaged is not None:
        take_over(state.network, averaged)
        if section.precise_bn:
            estimate_statistics(state.network, _statistics_batches(of), seed=of.seed)
    heads = state.network.auxiliary.state_dict() if isinstance(state.network, DeepSupervision) else None
    if history is None or sessions is None:
        return Ended({}, "", {}, start, [], heads)
    figures = history.figures(section.steps) or {}
    return Ended(figures, history.text(), history.data(), start, sessions.done(), heads)


def _logged(step: int, *, every: int) -> bool:
    """Whether the data of a step are digested: the first, and every so many after it."""
    return (step - 1) % every == 0


def _resume(of: Run, state: State) -> int:
    """Take over the newest checkpoint that fits, in all processes, and return its step."""
    found: list[checkpoint.Saved] = []

    def try_on(saved: checkpoint.Saved) -> None:
        state.take_over(saved)
        found.append(saved)

    if of.processes.first:
        checkpoint.remove_leftovers(of.work)
        checkpoint.load_checkpoint(of.work, definition=of.definition, try_on=try_on, warn=of.screen.warn)
        if found and found[0].world != of.processes.world:
            before, now = found[0].world, of.processes.world
            drawn = ", and what stochastic depth draws" if of.section.stochastic_depth else ""
            of.screen.note(f"{now} processes go on with what {before} began: last bits may differ{drawn}")
    saved = of.processes.from_first(found[0] if found else None)
    if saved is not None and not of.processes.first:
        state.take_over(saved)
    return 0 if saved is None else saved.step


def _sessions(of: Run, *, start: int) -> Sessions:
    device, world = str(of.processes.device), of.processes.world
    return Sessions(of.work, start=start, about=about(of.root, device=device, processes=world))


def _say_where(of: Run, *, start: int, micro: int, history: History | None) -> None:
    """Tell the person what begins, or goes on."""
    if history is None:
        return
    section, screen = of.section, of.screen
    if start:
        screen.note(f"going on after step {start} of {section.steps}")
        if missing := history.missing(start):
            what = f"{missing} of the first {start} steps have no row; the weights are complete"
            screen.warn(f"{of.work / HISTORY}: {what}")
    else:
        for line in _others(of.work, of.definition):
            screen.note(line)
        write_json(of.work / DEFINITION, of.definition)
    turns = section.batch // of.processes.world // micro
    if of.processes.world > 1 or turns > 1:
        screen.note(
            f"a batch of {section.batch} is {of.processes.world} x {turns} x {micro}"
            f" (processes x parts one after the other x samples at once); norm_batch {section.norm_batch}"
        )
    screen.begin(total=section.steps, done=start)


def _statistics_batches(of: Run) -> Iterator[Tensor]:
    return parts.statistics_batches(
        of.section,
        of.store,
        seed=of.seed,
        processes=of.processes,
        workers=of.machine.workers,
        channels_last=of.machine.channels_last,
    )


def _numerical_stop(of: Run, state: State, error: NotFinite, *, items: list[int]) -> NumericalStop:
    """Write down what is needed to see it again, and give the error that says where."""
    ranks = of.processes.gather(error.here)
    at_fault = ranks[of.processes.rank] if any(ranks) else of.processes.first
    folder = of.work / f"not-finite-step-{error.step:09d}-rank{of.processes.rank}"
    names = [of.store.split("train").name(item) for item in items]
    if at_fault:
        nonfinite.write(folder, state=state, error=error, names=names, definition=of.definition)
    folders = [found for found in of.processes.gather((str(folder), names) if at_fault else None) if found is not None]
    folder_of_first, names = folders[0]
    seen = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return NumericalStop(
        folder_of_first,
        f"{error.what} at step {error.step} ({seen})",
        "lower the learning rate or set clip_norm; the folder holds the batch and the weights before it",
    )


def _others(work: Path, definition: dict[str, Any]) -> Iterator[str]:
    """What unfinished work of the same run there is under another definition, a line each."""
    run = work.name.rsplit("-", 1)[0]
    for folder in sorted(work.parent.glob(f"{run}-*")):
        last = checkpoint.last_step(folder)
        if folder == work or last is None or not (folder / DEFINITION).is_file():
            continue
        other = read_json(folder / DEFINITION, todo="remove that folder")
        if isinstance(other, dict):
            differ = ", ".join(checkpoint.differing(definition, other))
            yield f"{folder.name} holds {last} steps of a run with other {differ}: not used"
