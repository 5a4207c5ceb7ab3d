"""Block tables: which KV blocks hold which positions of each sequence, and how blocks are shared.

Two ways lead to a shared block: a prefix hit (full blocks, never written again), a fork (all blocks, the partial last
one too). Whoever is next to write into a block that others hold gets a copy of its own; the last
holder writes in place.

A table is a list in its request and, for building plans, a row of a persistent int32 array:

    array [num_slots, width]    3  7  1 -1 -1 -1     slot 0: positions 0 .. 3 * block_size - 1
                               -1 -1 -1 -1 -1 -1     slot 1: not in use

This file does not know which sequence deserves a block; the scheduler does.
"""

from __future__ import annotations

import numpy as np

from kvik.scheduler.block_pool import BlockPool
from kvik.scheduler.prefix_cache import PrefixCache
from kvik.scheduler.sequence import Sequence


class BlockTables:
    """The tables of all running sequences over one pool and one prefix cache."""

    def __init__(self, num_blocks: int, block_size: int, num_slots: int, width: int, *, prefix_caching: bool) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.cache = PrefixCache(block_size)
        self.prefix_caching = prefix_caching
        self.array = np.full((num_slots, width), -1, np.int32)
        """[num_slots, width] int32; -1 past the end of each table."""
        self._copies: list[tuple[int, int]] = []

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-num_tokens // self.block_size)

    def num_wanted(self, sequence: Sequence) -> int:
        """Blocks a sequence should find room for before it starts: its tokens, the next one, and a last block for
        each further choice; never more than the pool has, since choices can also run one after another.
        """
        wanted = self.blocks_for(len(sequence.request.tokens) + 1) + sequence.num_choices - 1
        return min(wanted, self.pool.num_blocks)

    def find(self, sequence: Sequence) -> list[int]:
        """Cached blocks that a waiting sequence can start from. At least its last token is left to compute, and every
        prompt token whose successor still has to be scored.
        """
        if not self.prefix_caching:
            return []
        request = sequence.request
        limit = len(request.tokens) - 1
        if sequence.num_to_score:
            limit = min(limit, sequence.num_scored)
        count = limit // self.block_size
        self.cache.extend(sequence.chain, request.tokens, count, request.salt)
        return self.cache.match(sequence.chain, count)

    def has_room(self, sequence: Sequence, hits: list[int], promised: int) -> bool:
        """Whether the pool can take a sequence that starts from these hits, after `promised` blocks for others."""
        refs = self.pool.refs
        idle_hits = sum(1 for block in hits if not refs[block])
        wanted = self.num_wanted(sequence) - len(hits) + promised
        return wanted <= self.pool.num_available - idle_hits

    def open(self, sequence: Sequence, hits: list[int]) -> None:
        """Start a sequence's table in its slot with the blocks found."""
        for block in hits:
            self.pool.hold(block)
        sequence.request.block_table[:] = hits
        self.array[sequence.slot, : len(hits)] = hits
        sequence.num_registered = len(hits)
        sequence.request.num_computed_tokens = len(hits) * self.block_size

    def num_lacking(self, sequence: Sequence, end: int) -> int:
        """Blocks to take before positions num_computed_tokens .. end - 1 can be written."""
        table = sequence.request.block_table
        first = sequence.request.num_computed_tokens // self.block_size
        lacking = -(-end // self.block_size) - len(table)
        if self._is_shared(table, first):
            lacking += 1
        return lacking

    def grow(self, sequence: Sequence, end: int) -> None:
        """Make positions num_computed_tokens .. end - 1 writable by this sequence alone; num_lacking() are available.
        Only the first of these blocks can be shared: every later one is new.
        """
        table = sequence.request.block_table
        first = sequence.request.num_computed_tokens // self.block_size
        if self._is_shared(table, first):
            self._copy_block(sequence, first)
        for index in range(len(table), -(-end // self.block_size)):
            block = self._take()
            table.append(block)
            self.array[sequence.slot, index] = block

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let a child in its own slot share every block of its parent."""
        table = parent.request.block_table
        for block in table:
            self.pool.hold(block)
        child.request.block_table[:] = table
        self.array[child.slot, : len(table)] = table
        child.chain = list(parent.chain)
        child.num_registered = parent.num_registered

    def register(self, sequence: Sequence) -> None:
        """Offer a sequence's computed full blocks to the prefix cache."""
        request = sequence.request
        count = request.num_computed_tokens // self.block_size
        if not self.prefix_caching or count <= sequence.num_registered:
            return
        self.cache.extend(sequence.chain, request.tokens, count, request.salt)
        for index in range(sequence.num_registered, count):
            block = request.block_table[index]
            if self.cache.insert(sequence.chain, index, block):
                self.pool.keep(block)
        sequence.num_registered = count

    def distrust(self, sequence: Sequence) -> None:
        """Take a sequence's blocks out of the prefix cache: what is in them may be wrong."""
        for block in sequence.request.block_table:
            self.cache.forget(block)
            self.pool.drop(block)

    def close(self, sequence: Sequence) -> None:
        """Give up a sequence's table. Its last blocks become idle first, so that beginnings are evicted last."""
        table = sequence.request.block_table
        self.array[sequence.slot, : len(table)] = -1
        for block in reversed(table):
            self.pool.release(block)
        table.clear()
        sequence.num_registered = 0

    def collect_copies(self) -> list[tuple[int, int]]:
        """The (source, target) pairs since the last call.

        No target is a source. The choices of a request stand side by side in the order of service, and only the last
        in that order is preempted: whoever would have to give up a source, to free it for reuse as a target, stands
        behind all that copied from it, and is the only holder left, which needs no block itself.
        """
        copies, self._copies = self._copies, []
        return copies

    def _is_shared(self, table: list[int], index: int) -> bool:
        """Whether others hold this block of a table too; false past its end."""
        return index < len(table) and self.pool.refs[table[index]] > 1

    def _copy_block(self, sequence: Sequence, index: int) -> None:
        table = sequence.request.block_table
        source, target = table[index], self._take()
        self.pool.release(source)
        table[index] = target
        self.array[sequence.slot, index] = target
        self._copies.append((source, target))

    def _take(self) -> int:
        block = self.pool.take()
        self.cache.forget(block)
        return block
