"""What is checked and measured, in order of importance, and how long each may take.

Functions are named and not imported, since they import torch, which is the worker's affair.
"""

from __future__ import annotations

from typing import NamedTuple


class Section(NamedTuple):
    """A function of all results so far, as `module:function`, and the seconds after which it is ended."""

    where: str
    limit_s: float


def _section(function: str, limit_s: float) -> Section:
    return Section(f"tools.gpu_check.{function}", limit_s)


SECTIONS = {
    "machine": _section("setting:machine", 60),
    "parity": _section("parity:run_tests", 200),
    "limits": _section("setting:limits", 40),
    "decode": _section("measure:decode_with_graphs", 120),
    "prefill": _section("measure:prefill", 60),
    "preset": _section("measure:preset", 90),
    "decode_eager": _section("measure:decode_eager", 40),
    "decode_compiled_glue": _section("measure:decode_compiled", 90),
    "transformers": _section("against:transformers_decode", 90),
    "decode_int8_kv": _section("measure:decode_int8_kv", 60),
    "decode_fp8_kv": _section("measure:decode_fp8_kv", 60),
    "decode_int4": _section("measure:decode_int4", 60),
    "decode_int8": _section("measure:decode_int8", 60),
    "decode_deterministic": _section("measure:decode_deterministic", 60),
}
