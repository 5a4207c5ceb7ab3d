"""The runners under test: the reference, and the native one for each instruction set that this machine runs."""

from __future__ import annotations

from typing import Any

import pytest

from kvik.config import RunnerOptions
from kvik.errors import KvikError
from kvik.runners.reference import ReferenceRunner
from kvik.runners.runner import Runner

QUANTIZED = {
    "int8": {"weights": "int8", "kv_dtype": "bf16"},
    "int4": {"weights": "int4", "kv_dtype": "bf16"},
    "int8 KV": {"weights": "bf16", "kv_dtype": "int8"},
    "int8, int8 KV": {"weights": "int8", "kv_dtype": "int8"},
}
"""Options of the quantized forms; what is not quantized is bf16."""


def runner_kinds() -> list[Any]:
    """`reference`, then the native instruction sets; those that cannot run are there as skipped tests."""
    try:
        from kvik.runners.native import available

        native = available()
    except (ImportError, OSError, KvikError) as error:
        native = {"native": f"the native runner cannot be imported: {error}"}
    skips = {isa: [pytest.mark.skip(reason=why)] if why else [] for isa, why in native.items()}
    return ["reference", *(pytest.param(isa, marks=marks) for isa, marks in skips.items())]


def make_runner(
    kind: str, weights: str = "f32", kv_dtype: str = "f32", attention: str = "flash", threads: int = 2, **int4: Any
) -> Runner:
    """A runner of this kind, with everything in float32 unless asked otherwise. int4: group_size, symmetric."""
    if kind == "reference":
        options = RunnerOptions(backend="reference", attention=attention, threads=threads)
        return ReferenceRunner(options, weights=weights, kv_dtype=kv_dtype, **int4)
    from kvik.runners.native import NativeRunner

    options = RunnerOptions(backend="native", isa=kind, attention=attention, threads=threads)
    return NativeRunner(options, weights=weights, kv_dtype=kv_dtype, **int4)
