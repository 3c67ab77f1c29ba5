"""`mmseg export`: a trained network as a file that others run, ONNX or torch.export, held against the network itself.

Both take normalised images of any batch, height and width, and have their batch norms folded. What a program must know
to use one, the normalisation and the classes above all, lies inside the file as JSON.

Shapes: B = batch, C = 3 colours, K = classes, H, W = height, width.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.sources import synthetic
from mmseg_cli.data.sources.scenes.render import render
from mmseg_cli.errors import MmsegError
from mmseg_cli.files import atomic, require_writable
from mmseg_cli.prediction import origin
from mmseg_cli.prediction.inputs import Input, find
from mmseg_cli.prediction.onnx import INPUT, INSTALL, KEY, OUTPUT, Forward, open_content

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

Format = Literal["onnx", "torch"]
FORMATS: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}  # and the suffix of each one's file
CARD = ".md"  # the model card, which is beside them
OPSET = 18  # of ONNX; onnxruntime since 1.14 runs it
# Of record.json; the last two say where the weights come from, which `mmseg predict --as-labels` asks.
RUN_KEYS = (*("variant", "seed", "network", "ladder", "recipe", "fingerprint"), origin.KEY, "initial_weights_sha256")
AGREEMENT = 0.999  # the share of pixels that must get the same label
IMAGES = 8
GENERATED = (256, 512)  # (height, width) of scenes, where there are no images
ODD = (97, 161)  # (height, width) of one more picture: no size is assumed


@dataclass(frozen=True)
class Pictures:
    """What an exported network is checked on.

    Attributes:
        images: image_HWC, RGB, of any sizes.
        source: in words.
        real: whether they are photographs or the dataset's own images, and not generated for the occasion.
    """

    images: list[NDArray[np.uint8]]
    source: str
    real: bool


@dataclass(frozen=True)
class Parity:
    """How near an exported network is to the one that it was made of.

    Attributes:
        difference: the largest, of all logits.
        agreement: share of pixels with the same label, in [0, 1].
        worst: that of the image that agrees least.
    """

    difference: float
    agreement: float
    worst: float


def require_extras(formats: Sequence[str]) -> None:
    """Raise MmsegError unless what writes and runs the formats is installed."""
    for name in ("onnx", "onnxscript", "onnxruntime") if "onnx" in formats else ():
        try:
            importlib.import_module(name)
        except ImportError:
            raise MmsegError(name, "is not installed", INSTALL) from None


# --------------------------------------------------------------------------------------------------------------- files


def about(record: Mapping[str, Any], *, bytes_per_pixel: float) -> dict[str, Any]:
    """What an exported file says of itself.

    Args:
        record: record.json of the run.
        bytes_per_pixel: working memory of the network for each pixel of an image.
    """
    from mmseg_cli.evaluation import inference

    classes = len(record["label_space"]["classes"])
    return {
        "mmseg": version("mmseg-cli"),
        "input": f"{INPUT}: float32 (batch, 3, height, width), RGB: (value of 0 to 255 - mean) / std, by colour",
        "output": f"{OUTPUT}: float32 (batch, {classes}, height, width); the class of a pixel is that of the largest",
        "mean": list(inference.MEAN),
        "std": list(inference.STD),
        "label_space": record["label_space"],
        "bytes_per_pixel": bytes_per_pixel,
        "weights_sha256": record["weights_sha256"],
        "run": {key: record.get(key) for key in RUN_KEYS},
    }


def program(network: nn.Module) -> ExportedProgram:
    """A network, in evaluation mode on the CPU, as torch.export's program for any batch, height and width from 1."""
    import torch
    from torch.export import Dim
    from torch.fx.experimental import _config as symbolic

    sizes = {0: Dim("batch", min=1), 2: Dim("height", min=1), 3: Dim("width", min=1)}
    # Without this, sizes of 1 are taken for another case, and the program refuses images that become so small inside.
    unknowing = symbolic.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with unknowing, _resizing(), _shuffling(), torch.no_grad():
        made = torch.export.export(network, (torch.zeros(2, 3, *ODD),), dynamic_shapes=(sizes,))
    for node in made.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return made


@contextmanager
def _resizing() -> Iterator[None]:
    """Let the network resize without a look at the numbers, which a program for every size cannot take.

    The network leaves a feature alone that has the size already, such as one pixel; resizing it gives it back as it is.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true
    from torch.nn import functional as F

    from mmseg_cli.models import resizing

    def resize(x_BChw: Tensor, size: Sequence[int]) -> Tensor:
        if all(statically_known_true(own == wanted) for own, wanted in zip(x_BChw.shape[-2:], size, strict=True)):
            return x_BChw
        return F.interpolate(x_BChw, size=list(size), mode="bilinear", align_corners=False)

    before, resizing.resize = resizing.resize, resize
    try:
        yield
    finally:
        resizing.resize = before


@contextmanager
def _shuffling() -> Iterator[None]:
    """Let channels be shuffled by their numbers: torch's own shuffle has another case for maps of one pixel."""
    import torch

    from mmseg_cli.models import layers

    def forward(self: layers.ChannelShuffle, x_BCHW: Tensor) -> Tensor:
        order = torch.arange(x_BCHW.shape[1]).view(self.groups, -1).t().flatten()
        return x_BCHW.index_select(1, order)

    before, layers.ChannelShuffle.forward = layers.ChannelShuffle.forward, forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        layers.ChannelShuffle.forward = before  # type: ignore[method-assign]


def as_onnx(made: ExportedProgram, says: Mapping[str, Any]) -> bytes:
    """The bytes of an ONNX file; `says` is what it says of itself."""
    import torch

    sizes = {0: "batch", 2: "height", 3: "width"}
    written = torch.onnx.export(
        made,
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=(sizes,),
        opset_version=OPSET,
        verbose=False,
    )
    assert written is not None  # it is None only without `dynamo`
    model = written.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # how torch came to it
    model.metadata_props.add(key=KEY, value=json.dumps(says, ensure_ascii=False))
    content: bytes = model.SerializeToString()
    return content


def as_torch(made: ExportedProgram, says: Mapping[str, Any]) -> bytes:
    """The bytes of a `.pt2` file; `says` is what it says of itself."""
    import torch

    buffer = io.BytesIO()
    torch.export.save(made, buffer, extra_files={KEY: json.dumps(says, ensure_ascii=False)})
    return buffer.getvalue()


def opened(form: Format, content: bytes, *, where: Path, threads: int | None) -> Forward:
    """The network in an exported file's bytes, ready to run on arrays."""
    if form == "onnx":
        return open_content(content, where=where, threads=threads)[0]
    import torch

    network = torch.export.load(io.BytesIO(content)).module()

    @torch.inference_mode()
    def forward(x_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        logits_BKHW: Tensor = network(torch.from_numpy(x_BCHW))
        return logits_BKHW.numpy()

    return forward


def require_own(path: Path, record: Mapping[str, Any]) -> None:
    """Raise MmsegError where a file or a model card is there that does not say that it is of these very weights."""
    says = (f'"weights_sha256": "{record["weights_sha256"]}"', f"weights SHA-256 `{record['weights_sha256']}`")
    if path.exists() and not any(mark.encode() in path.read_bytes() for mark in says):
        todo = "give another name with --out, or this one to replace it"
        raise MmsegError(path, "is there, and is not of this training", todo)


# -------------------------------------------------------------------------------------------------------------- parity


def pictures_for(run: Path, record: Mapping[str, Any], folder: Path | None) -> Pictures:
    """What to check a run's network on: some images of a folder, of its own val, or generated scenes.

    Args:
        folder: of images, where the user names one.

    Raises:
        MmsegError: the folder holds no images, or one that cannot be read.
    """
    if folder is not None:
        if not folder.is_dir():
            raise MmsegError(folder, "is not a folder", "give a folder of images")
        found = [part for part in find([str(folder)]).parts if isinstance(part, Input)]
        if not found:
            raise MmsegError(folder, "holds no images", "give a folder of photographs")
        read = [found[place].read() for place in _spread(len(found))]
        return Pictures(read, f"{len(read)} images of {folder}", real=True)
    store = origin.find_store(str(record.get(origin.KEY)), below=origin.projects(run))
    if store is not None and "val" in store.manifest["splits"]:
        split = store.split("val")
        read = [split.image(place) for place in _spread(len(split))]
        return Pictures(read, f"{len(read)} images of val of {store.title}", real=True)
    height, width = GENERATED
    scenes = [render(synthetic.stream(0, "frames-val", number), height=height, width=width) for number in range(4)]
    return Pictures([scene.image_HWC for scene in scenes], f"{len(scenes)} generated street scenes", real=False)


def _spread(count: int) -> list[int]:
    """At most IMAGES places, evenly over `count`: neighbours are often frames of one film."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, IMAGES))})


def parity(
    network: nn.Module, forwards: Mapping[Format, Forward], images: Sequence[NDArray[np.uint8]]
) -> dict[Format, Parity]:
    """Hold exported networks against the one that they were made of, in float32 on the CPU, image by image.

    One corner of the first image, of odd height and width, is checked as well.

    Args:
        network: the trained one, nothing folded, in evaluation mode.
        forwards: the exported ones, by name.
        images: image_HWC each.
    """
    import torch

    from mmseg_cli.evaluation import inference

    difference, same, pixels = dict.fromkeys(forwards, 0.0), dict.fromkeys(forwards, 0), 0
    worst = dict.fromkeys(forwards, 1.0)
    for image_HWC in [*images, images[0][: ODD[0], : ODD[1]]]:
        image_BCHW = torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)[None]))
        x_BCHW = inference.normalise(image_BCHW, device=torch.device("cpu"))
        with torch.inference_mode():
            expected_KHW = network(x_BCHW)[0].numpy()
        pixels += expected_KHW[0].size
        for name, forward in forwards.items():
            found_KHW = forward(x_BCHW.numpy())[0]
            if found_KHW.shape != expected_KHW.shape:
                raise RuntimeError(f"{name}: gives {found_KHW.shape} and not {expected_KHW.shape}")
            # NaN, in either, is a difference.
            difference[name] = float(np.max([difference[name], np.abs(found_KHW - expected_KHW).max()]))
            same_HW = found_KHW.argmax(0) == expected_KHW.argmax(0)
            same[name] += int(same_HW.sum())
            worst[name] = min(worst[name], float(same_HW.mean()))
    return {name: Parity(difference[name], same[name] / pixels, worst[name]) for name in forwards}


def require_parity(found: Parity, *, where: Path) -> None:
    """Raise MmsegError unless an exported network gives the labels of the one it was made of."""
    if found.agreement < AGREEMENT or not np.isfinite(found.difference):
        what = f"only {100 * found.agreement:.3f} % of the pixels get the label that torch gives them"
        what += f" (logits differ by up to {found.difference:.3g}), so it was not written"
        raise MmsegError(where, what, "predict with the run itself, or try other versions of torch and onnxruntime")


# -------------------------------------------------------------------------------------------------------------- export


def export(
    network: nn.Module,
    record: Mapping[str, Any],
    *,
    files: Mapping[Format, Path],
    checked_on: Pictures,
    threads: int | None,
) -> dict[Format, Parity]:
    """Write a trained network in some formats, if each of them gives its labels; else none is written.

    Args:
        network: x_BCHW to logits_BKHW of the same size, on the CPU.
        record: record.json of its run.
        files: what to write, by format; what is there is replaced.
        threads: of onnxruntime; None is one per core.

    Raises:
        MmsegError: a file cannot be written, or gives other labels.
    """
    from mmseg_cli.evaluation.on_torch import PROBE
    from mmseg_cli.models import cost
    from mmseg_cli.models.fold import fold_norms

    for path in files.values():
        require_writable(path.parent)
    folded = fold_norms(network)
    says = about(record, bytes_per_pixel=cost.inference_bytes(folded, (1, 3, PROBE, PROBE)) / PROBE**2)
    made = program(folded)
    write: dict[Format, Callable[[ExportedProgram, Mapping[str, Any]], bytes]] = {"onnx": as_onnx, "torch": as_torch}
    contents = {form: write[form](made, says) for form in files}
    forwards = {form: opened(form, content, where=files[form], threads=threads) for form, content in contents.items()}
    found = parity(network.eval(), forwards, checked_on.images)
    for form, path in files.items():
        require_parity(found[form], where=path)
    for form, path in files.items():
        with atomic(path) as file:
            file.write(contents[form])
    return found
