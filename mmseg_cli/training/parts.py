"""The parts of a rung as its parameters name them: crops, loss, validation, optimizer. The border where parameters
become explicit arguments; no module below sees a parameters object."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_cli.data import loader
from mmseg_cli.data.store import Split, Store
from mmseg_cli.evaluation import inference, metrics
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.norms import synchronise
from mmseg_cli.models.unet import (
    SegmentationNetwork,
    compile_blocks,
    recompute_blocks,
    set_stochastic_depth,
    training_callable,
)
from mmseg_cli.params import ClassificationStage, Runtime, SegmentationStage, Stage
from mmseg_cli.processes import Processes
from mmseg_cli.training import losses, schedule
from mmseg_cli.training.averaging import Ema, Lookahead
from mmseg_cli.training.loop import PRECISIONS
from mmseg_cli.training.optim import build_optimizer
from mmseg_cli.training.state import State

PICTURES = 32  # of a classification, validated at once
Crops = loader.SegmentationCrops | loader.ClassificationCrops
Validate = Callable[[nn.Module, Callable[[], bool]], dict[str, float] | None]


def crops(section: Stage, split: Split, *, classes: int, seed: int, processes: Processes) -> Crops:
    """The training batches of a rung, from `split`, as a function of the step; each process gets its part."""
    common: dict[str, Any] = {
        "split": split,
        "seed": seed,
        "batch": section.batch,
        "norm_batch": section.norm_batch,
        "crop": (section.crop[0], section.crop[1]),
        "rank": processes.rank,
        "world": processes.world,
    }
    match section:
        case ClassificationStage(augment=augment):
            strong = augment.rand_augment
            return loader.ClassificationCrops(
                area=(augment.scale[0], augment.scale[1]),
                flip=augment.flip,
                colour=augment.colour,
                rand_augment=None if strong is None else (strong.ops, strong.magnitude),
                mixup=augment.mixup,
                cutmix=augment.cutmix,
                classes=classes,
                **common,
            )
        case SegmentationStage(augment=zoomed):
            return loader.SegmentationCrops(
                zoom=(zoomed.scale[0], zoomed.scale[1]),
                flip=zoomed.flip,
                colour=zoomed.colour,
                blur=zoomed.blur,
                class_uniform=zoomed.class_uniform,
                uniform_from=section.steps - zoomed.uniform_last,
                **common,
            )
    raise TypeError(f"no crops for {type(section).__name__}")


def objective(section: Stage, *, class_pixels: Sequence[int], device: torch.device) -> losses.Objective:
    """The loss of a rung; `class_pixels` of the training split decide the class weights, where it has them."""
    if not isinstance(section, SegmentationStage):
        term = losses.ClassificationCrossEntropy(label_smoothing=section.label_smoothing)
        return losses.Objective(terms=((1.0, term),))
    weight_K = None
    if section.class_weights == "inverse-log":
        weight_K = losses.inverse_log_weights(class_pixels).to(device)
    return losses.build_objective(
        loss=section.loss.coefficients(),
        label_smoothing=section.label_smoothing,
        weight_K=weight_K,
        ohem_threshold=section.loss.ohem_threshold,
        ohem_min_share=section.loss.ohem_min_share,
        auxiliary=section.deep_supervision,
    )


def learning_rate(section: Stage) -> Callable[[int], float]:
    """The learning rate as a function of the step, from 0."""
    return partial(
        schedule.learning_rate,
        base=section.learning_rate,
        steps=section.steps,
        schedule=section.schedule,
        power=section.power,
        warmup_steps=section.warmup_steps,
    )


def validator(section: Stage, store: Store, *, processes: Processes, workers: int, batch: int) -> Validate:
    """A function of (network, stop) that gives a network's figures on the whole val split, or None once `stop()` is
    true.

    Each process predicts its part; what is summed are whole numbers, so that any number of processes gives one result.
    """
    split = store.split("val")
    own = {"workers": workers, "rank": processes.rank, "world": processes.world}
    device = processes.device
    if isinstance(section, ClassificationStage):
        at_once = min(section.batch, PICTURES)
        pictures = loader.CentreCrops(split, batch=at_once, crop=(section.crop[0], section.crop[1]))

        def accuracy(network: nn.Module, stop: Callable[[], bool]) -> dict[str, float] | None:
            batches = _until(stop, loader.items_loader(pictures, **own))
            counts = torch.from_numpy(inference.top_k_counts(network, batches, device=device))
            total, first, fifth = processes.total(counts).tolist()
            return None if any(processes.gather(stop())) else {"top1": first / total, "top5": fifth / total}

        return accuracy
    images = loader.WholeImages(split, batch=batch)
    classes = len(store.space.classes)

    def mean_iou(network: nn.Module, stop: Callable[[], bool]) -> dict[str, float] | None:
        batches = _until(stop, loader.items_loader(images, **own))
        mine = inference.confusions(network, batches, classes=classes, device=device).sum(0)
        matrix = processes.total(torch.from_numpy(mine)).numpy()
        if any(processes.gather(stop())):
            return None
        metrics.require_pixels(matrix, str(store.folder))
        return {"mean_iou": metrics.mean_iou(matrix), "pixel_accuracy": metrics.pixel_accuracy(matrix)}

    return mean_iou


def _until(stop: Callable[[], bool], batches: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        if stop():
            return
        yield batch


def with_recipe(section: Stage, network: nn.Module) -> nn.Module:
    """The network with what the recipe adds to it for training: stochastic depth and auxiliary heads."""
    set_stochastic_depth(network, section.stochastic_depth)
    if isinstance(section, SegmentationStage) and section.deep_supervision:
        assert isinstance(network, SegmentationNetwork)
        return DeepSupervision(network)
    return network


def state(section: Stage, network: nn.Module, *, runtime: Runtime, processes: Processes) -> State:
    """What the rung trains, on its device: the network made ready for the recipe and the machine, and its optimizer."""
    network = with_recipe(section, network)
    recompute_blocks(network, on=runtime.recompute)
    network = network.to(processes.device)
    network.to(memory_format=torch.channels_last if runtime.channels_last else torch.contiguous_format)
    if processes.world > 1:
        network = synchronise(network)
    optimizer = build_optimizer(
        network, name=section.optimizer, learning_rate=section.learning_rate, weight_decay=section.weight_decay
    )
    ahead, ema = section.lookahead, section.ema
    return State(
        network=network,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(processes.device.type, enabled=section.precision == "float16"),
        lookahead=None if ahead is None else Lookahead(network, k=ahead.k, alpha=ahead.alpha),
        ema=None if ema is None else Ema(network, decay=ema.decay),
    )


def callable_model(
    section: Stage, network: nn.Module, *, runtime: Runtime, processes: Processes, micro_batch: int
) -> Callable[[Tensor], Any]:
    """The network as a step calls it: compiled, and with gradients that are averaged over the processes, where wanted.

    One process on a GPU launches it at once, unless it compiles or recomputes. To be called before the loader's
    batches are asked for, see `mmseg_cli.models.graphs.Graphed`.

    DDP sums float32 gradients: weights, and therefore gradients, are float32 under mixed precision too. It groups them
    anew after its first step, which may change the last bits of a sum over more than two processes; `deterministic`
    forbids it.
    """
    if runtime.compile and runtime.recompute:
        compile_blocks(network)
    model: Any = torch.compile(network) if runtime.compile and not runtime.recompute else network
    if processes.world == 1:
        if runtime.compile or processes.device.type == "cpu":
            return model  # type: ignore[no-any-return]
        images_BCHW = torch.rand((micro_batch, 3, *section.crop), device=processes.device)
        layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
        return training_callable(
            network, images_BCHW.contiguous(memory_format=layout), autocast=PRECISIONS[section.precision]
        )
    # Neither is a fault: newer versions name the first otherwise, and of a 1x1 kernel no stride is the right one.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[processes.device] if processes.device.type == "cuda" else None,
        broadcast_buffers=False,  # synchronised norms keep them equal
        gradient_as_bucket_view=True,
        find_unused_parameters=runtime.deterministic,
    )


def statistics_batches(
    section: Stage, store: Store, *, seed: int, processes: Processes, workers: int, channels_last: bool
) -> Iterator[Tensor]:
    """Normalised images x_BCHW for `precise_bn` norm batches: crops of the steps after the last, the same each time."""
    parts_a_step = section.batch // section.norm_batch
    batches = loader.steps_loader(
        crops(section, store.split("train"), classes=len(store.space.classes), seed=seed, processes=processes),
        start=section.steps,
        stop=section.steps - (-section.precise_bn // parts_a_step),
        workers=workers,
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    share = section.norm_batch // processes.world
    images = (image for image_BCHW, _ in batches for image in image_BCHW.split(share))
    for image in islice(images, section.precise_bn):
        yield inference.normalise(image, device=processes.device).contiguous(memory_format=layout)
