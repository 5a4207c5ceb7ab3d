"""The machine: what the GPU is called, and what it allows, measured now: read bandwidth and matrix peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SIDE = 8192
READ_BYTES = 4 << 30


def machine(results: dict[str, Any]) -> dict[str, Any]:
    """Names and versions."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def limits(results: dict[str, Any]) -> dict[str, Any]:
    """Bytes/s of reading a large tensor once (the best of a sum and of half a copy), and bf16 operations/s of a large
    product.
    """
    values = torch.ones(READ_BYTES // 4, dtype=torch.float32, device="cuda")
    read = READ_BYTES / device_seconds(lambda: values.sum())
    other = torch.empty_like(values)
    copied = 2 * READ_BYTES / device_seconds(lambda: other.copy_(values))
    values = other = values[:0]
    a = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device="cuda")
    peak = 2 * SIDE**3 / device_seconds(lambda: a @ a)
    torch.cuda.empty_cache()
    return {
        "read_bandwidth": max(read, copied),
        "sum_bytes_per_s": read,
        "copy_bytes_per_s": copied,
        "matrix_peak": peak,
    }


def device_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """The least time of a piece of work on the device, of `repeats` after two to warm up."""
    times = []
    for turn in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if turn >= 2:
            times.append(start.elapsed_time(end) / 1000)
    return min(times)
