"""The element types of GGUF: how many elements make a block, and where in its bytes everything lies.

A quantized row is blocks back to back. d and dmin are half-precision steps, m a half-precision minimum (added), qs the
low bits of the levels and qh the bits above them; `unpack.py` says in which order. Types that exist and are not done
are known by name, so that they can be refused by name. This file knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

SUPER = 256
"""Elements in a block of the K-quants."""


@dataclass(frozen=True)
class BlockType:
    """One element type. A plain type has blocks of one element."""

    name: str
    number: int
    """As tensors state it."""
    elements: int
    layout: np.dtype[Any]

    @property
    def quantized(self) -> bool:
        """Whether elements are levels with scales."""
        return self.elements > 1

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row, whose elements are a multiple of the block's."""
        return elements // self.elements * self.layout.itemsize


def _plain(name: str, number: int, dtype: str) -> BlockType:
    return BlockType(name, number, 1, np.dtype(dtype))


def _blocks(name: str, number: int, elements: int, *fields: tuple[str, str, int]) -> BlockType:
    """Fields are (name, numpy type, how many); one of something is no array."""
    layout = [(field, kind) if count == 1 else (field, kind, (count,)) for field, kind, count in fields]
    return BlockType(name, number, elements, np.dtype(layout))


_D, _DMIN, _M = ("d", "<f2", 1), ("dmin", "<f2", 1), ("m", "<f2", 1)

TYPES: dict[int, BlockType] = {
    kind.number: kind
    for kind in (
        _plain("F32", 0, "<f4"),
        _plain("F16", 1, "<f2"),
        _plain("BF16", 30, "<u2"),
        _blocks("Q4_0", 2, 32, _D, ("qs", "u1", 16)),
        _blocks("Q4_1", 3, 32, _D, _M, ("qs", "u1", 16)),
        _blocks("Q5_0", 6, 32, _D, ("qh", "u1", 4), ("qs", "u1", 16)),
        _blocks("Q5_1", 7, 32, _D, _M, ("qh", "u1", 4), ("qs", "u1", 16)),
        _blocks("Q8_0", 8, 32, _D, ("qs", "u1", 32)),
        _blocks("IQ4_NL", 20, 32, _D, ("qs", "u1", 16)),
        _blocks("Q2_K", 10, SUPER, ("scales", "u1", 16), ("qs", "u1", 64), _D, _DMIN),
        _blocks("Q3_K", 11, SUPER, ("qh", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), _D),
        _blocks("Q4_K", 12, SUPER, _D, _DMIN, ("scales", "u1", 12), ("qs", "u1", 128)),
        _blocks("Q5_K", 13, SUPER, _D, _DMIN, ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)),
        _blocks("Q6_K", 14, SUPER, ("qs", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D),
    )
}
"""Every type that is done, by its number."""
BY_NAME = {kind.name: kind for kind in TYPES.values()}

OTHERS = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0"},
    **{39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}
"""Names of types that are not done."""
