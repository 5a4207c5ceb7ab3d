"""Counters and their identities."""

from __future__ import annotations

import pytest
from scheduler_toys import new_request, new_scheduler, step

from kvik.scheduler.stats import Counters


def test_an_idle_scheduler_holds_nothing() -> None:
    stats = new_scheduler(num_blocks=8).stats()
    assert (stats.waiting, stats.running) == (0, 0)
    assert (stats.blocks_total, stats.blocks_used, stats.blocks_cached, stats.blocks_free) == (8, 0, 0, 8)
    assert stats.kv_utilisation == 1.0


def test_kv_tokens_are_counted_once_however_often_they_are_shared() -> None:
    scheduler = new_scheduler(block_size=4)
    scheduler.add(new_request(0, 6, n=3))
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.kv_tokens, stats.kv_slots, stats.kv_utilisation) == (6, 8, 0.75)
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.kv_tokens, stats.kv_slots) == (4 + 3 * 3, 16)


def test_work_is_counted_by_kind() -> None:
    scheduler = new_scheduler(block_size=4)
    scheduler.add(new_request(0, [1] * 9, max_tokens=3))
    step(scheduler)
    scheduler.add(new_request(1, [1] * 9, max_tokens=1))
    step(scheduler)
    assert scheduler.preempt(0)
    scheduler.tables.cache.forget(0)
    scheduler.tables.pool.drop(0)
    step(scheduler)
    counters = scheduler.stats().counters
    assert counters.prompt_tokens == 18
    assert (counters.cached_prompt_tokens, counters.computed_prompt_tokens) == (8, 10)
    assert counters.computed_answer_tokens == 2
    assert counters.recomputed_tokens == 10
    assert counters.computed_tokens == 22
    assert counters.generated_tokens == 4
    assert (counters.preemptions, counters.steps, counters.accepted) == (1, 3, 2)
    assert counters.finished == {"stop": 0, "length": 2, "abort": 0, "deadline": 0, "error": 0}


def test_a_prompt_aborted_midway_counts_what_was_done() -> None:
    scheduler = new_scheduler(max_num_batched_tokens=4)
    scheduler.add(new_request(0, 9))
    step(scheduler)
    scheduler.abort(0)
    counters = scheduler.counters
    assert (counters.prompt_tokens, counters.computed_prompt_tokens) == (4, 4)


def test_a_snapshot_does_not_grow() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 2, max_tokens=1))
    before = scheduler.stats()
    step(scheduler)
    assert before.counters.finished["length"] == before.counters.steps == 0
    assert scheduler.stats().counters.finished["length"] == 1


@pytest.mark.parametrize(
    ("span", "recomputed", "prompt", "answer"),
    [
        ((0, 5, 0, 8), 0, 5, 0),
        ((5, 10, 5, 8), 0, 3, 2),
        ((0, 10, 6, 8), 6, 2, 2),
        ((0, 10, 9, 8), 9, 0, 1),
        ((4, 6, 9, 8), 2, 0, 0),
        ((9, 10, 9, 8), 0, 0, 1),
    ],
)
def test_a_span_is_split_by_kind(span: tuple[int, int, int, int], recomputed: int, prompt: int, answer: int) -> None:
    start, end, seen, length = span
    counters = Counters()
    counters.count_span(start, end, seen, length)
    assert counters.recomputed_tokens == recomputed
    assert (counters.prompt_tokens, counters.computed_prompt_tokens) == (prompt, prompt)
    assert counters.computed_answer_tokens == answer
