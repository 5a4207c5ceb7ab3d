"""A quantized matrix on the device: packed levels, a scale and a zero for every group of inputs.

    bits 8   byte [n, i] is the level of input i
    bits 4   byte [n, i] holds input i in its low half and input i + half in its high half, where `half` is a whole
             number of groups: so a product takes two slices of its input, and nothing is interleaved

    value[n, i] = (level - zero[n, g]) * scale[n, g]       or, with `minima`,       level * scale[n, g] - zero[n, g]

Scales and zeros are f16 where that is exact, else float32. This file knows nothing of file formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kvik.checkpoint.quantized import QuantizedTensor
from kvik.runners.cuda.linear import Linear, SideBySide
from kvik.step import Float32, Int32


@dataclass(frozen=True)
class Quantized:
    """The numbers of a matrix [outputs, inputs]."""

    levels: torch.Tensor
    """uint8 [outputs, inputs] or [outputs, half]."""
    scales: torch.Tensor
    """[outputs, groups] f16 or float32."""
    zeros: torch.Tensor
    inputs: int
    group_size: int
    bits: int
    """4 or 8, as stored."""
    minima: bool

    @property
    def half(self) -> int:
        """Bytes of a row: where the high halves' inputs begin."""
        return self.levels.shape[1]

    def values(self, index: torch.Tensor | None = None) -> torch.Tensor:
        """Rows of the matrix, all or those of an index, float32 [n, inputs]."""
        levels, scales, zeros = self.levels, self.scales, self.zeros
        if index is not None:
            levels, scales, zeros = levels[index], scales[index], zeros[index]
        if self.bits == 4:
            levels = torch.cat([levels & 15, levels >> 4], dim=-1)[:, : self.inputs]
        scales, zeros = (
            each.float().repeat_interleave(self.group_size, dim=-1)[:, : self.inputs] for each in (scales, zeros)
        )
        return levels * scales - zeros if self.minima else (levels.float() - zeros) * scales


Multiply = Callable[[torch.Tensor, Quantized], torch.Tensor]
"""x [T, inputs] by a quantized matrix to [T, outputs], in x's dtype."""


def multiply_plain(x: torch.Tensor, matrix: Quantized) -> torch.Tensor:
    """The matrix in x's dtype first, then one product: what the kernels are held against, and best for many tokens."""
    return torch.nn.functional.linear(x, matrix.values().to(x.dtype))


@dataclass(frozen=True)
class QuantizedLinear:
    """y = x @ values.T (+ bias)."""

    matrix: Quantized
    bias: torch.Tensor | None
    order: torch.Tensor | None
    """Column i of the matrix multiplies input order[i]."""
    multiply: Multiply

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, inputs] to [T, outputs]."""
        y = self.multiply(x if self.order is None else x[:, self.order], self.matrix)
        return y if self.bias is None else y + self.bias

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """For logits."""
        return self(x).float()

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """A look-up of values, inputs in their own order."""
        values = self.matrix.values(index)
        return values if self.order is None else values[:, torch.argsort(self.order)]

    @property
    def nbytes(self) -> int:
        """Bytes of levels, scales, zeros and bias."""
        tensors = (self.matrix.levels, self.matrix.scales, self.matrix.zeros, self.bias, self.order)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def joined(
    tensors: Sequence[QuantizedTensor],
    bias: torch.Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
    multiply: Multiply,
) -> Linear:
    """Matrices that read one input as one, if they are quantized alike; else side by side."""
    if all(alike(tensors[0], tensor) for tensor in tensors):
        matrix = packed(tensors, device)
        order = None if tensors[0].order is None else torch.from_numpy(tensors[0].order.astype("int64")).to(device)
        return QuantizedLinear(matrix, bias, order, multiply)
    sizes = [tensor.shape[0] for tensor in tensors]
    biases = [None] * len(sizes) if bias is None else list(torch.split(bias, sizes))
    parts = zip(tensors, biases, strict=True)
    return SideBySide(tuple(joined([tensor], each, device, dtype, multiply) for tensor, each in parts))


def alike(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    """Whether the rows of both can stand in one matrix."""
    orders = (a.order is None and b.order is None) or (
        a.order is not None and b.order is not None and np.array_equal(a.order, b.order)
    )
    return orders and (stored_bits(a), a.group_size, a.mins is None) == (stored_bits(b), b.group_size, b.mins is None)


def stored_bits(tensor: QuantizedTensor) -> int:
    """Bits that a level takes here."""
    return 4 if tensor.bits <= 4 else 8


def packed(tensors: Sequence[QuantizedTensor], device: torch.device) -> Quantized:
    """The rows of matrices that are alike, on the device."""
    first = tensors[0]
    levels = torch.from_numpy(np.concatenate([tensor.levels for tensor in tensors])).to(device)
    offsets = [tensor.mins if tensor.zeros is None else tensor.zeros for tensor in tensors]
    scales, zeros = (
        exact_half(np.concatenate(list(arrays)), device)
        for arrays in ([tensor.scales for tensor in tensors], [each for each in offsets if each is not None])
    )
    inputs, group = first.shape[1], first.group_size
    bits = stored_bits(first)
    if bits == 4:
        half = -(-inputs // 2) if group >= inputs else -(-inputs // (2 * group)) * group
        padded = torch.nn.functional.pad(levels, (0, 2 * half - inputs))
        levels = padded[:, :half] | padded[:, half:] << 4
    return Quantized(levels.contiguous(), scales, zeros, inputs, group, bits, minima=first.zeros is None)


def exact_half(values: Float32 | Int32, device: torch.device) -> torch.Tensor:
    """As f16 if that loses nothing, else as float32."""
    wide = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)
    half = wide.half()
    same = (half.float() == wide) | (half.isnan() & wide.isnan())
    return half if bool(same.all()) else wide
