"""What a result does: tokens, ends, log-probabilities, failures, and aborts at every moment."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scheduler_toys import new_request, new_scheduler, result_of, step

from kvik.request import FinishReason, Logprob, RequestState, TokenLogprobs
from kvik.scheduler import check_invariants


def test_a_stop_token_ends_and_is_kept_even_as_the_last_token_allowed() -> None:
    scheduler = new_scheduler()
    request = new_request(0, 2, max_tokens=1, stop_ids=frozenset([7]))
    scheduler.add(request)
    _, touched = step(scheduler, token=7)
    assert touched == [request]
    assert (request.finish_reason, request.stop_token, request.output_token_ids) == (FinishReason.STOP, 7, [7])
    assert not scheduler.has_unfinished()


def test_the_last_token_allowed_ends_with_length() -> None:
    scheduler = new_scheduler()
    request = new_request(0, 2, total=4)
    scheduler.add(request)
    step(scheduler)
    assert request.state is RequestState.RUNNING
    step(scheduler)
    assert (request.finish_reason, request.stop_token, request.num_tokens) == (FinishReason.LENGTH, None, 4)


def test_a_failed_row_ends_alone() -> None:
    scheduler = new_scheduler()
    requests = [new_request(key, 2) for key in range(3)]
    for request in requests:
        scheduler.add(request)
    _, touched = step(scheduler, failed=(1,))
    assert touched == requests
    assert [request.finish_reason for request in requests] == [None, FinishReason.ERROR, None]
    assert requests[1].error == "numerical error"
    assert requests[1].output_token_ids == []
    assert scheduler.num_running == 2


def test_logprobs_are_attached_as_asked() -> None:
    scheduler = new_scheduler()
    requests = [new_request(0, 2), new_request(1, 2, logprobs=0), new_request(2, 2, logprobs=5)]
    for request in requests:
        scheduler.add(request)
    plan, _ = step(scheduler)
    assert plan.sample.num_logprobs.tolist() == [-1, 0, 5]
    assert requests[0].logprobs == []
    assert requests[1].logprobs == [TokenLogprobs(7, -2.0)]
    assert requests[2].logprobs == [TokenLogprobs(7, -3.0, (Logprob(1, -0.5), Logprob(2, -1.5)))]


def test_a_result_of_another_size_is_refused_and_changes_nothing() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 2))
    plan = scheduler.plan()
    good = result_of(plan)
    with pytest.raises(ValueError, match="result has 2 tokens; the plan draws 1"):
        scheduler.commit(plan, dataclasses.replace(good, token_ids=np.zeros(2, np.int32)))
    assert len(scheduler.commit(plan, good)) == 1


@pytest.mark.parametrize("moment", ["waiting", "running", "preempted"])
def test_abort_frees_at_once_and_only_once(moment: str) -> None:
    scheduler = new_scheduler()
    request = new_request(0, 5)
    scheduler.add(request)
    if moment != "waiting":
        step(scheduler)
    if moment == "preempted":
        scheduler.preempt(0)
    assert scheduler.abort(0) is request
    check_invariants(scheduler)
    assert (request.finish_reason, request.state) == (FinishReason.ABORT, RequestState.FINISHED)
    assert scheduler.tables.pool.num_held == 0
    assert not scheduler.has_unfinished()
    assert scheduler.abort(0) is None
    assert scheduler.counters.finished["abort"] == 1


def test_abort_in_flight_holds_the_blocks_until_commit() -> None:
    scheduler = new_scheduler()
    requests = [new_request(key, 5) for key in range(2)]
    for request in requests:
        scheduler.add(request)
    plan = scheduler.plan()
    assert scheduler.finish(0, FinishReason.DEADLINE) is requests[0]
    assert scheduler.finish(0, FinishReason.DEADLINE) is None
    assert scheduler.tables.pool.num_held == 4
    assert scheduler.num_running == 1
    assert scheduler.commit(plan, result_of(plan)) == [requests[1]]
    check_invariants(scheduler)
    assert scheduler.tables.pool.num_held == 2
    assert requests[0].finish_reason is FinishReason.DEADLINE
    assert requests[0].output_token_ids == []


def test_aborting_what_has_not_forked_ends_all_its_choices() -> None:
    for in_flight in (False, True):
        scheduler = new_scheduler()
        scheduler.add(new_request(0, 5, n=3))
        plan = scheduler.plan() if in_flight else None
        assert scheduler.abort(1) is None
        assert scheduler.abort(0) is not None
        if plan is not None:
            assert scheduler.commit(plan, result_of(plan)) == []
        check_invariants(scheduler)
        assert not scheduler.has_unfinished()
        assert scheduler.counters.finished["abort"] == scheduler.counters.accepted == 3


def test_aborting_one_choice_leaves_the_others() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_request(0, 5, n=3))
    step(scheduler)
    assert scheduler.abort(1) is not None
    assert [one.key for one in step(scheduler)[1]] == [0, 2]


def test_ended_keys_may_come_again() -> None:
    scheduler = new_scheduler()
    for _ in range(2):
        scheduler.add(new_request(0, 2, n=2, max_tokens=1))
        assert len(step(scheduler)[1]) == 2


def test_a_request_that_comes_with_part_of_its_answer_goes_on_from_there() -> None:
    scheduler = new_scheduler()
    request = new_request(0, 3, total=6)
    request.tokens += [8, 9]
    scheduler.add(request)
    plan, _ = step(scheduler)
    assert plan.num_tokens == 5
    assert request.output_token_ids == [8, 9, 7]
    assert request.finish_reason is FinishReason.LENGTH
