"""The largest step that a scheduler may plan: run once on a loaded model to see what a step takes at most.

Its numbers mean nothing. All rows write into one block of a cache of one block, since what a step takes does not depend
on what it reads. Every row draws with every rule there is; prompts whose every token is scored take more, and where
that does not fit it fails those requests alone. This file knows nothing of devices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvik.step import Int32, SamplePlan, StepPlan, as_int32

BLOCK = 32
"""Tokens in the one block."""


def row_lengths(num_tokens: int, num_rows: int, longest: int) -> NDArray[np.int64]:
    """[num_rows] tokens of each row: the first ones as long as may be, the last ones single."""
    lengths = np.ones(num_rows, np.int64)
    spare = num_tokens - num_rows
    for row in range(num_rows):
        more = min(spare, longest - 1)
        lengths[row] += more
        spare -= more
    return lengths


def largest_plan(num_tokens: int, num_rows: int, longest: int) -> StepPlan:
    """A step of `num_tokens` tokens (fewer, if rows of `longest` tokens cannot hold them) in as many rows as there may
    be, each of which draws. Every block is block 0.
    """
    lengths = row_lengths(num_tokens, min(num_rows, num_tokens), longest)
    starts = np.cumsum([0, *lengths])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return StepPlan(
        step=0,
        keys=np.arange(len(lengths)),
        token_ids=np.zeros(int(starts[-1]), np.int32),
        positions=as_int32(positions),
        query_start_loc=as_int32(starts),
        seq_lens=as_int32(lengths),
        block_tables=np.zeros((len(lengths), int(-(-lengths.max() // BLOCK))), np.int32),
        sample=warm_draws(np.arange(len(lengths), dtype=np.int32)),
    )


def warm_draws(rows: Int32) -> SamplePlan:
    """A draw of each row, at a temperature, cut in every way, with a penalty and the likeliest tokens beside it."""
    count = len(rows)

    def alike(value: float) -> NDArray[np.float32]:
        return np.full(count, value, np.float32)

    return SamplePlan(
        rows=rows,
        keys=np.arange(count),
        temperature=alike(1),
        top_k=np.full(count, 1000, np.int32),
        top_p=alike(0.9),
        min_p=alike(0.01),
        repetition_penalty=alike(1.1),
        presence_penalty=alike(0.1),
        frequency_penalty=alike(0.1),
        seeds=np.arange(count, dtype=np.uint64),
        positions=np.zeros(count, np.int64),
        num_logprobs=np.full(count, 1, np.int32),
        bias_start=np.zeros(count + 1, np.int32),
        history_start=np.arange(count + 1, dtype=np.int32),
        history_tokens=np.zeros(count, np.int32),
        history_prompt=np.ones(count, np.int32),
    )
