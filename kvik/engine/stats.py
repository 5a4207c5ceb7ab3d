"""EngineStats: one snapshot of an engine for people, `/stats` and benchmarks.

Everything here is read off counters that others keep; nothing is measured in this file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from kvik.engine.memory import MemoryPlan
from kvik.engine.metrics import EngineMetrics
from kvik.runners.runner import MemoryUse
from kvik.scheduler import SchedulerStats


@dataclass(frozen=True)
class EngineStats:
    """What the engine holds now (queue, blocks, memory) and what it did since it was built (the rest)."""

    requests_waiting: int
    requests_running: int
    requests_accepted: int
    requests_refused: int
    requests_ended: dict[str, int]
    """By finish reason."""
    prompt_tokens: int
    prompt_tokens_cached: int
    prompt_tokens_computed: int
    recomputed_tokens: int
    generated_tokens: int
    preemptions: int
    prefix_hit_rate: float
    """Cached / all prompt tokens so far; 0 before there are any."""
    steps: int
    step_seconds: float
    steps_isolated: int
    numerical_errors: int
    tokens_per_s: float
    """(prompt + generated tokens) / time inside steps; 0 before there is any."""
    output_tokens_per_s: float
    """Generated tokens / time inside steps."""
    ttft_mean_s: float | None
    """Over requests that have a token; None before there is one."""
    tpot_mean_s: float | None
    e2e_mean_s: float | None
    """Over ended requests; None before there is one."""
    blocks_total: int
    blocks_used: int
    blocks_cached: int
    blocks_free: int
    block_size: int
    kv_utilisation: float
    """Tokens held / token slots in allocated blocks."""
    memory_bytes: dict[str, int]
    """weights, kv, activations: what the runner holds."""
    histograms: dict[str, dict[str, Any]]
    """Of seconds: queue, ttft, itl, tpot, e2e, step_time; of tokens: prompt_length, output_length, step_size. Each has
    `bounds`, `counts` (one more, the last above every bound; not cumulative) and `total`; see EngineMetrics."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return dataclasses.asdict(self)


def snapshot(metrics: EngineMetrics, scheduler: SchedulerStats, held: MemoryUse, plan: MemoryPlan) -> EngineStats:
    """Put the counters of all rooms side by side."""
    did = scheduler.counters
    seconds = metrics.step_seconds
    return EngineStats(
        requests_waiting=scheduler.waiting,
        requests_running=scheduler.running,
        requests_accepted=metrics.accepted,
        requests_refused=metrics.refused,
        requests_ended=dict(metrics.ended),
        prompt_tokens=did.prompt_tokens,
        prompt_tokens_cached=did.cached_prompt_tokens,
        prompt_tokens_computed=did.computed_prompt_tokens,
        recomputed_tokens=did.recomputed_tokens,
        generated_tokens=did.generated_tokens,
        preemptions=did.preemptions,
        prefix_hit_rate=did.cached_prompt_tokens / did.prompt_tokens if did.prompt_tokens else 0.0,
        steps=metrics.steps,
        step_seconds=seconds,
        steps_isolated=metrics.steps_isolated,
        numerical_errors=metrics.numerical_errors,
        tokens_per_s=(did.prompt_tokens + did.generated_tokens) / seconds if seconds else 0.0,
        output_tokens_per_s=did.generated_tokens / seconds if seconds else 0.0,
        ttft_mean_s=metrics.ttft.mean,
        tpot_mean_s=metrics.tpot.mean,
        e2e_mean_s=metrics.e2e.mean,
        blocks_total=scheduler.blocks_total,
        blocks_used=scheduler.blocks_used,
        blocks_cached=scheduler.blocks_cached,
        blocks_free=scheduler.blocks_free,
        block_size=plan.block_size,
        kv_utilisation=scheduler.kv_utilisation,
        memory_bytes=dataclasses.asdict(held),
        histograms=metrics.histograms(),
    )
