"""What a whole run must move at the least: every weight once a step, and the keys and values that are attended to.

Lower bounds on top of cost.py, for workloads of many requests. The arithmetic of the prompts is not counted: a run
whose time goes into prefill stays further below this limit. This file knows nothing of engines or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvik.bench.cost import Cost
from kvik.bench.decode import decode_limits
from kvik.bench.machine import last_level_cache_bytes
from kvik.bench.prefill import peak_of_form
from kvik.bench.workload import Case, Requests


def kv_bytes_read(cost: Cost, requests: Requests) -> int:
    """Bytes of keys and values that the decodes of all requests read: at every token but the first, all before it.

    A window-limited layer reads its window only.
    """
    per_token = cost.kv_bytes_per_token() // cost.spec.num_layers
    return per_token * sum(
        cost.attended(len(prompt) + step)
        for prompt, asked in zip(requests.prompts, requests.output_lens, strict=True)
        for step in range(1, asked)
    )


def run_bytes(cost: Cost, requests: Requests, steps: int) -> int:
    """Bytes that the run must read in this many steps."""
    return steps * cost.streamed_weight_bytes() + kv_bytes_read(cost, requests)


def run_limits(cost: Cost, requests: Requests, steps: int) -> dict[str, Any]:
    """The bandwidth limit of a whole run, per output token, as `checks.limits_of` wants it stated."""
    cache, step = last_level_cache_bytes(), run_bytes(cost, requests, steps) / steps
    fits = cache is not None and step <= 2 * cache
    why = f"a step reads {step:.0f} bytes, which may stay in the {cache} byte cache: memory bandwidth is no limit"
    return {
        "capacity_metric": "read_bandwidth",
        "cost": run_bytes(cost, requests, steps) / requests.output_tokens,
        "does_not_bind": why if fits else None,
    }


def case_limits(cost: Cost, case: Case, requests: Requests, sample: Mapping[str, Any]) -> dict[str, Any]:
    """The limit that binds a case: bandwidth for decode and whole runs, the matrix rate for prefill.

    `sample` is the measured engine's; its steps and its context are the run's own.
    """
    if case.kind == "prefill":
        flops = sum(cost.prefill_flops(0, len(prompt), sampled=1) for prompt in requests.prompts)
        return {"capacity_metric": "matrix_rate", "cost": flops / requests.input_tokens, "does_not_bind": None}
    if case.kind == "total":
        return run_limits(cost, requests, int(sample["steps"]))
    context = len(requests.prompts[0]) + int(sample["mean_generated"])
    per_token = cost.decode_bytes([context] * case.concurrency) / case.concurrency
    return decode_limits(cost, per_token, case.concurrency)


def matrix_rate(sample: Mapping[str, Any], cost: Cost) -> float:
    """The matrix peak, measured beside a sample, that bounds weights of this form."""
    return peak_of_form(sample["matrix_peak"], cost.forms.weights)
