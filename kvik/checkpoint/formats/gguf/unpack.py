"""GGUF's blocks as levels and scales, exactly: integers stay the file's, scales are what its arithmetic makes of them.

    Q4_0 Q5_0 Q8_0     (level - offset) * d                                    32 elements
    Q4_1 Q5_1          level * d + m                                           32
    IQ4_NL             CURVE[level] * d                                        32; kept as the curve's 8-bit values
    Q2_K Q4_K Q5_K     level * (d * scale) - dmin * minimum                    256, groups of 16 or 32
    Q3_K Q6_K          (level - offset) * (d * scale)                          256, groups of 16

Levels are spread over the bytes in halves and quarters of a block, as the functions below show by their shapes. A row
is taken some blocks at a time, so that besides the result little is held. This file knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.formats.gguf.layouts import BlockType
from kvik.checkpoint.quantized import QuantizedTensor, SuperBlocks
from kvik.errors import CheckpointError

Bytes = NDArray[Any]
"""Of uint8."""
Blocks = NDArray[Any]
"""[n] of a type's layout."""

CHUNK = 1 << 20
"""Elements taken at a time, about."""
CURVE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)
"""The sixteen values of IQ4_NL."""
_TWO_BITS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_EIGHT_BITS = np.arange(8, dtype=np.uint8)[:, None]


@dataclass(frozen=True)
class Form:
    """How one type says its levels."""

    bits: int
    group: int
    levels: Callable[[Blocks], Bytes]
    """[n] blocks to [n, elements]."""
    offset: int | None = None
    """What is taken off a level; None where groups have minima."""
    factors: Callable[[Blocks], tuple[NDArray[Any], Bytes | None]] | None = None
    """Of a K-quant: the integer scales and minima of its groups, [n, groups] each."""


def _nibbles(qs: Bytes) -> Bytes:
    """[.., m] bytes to [.., 2, m]: all low halves, then all high ones."""
    halves: Bytes = np.stack([qs & 15, qs >> 4], axis=-2)
    return halves


def _flat(levels: NDArray[Any], blocks: Blocks) -> Bytes:
    return np.asarray(levels, np.uint8).reshape(len(blocks), -1)


def _halves(blocks: Blocks) -> Bytes:
    return _flat(_nibbles(blocks["qs"]), blocks)


def _fifth_bit(blocks: Blocks) -> Bytes:
    high = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")
    return np.asarray(_halves(blocks) | high << 4, np.uint8)


def _whole_bytes(blocks: Blocks) -> Bytes:
    return _flat(blocks["qs"] ^ 0x80, blocks)


def _on_curve(blocks: Blocks) -> Bytes:
    return (CURVE + 128).astype(np.uint8)[_halves(blocks)]


def _quarters(blocks: Blocks) -> Bytes:
    """Two bits each: byte l of a half has elements l, l + 32, l + 64, l + 96 of it."""
    return _flat(blocks["qs"].reshape(-1, 2, 1, 32) >> _TWO_BITS & 3, blocks)


def _third_bit(blocks: Blocks) -> Bytes:
    high = blocks["qh"][:, None, :] >> _EIGHT_BITS & 1
    return _quarters(blocks) | _flat(high << 2, blocks)


def _pairs(blocks: Blocks) -> Bytes:
    """Four bits each: byte l of a quarter has elements l and l + 32 of it."""
    return _flat(_nibbles(blocks["qs"].reshape(-1, 4, 32)), blocks)


def _pairs_and_bit(blocks: Blocks) -> Bytes:
    high = blocks["qh"][:, None, :] >> _EIGHT_BITS & 1
    return _pairs(blocks) | _flat(high << 4, blocks)


def _six_bits(blocks: Blocks) -> Bytes:
    """Byte l of a half has the low four bits of elements l and l + 64 of it, the high two as in `_quarters`."""
    low = _nibbles(blocks["qs"].reshape(-1, 2, 64))
    high = blocks["qh"].reshape(-1, 2, 1, 32) >> _TWO_BITS & 3
    return _flat(low, blocks) | _flat(high << 4, blocks)


def _factors_q2(blocks: Blocks) -> tuple[NDArray[Any], Bytes | None]:
    return blocks["scales"] & 15, blocks["scales"] >> 4


def _factors_q3(blocks: Blocks) -> tuple[NDArray[Any], Bytes | None]:
    """Low four bits as halves of eight bytes, high two as quarters of four; 32 is 0."""
    scales = blocks["scales"]
    low = _nibbles(scales[:, :8]).reshape(-1, 16)
    high = (scales[:, None, 8:] >> _TWO_BITS & 3).reshape(-1, 16)
    return (low | high << 4).astype(np.int8) - np.int8(32), None


def _factors_q4(blocks: Blocks) -> tuple[NDArray[Any], Bytes | None]:
    """Six bits each. Of groups 0-3 in bytes 0-3 (scales) and 4-7 (minima), whose upper two bits are the upper two of
    groups 4-7; the low four of those are in bytes 8-11.
    """
    first, second, third = blocks["scales"].reshape(-1, 3, 4).swapaxes(0, 1)
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    return scales, np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)


def _factors_q6(blocks: Blocks) -> tuple[NDArray[Any], Bytes | None]:
    return blocks["scales"], None


FORMS = {
    "Q4_0": Form(4, 32, _halves, 8),
    "Q4_1": Form(4, 32, _halves),
    "Q5_0": Form(5, 32, _fifth_bit, 16),
    "Q5_1": Form(5, 32, _fifth_bit),
    "Q8_0": Form(8, 32, _whole_bytes, 128),
    "IQ4_NL": Form(8, 32, _on_curve, 128),
    "Q2_K": Form(2, 16, _quarters, None, _factors_q2),
    "Q3_K": Form(3, 16, _third_bit, 4, _factors_q3),
    "Q4_K": Form(4, 32, _pairs, None, _factors_q4),
    "Q5_K": Form(5, 32, _pairs_and_bit, None, _factors_q4),
    "Q6_K": Form(6, 16, _six_bits, 32, _factors_q6),
}
"""By the type's name."""


def unpack(name: str, kind: BlockType, blocks: Blocks, where: str) -> QuantizedTensor:
    """Blocks [N, blocks of a row] of a quantized type as the tensor of this canonical name.

    Raises CheckpointError that begins with `where` if a step or a minimum is NaN or infinite.
    """
    form = FORMS[kind.name]
    rows, per_row = blocks.shape
    flat = np.ascontiguousarray(blocks).reshape(-1)
    _check_finite(flat, kind, per_row, where)
    levels = np.empty((rows * per_row, kind.elements), np.uint8)
    step = max(1, CHUNK // kind.elements)
    for at in range(0, len(flat), step):
        levels[at : at + step] = form.levels(flat[at : at + step])
    scales, mins, supers = _scales(form, flat, rows)
    return QuantizedTensor(
        name=name,
        dtype=kind.name,
        bits=form.bits,
        levels=levels.reshape(rows, -1),
        scales=scales,
        group_size=form.group,
        zeros=None if form.offset is None else np.full(scales.shape, form.offset, np.int16),
        mins=mins,
        super_blocks=supers,
    )


def _scales(
    form: Form, blocks: Blocks, rows: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, SuperBlocks | None]:
    """Scales and minima [rows, groups], and how they are written where they are products."""
    step = blocks["d"].astype(np.float32)[:, None]
    if form.factors is None:
        minimum = None if form.offset is not None else -blocks["m"].astype(np.float32).reshape(rows, -1)
        return step.reshape(rows, -1), minimum, None
    factor, min_factor = form.factors(blocks)
    scales = (step * factor.astype(np.float32)).reshape(rows, -1)
    half, factor = blocks["d"].reshape(rows, -1).astype(np.float16), factor.reshape(rows, -1)
    if min_factor is None:
        return scales, None, SuperBlocks(half, factor)
    mins = (blocks["dmin"].astype(np.float32)[:, None] * min_factor.astype(np.float32)).reshape(rows, -1)
    min_step = blocks["dmin"].reshape(rows, -1).astype(np.float16)
    return scales, mins, SuperBlocks(half, factor, min_step, min_factor.reshape(rows, -1))


def _check_finite(blocks: Blocks, kind: BlockType, per_row: int, where: str) -> None:
    for field in ("d", "dmin", "m"):
        if field in (kind.layout.names or ()) and not np.isfinite(blocks[field]).all():
            at = int(np.flatnonzero(~np.isfinite(blocks[field]))[0])
            place = f"row {at // per_row}, block {at % per_row}"
            raise CheckpointError(f"{where}: {field} of {place} is {blocks[field][at]}; expected a finite number")
