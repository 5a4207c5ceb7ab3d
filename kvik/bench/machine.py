"""The machine as a result file describes it: processor, cores, instruction sets, memory, measured limits.

Read from /proc and /sys; what cannot be read is None. The limits are measured by the native kernels where they were
built, else by numpy, and the record says which. This file knows nothing of models.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvik.runners.native.machine import cores

ISA_FLAGS = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
PROBE_BYTES = 512 * 2**20
PROBE_SIZE = 1024


def describe() -> dict[str, Any]:
    """What this machine is, nothing measured."""
    cpuinfo = _keyed_lines(Path("/proc/cpuinfo"))
    memory = _keyed_lines(Path("/proc/meminfo"))
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": cores(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "memory_bytes": _kib(memory.get("MemTotal")),
        "available_memory_bytes": _kib(memory.get("MemAvailable")),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "accelerator": None,
    }


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache of core 0."""
    sizes = [_read(p) for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    found = [int(size[:-1]) * 1024 for size in sizes if size and size.endswith("K") and size[:-1].isdigit()]
    return max(found, default=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _keyed_lines(path: Path) -> dict[str, str]:
    """The first value of each `key: value` line."""
    found: dict[str, str] = {}
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _kib(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None


def _native_is_there() -> bool:
    from kvik.runners import native

    return any(reason is None for reason in native.available().values())


def roofline_method() -> str:
    """How `roofline` measures here, for `how_obtained`."""
    if _native_is_there():
        return (
            "Limits by the native kernels on all cores: a streaming read of a buffer far larger than the caches, and "
            "matrix products from registers and the first cache"
        )
    return "Limits by numpy: dot product of a 512 MiB vector with itself, and a 1024 x 1024 float32 product, best of 5"


def roofline() -> dict[str, Any]:
    """Measure the machine's limits now: `read_bandwidth` in bytes/s, `matrix_peak` by form in operations/s.

    A new measurement every time, so that it can be interleaved with what is compared to it.
    """
    from kvik.runners import native

    if _native_is_there():
        measured = native.roofline(cores())
        return {"read_bandwidth": measured["read_bandwidth"], "matrix_peak": dict(measured["matrix_peak"])}
    vector = np.ones(PROBE_BYTES // 8)
    matrix = np.ones((PROBE_SIZE, PROBE_SIZE), np.float32)
    return {
        "read_bandwidth": _best_rate(lambda: vector @ vector, PROBE_BYTES),
        "matrix_peak": {"f32": _best_rate(lambda: matrix @ matrix, 2 * PROBE_SIZE**3)},
    }


def _best_rate(work: Callable[[], object], amount: int, repetitions: int = 5) -> float:
    """The most of `amount` per second over a few tries; the first one, which warms the caches, counts like any."""
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return amount / best
