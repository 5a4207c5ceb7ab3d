"""The two records that bookkeeping and computing exchange: StepPlan goes down, StepResult comes up.

Both are frozen and hold numpy arrays of numbers only, so that a plan can be handed to C++, shipped to another
process or replayed. Names follow the field: a *row* is a request's place in the batch; the tokens of all rows lie
one after another, row r owning token_ids[query_start_loc[r] : query_start_loc[r + 1]].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]
Record = TypeVar("Record")


def ints(count: int = 0) -> Int32:
    """A zeroed int32 vector."""
    return np.zeros(count, np.int32)


def floats(count: int = 0) -> Float32:
    """A zeroed float32 vector."""
    return np.zeros(count, np.float32)


def _starts() -> Int32:
    return np.zeros(1, np.int32)


@dataclass(frozen=True)
class SamplePlan:
    """The tokens to draw in a step: S draws, each from the logits after the last token of a row.

    Several draws may name one row: the n choices of a request whose prompt ends in this step.
    """

    rows: Int32 = field(default_factory=ints)
    """[S] row whose last token's logits are drawn from."""
    keys: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """[S] key of the request that receives the token."""
    temperature: Float32 = field(default_factory=floats)
    """[S] 0 is greedy."""
    top_k: Int32 = field(default_factory=ints)
    """[S] 0 keeps all."""
    top_p: Float32 = field(default_factory=floats)
    min_p: Float32 = field(default_factory=floats)
    repetition_penalty: Float32 = field(default_factory=floats)
    presence_penalty: Float32 = field(default_factory=floats)
    frequency_penalty: Float32 = field(default_factory=floats)
    seeds: UInt64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    """[S] random numbers are a function of (seed, position) alone."""
    positions: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """[S] position in its sequence of the token being drawn."""
    num_logprobs: Int32 = field(default_factory=ints)
    """[S] -1: none. k >= 0: the drawn token's and the k most likely."""
    bias_start: Int32 = field(default_factory=_starts)
    """[S + 1] draw s adds bias_values[i] to the logit of bias_tokens[i] for i in bias_start[s] .. bias_start[s + 1].
    -inf bans a token."""
    bias_tokens: Int32 = field(default_factory=ints)
    bias_values: Float32 = field(default_factory=floats)
    history_start: Int32 = field(default_factory=_starts)
    """[S + 1] tokens that penalties look at; empty for a draw without penalties."""
    history_tokens: Int32 = field(default_factory=ints)
    history_prompt: Int32 = field(default_factory=ints)
    """[S] how many of a draw's history are prompt tokens (they come first)."""
    mask_index: Int32 = field(default_factory=ints)
    """[S] the row of `masks` that a draw must obey; -1: none. Empty when there are no masks."""
    masks: UInt32 = field(default_factory=lambda: np.zeros((0, 0), np.uint32))
    """[M, W] tokens that may be drawn: bit i % 32 of word i // 32 is set for token i; those from 32 W on may not."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class ScorePlan:
    """Prompt tokens to score: Q entries. Entry q asks for the log-probability of `targets[q]` after the token at
    flat index `indices[q]` of this step, and for the `num_top[q]` most likely tokens there.
    """

    indices: Int32 = field(default_factory=ints)
    targets: Int32 = field(default_factory=ints)
    num_top: Int32 = field(default_factory=ints)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class StepPlan:
    """One step of the model: R rows with T tokens in all.

    A runner first copies blocks, then for every token computes keys and values, stores them at the token's
    position in its row's block table, and attends to positions 0 .. its own.
    """

    step: int
    keys: Int64
    """[R] request of each row."""
    token_ids: Int32
    """[T]"""
    positions: Int32
    """[T] position of each token in its sequence; consecutive within a row."""
    query_start_loc: Int32
    """[R + 1] prefix sums of the rows' token counts; each row has at least one token."""
    seq_lens: Int32
    """[R] tokens of the row's sequence in the cache once this step is done: its last position + 1."""
    block_tables: Int32
    """[R, W] KV block of positions [i * block_size, (i + 1) * block_size); entries past a row's length are -1."""
    copies: Int32 = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """[C, 2] (source, target): copy these whole blocks first. No target is a source."""
    sample: SamplePlan = field(default_factory=SamplePlan)
    score: ScorePlan = field(default_factory=ScorePlan)

    @property
    def num_rows(self) -> int:
        return len(self.seq_lens)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def with_masks(self, mask_index: Int32, masks: UInt32) -> StepPlan:
        """The same step with masks for its draws."""
        return _changed(self, sample=_changed(self.sample, mask_index=mask_index, masks=masks))


@dataclass(frozen=True)
class TopLogprobs:
    """Log-probabilities for N positions; log-softmax of the model's own logits, before bias, penalties, temperature."""

    logprobs: Float32 = field(default_factory=floats)
    """[N] of the token drawn or given; 0 where none was asked for."""
    top_ids: Int32 = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """[N, K] likeliest first, lower id first among equals; -1 past what was asked for."""
    top_logprobs: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """[N, K]"""


@dataclass(frozen=True)
class StepResult:
    """What a step produced."""

    token_ids: Int32
    """[S] the token drawn for each entry of plan.sample; -1 where `failed`."""
    failed: NDArray[np.bool_]
    """[S] the logits held NaN or infinity; the request fails alone."""
    sampled: TopLogprobs = field(default_factory=TopLogprobs)
    """[S] for plan.sample."""
    scored: TopLogprobs = field(default_factory=TopLogprobs)
    """[Q] for plan.score."""


def _changed(record: Record, **fields: Any) -> Record:
    """dataclasses.replace for what happens in every step: a constructor would take ten times as long."""
    copy = object.__new__(type(record))
    vars(copy).update(vars(record), **fields)
    return copy


def as_int32(values: Any) -> Int32:
    """A contiguous int32 array of a list of whole numbers."""
    return np.asarray(values, dtype=np.int32)
