"""How far one next-token distribution lies from another: Kullback-Leibler divergence over the whole vocabulary.

Logits come in float32, sums are taken in float64, a piece of the vocabulary at a time, so that nothing as wide as the
vocabulary is held in float64. Of logits that are equal to the bit the divergence is 0 exactly. This file knows nothing
of models or of which tokens are asked about.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvik.step import Float32

Float64 = NDArray[np.float64]

PIECE = 1 << 14
"""Entries of the vocabulary taken at a time."""


def log_partition(logits: Float32) -> Float64:
    """log(sum(exp(logits))) of each row of [rows, vocab]; not finite where the logits are not."""
    largest = logits.max(axis=1).astype(np.float64)
    total = np.zeros(len(logits))
    with np.errstate(invalid="ignore"):
        for part in _pieces(logits.shape[1]):
            total += np.exp(logits[:, part] - largest[:, None]).sum(axis=1)
        return np.asarray(largest + np.log(total))


def token_losses(logits: Float32, log_z: Float64, targets: NDArray[np.int32]) -> Float64:
    """-log p(target) of each row, in nats; `log_z` is the rows' `log_partition`."""
    return np.asarray(log_z - logits[np.arange(len(logits)), targets])


def divergences(reference: Float32, log_z: Float64, other: Float32, other_log_z: Float64) -> Float64:
    """KL(reference || other) of each row, in nats: sum of p (log p - log q). Not below 0, where rounding would put a
    divergence too small to tell from it.
    """
    moved = np.zeros(len(reference))
    for part in _pieces(reference.shape[1]):
        exact = reference[:, part].astype(np.float64)
        moved += (np.exp(exact - log_z[:, None]) * (exact - other[:, part])).sum(axis=1)
    return np.maximum(moved - (log_z - other_log_z), 0.0)


def _pieces(width: int) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, width, PIECE))
