"""Divergence over the whole vocabulary: against the definition, and the identities that it keeps to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from kvik.bench import divergence
from kvik.bench.divergence import divergences, log_partition, token_losses
from kvik.step import Float32

ROWS, VOCAB = 7, 301


def logits(seed: int, scale: float = 3.0) -> Float32:
    return np.random.default_rng(seed).normal(scale=scale, size=(ROWS, VOCAB)).astype(np.float32)


def log_softmax(values: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    wide = values.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("piece", [1, 7, 300, 301, 1 << 14])
def test_it_is_the_definition_however_the_vocabulary_is_cut(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "PIECE", piece)
    one, other = logits(1), logits(2)
    p, q = log_softmax(one), log_softmax(other)
    expected = (np.exp(p) * (p - q)).sum(axis=1)
    found = divergences(one, log_partition(one), other, log_partition(other))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    targets = np.arange(ROWS, dtype=np.int32)
    np.testing.assert_allclose(token_losses(one, log_partition(one), targets), -p[targets, targets], rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_a_distribution_is_0_from_itself_exactly(scale: float) -> None:
    one = logits(3, scale)
    log_z = log_partition(one)
    assert (divergences(one, log_z, one.copy(), log_partition(one.copy())) == 0).all()


def test_a_shift_of_all_logits_changes_nothing() -> None:
    one = logits(4)
    moved = one + np.float32(64)
    found = divergences(one, log_partition(one), moved, log_partition(moved))
    assert (found >= 0).all()
    np.testing.assert_allclose(found, 0, atol=1e-5)


def test_it_is_not_the_same_both_ways() -> None:
    one, other = logits(5), logits(6)
    z, other_z = log_partition(one), log_partition(other)
    assert abs(divergences(one, z, other, other_z) - divergences(other, other_z, one, z)).max() > 0.01


def test_large_logits_do_not_overflow_and_broken_ones_are_seen() -> None:
    assert log_partition(np.array([[3e38, 3e38]], np.float32))[0] == pytest.approx(3e38)
    broken = np.array([[1.0, np.nan], [np.inf, 1.0], [1.0, 2.0]], np.float32)
    assert np.isfinite(log_partition(broken)).tolist() == [False, False, True]
