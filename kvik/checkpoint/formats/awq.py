"""AWQ's layout (GEMM): `qweight`, `qzeros` and `scales` of one matrix [N outputs, K inputs], 4 bits, G groups.

    qweight  int32 [K, N / 8]    levels of eight outputs in a word
    qzeros   int32 [G, N / 8]    their zero points, packed alike
    scales   float [G, N]

The eight outputs of a word lie in it, from the lowest bits, in the order 0 2 4 6 1 3 5 7. This file knows nothing of
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.layout import FLOATS, Part, Parts, check_divides, check_scales, pack, unpack
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError

BITS = 4
PER_WORD = 8
ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
"""The output, of eight, in each place of a word."""
PLACE = np.argsort(ORDER)
"""The place of each output."""


@dataclass(frozen=True)
class AwqLayout:
    """The settings of one model. `group_size` is -1 where a whole row shares a scale."""

    group_size: int
    bits: int = BITS

    @property
    def dtype(self) -> str:
        return "awq-int4"

    @property
    def marker(self) -> tuple[str, str]:
        return "qweight", "I32"

    def parts(self, outputs: int, inputs: int) -> dict[str, Part]:
        """See the top of this file."""
        check_divides("outputs", outputs, PER_WORD)
        size = self._size(inputs)
        check_divides("inputs", inputs, size)
        words = outputs // PER_WORD
        return {
            "qweight": Part(("I32",), (inputs, words)),
            "qzeros": Part(("I32",), (inputs // size, words)),
            "scales": Part(FLOATS, (inputs // size, outputs)),
        }

    def read(self, name: str, parts: Parts) -> QuantizedTensor:
        """The matrix."""
        levels = np.ascontiguousarray(_permuted(unpack(parts["qweight"], BITS), PLACE).T)
        zeros = _permuted(unpack(parts["qzeros"], BITS), PLACE).astype(np.int16)
        return QuantizedTensor(
            name=name,
            dtype=self.dtype,
            bits=BITS,
            levels=levels,
            scales=np.ascontiguousarray(check_scales(parts["scales"]).T),
            group_size=self._size(levels.shape[1]),
            zeros=np.ascontiguousarray(zeros.T),
        )

    def write(self, tensor: QuantizedTensor) -> dict[str, NDArray[Any]]:
        """The parts of a matrix, whose columns are in their own order."""
        assert tensor.zeros is not None
        if tensor.order is not None or tensor.zeros.min() < 0 or tensor.zeros.max() > 15:
            raise CheckpointError("has act-order or zero points outside 0 .. 15, which AWQ's layout cannot hold")
        return {
            "qweight": pack(_permuted(tensor.levels.T, ORDER), BITS),
            "qzeros": pack(_permuted(tensor.zeros.T.astype(np.uint8), ORDER), BITS),
            "scales": np.ascontiguousarray(tensor.scales.T),
        }

    def config(self) -> dict[str, Any]:
        """As transformers, vLLM and AutoAWQ read it."""
        return {
            "quant_method": "awq",
            "bits": BITS,
            "group_size": self.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["lm_head"],
        }

    def _size(self, inputs: int) -> int:
        return inputs if self.group_size == -1 else self.group_size


def read_awq(fields: Fields) -> AwqLayout:
    """The layout that a `quantization_config` describes. Raises UnsupportedModelError by name, CheckpointError."""
    if type(fields.get("bits")) is not int or fields.get("bits") != BITS:
        raise fields.unsupported("bits", "4")
    for name in ("version", "checkpoint_format", "format"):
        version = fields.get(name)
        if version is not None and (not isinstance(version, str) or version.lower() != "gemm"):
            raise fields.unsupported(name, "gemm")
    if fields.get("zero_point") is False:
        raise fields.unsupported("zero_point", "true")
    size = fields.get("group_size")
    if type(size) is not int or (size != -1 and not 1 <= size <= 1 << 20):
        raise fields.wrong("group_size", "-1 or a whole number from 1")
    return AwqLayout(size)


def _permuted(levels: NDArray[np.uint8], order: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Every eight of the last axis in another order."""
    eights = levels.reshape(*levels.shape[:-1], -1, PER_WORD)
    return eights[..., order].reshape(levels.shape)
