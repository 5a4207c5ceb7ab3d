"""What masks, biases and penalties change of a step's logits, as flat lists of (draw, token) with what to do.

Made on the host from the lists of a SamplePlan, so that the device has only to gather, compute and scatter. No pair
stands twice in a list: what is to be added twice to one logit is added in two rounds, in the plan's order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvik.step import Float32, Int32, Int64, SamplePlan, UInt32


@dataclass(frozen=True)
class Masked:
    """Draws [m] that a mask rules, and their words [m, W]."""

    rows: Int64
    words: UInt32


@dataclass(frozen=True)
class Bias:
    """Values to add to logits."""

    rows: Int64
    tokens: Int64
    values: Float32


@dataclass(frozen=True)
class Penalties:
    """Tokens of draws' histories: positive logits are divided by `repetition`, others multiplied, then `subtract`ed."""

    rows: Int64
    tokens: Int64
    repetition: Float32
    subtract: Float32


@dataclass(frozen=True)
class Edits:
    """All changes, in the order in which they are made."""

    masked: Masked | None
    biases: list[Bias]
    penalties: Penalties | None


def edits_of(plan: SamplePlan, vocab: int) -> Edits | None:
    """The changes that a plan asks for; None if there are none. Ids outside the vocabulary are ignored."""
    masked = _masked(plan)
    biases = list(_biases(plan, vocab)) if len(plan.bias_tokens) else []
    penalties = _penalties(plan, vocab) if len(plan.history_tokens) else None
    return Edits(masked, biases, penalties) if masked or biases or penalties else None


def _masked(plan: SamplePlan) -> Masked | None:
    if not len(plan.masks):
        return None
    rows = np.flatnonzero((plan.mask_index >= 0) & (plan.mask_index < len(plan.masks)))
    return Masked(rows, plan.masks[plan.mask_index[rows]]) if len(rows) else None


def _entries(starts: Int32, tokens: Int32, vocab: int) -> tuple[Int64, NDArray[np.bool_]]:
    """The draw of each token of lists that lie one after another, and whether the token is in the vocabulary."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts)), (tokens >= 0) & (tokens < vocab)


def _biases(plan: SamplePlan, vocab: int) -> list[Bias]:
    rows, known = _entries(plan.bias_start, plan.bias_tokens, vocab)
    rows, tokens, values = rows[known], plan.bias_tokens[known].astype(np.int64), plan.bias_values[known]
    rounds = []
    while len(rows):
        first = np.sort(np.unique(rows * vocab + tokens, return_index=True)[1])
        rounds.append(Bias(rows[first], tokens[first], values[first]))
        left = np.ones(len(rows), np.bool_)
        left[first] = False
        rows, tokens, values = rows[left], tokens[left], values[left]
    return rounds


def _penalties(plan: SamplePlan, vocab: int) -> Penalties | None:
    rows, known = _entries(plan.history_start, plan.history_tokens, vocab)
    answered = np.arange(len(rows)) >= (plan.history_start[:-1] + plan.history_prompt)[rows]
    pairs = (rows * vocab + plan.history_tokens)[known]
    if not len(pairs):
        return None
    seen, inverse = np.unique(pairs, return_inverse=True)
    counts = np.bincount(inverse, weights=answered[known]).astype(np.float32)
    draws, tokens = np.divmod(seen, vocab)
    penalty = plan.presence_penalty[draws] + plan.frequency_penalty[draws] * counts
    return Penalties(
        draws, tokens, plan.repetition_penalty[draws], np.where(counts > 0, penalty, np.float32(0)).astype(np.float32)
    )
