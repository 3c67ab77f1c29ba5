"""The GPU's kernels, compiled to machine code for GPUs that need not be there: each launch, with the types it has.

Triton makes further kinds of them for integers that are 1 or multiples of 16.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, compile  # noqa: E402

from mmseg_cli.models import kernels  # noqa: E402

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
WARP = 32
HELPERS = {"_activated", "_slope", "_line", "_tap"}  # which kernels call
ALL = {name for name, one in vars(kernels).items() if isinstance(one, triton.runtime.jit.JITFunction)} - HELPERS


def signature(kernel: Any, given: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """What a launch is to the compiler: its arguments' types, and the values of those that are constants to it."""
    types, constants = {}, {}
    for parameter in kernel.params:
        value = given[parameter.name]
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            types[parameter.name] = f"*{TYPES[value.dtype]}"
        else:
            types[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    return types, constants


@pytest.fixture(params=[pytest.param(80, id="A100", marks=pytest.mark.slow), pytest.param(90, id="H100")])
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[set[str]]:
    """Names of the kernels that were launched: each is compiled, and does nothing."""
    found: set[str] = set()

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, num_warps: int = 4, **named: Any) -> None:
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
        types, constants = signature(kernel, given)
        made = compile(
            ASTSource(kernel, types, constants),
            target=GPUTarget("cuda", request.param, WARP),
            options={"num_warps": num_warps},
        )
        assert made.asm["cubin"][1:4] == b"ELF"
        found.add(kernel.fn.__name__)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", run)
    yield found


@pytest.mark.parametrize(
    ("dtype", "activation", "gated"),
    [
        (torch.bfloat16, "silu", True),
        (torch.float16, "relu", False),
        pytest.param(torch.float32, "relu", True, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, "none", False, marks=pytest.mark.slow),
    ],
)
def test_every_kernel_compiles(launched: set[str], dtype: torch.dtype, activation: str, gated: bool) -> None:
    x_BCHW = torch.zeros(2, 48, 20, 40, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernels.run_all(x_BCHW, activation=activation, gated=gated)
    assert launched == ALL
