"""The counters and the times of requests, by the formulas."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from fakes import NAN, POISON, FakeClock, FakeRunner, fake_engine

from kvik.engine.engine import Engine
from kvik.engine.metrics import Histogram, RequestTimes
from kvik.engine.outputs import Answer
from kvik.request import SamplingParams


def test_times_follow_the_formulas() -> None:
    times = RequestTimes(arrival=10.0, scheduled=10.25, first_token=10.5, end=12.5)
    assert (times.queue, times.ttft, times.e2e) == (0.25, 0.5, 2.5)
    assert times.tpot(5) == (2.5 - 0.5) / (5 - 1)
    assert times.tpot(1) is None
    waiting = RequestTimes(arrival=10.0)
    assert (waiting.queue, waiting.ttft, waiting.e2e, waiting.tpot(5)) == (None,) * 4


def test_an_engine_measures_each_request() -> None:
    clock = FakeClock()

    def second(plan: object) -> None:
        clock.now += 1

    engine = fake_engine(FakeRunner(hook=second), clock=clock, max_num_batched_tokens=16)
    answer = engine.add([1] * 40, SamplingParams(temperature=0, max_tokens=5), request_id="a")
    clock.now += 2
    while engine.has_unfinished():
        engine.step()
    # Two seconds in the queue, three steps for 40 tokens at 16 a step, four more tokens.
    assert answer.times.ttft == 2 + 3
    assert answer.times.e2e == 2 + 3 + 4
    assert answer.times.tpot(5) == 1
    stats = engine.stats()
    assert (stats.ttft_mean_s, stats.tpot_mean_s, stats.e2e_mean_s) == (5, 1, 9)
    assert (stats.steps, stats.step_seconds) == (7, 7)
    assert stats.output_tokens_per_s == pytest.approx(5 / 7)
    assert stats.tokens_per_s == pytest.approx(45 / 7)


def test_prompt_tokens_are_cached_or_computed() -> None:
    engine = fake_engine()
    for name in "ab":
        engine.add([*range(100)], SamplingParams(max_tokens=2), request_id=name)
        while engine.has_unfinished():
            engine.step()
    stats = engine.stats()
    assert stats.prompt_tokens == 200
    assert stats.prompt_tokens_cached == 96
    assert stats.prompt_tokens_computed == 104
    assert stats.prefix_hit_rate == 96 / 200


def test_a_snapshot_is_plain_data_and_does_not_change() -> None:
    engine = fake_engine()
    engine.add([1], SamplingParams(), request_id="a")
    before = engine.stats()
    text = json.dumps(before.as_dict(), allow_nan=False)
    assert json.loads(text)["requests_waiting"] == 1
    while engine.has_unfinished():
        engine.step()
    assert json.dumps(before.as_dict()) == text
    assert engine.stats().requests_ended["length"] == 1
    assert engine.stats().memory_bytes["kv"] > 0


def test_a_histogram_counts_by_bound() -> None:
    histogram = Histogram(bounds=(1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert histogram.counts == [2, 1, 1]
    assert (histogram.count, histogram.total, histogram.mean) == (4, 12.0, 3.0)
    assert Histogram().mean is None


def test_a_histogram_counts_a_value_several_times_and_gives_out_copies() -> None:
    histogram = Histogram(bounds=(1.0, 2.0))
    histogram.add(1.5, 3)
    plain = histogram.as_dict()
    assert plain == {"bounds": [1.0, 2.0], "counts": [0, 3, 0], "total": 4.5}
    histogram.add(0.5)
    assert plain["counts"] == [0, 3, 0]


class Timed:
    """An engine whose steps take a second each on a clock of its own."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.engine = fake_engine(FakeRunner(hook=self._tick), clock=self.clock, **options)

    def _tick(self, plan: object) -> None:
        self.clock.now += 1

    def add(self, name: str, prompt: int, **fields: Any) -> Answer:
        params = SamplingParams(**{"temperature": 0, "ignore_eos": True, **fields})
        return self.engine.add([ord(name[0]) % 200] * prompt, params, request_id=name)

    def finish(self) -> None:
        while self.engine.has_unfinished():
            self.engine.step()


def test_queue_time_ends_with_the_first_step_not_the_first_token() -> None:
    timed = Timed(max_num_seqs=1, max_num_batched_tokens=16)
    first, second = timed.add("a", 40, max_tokens=2), timed.add("b", 40, max_tokens=1)
    timed.finish()
    assert (first.times.queue, second.times.queue) == (0, 4)
    assert (first.times.ttft, second.times.ttft) == (3, 7)
    assert (timed.engine.metrics.queue.count, timed.engine.metrics.queue.total) == (2, 4)


def test_a_higher_priority_overtakes_and_its_queue_time_says_so() -> None:
    timed = Timed(max_num_seqs=1)
    timed.add("a", 1, max_tokens=3)
    timed.engine.step()
    late = timed.add("c", 1, max_tokens=1)
    urgent = timed.engine.add([1], SamplingParams(max_tokens=1), request_id="u", priority=-1)
    timed.finish()
    assert (urgent.times.queue, late.times.queue) == (2, 3)


def test_what_ends_in_the_queue_has_no_queue_time() -> None:
    timed = Timed(max_num_seqs=1)
    timed.add("a", 1, max_tokens=2)
    gone, overdue = timed.add("b", 1), timed.add("c", 1, deadline_s=0.5)
    timed.engine.step()
    timed.engine.abort("b")
    timed.finish()
    assert (gone.times.queue, overdue.times.queue) == (None, None)
    assert timed.engine.metrics.queue.count == 1
    assert timed.engine.metrics.finished == 3


def test_a_request_that_raises_in_its_first_step_had_its_turn() -> None:
    timed = Timed()
    timed.engine.add([POISON], SamplingParams(), request_id="a")
    timed.clock.now += 5
    timed.finish()
    assert (timed.engine.metrics.queue.count, timed.engine.metrics.queue.total) == (1, 5)
    assert timed.engine.metrics.ttft.count == 0


def test_a_preemption_shows_between_tokens_and_not_in_the_queue_time() -> None:
    timed = Timed(num_blocks=4, max_model_len=128)
    answers = [timed.add(name, 60, max_tokens=20) for name in "ab"]
    timed.finish()
    metrics = timed.engine.metrics
    assert timed.engine.stats().preemptions == 1
    assert (metrics.queue.count, metrics.queue.total) == (2, 0)
    assert metrics.itl.count == 2 * 19
    assert sum(metrics.itl.counts[10:]) == 1, "one token came more than a second after the one before it"
    assert metrics.itl.total == sum(answer.times.e2e - answer.times.ttft for answer in answers)


def test_ended_requests_are_not_held_until_their_deadline() -> None:
    timed = Timed()
    for number in range(500):
        timed.add(f"r{number}", 1, max_tokens=1, deadline_s=3600)
        timed.engine.step()
    assert len(timed.engine._ledger._deadlines) < 100
    assert len(timed.engine._ledger._queued) < 100


def test_a_wait_behind_the_first_in_line_does_not_hold_those_that_left() -> None:
    timed = Timed(max_num_seqs=1)
    timed.add("running", 1, max_tokens=100)
    timed.engine.step()
    timed.add("first in line", 1)
    for number in range(500):
        timed.add(f"r{number}", 1)
        timed.engine.abort(f"r{number}")
    assert len(timed.engine._ledger._queued) < 100
    timed.finish()
    assert timed.engine.metrics.queue.count == 2


@pytest.mark.parametrize("seed", range(4))
def test_the_identities_hold_at_every_step(seed: int) -> None:
    """Of counts, of sums and of lengths, through forks, stops, aborts, deadlines, failures and preemptions."""
    rng = random.Random(seed)
    timed = Timed(num_blocks=12, max_num_seqs=5, max_num_batched_tokens=48, max_model_len=200)
    engine, answers = timed.engine, []
    for number in range(50):
        prompt = [rng.randrange(3)] * rng.randint(1, 120)
        if rng.random() < 0.15:
            prompt[-1] = rng.choice((NAN, POISON))
        deadline = rng.choice((None, None, 5.0, 40.0))
        params = SamplingParams(max_tokens=rng.randint(1, 60), n=rng.randint(1, 3), deadline_s=deadline, seed=number)
        answers.append(engine.add(prompt, params, request_id=f"r{number}"))
        engine.step()
        if rng.random() < 0.2:
            engine.abort(f"r{rng.randrange(50)}")
        check_identities(engine, answers)
    timed.finish()
    check_identities(engine, answers)
    assert engine.stats().blocks_used == 0


def check_identities(engine: Engine, answers: list[Answer]) -> None:
    metrics, stats = engine.metrics, engine.stats()
    ended = [answer for answer in answers if answer.is_finished]
    with_token = [answer for answer in answers if answer.times.first_token is not None]
    choices = [choice for answer in answers for choice in answer.choices]
    assert metrics.accepted == len(answers) == len(answers) - len(ended) + metrics.finished
    assert metrics.finished == metrics.e2e.count == metrics.prompt_length.count == metrics.output_length.count
    assert metrics.prompt_length.total == sum(len(answer.prompt_token_ids) for answer in ended)
    assert metrics.output_length.total == sum(choice.num_tokens for a in ended for choice in a.choices)
    assert metrics.ttft.count == len(with_token)
    assert metrics.ttft.total == sum(answer.times.ttft for answer in with_token)
    assert len(with_token) <= metrics.queue.count == sum(a.times.queue is not None for a in answers) <= len(answers)
    assert metrics.tpot.count == sum(a.times.tpot(max(c.num_tokens for c in a.choices)) is not None for a in ended)
    assert stats.generated_tokens == sum(choice.num_tokens for choice in choices)
    assert stats.generated_tokens == metrics.itl.count + sum(choice.num_tokens > 0 for choice in choices)
    assert stats.prompt_tokens == stats.prompt_tokens_cached + stats.prompt_tokens_computed
    assert metrics.step_size.total == metrics.step_tokens
    assert stats.blocks_total == stats.blocks_used + stats.blocks_cached + stats.blocks_free
