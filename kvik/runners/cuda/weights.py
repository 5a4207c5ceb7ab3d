"""From a checkpoint to the weights of one rank on its device: cut, joined, quantized where that is asked for.

Every tensor is read once, in the order in which layers use them, and given back before the next one is read. This file
knows what the decoder's matrices are called and which way each is divided among ranks; nothing of how they multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kvik.checkpoint.checkpoint import Checkpoint, Tensor
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.runners.cuda.decoder import Layer, Weights
from kvik.runners.cuda.heads import Heads, Rotary, rotation
from kvik.runners.cuda.linear import Linear, PlainLinear, SideBySide
from kvik.runners.cuda.quantized_linear import Multiply, joined
from kvik.runners.cuda.quantizing import Rounding
from kvik.runners.cuda.ranks import Ranks, share

ROWS, COLUMNS, WHOLE = "rows", "columns", "whole"
"""Which way a matrix is divided among ranks."""
Stored = Tensor | QuantizedTensor


@dataclass(frozen=True)
class Loader:
    """Reads the weights of one rank."""

    source: Checkpoint
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    """What is computed in."""
    rounding: Rounding | None
    """How plain matrices are quantized; None: not at all."""
    multiply: Multiply
    """What multiplies by quantized ones."""
    linear: type[PlainLinear]

    def load(self) -> Weights:
        """All of them. Raises CheckpointError."""
        spec = self.source.spec
        vocabulary = self.matrix(["embed"], ROWS)
        cos, sin = rotation(spec, self.device)
        layers = tuple(self._layer(index, cos, sin) for index in range(spec.num_layers))
        head = vocabulary if spec.tied_head else self.matrix(["head"], ROWS)
        shared = Vocabulary(spec.vocab_size, self.ranks, self.dtype)
        matrices = [matrix for layer in layers for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        matrices += [vocabulary] if spec.tied_head else [vocabulary, head]
        return Weights(
            embed=lambda ids: shared.embed(vocabulary, ids),
            layers=layers,
            final_norm=self.vector("final_norm"),
            head=lambda hidden: shared.logits(head, hidden),
            eps=spec.rms_norm_eps,
            nbytes=sum(matrix.nbytes for matrix in matrices) + cos.nbytes + sin.nbytes,
        )

    def _layer(self, index: int, cos: torch.Tensor, sin: torch.Tensor) -> Layer:
        spec, at = self.source.spec, f"layers.{index}."
        heads = Heads(spec.num_heads // self.ranks.size, spec.num_kv_heads // self.ranks.size, spec.head_dim)
        q_norm, k_norm = (self.vector(at + name) if spec.qk_norm else None for name in ("q_norm", "k_norm"))
        return Layer(
            attn_norm=self.vector(at + "attn_norm"),
            qkv=self.matrix([at + name for name in "qkv"], ROWS, biased=spec.qkv_bias),
            rotary=Rotary(heads, q_norm, k_norm, spec.rms_norm_eps, cos, sin),
            o=self.matrix([at + "o"], COLUMNS, biased=spec.o_bias and self.ranks.rank == 0),
            mlp_norm=self.vector(at + "mlp_norm"),
            gate_up=self.matrix([at + "gate", at + "up"], ROWS),
            down=self.matrix([at + "down"], COLUMNS),
            window=spec.window(index),
        )

    def vector(self, name: str, cut: str = WHOLE) -> torch.Tensor:
        """A norm or a bias, in the dtype that is computed in (float32 beside quantized matrices would gain nothing)."""
        tensor = self._read(name, cut)
        assert isinstance(tensor, Tensor)
        return on_device(tensor, self.device, self.dtype)

    def matrix(self, names: Sequence[str], cut: str, *, biased: bool = False) -> Linear:
        """The matrices of these names, which read one input, as one."""
        parts = [self._quantized(self._read(name, cut)) for name in names]
        bias = torch.cat([self.vector(f"{name}_bias", cut) for name in names]) if biased else None
        quantized = [part for part in parts if isinstance(part, QuantizedTensor)]
        plain = [part for part in parts if isinstance(part, Tensor)]
        if len(quantized) == len(parts):
            return joined(quantized, bias, self.device, self.dtype, self.multiply)
        if not quantized:
            return self.linear(torch.cat([on_device(part, self.device, self.dtype) for part in plain]), bias)
        biases = [self.vector(f"{name}_bias", cut) if biased else None for name in names]
        return SideBySide(tuple(self._single(part, each) for part, each in zip(parts, biases, strict=True)))

    def _single(self, part: Stored, bias: torch.Tensor | None) -> Linear:
        if isinstance(part, QuantizedTensor):
            return joined([part], bias, self.device, self.dtype, self.multiply)
        return self.linear(on_device(part, self.device, self.dtype), bias)

    def _read(self, name: str, cut: str) -> Stored:
        tensor = self.source.tensor(name)
        kept = cut_tensor(tensor, cut, self.ranks)
        self.source.release(name)
        return kept

    def _quantized(self, tensor: Stored) -> Stored:
        if self.rounding is None or isinstance(tensor, QuantizedTensor):
            return tensor
        return self.rounding.quantized(tensor, self.device)


def cut_tensor(tensor: Stored, cut: str, ranks: Ranks) -> Stored:
    """This rank's part, copied out of the file's map."""
    if isinstance(tensor, QuantizedTensor):
        return cut_quantized(tensor, cut, ranks)
    data = tensor.data
    if cut == ROWS:
        data = data[share(len(data), ranks)]
    elif cut == COLUMNS:
        # A bias belongs to the sum, not to its parts, and is whole.
        data = data[:, share(data.shape[1], ranks)] if data.ndim == 2 else data
    return Tensor(tensor.name, tensor.dtype, np.array(data))


def cut_quantized(tensor: QuantizedTensor, cut: str, ranks: Ranks) -> Stored:
    """The same of a quantized matrix. Columns that do not end with a group, or are sorted, are no longer quantized."""
    if ranks.size == 1 or cut == WHOLE:
        return tensor
    rows, columns = slice(None), slice(None)
    groups = columns
    if cut == ROWS:
        rows = share(tensor.shape[0], ranks)
    else:
        columns = share(tensor.shape[1], ranks)
        if tensor.order is not None or columns.start % tensor.group_size or columns.stop % tensor.group_size:
            return Tensor(tensor.name, "f32", np.array(tensor.float32()[:, columns]))
        groups = slice(columns.start // tensor.group_size, columns.stop // tensor.group_size)
    return QuantizedTensor(
        name=tensor.name,
        dtype=tensor.dtype,
        bits=tensor.bits,
        levels=tensor.levels[rows, columns],
        scales=tensor.scales[rows, groups],
        group_size=tensor.group_size,
        zeros=None if tensor.zeros is None else tensor.zeros[rows, groups],
        mins=None if tensor.mins is None else tensor.mins[rows, groups],
        order=tensor.order,
    )


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A stored tensor as torch sees it, on the device, in this dtype."""
    if tensor.dtype == "bf16":
        there = torch.from_numpy(np.array(tensor.data).view(np.int16)).to(device).view(torch.bfloat16)
    else:
        there = torch.from_numpy(np.array(tensor.data)).to(device)
    return there.to(dtype)


@dataclass(frozen=True)
class Vocabulary:
    """The embedding and the head, whose rows are divided among ranks."""

    size: int
    ranks: Ranks
    dtype: torch.dtype

    def embed(self, matrix: Linear, token_ids: torch.Tensor) -> torch.Tensor:
        """[T] to [T, hidden_size]: every rank looks up the ids it has, and they add up."""
        if self.ranks.size == 1:
            return matrix.rows(token_ids).to(self.dtype)
        mine = share(self.size, self.ranks)
        known = (token_ids >= mine.start) & (token_ids < mine.stop)
        rows = matrix.rows(torch.where(known, token_ids - mine.start, torch.zeros_like(token_ids))).to(self.dtype)
        return self.ranks.add_up(torch.where(known[:, None], rows, torch.zeros_like(rows)))

    def logits(self, matrix: Linear, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden_size] to [n, size] float32 on every rank."""
        mine = matrix.wide(hidden)
        if self.ranks.size == 1:
            return mine
        short = -(-self.size // self.ranks.size) - mine.shape[1]
        return self.ranks.gather(torch.nn.functional.pad(mine, (0, short)))[:, : self.size].contiguous()


def compute_dtype(spec: DecoderSpec, form: str, device: torch.device) -> torch.dtype:
    """What is computed in beside weights of this form: bf16, or float32 for float32 weights. Quantized weights are
    computed with in float32 on a CPU, where that is exact and no slower, and in bf16 on a GPU.
    """
    if form == "f32" or (form in ("int8", "int4") and device.type == "cpu"):
        return torch.float32
    return torch.bfloat16
