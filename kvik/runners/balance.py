"""The same model with its channels brought to like sizes, for weights that are to share a scale.

Trained models have channels that are much larger than the rest, and matrices that take that much less of them; among
weights that share a scale the small ones would be rounded to nothing. A channel can be scaled where it is made if
whatever reads it is scaled back, and powers of two leave every weight its bits:

    made by                    read by
    attn_norm                  q, k, v
    v (and its bias), a row    o, the columns of all query heads that share the KV head
    mlp_norm                   gate, up
    up, a row                  down
    final_norm                 head, unless it is the embedding

Each reader's column is divided by 2^e, its maker multiplied by it, e such that all columns come near one root mean
square (Xiao et al. 2023 scale so to ease activations, Nagel et al. 2019 across layers; here the weights decide alone).
Weights that are quantized in the checkpoint are left alone, and with them the channels that they make or read.
This file knows nothing of how weights are then quantized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import Checkpoint, Tensor, float32_to_bf16
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.step import Float32

Exponents = NDArray[np.int16]

MAX_EXPONENT = 6
"""A column 64 times smaller than the mean is as good as unused: to enlarge it further would only move its own weights,
and its maker's, towards the ends of what a float can hold.
"""
READERS = {"attn": ("q", "k", "v"), "o": ("o",), "mlp": ("gate", "up"), "down": ("down",), "final": ("head",)}
"""Matrices by the channels that their columns read."""
MAKERS = {
    "attn": ("attn_norm",),
    "o": ("v", "v_bias"),
    "mlp": ("mlp_norm",),
    "down": ("up",),
    "final": ("final_norm",),
}
"""Matrices and vectors by the channels that their rows, or elements, make."""
_READS = {role: channels for channels, roles in READERS.items() for role in roles}
_MAKES = {role: channels for channels, roles in MAKERS.items() for role in roles}

CHUNK = 1 << 16
"""Weights taken at a time, such that what is made of them stays in a core's cache."""
_FIELD, _FIELD_ONE = np.uint16(0x7F80), 1 << 7
"""A bf16's exponent, and 1 in it."""


class BalancedCheckpoint:
    """`sound` with its channels balanced; a Checkpoint. Tensors stay in the form they are stored in, except that f16
    becomes f32, since its exponents have no room. Each is read once; at most one layer's attention or MLP is held.
    """

    def __init__(self, sound: Checkpoint) -> None:
        self._sound = sound
        self._held: dict[str, Tensor | QuantizedTensor] = {}
        self._exponents: dict[str, Exponents] = {}

    @property
    def name(self) -> str:
        """The model's own."""
        return self._sound.name

    @property
    def spec(self) -> DecoderSpec:
        """The model's own."""
        return self._sound.spec

    @property
    def directory(self) -> Path | None:
        """The model's own."""
        return self._sound.directory

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """A weight, scaled unless it is quantized. Raises CheckpointError."""
        prefix, _, role = name.rpartition(".")
        if role in ("head", "final_norm") and self.spec.tied_head:
            return self._sound.tensor(name)
        reads, makes = _READS.get(role), _MAKES.get(role)
        columns = -self._spread(prefix, reads) if reads else None
        rows = self._channels(prefix, makes) if makes else None
        tensor = self._held.pop(name, None) or self._sound.tensor(name)
        return tensor if isinstance(tensor, QuantizedTensor) else scaled(tensor, rows, columns)

    def release(self, name: str) -> None:
        """As the model's own."""
        self._sound.release(name)

    def _channels(self, prefix: str, channels: str) -> Exponents:
        """e of each channel, [channels]."""
        key = f"{prefix}.{channels}"
        if key not in self._exponents:
            if any(self._is_quantized(prefix, role) for role in (*READERS[channels], *MAKERS[channels])):
                self._exponents[key] = np.zeros(self._count(channels), np.int16)
            else:
                squares = [self._squares(prefix, role) for role in READERS[channels]]
                self._exponents[key] = balancing_exponents(np.sum(squares, axis=0))
        return self._exponents[key]

    def _count(self, channels: str) -> int:
        by_name = {"o": self.spec.num_kv_heads * self.spec.head_dim, "down": self.spec.intermediate_size}
        return by_name.get(channels, self.spec.hidden_size)

    def _is_quantized(self, prefix: str, role: str) -> bool:
        """Of a role that is a vector: never."""
        return role in _READS and isinstance(self._peek(prefix, role), QuantizedTensor)

    def _peek(self, prefix: str, role: str) -> Tensor | QuantizedTensor:
        """A weight as it is stored, held until it is asked for."""
        name = f"{prefix}.{role}" if prefix else role
        if name not in self._held:
            self._held[name] = self._sound.tensor(name)
        return self._held[name]

    def _squares(self, prefix: str, role: str) -> NDArray[np.float64]:
        """Sum of squares over all that reads a channel, [channels], of a matrix whose own rows are scaled already."""
        makes = _MAKES.get(role)
        rows = self._channels(prefix, makes) if makes else None
        stored = self._peek(prefix, role)
        assert isinstance(stored, Tensor)
        squares = column_squares(stored, rows)
        if role != "o":
            return squares
        heads = squares.reshape(self.spec.num_kv_heads, self.spec.group, self.spec.head_dim)
        summed: NDArray[np.float64] = heads.sum(axis=1).reshape(-1)
        return summed

    def _spread(self, prefix: str, channels: str) -> Exponents:
        """e of what each column reads, [columns]."""
        exponents = self._channels(prefix, channels)
        if channels != "o":
            return exponents
        heads = exponents.reshape(self.spec.num_kv_heads, 1, self.spec.head_dim)
        return np.repeat(heads, self.spec.group, axis=1).reshape(-1)


def balanced(checkpoint: Checkpoint, form: str) -> Checkpoint:
    """The checkpoint to load weights from that are held as `form`: balanced if they are quantized."""
    return BalancedCheckpoint(checkpoint) if form in ("int8", "int4") else checkpoint


def balancing_exponents(squares: NDArray[np.float64]) -> Exponents:
    """e of each channel from its readers' sums of squares: the nearest to log2 of its root mean square over the
    geometric mean of all. 0 for a channel that nothing reads, and one that holds NaN or infinity.
    """
    exponents = np.zeros(squares.shape, np.int16)
    usable = np.isfinite(squares) & (squares > 0)
    if usable.any():
        sizes = np.log2(squares[usable]) / 2
        exponents[usable] = np.clip(np.rint(sizes - sizes.mean()), -MAX_EXPONENT, MAX_EXPONENT)
    return exponents


def column_squares(tensor: Tensor, rows: Exponents | None) -> NDArray[np.float64]:
    """Sum of squares of each column, [columns], of a matrix whose rows are scaled by 2 ** rows."""
    total = np.zeros(tensor.shape[1], np.float64)
    with np.errstate(all="ignore"):
        for part in _chunks(tensor.shape):
            values = Tensor(tensor.name, tensor.dtype, tensor.data[part]).float32()
            if rows is not None:
                values = values * _powers(rows[part])[:, None]
            total += np.einsum("ij,ij->j", values, values)
    return total


def scaled(tensor: Tensor, rows: Exponents | None, columns: Exponents | None) -> Tensor:
    """The tensor, a vector or a matrix, with its rows and columns multiplied by powers of two; itself if all are 1."""
    if not any(each is not None and each.any() for each in (rows, columns)):
        return tensor
    data = tensor.data.reshape(len(tensor.data), -1)
    rows = np.zeros(data.shape[0], np.int16) if rows is None else rows
    columns = np.zeros(data.shape[1], np.int16) if columns is None else columns
    out: NDArray[Any] = np.empty(data.shape, np.uint16 if tensor.dtype == "bf16" else np.float32)
    for part in _chunks(data.shape):
        if tensor.dtype == "bf16":
            _scale_bf16(data[part], rows[part], columns, out[part])
        else:
            # One power, not two: the product with one could pass the ends of float32 where that with both does not.
            np.multiply(data[part], _powers(rows[part, None] + columns), out=out[part])
    return Tensor(tensor.name, "bf16" if tensor.dtype == "bf16" else "f32", out.reshape(tensor.shape))


def _scale_bf16(values: NDArray[Any], rows: Exponents, columns: Exponents, out: NDArray[Any]) -> None:
    """Exponents are added, but for numbers to which that cannot be done: zero, NaN, infinity, the very small and large.
    Those that leave the normal numbers are rounded, the only ones not to keep their bits.
    """
    np.add(values, (columns * _FIELD_ONE).view(np.uint16), out=out)
    if rows.any():
        out += (rows * _FIELD_ONE).view(np.uint16)[:, None]
    most = 2 * MAX_EXPONENT
    odd = (values & _FIELD) - np.uint16((1 + most) * _FIELD_ONE) > np.uint16((253 - 2 * most) * _FIELD_ONE)
    if odd.any():
        row, column = np.nonzero(odd)
        floats = Tensor("", "bf16", values[row, column]).float32()
        with np.errstate(all="ignore"):
            out[row, column] = float32_to_bf16(floats * _powers(rows[row] + columns[column]))


def _powers(exponents: Exponents) -> Float32:
    powers: Float32 = np.ldexp(np.float32(1), exponents)
    return powers


def _chunks(shape: tuple[int, ...]) -> list[slice]:
    step = max(1, CHUNK // max(shape[1], 1))
    return [slice(start, start + step) for start in range(0, shape[0], step)]
