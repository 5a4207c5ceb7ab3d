"""Step plans made by hand, to drive a runner without a scheduler: equal rows, each with blocks of its own.

Row r owns the blocks r * blocks_per_row .. (r + 1) * blocks_per_row - 1. This file knows nothing of runners, clocks
or prompts worth reading: token ids are drawn from a seeded generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvik.step import Int32, SamplePlan, StepPlan, floats, ints


@dataclass(frozen=True)
class Layout:
    """How many sequences of what length lie in the KV cache."""

    rows: int
    max_len: int
    """Tokens of the longest sequence."""
    block_size: int

    @property
    def blocks_per_row(self) -> int:
        return -(-self.max_len // self.block_size)

    @property
    def num_blocks(self) -> int:
        return self.rows * self.blocks_per_row

    def block_tables(self, rows: int) -> Int32:
        """[rows, blocks_per_row] every block a row may ever use."""
        return np.arange(rows * self.blocks_per_row, dtype=np.int32).reshape(rows, self.blocks_per_row)

    def copies_of_first_row(self, length: int) -> Int32:
        """[C, 2] the copies that give every other row the first row's `length` tokens."""
        used = -(-length // self.block_size)
        pairs = [(b, row * self.blocks_per_row + b) for row in range(1, self.rows) for b in range(used)]
        return np.array(pairs, np.int32).reshape(-1, 2)


def make_plan(
    step: int,
    layout: Layout,
    token_ids: Int32,
    start: int,
    *,
    draw: bool,
    copies: Int32 | None = None,
) -> StepPlan:
    """One step in which each row gets token_ids[row] at positions start, start + 1, ..

    token_ids: [rows, tokens per row]. With `draw`, one greedy token is drawn for each row.
    """
    rows, width = token_ids.shape
    used = -(-(start + width) // layout.block_size)
    tables = layout.block_tables(rows)
    tables[:, used:] = -1
    return StepPlan(
        step=step,
        keys=np.arange(rows, dtype=np.int64),
        token_ids=np.ascontiguousarray(token_ids.reshape(-1), np.int32),
        positions=np.tile(np.arange(start, start + width, dtype=np.int32), rows),
        query_start_loc=np.arange(0, rows * width + 1, width, dtype=np.int32),
        seq_lens=np.full(rows, start + width, np.int32),
        block_tables=tables,
        copies=np.zeros((0, 2), np.int32) if copies is None else copies,
        sample=greedy_draws(rows, start + width) if draw else SamplePlan(),
    )


def greedy_draws(rows: int, position: int) -> SamplePlan:
    """The largest logit of every row, nothing else asked for."""
    return SamplePlan(
        rows=np.arange(rows, dtype=np.int32),
        keys=np.arange(rows, dtype=np.int64),
        temperature=floats(rows),
        top_k=ints(rows),
        top_p=np.ones(rows, np.float32),
        min_p=floats(rows),
        repetition_penalty=np.ones(rows, np.float32),
        presence_penalty=floats(rows),
        frequency_penalty=floats(rows),
        seeds=np.zeros(rows, np.uint64),
        positions=np.full(rows, position, np.int64),
        num_logprobs=np.full(rows, -1, np.int32),
        bias_start=ints(rows + 1),
        history_start=ints(rows + 1),
        history_prompt=ints(rows),
    )


def random_tokens(seed: int, vocab_size: int, rows: int, width: int) -> Int32:
    """[rows, width] token ids, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, vocab_size, (rows, width), dtype=np.int32)
