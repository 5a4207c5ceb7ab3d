"""The checker of the books: silent on sound books, and loud on every planted fault, naming it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scheduler_toys import new_request, new_scheduler, step

from kvik.request import RequestState
from kvik.scheduler import InvariantError, Scheduler, check_invariants


def busy_scheduler() -> Scheduler:
    """Two running, one forked pair, one waiting, one idle cached block."""
    scheduler = new_scheduler(block_size=2, max_num_seqs=4, num_blocks=20)
    scheduler.add(new_request(9, 4, max_tokens=1))
    step(scheduler)
    for key in (0, 1):
        scheduler.add(new_request(key, 5))
    scheduler.add(new_request(2, 5, n=2))
    scheduler.add(new_request(4, 5))
    step(scheduler)
    step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (4, 1)
    assert scheduler.tables.pool.num_idle == 2
    return scheduler


def lose_a_reference(scheduler: Scheduler) -> None:
    scheduler.tables.pool.refs[scheduler.seats.running[0].request.block_table[0]] -= 1


def free_a_held_block(scheduler: Scheduler) -> None:
    pool = scheduler.tables.pool
    pool._insert(scheduler.seats.running[0].request.block_table[-1], before=pool._free)


def miscount_free_blocks(scheduler: Scheduler) -> None:
    scheduler.tables.pool.num_free -= 1


def swap_blocks_of_two_requests(scheduler: Scheduler) -> None:
    first, second = (sequence.request.block_table for sequence in scheduler.seats.running[:2])
    first[0], second[0] = second[0], first[0]


def change_a_computed_token(scheduler: Scheduler) -> None:
    scheduler.seats.running[0].request.tokens[0] += 1


def change_a_salt(scheduler: Scheduler) -> None:
    scheduler.seats.running[0].request.salt = b"other"


def forget_a_cached_block(scheduler: Scheduler) -> None:
    scheduler.tables.cache.forget(next(scheduler.tables.pool.idle_blocks()))


def cache_a_partial_block(scheduler: Scheduler) -> None:
    scheduler.seats.running[0].request.num_computed_tokens -= 4


def misplace_a_block(scheduler: Scheduler) -> None:
    prefix = next(iter(scheduler.tables.cache.blocks().values()))
    prefix.block = 19


def compute_too_much(scheduler: Scheduler) -> None:
    request = scheduler.seats.running[0].request
    request.num_computed_tokens = len(request.tokens)


def give_a_slot_twice(scheduler: Scheduler) -> None:
    scheduler.seats.running[0].slot = scheduler.seats.running[1].slot


def reserve_too_little(scheduler: Scheduler) -> None:
    scheduler.seats.num_reserved -= 1


def reverse_the_order(scheduler: Scheduler) -> None:
    scheduler.seats.running.reverse()


def lose_a_waiting_request(scheduler: Scheduler) -> None:
    scheduler.waiting.pop()


def forget_a_key(scheduler: Scheduler) -> None:
    del scheduler.sequences[1]


def mistake_a_state(scheduler: Scheduler) -> None:
    scheduler.seats.running[0].request.state = RequestState.WAITING


def leave_someone_in_flight(scheduler: Scheduler) -> None:
    scheduler.seats.running[0].in_flight = True


def leave_someone_leaving(scheduler: Scheduler) -> None:
    scheduler.seats.leaving.append(scheduler.seats.running[0])


def compute_out_of_thin_air(scheduler: Scheduler) -> None:
    scheduler.counters.computed_tokens += 1


def invent_a_hit(scheduler: Scheduler) -> None:
    scheduler.counters.cached_prompt_tokens += 1


def end_someone_twice(scheduler: Scheduler) -> None:
    scheduler.counters.finished["stop"] += 1


def dirty_a_free_slot(scheduler: Scheduler) -> None:
    scheduler.abort(0)
    scheduler.tables.array[scheduler.seats.free_slots[0], 0] = 3


FAULTS: list[tuple[Callable[[Scheduler], None], str]] = [
    (lose_a_reference, "references"),
    (free_a_held_block, "not exactly the blocks without references"),
    (miscount_free_blocks, "lists have"),
    (swap_blocks_of_two_requests, "array row"),
    (change_a_computed_token, "cached for other tokens"),
    (change_a_salt, "another salt"),
    (forget_a_cached_block, "disagree"),
    (cache_a_partial_block, "is cached but not full"),
    (misplace_a_block, "names block 19"),
    (compute_too_much, "computed of"),
    (give_a_slot_twice, "slots held"),
    (reserve_too_little, "seats reserved"),
    (reverse_the_order, "out of order"),
    (lose_a_waiting_request, "neither wait nor run"),
    (forget_a_key, "not found under its keys"),
    (mistake_a_state, "RequestState.WAITING with slot"),
    (leave_someone_in_flight, "in flight between steps"),
    (leave_someone_leaving, "keep their seats"),
    (compute_out_of_thin_air, "computed tokens"),
    (invent_a_hit, "prompt tokens"),
    (end_someone_twice, "accepted"),
    (dirty_a_free_slot, "is free but its table is not empty"),
]


def test_sound_books_pass() -> None:
    check_invariants(busy_scheduler())


@pytest.mark.parametrize(("plant", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_named(plant: Callable[[Scheduler], None], message: str) -> None:
    scheduler = busy_scheduler()
    plant(scheduler)
    with pytest.raises(InvariantError, match=message):
        check_invariants(scheduler)
