"""The dense decoder of `DecoderSpec` in numpy: the operations, and the sentence they make.

Every operation treats its tokens one by one: a matrix meets one vector at a time (`linear`), so that a token's bytes
do not depend on the tokens beside it. That costs speed on long prompts, and it is what lets batched, chunked and
cached runs be compared byte for byte. How BLAS orders one product is its own affair: it is fixed for one shape on one
machine with one number of BLAS threads. This file knows nothing of rows, blocks or plans; attention is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from kvik.checkpoint.spec import DecoderSpec
from kvik.step import Float32, Int32

Attend = Callable[[int, Float32, Float32, Float32], Float32]
"""(layer, q [t, heads, d], k [t, kv_heads, d], v [t, kv_heads, d]) to [t, heads, d]."""


def linear(x: Float32, weight: Float32, bias: Float32 | None = None) -> Float32:
    """x [t, inputs] by weight [outputs, inputs] to [t, outputs], as t products of the matrix with one vector."""
    y: Float32 = np.matmul(weight[None], x[:, :, None])[:, :, 0]
    return y if bias is None else y + bias


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """Divide by the root mean square over the last axis, then scale (Zhang and Sennrich 2019)."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight, np.float32)


def silu(x: Float32) -> Float32:
    """x times its logistic sigmoid."""
    return np.asarray(x / (np.float32(1) + np.exp(-x)), np.float32)


def rope(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """Rotate x [t, heads, d] in the plane of each (i, i + d/2); cos, sin [t, d/2] are of the pair's angle."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def layer_weights(weights: Mapping[str, Float32], layer: int) -> dict[str, Float32]:
    """The weights of one layer, by their names within it."""
    prefix = f"layers.{layer}."
    return {name[len(prefix) :]: weight for name, weight in weights.items() if name.startswith(prefix)}


class Decoder:
    """One model: its spec and its weights by canonical name (`DecoderSpec.tensor_shapes`), all float32."""

    def __init__(self, spec: DecoderSpec, weights: Mapping[str, Float32]) -> None:
        self.spec = spec
        self._weights = weights
        self._layers = [layer_weights(weights, layer) for layer in range(spec.num_layers)]
        self._inv_freq = spec.rope.inv_freq(spec.head_dim)

    def hidden(self, token_ids: Int32, positions: Int32, attend: Attend) -> Float32:
        """Residual of t tokens after the last layer and the final norm, [t, hidden_size]."""
        x = self._weights["embed"][token_ids]
        cos, sin = self.rotation(positions)
        for layer in range(self.spec.num_layers):
            x = x + self._attention(layer, x, cos, sin, attend)
            x = x + self._mlp(layer, x)
        return rms_norm(x, self._weights["final_norm"], self.spec.rms_norm_eps)

    def logits(self, hidden: Float32) -> Float32:
        """[t, hidden_size] to [t, vocab_size]."""
        return linear(hidden, self._weights["embed" if self.spec.tied_head else "head"])

    def rotation(self, positions: Int32) -> tuple[Float32, Float32]:
        """Cosine and sine [t, d/2] of each pair's angle. The angle is the float32 product that models are trained
        with; its cosine and sine are exact to float32 for angles of any size.
        """
        angles = (positions.astype(np.float32)[:, None] * self._inv_freq).astype(np.float64)
        factor = np.float32(self.spec.rope.attention_factor)
        return np.cos(angles).astype(np.float32) * factor, np.sin(angles).astype(np.float32) * factor

    def _attention(self, layer: int, x: Float32, cos: Float32, sin: Float32, attend: Attend) -> Float32:
        spec, weights = self.spec, self._layers[layer]
        a = rms_norm(x, weights["attn_norm"], spec.rms_norm_eps)
        q, k, v = (
            linear(a, weights[name], weights.get(f"{name}_bias")).reshape(len(a), -1, spec.head_dim) for name in "qkv"
        )
        if spec.qk_norm:
            q = rms_norm(q, weights["q_norm"], spec.rms_norm_eps)
            k = rms_norm(k, weights["k_norm"], spec.rms_norm_eps)
        mixed = attend(layer, rope(q, cos, sin), rope(k, cos, sin), v)
        return linear(mixed.reshape(len(a), -1), weights["o"], weights.get("o_bias"))

    def _mlp(self, layer: int, x: Float32) -> Float32:
        weights = self._layers[layer]
        m = rms_norm(x, weights["mlp_norm"], self.spec.rms_norm_eps)
        return linear(silu(linear(m, weights["gate"])) * linear(m, weights["up"]), weights["down"])
