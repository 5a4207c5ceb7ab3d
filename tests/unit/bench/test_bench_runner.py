"""Decode and prefill measurements on a real (tiny) model: what they drive is what they say they drive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvik.bench import measure as measuring
from kvik.bench.decode import DecodeWorkload, decode_sampler, measure_decode, prefill_rows
from kvik.bench.engine_decode import measure_engine_decode
from kvik.bench.measure import Repeat
from kvik.bench.plans import Layout, make_plan, random_tokens
from kvik.bench.prefill import PrefillWorkload, measure_prefill
from kvik.bench.workbench import open_workbench
from kvik.config import EngineConfig
from kvik.errors import ConfigError, ContextLengthError

REPEAT = Repeat(warmups=1, least=2, most=2)
WORKLOAD = DecodeWorkload(batch=3, context=40, output_len=4)


@pytest.fixture(autouse=True)
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that take no time to measure and that nothing here can reach."""
    limits = {"read_bandwidth": 1e15, "matrix_peak": {"bf16": 1e18, "f32": 1e18}}
    monkeypatch.setattr(measuring.interleaved, "__defaults__", (lambda: limits,))


def config(**options: Any) -> EngineConfig:
    chosen = {"model": "dummy:tiny-qwen3", "backend": "reference", "threads": 1, "kv_cache_memory": "16MiB"}
    return EngineConfig.from_options(**{**chosen, **options})


def quiet(message: str) -> None:
    """Progress that nobody reads."""


def test_rows_have_blocks_of_their_own() -> None:
    layout = Layout(rows=3, max_len=70, block_size=32)
    tables = layout.block_tables(3)
    assert (layout.blocks_per_row, layout.num_blocks) == (3, 9)
    assert sorted(tables.reshape(-1).tolist()) == list(range(9))


def test_a_plan_is_rows_of_equal_width() -> None:
    plan = make_plan(7, Layout(2, 64, 32), np.array([[5, 6], [7, 8]], np.int32), 31, draw=True)
    assert plan.token_ids.tolist() == [5, 6, 7, 8]
    assert plan.positions.tolist() == [31, 32, 31, 32]
    assert plan.query_start_loc.tolist() == [0, 2, 4]
    assert plan.seq_lens.tolist() == [33, 33]
    assert plan.block_tables.tolist() == [[0, 1], [2, 3]]
    assert plan.sample.positions.tolist() == [33, 33]


def test_random_tokens_depend_on_the_seed_alone() -> None:
    assert np.array_equal(random_tokens(1, 300, 2, 8), random_tokens(1, 300, 2, 8))
    assert not np.array_equal(random_tokens(1, 300, 2, 8), random_tokens(2, 300, 2, 8))


def test_copied_rows_decode_what_the_computed_row_decodes() -> None:
    """Only true if the copies carry the first row's whole context."""
    with open_workbench(config(max_num_batched_tokens=16)) as bench:
        layout = bench.layout(WORKLOAD.batch, WORKLOAD.context + 8)
        bench.runner.allocate(layout.num_blocks, layout.block_size)
        tokens = prefill_rows(bench, layout, WORKLOAD.context)
        drawn = []
        for step in range(8):
            tokens = bench.runner.run(make_plan(step, layout, tokens, 40 + step, draw=True)).token_ids.reshape(-1, 1)
            drawn.append(tokens[:, 0].tolist())
        assert all(len(set(row)) == 1 for row in drawn)
        alone = Layout(1, 48, layout.block_size)
        prompt = random_tokens(0, bench.runner.vocab_size, 1, 41)
        first = bench.runner.run(make_plan(0, alone, prompt, 0, draw=True)).token_ids
        assert first[0] == drawn[0][0]


def test_every_sample_starts_at_the_same_context() -> None:
    with open_workbench(config()) as bench:
        layout = bench.layout(1, 12)
        bench.runner.allocate(layout.num_blocks, layout.block_size)
        plans: list[int] = []
        run = bench.runner.run
        bench.runner.run = lambda plan: plans.append(int(plan.seq_lens[0])) or run(plan)  # type: ignore[method-assign]
        take = decode_sampler(bench.runner, layout, DecodeWorkload(1, 8, 3), prefill_rows(bench, layout, 8))
        plans.clear()
        take(), take()
        assert plans == [9, 10, 11] * 2


@pytest.mark.parametrize("layout", ["paged", "contiguous"])
def test_decode_result_is_complete(layout: str) -> None:
    result = measure_decode(config(kv_layout=layout), WORKLOAD, REPEAT, quiet)
    assert result["workload"]["tokens_per_sample"] == 12
    assert [sample["tokens"] for sample in result["samples"]] == [12, 12]
    assert result["options"]["runner"] == "reference"
    assert (result["model"]["weights"], result["model"]["kv_dtype"]) == ("f32", "f32")
    assert 0 < result["limits"]["fraction"] < 1
    assert result["limits"]["does_not_bind"], "two megabytes of weights stay in the cache"


@pytest.mark.parametrize("caching", [True, False])
def test_engine_decode_counts_every_token_once(caching: bool) -> None:
    result = measure_engine_decode(config(prefix_caching=caching, max_num_batched_tokens=48), WORKLOAD, REPEAT, quiet)
    assert [sample["tokens"] for sample in result["samples"]] == [12, 12]
    assert result["workload"]["stage"] == "engine"


def test_engine_decode_wants_all_sequences_in_a_step() -> None:
    with pytest.raises(ConfigError, match="batch is 3; expected at most max_num_seqs, 2"):
        measure_engine_decode(config(max_num_seqs=2), WORKLOAD, REPEAT, quiet)


def test_prefill_result_is_complete() -> None:
    result = measure_prefill(config(max_num_batched_tokens=32), PrefillWorkload(2, 40), REPEAT, quiet)
    assert [sample["tokens"] for sample in result["samples"]] == [80, 80]
    assert result["samples"][0]["matrix_rate"] == 1e18
    assert 0 < result["limits"]["fraction"] < 1


def test_a_context_beyond_the_model_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(ContextLengthError, match="1026 tokens are asked for; dummy:tiny-qwen3 holds at most 1024"):
        measure_decode(config(), DecodeWorkload(1, 1022, 4), REPEAT, quiet)
