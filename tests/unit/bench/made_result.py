"""A sound result of two sides, made up by hand: for tests of what a result must satisfy and of what is drawn of it."""

from __future__ import annotations

import hashlib
from typing import Any

from kvik.bench.checks import run_checks
from kvik.bench.evidence import compose
from kvik.bench.ladder.claims import compare_claims
from kvik.bench.sides import compare_pair, set_capacities, summarize_side

PROMPT, CACHED, OUTPUTS = 40, 8, (5, 9)
DIGEST = hashlib.sha256(b"the answers").hexdigest()


def made_run(step: float, weights: int = 1000) -> dict[str, Any]:
    """Two requests, the first token after two steps of `step` seconds, then a token a step."""
    ttft = 2 * step
    e2e = [ttft + step * (count - 1) for count in OUTPUTS]
    return {
        "seconds": max(e2e),
        "tokens": sum(OUTPUTS),
        "tokens_per_s": sum(OUTPUTS) / max(e2e),
        "input_tokens": 2 * PROMPT,
        "steps": 10,
        "preemptions": 0,
        "recomputed_tokens": 0,
        "requests": {
            "prompt_tokens": [PROMPT, PROMPT],
            "cached_tokens": [0, CACHED],
            "computed_tokens": [PROMPT, PROMPT - CACHED],
            "asked_tokens": list(OUTPUTS),
            "output_tokens": list(OUTPUTS),
            "ttft_s": [ttft, ttft],
            "tpot_s": [step, step],
            "e2e_s": e2e,
        },
        "itl_s": [[step, sum(OUTPUTS) - 2]],
        "kv_cache": {
            "tokens_held": 90,
            "slots_held": 100,
            "utilisation": 0.9,
            "peak_slots": 96,
            "total_slots": 128,
            "peak_running": 2,
            "block_size": 32,
            "bytes_per_token": 4,
            "largest_batch": 5,
        },
        "memory_bytes": {"weights": weights, "kv": 512, "activations": 100, "total": weights + 612},
        "needs": {"bytes": 1e9, "operations": 1e9, "bytes_bind": True},
        "outputs_sha256": DIGEST,
        "load": {"seconds": 1.0, "own_cores": 1.0, "other_cores": 0.1, "idle_cores": 0.8, "stolen_cores": 0.0},
    }


def made_sample(index: int) -> dict[str, Any]:
    """A round of M1 and M2, the latter twice as fast."""
    slow = [made_run(0.1 + 0.001 * index), made_run(0.101)]
    fast = [made_run(0.05), made_run(0.05 + 0.001 * index)]
    return {
        "tokens_per_s": sum(run["tokens_per_s"] for run in fast) / 2,
        "sides": {"M1": slow, "M2": fast},
        "read_bandwidth": 20e9 + index,
        "matrix_peak": {"bf16": 1e12, "f32": 5e11},
        "load": {"seconds": 1.0, "own_cores": 1.0, "other_cores": 0.2, "idle_cores": 0.8, "stolen_cores": 0.0},
    }


def made_result(preset: str = "rungs") -> dict[str, Any]:
    """Five rounds, with effects, controls and claims."""
    samples = [made_sample(index) for index in range(5)]
    set_capacities(samples)
    result = compose(
        kind="ladder",
        metric="tokens_per_s",
        unit="tokens/s",
        machine={
            "cpu": "a processor",
            "cores": 2,
            "read_bandwidth": 20e9,
            "matrix_peak": {"bf16": 1e12, "f32": 5e11},
            "memory_bytes": 2**34,
        },
        model={"name": "a model", "weights": "bf16", "kv_dtype": "bf16", "parameters": 1000},
        workload={
            "preset": preset,
            "scene": "made up",
            "requests": 2,
            "input_tokens": 2 * PROMPT,
            "output_tokens": sum(OUTPUTS),
        },
        samples=samples,
        limits={"capacity_metric": "read_bandwidth", "cost": 1e8, "does_not_bind": None},
        how_obtained="by hand",
    )
    options = {"M1": {"batching": "static"}, "M2": {"batching": "continuous"}}
    result["sides"] = {
        name: {"options": options[name], "metrics": summarize_side(samples, name)} for name in samples[0]["sides"]
    }
    metrics = ("tokens_per_s", "ttft_s", "tpot_s", "itl_max_s", "kv_utilisation")
    result["pairs"] = [compare_pair(samples, {"a": "M1", "b": "M2", "metric": metric}) for metric in metrics]
    result["same_answers"] = [["M1", "M2"]]
    result["quality"] = {
        "sides": {
            "M1": {"nll": 0.0, "perplexity": 1.0, "perplexity_error": 0.1, "text": "made up", "tasks": None},
            "M2": {
                "nll": 0.0,
                "perplexity": 1.0,
                "perplexity_error": 0.1,
                "text": "made up",
                "tasks": {"right": 1, "count": 2, "accuracy": 0.5},
            },
        },
        "perplexity_change_percent": 0.0,
    }
    result["claims"] = compare_claims(result)
    result["checks"] = run_checks(result)
    return result
