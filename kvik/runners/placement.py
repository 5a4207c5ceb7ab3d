"""Which form a weight that is quantized already is held in by a fast runner, and what that takes in bytes.

The decision is made from what is stored (`kvik/checkpoint/stored.py`), before a weight is read, and from the record
that was read (`quantized.py`): it is the same. Every form holds the record's numbers themselves: the levels, and scales
and zeros as they are, or as products that float32 holds. This file knows nothing of where the numbers lie in memory
(csrc/layout.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.stored import StoredForm
from kvik.errors import CheckpointError
from kvik.runners.forms import padded
from kvik.step import Float32

SENTENCES = {
    "int8": "a byte a weight, one float32 scale per output",
    "int4": "4 bits a weight, an f16 scale and a byte of zero point per group of inputs",
    "bytes": "a byte a weight, a float32 scale (and minimum, if there are any) per group of inputs",
    "k4": "Q4_K's own blocks: 4 bits a weight, whole factors of scale and minimum per 32 inputs, two f16 steps per 256",
    "k6": "Q6_K's own blocks: 6 bits a weight, a whole factor of the scale per 16 inputs, an f16 step per 256",
}
"""What each form is, for `kvik info`."""

SUPER_BLOCK = 256
"""Inputs that share the f16 steps of GGUF's K-quants."""
_PANEL = 32
_OFFSET = 128
_LARGEST_SCALE_EXPONENT = 15
"""f16 holds numbers below 2**16; scales are brought below 2**15 where they do not fit as they are."""


@dataclass(frozen=True)
class Placement:
    """A form and what it needs to know of the groups."""

    form: str
    """A key of SENTENCES."""
    group_size: int
    """Inputs that share a scale: 16 or a multiple of 32, or all inputs of a row (rounded up to 32)."""
    has_offsets: bool = False
    """bytes only: a number is added to every weight of a group."""
    has_units: bool = False
    """int4 only: scales are f16 times a power of two of each row."""

    @property
    def sentence(self) -> str:
        """For people."""
        return SENTENCES[self.form]

    def bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a matrix [outputs, inputs], each side padded to multiples of 32."""
        outputs, inputs = (padded(size, _PANEL) for size in shape)
        groups = -(-inputs // self.group_size)
        if self.form == "int8":
            return outputs * (inputs + 4)
        if self.form == "bytes":
            return outputs * (inputs + groups * (8 if self.has_offsets else 4))
        if self.form == "int4":
            return outputs * (inputs // 2 + groups * 3 + (4 if self.has_units else 0))
        per_super_block = SUPER_BLOCK // 2 + 16 + 4 if self.form == "k4" else SUPER_BLOCK * 3 // 4 + 16 + 2
        return outputs * inputs // SUPER_BLOCK * per_super_block


def place(record: QuantizedTensor) -> Placement:
    """The smallest form that holds the record exactly. Raises CheckpointError for groups that no form has."""
    return place_stored(described(record), record.shape)


def described(record: QuantizedTensor) -> StoredForm:
    """What its header would say of a record that has been read."""
    zeros = None if record.zeros is None else (int(record.zeros.min()), int(record.zeros.max()))
    return StoredForm(
        record.name,
        record.dtype,
        record.bits,
        record.group_size,
        zeros,
        record.scales,
        record.order is not None,
        record.super_blocks is not None,
    )


def place_stored(stored: StoredForm, shape: Sequence[int]) -> Placement:
    """The same of a quantized weight that has not been read, [outputs, inputs]. Raises CheckpointError."""
    inputs = shape[1]
    if (form := _super_block_form(stored, inputs)) is not None:
        return Placement(form, SUPER_BLOCK)
    whole_row = stored.group_size >= inputs
    group = padded(inputs, _PANEL) if whole_row else stored.group_size
    if stored.bits <= 4 and group % 32 == 0 and _has_byte_zeros(stored):
        if stored.scales is None or _fits_f16(stored.scales):
            return Placement("int4", group)
        if _fits_f16(stored.scales / units(stored.scales)):
            return Placement("int4", group, has_units=True)
    if whole_row and _shifts_to_bytes(stored):
        return Placement("int8", group)
    if group % 16:
        raise CheckpointError(
            f"{stored.name} has groups of {stored.group_size} inputs; expected a multiple of 16, or all {inputs}"
        )
    return Placement("bytes", group if group % 32 == 0 else 16, has_offsets=not _shifts_to_bytes(stored))


def units(scales: Float32) -> Float32:
    """The power of two by which each row's scales [N, groups] are divided to fit f16, [N, 1]."""
    top = np.abs(scales).max(axis=1, keepdims=True)
    exponents = np.frexp(np.where(np.isfinite(top) & (top > 0), top, np.float32(1)))[1] - _LARGEST_SCALE_EXPONENT
    powers: Float32 = np.ldexp(np.float32(1), exponents).astype(np.float32)
    return powers


def _super_block_form(stored: StoredForm, inputs: int) -> str | None:
    """k4 or k6, if it says its scales as they do."""
    if not stored.in_super_blocks or inputs % SUPER_BLOCK:
        return None
    if stored.bits == 4 and stored.group_size == 32 and stored.zeros is None:
        return "k4"
    return "k6" if stored.bits == 6 and stored.group_size == 16 and stored.zeros == (32, 32) else None


def _has_byte_zeros(stored: StoredForm) -> bool:
    """Whether 128 - zero is a byte."""
    return stored.zeros is not None and stored.zeros[0] > -_OFFSET and stored.zeros[1] <= _OFFSET


def _shifts_to_bytes(stored: StoredForm) -> bool:
    """Whether level - zero + 128 is a byte, for every level there could be."""
    if stored.zeros is None:
        return False
    most = 2**stored.bits - 1
    return stored.zeros[1] <= _OFFSET and most - stored.zeros[0] + _OFFSET <= 255


def _fits_f16(scales: Float32) -> bool:
    with np.errstate(over="ignore"):
        return bool((scales.astype(np.float16).astype(np.float32) == scales).all())
