"""What a step must move and compute at the least: bytes of weights and KV, floating-point operations.

Lower bounds from shapes and forms alone: every weight is read once per step, every key and value that is attended to
once per sequence. This file knows nothing of how a runner computes or of what a machine can do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.spec import DecoderSpec
from kvik.config import EngineConfig
from kvik.runners.forms import GROUP, kv_head_bytes, tensor_bytes
from kvik.runners.holding import HeldWeight, held_weights
from kvik.runners.runner import kv_form, weight_form


@dataclass(frozen=True)
class Forms:
    """How weights (bf16, f32, int8, int4), keys and values (bf16, f32, int8) are held, with `auto` resolved."""

    weights: str
    """Of those that are not quantized in the checkpoint."""
    kv: str
    group_size: int = GROUP
    """Inputs that share an int4 scale."""
    quantized: Mapping[str, HeldWeight] = field(default_factory=dict, hash=False)
    """By name, those that are quantized in the checkpoint and held so."""

    @classmethod
    def resolve(cls, spec: DecoderSpec, weights: str, kv_dtype: str, group_size: int = GROUP) -> Forms:
        """What `auto` stands for beside the other option and what is stored."""
        held = weight_form(weights, spec.dtype)
        return cls(held, kv_form(kv_dtype, held), group_size)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, config: EngineConfig, backend: str) -> Forms:
        """Those of a model under these options on the runner of this name. The reference holds float32."""
        if backend == "reference":
            return cls("f32", "f32")
        model = config.model
        plain = cls.resolve(checkpoint.spec, model.weights, config.cache.kv_dtype, model.weight_group_size)
        held = held_weights(checkpoint, model.weights, backend, model.weight_group_size)
        quantized = {name: each for name, each in held.items() if each.placement is not None}
        return cls(plain.weights, plain.kv, plain.group_size, quantized)

    @property
    def label(self) -> str:
        """For people: the form of the weights; of quantized ones every form, the one of most bytes first."""
        totals: dict[str, int] = {}
        for each in self.quantized.values():
            totals[each.form] = totals.get(each.form, 0) + each.bytes
        return "+".join(sorted(totals, key=lambda form: -totals[form])) or self.weights

    def weight_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Of the weight with this canonical name, its scales included."""
        if name in self.quantized:
            return self.quantized[name].bytes
        return tensor_bytes(shape, self.weights, self.group_size)


@dataclass(frozen=True)
class Cost:
    """The cost model of one decoder in one form."""

    spec: DecoderSpec
    forms: Forms

    def weight_bytes(self) -> int:
        """Bytes of all weights with their scales, a tied head counted once."""
        return sum(self.forms.weight_bytes(name, shape) for name, shape in self.spec.tensor_shapes().items())

    def streamed_weight_bytes(self) -> int:
        """Bytes of weights that one step reads: all but an embedding that is not also the head."""
        embed = (self.spec.vocab_size, self.spec.hidden_size)
        return self.weight_bytes() - (0 if self.spec.tied_head else self.forms.weight_bytes("embed", embed))

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
