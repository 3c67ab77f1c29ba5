"""A network of `mmseg export` behind onnxruntime: no torch, and no `onnx` either.

Shapes: B = batch, C = 3 colours, K = classes, H, W = height, width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.errors import MmsegError, ran_out

KEY = "mmseg"  # of our JSON in the file's metadata
INPUT, OUTPUT = "image", "logits"
NEEDED = ("label_space", "mean", "std", "bytes_per_pixel", "weights_sha256", "run")
EXPORT = "write it with `mmseg export --run RUN`"
INSTALL = "pip install 'mmseg-cli[export]'"

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def open_onnx(path: Path, *, threads: int | None = None) -> tuple[Forward, dict[str, Any]]:
    """Load a network.

    Args:
        path: a file of `mmseg export`.
        threads: of the CPU; None is one per core.

    Returns:
        Normalised x_BCHW to logits_BKHW of the same size; and what the file says of itself, see
        :func:`mmseg_cli.prediction.export.about`.

    Raises:
        MmsegError: there is no such file, it is damaged or not of ours, or onnxruntime is not installed.
    """
    if not path.is_file():
        raise MmsegError(path, "is not a file" if path.exists() else "there is no such file", EXPORT)
    forward, about = open_content(str(path), where=path, threads=threads)
    return forward, _checked(about, path)


def open_content(content: str | bytes, *, where: Path, threads: int | None = None) -> tuple[Forward, str | None]:
    """The network in a file, which is given by its name or its bytes, and the JSON that it keeps for us.

    Args:
        where: what messages call it.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MmsegError("onnxruntime", "is not installed", INSTALL) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and one line is enough
    # A pattern is kept for every size of image. Without them the arena is as fast, takes less, and does not grow.
    options.enable_mem_pattern = False
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map.get(KEY)
    except Exception as error:  # its exceptions have no base of their own
        if ran_out(error):
            raise
        raise MmsegError(where, f"cannot be loaded ({_short(error)})", EXPORT) from error
    return _forward(session), about


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _checked(about: str | None, where: Path) -> dict[str, Any]:
    """What a file says of itself; MmsegError unless it says all that a prediction needs."""
    if about is None:
        raise MmsegError(where, "does not say how images are normalised and what its classes are", EXPORT)
    try:
        value = json.loads(about)
    except ValueError:
        value = None
    missing = [key for key in NEEDED if key not in value] if isinstance(value, dict) else list(NEEDED)
    if missing:
        raise MmsegError(where, f"its metadata lack {', '.join(missing)}", EXPORT)
    return dict(value)


def _forward(session: Any) -> Forward:
    def forward(x_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (logits_BKHW,) = session.run([OUTPUT], {INPUT: x_BCHW})
        except Exception as error:
            if "allocate memory" in str(error) or "bad allocation" in str(error):
                raise MemoryError(_short(error)) from error
            raise
        found: NDArray[np.float32] = logits_BKHW
        return found

    return forward
