"""Counters of the scheduler: what it holds now and what it did since it was built.

Identities that tests hold: cached_prompt_tokens + computed_prompt_tokens = prompt_tokens; computed_tokens =
computed_prompt_tokens + computed_answer_tokens + recomputed_tokens; blocks_used + blocks_cached + blocks_free =
blocks_total. This file knows nothing of time; rates are made elsewhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from kvik.request import FinishReason
from kvik.scheduler.block_tables import BlockTables
from kvik.scheduler.sequence import Sequence


@dataclass
class Counters:
    """What only ever grows. Lives in the scheduler; a snapshot of it is part of SchedulerStats."""

    steps: int = 0
    prompt_tokens: int = 0
    """Prompt tokens taken into the KV cache, each once however often it was recomputed."""
    cached_prompt_tokens: int = 0
    """Of these, found in the prefix cache."""
    computed_prompt_tokens: int = 0
    """Of these, computed."""
    computed_answer_tokens: int = 0
    """Drawn tokens computed, each once."""
    recomputed_tokens: int = 0
    """Tokens computed again after a preemption."""
    computed_tokens: int = 0
    """All tokens computed: the sum of the plans' token counts."""
    generated_tokens: int = 0
    """Tokens drawn and given to requests."""
    preemptions: int = 0
    accepted: int = 0
    """Choices accepted; each ends once, by one of the reasons in `finished`."""
    finished: dict[str, int] = field(default_factory=lambda: {str(reason): 0 for reason in FinishReason})

    def count_hit(self, hit: int, seen: int, prompt: int) -> None:
        """A request that had `seen` tokens once starts with `hit` tokens from the prefix cache."""
        fresh = max(0, min(hit, prompt) - seen)
        self.prompt_tokens += fresh
        self.cached_prompt_tokens += fresh

    def count_span(self, start: int, end: int, seen: int, prompt: int) -> None:
        """A request that had `seen` tokens once computed its tokens start .. end - 1."""
        if start >= seen and start >= prompt:
            self.computed_answer_tokens += end - start
            return
        fresh_from = min(max(start, seen), end)
        prompt_end = min(max(fresh_from, prompt), end)
        self.recomputed_tokens += fresh_from - start
        self.prompt_tokens += prompt_end - fresh_from
        self.computed_prompt_tokens += prompt_end - fresh_from
        self.computed_answer_tokens += end - prompt_end


@dataclass(frozen=True)
class SchedulerStats:
    """A snapshot; the fields of `counters` are sums since the scheduler was built, the others are as of now."""

    waiting: int
    running: int
    blocks_total: int
    blocks_used: int
    """Held by a request."""
    blocks_cached: int
    """Held by none, kept for the prefix cache."""
    blocks_free: int
    kv_slots: int
    """Token slots in the blocks held."""
    kv_tokens: int
    """Tokens in them, shared ones counted once."""
    counters: Counters

    @property
    def kv_utilisation(self) -> float:
        """Tokens held / token slots in allocated blocks; 1 when nothing is allocated."""
        return self.kv_tokens / self.kv_slots if self.kv_slots else 1.0


def take_stats(
    counters: Counters, waiting: int, running: list[Sequence], leaving: list[Sequence], tables: BlockTables
) -> SchedulerStats:
    """A snapshot; the counters in it will not grow."""
    pool, size = tables.pool, tables.block_size
    full: set[int] = set()
    partial: dict[int, int] = {}
    for sequence in running + leaving:
        request = sequence.request
        count, rest = divmod(request.num_computed_tokens, size)
        full.update(request.block_table[:count])
        if rest:
            partial[request.block_table[count]] = rest
    return SchedulerStats(
        waiting=waiting,
        running=len(running),
        blocks_total=pool.num_blocks,
        blocks_used=pool.num_held,
        blocks_cached=pool.num_idle,
        blocks_free=pool.num_free,
        kv_slots=pool.num_held * size,
        kv_tokens=len(full) * size + sum(partial.values()),
        counters=dataclasses.replace(counters, finished=dict(counters.finished)),
    )
