"""Quantized weights, keys and values: what each form keeps of a float32 array, as float32.

    int8   one scale per row:                     value = q * scale,     q in -127 .. 127, scale = max|row| / 127
    int4   a scale and a zero per group_size
           inputs, the last group maybe shorter:  value = (q - z) * d,   q and z in 0 .. 15, d an f16

Rounding is to nearest, ties to even; all arithmetic is in float32, no product is fused with a sum, and sums have an
order (`ordered_sum`). All of it is part of the definition: a fast runner that follows it gets the same integers.
A symmetric int4 group has z = 8, and its weight of largest magnitude becomes level 0 (of two such, the negative one).
In any other, several parts of the range are tried (`search`). This file knows nothing of packing, and nothing of what
the values are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import float32_to_bf16
from kvik.runners.forms import GROUP
from kvik.step import Float32

Integers = NDArray[np.float32]
"""Whole numbers held as float32."""

LANES = 16
PARTS = tuple(np.float32(part) for part in (1, 0.95, 0.9, 0.85, 0.8))
"""Of a group's range, 0 included, over which the sixteen levels are spread; what lies outside is clipped."""
LEAST_STEP, LARGEST_STEP = np.float32(2.0**-24), np.float32(65504)
"""Of f16. Weights under half of 2**-24 become 0, and what is past 15 x 65504 is clipped."""
CHUNK = 1 << 16
"""Weights quantized at a time, such that all that is made of them stays in a core's cache."""


def round_to_bf16(values: Float32) -> Float32:
    """The nearest bf16 of each value, held as float32."""
    return (float32_to_bf16(values).astype(np.uint32) << 16).view(np.float32)


def ordered_sum(values: Float32) -> Float32:
    """Sums [..., 1] of [..., n], n a multiple of 16: first of every sixteenth value in turn, then of these sixteen sums
    i and i + 8, then i and i + 4, i + 2, i + 1.
    """
    lanes = values.reshape(*values.shape[:-1], -1, LANES)
    sums = lanes[..., 0, :]
    for i in range(1, lanes.shape[-2]):
        sums = sums + lanes[..., i, :]
    for width in (8, 4, 2, 1):
        sums = sums[..., :width] + sums[..., width:]
    return sums


def quantize_int8(rows: Float32) -> tuple[Integers, Float32]:
    """q [..., n] and scale [..., 1] of rows [..., n]. A row of zeros has scale 0; one with NaN or infinity has scale
    NaN, and q 0.
    """
    with np.errstate(all="ignore"):
        top = np.abs(rows).max(axis=-1, keepdims=True)
        sound = np.isfinite(top)
        inverse = np.float32(127) / top
        # 0 for the inverse of 0, and of a number so small that float32 cannot hold its inverse.
        scaled = rows * np.where(np.isfinite(inverse), inverse, np.float32(0))
        q = np.where(sound, np.clip(np.rint(scaled), -127, 127), np.float32(0))
        return q, np.where(sound, top / np.float32(127), np.float32(np.nan))


def quantize_int4(
    rows: Float32, group_size: int = GROUP, *, symmetric: bool = False
) -> tuple[Integers, Integers, Float32]:
    """q [m, n], z [m, groups] and d [m, groups] of rows [m, n]. group_size is a multiple of 32. A group with NaN or
    infinity has d NaN, and q and z 0.
    """
    m, n = rows.shape
    groups = -(-n // group_size)
    q = np.empty((m, n), np.float32)
    z, d = np.empty((m, groups), np.float32), np.empty((m, groups), np.float32)
    step = max(1, CHUNK // max(n, 1))
    for start in range(0, m, step):
        part = slice(start, start + step)
        padded = np.zeros((len(rows[part]), groups * group_size), np.float32)
        padded[:, :n] = rows[part]
        with np.errstate(all="ignore"):
            levels, z[part], d[part] = _quantize_groups(padded.reshape(-1, groups, group_size), symmetric)
        q[part] = levels.reshape(len(padded), -1)[:, :n]
    return q, z, d


def _quantize_groups(groups: Float32, symmetric: bool) -> tuple[Integers, Integers, Float32]:
    """Levels [..., size], zeros [...] and steps [...] of groups [..., size]."""
    sound = np.isfinite(groups).all(axis=-1, keepdims=True)
    x = np.where(sound, groups, np.float32(0))
    low = np.minimum(x.min(axis=-1, keepdims=True), np.float32(0))
    high = np.maximum(x.max(axis=-1, keepdims=True), np.float32(0))
    best = centred(x, low, high) if symmetric else search(x, low, high)
    level, zero = (np.where(sound, each, np.float32(0)) for each in (best.q + best.zero, best.zero))
    return level, zero[..., 0], np.where(sound, best.step, np.float32(np.nan))[..., 0]


@dataclass(frozen=True)
class Fit:
    """Groups in one step and zero each: `q` [..., size] counts from the zero; the others are [..., 1]."""

    q: Integers
    zero: Integers
    step: Float32
    error: Float32
    """Sum of the squared errors."""

    def or_better(self, other: Fit) -> Fit:
        """Of each group the fit with the smaller error, this one where they are equal."""
        better = other.error < self.error
        pairs = ((self.q, other.q), (self.zero, other.zero), (self.step, other.step), (self.error, other.error))
        return Fit(*(np.where(better, theirs, ours) for ours, theirs in pairs))


def to_step(wanted: Float32) -> Float32:
    """The nearest f16 that can be a step."""
    return np.clip(wanted, LEAST_STEP, LARGEST_STEP).astype(np.float16).astype(np.float32)


def fit(x: Float32, step: Float32, zero: Integers) -> Fit:
    """Groups rounded to multiples -zero .. 15 - zero of the step."""
    scaled = x * (np.float32(1) / step)
    q = np.clip(np.rint(scaled), -zero, np.float32(15) - zero)
    return Fit(q, zero, step, ordered_sum((q - scaled) * (q - scaled)) * (step * step))


def centred(x: Float32, low: Float32, high: Float32) -> Fit:
    """Zero is the level 8; steps are negative where the weight of largest magnitude is positive."""
    negative = -low >= high
    size = to_step(np.where(negative, -low, high) * np.float32(0.125))
    return fit(x, np.where(negative, size, -size), np.full_like(low, 8))


def search(x: Float32, low: Float32, high: Float32) -> Fit:
    """The best of all parts of the range, each with the two zeros beside the exact one; then that with the step that
    suits its integers best, if it is better still.
    """
    best = reduce(Fit.or_better, _fits_of_parts(x, low, high))
    squares = np.maximum(ordered_sum(best.q * best.q), np.float32(1))
    return best.or_better(fit(x, to_step(ordered_sum(x * best.q) / squares), best.zero))


def _fits_of_parts(x: Float32, low: Float32, high: Float32) -> Iterator[Fit]:
    for part in PARTS:
        step = to_step((high - low) * (part / np.float32(15)))
        exact = np.minimum(-low * part * (np.float32(1) / step), np.float32(15))
        yield fit(x, step, np.floor(exact))
        yield fit(x, step, np.ceil(exact))


def int8_values(rows: Float32) -> Float32:
    """What int8 keeps of rows [..., n]: weights [outputs, inputs], or keys and values [..., head_dim]."""
    q, scale = quantize_int8(rows)
    kept: Float32 = q * scale
    return kept


def int4_values(rows: Float32, group_size: int = GROUP, *, symmetric: bool = False) -> Float32:
    """What int4 keeps of weights [outputs, inputs]."""
    q, z, d = quantize_int4(rows, group_size, symmetric=symmetric)
    zero, step = (np.repeat(each, group_size, axis=-1)[:, : rows.shape[1]] for each in (z, d))
    kept: Float32 = (q - zero) * step
    return kept


def _unchanged(values: Float32) -> Float32:
    return values


KEPT: dict[str, Callable[[Float32], Float32]] = {
    "f32": _unchanged,
    "bf16": round_to_bf16,
    "int8": int8_values,
}
"""What each form keeps of a matrix, or of keys and values."""


def kept_weight(values: Float32, form: str, group_size: int = GROUP, *, symmetric: bool = False) -> Float32:
    """What a form keeps of a weight: int8 and int4 quantize matrices and leave norms and biases as they are."""
    if form in ("int8", "int4") and values.ndim == 1:
        return values
    return int4_values(values, group_size, symmetric=symmetric) if form == "int4" else KEPT[form](values)
