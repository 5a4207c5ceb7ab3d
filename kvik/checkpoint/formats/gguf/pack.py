"""Weights as GGUF's blocks: what `search.py` finds, put where `layouts.py` says; the inverse of `unpack.py`.

Plain forms are rounded to nearest. Values that a form cannot hold are refused: NaN and infinity everywhere, and what
is beyond the largest f16 there. This file knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import float32_to_bf16
from kvik.checkpoint.formats.gguf.layouts import BlockType
from kvik.checkpoint.formats.gguf.search import (
    Found,
    quantize_q4_0,
    quantize_q4_k,
    quantize_q6_k,
    quantize_q8_0,
)
from kvik.errors import CheckpointError
from kvik.step import Float32

CHUNK = 1 << 17
"""Weights quantized at a time, such that what is made of them stays in a core's cache."""
LARGEST = 65504
"""What f16 holds; steps are f16 too."""
_Search = Callable[[Float32], Found]


def pack(values: Float32, kind: BlockType, where: str) -> NDArray[Any]:
    """Values [.., K] as elements or blocks of a type that is written (`WRITTEN`), K a multiple of its block.

    Raises CheckpointError that begins with `where` for a value that the type cannot hold.
    """
    if not np.isfinite(values).all():
        raise CheckpointError(f"{where} holds NaN or infinity; expected finite values")
    if kind.name == "BF16":
        return float32_to_bf16(values)
    if kind.name == "F32":
        return values.astype(kind.layout)
    if values.size and (most := np.abs(values).max()) > LARGEST:
        raise CheckpointError(f"{where} holds {most:g}; expected at most {LARGEST} to write {kind.name}")
    if kind.name == "F16":
        return values.astype(kind.layout)
    rows = values.reshape(-1, kind.elements)
    blocks = np.empty(len(rows), kind.layout)
    search, fill = WRITTEN[kind.name]
    step = max(1, CHUNK // kind.elements)
    for at in range(0, len(rows), step):
        fill(blocks[at : at + step], search(rows[at : at + step]))
    return blocks.reshape(*values.shape[:-1], -1)


def _nibbles(levels: NDArray[Any]) -> NDArray[Any]:
    """[.., 2, m] levels, uint8, to [.., m] bytes, the first in the low half."""
    joined: NDArray[Any] = levels[..., 0, :] | levels[..., 1, :] << 4
    return joined


def _fill_q8_0(blocks: NDArray[Any], found: Found) -> None:
    blocks["d"], blocks["qs"] = found.step, found.levels.view(np.uint8)


def _fill_q4_0(blocks: NDArray[Any], found: Found) -> None:
    levels = (found.levels + np.int8(8)).astype(np.uint8)
    blocks["d"], blocks["qs"] = found.step, _nibbles(levels.reshape(-1, 2, 16))


def _fill_q4_k(blocks: NDArray[Any], found: Found) -> None:
    """Six-bit scales and minima as `unpack._factors_q4` draws them."""
    assert found.factors is not None
    assert found.min_factors is not None
    scales, mins = found.factors.astype(np.uint8), found.min_factors.astype(np.uint8)
    low, high = (slice(None), slice(0, 4)), (slice(None), slice(4, 8))
    first, second = scales[low] | scales[high] >> 4 << 6, mins[low] | mins[high] >> 4 << 6
    blocks["scales"] = np.concatenate([first, second, scales[high] & 15 | mins[high] << 4], axis=1)
    blocks["d"], blocks["dmin"] = found.step, found.min_step
    blocks["qs"] = _nibbles(found.levels.astype(np.uint8).reshape(-1, 4, 2, 32)).reshape(-1, 128)


def _fill_q6_k(blocks: NDArray[Any], found: Found) -> None:
    levels = (found.levels + np.int8(32)).astype(np.uint8)
    high = levels.reshape(-1, 2, 4, 32) >> 4
    blocks["qs"] = _nibbles(levels.reshape(-1, 2, 2, 64) & 15).reshape(-1, 128)
    blocks["qh"] = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    blocks["scales"], blocks["d"] = found.factors, found.step


WRITTEN: dict[str, tuple[_Search, Callable[[NDArray[Any], Found], None]]] = {
    "Q8_0": (quantize_q8_0, _fill_q8_0),
    "Q4_0": (quantize_q4_0, _fill_q4_0),
    "Q4_K": (quantize_q4_k, _fill_q4_k),
    "Q6_K": (quantize_q6_k, _fill_q6_k),
}
"""How each quantized type is made."""
