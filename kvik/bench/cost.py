"""What a step must move and compute at the least: bytes of weights and KV, floating-point operations.

Lower bounds from the shape alone: every weight is read once per step, every key and value that is attended to once
per sequence. This file knows nothing of how a runner computes or of what a machine can do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvik.checkpoint.spec import DecoderSpec
from kvik.runners.forms import kv_head_bytes, tensor_bytes
from kvik.runners.runner import kv_form, weight_form


@dataclass(frozen=True)
class Forms:
    """How weights (bf16, f32, int8, int4), keys and values (bf16, f32, int8) are held, with `auto` resolved."""

    weights: str
    kv: str

    @classmethod
    def resolve(cls, spec: DecoderSpec, weights: str, kv_dtype: str) -> Forms:
        """What `auto` stands for beside the other option and what is stored."""
        held = weight_form(weights, spec.dtype)
        return cls(held, kv_form(kv_dtype, held))


@dataclass(frozen=True)
class Cost:
    """The cost model of one decoder in one form."""

    spec: DecoderSpec
    forms: Forms

    def weight_bytes(self) -> int:
        """Bytes of all weights with their scales, a tied head counted once."""
        return sum(tensor_bytes(shape, self.forms.weights) for shape in self.spec.tensor_shapes().values())

    def streamed_weight_bytes(self) -> int:
        """Bytes of weights that one step reads: all but an embedding that is not also the head."""
        embed = (self.spec.vocab_size, self.spec.hidden_size)
        return self.weight_bytes() - (0 if self.spec.tied_head else tensor_bytes(embed, self.forms.weights))

    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        return self.spec.num_layers * self._layer_kv_bytes()

    def _layer_kv_bytes(self) -> int:
        return self.spec.num_kv_heads * kv_head_bytes(self.spec.head_dim, self.forms.kv)

    def attended(self, seq_len: int) -> int:
        """Token-layers that the last token of a sequence of this length attends to, itself included."""
        windows = (self.spec.window(layer) for layer in range(self.spec.num_layers))
        return sum(min(seq_len, window) if window else seq_len for window in windows)

    def decode_bytes(self, seq_lens: list[int]) -> int:
        """Bytes of one decode step; `seq_lens` count the token being decoded, whose keys and values are written."""
        cached = sum(self.attended(length) for length in seq_lens)
        return self.streamed_weight_bytes() + cached * self._layer_kv_bytes()

    def _matrix_parameters(self) -> int:
        shapes = self.spec.tensor_shapes()
        return sum(math.prod(s) for name, s in shapes.items() if name.startswith("layers.") and len(s) == 2)

    def prefill_flops(self, start: int, stop: int, sampled: int = 0) -> int:
        """Operations for positions start .. stop - 1 of one sequence: 2 per weight and token, 4 per query element and
        attended token, and the head for `sampled` of them.
        """
        linear = 2 * self._matrix_parameters() * (stop - start)
        attended = sum(self.attended(position + 1) for position in range(start, stop))
        head = 2 * self.spec.vocab_size * self.spec.hidden_size * sampled
        return linear + 4 * self.spec.num_heads * self.spec.head_dim * attended + head
