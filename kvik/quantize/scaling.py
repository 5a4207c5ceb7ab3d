"""Moving a channel's size from what reads it to what makes it, which leaves a layer's function as it is.

    read by           made by
    q, k, v           attn_norm
    o                 v (and its bias), whose rows serve all query heads of their KV head
    gate, up          mlp_norm
    down              up

A channel multiplied by s where it is read is divided by s where it is made. A norm is rounded to its stored form in
doing so, and the readers take the quotient that really came of it. This file knows nothing of how s is chosen.
"""

from __future__ import annotations

import numpy as np

from kvik.checkpoint.spec import DecoderSpec
from kvik.quantize.forward import READERS
from kvik.quantize.grid import stored
from kvik.step import Float32

NORMS = {"attn": "attn_norm", "mlp": "mlp_norm"}
LEAST = np.float32(1e-4)


def normalized(scales: Float32) -> Float32:
    """Positive scales about 1: divided by the geometric middle of the largest and the smallest (AWQ's own)."""
    scales = np.maximum(scales, LEAST)
    return np.asarray(scales / np.sqrt(scales.max() * scales.min()), np.float32)


def per_maker(spec: DecoderSpec, channels: str, sizes: Float32) -> Float32:
    """Sizes of channels as one per channel that is made: for o the mean over the query heads that share a KV head."""
    if channels != "o":
        return sizes
    shared: Float32 = sizes.reshape(spec.num_kv_heads, spec.group, spec.head_dim).mean(axis=1).reshape(-1)
    return shared


def per_reader(spec: DecoderSpec, channels: str, scales: Float32) -> Float32:
    """One scale per channel that is made as one per channel that is read; the other way of `per_maker`."""
    if channels != "o":
        return scales
    heads = scales.reshape(spec.num_kv_heads, 1, spec.head_dim)
    return np.repeat(heads, spec.group, axis=1).reshape(-1)


def move(spec: DecoderSpec, weights: dict[str, Float32], channels: str, scales: Float32) -> Float32:
    """Multiply the columns of the readers and divide the makers, in `weights` of one layer. `scales` are per channel
    that is made. Returns what the columns were multiplied by.
    """
    if channels in NORMS:
        scales = _move_norm(spec, weights, NORMS[channels], scales)
    else:
        maker = "v" if channels == "o" else "up"
        weights[maker] = weights[maker] / scales[:, None]
        if f"{maker}_bias" in weights:
            weights[f"{maker}_bias"] = stored(weights[f"{maker}_bias"] / scales, spec.dtype)
    columns = per_reader(spec, channels, scales)
    for name in READERS[channels]:
        weights[name] = weights[name] * columns
    return columns


def _move_norm(spec: DecoderSpec, weights: dict[str, Float32], name: str, scales: Float32) -> Float32:
    norm = weights[name]
    moved = stored(norm / scales, spec.dtype)
    usable = (moved != 0) & (norm != 0)
    weights[name] = np.where(usable, moved, norm)
    return np.where(usable, norm / np.where(usable, moved, np.float32(1)), np.float32(1))
