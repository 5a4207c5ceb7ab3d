"""Offline throughput on a tiny model: the requests asked for, nothing from the cache, and what it must have read."""

from __future__ import annotations

from typing import Any

import pytest

from kvik.bench import measure as measuring
from kvik.bench.cost import Cost, Forms
from kvik.bench.measure import Repeat
from kvik.bench.run_cost import run_bytes
from kvik.bench.throughput import fresh_prompts, measure_throughput
from kvik.bench.workload import Requests, draw_requests, nano_vllm_requests, parse_range
from kvik.checkpoint.dummy import DUMMIES
from kvik.config import EngineConfig
from kvik.errors import ConfigError, ContextLengthError

REQUESTS = draw_requests(5, (3, 70), (2, 6), 0, 300)


@pytest.fixture(autouse=True)
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that take no time to measure and that nothing here can reach."""
    limits = {"read_bandwidth": 1e15, "matrix_peak": {"bf16": 1e18, "f32": 1e18}}
    monkeypatch.setattr(measuring.interleaved, "__defaults__", (lambda: limits,))


def measured(requests: Requests = REQUESTS, temperature: float = 0.0, **options: Any) -> dict[str, Any]:
    chosen = {"model": "dummy:tiny-qwen3", "backend": "reference", "threads": 1, "kv_cache_memory": "16MiB"}
    config = EngineConfig.from_options(**{**chosen, **options})
    repeat = Repeat(warmups=0, least=2, most=2)
    return measure_throughput(config, requests, temperature, repeat, [].append, show_bar=False)


def test_every_answer_is_as_long_as_asked() -> None:
    result = measured(temperature=0.6)
    assert [sample["tokens"] for sample in result["samples"]] == [REQUESTS.output_tokens] * 2
    assert result["workload"]["requests"] == 5
    assert result["workload"]["input_tokens"] == REQUESTS.input_tokens
    assert all(check["passed"] for check in result["checks"])


def test_no_sample_lives_off_the_cache_of_another() -> None:
    result = measured(prefix_caching=True)
    assert [sample["cached_prompt_tokens"] for sample in result["samples"]] == [0, 0]
    assert fresh_prompts([[7, 8], [1]], 3, 9) == [[1, 8], [4]]


def test_the_limit_counts_the_steps_that_were_taken() -> None:
    result = measured()
    steps = min(sample["steps"] for sample in result["samples"])
    assert steps == max(REQUESTS.output_lens), "all at once: the first tokens come with the prompts"
    needed = run_bytes(Cost(DUMMIES["tiny-qwen3"], Forms("f32", "f32")), REQUESTS, steps)
    assert result["limits"]["cost"] == needed / REQUESTS.output_tokens
    alone = measured(max_num_seqs=1)
    assert min(sample["steps"] for sample in alone["samples"]) == REQUESTS.output_tokens
    assert alone["limits"]["cost"] > result["limits"]["cost"]


def test_what_does_not_fit_is_refused_before_it_runs() -> None:
    with pytest.raises(ContextLengthError, match="the longest request has 1100 tokens; this engine holds at most"):
        measured(Requests([[1] * 1000], [100]))
    with pytest.raises(ConfigError, match="token id 10000; the model's are below"):
        measured(Requests([[1, 10000]], [2]))


def test_the_published_benchmark_has_the_published_tokens() -> None:
    whole = nano_vllm_requests(256)
    assert (len(whole.prompts), whole.input_tokens, whole.output_tokens) == (256, 142_827, 133_966)


def test_lengths_are_a_number_or_a_range() -> None:
    assert parse_range("512", "input_len") == (512, 512)
    assert parse_range(" 100-1024 ", "input_len") == (100, 1024)


@pytest.mark.parametrize("text", ["", "0", "5-4", "1-", "-3", "a-b", "1-2-3", "1e3", "9999999"])
def test_a_bad_length_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="output_len is"):
        parse_range(text, "output_len")
