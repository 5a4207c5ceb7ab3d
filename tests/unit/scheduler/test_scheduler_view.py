"""What an onlooker is told: the state of every block, and why the first in line waits."""

from __future__ import annotations

from scheduler_toys import new_request, new_scheduler, step

from kvik.scheduler import Scheduler
from kvik.scheduler.view import CACHED, block_states, waits


def reasons(scheduler: Scheduler) -> list[tuple[int, str, int, int]]:
    return [(wait.key, wait.reason, wait.needed, wait.available) for wait in waits(scheduler, 10)]


def test_blocks_are_free_held_shared_or_cached() -> None:
    scheduler = new_scheduler(num_blocks=6, block_size=4)
    assert list(block_states(scheduler.tables.pool)) == [0] * 6
    scheduler.add(new_request(0, [1] * 9, max_tokens=1))
    scheduler.add(new_request(1, [2] * 4))
    step(scheduler)
    assert list(block_states(scheduler.tables.pool)) == [CACHED, CACHED, 0, 1, 0, 0]
    scheduler.add(new_request(2, [1] * 9))
    scheduler.add(new_request(3, [1] * 9))
    step(scheduler)
    assert list(block_states(scheduler.tables.pool))[:2] == [2, 2]


def test_looking_changes_nothing() -> None:
    scheduler = new_scheduler(num_blocks=4, max_num_seqs=2)
    for key in range(4):
        scheduler.add(new_request(key, 5))
    step(scheduler)
    before = (scheduler.stats(), list(scheduler.seats.running), scheduler.waiting.ordered())
    assert waits(scheduler, 10)
    block_states(scheduler.tables.pool)[0] = 99
    assert (scheduler.stats(), list(scheduler.seats.running), scheduler.waiting.ordered()) == before


def test_nobody_waits_for_nothing() -> None:
    scheduler = new_scheduler()
    assert reasons(scheduler) == []
    scheduler.add(new_request(0, 3))
    assert reasons(scheduler) == [(0, "turn", 0, 0)]
    step(scheduler)
    assert reasons(scheduler) == []


def test_the_first_lacks_seats_and_the_others_stand_in_line() -> None:
    scheduler = new_scheduler(max_num_seqs=2)
    scheduler.add(new_request(0, 3))
    step(scheduler)
    for key in (1, 2, 3):
        scheduler.add(new_request(10 * key, 3, n=2))
    assert reasons(scheduler) == [(10, "seats", 2, 1), (20, "line", 1, 0), (30, "line", 2, 0)]
    assert len(waits(scheduler, 2)) == 2


def test_a_static_batch_must_end_first() -> None:
    scheduler = new_scheduler(batching="static")
    scheduler.add(new_request(0, 3, max_tokens=2))
    step(scheduler)
    scheduler.add(new_request(1, 3))
    assert reasons(scheduler) == [(1, "batch", 0, 1)]
    step(scheduler)
    assert reasons(scheduler) == [(1, "turn", 0, 0)]


def test_a_long_prompt_takes_the_budget() -> None:
    scheduler = new_scheduler(max_num_batched_tokens=4)
    scheduler.add(new_request(0, 11))
    step(scheduler)
    scheduler.add(new_request(1, 2))
    assert reasons(scheduler) == [(1, "budget", 2, 0)]
    step(scheduler)
    assert reasons(scheduler) == [(1, "turn", 0, 0)]


def test_prompts_that_come_first_do_not_wait_for_decodes() -> None:
    scheduler = new_scheduler(max_num_batched_tokens=2, schedule="separate")
    for key in (0, 1):
        scheduler.add(new_request(key, 2))
        step(scheduler)
    scheduler.add(new_request(2, 2))
    assert reasons(scheduler) == [(2, "turn", 0, 0)]


def test_blocks_are_counted_with_hits_and_with_what_is_promised() -> None:
    scheduler = new_scheduler(num_blocks=4, block_size=4, max_num_batched_tokens=4)
    scheduler.add(new_request(0, 10))
    step(scheduler)
    scheduler.add(new_request(1, 8))
    assert reasons(scheduler) == [(1, "budget", 8, 0)]
    step(scheduler)
    assert reasons(scheduler) == [(1, "blocks", 3 + 1, 2)]


def test_cached_blocks_make_room_for_whom_they_fit() -> None:
    scheduler = new_scheduler(num_blocks=5, block_size=4)
    scheduler.add(new_request(0, [1] * 9, max_tokens=2))
    step(scheduler)
    scheduler.add(new_request(1, [2] * 11))
    scheduler.add(new_request(2, [1] * 11))
    assert [wait.reason for wait in waits(scheduler, 1)] == ["blocks"]
    scheduler.abort(1)
    assert [wait.reason for wait in waits(scheduler, 1)] == ["blocks"], "it was not looked for in the cache yet"
    scheduler.plan()
    assert scheduler.num_waiting == 0


def test_what_it_says_comes_true() -> None:
    """`turn` starts with the next step, and what lacks seats or blocks does not."""
    for blocks in range(2, 9):
        scheduler = new_scheduler(num_blocks=blocks, block_size=4, max_num_seqs=3, prefix_caching=False)
        for key in range(6):
            scheduler.add(new_request(key, 3 + key % 4, max_tokens=1 + key, total=min(8, 4 * blocks)))
        for _ in range(40):
            said = waits(scheduler, 1)
            plan, _ = step(scheduler)
            for wait in said:
                assert (wait.key in plan.keys.tolist()) == (wait.reason == "turn"), (blocks, wait)
