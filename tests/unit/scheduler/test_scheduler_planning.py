"""Who gets how many tokens: budget, order, chunks, preemption, and the policies."""

from __future__ import annotations

import numpy as np
import pytest
from scheduler_toys import new_request, new_scheduler, result_of, scheduled, step

from kvik.scheduler import Scheduler


def run_all(scheduler: Scheduler, limit: int = 200) -> list[dict[int, int]]:
    """Steps to the end: tokens by key for each."""
    steps = []
    while scheduler.has_unfinished():
        steps.append(scheduled(step(scheduler)[0]))
        assert len(steps) < limit
    return steps


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    scheduler = new_scheduler(max_num_batched_tokens=5)
    scheduler.add(new_request(0, 3, max_tokens=4))
    scheduler.add(new_request(1, 9, max_tokens=1))
    assert run_all(scheduler) == [{0: 3, 1: 2}, {0: 1, 1: 4}, {0: 1, 1: 3}, {0: 1}]


def test_only_the_row_that_reaches_its_last_token_draws() -> None:
    scheduler = new_scheduler(max_num_batched_tokens=4)
    scheduler.add(new_request(0, 6, max_tokens=2))
    plan, touched = step(scheduler)
    assert (len(plan.sample), touched) == (0, [])
    plan, touched = step(scheduler)
    assert plan.sample.rows.tolist() == [0]
    assert plan.sample.positions.tolist() == [6]
    assert touched[0].tokens[6:] == [7]


def test_running_requests_come_before_waiting_ones_and_priority_before_arrival() -> None:
    scheduler = new_scheduler(max_num_batched_tokens=4)
    scheduler.add(new_request(0, 2, priority=1))
    step(scheduler)
    for key, priority in ((1, 1), (2, 0)):
        scheduler.add(new_request(key, 2, priority=priority))
    assert list(scheduled(step(scheduler)[0]).items()) == [(0, 1), (2, 2), (1, 1)]
    assert list(scheduled(step(scheduler)[0]).items()) == [(2, 1), (0, 1), (1, 1)]


def test_no_more_than_max_num_seqs_run_and_choices_count() -> None:
    scheduler = new_scheduler(max_num_seqs=3)
    scheduler.add(new_request(0, 2, n=2))
    scheduler.add(new_request(2, 2, n=2))
    scheduler.add(new_request(4, 2))
    step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 2)
    scheduler.abort(2)
    step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (3, 0)


def test_nobody_overtakes_the_first_in_line() -> None:
    scheduler = new_scheduler(num_blocks=4, block_size=4)
    scheduler.add(new_request(0, 6))
    scheduler.add(new_request(1, 10))
    scheduler.add(new_request(2, 2))
    assert scheduled(step(scheduler)[0]) == {0: 6}


def test_admission_leaves_room_for_prompts_that_are_under_way() -> None:
    scheduler = new_scheduler(num_blocks=5, block_size=2, max_num_batched_tokens=4)
    scheduler.add(new_request(0, 7))
    scheduler.add(new_request(1, 2))
    step(scheduler)
    assert scheduled(step(scheduler)[0]) == {0: 3}


def test_the_newest_is_preempted_and_comes_back_first() -> None:
    scheduler = new_scheduler(num_blocks=4, block_size=2, prefix_caching=False)
    requests = [new_request(key, 2, max_tokens=4) for key in range(3)]
    for request in requests:
        scheduler.add(request)
    assert run_all(scheduler) == [{0: 2, 1: 2}, {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1}, {1: 5}, {2: 2}, *[{2: 1}] * 3]
    assert [request.num_preemptions for request in requests] == [0, 1, 0]


def test_preemption_hits_the_last_of_the_lowest_priority_and_recomputes_its_answer() -> None:
    scheduler = new_scheduler(num_blocks=5, block_size=2, prefix_caching=False)
    first, urgent = new_request(0, 2, priority=1, max_tokens=6), new_request(1, 2, max_tokens=6)
    scheduler.add(first)
    scheduler.add(urgent)
    steps = run_all(scheduler)
    assert (first.num_preemptions, urgent.num_preemptions) == (1, 0)
    assert first.tokens[2:] == urgent.tokens[2:] == [7] * 6
    assert any(step.get(0, 0) > 2 for step in steps)
    assert scheduler.counters.recomputed_tokens > 0


def test_a_preempted_request_may_start_from_its_own_blocks() -> None:
    scheduler = new_scheduler(block_size=2)
    request = new_request(0, 5, max_tokens=4)
    scheduler.add(request)
    step(scheduler)
    assert scheduler.preempt(0)
    assert (request.num_computed_tokens, request.block_table) == (0, [])
    assert scheduled(step(scheduler)[0]) == {0: 2}
    assert request.num_cached_tokens == 0


def test_preempt_says_no_to_what_does_not_run() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 2, n=2))
    assert not scheduler.preempt(0)
    assert not scheduler.preempt(9)
    plan = scheduler.plan()
    assert not scheduler.preempt(0)
    scheduler.commit(plan, result_of(plan))
    assert scheduler.preempt(1)


def test_separate_steps_are_all_prompts_or_all_decodes() -> None:
    scheduler = new_scheduler(schedule="separate", max_num_batched_tokens=4)
    scheduler.add(new_request(0, 2, max_tokens=3))
    step(scheduler)
    scheduler.add(new_request(1, 6, max_tokens=2))
    assert run_all(scheduler) == [{1: 4}, {1: 2}, {0: 1, 1: 1}, {0: 1}]


def test_static_batching_admits_only_when_empty_and_fills_the_batch_beyond_one_budget() -> None:
    scheduler = new_scheduler(batching="static", max_num_batched_tokens=4, max_num_seqs=2)
    for key in range(3):
        scheduler.add(new_request(key, 3, max_tokens=2))
    steps = run_all(scheduler)
    assert steps[:2] == [{0: 3, 1: 1}, {0: 1, 1: 2}]
    assert steps[2] == {1: 1}
    assert steps[3] == {2: 3}


def test_whole_prompts_wait_for_budget_and_a_longer_one_goes_alone() -> None:
    scheduler = new_scheduler(chunked_prefill=False, max_num_batched_tokens=4)
    scheduler.add(new_request(0, 2, max_tokens=4))
    scheduler.add(new_request(1, 3, max_tokens=1))
    scheduler.add(new_request(2, 9, max_tokens=1))
    assert run_all(scheduler) == [{0: 2}, {0: 1, 1: 3}, {2: 9}, {0: 1}, {0: 1}]


def test_whole_recomputation_after_preemption() -> None:
    scheduler = new_scheduler(chunked_prefill=False, max_num_batched_tokens=4, prefix_caching=False)
    scheduler.add(new_request(0, 3, max_tokens=6))
    for _ in range(4):
        step(scheduler)
    scheduler.preempt(0)
    assert scheduled(step(scheduler)[0]) == {0: 7}


def test_whole_prompts_in_a_static_batch() -> None:
    scheduler = new_scheduler(chunked_prefill=False, batching="static", max_num_batched_tokens=4, max_num_seqs=3)
    for key in range(3):
        scheduler.add(new_request(key, 3, max_tokens=2))
    assert run_all(scheduler) == [{0: 3}, {1: 3}, {2: 3}, {0: 1, 1: 1, 2: 1}]


def test_a_contiguous_cache_is_one_block_for_the_longest_request() -> None:
    scheduler = new_scheduler(num_blocks=2, block_size=32, max_model_len=32)
    for key in range(3):
        scheduler.add(new_request(key, 10, max_tokens=3))
    plan, _ = step(scheduler)
    assert plan.block_tables.tolist() == [[0], [1]]
    assert len(run_all(scheduler)) == 5


def test_nothing_to_do_is_an_empty_plan_that_can_be_committed() -> None:
    scheduler = new_scheduler()
    plan, touched = step(scheduler)
    assert (plan.num_rows, plan.num_tokens, plan.block_tables.shape, touched) == (0, 0, (0, 0), [])
    np.testing.assert_array_equal(plan.query_start_loc, [0])


def test_plans_alternate_with_commits() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 2))
    plan = scheduler.plan()
    with pytest.raises(RuntimeError, match="step 0 is still in flight"):
        scheduler.plan()
    scheduler.commit(plan, result_of(plan))
    with pytest.raises(ValueError, match="step 0 is not in flight"):
        scheduler.commit(plan, result_of(plan))
    with pytest.raises(ValueError, match="step 0 is not in flight"):
        scheduler.cancel(plan)


def test_a_cancelled_plan_leaves_no_trace_but_lost_time() -> None:
    scheduler = new_scheduler(prefix_caching=False)
    scheduler.add(new_request(0, 5, n=2, max_tokens=3))
    step(scheduler)
    plan = scheduler.plan()
    assert len(plan.copies) == 1
    scheduler.cancel(plan)
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 2)
    assert scheduled(step(scheduler)[0]) == {0: 6, 1: 6}
