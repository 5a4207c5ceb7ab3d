"""One layer over all calibration sequences, told what each group of matrices reads before they are used.

The decoder is the reference runner's; here matrices meet many tokens at once, since nothing depends on a token's exact
bytes but these weights. `visit(channels, statistics)` is called for the four inputs of a layer, in order:

    attn    what q, k, v read        mlp     what gate, up read
    o       what o reads             down    what down reads

and may change the weights, which are looked up after it: GPTQ's next input is then made by quantized matrices. This
file knows nothing of what the visitor does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.spec import DecoderSpec
from kvik.runners.reference.decoder import Decoder, rms_norm, rope, silu
from kvik.step import Float32, as_int32

READERS = {"attn": ("q", "k", "v"), "o": ("o",), "mlp": ("gate", "up"), "down": ("down",)}
"""Matrices by what they read."""
CHUNK_TOKENS = 4096
SAMPLE = 512
"""Tokens kept for those who judge by outputs."""


@dataclass
class Statistics:
    """Of the inputs [tokens, K] of some matrices."""

    hessian: NDArray[np.float64]
    """X.T @ X, [K, K]."""
    mean_size: Float32
    """Mean |x| by channel, [K]."""
    max_size: Float32
    """Largest |x| by channel, [K]."""
    sample: Float32
    """Some of the tokens, [m, K], evenly spread."""


Visit = Callable[[str, Statistics], None]


class LayerForward:
    """The layers of one model over sequences of one length."""

    def __init__(self, spec: DecoderSpec, length: int) -> None:
        self._spec = spec
        self._cos, self._sin = Decoder(spec, {}).rotation(as_int32(range(length)))
        self._length = length

    def run(self, layer: int, weights: dict[str, Float32], x: Float32, visit: Visit | None = None) -> None:
        """Replace x [sequences, length, hidden] by what leaves the layer. `weights` by their names within it."""
        spec, tokens = self._spec, x.reshape(-1, x.shape[-1])
        if visit:
            normed = (rms_norm(part, weights["attn_norm"], spec.rms_norm_eps) for part in _chunks(tokens))
            visit("attn", gather(normed, len(tokens), spec.hidden_size))
        mixed = np.empty((len(tokens), spec.num_heads * spec.head_dim), np.float32)
        for start in range(0, len(tokens), self._length):
            sequence = slice(start, start + self._length)
            mixed[sequence] = self._attention(layer, weights, tokens[sequence])
        if visit:
            visit("o", gather(_chunks(mixed), len(tokens), mixed.shape[1]))
        for part_x, part in zip(_chunks(tokens), _chunks(mixed), strict=True):
            part_x += part @ weights["o"].T + weights.get("o_bias", np.float32(0))
        del mixed
        self._mlp(weights, tokens, visit)

    def attention_output(self, layer: int, weights: dict[str, Float32], x: Float32) -> Float32:
        """What attention adds to x [sequences, length, hidden], o included."""
        mixed = np.stack([self._attention(layer, weights, sequence) for sequence in x])
        added: Float32 = mixed @ weights["o"].T + weights.get("o_bias", np.float32(0))
        return added

    def mlp_output(self, weights: dict[str, Float32], x: Float32) -> Float32:
        """What the MLP adds to x [.., hidden], down included."""
        normed = rms_norm(x, weights["mlp_norm"], self._spec.rms_norm_eps)
        added: Float32 = (silu(normed @ weights["gate"].T) * (normed @ weights["up"].T)) @ weights["down"].T
        return added

    def _mlp(self, weights: dict[str, Float32], tokens: Float32, visit: Visit | None) -> None:
        spec = self._spec

        def normed() -> Iterator[Float32]:
            return (rms_norm(part, weights["mlp_norm"], spec.rms_norm_eps) for part in _chunks(tokens))

        if visit:
            visit("mlp", gather(normed(), len(tokens), spec.hidden_size))
        gated = np.empty((len(tokens), spec.intermediate_size), np.float32)
        for m, part in zip(normed(), _chunks(gated), strict=True):
            np.multiply(silu(m @ weights["gate"].T), m @ weights["up"].T, out=part)
        if visit:
            visit("down", gather(_chunks(gated), len(tokens), spec.intermediate_size))
        for part_x, part in zip(_chunks(tokens), _chunks(gated), strict=True):
            part_x += part @ weights["down"].T

    def _attention(self, layer: int, weights: dict[str, Float32], x: Float32) -> Float32:
        """One sequence [t, hidden] to what its o reads, [t, heads * head_dim]."""
        spec, t = self._spec, len(x)
        a = rms_norm(x, weights["attn_norm"], spec.rms_norm_eps)
        q, k, v = (
            (a @ weights[name].T + weights.get(f"{name}_bias", np.float32(0))).reshape(t, -1, spec.head_dim)
            for name in "qkv"
        )
        if spec.qk_norm:
            q = rms_norm(q, weights["q_norm"], spec.rms_norm_eps)
            k = rms_norm(k, weights["k_norm"], spec.rms_norm_eps)
        q, k = rope(q, self._cos, self._sin), rope(k, self._cos, self._sin)
        return attend_sequence(q, k, v, spec.window(layer))


def attend_sequence(q: Float32, k: Float32, v: Float32, window: int) -> Float32:
    """Causal attention of a whole sequence: q [t, heads, d], k and v [t, kv_heads, d], to [t, heads * d]."""
    t, heads, d = q.shape
    kv_heads = k.shape[1]
    # The query heads that share keys become rows of one product: [kv_heads, group * t, d].
    queries = q.reshape(t, kv_heads, -1, d).transpose(1, 2, 0, 3).reshape(kv_heads, -1, d)
    scores = queries @ k.transpose(1, 2, 0) * np.float32(d**-0.5)
    scores = scores.reshape(kv_heads, heads // kv_heads, t, t)
    scores += _mask(t, window)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = scores.reshape(kv_heads, -1, t) @ v.transpose(1, 0, 2)
    return np.asarray(mixed.reshape(heads, t, d).transpose(1, 0, 2).reshape(t, -1), np.float32)


def gather(parts: Iterator[Float32], tokens: int, channels: int) -> Statistics:
    """Statistics of inputs that come in parts."""
    hessian = np.zeros((channels, channels), np.float64)
    total, largest = np.zeros(channels, np.float64), np.zeros(channels, np.float32)
    samples, stride = [], max(1, tokens // SAMPLE)
    for part in parts:
        hessian += part.T @ part
        size = np.abs(part)
        total += size.sum(axis=0, dtype=np.float64)
        largest = np.maximum(largest, size.max(axis=0))
        samples.append(part[::stride].copy())
    return Statistics(hessian, (total / tokens).astype(np.float32), largest, np.concatenate(samples)[:SAMPLE])


def _chunks(tokens: Float32) -> Iterator[Float32]:
    return (tokens[start : start + CHUNK_TOKENS] for start in range(0, len(tokens), CHUNK_TOKENS))


def _mask(length: int, window: int) -> Float32:
    """0 where a token sees another, -inf elsewhere; [length, length]."""
    back = np.arange(length)[:, None] - np.arange(length)
    seen = (back >= 0) & ((back < window) if window else True)
    return np.asarray(np.where(seen, 0, -np.inf), np.float32)
