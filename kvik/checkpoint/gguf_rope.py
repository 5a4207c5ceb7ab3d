"""Rotary embedding in GGUF's metadata: read into a RopeSpec, and written back.

`rope.freq_base` is theta; `rope.scaling.*` says linear and yarn. Llama 3's stretching is not said but done: a tensor
divides each frequency. From it the numbers it was made from are found again, so that the spec is that of the original
model; divisors that no such numbers make are refused. This file knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.gguf_names import ROPE_FACTORS
from kvik.checkpoint.spec import RopeSpec
from kvik.errors import CheckpointError, UnsupportedModelError
from kvik.step import Float32

_BIG = 1e9
_LONGEST = 2**31 - 1
_CLOSE = 1e-5
"""Relative; divisors are float32, made by others in an order of their own."""
_PLAIN = "rope.scaling."


def read_rope(fields: Fields, head_dim: int, context: int, factors: Callable[[], Float32 | None]) -> RopeSpec:
    """The rotary embedding; `context` is the model's length, `factors` reads the divisors if there are any.

    Raises CheckpointError, UnsupportedModelError.
    """
    theta = fields.number("rope.freq_base", 1, 1e15, 10000.0)
    rope = _scaled(fields, theta, context)
    divisors = factors()
    if divisors is None or bool((divisors == 1).all()):
        return rope
    if rope.kind != "default":
        raise UnsupportedModelError(f"{fields.file}: {ROPE_FACTORS} beside {rope.kind} scaling; supported: one of them")
    return _llama3(fields.file, theta, head_dim, divisors)


def _scaled(fields: Fields, theta: float, context: int) -> RopeSpec:
    kind = fields.get(f"{_PLAIN}type") if f"{_PLAIN}type" in fields else "linear"
    if kind not in ("none", "linear", "yarn"):
        raise fields.unsupported(f"{_PLAIN}type", "none, linear, yarn")
    name = f"{_PLAIN}factor" if f"{_PLAIN}factor" in fields else "rope.scale_linear"
    factor = 1.0 if fields.get(name) in (None, 0) else fields.number(name, 0, _BIG)
    if kind == "yarn":
        return _yarn(fields, theta, factor, context)
    if kind == "none" or factor == 1:
        return RopeSpec(theta)
    return RopeSpec(theta, "linear", factor=factor)


def _yarn(fields: Fields, theta: float, factor: float, context: int) -> RopeSpec:
    """Lengths and ramp as in `RopeSpec`; cos and sin are multiplied by attn_factor (1 + 0.1 ln factor)."""
    for name, plain in (("yarn_ext_factor", 1), ("yarn_log_multiplier", 0)):
        if fields.get(_PLAIN + name) not in (None, plain):
            raise fields.unsupported(_PLAIN + name, str(plain))
    name = "yarn_attn_factor" if f"{_PLAIN}yarn_attn_factor" in fields else "attn_factor"
    attention = fields.number(_PLAIN + name, 0, _BIG, 1.0)
    return RopeSpec(
        theta,
        "yarn",
        factor=factor,
        original_max_position=fields.whole(f"{_PLAIN}original_context_length", 1, _LONGEST, context),
        beta_fast=fields.number(f"{_PLAIN}yarn_beta_fast", 0, _BIG, 32.0),
        beta_slow=fields.number(f"{_PLAIN}yarn_beta_slow", 0, _BIG, 1.0),
        attention_factor=attention * _mscale(factor),
    )


def _mscale(factor: float) -> float:
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def divisors_of(rope: RopeSpec, head_dim: int) -> Float32:
    """By what Llama 3's stretching divides each frequency, [head_dim / 2]."""
    with np.errstate(all="ignore"):
        divisors: Float32 = RopeSpec(rope.theta).inv_freq(head_dim) / rope.inv_freq(head_dim)
    return divisors


def _llama3(file: str, theta: float, head_dim: int, divisors: Float32) -> RopeSpec:
    if divisors.shape != (head_dim // 2,):
        raise CheckpointError(
            f"{file}: tensor {ROPE_FACTORS} has shape {list(divisors.shape)}; expected [{head_dim // 2}]"
        )
    if not np.isfinite(divisors).all() or (divisors <= 0).any():
        raise CheckpointError(f"{file}: tensor {ROPE_FACTORS} has a divisor that is no positive number")
    for rope in _candidates(theta, head_dim, divisors):
        with np.errstate(all="ignore"):
            if np.allclose(divisors_of(rope, head_dim), divisors, rtol=_CLOSE, atol=0):
                return rope
    raise UnsupportedModelError(
        f"{file}: tensor {ROPE_FACTORS} divides by {divisors.min():g} to {divisors.max():g} in a way that is not "
        "supported; supported: Llama 3's (low_freq_factor 1, high_freq_factor 4)"
    )


def _candidates(theta: float, head_dim: int, divisors: Float32) -> Iterator[RopeSpec]:
    """Llama 3's stretching by the largest divisor, for each length that one of the divisors in between may tell, and
    for powers of two where none does.
    """
    factor = float(str(divisors.max()))
    if factor <= 1:
        return
    plain = RopeSpec(theta, "llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
    lengths = [2**power for power in range(5, 25)]
    wavelengths = 2 * math.pi / RopeSpec(theta).inv_freq(head_dim).astype(np.float64)
    for wavelength, divisor in zip(wavelengths, divisors.astype(np.float64), strict=True):
        if 1 < divisor < factor:
            smooth = (1 / divisor - 1 / factor) / (1 - 1 / factor)
            lengths.insert(0, round(min(wavelength * (1 + 3 * smooth), _LONGEST)))
    for length in dict.fromkeys(lengths):
        yield replace(plain, original_max_position=max(1, length))


def write_rope(rope: RopeSpec, head_dim: int) -> tuple[dict[str, Any], Float32 | None]:
    """Keys, without the architecture, and divisors. Raises CheckpointError for what GGUF cannot say."""
    keys: dict[str, Any] = {"rope.freq_base": float(rope.theta)}
    if rope.kind == "default":
        return keys, None
    if rope.kind == "llama3":
        if (rope.low_freq_factor, rope.high_freq_factor) != (1, 4):
            raise CheckpointError(
                f"rope has low_freq_factor {rope.low_freq_factor:g} and high_freq_factor {rope.high_freq_factor:g}; "
                "in GGUF expected 1 and 4"
            )
        return keys, divisors_of(rope, head_dim)
    keys |= {f"{_PLAIN}type": rope.kind, f"{_PLAIN}factor": float(rope.factor)}
    if rope.kind == "yarn":
        if not rope.truncate:
            raise CheckpointError("rope has truncate false; in GGUF expected true")
        keys |= {
            f"{_PLAIN}original_context_length": rope.original_max_position,
            f"{_PLAIN}yarn_beta_fast": float(rope.beta_fast),
            f"{_PLAIN}yarn_beta_slow": float(rope.beta_slow),
            f"{_PLAIN}yarn_attn_factor": rope.attention_factor / _mscale(rope.factor),
        }
    return keys, None
