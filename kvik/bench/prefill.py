"""Prefill: tokens per second at which prompts of N tokens are computed, and the fraction of the matrix peak reached.

Prefill computes far more per byte than it reads, so its limit is the machine's matrix rate: the roof is the peak over
the operations of one prompt token (weights, attention, and the head for the last token of each prompt).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvik.bench.cost import Cost
from kvik.bench.evidence import Result
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
    "A sample computes `batch` prompts of `input_len` random tokens from an empty cache and draws one token for each, "
    "hand-made step plans straight on the runner, at most max_num_batched_tokens tokens a step, wall time around them. "
    "Cost per token: 2 operations per weight, 4 per query element and attended token, and the head for drawn tokens."
)


@dataclass(frozen=True)
class PrefillWorkload:
    """B prompts of N tokens."""

    batch: int
    input_len: int

    def as_dict(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "stage": "runner",
            "batch": self.batch,
            "input_len": self.input_len,
            "tokens_per_sample": self.batch * self.input_len,
        }


def peak_of_form(peaks: Mapping[str, float], form: str) -> float:
    """The matrix peak that bounds weights of this form: narrow weights may be widened to any form that is computed."""
    usable = {"f32": ("f32",), "bf16": ("bf16", "f32")}.get(form, ("int8", "bf16", "f32"))
    return max(rate for name, rate in peaks.items() if name in usable)


def flops_per_token(cost: Cost, workload: PrefillWorkload) -> float:
    """Operations of one prompt token, averaged over a prompt."""
    return cost.prefill_flops(0, workload.input_len, sampled=1) / workload.input_len


def measure_prefill(config: EngineConfig, workload: PrefillWorkload, repeat: Repeat, progress: Progress) -> Result:
    """Prefill straight on the runner. Raises KvikError for a workload that does not fit."""
    with open_workbench(config) as bench:
        form = bench.cost.forms.weights
        layout = bench.layout(workload.batch, workload.input_len)
        bench.runner.allocate(layout.num_blocks, layout.block_size)
        progress(f"{bench.name}: {workload.batch} prompts of {workload.input_len} tokens")
        tokens = random_tokens(config.runner.seed, bench.runner.vocab_size, workload.batch, workload.input_len)

        take = prefill_sampler(bench.runner, layout, tokens, config.scheduler.max_num_batched_tokens)
        samples = interleaved(take, "tokens_per_s", repeat, progress)
        for sample in samples:
            sample["matrix_rate"] = peak_of_form(sample["matrix_peak"], form)
        return prefill_result(bench, workload, samples, repeat)


def prefill_sampler(runner: Runner, layout: Layout, tokens: Int32, budget: int) -> Callable[[], dict[str, Any]]:
    """A function that takes one sample; a step computes an equal chunk of every prompt."""
    rows, length = tokens.shape
    chunk = max(1, budget // rows)

    def take() -> dict[str, Any]:
        start = time.perf_counter()
        for begin in range(0, length, chunk):
            end = min(begin + chunk, length)
            part = np.ascontiguousarray(tokens[:, begin:end])
            runner.run(make_plan(begin, layout, part, begin, draw=end == length))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": rows * length, "tokens_per_s": rows * length / seconds}

    return take


def prefill_result(
    bench: Workbench, workload: PrefillWorkload, samples: list[dict[str, Any]], repeat: Repeat
) -> Result:
    """The evidence of a prefill run."""
    limits = {"capacity_metric": "matrix_rate", "cost": flops_per_token(bench.cost, workload), "does_not_bind": None}
    return bench.result("prefill", workload.as_dict(), samples, repeat, limits=limits, method=METHOD)
