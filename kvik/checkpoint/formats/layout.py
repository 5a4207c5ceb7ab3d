"""Layout: how a file format spreads one quantized matrix over named parts, and the packing that several share.

Each format (`gptq.py`, `awq.py`, `compressed.py`) says which parts a matrix [N outputs, K inputs] must have, with their
types and shapes, so that a directory is checked before anything is read; then it turns the parts into a
QuantizedTensor and back, without losing a bit. This file knows nothing of models or of how levels are chosen.

Small integers are packed into 32-bit words, the first in the lowest bits:

    4 bits    word = l0 | l1 << 4 | .. | l7 << 28          8 bits    word = l0 | l1 << 8 | l2 << 16 | l3 << 24
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError
from kvik.step import Float32

FLOATS = ("F16", "BF16", "F32")
"""What scales may be stored as."""
Parts = Mapping[str, NDArray[Any]]
"""Arrays by part; floats are float32 already."""


@dataclass(frozen=True)
class Part:
    """What one tensor of a quantized matrix must be."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    optional: bool = False


class Layout(Protocol):
    """One format with the settings of one model."""

    @property
    def dtype(self) -> str:
        """What the format calls its weights (`QuantizedTensor.dtype`)."""

    @property
    def bits(self) -> int: ...

    @property
    def marker(self) -> tuple[str, str]:
        """The part, with its type, that tells a quantized matrix from a plain one."""

    def parts(self, outputs: int, inputs: int) -> dict[str, Part]:
        """What a matrix consists of. Raises CheckpointError for a shape that the format cannot hold."""

    def read(self, name: str, parts: Parts) -> QuantizedTensor:
        """The matrix, exactly. Raises CheckpointError, which does not name the tensor, for impossible values."""

    def write(self, tensor: QuantizedTensor) -> dict[str, NDArray[Any]]:
        """The parts of a matrix, scales as float32. Raises CheckpointError for one that the format cannot hold."""

    def config(self) -> dict[str, Any]:
        """`quantization_config` of a model in this layout."""


def unpack(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Levels [.., n x 32 / bits] of words [.., n]."""
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return octets
    levels = np.empty((*octets.shape[:-1], octets.shape[-1] * 2), np.uint8)
    levels[..., 0::2], levels[..., 1::2] = octets & 15, octets >> 4
    return levels


def pack(levels: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Words [.., n] of levels [.., n x 32 / bits]; the last axis is a whole number of words."""
    octets: NDArray[Any] = np.ascontiguousarray(levels)
    if bits == 4:
        octets = octets[..., 0::2] | octets[..., 1::2] << 4
    return np.ascontiguousarray(octets).view("<i4")


def padded(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Levels with zeros behind them, up to a whole number of words."""
    missing = -levels.shape[-1] % (32 // bits)
    return np.pad(levels, [(0, 0)] * (levels.ndim - 1) + [(0, missing)]) if missing else levels


def check_scales(scales: Float32) -> Float32:
    """The scales. Raises CheckpointError if one is NaN, infinite or negative."""
    wrong = ~(np.isfinite(scales) & (scales >= 0))
    if wrong.any():
        raise CheckpointError(f"has the scale {scales[wrong][0]}; expected finite numbers from 0")
    return scales


def check_divides(what: str, count: int, divisor: int) -> None:
    """Raises CheckpointError unless `count` is a multiple."""
    if count % divisor:
        raise CheckpointError(f"has {count} {what}; expected a multiple of {divisor}")


def same_zero(scales: Float32, zero: int) -> NDArray[np.int16]:
    """One zero point for all groups of a symmetric matrix."""
    return np.full(scales.shape, zero, np.int16)
