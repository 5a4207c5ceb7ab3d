"""Quantized weights, keys and values: what each form keeps of a float32 array, as float32.

    int8   one scale per row:            value = q * scale, q in -127 .. 127, scale = max|row| / 127
    int4   one scale per 32 inputs:      value = q * d,     q in -8 .. 7,     d a bf16, -1/8 of the group's extreme

Symmetric round-to-nearest, ties to even, all arithmetic in float32. The order of operations is part of the
definition: a fast runner that follows it gets the same integers. An int4 group's element of largest magnitude becomes
-8, so the whole range serves it, and one of the same size and opposite sign is clipped to 7.
This file knows nothing of packing, and nothing of what the values are used for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import float32_to_bf16
from kvik.runners.forms import GROUP
from kvik.step import Float32

Integers = NDArray[np.float32]
"""Whole numbers held as float32: a row that is not a number has none, and must stay not a number."""


def round_to_bf16(values: Float32) -> Float32:
    """The nearest bf16 of each value, held as float32."""
    return (float32_to_bf16(values).astype(np.uint32) << 16).view(np.float32)


def quantize_int8(rows: Float32) -> tuple[Integers, Float32]:
    """q [..., n] and scale [..., 1] of rows [..., n]; a row of zeros has scale 0."""
    with np.errstate(all="ignore"):
        top = np.abs(rows).max(axis=-1, keepdims=True)
        q = np.clip(np.rint(rows * _finite(np.float32(127) / top)), -127, 127)
        return q, top / np.float32(127)


def quantize_int4(rows: Float32) -> tuple[Integers, Float32]:
    """q [m, n] and d [m, groups] of rows [m, n]; the last group of a row may be shorter than 32."""
    m, n = rows.shape
    groups = -(-n // GROUP)
    grouped = np.zeros((m, groups * GROUP), np.float32)
    grouped[:, :n] = rows
    grouped = grouped.reshape(m, groups, GROUP)
    first_largest = np.abs(grouped).argmax(axis=-1)[..., None]
    with np.errstate(all="ignore"):
        d = round_to_bf16(np.take_along_axis(grouped, first_largest, axis=-1) / np.float32(-8))
        q = np.clip(np.rint(grouped * _finite(np.float32(1) / d)), -8, 7)
    return q.reshape(m, -1)[:, :n], d[..., 0]


def _finite(inverse: Float32) -> Float32:
    """0 for the inverse of 0, and of a scale so small that float32 cannot hold its inverse."""
    return np.where(np.isinf(inverse), np.float32(0), inverse)


def int8_values(rows: Float32) -> Float32:
    """What int8 keeps of rows [..., n]: weights [outputs, inputs], or keys and values [..., head_dim]."""
    q, scale = quantize_int8(rows)
    with np.errstate(all="ignore"):
        kept: Float32 = q * scale
    return kept


def int4_values(rows: Float32) -> Float32:
    """What int4 keeps of weights [outputs, inputs]."""
    q, d = quantize_int4(rows)
    with np.errstate(all="ignore"):
        kept: Float32 = q * np.repeat(d, GROUP, axis=-1)[:, : rows.shape[1]]
    return kept


def _unchanged(values: Float32) -> Float32:
    return values


KEPT: dict[str, Callable[[Float32], Float32]] = {
    "f32": _unchanged,
    "bf16": round_to_bf16,
    "int8": int8_values,
    "int4": int4_values,
}
"""What each form keeps of a matrix; of keys and values too, but for int4."""


def kept_weight(values: Float32, form: str) -> Float32:
    """What a form keeps of a weight: int8 and int4 quantize matrices and leave norms and biases as they are."""
    return values if form in ("int8", "int4") and values.ndim == 1 else KEPT[form](values)
