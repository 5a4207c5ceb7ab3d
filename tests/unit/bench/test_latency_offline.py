"""Latency offline: moments of tokens become TTFT, TPOT, ITL and E2E, and every request is a new one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvik.bench import measure as measuring
from kvik.bench.latency import LatencyWorkload, Taker, measure_latency, percentiles, sample_of
from kvik.bench.measure import Repeat
from kvik.cli.main import run
from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.errors import ConfigError, ContextLengthError


@pytest.fixture(autouse=True)
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that take no time to measure and that nothing here can reach."""
    limits = {"read_bandwidth": 1e15, "matrix_peak": {"bf16": 1e18, "f32": 1e18}}
    monkeypatch.setattr(measuring.interleaved, "__defaults__", (lambda: limits,))


def config(model: str = "dummy:tiny-qwen3", **options: Any) -> EngineConfig:
    chosen = {"model": model, "threads": 1, "kv_cache_memory": "16MiB"}
    return EngineConfig.from_options(**{**chosen, **options})


def ticks() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 0.5


def test_moments_become_times() -> None:
    sample = sample_of(8, 0, [0.5, 0.6, 0.8], steps=3)
    columns = sample["run"]["requests"]
    assert (columns["ttft_s"], columns["e2e_s"], columns["tpot_s"]) == ([0.5], [0.8], [pytest.approx(0.15)])
    assert [gap for gap, _ in sample["run"]["itl_s"]] == [pytest.approx(0.1), pytest.approx(0.2)]
    assert (sample["tokens"], sample["seconds"]) == (2, pytest.approx(0.3))
    found = percentiles([sample])
    assert found["ttft_ms"]["p50"] == pytest.approx(500.0)
    assert found["itl_ms"]["max"] == pytest.approx(200.0)


def test_every_token_is_timed_where_it_is_drawn() -> None:
    engine = build_engine(config("fake:"))
    clock = ticks()
    try:
        sample = Taker(engine, LatencyWorkload(6, 4), lambda: next(clock)).take()
    finally:
        engine.close()
    assert sample["run"]["requests"]["ttft_s"] == [0.5], "the first step draws a token"
    assert [gap for gap, _ in sample["run"]["itl_s"]] == [0.5] * 3
    assert sample["run"]["steps"] == 4


def test_a_result_is_complete_and_nothing_comes_from_the_cache() -> None:
    result = measure_latency(
        config(backend="reference", prefix_caching=True), LatencyWorkload(70, 5), Repeat(1, 3, 3), lambda line: None
    )
    assert all(check["passed"] for check in result["checks"])
    assert {"TTFT + TPOT x (n - 1) = E2E", "gaps between tokens add up"} <= {each["name"] for each in result["checks"]}
    assert [sample["run"]["requests"]["cached_tokens"] for sample in result["samples"]] == [[0]] * 3
    assert [sample["tokens"] for sample in result["samples"]] == [4] * 3
    assert result["latency"]["itl_ms"]["count"] == 12
    assert 0 < result["limits"]["fraction"] < 1


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="output_len is 1; expected at least 2"):
        LatencyWorkload(4, 1)
    with pytest.raises(ContextLengthError, match="a request has 1030 tokens; this engine holds at most 1024"):
        measure_latency(config(backend="reference"), LatencyWorkload(1020, 10), Repeat(0, 1, 1), lambda line: None)


def test_the_command_shows_percentiles(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "latency", "--model", "fake:step_ms=1", "--output-len", "5", "--repetitions", "2"]
    assert run(args) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in ("TTFT", "TPOT", "ITL", "E2E"))
    assert "FAIL" not in said
