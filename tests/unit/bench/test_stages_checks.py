"""Stages: the same tokens whatever lies between prompts and the model's steps, and figures that follow from rounds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvik.bench.checks import run_checks
from kvik.bench.evidence import compose
from kvik.bench.serve.own_server import engine_flags, free_port, is_alive
from kvik.bench.stage_checks import compare_stages
from kvik.bench.stage_runs import (
    Loop,
    Recorded,
    copy_plan,
    llm_logprobs,
    require_equal,
    run_async,
    run_engine,
    run_llm,
)
from kvik.bench.stages import StageWorkload, digest, stage_config
from kvik.config import EngineConfig
from kvik.engine.async_llm import AsyncLLM
from kvik.engine.build import build_engine
from kvik.engine.llm import LLM
from kvik.errors import KvikError
from kvik.step import StepPlan

OPTIONS: dict[str, Any] = {"model": "dummy:tiny-qwen3", "backend": "reference", "threads": 1}
WORKLOAD = StageWorkload.seed_002(concurrency=2, count=5, input_len=9, output_len=4, vocab_size=300)
PROMPTS = WORKLOAD.requests.prompts
CONFIG = stage_config(EngineConfig.from_options(**OPTIONS), WORKLOAD)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.from_engine(build_engine(CONFIG)) as llm:
        yield llm


def test_the_config_of_stages_has_seats_and_room_for_them() -> None:
    assert (CONFIG.scheduler.max_num_seqs, CONFIG.cache.prefix_caching) == (2, False)
    assert CONFIG.model.max_model_len == WORKLOAD.longest == 13
    given = EngineConfig.from_options(**OPTIONS, kv_cache_memory="1MiB", max_model_len=64)
    kept = stage_config(given, WORKLOAD)
    assert (kept.cache.kv_cache_memory, kept.model.max_model_len) == (2**20, 64)


def test_all_stages_in_this_process_draw_the_same_tokens(llm: LLM) -> None:
    recorded = Recorded(llm.engine, WORKLOAD.output_len)
    recorded.record(PROMPTS)
    expected = run_llm(llm, PROMPTS, WORKLOAD.output_len)
    assert expected.num_tokens == WORKLOAD.requests.output_tokens == 20
    assert recorded.replay(PROMPTS).token_ids == expected.token_ids
    assert recorded.planned(PROMPTS).token_ids == expected.token_ids
    assert run_engine(llm.engine, PROMPTS, WORKLOAD.output_len).token_ids == expected.token_ids
    assert recorded.num_steps == 12, "5 requests in 2 seats: three times 4 steps"
    options = {name: value for part in dataclasses.asdict(CONFIG).values() for name, value in part.items()}
    with Loop() as loop:
        near = loop.run(AsyncLLM.start(**options))
        try:
            assert loop.run(run_async(near, PROMPTS, WORKLOAD.output_len)).token_ids == expected.token_ids
        finally:
            loop.run(near.close())


def test_recorded_plans_outlive_the_books_they_were_made_from(llm: LLM) -> None:
    recorded = Recorded(llm.engine, WORKLOAD.output_len)
    recorded.record(PROMPTS)
    first = recorded.replay(PROMPTS).token_ids
    recorded.planned([[7] * 9] * 5)
    assert recorded.replay(PROMPTS).token_ids == first
    kept: list[StepPlan] = []
    recorded.planned(PROMPTS, kept.append)
    copied = copy_plan(kept[0])
    assert np.array_equal(copied.token_ids, kept[0].token_ids)
    assert not np.shares_memory(copied.block_tables, kept[0].block_tables)
    assert not np.shares_memory(copied.sample.rows, kept[0].sample.rows)


def test_tokens_are_recognized_by_their_log_probabilities(llm: LLM) -> None:
    found = llm_logprobs(llm, PROMPTS, WORKLOAD.output_len)
    assert [len(each) for each in found] == [4] * 5
    require_equal({"llm": found, "http": copy.deepcopy(found)})
    other = copy.deepcopy(found)
    other[2][1] -= 0.5
    with pytest.raises(KvikError, match=r"request 2: stage stream draws .*, but llm draws"):
        require_equal({"llm": found, "http": found, "stream": other})


def round_of(bare: float, http: float) -> dict[str, Any]:
    """A round in which the stages took so many seconds for 20 tokens."""
    stages = {
        name: {
            "seconds": seconds,
            "tokens": 20,
            "tokens_per_s": 20 / seconds,
            "tokens_digest": "t" if name == "runner" else None,
            "text_digest": None,
        }
        for name, seconds in (("runner", bare), ("http", http))
    }
    return {**{name: stages["runner"][name] for name in ("seconds", "tokens", "tokens_per_s")}, "stages": stages}


def result_of(samples: list[dict[str, Any]]) -> dict[str, Any]:
    result = compose(
        kind="stages",
        metric="tokens_per_s",
        unit="tokens/s",
        machine={},
        samples=samples,
        limits={"capacity_metric": None, "cost": None, "does_not_bind": "made up"},
        how_obtained="made up",
        workload={"stages": ["runner", "http"], "tokens_per_sample": 20},
    )
    result["stages"] = compare_stages(samples)
    return result


def test_shares_are_taken_within_a_round() -> None:
    """The machine is half as fast in the second round; the share of the bare step is what it was."""
    compared = compare_stages([round_of(1.0, 1.25), round_of(2.0, 2.5)])
    assert compared["http"]["share"]["median"] == pytest.approx(0.8)
    assert compared["http"]["share"]["spread_percent"] == pytest.approx(0.0, abs=1e-9)
    assert compared["http"]["added_ms_per_token"] == pytest.approx(1e3 * 0.375 / 20)
    assert compared["runner"]["added_ms_per_token"] == 0.0


@pytest.mark.parametrize(
    ("stage", "field", "value", "name"),
    [
        ("http", "tokens", 19, "every stage gave the tokens asked for"),
        ("http", "tokens_digest", "u", "all stages answered the same"),
        ("runner", "seconds", 0.5, "the bare step is the sample"),
        ("http", "tokens_per_s", 99.0, "stages follow from the samples"),
    ],
)
def test_stages_that_do_not_agree_are_caught(stage: str, field: str, value: Any, name: str) -> None:
    result = result_of([round_of(1.0, 1.25)])
    assert all(check["passed"] for check in run_checks(result))
    result["samples"][0]["stages"][stage][field] = value
    assert name in {check["name"] for check in run_checks(result) if not check["passed"]}


def test_digests_tell_answers_apart() -> None:
    assert digest([[1, 2], [3]]) != digest([[1], [2, 3]])
    assert digest(["a"]) == digest(["a"])
    assert digest(None) is None


def test_options_become_the_flags_of_a_server() -> None:
    flags = engine_flags(EngineConfig.from_options(model="m", prefix_caching=False, enforce_eager=True, threads=2))
    assert flags == ["--model", "m", "--no-prefix-caching", "--threads", "2", "--enforce-eager"]
    assert engine_flags(EngineConfig()) == []


def test_what_a_server_is_started_with() -> None:
    assert 1024 <= free_port() <= 65535
    assert not is_alive(2**22 + 1)
