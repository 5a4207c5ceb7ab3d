"""Shared blocks: forks with copy-on-write, prefix hits, eviction, salts."""

from __future__ import annotations

from scheduler_toys import new_request, new_scheduler, result_of, scheduled, step

from kvik.request import FinishReason, RequestState, choice_seed
from kvik.scheduler import check_invariants


def test_choices_are_drawn_in_the_step_that_ends_the_prompt() -> None:
    scheduler = new_scheduler(max_num_batched_tokens=4)
    scheduler.add(new_request(10, 6, n=3, seed=5))
    plan, _ = step(scheduler)
    assert len(plan.sample) == 0
    plan, touched = step(scheduler)
    assert plan.sample.rows.tolist() == [0, 0, 0]
    assert plan.sample.keys.tolist() == [10, 11, 12]
    assert plan.sample.seeds.tolist() == [choice_seed(5, choice) for choice in range(3)]
    assert [(one.key, one.choice, one.parent, one.seed) for one in touched] == [
        (10, 0, None, 5),
        (11, 1, 10, choice_seed(5, 1)),
        (12, 2, 10, choice_seed(5, 2)),
    ]
    assert all(one.state is RequestState.RUNNING and one.output_token_ids == [7] for one in touched)


def test_choices_share_every_block_and_the_last_holder_writes_in_place() -> None:
    scheduler = new_scheduler(block_size=4)
    scheduler.add(new_request(0, 6, n=3))
    _, touched = step(scheduler)
    assert [one.block_table for one in touched] == [[0, 1]] * 3
    assert scheduler.stats().blocks_used == 2
    plan, _ = step(scheduler)
    assert plan.copies.tolist() == [[1, 2], [1, 3]]
    assert plan.block_tables.tolist() == [[0, 2], [0, 3], [0, 1]]
    plan, _ = step(scheduler)
    assert plan.copies.shape == (0, 2)


def test_full_blocks_are_shared_without_a_copy() -> None:
    scheduler = new_scheduler(block_size=4)
    scheduler.add(new_request(0, 4, n=2))
    step(scheduler)
    plan, _ = step(scheduler)
    assert plan.copies.shape == (0, 2)
    assert plan.block_tables.tolist() == [[0, 1], [0, 2]]


def test_a_choice_that_ends_leaves_its_share_to_the_others() -> None:
    scheduler = new_scheduler(block_size=4)
    scheduler.add(new_request(0, 6, n=2))
    step(scheduler)
    scheduler.abort(0)
    check_invariants(scheduler)
    plan, touched = step(scheduler)
    assert plan.copies.shape == (0, 2)
    assert plan.block_tables.tolist() == [[0, 1]]
    assert [one.key for one in touched] == [1]


def test_choices_without_room_run_one_after_another() -> None:
    scheduler = new_scheduler(num_blocks=2, block_size=4)
    scheduler.add(new_request(0, 3, n=3, max_tokens=5))
    ended = []
    while scheduler.has_unfinished():
        ended += [one for one in step(scheduler)[1] if one.is_finished]
    assert sorted(one.key for one in ended) == [0, 1, 2]
    assert all(one.finish_reason is FinishReason.LENGTH and len(one.tokens) == 8 for one in ended)
    assert scheduler.counters.preemptions > 0


def test_a_known_prefix_is_not_computed_again_but_for_the_last_token() -> None:
    scheduler = new_scheduler(block_size=4)
    prompt = list(range(8))
    scheduler.add(new_request(0, prompt, max_tokens=1))
    step(scheduler)
    requests = [new_request(1, prompt, max_tokens=1), new_request(2, [*prompt, 9], max_tokens=1)]
    for request in requests:
        scheduler.add(request)
    plan, _ = step(scheduler)
    assert scheduled(plan) == {1: 4, 2: 1}
    assert plan.positions.tolist() == [4, 5, 6, 7, 8]
    assert [request.num_cached_tokens for request in requests] == [4, 8]
    assert plan.block_tables[0, 0] == plan.block_tables[1, 0]


def test_an_answer_is_a_prefix_of_the_next_turn() -> None:
    scheduler = new_scheduler(block_size=4)
    first = new_request(0, 5, max_tokens=8)
    scheduler.add(first)
    while scheduler.has_unfinished():
        step(scheduler)
    second = new_request(1, [*first.tokens, 1, 2, 3], max_tokens=1)
    scheduler.add(second)
    assert scheduled(step(scheduler)[0]) == {1: 4}
    assert second.num_cached_tokens == 12


def test_salts_and_the_option_keep_requests_apart() -> None:
    for salt, prefix_caching in ((b"other", True), (b"", False)):
        scheduler = new_scheduler(prefix_caching=prefix_caching)
        for key, own in ((0, b""), (1, salt)):
            scheduler.add(new_request(key, [1] * 9, max_tokens=1, salt=own))
            assert scheduled(step(scheduler)[0]) == {key: 9}
        assert scheduler.counters.cached_prompt_tokens == 0


def test_equal_prompts_in_one_step_keep_both_blocks_and_cache_the_first() -> None:
    scheduler = new_scheduler(block_size=4)
    for key in range(2):
        scheduler.add(new_request(key, [1] * 4, max_tokens=3))
    plan, _ = step(scheduler)
    assert plan.block_tables.tolist() == [[0], [1]]
    assert list(scheduler.tables.cache.blocks()) == [0]


def test_the_least_recently_used_blocks_are_evicted_and_held_ones_never() -> None:
    scheduler = new_scheduler(num_blocks=4, block_size=4)
    for key in range(2):
        scheduler.add(new_request(key, [key + 1] * 4, max_tokens=1))
        step(scheduler)
    scheduler.add(new_request(2, [1] * 6, max_tokens=1))
    step(scheduler)
    held = new_request(3, [3] * 9, max_tokens=4)
    scheduler.add(held)
    step(scheduler)
    left = {prefix.content[0] for prefix in scheduler.tables.cache.blocks().values()}
    assert left == {1, 3}
    while scheduler.has_unfinished():
        step(scheduler)
    assert held.output_token_ids == [7] * 4


def test_beginnings_are_evicted_after_what_follows_them() -> None:
    scheduler = new_scheduler(num_blocks=4, block_size=4)
    scheduler.add(new_request(0, [1] * 12, max_tokens=1))
    step(scheduler)
    scheduler.add(new_request(1, [2] * 8, max_tokens=1))
    step(scheduler)
    scheduler.add(new_request(2, [1] * 13, max_tokens=1))
    assert scheduled(step(scheduler)[0]) == {2: 5}


def test_scored_prompts_are_computed_in_full_and_scored_once() -> None:
    scheduler = new_scheduler(block_size=2, max_num_batched_tokens=4)
    scheduler.add(new_request(0, [1] * 9, max_tokens=1))
    for _ in range(3):
        step(scheduler)
    request = new_request(1, [1] * 8 + [5], max_tokens=1, prompt_logprobs=2)
    scheduler.add(request)
    plan, _ = step(scheduler)
    assert request.num_cached_tokens == 0
    assert plan.score.indices.tolist() == [0, 1, 2, 3]
    assert plan.score.targets.tolist() == [1, 1, 1, 1]
    assert plan.score.num_top.tolist() == [2, 2, 2, 2]
    scheduler.preempt(1)
    plan, _ = step(scheduler)
    assert plan.positions.tolist() == [4, 5, 6, 7]
    assert plan.score.targets.tolist() == [1, 1, 1, 5]
    step(scheduler)
    assert [entry and entry.token_id for entry in request.prompt_logprobs] == [None, 1, 1, 1, 1, 1, 1, 1, 5]
    assert request.prompt_logprobs[1] is not None
    assert [one.token_id for one in request.prompt_logprobs[1].top] == [1, 2]


def test_a_failed_request_leaves_nothing_behind_in_the_cache() -> None:
    scheduler = new_scheduler(block_size=2, max_num_batched_tokens=4)
    scheduler.add(new_request(0, [1] * 6, n=2))
    step(scheduler)
    _, touched = step(scheduler, failed=(0, 1))
    assert [(one.key, one.finish_reason, one.error) for one in touched] == [
        (key, FinishReason.ERROR, "numerical error") for key in (0, 1)
    ]
    assert len(scheduler.tables.cache) == 0
    assert scheduler.stats().blocks_free == 16


def test_a_block_is_cached_only_after_the_step_that_computes_it() -> None:
    scheduler = new_scheduler(block_size=4)
    scheduler.add(new_request(0, [1] * 9))
    plan = scheduler.plan()
    assert len(scheduler.tables.cache) == 0
    scheduler.commit(plan, result_of(plan))
    assert len(scheduler.tables.cache) == 2
