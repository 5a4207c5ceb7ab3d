"""The quantized matrices of a directory: found, checked part by part when it is opened, read one at a time.

Whether a matrix is quantized is told by the file, not the config: where the layout's marker lies in place of
`X.weight`, it is; what lies there as plain floats stays plain. This file knows nothing of families, nor of how a
layout packs.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.files import shown
from kvik.checkpoint.formats.layout import Layout
from kvik.checkpoint.formats.safetensors import READABLE
from kvik.checkpoint.formats.shards import Weights
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError

DTYPES = dict(zip(READABLE, ("bf16", "f16", "f32"), strict=True))
"""What a float type of the file is called in a `Tensor`."""


class QuantizedMatrices:
    """What a layout says of a directory's tensors. A matrix is named as its plain form would be, `X.weight`."""

    def __init__(self, layout: Layout, weights: Weights) -> None:
        self.layout = layout
        self._weights = weights

    def holds(self, stored: str) -> bool:
        """Whether this matrix is there in quantized form."""
        part, dtype = self.layout.marker
        name = _module(stored) + part
        return name in self._weights and self._weights.entry(name).dtype == dtype

    def check(self, stored: str, shape: tuple[int, ...]) -> set[str]:
        """The names of all its tensors. Raises CheckpointError for one that is missing or has another type or shape."""
        found = set()
        try:
            parts = self.layout.parts(*shape)
        except CheckpointError as error:
            raise CheckpointError(f"{self._where(stored)} {error}") from error
        for part, expected in parts.items():
            name = _module(stored) + part
            if name not in self._weights:
                if expected.optional:
                    continue
                raise CheckpointError(f"{self._where(stored)} is without {part}; expected shape {list(expected.shape)}")
            entry, where = self._weights.entry(name), f"{self._weights.path(name)}: tensor {name}"
            if entry.shape != expected.shape:
                raise CheckpointError(f"{where} has shape {list(entry.shape)}; expected {list(expected.shape)}")
            if entry.dtype not in expected.dtypes:
                raise CheckpointError(f"{where} has dtype {entry.dtype}; expected one of {', '.join(expected.dtypes)}")
            found.add(name)
        return found

    def is_spare_bias(self, name: str) -> bool:
        """Whether this is a bias of zeros, which some GPTQ tools write for every matrix they quantize."""
        module = name.removesuffix("bias")
        return (
            module != name
            and self.holds(module + "weight")
            and self._weights.entry(name).dtype in DTYPES
            and not self._weights.array(name).any()
        )

    def read(self, name: str, stored: str, shape: tuple[int, ...]) -> QuantizedTensor:
        """The matrix with this canonical name. Raises CheckpointError naming it for impossible values."""
        parts = {part: self._array(_module(stored) + part) for part in self._present(stored, shape)}
        try:
            tensor = self.layout.read(name, parts)
        except CheckpointError as error:
            raise CheckpointError(f"{self._where(stored)} {error}") from error
        if tensor.shape != shape:
            raise CheckpointError(f"{self._where(stored)} has shape {list(tensor.shape)}; expected {list(shape)}")
        return tensor

    def release(self, stored: str, shape: tuple[int, ...]) -> None:
        """Give the pages of all its parts back."""
        for part in self._present(stored, shape):
            self._weights.release(_module(stored) + part)

    def _present(self, stored: str, shape: tuple[int, ...]) -> list[str]:
        return [part for part in self.layout.parts(*shape) if _module(stored) + part in self._weights]

    def _array(self, name: str) -> NDArray[Any]:
        dtype = self._weights.entry(name).dtype
        if dtype in DTYPES:
            return Tensor(name, DTYPES[dtype], self._weights.array(name)).float32()
        return self._weights.integers(name)

    def _where(self, stored: str) -> str:
        path = self._weights.path(_module(stored) + self.layout.marker[0])
        return f"{path}: the quantized matrix {shown(_module(stored)[:-1])}"


def _module(stored: str) -> str:
    """`X.` of `X.weight`."""
    return stored.removesuffix("weight")
