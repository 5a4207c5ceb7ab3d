"""Checkpoint: a model on disk (or a dummy one), opened but not yet read.

`spec` is known and every tensor's name, form and shape is checked when a Checkpoint is made; the bytes are read only
when `tensor` is called, one at a time, so that a runner can pack straight from the file's memory map and never hold
the model twice. This file knows nothing of file formats or of how weights are computed with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec


@dataclass(frozen=True)
class Tensor:
    """One weight as stored. `data` is a row-major array that may be a read-only view of a memory map; bf16 is held as
    uint16, f16 as float16, f32 as float32.
    """

    name: str
    dtype: str
    """bf16, f16 or f32."""
    data: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def float32(self) -> NDArray[np.float32]:
        """The values in float32 (exact: every stored form is a subset of it)."""
        if self.dtype == "bf16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32)


class Checkpoint(Protocol):
    """A model that can be loaded."""

    @property
    def name(self) -> str:
        """What to call the model in messages."""

    @property
    def spec(self) -> DecoderSpec: ...

    @property
    def directory(self) -> Path | None:
        """Where the tokenizer files lie; None for a dummy model."""

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """The weight of this canonical name (`DecoderSpec.tensor_shapes`): a matrix as it is stored, be it quantized,
        or a vector. Raises CheckpointError.
        """

    def release(self, name: str) -> None:
        """Tell the operating system that this weight's pages are no longer needed."""


def float32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bf16 (nearest, ties to even), as uint16 bit patterns. NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
