"""Steady decode through the whole engine: the workload of decode.py, with scheduler, sampling and token bookkeeping.

A sample adds B requests with prompts of C random tokens, steps until every one of them decodes, and times the next N
steps. The prompts are the same in every sample, so that with prefix caching only the first one computes them.
"""

from __future__ import annotations

import time
from typing import Any

from kvik.bench.decode import DecodeWorkload, decode_limits, mean_bytes_per_token
from kvik.bench.evidence import Result
from kvik.bench.measure import Progress, Repeat, interleaved
from kvik.bench.plans import random_tokens
from kvik.bench.workbench import (
    engine_bench,
)
from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.engine import Engine
from kvik.engine.outputs import Answer
from kvik.errors import ConfigError
from kvik.request import SamplingParams

METHOD = (
    "`batch` greedy requests with prompts of `context` random tokens each go through the engine: scheduler, sampling "
    "and token bookkeeping included. A sample is the `output_len` steps after the one in which the last of them got "
    "its first token, wall time around them; the prompts are the same in every sample, so their blocks come from the "
    "prefix cache where that is on. Cost per token: as for the bare runner, counted from `context` on, a lower bound."
)


def measure_engine_decode(config: EngineConfig, workload: DecodeWorkload, repeat: Repeat, progress: Progress) -> Result:
    """Decode through the engine. Raises KvikError for a workload that does not fit."""
    if workload.batch > config.scheduler.max_num_seqs:
        raise ConfigError(f"batch is {workload.batch}; expected at most max_num_seqs, {config.scheduler.max_num_seqs}")
    engine = build_engine(config)
    try:
        progress(f"{engine.memory.model}: {workload.batch} requests of {workload.context} tokens through the engine")
        samples = interleaved(lambda: take_sample(engine, workload), "tokens_per_s", repeat, progress)
        return engine_decode_result(engine, workload, samples, repeat)
    finally:
        engine.close()


def take_sample(engine: Engine, workload: DecodeWorkload) -> dict[str, Any]:
    """Prefill, then time the steps in which all requests decode."""
    answers = add_requests(engine, workload)
    while not all(answer.choices[0].num_tokens for answer in answers):
        engine.step()
    before = count_tokens(answers)
    start = time.perf_counter()
    for _ in range(workload.output_len):
        engine.step()
    seconds = time.perf_counter() - start
    tokens = count_tokens(answers) - before
    for answer in answers:
        engine.abort(answer.request_id)
    return {"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds}


def add_requests(engine: Engine, workload: DecodeWorkload) -> list[Answer]:
    """Requests that outlast a sample: while the last prompt is computed, the first ones already decode."""
    prefill_steps = -(-workload.batch * workload.context // engine.config.scheduler.max_num_batched_tokens)
    length = workload.output_len + prefill_steps + workload.batch + 2
    params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
    seed, vocab_size = engine.config.runner.seed, engine.spec.vocab_size
    prompts = random_tokens(seed, vocab_size, workload.batch, workload.context).tolist()
    return [engine.add(prompt, params, request_id=f"decode-{row}") for row, prompt in enumerate(prompts)]


def count_tokens(answers: list[Answer]) -> int:
    """Output tokens so far."""
    return sum(answer.choices[0].num_tokens for answer in answers)


def engine_decode_result(
    engine: Engine, workload: DecodeWorkload, samples: list[dict[str, Any]], repeat: Repeat
) -> Result:
    """The evidence of a decode run through the engine."""
    bench = engine_bench(engine)
    per_token = mean_bytes_per_token(bench.cost, workload.batch, workload.context, workload.output_len)
    limits = decode_limits(bench.cost, per_token, workload.batch)
    return bench.result("decode", workload.as_dict("engine"), samples, repeat, limits=limits, method=METHOD)
