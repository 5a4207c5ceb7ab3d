"""Attention of the reference against the formula written out in float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvik.runners.reference.attention import attend, attend_one, softmax
from kvik.step import Float32, as_int32


def written_out(query: Float32, keys: Float32, values: Float32) -> np.ndarray:
    heads, head_dim = query.shape
    group = heads // keys.shape[1]
    mixed = np.zeros((heads, head_dim))
    for h in range(heads):
        scores = [float(query[h].astype(float) @ k[h // group]) / math.sqrt(head_dim) for k in keys]
        weights = [math.exp(s - max(scores)) for s in scores]
        for weight, value in zip(weights, values, strict=True):
            mixed[h] += weight / sum(weights) * value[h // group]
    return mixed


def random(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("n", [1, 2, 33])
def test_attention_is_its_formula(heads: int, kv_heads: int, n: int) -> None:
    query, keys, values = random(heads, 12), random(n, kv_heads, 12, seed=1), random(n, kv_heads, 12, seed=2)
    assert attend_one(query, keys, values) == pytest.approx(written_out(query, keys, values), abs=1e-6)


def test_a_token_sees_its_window_and_nothing_after_itself() -> None:
    queries, keys, values = random(3, 2, 8), random(20, 2, 8, seed=1), random(20, 2, 8, seed=2)
    positions = as_int32([4, 11, 19])
    whole = attend(queries, keys, values, positions, window=0)
    near = attend(queries, keys, values, positions, window=5)
    for t, p in enumerate(positions):
        assert whole[t] == pytest.approx(written_out(queries[t], keys[: p + 1], values[: p + 1]), abs=1e-6)
        first = max(0, p - 4)
        assert near[t] == pytest.approx(written_out(queries[t], keys[first : p + 1], values[first : p + 1]), abs=1e-6)


def test_bytes_of_a_token_do_not_depend_on_the_others() -> None:
    queries, keys, values = random(9, 6, 16), random(70, 3, 16, seed=1), random(70, 3, 16, seed=2)
    together = attend(queries, keys, values, as_int32(range(61, 70)), window=13)
    for t, p in enumerate(range(61, 70)):
        alone = attend(queries[t : t + 1], keys[: p + 1], values[: p + 1], as_int32([p]), window=13)
        assert (alone[0] == together[t]).all()


def test_large_scores_do_not_overflow() -> None:
    assert softmax(np.array([1e30, 1e30, -1e30], np.float32)).tolist() == [0.5, 0.5, 0.0]
