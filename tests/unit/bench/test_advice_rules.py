"""Advice: a cost model that finds what it is made of, forecasts that follow from it, and rules that say why."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from kvik.bench.advice import LAST, Goals, Settings, advise
from kvik.bench.forecast import Demand, forecast, largest_chunk, most_rows
from kvik.bench.observed import Observed, observe, observe_stats
from kvik.bench.step_cost import Step, StepCost, condense, fit
from kvik.bench.step_probe import BATCHES, STEPS, probe, shapes, take_steps
from kvik.checkpoint.fake import FakeCheckpoint
from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.engine import Engine
from kvik.errors import ConfigError, KvikError
from kvik.runners.fake import FakeRunner

COST = StepCost(fixed=20e-3, per_token=1e-3, per_kv=1e-6, per_row=0.5e-3)
"""A step of 20 ms, 1 ms more for each token, 1 us for each position attended to, half a millisecond for each row."""


def steps_of(cost: StepCost, noise: float = 0.0) -> list[Step]:
    rng = random.Random(0)
    shapes_ = [(rows, rows, rows * kv) for rows in (1, 2, 4, 8, 16) for kv in (32, 160, 640)]
    shapes_ += [(1, tokens, tokens * (tokens + 1) // 2) for tokens in (8, 32, 96, 256, 640)]
    return [
        Step(*shape, cost.seconds(*shape) * (1 + noise * rng.uniform(-1, 1))) for shape in shapes_ for _ in range(9)
    ]


def test_a_fit_finds_what_steps_cost() -> None:
    found = fit(steps_of(COST))
    for term in ("fixed", "per_token", "per_kv", "per_row"):
        assert getattr(found, term) == pytest.approx(getattr(COST, term), rel=1e-6)
    assert found.error < 1e-9
    assert found.steps == 20


def test_noise_shows_in_the_error_and_not_much_in_the_forecast() -> None:
    found = fit(steps_of(COST, noise=0.2))
    assert 0 < found.error < 0.15
    assert found.decode(8, 300) == pytest.approx(COST.decode(8, 300), rel=0.15)


def test_no_term_is_negative() -> None:
    flat = [Step(step.rows, step.tokens, step.kv_reads, 5e-3 / (1 + step.rows)) for step in steps_of(COST)]
    found = fit(flat)
    assert min(found.fixed, found.per_token, found.per_kv, found.per_row) >= 0
    assert found.error > 0.01, "a model that does not hold says so"


def test_repetitions_count_once_with_one_of_the_quicker() -> None:
    steps = [Step(1, 1, 100, seconds) for seconds in (9.0, 2.0, 90.0, 1.0, 3.0)] + [Step(1, 1, 300, 5.0)]
    assert condense(steps) == [Step(1, 1, 100, 2.0), Step(1, 1, 300, 5.0)]
    with pytest.raises(KvikError, match="2 steps of different size cannot fit"):
        fit(steps)


def test_one_client_sees_a_prompt_and_then_steps() -> None:
    demand = Demand(concurrency=1, input_len=100, output_len=11)
    seen = forecast(COST, demand, 256, 2048)
    assert seen.ttft_ms == pytest.approx(1e3 * COST.prefill(100))
    assert seen.tpot_ms == pytest.approx(1e3 * COST.decode(1, 105.5))
    whole = seen.ttft_ms + 10 * seen.tpot_ms
    assert seen.tokens_per_s == pytest.approx(11 / whole * 1e3)


def test_more_clients_give_more_tokens_and_wait_longer() -> None:
    seen = [forecast(COST, Demand(many, 100, 50), 256, 2048) for many in (1, 4, 16)]
    assert seen[0].tokens_per_s < seen[1].tokens_per_s < seen[2].tokens_per_s
    assert seen[0].tpot_ms < seen[1].tpot_ms < seen[2].tpot_ms
    queued = forecast(COST, Demand(16, 100, 50), 4, 2048)
    assert queued.rows == 4
    assert queued.ttft_ms > seen[2].ttft_ms
    assert queued.tpot_ms == pytest.approx(seen[1].tpot_ms)
    cached = forecast(COST, Demand(1, 100, 50, cached=96), 256, 2048)
    assert cached.ttft_ms < seen[0].ttft_ms / 4


def test_how_much_fits_into_a_step() -> None:
    rows = most_rows(COST, 300, 30.0, 256)
    assert COST.decode(rows, 300) <= 30e-3 < COST.decode(rows + 1, 300)
    assert most_rows(COST, 300, 5.0, 256) == 0
    assert most_rows(COST, 300, 30.0, 3) == 3
    chunk = largest_chunk(COST, 4, 300, 100.0)
    assert COST.decode(4, 300) + COST.per_row + chunk * (COST.per_token + 300 * COST.per_kv) <= 100e-3
    assert largest_chunk(COST, 4, 300, 1.0) == 0


DEMAND = Demand(concurrency=16, input_len=200, output_len=100)


def changes(seen: Observed, goals: Goals, cost: StepCost | None = None, **settings: Any) -> list[str]:
    return [each.change for each in advise(seen, goals, cost, Settings(**settings))]


def test_nothing_is_advised_where_nothing_falls_short() -> None:
    seen = Observed(DEMAND, ttft_ms=50.0, tpot_ms=10.0, throughput=900.0)
    assert advise(seen, Goals(ttft_ms=60.0, tpot_ms=20.0, throughput=800.0)) == []
    assert advise(seen, Goals()) == []


def test_slow_tokens_want_fewer_rows_with_what_that_costs() -> None:
    seen = Observed(DEMAND, tpot_ms=45.0, max_num_seqs=256)
    (advice,) = advise(seen, Goals(tpot_ms=30.0), COST)
    assert advice.change == f"--max-num-seqs {most_rows(COST, 250, 30.0, 256)}"
    assert advice.effect["tpot_ms"][1] < advice.effect["tpot_ms"][0]
    assert advice.effect["tokens_per_s"][1] < advice.effect["tokens_per_s"][0], "what it costs is said"
    assert "45.0 ms, 30 are wanted" in advice.problem


def test_tokens_that_are_slow_even_alone_want_lighter_weights() -> None:
    seen = Observed(DEMAND, tpot_ms=45.0)
    (advice,) = advise(seen, Goals(tpot_ms=10.0), COST, Settings(weights="bf16"))
    assert advice.change == "--weights int8"
    assert advice.effect["tpot_ms"][1] < advice.effect["tpot_ms"][0]
    assert changes(seen, Goals(tpot_ms=10.0), COST, weights="int8") == ["--weights int4"]
    assert changes(seen, Goals(tpot_ms=10.0), COST, weights="int4") == [LAST]


def test_uneven_gaps_want_smaller_steps() -> None:
    seen = Observed(DEMAND, tpot_ms=60.0, itl_p50_ms=20.0, itl_p99_ms=300.0, max_num_batched_tokens=2048)
    (first, *_) = advise(seen, Goals(tpot_ms=50.0))
    assert first.change == "--max-num-batched-tokens 528"
    assert "at times 300.0" in first.why


def test_a_queue_wants_seats_and_a_long_prompt_wants_less_computing() -> None:
    seen = Observed(Demand(64, 200, 100), ttft_ms=9000.0, waiting=32, max_num_seqs=32)
    assert changes(seen, Goals(ttft_ms=500.0))[0] == "--max-num-seqs 64"
    long = Observed(Demand(1, 2000, 10), ttft_ms=2500.0)
    (advice, *_) = advise(long, Goals(ttft_ms=100.0), COST)
    assert "a prompt of 2000 tokens alone takes" in advice.why
    off = changes(long, Goals(ttft_ms=100.0), None, prefix_caching=False, chunked_prefill=False, batching="static")
    assert off[:3] == ["--prefix-caching", "--chunked-prefill", "--batching continuous"]


def test_little_load_wants_more_and_full_seats_want_more_seats() -> None:
    few = Observed(Demand(2, 100, 100), throughput=80.0, max_num_seqs=256)
    advice = advise(few, Goals(throughput=500.0), COST)
    assert advice[0].change == "more requests at once, such as 4"
    assert advice[0].effect["tokens_per_s"][1] > advice[0].effect["tokens_per_s"][0]
    full = Observed(Demand(8, 100, 100), throughput=80.0, max_num_seqs=8)
    assert changes(full, Goals(throughput=500.0), COST)[0] == "--max-num-seqs 16"


def test_what_is_forecast_to_do_nothing_is_not_advised() -> None:
    slow = dataclasses.replace(COST, fixed=1e-9, per_token=0.1)
    seen = Observed(Demand(4, 100, 100), throughput=5.0, max_num_seqs=4)
    (advice,) = advise(seen, Goals(throughput=500.0), slow, Settings(weights="bf16"))
    assert advice.change == LAST
    assert "no option is forecast to do much" in advice.why


def test_preemptions_are_a_lack_of_memory() -> None:
    seen = Observed(DEMAND, preemptions=7, blocks_used_share=1.0, waiting=3)
    assert changes(seen, Goals(ttft_ms=1.0)) == ["raise --kv-cache-memory, or lower --max-model-len", "--kv-dtype int8"]
    assert changes(seen, Goals(), None, kv_dtype="int8") == ["raise --kv-cache-memory, or lower --max-model-len"]


def test_a_server_says_what_it_saw() -> None:
    times = {"bounds": [0.1, 1.0], "counts": [5, 5, 0], "total": 4.0}
    lengths = {"bounds": [100], "counts": [10, 0], "total": 200.0}
    snapshot = {
        "model": {"max_num_seqs": 8, "max_num_batched_tokens": 512},
        "server": {"requests_queued": 2},
        "engine": {
            "histograms": {
                "e2e": times,
                "ttft": times,
                "tpot": times,
                "itl": times,
                "prompt_length": lengths,
                "output_length": lengths,
            },
            "step_seconds": 2.0,
            "prompt_tokens_cached": 50,
            "output_tokens_per_s": 100.0,
            "requests_waiting": 1,
            "blocks_used": 1,
            "blocks_total": 4,
            "preemptions": 0,
        },
    }
    seen = observe_stats(snapshot)
    assert seen.demand == Demand(2, 20, 20, cached=5)
    assert (seen.ttft_ms, seen.itl_p50_ms, seen.waiting, seen.blocks_used_share) == (1000.0, 100.0, 3, 0.25)
    with pytest.raises(ConfigError, match="has answered no request yet"):
        observe_stats({**snapshot, "engine": {"histograms": {"e2e": {**times, "counts": [0, 0, 0]}}}})


def test_only_a_load_can_be_observed() -> None:
    with pytest.raises(ConfigError, match="of the kind 'decode'"):
        observe({"kind": "decode"})


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_probe_finds_the_pace_that_was_set() -> None:
    """The fake model takes 2 ms a step, 200 us a token and 500 us a row, and nothing for what is attended to."""
    config = EngineConfig.from_options(model="fake:step_ms=2,token_us=200,row_us=500")
    checkpoint, clock = FakeCheckpoint(config.model.model or ""), Clock()
    runner = FakeRunner(clock=clock.read, sleep=clock.sleep)
    runner.load(checkpoint)
    engine = Engine(config, checkpoint, runner, None, clock=clock.read)
    try:
        found = fit(take_steps(engine, 1))
    finally:
        engine.close()
    assert (found.fixed, found.per_token, found.per_row) == pytest.approx((2e-3, 2e-4, 5e-4), rel=1e-3)
    assert found.per_kv == pytest.approx(0.0, abs=1e-9)
    assert found.error < 1e-3


def test_a_probe_says_what_it_found() -> None:
    said: list[str] = []
    probed = probe(EngineConfig.from_options(model="fake:max_model_len=256"), said.append, repetitions=1)
    assert (probed.model, said) == (
        "fake:max_model_len=256",
        ["fake:max_model_len=256: a short run to see what a step costs"],
    )
    assert probed.cost.steps >= 8
    assert probed.kv_tokens >= 256


def test_a_probe_takes_what_the_engine_holds() -> None:
    engine = build_engine(EngineConfig.from_options(model="fake:max_model_len=64", max_num_seqs=2))
    try:
        found = list(shapes(engine))
        assert found == [(1, 24, STEPS), (2, 24, STEPS), (1, 8, 1), (1, 32, 1)]
        steps = take_steps(engine, 1)
    finally:
        engine.close()
    assert {step.rows for step in steps} == {1, 2} < set(BATCHES)
    assert engine.observer is None
    assert all(step.seconds > 0 for step in steps)
