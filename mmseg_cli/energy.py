"""What a GPU says about its energy, through NVML. The package `nvidia-ml-py` is optional."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def meter(device: torch.device) -> Callable[[], float] | None:
    """A function that reads the joules which `device` has used so far, or None where nobody tells."""
    if device.type != "cuda":
        return None
    return _meter(lambda: _uuid(device))


def _uuid(device: torch.device) -> str:
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _meter(uuid: Callable[[], str]) -> Callable[[], float] | None:
    with contextlib.suppress(Exception):  # no package, no driver, or a GPU older than its energy counter
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid())
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    return None


def why_not(device_type: str) -> str:
    """Why there is no energy, in words."""
    if device_type != "cuda":
        return "not measured: only NVIDIA's GPUs tell"
    try:
        importlib.import_module("pynvml")
    except ImportError:
        return "not measured: the package nvidia-ml-py is not installed"
    return "not measured: this GPU does not tell"
