"""Steady decode: tokens per second when B sequences of C tokens each gain one token a step, and the roofline fraction.

A decode step reads every weight once and every cached key and value once, so its limit is memory bandwidth: the roof
is batch * bandwidth / bytes per step. Driven straight on the runner, with no scheduler, so that it
measures the kernels alone; engine_decode.py does the same through the whole engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvik.bench.cost import Cost
from kvik.bench.evidence import Result
from kvik.bench.machine import last_level_cache_bytes
from kvik.bench.measure import Progress, Repeat, interleaved
from kvik.bench.plans import Layout, make_plan, random_tokens
from kvik.bench.workbench import (
    Workbench,
    open_workbench,
)
from kvik.config import EngineConfig
from kvik.runners.runner import Runner
from kvik.step import Int32

METHOD = (
    "One sequence of `context` random tokens is prefilled and its KV blocks copied to the other sequences. A sample is "
    "`output_len` greedy steps of one token per sequence from that context on, hand-made step plans straight on the "
    "runner, wall time around them; every sample starts again at `context`. Cost per token: all weights that a step "
    "streams (an untied embedding is not) plus the keys and values of every cached token, averaged over the steps."
)


@dataclass(frozen=True)
class DecodeWorkload:
    """B sequences at context C, N steps a sample."""

    batch: int
    context: int
    output_len: int

    def as_dict(self, stage: str) -> dict[str, Any]:
        """For the result file."""
        return {
            "stage": stage,
            "batch": self.batch,
            "context": self.context,
            "output_len": self.output_len,
            "tokens_per_sample": self.batch * self.output_len,
        }


def mean_bytes_per_token(cost: Cost, batch: int, context: int, steps: int) -> float:
    """Bytes that one generated token needs, averaged over steps at context + 1 .. context + steps tokens."""
    total = sum(cost.decode_bytes([context + step + 1] * batch) for step in range(steps))
    return total / (steps * batch)


def decode_limits(cost: Cost, bytes_per_token: float, batch: int) -> dict[str, Any]:
    """The bandwidth limit, and why it does not bind where everything stays in the processor's cache."""
    cache = last_level_cache_bytes()
    step = bytes_per_token * batch
    fits = cache is not None and step <= 2 * cache
    why = f"a step reads {step:.0f} bytes, which may stay in the {cache} byte cache: memory bandwidth is no limit"
    return {"capacity_metric": "read_bandwidth", "cost": bytes_per_token, "does_not_bind": why if fits else None}


def measure_decode(config: EngineConfig, workload: DecodeWorkload, repeat: Repeat, progress: Progress) -> Result:
    """Decode straight on the runner. Raises KvikError for a workload that does not fit."""
    with open_workbench(config) as bench:
        layout = bench.layout(workload.batch, workload.context + workload.output_len)
        bench.runner.allocate(layout.num_blocks, layout.block_size)
        progress(f"{bench.name}: prefilling {workload.context} tokens, then {workload.batch} sequences decode")
        first = prefill_rows(bench, layout, workload.context)
        take = decode_sampler(bench.runner, layout, workload, first)
        samples = interleaved(take, "tokens_per_s", repeat, progress)
        return decode_result(bench, workload, samples, repeat)


def prefill_rows(bench: Workbench, layout: Layout, context: int) -> Int32:
    """Fill every row's cache with `context` tokens; returns the token each row decodes next, [rows, 1]."""
    tokens = random_tokens(bench.config.runner.seed, bench.runner.vocab_size, 1, context + 1)
    chunk = bench.config.scheduler.max_num_batched_tokens
    for start in range(0, context, chunk):
        part = np.ascontiguousarray(tokens[:, start : min(start + chunk, context)])
        bench.runner.run(make_plan(start, layout, part, start, draw=False))
    first = np.repeat(tokens[:, context:], layout.rows, axis=0)
    copies = layout.copies_of_first_row(context)
    bench.runner.run(make_plan(context, layout, first, context, draw=False, copies=copies))
    return first


def decode_sampler(
    runner: Runner, layout: Layout, workload: DecodeWorkload, first: Int32
) -> Callable[[], dict[str, Any]]:
    """A function that takes one sample."""

    def take() -> dict[str, Any]:
        tokens = first
        start = time.perf_counter()
        for step in range(workload.output_len):
            plan = make_plan(step, layout, tokens, workload.context + step, draw=True)
            tokens = runner.run(plan).token_ids.reshape(-1, 1)
        seconds = time.perf_counter() - start
        count = workload.batch * workload.output_len
        return {"seconds": seconds, "tokens": count, "tokens_per_s": count / seconds}

    return take


def decode_result(bench: Workbench, workload: DecodeWorkload, samples: list[dict[str, Any]], repeat: Repeat) -> Result:
    """The evidence of a decode run on the runner."""
    cost_per_token = mean_bytes_per_token(bench.cost, workload.batch, workload.context, workload.output_len)
    limits = decode_limits(bench.cost, cost_per_token, workload.batch)
    return bench.result("decode", workload.as_dict("runner"), samples, repeat, limits=limits, method=METHOD)
