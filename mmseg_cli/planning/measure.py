"""Real training steps on the device at hand: their time and their peak memory, and what follows for larger ones.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from mmseg_cli import energy, runtime
from mmseg_cli.errors import MmsegError, ResourceError, ran_out
from mmseg_cli.models import cost, lean
from mmseg_cli.models.unet import build_network
from mmseg_cli.params import ClassificationStage, Runtime
from mmseg_cli.planning.choose import Case, Need
from mmseg_cli.planning.counts import Counts
from mmseg_cli.processes import Processes
from mmseg_cli.training import parts
from mmseg_cli.training.loop import NotFinite, Step, fit

Size = tuple[int, int]
# Of the free memory, what a measurement may take by its counts: it is not alone on the machine, but often on a GPU, and
# finds out there what does not fit.
SHARE = {"cpu": 0.5, "cuda": 0.9}
PEAK = 1.5  # counted activations times this: a step's peak, to be on the safe side before it is measured
FIRST_RATE = 5e9  # multiply-accumulates a second that any device is believed to do before one was measured
LONGEST = 0.5  # seconds after which quick steps are repeated no more
MOST_STEPS = 12
NOISE = 2.0  # memory grows with the samples by at most this many times what autograd keeps
FAR = 100  # times the work: what does not grow with it then weighs so much that a time is too long by far
ROUGHLY = "roughly scaled"
RATE = 0.0  # learning rate: nothing is to be learned from noise, and a gradient on it may be huge


@dataclass(frozen=True)
class Sample:
    """One measurement.

    Attributes:
        seconds: of a step, the median.
        backward: peak bytes up to the end of the backward pass.
        peak: peak bytes, the update included.
        watts: of the device, where it tells.
    """

    seconds: float
    backward: float
    peak: float
    watts: float | None


@dataclass(frozen=True)
class Job:
    """A step to be measured: what another process has to be told; `alone` as in Counts."""

    case: Case
    size: Size
    micro: int
    recompute: bool
    alone: bool
    runtime: Runtime
    device: str


def smaller(size: Size) -> list[Size]:
    """`size` and its halves down to 32 pixels, largest first; sides of the halves are multiples of 32."""
    sizes = [size]
    while max(sizes[-1]) > 32:
        height, width = (max(32, -(-side // 64) * 32) for side in sizes[-1])
        if (height, width) == sizes[-1]:
            break
        sizes.append((height, width))
    return sizes


def fewest(case: Case, size: Size) -> int:
    """Samples that a step must have: batch norm needs two where the coarsest level is a single pixel."""
    stride = case.network["stem_stride"] * 2 ** (case.network["levels"] - 1)
    single = max(size) <= stride
    return 2 if single and case.bound else 1


@dataclass(frozen=True)
class Point:
    """A step that was measured."""

    size: Size
    micro: int
    sample: Sample


class Measurer:
    """Measures what is asked for; what is too large for the time or the memory is scaled from the largest that is not.

    Use as a context manager: on the CPU the steps run in a process of their own, whose memory is nobody else's.

    Args:
        counts: of every case.
        runtime: the preset's section.
        device: where to measure.
        room: bytes that are free there.
        seconds: for all steps of one case, about.
        advance: called with a case's name whenever it is measured.
    """

    def __init__(
        self,
        counts: dict[tuple[str, str], Counts],
        *,
        runtime: Runtime,
        device: torch.device,
        room: float,
        seconds: float,
        advance: Callable[[str], None],
    ) -> None:
        self._counts, self._runtime, self._device = counts, runtime, device
        self._room, self._seconds, self._advance = room, seconds, advance
        self._pool: ProcessPoolExecutor | None = None
        self._points: dict[tuple[str, str, bool], list[Point]] = {}
        self._failed: set[tuple[str, str, bool, Size, int]] = set()

    def __enter__(self) -> Measurer:
        if self._device.type == "cpu":
            # One process for all steps where its peak can be started again, else one for each.
            context = multiprocessing.get_context("spawn")
            each = None if sys.platform == "linux" else 1
            self._pool = ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=each)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def need(self, case: Case, recompute: bool, micro: int) -> Need:
        """What a step of `micro` samples takes.

        Raises:
            ResourceError: not even the smallest step can be run.
        """
        crop = (case.section.crop[0], case.section.crop[1])
        points = self._points.setdefault((case.stage, case.variant, recompute), [])
        self._climb(case, crop, micro, recompute, points)
        for point in points:
            if (point.size, point.micro) == (crop, micro):
                sample = point.sample
                return Need(sample.peak, sample.seconds, sample.watts, "measured")
        scaled = self._scaled(case, crop, micro, recompute, points)
        if (case.stage, case.variant, recompute, crop, micro) in self._failed:
            return Need(max(scaled.bytes, self._room + 1), scaled.seconds, scaled.watts, scaled.how)
        return scaled

    def _climb(self, case: Case, crop: Size, micro: int, recompute: bool, points: list[Point]) -> None:
        """Measure larger and larger steps, up to the one asked for or the largest that is possible."""
        ladder = [(size, fewest(case, size)) for size in reversed(smaller(crop))]
        while ladder[-1][1] * 2 < micro:
            ladder.append((crop, ladder[-1][1] * 2))
        if micro >= fewest(case, crop):
            ladder = [rung for rung in ladder if rung[0] != crop or rung[1] < micro] + [(crop, micro)]
        done = [ladder.index((point.size, point.micro)) for point in points if (point.size, point.micro) in ladder]
        at = max(done, default=-1)
        while at < len(ladder) - 1:
            last = points[-1] if points else None
            above = [
                index
                for index in range(at + 1, len(ladder))
                if self._possible(case, *ladder[index], recompute, last=last)
            ]
            if not above and points:
                break
            at = max(above, default=0)
            if not self._add(case, *ladder[at], recompute, points):
                break
        if not points:
            what = f"not even a step of {ladder[0][1]} x {ladder[0][0][0]} x {ladder[0][0][1]} can be measured"
            raise ResourceError(f"{case.stage} ({case.variant})", what, "end other programs, or use --gpus")
        if len(points) == 1 and at > 0 and ladder[at] != (crop, micro):
            self._add(case, *ladder[at - 1], recompute, points)  # what grows is told from what does not by two

    def _add(self, case: Case, size: Size, micro: int, recompute: bool, points: list[Point]) -> bool:
        """Measure one step, and keep `points` in the order of their size; False where the memory does not suffice."""
        sample = self._run(case, size, micro, recompute)
        if sample is None:
            self._failed.add((case.stage, case.variant, recompute, size, micro))
            return False
        points.append(Point(size, micro, sample))
        points.sort(key=lambda point: self._work(case, point.size, point.micro, recompute))
        return True

    def _work(self, case: Case, size: Size, micro: int, recompute: bool) -> float:
        """Multiply-accumulates of a step, about: by the area."""
        counts, crop = self._counts[case.stage, case.variant], (case.section.crop[0], case.section.crop[1])
        return micro * counts.work(crop, recompute=recompute) * size[0] * size[1] / (crop[0] * crop[1])

    def _possible(self, case: Case, size: Size, micro: int, recompute: bool, *, last: Point | None) -> bool:
        """Whether two steps are believed to end in a third of the time, and in the free memory."""
        counts, crop = self._counts[case.stage, case.variant], (case.section.crop[0], case.section.crop[1])
        kept = micro * counts.kept(crop, recompute=recompute) * size[0] * size[1] / (crop[0] * crop[1])
        if counts.state_bytes + PEAK * counts.precision_share * kept > SHARE[self._device.type] * self._room:
            return False
        work = self._work(case, size, micro, recompute)
        seconds = work / FIRST_RATE
        if last is not None:  # what it took stays, and more work is done at its speed: small steps are slow
            before = self._work(case, last.size, last.micro, recompute)
            seconds = last.sample.seconds + (work - before) / max(FIRST_RATE, before / last.sample.seconds)
        return 2 * seconds <= self._seconds / 3

    def _scaled(self, case: Case, crop: Size, micro: int, recompute: bool, points: list[Point]) -> Need:
        """From the largest step that was measured, and how it differs from the one before."""
        counts = self._counts[case.stage, case.variant]
        large = points[-1]
        kept = large.micro * counts.kept(large.size, recompute=recompute)
        work = large.micro * counts.macs(large.size)
        # Of memory and time a part does not grow. Both slopes are held within what is certain, because the difference
        # of two small steps is noise: memory grows by what autograd keeps or more, time no faster than the work.
        share = counts.precision_share
        held = large.micro * counts.held(large.size, recompute=recompute)
        bytes_slope, seconds_slope = share * held / kept, large.sample.seconds / work
        if len(points) > 1:
            small = points[-2]
            fewer = small.micro * counts.kept(small.size, recompute=recompute)
            less = small.micro * counts.macs(small.size)
            if kept > fewer:
                bytes_slope = (large.sample.backward - small.sample.backward) / (kept - fewer)
            if work > less:
                seconds_slope = (large.sample.seconds - small.sample.seconds) / (work - less)
        bytes_slope = min(max(bytes_slope, share), NOISE * share)
        seconds_slope = min(max(seconds_slope, large.sample.seconds / work / 10), large.sample.seconds / work)
        grown, more = micro * counts.kept(crop, recompute=recompute), micro * counts.macs(crop)
        return Need(
            bytes=max(
                large.sample.backward + bytes_slope * (grown - kept),
                counts.parameter_bytes * (1 + counts.copies) + bytes_slope * grown,
            ),
            seconds=large.sample.seconds + seconds_slope * (more - work),
            watts=large.sample.watts,
            how=f"{'scaled' if more < FAR * work else ROUGHLY} from {large.micro}x{large.size[0]}x{large.size[1]}",
        )

    def _run(self, case: Case, size: Size, micro: int, recompute: bool) -> Sample | None:
        """One measurement; None where the memory does not suffice."""
        self._advance(f"{case.stage} {case.variant}")
        alone = self._counts[case.stage, case.variant].alone
        job = Job(case, size, micro, recompute, alone, self._runtime, str(self._device))
        try:
            if self._pool is None:
                return measure(job)
            return self._pool.submit(measure, job).result()
        except BrokenProcessPool as error:
            what = "the measuring process was ended, as a machine out of memory does"
            raise ResourceError(f"{case.stage} ({case.variant})", what, "end other programs, or use --gpus") from error
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return None


def measure(job: Job) -> Sample:
    """Run steps of the real training loop on noise, and look at the clock and the memory.

    Two steps at least, the first of which does not count; quick ones are repeated. Each is waited for, which is what
    training of a step so short that it is given sooner than it is computed comes to. What was in use before is
    subtracted.
    """
    section = job.case.section
    device = torch.device(job.device)
    runtime.prepare_training(threads=job.runtime.threads, deterministic=job.runtime.deterministic)
    before = _begin(device)
    task = cast(Literal["segmentation", "classification"], job.case.task)
    torch.manual_seed(0)
    network = build_network(task=task, num_classes=job.case.classes, **job.case.network)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
            module.eps = 1.0  # a few values on one pixel hardly vary: their gradient must not grow from level to level
    here = Processes(device=device)
    chosen = job.runtime.model_copy(update={"recompute": job.recompute, "compile": False})
    state = parts.state(section, network, runtime=chosen, processes=here)
    seconds: list[float] = []
    watts: list[float] = []
    backward = 0.0

    def note_backward(*_: Any) -> None:
        nonlocal backward
        backward = max(backward, cost.peak_bytes(device) - before)

    state.optimizer.register_step_pre_hook(note_backward)
    meter = energy.meter(device)
    joules = 0.0 if meter is None else meter()

    def note_step(step: Step) -> None:
        nonlocal joules, backward
        before, joules = joules, 0.0 if meter is None else meter()
        if step.number == 1 and device.type == "cuda":  # in which cuDNN tried its algorithms
            backward = 0.0
            cost.restart_peak(device)
        if step.number > 1:
            seconds.append(step.seconds)
            if meter is not None:
                watts.append((joules - before) / step.seconds)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        batch = _noise(job)
        while not seconds or (sum(seconds) < LONGEST and len(seconds) < MOST_STEPS):
            yield batch

    try:
        with lean.plain_path(on=not job.alone):
            fit(
                state,
                batches(),
                model=parts.callable_model(
                    section.model_copy(update={"crop": list(job.size)}),
                    state.network,
                    runtime=chosen,
                    processes=here,
                    micro_batch=job.micro,
                )
                if job.alone
                else state.network,
                processes=here,
                objective=parts.objective(section, class_pixels=[1] * job.case.classes, device=device),
                learning_rate=lambda _step: RATE,
                start=0,
                micro_batch=job.micro,
                precision=section.precision,
                channels_last=job.runtime.channels_last,
                clip_norm=section.clip_norm,
                seed=0,
                log_data=lambda _step: False,
                on_step=note_step,
                pauses=lambda _step: True,
            )
    except NotFinite as error:
        where = f"{job.case.stage} ({job.case.variant})"
        raise MmsegError(where, f"on noise {error}", "compare its parameters with another preset's") from None
    peak = max(cost.peak_bytes(device) - before, backward)
    return Sample(statistics.median(seconds), backward, peak, statistics.mean(watts) if watts else None)


def _noise(job: Job) -> tuple[Tensor, Tensor]:
    """A batch as the loader gives it: image_BCHW uint8 and its target."""
    section = job.case.section
    drawn = torch.Generator().manual_seed(0)
    image_BCHW = torch.randint(0, 256, (job.micro, 3, *job.size), dtype=torch.uint8, generator=drawn)
    if not isinstance(section, ClassificationStage):
        label_BHW = torch.randint(0, job.case.classes, (job.micro, *job.size), generator=drawn)
        return image_BCHW, label_BHW.to(torch.uint8)
    target_B = torch.randint(0, job.case.classes, (job.micro,), generator=drawn)
    if section.augment.mixup or section.augment.cutmix:
        return image_BCHW, torch.nn.functional.one_hot(target_B, job.case.classes).float()
    return image_BCHW, target_B


def _begin(device: torch.device) -> float:
    """Forget what went before, and give the bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        return cost.restart_peak(device)
    _load_libraries()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others give memory back by themselves
        if trim is not None:
            trim(0)
    return cost.restart_peak(device)


_loaded = False


def _load_libraries() -> None:
    """Take the first step of a process: it loads what belongs to no network."""
    global _loaded
    if _loaded:
        return
    convolution = torch.nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.AdamW(convolution.parameters())
    for _ in range(2):
        torch.autograd.backward(convolution(torch.rand(2, 3, 16, 16)).square().mean())
        optimizer.step()
    _loaded = True
