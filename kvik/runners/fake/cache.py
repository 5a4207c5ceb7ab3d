"""The fake model's KV arena, and what a step's tokens leave in it and read back from it.

    slot of position p = block_table[p // block_size] * block_size + p % block_size

    states   uint64   s(p), which every token before p has a part in (`oracle.py`)
    tokens   int32    the token itself, for faults whose spelling is cut between two steps
    roots    int32    position of the last token, up to this one, that is no piece of an answer; -1 if there is none
    faults   int64    code of the last fault spelled up to here; 0 if there is none

Everything a token needs from before its step it reads through its row's block table, and a row's digest is read from
all its slots; so a wrong table, a stale block, a copy that was not made or a token that was lost gives other answers.
This file knows nothing of what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint import fake
from kvik.runners.fake import faults
from kvik.runners.fake.hashing import keys_of, weights_of
from kvik.step import Int32, Int64, StepPlan, UInt64, as_int32

GATHERED = 1 << 14
"""States gathered at a time."""


@dataclass(frozen=True)
class Contexts:
    """What the next token depends on, after each of N tokens: `oracle.Context` as arrays [N]."""

    digest: UInt64
    last: Int32
    answered: Int64
    root_state: UInt64

    def take(self, indices: Int32 | Int64) -> Contexts:
        """Those after some of the tokens."""
        return Contexts(self.digest[indices], self.last[indices], self.answered[indices], self.root_state[indices])


@dataclass(frozen=True)
class Computed:
    """What a step's tokens have become."""

    contexts: Contexts
    """[T] after each token."""
    last: Int64
    """[R] index of each row's last token."""
    faults: Int64
    """[R] code of the fault that each row asks for, 0 for none."""


class FakeCache:
    """Slots 0 .. num_blocks * block_size - 1, all zero. `max_model_len` is the longest row."""

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._states = np.zeros((num_blocks, block_size), np.uint64)
        self._tokens = np.zeros((num_blocks, block_size), np.int32)
        self._roots = np.zeros((num_blocks, block_size), np.int32)
        self._faults = np.zeros((num_blocks, block_size), np.int64)
        self._arrays: tuple[NDArray[Any], ...] = (self._states, self._tokens, self._roots, self._faults)
        width = -(-max_model_len // block_size)
        self._weights = weights_of(np.arange(width * block_size)).reshape(width, block_size)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays)

    def copy_blocks(self, copies: Int32) -> None:
        """Copy whole blocks; copies is [C, 2] (source, target). Raises ValueError for a block outside the arena."""
        if len(copies):
            self._check(copies)
            for array in self._arrays:
                array[copies[:, 1]] = array[copies[:, 0]]

    def compute(self, plan: StepPlan) -> Computed:
        """Write the plan's tokens into their slots and read back what they see. Raises ValueError for a block outside
        the arena.
        """
        held = np.arange(plan.block_tables.shape[1]) < -(-plan.seq_lens // self.block_size)[:, None]
        self._check(plan.block_tables[held])
        starts, last = plan.query_start_loc[:-1], plan.query_start_loc[1:].astype(np.int64) - 1
        rows = np.repeat(np.arange(plan.num_rows), np.diff(plan.query_start_loc))
        at = self._places(plan.block_tables, rows, plan.positions)
        before = _Before.read(self, plan, starts)
        states = _running_sum(keys_of(plan.token_ids, plan.positions), before.states, starts, rows)
        roots = _roots(plan, before.roots, starts, rows)
        codes = self._spelled(plan, before.faults, starts, rows)
        written = zip(self._arrays, (states, plan.token_ids, roots, codes), strict=True)
        for array, values in written:
            array[at] = values
        digest = self._digests(plan, held, rows, last, states)
        root_state = self._states[self._places(plan.block_tables, rows, np.maximum(roots, 0))]
        contexts = Contexts(digest, plan.token_ids, plan.positions - roots, root_state * (roots >= 0))
        return Computed(contexts, last, codes[last])

    def _places(self, tables: Int32, rows: Int64, positions: Int32) -> tuple[Int32, Int32]:
        """Block and offset of positions of rows."""
        index, offset = np.divmod(positions, np.int32(self.block_size))
        return tables[rows, index], offset

    def _digests(self, plan: StepPlan, held: NDArray[np.bool_], rows: Int64, last: Int64, states: UInt64) -> UInt64:
        """D after each token [T]: the rows' sums over their slots, less what comes after the token."""
        counts = held.sum(axis=1)
        ends = np.cumsum(counts)
        blocks, indices = plan.block_tables[held], np.nonzero(held)[1]
        whole = np.add.reduceat(self._block_sums(blocks, indices), ends - counts)
        unused = np.arange(self.block_size) >= (plan.seq_lens - (counts - 1) * self.block_size)[:, None]
        final = self._states[blocks[ends - 1]] * unused
        whole -= np.einsum("rs,rs->r", final, self._weights[counts - 1])
        index, offset = np.divmod(plan.positions, np.int32(self.block_size))
        own = np.cumsum(self._weights[index, offset] * states)
        digest: UInt64 = whole[rows] - (own[last][rows] - own)
        return digest

    def _block_sums(self, blocks: Int32, indices: Int64) -> UInt64:
        """Sums of weighted states over whole blocks, each of which is block `indices` of its row. A few at a time, so
        that what is gathered stays in a core's cache.
        """
        sums = np.empty(len(blocks), np.uint64)
        step = max(1, GATHERED // self.block_size)
        for start in range(0, len(blocks), step):
            part = slice(start, start + step)
            np.einsum("bs,bs->b", self._states[blocks[part]], self._weights[indices[part]], out=sums[part])
        return sums

    def _spelled(self, plan: StepPlan, carried: Int64, starts: Int32, rows: Int64) -> Int64:
        """The fault asked for up to each token, [T]; only rows with a closing bracket can have a new one."""
        codes = carried[rows]
        for row in np.unique(rows[plan.token_ids == faults.CLOSING]).tolist():
            start, end = int(starts[row]), int(plan.query_start_loc[row + 1])
            first = int(plan.positions[start])
            earlier = np.arange(max(0, first - faults.LONGEST), first, dtype=np.int32)
            known = self._tokens[self._places(plan.block_tables, np.full(len(earlier), row), earlier)]
            for index, code in faults.spelled_in(np.concatenate([known, plan.token_ids[start:end]])):
                if index >= len(known):
                    codes[start + index - len(known) : end] = code
        return codes

    def _check(self, blocks: Int32) -> None:
        if blocks.size and (blocks.min() < 0 or blocks.max() >= self.num_blocks):
            wrong = blocks[(blocks < 0) | (blocks >= self.num_blocks)][0]
            raise ValueError(f"the plan names block {wrong}; expected 0 to {self.num_blocks - 1}")


@dataclass(frozen=True)
class _Before:
    """What the slot before each row's first token holds, [R]; nothing where that token is the row's first of all."""

    states: UInt64
    roots: Int32
    faults: Int64

    @classmethod
    def read(cls, cache: FakeCache, plan: StepPlan, starts: Int32) -> _Before:
        before = plan.positions[starts] - 1
        known = before >= 0
        at = cache._places(plan.block_tables, np.arange(plan.num_rows), np.maximum(before, 0))
        return cls(
            cache._states[at] * known,
            np.where(known, cache._roots[at], np.int32(-1)),
            cache._faults[at] * known,
        )


def _running_sum(keys: UInt64, before: UInt64, starts: Int32, rows: Int64) -> UInt64:
    """Sums of the keys within each row, on top of what was before, [T]."""
    sums = np.cumsum(keys)
    return sums + (before - sums[starts] + keys[starts])[rows]


def _roots(plan: StepPlan, before: Int32, starts: Int32, rows: Int64) -> Int32:
    """Position of the last token up to each that is no piece, [T]."""
    is_piece = (plan.token_ids >= fake.FIRST_PIECE) & (plan.token_ids < fake.END_OF_TEXT)
    found = np.where(is_piece, -1, plan.positions)
    found[starts] = np.maximum(found[starts], before)
    # Rows lie one after another: a lead that grows with the row keeps each from seeing those before it.
    lead = rows << 32
    return as_int32(np.maximum.accumulate(found + lead) - lead)
