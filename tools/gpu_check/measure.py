"""Decode, prefill and a whole workload of Qwen3-0.6B's shapes, straight on the runner, as fractions of the limit.

A decode step is timed around `run`, greedy draws and the copy of tokens to the host included. Costs are least bytes and
operations from the shape alone (`kvik/bench/cost.py`). Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from kvik.bench.cost import Cost, Forms
from kvik.bench.plans import Layout, make_plan, random_tokens
from kvik.bench.workload import nano_vllm_requests
from kvik.checkpoint import open_checkpoint
from kvik.config import RunnerOptions, SchedulerOptions
from kvik.request import Request, SamplingParams
from kvik.runners.cuda import plain
from kvik.runners.cuda.operations import choose_operations
from kvik.runners.cuda.runner import CudaRunner
from kvik.scheduler import Scheduler

MODEL = "dummy:qwen3-0.6b"
BATCHES, CONTEXTS = (1, 8, 32, 256), (128, 1024)
BLOCK, STEPS, WARM = 32, 24, 4
PRESET_REQUESTS, PRESET_TOKENS = 256, 16384


@contextmanager
def runner_of(**options: Any) -> Iterator[CudaRunner]:
    """A runner with the model loaded; closed and its memory given back at the end."""
    eager = options.pop("eager", False)
    runner = CudaRunner(RunnerOptions(enforce_eager=eager), **options)
    try:
        runner.load(open_checkpoint(MODEL))
        yield runner
    finally:
        runner.close()
        torch.cuda.empty_cache()


def decode_with_graphs(results: dict[str, Any]) -> dict[str, Any]:
    """The default: bf16, captured graphs."""
    return decode(results, BATCHES, CONTEXTS)


def decode_eager(results: dict[str, Any]) -> dict[str, Any]:
    """Without graphs."""
    return decode(results, (1, 32), (128,), eager=True)


def decode_compiled(results: dict[str, Any]) -> dict[str, Any]:
    """Norms and gates by torch.compile in place of the Triton kernels, in graphs."""
    operations = choose_operations(torch.device("cuda"), "flash")
    compiled = replace(
        operations,
        add_rms_norm=torch.compile(plain.add_rms_norm, dynamic=False),
        silu_mul=torch.compile(plain.silu_mul, dynamic=False),
    )
    torch._dynamo.config.recompile_limit = 64
    return decode(results, (1, 32), (128,), operations=compiled)


def decode_int8_kv(results: dict[str, Any]) -> dict[str, Any]:
    """int8 keys and values, where they are most of the bytes."""
    return decode(results, (32, 256), (1024,), kv_dtype="int8")


def decode_fp8_kv(results: dict[str, Any]) -> dict[str, Any]:
    """fp8 keys and values."""
    return decode(results, (32, 256), (1024,), kv_dtype="fp8")


def decode_int4(results: dict[str, Any]) -> dict[str, Any]:
    """int4 weights, where weights are most of the bytes."""
    return decode(results, (1, 8), (128,), weights="int4")


def decode_int8(results: dict[str, Any]) -> dict[str, Any]:
    """int8 weights."""
    return decode(results, (1, 8), (128,), weights="int8")


def decode_deterministic(results: dict[str, Any]) -> dict[str, Any]:
    """Bytes that do not depend on the batch."""
    return decode(results, (1, 32), (128,), deterministic=True)


def decode(results: dict[str, Any], batches: Any, contexts: Any, **options: Any) -> dict[str, Any]:
    """Tokens/s and the fraction of the read bandwidth, by batch and context."""
    bandwidth = results.get("limits", {}).get("read_bandwidth")
    forms = {"weights": options.get("weights", "auto"), "kv_dtype": options.get("kv_dtype", "auto")}
    rows = []
    with runner_of(**options) as runner:
        cost = Cost(runner.spec, Forms.resolve(runner.spec, forms["weights"], forms["kv_dtype"]))
        layout = Layout(max(batches), max(contexts) + STEPS + WARM + 1, BLOCK)
        runner.allocate(layout.num_blocks, BLOCK)
        for batch in batches:
            for context in contexts:
                seconds = step_seconds(runner, layout, batch, context)
                least = cost.decode_bytes([context + WARM + STEPS // 2] * batch)
                fraction = least / seconds / bandwidth if bandwidth else None
                rows.append({"batch": batch, "context": context, "ms": seconds * 1e3, "tokens_per_s": batch / seconds})
                rows[-1]["fraction_of_bandwidth"] = fraction
                print(rows[-1], flush=True)
        return {"rows": rows, "kernels": runner.kernels().chosen, "weights_bytes": runner.memory().weights}


def step_seconds(runner: CudaRunner, layout: Layout, batch: int, context: int) -> float:
    """The median time of a step in which each of `batch` sequences gains a token, from this context on."""
    times = []
    tokens = random_tokens(0, runner.vocab_size, batch, 1)
    for step in range(WARM + STEPS):
        plan = make_plan(step, layout, tokens, context + step, draw=True)
        started = time.perf_counter()
        tokens = runner.run(plan).token_ids.reshape(batch, 1)
        times.append(time.perf_counter() - started)
    return median(times[WARM:])


def prefill(results: dict[str, Any]) -> dict[str, Any]:
    """Prompt tokens/s and the fraction of the matrix peak."""
    peak = results.get("limits", {}).get("matrix_peak")
    rows = []
    with runner_of(eager=True) as runner:
        cost = Cost(runner.spec, Forms("bf16", "bf16"))
        for batch, length in ((1, 128), (1, 1024), (8, 1024), (16, 1024), (1, 8192)):
            layout = Layout(batch, length, BLOCK)
            runner.allocate(layout.num_blocks, BLOCK)
            tokens = random_tokens(0, runner.vocab_size, batch, length)
            times = []
            for step in range(6):
                plan = make_plan(step, layout, tokens, 0, draw=True)
                started = time.perf_counter()
                runner.run(plan)
                times.append(time.perf_counter() - started)
            seconds = median(times[2:])
            flops = batch * cost.prefill_flops(0, length, sampled=1)
            rows.append(
                {"batch": batch, "length": length, "ms": seconds * 1e3, "tokens_per_s": batch * length / seconds}
            )
            rows[-1]["fraction_of_peak"] = flops / seconds / peak if peak else None
            print(rows[-1], flush=True)
    return {"rows": rows}


def preset(results: dict[str, Any]) -> dict[str, Any]:
    """nano-vllm's benchmark: 256 requests through the scheduler, answers of fixed length."""
    requests = nano_vllm_requests(PRESET_REQUESTS)
    with runner_of() as runner:
        runner.allocate(1 << 14, BLOCK)
        warm_up(runner)
        options = SchedulerOptions(max_num_seqs=PRESET_REQUESTS, max_num_batched_tokens=PRESET_TOKENS)
        scheduler = Scheduler(options, num_blocks=1 << 14, block_size=BLOCK, max_model_len=4096, prefix_caching=True)
        for key, (prompt, length) in enumerate(zip(requests.prompts, requests.output_lens, strict=True)):
            params = SamplingParams(temperature=0.6, max_tokens=length, ignore_eos=True)
            total = len(prompt) + length
            scheduler.add(Request(key, list(prompt), len(prompt), params, total, seed=key, arrival=key))
        started, steps, drawn, in_runner = time.perf_counter(), 0, 0, 0.0
        while drawn < requests.output_tokens:
            plan = scheduler.plan()
            before = time.perf_counter()
            result = runner.run(plan)
            in_runner += time.perf_counter() - before
            scheduler.commit(plan, result)
            drawn, steps = drawn + len(plan.sample), steps + 1
        seconds = time.perf_counter() - started
    return {
        "output_tokens": drawn,
        "steps": steps,
        "wall_s": seconds,
        "runner_s": in_runner,
        "output_tokens_per_s": drawn / seconds,
        "total_tokens_per_s": (drawn + requests.input_tokens) / seconds,
    }


def warm_up(runner: CudaRunner) -> None:
    """A prompt and a decode, so that kernels are compiled before a clock runs."""
    layout = Layout(2, 256, BLOCK)
    for start, width in ((0, 128), (128, 1)):
        runner.run(make_plan(0, layout, random_tokens(0, runner.vocab_size, 2, width), start, draw=True))
