"""Causal attention of grouped query heads, one token at a time.

The whole score matrix row of a token is built, so this is the naive form; the flash form computes the same thing in
pieces. A token's result depends on its own query and on the keys and values it sees, and on nothing else: not on how
many tokens are asked for at once. This file knows nothing of blocks; keys and values arrive in order of position.
"""

from __future__ import annotations

import numpy as np

from kvik.step import Float32, Int32


def softmax(scores: Float32) -> Float32:
    """Softmax over the last axis, shifted by the largest score so that no finite input overflows."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)


def attend_one(query: Float32, keys: Float32, values: Float32) -> Float32:
    """One token's query [heads, head_dim] over the n positions it sees.

    keys, values [n, kv_heads, head_dim]; query head h reads kv head h // (heads / kv_heads). Returns [heads, head_dim].
    """
    heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(kv_heads, heads // kv_heads, head_dim)
    scores = grouped @ keys.transpose(1, 2, 0) * np.float32(head_dim**-0.5)
    mixed: Float32 = softmax(scores) @ values.transpose(1, 0, 2)
    return mixed.reshape(heads, head_dim)


def attend(queries: Float32, keys: Float32, values: Float32, positions: Int32, window: int) -> Float32:
    """Attention of t tokens of one row.

    queries [t, heads, head_dim], positions [t]; keys, values [n, kv_heads, head_dim] of positions 0 .. n - 1, the
    tokens' own included. A token at p sees max(0, p - window + 1) .. p; window 0 is all. Returns [t, heads, head_dim].
    """
    mixed = np.empty_like(queries)
    for t, position in enumerate(positions):
        first = max(0, position - window + 1) if window else 0
        seen = slice(first, position + 1)
        mixed[t] = attend_one(queries[t], keys[seen], values[seen])
    return mixed
