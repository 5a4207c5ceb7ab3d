"""Where the CUDA runner's tests run: on the GPU if there is one, else on the CPU with Triton's interpreter.

Must be imported before anything that imports Triton, which decides at import whether it interprets. The interpreter
gets products of bf16 wrong, so without a GPU kernels are tested in float32 and float16.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from kvik.config import RunnerOptions
from kvik.step import StepPlan, as_int32

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
    pytest.skip("torch and triton are not both installed", allow_module_level=True)

import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU and "cuda_compiles" not in sys.modules["__main__"].__file__:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import triton
    import triton.language

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if ON_GPU else [])
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TRITON = triton.__version__


def new_runner(*, kernels: bool = False, eager: bool = True, attention: str = "flash", **options: Any) -> Any:
    """A CudaRunner in float32 unless asked otherwise: plain torch, or the Triton kernels."""
    from kvik.runners.cuda.operations import PLAIN, triton_operations
    from kvik.runners.cuda.runner import CudaRunner

    deterministic = options.get("deterministic", False)
    operations = triton_operations(DEVICE, deterministic=deterministic) if kernels else PLAIN
    forms = {"weights": "f32", "kv_dtype": "f32"} | options
    chosen = RunnerOptions(attention=attention, enforce_eager=eager)
    return CudaRunner(chosen, device=DEVICE.type, operations=operations, **forms)


def random(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0
) -> torch.Tensor:
    """Normal numbers on the device, the same everywhere for one seed."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)
    return torch.from_numpy(values).to(DEVICE, dtype)


def step_of(spans: list[tuple[int, int]], block_size: int, seed: int = 0) -> tuple[StepPlan, int]:
    """A plan of rows that compute positions start .. stop - 1, in shuffled blocks, and how many blocks there are."""
    counts = [-(-stop // block_size) for _, stop in spans]
    num_blocks = sum(counts) + 2
    pool = np.random.default_rng(seed).permutation(num_blocks)
    tables = np.full((len(spans), max(counts)), -1, np.int32)
    for row, (count, end) in enumerate(zip(counts, np.cumsum(counts), strict=True)):
        tables[row, :count] = pool[end - count : end]
    positions = [position for start, stop in spans for position in range(start, stop)]
    return StepPlan(
        step=0,
        keys=np.arange(len(spans)),
        token_ids=as_int32(np.arange(len(positions)) % 7),
        positions=as_int32(positions),
        query_start_loc=as_int32(np.cumsum([0] + [stop - start for start, stop in spans])),
        seq_lens=as_int32([stop for _, stop in spans]),
        block_tables=tables,
    ), num_blocks


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, bound: float) -> None:
    """Largest difference, relative to the largest number."""
    difference = (ours.float() - theirs.float()).abs().max().item()
    scale = max(1.0, theirs.float().abs().max().item())
    assert difference <= bound * scale, f"{difference:.3g} apart; expected at most {bound * scale:.3g}"
