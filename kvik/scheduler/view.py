"""The scheduler as an onlooker sees it between two steps: the state of every block, and why the first in line waits.

Everything here reads the books and changes nothing, and costs nothing unless it is called. It does not know who looks,
how often, or what is made of it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from kvik.scheduler.block_pool import BlockPool
from kvik.scheduler.block_tables import BlockTables
from kvik.scheduler.scheduler import Scheduler
from kvik.scheduler.sequence import Sequence

CACHED = -1
"""State of a block that nobody holds and whose content is kept; 0 is free, n > 0 is held by n tables."""


def block_states(pool: BlockPool) -> array[int]:
    """[num_blocks] the state of every block, 32-bit."""
    states = array("i", pool.refs)
    for block in pool.idle_blocks():
        states[block] = CACHED
    return states


@dataclass(frozen=True)
class Wait:
    """Why one request waits, as of now.

    `reason` is what the first in line lacks, and `needed` of it stands against `available`:
        batch    static batching: nothing joins until the running have ended (available: how many still run)
        seats    max_num_seqs are running
        budget   the running take all tokens of the next step (needed: tokens it has to compute)
        blocks   too few KV blocks are free or idle for it and for those that run
        turn     nothing: it starts with the next step
        line     another stands before it (needed: how many)
    """

    key: int
    reason: str
    needed: int = 0
    available: int = 0


def waits(scheduler: Scheduler, limit: int) -> list[Wait]:
    """At most `limit` waiting requests, next to be served first."""
    ordered = scheduler.waiting.ordered()[:limit]
    behind = [Wait(sequence.request.key, "line", place) for place, sequence in enumerate(ordered) if place]
    return [_why_first(scheduler, ordered[0]), *behind] if ordered else []


def _why_first(scheduler: Scheduler, sequence: Sequence) -> Wait:
    """The checks of admission in their order; what holds the first in line back, holds everyone back."""
    options, seats, tables, key = scheduler.options, scheduler.seats, scheduler.tables, sequence.request.key
    if options.batching == "static" and seats.running:
        return Wait(key, "batch", 0, len(seats.running))
    if not seats.has_seats_for(sequence):
        return Wait(key, "seats", sequence.num_choices, seats.num_seats - seats.num_reserved)
    beside = options.schedule == "mixed" and options.chunked_prefill
    taken = sum(other.num_missing for other in seats.running if beside or not other.is_decoding)
    if taken >= options.max_num_batched_tokens:
        return Wait(key, "budget", sequence.num_missing)
    hits = _known_hits(tables, sequence)
    claimed = sum(_claim(tables, other) for other in seats.running)
    if not tables.has_room(sequence, hits, claimed):
        idle_hits = sum(1 for block in hits if not tables.pool.refs[block])
        needed = tables.num_wanted(sequence) - len(hits) + claimed
        return Wait(key, "blocks", needed, tables.pool.num_available - idle_hits)
    return Wait(key, "turn")


def _known_hits(tables: BlockTables, sequence: Sequence) -> list[int]:
    """The cached blocks that the scheduler found when it looked last, as far as they are cached still."""
    hits: list[int] = []
    for prefix in sequence.chain if tables.prefix_caching else ():
        if prefix.block < 0 or (len(hits) + 1) * tables.block_size >= len(sequence.request.tokens):
            break
        hits.append(prefix.block)
    return hits


def _claim(tables: BlockTables, sequence: Sequence) -> int:
    """Blocks that a running sequence comes to before anyone new: for its next token, or for the rest of its prompt."""
    if sequence.num_missing == 1:
        return tables.num_lacking(sequence, len(sequence.request.tokens))
    return max(0, tables.num_wanted(sequence) - len(sequence.request.block_table))
