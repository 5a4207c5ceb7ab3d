"""The counters and the times of requests, by the formulas."""

from __future__ import annotations

import json

import pytest
from fakes import FakeClock, FakeRunner, fake_engine

from kvik.engine.metrics import Histogram, RequestTimes
from kvik.request import SamplingParams


def test_times_follow_the_formulas() -> None:
    times = RequestTimes(arrival=10.0, first_token=10.5, end=12.5)
    assert (times.ttft, times.e2e) == (0.5, 2.5)
    assert times.tpot(5) == (2.5 - 0.5) / (5 - 1)
    assert times.tpot(1) is None
    waiting = RequestTimes(arrival=10.0)
    assert (waiting.ttft, waiting.e2e, waiting.tpot(5)) == (None, None, None)


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
