"""What this machine can run and what it allows: instruction sets, read bandwidth, matrix peak.

Asked of the library, never guessed in Python. This file knows nothing of models.
"""

from __future__ import annotations

import ctypes as c
import math
import os
from pathlib import Path
from typing import Any

from kvik.errors import BackendError
from kvik.runners.native.library import FORMS, address, as_contiguous, call, load_library
from kvik.runners.native.marshal import Answer, sample_struct
from kvik.step import Float32, Int32, SamplePlan, StepPlan, TopLogprobs, as_int32

PEAKS = ("int8", "bf16", "f32")
EMULATED = "amx-emulated"
"""Plain C++ in the place of tile instructions: for tests, never chosen by itself."""


def cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: by its affinity, and by the processor time its control group is given."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores(cgroups)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _cgroup_cores(root: Path) -> float | None:
    """Cores' worth of time per period, as a container sees its limit (version 2, then 1); None without one."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((root / file).read_text() for file in files).split()
            return int(quota) / int(period) if quota not in ("max", "-1") else None
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None


def available() -> dict[str, str | None]:
    """Every instruction set of the build, best first: None if it can run here, else why not.

    Empty if the native library was not built.
    """
    try:
        library = load_library()
    except BackendError:
        return {}
    names = [library.kvik_isa_name(i).decode() for i in range(library.kvik_isa_count())]
    refusals = [library.kvik_isa_refusal(i) for i in range(library.kvik_isa_count())]
    return {name: why.decode() if why else None for name, why in zip(names, refusals, strict=True)}


def best_isa() -> str:
    """The best instruction set that runs here. Raises BackendError if there is no native library."""
    load_library()
    return next(name for name, why in available().items() if why is None and name != EMULATED)


def roofline(threads: int, *, isa: str = "auto", seconds: float = 0.5, read_bytes: int = 1 << 30) -> dict[str, Any]:
    """Measure the limits now, with `threads` threads.

    `read_bandwidth` in bytes/s over a buffer of `read_bytes`; `matrix_peak` in operations/s by form (a multiply and an
    add count two).
    """
    library = load_library()
    name = best_isa() if isa == "auto" else isa
    peaks = {form: library.kvik_matrix_peak(name.encode(), FORMS[form], threads, seconds) for form in PEAKS}
    bandwidth = library.kvik_read_bandwidth(threads, read_bytes, seconds)
    return {"isa": name, "threads": threads, "read_bandwidth": bandwidth, "matrix_peak": peaks}


def draw(isa: str, plan: SamplePlan, logits: Float32) -> tuple[Int32, Any, TopLogprobs]:
    """Draw tokens from given logits [rows, vocab] with the library's sampler; for tests.

    Returns (token_ids [S], failed [S], log-probabilities).
    """
    empty = as_int32([])
    step = StepPlan(0, as_int32([]).astype("int64"), empty, empty, empty, empty, empty.reshape(0, 0), sample=plan)
    answer, rows = Answer(step), as_contiguous(logits)
    struct = sample_struct(plan)
    arguments = (isa.encode(), c.byref(struct), address(rows), rows.shape[1], c.byref(answer.struct))
    call(load_library().kvik_draw, *arguments)
    result = answer.result()
    return result.token_ids, result.failed, result.sampled
