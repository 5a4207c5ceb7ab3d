"""The decoder of `DecoderSpec` on the device: one sentence of operations and matrix products.

It mirrors `kvik/runners/reference/decoder.py`; queries, keys and values come from one product, as do gate and up, and
each norm takes the sum before it along. On several ranks each holds some heads and some channels of the MLP, and adds
up what they gave after the two products that end a half of the layer. This file knows nothing of plans or of loading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvik.runners.cuda.batch import Batch
from kvik.runners.cuda.cache import KVCache
from kvik.runners.cuda.heads import Rotary
from kvik.runners.cuda.linear import Linear
from kvik.runners.cuda.operations import Operations

AddUp = Callable[[torch.Tensor], torch.Tensor]
"""The sum of a tensor over all ranks."""


@dataclass(frozen=True)
class Layer:
    """The weights of one layer."""

    attn_norm: torch.Tensor
    qkv: Linear
    rotary: Rotary
    o: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    window: int
    """Positions a token sees; 0 is all."""


@dataclass(frozen=True)
class Weights:
    """A model, or one rank's share of it."""

    embed: Callable[[torch.Tensor], torch.Tensor]
    """Token ids [T] to [T, hidden_size]."""
    layers: tuple[Layer, ...]
    final_norm: torch.Tensor
    head: Callable[[torch.Tensor], torch.Tensor]
    """[n, hidden_size] to logits [n, vocab_size] float32."""
    eps: float
    nbytes: int


def alone(x: torch.Tensor) -> torch.Tensor:
    """The sum over one rank."""
    return x


class Decoder:
    """One model on one device."""

    def __init__(self, weights: Weights, operations: Operations, add_up: AddUp = alone) -> None:
        self.weights, self._ops, self._add_up = weights, operations, add_up

    def hidden(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Residuals of T tokens after the last layer and the final norm, [T, hidden_size]; keys and values are stored
        on the way.
        """
        ops, weights = self._ops, self.weights
        x, residual = weights.embed(batch.token_ids), None
        for index, layer in enumerate(weights.layers):
            x, residual = ops.add_rms_norm(x, residual, layer.attn_norm, weights.eps)
            queries = ops.rope_and_store(layer.qkv(x), layer.rotary, batch, cache.layer(index))
            mixed = ops.attend(queries, cache.layer(index), layer.rotary.heads, batch, layer.window)
            x = self._add_up(layer.o(mixed))
            x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, weights.eps)
            x = self._add_up(layer.down(ops.silu_mul(layer.gate_up(x))))
        return ops.add_rms_norm(x, residual, weights.final_norm, weights.eps)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden_size] to [n, vocab_size] float32."""
        return self.weights.head(hidden)
