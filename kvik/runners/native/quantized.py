"""A quantized weight as the library takes it: KvikQuantized of csrc/kvik.h, whose table says what each array means.

Levels are shifted to where the form has its zero; scales, zeros and factors are handed over as they are. This file
knows nothing of how the library lays them out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.quantized import QuantizedTensor
from kvik.runners.native.library import FORMS, QuantizedStruct, address, as_contiguous
from kvik.runners.placement import Placement, units
from kvik.step import Float32

Array = NDArray[Any]
_ZERO = 128
"""Of a byte."""
_CHUNK = 1 << 20
"""Levels shifted at a time."""


class PackedArrays:
    """`struct` points into arrays that live as long as this does."""

    def __init__(self, record: QuantizedTensor, placement: Placement) -> None:
        self._arrays: list[Array] = []
        self.struct: Any = QuantizedStruct()
        self.struct.form = FORMS[placement.form]
        self.struct.group = placement.group_size
        self.struct.rows, self.struct.columns = record.shape
        arrays = _ARRAYS[placement.form](record, placement)
        if record.order is not None:
            arrays["order"] = record.order.astype(np.int32, copy=False)
        for name, array in arrays.items():
            self._arrays.append(as_contiguous(array))
            setattr(self.struct, name, address(self._arrays[-1]))


def _int8(record: QuantizedTensor, placement: Placement) -> dict[str, Array]:
    return {"levels": _bytes_around_zero(record), "scales": record.scales.astype(np.float32, copy=False)}


def _int4(record: QuantizedTensor, placement: Placement) -> dict[str, Array]:
    assert record.zeros is not None
    arrays: dict[str, Array] = {"levels": record.levels, "zeros": (_ZERO - record.zeros).astype(np.uint8)}
    scales = record.scales
    if placement.has_units:
        powers = units(scales)
        scales = scales / powers
        arrays["units"] = powers[:, 0]
    return arrays | {"scales": scales.astype(np.float16)}


def _bytes(record: QuantizedTensor, placement: Placement) -> dict[str, Array]:
    repeat = 1 if record.group_size >= record.shape[1] else record.group_size // placement.group_size
    groups = -(-record.shape[1] // placement.group_size)

    def spread(values: Float32) -> Float32:
        repeated: Float32 = np.repeat(values, repeat, axis=1)[:, :groups].astype(np.float32, copy=False)
        return repeated

    if not placement.has_offsets:
        return {"levels": _bytes_around_zero(record), "scales": spread(record.scales)}
    lift = 0 if record.bits == 8 else _ZERO
    levels = record.levels + np.uint8(lift)
    return {"levels": levels, "scales": spread(record.scales), "zeros": spread(_offsets(record, lift))}


def _offsets(record: QuantizedTensor, lift: int) -> Float32:
    """What is added to (level + lift - 128) * scale: exact unless levels take all 8 bits, and rounded once then."""
    shift = np.float32(_ZERO - lift)
    if record.mins is not None:
        return np.asarray(record.scales * shift - record.mins, np.float32)
    assert record.zeros is not None
    return np.asarray(record.scales * (shift - record.zeros.astype(np.float32)), np.float32)


def _k4(record: QuantizedTensor, placement: Placement) -> dict[str, Array]:
    blocks = record.super_blocks
    assert blocks is not None
    assert blocks.min_step is not None
    assert blocks.min_factor is not None
    return {
        "levels": record.levels,
        "scales": blocks.step,
        "zeros": blocks.min_step,
        "factors": blocks.factor.astype(np.uint8, copy=False),
        "min_factors": blocks.min_factor,
    }


def _k6(record: QuantizedTensor, placement: Placement) -> dict[str, Array]:
    assert record.super_blocks is not None
    blocks = record.super_blocks
    return {"levels": record.levels, "scales": blocks.step, "factors": blocks.factor.astype(np.int8, copy=False)}


_ARRAYS = {"int8": _int8, "int4": _int4, "bytes": _bytes, "k4": _k4, "k6": _k6}


def _bytes_around_zero(record: QuantizedTensor) -> NDArray[np.uint8]:
    """level - zero + 128."""
    assert record.zeros is not None
    shifts = _ZERO - record.zeros.astype(np.int16)
    first = int(shifts.flat[0])
    if (shifts == first).all():
        return record.levels if first == 0 else record.levels + np.uint8(first)
    out = np.empty(record.shape, np.uint8)
    step = max(1, _CHUNK // record.shape[1])
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        spread = np.repeat(shifts[part], record.group_size, axis=1)[:, : record.shape[1]]
        # Modulo 256: the sum is a byte, whatever the shift is.
        out[part] = record.levels[part] + spread.astype(np.uint8)
    return out
