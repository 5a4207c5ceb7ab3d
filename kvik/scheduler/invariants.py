"""The scheduler's books, checked between steps.

Everything is counted again from the other end: reference counts from the block tables, free blocks by walking the
lists, cached content from the tokens of whoever holds the block. The checks are for tests and for an idle engine; they
read everything, change nothing, and do not know how the books came to be as they are.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator

from kvik.request import RequestState
from kvik.scheduler.scheduler import Scheduler


class InvariantError(RuntimeError):
    """The scheduler's books contradict themselves. The message lists every contradiction found."""


def check_invariants(scheduler: Scheduler) -> None:
    """Hold the books of a scheduler with no plan in flight against themselves. Raises InvariantError."""
    checks = (_pool, _lists, _tables, _cache, _chains, _requests, _seats, _counters)
    problems = [problem for check in checks for problem in check(scheduler)]
    if problems:
        raise InvariantError("; ".join(problems))


def _pool(scheduler: Scheduler) -> Iterator[str]:
    """Free + held + cached = total; a block is held as often as tables hold it."""
    pool = scheduler.tables.pool
    if pool.num_free + pool.num_idle + pool.num_held != pool.num_blocks or min(pool.num_free, pool.num_idle) < 0:
        yield f"blocks: {pool.num_free} free + {pool.num_idle} cached + {pool.num_held} held of {pool.num_blocks}"
    held = Counter(block for sequence in scheduler.seats.running for block in sequence.request.block_table)
    for block, refs in enumerate(pool.refs):
        if refs != held[block]:
            yield f"block {block}: {refs} references, {held[block]} tables hold it"


def _lists(scheduler: Scheduler) -> Iterator[str]:
    """The lists hold exactly the blocks nobody holds, each once, kept ones in the idle list."""
    pool, cached = scheduler.tables.pool, scheduler.tables.cache.blocks()
    free, idle = list(pool.free_blocks()), list(pool.idle_blocks())
    if len(free) != pool.num_free or len(idle) != pool.num_idle:
        yield f"lists have {len(free)} free and {len(idle)} idle blocks; counted {pool.num_free} and {pool.num_idle}"
    if sorted(free + idle) != [block for block, refs in enumerate(pool.refs) if not refs]:
        yield f"free {free} and idle {idle} are not exactly the blocks without references"
    for block in range(pool.num_blocks):
        if pool.keeps(block) != (block in cached):
            yield f"block {block}: pool and prefix cache disagree on whether it is cached"
        if not pool.refs[block] and pool.keeps(block) != (block in idle):
            yield f"block {block}: in the wrong list"


def _tables(scheduler: Scheduler) -> Iterator[str]:
    """A table covers the computed tokens, holds no block twice, and stands in the array as in the request."""
    tables = scheduler.tables
    for sequence in scheduler.seats.running:
        request, row = sequence.request, tables.array[sequence.slot].tolist()
        table = request.block_table
        if len(table) != tables.blocks_for(request.num_computed_tokens):
            yield f"request {request.key}: {len(table)} blocks for {request.num_computed_tokens} computed tokens"
        if len(set(table)) != len(table):
            yield f"request {request.key}: block twice in {table}"
        if row != table + [-1] * (len(row) - len(table)):
            yield f"request {request.key}: table {table}, array row {row}"
    for slot in scheduler.seats.free_slots:
        if (tables.array[slot] != -1).any():
            yield f"slot {slot} is free but its table is not empty"


def _cache(scheduler: Scheduler) -> Iterator[str]:
    """A cached block is found under its own prefix, and is shared for writing by nobody."""
    for block, prefix in scheduler.tables.cache.blocks().items():
        if prefix.block != block:
            yield f"block {block} is cached under a prefix that names block {prefix.block}"
    for sequence in scheduler.seats.running:
        request = sequence.request
        partial = request.block_table[request.num_computed_tokens // scheduler.tables.block_size :]
        for block in partial:
            if scheduler.tables.pool.keeps(block):
                yield f"request {request.key}: block {block} is cached but not full"


def _chains(scheduler: Scheduler) -> Iterator[str]:
    """A cached block holds, for each of its holders, that holder's own tokens, back to the beginning."""
    size, cached = scheduler.tables.block_size, scheduler.tables.cache.blocks()
    for sequence in scheduler.seats.running:
        request = sequence.request
        for index, block in enumerate(request.block_table):
            prefix = cached.get(block)
            for at in range(index, -1, -1):
                content = array("i", request.tokens[at * size : (at + 1) * size]).tobytes()
                if prefix is None:
                    break
                if prefix.content != content:
                    yield f"request {request.key}: block {block} is cached for other tokens at block {at} of its prefix"
                prefix = prefix.parent
            if prefix is not None and (prefix.parent is not None or prefix.content != request.salt):
                yield f"request {request.key}: block {block} is cached at another depth or under another salt"


def _requests(scheduler: Scheduler) -> Iterator[str]:
    """Computed <= known tokens; nothing waits with blocks, nothing finished is still in the books."""
    waiting = scheduler.waiting.ordered()
    for sequence in scheduler.seats.running + waiting:
        request = sequence.request
        expected = RequestState.WAITING if sequence.slot < 0 else RequestState.RUNNING
        if not 0 <= request.num_computed_tokens < len(request.tokens) < request.max_total_tokens:
            yield (
                f"request {request.key}: {request.num_computed_tokens} computed of {len(request.tokens)} known tokens, "
                f"at most {request.max_total_tokens}"
            )
        if request.state is not expected:
            yield f"request {request.key}: {request.state} with slot {sequence.slot}"
        if sequence.in_flight:
            yield f"request {request.key}: in flight between steps"
        if any(scheduler.sequences.get(key) is not sequence for key in sequence.keys):
            yield f"request {request.key}: not found under its keys"
    for sequence in waiting:
        if sequence.request.block_table or sequence.request.num_computed_tokens:
            yield f"request {sequence.request.key}: waits with blocks {sequence.request.block_table}"
    if len(set(scheduler.sequences.values())) != len(waiting) + len(scheduler.seats.running):
        yield "the books have requests that neither wait nor run"


def _seats(scheduler: Scheduler) -> Iterator[str]:
    """Slots are held once each, running <= max_num_seqs, the order of service is the order of priority and arrival."""
    seats = scheduler.seats
    slots = [sequence.slot for sequence in seats.running]
    if sorted(slots + seats.free_slots) != list(range(seats.num_seats)):
        yield f"slots held {slots} and free {seats.free_slots} of {seats.num_seats}"
    reserved = sum(sequence.num_choices for sequence in seats.running)
    if reserved != seats.num_reserved or not len(seats.running) <= reserved <= seats.num_seats:
        yield f"{seats.num_reserved} seats reserved, {reserved} needed, {seats.num_seats} there"
    orders = [sequence.order for sequence in seats.running]
    if orders != sorted(orders):
        yield f"running out of order: {orders}"
    if seats.leaving:
        yield f"{len(seats.leaving)} ended requests keep their seats between steps"


def _counters(scheduler: Scheduler) -> Iterator[str]:
    """Prompt = cached + computed; work = prompts + answers + recomputation; accepted = ended + unfinished."""
    counts = scheduler.counters
    if counts.cached_prompt_tokens + counts.computed_prompt_tokens != counts.prompt_tokens:
        yield (
            f"prompt tokens: {counts.cached_prompt_tokens} cached + {counts.computed_prompt_tokens} computed "
            f"of {counts.prompt_tokens}"
        )
    work = counts.computed_prompt_tokens + counts.computed_answer_tokens + counts.recomputed_tokens
    if work != counts.computed_tokens:
        yield f"computed tokens: {counts.computed_tokens}, by kind {work}"
    if sum(counts.finished.values()) + len(scheduler.sequences) != counts.accepted:
        yield f"{counts.accepted} accepted, {counts.finished} ended, {len(scheduler.sequences)} unfinished"
